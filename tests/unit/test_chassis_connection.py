"""One connection of the chassis over a transport that takes what, and when, the test says."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from msgservice.faces import axon as Axon
from msgservice.faces.axon.Ipc import producerFinished, socketShutdown
from msgservice.faces.chassis import ChassisFactory, ChassisLimits, SimpleServer
from msgservice.faces.chassis.connection import Connection

BUFFER = 65536  # beyond which Twisted's transports ask for a pause


class Transport:
    """Holds what is written until `take`; a TCP transport as far as the chassis uses one."""

    def __init__(self) -> None:
        directlyProvides(self, ITCPTransport)
        self.protocol: Any = None
        self.producer: Any = None
        self.held = bytearray()
        self.held_max = 0
        self.wire = bytearray()
        self.paused = self.ending = self.closing = self.ended = self.lost = self.asked_to_pause = (
            False
        )

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 2)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        assert type(data) is bytes
        assert not self.ended, "written after the end"
        self.held += data
        self.held_max = max(self.held_max, len(self.held))
        if len(self.held) > BUFFER and self.producer is not None and not self.asked_to_pause:
            self.asked_to_pause = True
            self.producer.pauseProducing()

    def take(self, size: int) -> None:
        """Put up to `size` bytes on the wire, as a socket that became writable does."""
        self.wire += self.held[:size]
        del self.held[:size]
        if not self.held and self.producer is not None and self.asked_to_pause:
            self.asked_to_pause = False
            self.producer.resumeProducing()
        elif not self.held and self.closing:
            self.lose(ConnectionDone())
        elif not self.held and self.ending and not self.ended:
            self.ended = True
            self.protocol.writeConnectionLost()

    def loseWriteConnection(self) -> None:
        self.ending = True

    def loseConnection(self) -> None:
        self.closing = True
        if not self.held:
            self.lose(ConnectionDone())

    def abortConnection(self) -> None:
        self.lose(ConnectionLost())

    def lose(self, reason: Exception) -> None:
        if not self.lost:
            self.lost = self.ended = True
            self.protocol.connectionLost(Failure(reason))

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False


class World:
    """A server without a listener, on virtual time, and its one connection."""

    def __init__(self, protocol: Any, **limits: Any) -> None:
        self.clock = Clock()
        self.server = SimpleServer(protocol=protocol, limits=ChassisLimits(**limits))
        factory = ChassisFactory(self.server, self.clock)
        factory.doStart()
        self.turn()
        connection = factory.buildProtocol(None)
        assert isinstance(connection, Connection)
        self.connection = connection
        self.transport = Transport()
        self.transport.protocol = connection
        connection.makeConnection(self.transport)
        self.turn()

    @property
    def handler(self) -> Any:
        return self.connection.handler

    def turn(self) -> None:
        self.clock.advance(0)


class Silent(Axon.Component.component):
    """Does nothing by itself: the test sends in its name."""

    def main(self) -> Iterator[Any]:
        while True:
            self.pause()
            yield 1


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(0, 300_000)),
            st.tuples(st.just("take"), st.integers(1, 200_000)),
        ),
        max_size=60,
    ),
    peer_ends_first=st.booleans(),
)
def test_all_that_was_sent_is_written_in_order_before_the_end(
    steps: list[tuple[str, int]], peer_ends_first: bool
) -> None:
    world = World(Silent)
    sent = bytearray()
    if peer_ends_first:
        world.connection.readConnectionLost()
    for number, (what, size) in enumerate(steps):
        if what == "take":
            world.transport.take(size)
        else:
            data = bytes([number % 256]) * size
            sent += data
            world.handler.send(data, "outbox")
    world.handler.send(producerFinished(), "signal")
    world.turn()
    world.handler.send(b"too late", "outbox")
    for _ in range(2 * len(sent) // 65536 + 10):
        world.transport.take(65536)
    assert world.transport.ended
    assert world.transport.wire == sent
    assert world.transport.held_max <= BUFFER + 2 * 131072


@given(sizes=st.lists(st.integers(1, 65536), max_size=60), limit=st.integers(1, 300_000))
def test_a_connection_is_not_read_from_while_its_handler_has_enough(
    sizes: list[int], limit: int
) -> None:
    world = World(Silent, inbox_bytes_max=limit)
    delivered = taken = 0
    box = world.handler.inboxes["inbox"]
    for size in sizes:
        if not world.transport.paused:
            world.connection.dataReceived(b"x" * size)
            delivered += size
        assert world.transport.paused == box.full
        assert box.bytes_held < limit + 65536
        if world.transport.paused:
            while world.transport.paused:
                taken += len(world.handler.recv("inbox"))
    assert taken + box.bytes_held == delivered


def test_a_lost_connection_tells_its_handler_after_the_data_and_forgets_its_output() -> None:
    seen: list[Any] = []

    class Reader(Axon.Component.component):
        def main(self) -> Iterator[Any]:
            while not seen or isinstance(seen[-1], bytes):
                seen.extend(self.recv(b) for b in ("control", "inbox") if self.dataReady(b))
                yield 1

    world = World(Reader)
    for piece in (b"a", b"b", b"c"):
        world.connection.dataReceived(piece)
    world.handler.send(b"x" * 1_000_000, "outbox")
    world.transport.lose(ConnectionLost())
    world.turn()
    assert [b"a", b"b", b"c"] == seen[:-1]
    assert isinstance(seen[-1], socketShutdown)
    assert set() == world.server.connections
    assert b"" == world.transport.wire


def test_nothing_is_left_on_the_clock_after_a_connection() -> None:
    world = World(Silent)
    world.handler.send(b"x" * 1_000_000, "outbox")
    world.connection.readConnectionLost()
    world.transport.lose(ConnectionLost())
    world.turn()
    world.handler.stop()
    world.server.stop()
    world.turn()
    assert [] == [call for call in world.clock.getDelayedCalls() if call.active()]


def test_a_handler_that_exits_the_program_is_not_kept() -> None:
    class Exits(Axon.Component.component):
        def main(self) -> Iterator[Any]:
            while not self.dataReady("inbox"):
                self.pause()
                yield 1
            raise SystemExit(3)

    world = World(Exits)
    with pytest.raises(SystemExit):
        world.connection.dataReceived(b"x")
    assert world.handler._isStopped()
