"""One HTTP connection: Twisted's channel, with bounds on what comes and how slowly.

    head      16 KiB in 500 lines, within `limits.hello_timeout` of its first byte (of a new
              connection: of its beginning, TLS included)
    body      `HttpRequest.body_max`; as long as it comes, 64 KiB each `limits.frame_timeout`; of
              all requests together `limits.http_bytes`
    between   a connection on which nothing is asked ends after `limits.http_idle`
    answers   a peer that does not read is aborted after `limits.write_timeout`

Twisted's own timeout starts anew with every byte, its bodies go to files, and it has no bound for
them. Here a request is judged by its head (`Server.begin`), so a body that nobody wants is not
read. Who answers is the `Server`; what may be asked, and by whom, is no business of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request

from msgservice.clock import monotonic_of
from msgservice.credentials import NOBODY, Credentials
from msgservice.errors import LimitReached, WebRefused
from msgservice.interfaces import IChannelUser
from msgservice.limits import Limits
from msgservice.transport.addresses import describe
from msgservice.transport.owners import ChannelOwner
from msgservice.transport.tcp.pacing import PROGRESS_BYTES, Turn
from msgservice.transport.tcp.shown import credentials_of
from msgservice.transport.tcp.sockets import reason_of, tune

# A body that is refused and not longer is read and dropped, so that its connection can go on.
DROPPED_BYTES = 64 * 1024
_NO_TEXT = bytes(set(range(0x20)) - set(b"\t\r\n"))
_FIRST_LINES = {
    one.value: b"HTTP/1.1 %d %b\r\n" % (one.value, one.phrase.encode()) for one in HTTPStatus
}


class Server(Protocol):
    """The one who answers the requests of a listener, and keeps account of its connections."""

    held_bytes: int  # of all bodies that are here and not answered

    def opened(self, channel: HttpChannel) -> None:
        """A connection stands."""

    def gone(self, channel: HttpChannel) -> None:
        """A connection has gone."""

    def begin(self, request: HttpRequest) -> Deferred[None] | None:
        """Judge a request by its head; until what is returned fires, little of its body is read.

        Raises, or fails with, what it is refused for; sets its `body_max`.
        """

    def serve(self, request: HttpRequest) -> None:
        """Answer a request that is here as a whole. May not raise."""

    def refuse(self, request: HttpRequest, error: Exception) -> None:
        """Answer a request that is refused. May not raise."""


class HttpRequest(Request):
    """A request, from its head to its answer."""

    channel: HttpChannel
    body_max = 0  # bytes; set by whoever judges the head
    length: int | None = 0  # of the body, as the head says; None: it comes in chunks
    error: Exception | None = None  # what it is refused for; its body is dropped
    entering: Deferred[None] | None = None  # until it is known whether it is refused
    is_over = False  # its connection has gone
    head_is_here = False

    def __init__(self, channel: HttpChannel, queued: object = None) -> None:
        super().__init__(channel)
        self.state: Any = None  # whoever answers keeps here what it has found out
        self.received = 0  # bytes of the body
        self._coming = bytearray()  # a chunk may be a byte: each in an object of its own is many
        self._whole: bytes | None = None  # once somebody has asked for it

    @property
    def body(self) -> bytes:
        """The body, as far as it is here."""
        if self._whole is None or self._coming:
            self._whole, self._coming = (self._whole or b"") + self._coming, bytearray()
        return self._whole

    def header(self, name: str) -> str | None:
        """Return the value of a header that may come once; `WebRefused` where it came again."""
        # By its name in bytes, as it came: Twisted would compare both kinds of text in its cache.
        values = self.requestHeaders.getRawHeaders(name.encode())
        if values is None:
            return None
        if len(values) > 1:
            raise WebRefused(400, f"more than one {name}")
        return str(values[0].decode())

    def head(self, command: bytes, uri: bytes) -> None:
        """The first line has been read."""
        self.method, self.uri = command, uri

    def gotLength(self, length: int | None) -> None:
        """Take note of how long the body is; nothing is opened for it, as Twisted's does."""
        self.length = length

    def handleContentChunk(self, data: bytes) -> None:
        """Take a part of the body; one that is too long ends the request.

        So does one that has no room beside those of others: what they will take is not known from
        their heads, nor that of one in chunks.
        """
        self.received += len(data)
        if self.error is not None:
            return
        channel = self.channel
        channel.server.held_bytes += len(data)
        self._coming += data
        if self.received > self.body_max and self.entering is None:
            channel.refuse(self, too_large(self.body_max))
        elif channel.server.held_bytes > channel.limits.http_bytes:
            channel.refuse(self, LimitReached("http_bytes", channel.limits.http_bytes))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Answer, or wait until it is known who asks."""
        self.clientproto = version
        if self.entering is None:
            self.process()

    def process(self) -> None:
        """Answer: all of the request is here."""
        if self.error is not None:
            self.channel.server.refuse(self, self.error)
        else:
            self.channel.server.serve(self)

    def answer(self, status: int, body: bytes, head: bytes) -> None:
        """Write a whole answer at once; nothing, where the connection has gone.

        `head`: the lines of its head, but for those of its length and its connection.
        """
        if self.is_over:
            return
        length = b"Content-Length: %d\r\n" % len(body)
        self._write_head(status, b"%b%b\r\n" % (head, length), b"" if self._is_head else body)
        self.finish()

    def begin_answer(self, status: int, head: bytes) -> None:
        """Begin an answer in pieces, which go by `write`; it ends with `finish`."""
        self.chunked = self.clientproto == b"HTTP/1.1"
        if not self.chunked:
            self.channel.persistent = False  # it ends with the connection
        coding = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        self._write_head(status, b"%b%b\r\n" % (head, coding), b"")

    @property
    def _is_head(self) -> bool:
        return bool(self.method == b"HEAD")

    def _write_head(self, status: int, head: bytes, body: bytes) -> None:
        self.code = status
        self.startedWriting = 1
        first = _FIRST_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        if not self.channel.persistent:
            first += b"Connection: close\r\n"
        self.channel.write(b"%b%b%b" % (first, head, body))

    def hold(self, size: int) -> None:
        """Count bytes of the answer, which is a long one, until they are read.

        Raises `LimitReached` where others have no room beside them; one alone always has.
        """
        channel = self.channel
        others = channel.server.held_bytes - channel.held_bytes
        if others and others + channel.held_bytes + size > channel.limits.http_bytes:
            raise LimitReached("http_bytes", channel.limits.http_bytes)
        channel.hold(size)

    def drop_body(self) -> None:
        """Forget the body: it counts no longer."""
        held = len(self._coming) + len(self._whole or b"")
        if held:
            self.channel.server.held_bytes -= held
            self._coming, self._whole = bytearray(), None

    def finish(self) -> None:
        """End the answer."""
        self.drop_body()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """The connection has gone: nobody reads an answer any more."""
        self.is_over = True
        self.drop_body()
        if self.entering is not None:
            self.entering.cancel()
        super().connectionLost(reason)


def too_large(size_max: int) -> WebRefused:
    """Return what a body is refused with that is longer than it may be."""
    return WebRefused(413, f"a body of more than {size_max} bytes")


class HttpChannel(HTTPChannel):
    """One connection of a client. `has_opened`: a request was let in."""

    _logger = Logger()

    transport: Any
    requestFactory: Any = HttpRequest
    refusal = None
    has_opened = True
    peer_address = "unknown"

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        owner: ChannelOwner,
        turn: Turn,
        server: Server,
        door: Any = None,
    ) -> None:
        super().__init__()
        self.server = server
        self.door = door  # by which it came, for who answers
        self.limits = limits
        self.reactor = reactor
        self.state: Any = None  # whoever answers keeps here what it knows of the connection
        self._now = monotonic_of(reactor)
        self._owner = owner
        self._credentials: Credentials | None = None
        self._is_identified = False
        self._is_deaf = False  # nothing that comes is looked at any more
        self._is_closing = False
        self._is_heard = False
        self._has_begun = False  # a request, or the connection
        self._until: float | None = None  # when what is waited for must have come
        self._unread_since: float | None = None
        self._progress = 0  # bytes of the body when `_until` was set
        self._timer: IDelayedCall | None = None
        self._is_lost = False
        self._answered: Request | None = None  # whose answer is not read yet
        self.held_bytes = 0  # of an answer that is not read yet

    # --- what it shows

    @property
    def is_secure(self) -> bool:
        """Whether it is TLS."""
        return isinstance(self.transport, TLSMemoryBIOProtocol)

    @property
    def credentials(self) -> Credentials:
        """The credentials of the connection; after the handshake, if there is one."""
        if self._credentials is None:
            if self._is_lost:
                return NOBODY
            self._credentials = credentials_of(self.transport, is_dialled=False)
        return self._credentials

    @property
    def own_host(self) -> str:
        """The address of this end."""
        return str(getattr(self.transport.getHost(), "host", ""))

    @property
    def is_answering(self) -> bool:
        """Whether a request is here that is not answered."""
        return bool(self.requests)

    @property
    def is_in_pieces(self) -> bool:
        """Whether an answer has begun that has no end yet."""
        return any(request.startedWriting for request in self.requests)

    def hold(self, size: int) -> None:
        """Count bytes of an answer, until it is read or the connection has gone."""
        if not self._is_lost:
            self.held_bytes += size
            self.server.held_bytes += size

    def _let_go(self) -> None:
        self.server.held_bytes -= self.held_bytes
        self.held_bytes = 0

    def identified(self) -> None:
        """Somebody was let in: the connection makes no room for others any more."""
        if not self._is_identified:
            self._is_identified = True
            self._owner.channel_identified(self)
            self._owner.channel_established(self)

    # --- its life

    def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._wait(self.limits.hello_timeout)

    def connectionMade(self) -> None:
        """The connection stands, but for TLS."""
        super().connectionMade()
        tune(self.transport, self.limits)
        self.peer_address = describe(
            self.transport.getPeer(), "https" if self.is_secure else "http"
        )
        self._begin()
        self.server.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget all that is kept for the connection."""
        self._is_lost = self._is_deaf = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connectionLost(reason)
        self.requests = []
        self._let_go()
        self.server.gone(self)
        self._owner.channel_gone(self, reason_of(reason, self.transport))

    def close(self) -> None:
        """Close when what is being answered is; at once, where nothing is."""
        self.persistent = False
        if not self.requests:
            self.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._is_deaf = True
        if not self._is_lost:
            self.transport.abortConnection()

    def loseConnection(self) -> None:
        """Write what waits, then close; what still comes is dropped, so that an answer is read.

        To close with bytes unread would have the kernel say that all is broken off.
        """
        if self._is_closing or self._is_lost:
            return
        self._is_closing = self._is_deaf = True
        self._wait(self.limits.close_timeout)
        transport = self.transport
        transport.unregisterProducer()
        if self.is_secure:
            transport.loseConnection()
        else:
            transport.resumeProducing()
            transport.loseWriteConnection()

    # --- time

    def _wait(self, seconds: float | None) -> None:
        """Give the peer so long for what comes next; None: as long as it takes."""
        self._until = None if seconds is None else self._now() + seconds
        if seconds is not None:
            self._look_in(seconds)

    def _look_in(self, seconds: float) -> None:
        timer = self._timer
        if timer is None:
            self._timer = self.reactor.callLater(seconds, self._look)
        elif timer.getTime() > self.reactor.seconds() + seconds:
            timer.reset(seconds)

    def _look(self) -> None:
        self._timer = None
        now, waits = self._now(), []
        if self._unread_since is not None:
            left = self._unread_since + self.limits.write_timeout - now
            if left <= 0:
                self.abort()
                return
            waits.append(left)
        if self._until is not None:
            if self._until - now <= 0 and not self._goes_on():
                self._too_slow()
                return
            waits.append(max(0.0, self._until - now))
        if waits:
            self._look_in(min(waits))

    def _goes_on(self) -> bool:
        """Whether a body has come on far enough for another while."""
        request = self.requests[-1] if self.requests else None
        if request is None or self._handlingRequest or not self._progress_from(request):
            return False
        self._wait(self.limits.frame_timeout)
        return True

    def _progress_from(self, request: HttpRequest) -> bool:
        """Whether so much of a body has come since the last look."""
        came, self._progress = request.received - self._progress, request.received
        return request.head_is_here and came >= PROGRESS_BYTES

    def _too_slow(self) -> None:
        if self._is_closing:
            self.abort()
        elif self.requests and not self._handlingRequest:
            self.refuse(self.requests[-1], WebRefused(408, "the request came too slowly"))
        else:
            self.loseConnection()

    def pauseProducing(self) -> None:
        """The transport is full: its peer has so long to read."""
        self._unread_since = self._now()
        self._look_in(self.limits.write_timeout)
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """The transport has room again."""
        self._unread_since = None
        super().resumeProducing()
        answered, self._answered = self._answered, None
        if answered is not None:
            self.requestDone(answered)

    # --- what comes

    def dataReceived(self, data: bytes) -> None:
        """Take what was read."""
        if not self._is_deaf:
            if not self.requests:
                self._begin()
            if not self._is_heard:
                self._is_heard = True
                if data[0] in _NO_TEXT:  # a frame, or a handshake: it never becomes a line
                    self._respondToBadRequestAndDisconnect()
                    return
            super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a head."""
        if not self._is_deaf:
            self._begin()
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """Take a header."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:  # a Content-Length of more digits than Python makes a number of
            self._respondToBadRequestAndDisconnect()
            return False

    def rawDataReceived(self, data: bytes) -> None:
        """Take a part of a body, or what comes behind a request that is being answered."""
        if not self._is_deaf:
            super().rawDataReceived(data)

    def allHeadersReceived(self) -> None:
        """Judge a request by its head, before its body is read."""
        request = self.requests[-1]
        request.head(self._command, self._path)
        request.clientproto = self._version
        self.persistent = self.persistent and self.checkPersistence(request, self._version)
        request.gotLength(self.length)
        request.head_is_here = True
        self._progress = 0
        self._wait(None if self.length == 0 else self.limits.frame_timeout)
        try:
            entering = self.server.begin(request)
        except Exception as error:
            self.refuse(request, error)
            return
        if entering is None:
            self._entered(request)
            return
        request.entering = entering
        self._networkProducer.pauseProducing()
        self._until = None
        entering.addCallbacks(
            self._has_entered, self._not_entered, callbackArgs=(request,), errbackArgs=(request,)
        )

    def _has_entered(self, _: object, request: HttpRequest) -> None:
        request.entering = None
        if request.is_over:
            return
        self._read_on()
        if request.error is None:
            self._entered(request)
        if self._handlingRequest and not self._is_closing:
            request.process()

    def _not_entered(self, failure: Failure, request: HttpRequest) -> None:
        request.entering = None
        if request.is_over or failure.check(CancelledError):
            return
        assert isinstance(failure.value, Exception)
        self._read_on()
        self.refuse(request, failure.value)
        if self._handlingRequest and not self._is_closing:
            request.process()

    def _read_on(self) -> None:
        if not self._waitingForTransport:
            self._networkProducer.resumeProducing()
        if not self._handlingRequest:
            self._wait(self.limits.frame_timeout)

    def _entered(self, request: HttpRequest) -> None:
        """A request was let in: its body may come, if it is not too long."""
        if max(request.length or 0, request.received) > request.body_max:
            self.refuse(request, too_large(request.body_max))
        elif self.server.held_bytes + (request.length or 0) > self.limits.http_bytes:
            self.refuse(request, LimitReached("http_bytes", self.limits.http_bytes))
        else:
            expects = request.requestHeaders.getRawHeaders(b"Expect")
            if expects and expects[0].lower() == b"100-continue" and self._version_is_1_1(request):
                self._send100Continue()

    def _version_is_1_1(self, request: HttpRequest) -> bool:
        return bool(request.clientproto == b"HTTP/1.1") and not self._handlingRequest

    def refuse(self, request: HttpRequest, error: Exception) -> None:
        """Answer a request with what it is refused for; its body is not kept.

        A short one is read first, so that the connection can go on.
        """
        if request.error is not None or request.is_over:
            return
        request.error = error
        request.drop_body()
        is_short = request.length is not None and request.length <= DROPPED_BYTES
        is_whole = self._handlingRequest or (request.head_is_here and request.length == 0)
        if is_whole or (is_short and not self._is_late(error)):
            return  # it is answered when it is here, which may be now
        self.persistent = False
        self._is_deaf = True
        self.server.refuse(request, error)

    def _is_late(self, error: Exception) -> bool:
        return isinstance(error, WebRefused) and error.status == 408

    def allContentReceived(self) -> None:
        """All of a request is here."""
        if not self._is_deaf:
            self._wait(None)
            super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """A request is answered: the next may come, when there is room for its answer.

        Whoever says thousands in a row and reads nothing would else fill memory with answers.
        """
        if self._is_lost:
            return
        if self._unread_since is not None and self.persistent:
            self._answered = request
            return
        self._has_begun = False
        if self.persistent:
            self._let_go()
            self._wait(self.limits.http_idle)
        super().requestDone(request)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line of a head that is too long."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse bytes that are no HTTP, and close."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self.persistent = False
        request = self.requests[-1] if self.requests else HttpRequest(self)
        if not self.requests:
            self.requests.append(request)
        request.clientproto = b"HTTP/1.1"
        request.error = WebRefused(400, "this is no request of HTTP/1.1, or its head is too long")
        request.drop_body()
        self.server.refuse(request, request.error)
