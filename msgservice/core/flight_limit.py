"""The flight limit of one receiver: how many messages it is sent at once after losses. Sans-IO.

A connection that is lost with messages unanswered halves it, each flight that is answered whole
doubles it, up to the window, where it ends. So a message that the other side dies of is alone in
flight after a few losses, and is found without sending everything again and again. From then on
it is a suspect: each of its attempts is alone in flight, and costs one connection.

It outlives connections, and belongs to the receiver, not to one of its connections. Which runs are
in flight, and what is sent, is the business of `core.backlog` and `core.flight`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgservice.core.ranges import RangeSet
from msgservice.core.runs import FINAL, Run


class FlightLimit:
    """The flight limit of one receiver, and which sequences must be answered before it grows."""

    __slots__ = ("_is_proved", "_unproven", "most", "suspects")

    def __init__(self) -> None:
        self.most: int | None = None  # messages; None: the window alone says so
        self._unproven = RangeSet()  # empty unless there is a limit
        self._is_proved = False  # the last of these was answered
        # First sequences of messages that were lost alone, and not answered since: they are sent
        # alone again. Else each attempt at one costs as many losses as it took to find it.
        self.suspects: set[int] = set()

    @property
    def is_proving(self) -> bool:
        """Whether a flight is being proved: some of it is not answered yet."""
        return bool(self._unproven)

    def begin(self) -> None:
        """A connection begins: what was answered before it proves nothing of its first flight."""
        self._is_proved = False

    def prove(self, runs: Iterable[Run]) -> None:
        """These runs must be answered before the limit grows."""
        for run in runs:
            self._unproven.add(run.first, run.last)

    def answered(self, run: Run) -> None:
        """A run was answered, or is not to be sent for now."""
        self.suspects.discard(run.first)
        unproven = self._unproven
        if unproven:
            unproven.remove(run.first, run.last)
            if not unproven:
                self._is_proved = True

    def suspect(self, run: Run) -> None:
        """A message was lost alone: what becomes of it is seen alone, until it is answered."""
        if run.state != FINAL:
            self.suspects.add(run.first)

    def grow(self, window_messages: int) -> None:
        """Double the limit if a whole flight was answered; at the window it ends."""
        if self._is_proved:
            self._is_proved = False
            if self.most is not None:
                self.most *= 2
                if self.most >= window_messages:
                    self.most = None
                    self._unproven = RangeSet()  # of the flight that was begun since

    def lost(self, messages: int) -> None:
        """A connection was lost with so many messages unanswered: half of that is the limit."""
        most = max(1, messages // 2)
        # One of several connections may have had more, sent before the others were lost.
        self.most = most if self.most is None else min(self.most, most)
        self._unproven = RangeSet()
