"""Keys in their order, of which a page costs no look at the others, however many there are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

PART = 512  # keys that are moved at most where one is added or removed


class SortedKeys:
    """Keys of streams, each there once, in their order."""

    __slots__ = ("_firsts", "_parts")

    def __init__(self) -> None:
        self._parts: list[list[str]] = []  # none is empty
        self._firsts: list[str] = []  # of each

    def add(self, key: str) -> None:
        """Add a key that is not there."""
        if not self._parts:
            self._parts.append([key])
            self._firsts.append(key)
            return
        at = max(bisect_right(self._firsts, key) - 1, 0)
        part = self._parts[at]
        insort(part, key)
        self._firsts[at] = part[0]
        if len(part) > PART:
            half = part[PART // 2 :]
            del part[PART // 2 :]
            self._parts.insert(at + 1, half)
            self._firsts.insert(at + 1, half[0])

    def remove(self, key: str) -> None:
        """Remove a key that is there."""
        at = bisect_right(self._firsts, key) - 1
        part = self._parts[at]
        del part[bisect_left(part, key)]
        if part:
            self._firsts[at] = part[0]
        else:
            del self._parts[at], self._firsts[at]

    def behind(self, after: str | None) -> Iterator[str]:
        """Yield the keys behind one, or all; nothing may be added or removed meanwhile."""
        at = start = 0
        if after is not None and self._parts:
            at = max(bisect_right(self._firsts, after) - 1, 0)
            start = bisect_right(self._parts[at], after)
        for part in self._parts[at:]:
            yield from part[start:]
            start = 0
