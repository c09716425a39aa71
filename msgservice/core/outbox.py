"""The sending state towards one receiver: what is open, in flight, stuck, settled. Sans-IO.

The one outbox of the house: a node has one for each receiver, a client one for its node. The
owner feeds it runs in rising order (`offer`), sends what `take_transfers` gives, and hands it the
answers (`receive_ack`, `receive_nack`, `receive_resume`); `take_settled` says what became final.

What is loaded and not final is *open*. An open run is ready (to be sent), in flight (on this
connection, unanswered), or behind: its lane is stuck at a message that was NACKed, the lane's
head, and nothing behind the head is sent before the head is settled (SEMANTICS 3). The cursor is
what lies below everything open. Runs, not messages, are the unit: a run answered whole, the
usual case, costs a few list operations.

What does not live here: where runs come from (a log, a file, memory), how frames travel, when
progress is durable.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import msgspec

from msgservice.core.backoff import again_delay
from msgservice.core.frames import Transfer
from msgservice.core.outbox_states import RunStates
from msgservice.core.ranges import RangeSet
from msgservice.core.runs import (
    FLIGHT,
    READY,
    WAITING,
    OpenRuns,
    Run,
    cut_run,
    shatter_run,
)
from msgservice.errors import NeverSent
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action, Status, message_sizes

ARRAY_HEADER = 5  # bytes of a msgpack array header, at most


class Outbox(RunStates):
    """See the module. Times are seconds of the owner's monotonic clock.

    `retry_delay(attempts)` gives the pause before a message is tried again. `max_attempts` 0
    means no end of patience (a producer towards its node).
    """

    def __init__(
        self,
        *,
        ordered: bool,
        cursor: int,
        window: tuple[int, int],
        retry_delay: Callable[[int], float],
        max_attempts: int = 0,
        behind_max: int = 10_000,
        behind_bytes_max: int = 16 * 1024 * 1024,
    ) -> None:
        super().__init__(ordered, cursor)
        self.window_messages, self.window_bytes = self._own_window = window
        self.max_attempts = max_attempts
        self.paused = False
        self.committed = cursor  # the owner's durable cursor: what `floor` says
        self.behind_max, self.behind_bytes_max = behind_max, behind_bytes_max
        self._retry_delay = retry_delay
        self._resumed = RangeSet()  # taken by the other side, not loaded yet
        self._tried: dict[int, tuple[int, float]] = {}  # of messages not loaded yet
        # of the connection
        self.connected = False
        self._sent = RangeSet()
        self._nacks = 0
        self._batch_max = 0
        self._heard = False  # something was settled on this connection
        self.probing = False

    # --- getters

    @property
    def wants(self) -> bool:
        """Whether more runs should be offered: the next window is not full yet."""
        return (
            self._ready_messages < self.window_messages
            and self._ready_bytes < self.window_bytes
            and self._behind + self._waiting < self.behind_max
            and self._behind_bytes + self._waiting_bytes < self.behind_bytes_max
            and len(self._above) < self.behind_max
        )

    def next_deadline(self) -> float | None:
        """When a retry is due, or None: also while it has no room, which only an answer makes."""
        retries = self._retries
        while retries and retries[0][2].state != WAITING:
            heapq.heappop(retries)
        if not retries or not self.connected or self.paused or not self._room(retries[0][2]):
            return None
        return retries[0][0]

    # --- verbs

    def restore(
        self, settled: Sequence[tuple[int, int]], tried: dict[int, tuple[int, float]]
    ) -> None:
        """Take over, after a restart, what is final above the cursor, and what was tried.

        `tried`: sequence -> (attempts, when the next is due).
        """
        for first, last in settled:
            self._above.add(first, last)
        self._tried.update(tried)
        self._trim_above()

    def offer(self, run: Run) -> None:
        """Load the next run; what of it is final already is left out. Runs rise."""
        first, last = run.first, run.last
        assert first > self.loaded_to, (first, self.loaded_to)
        self.loaded_to = last
        if self._above and self._above.overlaps(first, last):
            missing = self._above.missing(first, last)
            for low, high in missing:
                self._load(cut_run(run, low, high))
            self._trim_above()
        else:
            self._load(run)

    def offer_rest(self, run: Run) -> None:
        """Load what of a run lies above `loaded_to`, which stands inside it."""
        self.offer(cut_run(run, self.loaded_to + 1, run.last))

    def skip_to(self, position: int) -> None:
        """Nothing up to `position` is for this receiver, beyond what was offered."""
        if position > self.loaded_to:
            self.loaded_to = position
            if self._above:
                self._trim_above()

    def unload(self) -> None:
        """Forget what is open, for the owner to offer it again from the cursor on."""
        assert not self.connected
        for run in self._open:
            if run.attempts:
                self._tried[run.first] = (run.attempts, run.due)
        self.loaded_to = self.cursor
        self._open = OpenRuns()
        self._ready.clear()
        self._lanes.clear()
        self._retries.clear()
        self._ready_messages = self._ready_bytes = self._behind = self._behind_bytes = 0
        self._waiting = self._waiting_bytes = 0

    def _load(self, run: Run) -> None:
        first, last = run.first, run.last
        self._open.add(run)
        rest = self._place_tried(run) if self._tried else run
        if rest is not None:
            self._place(rest)
        if self._resumed:
            for low, high in self._resumed.within(first, last):
                self._settle_between(low, high, Status.ACKNOWLEDGED)
            self._resumed.remove_below(self.loaded_to + 1)

    def _place_tried(self, run: Run) -> Run | None:
        """Cut out the messages that were tried before, and place them; return what is left."""
        rest: Run | None = run
        for number in sorted(n for n in self._tried if run.first <= n <= run.last):
            assert rest is not None
            tried = rest
            if number > rest.first:
                tried = self._split(rest, number)
                self._place(rest)
            rest = self._split(tried, number + 1) if tried.count > 1 else None
            tried.attempts, tried.due = self._tried.pop(number)
            self._place(tried)
        return rest

    def _place(self, run: Run) -> None:
        """Give a loaded run its state."""
        stuck = self._lanes.get(run.lane) if self._lanes else None
        if stuck is not None:
            self._put_behind(stuck, run)
        elif run.attempts and not (self.ordered and self._has_older(run)):
            self._wait(run, run.due)
        else:
            self._make_ready(run)

    def _has_older(self, run: Run) -> bool:
        return any(r.lane == run.lane and r.first < run.first for r in self._open)

    # --- the connection

    def connect(self, window: tuple[int, int] | None, batch_max: int) -> None:
        """A connection stands and the other side's RESUME was taken: everything may be sent."""
        assert not self.connected
        own_messages, own_bytes = self._own_window
        self.window_messages = min(own_messages, window[0]) if window else own_messages
        self.window_bytes = min(own_bytes, window[1]) if window else own_bytes
        self._batch_max = batch_max
        self._nacks = 0
        self._sent = RangeSet()
        self._heard = False
        self.connected = True

    def disconnect(self, now: float) -> None:
        """The connection has gone: what was in flight is ready again, in rising order."""
        if not self.connected:
            return
        self.connected = False
        lost = [run for run in self._open if run.state == FLIGHT]
        if not lost:
            return
        heads = {id(lane.head) for lane in self._lanes.values()}
        was_alone = self.probing and len(lost) == 1 and lost[0].count == 1
        for run in lost:
            self._land(run)
            if id(run) in heads:
                self._wait(run, now)
        for run in lost:
            stuck = self._lanes.get(run.lane) if self._lanes else None
            if stuck is not None and run.first < stuck.head.first:
                self._wait(run, now)  # older than the head: the lane waits for it first
        if not self._heard:
            if was_alone:
                # The other side was given this one message alone and went away (SEMANTICS 14).
                self._failed(lost[0], now, 0, "connection lost while it was handled")
            self.probing = True
        self._refill_ready()

    def receive_resume(self, floor: int, ranges: Sequence[tuple[int, int]]) -> None:
        """The other side has taken all below `floor` and these: none of it is sent again.

        To be called before `connect`. What is not loaded yet is settled when it is offered.
        """
        self._resumed = RangeSet(ranges)
        self._resumed.add(1, floor - 1)
        self._resumed.remove_below(self.loaded_to + 1)
        if floor > 1:
            self._settle_between(0, floor - 1, Status.ACKNOWLEDGED)
        for first, last in ranges:
            self._settle_between(first, last, Status.ACKNOWLEDGED)
        self._refill_ready()

    def receive_ack(self, first: int, last: int) -> None:
        """The other side took these over. `NeverSent` if they were not sent on this connection."""
        if not self._sent.covers(first, last):
            raise NeverSent(first, last)
        self._heard = True
        self.probing = False
        self._settle_between(first, last, Status.ACKNOWLEDGED)

    def receive_acks(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Some ranges of one frame. A run that many of them cut is decoded once, not for each."""
        if len(ranges) > 1:
            for first, last in ranges:
                if not self._sent.covers(first, last):
                    raise NeverSent(first, last)
            self._cut_at(ranges)
        for first, last in ranges:
            self.receive_ack(first, last)

    def _cut_at(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Cut the runs in flight at the bounds of these ranges, each run in one go."""
        cuts: dict[int, tuple[Run, set[int]]] = {}
        for first, last in ranges:
            for at in (first, last + 1):
                for run in self._open.between(at - 1, at):
                    if run.first < at <= run.last and run.state == FLIGHT:
                        cuts.setdefault(run.first, (run, set()))[1].add(at)
        for run, places in cuts.values():
            if len(places) > 1:
                pieces = shatter_run(run, sorted(places))
                self.in_flight_bytes += sum(piece.size for piece in pieces) - run.size
                head = pieces[0]
                run.messages, run.size, run.count = head.messages, head.size, head.count
                for piece in pieces[1:]:
                    piece.state = FLIGHT
                    self._open.add(piece)

    def receive_nack(
        self, first: int, last: int, action: Action, delay: float, reason: str, now: float
    ) -> None:
        """The other side did not take these over; `delay` in seconds, 0: this side's backoff."""
        if not self._sent.covers(first, last):
            raise NeverSent(first, last)
        self._heard = True
        self.probing = False
        if action in (Action.DEAD, Action.REFUSED):
            self._settle_between(first, last, Status.DEAD, reason, action)
            return
        self._nacks += 1
        for run in self._open.between(first, last):
            if run.state != FLIGHT:
                continue
            head = run
            if head.first < first:
                head = self._split(head, first)  # what came before still waits for its ACK
            if head.last > last:
                self._split(head, last + 1)
            self._land(head)
            if action == Action.RETRY:
                self._failed(head, now, delay, reason)
            else:
                head.laters += 1
                self._wait(head, now + self._pause(delay, head.laters))

    def _pause(self, asked: float, times: int) -> float:
        return again_delay(asked, times) if asked else self._retry_delay(times)

    def _failed(self, run: Run, now: float, delay: float, reason: str) -> None:
        run.attempts += 1
        if self.max_attempts and run.attempts >= self.max_attempts:
            self._wait(run, now)  # takes its lane back: it was discarded from here on
            self._settle(run, Status.DEAD, reason, Action.RETRY)
        else:
            self._wait(run, now + self._pause(delay, run.attempts))

    # --- to the world

    def take_transfers(
        self,
        now: float,
        allow: Callable[[Run], int] | None = None,
        bytes_max: int = INTEGER_MAX,
    ) -> list[Transfer]:
        """The frames to send now, in order; they are in flight from here on.

        No more once `bytes_max` bytes are reached: the owner comes again when others had a turn.

        `allow` is asked before a run is sent, where given: how many of its messages may leave
        now, at least 0. The rest, and all that comes after, waits for the next call.
        """
        if not self.connected or self.paused:
            return []
        transfers: list[Transfer] = []
        retries = self._retries
        while retries and retries[0][0] <= now:
            run = retries[0][2]
            if run.state != WAITING or run.due != retries[0][0]:
                heapq.heappop(retries)
                continue
            if not self._room(run):
                return transfers
            if allow is not None and not self._allowed(run, allow):
                return transfers
            heapq.heappop(retries)
            if run.size > self._batch_max and run.count == 1:
                self._too_large(run)
            else:
                if run.count > 1 and (self.probing or run.size > self._batch_max):
                    self._split(run, run.first + 1)
                self._wait_no_more(run)
                self._send(run, transfers)
        ready = self._ready
        stop_at = self.in_flight_bytes + bytes_max
        while ready and self.in_flight_bytes < stop_at:
            run = ready[0]
            if run.state != READY:
                ready.popleft()
                continue
            if self.probing and run.count > 1:
                if self.in_flight_messages:
                    break
                self._split(run, run.first + 1)
            elif run.size > self._batch_max and not self._fit(run):
                continue
            if not self._room(run):
                break
            if allow is not None and not self._allowed(run, allow):
                break
            self._pop_ready()
            self._send(run, transfers)
        return transfers

    def _allowed(self, run: Run, allow: Callable[[Run], int]) -> bool:
        """Cut the run to what is allowed of it; False if nothing is."""
        count = allow(run)
        if 0 < count < run.count:
            self._split(run, run.first + count)
        return count > 0

    def _room(self, run: Run) -> bool:
        flying = self.in_flight_messages
        if not flying:
            return True
        return (
            not self.probing
            and flying + run.count <= self.window_messages
            and self.in_flight_bytes + run.size <= self.window_bytes
        )

    def _send(self, run: Run, transfers: list[Transfer]) -> None:
        run.state = FLIGHT
        self.in_flight_messages += run.count
        self.in_flight_bytes += run.size
        first = run.first
        after = run.after
        self._sent.add(after + 1, first + run.count - 1)
        messages = run.messages
        transfers.append(
            Transfer(
                first,
                run.subject,
                messages if type(messages) is msgspec.Raw else msgspec.Raw(messages),
                None if after == first - 1 else after,
                self.committed + 1,
                self._nacks,
                run.to,
                None,
                None,
                run.flags,
                run.origin,
            )
        )

    def _fit(self, run: Run) -> bool:
        """Cut the first ready run to what the other side takes; False if nothing is left of it."""
        fitting, size = 0, ARRAY_HEADER
        for message_size in message_sizes(run.messages):
            size += message_size
            if size > self._batch_max:
                break
            fitting += 1
        if fitting == 0:
            if run.count > 1:
                self._split(run, run.first + 1)
            self._too_large(run)
            return False
        if fitting < run.count:
            self._split(run, run.first + fitting)
        return True

    def _too_large(self, run: Run) -> None:
        reason = f"message of {run.size} bytes, the receiver takes {self._batch_max}"
        self._settle(run, Status.DEAD, reason, Action.DEAD)
