"""UDP in a `FaultyWorld`: sockets of processes, and datagrams that fail in every way of theirs.

`transport.udp.transport` and all below it run on this as they are; only the socket's own module is
left out, as beside any reactor without file descriptors. A `ProcessClock` binds here (`listenUDP`).
What has come to a socket is read as `udp.socket` reads it: all of it is one turn.

What happens to a datagram, by `Faults`: it is lost, comes twice (the second copy up to
`hold_seconds` later, so perhaps to the next process at that address), overtakes others, or has a
bit changed. A partition lets nothing pass between two processes, in one direction or in both,
restarts included. A socket's number is given again soon, so that what was meant for a process
that died reaches strangers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import DatagramProtocol
from zope.interface import implementer

from msgservice.testing.network import CALM, FaultyWorld
from msgservice.transport.udp.port import PortAdapter

Address = tuple[str, int]
HOST = "127.0.0.1"
# Few, so that numbers of sockets that were closed come again.
EPHEMERAL = range(40_000, 40_024)


class Owner(Protocol):
    """The owner of a socket."""

    name: str


class DatagramNet:
    """All sockets of one world, and what lies between them."""

    def __init__(self, world: FaultyWorld) -> None:
        self.ports: dict[int, DatagramPort] = {}
        self.counts: Counter[str] = Counter()  # what happened to datagrams, by kind
        self._world = world
        self._names: dict[int, str] = {}  # of the process that has a number, or had it last
        self._down: dict[tuple[str, str], float] = {}  # until when nothing passes

    def bind(self, owner: Owner, number: int, protocol: DatagramProtocol) -> DatagramPort:
        """Open a socket; 0: any number. Raises `CannotListenError`."""
        if not number:
            number = self._world.random.choice([n for n in EPHEMERAL if n not in self.ports])
        elif number in self.ports:
            raise CannotListenError(HOST, number, OSError("Address already in use"))
        port = self.ports[number] = DatagramPort(self, owner, number, protocol)
        self._names[number] = owner.name
        protocol.makeConnection(port)  # type: ignore[arg-type]  # all that is used of a transport
        return port

    def close_all(self, owner: Owner) -> None:
        """Close the sockets of a process that is killed: nobody is told."""
        for number, port in list(self.ports.items()):
            if port.owner is owner:
                del self.ports[number]

    def carry(self, source: DatagramPort, datagram: bytes, to: Address) -> None:
        """Bring a datagram to whoever has that number when it arrives; or not."""
        world = self._world
        faults = world.faults
        self.counts["sent"] += 1
        if self._is_down(source.owner.name, self._names.get(to[1], "")):
            self.counts["cut off"] += 1
            return
        if world.happens(faults.loss):
            self.counts["lost"] += 1
            return
        self._send(datagram, source, to, self._delay())
        if world.happens(faults.duplicate):
            self.counts["doubled"] += 1
            self._send(datagram, source, to, self._delay() + world.between(faults.hold_seconds))

    def _delay(self) -> float:
        world = self._world
        if world.happens(world.faults.reorder):
            return world.between(world.faults.delay)
        return world.faults.delay[0]

    def part(self, source: str, to: str, until: float) -> None:
        """Let nothing pass from one process to another until then."""
        self._down[source, to] = until

    def _is_down(self, source: str, to: str) -> bool:
        world = self._world
        now = world.clock.seconds()
        if world.happens(world.faults.partition):
            until = now + world.between(world.faults.partition_seconds)
            both = world.happens(0.5)
            world.tell(f"nothing from {source} to {to} until {until:.1f}{', or back' * both}")
            self.counts["partitions"] += 1
            self._down[source, to] = until
            if both:
                self._down[to, source] = until
        return world.faults is not CALM and now < self._down.get((source, to), 0.0)

    def _send(self, datagram: bytes, source: DatagramPort, to: Address, delay: float) -> None:
        world = self._world
        if world.happens(world.faults.damage):
            self.counts["damaged"] += 1
            changed = bytearray(datagram)
            changed[world.random.randrange(len(changed))] ^= 1 << world.random.randrange(8)
            datagram = bytes(changed)
        world.clock.callLater(delay, self._arrive, datagram, source.address, to[1])

    def _arrive(self, datagram: bytes, source: Address, number: int) -> None:
        port = self.ports.get(number)
        if port is None:
            self.counts["for nobody"] += 1
        else:
            port.arrive(datagram, source)

    def busy(self) -> float:
        """Return how long it takes until a process reads."""
        world = self._world
        return world.between(world.faults.delay) if world.happens(world.faults.busy) else 0.0

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Do something after a while."""
        self._world.clock.callLater(delay, call)


@implementer(IListeningPort)
class DatagramPort:
    """A socket: what `listenUDP` returns, and what its protocol writes to."""

    maxPacketSize = 8192

    def __init__(
        self, net: DatagramNet, owner: Owner, number: int, protocol: DatagramProtocol
    ) -> None:
        self.owner = owner
        self.protocol = protocol
        self.address: Address = (HOST, number)
        self._net = net
        self._waiting: list[tuple[bytes, Address]] = []

    def arrive(self, datagram: bytes, source: Address) -> None:
        """Keep a datagram until the process reads."""
        if not self._waiting:
            self._net.later(self._net.busy(), self._read)
        self._waiting.append((datagram, source))

    def _read(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._net.ports.get(self.address[1]) is not self:
            return
        self._net.counts["reads"] += 1
        if len(waiting) > 1:
            self._net.counts["several in one read"] += 1
        peer = self.protocol
        assert isinstance(peer, PortAdapter)
        peer.datagrams_received(waiting)

    def write(self, datagram: bytes, address: Address) -> None:
        """Send a datagram, as a transport of UDP does."""
        assert len(datagram) <= self.maxPacketSize
        self._net.carry(self, datagram, address)

    def startListening(self) -> None:
        """See `IListeningPort`: it is bound from birth."""

    def stopListening(self) -> Deferred[None]:
        """See `IListeningPort`."""
        if self._net.ports.get(self.address[1]) is self:
            del self._net.ports[self.address[1]]
            self.protocol.doStop()
        return succeed(None)

    def getHost(self) -> IPv4Address:
        """See `IListeningPort`."""
        return IPv4Address("UDP", *self.address)


def datagram_net(world: FaultyWorld) -> DatagramNet:
    """Return the world's."""
    net: DatagramNet = world.shared.setdefault("datagrams", DatagramNet(world))
    return net
