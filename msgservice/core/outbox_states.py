"""The runs that an outbox has open: the state of each, how it changes, what is counted. Sans-IO.

    READY     waits for nothing but being sent; in the queue, rising but for what came back
    FLIGHT    sent on this connection, not answered
    WAITING   for another try; where order is kept, its lane's head
    BEHIND    its lane's head waits, or has its next try
    FINAL     settled: no longer open

Each change of state keeps the counters that the windows and bounds go by. When it happens, and
what goes over the wire, is decided in `core.outbox`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Hashable

from msgservice.core.ranges import RangeSet
from msgservice.core.runs import (
    BEHIND,
    FINAL,
    FLIGHT,
    READY,
    WAITING,
    OpenRuns,
    Run,
    Settled,
    cut_run,
    first_of,
)
from msgservice.message import Status, cut_messages


class StuckLane:
    """A lane whose head waits for another try or has it; the rest of the lane is behind."""

    __slots__ = ("behind", "head")

    def __init__(self, head: Run) -> None:
        self.head = head
        self.behind: list[Run] = []  # rising


class RunStates:
    """See the module. What is loaded and not final is open; `cursor`: all below it is final."""

    def __init__(self, ordered: bool, cursor: int) -> None:
        self.ordered = ordered
        self.loaded_to = cursor  # everything up to here was offered
        self.in_flight_messages = 0
        self.in_flight_bytes = 0
        self._open = OpenRuns()
        self._ready: deque[Run] = deque()
        self._ready_messages = 0
        self._ready_bytes = 0
        self._behind = 0  # runs
        self._behind_bytes = 0
        self._waiting = 0  # runs
        self._waiting_bytes = 0
        self._lanes: dict[Hashable, StuckLane] = {}
        self._retries: list[tuple[float, int, Run]] = []  # due, first, run
        self._above = RangeSet()  # final, above the cursor
        self._settled: list[Settled] = []

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
        """Nothing is loaded that is not final."""
        return not self._open

    @property
    def above(self) -> RangeSet:
        """What is final above the cursor; not to be changed."""
        return self._above

    @property
    def waiting(self) -> list[Run]:
        """Runs that wait for another try; `due` says when."""
        return [run for _, _, run in self._retries if run.state == WAITING]

    @property
    def ready(self) -> tuple[int, int]:
        """Messages and bytes that wait for nothing but being sent."""
        return self._ready_messages, self._ready_bytes

    def in_flight_at(self, sequence: int) -> bool:
        """Whether this sequence was sent and is not answered."""
        return any(run.state == FLIGHT for run in self._open.between(sequence, sequence))

    @property
    def has_settled(self) -> bool:
        """Whether something became final since the last `take_settled`."""
        return bool(self._settled)

    # --- changes of state

    def _make_ready(self, run: Run) -> None:
        run.state = READY
        self._ready.append(run)
        self._ready_messages += run.count
        self._ready_bytes += run.size

    def _put_behind(self, stuck: StuckLane, run: Run) -> None:
        if run.state == WAITING:
            self._wait_no_more(run)
        run.state = BEHIND
        behind = stuck.behind
        if not behind or run.first > behind[-1].first:
            behind.append(run)
        else:
            behind.insert(bisect_left(behind, run.first, key=first_of), run)
        self._behind += 1
        self._behind_bytes += run.size

    def _refill_ready(self) -> None:
        """Build the queue of ready runs anew from what is open."""
        self._ready.clear()
        self._ready_messages = self._ready_bytes = 0
        for run in self._open:
            if run.state == READY:
                self._make_ready(run)

    def _wait(self, run: Run, due: float) -> None:
        """Let the run wait for another try; where order is kept, its lane waits behind it."""
        if run.state != WAITING:
            self._waiting += 1
            self._waiting_bytes += run.size
        run.state, run.due = WAITING, due
        heapq.heappush(self._retries, (due, run.first, run))
        if not self.ordered:
            return
        stuck = self._lanes.get(run.lane)
        if stuck is not None and stuck.head is run:
            return
        behind = [
            r for r in self._open if r.lane == run.lane and r.first > run.first and r is not run
        ]
        ready = any(r.state == READY for r in behind)
        self._release(stuck)
        stuck = self._lanes[run.lane] = StuckLane(run)
        for other in behind:
            if other.state == FLIGHT:
                self._land(other)
            self._put_behind(stuck, other)
        if ready:
            self._refill_ready()

    def _wait_no_more(self, run: Run) -> None:
        self._waiting -= 1
        self._waiting_bytes -= run.size

    def _release(self, stuck: StuckLane | None) -> None:
        """The lane is no longer stuck; the caller says what becomes of what was behind."""
        if stuck is not None:
            del self._lanes[stuck.head.lane]
            self._behind -= len(stuck.behind)
            self._behind_bytes -= sum(run.size for run in stuck.behind)

    def _split(self, run: Run, at: int) -> Run:
        """Cut an open run before sequence `at`; return the new run that begins there."""
        size, count = run.size, run.count
        rest = cut_run(run, at, run.last)
        head_messages = cut_messages(run.messages, 0, at - run.first)
        run.messages, run.size, run.count = head_messages, len(head_messages), at - run.first
        grown = run.size + rest.size - size
        self._open.add(rest)
        if run.state == FLIGHT:
            rest.state = FLIGHT
            self.in_flight_bytes += grown
        elif run.state == READY and run in self._ready:
            self._ready.insert(self._ready.index(run) + 1, rest)
            self._ready_bytes += grown
        elif run.state == BEHIND:
            self._behind_bytes += run.size - size
            self._put_behind(self._lanes[run.lane], rest)
        elif run.state == WAITING:
            self._waiting_bytes += run.size - size
            if self.ordered:
                self._put_behind(self._lanes[run.lane], rest)
            else:
                self._wait(rest, run.due)
        assert run.count + rest.count == count
        return rest

    def _land(self, run: Run) -> None:
        run.state = READY
        self.in_flight_messages -= run.count
        self.in_flight_bytes -= run.size

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
        if run.state == FLIGHT:
            self.in_flight_messages -= run.count
            self.in_flight_bytes -= run.size
        elif run.state == BEHIND:
            self._lanes[run.lane].behind.remove(run)
            self._behind -= 1
            self._behind_bytes -= run.size
        elif run.state == READY:  # its place in the queue goes when it is its turn
            self._ready_messages -= run.count
            self._ready_bytes -= run.size
        elif run.state == WAITING:
            self._wait_no_more(run)
        run.state = FINAL
        lowest = self._open.lowest()
        self._open.discard(run)
        last = run.first + run.count - 1
        self._settled.append(Settled(run, run.first, last, status, reason, action))
        if lowest is not run:
            # From `after` on: what lies between is nobody's, so that ranges meet.
            self._above.add(run.after + 1, last)
        elif self._above:
            self._trim_above()
        if self._lanes:
            stuck = self._lanes.get(run.lane)
            if stuck is not None and stuck.head is run:
                self._release(stuck)
                for behind in reversed(stuck.behind):  # older than what is ready: before it
                    behind.state = READY
                    self._ready.appendleft(behind)
                    self._ready_messages += behind.count
                    self._ready_bytes += behind.size

    def _trim_above(self) -> None:
        self._above.remove_below(self.cursor + 1)

    def _pop_ready(self) -> None:
        run = self._ready.popleft()
        self._ready_messages -= run.count
        self._ready_bytes -= run.size

    # --- to the world

    def take_settled(self) -> list[Settled]:
        """What became final since the last call, in the order it did."""
        settled, self._settled = self._settled, []
        return settled
