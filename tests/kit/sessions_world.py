"""A network in memory for centrals and remotes, on one `Clock` and from one seed.

Real centrals, remotes, listeners and senders; only endpoints and transports are the network's. What
is written arrives late and in pieces, connections are cut anywhere, processes are killed: then
nothing of theirs is called any more, and who is at the other end hears of it later or never.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import (
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.faces.sessions.central import Central
from msgservice.faces.sessions.handlers import SessionMessage
from msgservice.faces.sessions.remote import Remote

HOST = "127.0.0.1"
FULL = 64 * 1024  # bytes at which a transport asks its producer to stop


@implementer(ITransport)
class End:
    """One end of a connection."""

    disconnecting = False

    def __init__(self, net: Net, host: Address, peer: Address) -> None:
        self.net = net
        self.protocol: Any = None
        self.other: End
        self._host, self._peer = host, peer
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._is_paused = False
        self._is_pumping = False
        self._is_closing = False
        self._has_left = False
        self._is_broken = False
        self.is_over = False
        self._producer: Any = None
        self._has_told = False

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", HOST, self._peer)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", HOST, self._host)

    def write(self, data: bytes) -> None:
        if self.is_over or self._is_closing or not data:
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if self._producer is not None and self._out_bytes > FULL and not self._has_told:
            self._has_told = True
            self._producer.pauseProducing()
        self.pump()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None
        self._close_if_done()

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self.other.pump()

    def loseConnection(self) -> None:
        self._is_closing = self.disconnecting = True
        self._close_if_done()

    def abortConnection(self) -> None:
        if not self.is_over:
            self.net.break_off(self)

    def pump(self) -> None:
        """Let what was written arrive, piece by piece."""
        if not self._is_pumping and self._out and not self._is_broken:
            self._is_pumping = True
            self.net.later(self._arrive)

    def _arrive(self) -> None:
        self._is_pumping = False
        other = self.other
        if self._is_broken or other.is_over or other._is_paused or not self._out:
            return
        data = self._out.popleft()
        at = len(data) if self.net.random.random() < 0.7 else self.net.random.randrange(len(data))
        piece, rest = data[:at], data[at:]
        if rest:
            self._out.appendleft(rest)
        self._out_bytes -= len(piece)
        if piece:
            self.net.calling(other, other.protocol.dataReceived, piece)
        if not self._out and self._has_told and self._producer is not None:
            self._has_told = False
            self.net.calling(self, self._producer.resumeProducing)
        self._close_if_done()
        self.pump()

    def _close_if_done(self) -> None:
        if not self._is_closing or self._producer is not None:
            return
        if not self._has_left:  # what it has written is in the kernel, and arrives without it
            self._has_left = True
            self.net.later(lambda: self.over(ConnectionDone()))
        if not self._out and not self._is_broken:
            self.net.later(lambda: self.other.over(ConnectionDone()))

    def over(self, why: Exception) -> None:
        """End, and say so."""
        if not self.is_over:
            self.is_over = True
            self._is_broken = self._is_broken or not self._has_left
            self.net.calling(self, self.protocol.connectionLost, Failure(why))


Address = int  # a port: all are of one host


@implementer(IListeningPort)
class _Port:
    def __init__(self, net: Net, port: int) -> None:
        self._net, self._port = net, port

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", HOST, self._port)

    def startListening(self) -> None:
        pass

    def stopListening(self) -> Deferred[None]:
        self._net.servers.pop(self._port, None)
        return succeed(None)


@implementer(IStreamServerEndpoint)
class _Server:
    def __init__(self, net: Net, process: Process, port: int) -> None:
        self._net, self._process, self._port = net, process, port

    def listen(self, factory: Any) -> Deferred[Any]:
        self._net.servers[self._port] = (self._process, factory)
        return succeed(_Port(self._net, self._port))


@implementer(IStreamClientEndpoint)
class _Client:
    def __init__(self, net: Net, process: Process, port: int) -> None:
        self._net, self._process, self._port = net, process, port

    def connect(self, factory: Any) -> Deferred[Any]:
        d: Deferred[Any] = Deferred()
        self._net.later(lambda: self._connect(factory, d))
        return d

    def _connect(self, factory: Any, d: Deferred[Any]) -> None:
        if d.called or not self._process.is_alive:
            return
        found = self._net.servers.get(self._port)
        if found is None:
            d.errback(Failure(Refused()))
            return
        process, server = found
        net = self._net
        net.ports += 1
        near, far = End(net, net.ports, self._port), End(net, self._port, net.ports)
        near.other, far.other = far, near
        net.ends[near], net.ends[far] = self._process, process
        near.protocol = factory.buildProtocol(None)
        far.protocol = server.buildProtocol(None)
        for end in (far, near):
            end.protocol.makeConnection(end)
        d.callback(near.protocol)


class Process:
    """A process: what it made is called as long as it is alive."""

    def __init__(self) -> None:
        self.is_alive = True


class Net:
    """The network: who listens, the connections, and the dice."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.ports = 40_000
        self.servers: dict[int, tuple[Process, Any]] = {}
        self.ends: dict[End, Process] = {}

    def later(self, function: Callable[[], object]) -> None:
        """Call a function in a while."""
        self.clock.callLater(self.random.random() * 0.01, function)

    def calling(self, end: End, function: Callable[..., object], *arguments: object) -> None:
        """Call what belongs to an end, if its process is alive."""
        if self.ends[end].is_alive:
            function(*arguments)

    def break_off(self, end: End) -> None:
        """Break a connection off at one end; the other hears of it later."""
        end.is_over = True
        self.later(
            lambda: self.calling(end, end.protocol.connectionLost, Failure(ConnectionLost()))
        )
        self.later(lambda: end.other.over(ConnectionLost()))

    def live(self) -> list[End]:
        """Return the ends of connections that are up."""
        return [end for end in self.ends if not end.is_over]

    def cut(self) -> None:
        """Break one connection off."""
        live = self.live()
        if live:
            self.break_off(self.random.choice(live))

    def kill(self, process: Process) -> None:
        """Kill a process: its connections end, its ports are free."""
        process.is_alive = False
        for port, (owner, _) in list(self.servers.items()):
            if owner is process:
                del self.servers[port]
        for end, owner in self.ends.items():
            if owner is process and not end.is_over:
                end.is_over = end._is_broken = True
                self.later(lambda end=end: end.other.over(ConnectionLost()))  # type: ignore[misc]


class ProcessClock(Clock):
    """The clock of one process: its calls end with it."""

    def __init__(self, net: Net, process: Process) -> None:
        super().__init__()
        self._net, self._process = net, process
        self.rightNow = net.clock.seconds()
        self.calls_of_net = net.clock

    def seconds(self) -> float:
        return self._net.clock.seconds()

    def callLater(self, delay: float, callable: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
        def call() -> None:
            if self._process.is_alive:
                callable(*args, **kwargs)

        return self._net.clock.callLater(delay, call)


class SessionsWorld:
    """A central and remotes over a `Net`, and what each has handled."""

    CENTRAL_PORT = 9_020

    def __init__(self, seed: int = 0, **central_options: Any) -> None:
        self.net = Net(seed)
        self.central_options = central_options
        self.at_central: list[SessionMessage] = []
        self.at: dict[str, list[SessionMessage]] = {}
        self.processes: dict[object, Process] = {}
        self.central = self.begin_central()

    def clock_of(self, key: object) -> ProcessClock:
        process = self.processes[key] = Process()
        return ProcessClock(self.net, process)

    def begin_central(self) -> Central:
        clock = self.clock_of("central")
        process = self.processes["central"]
        options = {
            "on_message": self.at_central.append,
            "rng": self.net.random.random,
            **self.central_options,
        }
        self.central = Central(
            clock,
            listen=_Server(self.net, process, self.CENTRAL_PORT),
            dial=lambda host, port: _Client(self.net, process, port),
            **options,
        )
        self.done(self.central.listen())
        return self.central

    def begin_remote(self, name: str, port: int, **options: Any) -> Remote:
        """Begin a process of a remote; what its handler gets is `at[name]`."""
        clock = self.clock_of(name)
        process = self.processes[name]
        got = self.at.setdefault(name, [])
        remote = Remote(
            clock,
            _Client(self.net, process, self.CENTRAL_PORT),
            listen=_Server(self.net, process, port),
            **{"on_message": got.append, "rng": self.net.random.random, **options},
        )
        remote.start()
        return remote

    def kill(self, key: object) -> None:
        """Kill the process of the central or of a remote."""
        self.net.kill(self.processes[key])

    def run(self, seconds: float, step: float = 0.01) -> None:
        """Let time pass."""
        for _ in range(round(seconds / step)):
            self.net.clock.advance(step)

    def until(self, is_so: Callable[[], object], seconds: float = 120.0) -> None:
        """Let time pass until something is so; it must be in so many seconds."""
        passed = 0.0
        while not is_so():
            assert passed < seconds, "it never came"
            self.net.clock.advance(0.05)
            passed += 0.05

    def done(self, d: Deferred[Any], seconds: float = 120.0) -> Any:
        """Return what a Deferred fires with; raise what it fails with."""
        results: list[Any] = []
        d.addBoth(results.append)
        self.until(lambda: results, seconds)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]
