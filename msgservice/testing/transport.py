"""The faulty network as a transport: whole clients, nodes and receivers on it, in virtual time.

    world = FaultyWorld(seed=7)
    transports = Transports([FaultyTransport(world)])
    node.transports.register(...); client = connect(world.clock, "faulty:node", ...)

Addresses are `faulty:NAME`; who listens on a name is found when it is dialled, and a name without
a listener refuses. Connectors keep the contract of `IConnector`, backoff included.

What shall be killed as a whole lives in a `Process`: it takes its time and its UDP sockets from
`process.clock`, its transport from `FaultyTransport(world, process)`, and ends with
`process.kill()` between any two events, as with kill -9: no call of it happens any more, nothing
it had not yet flushed leaves, its sockets are closed and tell nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IReactorTime,
    IReactorUDP,
)
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.core.backoff import Backoff
from msgservice.errors import BadAddress, CannotListen, ProtocolError
from msgservice.interfaces import IChannel, IChannelUser, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.records import Reread
from msgservice.testing.datagrams import HOST, DatagramNet, datagram_net
from msgservice.testing.network import FaultyChannel, FaultyWorld
from msgservice.transport.addresses import parse_address

MakeUser = Callable[[], IChannelUser]


@implementer(IReactorTime, IReactorUDP)
class ProcessClock:
    """The world's clock, for one process: when that is killed, its calls never happen."""

    def __init__(self, clock: Clock, process: Process, net: DatagramNet) -> None:
        self.alive = True
        self._clock = clock
        self._process = process
        self._net = net

    def seconds(self) -> float:
        """See `IReactorTime`."""
        return float(self._clock.seconds())

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002  # the interface's name for it
        *args: object,
        **kwargs: object,
    ) -> IDelayedCall:
        """See `IReactorTime`."""

        def run() -> None:
            if self.alive:
                callable(*args, **kwargs)

        call: IDelayedCall = self._clock.callLater(delay, run)
        return call

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        """See `IReactorTime`."""
        return self._clock.getDelayedCalls()

    def listenUDP(
        self,
        port: int,
        protocol: DatagramProtocol,
        interface: str = "",
        maxPacketSize: int = 8192,
    ) -> IListeningPort:
        """See `IReactorUDP`."""
        assert interface in (HOST, "")
        return self._net.bind(self._process, port, protocol)


class Process:
    """A process of a faulty world: all that dies together."""

    def __init__(self, world: FaultyWorld, name: str) -> None:
        self.name = name
        self.channels: list[FaultyChannel] = []
        self._world = world
        self._net = datagram_net(world)
        self.clock = ProcessClock(world.clock, self, self._net)

    def kill(self) -> None:
        """End everything of this process, without a word to anybody."""
        self._world.tell(f"{self.name} is killed")
        self.clock.alive = False
        self._net.close_all(self)
        for channel in self.channels:
            channel.crash()


class ChecksNothing:
    """The half of an `ITransport` that is asked before anything is started: all is well."""

    def check_dial(self, address: str) -> None:
        """See `ITransport`."""

    def check_listen(self, address: str) -> str | None:
        """See `ITransport`."""
        return None

    def check_free(self, address: str) -> None:
        """See `ITransport`."""

    def reload(self) -> Sequence[Reread]:
        """See `ITransport`: there are no files."""
        return ()


@implementer(ITransport)
class FaultyTransport(ChecksNothing):
    """A transport of a faulty world. All transports of a world share its names."""

    schemes = ("faulty",)

    def __init__(self, world: FaultyWorld, process: Process | None = None) -> None:
        self.world = world
        self.process = Process(world, "a process") if process is None else process
        self.listening: dict[str, tuple[Process, MakeUser]] = world.shared.setdefault("faulty", {})

    def check_dial(self, address: str) -> None:
        """See `ITransport`."""
        parse_address(address).one_part("NAME")

    def check_listen(self, address: str) -> str | None:
        """See `ITransport`."""
        self.check_dial(address)
        return None

    def check_free(self, address: str) -> None:
        """See `ITransport`."""
        name = parse_address(address).one_part("NAME")
        if name in self.listening and self.listening[name][0].clock.alive:
            raise CannotListen(address, "Address already in use")

    def connector(
        self, reactor: Any, address: str, make_user: MakeUser, limits: Limits
    ) -> IConnector:
        """See `ITransport`."""
        self.check_dial(address)
        return FaultyConnector(self, address, make_user, limits)

    def listen(
        self, reactor: Any, address: str, make_user: MakeUser, limits: Limits
    ) -> Deferred[IListeningPort]:
        """See `ITransport`."""
        try:
            self.check_free(address)
        except (BadAddress, CannotListen) as error:
            return fail(error)
        name = parse_address(address).one_part("NAME")
        self.listening[name] = (self.process, make_user)
        return succeed(FaultyPort(self, name))


@implementer(IListeningPort)
class FaultyPort:
    """A name on which a process listens."""

    def __init__(self, transport: FaultyTransport, name: str) -> None:
        self._transport = transport
        self._name = name

    def startListening(self) -> None:
        """See `IListeningPort`: it listens from birth."""

    def stopListening(self) -> Deferred[None]:
        """See `IListeningPort`."""
        self._transport.listening.pop(self._name, None)
        return succeed(None)

    def getHost(self) -> IAddress:
        """See `IListeningPort`."""
        return UNIXAddress(self._name)


@implementer(IChannelUser)
class _Watched:
    """Passes everything on, and tells the connector of the end."""

    def __init__(self, user: IChannelUser, connector: FaultyConnector) -> None:
        self._user = user
        self._connector = connector

    def channel_opened(self, channel: IChannel) -> None:
        self._user.channel_opened(channel)

    def frames_received(self, frames: list[bytes]) -> None:
        self._user.frames_received(frames)

    def channel_failed(self, error: ProtocolError) -> None:
        self._user.channel_failed(error)

    def channel_writable(self, writable: bool) -> None:
        self._user.channel_writable(writable)

    def channel_lost(self, reason: str) -> None:
        self._user.channel_lost(reason)
        self._connector.lost(reason)


@implementer(IConnector)
class FaultyConnector(Service):
    """An `IConnector` of a faulty world, which dials again by itself."""

    def __init__(
        self, transport: FaultyTransport, address: str, make_user: MakeUser, limits: Limits
    ) -> None:
        self.address = address
        self.attempts = 0
        self.last_error: str | None = None
        self.channel: IChannel | None = None
        self._transport = transport
        self._make_user = make_user
        self._clock = transport.process.clock
        self._wait: IDelayedCall | None = None
        self._stopped: list[Deferred[None]] = []
        self._backoff = Backoff(
            delay_min=limits.link_delay_min,
            delay_max=limits.link_delay_max,
            healthy=limits.link_healthy,
            rng=transport.world.random.random,
        )

    @property
    def failures(self) -> int:
        """See `IConnector`."""
        return self._backoff.failures

    @property
    def next_attempt_in(self) -> float | None:
        """See `IConnector`."""
        if self._wait is None:
            return None
        return max(0.0, self._wait.getTime() - self._clock.seconds())

    def startService(self) -> None:
        """See `IService`."""
        super().startService()
        self._dial()

    def stopService(self) -> Deferred[None]:
        """See `IService`."""
        super().stopService()
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        if self.channel is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        self.channel.close()
        return stopped

    def poke(self) -> None:
        """See `IConnector`."""
        self._backoff.poke(self._clock.seconds())
        if self._wait is not None:
            self._wait.reset(0)

    def lost(self, reason: str) -> None:
        """The connection has gone; it is dialled again."""
        self.channel = None
        stopped, self._stopped = self._stopped, []
        for waiter in stopped:
            self._clock.callLater(0, waiter.callback, None)
        self._again(reason)

    def _again(self, reason: str) -> None:
        self.last_error = reason
        if self.running:
            delay = self._backoff.failed(self._clock.seconds())
            self._wait = self._clock.callLater(delay, self._dial)

    def _dial(self) -> None:
        self._wait = None
        self.attempts += 1
        name = parse_address(self.address).one_part("NAME")
        found = self._transport.listening.get(name)
        if found is None or not found[0].clock.alive:
            self._again("refused")
            return
        far, make_far = found
        near = _Watched(self._make_user(), self)
        link = self._transport.world.connect(near, make_far())
        self._transport.process.channels.append(link.left)
        far.channels.append(link.right)
        self.channel = link.left
        link.left.when_established = self._established

    def _established(self) -> None:
        self._backoff.established(self._clock.seconds())
        self.last_error = None
