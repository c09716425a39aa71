"""The stuck lanes of one backlog: what blocks each of them, and what of it is behind. Sans-IO.

A lane is stuck while its head waits for its next attempt or has it, or while a dead letter of it is
not stored. Behind that nothing of it is sent (SEMANTICS 3). An owner killed before a dead letter is
stored would send the dead one again, behind what came after it.

The lanes are indexed when the first of them gets stuck, since before that nobody asks for one. What
a run's state is, and the counts of these, are the backlog's: it is told which runs change.
"""

from __future__ import annotations

from collections.abc import Hashable

from msgservice.core.runs import BEHIND, READY, OpenRuns, Run
from msgservice.limits import INTEGER_MAX


class StuckLane:
    """A lane that is blocked; what is not in flight of it is behind."""

    __slots__ = ("behind", "head", "letters")

    def __init__(self, head: Run | None, letters: int = 0) -> None:
        self.head = head  # it waits for its next attempt or has it; None: only letters block
        self.letters = letters  # messages of it that are dead, and not stored as that
        self.behind = OpenRuns()


class StuckLanes:
    """The lanes among `open_runs` that are blocked. None at all is the usual case."""

    __slots__ = ("_open", "by_lane", "fronts")

    def __init__(self, open_runs: OpenRuns) -> None:
        self.by_lane: dict[Hashable, StuckLane] = {}
        # By lane: what is open of it and not behind (`note`). None: no lane was stuck yet.
        self.fronts: dict[Hashable, OpenRuns] | None = None
        self._open = open_runs

    def waits_for_letters(self, lane: Hashable) -> bool:
        """Whether a dead letter of the lane is not stored."""
        stuck = self.by_lane.get(lane)
        return stuck is not None and stuck.letters > 0

    def front(self, lane: Hashable) -> OpenRuns:
        """The open runs of a lane that are not behind its head; for lanes that have such runs."""
        if self.fronts is None:
            self.fronts = {}
            for run in self._open:
                if run.state != BEHIND:
                    self.note(run)
        return self.fronts[lane]

    def note(self, run: Run) -> None:
        """An open run is not behind the head of its lane."""
        assert self.fronts is not None
        front = self.fronts.get(run.lane)
        if front is None:
            front = self.fronts[run.lane] = OpenRuns()
        front.add(run)

    def take_back(self, head: Run) -> list[Run]:
        """The lane is blocked behind this run until it is settled; return what is behind now."""
        lane = head.lane
        stuck = self.by_lane.get(lane)
        if stuck is None:
            stuck = self.by_lane[lane] = StuckLane(head)
        stuck.head = head
        front = self.front(lane)
        if len(front) == 1 and head.first in front.by_first:
            return []
        return self._put_behind(stuck, front.between(head.last + 1, INTEGER_MAX))

    def block(self, run: Run) -> list[Run]:
        """A run is about to be dead: no more of its lane is sent before that is stored.

        Returns what is behind now; what is in flight stays there.
        """
        lane = run.lane
        stuck, back = self.by_lane.get(lane), []
        if stuck is None:
            back = [one for one in self.front(lane) if one.state == READY and one is not run]
            stuck = self.by_lane[lane] = StuckLane(None)
        stuck.letters += run.count
        return self._put_behind(stuck, back)

    def _put_behind(self, stuck: StuckLane, back: list[Run]) -> list[Run]:
        if back:
            front = self.front(back[0].lane)
            for run in back:
                front.discard(run)
            stuck.behind.add_all(back)
        return back

    def settled(self, run: Run, *, was_behind: bool) -> list[Run]:
        """A run is final; return what is behind no more, if nothing blocks its lane any more."""
        lane, fronts = run.lane, self.fronts
        assert fronts is not None
        stuck = self.by_lane.get(lane)
        if was_behind:
            assert stuck is not None
            stuck.behind.discard(run)
            return []
        front = fronts[lane]
        front.discard(run)
        freed: list[Run] = []
        if stuck is not None and stuck.head is run:
            stuck.head = None
            if not stuck.letters:
                freed = self.release(lane)
        if not front:
            del fronts[lane]
            self._drop_index()
        return freed

    def letters_stored(self, lane: Hashable, count: int) -> tuple[list[Run], Run | None]:
        """So many dead letters of a lane are stored; return what is behind no more, and the head.

        The head, if that is what still blocks the lane, may have its next attempt.
        """
        stuck = self.by_lane.get(lane)
        if stuck is None or not stuck.letters:
            return [], None  # it had no lane, for no order was kept at the time
        stuck.letters -= count
        if stuck.letters or stuck.head is not None:
            return [], None if stuck.letters else stuck.head
        freed = self.release(lane)
        self._drop_index()
        return freed, None

    def release(self, lane: Hashable) -> list[Run]:
        """The lane is unblocked; return what is behind no more."""
        behind = list(self.by_lane.pop(lane).behind)
        if behind:
            assert self.fronts is not None  # while a lane is stuck
            self.fronts.setdefault(lane, OpenRuns()).add_all(behind)
        return behind

    def _drop_index(self) -> None:
        if not self.fronts and not self.by_lane:
            self.fronts = None

    def unload(self) -> None:
        """No run is open any more; what blocks a lane besides its head does so still."""
        lanes = self.by_lane.items()
        self.by_lane = {
            lane: StuckLane(None, stuck.letters) for lane, stuck in lanes if stuck.letters
        }
        self.fronts = {} if self.by_lane else None
