"""The stuck lanes of one backlog: what blocks each of them, and what of it is behind. Sans-IO.

A lane is stuck while its head waits for its next attempt or has it, or while a dead letter of it is
not stored. Behind that nothing of it is sent (SEMANTICS 3). An owner killed before a dead letter is
stored would send the dead one again, behind what came after it.

A lane that gets stuck has a queue of its own from then on, until that is empty: it is blocked and
goes on as a whole, whatever is in it. What of the lane was ready before stays where it is, and gets
into that queue when it is come upon, while the lane is blocked (`Backlog.steps_behind`). So neither
a retry nor a dead letter nor its end walks what is not sent of the lane.

The lanes are indexed when the first of them gets stuck, since before that nobody asks for one: as
plain lists, since of very many lanes few are ever asked for. What a run's state is, and the counts
of these, are the backlog's: it is told which runs change.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence

from msgservice.core.runs import BEHIND, FLIGHT, STALE_MAX, OpenRuns, Run, Tally


class StuckLane:
    """A lane that is blocked, or was and has not sent all of its own queue."""

    __slots__ = ("behind", "entry", "head", "letters", "tally")

    def __init__(self, letters: int = 0) -> None:
        self.head: Run | None = None  # it waits for its next attempt or has it
        self.letters = letters  # messages of it that are dead, and not stored as that
        self.behind = OpenRuns()  # its own queue
        self.tally = Tally()  # of that
        self.entry = 0  # the entry among the lanes that go on which counts, or 0

    @property
    def is_blocked(self) -> bool:
        """Whether nothing of it may be sent but its head."""
        return self.head is not None or self.letters > 0


class StuckLanes:
    """The lanes among `open_runs` that are or were blocked. None at all is the usual case.

    `ready` and `behind` are the backlog's counts: a queue is in one of them as its lane is.
    """

    __slots__ = ("_behind", "_going", "_open", "_ready", "by_lane", "fronts")

    def __init__(self, open_runs: OpenRuns, ready: Tally, behind: Tally) -> None:
        self.by_lane: dict[Hashable, StuckLane] = {}
        # By lane: what is open and not in its own queue (`note`), as a list until something of it
        # changes (`_changing`). None: no lane was stuck yet.
        self.fronts: dict[Hashable, OpenRuns | list[Run]] | None = None
        self._open = open_runs
        self._ready, self._behind = ready, behind
        # A heap of the lanes that go on, each by the lowest of its queue or lower than that. Void:
        # entries that are not the lane's `entry`.
        self._going: list[tuple[int, Hashable]] = []

    def waits_for_letters(self, lane: Hashable) -> bool:
        """Whether a dead letter of the lane is not stored."""
        stuck = self.by_lane.get(lane)
        return stuck is not None and stuck.letters > 0

    def is_blocked(self, lane: Hashable) -> bool:
        """Whether nothing of the lane may be sent but its head."""
        stuck = self.by_lane.get(lane)
        return stuck is not None and stuck.is_blocked

    # --- what is open of a lane and not in its own queue

    def front(self, lane: Hashable) -> OpenRuns:
        """The open runs of a lane that are not in its own queue; for lanes that have such runs."""
        return _changing(self._indexed(), lane)

    def _indexed(self) -> dict[Hashable, OpenRuns | list[Run]]:
        fronts = self.fronts
        if fronts is None:
            by_lane: dict[Hashable, list[Run]] = {}
            for run in self._open:
                if run.state != BEHIND:
                    front = by_lane.get(run.lane)
                    if front is None:
                        by_lane[run.lane] = [run]
                    else:
                        front.append(run)
            fronts = self.fronts = {**by_lane}
        return fronts

    def note(self, run: Run) -> None:
        """An open run is not in the queue of its lane."""
        fronts = self.fronts
        assert fronts is not None
        if run.lane in fronts:
            _changing(fronts, run.lane).add(run)
        else:
            fronts[run.lane] = OpenRuns.of([run])

    def forget(self, run: Run) -> None:
        """A run that was noted is final, or on its way into the queue of its lane."""
        fronts = self.fronts
        assert fronts is not None
        front = fronts[run.lane]
        if type(front) is not list or len(front) > 1:  # else it is this run's alone
            front = _changing(fronts, run.lane)
            front.discard(run)
            if front:
                return
        del fronts[run.lane]
        self._drop_index()

    def _drop_index(self) -> None:
        if not self.fronts and not self.by_lane:
            self.fronts = None

    # --- the queue of a lane

    def put(self, lane: Hashable, runs: Sequence[Run]) -> tuple[int, int]:
        """Put runs, which rise, into the queue of their lane; return their messages and bytes."""
        stuck = self.by_lane[lane]
        if len(runs) == 1:
            stuck.behind.add(runs[0])
        else:
            stuck.behind.add_all(runs)
        messages = size = 0
        for run in runs:
            run.state = BEHIND
            messages += run.count
            size += run.size
        self.count(lane, len(runs), messages, size)
        return messages, size

    def count(self, lane: Hashable, runs: int, messages: int, size: int) -> None:
        """Count so many more, or less, in the queue of a lane."""
        stuck = self.by_lane[lane]
        stuck.tally.count(runs, messages, size)
        (self._behind if stuck.is_blocked else self._ready).count(runs, messages, size)

    def take_out(self, run: Run) -> None:
        """Take a run out of the queue of its lane."""
        lane = run.lane
        stuck = self.by_lane[lane]
        stuck.behind.discard(run)
        self.count(lane, -1, -run.count, -run.size)
        if not stuck.behind and not stuck.is_blocked:
            del self.by_lane[lane]
            self._drop_index()

    def first(self) -> Run | None:
        """The lowest run in the queues of lanes that go on, or None."""
        going = self._going
        while going:
            first, lane = going[0]
            stuck = self.by_lane.get(lane)
            if stuck is None or stuck.entry != first:
                heapq.heappop(going)
            elif stuck.is_blocked:
                heapq.heappop(going)
                stuck.entry = 0
            else:
                run = stuck.behind.lowest()
                assert run is not None  # it has one, or is dropped
                if run.first == first:
                    return run
                stuck.entry = run.first
                heapq.heapreplace(going, (run.first, lane))
        return None

    # --- what blocks a lane

    def take_back(self, head: Run) -> tuple[list[Run], Run | None]:
        """The lane is blocked behind this run until it is settled; return what is taken back.

        That is what was sent of it behind the head, and the head that it had so far, if that waits.
        """
        stuck = self._block(head.lane)
        former, stuck.head = stuck.head, head
        front = self.front(head.lane)
        if len(front) == 1 and head.first in front.by_first:
            return [], None
        # What is not sent of a lane lies above what is.
        back = front.take_above(head.first, FLIGHT)
        if former is None or former is head or former.first not in front.by_first:
            return back, None
        front.discard(former)
        return back, former

    def block(self, run: Run) -> None:
        """A run is about to be dead: no more of its lane is sent before that is stored.

        What is in flight stays there.
        """
        self._indexed()
        self._block(run.lane).letters += run.count

    def _block(self, lane: Hashable) -> StuckLane:
        """The lane, which is to be blocked now; its queue counts as behind from here on."""
        stuck = self.by_lane.get(lane)
        if stuck is None:
            stuck = self.by_lane[lane] = StuckLane()
        elif not stuck.is_blocked:
            stuck.tally.move(self._ready, self._behind)
        return stuck

    def settled(self, run: Run) -> None:
        """A run that was not in its lane's queue is final: the lane goes on, if nothing else is."""
        stuck = self.by_lane.get(run.lane)
        if stuck is not None and stuck.head is run:
            stuck.head = None
            if not stuck.letters:
                self._go_on(run.lane, stuck)
        self.forget(run)

    def letters_stored(self, lane: Hashable, count: int) -> Run | None:
        """So many dead letters of a lane are stored.

        Returns the head, if that is what still blocks the lane: it may have its next attempt.
        """
        stuck = self.by_lane.get(lane)
        if stuck is None or not stuck.letters:
            return None  # it had no lane, for no order was kept at the time
        stuck.letters -= count
        if not stuck.is_blocked:
            self._go_on(lane, stuck)
            self._drop_index()
        return None if stuck.letters else stuck.head

    def release(self, lane: Hashable) -> None:
        """The head of a lane is ready as any other: what is behind it goes on."""
        stuck = self.by_lane[lane]
        stuck.head = None
        self._go_on(lane, stuck)

    def _go_on(self, lane: Hashable, stuck: StuckLane) -> None:
        """Nothing blocks a lane any more."""
        lowest = stuck.behind.lowest()
        if lowest is None:
            del self.by_lane[lane]
            return
        stuck.tally.move(self._behind, self._ready)
        if stuck.entry != lowest.first:
            stuck.entry = lowest.first
            going = self._going
            heapq.heappush(going, (lowest.first, lane))
            if len(going) > STALE_MAX + 2 * len(self.by_lane):
                self._going = sorted(
                    (one.entry, name) for name, one in self.by_lane.items() if one.entry
                )

    def unload(self) -> None:
        """No run is open any more; what blocks a lane besides its head does so still."""
        lanes = self.by_lane.items()
        self.by_lane = {lane: StuckLane(one.letters) for lane, one in lanes if one.letters}
        self.fronts = {} if self.by_lane else None
        self._going = []


def _changing(fronts: dict[Hashable, OpenRuns | list[Run]], lane: Hashable) -> OpenRuns:
    """Return what an index has of a lane, as what can change."""
    front = fronts[lane]
    if type(front) is list:
        front = fronts[lane] = OpenRuns.of(front)
    assert type(front) is OpenRuns
    return front
