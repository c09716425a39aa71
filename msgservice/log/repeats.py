"""The repeats in one group: which runs they overlap, and whether they agree (SEMANTICS 4).

A run may come again in other cuts, many thousands of them in one group. So each run of before is
looked for once a group, and where repeats are parts of it, its messages are read and taken apart
once for all of these. One run's messages at a time are in memory. What follows from a repeat is
decided in `dedupe.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from msgservice.core.marks import Key
from msgservice.message import MessageParts
from msgservice.records import Audience, Batch


class TakenRun(msgspec.Struct, frozen=True):
    """A run that was taken before, as far as it is still known."""

    number: int
    sequence: int
    count: int
    crc: int
    audience: Audience
    messages: bytes | memoryview | msgspec.Raw | None  # None: committed, `Stored.messages` has them
    mark: int | None = None  # `dedupe.mark_of` it; None in logs written before it was kept
    due: int = 0  # of one that waits: wall clock, ms. Its number is below 0
    of: str = ""  # `Piece.of`

    @property
    def last(self) -> int:
        """The sequence of its last message."""
        return self.sequence + self.count - 1


class Stored(Protocol):
    """Committed runs, as they are asked for."""

    def runs(self, sender: int, first: int, last: int) -> Sequence[TakenRun]:
        """Return the runs of a sender, by its id, that overlap these sequences, rising."""

    def messages(self, number: int) -> bytes | None:
        """Return the messages of a batch; None where they have gone."""


def _sequence_of(run: TakenRun | Batch) -> int:
    return run.sequence


def _last_of(batch: Batch) -> int:
    return batch.sequence + batch.count - 1


class _Ends:
    """One sender's batches of a group, by their first and by their last sequences."""

    __slots__ = ("_by_first", "_by_last")

    def __init__(self, batches: list[Batch]) -> None:
        self._by_first = sorted(batches, key=_sequence_of)
        self._by_last = sorted(batches, key=_last_of)

    def inside(self, first: int, last: int) -> dict[Batch, None]:
        """Return the batches that begin or end between these sequences."""
        found: dict[Batch, None] = {}
        for batches, key in ((self._by_first, _sequence_of), (self._by_last, _last_of)):
            begin = bisect_left(batches, first, key=key)
            end = bisect_right(batches, last, begin, key=key)
            found.update(dict.fromkeys(batches[begin:end]))
        return found


class Repeats:
    """The repeats among the batches of one group."""

    __slots__ = ("_batches", "_changed", "_ends", "_runs", "_stored")

    def __init__(self, batches: list[Batch], stored: Stored) -> None:
        self._batches = batches
        self._stored = stored
        self._runs: dict[int, list[TakenRun]] = {}  # by sender id: those that were asked for
        self._ends: dict[Key, _Ends] | None = None
        # By the number of a run that was compared: the batches that say something else.
        self._changed: dict[int, set[Batch]] = {}

    def stored_between(self, sender: int, first: int, last: int) -> Sequence[TakenRun]:
        """Return the committed runs of a sender that overlap these sequences, rising."""
        known = self._runs.setdefault(sender, [])
        at = bisect_right(known, first, key=_sequence_of) - 1
        if at >= 0 and last <= known[at].last:
            return (known[at],)  # no two of them overlap
        found = self._stored.runs(sender, first, last)
        for run in found:
            at = bisect_left(known, run.sequence, key=_sequence_of)
            if at == len(known) or known[at].sequence != run.sequence:
                insort(known, run, at, key=_sequence_of)
        return found

    def agree(self, batch: Batch, run: TakenRun) -> bool:
        """Whether a batch that ends or begins inside a run has its messages there.

        True as well where these are not known any more.
        """
        changed = self._changed.get(run.number)
        if changed is None:
            changed = self._changed[run.number] = self._compare(batch, run)
        return batch not in changed

    def _compare(self, one: Batch, run: TakenRun) -> set[Batch]:
        """Return the batches of a sender that end or begin inside a run and say something else.

        At most two runs of before are compared with a batch so, for these do not overlap.
        """
        messages = run.messages
        if messages is None:
            messages = self._stored.messages(run.number)
        if messages is None:
            return set()
        if self._ends is None:
            by_sender: defaultdict[Key, list[Batch]] = defaultdict(list)
            for batch in self._batches:
                by_sender[(batch.sender, batch.incarnation)].append(batch)
            self._ends = {key: _Ends(batches) for key, batches in by_sender.items()}
        parts, changed = MessageParts(messages), set()
        for batch in self._ends[(one.sender, one.incarnation)].inside(run.sequence, run.last):
            if batch.sequence <= run.sequence and run.last <= _last_of(batch):
                continue  # all of the run is in it: their CRCs say
            first = max(batch.sequence, run.sequence)
            end = min(_last_of(batch), run.last) + 1
            start, stop = first - batch.sequence, end - batch.sequence
            if MessageParts(batch.messages).run(start, stop) != parts.run(
                first - run.sequence, end - run.sequence
            ):
                changed.add(batch)
        return changed
