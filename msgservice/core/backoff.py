"""How long to wait before trying again: exponential, with full jitter.

`delay_of` is the bare rule, used for retries of a message too (SEMANTICS 14: the outbox counts
attempts itself). `Backoff` is the memory of one link: it counts failures on its own, because
`ClientService` takes a connection that a peer drops at once for a success and would dial it for
ever at the first delay. Only a connection that stayed healthy for a while clears the count.
"""

from __future__ import annotations

from collections.abc import Callable

# Of a message that the other side asks to have again: never sooner than this, doubling up to that
# each time it is asked for. A longer delay is taken as asked. Otherwise a receiver that always says
# "in a millisecond" would keep both sides busy at the pace of the round trip.
AGAIN_DELAY_MIN = 0.01
AGAIN_DELAY_MAX = 1.0

# 2**62 times any delay is beyond every sensible maximum, and far from a float's overflow.
_DOUBLINGS_MAX = 62


def delay_of(attempt: int, *, delay_min: float, delay_max: float, jitter: float = 1.0) -> float:
    """Return the seconds to wait after failure number `attempt` (from 1).

    `delay_min` doubled with each failure, at most `delay_max`, times `jitter`. With a jitter drawn
    evenly from 0 to 1 this is the "full jitter" that spreads a herd best (M. Brooker, "Exponential
    Backoff and Jitter", AWS Architecture Blog, 2015).
    """
    assert attempt >= 1, attempt
    doubled: float = delay_min * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX)
    return min(delay_max, doubled) * jitter


def again_delay(asked: float, times: int) -> float:
    """Return the seconds until a message is sent again when the other side asked for `asked`.

    `times`: how often it has asked for this one (from 1).
    """
    least = delay_of(times, delay_min=AGAIN_DELAY_MIN, delay_max=AGAIN_DELAY_MAX)
    return max(asked, least)


class Backoff:
    """The failures in a row of one link, and the delay that follows from them.

    `delay_min`, `delay_max`, `healthy`: seconds. `rng` returns floats from 0 to 1 (1.0 always: no
    jitter). `now` is any clock in seconds; should it jump, a delay is shorter or longer once.
    """

    def __init__(
        self, *, delay_min: float, delay_max: float, healthy: float, rng: Callable[[], float]
    ) -> None:
        self._delay_min = delay_min
        self._delay_max = delay_max
        self._healthy = healthy
        self._rng = rng
        self._failures = 0
        self._established_at: float | None = None
        self._poked_at: float | None = None
        self._refused = False

    @property
    def failures(self) -> int:
        """Failures since the last healthy connection."""
        return self._failures

    def established(self, now: float) -> None:
        """Count from here how long the connection is healthy: the session's handshake is done."""
        if self._established_at is None:
            self._established_at = now

    def failed(self, now: float) -> float:
        """Count a failure (an attempt, or a connection that was lost); return seconds to wait."""
        since, self._established_at = self._established_at, None
        if since is not None and now - since >= self._healthy:
            self._failures = 0
        self._failures += 1
        if self._refused:
            self._refused = False
            return self.refused_delay()
        return self.delay(self._failures)

    def refused(self) -> None:
        """The failure that comes next is one that does not pass by itself."""
        self._refused = True

    def refused_delay(self) -> float:
        """Return how long to wait after such a one: from half of the longest delay to all of it."""
        return self._delay_max * (1.0 + self._rng()) / 2

    def delay(self, attempt: int) -> float:
        """Return a delay for failure number `attempt`, in seconds; counts nothing."""
        return delay_of(
            attempt, delay_min=self._delay_min, delay_max=self._delay_max, jitter=self._rng()
        )

    def poke(self, now: float) -> None:
        """Forget the failures: there is a sign of life from the other side.

        At most once in `healthy` seconds, so that a peer which says hello and then turns us away
        is still left alone for longer and longer.
        """
        if self._poked_at is None or not 0 <= now - self._poked_at < self._healthy:
            self._poked_at = now
            self._failures = 0

    def policy(self, seconds: Callable[[], float]) -> Callable[[int], float]:
        """Return a `retryPolicy` for `ClientService`; its own count is not looked at."""
        return lambda _attempts: self.failed(seconds())
