"""The runs that an outbox has open: the state of each, how it changes, what is counted. Sans-IO.

    READY     ready to send, in sequence order; a retransmission has its old place in it
    FLIGHT    sent on this connection, not acknowledged yet
    WAITING   for its next attempt, after a NACK; where order is kept, the head of its lane
    BEHIND    blocked: the head of its lane is waiting, or has its next attempt
    FINAL     settled: no longer open

A run changes its state in `_enter` and `_leave` alone, which count it, and is cut in `_split` and
`_cut_at` alone. When it happens, and what goes over the wire, is decided in `core.outbox`.

The lanes are indexed when the first of them gets stuck, since before that nobody asks for one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence

from msgservice.core.ranges import RangeSet
from msgservice.core.runs import (
    BEHIND,
    FINAL,
    FLIGHT,
    READY,
    STALE_MAX,
    WAITING,
    OpenRuns,
    ReadyQueue,
    Run,
    Settled,
    cut_run,
    shatter_run,
    trim_run,
)
from msgservice.limits import INTEGER_MAX
from msgservice.message import Status


class StuckLane:
    """A lane whose head waits for its next attempt or has it; the rest of the lane is behind."""

    __slots__ = ("behind", "head")

    def __init__(self, head: Run) -> None:
        self.head = head
        self.behind = OpenRuns()


class Tally:
    """A count of the runs in one state, of their messages and bytes."""

    __slots__ = ("messages", "runs", "size")

    def __init__(self) -> None:
        self.runs = self.messages = self.size = 0


class RunStates:
    """The open runs of an outbox, and the state of each.

    A run that is loaded and not settled is open; below `cursor` all are settled.
    """

    def __init__(self, ordered: bool, cursor: int) -> None:
        self.ordered = ordered
        self.loaded_to = cursor  # everything up to here was offered
        self._above = RangeSet()  # final, above the cursor
        self._settled: list[Settled] = []
        self._failed_tries: list[tuple[Run, str]] = []
        # What of a flight must be answered before another may be larger.
        self._unproven = RangeSet()
        self._proved = False  # the last of it was, since this was looked at
        self._forget_open()

    def _forget_open(self) -> None:
        self._open = OpenRuns()
        self._ready = ReadyQueue(self._open)
        self._tallies = [Tally() for _ in range(FINAL)]
        self._flight = self._tallies[FLIGHT]
        self._lanes: dict[Hashable, StuckLane] = {}
        # By lane: what is open of it and not behind. None: no lane was stuck yet.
        self._fronts: dict[Hashable, OpenRuns] | None = None
        self._retries: list[tuple[float, int]] = []  # due, first; void where that does not wait
        self._held: list[int] = []  # first of those that wait for a side that takes larger ones

    # --- getters

    @property
    def cursor(self) -> int:
        """Everything up to here is final."""
        lowest = self._open.lowest()
        return self.loaded_to if lowest is None else lowest.first - 1

    @property
    def open_runs(self) -> int:
        """Runs loaded and not final."""
        return len(self._open)

    def open_between(self, first: int, last: int) -> list[Run]:
        """The open runs that overlap `first` to `last`, rising; not to be changed."""
        return self._open.between(first, last)

    @property
    def idle(self) -> bool:
        """Whether all that is loaded is settled."""
        return not self._open

    @property
    def above(self) -> RangeSet:
        """The settled ranges above the cursor; not to be changed."""
        return self._above

    @property
    def waiting(self) -> list[Run]:
        """Runs that wait for their next attempt, each once; `due` says when."""
        found: dict[int, Run] = {}
        for due, first in self._retries:
            run = self._open.by_first.get(first)
            if run is not None and run.state == WAITING and run.due == due:
                found[first] = run
        return list(found.values())

    @property
    def ready(self) -> tuple[int, int]:
        """Messages and bytes that wait for nothing but being sent."""
        return self._ready_messages, self._ready_bytes

    @property
    def in_flight_messages(self) -> int:
        """Messages sent on this connection and not answered."""
        return self._flight.messages

    @property
    def in_flight_bytes(self) -> int:
        """The bytes of these."""
        return self._flight.size

    def in_flight_at(self, sequence: int) -> bool:
        """Whether this sequence was sent and is not answered."""
        return any(run.state == FLIGHT for run in self._open.between(sequence, sequence))

    @property
    def has_settled(self) -> bool:
        """Whether something became final since the last `take_settled`."""
        return bool(self._settled)

    @property
    def has_failed(self) -> bool:
        """Whether a try has failed since the last `take_failed`."""
        return bool(self._failed_tries)

    @property
    def _ready_messages(self) -> int:
        return self._tallies[READY].messages

    @property
    def _ready_bytes(self) -> int:
        return self._tallies[READY].size

    @property
    def _behind(self) -> int:
        return self._tallies[BEHIND].runs

    @property
    def _behind_bytes(self) -> int:
        return self._tallies[BEHIND].size

    @property
    def _waiting(self) -> int:
        return self._tallies[WAITING].runs

    @property
    def _waiting_bytes(self) -> int:
        return self._tallies[WAITING].size

    # --- changes of state

    def _enter(self, run: Run, state: int) -> None:
        run.state = state
        tally = self._tallies[state]
        tally.runs += 1
        tally.messages += run.count
        tally.size += run.size

    def _leave(self, run: Run) -> None:
        tally = self._tallies[run.state]
        tally.runs -= 1
        tally.messages -= run.count
        tally.size -= run.size

    def _was_answered(self, run: Run) -> None:
        """A run of the unproven flight was answered, or is not in flight for now."""
        unproven = self._unproven
        if unproven:
            unproven.remove(run.first, run.last)
            if not unproven:
                self._proved = True

    def _make_ready(self, run: Run) -> None:
        """Let a run that is in no state yet be sent."""
        self._enter(run, READY)
        self._ready.push(run)
        if self._fronts is not None:
            self._to_front(run)

    def _put_behind(self, stuck: StuckLane, run: Run) -> None:
        """Let a run that is in no state now wait for its lane's head."""
        self._enter(run, BEHIND)
        stuck.behind.add(run)

    def _wait(self, run: Run, due: float) -> None:
        """Let a run, in flight or waiting, wait for its next attempt, and its lane behind it."""
        self._was_answered(run)
        self._leave(run)
        self._begin_waiting(run, due)
        if self.ordered:
            self._take_back(run)

    def _begin_waiting(self, run: Run, due: float) -> None:
        self._enter(run, WAITING)
        run.due = due
        if due == math.inf:
            self._held.append(run.first)
            return
        retries = self._retries
        heapq.heappush(retries, (due, run.first))
        if len(retries) > STALE_MAX + 2 * self._waiting:
            retries[:] = sorted({(one.due, one.first) for one in self.waiting})

    def _take_back(self, head: Run) -> None:
        """The lane is blocked behind this run until it is settled."""
        lane = head.lane
        stuck = self._lanes.get(lane)
        if stuck is None:
            stuck = self._lanes[lane] = StuckLane(head)
        stuck.head = head
        front = self._front(lane)
        back = front.between(head.last + 1, INTEGER_MAX)
        for run in back:
            front.discard(run)
            self._was_answered(run)
            self._leave(run)
            self._enter(run, BEHIND)
        stuck.behind.add_all(back)

    def _front(self, lane: Hashable) -> OpenRuns:
        """The open runs of a lane that are not behind its head; for lanes that have such runs."""
        if self._fronts is None:
            self._fronts = {}
            for run in self._open:
                if run.state != BEHIND:
                    self._to_front(run)
        return self._fronts[lane]

    def _to_front(self, run: Run) -> None:
        assert self._fronts is not None
        front = self._fronts.get(run.lane)
        if front is None:
            front = self._fronts[run.lane] = OpenRuns()
        front.add(run)

    def _land(self, run: Run) -> None:
        """The run, in flight, waiting or behind, is ready again, where it was in its lane."""
        self._leave(run)
        self._enter(run, READY)
        self._ready.push(run)

    def _settle_between(
        self, first: int, last: int, status: Status, reason: str = "", action: int = 0
    ) -> None:
        for found in self._open.between(first, last):
            run = found
            if run.first < first:
                run = self._split(run, first)
            if run.first + run.count - 1 > last:
                self._split(run, last + 1)
            self._settle(run, status, reason, action)

    def _settle(self, run: Run, status: Status, reason: str = "", action: int = 0) -> None:
        lane, was_behind = run.lane, run.state == BEHIND
        if self._unproven:
            self._was_answered(run)
        self._leave(run)
        run.state = FINAL
        lowest = self._open.lowest()
        self._open.discard(run)
        last = run.first + run.count - 1
        self._settled.append(Settled(run, run.first, last, status, reason, action))
        if lowest is not run:
            # From `after` on: the sequences between belong to other audiences (SEMANTICS 1), and
            # with them the ranges of neighbours merge.
            self._above.add(run.after + 1, last)
        elif self._above:
            self._trim_above()
        fronts = self._fronts
        if fronts is None:
            return
        if was_behind:
            self._lanes[lane].behind.discard(run)
            return
        front = fronts[lane]
        front.discard(run)
        stuck = self._lanes.get(lane)
        if stuck is not None and stuck.head is run:
            self._release(stuck, front)
        if not front:
            del fronts[lane]
            if not fronts:
                self._fronts = None

    def _release(self, stuck: StuckLane, front: OpenRuns) -> None:
        """The lane is unblocked: runs behind its head are ready."""
        del self._lanes[stuck.head.lane]
        behind = list(stuck.behind)
        for run in behind:
            self._land(run)
        front.add_all(behind)

    def _let_go(self) -> None:
        """A run that waited for a side that takes larger ones is ready, and its lane with it."""
        held, self._held = self._held, []
        for first in held:
            run = self._open.by_first.get(first)
            if run is not None and run.state == WAITING and run.due == math.inf:
                self._land(run)
                if self.ordered:
                    self._release(self._lanes[run.lane], self._front(run.lane))

    def _trim_above(self) -> None:
        self._above.remove_below(self.cursor + 1)

    # --- cuts

    def _split(self, run: Run, at: int) -> Run:
        """Cut an open run before sequence `at`; return the new run that begins there."""
        tally = self._tallies[run.state]
        size = run.size
        rest = cut_run(run, at, run.last)
        trim_run(run, at - 1)
        tally.size += run.size - size
        tally.messages -= rest.count
        self._open.add(rest)
        self._place_rest(run, rest)
        return rest

    def _place_rest(self, run: Run, rest: Run) -> None:
        """Give what was cut off from the end of a run its state."""
        state = run.state
        if state == BEHIND or (state == WAITING and self.ordered):
            self._put_behind(self._lanes[run.lane], rest)
        elif state == WAITING:
            self._begin_waiting(rest, run.due)
        else:
            self._enter(rest, state)
            if state == READY:
                self._ready.push(rest)
            if self._fronts is not None:
                self._to_front(rest)

    def _cut_at(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Cut the open runs at the bounds of these ranges, which rise, all in one go."""
        cuts: dict[int, tuple[Run, list[int]]] = {}
        between = self._open.between
        for first, last in ranges:
            for at in (first, last + 1):
                for run in between(at, at):
                    if run.first < at:
                        places = cuts.setdefault(run.first, (run, []))[1]
                        if not places or places[-1] < at:
                            places.append(at)
        cut: list[tuple[Run, Run]] = []
        for run, places in cuts.values():
            tally = self._tallies[run.state]
            size, count = run.size, run.count
            cut += [(run, piece) for piece in shatter_run(run, places)]
            tally.size += run.size - size
            tally.messages += run.count - count
        self._open.add_all([piece for _, piece in cut])
        for run, piece in cut:
            self._place_rest(run, piece)

    # --- to the world

    def take_settled(self) -> list[Settled]:
        """Return the messages that were settled since the last call, in the order they were."""
        settled, self._settled = self._settled, []
        return settled

    def take_failed(self) -> list[tuple[Run, str]]:
        """Return the failed attempts since the last call that are to be retried, and why."""
        failed, self._failed_tries = self._failed_tries, []
        return failed
