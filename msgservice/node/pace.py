"""Rates: `twisted.protocols.htb` buckets per receiver, with a parent for all, on any clock.

A bucket holds what was let through and drains at its rate: over any long time no more than the rate
passes, and at once at most a bucketful. Messages and bytes have a bucket each; something passes
when all four (two of the receiver, two of the parent) had room for it. Who asks waits in line:
`Pace`, of a node's outlet, says when to ask again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.protocols.htb import Bucket

from msgservice.clock import monotonic_of
from msgservice.core.runs import Run
from msgservice.limits import Rate
from msgservice.message import ARRAY_HEADER_MAX, message_sizes

ROUNDING = 1e-9


class _Bucket(Bucket):
    """A bucket on a clock that does not jump (that of Twisted's own is the wall clock).

    Only the model is Twisted's: what is inside, and the parent. Its `add` fills a bucket with what
    there is room for; here whoever comes has a place in line reserved.
    """

    def __init__(
        self,
        rate: float | None,
        burst_seconds: float,
        seconds: Callable[[], float],
        parent: _Bucket | None,
    ) -> None:
        super().__init__(parent)
        self._seconds = seconds
        self.rate = rate  # type: ignore[assignment]  # it computes with floats as well
        # Less than one message at once would be none, ever.
        self.capacity = math.inf if rate is None else max(1.0, rate * burst_seconds)
        self.lastDrip = seconds()

    def drip(self) -> bool:
        """Let drain what the rate says."""
        if self.parentBucket is not None:
            self.parentBucket.drip()
        if self.rate is None:
            self.content = 0
        else:
            now = self._seconds()
            drained = (now - self.lastDrip) * self.rate
            self.content = max(0.0, self.content - drained)  # type: ignore[assignment]  # as above
            self.lastDrip = now
        return not self.content

    def has_room(self, amount: float) -> bool:
        """Return whether `amount` may pass here now; the parent is not asked."""
        self.drip()
        return self.content + amount <= self.capacity + ROUNDING

    def reserve(self, amount: float) -> float:
        """Put in `amount` here whether there is room or not; return the seconds until it may pass.

        Whoever comes later waits behind it. What is larger than the bucket passes when all before
        it has drained.
        """
        self.drip()
        if self.rate is None:
            return 0.0
        self.content += amount  # type: ignore[assignment]  # it computes with floats as well
        return max(0.0, self.content - max(self.capacity, amount)) / self.rate

    def correct(self, amount: float) -> None:
        """Correct a reservation: so much more (or less, below 0) passes than was reserved."""
        self.drip()
        self.content = max(0.0, self.content + amount)  # type: ignore[assignment]  # as above


class Pace:
    """Lets the runs of one outbox pass at its receiver's rate: `allow` is asked before each.

    What finds no room has its place in line reserved: first in the receiver's own buckets, then,
    when these have room, in the parent's, so that nobody holds room there that it cannot use yet.
    A place is for all that is ready, at most half a bucket: so small runs get as much of what is
    shared as large ones, which are cut to it, and a timer that is late loses nothing. One message
    that is larger than the bucket passes when the bucket is empty, and what comes after it waits
    until that has drained.
    """

    def __init__(
        self, rate: Rate | None, messages: _Bucket, size: _Bucket, seconds: Callable[[], float]
    ) -> None:
        self.rate = rate  # of the receiver alone, for people
        self._seconds = seconds
        self._own = (messages, size)
        parents = (messages.parentBucket, size.parentBucket)
        self._parents: tuple[Any, Any] = parents
        self._messages_max = max(1.0, _half(messages, parents[0]) // 1)
        self._bytes_max = _half(size, parents[1])
        self._asked = False
        self._ready = (0, 0)
        self._reserved: tuple[float, float] | None = None  # messages, bytes
        self._left: tuple[float, float] | None = None  # of a reservation whose time has come
        self._at_parents = False  # the reservation is theirs as well
        self._due = 0.0

    def begin(self, messages: int, size: int) -> None:
        """The outbox is about to be asked for what may leave; so much is ready."""
        self._asked = False
        self._ready = (messages, size)

    def end(self) -> None:
        """The outbox was asked. Without anything to send, or room in its window for it, no place
        in line is held."""
        self._give_back()
        if not self._asked:
            self.cancel()

    def next_deadline(self) -> float | None:
        """When to ask again (seconds of the clock), or None."""
        return None if self._reserved is None else self._due

    def allow(self, run: Run) -> int:
        """Return how many messages of the run may leave now, from its first on; 0: none yet.

        They count as sent.
        """
        self._asked = True
        if self._left is not None:
            count, size = _cut(run, *self._left)
            messages, bytes_ = self._left
            if count <= messages and size <= bytes_:
                self._left = (messages - count, bytes_ - size)
                return count
            self._give_back()
        if self._reserved is None:
            if self._has_room(run.count, run.size):
                self._put(self._own, run.count, run.size)
                self._put(self._parents, run.count, run.size)
                return run.count
            count, size = _cut(run, self._messages_max, self._bytes_max)
            messages, bytes_ = self._ready
            self._reserved = (
                max(count, min(messages, self._messages_max)),
                max(size, min(bytes_, self._bytes_max)),
            )
            self._at_parents = False
            self._due = self._seconds() + self._put(self._own, *self._reserved)
        now = self._seconds()
        if now < self._due - ROUNDING:
            return 0
        if not self._at_parents:
            self._at_parents = True
            self._due = now + self._put(self._parents, *self._reserved)
            if now < self._due - ROUNDING:
                return 0
        # It may be another run by now: what is taken more or less is put right in the end.
        messages, bytes_ = self._reserved
        self._reserved = None
        count, size = _cut(run, messages, bytes_)
        self._left = (messages - count, bytes_ - size)
        return count

    def cancel(self) -> None:
        """Leave the line; what was reserved is given back."""
        if self._reserved is not None:
            self._left, self._reserved = self._reserved, None
            self._give_back()

    def _give_back(self) -> None:
        if self._left is None:
            return
        (messages, bytes_), self._left = self._left, None
        for buckets in (self._own, self._parents) if self._at_parents else (self._own,):
            buckets[0].correct(-messages)
            buckets[1].correct(-bytes_)

    def _has_room(self, count: int, size: int) -> bool:
        return all(
            messages.has_room(count) and bytes_.has_room(size)
            for messages, bytes_ in (self._own, self._parents)
        )

    @staticmethod
    def _put(buckets: tuple[_Bucket, _Bucket], count: float, size: float) -> float:
        return max(buckets[0].reserve(count), buckets[1].reserve(size))


def _half(bucket: _Bucket, parent: _Bucket) -> float:
    """Half of the smaller of two buckets."""
    return min(bucket.capacity, parent.capacity) / 2


def _cut(run: Run, messages_max: float, bytes_max: float) -> tuple[int, int]:
    """Return how many messages of the run are within these, one at least, and their bytes."""
    if run.count <= messages_max and run.size <= bytes_max:
        return run.count, run.size
    count, total = 0, ARRAY_HEADER_MAX
    for size in message_sizes(run.messages):
        if count and (count >= messages_max or total + size > bytes_max):
            break
        count += 1
        total += size
    return count, total


class RateLimits:
    """The rate of all receivers of a node together: `pace(rate)` gives one's, under it."""

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        total: Rate | None = None,
        seconds: Callable[[], float] | None = None,
    ) -> None:
        self._seconds = seconds or monotonic_of(reactor)
        self._messages, self._bytes = self._pair(total or Rate(), None, None)

    def _pair(
        self, rate: Rate, messages: _Bucket | None, size: _Bucket | None
    ) -> tuple[_Bucket, _Bucket]:
        return (
            _Bucket(rate.messages, rate.burst_seconds, self._seconds, messages),
            _Bucket(rate.bytes, rate.burst_seconds, self._seconds, size),
        )

    def pace(self, rate: Rate | None = None) -> Pace | None:
        """Return what lets one outlet pass at `rate`; None where nothing limits it."""
        own = rate or Rate()
        if not own.limits and self._messages.rate is None and self._bytes.rate is None:
            return None
        return Pace(rate, *self._pair(own, self._messages, self._bytes), self._seconds)
