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
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import msgspec

from msgservice.core.backoff import again_delay
from msgservice.core.frames import Transfer
from msgservice.core.outbox_states import RunStates
from msgservice.core.ranges import Range, RangeSet
from msgservice.core.runs import BEHIND, FLIGHT, READY, WAITING, Run, cut_run, parts_of, shatter_run
from msgservice.errors import NeverSent
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action, Status


class Outbox(RunStates):
    """The send queue towards one receiver. Times are seconds of the owner's monotonic clock.

    `retry_delay(attempts)` gives the pause before a message is tried again. `max_attempts` 0
    means no end of patience (a producer towards its node). A message larger than the other side
    takes waits for a connection that takes it, or is dead (`larger_is_dead`).
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
        larger_is_dead: bool = False,
    ) -> None:
        super().__init__(ordered, cursor)
        self.window_messages, self.window_bytes = self._own_window = window
        self.max_attempts = max_attempts
        self.paused = False
        self.committed = cursor  # the owner's durable cursor: what `floor` says
        self.behind_max, self.behind_bytes_max = behind_max, behind_bytes_max
        self.larger_is_dead = larger_is_dead
        self.larger: Run | None = None  # the last one that waits for a side that takes it
        self._retry_delay = retry_delay
        self._resumed = RangeSet()  # taken by the other side, not loaded yet
        self._tried: dict[Range, tuple[int, float]] = {}  # of messages not loaded yet
        self._tried_falling: list[Range] = []  # the keys of that
        # How many messages may be in flight, or None: the window alone says so.
        self._flight_max: int | None = None
        # of the connection
        self.connected = False
        self._sent = RangeSet()
        self._nacks = 0
        self.batch_max = 0  # bytes of one run that the other side takes

    # --- getters

    @property
    def wants(self) -> bool:
        """Whether more runs should be offered: the next window is not full yet.

        What lies between the cursor and what is final above it is loaded whatever waits: it is
        what all of that waits for.
        """
        ready = self._tallies[READY]
        if ready.runs and (
            ready.messages >= self.window_messages or ready.size >= self.window_bytes
        ):
            return False
        behind, waiting = self._tallies[BEHIND], self._tallies[WAITING]
        if (
            behind.runs + waiting.runs < self.behind_max
            and behind.size + waiting.size < self.behind_bytes_max
            and len(self._above) < self.behind_max
        ):
            return True
        last = self._above.last
        return last is not None and self.loaded_to < last and len(self._above) >= self.behind_max

    @property
    def probing(self) -> bool:
        """Whether one message at a time is sent, to find the one that the other side dies of."""
        return self._flight_max == 1

    def next_deadline(self) -> float | None:
        """When a retry is due, or None: also while it has no room, which only an answer makes."""
        if not self.connected or self.paused:
            return None
        run = self._next_retry()
        return None if run is None or not self._room(run) else run.due

    # --- verbs

    def restore(self, settled: Sequence[Range], tried: dict[Range, tuple[int, float]]) -> None:
        """Restore, after a restart, the settled ranges above the cursor, and attempts.

        `tried`: first and last sequence -> (attempts, when the next is due).
        """
        for first, last in settled:
            self._above.add(first, last)
        self._remember_tried(tried)
        self._trim_above()

    def _remember_tried(self, tried: dict[Range, tuple[int, float]]) -> None:
        self._tried.update(tried)
        self._tried_falling = sorted(self._tried, reverse=True)

    def offer(self, run: Run) -> None:
        """Load the next run, in rising order, without what is settled already."""
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
        """Load the part of a run above `loaded_to`, which stands inside it."""
        self.offer(cut_run(run, self.loaded_to + 1, run.last))

    def skip_to(self, position: int) -> None:
        """Positions up to `position` are for other receivers, beyond what was offered."""
        if position > self.loaded_to:
            self.loaded_to = position
            if self._above:
                self._trim_above()

    def unload(self) -> None:
        """Unload the open runs; the owner offers them again from the cursor on."""
        assert not self.connected
        self._remember_tried(
            {
                (run.first, run.last): (run.attempts, run.due if run.due < math.inf else 0.0)
                for run in self._open
                if run.attempts
            }
        )
        self.loaded_to = self.cursor
        self._forget_open()

    def _load(self, run: Run) -> None:
        first, last = run.first, run.last
        for piece in self._cut_tried(run) if self._tried_falling else (run,):
            # Each is placed before the next is open: a lane that gets stuck takes what is there.
            self._open.add(piece)
            self._place(piece)
        resumed = self._resumed
        if resumed:
            taken = resumed.within(first, last)
            if len(taken) > 1:
                self._cut_at(taken)
            for low, high in taken:
                self._settle_between(low, high, Status.ACKNOWLEDGED)
            if not resumed.overlaps(last + 1, INTEGER_MAX):
                self._resumed = RangeSet()

    def _cut_tried(self, run: Run) -> list[Run]:
        """Cut out the messages that were tried before, and tell them so."""
        falling, first, last = self._tried_falling, run.first, run.last
        found: list[tuple[int, int, tuple[int, float]]] = []
        behind: dict[Range, tuple[int, float]] = {}
        while falling and falling[-1][0] <= last:
            low, high = key = falling.pop()
            tried = self._tried.pop(key)
            if high > last:  # this run is a part of what was tried: the rest was final, or follows
                behind[last + 1, high] = tried
            if high >= first:  # else it is settled, or gone
                found.append((max(low, first), min(high, last), tried))
        for key, tried in behind.items():
            if key not in self._tried:
                self._tried[key] = tried
                falling.append(key)
        bounds = {at for low, high, _ in found for at in (low, high + 1) if first < at <= last}
        places = sorted(bounds)
        pieces = [run, *(shatter_run(run, places) if places else ())]
        firsts = [first, *places]
        for low, high, tried in found:
            for piece in pieces[bisect_left(firsts, low) : bisect_right(firsts, high)]:
                piece.attempts, piece.due = tried
        return pieces

    def _place(self, run: Run) -> None:
        """Give a loaded run its state."""
        stuck = self._lanes.get(run.lane) if self._lanes else None
        if stuck is not None:
            self._put_behind(stuck, run)
        elif not run.attempts:
            self._make_ready(run)
        elif not self.ordered:
            self._begin_waiting(run, run.due)
        else:
            self._make_ready(run)
            if self._front(run.lane).lowest() is run:  # else what is older goes first
                self._wait(run, run.due)

    # --- the connection

    def connect(self, window: tuple[int, int] | None, batch_max: int) -> None:
        """A connection stands and the other side's RESUME was taken: everything may be sent."""
        assert not self.connected
        own_messages, own_bytes = self._own_window
        self.window_messages = min(own_messages, window[0]) if window else own_messages
        self.window_bytes = min(own_bytes, window[1]) if window else own_bytes
        self.batch_max = batch_max
        self._nacks = 0
        self._sent = RangeSet()
        self._proved = False
        self.connected = True
        self.larger = None
        self._let_go()

    def disconnect(self, now: float, *, lost: bool = True) -> None:
        """The connection has gone: what was in flight is ready again, in rising order.

        Where it was lost, the next flight is half as large, until all of this one was answered: so
        a message that the other side dies of is alone after a few of these, and then it is what
        has failed. Where a side left on purpose (not `lost`), that says nothing of any message.
        """
        if not self.connected:
            return
        self.connected = False
        messages = self._flight.messages
        if not messages:
            return
        unanswered = [run for run in self._open if run.state == FLIGHT]
        was_alone = self._flight_max == 1
        if lost:
            self._unproven = RangeSet()
        for run in unanswered:
            self._land(run)
        if self._lanes:
            for lane in dict.fromkeys(run.lane for run in unanswered):
                if lane in self._lanes:  # what is oldest of it goes first, alone
                    lowest = self._front(lane).lowest()
                    assert lowest is not None
                    self._wait(lowest, now)
        if not lost:
            return
        self._flight_max = max(1, messages // 2)
        if was_alone:
            # The other side was given this one message alone and went away (SEMANTICS 14).
            self._failed(unanswered[0], now, 0, "connection lost while it was handled")
        else:
            for run in unanswered:
                if run.state in (READY, WAITING):
                    self._unproven.add(run.first, run.last)

    def receive_resume(self, floor: int, ranges: Sequence[tuple[int, int]]) -> None:
        """RESUME came: all below `floor` and these ranges are taken, and not retransmitted.

        To be called before `connect`. What is not loaded yet is settled when it is offered.
        """
        self._resumed = RangeSet(ranges)
        self._resumed.add(1, floor - 1)
        self._resumed.remove_below(self.loaded_to + 1)
        if floor > 1:
            self._settle_between(0, floor - 1, Status.ACKNOWLEDGED)
        if len(ranges) > 1:
            self._cut_at(ranges)
        for first, last in ranges:
            self._settle_between(first, last, Status.ACKNOWLEDGED)

    def receive_ack(self, first: int, last: int) -> None:
        """An ACK settles sequences. `NeverSent` if they were not sent on this connection."""
        self.receive_acks([(first, last)])

    def receive_acks(self, ranges: Sequence[tuple[int, int]]) -> None:
        """The ranges of one frame, which rise. A run that many of them cut is read once."""
        covers = self._sent.covers
        for first, last in ranges:
            if not covers(first, last):
                raise NeverSent(first, last)
        if len(ranges) > 1:
            self._cut_at(ranges)
        for first, last in ranges:
            self._settle_between(first, last, Status.ACKNOWLEDGED)
        if self._proved:
            self._enlarge_flight()

    def receive_nack(
        self, first: int, last: int, action: Action, delay: float, reason: str, now: float
    ) -> None:
        """A NACK refuses sequences; `delay` in seconds, 0: this side's backoff."""
        if not self._sent.covers(first, last):
            raise NeverSent(first, last)
        if action in (Action.DEAD, Action.REFUSED):
            self._settle_between(first, last, Status.DEAD, reason, action)
        else:
            self._nacks += 1
            for run in self._open.between(first, last) if self._flight.runs else ():
                if run.state != FLIGHT:
                    continue
                head = run
                if head.first < first:
                    head = self._split(head, first)  # what came before still waits for its ACK
                if head.last > last:
                    self._split(head, last + 1)
                if action == Action.RETRY:
                    self._failed(head, now, delay, reason)
                else:
                    head.laters += 1
                    self._wait(head, now + self._pause(delay, head.laters))
        if self._proved:
            self._enlarge_flight()

    def _enlarge_flight(self) -> None:
        """A whole flight was answered: the next may be twice as large, up to the window."""
        self._proved = False
        if self._flight_max is not None:
            self._flight_max *= 2
            if self._flight_max >= self.window_messages:
                self._flight_max = None

    def _pause(self, asked: float, times: int) -> float:
        return again_delay(asked, times) if asked else self._retry_delay(times)

    def _failed(self, run: Run, now: float, delay: float, reason: str) -> None:
        run.attempts += 1
        if self.max_attempts and run.attempts >= self.max_attempts:
            self._wait(run, now)  # takes its lane back: it was discarded from here on
            self._settle(run, Status.DEAD, reason, Action.RETRY)
        else:
            self._wait(run, now + self._pause(delay, run.attempts))
            self._failed_tries.append((run, reason))

    def _next_retry(self) -> Run | None:
        """The waiting run that is due first, or None."""
        retries, by_first = self._retries, self._open.by_first
        while retries:
            due, first = retries[0]
            run = by_first.get(first)
            if run is not None and run.state == WAITING and run.due == due:
                return run
            heapq.heappop(retries)
        return None

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
        while (run := self._next_retry()) is not None and run.due <= now:
            if self._is_larger(run):
                continue
            if not self._may_leave(run, allow):
                return transfers
            self._send(run, transfers)
        ready = self._ready
        stop_at = self._flight.size + bytes_max
        while self._flight.size < stop_at and (run := ready.first()) is not None:
            if self._is_one_too_many(run):
                break
            if run.size > self.batch_max and self._is_larger(run):
                continue
            if not self._may_leave(run, allow):
                break
            self._send(run, transfers)
        if self._flight_max is not None and not self._unproven:
            for run in self._open:
                if run.state == FLIGHT:
                    self._unproven.add(run.first, run.last)
        return transfers

    def _is_one_too_many(self, run: Run) -> bool:
        """Whether the run lies above all that is final, of which there is as much as may be.

        Else what was loaded before goes on to be sent, and the other side takes more ranges than
        it can name in a RESUME.
        """
        above = self._above
        if len(above) < self.behind_max:
            return False
        return above.last is not None and run.first > above.last

    def _may_leave(self, run: Run, allow: Callable[[Run], int] | None) -> bool:
        """Cut the run to what may leave of it now; False if nothing may."""
        room = self._room(run)
        if 0 < room < run.count:
            self._split(run, run.first + room)
        return room > 0 and (allow is None or self._allowed(run, allow))

    def _allowed(self, run: Run, allow: Callable[[Run], int]) -> bool:
        """Cut the run to what is allowed of it; False if nothing is."""
        count = allow(run)
        if 0 < count < run.count:
            self._split(run, run.first + count)
        return count > 0

    def _room(self, run: Run) -> int:
        """The number of the run's messages that this flight has room for: all, if not limited."""
        flying, count = self._flight.messages, run.count
        if self._flight_max is not None:
            count = min(count, self._flight_max - flying)
        if flying and (
            flying + count > self.window_messages
            or self._flight.size + run.size > self.window_bytes
        ):
            return 0
        return count

    def _send(self, run: Run, transfers: list[Transfer]) -> None:
        self._leave(run)
        self._enter(run, FLIGHT)
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

    def _is_larger(self, run: Run) -> bool:
        """Cut a run to what the other side takes; True if it takes nothing of it.

        A run that waits for another try is cut to its first message.
        """
        if run.size <= self.batch_max:
            return False
        fitting = parts_of(run).fitting(run.part, run.part + run.count, self.batch_max)
        if run.state == WAITING:
            fitting = min(1, fitting)
        if run.count > 1:
            self._split(run, run.first + max(1, fitting))
        if run.size <= self.batch_max:
            return False
        if self.larger_is_dead:
            reason = f"message of {run.size} bytes, the receiver takes {self.batch_max}"
            self._settle(run, Status.DEAD, reason, Action.DEAD)
        else:
            self.larger = run
            self._wait(run, math.inf)
        return True
