"""Requests of a client: sent once, answered or not, never stored (SEMANTICS 30, DELIVERY 57).

Those of one turn on one subject leave in one frame. A request that waits for a connection is sent
when there is one; one that was sent on a connection that was lost fails as `Ambiguous`, because it
may have been handled. Late answers are dropped.
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
from msgservice.core.frames import CALLS_MAX, Reply, Request
from msgservice.core.reasons import one_line
from msgservice.errors import (
    ERROR_HEADER,
    Ambiguous,
    LimitReached,
    MessageTooLarge,
    MsgServiceError,
    RequestFailed,
    RequestTimeout,
    code_said,
    request_failed,
)
from msgservice.message import ARRAY_HEADER_MAX, WireMessage, decode_message, encode_mixed

REASON_MAX = 4096  # characters of what the other side says
DUES_SPARE = 64  # deadlines of requests that have gone, beside one for each pending one
ID_MAX = 2**52  # then they begin anew; no request is that old


class _Call(Deferred[Any]):
    """A request, and the Deferred of its answer in one."""

    def __init__(
        self,
        of: Requests,
        subject: str,
        item: bytes | Raw,
        size: int,
        timeout: float,
        due: float,
    ) -> None:
        Deferred.__init__(self, of.cancelled)
        self.subject, self.item, self.size = subject, item, size
        self.timeout, self.due = timeout, due
        self.number = 0  # 0: it was not sent
        self.is_over = False


class _Group:
    """Calls of one turn on one subject, with one timeout, that leave together."""

    __slots__ = ("calls", "size")

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.size = ARRAY_HEADER_MAX


class Requests:
    """Pending requests of a client: `pending_max` at most, and `bytes_max` bytes of them."""

    def __init__(
        self, *, clock: IReactorTime, now: Callable[[], float], pending_max: int, bytes_max: int
    ) -> None:
        self._clock, self._now = clock, now
        self._pending_max, self._bytes_max = pending_max, bytes_max
        self._pending: dict[_Call, None] = {}
        self._sent: dict[int, _Call] = {}
        self._bytes = 0  # of their messages
        self._dues: list[tuple[float, int, _Call]] = []  # of calls that are pending or were
        self._made = 0
        self._id = 0
        self._growing: dict[tuple[str, int], _Group] = {}  # of this turn
        self._parked: dict[_Call, None] = {}  # that wait for a connection
        self._connection: Connection | None = None
        self._size_max = self._calls_max = 0  # of one frame
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._flushing: IDelayedCall | None = None

    def __len__(self) -> int:
        """The number of pending requests."""
        return len(self._pending)

    # --- verbs

    def call(self, subject: str, item: bytes | Raw, size: int, timeout: float) -> Deferred[Any]:
        """Send a request: a body or an encoded message, `size` bytes of a run's, at the end of the
        turn; `timeout` in seconds.
        """
        if len(self._pending) >= self._pending_max:
            return fail(LimitReached("requests", self._pending_max))
        if self._pending and self._bytes + size > self._bytes_max:
            return fail(LimitReached("bytes of requests", self._bytes_max))
        due = self._now() + timeout
        call = _Call(self, subject, item, size, timeout, due)
        self._pending[call] = None
        self._bytes += size
        self._made += 1
        heapq.heappush(self._dues, (due, self._made, call))
        if len(self._dues) > 2 * len(self._pending) + DUES_SPARE:
            self._dues = [each for each in self._dues if not each[2].is_over]
            heapq.heapify(self._dues)
        if self._timer is None or due < self._timer_due:
            self._rearm()
        self._gather(call)
        return call

    def close(self, error: MsgServiceError) -> None:
        """Fail all pending requests."""
        self._connection = None
        self._fail(list(self._pending), lambda call: error)
        self._growing = {}
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None

    # --- from the world

    def opened(self, connection: Connection, size_max: int) -> None:
        """A session is open: requests that waited for it are sent.

        `size_max`: bytes of the messages of one frame. Calls in one are as many as the node
        answers at once, at most.
        """
        hello = connection.session.peer_hello
        said = None if hello is None else hello.options.requests
        self._calls_max = min(said or CALLS_MAX, CALLS_MAX)
        self._size_max = size_max
        self._connection = connection
        parked, self._parked = self._parked, {}
        for call in parked:
            self._gather(call)

    def lost(self) -> None:
        """The session has gone, and with it the answers."""
        self._connection = None
        self._fail(
            list(self._sent.values()),
            lambda call: Ambiguous(f"connection lost; {call.subject!r} may have been handled"),
        )

    def replied(self, reply: Reply) -> None:
        """Answers. Raises `MalformedFrame` for what is no message."""
        sent = self._sent
        for number, ok, raw in reply.replies:
            call = sent.get(number)
            if call is None:
                continue  # late: it was given up, and what it says is not looked at
            message = decode_message(raw)
            self._over(call)
            if ok:
                _answer(call, message)
            else:
                call.errback(_error_of(call, message))

    def cancelled(self, call: Deferred[Any]) -> None:
        """Nobody waits for a request any more. One that was not sent is not sent."""
        assert isinstance(call, _Call)
        self._over(call)

    # --- inside

    def _gather(self, call: _Call) -> None:
        # Of those in one frame the node knows one timeout: within a hundredth of a second.
        key = (call.subject, int(call.due * 100))
        group = self._growing.get(key)
        if group is None:
            group = self._growing[key] = _Group()
        group.calls.append(call)
        group.size += call.size
        if self._flushing is None:
            self._flushing = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        groups, self._growing = self._growing, {}
        for group in groups.values():
            if self._connection is None:
                self._parked.update(dict.fromkeys(c for c in group.calls if not c.is_over))
            elif group.size <= self._size_max and len(group.calls) <= self._calls_max:
                self._send(group.calls)
            else:
                self._send_parts(group.calls)

    def _send_parts(self, calls: list[_Call]) -> None:
        part: list[_Call] = []
        size = ARRAY_HEADER_MAX
        for call in calls:
            if call.size + ARRAY_HEADER_MAX > self._size_max:
                self._fail([call], self._too_large)
                continue
            if part and (size + call.size > self._size_max or len(part) == self._calls_max):
                self._send(part)
                part, size = [], ARRAY_HEADER_MAX
            part.append(call)
            size += call.size
        self._send(part)

    def _send(self, calls: list[_Call]) -> None:
        calls = [call for call in calls if not call.is_over]
        connection = self._connection
        if not calls or connection is None:
            return
        if self._id + len(calls) > ID_MAX:
            self._id = 0
        first = self._id + 1
        for number, call in enumerate(calls, first):
            call.number = number
            self._sent[number] = call
        self._id += len(calls)
        left_ms = max(1, int((calls[0].due - self._now()) * 1000))
        messages = encode_mixed([call.item for call in calls])
        connection.send_now([Request(first, calls[0].subject, Raw(messages), left_ms)])

    def _fail(self, calls: list[_Call], error: Callable[[_Call], MsgServiceError]) -> None:
        for call in calls:
            if not call.is_over:  # else cancelled by one that was told before
                self._over(call)
                call.errback(error(call))

    def _too_large(self, call: _Call) -> MsgServiceError:
        return MessageTooLarge(call.size, self._size_max - ARRAY_HEADER_MAX)

    def _over(self, call: _Call) -> None:
        if call.is_over:
            return
        call.is_over = True
        self._pending.pop(call, None)
        self._sent.pop(call.number, None)
        self._parked.pop(call, None)
        self._bytes -= call.size
        if not self._pending and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._now()
        late = []
        while self._dues and (self._dues[0][0] <= now or self._dues[0][2].is_over):
            late.append(heapq.heappop(self._dues)[2])
        self._fail(late, lambda call: RequestTimeout(call.subject, call.timeout))
        self._rearm()

    def _rearm(self) -> None:
        dues = self._dues
        while dues and dues[0][2].is_over:
            heapq.heappop(dues)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if dues:
            self._timer_due = dues[0][0]
            delay = max(0.001, self._timer_due - self._now())
            self._timer = self._clock.callLater(delay, self._expire)


def _answer(call: _Call, message: WireMessage) -> None:
    try:
        content = decode_content(message.body, message.headers)
    except ValueError as error:
        call.errback(RequestFailed(f"{call.subject!r}: answer cannot be read: {error}"))
    else:
        call.callback(content)


def _error_of(call: _Call, message: WireMessage) -> MsgServiceError:
    """The error of a failed reply: a sentence, and a code in its headers."""
    text = one_line(message.body.decode("utf-8", "replace")[:REASON_MAX])
    code = code_said((message.headers or {}).get(ERROR_HEADER, ""))
    return request_failed(code, text, call.subject, call.timeout)
