"""A server of streams: JSON lines on a port, in front of the streams that it is given.

    bytes ─ LineSplitter ─► commands ─► `Served`: streams of this process (`live`), or of a node
                                            └─► chunks of lines ─► Outbound of each listener

Connections and their bounds are here; what a line does is `live`'s or `durable`'s, what it is
`wire`'s; what waits for a slow connection, `outbound`'s.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
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
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.arguments import check_flags, check_kind, check_methods, wrong
from msgservice.clock import monotonic_of, timed
from msgservice.errors import BadValue, CannotListen, InsecureListener, LimitReached
from msgservice.faces.listening import ListeningService
from msgservice.faces.streams.content import JsonCodec, StreamCodec, check_codec
from msgservice.faces.streams.live import LiveStreams
from msgservice.faces.streams.outbound import Chunk, Outbound
from msgservice.faces.streams.served import ListenerState, Served, StreamState, state_of
from msgservice.faces.streams.stream import MessageStream
from msgservice.faces.streams.wire import (
    CLOSE,
    LIST,
    LISTEN,
    REFUSED,
    SLOW,
    Command,
    LineSplitter,
    check_key,
    command_of,
    decode,
    encode,
    line_of,
)
from msgservice.stream_limits import KIB, StreamLimits
from msgservice.transport.addresses import describe, is_local, is_local_host, parse_address

WORK_MAX = 2_000  # writes to listeners that the lines of one connection may cause in a turn
BYTES_A_SECOND = 64 * KIB  # of a line that takes longer than `line_seconds`
SUBSCRIPTION_BYTES = 256  # of one listening, beside its key
PAGE_STREAMS = 200  # that one answer to `list` has at most,
PAGE_KEYS = 256 * KIB  # … with keys of so many characters, about,
PAGE_LISTENERS = 5_000  # … and so many listeners, who are looked at one by one
SERVED = ("serve", "begin", "take", "listeners_of")  # methods that tell streams from what is none
UNIX_MODE = "600"  # of a socket whose address says none: whoever may open it needs no login
SHOWN = 300  # characters of a reason in the log


def _size_of(key: str) -> int:
    """Return what listening to a key takes in memory, about."""
    return len(key.encode()) + SUBSCRIPTION_BYTES


class StreamServer(ListeningService):
    """A server of one `MessageStream`, a Twisted service: it listens from its start to its stop.

    Args:
        listen: an endpoint string, `tcp:7412:interface=127.0.0.1`, or an endpoint.
        described: that endpoint, in errors.
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
        stream: MessageStream | Served,
        *,
        listen: str | IStreamServerEndpoint,
        described: str = "",
        codec: StreamCodec | None = None,
        limits: StreamLimits | None = None,
        tls: CertificateOptions | None = None,
        insecure: bool = False,
        is_strict: bool = False,
    ) -> None:
        if not (isinstance(listen, str) or IStreamServerEndpoint.providedBy(listen)):
            raise wrong("listen", listen, "an endpoint or its description is needed")
        if tls is not None:
            check_kind(CertificateOptions, "CertificateOptions are needed", tls=tls)
        check_flags(insecure=insecure, is_strict=is_strict)
        check_kind(str, "text is needed", described=described)
        if not isinstance(stream, MessageStream):
            check_methods("a MessageStream or NodeStreams are needed", SERVED, stream=stream)
        self.reactor: Any = timed(reactor)
        self.now = monotonic_of(reactor)
        self.codec: StreamCodec = check_codec(JsonCodec if codec is None else codec)
        self.limits = StreamLimits() if limits is None else limits
        check_kind(StreamLimits, "StreamLimits are needed", limits=self.limits)
        self.is_strict = is_strict
        self._endpoint = listen
        self._described = described or str(listen)
        self._tls = tls
        self._is_insecure = insecure
        self._port: IListeningPort | None = None
        self.address = ""  # where it listens, for people
        self._connections: dict[_Connection, None] = {}
        self._served: Served = LiveStreams(stream) if isinstance(stream, MessageStream) else stream
        self._served.serve(self)
        self._held = 0
        self._partial = 0
        self._subscription_bytes = 0

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

    def streams(self) -> list[StreamState]:
        """Return the streams that somebody listens to by it, with how many are behind."""
        keys = self._served.keys()
        return [state_of(key, self._served.listeners_of(key)) for key in keys]

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
            if address.scheme == "unix" and "mode" not in address.options:
                endpoint = f"{endpoint}:mode={UNIX_MODE}"
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
        self._served.begin()
        self.address = describe(port.getHost(), "tls" if self._tls is not None else "tcp")
        self._log.info("streams at {address}", address=self.address)

    def _not_listening(self, failure: Failure) -> None:
        raise CannotListen(self._described, failure.getErrorMessage()) from failure.value

    def stopService(self) -> Deferred[None]:
        """Stop listening and close every connection; fires when all are closed.

        What was written is sent first, for `write_seconds` at most.
        """
        super().stopService()
        self.flush()
        port, self._port = self._port, None
        waits: list[Deferred[Any]] = [maybeDeferred(self._served.end)]
        if port is not None:
            waits.append(maybeDeferred(port.stopListening))
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
        self._served.lost(connection)

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
        self._close_slow(outbound.owner, "listener_bytes", self.limits.listener_bytes)

    def writable(self, outbound: Outbound) -> None:
        """See `OutboundUser`."""
        self._served.writable(outbound.owner)

    def listens(self, key: str) -> None:
        """Count one listening to a key. Raises `LimitReached`."""
        if self._subscription_bytes + _size_of(key) > self.limits.subscription_bytes:
            raise LimitReached("subscription_bytes", self.limits.subscription_bytes)
        self._subscription_bytes += _size_of(key)

    def hangs_up(self, key: str) -> None:
        """Count one listening less."""
        self._subscription_bytes -= _size_of(key)

    def _close_slow(self, connection: _Connection, limit: str, value: int) -> None:
        self._log.warn(
            "{peer} does not read: its {count} streams are closed, {limit} = {value} reached",
            peer=connection.peer,
            count=len(connection.keys),
            limit=limit,
            value=value,
        )
        try:
            last = b"".join(
                line_of(self.codec, CLOSE, key, reason=SLOW) for key in tuple(connection.keys)
            )
        except BadValue:  # of a codec that has been replaced: that is no business of who puts
            self._log.failure("the end of {peer} is not told", peer=connection.peer)
            last = b""
        self._served.lost(connection)
        assert connection.outbound is not None
        connection.outbound.drop()
        connection.finish(last)

    # --- commands

    def take(self, connection: _Connection, command: Command) -> Deferred[None] | None:
        """Do what a line says; until it fires, nothing more of this connection is done.

        Raises `BadValue` or `LimitReached` where it is refused.
        """
        if command.stream is not None:
            check_key(command.stream, self.limits.key_bytes)
        return self._served.take(connection, command)

    def refuse_listen(self, connection: _Connection, key: str) -> None:
        """Tell a connection that it does not listen to a stream that it asked for."""
        connection.write(Chunk(line_of(self.codec, CLOSE, key, reason=REFUSED)))

    def listeners(self, key: str) -> list[ListenerState]:
        """Return who listens to a stream by it, those who are farthest behind first."""
        return sorted(self._served.listeners_of(key), key=lambda one: one.lag, reverse=True)

    def tell_streams(
        self, connection: _Connection, key: str | None, after: str | None
    ) -> Deferred[None]:
        """See `Host`: one page in a turn, whatever a connection asks for."""
        line = self._page_of_streams(after) if key is None else self._page_of_listeners(key)
        line = {"action": LIST, **line, "ignored": connection.ignored}
        connection.write(Chunk(encode(self.codec, line) + b"\n"))
        return deferLater(self.reactor, 0, lambda: None)

    def _page_of_listeners(self, key: str) -> dict[str, Any]:
        found = self.listeners(key)
        told = [
            {"peer": one.peer, "waiting": one.waiting, "lag": round(one.lag, 3)}
            for one in found[:PAGE_STREAMS]
        ]
        return {"stream": key, "listeners": told, "count": len(found)}

    def _page_of_streams(self, after: str | None) -> dict[str, Any]:
        page = list(islice(self._served.keys(after), PAGE_STREAMS + 1))
        told: list[dict[str, Any]] = []
        characters = listeners = 0
        for key in page[:PAGE_STREAMS]:
            _, count, behind, lag = state_of(key, self._served.listeners_of(key))
            told.append({"stream": key, "listeners": count, "behind": behind, "lag": round(lag, 3)})
            characters += len(key)
            listeners += count
            if characters > PAGE_KEYS or listeners > PAGE_LISTENERS:
                break
        rest = told[-1]["stream"] if len(told) < len(page) else None
        return {"streams": told, "next": rest}

    def flush(self) -> None:
        """Write what was gathered."""
        self._served.flush()

    @property
    def work(self) -> int:
        """Writes to listeners so far."""
        return self._served.work


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
        self.is_over = False
        self.ignored = 0
        self._partial_since = 0.0
        self._partial_timer: IDelayedCall | None = None
        self._end_timer: IDelayedCall | None = None
        self._lost: Deferred[None] = Deferred()
        self.partial = 0

    @property
    def is_full(self) -> bool:
        """Whether what is written now would wait."""
        return self.outbound is None or self.outbound.is_full

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for it to read."""
        return 0 if self.outbound is None else self.outbound.waiting_bytes

    @property
    def waiting_seconds(self) -> float:
        """Seconds since when the first of these does."""
        return 0.0 if self.outbound is None else self.outbound.waiting_seconds

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self.peer = describe(transport.getPeer())
        if not self._server.opened(self):
            self.is_over = True
            transport.abortConnection()
            return
        if ISSLTransport.providedBy(transport):
            # A stranger may say nothing at all; until it has shown its certificate it has no time.
            self._look_at_partial(since=self._server.now())
        else:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        if self.outbound is None and not self.is_over:
            self._stop_timer()
            self.outbound = Outbound(
                self.transport, self._server, self._server.limits.listener_bytes, self
            )

    def dataReceived(self, data: bytes) -> None:
        if self.is_over:
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
        while self._lines and not self.is_over:
            waits = self._take(self._lines.popleft())
            if waits is not None and not waits.called:
                server.flush()
                self._stop_reading()
                waits.addBoth(self._go_on)
                return
            if server.work - work > WORK_MAX and self._lines:
                server.flush()
                self._stop_reading()
                server.reactor.callLater(0, self._go_on)
                return
        server.flush()
        if self._splitter.is_too_long and not self.is_over:
            self.abort(f"a line is longer than line_bytes = {server.limits.line_bytes}")

    def _stop_reading(self) -> None:
        if not self._is_paused and not self.is_over:
            self._is_paused = True
            self.transport.pauseProducing()  # type: ignore[union-attr]  # it is connected

    def _go_on(self, _: object = None) -> None:
        was_paused, self._is_paused = self._is_paused, False
        self._take_lines()
        if was_paused and not self._is_paused and not self.is_over:
            self.transport.resumeProducing()  # type: ignore[union-attr]  # it is connected

    def _take(self, line: bytes) -> Deferred[None] | None:
        server = self._server
        command: Command | None = None
        try:
            command = command_of(decode(server.codec, line))
            waits = server.take(self, command)
        except (BadValue, LimitReached) as error:
            self._refuse(error, command)
            return None
        if waits is not None:
            waits.addErrback(self._failed, command)
        return waits

    def _failed(self, failure: Failure, command: Command) -> None:
        error = failure.value
        if isinstance(error, BadValue | LimitReached):
            self._refuse(error, command)
        else:
            self._log.failure("a line of {peer}", failure, peer=self.peer)
            self.abort("a line failed")

    def _refuse(self, error: BaseException, command: Command | None) -> None:
        self._ignore(str(error))
        if command is not None and command.action == LISTEN and command.stream is not None:
            self._server.refuse_listen(self, command.stream)

    def _ignore(self, reason: str) -> None:
        self.ignored += 1
        if self._server.is_strict:
            self.abort(reason)
        elif self.ignored == 1:  # a peer must not fill the log
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
        if self.partial and self._partial_timer is None and not self.is_over:
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
        self.is_over = True
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
        if self.is_over:
            return
        self.is_over = True
        self._lines.clear()
        self._stop_timer()
        self._log.warn("{peer} is disconnected: {reason}", peer=self.peer, reason=reason)
        self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_over = True
        self._lines.clear()
        self._stop_timer()
        if self._end_timer is not None and self._end_timer.active():
            self._end_timer.cancel()
        if self.ignored > 1:
            self._log.warn(
                "{count} lines of {peer} were ignored", count=self.ignored, peer=self.peer
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
