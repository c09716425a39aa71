"""Acknowledged UDP on real sockets: straight, through a lossy proxy, with and without offload."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater

from msgservice.errors import CannotListen, NodeFailure
from msgservice.transport.udp.peer import DatagramPeer
from msgservice.transport.udp.socket import DatagramSocket
from tests.kit.ports import free_port

Address = tuple[str, int]
KEY = bytes(range(32))


class Proxy(DatagramProtocol):
    """Stands between one client and a server; drops, doubles, delays and damages datagrams."""

    def __init__(
        self, server: Address, *, loss: float, damage: float = 0.01, seed: int = 1
    ) -> None:
        self._server = server
        self._client: Address | None = None
        self._loss = loss
        self._damage = damage
        self._random = random.Random(seed)
        self.carried = 0
        self.lost = 0
        self.doubled = 0

    def startProtocol(self) -> None:
        assert self.transport is not None
        self.transport.maxPacketSize = 65_535  # type: ignore[attr-defined]  # of Twisted's port

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if addr != self._server:
            self._client = addr
        to = self._client if addr == self._server else self._server
        rng = self._random
        if rng.random() < self._loss or to is None:
            self.lost += 1
            return
        if rng.random() < self._damage:
            place = rng.randrange(len(datagram))
            datagram = datagram[:place] + bytes([datagram[place] ^ 1]) + datagram[place + 1 :]
        double = rng.random() < 0.05
        self.doubled += double
        for _ in range(1 + double):
            delay = rng.uniform(0, 0.01) if rng.random() < 0.3 else 0.0
            reactor.callLater(delay, self._write, datagram, to)

    def _write(self, datagram: bytes, to: Address) -> None:
        if self.transport is not None:
            self.carried += 1
            self.transport.write(datagram, to)


class Recorder(DatagramPeer):
    """Keeps what came and answers its length, every other time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.handled: list[bytes] = []
        self.failed: list[Address] = []

    def handle_message(self, data: bytes, address: Address) -> bytes | None:
        self.handled.append(data)
        return b"%d" % len(data) if len(data) % 2 else None

    def node_failure(self, address: Address) -> None:
        self.failed.append(address)


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """Peers and ports that the test opened; closed behind it."""
    things: list[Any] = []
    yield things
    for thing in things:
        if isinstance(thing, DatagramPeer):
            thing.close()
        else:
            pytest_twisted.blockon(thing.stopListening())


def listening(opened: list[Any], *, offload: bool = True, **options: Any) -> Recorder:
    peer = Recorder(reactor, **options)
    peer.listen(offload=offload)
    opened.append(peer)
    return peer


def expected_reply(body: bytes) -> bytes:
    return b"%d" % len(body) if len(body) % 2 else b""


@pytest.mark.parametrize("key", [None, KEY], ids=["checksum", "key"])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
@pytest_twisted.ensureDeferred
async def test_messages_of_all_sizes_cross_and_are_answered(
    opened: list[Any], offload: bool, key: bytes | None
) -> None:
    server = listening(opened, offload=offload, key=key)
    client = listening(opened, offload=offload, key=key)
    bodies = [
        bytes([n % 256]) * n for n in (*range(0, 3000, 61), 8191, 8192, 8193, 70_000, 900_001)
    ]
    replies = await gatherResults([client.send_message(b, server.address) for b in bodies])

    assert [expected_reply(body) for body in bodies] == replies
    assert sorted(map(len, bodies)) == sorted(map(len, server.handled))


@pytest.mark.parametrize("key", [None, KEY], ids=["checksum", "key"])
@pytest.mark.parametrize("loss", [0.0, 0.1, 0.25])
@pytest_twisted.ensureDeferred
async def test_a_lossy_proxy_loses_nothing_and_doubles_nothing(
    opened: list[Any], loss: float, key: bytes | None
) -> None:
    server = listening(opened, key=key)
    proxy = Proxy(server.address, loss=loss)
    port = reactor.listenUDP(0, proxy, interface="127.0.0.1", maxPacketSize=65_535)  # type: ignore[attr-defined]  # the real one
    opened.append(port)
    client = listening(opened, key=key)
    to = ("127.0.0.1", port.getHost().port)
    rng = random.Random(7)
    bodies = [b"%d:" % n + bytes(rng.randrange(0, 1500)) for n in range(300)]
    waiting: list[Deferred[bytes]] = []
    for start in range(0, 300, 30):
        waiting += [client.send_message(body, to) for body in bodies[start : start + 30]]
        await deferLater(reactor, 0.01, lambda: None)
    replies = await gatherResults(waiting)

    assert [expected_reply(body) for body in bodies] == replies
    assert sorted(bodies) == sorted(server.handled)
    assert proxy.carried > 0


@pytest.mark.parametrize("key", [None, KEY], ids=["checksum", "key"])
@pytest_twisted.ensureDeferred
async def test_at_30_percent_loss_both_ways_everything_is_handled_once_and_answered(
    opened: list[Any], key: bytes | None
) -> None:
    # Four clients at once, as each of them mostly waits for timeouts that double.
    server = listening(opened, key=key)
    proxies = [Proxy(server.address, loss=0.3, seed=number) for number in range(4)]
    clients: list[Recorder] = []
    sent: list[bytes] = []
    waiting: list[Deferred[list[bytes]]] = []
    rng = random.Random(8)
    for number, proxy in enumerate(proxies):
        port = reactor.listenUDP(0, proxy, interface="127.0.0.1", maxPacketSize=65_535)  # type: ignore[attr-defined]  # the real one
        opened.append(port)
        client = listening(opened, key=key)
        clients.append(client)
        to = ("127.0.0.1", port.getHost().port)
        bodies = [b"%d/%d:" % (number, n) + bytes(rng.randrange(0, 150)) for n in range(500)]
        bodies[250] += bytes(5000 + number)
        sent += bodies
        waiting += [client.send_messages(bodies[n : n + 50], to) for n in range(0, 250, 50)]
        waiting.append(gatherResults([client.send_message(body, to) for body in bodies[250:]]))
    replies = [reply for some in await gatherResults(waiting) for reply in some]

    assert [expected_reply(body) for body in sent] == replies
    assert sorted(sent) == sorted(server.handled)
    for proxy in proxies:
        assert proxy.lost >= 0.2 * proxy.carried
    assert sum(proxy.doubled for proxy in proxies) > 0
    assert [] == server.failed == [address for client in clients for address in client.failed]


@pytest_twisted.ensureDeferred
async def test_a_run_crosses_as_trains_and_is_answered_once(opened: list[Any]) -> None:
    server, client = listening(opened), listening(opened)
    bodies = [b"%06d" % n + bytes(250) for n in range(20_000)]
    replies = await client.send_messages(bodies, server.address)

    assert [b""] * 20_000 == replies
    assert bodies == server.handled


@pytest_twisted.ensureDeferred
async def test_a_port_of_twisteds_own_serves_as_well(opened: list[Any]) -> None:
    server = Recorder(reactor)
    opened.append(reactor.listenUDP(0, server, interface="127.0.0.1"))  # type: ignore[attr-defined]  # the real one
    client = listening(opened)

    assert b"20001" == await client.send_message(bytes(20_001), server.address)


@pytest_twisted.ensureDeferred
async def test_nobody_at_the_port_fails_within_the_patience(opened: list[Any]) -> None:
    nowhere = ("127.0.0.1", free_port(socket.SOCK_DGRAM))
    client = listening(opened, send_timeout=0.5, retries=1)
    with pytest.raises(NodeFailure):
        await client.send_message(b"x", nowhere)
    assert [nowhere] == client.failed


@pytest_twisted.ensureDeferred
async def test_a_server_that_begins_anew_at_its_port_is_found_again(opened: list[Any]) -> None:
    port = free_port(socket.SOCK_DGRAM)
    first, host = Recorder(reactor), "127.0.0.1"
    first.listen(port)
    opened.append(first)
    client = listening(opened)
    await client.send_message(b"one", (host, port))
    turns = first._turns
    assert turns._socket is not None
    turns._socket.close()  # as a crash does: nobody is told
    turns.closed = True
    second = Recorder(reactor)
    second.listen(port)
    opened.append(second)

    assert b"3" == await client.send_message(b"two", (host, port))
    assert [b"two"] == second.handled


def test_a_port_in_use_is_told_with_its_name(opened: list[Any]) -> None:
    server = listening(opened)
    other = DatagramPeer(reactor)
    with pytest.raises(CannotListen, match=str(server.address[1])):
        other.listen(server.address[1])


class RefusingSocket:
    """A real socket whose sends fail a few times, as a full device queue or an old device does."""

    def __init__(self, real: socket.socket, errors: list[int], *, trains_only: bool) -> None:
        self._real = real
        self._errors = errors
        self._trains_only = trains_only

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _fail(self) -> None:
        if self._errors:
            number = self._errors.pop()
            raise OSError(number, "made to fail")

    def sendto(self, data: bytes, address: Address) -> int:
        if not self._trains_only:
            self._fail()
        return self._real.sendto(data, address)

    def sendmsg(self, *arguments: Any) -> int:
        self._fail()
        return self._real.sendmsg(*arguments)


@pytest_twisted.ensureDeferred
async def test_enobufs_is_backpressure_and_no_loss(opened: list[Any]) -> None:
    import errno

    server, client = listening(opened), listening(opened)
    await client.send_message(b"warm", server.address)
    own = client._turns._socket
    assert isinstance(own, DatagramSocket)
    errors = [errno.ENOBUFS] * 20
    own._socket = RefusingSocket(own._socket, errors, trains_only=False)  # type: ignore[assignment]  # stands in
    bodies = [b"%d" % n + bytes(600) for n in range(500)]
    await client.send_messages(bodies, server.address)

    assert [] == errors
    assert bodies == server.handled[1:]
    assert 0 == own.unsent


@pytest_twisted.ensureDeferred
async def test_a_device_without_segmentation_offload_is_found_at_run_time(
    opened: list[Any],
) -> None:
    import errno

    server, client = listening(opened), listening(opened)
    own = client._turns._socket
    assert isinstance(own, DatagramSocket)
    if not own.segments:
        pytest.skip("this kernel has no UDP_SEGMENT")
    own._socket = RefusingSocket(own._socket, [errno.EIO], trains_only=True)  # type: ignore[assignment]  # stands in
    bodies = [b"%d" % n + bytes(600) for n in range(500)]
    await client.send_messages(bodies, server.address)

    assert not own.segments
    assert bodies == server.handled


@pytest_twisted.ensureDeferred
async def test_a_flood_from_other_addresses_of_the_loopback_net_leaves_a_peer_working(
    opened: list[Any],
) -> None:
    from tests.simulation.test_datagram_hostile import flood_of

    server, client = listening(opened), listening(opened)
    await client.send_message(b"warm", server.address)
    sockets: dict[str, socket.socket] = {}
    sent = received = 0
    done = 0
    try:
        for number, ((host, _), datagram) in enumerate(flood_of(3, 3000)):
            host = "127.0.0." + str(2 + number % 100)  # real addresses, a hundred of them
            made = sockets.get(host)
            if made is None:
                made = sockets[host] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                made.bind((host, 0))
                made.setblocking(False)
            sent += made.sendto(datagram, server.address)
            if number % 50 == 0:
                await client.send_message(b"healthy", server.address)
                done += 1
        await deferLater(reactor, 0.1, lambda: None)
        for made in sockets.values():
            try:
                while True:
                    received += len(made.recv(2048))
            except BlockingIOError:
                pass
    finally:
        for made in sockets.values():
            made.close()

    assert 60 == done
    assert 0 < received <= sent
    assert [client.address] == list(server._peers)


@pytest_twisted.ensureDeferred
async def test_ipv6_is_spoken_however_the_address_is_written(opened: list[Any]) -> None:
    server, client = Recorder(reactor), Recorder(reactor, send_timeout=2.0, retries=1)
    opened += [server, client]
    try:
        _, port = server.listen(interface="::1")
    except CannotListen:
        pytest.skip("no IPv6 here")
    client.listen(interface="::1")

    for host in ("::1", "0:0:0:0:0:0:0:1"):
        assert b"3" == await client.send_message(b"six", (host, port))
        assert [b"3"] == await client.send_messages([b"six"], (host, port))
    assert [("::1", port)] == list(client._peers)
