"""Requests of a client: sent once, answered or not, never stored (SEMANTICS 30).

A request that waits for a connection is sent when there is one; one that was sent on a connection
that was lost fails as `Ambiguous`, because it may have been handled. Late answers are dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from msgspec import Raw
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from msgservice.codecs import decode_content
from msgservice.connection import Connection
from msgservice.core.frames import Reply, Request
from msgservice.core.reasons import one_line
from msgservice.errors import (
    CODE_DIGITS_MAX,
    ERROR_HEADER,
    Ambiguous,
    LimitReached,
    MsgServiceError,
    RequestFailed,
    RequestTimeout,
    request_failed,
)
from msgservice.message import WireMessage, decode_message

REASON_MAX = 4096  # characters of what the other side says
DUES_SPARE = 64  # deadlines of requests that have gone, beside one for each pending one
ID_MAX = 2**52  # then they begin anew; no request is that old


class _Call:
    __slots__ = ("deferred", "due", "messages", "sent", "subject", "timeout")

    def __init__(
        self, subject: str, messages: bytes, timeout: float, due: float, deferred: Deferred[Any]
    ) -> None:
        self.subject, self.messages = subject, messages
        self.timeout, self.due = timeout, due
        self.deferred = deferred
        self.sent = False


class Requests:
    """Pending requests of a client: `pending_max` at most, and `bytes_max` bytes of them."""

    def __init__(
        self, *, clock: IReactorTime, now: Callable[[], float], pending_max: int, bytes_max: int
    ) -> None:
        self._clock, self._now = clock, now
        self._pending_max, self._bytes_max = pending_max, bytes_max
        self._calls: dict[int, _Call] = {}
        self._bytes = 0  # of their messages
        self._dues: list[tuple[float, int]] = []  # of calls that are pending or were
        self._id = 0
        self._connection: Connection | None = None
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        """The number of pending requests."""
        return len(self._calls)

    # --- verbs

    def call(self, subject: str, messages: bytes, timeout: float) -> Deferred[Any]:
        """Send a request (a run of one message); `timeout` in seconds."""
        if len(self._calls) >= self._pending_max:
            return fail(LimitReached("requests", self._pending_max))
        if self._calls and self._bytes + len(messages) > self._bytes_max:
            return fail(LimitReached("bytes of requests", self._bytes_max))
        number = self._id = self._id % ID_MAX + 1
        due = self._now() + timeout
        deferred: Deferred[Any] = Deferred(lambda _: self._forget(number))
        self._calls[number] = _Call(subject, messages, timeout, due, deferred)
        self._bytes += len(messages)
        heapq.heappush(self._dues, (due, number))
        if len(self._dues) > 2 * len(self._calls) + DUES_SPARE:
            self._dues = [(call.due, of) for of, call in self._calls.items()]
            heapq.heapify(self._dues)
        self._send(number, self._calls[number])
        self._rearm()
        return deferred

    def close(self, error: MsgServiceError) -> None:
        """Fail all pending requests."""
        self._connection = None
        self._fail(list(self._calls), lambda call: error)
        self._rearm()

    # --- from the world

    def opened(self, connection: Connection) -> None:
        """A session is open: requests that waited for it are sent."""
        self._connection = connection
        for number, call in self._calls.items():
            self._send(number, call)

    def lost(self) -> None:
        """The session has gone, and with it the answers."""
        self._connection = None
        sent = [number for number, call in self._calls.items() if call.sent]
        self._fail(
            sent, lambda call: Ambiguous(f"connection lost; {call.subject!r} may have been handled")
        )

    def replied(self, reply: Reply) -> None:
        """Answers. Raises `MalformedFrame` for what is no message."""
        for number, ok, raw in reply.replies:
            if number not in self._calls:
                continue  # late: it was given up, and what it says is not looked at
            message = decode_message(raw)
            call = self._take(number)
            assert call is not None
            if ok:
                _answer(call, message)
            else:
                call.deferred.errback(_error_of(call, message))
        self._rearm()

    # --- inside

    def _send(self, number: int, call: _Call) -> None:
        if self._connection is not None and not call.sent:
            call.sent = True
            left_ms = max(1, int((call.due - self._now()) * 1000))
            self._connection.send(Request(number, call.subject, Raw(call.messages), left_ms))

    def _fail(self, numbers: list[int], error: Callable[[_Call], MsgServiceError]) -> None:
        for number in numbers:
            call = self._take(number)
            if call is not None:  # else cancelled by one that was told before
                call.deferred.errback(error(call))

    def _take(self, number: int) -> _Call | None:
        call = self._calls.pop(number, None)
        if call is not None:
            self._bytes -= len(call.messages)
        return call

    def _forget(self, number: int) -> None:
        self._take(number)
        self._rearm()

    def _expire(self) -> None:
        self._timer = None
        now = self._now()
        late = [number for number, call in self._calls.items() if call.due <= now]
        self._fail(late, lambda call: RequestTimeout(call.subject, call.timeout))
        self._rearm()

    def _rearm(self) -> None:
        dues = self._dues
        while dues and dues[0][1] not in self._calls:
            heapq.heappop(dues)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if dues:
            self._timer = self._clock.callLater(max(0.001, dues[0][0] - self._now()), self._expire)


def _answer(call: _Call, message: WireMessage) -> None:
    try:
        content = decode_content(message.body, message.headers)
    except ValueError as error:
        call.deferred.errback(RequestFailed(f"{call.subject!r}: answer cannot be read: {error}"))
    else:
        call.deferred.callback(content)


def _error_of(call: _Call, message: WireMessage) -> MsgServiceError:
    """The error of a failed reply: a sentence, and a code in its headers."""
    text = one_line(message.body.decode("utf-8", "replace")[:REASON_MAX])
    said = (message.headers or {}).get(ERROR_HEADER, "")
    code = int(said) if said.isascii() and said.isdecimal() and len(said) <= CODE_DIGITS_MAX else 0
    return request_failed(code, text, call.subject, call.timeout)
