"""The node's acknowledgements to this producer, held against what it says that it has.

SEMANTICS 6: a node that has seen more than was ever sent, or other content, is not talking of this
log; one that no longer has what it acknowledged has lost it, unless it may have forgotten the whole
incarnation, all settled (SEMANTICS 5). Sans-IO; `client.hop` acts on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgservice.core.ranges import Range, RangeSet
from msgservice.limits import RESUME_RANGES_TOTAL_MAX, SENDER_KNOWN_SECONDS
from msgservice.records import Resume

# What was refused leaves holes; beyond so many ranges those that the node calls settled are closed.
RANGES_MANY = 1000
# A node has no more of a sender above its floor. Beyond that the older half is compared no more.
RANGES_MAX = RESUME_RANGES_TOTAL_MAX


class Untaken(NamedTuple):
    """Sequences that are settled, and that the node has not taken.

    `was_sent`: it has refused them; else their time was over before any of it was sent.
    """

    first: int
    last: int
    was_sent: bool


class Acked:
    """The sequences that a node has acknowledged to this producer.

    `sequence`: the last that an earlier process gave; `open_ranges`: of its sequences, those that
    are not answered yet; `untaken`: as it had them; `log_id`: of the node that it gave them to, or
    "".
    """

    def __init__(
        self,
        sequence: int,
        open_ranges: Iterable[Range],
        log_id: str = "",
        untaken: Iterable[Untaken] = (),
    ) -> None:
        self.log_id = log_id  # of the node that acknowledged; "" where that is not known
        self._left_at: float | None = None  # when it was last connected; None: in another process
        self._ranges = RangeSet([(1, sequence)])
        for first, last in open_ranges:
            self._ranges.remove(first, last)
        # Above all that the node has taken: what was settled here before any of it was sent, and
        # what the node has refused.
        self._unsent, self._refused = RangeSet(), RangeSet()
        for first, last, was_sent in untaken:
            self._ranges.remove(first, last)
            (self._refused if was_sent else self._unsent).add(first, last)
        # All the rest was answered, but some of it may have been refused: nobody knows any more.
        self._is_guess = sequence > 0
        # Who has taken anything above the first of these has been told that all up to the second
        # is settled.
        self._said: tuple[int, int] | None = None

    def add(self, first: int, last: int) -> None:
        """The node took these over."""
        self._ranges.add(first, last)
        # Its newest run is one of these, or behind them.
        for below in (self._unsent, self._refused):
            if below.firsts and below.firsts[0] < first:
                below.remove_below(first)

    def not_taken(self, first: int, last: int, *, was_sent: bool) -> None:
        """These were settled, and the node has not taken them: see `Untaken`."""
        ranges = self._refused if was_sent else self._unsent
        ranges.add(first, last)
        if len(ranges) > RANGES_MANY:
            lowest = ranges.lowest(RANGES_MANY // 2)
            ranges.remove_below(lowest[-1][1] + 1)

    @property
    def untaken(self) -> list[Untaken]:
        """The newest that the node has not taken, as another process is to know them."""
        return [
            *(Untaken(first, last, False) for first, last in self._unsent),
            *(Untaken(first, last, True) for first, last in self._refused),
        ]

    def is_contradicted(self, resume: Resume) -> bool:
        """Whether the newest run that a node has is one that was never sent: by another then.

        The outbox is older than what the node knows of it, and has given these sequences again.
        """
        return resume.last is not None and self._unsent.overlaps(*resume.last[:2])

    def close_holes(self, settled_to: int, given_to: int) -> None:
        """Where there are many holes, those that the node has heard to be settled are closed.

        `settled_to`: what is sent from now on says that nothing up to there is open. `given_to`:
        the last sequence so far.
        """
        ranges = self._ranges
        if len(ranges.firsts) <= RANGES_MANY:
            return
        newest, said = ranges.last or 0, self._said
        if said is None or newest > said[0]:
            if said is not None:
                ranges.add(ranges.first or 1, said[1])
            self._said = (given_to, settled_to)
        if len(ranges) > RANGES_MAX:
            ranges.remove_below(ranges.lowest(len(ranges) // 2)[-1][1] + 1)

    def left(self, now: float) -> None:
        """The connection has ended; `now` is monotonic."""
        self._left_at = now

    def is_forgotten(self, resume: Resume, log_id: str, now: float) -> bool:
        """Whether a node with the same log has forgotten an incarnation that was long away.

        All was settled then. A log that lost its tail knows nothing either of one whose first
        messages were in it; but that shows at once, and before the hour nobody is forgotten.
        """
        if highest_of(resume) or not self._ranges or log_id != self.log_id:
            return False
        return self._left_at is None or now - self._left_at >= SENDER_KNOWN_SECONDS

    def take_all(self) -> list[Range]:
        """Return all that was acknowledged; nothing is, from now on."""
        ranges = list(self._ranges)
        self.begin_anew()
        return ranges

    def begin_anew(self) -> None:
        """Another incarnation: the node has acknowledged nothing to it."""
        self._ranges, self._unsent, self._refused = RangeSet(), RangeSet(), RangeSet()
        self._is_guess = False
        self._said = None

    def take_forgotten(self, resume: Resume) -> list[Range]:
        """Return what was acknowledged and is not in `resume`; it is told once."""
        taken = RangeSet(resume.ranges)
        taken.add(1, resume.floor - 1)
        if self._is_guess and resume.last is not None:
            taken.add(1, resume.last[1])  # the holes below it are what the node refused
        self._is_guess = False
        forgotten = [gone for first, last in self._ranges for gone in taken.missing(first, last)]
        for first, last in forgotten:
            self._ranges.remove(first, last)
        return forgotten


def highest_of(resume: Resume) -> int:
    """Return the highest sequence that the node has seen."""
    seen = max([resume.floor - 1, *(last for _, last in resume.ranges)])
    return seen if resume.last is None else max(seen, resume.last[1])
