"""Marks of a sender: which sequences of an incarnation were taken, as a floor and ranges above it.

What a log and a stored inbox keep of each incarnation; who decides what is taken is `core.inbox`
and `log.dedupe`.
"""

from __future__ import annotations

import msgspec

from msgservice.core.ranges import RangeSet

Key = tuple[str, str]  # (sender's name, incarnation)

# Holes that a receiver leaves below what its sender has settled, the newest: so many ranges more.
HOLES_MAX = 100


def raised_floor(floor: int, taken: RangeSet, settled: int) -> int:
    """A receiver's floor, whose sender has settled all below `settled`: it passes what was taken.

    A hole is what was rejected, or given up by the sender. A log that goes back to before that has
    it open again: counted as taken, it would be acknowledged there and never be handled. So the
    floor passes no hole, but the oldest of more than `HOLES_MAX`.
    """
    passed = taken.range_of(floor)
    many = taken.begun_below(settled) - HOLES_MAX
    if many > 0:
        passed = taken.lowest(many)[-1]
    return floor if passed is None else max(floor, min(passed[1] + 1, settled))


class SenderState:
    """The marks of one incarnation: taken is all below `floor`, and `ranges` above it."""

    __slots__ = ("floor", "id", "key", "last", "ranges", "seen_at", "status_from")

    def __init__(self, number: int, key: Key, seen_at: int) -> None:
        self.id = number
        self.key = key
        self.floor = 1
        self.ranges: RangeSet | None = None  # None: nothing above the floor
        self.last: tuple[int, int, int] | None = None
        self.status_from = 1
        self.seen_at = seen_at  # age of the log, ms, when it was last heard of

    def copy(self) -> SenderState:
        """Return a copy whose change leaves this one alone."""
        new = SenderState(self.id, self.key, self.seen_at)
        new.floor = self.floor
        new.ranges = self.ranges.copy() if self.ranges is not None else None
        new.last = self.last
        new.status_from = self.status_from
        return new

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the parts of `first` to `last` that were not taken."""
        first = max(first, self.floor)
        if last < first:
            return []
        return self.ranges.missing(first, last) if self.ranges is not None else [(first, last)]

    @property
    def highest(self) -> int:
        """The highest sequence that was taken, or that `last` names."""
        highest = self.floor - 1 if self.ranges is None else self.ranges.last or 0
        return highest if self.last is None else max(highest, self.last[1])

    def settle_below(self, floor: int) -> None:
        """The sender says that nothing below `floor` is open: it will not come again."""
        self.floor = max(self.floor, floor)
        if self.ranges is not None:
            self.take(self.floor, self.floor - 1)

    def take(self, first: int, last: int) -> None:
        """Mark all from `first` to `last` as taken."""
        ranges = self.ranges
        if ranges is None:
            if first <= self.floor:
                self.floor = max(self.floor, last + 1)
                return
            ranges = self.ranges = RangeSet()
        ranges.add(first, last)
        ranges.remove_below(self.floor)
        if ranges.first is not None and ranges.first <= self.floor:
            joined = next(iter(ranges))[1]
            self.floor = joined + 1
            ranges.remove_below(self.floor)
        if not ranges:
            self.ranges = None


def encode_ranges(sender: SenderState) -> bytes:
    """Return the ranges above the floor as they are kept in the table."""
    return msgspec.msgpack.encode(list(sender.ranges) if sender.ranges is not None else [])
