"""A `RemoteStream`: streams of a server elsewhere, listened to and written from here.

Each listening of a queue has a connection of its own, since a header comes as a message and could
not be told from one on a shared connection; all that is written goes by one more, so that it keeps
its order. Each dials again by itself, and a queue is told when its connection was lost: what was
put until it is back is not kept for it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.arguments import check_flags, check_kind, check_methods, check_port, wrong
from msgservice.clock import monotonic_of, timed
from msgservice.core.backoff import Backoff
from msgservice.errors import Ambiguous, BadValue, LimitReached
from msgservice.faces.streams.content import JsonCodec, StreamCodec, check_codec
from msgservice.faces.streams.stream import Queue, check_queue
from msgservice.faces.streams.wire import (
    CLOSE,
    DELETE,
    HEADER,
    LISTEN,
    PUT,
    LineSplitter,
    check_key,
    command_of,
    decode,
    line_of,
)
from msgservice.stream_limits import StreamLimits
from msgservice.waiters import Waiters, followed

DELAY_MIN, DELAY_MAX = 0.25, 30.0  # seconds between attempts to dial, doubling
HEALTHY_SECONDS = 10.0
LOST = "lost"


class Closed:
    """The end of what a queue gets, put into it: `stream`, and why.

    `reason` is empty where the stream was closed or deleted. With `lost` the connection was, and
    messages may be missing; unless the `RemoteStream` does not reconnect, the header and what is
    put then follow. Other reasons are the server's, such as `slow`: nothing follows.
    """

    def __init__(self, stream: str, reason: str = "") -> None:
        self.stream, self.reason = stream, reason

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Closed) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.stream, self.reason))

    def __repr__(self) -> str:
        return f"Closed({self.stream!r}, {self.reason!r})"


class _LinkUser(Protocol):
    """The owner of a link."""

    def link_opened(self, link: _Link) -> None:
        """Go on: the link is connected."""

    def link_lines(self, lines: list[bytes]) -> None:
        """Take the lines that have come."""

    def link_writable(self) -> None:
        """Write on: the link has room again."""

    def link_lost(self, reason: str) -> None:
        """Take note that the link has ended."""


@implementer(IPushProducer)
class _Link(TwistedProtocol):
    """One connection to the server."""

    _log = Logger()

    def __init__(self, user: _LinkUser, line_bytes: int) -> None:
        self._user = user
        self._splitter = LineSplitter(line_bytes)
        self.is_full = False
        self._is_over = False

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]  # it is connected
        self._user.link_opened(self)

    def dataReceived(self, data: bytes) -> None:
        if self._is_over:
            return
        self._user.link_lines(self._splitter.feed(data))
        if self._splitter.is_too_long:
            self._is_over = True
            self._log.warn("a server of streams is left: a line is longer than line_bytes")
            self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_over = True
        self._user.link_lost(reason.getErrorMessage())

    def write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]  # it is connected

    def end(self) -> None:
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def abort(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected

    # --- IPushProducer

    def pauseProducing(self) -> None:
        self.is_full = True

    def resumeProducing(self) -> None:
        self.is_full = False
        self._user.link_writable()

    def stopProducing(self) -> None:
        self.is_full = True


class _LinkFactory(Factory):
    noisy = False

    def __init__(self, user: _LinkUser, line_bytes: int) -> None:
        self._user, self._line_bytes = user, line_bytes

    def buildProtocol(self, addr: Any) -> _Link:
        return _Link(self._user, self._line_bytes)


class RemoteStream:
    """The streams of a server, from elsewhere; not started, not stopped: it dials when it has to.

    Args:
        host, port: of the server. `endpoint`, if there is one, counts instead.
        reactor: clock and sockets; the global reactor by default.
        codec: as that of the server.
        reconnect: dial again where a connection is lost, and listen again.
        rng: floats from 0 to 1, for the pauses between attempts.
    """

    _log = Logger()

    def __init__(
        self,
        host: str,
        port: int,
        reactor: Any = None,
        *,
        endpoint: IStreamClientEndpoint | None = None,
        codec: StreamCodec | None = None,
        limits: StreamLimits | None = None,
        reconnect: bool = True,
        rng: Callable[[], float] = random.random,
    ) -> None:
        if endpoint is None:
            check_kind(str, "the name or address of a host is needed", host=host)
            check_port(port)
        elif not IStreamClientEndpoint.providedBy(endpoint):
            raise wrong("endpoint", endpoint, "an endpoint of Twisted's is needed")
        check_flags(reconnect=reconnect)
        check_methods("a function is needed", ("__call__",), rng=rng)
        if reactor is None:
            from twisted.internet import reactor  # noqa: TID251  # the original takes none
        self._reactor: Any = timed(reactor)
        self._now = monotonic_of(reactor)
        self._endpoint: Any = endpoint or HostnameEndpoint(self._reactor, host, port)
        self.codec: StreamCodec = check_codec(JsonCodec if codec is None else codec)
        self.limits = StreamLimits() if limits is None else limits
        check_kind(StreamLimits, "StreamLimits are needed", limits=self.limits)
        self._reconnects = reconnect
        self._rng = rng
        self._listening: list[_Listening] = []
        self._writing: _Writing | None = None
        self._is_closed = False
        self._closing: Deferred[None] | None = None
        self._ending: dict[Deferred[None], _Link | None] = {}  # connections that are to end

    def service(self, user: _LinkUser) -> tuple[ClientService, Backoff]:
        """Return what dials for one connection, and its memory of failures."""
        backoff = Backoff(
            delay_min=DELAY_MIN, delay_max=DELAY_MAX, healthy=HEALTHY_SECONDS, rng=self._rng
        )
        service = ClientService(
            self._endpoint,
            _LinkFactory(user, self.limits.line_bytes),
            retryPolicy=backoff.policy(self._now),
            clock=self._reactor,
        )
        return service, backoff

    # --- listening

    def listen(self, stream: str, queue: Queue, *, resume: bool = False) -> None:
        """Give a queue the header of a stream, if there is one, and all that is put from then on.

        It gets a `Closed` at the end, and where its connection was lost. Twice the same queue gets
        each message twice. `resume`: of a server with a node, go on after a lost connection behind
        the last message that came, without a word; where that is not kept any more, the end has
        the reason `gap`. Raises `BadValue` for a key that cannot travel, `TypeError` for what is
        none, and for what is no queue.
        """
        self._check_open()
        stream = check_key(stream, self.limits.key_bytes)
        check_queue(queue)
        check_flags(resume=resume)
        self._listening.append(_Listening(self, stream, queue, resumes=resume))

    def hangup(self, stream: str | None, queue: Queue) -> None:
        """End one listening of a queue, or with None all of its; one that is unknown is ignored."""
        if stream is not None:
            check_kind(str, "text or None is needed", stream=stream)
        found = [
            one
            for one in self._listening
            if one.queue is queue and (stream is None or one.stream == stream)
        ]
        for one in found if stream is None else found[:1]:
            one.end()

    def ended(self, listening: _Listening) -> None:
        """Forget a listening that has ended."""
        if listening in self._listening:
            self._listening.remove(listening)

    @property
    def reconnects(self) -> bool:
        """Whether it dials again."""
        return self._reconnects and not self._is_closed

    def now(self) -> float:
        """Return seconds of a clock that never jumps."""
        return self._now()

    # --- writing

    def put(self, stream: str, message: Any) -> None:
        """Put a message. It is on its way then, and no more is known of it.

        Raises `BadValue` where it cannot be encoded, and `LimitReached` where too much waits.
        """
        self._write(PUT, stream, message=message)

    def header(self, stream: str, message: Any, *, ttl: float | None = None) -> None:
        """Set the header, as `remote[stream] = message` does; None clears it. Raises as `put`.

        `ttl`: seconds until it is none any more, unless it was set anew.
        """
        more = {} if ttl is None else {"ttl": ttl}
        self._write(HEADER, stream, message=message, **more)

    def __setitem__(self, stream: str, message: Any) -> None:
        """Set the header, as `header` does."""
        self.header(stream, message)

    def delete(self, stream: str) -> None:
        """End a stream and forget its header, as `del remote[stream]` does. Raises as `put`."""
        self._write(DELETE, stream)

    __delitem__ = delete

    def close(self, stream: str | None = None) -> Deferred[None]:
        """End a stream whose header stays, and raise as `put`; or close this `RemoteStream`.

        Without a stream it fires when all that was put has been written, and every connection has
        ended; to be asked again is fine. It fails with `Ambiguous` where writing took more than
        `write_seconds`; a connection that takes longer to end is cut off.
        """
        if stream is not None:
            self._write(CLOSE, stream)
            return succeed(None)
        if self._closing is None:
            self._is_closed = True
            self._closing = Deferred.fromCoroutine(self._close())
        return followed(self._closing)

    async def _close(self) -> None:
        for one in tuple(self._listening):
            one.end()
        try:
            if self._writing is not None:
                await self._writing.end()
        finally:
            timer = self._reactor.callLater(self.limits.write_seconds, self._cut_off)
            await gatherResults(list(self._ending))
            if timer.active():
                timer.cancel()

    def _cut_off(self) -> None:
        for link in tuple(self._ending.values()):
            if link is not None:
                link.abort()

    def end(self, service: ClientService, link: _Link | None) -> None:
        """End a connection, and dial it no more."""
        if link is not None:
            link.end()  # the service alone would not end one over TLS, which has a producer
        ended: Deferred[None] = service.stopService()
        self._ending[ended] = link
        ended.addErrback(lambda f: self._log.failure("end of a connection", f))
        ended.addBoth(lambda _: self._ending.pop(ended, None))

    def _write(self, action: str, stream: str, **more: Any) -> None:
        self._check_open()
        stream = check_key(stream, self.limits.key_bytes)
        line = line_of(self.codec, action, stream, **more)
        command_of({"action": action, "stream": stream, **more})  # or the server would ignore it
        if len(line) - 1 > self.limits.line_bytes:  # the server would end the connection for it
            raise LimitReached("line_bytes", self.limits.line_bytes)
        if self._writing is None:
            self._writing = _Writing(self, self._reactor)
        self._writing.write(line)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BadValue("RemoteStream", "is closed")


class _Listening:
    """One queue that listens to one stream, by its connection."""

    _log = Logger()

    def __init__(self, remote: RemoteStream, stream: str, queue: Queue, *, resumes: bool) -> None:
        self._remote = remote
        self.stream, self.queue = stream, queue
        self._resumes = resumes
        self._token: str | None = None  # of the last message that came
        self._is_over = False
        self._link: _Link | None = None
        self._service, self._backoff = remote.service(self)
        self._service.startService()

    def end(self) -> None:
        """Listen no more."""
        if not self._is_over:
            self._is_over = True
            self._remote.ended(self)
            self._remote.end(self._service, self._link)

    def link_opened(self, link: _Link) -> None:
        """See `_LinkUser`."""
        self._backoff.established(self._remote.now())
        self._link = link
        more = {"from": self._token} if self._resumes else {}
        link.write(line_of(self._remote.codec, LISTEN, self.stream, **more))

    def link_lines(self, lines: list[bytes]) -> None:
        """See `_LinkUser`."""
        for line in lines:
            if self._is_over:
                return
            try:
                value = decode(self._remote.codec, line)
                command = command_of(value)
            except BadValue as error:
                self._log.warn("a line of a server of streams is ignored: {why}", why=str(error))
                continue
            if command.action == PUT:
                token = value.get("token")
                if isinstance(token, str):
                    self._token = token
                self._give(command.message)
            elif command.action == CLOSE:
                reason = value.get("reason", "")
                self.end()
                self._give(Closed(self.stream, reason if isinstance(reason, str) else ""))

    def link_writable(self) -> None:
        """See `_LinkUser`."""

    def link_lost(self, reason: str) -> None:
        """See `_LinkUser`."""
        self._link = None
        if self._is_over:
            return
        if not self._remote.reconnects:
            self.end()
        if self._token is None or self._is_over:
            self._give(Closed(self.stream, LOST))

    def _give(self, message: Any) -> None:
        try:
            self.queue.put(message)
        except Exception:
            self._log.failure("a listener of {key!r} failed", key=self.stream)


class _Writing:
    """The connection by which everything is written, in its order."""

    _log = Logger()

    def __init__(self, remote: RemoteStream, reactor: Any) -> None:
        self._remote = remote
        self._reactor = reactor
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._link: _Link | None = None
        self._ending: Waiters[None] | None = None
        self._timer: IDelayedCall | None = None
        self._service, self._backoff = remote.service(self)
        self._service.startService()

    def write(self, line: bytes) -> None:
        """Write a line, or keep it until there is room. Raises `LimitReached`."""
        limit = self._remote.limits.unsent_bytes
        if self._bytes and self._bytes + len(line) > limit:
            raise LimitReached("unsent_bytes", limit)
        self._lines.append(line)
        self._bytes += len(line)
        self._go_on()

    def end(self) -> Deferred[None]:
        """End when all is written; fires then."""
        if self._ending is None:
            self._ending = Waiters()
            waiter = self._ending.wait()
            self._timer = self._reactor.callLater(
                self._remote.limits.write_seconds, self._took_too_long
            )
            self._go_on()
            return waiter
        return self._ending.wait()

    def _go_on(self) -> None:
        link = self._link
        if link is None:
            if self._ending is not None and not self._lines:
                self._ended()
            return
        while self._lines and not link.is_full:
            line = self._lines.popleft()
            self._bytes -= len(line)
            link.write(line)
        if self._ending is not None and not self._lines:
            link.end()

    def _took_too_long(self) -> None:
        self._timer = None
        self._lines.clear()
        link = self._link
        self._ended(Ambiguous("a RemoteStream was closed before all that it had put was written"))
        if link is not None:
            link.abort()

    def _ended(self, error: Exception | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ending, self._ending = self._ending, None
        assert ending is not None
        self._remote.end(self._service, self._link)
        if error is None:
            ending.fire(None)
        else:
            ending.fail(error)

    def link_opened(self, link: _Link) -> None:
        """See `_LinkUser`."""
        self._backoff.established(self._remote.now())
        self._link = link
        self._go_on()

    def link_lines(self, lines: list[bytes]) -> None:
        """See `_LinkUser`: nothing is told here but that a line is never taken."""
        for line in lines:
            try:
                value = decode(self._remote.codec, line)
                command = command_of(value)
            except BadValue:
                continue
            if command.action == CLOSE:
                self._log.warn(
                    "what was put into {key!r} is not taken, nor is what was written behind it:"
                    " {why}",
                    key=command.stream,
                    why=str(value.get("reason", "")),
                )

    def link_writable(self) -> None:
        """See `_LinkUser`."""
        self._go_on()

    def link_lost(self, reason: str) -> None:
        """See `_LinkUser`."""
        self._link = None
        self._go_on()
