"""What the chassis tests share: servers that are stopped again, and a peer on a real socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.faces import axon as Axon
from msgservice.faces.axon.Ipc import producerFinished
from msgservice.faces.chassis.server import ServerCore, SimpleServer


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """A client that keeps what it gets, and can wait for it."""

    transport: Any = None

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = False
        self.reason: Failure | None = None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.look()

    def readConnectionLost(self) -> None:
        self.ended = True
        self.look()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True
        self.reason = reason
        self.look()

    def until(self, holds: Callable[[], bool]) -> Deferred[None]:
        """Fire as soon as `holds()`, which is looked at after each event of this peer."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((holds, waiter))
        self.look()
        return waiter

    async def gets(self, expected: bytes) -> None:
        """Wait for as many bytes as `expected` has, and compare."""
        await self.until(lambda: len(self.received) >= len(expected) or self.ended)
        assert bytes(self.received) == expected

    async def end(self) -> bytes:
        """Wait for the end of the stream and return all that came."""
        await self.until(lambda: self.ended)
        return bytes(self.received)

    async def lost(self) -> bool:
        """Wait until the connection is closed; return whether that was clean."""
        await self.until(lambda: self.reason is not None)
        assert self.reason is not None
        return self.reason.check(ConnectionDone) is not None

    def half_close(self) -> None:
        self.transport.loseWriteConnection()

    def look(self) -> None:
        for entry in list(self._waiting):
            holds, waiter = entry
            if holds():
                self._waiting.remove(entry)
                waiter.callback(None)


class Probe(Axon.Component.component):
    """A handler that notes what it takes, by box, in order; the test's own `main` drives it."""

    made: ClassVar[list[Probe]]

    def __init__(self, **argd: Any) -> None:
        super().__init__(**argd)
        self.seen: list[tuple[str, Any]] = []
        self.waiters: list[Deferred[None]] = []
        type(self).made.append(self)

    def note(self, box: str) -> Any:
        """Take a message from `box`, and note it."""
        message = self.recv(box)
        self.seen.append((box, message))
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.callback(None)
        return message

    async def until_seen(self, wanted: Callable[[Probe], bool]) -> None:
        while not wanted(self):
            waiter: Deferred[None] = Deferred()
            self.waiters.append(waiter)
            await waiter

    def data(self) -> bytes:
        return b"".join(m for box, m in self.seen if box == "inbox")

    def control(self) -> list[Any]:
        return [m for box, m in self.seen if box == "control"]


def handler(main: Callable[[Any], Any]) -> type[Probe]:
    """Return a class of handlers with this `main`; `made` lists its instances."""
    return type("Handler", (Probe,), {"main": main, "made": []})


def echo(self: Any) -> Iterator[Any]:
    """The documentation's echo: control first, one message for each step."""
    while not (self.dataReady("control") and isinstance(self.note("control"), producerFinished)):
        yield 1
        if self.dataReady("inbox"):
            self.send(self.note("inbox"), "outbox")


async def co_echo(self: Any) -> None:
    """The same as a coroutine."""
    async for data in self.Inbox("inbox"):
        await self.send(data, "outbox")


def idle(self: Any) -> Iterator[Any]:
    """Serves nothing, and ends when it is told to."""
    while not self.dataReady("control"):
        self.pause()
        yield 1
    self.note("control")


def server_of(protocol: Any, made: type[ServerCore] = SimpleServer, **more: Any) -> ServerCore:
    """Return a server on a port of loopback that the kernel chooses; not activated."""
    return made(protocol=protocol, **{"port": 0, "interface": "127.0.0.1", **more})


class Stage:
    """Starts servers, connects peers, and cleans up."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.servers: list[ServerCore] = []
        self.peers: list[Peer] = []

    async def start(self, server: ServerCore) -> ServerCore:
        self.servers.append(server)
        server.activate()
        await server.when_listening()
        return server

    async def serve(self, main: Callable[[Any], Any], **more: Any) -> ServerCore:
        """Start a server whose handlers have this `main`."""
        return await self.start(server_of(handler(main), **more))

    def connect(self, server: ServerCore, peer: Peer | None = None) -> Awaitable[Peer]:
        address: Any = server.address
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", address.port)
        return self.connect_to(endpoint, peer)

    async def connect_to(self, endpoint: Any, peer: Peer | None = None) -> Peer:
        peer = peer or Peer()
        await connectProtocol(endpoint, peer)
        self.peers.append(peer)
        return peer

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let the reactor turn until `holds()`; the test's own timeout is the limit."""
        while not holds():
            await self.turn(0.005)

    def turn(self, seconds: float = 0) -> Deferred[None]:
        return deferLater(self.reactor, seconds, lambda: None)

    async def close(self) -> None:
        for peer in self.peers:
            if peer.reason is None:
                peer.transport.abortConnection()
        for server in self.servers:
            await server.stop()
        for peer in self.peers:
            await peer.lost()
