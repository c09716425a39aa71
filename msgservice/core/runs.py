"""Runs as an outbox handles them, and the collection of those that are open.

Values and one container; what happens to a run is decided in `core.outbox`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator
from typing import Any

import msgspec

from msgservice.message import Status, cut_messages, split_messages
from msgservice.records import Origin

FLIGHT_COMPACT = 1024  # entries that have gone before the list of open runs is cut

READY, FLIGHT, WAITING, BEHIND, FINAL = range(5)


class Run(msgspec.Struct, gc=False, eq=False):
    """Consecutive sequences of one lane, as the outbox handles them. `source` is the owner's."""

    first: int
    count: int
    subject: str
    lane: Hashable  # None: no order
    messages: bytes | memoryview | msgspec.Raw
    size: int
    after: int  # nothing between `after` and `first` is open for the other side
    source: Any = None
    to: list[str] | None = None
    flags: int = 0
    origin: Origin | None = None
    attempts: int = 0
    laters: int = 0  # how often the other side said "not now"
    due: float = 0.0  # of a waiting one
    state: int = 0

    @property
    def last(self) -> int:
        """The last sequence."""
        return self.first + self.count - 1


class Settled(msgspec.Struct, gc=False, frozen=True):
    """Sequences `first` to `last` of `run` are final. `reason` is for people."""

    run: Run
    first: int
    last: int
    status: Status
    reason: str = ""
    action: int = 0  # of the NACK that settled it, or 0


class OpenRuns:
    """Runs by first sequence, rising. Appending and taking from the front are O(1)."""

    __slots__ = ("_firsts", "_head", "by_first")

    def __init__(self) -> None:
        self.by_first: dict[int, Run] = {}
        self._firsts: list[int] = []  # may hold firsts that have gone
        self._head = 0

    def __len__(self) -> int:
        return len(self.by_first)

    def __iter__(self) -> Iterator[Run]:
        by_first = self.by_first
        return iter([by_first[n] for n in self._firsts[self._head :] if n in by_first])

    def add(self, run: Run) -> None:
        """Add a run; its first sequence is not there yet."""
        first, firsts = run.first, self._firsts
        if not firsts or first > firsts[-1]:
            firsts.append(first)
        else:
            at = bisect_left(firsts, first, self._head)
            if at >= len(firsts) or firsts[at] != first:
                firsts.insert(at, first)
        self.by_first[first] = run

    def discard(self, run: Run) -> None:
        """Take a run out."""
        del self.by_first[run.first]
        firsts, head = self._firsts, self._head
        while head < len(firsts) and firsts[head] not in self.by_first:
            head += 1
        if head > FLIGHT_COMPACT and head * 2 > len(firsts):
            del firsts[:head]
            head = 0
        self._head = head

    def lowest(self) -> Run | None:
        """The run with the lowest sequence, or None."""
        return self.by_first[self._firsts[self._head]] if self.by_first else None

    def between(self, first: int, last: int) -> list[Run]:
        """Open runs that overlap `first` to `last`, rising."""
        firsts, by_first = self._firsts, self.by_first
        low = max(bisect_right(firsts, first, self._head) - 1, self._head)
        while low > self._head and firsts[low] not in by_first:
            low -= 1  # the run that begins before `first` may be behind ones that have gone
        high = bisect_right(firsts, last, low)
        found = [by_first[n] for n in firsts[low:high] if n in by_first]
        if found and found[0].last < first:
            del found[0]
        return found


def shatter_run(run: Run, places: list[int]) -> list[Run]:
    """Return the run cut before each of these sequences (rising), decoded once."""
    bounds = [run.first, *places, run.last + 1]
    pieces = split_messages(run.messages, [at - run.first for at in bounds])
    return [
        _part(run, first, stop - first, messages)
        for first, stop, messages in zip(bounds[:-1], bounds[1:], pieces, strict=True)
    ]


def first_of(run: Run) -> int:
    """Sort key."""
    return run.first


def cut_run(run: Run, first: int, last: int) -> Run:
    """Return sequences `first` to `last` of a run as a run of their own."""
    messages = cut_messages(run.messages, first - run.first, last - run.first + 1)
    return _part(run, first, last - first + 1, messages)


def _part(run: Run, first: int, count: int, messages: bytes) -> Run:
    origin = run.origin
    if origin is not None and first != run.first:
        sequence = origin.sequence + first - run.first
        origin = Origin(origin.sender, sequence, origin.incarnation, origin.path)
    return Run(
        first,
        count,
        run.subject,
        run.lane,
        messages,
        len(messages),
        run.after if first == run.first else first - 1,
        run.source,
        run.to,
        run.flags,
        origin,
        run.attempts,
        run.laters,
    )
