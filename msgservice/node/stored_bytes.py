"""Bytes that were stored for sets of receivers, and how many of them wait for one receiver.

A batch is counted once, for its set. How much that is for one receiver of many sets is added up
when somebody asks; two bounds, which cost nothing to keep, say whether anybody needs to.
"""

from __future__ import annotations

from collections.abc import Collection


class StoredBytes:
    """The bytes that were stored since the start: of all batches, and by number of their set."""

    __slots__ = ("by_set", "total")

    def __init__(self) -> None:
        self.total = 0
        self.by_set: dict[int, int] = {}


class QueuedBytes:
    """The bytes of the batches that wait for one receiver: of its sets, less what it has settled.

    `sets`: the numbers of those that it is in; it grows and shrinks.
    """

    __slots__ = ("_besides", "_sets", "_stored", "at_least", "beyond_total")

    def __init__(self, stored: StoredBytes, sets: Collection[int]) -> None:
        self._stored = stored
        self._sets = sets
        self._besides = 0  # what waits, less what was stored for its sets
        self.at_least = 0  # what waits at least
        # What waits at most, less all that was stored; read for each receiver at each judgement.
        self.beyond_total = -stored.total

    @property
    def at_most(self) -> int:
        """The bytes that wait at most: as if all since the last look were for this receiver."""
        return self.beyond_total + self._stored.total

    def add(self, size: int) -> None:
        """Batches of so many bytes wait besides those before; of less than none, do no more."""
        self._besides += size
        self.beyond_total += size
        self.at_least += size

    def look(self) -> int:
        """Return the bytes that wait, exactly: adds up what was stored for its sets."""
        by_set = self._stored.by_set
        waiting = self._besides + sum([by_set[number] for number in self._sets])
        self.beyond_total = waiting - self._stored.total
        self.at_least = waiting
        return waiting

    def leave(self, size: int) -> None:
        """The receiver leaves a set that so many bytes were stored for; what waits is the same."""
        self._besides += size
