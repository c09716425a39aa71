"""A login on real sockets: SCRAM bound to TLS, computed in a thread, and somebody in the middle."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python.failure import Failure

from msgservice import Client, connect
from msgservice.errors import BadValue
from msgservice.identity.passwords import PasswordRecord
from msgservice.identity.prover import THREADS_MAX, prover_of
from msgservice.identity.users import User, Users
from msgservice.limits import Limits
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.endpoints import client_endpoint, server_endpoint
from tests.integration.daemon import BIN
from tests.kit.certificates import Authority
from tests.kit.logins import PASSWORD, LoginGate, users_with, users_with_a_token
from tests.kit.node_double import NodeDouble

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, close_timeout=10.0, stop_timeout=20.0)


class Site:
    """A node with users behind a listener, and its clients; all ended with the test."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.node = NodeDouble(reactor, QUICK)
        self.gate = self.node.gate = LoginGate(reactor, users_with(shop=PASSWORD))
        self.gate.throttle.delay = 0.05
        self.ports: list[IListeningPort] = []
        self.clients: list[Client] = []

    async def listen(self, address: str) -> int:
        transport = Transports().find(address)
        port = await transport.listen(reactor, address, self.node.make_user, QUICK)
        self.ports.append(port)
        return int(getattr(port.getHost(), "port", 0))

    def dial(self, address: str, **login: Any) -> Deferred[Client]:
        opened = connect(reactor, address, name="shop", limits=QUICK, **login)
        return opened.addCallback(self._opened)

    def _opened(self, client: Client) -> Client:
        self.clients.append(client)
        return client

    def trusting(self, port: int) -> str:
        return f"tls:localhost:{port}:trustRoots={self.authority.ca_file}"

    async def until_heard(self, count: int) -> None:
        while len(self.gate.heard) < count:
            await deferLater(reactor, 0.01)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        for port in self.ports:
            stopping = port.stopListening()
            if stopping is not None:
                await stopping
        while any(not connection.is_gone for connection in self.node.connections):
            await deferLater(reactor, 0.01)


@pytest_twisted.async_yield_fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(Authority(tmp_path))
    yield site
    await site.close()


@pytest_twisted.ensureDeferred
async def test_a_producer_logs_in_over_tls_and_sends(site: Site) -> None:
    port = await site.listen(site.authority.listener())
    client = await site.dial(site.trusting(port), user="shop", password=PASSWORD)
    assert (await client.send("orders.new", b"one")).position
    assert site.gate.heard[0].startswith(b"SCRAM-SHA-256-PLUS\0p=tls-server-end-point,")
    assert [b"one"] == site.node.bodies()


@pytest.mark.parametrize("scheme", ["tcp", "unix", "udp"])
@pytest_twisted.ensureDeferred
async def test_a_producer_logs_in_without_tls_where_nobody_else_can_read(
    site: Site, tmp_path: Path, scheme: str
) -> None:
    key = tmp_path / "datagrams.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    of_scheme = {"tcp": "tcp:0", "unix": f"unix:{tmp_path}/node.sock", "udp": f"udp:0:key={key}"}
    address = of_scheme[scheme]
    port = await site.listen(address)
    more = f":key={key}" if scheme == "udp" else ""
    dialled = address if scheme == "unix" else f"{scheme}:127.0.0.1:{port}{more}"
    client = await site.dial(dialled, user="shop", password=PASSWORD)
    await client.send("orders.new", b"one")
    assert site.gate.heard[0].startswith(b"SCRAM-SHA-256\0n,,")


@pytest_twisted.ensureDeferred
async def test_a_token_is_said_over_tls(site: Site) -> None:
    site.gate.users, token = users_with_a_token("shop")
    port = await site.listen(site.authority.listener())
    client = await site.dial(site.trusting(port), token=token)
    await client.send("orders.new", b"one")
    assert [b"one"] == site.node.bodies()


@pytest_twisted.ensureDeferred
async def test_a_login_that_fails_keeps_what_it_was_handed_until_one_does_not(
    site: Site, tmp_path: Path
) -> None:
    port = await site.listen(site.authority.listener())
    opening = connect(
        reactor,
        site.trusting(port),
        name="shop",
        limits=QUICK,
        outbox=tmp_path / "outbox.db",
        user="shop",
        password="wrong",
    )
    client = await opening
    site.clients.append(client)
    sending = client.send("orders.new", b"one")
    await site.until_heard(4)  # a second attempt was begun
    assert "the other side says: wrong user or password (code 13)" == client.why().error
    assert [] == site.node.hellos
    site.gate.users = users_with(shop="wrong")
    await (await sending).accepted
    assert [b"one"] == site.node.bodies()


@pytest.mark.parametrize(
    "login",
    [
        {"user": "shop"},
        {"password": PASSWORD},
        {"user": "shop", "password": ""},
        {"user": "shop", "password": PASSWORD, "token": "ms_a_b"},
        {"token": "hunter2"},
    ],
    ids=["no secret", "no user", "empty", "both", "no token"],
)
@pytest_twisted.ensureDeferred
async def test_what_can_be_no_login_is_refused_before_anything_is_dialled(
    site: Site, login: dict[str, str]
) -> None:
    with pytest.raises(BadValue) as refused:
        await site.dial("tcp:127.0.0.1:1", **login)
    for secret in ("hunter2", PASSWORD, "ms_a_b"):
        assert secret not in str(refused.value)


class _Half(Protocol):
    """One side of somebody in the middle: what comes is said on the other."""

    other: _Half | None = None

    def __init__(self) -> None:
        self._early = b""
        self._is_over = False

    def join(self, other: _Half) -> None:
        self.other, other.other = other, self
        if self._is_over:
            other.leave()
        for half in (self, other):
            early, half._early = half._early, b""
            if early:
                half.dataReceived(early)

    def dataReceived(self, data: bytes) -> None:
        if self.other is None:
            self._early += data
        else:
            assert self.other.transport is not None
            self.other.transport.write(data)

    def leave(self, _: object = None) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_over = True
        if self.other is not None:
            self.other.leave()


class _Middle(Factory):
    """Somebody with a certificate of his own, that the client trusts too, who passes all on."""

    noisy = False

    def __init__(self, to: str) -> None:
        self.to = to

    def buildProtocol(self, addr: Any) -> Protocol:
        near = _Half()
        far = Factory.forProtocol(_Half)
        far.noisy = False
        dialling: Deferred[Any] = client_endpoint(reactor, self.to).connect(far)
        dialling.addCallbacks(near.join, near.leave)
        return near


@pytest_twisted.ensureDeferred
async def test_who_sits_between_with_a_certificate_that_is_trusted_gets_nothing(
    site: Site,
) -> None:
    inner = await site.listen(site.authority.listener())
    issued = site.authority.ca.issue_cert("localhost")
    own = site.authority.folder / "middle.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(own))
    middle = server_endpoint(reactor, f"tls:0:privateKey={own}")
    port: IListeningPort = await middle.listen(_Middle(site.trusting(inner)))
    site.ports.append(port)
    there: Any = port.getHost()
    opening = site.dial(site.trusting(there.port), user="shop", password=PASSWORD)
    await site.until_heard(2)
    await deferLater(reactor, 0.2)
    assert not opening.called
    assert {} == site.node.logged_in
    assert [] == site.node.hellos
    opening.addErrback(lambda _: None)
    opening.cancel()


@pytest_twisted.ensureDeferred
async def test_a_login_computes_beside_the_reactor(site: Site) -> None:
    site.gate.users = _slow_users()
    port = await site.listen(site.authority.listener())
    turns = 0
    opening = site.dial(site.trusting(port), user="shop", password=PASSWORD)
    await site.until_heard(1)
    while not opening.called:
        turns += 1
        await deferLater(reactor, 0.001)
    await opening
    assert turns > 10  # 300,000 iterations take a quarter of a second of some thread


def _slow_users() -> Users:
    record = PasswordRecord.of(PASSWORD, iterations=300_000)
    return Users([User(name="shop", password=record)], secret=b"a secret of tests")


ASYNCIO = """
import asyncio, sys
from twisted.internet import asyncioreactor

async def main(address, password):
    loop = asyncio.get_running_loop()
    asyncioreactor.install(loop)
    from twisted.internet import reactor
    from msgservice import connect
    reactor.startRunning(installSignalHandlers=False)
    opening = connect(reactor, address, name="shop", user="shop", password=password)
    client = await opening.asFuture(loop)
    await client.send("orders.new", b"one").asFuture(loop)
    await client.close().asFuture(loop)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest_twisted.ensureDeferred
async def test_a_program_of_asyncio_that_has_logged_in_comes_to_its_end(site: Site) -> None:
    port = await site.listen("tcp:0")
    words = ("-c", ASYNCIO, f"tcp:127.0.0.1:{port}", PASSWORD)
    _, err, code = await getProcessOutputAndValue(sys.executable, words, env=os.environ)
    assert (b"", 0) == (err, code)
    assert [b"one"] == site.node.bodies()


@pytest_twisted.ensureDeferred
async def test_logins_at_once_are_computed_a_few_at_a_time() -> None:
    prover = prover_of(reactor, user="shop", password=PASSWORD, token=None)
    assert prover is not None
    counts: list[int] = []
    here: set[int] = set()
    pairs = threading.Barrier(2)

    def work() -> str:
        here.add(threading.get_ident())
        counts.append(len(here))
        pairs.wait(20)  # so two are at it at once, however busy the machine is
        here.discard(threading.get_ident())
        return "done"

    assert ["done"] * 20 == await gatherResults([prover.compute(work) for _ in range(20)])
    assert 1 < max(counts) <= THREADS_MAX


# --- the command line


async def command(*words: str, **environ: str) -> tuple[str, str, int]:
    """What a command says, and how it ends; the node lives in this process."""
    out, err, code = await getProcessOutputAndValue(
        str(BIN / "msgservice"), words, env=os.environ | environ
    )
    return out.decode(), err.decode(), code


@pytest_twisted.ensureDeferred
async def test_a_command_logs_in_with_a_profile(site: Site, tmp_path: Path) -> None:
    port = await site.listen(site.authority.listener())
    profile = tmp_path / "profile.toml"
    profile.touch(mode=0o600)
    profile.write_text(
        f'node = "tls:localhost:{port}:trustRoots=ca.pem"\nuser = "shop"\npassword = "{PASSWORD}"\n'
    )
    _, err, code = await command("send", "orders.new", "one", "--profile", str(profile))
    assert (0, "") == (code, err)
    assert [b"one"] == site.node.bodies()
    assert ["shop.cli"] == [hello.name for hello in site.node.hellos]


@pytest.mark.timeout(240)  # and not the 1000 s that the command itself would go on trying
@pytest_twisted.ensureDeferred
async def test_a_command_with_a_wrong_password_says_so_at_once(site: Site) -> None:
    port = await site.listen("tcp:0")
    node = f"tcp:127.0.0.1:{port}"
    words = ("send", "orders.new", "one", "--node", node, "--user", "shop", "--timeout", "1000")
    _, err, code = await command(*words, MSGSERVICE_PASSWORD="wrong")
    assert "msgservice: the other side says: wrong user or password (code 13)\n" == err
    assert 1 == code
    _, err, code = await command(*words, "--json", MSGSERVICE_PASSWORD="wrong")
    assert '"error":"NotAuthenticated"' in err
    _, _, code = await command(*words, MSGSERVICE_PASSWORD=PASSWORD)
    assert 0 == code
    assert [b"one"] == site.node.bodies()


@pytest_twisted.ensureDeferred
async def test_a_command_without_a_secret_dials_nobody(site: Site) -> None:
    port = await site.listen("tcp:0")
    _, err, code = await command("info", "--node", f"tcp:127.0.0.1:{port}", "--user", "shop")
    assert "msgservice: user 'shop' has no password: set MSGSERVICE_PASSWORD" in err
    assert 2 == code
    assert [] == site.node.connections
