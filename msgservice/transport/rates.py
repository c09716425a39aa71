"""Rates: `twisted.protocols.htb` buckets per receiver, with a parent for all, on any clock.

A bucket holds what was let through and drains at its rate: over any long time no more than the rate
passes, and at once at most a bucketful. Messages and bytes have a bucket each; something passes
when all four (two of the receiver, two of the parent) had room for it. Who asks waits in line.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.protocols.htb import Bucket

from msgservice.clock import monotonic_of

# A wait that rounding makes empty is not worth a timer of its own.
WAIT_MIN = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Messages and bytes per second (None: no limit), and how many seconds' worth at once."""

    messages: float | None = None
    bytes: float | None = None
    burst_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that would let nothing through, ever."""
        for value in (self.messages, self.bytes, self.burst_seconds):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"a rate must be above 0 and finite, not {value}")


class _Bucket(Bucket):
    """Twisted's bucket, on a clock that does not jump (its own is the wall clock)."""

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
        burst = None if rate is None else max(1.0, rate * burst_seconds)
        self.maxburst = burst  # type: ignore[assignment]  # as above
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

    def wait(self, amount: float) -> float:
        """Return the seconds until this bucket and its parent have room for `amount`, or are
        empty."""
        waits = [0.0]
        bucket: Any = self
        while bucket is not None:
            if bucket.rate is not None:
                wanted = min(amount, bucket.maxburst)
                waits.append((bucket.content + wanted - bucket.maxburst) / bucket.rate)
            bucket = bucket.parentBucket
        return max(waits)


class ReceiverRate:
    """What one receiver may get; `spend` before sending."""

    def __init__(self, reactor: Any, messages: _Bucket, size: _Bucket) -> None:
        self._reactor = reactor
        self._buckets = (messages, size)
        self._line: deque[tuple[Deferred[None], list[float]]] = deque()
        self._timer: IDelayedCall | None = None

    @property
    def waiting(self) -> int:
        """How many wait in line."""
        return len(self._line)

    def spend(self, messages: int, size: int) -> Deferred[None]:
        """Fire when so many messages of so many bytes in all may leave; in the order asked.

        Cancelling leaves the line; what was let through of it already is spent.
        """
        left = [float(messages), float(size)]
        if not self._line and self._take(left):
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._leave)
        self._line.append((waiter, left))
        self._wait()
        return waiter

    def _take(self, left: list[float]) -> bool:
        for index, bucket in enumerate(self._buckets):
            if left[index] > 0:
                left[index] -= bucket.add(left[index])
        return max(left) <= 1e-9

    def _leave(self, waiter: Deferred[None]) -> None:
        self._line = deque(entry for entry in self._line if entry[0] is not waiter)

    def _wait(self) -> None:
        if self._timer is None and self._line:
            left = self._line[0][1]
            pairs = zip(self._buckets, left, strict=True)
            wait = max(bucket.wait(amount) for bucket, amount in pairs if amount > 0)
            self._timer = self._reactor.callLater(max(wait, WAIT_MIN), self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        while self._line and self._take(self._line[0][1]):
            waiter, _ = self._line.popleft()
            waiter.callback(None)
        self._wait()

    def stop(self) -> None:
        """Let nobody wait any more: cancel all in line."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            self._line[0][0].cancel()


class RateLimits:
    """The buckets of a node: `receiver(name, rate)` makes those of one, under the parent's."""

    def __init__(
        self,
        reactor: Any,
        *,
        total: Rate | None = None,
        seconds: Callable[[], float] | None = None,
    ) -> None:
        self._reactor = reactor
        self._seconds = seconds or monotonic_of(reactor)
        self._messages, self._bytes = self._pair(total or Rate(), None, None)
        self._receivers: dict[str, ReceiverRate] = {}

    def _pair(
        self, rate: Rate, messages: _Bucket | None, size: _Bucket | None
    ) -> tuple[_Bucket, _Bucket]:
        return (
            _Bucket(rate.messages, rate.burst_seconds, self._seconds, messages),
            _Bucket(rate.bytes, rate.burst_seconds, self._seconds, size),
        )

    def receiver(self, name: str, rate: Rate | None = None) -> ReceiverRate:
        """Return the receiver's buckets, made with `rate` when it is first asked for."""
        found = self._receivers.get(name)
        if found is None:
            pair = self._pair(rate or Rate(), self._messages, self._bytes)
            found = self._receivers[name] = ReceiverRate(self._reactor, *pair)
        return found

    def remove(self, name: str) -> None:
        """Forget a receiver; who waits for it is cancelled."""
        found = self._receivers.pop(name, None)
        if found is not None:
            found.stop()
