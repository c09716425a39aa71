"""Bytes as a row of decisions: what a fuzzer mutates becomes what a test does next.

Any bytes are a row, and the end of the bytes is the end of the row: an input can be cut or joined
anywhere and still says something. Small changes of the bytes are small changes of what is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# What goes wrong at its edges, in fields of any width.
EDGES = (0, 1, 2, 3, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40,
         2**53, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)  # fmt: skip


class Choices:
    """Reads decisions from bytes; behind their end every decision is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return max(0, len(self._data) - self._at)

    def byte(self) -> int:
        """Return the next byte, 0 behind the end."""
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def below(self, count: int) -> int:
        """Return a number from 0 to `count` - 1; `count` is at most 65,536."""
        value = self.byte() if count <= 256 else self.byte() << 8 | self.byte()
        return value % count

    def of(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(self.left)

    def number(self, near: Sequence[int] = ()) -> int:
        """Return a number of 64 bits: small, at an edge of a field, or close to one of `near`."""
        kind = self.byte()
        if kind < 64:
            return kind
        if kind < 128 or not near:
            return EDGES[kind % len(EDGES)]
        found = near[kind % len(near)] + self.below(9) - 4
        return min(max(found, 0), 2**64 - 1)
