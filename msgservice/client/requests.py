"""Requests of a client: sent once, answered or not, never stored (SEMANTICS 30, DELIVERY 57).

Those of one turn on one subject leave in one frame, or in two where many are made as others are
answered. A request that waits for a connection is sent
when there is one; one that was sent on a connection that was lost fails as `Ambiguous`, because it
may have been handled. One that was sent and that nobody waits for any more, cancelled or over its
time, is given up: those of a turn in one CANCEL, ahead of what the turn asks, to a node that takes
it. So neither side counts it any more. Late answers are dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Raw
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from msgservice.codecs import decode_content
from msgservice.connection import Connection
from msgservice.core.features import CANCEL
from msgservice.core.frames import CALLS_MAX, Reply, Request, cancels_of
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
DUES_SPARE = 64  # deadlines of groups that have gone, beside one for each that waits
CALLS_SPARE = 64  # cancelled calls that a group holds, beside one for each that waits
# Calls that are made while others are answered leave before the last of these is looked at, when
# they are so many, and half of all that wait: else all three processes would wait for each other.
EARLY_CALLS = 32
ID_MAX = 2**52  # then they begin anew; no request is that old


class _Call(Deferred[Any]):
    """A request, and the Deferred of its answer in one."""

    def __init__(
        self,
        cancelled: Callable[[Deferred[Any]], None],
        group: _Group,
        item: bytes | Raw,
        size: int,
    ) -> None:
        Deferred.__init__(self, cancelled)
        self.group, self.item, self.size = group, item, size
        self.number = 0  # 0: it was not sent
        self.is_over = False


class _Group:
    """Calls of one turn on one subject, with one timeout, that leave together.

    `calls`: those that were not sent, and cancelled ones among them. `sent`: the numbers of the
    others, as ranges. `left`: how many are not over. `due`: the first of them is; `until`: all are.
    """

    __slots__ = ("calls", "due", "left", "sent", "size", "subject", "timeout", "until")

    def __init__(self, subject: str, timeout: float, due: float) -> None:
        self.subject, self.timeout = subject, timeout
        self.due = self.until = due
        self.calls: list[_Call] = []
        self.sent: list[range] = []
        self.size = ARRAY_HEADER_MAX
        self.left = 0


class Requests:
    """Pending requests of a client: `pending_max` at most, and `bytes_max` bytes of them."""

    def __init__(
        self, *, clock: IReactorTime, now: Callable[[], float], pending_max: int, bytes_max: int
    ) -> None:
        self._clock, self._now = clock, now
        self._pending_max, self._bytes_max = pending_max, bytes_max
        self._pending = 0
        self._bytes = 0  # of their messages
        self._sent: dict[int, _Call] = {}
        self._dues: list[tuple[float, int, _Group]] = []  # of groups that wait or did
        self._groups = 0  # that wait
        self._made = 0
        self._gathered = 0  # of this turn
        self._id = 0
        self._growing: dict[tuple[str, float, int], _Group] = {}  # of this turn
        self._parked: dict[_Group, None] = {}  # that wait for a connection
        self._connection: Connection | None = None
        self._size_max = self._calls_max = 0  # of one frame
        self._takes_cancel = False  # the node does
        self._given_up: set[int] = set()  # numbers, of this turn
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._flushing: IDelayedCall | None = None
        self._cancelled = self.cancelled  # one method for all

    def __len__(self) -> int:
        """The number of pending requests."""
        return self._pending

    # --- verbs

    def call(self, subject: str, item: bytes | Raw, size: int, timeout: float) -> Deferred[Any]:
        """Send a request: a body or an encoded message, `size` bytes of a run's, at the end of the
        turn; `timeout` in seconds.
        """
        pending = self._pending
        if pending >= self._pending_max:
            return fail(LimitReached("requests", self._pending_max))
        if pending and self._bytes + size > self._bytes_max:
            return fail(LimitReached("bytes of requests", self._bytes_max))
        due = self._now() + timeout
        # Of those in one frame the node knows one timeout: within a hundredth of a second.
        key = (subject, timeout, int(due * 100))
        group = self._growing.get(key)
        if group is None:
            group = self._growing[key] = self._begin(subject, timeout, due)
        call = _Call(self._cancelled, group, item, size)
        group.calls.append(call)
        self._gathered += 1
        group.size += size
        group.left += 1
        group.until = due
        self._pending = pending + 1
        self._bytes += size
        return call

    def close(self, error: MsgServiceError) -> None:
        """Fail all pending requests."""
        self._connection = None
        self._given_up.clear()
        waiting = [*self._sent.values()]
        for group in (*self._parked, *self._growing.values()):
            waiting += group.calls
        self._growing = {}
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._fail(waiting, lambda call: error)

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
        self._takes_cancel = CANCEL in connection.session.peer_features
        self._connection = connection
        if self._parked:
            self._flush_soon()

    def lost(self) -> None:
        """The session has gone, and with it the answers."""
        self._connection = None
        self._given_up.clear()
        self._fail(
            list(self._sent.values()),
            lambda call: Ambiguous(
                f"connection lost; {call.group.subject!r} may have been handled"
            ),
        )

    def replied(self, reply: Reply) -> None:
        """Answers. Raises `MalformedFrame` for what is no message."""
        sent = self._sent
        for number, ok, raw in reply.replies:
            call = sent.get(number)
            if call is None:
                continue  # late: it was given up, and what it says is not looked at
            message = decode_message(raw)
            if self._gathered >= EARLY_CALLS and 2 * self._gathered >= self._pending:
                self._flush_early()
                if call.is_over:
                    continue  # by one that was told that it is too large
            self._over(call)
            if not ok:
                call.errback(_error_of(call, message))
            elif message.headers is None:
                call.callback(message.body)
            else:
                _answer(call, message)

    def cancelled(self, call: Deferred[Any]) -> None:
        """Nobody waits for a request any more. One that was not sent is not sent."""
        assert isinstance(call, _Call)
        self._give_up(call)
        self._over(call)
        group = call.group
        if not call.number and len(group.calls) > 2 * group.left + CALLS_SPARE:
            group.calls = [each for each in group.calls if not each.is_over]
            group.size = ARRAY_HEADER_MAX + sum(each.size for each in group.calls)

    # --- inside

    def _give_up(self, call: _Call) -> None:
        """Have the node told that it is not waited for, if it was sent and is not over."""
        if self._takes_cancel and self._connection is not None and call.number in self._sent:
            self._given_up.add(call.number)
            self._flush_soon()

    def _begin(self, subject: str, timeout: float, due: float) -> _Group:
        group = _Group(subject, timeout, due)
        self._groups += 1
        self._wait(group)
        if len(self._dues) > 2 * self._groups + DUES_SPARE:
            self._dues = [each for each in self._dues if each[2].left or each[2] is group]
            heapq.heapify(self._dues)
        if self._timer is None or due < self._timer_due:
            self._rearm(group)
        self._flush_soon()
        return group

    def _wait(self, group: _Group) -> None:
        self._made += 1
        heapq.heappush(self._dues, (group.until, self._made, group))

    def _flush_soon(self) -> None:
        if self._flushing is None:
            self._flushing = self._clock.callLater(0, self._turn_ended)

    def _flush_early(self) -> None:
        self._flush()
        if self._connection is not None:
            self._connection.push()

    def _turn_ended(self) -> None:
        self._flushing = None
        self._flush()

    def _flush(self) -> None:
        self._gathered = 0
        if self._given_up and self._connection is not None:
            given_up, self._given_up = self._given_up, set()
            self._connection.send_now(cancels_of(given_up))
        growing, self._growing = self._growing, {}
        self._parked.update(dict.fromkeys([one for one in growing.values() if one.left]))
        for group in [*self._parked]:
            if self._connection is None:  # it may go while some are told what they fail with
                return
            self._leave(group)

    def _leave(self, group: _Group) -> None:
        calls = [call for call in group.calls if not (call.number or call.is_over)]
        if group.size <= self._size_max and len(calls) <= self._calls_max:
            self._send(group, calls)
        else:
            self._send_parts(group, calls)
        group.calls = [call for call in calls if not (call.number or call.is_over)]
        if not group.calls:
            self._parked.pop(group, None)

    def _send_parts(self, group: _Group, calls: list[_Call]) -> None:
        part: list[_Call] = []
        size = ARRAY_HEADER_MAX
        for call in calls:
            if call.size + ARRAY_HEADER_MAX > self._size_max:
                self._fail([call], self._too_large)
                continue
            if part and (size + call.size > self._size_max or len(part) == self._calls_max):
                self._send(group, [each for each in part if not each.is_over])
                part, size = [], ARRAY_HEADER_MAX
            part.append(call)
            size += call.size
        self._send(group, [each for each in part if not each.is_over])

    def _send(self, group: _Group, calls: list[_Call]) -> None:
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
        group.sent.append(range(first, first + len(calls)))
        left_ms = max(1, int((group.due - self._now()) * 1000))
        messages = encode_mixed([call.item for call in calls])
        connection.send_now([Request(first, group.subject, Raw(messages), left_ms)])

    def _fail(self, calls: Sequence[_Call], error: Callable[[_Call], MsgServiceError]) -> None:
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
        self._bytes -= call.size
        self._sent.pop(call.number, None)
        group = call.group
        group.left -= 1
        if not group.left:
            self._groups -= 1
            self._parked.pop(group, None)
        self._pending -= 1
        if not self._pending and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        now = self._now()
        late: list[_Call] = []
        while self._dues and (self._dues[0][0] <= now or not self._dues[0][2].left):
            group = heapq.heappop(self._dues)[2]
            if group.until > now and group.left:
                self._wait(group)  # it has grown since
                continue
            for numbers in group.sent:
                late += [self._sent[number] for number in numbers if number in self._sent]
            late += group.calls
        for call in late:
            self._give_up(call)
        self._fail(late, lambda call: RequestTimeout(call.group.subject, call.group.timeout))
        self._rearm()

    def _rearm(self, new: _Group | None = None) -> None:
        dues = self._dues
        while dues and not dues[0][2].left and dues[0][2] is not new:
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
        call.errback(RequestFailed(f"{call.group.subject!r}: answer cannot be read: {error}"))
    else:
        call.callback(content)


def _error_of(call: _Call, message: WireMessage) -> MsgServiceError:
    """The error of a failed reply: a sentence, and a code in its headers."""
    text = one_line(message.body.decode("utf-8", "replace")[:REASON_MAX])
    code = code_said((message.headers or {}).get(ERROR_HEADER, ""))
    return request_failed(code, text, call.group.subject, call.group.timeout)
