"""The flight limit of one receiver: how many messages it is sent at once after losses. Sans-IO.

A connection that is lost with messages unanswered leaves a quarter of it, each flight that is
answered whole doubles it, up to the window, where it ends. So a message that the other side dies of
is alone in flight after a few losses, and is found without sending everything again and again. From
then on it is a suspect: each of its attempts is alone in flight, and costs one connection.

Who is alone when a connection is lost need not be why: the other side may die of anything, and
something is in its hands each time. So a further loss counts against a suspect only where the other
side had shown before that it lives without it: it had lost no connection for twice as long as the
one had stood that was lost before. Where it loses one meanwhile, the suspect is excused: it is sent
again as soon as it is due, and what becomes of it then says nothing.

It outlives connections, and belongs to the receiver, not to one of its connections. Which runs are
in flight, and what is sent, is the business of `core.backlog` and `core.flight`.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgservice.core.ranges import RangeSet
from msgservice.core.runs import Run

LEFT = 4  # a part in so many of what was in flight is left of the limit by a loss
OUTLIVES = 2  # times as long must the other side live without a suspect as until it died with it


class Suspect:
    """The record of a message that was lost alone, and not answered since.

    `losses`: those that count. `needs`: seconds for which the other side must have lost no
    connection before the next counts. `is_excused`: it lost one without this message, since this
    was sent last. `counts`: it was sent after such a time.
    """

    __slots__ = ("counts", "is_excused", "losses", "needs")

    def __init__(self, needs: float) -> None:
        self.losses = 1
        self.needs = needs
        self.is_excused = self.counts = False


class FlightLimit:
    """The flight limit of one receiver, and which sequences must be answered before it grows.

    `outlives_max`: seconds without a lost connection that are enough in any case; of a connection
    that stood for longer it counts how long it had the message. None: each loss of a message that
    is alone counts against it.
    """

    __slots__ = ("_is_proved", "_quiet_since", "_unproven", "most", "outlives_max", "suspects")

    def __init__(self, outlives_max: float | None = None) -> None:
        self.most: int | None = None  # messages; None: the window alone says so
        self.outlives_max = outlives_max
        self._unproven = RangeSet()  # empty unless there is a limit
        self._is_proved = False  # the last of these was answered
        # By first sequence, messages that were lost alone, and not answered since: they are sent
        # alone again. Else each attempt at one costs as many losses as it took to find it.
        self.suspects: dict[int, Suspect] = {}
        self._quiet_since = 0.0  # a connection was lost last, or the first of those that stand came

    @property
    def is_proving(self) -> bool:
        """Whether a flight is being proved: some of it is not answered yet."""
        return bool(self._unproven)

    def begin(self, now: float, *, beside_others: bool) -> None:
        """A connection begins: what was answered before it proves nothing of its first flight."""
        self._is_proved = False
        if not beside_others:
            self._quiet_since = now

    def forget_below(self, sequence: int) -> None:
        """Messages below are final, also where none of them was loaded when it became so."""
        for first in [first for first in self.suspects if first < sequence]:
            del self.suspects[first]

    def prove(self, runs: Iterable[Run]) -> None:
        """These runs must be answered before the limit grows."""
        for run in runs:
            self._unproven.add(run.first, run.last)

    def answered(self, run: Run) -> None:
        """A run was answered, or is not to be sent for now."""
        unproven = self._unproven
        if unproven:
            unproven.remove(run.first, run.last)
            if not unproven:
                self._is_proved = True

    def clear(self, run: Run) -> None:
        """The other side has answered about a run, or none is awaited any more."""
        self.suspects.pop(run.first, None)

    def grow(self, window_messages: int) -> None:
        """Double the limit if a whole flight was answered; at the window it ends."""
        if self._is_proved:
            self._is_proved = False
            if self.most is not None:
                self.most *= 2
                if self.most >= window_messages:
                    self.most = None
                    self._unproven = RangeSet()  # of the flight that was begun since

    # --- losses

    def lost(self, messages: int) -> None:
        """A connection was lost with so many messages unanswered: a quarter of that is left."""
        most = max(1, messages // LEFT)
        # One of several connections may have had more, sent before the others were lost.
        self.most = most if self.most is None else min(self.most, most)
        self._unproven = RangeSet()

    def lost_one(self, now: float, alone: Run | None, age: float = 0.0, held: float = 0.0) -> bool:
        """A connection was lost; `alone`: the one message in flight there, where that is suspected.

        `age`, `held`: for how many seconds it stood, and had this. Returns whether the loss counts
        against it.
        """
        self._quiet_since = now
        suspect = None if alone is None else self.suspects.get(alone.first)
        if suspect is None:  # not of a suspect: none of them was there
            for one in self.suspects.values():
                one.is_excused, one.counts = True, False
        if alone is None:
            return False
        most = self.outlives_max
        needs = 0.0 if most is None else min(OUTLIVES * (age if age < most else held), most)
        if suspect is None:
            self.suspects[alone.first] = Suspect(needs)
            return True
        suspect.needs = max(suspect.needs, needs)
        if most is not None and not suspect.counts:
            return False
        suspect.losses += 1
        return True

    def losses(self, run: Run) -> int:
        """How many losses count against a message."""
        suspect = self.suspects.get(run.first)
        return 0 if suspect is None else suspect.losses

    def held_until(self, run: Run) -> float:
        """When a suspect may be sent again, so that a loss counts; of another message 0."""
        suspect = self.suspects.get(run.first)
        if suspect is None or suspect.is_excused or self.outlives_max is None:
            return 0.0
        return self._quiet_since + suspect.needs

    def sent(self, run: Run, now: float) -> None:
        """A suspect is sent, alone."""
        suspect = self.suspects[run.first]
        suspect.counts = now - self._quiet_since >= suspect.needs
        suspect.is_excused = False
