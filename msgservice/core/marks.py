"""Marks of a sender: which sequences of an incarnation were taken, as a floor and ranges above it.

`SenderState` is what a log and a stored inbox keep of each incarnation, `Marks` what a receiver has
of it in memory. Who decides what is taken is `log.dedupe` and `core.inbox`.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol
from zlib import crc32

import msgspec

from msgservice.core.ranges import Range, RangeSet
from msgservice.errors import ContentChanged
from msgservice.limits import RUNS_REMEMBERED
from msgservice.records import Resume

Key = tuple[str, str]  # (sender's name, incarnation)

SAMPLE_BYTES = 1024  # of a run, three times, for its `fingerprint`
SAMPLED_ABOVE = 4 * SAMPLE_BYTES  # bytes: of what is smaller, all counts
# Ranges that a shared inbox keeps, the newest: what others take are holes in it, without end.
SHARED_RANGES_MAX = 10_000
# Holes that a receiver leaves below what its sender has settled, the newest: so many ranges more.
HOLES_MAX = 100


def raised_floor(floor: int, taken: RangeSet, settled: int) -> int:
    """A receiver's floor, whose sender has settled all below `settled`: it passes what was taken.

    A hole is what was rejected, or given up by the sender. A log that goes back to before that has
    it open again: counted as taken, it would be acknowledged there and never be handled. So the
    floor passes no hole, but the oldest of more than `HOLES_MAX`.
    """
    passed = taken.range_of(floor)
    if len(taken.firsts) > HOLES_MAX:
        many = taken.begun_below(settled) - HOLES_MAX
        if many > 0:
            passed = taken.lowest(many)[-1]
    return floor if passed is None else max(floor, min(passed[1] + 1, settled))


def keep_newest(taken: RangeSet, most: int, slack: int = 0) -> None:
    """Forget the oldest ranges beyond `most`, once there are `slack` more: they may come again."""
    count = len(taken.firsts)
    if count > most + slack:
        taken.remove_below(taken.lowest(count - most)[-1][1] + 1)


Messages = bytes | memoryview | msgspec.Raw


def fingerprint(messages: Messages) -> int:
    """Return a checksum of a run: of its size, and of its beginning, middle and end.

    The check for changed content is about a log that went back in time, whose runs differ from
    beginning to end. The CRC of all of it costs as much as decoding it (bench/handling.py: 61 of
    330 ns a message), so only what the other side compares is computed whole: `Marks.last`.
    """
    view = memoryview(messages)
    size = len(view)
    if size <= SAMPLED_ABOVE:
        return size << 32 | crc32(view)
    middle = size // 2
    checksum = crc32(view[:SAMPLE_BYTES])
    checksum = crc32(view[middle : middle + SAMPLE_BYTES], checksum)
    return size << 32 | crc32(view[-SAMPLE_BYTES:], checksum)


class Came(Protocol):
    """A run that came (`core.inbox.Arrival`)."""

    def up_to(self, last: int) -> tuple[int, int, int]:
        """Return its first sequence, `last`, and the CRC of all that it brought up to there."""


class Marks:
    """Which sequences of one (sender, incarnation) were taken: all below `floor`, and `taken`.

    The sender may settle what was never taken here, as what it gave up: see `raised_floor`. So the
    floor passes nothing newer than what `last` names: a log that went back gives sequences to other
    messages, and whatever is below the floor must show it.
    """

    __slots__ = (
        "_last",
        "_newest",
        "_printed",
        "_prints",
        "floor",
        "ranges_max",
        "settled",
        "taken",
    )

    def __init__(
        self,
        floor: int = 1,
        taken: RangeSet | None = None,
        last: tuple[int, int, int] | None = None,
        ranges_max: int = 0,
    ) -> None:
        self.floor = floor
        self.ranges_max = ranges_max  # that are kept; 0: all
        self.taken = RangeSet() if taken is None else taken
        self._last = last
        self.settled = floor  # the floor that the sender has said
        # The last sequence, and the run that it came in: `_last` does not know of it yet.
        self._newest: tuple[int, Came] | None = None
        self._prints: dict[Range, int] = {}
        self._printed: deque[Range] = deque()  # oldest first

    @property
    def last(self) -> tuple[int, int, int] | None:
        """`(first, last, crc)` of the newest that was answered for good, or None: see `Came`."""
        if self._newest is not None:
            last, arrival = self._newest
            self._last, self._newest = arrival.up_to(last), None
        return self._last

    def missing(self, first: int, last: int) -> list[Range]:
        """Return the parts of `first` to `last` that were not taken, rising."""
        if first < self.floor:
            first = self.floor
            if first > last:
                return []
        taken = self.taken.lasts
        if not taken or first > taken[-1]:  # nothing of it, as of most
            return [(first, last)]
        return self.taken.missing(first, last)

    def check(self, first: int, last: int, messages: Messages, subject: str) -> None:
        """Remember a run's content; `ContentChanged` if it came before with another (SEMANTICS 4).

        As far as the last 1,024 runs go, and `fingerprint` sees. The subject is part of it.
        """
        prints, key = self._prints, (first, last)
        found = fingerprint(messages) << 32 | crc32(subject.encode())
        known = prints.get(key)
        if known is None:
            prints[key] = found
            self._printed.append(key)
            if len(prints) > RUNS_REMEMBERED:
                del prints[self._printed.popleft()]
        elif known != found:
            raise ContentChanged(first, last)

    def take(self, after: int, last: int, arrival: Came | None = None) -> None:
        """Sequences from behind `after` to `last` are taken; nothing else is open among them.

        With the run that brought them, `last` is remembered as well.
        """
        if arrival is not None:
            newest = self._newest
            if newest is None:
                self.remember(last, arrival)
            elif last > newest[0]:  # as `remember`
                self._newest = (last, arrival)
        self.taken.add(max(after + 1, 1), last)
        if self.ranges_max:
            keep_newest(self.taken, self.ranges_max, self.ranges_max // 10)

    def remember(self, last: int, arrival: Came) -> None:
        """A sequence was taken, or refused for good. The CRC is computed when `last` is asked for.

        What a run brought is named up to there, however much of it was taken: a log that went back
        gives these sequences to other messages, and each that is not named would be a repeat here.
        """
        newest = self._newest
        if newest is not None:
            if last > newest[0]:
                self._newest = (last, arrival)
        elif self._last is None or last > self._last[1]:
            self._newest = (last, arrival)

    def settle_below(self, floor: int) -> None:
        """The sender says that all below `floor` is settled and will not come again."""
        if floor <= self.settled:
            return
        self.settled = floor
        firsts, lasts = self.taken.firsts, self.taken.lasts
        if not firsts or (len(firsts) == 1 and firsts[0] > self.floor):  # a hole at the floor
            return
        if len(firsts) == 1 and self.floor <= lasts[0]:  # no hole
            self.floor = min(lasts[0] + 1, floor)
        else:
            self.floor = raised_floor(self.floor, self.taken, floor)
        self.taken.remove_below(self.floor)

    def resume(self) -> Resume:
        """The marks as a RESUME frame says them."""
        if self.ranges_max:
            keep_newest(self.taken, self.ranges_max)
        return Resume(self.floor, tuple(self.taken), self.last)


class SenderState(msgspec.Struct, eq=False):
    """The marks of one incarnation: taken is all below `floor`, and `ranges` above it."""

    id: int
    key: Key
    seen_at: int  # age of the log, ms, when it was last heard of
    floor: int = 1
    ranges: RangeSet | None = None  # None: nothing above the floor
    last: tuple[int, int, int] | None = None
    status_from: int = 1

    def copy(self) -> SenderState:
        """Return a copy whose change leaves this one alone."""
        ranges = None if self.ranges is None else self.ranges.copy()
        return SenderState(
            self.id, self.key, self.seen_at, self.floor, ranges, self.last, self.status_from
        )

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
            ((_, joined),) = ranges.lowest(1)
            self.floor = joined + 1
            ranges.remove_below(self.floor)
        if not ranges:
            self.ranges = None


def encode_ranges(sender: SenderState) -> bytes:
    """Return the ranges above the floor as they are kept in the table."""
    return msgspec.msgpack.encode(list(sender.ranges) if sender.ranges is not None else [])
