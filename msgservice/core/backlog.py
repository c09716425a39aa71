"""The backlog of one receiver: its open runs, the state of each, what became final. Sans-IO.

It lives as long as the receiver; the connections that come and go each have a `core.flight`, which
sends what is ready here and brings the answers. What is loaded and not final is *open*. The cursor
is what lies below everything open. Runs, not messages, are the unit: a run answered whole, the
usual case, costs a few list operations.

    READY     ready to send, in sequence order; a retransmission has its old place in it
    FLIGHT    sent on this connection, not acknowledged yet
    WAITING   for its next attempt, after a NACK; where order is kept, the head of its lane
    BEHIND    in the queue of its lane, as a lane has one that is or was blocked: its head is
              waiting, or has its next attempt, or is a dead letter that is not stored
    FINAL     settled: no longer open

What is BEHIND counts as `behind` while its lane is blocked, and else as `ready`. A run changes its
state in `_enter`, `_leave` and `_put_behind` alone, which count it (`fly` and `land_all` are
both at once), and is cut in `split` and `_cut_at` alone. Nothing of a lane is sent behind
what blocks it (`core.stuck_lanes`).

What does not live here: windows and frames (`core.flight`), where runs come from (a log, a file,
memory), when progress is durable.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from msgservice.core.backoff import again_delay
from msgservice.core.flight_limit import FlightLimit
from msgservice.core.ranges import Range, RangeSet
from msgservice.core.reasons import REASON_KEPT_MAX
from msgservice.core.refusal import Refusal
from msgservice.core.runs import (
    BEHIND,
    EXPIRED_REASON,
    FINAL,
    FLIGHT,
    READY,
    STALE_MAX,
    WAITING,
    OpenRuns,
    ReadyQueue,
    Run,
    Settled,
    Tally,
    cut_run,
    shatter_run,
    trim_run,
)
from msgservice.core.stuck_lanes import StuckLane, StuckLanes
from msgservice.core.tried import Attempts, Tried
from msgservice.limits import INTEGER_MAX
from msgservice.message import ACKNOWLEDGED, DEAD, Action, Status

LOST_REASON = "connection lost while it was handled"


class Backlog:
    """The open runs towards one receiver. Times are seconds of the owner's monotonic clock.

    `retry_delay(attempts)` gives the pause before a message is tried again. `max_attempts` 0
    means no end of patience (a producer towards its node). `max_losses`: after so many losses of a
    message that was alone in flight it is dead as well, where the other side lives without it for
    as long as `core.flight_limit` says, `outlives_max` seconds at most; 0: a loss is an attempt as
    any other. `behind_max` and `behind_bytes_max`:
    what may wait for another attempt, with what is behind it, before no more is loaded.
    `keeps_letters`: the owner stores dead letters, and says so (`letters_stored`).
    `letters_room(run, refusal)`: how many of a run's messages it takes as such now, from the first
    on; of the others the answer counts as not heard, and the owner ends the connection. None: all.
    `gives_up_sent`: what was sent and not answered may expire here; else only the other side can.

    The owner feeds it runs in rising order (`offer`); `take_settled` says what became final. A run
    that is loaded and not settled is open; below `cursor` all are settled.
    """

    __slots__ = (
        "_deadlines",
        "_gives_up_sent",
        "_grounded",
        "_held",
        "_keeps_letters",
        "_letters_room",
        "_open",
        "_resumed",
        "_retry_delay",
        "_stuck",
        "_tried",
        "above",
        "behind",
        "behind_bytes_max",
        "behind_max",
        "committed",
        "failed",
        "in_flight",
        "landed_to",
        "limit",
        "loaded_to",
        "max_attempts",
        "max_losses",
        "open_by_first",
        "ordered",
        "pieces",
        "ready",
        "ready_queue",
        "retries",
        "settled",
        "stored_before",
        "tallies",
        "waiting",
    )

    def __init__(
        self,
        *,
        ordered: bool,
        cursor: int,
        retry_delay: Callable[[int], float],
        max_attempts: int = 0,
        max_losses: int = 0,
        outlives_max: float = 0.0,
        behind_max: int = 10_000,
        behind_bytes_max: int = 16 * 1024 * 1024,
        keeps_letters: bool = False,
        letters_room: Callable[[Run, Refusal], int] | None = None,
        gives_up_sent: bool = True,
    ) -> None:
        self.ordered = ordered
        self.loaded_to = cursor  # everything up to here was offered
        self.committed = cursor  # the owner's durable cursor: what `floor` says
        # What was stored before the start, and what was sent and came back without an answer: up to
        # here it may have been handled.
        self.stored_before = self.landed_to = 0
        self.pieces = 0  # runs that were ever loaded, and cut for answers: what that has cost
        self.max_attempts, self.max_losses = max_attempts, max_losses
        self.behind_max, self.behind_bytes_max = behind_max, behind_bytes_max
        self._keeps_letters = keeps_letters
        self._letters_room = letters_room
        self._gives_up_sent = gives_up_sent
        self.limit = FlightLimit(outlives_max if max_losses else None)
        self.above = RangeSet()  # settled, above the cursor; not to be changed
        self.ready, self.in_flight, self.waiting, self.behind = (Tally() for _ in range(FINAL))
        self.tallies = (self.ready, self.in_flight, self.waiting, self.behind)
        self._retry_delay = retry_delay
        # Not to be changed: see `take_settled` and `take_failed`.
        self.settled: list[Settled] = []
        self.failed: list[Run] = []
        self._resumed = RangeSet()  # taken by the other side, not loaded yet
        self._tried: Tried | None = None  # None: nothing that is to be loaded was tried before
        self._open = OpenRuns()
        # The open runs by first sequence; always the same one, not to be changed.
        self.open_by_first: Mapping[int, Run] = self._open.by_first
        self.ready_queue = ReadyQueue(self._open)  # but for what has a queue of its lane
        self._stuck = StuckLanes(self._open, self.ready, self.behind)
        # Due, first; void where that does not wait. Not to be changed: see `next_retry`.
        self.retries: list[tuple[float, int]] = []
        # When it expires, first; void where no run with that time begins there. Of runs with a ttl.
        self._deadlines: list[tuple[int, int]] = []
        self._held: list[int] = []  # first of those that wait for a side that takes larger ones
        self._grounded: RangeSet | None = None  # refused since a run was sent: none of it flies

    # --- getters

    @property
    def cursor(self) -> int:
        """The sequence up to which everything is final."""
        open_ = self._open
        return open_.firsts[open_.head] - 1 if open_.by_first else self.loaded_to

    @property
    def open_runs(self) -> int:
        """The number of runs that are loaded and not final."""
        return len(self._open.by_first)

    @property
    def open_messages(self) -> int:
        """The number of messages that are loaded and not final."""
        tallies = (self.ready, self.in_flight, self.waiting, self.behind)
        return sum([tally.messages for tally in tallies])

    @property
    def open_bytes(self) -> int:
        """The bytes of the runs that are loaded and not final."""
        return self.ready.size + self.in_flight.size + self.waiting.size + self.behind.size

    def open_between(self, first: int, last: int) -> list[Run]:
        """The open runs that overlap `first` to `last`, rising; not to be changed."""
        return self._open.between(first, last)

    def entries(self, first: int, last: int) -> int:
        """The number of open runs that overlap `first` to `last`, or a few more."""
        return self._open.entries(first, last)

    def reach(self, first: int, runs: int) -> int:
        """The last sequence of the first `runs` open runs (about) from `first` on."""
        return self._open.reach(first, runs)

    @property
    def idle(self) -> bool:
        """Whether all that is loaded is settled."""
        return not self._open.by_first

    @property
    def has_room(self) -> bool:
        """Whether more runs may be loaded, for all that waits and that is settled above the cursor.

        What lies between the cursor and what is final above it is loaded whatever waits: it is
        what all of that waits for.
        """
        behind, waiting, above = self.behind, self.waiting, self.above
        if (
            behind.runs + waiting.runs < self.behind_max
            and behind.size + waiting.size < self.behind_bytes_max
            and len(above.firsts) < self.behind_max
        ):
            return True
        last = above.last
        return last is not None and self.loaded_to < last and len(above) >= self.behind_max

    @property
    def waiting_runs(self) -> list[Run]:
        """The runs that wait for their next attempt, each once; `due` says when."""
        found: dict[int, Run] = {}
        for due, first in self.retries:
            run = self._open.by_first.get(first)
            if run is not None and run.state == WAITING and run.due == due:
                found[first] = run
        return list(found.values())

    @property
    def first_waiting(self) -> Run | None:
        """One of `waiting_runs`, without a look at them all; or None."""
        for due, first in self.retries:
            run = self._open.by_first.get(first)
            if run is not None and run.state == WAITING and run.due == due:
                return run
        return None

    def run_at(self, sequence: int) -> Run | None:
        """The open run that the message with this sequence is in, or None."""
        return next(iter(self._open.between(sequence, sequence)), None)

    def in_flight_at(self, sequence: int) -> bool:
        """Whether the message with this sequence was sent and is not answered."""
        return any(run.state == FLIGHT for run in self._open.between(sequence, sequence))

    @property
    def has_settled(self) -> bool:
        """Whether a message became final since the last `take_settled`."""
        return bool(self.settled)

    @property
    def has_failed(self) -> bool:
        """Whether an attempt has failed since the last `take_failed`."""
        return bool(self.failed)

    def next_retry(self) -> Run | None:
        """The waiting run that is due first, or None."""
        retries, by_first = self.retries, self._open.by_first
        while retries:
            due, first = retries[0]
            run = by_first.get(first)
            if (
                run is not None
                and run.state == WAITING
                and run.due == due
                and not self._stuck.waits_for_letters(run.lane)
            ):
                return run  # else it is put there again when these are stored
            heapq.heappop(retries)
        return None

    def first_ready(self) -> Run | None:
        """The ready run with the lowest sequence, or None. Its lane may be blocked.

        So it is to be asked whether it `steps_behind` while there are `stuck_lanes`.
        """
        run, stuck = self.ready_queue.first(), self._stuck
        if not stuck.by_lane:
            return run
        first = stuck.first()
        return first if run is None or (first is not None and first.first < run.first) else run

    @property
    def stuck_lanes(self) -> Mapping[Hashable, StuckLane]:
        """The lanes that are blocked, or were and have a queue; the same one for all of a flight.

        In the usual case none.
        """
        return self._stuck.by_lane

    def steps_behind(self, run: Run) -> bool:
        """Whether the first ready run is of a blocked lane; it waits in that lane's queue then."""
        stuck = self._stuck
        if run.state != READY or not stuck.is_blocked(run.lane):
            return False
        self.limit.answered(run)
        self._leave(run)
        stuck.forget(run)
        stuck.put(run.lane, [run])
        return True

    def sendable(self, landed: Sequence[Run]) -> Sequence[Run]:
        """The runs of these that nothing blocks, with those that wait for their next attempt."""
        blocked = {lane for lane, stuck in self._stuck.by_lane.items() if stuck.is_blocked}
        if not blocked:
            return landed
        return [run for run in landed if run.state == WAITING or run.lane not in blocked]

    def runs_in_flight(self) -> list[Run]:
        """The runs that were sent and are not answered, rising."""
        return [run for run in self._open if run.state == FLIGHT]

    # --- loading

    def restore(self, settled: Sequence[Range], tried: Mapping[Range, Attempts]) -> None:
        """Restore, after a restart, the settled ranges above the cursor, and attempts.

        `tried`: first and last sequence -> (attempts, when the next is due, why the last failed).
        """
        for first, last in settled:
            self.above.add(first, last)
        self._remember(tried)
        self._trim_above()

    def _remember(self, tried: Mapping[Range, Attempts]) -> None:
        if tried:
            if self._tried is None:
                self._tried = Tried()
            self._tried.remember(tried)

    def offer(self, run: Run) -> None:
        """Load the next run, in rising order, without what is settled already."""
        first = run.first
        last = first + run.count - 1
        assert first > self.loaded_to, (first, self.loaded_to)
        above = self.above
        if above.firsts and above.overlaps(first, last):
            for low, high in list(above.missing(first, last)):
                # Not further: of what is behind it some may be final, and is forgotten where a
                # RESUME settles this part and nothing else is open yet.
                self.loaded_to = high
                self._load(cut_run(run, low, high))
            self.loaded_to = last
            self._trim_above()
        elif self._tried is None and not self._resumed.firsts:  # as most
            self.loaded_to = last
            stuck = self._stuck
            if run.attempts or run.expires_at is not None or stuck.by_lane:
                self._load_piece(run)
                return
            self.pieces += 1  # as `_load_piece` and `_make_ready`, above all that is open
            open_, ready = self._open, self.ready
            open_.firsts.append(first)
            open_.by_first[first] = run
            run.state = READY
            ready.runs += 1
            ready.messages += run.count
            ready.size += run.size
            self.ready_queue.rising.append(first)
            if stuck.fronts is not None:
                stuck.note(run)
        else:
            self.loaded_to = last
            self._load(run)

    def load_alone(self, run: Run) -> bool:
        """Load the next run, which is to `fly` now: nothing else is open. False: `offer` it.

        That is where something of it may be settled already, or was tried, or its lane is stuck.
        """
        stuck = self._stuck
        if (
            self._tried is not None
            or self._resumed.firsts
            or self.above.firsts
            or stuck.by_lane
            or stuck.fronts is not None
        ):
            return False
        first = run.first
        assert first > self.loaded_to, (first, self.loaded_to)
        self.loaded_to = first + run.count - 1
        self.pieces += 1
        self._open.add(run)
        run.state = READY  # in no queue: what lands is put in one then
        tally = self.ready
        tally.runs += 1
        tally.messages += run.count
        tally.size += run.size
        return True

    def offer_rest(self, run: Run) -> None:
        """Load the part of a run above `loaded_to`, which stands inside it."""
        self.offer(cut_run(run, self.loaded_to + 1, run.last))

    def skip_to(self, position: int) -> None:
        """Positions up to `position` are for other receivers, beyond what was offered."""
        if position > self.loaded_to:
            self.loaded_to = position
            if self.above:
                self._trim_above()

    def unload(self) -> None:
        """Unload the open runs; the owner offers them again from the cursor on. Not in a flight."""
        assert not self.in_flight.runs
        self._remember(
            {
                (run.first, run.last): (
                    run.attempts,
                    run.due if run.due < math.inf else 0.0,
                    run.reason,
                )
                for run in self._open
                if run.attempts
            }
        )
        self.loaded_to = self.cursor
        self._open.clear()
        self.ready_queue.clear()
        for tally in self.tallies:
            tally.runs = tally.messages = tally.size = 0
        self._stuck.unload()
        self.retries = []
        self._deadlines = []
        self._held = []

    def _load(self, run: Run) -> None:
        if self._tried is None:
            self._load_piece(run)
        else:
            for piece in self._cut_tried(run, self._tried):
                # Placed before the next is open: a lane that gets stuck takes what is there.
                self._load_piece(piece)
        resumed = self._resumed
        if resumed.firsts:
            first, last = run.first, self.loaded_to
            self.acknowledge(resumed.within(first, last))
            if not resumed.overlaps(last + 1, INTEGER_MAX):
                self._resumed = RangeSet()

    def _load_piece(self, run: Run) -> None:
        self.pieces += 1
        self._open.add(run)
        if run.expires_at is not None:
            self._note_deadlines((run,))
        if run.attempts or self._stuck.by_lane or self._stuck.fronts is not None:
            self._place(run)
            return
        run.state = READY  # as `_make_ready`
        tally = self.ready
        tally.runs += 1
        tally.messages += run.count
        tally.size += run.size
        self.ready_queue.push(run)

    def _cut_tried(self, run: Run, tried: Tried) -> list[Run]:
        """Cut out the messages that were tried before, and tell them so."""
        first, last = run.first, run.last
        found = tried.take(first, last)
        if not tried:
            self._tried = None
        bounds = {at for low, high, _ in found for at in (low, high + 1) if first < at <= last}
        places = sorted(bounds)
        pieces = [run, *(shatter_run(run, places) if places else ())]
        firsts = [first, *places]
        for low, high, attempts in found:
            for piece in pieces[bisect_left(firsts, low) : bisect_right(firsts, high)]:
                piece.attempts, piece.due, piece.reason = attempts
        return pieces

    def _place(self, run: Run) -> None:
        """Give a loaded run its state."""
        lanes = self._stuck.by_lane
        stuck = lanes.get(run.lane) if lanes else None
        if stuck is not None:
            self._stuck.put(run.lane, [run])
        elif not run.attempts:
            self._make_ready(run)
        elif not self.ordered:
            self._begin_waiting(run, run.due)
        else:
            self._make_ready(run)
            if self._stuck.front(run.lane).lowest() is run:  # else what is older goes first
                self._wait(run, run.due)

    # --- what the other side says

    def receive_resume(self, floor: int, ranges: Sequence[Range]) -> None:
        """RESUME came: all below `floor` and these ranges are taken, and not retransmitted.

        To be called before the flight begins. What is not loaded yet is settled when it is offered.
        """
        self._resumed = RangeSet(ranges)
        self._resumed.add(1, floor - 1)
        self._resumed.remove_below(self.loaded_to + 1)
        if floor > 1:
            self._settle_between(0, floor - 1, ACKNOWLEDGED)
        if self._open:
            self.acknowledge(ranges)

    def acknowledge(self, ranges: Sequence[Range]) -> None:
        """These ranges, which rise, are acknowledged. A run that many of them cut is read once."""
        if len(ranges) > 1:
            self._cut_at(ranges)
        open_ = self._open
        by_first, settle = open_.by_first, self.settle
        for first, last in ranges:
            run = by_first.get(first)
            if run is None and by_first:
                run = by_first[open_.firsts[open_.head]]  # the lowest
                if run.first < first:
                    run = None
            # A run from its beginning on, or all that is open below its end: what lies before the
            # lowest one is for others, and the other side's ranges have it as well.
            if run is not None and run.first + run.count - 1 == last:
                settle(run, ACKNOWLEDGED)
            else:
                self._settle_between(first, last, ACKNOWLEDGED)

    def refuse(self, first: int, last: int, refusal: Refusal, delay: float, now: float) -> None:
        """The other side refuses these sequences: for ever, or they are tried again after a pause.

        `delay` in seconds, 0: this side's backoff.
        """
        if refusal.action in (Action.DEAD, Action.REFUSED):
            for run in self._open.between(first, last):
                if self._die(self._cut_out(run, first, last), refusal) is not None:
                    return  # there is no room for what is behind it either
            return
        if not self.in_flight.runs:
            return
        grounded = self._grounded
        if grounded is None:
            grounded = self._grounded = RangeSet()
        if not grounded.overlaps(first, last):
            self._take_back(first, last, refusal, delay, now)
        else:
            for low, high in list(grounded.missing(first, last)):
                self._take_back(low, high, refusal, delay, now)
        grounded.add(first, last)

    def _take_back(self, first: int, last: int, refusal: Refusal, delay: float, now: float) -> None:
        for run in self._open.between(first, last):
            if run.state != FLIGHT:  # not sent, or taken back with its lane a moment ago
                continue
            head = run
            if head.first < first:
                head = self.split(head, first)  # what came before still waits for its ACK
            if head.last > last:
                self.split(head, last + 1)
            if self.limit.suspects:
                self.limit.clear(head)
            if refusal.action == Action.RETRY:
                self.fail(head, refusal, delay, now)
            else:
                head.laters += 1
                self._wait(head, now + self._pause(delay, head.laters))

    def lose(self, run: Run, now: float, age: float, held: float) -> None:
        """A connection was lost with this run alone in flight: an attempt, where that counts.

        `age`, `held`: for how many seconds the connection stood, and had the run.
        """
        if not self.limit.lost_one(now, run, age, held):
            run.laters += 1
            self._wait(run, now + self._pause(0, run.attempts + run.laters))
            return
        losses = self.limit.losses(run)
        is_last = 0 < self.max_losses <= losses
        reason = LOST_REASON if losses == 1 else f"{LOST_REASON} ({losses} times alone)"
        self.fail(run, Refusal(Action.RETRY, reason), 0, now, is_last=is_last)

    def fail(
        self, run: Run, refusal: Refusal, delay: float, now: float, *, is_last: bool = False
    ) -> None:
        """An attempt at a run has failed: it waits for the next, or this was the last (14)."""
        run.attempts += 1
        run.reason = refusal.reason[:REASON_KEPT_MAX]
        if is_last or 0 < self.max_attempts <= run.attempts:
            self._wait(run, now)  # takes its lane back: it was discarded from here on
            rest = self._die(run, refusal)
        else:
            rest = run
        if rest is not None:
            if rest.state != BEHIND:
                self._wait(rest, now + self._pause(delay, rest.attempts))
            self.failed.append(rest)

    def _pause(self, asked: float, times: int) -> float:
        return again_delay(asked, times) if asked else self._retry_delay(times)

    # --- what a flight does

    def fly(self, run: Run) -> None:
        """A run, ready or due for its next attempt, is sent: it is in flight from here on."""
        count, size = run.count, run.size
        if run.state == BEHIND:  # of a lane that goes on
            stuck = self._stuck
            stuck.take_out(run)
            if stuck.fronts is not None:
                stuck.note(run)
        else:
            tally = self.tallies[run.state]
            tally.runs -= 1
            tally.messages -= count
            tally.size -= size
        run.state = FLIGHT
        self._grounded = None
        tally = self.in_flight
        tally.runs += 1
        tally.messages += count
        tally.size += size

    def land_all(self, now: float) -> list[Run]:
        """The flight is over: its unanswered runs are ready again, where they were; return them."""
        unanswered = self.runs_in_flight()
        if unanswered:
            self.landed_to = max(self.landed_to, unanswered[-1].last)
        for run in unanswered:  # as `_land`, for a whole window of them
            run.state = READY
        flying, ready = self.in_flight, self.ready
        ready.runs += flying.runs
        ready.messages += flying.messages
        ready.size += flying.size
        flying.runs = flying.messages = flying.size = 0
        self.ready_queue.push_all(unanswered)
        stuck = self._stuck
        if stuck.by_lane:
            for lane in dict.fromkeys(run.lane for run in unanswered):
                if stuck.is_blocked(lane):  # what is oldest of it goes first, alone
                    lowest = stuck.front(lane).lowest()
                    assert lowest is not None
                    self._wait(lowest, now)
        return unanswered

    def hold(self, run: Run) -> None:
        """A run waits for a connection to a side that takes larger ones (`let_go`)."""
        self._wait(run, math.inf)

    def let_go(self) -> None:
        """A connection begins: the runs that were too large for the last one are ready."""
        held, self._held = self._held, []
        for first in held:
            run = self._open.by_first.get(first)
            if run is not None and run.state == WAITING and run.due == math.inf:
                if self._stuck.waits_for_letters(run.lane):
                    run.due = 0.0  # it is sent when these are stored
                    continue
                self._land(run)
                if self.ordered:
                    self._stuck.release(run.lane)

    # --- changes of state

    def _enter(self, run: Run, state: int) -> None:
        run.state = state
        tally = self.tallies[state]
        tally.runs += 1
        tally.messages += run.count
        tally.size += run.size

    def _leave(self, run: Run) -> None:
        if run.state == BEHIND:
            self._stuck.take_out(run)
            return
        tally = self.tallies[run.state]
        tally.runs -= 1
        tally.messages -= run.count
        tally.size -= run.size

    def _make_ready(self, run: Run) -> None:
        """Let a run that is in no state yet be sent."""
        run.state = READY  # as `_enter`
        tally = self.ready
        tally.runs += 1
        tally.messages += run.count
        tally.size += run.size
        self.ready_queue.push(run)
        if self._stuck.fronts is not None:
            self._stuck.note(run)

    def _wait(self, run: Run, due: float) -> None:
        """Let a run, in flight or waiting, wait for its next attempt, and its lane behind it."""
        self.limit.answered(run)
        self._leave(run)
        self._begin_waiting(run, due)
        if self.ordered:
            self._take_lane_back(run)

    def _take_lane_back(self, head: Run) -> None:
        stuck, limit = self._stuck, self.limit
        flying, former = stuck.take_back(head)
        if limit.is_proving:
            for one in flying:
                limit.answered(one)
        if former is not None:
            limit.answered(former)
            self._leave(former)
            stuck.put(head.lane, [former])
        if flying:  # as `_leave`, for a whole window of them
            messages, size = stuck.put(head.lane, flying)
            self.in_flight.count(-len(flying), -messages, -size)

    def _begin_waiting(self, run: Run, due: float) -> None:
        self._enter(run, WAITING)
        run.due = due
        if self._stuck.fronts is not None:
            self._stuck.note(run)
        if due == math.inf:
            self._held.append(run.first)
            return
        self.put_off(run, due)

    def put_off(self, run: Run, due: float) -> None:
        """A run that waits for its next attempt waits until then."""
        run.due = due
        heapq.heappush(self.retries, (due, run.first))
        if len(self.retries) > STALE_MAX + 2 * self.waiting.runs:
            self.retries[:] = sorted({(one.due, one.first) for one in self.waiting_runs})

    def _land(self, run: Run) -> None:
        """The run, which waits, is ready again, where it was in its lane."""
        self._leave(run)
        self._enter(run, READY)
        self.ready_queue.push(run)

    def _settle_between(self, first: int, last: int, status: Status) -> None:
        for run in self._open.between(first, last):
            self.settle(self._cut_out(run, first, last), status)

    def _cut_out(self, run: Run, first: int, last: int) -> Run:
        """Cut an open run that overlaps `first` to `last`; return what of it lies between."""
        if run.first < first:
            run = self.split(run, first)
        if run.first + run.count - 1 > last:
            self.split(run, last + 1)
        return run

    def _die(self, run: Run, refusal: Refusal) -> Run | None:
        """Settle an open run as dead, or as much of it as has room; return the rest, or None."""
        room = run.count if self._letters_room is None else self._letters_room(run, refusal)
        if not room:
            return run
        rest = self.split(run, run.first + room) if room < run.count else None
        self.settle(run, DEAD, refusal)
        return rest

    def settle(self, run: Run, status: Status, refusal: Refusal | None = None) -> None:
        """An open run is final, and its lane goes on if this was the head of a stuck one."""
        was_behind = run.state == BEHIND
        # Of what was acknowledged there is no refusal, and no more is asked.
        is_dead = refusal is not None and status is DEAD
        if is_dead and self._keeps_letters and run.lane is not None:
            self._stuck.block(run)
        limit = self.limit
        if limit.most is not None:
            limit.answered(run)
        if limit.suspects:
            limit.clear(run)
        self._leave(run)  # one that is shared counts by connection as well
        run.state = FINAL
        was_lowest = self._open.discard(run)
        first = run.first
        last = first + run.count - 1
        self.settled.append(Settled(run, first, last, status, refusal))
        if not was_lowest:
            # From `after` on: the sequences between belong to other audiences (SEMANTICS 1), and
            # with them the ranges of neighbours merge.
            self.above.add(run.after + 1, last)
        elif self.above.firsts:
            self._trim_above()
        if not was_behind and self._stuck.fronts is not None:
            self._stuck.settled(run)

    def decree(self, first: int, last: int, status: Status, refusal: Refusal) -> list[Range]:
        """Settle without an answer what is open of these; what is in flight is left to its answer.

        Returns what of them is not loaded, and was neither settled nor named by a RESUME: it is
        settled from here on, and its owner counts it.
        """
        if first <= self.loaded_to:
            for run in self._open.between(first, min(last, self.loaded_to)):
                if run.state != FLIGHT:
                    self.settle(self._cut_out(run, first, last), status, refusal)
            first = self.loaded_to + 1
        if first > last:
            return []
        found = self._not_loaded(first, last)
        for low, high in found:
            self.above.add(low, high)
        return found

    def _not_loaded(self, first: int, last: int) -> list[Range]:
        """The ranges of these not loaded, and neither settled nor named by a RESUME."""
        resumed = self._resumed
        found = list(self.above.missing(first, last))
        if resumed and resumed.overlaps(first, last):
            found = [part for low, high in found for part in resumed.missing(low, high)]
        return found

    def waits(self, first: int, last: int, *, in_flight: bool) -> list[Range]:
        """The ranges that wait between two; without `in_flight` those that `decree` settles."""
        first = max(first, self.cursor + 1)
        found: list[Range] = []
        if first <= self.loaded_to:
            found = [
                (max(first, run.first), min(last, run.last))
                for run in self._open.between(first, min(last, self.loaded_to))
                if in_flight or run.state != FLIGHT
            ]
            first = self.loaded_to + 1
        if first > last:
            return found
        if in_flight:
            return found + list(self.above.missing(first, last))
        return found + self._not_loaded(first, last)

    def is_over(self, run: Run, now: int) -> bool:
        """Whether a run's time is over, and this side may say so: see `gives_up_sent`."""
        return (
            run.expires_at is not None
            and run.expires_at <= now
            and (self._gives_up_sent or run.first > self.landed_to)
        )

    def expire(self, run: Run) -> None:
        """Settle an open run that was not sent, since its time is over."""
        reason = EXPIRED_REASON + self.doubt(run.first)
        self.settle(run, Status.EXPIRED, Refusal(Action.DEAD, reason))

    def expire_all(self, now: int) -> None:
        """Settle all that is loaded and not in flight, and whose time is over."""
        deadlines = self._deadlines
        over: list[int] = []
        flying: list[tuple[int, int]] = []
        while (at := self.next_expiry()) is not None and at <= now:
            deadline = heapq.heappop(deadlines)
            if self._open.by_first[deadline[1]].state == FLIGHT:
                flying.append(deadline)
            else:
                over.append(deadline[1])
        for deadline in flying:
            heapq.heappush(deadlines, deadline)
        for first in sorted(set(over)):
            self.expire(self._open.by_first[first])

    def next_expiry(self) -> int | None:
        """When the first expires of what is loaded and may be given up, or None."""
        deadlines, by_first = self._deadlines, self._open.by_first
        while deadlines:
            at, first = deadlines[0]
            run = by_first.get(first)
            # What may have been handled once is not given up later either.
            may_be = self._gives_up_sent or first > self.landed_to
            if run is not None and run.expires_at == at and may_be:
                return at
            heapq.heappop(deadlines)
        return None

    def _note_deadlines(self, runs: Iterable[Run]) -> None:
        """Runs are open from now on: of those with a ttl it is noted when that is over."""
        deadlines = self._deadlines
        for run in runs:
            if run.expires_at is not None:
                heapq.heappush(deadlines, (run.expires_at, run.first))
        if len(deadlines) > STALE_MAX + 2 * len(self._open):
            self._deadlines = [
                (run.expires_at, run.first) for run in self._open if run.expires_at is not None
            ]
            heapq.heapify(self._deadlines)

    def doubt(self, sequence: int) -> str:
        """Return what a reason says beside that a message was never answered: it may be wrong."""
        if sequence <= self.stored_before:
            return " (it may have been handled)"
        return " (outcome unknown)" if sequence <= self.landed_to else ""

    def letters_stored(self, letters: Iterable[Settled]) -> None:
        """These dead letters are stored: their lanes go on, but for what else blocks them."""
        for one in letters:
            head = self._stuck.letters_stored(one.run.lane, one.last - one.first + 1)
            if head is not None and head.state == WAITING and head.due < math.inf:
                heapq.heappush(self.retries, (head.due, head.first))

    def _trim_above(self) -> None:
        self.above.remove_below(self.cursor + 1)

    # --- cuts

    def split(self, run: Run, at: int) -> Run:
        """Cut an open run before sequence `at`; return the new run that begins there."""
        size = run.size
        rest = cut_run(run, at, run.last)
        trim_run(run, at - 1)
        self._shrunk(run, rest.count, size - run.size)
        self._open.add(rest)
        if rest.expires_at is not None:
            self._note_deadlines((rest,))
        if rest.attempts:  # those of all of it were noted where it begins: no longer for this
            self.failed.append(rest)
        self._place_rest(run, rest)
        return rest

    def _shrunk(self, run: Run, messages: int, size: int) -> None:
        """An open run has so much less in it."""
        if run.state == BEHIND:
            self._stuck.count(run.lane, 0, -messages, -size)
        else:
            self.tallies[run.state].count(0, -messages, -size)

    def _place_rest(self, run: Run, rest: Run) -> None:
        """Give what was cut off from the end of a run its state."""
        state = run.state
        if state == BEHIND or (state == WAITING and self.ordered):
            self._stuck.put(run.lane, [rest])
        elif state == WAITING:
            self._begin_waiting(rest, run.due)
        else:
            self._enter(rest, state)
            if state == READY:
                self.ready_queue.push(rest)
            if self._stuck.fronts is not None:
                self._stuck.note(rest)

    def _cut_at(self, ranges: Sequence[Range]) -> None:
        """Cut the open runs at the bounds of these ranges, which rise, all in one go."""
        cuts: dict[int, tuple[Run, list[int]]] = {}
        between, by_first = self._open.between, self._open.by_first
        for first, last in ranges:
            whole = by_first.get(first)
            if whole is not None and first + whole.count - 1 == last:
                continue
            for at in (first, last + 1):
                for run in between(at, at):
                    if run.first < at:
                        places = cuts.setdefault(run.first, (run, []))[1]
                        if not places or places[-1] < at:
                            places.append(at)
        cut: list[tuple[Run, Run]] = []
        for run, places in cuts.values():
            size, count = run.size, run.count
            pieces = shatter_run(run, places)
            self.pieces += len(pieces)
            cut += [(run, piece) for piece in pieces]
            if run.attempts:
                self.failed += pieces
            self._shrunk(run, count - run.count, size - run.size)
        self._open.add_all([piece for _, piece in cut])
        if self._deadlines:
            self._note_deadlines([piece for _, piece in cut])
        for run, piece in cut:
            self._place_rest(run, piece)

    # --- to the world

    def take_settled(self) -> list[Settled]:
        """Return the messages that were settled since the last call, in the order they were."""
        settled, self.settled = self.settled, []
        return settled

    def take_failed(self) -> list[Run]:
        """Return the runs of which an attempt has failed since the last call, to be retried.

        And what was cut off from such a run since: its attempts have to be noted anew.
        """
        failed, self.failed = self.failed, []
        return failed
