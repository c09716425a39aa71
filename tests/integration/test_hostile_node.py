"""A node that does what no node may, on real sockets and after a real login: nothing is lost by it.

Over IPv6 too. What it may say before a login is in `tests/unit/test_hostile_node.py`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater

from msgservice import Client, connect
from msgservice.connection import Connection
from msgservice.core.frames import Ack, Auth, Frame, Hello, ResumeFrame, StatusFrame, encode_frame
from msgservice.identity.passwords import ITERATIONS_MIN, PasswordRecord
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.records import Resume
from msgservice.transport.registry import Transports
from tests.kit.logins import PASSWORD, SECRET, LoginGate, users_with
from tests.kit.node_double import NodeDouble

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, close_timeout=10.0, stop_timeout=20.0)
AT_ONCE = 1_000  # ranges
Mischief = Callable[[Connection], None]


class Hostile(NodeDouble):
    """A node that does something else than to answer, until it is told to be good."""

    def __init__(self) -> None:
        super().__init__(reactor, QUICK)
        self.gate = LoginGate(reactor, users_with(shop=PASSWORD))
        self.when_greeted: Mischief | None = None
        self.when_open: Mischief | None = None
        self.client: Client | None = None
        self.awaited: tuple[str, Deferred[str]] | None = None

    def until_told(self, reason: str) -> Deferred[str]:
        """Fire with what the client says of its last connection, where that has this in it."""
        self.awaited = (reason, Deferred())
        return self.awaited[1]

    def channel_up(self, connection: Connection) -> None:
        """See `NodeDouble`. The client comes again: it says why it had to."""
        super().channel_up(connection)
        error = self.client.why().error if self.client is not None else None
        if self.awaited is not None and error is not None and self.awaited[0] in error:
            told, self.awaited = self.awaited[1], None
            told.callback(error)

    def received(self, connection: Connection, frame: Frame) -> None:
        """See `NodeDouble`."""
        if self.when_open is None:
            super().received(connection, frame)

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """See `NodeDouble`."""
        if self.when_greeted is None:
            super().greeted(connection, hello)
        else:
            connection.hello(Hello(1, "node", "log-1"))
            self.when_greeted(connection)

    def opened(self, connection: Connection, resume: Resume) -> None:
        """See `NodeDouble`."""
        super().opened(connection, resume)
        if self.when_open is not None:
            self.when_open(connection)

    def be_good(self) -> None:
        self.when_greeted = self.when_open = None


class Site:
    """The node behind a listener, and a client of it."""

    def __init__(self) -> None:
        self.node = Hostile()
        self.port: IListeningPort | None = None
        self.client: Client | None = None

    async def dial(self, host: str) -> Client:
        address = f"tcp:0:interface={host}"
        transport = Transports().find(address)
        self.port = await transport.listen(reactor, address, self.node.make_user, QUICK)
        number = int(getattr(self.port.getHost(), "port", 0))
        self.client = await connect(
            reactor,
            f"tcp:{host}:{number}",
            name="shop",
            limits=QUICK,
            user="shop",
            password=PASSWORD,
        )
        self.node.client = self.client
        return self.client

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close()
        if self.port is not None:
            stopping = self.port.stopListening()
            if stopping is not None:
                await stopping
        while any(not connection.is_gone for connection in self.node.connections):
            await deferLater(reactor, 0.01)


@pytest_twisted.async_yield_fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    await site.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HOSTS = [
    "127.0.0.1",
    pytest.param("[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
]


def says(*frames: Any) -> Mischief:
    def say(connection: Connection) -> None:
        assert connection.channel is not None
        connection.channel.send_now([encode_frame(frame) for frame in frames])

    return say


def writes(data: bytes) -> Mischief:
    def write(connection: Connection) -> None:
        channel: Any = connection.channel
        channel.transport.write(data)

    return write


def resumes_without_end(connection: Connection) -> None:
    def more(number: int) -> None:
        if not connection.is_gone:
            ranges = [(4 * (number + one), 4 * (number + one) + 1) for one in range(1, AT_ONCE + 1)]
            says(ResumeFrame(1, ranges, None, True))(connection)
            reactor.callLater(0, more, number + AT_ONCE)

    more(0)


AFTER_LOGIN = {
    "a frame too large": (writes(b"\xff\xff\xff\xff"), "frame of 4294967295 bytes"),
    "no frame": (writes(b"\x00\x00\x00\x02\xc1\xc1"), ""),
    "HELLO again": (says(*[Hello(1, "node", "log-1")] * 1000), "Hello frame while open"),
    "RESUME again": (says(*[ResumeFrame(1, [])] * 1000), "ResumeFrame frame while open"),
    "AUTH again": (says(Auth(b"v=AAAA")), "Auth"),
    "an ACK of what was never sent": (says(Ack([(10**6, 10**9)])), ""),
    "a status of what was never sent": (
        says(StatusFrame("another", "r1", 3, [(1, 10**9)]), Ack([(5, 1)])),
        "",
    ),
}


async def told_and_kept(site: Site, sent: Deferred[Any], reason: str) -> None:
    """The client says why it is not connected, keeps what it holds, and sends it when it can."""
    await site.node.until_told(reason)
    assert not sent.called
    site.node.be_good()
    assert (await sent).position
    assert [b"one"] == site.node.bodies()


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("what", AFTER_LOGIN)
@pytest_twisted.ensureDeferred
async def test_what_no_node_may_say_ends_its_connection_and_loses_nothing(
    site: Site, what: str, host: str
) -> None:
    site.node.when_open, reason = AFTER_LOGIN[what]
    client = await site.dial(host)
    await told_and_kept(site, client.send("orders.new", b"one"), reason)


@pytest_twisted.ensureDeferred
async def test_a_resume_without_an_end_is_not_listened_to(site: Site) -> None:
    client = await site.dial("127.0.0.1")
    site.node.when_greeted = resumes_without_end
    site.node.cut()
    await told_and_kept(
        site, client.send("orders.new", b"one"), "RESUME of more than 100000 ranges"
    )


@pytest.mark.parametrize("host", HOSTS)
@pytest_twisted.ensureDeferred
async def test_a_node_that_knows_the_user_and_not_the_password_is_told_nothing(
    site: Site, host: str
) -> None:
    """It lets the client in, by a proof that it cannot make."""
    record = PasswordRecord.of(PASSWORD, iterations=ITERATIONS_MIN)
    forged = replace(record, server_key=bytes(len(record.server_key)))
    client = await site.dial(host)
    gate, before = site.node.gate, len(site.node.hellos)
    assert gate is not None
    gate.users = Users([User(name="shop")], secret=SECRET, passwords={"shop": forged})
    site.node.cut()
    sent = client.send("orders.new", b"one")
    await site.node.until_told("signature does not match")
    assert not sent.called
    assert before == len(site.node.hellos)
    gate.users = users_with(shop=PASSWORD)
    assert (await sent).position
