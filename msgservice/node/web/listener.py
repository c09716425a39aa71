"""`Web`: the web listener of a node, which answers each request by what is at its path.

Before a body is read: is it asked by a name of ours, and by no page of another site? What is at the
path? Who asks? (`access`). What raises is said as a problem document (`problems`). What is where is
the business of who adds it to `paths`; connections and their bounds that of `transport.http`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString

from msgservice.clock import Time
from msgservice.errors import LogUnavailable
from msgservice.limits import Limits
from msgservice.node.gate import Pass
from msgservice.node.web.access import Access, Visitor
from msgservice.node.web.answers import Answer, Ask
from msgservice.node.web.paths import NotThisMethod, PathAt, Paths
from msgservice.node.web.problems import answer_of, status_of
from msgservice.transport.http.browsers import check_host, check_media_type, check_site
from msgservice.transport.http.channel import HttpChannel, HttpRequest
from msgservice.waiters import Waiters

# Of each answer, unless it says another of the same name.
POLICY = (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'")
SAFE = (
    b"X-Content-Type-Options: nosniff\r\n"
    b"Referrer-Policy: no-referrer\r\n"
    b"Cross-Origin-Resource-Policy: same-origin\r\n"
    b"Cache-Control: no-store\r\n"
)
WRITES = ("POST", "PUT", "PATCH")


class _Asked:
    """A request that was let in: what is at its path, and the ask that is handed to it."""

    __slots__ = ("ask", "at", "given")

    def __init__(self, at: PathAt, ask: Ask, given: Pass | None) -> None:
        self.at, self.ask, self.given = at, ask, given


class Web:
    """The web listener of one node, at all of its addresses. `hosts`: further names of ours."""

    _logger = Logger()

    def __init__(
        self, *, access: Access, time: Time, limits: Limits, hosts: Collection[str] = ()
    ) -> None:
        self.paths = Paths()
        self.held_bytes = 0
        self._access = access
        self._time = time
        self._limits = limits
        self._hosts = frozenset(host.lower() for host in hosts)
        self._channels: dict[HttpChannel, None] = {}
        self._is_stopped = False
        self._gone: Waiters[None] = Waiters()
        self._ending: dict[Callable[[], None], None] = {}  # of answers without an end
        self._second = 0
        self._date = b""

    # --- its connections (`channel.Server`)

    def opened(self, channel: HttpChannel) -> None:
        """See `Server`."""
        self._channels[channel] = None
        if self._is_stopped:
            channel.abort()

    def gone(self, channel: HttpChannel) -> None:
        """See `Server`."""
        self._channels.pop(channel, None)
        if not self._channels:
            self._gone.fire(None)

    def end_what_holds_no_more(self) -> None:
        """End the connections of those that would not be let in again as they are."""
        self._access.forget_what_holds_no_more()
        for channel in list(self._channels):
            visitor: Visitor | None = channel.state
            if visitor is not None and not self._access.holds(visitor.given):
                channel.close()
                if channel.is_in_pieces:
                    channel.abort()

    def refuse_new(self) -> None:
        """Take nothing any more: connections end when what they have asked is answered."""
        self._is_stopped = True
        for end in list(self._ending):
            end()
        for channel in list(self._channels):
            channel.close()

    def until_gone(self) -> Deferred[None]:
        """Fire when no connection is left; those that are, are aborted after `close_timeout`."""
        gone = self._gone.wait()
        if not self._channels:
            self._gone.fire(None)
            return gone
        timer = self._time.clock.callLater(self._limits.close_timeout, self.abort)
        return gone.addBoth(lambda _: timer.cancel() if timer.active() else None)

    def abort(self) -> None:
        """End all connections at once."""
        for channel in list(self._channels):
            channel.abort()

    def ends_with(self, end: Callable[[], None]) -> Callable[[], None]:
        """Have `end` called when the listener ends; return what takes that back."""
        self._ending[end] = None
        return lambda: self._ending.pop(end, None) and None

    # --- requests (`channel.Server`)

    def begin(self, request: HttpRequest) -> Deferred[None] | None:
        """See `Server`."""
        if self._is_stopped:
            raise LogUnavailable("the node stops")
        channel, said = request.channel, request.requestHeaders.getRawHeaders
        host = check_host(said(b"Host"), channel.own_host, self._hosts)
        check_site(said(b"Origin"), said(b"Sec-Fetch-Site"), host, is_secure=channel.is_secure)
        at, parts = self.paths.find(request.method, request.uri.partition(b"?")[0])
        media_type = ""
        if at.takes:
            media_type = check_media_type(said(b"Content-Type"), at.takes)
            request.body_max = self._limits.http_body_bytes if at.body_max is None else at.body_max
        if at.is_open:
            request.state = _Asked(at, Ask(request, None, parts, media_type), None)
            return None
        given = self._access.enter(request)
        if isinstance(given, Pass):
            request.state = _Asked(at, Ask(request, given, parts, media_type), given)
            return None

        def entered(given: Pass) -> None:
            request.state = _Asked(at, Ask(request, given, parts, media_type), given)

        return given.addCallback(entered)

    def serve(self, request: HttpRequest) -> None:
        """See `Server`."""
        asked: _Asked = request.state
        try:
            if asked.given is not None:
                self._access.check(asked.given)
            answer = asked.at.answer(asked.ask)
            if isinstance(answer, Answer):
                self._say(request, answer)
                return
            coming: Deferred[Answer] = Deferred.fromCoroutine(
                cast("Coroutine[Any, Any, Answer]", answer)
            )
        except Exception as error:
            self.refuse(request, error)
            return
        done = coming.addCallback(lambda answer: self._say(request, answer, asked.at.streams))
        done.addErrback(self._failed, request)

    def _failed(self, failure: Failure, request: HttpRequest) -> None:
        error = failure.value
        assert isinstance(error, Exception)
        self.refuse(request, error, failure)

    def refuse(
        self, request: HttpRequest, error: Exception, failure: Failure | None = None
    ) -> None:
        """See `Server`."""
        if status_of(error) >= 500 and not hasattr(error, "refusal_code"):
            self._logger.failure(
                "{method} {path} failed",
                failure or Failure(error),
                method=request.method.decode("latin-1"),
                path=request.uri.partition(b"?")[0].decode("latin-1"),
            )
        if request.startedWriting:  # in pieces: what is wrong has no place in it any more
            request.channel.abort()
            return
        from_browser = request.requestHeaders.hasHeader(b"Sec-Fetch-Site")
        answer = answer_of(error, from_browser=from_browser)
        if isinstance(error, NotThisMethod):
            allow = (b"Allow", ", ".join(error.allowed).encode())
            answer = answer._replace(headers=(*answer.headers, allow))
        self._say(request, answer)

    def _say(self, request: HttpRequest, answer: Answer, is_said: bool = False) -> None:
        if is_said and request.startedWriting:
            return  # it was answered in pieces
        request.answer(answer.status, answer.body, self.head_of(answer))

    def head_of(self, answer: Answer) -> bytes:
        """Return the lines that an answer's head has besides its length."""
        lines = [b"Date: %b\r\nContent-Type: %b\r\n" % (self._now(), answer.content_type), SAFE]
        names = set()
        for name, value in answer.headers:
            if b"\r" in value or b"\n" in value:
                raise ValueError(f"header {name!r} of more than a line")
            names.add(name.lower())
            lines.append(b"%b: %b\r\n" % (name, value))
        if POLICY[0].lower() not in names:
            lines.append(b"%b: %b\r\n" % POLICY)
        return b"".join(lines)

    def _now(self) -> bytes:
        """Return the time as HTTP says it; made once a second."""
        second = self._time.wall() // 1000
        if second != self._second:
            self._second = second
            self._date = datetimeToString(second)
        return self._date
