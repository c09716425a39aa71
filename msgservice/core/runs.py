"""Runs as an outbox handles them, and the collections that it keeps them in.

Values and containers; what happens to a run is decided in `core.backlog`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import msgspec

from msgservice.core.refusal import Refusal
from msgservice.limits import INTEGER_MAX
from msgservice.message import (
    PLAIN,
    MessageParts,
    RunOptions,
    Status,
    array_header,
    header_size,
)
from msgservice.records import Origin

FLIGHT_COMPACT = 1024  # entries that have gone before the list of open runs is cut
FEW = 16  # runs that are put in one by one; more are merged
STALE_MAX = 64  # entries of a queue that may be void, besides as many as there are runs

EXPIRED_REASON = "its ttl was over"

READY, FLIGHT, WAITING, BEHIND, FINAL = range(5)


class Run(msgspec.Struct, gc=False, eq=False):
    """Consecutive sequences of one lane, as the outbox handles them. `source` is the owner's."""

    first: int
    count: int
    subject: str
    lane: Hashable  # None: no order
    encoded: bytes | memoryview | msgspec.Raw | None  # None: `parts` has them
    size: int
    after: int  # nothing between `after` and `first` is open for the other side
    source: Any = None
    options: RunOptions = PLAIN
    origin: Origin | None = None
    attempts: int = 0
    laters: int = 0  # how often the other side said "not now"
    due: float = 0.0  # of a waiting one
    reason: str = ""  # of the last attempt
    state: int = 0
    parts: MessageParts | None = None  # of the run that this was cut from
    part: int = 0  # where among these it begins
    expires_at: int | None = None  # ms, by its owner's clock; None: never
    due_at: int | None = None  # … when it is to be delivered; None: at once
    promised_until: int | None = None  # … when its promise is over; None: it has none
    stored_at: int = 0  # ms, where its owner says so to the other side

    @property
    def messages(self) -> bytes | memoryview | msgspec.Raw:
        """The messages as they are sent; those of a cut run are put together when asked for."""
        encoded = self.encoded
        if encoded is None:
            assert self.parts is not None
            encoded = self.encoded = self.parts.run(self.part, self.part + self.count)
        return encoded

    @property
    def last(self) -> int:
        """The last sequence."""
        return self.first + self.count - 1


def producer_run(
    first: int,
    count: int,
    subject: str,
    messages: bytes,
    options: RunOptions = PLAIN,
    source: Any = None,
) -> Run:
    """Return a run as the outbox of its producer has it: each subject is a lane."""
    # By position: one for each message that is sent alone.
    return Run(first, count, subject, subject, messages, len(messages), first - 1, source, options)


class Settled(msgspec.Struct, gc=False, frozen=True):
    """Sequences `first` to `last` of `run` are final; `refusal`: what made them dead, if that."""

    run: Run
    first: int
    last: int
    status: Status
    refusal: Refusal | None = None

    @property
    def reason(self) -> str:
        """The reason of the refusal, for people, or nothing."""
        return "" if self.refusal is None else self.refusal.reason


class Tally:
    """A count of runs, their messages and bytes."""

    __slots__ = ("messages", "runs", "size")

    def __init__(self) -> None:
        self.runs = self.messages = self.size = 0

    def count(self, runs: int, messages: int, size: int) -> None:
        """Count so many more, or less, below 0."""
        self.runs += runs
        self.messages += messages
        self.size += size

    def move(self, source: Tally, target: Tally) -> None:
        """Let what is counted here count in `target`, and no longer in `source`."""
        runs, messages, size = self.runs, self.messages, self.size
        source.count(-runs, -messages, -size)
        target.count(runs, messages, size)


class OpenRuns:
    """Runs by first sequence, rising. Appending and taking from the front are O(1).

    What has gone leaves its place in the list when it is come upon: each is passed over once.
    """

    __slots__ = ("by_first", "firsts", "head")

    def __init__(self) -> None:
        self.by_first: dict[int, Run] = {}
        self.firsts: list[int] = []  # rising; may hold firsts that have gone
        self.head = 0  # the place of the lowest

    @classmethod
    def of(cls, runs: Sequence[Run]) -> OpenRuns:
        """Return these runs, which rise."""
        made = cls()
        made.by_first = {run.first: run for run in runs}
        made.firsts = list(made.by_first)
        return made

    def __len__(self) -> int:
        return len(self.by_first)

    def __iter__(self) -> Iterator[Run]:
        by_first = self.by_first
        return iter([by_first[n] for n in self.firsts[self.head :] if n in by_first])

    def add(self, run: Run) -> None:
        """Add a run; its first sequence is not there yet."""
        first, firsts = run.first, self.firsts
        if not firsts or first > firsts[-1]:
            firsts.append(first)
        else:
            at = bisect_left(firsts, first, self.head)
            if at >= len(firsts) or firsts[at] != first:
                firsts.insert(at, first)
        self.by_first[first] = run

    def add_all(self, runs: Sequence[Run]) -> None:
        """Add runs, which rise; many of them in one pass over the list."""
        if not runs:
            return
        firsts, head = self.firsts, self.head
        low, high = runs[0].first, runs[-1].first
        at = bisect_left(firsts, low, head)
        stop = bisect_left(firsts, high, at)
        by_first = self.by_first
        if at == stop:  # nothing lies between them
            by_first.update({run.first: run for run in runs})
            if stop < len(firsts) and firsts[stop] == high:
                stop += 1
            firsts[at:stop] = [run.first for run in runs]
        elif len(runs) <= FEW:
            for run in runs:
                self.add(run)
        else:
            by_first.update((run.first, run) for run in runs)
            self.firsts = sorted(by_first)
            self.head = 0

    def discard(self, run: Run) -> bool:
        """Take a run out; return whether it was the lowest."""
        first, firsts, head, by_first = run.first, self.firsts, self.head, self.by_first
        del by_first[first]
        was_lowest = firsts[head] == first
        if not by_first:
            firsts.clear()
            self.head = 0
            return was_lowest
        size = len(firsts)
        while head < size and firsts[head] not in by_first:
            head += 1
        self.head = head
        if size > FLIGHT_COMPACT + 2 * len(by_first):
            self.firsts = [n for n in firsts[head:] if n in by_first]
            self.head = 0
        return was_lowest

    def clear(self) -> None:
        """Take all runs out."""
        self.by_first.clear()
        self.firsts = []
        self.head = 0

    def lowest(self) -> Run | None:
        """The run with the lowest sequence, or None."""
        return self.by_first[self.firsts[self.head]] if self.by_first else None

    def take_above(self, first: int, state: int) -> list[Run]:
        """Take out the runs above `first`, up to the first one that is in another state."""
        firsts, by_first = self.firsts, self.by_first
        low = at = bisect_right(firsts, first, self.head)
        taken: list[Run] = []
        while at < len(firsts):
            run = by_first.get(firsts[at])
            if run is not None:
                if run.state != state:
                    break
                taken.append(run)
                del by_first[run.first]
            at += 1
        del firsts[low:at]
        return taken

    def entries(self, first: int, last: int) -> int:
        """The number of runs that overlap `first` to `last`, with ones that have gone there."""
        firsts, head = self.firsts, self.head
        begin = max(bisect_right(firsts, first, head) - 1, head)
        return bisect_right(firsts, last, begin) - begin

    def reach(self, first: int, runs: int) -> int:
        """The sequence up to which `first` and what is above it lie in `runs` such entries."""
        firsts, head = self.firsts, self.head
        at = max(bisect_right(firsts, first, head) - 1, head) + runs
        return firsts[at] - 1 if at < len(firsts) else INTEGER_MAX

    def between(self, first: int, last: int) -> list[Run]:
        """Open runs that overlap `first` to `last`, rising."""
        firsts, by_first, head = self.firsts, self.by_first, self.head
        exact = by_first.get(first)
        if exact is not None and first + exact.count > last:
            return [exact]
        begin = bisect_right(firsts, first, head) - 1
        low = max(begin, head)
        while low > head and firsts[low] not in by_first:
            low -= 1  # the run that begins before `first` may be behind ones that have gone
        if low < begin:
            del firsts[low + 1 : begin + 1]
        high = bisect_right(firsts, last, low)
        found = [by_first[n] for n in firsts[low:high] if n in by_first]
        if len(found) < high - low:
            firsts[low:high] = [run.first for run in found]
        if found and found[0].last < first:
            del found[0]
        return found


class ReadyQueue:
    """The runs among `open_runs` that wait for nothing but being sent; the lowest is first.

    Its entries are sequences, and void where the run there is not ready: nobody takes one out.
    """

    __slots__ = ("_back", "_open", "rising")

    def __init__(self, open_runs: OpenRuns) -> None:
        self._open = open_runs
        self.rising: deque[int] = deque()
        self._back: list[int] = []  # a heap: what came back, lower than what is rising

    def __iter__(self) -> Iterator[Run]:
        by_first = self._open.by_first
        found = [by_first[n] for n in sorted({*self._back, *self.rising}) if n in by_first]
        return iter([run for run in found if run.state == READY])

    def push(self, run: Run) -> None:
        """A run is ready now."""
        rising, back = self.rising, self._back
        if not rising or run.first > rising[-1]:
            rising.append(run.first)
            return
        heapq.heappush(back, run.first)
        self._compact()

    def push_all(self, runs: Sequence[Run]) -> None:
        """Runs that were sent before, which rise, are ready again."""
        self._back += [run.first for run in runs]
        self._back.sort()  # of two lists that rise it is one pass, and what rises is a heap
        self._compact()

    def _compact(self) -> None:
        back = self._back
        if len(back) > STALE_MAX + 2 * len(self._open):
            by_first = self._open.by_first
            kept = {n for n in back if n in by_first and by_first[n].state == READY}
            self._back = sorted(kept)

    def clear(self) -> None:
        """No run is ready any more."""
        self.rising.clear()
        self._back = []

    def first(self) -> Run | None:
        """The ready run with the lowest sequence, or None."""
        by_first, rising, back = self._open.by_first, self.rising, self._back
        while rising or back:
            is_back = bool(back) and (not rising or back[0] <= rising[0])
            run = by_first.get(back[0] if is_back else rising[0])
            if run is not None and run.state == READY:
                return run
            if is_back:
                heapq.heappop(back)
            else:
                rising.popleft()
        return None


def first_of(run: Run) -> int:
    """Sort key."""
    return run.first


def cut_run(run: Run, first: int, last: int) -> Run:
    """Return sequences `first` to `last` of a run as a run of their own."""
    parts = parts_of(run)
    start = run.part + first - run.first
    count = last - first + 1
    return Run(
        first=first,
        count=count,
        subject=run.subject,
        lane=run.lane,
        encoded=None,
        size=parts.size(start, start + count),
        after=run.after if first == run.first else first - 1,
        source=run.source,
        options=run.options,
        origin=run.origin and run.origin.behind(first - run.first),
        attempts=run.attempts,
        laters=run.laters,
        due=run.due,
        reason=run.reason,
        parts=parts,
        part=start,
        expires_at=run.expires_at,
        promised_until=run.promised_until,
        due_at=run.due_at,
        stored_at=run.stored_at,
    )


def trim_run(run: Run, last: int) -> None:
    """Let the run end with sequence `last`, which is one of its own but not its last."""
    parts = parts_of(run)
    run.encoded = None
    run.count = last - run.first + 1
    run.size = parts.size(run.part, run.part + run.count)


def shatter_run(run: Run, places: Sequence[int]) -> list[Run]:
    """Cut the run before each of these sequences (rising); return the pieces behind the first."""
    ends = [*(at - 1 for at in places[1:]), run.last]
    pieces = [cut_run(run, first, last) for first, last in zip(places, ends, strict=True)]
    trim_run(run, places[0] - 1)
    return pieces


def size_alone(run: Run) -> int:
    """Return the bytes of a run's messages, each as a run of its own."""
    encoded, count = run.encoded, run.count
    header = len(array_header(count)) if encoded is None else header_size(encoded)
    return run.size - header + count * len(array_header(1))


def parts_of(run: Run) -> MessageParts:
    """Return the offsets that the run is cut by; `run.part` is where it begins among them."""
    parts = run.parts
    if parts is None:
        assert run.encoded is not None
        parts = run.parts = MessageParts(run.encoded)
    return parts
