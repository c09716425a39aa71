"""A server of streams on one `Clock`, and lines to it over transports in memory.

What is written to a connection that does not read stays in its transport, which then asks its
producer to stop, as a socket's does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.faces.streams.server import StreamServer
from msgservice.faces.streams.stream import MessageStream
from msgservice.stream_limits import StreamLimits

FULL = 64 * 1024


class Reactor(Clock):
    """A clock that can be called from threads; those calls are made when it advances."""

    def callFromThread(self, function: Any, *args: Any) -> None:
        self.callLater(0, function, *args)


@implementer(IListeningPort)
class Port:
    """The port of the endpoint."""

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 7412)

    def startListening(self) -> None:
        pass

    def stopListening(self) -> None:
        pass


@implementer(IStreamServerEndpoint)
class Endpoint:
    """An endpoint that keeps the factory."""

    factory: Any = None

    def listen(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        return succeed(Port())


class Peer:
    """A client of the server: it writes bytes, and reads when it is told to."""

    def __init__(self, factory: Any, *, number: int = 0) -> None:
        self.is_reading = True
        self.is_lost = self.is_closing = self.is_paused = False
        self.received = bytearray()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._producer: Any = None
        self._is_full = False
        self._address = IPv4Address("TCP", "127.0.0.1", 40_000 + number)
        self.protocol = factory.buildProtocol(self._address)
        self.protocol.makeConnection(self)

    # --- as a client

    def say(self, action: str, stream: Any = None, **more: Any) -> None:
        self.send(json.dumps({"action": action, "stream": stream, **more}).encode() + b"\n")

    def send(self, data: bytes) -> None:
        if not (self.is_lost or self.is_closing):
            self.protocol.dataReceived(data)

    def send_each(self, data: bytes) -> None:
        """Send bytes one at a time."""
        for number in range(len(data)):
            self.send(data[number : number + 1])

    def read(self) -> None:
        """Read all that was written, and what follows when there is room."""
        while self._buffer:
            self.received += b"".join(self._buffer)
            self._buffer, self._buffered = [], 0
            if self._is_full and self._producer is not None:
                self._is_full = False
                self._producer.resumeProducing()
        if self.is_closing:
            self._lose(ConnectionDone())

    def lines(self) -> list[dict[str, Any]]:
        """Read, and return what came since the last time."""
        self.read()
        lines, self.received = bytes(self.received), bytearray()
        assert not lines or lines.endswith(b"\n")
        return [json.loads(line) for line in lines.splitlines()]

    def messages(self) -> list[Any]:
        """Return the messages of the `put`s that came, which is all that did."""
        lines = self.lines()
        assert {line["action"] for line in lines} <= {"put"}
        return [line["message"] for line in lines]

    def leave(self) -> None:
        self._lose(ConnectionDone())

    def _lose(self, why: Exception) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._buffer = []
            self.protocol.connectionLost(Failure(why))

    # --- as the transport

    def getPeer(self) -> IPv4Address:
        return self._address

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.is_lost or self.is_closing or not data:
            return
        self._buffer.append(data)
        self._buffered += len(data)
        if self.is_reading:
            self.received += b"".join(self._buffer)
            self._buffer, self._buffered = [], 0
        elif self._buffered > FULL and self._producer is not None and not self._is_full:
            self._is_full = True
            self._producer.pauseProducing()

    @property
    def buffered(self) -> int:
        return self._buffered

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False

    def loseConnection(self) -> None:
        assert self._producer is None, "a transport with a producer does not close"
        self.is_closing = True
        if self.is_reading:
            self.read()

    def abortConnection(self) -> None:
        self._lose(ConnectionAborted())


class World:
    """A stream, its server and their clock."""

    def __init__(self, limits: StreamLimits | None = None, **options: Any) -> None:
        self.reactor = Reactor()
        self.stream = MessageStream()
        self._endpoint = Endpoint()
        self.server = StreamServer(
            self.reactor, self.stream, listen=self._endpoint, limits=limits, **options
        )
        self.live: Any = self.server._served
        self.server.startService()
        self._peers = 0

    def peer(self) -> Peer:
        self._peers += 1
        return Peer(self._endpoint.factory, number=self._peers)

    def peers(self, count: int) -> list[Peer]:
        return [self.peer() for _ in range(count)]

    def listener(self, *keys: str) -> Peer:
        peer = self.peer()
        for key in keys:
            peer.say("listen", key)
        return peer

    def turn(self) -> None:
        """Let everything happen that is due."""
        for _ in range(20):
            self.reactor.advance(0)


def puts(lines: Iterable[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Return stream and message of each `put`; of another line its action."""
    return [
        (line["stream"], line["message"] if line["action"] == "put" else line["action"])
        for line in lines
    ]
