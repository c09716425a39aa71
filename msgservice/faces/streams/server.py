"""A server of streams: JSON lines on a port, in front of a `MessageStream`.

    bytes ─ LineSplitter ─► commands ─► MessageStream ─► (as its feed) lines of a key
                                                    a chunk of them ─► Outbound of each listener

What is put is encoded once. The lines of one key that come in one turn of the reactor are one
chunk, which all who listen are written: before anything else about that key happens, a join or an
end, its chunk is made. So who listens gets the header, then all that was put after it, and nothing
twice.

What a line is, is `wire`'s; what waits for a slow connection, `outbound`'s.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IListeningPort,
    ISSLTransport,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import monotonic_of, timed
from msgservice.errors import BadValue, CannotListen, InsecureListener, LimitReached
from msgservice.faces.listening import ListeningService
from msgservice.faces.streams.content import JsonCodec, StreamCodec
from msgservice.faces.streams.limits import KIB, StreamLimits
from msgservice.faces.streams.outbound import Chunk, Outbound
from msgservice.faces.streams.stream import MessageStream
from msgservice.faces.streams.wire import (
    ABSENT,
    CLOSE,
    DELETE,
    GAP,
    HANGUP,
    HEADER,
    LISTEN,
    PUT,
    REFUSED,
    SLOW,
    Command,
    LineSplitter,
    check_key,
    command_of,
    decode,
    line_of,
)
from msgservice.transport.addresses import describe, is_local, is_local_host, parse_address

CHUNK_BYTES = 64 * KIB  # lines of one key that are gathered before they are written
WORK_MAX = 2_000  # writes to listeners that the lines of one connection may cause in a turn
BYTES_A_SECOND = 64 * KIB  # of a line that takes longer than `line_seconds`
SUBSCRIPTION_BYTES = 256  # of one listening, beside its key
SHOWN = 300  # characters of a reason in the log


def _size_of(key: str) -> int:
    """Return what listening to a key takes in memory, about."""
    return len(key.encode()) + SUBSCRIPTION_BYTES


class StreamServer(ListeningService):
    """A server of one `MessageStream`, a Twisted service: it listens from its start to its stop.

    Args:
        listen: an endpoint string, `tcp:7412:interface=127.0.0.1`, or an endpoint.
        codec: encodes and decodes lines (`content.StreamCodec`).
        tls: what makes its connections TLS; with `verify` and `requireCertificate`, clients show
            certificates, and it may listen beyond this machine.
        insecure: listen beyond this machine, where anybody may put, listen and delete.
        is_strict: a line that is malformed ends its connection; otherwise it is ignored.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        stream: MessageStream,
        *,
        listen: str | IStreamServerEndpoint,
        codec: StreamCodec | None = None,
        limits: StreamLimits | None = None,
        tls: CertificateOptions | None = None,
        insecure: bool = False,
        is_strict: bool = False,
    ) -> None:
        if not (isinstance(listen, str) or IStreamServerEndpoint.providedBy(listen)):
            raise TypeError(f"listen = {listen!r}: an endpoint or its description is needed")
        if not (tls is None or isinstance(tls, CertificateOptions)):
            raise TypeError(f"tls = {tls!r}: CertificateOptions are needed")
        for name, value in (("insecure", insecure), ("is_strict", is_strict)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} = {value!r}: True or False is needed")
        self.reactor: Any = timed(reactor)
        self.now = monotonic_of(reactor)
        self.stream = stream
        self.codec: StreamCodec = JsonCodec if codec is None else codec
        self.limits = StreamLimits() if limits is None else limits
        self.is_strict = is_strict
        self._endpoint = listen
        self._tls = tls
        self._is_insecure = insecure
        self._port: IListeningPort | None = None
        self._connections: dict[_Connection, None] = {}
        self._subscribers: dict[str, dict[_Connection, None]] = {}
        self._ungathered: dict[str, list[bytes]] = {}  # lines of keys, until they are a chunk
        self._ungathered_bytes = 0
        self._is_due: IDelayedCall | None = None
        self._thread = threading.get_ident()
        self._from_threads: deque[tuple[str, bytes | None]] = deque()
        self._from_threads_bytes = 0
        self._held = 0
        self._partial = 0
        self._headers: dict[str, int] = {}  # of those that came over the wire, their bytes
        self._header_bytes = 0
        self._subscription_bytes = 0
        self.work = 0  # writes to listeners so far

    # --- start and stop

    @property
    def port(self) -> int:
        """The number of the TCP port that it listens on."""
        assert self._port is not None, "it does not listen"
        return int(self._port.getHost().port)  # type: ignore[attr-defined]  # not of every address

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for connections; a chunk that waits for many counts once."""
        return self._held

    def _begin(self) -> Deferred[Any]:
        Service.startService(self)
        return self.listen()

    def listen(self) -> Deferred[Any]:
        """Listen. Fails with `CannotListen`, `InsecureListener` or `BadAddress`."""
        endpoint: Any = self._endpoint
        if isinstance(endpoint, str):
            address = parse_address(endpoint)
            is_here = address.scheme == "unix" or is_local_host(
                address.options.get("interface", "")
            )
            if not (is_here or self._may_be_open):
                raise self._insecure(endpoint)
            endpoint = serverFromString(self.reactor, endpoint)
        factory: Any = _ConnectionFactory(self)
        if self._tls is not None:
            factory = TLSMemoryBIOFactory(self._tls, False, factory)
        listening: Deferred[Any] = maybeDeferred(endpoint.listen, factory)
        return listening.addCallbacks(self._listening, self._not_listening)

    @property
    def _may_be_open(self) -> bool:
        tls = self._tls
        return self._is_insecure or (
            tls is not None and bool(tls.verify) and bool(tls.requireCertificate)
        )

    def _insecure(self, endpoint: str) -> InsecureListener:
        return InsecureListener(
            endpoint,
            "it is open to others than this machine: tls that verifies the certificates of clients,"
            " or insecure=True is needed",
        )

    def _listening(self, port: IListeningPort) -> None:
        if not (self._may_be_open or is_local(port.getHost())):
            port.stopListening()
            raise self._insecure(str(port.getHost()))
        self._port = port
        self.stream.follow(self)
        self._log.info("streams at {address}", address=describe(port.getHost()))

    def _not_listening(self, failure: Failure) -> None:
        raise CannotListen(str(self._endpoint), failure.getErrorMessage()) from failure.value

    def stopService(self) -> Deferred[None]:
        """Stop listening and close every connection; fires when all are closed.

        What was written is sent first, for `write_seconds` at most.
        """
        super().stopService()
        self.stream.unfollow(self)
        self.flush()
        if self._is_due is not None:
            self._is_due.cancel()
            self._is_due = None
        port, self._port = self._port, None
        waits: list[Deferred[Any]] = [] if port is None else [maybeDeferred(port.stopListening)]
        waits += [connection.leave() for connection in tuple(self._connections)]
        return gatherResults(waits).addCallback(lambda _: None) if waits else succeed(None)

    # --- connections

    def opened(self, connection: _Connection) -> bool:
        """Take a connection; returns whether there is room."""
        if len(self._connections) >= self.limits.connections_max:
            self._log.warn(
                "a connection from {peer} is closed: connections_max = {limit} reached",
                peer=connection.peer,
                limit=self.limits.connections_max,
            )
            return False
        self._connections[connection] = None
        return True

    def lost(self, connection: _Connection) -> None:
        """Forget a connection, and what it listened to."""
        self._connections.pop(connection, None)
        self._hang_up_all(connection)

    def partial(self, more: int) -> None:
        """Count bytes of lines that are not whole; the longest ends where they are too many."""
        self._partial += more
        if more > 0 and self._partial > self.limits.partial_bytes:
            longest = max(self._connections, key=lambda connection: connection.partial)
            longest.abort(f"partial_bytes = {self.limits.partial_bytes} reached")

    def held(self, size: int) -> None:
        """See `OutboundUser`."""
        self._held += size
        while size > 0 and self._held > self.limits.streams_bytes:
            farthest = max(self._connections, key=lambda connection: connection.waiting_bytes)
            if not farthest.waiting_bytes:
                return
            self._close_slow(farthest, "streams_bytes", self.limits.streams_bytes)

    def too_slow(self, outbound: Outbound) -> None:
        """See `OutboundUser`."""
        for connection in self._connections:
            if connection.outbound is outbound:
                self._close_slow(connection, "listener_bytes", self.limits.listener_bytes)
                break

    def _close_slow(self, connection: _Connection, limit: str, value: int) -> None:
        self._log.warn(
            "{peer} does not read: its {count} streams are closed, {limit} = {value} reached",
            peer=connection.peer,
            count=len(connection.keys),
            limit=limit,
            value=value,
        )
        last = b"".join(
            line_of(self.codec, CLOSE, key, reason=SLOW) for key in tuple(connection.keys)
        )
        self._hang_up_all(connection)
        assert connection.outbound is not None
        connection.outbound.drop()
        connection.finish(last)

    # --- commands

    def take(self, connection: _Connection, command: Command) -> None:
        """Do what a line says. Raises `BadValue` or `LimitReached` where it is refused."""
        action, key = command.action, command.stream
        if key is not None:
            check_key(key, self.limits.key_bytes)
        if key is None:
            if action == CLOSE:
                self._flush_of(connection)
                self._hang_up_all(connection)
                connection.finish()
            else:
                self._flush_of(connection)
                self._hang_up_all(connection)
        elif action == PUT:
            self.stream.put(key, command.message)
        elif action == LISTEN:
            self._listen(connection, key, command)
        elif action == HANGUP:
            self._flush_key(key)
            self._hang_up(connection, key)
        elif action == HEADER:
            self._set_header(key, None if command.message is ABSENT else command.message)
        elif action == DELETE:
            del self.stream[key]
        else:
            self.stream.close(key)

    def _listen(self, connection: _Connection, key: str, command: Command) -> None:
        if key in connection.keys:
            return
        if command.token is not ABSENT and command.token is not None:
            # Nothing is kept here that one could go on from.
            connection.write(Chunk(line_of(self.codec, CLOSE, key, reason=GAP)))
            return
        limits = self.limits
        if len(connection.keys) >= limits.subscriptions_max:
            raise LimitReached("subscriptions_max", limits.subscriptions_max)
        if self._subscription_bytes + _size_of(key) > limits.subscription_bytes:
            raise LimitReached("subscription_bytes", limits.subscription_bytes)
        with self.stream.lock:  # between the header and the first that is put there is nothing
            self._take_from_threads()
            self._flush_key(key)
            header = self.stream[key]
            line = None if header is None else line_of(self.codec, PUT, key, message=header)
            self._subscribers.setdefault(key, {})[connection] = None
            connection.keys[key] = None
            self._subscription_bytes += _size_of(key)
        if line is not None:
            connection.write(Chunk(line))

    def refuse_listen(self, connection: _Connection, key: str) -> None:
        """Tell a connection that it does not listen to a stream that it asked for."""
        connection.write(Chunk(line_of(self.codec, CLOSE, key, reason=REFUSED)))

    def _set_header(self, key: str, header: Any) -> None:
        if header is None:
            self.stream[key] = None
            return
        size = len(line_of(self.codec, PUT, key, message=header))
        with self.stream.lock:
            before = self._headers.get(key)
            if before is None and len(self._headers) >= self.limits.headers_max:
                raise LimitReached("headers_max", self.limits.headers_max)
            if self._header_bytes + size - (before or 0) > self.limits.header_bytes:
                raise LimitReached("header_bytes", self.limits.header_bytes)
            self.stream[key] = header
            self._headers[key] = size
            self._header_bytes += size

    def _hang_up(self, connection: _Connection, key: str) -> None:
        if key not in connection.keys:
            return
        del connection.keys[key]
        self._subscription_bytes -= _size_of(key)
        subscribers = self._subscribers[key]
        del subscribers[connection]
        if not subscribers:
            del self._subscribers[key]

    def _hang_up_all(self, connection: _Connection) -> None:
        for key in tuple(connection.keys):
            self._hang_up(connection, key)

    # --- the feed of the stream, in any thread and under its lock

    def prepare(self, key: Hashable, message: Any) -> bytes | None:
        """See `Feed`."""
        if not isinstance(key, str):
            return None  # no line can name it
        line = line_of(self.codec, PUT, check_key(key, self.limits.key_bytes), message=message)
        if (
            threading.get_ident() != self._thread
            and self._from_threads_bytes + len(line) > self.limits.streams_bytes
        ):
            raise LimitReached("streams_bytes", self.limits.streams_bytes)
        return line

    def check_header(self, key: Hashable, message: Any) -> None:
        """See `Feed`."""
        if isinstance(key, str):
            line_of(self.codec, PUT, check_key(key, self.limits.key_bytes), message=message)

    def header_set(self, key: Hashable) -> None:
        """See `Feed`. It is none from the wire any more."""
        if isinstance(key, str):
            self._header_bytes -= self._headers.pop(key, 0)

    def put(self, key: Hashable, prepared: bytes | None) -> None:
        """See `Feed`."""
        if prepared is not None:
            assert isinstance(key, str)
            self._happened(key, prepared)

    def ended(self, key: Hashable) -> None:
        """See `Feed`."""
        if isinstance(key, str):
            self._happened(key, None)

    def _happened(self, key: str, line: bytes | None) -> None:
        if threading.get_ident() != self._thread:
            if not self._from_threads:
                self.reactor.callFromThread(self._go_on_with_threads)
            self._from_threads.append((key, line))
            self._from_threads_bytes += len(line or b"")
            return
        self._take_from_threads()
        self._pass_on(key, line)

    def _go_on_with_threads(self) -> None:
        with self.stream.lock:
            self._take_from_threads()
        self.flush()

    def _take_from_threads(self) -> None:
        while self._from_threads:
            key, line = self._from_threads.popleft()
            self._from_threads_bytes -= len(line or b"")
            self._pass_on(key, line)

    # --- to who listens, in the reactor

    def _pass_on(self, key: str, line: bytes | None) -> None:
        if line is None:
            self._end(key)
            return
        if key not in self._subscribers:
            return
        lines = self._ungathered.get(key)
        if lines is None:
            lines = self._ungathered[key] = []
            self.work += len(self._subscribers[key])
        lines.append(line)
        self._ungathered_bytes += len(line)
        if self._ungathered_bytes > CHUNK_BYTES:
            self.flush()
        elif self._is_due is None:
            self._is_due = self.reactor.callLater(0, self._flush_due)

    def _end(self, key: str) -> None:
        self._flush_key(key)
        subscribers = tuple(self._subscribers.get(key, ()))
        self.work += len(subscribers)
        if subscribers:
            chunk = Chunk(line_of(self.codec, CLOSE, key))
            for connection in subscribers:
                self._hang_up(connection, key)
                connection.write(chunk)

    def _flush_due(self) -> None:
        self._is_due = None
        self.flush()

    def flush(self) -> None:
        """Write the lines of all keys."""
        for key in tuple(self._ungathered):
            self._flush_key(key)

    def _flush_of(self, connection: _Connection) -> None:
        for key in tuple(connection.keys):
            self._flush_key(key)

    def _flush_key(self, key: str) -> None:
        lines = self._ungathered.pop(key, None)
        if lines is None:
            return
        chunk = Chunk(b"".join(lines))
        self._ungathered_bytes -= len(chunk.data)
        for connection in tuple(self._subscribers.get(key, ())):
            connection.write(chunk)


@implementer(IHandshakeListener)
class _Connection(Protocol):
    """One connection. `keys`: of the streams that it listens to."""

    _log = Logger()

    def __init__(self, server: StreamServer) -> None:
        self._server = server
        self.keys: dict[str, None] = {}
        self.outbound: Outbound | None = None
        self.peer = ""
        self._splitter = LineSplitter(server.limits.line_bytes)
        self._lines: deque[bytes] = deque()
        self._is_paused = False  # more lines than a turn takes
        self._is_over = False
        self._ignored = 0
        self._partial_since = 0.0
        self._partial_timer: IDelayedCall | None = None
        self._end_timer: IDelayedCall | None = None
        self._lost: Deferred[None] = Deferred()
        self.partial = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for it to read."""
        return 0 if self.outbound is None else self.outbound.waiting_bytes

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.peer = describe(transport.getPeer())
        if not self._server.opened(self):
            self._is_over = True
            transport.abortConnection()
            return
        if ISSLTransport.providedBy(transport):
            # A stranger may say nothing at all; until it has shown its certificate it has no time.
            self._look_at_partial(since=self._server.now())
        else:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        if self.outbound is None and not self._is_over:
            self._stop_timer()
            self.outbound = Outbound(
                self.transport, self._server, self._server.limits.listener_bytes
            )

    def dataReceived(self, data: bytes) -> None:
        if self._is_over:
            return
        self.handshakeCompleted()
        lines = self._splitter.feed(data)
        self._lines.extend(lines)
        self._count_partial(bool(lines))
        if not self._is_paused:
            self._take_lines()

    def _take_lines(self) -> None:
        server = self._server
        work = server.work
        while self._lines and not self._is_over:
            self._take(self._lines.popleft())
            if server.work - work > WORK_MAX and self._lines:
                server.flush()
                self._pause()
                return
        server.flush()
        if self._splitter.is_too_long and not self._is_over:
            self.abort(f"a line is longer than line_bytes = {server.limits.line_bytes}")

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pauseProducing()  # type: ignore[union-attr]  # it is connected
        self._server.reactor.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._take_lines()
        if self._is_paused and not self._lines and not self._is_over:
            self._is_paused = False
            self.transport.resumeProducing()  # type: ignore[union-attr]  # it is connected

    def _take(self, line: bytes) -> None:
        server = self._server
        command: Command | None = None
        try:
            command = command_of(decode(server.codec, line))
            server.take(self, command)
        except (BadValue, LimitReached) as error:
            self._ignore(str(error))
            if command is not None and command.action == LISTEN and command.stream is not None:
                server.refuse_listen(self, command.stream)

    def _ignore(self, reason: str) -> None:
        self._ignored += 1
        if self._server.is_strict:
            self.abort(reason)
        elif self._ignored == 1:  # a peer must not fill the log
            self._log.warn(
                "a line of {peer} is ignored: {reason}", peer=self.peer, reason=reason[:SHOWN]
            )

    # --- a line that does not end

    def _count_partial(self, has_lines: bool) -> None:
        before, self.partial = self.partial, self._splitter.partial
        if self.partial and (has_lines or not before):
            self._partial_since = self._server.now()
        if self.partial != before:
            self._server.partial(self.partial - before)
        if self.partial and self._partial_timer is None and not self._is_over:
            self._look_at_partial(since=self._partial_since)

    def _look_at_partial(self, since: float) -> None:
        self._partial_since = since
        left = self._deadline() - self._server.now()
        self._partial_timer = self._server.reactor.callLater(max(left, 0.01), self._look)

    def _deadline(self) -> float:
        return (
            self._partial_since
            + self._server.limits.line_seconds
            + self._splitter.partial / BYTES_A_SECOND
        )

    def _look(self) -> None:
        self._partial_timer = None
        if self.outbound is not None and not self._splitter.partial:
            return
        if self._server.now() >= self._deadline():
            seconds = self._server.limits.line_seconds
            self.abort(f"a line has not ended within line_seconds = {seconds}")
        else:
            self._look_at_partial(self._partial_since)

    def _stop_timer(self) -> None:
        if self._partial_timer is not None:
            self._partial_timer.cancel()
            self._partial_timer = None

    # --- out, and the end

    def write(self, chunk: Chunk) -> None:
        """Write lines, now or when there is room."""
        if self.outbound is not None:
            self.outbound.write(chunk)

    def finish(self, last: bytes = b"") -> None:
        """Close the connection in an orderly way, once what was written has left."""
        self._is_over = True
        self._lines.clear()
        self._stop_timer()
        transport: Any = self.transport
        if self.outbound is not None:
            self.outbound.end(last)
        else:
            transport.abortConnection()
        if self._end_timer is None:
            self._end_timer = self._server.reactor.callLater(
                self._server.limits.write_seconds, transport.abortConnection
            )
        if self._is_paused:  # or its end would not be read
            transport.resumeProducing()

    def leave(self) -> Deferred[None]:
        """Close the connection; fires when it has ended."""
        self.finish()
        return self._lost

    def abort(self, reason: str) -> None:
        """End the connection at once, which has done what is not allowed."""
        if self._is_over:
            return
        self._is_over = True
        self._lines.clear()
        self._stop_timer()
        self._log.warn("{peer} is disconnected: {reason}", peer=self.peer, reason=reason)
        self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_over = True
        self._lines.clear()
        self._stop_timer()
        if self._end_timer is not None and self._end_timer.active():
            self._end_timer.cancel()
        if self._ignored > 1:
            self._log.warn(
                "{count} lines of {peer} were ignored", count=self._ignored, peer=self.peer
            )
        self._server.partial(-self.partial)
        self.partial = 0
        if self.outbound is not None:
            self.outbound.lost()
        self._server.lost(self)
        self._lost.callback(None)


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(self, server: StreamServer) -> None:
        self._server = server

    def buildProtocol(self, addr: Any) -> _Connection:
        return _Connection(self._server)
