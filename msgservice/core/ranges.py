"""A set of integers kept as sorted, disjoint, inclusive ranges.

Used wherever something is "taken", "settled" or "open": dense sets cost one entry. Adding at the
end, the usual case, costs O(1); anywhere else O(log n) to find and O(n) to move list entries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
_NONE: tuple[Range, ...] = ()


class RangeSet:
    """A mutable set of integers; iterating gives its ranges as `(first, last)`, rising.

    `firsts` and `lasts` are for who only wants to know whether there is any, lets the last range
    grow, or puts in the first: nobody else changes them.
    """

    __slots__ = ("firsts", "lasts")

    def __init__(self, ranges: Iterable[Range] = _NONE) -> None:
        self.firsts: list[int] = []
        self.lasts: list[int] = []
        if ranges is not _NONE:
            for first, last in sorted(ranges):  # each is added at the end
                self.add(first, last)

    def __iter__(self) -> Iterator[Range]:
        return iter([*zip(self.firsts, self.lasts, strict=True)])

    def __len__(self) -> int:
        """The number of ranges, not of integers."""
        return len(self.firsts)

    def __bool__(self) -> bool:
        return bool(self.firsts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self.firsts == other.firsts and self.lasts == other.lasts

    __hash__ = None  # type: ignore[assignment]  # mutable, so it has no hash

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.firsts, number) - 1
        return at >= 0 and number <= self.lasts[at]

    @property
    def count(self) -> int:
        """The number of integers."""
        return sum(self.lasts) - sum(self.firsts) + len(self.firsts)

    @property
    def first(self) -> int | None:
        """The lowest integer, or None."""
        return self.firsts[0] if self.firsts else None

    @property
    def last(self) -> int | None:
        """The highest integer, or None."""
        return self.lasts[-1] if self.lasts else None

    def begun_below(self, number: int) -> int:
        """Return how many ranges begin below `number`."""
        return bisect_left(self.firsts, number)

    def lowest(self, count: int) -> list[Range]:
        """Return the lowest `count` ranges, rising, or as many as there are."""
        return list(zip(self.firsts[:count], self.lasts[:count], strict=True))

    def from_(self, number: int, count: int) -> list[Range]:
        """Return the next `count` ranges that reach `number` or lie above it, rising."""
        at = bisect_left(self.lasts, number)
        return list(zip(self.firsts[at : at + count], self.lasts[at : at + count], strict=True))

    def copy(self) -> RangeSet:
        """Return an independent copy."""
        new = RangeSet()
        new.firsts = self.firsts.copy()
        new.lasts = self.lasts.copy()
        return new

    def add(self, first: int, last: int) -> None:
        """Add all from `first` to `last`; nothing if `last` is below `first`."""
        if last < first:
            return
        firsts, lasts = self.firsts, self.lasts
        if not firsts or first > lasts[-1] + 1:
            firsts.append(first)
            lasts.append(last)
            return
        if first >= firsts[-1]:
            if last > lasts[-1]:
                lasts[-1] = last
            return
        low = bisect_left(lasts, first - 1)  # the first range that touches or follows
        high = bisect_right(firsts, last + 1)  # one past the last range that touches
        if low < high:
            first = min(first, firsts[low])
            last = max(last, lasts[high - 1])
        firsts[low:high] = [first]
        lasts[low:high] = [last]

    def remove(self, first: int, last: int) -> None:
        """Remove all from `first` to `last` that are there."""
        if last < first:
            return
        firsts, lasts = self.firsts, self.lasts
        low = bisect_left(lasts, first)
        high = bisect_right(firsts, last)
        if low >= high:
            return
        if low + 1 == high and firsts[low] >= first and lasts[low] <= last:
            del firsts[low], lasts[low]
            return
        new_firsts: list[int] = []
        new_lasts: list[int] = []
        if firsts[low] < first:
            new_firsts.append(firsts[low])
            new_lasts.append(first - 1)
        if lasts[high - 1] > last:
            new_firsts.append(last + 1)
            new_lasts.append(lasts[high - 1])
        firsts[low:high] = new_firsts
        lasts[low:high] = new_lasts

    def take_all(self) -> list[Range]:
        """Return the ranges, rising, and remove them."""
        ranges = [*zip(self.firsts, self.lasts, strict=True)]
        self.firsts.clear()
        self.lasts.clear()
        return ranges

    def remove_below(self, number: int) -> None:
        """Remove all that are lower than `number`."""
        firsts = self.firsts
        if firsts and firsts[0] < number:
            if number <= self.lasts[0]:  # of the lowest range alone
                firsts[0] = number
            else:
                self.remove(firsts[0], number - 1)

    def covers(self, first: int, last: int) -> bool:
        """Whether all from `first` to `last` are there."""
        firsts = self.firsts
        if firsts and first >= firsts[-1]:
            return last <= self.lasts[-1]
        at = bisect_right(self.firsts, first) - 1
        return at >= 0 and last <= self.lasts[at]

    def range_of(self, number: int) -> Range | None:
        """Return the whole range that holds `number`, or None."""
        at = bisect_right(self.firsts, number) - 1
        if at >= 0 and number <= self.lasts[at]:
            return self.firsts[at], self.lasts[at]
        return None

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any from `first` to `last` is there."""
        at = bisect_left(self.lasts, first)
        return at < len(self.firsts) and self.firsts[at] <= last

    def within(self, first: int, last: int) -> list[Range]:
        """Return the parts of `first` to `last` that are there, rising."""
        parts = []
        firsts, lasts = self.firsts, self.lasts
        at = bisect_left(lasts, first)
        while at < len(firsts) and firsts[at] <= last:
            parts.append((max(first, firsts[at]), min(last, lasts[at])))
            at += 1
        return parts

    def missing(self, first: int, last: int) -> list[Range]:
        """Return the parts of `first` to `last` that are not there, rising."""
        lasts = self.lasts
        if first <= last and (not lasts or first > lasts[-1]):
            return [(first, last)]
        parts = []
        for low, high in self.within(first, last):
            if first < low:
                parts.append((first, low - 1))
            first = high + 1
        if first <= last:
            parts.append((first, last))
        return parts
