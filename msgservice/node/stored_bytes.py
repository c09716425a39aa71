"""Bytes that were stored for sets of receivers, and how many of them wait for one receiver.

A batch is counted once, for its set. How much that is for one receiver of many sets is added up
when somebody asks; two bounds, which cost nothing to keep, say whether anybody needs to. What is
settled of a batch in parts adds up to its bytes, whoever knows how large each was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple


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


class Part(NamedTuple):
    """A part of a batch: its messages, and their bytes, or what these are taken to be."""

    number: int  # of the batch
    messages: int
    size: int
    of_messages: int  # of the whole batch
    of_size: int


class SplitBytes:
    """The bytes that one receiver has settled of batches of which something waits for it.

    Of what was not loaded nobody knows how large each message is. So what settles the last of a
    batch settles all that is left of its bytes. There is one entry for each batch of which not all
    is settled, so they are bounded as what is final above a cursor.
    """

    __slots__ = ("_settled",)

    def __init__(self) -> None:
        self._settled: dict[int, tuple[int, int]] = {}  # number -> messages, bytes

    def __bool__(self) -> bool:
        return bool(self._settled)

    def begin(self, settled: Iterable[tuple[int, int, int]]) -> None:
        """Take what was settled before the start: number, messages, and the bytes counted of it."""
        self._settled = {number: (messages, size) for number, messages, size in settled}

    def settle(self, part: Part) -> int:
        """Return the bytes that are settled with a part."""
        if part.messages >= part.of_messages:
            return part.of_size
        before, settled = self._settled.get(part.number, (0, 0))
        messages = before + part.messages
        if messages >= part.of_messages:
            del self._settled[part.number]
            return part.of_size - settled
        self._settled[part.number] = messages, settled + part.size
        return part.size

    def take_back(self, part: Part, size: int) -> None:
        """A part is not settled after all, which `size` bytes were with."""
        if part.messages >= part.of_messages:
            return
        whole = part.of_messages, part.of_size
        messages, settled = self._settled.pop(part.number, whole)
        if messages > part.messages:
            self._settled[part.number] = messages - part.messages, settled - size
