"""Frames over acknowledged UDP: channels on real sockets, and a node whose hops are UDP."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from msgservice import Receiver, connect
from msgservice.errors import BadAddress, CannotListen, InsecureListener
from msgservice.interfaces import IChannel, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.node.node import Node
from msgservice.transport.addresses import check_listener
from msgservice.transport.registry import Transports
from msgservice.transport.udp.transport import UdpTransport
from tests.integration.test_udp_sockets import Proxy
from tests.kit.channels import Recorder

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
QUICK = Limits(link_delay_min=0.01, link_delay_max=0.05, close_timeout=1.0, stop_timeout=4.0)
PATIENT = replace(QUICK, close_timeout=20.0)  # what is sent before a close has its time


class Net:
    """What a test listened on and dialled."""

    def __init__(self) -> None:
        self.transport = UdpTransport(rng=random.random)
        self.accepted: list[Recorder] = []
        self.dialled: list[Recorder] = []
        self.ports: list[Any] = []
        self.connectors: list[Any] = []

    def user(self, users: list[Recorder], echo: bool) -> Recorder:
        made = Recorder()
        made.on_opened = lambda channel: channel.established()
        if echo:
            made.on_frames = made.send_back
        users.append(made)
        return made

    async def listen(self, options: str = "", port: int = 0) -> int:
        made = await self.transport.listen(
            reactor, f"udp:{port}{options}", lambda: self.user(self.accepted, True), PATIENT
        )
        self.ports.append(made)
        return int(made.getHost().port)  # type: ignore[attr-defined]  # of its address

    async def dial(self, port: int, options: str = "") -> Recorder:
        connector = self.transport.connector(
            reactor,
            f"udp:127.0.0.1:{port}{options}",
            lambda: self.user(self.dialled, False),
            PATIENT,
        )
        self.connectors.append(connector)
        connector.startService()
        await until(lambda: bool(self.dialled) and self.dialled[-1].channel is not None)
        return self.dialled[-1]


async def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for something that happens in the reactor."""
    end = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < end, "not in time"
        await deferLater(reactor, 0.005)


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    for connector in made.connectors:
        pytest_twisted.blockon(connector.stopService())
    for port in made.ports:
        pytest_twisted.blockon(port.stopListening())


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "udp.key"
    path.write_text(bytes(range(32)).hex() + "\n")
    return str(path)


@pytest_twisted.ensureDeferred
async def test_frames_of_all_sizes_cross_in_order_and_come_back(net: Net) -> None:
    user = await net.dial(await net.listen())
    frames = [
        bytes([n % 251]) * size for n, size in enumerate([0, 1, 100, 1200, 65_536, 1_000_000])
    ]
    for frame in frames:
        user.send(frame)
    await user.until_frames(len(frames))

    assert frames == net.accepted[0].frames == user.frames
    assert verifyObject(IChannel, user.channel)
    assert verifyObject(IConnector, net.connectors[0])
    assert verifyObject(ITransport, net.transport)


@pytest_twisted.ensureDeferred
async def test_with_a_key_frames_cross_and_without_it_nobody_is_heard(
    net: Net, key_file: str
) -> None:
    port = await net.listen(f":key={key_file}")
    user = await net.dial(port, f":key={key_file}")
    user.send(b"sealed")
    await user.until_frames(1)
    for end in (net.accepted[0], user):
        assert end.channel is not None
        shown = end.channel.credentials
        assert ("udp", 1, True) == (shown.how, shown.key_id, shown.is_private)
    stranger = net.transport.connector(
        reactor, f"udp:127.0.0.1:{port}:timeout=0.3", lambda: net.user([], False), QUICK
    )
    net.connectors.append(stranger)
    stranger.startService()
    await until(lambda: stranger.failures > 0)

    assert 1 == len(net.accepted)
    assert "no answer within 0.3 s (nobody is there, or has this key)" == stranger.last_error


@pytest_twisted.ensureDeferred
async def test_what_was_sent_before_closing_arrives_and_both_sides_learn_of_the_end(
    net: Net,
) -> None:
    user = await net.dial(await net.listen())
    frames = [bytes(50_000) for _ in range(40)]
    for frame in frames:
        user.send(frame)
    assert user.channel is not None
    user.channel.close()
    await user.until_lost()
    await net.accepted[0].until_lost()

    assert frames == net.accepted[0].frames


@pytest_twisted.ensureDeferred
async def test_a_connection_that_ends_is_dialled_again(net: Net) -> None:
    user = await net.dial(await net.listen())
    assert net.accepted[0].channel is not None
    net.accepted[0].channel.abort()
    await user.until_lost()
    await until(lambda: len(net.dialled) == 2 and net.dialled[1].channel is not None)
    net.dialled[1].send(b"again")
    await net.dialled[1].until_frames(1)

    assert [b"again"] == net.accepted[1].frames
    assert 2 == net.connectors[0].attempts


@pytest_twisted.ensureDeferred
async def test_a_paused_reader_stops_the_sender_and_loses_nothing(net: Net) -> None:
    user = await net.dial(await net.listen())
    user.send(b"first")
    await user.until_frames(1)
    reader = net.accepted[0]
    assert reader.channel is not None
    reader.on_frames = lambda frames: None
    reader.channel.pause()
    for _ in range(200):
        user.send(bytes(100_000))
    await until(lambda: user.values("writable") == [False])
    await deferLater(reactor, 0.2)
    assert [b"first"] == reader.frames

    reader.channel.resume()
    await reader.until_frames(201)
    await until(lambda: user.values("writable") == [False, True])


def test_addresses_that_cannot_work_are_refused(tmp_path: Path) -> None:
    transport = UdpTransport(rng=random.random)
    for address in (
        "udp:192.0.2.1:7410",
        "udp:127.0.0.1:0",
        "udp:127.0.0.1:7410:colour=red",
        "udp:127.0.0.1:7410:insecure=maybe",
        f"udp:127.0.0.1:7410:key={tmp_path / 'missing'}",
    ):
        with pytest.raises(BadAddress):
            transport.connector(reactor, address, lambda: Recorder(), QUICK)
    assert ["udp"] == [scheme for scheme in Transports().schemes if scheme == "udp"]
    key = tmp_path / "udp.key"
    key.write_text(64 * "a")
    check_listener(transport, f"udp:0:key={key}:interface=0.0.0.0", insecure=False)
    with pytest.raises(InsecureListener):
        check_listener(transport, "udp:0:insecure=yes:interface=0.0.0.0", insecure=False)


@pytest_twisted.ensureDeferred
async def test_a_port_in_use_is_told(net: Net) -> None:
    port = await net.listen()
    with pytest.raises(CannotListen):
        await net.listen(port=port)


# --- a node ------------------------------------------------------------------------------------


class Hops:
    """A node that listens on TCP and UDP, and what speaks to it."""

    def __init__(self, folder: Path) -> None:
        self.failures: list[Exception] = []
        self.node = Node(
            reactor,
            folder / "node",
            name="central",
            listen=["udp:0", "tcp:0"],
            limits=QUICK,
            failed=self.failures.append,
        )
        self.closing: list[Any] = []

    async def start(self) -> None:
        self.node.startService()
        await self.node.when_ready()

    @property
    def udp(self) -> int:
        return int(self.node.ports[0].getHost().port)  # type: ignore[attr-defined]  # of its address

    @property
    def tcp(self) -> int:
        return int(self.node.ports[1].getHost().port)  # type: ignore[attr-defined]  # of its address


@pytest_twisted.async_yield_fixture
async def hops(tmp_path: Path) -> AsyncIterator[Hops]:
    made = Hops(tmp_path)
    await made.start()
    yield made
    for close in reversed(made.closing):
        done = close()
        if done is not None:
            await done
    await made.node.stopService()
    assert [] == made.failures


def lossy(hops: Hops, port: int, loss: float = 0.1) -> int:
    """Return the port of a lossy proxy in front of a UDP port."""
    opened = reactor.listenUDP(
        0, Proxy(("127.0.0.1", port), loss=loss), interface="127.0.0.1", maxPacketSize=65_535
    )
    hops.closing.append(opened.stopListening)
    return int(opened.getHost().port)


@pytest_twisted.ensureDeferred
async def test_producer_node_and_receivers_have_the_same_guarantees_over_udp(
    hops: Hops,
) -> None:
    attached: list[bytes] = []
    dialled: list[bytes] = []
    first = Receiver(reactor, name="attached", handler=lambda m: attached.append(m.body))
    first.attach(f"udp:127.0.0.1:{lossy(hops, hops.udp)}", subjects=["orders.>"])
    hops.closing.append(first.stop)
    second = Receiver(reactor, name="dialled", handler=lambda m: dialled.append(m.body))
    port = await second.listen("udp:0")
    hops.closing.append(second.stop)
    address = f"udp:127.0.0.1:{lossy(hops, port.getHost().port)}"
    await hops.node.add_receiver("dialled", ["orders.>"], address=address)
    await until(lambda: hops.node.parts.directory.get("attached") is not None)
    client = await connect(reactor, f"udp:127.0.0.1:{lossy(hops, hops.udp)}", name="shop")
    hops.closing.append(client.close)

    bodies = [b"%d" % number for number in range(500)]
    receipts = [await client.send("orders.new", body) for body in bodies]
    for receipt in receipts:
        await receipt.acknowledged()

    assert bodies == attached
    assert bodies == dialled


@pytest.mark.parametrize("sealed", [False, True], ids=["checksum", "key"])
@pytest_twisted.ensureDeferred
async def test_a_dialled_receiver_at_30_percent_loss_both_ways_gets_all_in_order_once(
    hops: Hops, key_file: str, sealed: bool
) -> None:
    options = f":key={key_file}" if sealed else ""
    seen: list[bytes] = []
    done: Deferred[None] = Deferred()

    def handle(message: Any) -> None:
        seen.append(message.body)
        if message.body == bodies[-1]:
            done.callback(None)

    receiver = Receiver(reactor, name="dialled", handler=handle)
    port = await receiver.listen(f"udp:0{options}")
    hops.closing.append(receiver.stop)
    proxied = lossy(hops, port.getHost().port, 0.3)
    address = f"udp:127.0.0.1:{proxied}{options}"
    await hops.node.add_receiver("dialled", ["orders.>"], address=address)
    client = await connect(reactor, f"tcp:127.0.0.1:{hops.tcp}", name="shop")
    hops.closing.append(client.close)

    bodies = [b"%d:" % number + bytes(number % 20) for number in range(2000)]
    receipts = []
    for start in range(0, 2000, 20):
        receipts.append(await client.send_many("orders.new", bodies[start : start + 20]))
        if start % 200 == 0:
            await deferLater(reactor, 0.01)  # so that it leaves in more than a few frames
    await done
    for receipt in receipts:
        await receipt.acknowledged("dialled")

    assert bodies == seen


@pytest_twisted.ensureDeferred
async def test_the_same_sequence_retried_over_tcp_is_the_same_message(
    hops: Hops, tmp_path: Path
) -> None:
    outbox = tmp_path / "outbox.db"
    seen: list[bytes] = []
    receiver = Receiver(reactor, name="billing", handler=lambda m: seen.append(m.body))
    receiver.attach(f"tcp:127.0.0.1:{hops.tcp}", subjects=["orders.>"])
    hops.closing.append(receiver.stop)
    await until(lambda: hops.node.parts.directory.get("billing") is not None)

    # A path on which the node hears the producer, and the producer never hears that it was taken.
    deaf = Proxy(("127.0.0.1", hops.udp), loss=0.0, damage=0.0)
    opened = reactor.listenUDP(0, deaf, interface="127.0.0.1", maxPacketSize=65_535)
    hops.closing.append(opened.stopListening)
    over_udp = await connect(
        reactor, f"udp:127.0.0.1:{opened.getHost().port}", name="shop", outbox=outbox, limits=QUICK
    )
    await over_udp.send("orders.new", b"zero")
    await until(lambda: seen == [b"zero"])
    write = deaf._write
    deaf._write = lambda datagram, to: write(datagram, to) if to == deaf._server else None  # type: ignore[method-assign]  # one way only
    waiting: Deferred[Any] = Deferred.fromCoroutine(send_all(over_udp, 50))
    await until(lambda: len(seen) >= 51)  # taken, and the producer does not know
    await waiting
    await over_udp.close()

    over_tcp = await connect(
        reactor, f"tcp:127.0.0.1:{hops.tcp}", name="shop", outbox=outbox, limits=QUICK
    )
    hops.closing.append(over_tcp.close)
    receipt = await over_tcp.send("orders.new", b"last")
    await receipt.acknowledged("billing")

    assert [b"zero", *(b"%d" % number for number in range(50)), b"last"] == seen


async def send_all(client: Any, count: int) -> None:
    for number in range(count):
        await client.send("orders.new", b"%d" % number)


@pytest_twisted.ensureDeferred
async def test_a_node_names_its_listeners_with_their_own_schemes(hops: Hops) -> None:
    assert [f"udp:127.0.0.1:{hops.udp}", f"tcp:127.0.0.1:{hops.tcp}"] == hops.node.listeners
