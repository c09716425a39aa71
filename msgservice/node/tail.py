"""The recent batches, kept in memory so that live receivers are fed without reading the log.

Only a cache: what is not here is read from the log. Batches stand in the order of their numbers,
without gaps, so that finding one is arithmetic.
"""

from __future__ import annotations

from collections.abc import Container

from msgservice.limits import BATCH_OVERHEAD
from msgservice.records import NOBODY, Batch, number_of, position_of

SCAN_MAX = 4096  # batches looked at in one call: a turn of the reactor stays short
COMPACT = 1024
PLACE_BYTES = 8  # of a batch that nobody is to get: its place alone is kept

_NOBODYS = Batch("", "", 0, 0, "", NOBODY, b"", 0, 0, 0)


class Tail:
    """Up to `bytes_max` bytes of the newest batches."""

    def __init__(self, next_number: int, bytes_max: int) -> None:
        self.next_number = next_number  # one past the newest
        self._batches: list[Batch] = []
        self._head = 0
        self._bytes = 0
        self._bytes_max = bytes_max

    @property
    def first_number(self) -> int:
        """The oldest batch that is here; `next_number` if there is none."""
        return self.next_number - (len(self._batches) - self._head)

    @property
    def bytes(self) -> int:
        """The memory that is held, in bytes, about."""
        return self._bytes

    def append(self, batch: Batch) -> None:
        """Add the next batch, drop what is too much."""
        assert batch.number == self.next_number, (batch.number, self.next_number)
        self.next_number += 1
        batches = self._batches
        if batch.audience.members:
            batches.append(batch)
            self._bytes += batch.size + BATCH_OVERHEAD
        else:
            batches.append(_NOBODYS)
            self._bytes += PLACE_BYTES
        head = self._head
        while self._bytes > self._bytes_max and head < len(batches):
            gone = batches[head]
            self._bytes -= PLACE_BYTES if gone is _NOBODYS else gone.size + BATCH_OVERHEAD
            batches[head] = _NOBODYS  # its place goes with many others; its bytes go now
            head += 1
        self._head = head
        if head > COMPACT and head * 2 > len(batches):
            del batches[:head]
            self._head = 0

    def after(
        self,
        position: int,
        audiences: Container[int],
        bytes_max: int,
        messages_max: int,
        batches_max: int = SCAN_MAX,
    ) -> tuple[list[Batch], int] | None:
        """Return the next batches of these audiences that end above `position`.

        Also returns the position up to which was looked. None: the place is not here any more.
        """
        number = number_of(position)
        if number < self.first_number:
            if number + 1 < self.first_number:
                return None
            number = self.first_number  # the rest of batch `number` cannot be known: it has gone
            if position != position_of(number) - 1:
                return None
        batches = self._batches
        at = self._head + number - self.first_number
        stop = min(len(batches), at + SCAN_MAX)
        found: list[Batch] = []
        while at < stop and bytes_max > 0 and messages_max > 0:
            batch = batches[at]
            at += 1
            if batch.audience.number in audiences and batch.last > position:
                found.append(batch)
                bytes_max -= batch.size
                messages_max -= batch.count
                if len(found) >= batches_max:
                    break
        looked = self.first_number + (at - self._head)
        return found, position_of(looked) - 1
