"""`Slices`: work of many connections, of which a turn of the reactor does no more than a slice.

What the work is, a step of a login say, is the business of who brings it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T")


class Slices:
    """Work is done at once while there is time for it in this turn, else later, in its order.

    `now`: monotonic, in seconds, as `seconds` of each turn are. Of what waits, one is done in each
    turn, however long that takes. As many wait as bring work, so who does so bounds it.
    """

    def __init__(self, clock: IReactorTime, now: Callable[[], float], seconds: float) -> None:
        self._clock, self._now, self._seconds = clock, now, seconds
        self._until = 0.0  # of this turn's slice
        self._turn: IDelayedCall | None = None  # the next one; None: nothing was done in this
        self._waiting: dict[Deferred[None], None] = {}

    def run(self, work: Callable[[], T]) -> Deferred[T]:
        """Fire with what `work` returns; fail with what it raises. Cancelling it ends the wait."""
        if self._turn is None:
            self._begin()
        elif self._waiting or self._now() >= self._until:
            waiting: Deferred[None] = Deferred(self._leave)
            self._waiting[waiting] = None
            return waiting.addCallback(lambda _: work())
        return maybeDeferred(work)

    def stop(self) -> None:
        """Leave no timer; whoever waits still is not served any more."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        for waiting in list(self._waiting):
            waiting.cancel()

    def _begin(self) -> None:
        self._until = self._now() + self._seconds
        self._turn = self._clock.callLater(0, self._next)

    def _leave(self, waiting: Deferred[None]) -> None:
        self._waiting.pop(waiting, None)

    def _next(self) -> None:
        self._turn = None
        if not self._waiting:
            return
        self._begin()
        while self._waiting:
            first = next(iter(self._waiting))
            del self._waiting[first]
            first.callback(None)
            if self._now() >= self._until:
                return
