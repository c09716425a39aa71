"""Many Deferreds for one event.

Whoever waits gets a Deferred of his own: what he does with it, and that he cancels it, concerns
nobody else. Who comes after the event waits for the next one.

One Deferred that is the outcome of several things is followed here, too: each of those who wait for
it learns that it has failed (`followed`, `Failed`).
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Waiters(Generic[T]):
    """The Deferreds of those who wait for an event, in the order in which they came: `waiting`.

    That is for who only wants to know whether anybody does: others do not change it.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: dict[Deferred[T], None] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    def wait(self) -> Deferred[T]:
        """Return a Deferred of the event. Cancelling it ends this wait and no other."""
        waiter: Deferred[T] = Deferred(self._leave)
        self.waiting[waiter] = None
        return waiter

    def _leave(self, waiter: Deferred[T]) -> None:
        self.waiting.pop(waiter, None)

    def fire(self, value: T) -> None:
        """Tell all who wait that the event has come, with this value."""
        told, self.waiting = self.waiting, {}
        for waiter in told:
            if not waiter.called:  # cancelled by one that was told before
                waiter.callback(value)

    def fail(self, error: BaseException | Failure) -> None:
        """Tell all who wait that the event will not come, and why."""
        reason = error.value if isinstance(error, Failure) else error
        told, self.waiting = self.waiting, {}
        for waiter in told:
            if not waiter.called:
                waiter.errback(Failure(reason))  # of its own each: a callback may change it

    def take(self) -> Waiters[T]:
        """Return those who wait now, to be told by themselves; here nobody waits then."""
        taken: Waiters[T] = Waiters()
        taken.waiting, self.waiting = self.waiting, {}
        return taken

    def put_back(self, taken: Waiters[T]) -> None:
        """Let those who were taken wait here again, before all who came since."""
        self.waiting = {**taken.waiting, **self.waiting}
        taken.waiting = {}


class Failed:
    """A failure that somebody took from a Deferred, in its place.

    Who is given that Deferred for something else learns that it has failed, and nobody else is told
    of an error that is unhandled.
    """

    __slots__ = ("failure",)

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


def failure_of(result: object) -> Failure | None:
    """Return the failure that a Deferred has given, to us or to somebody before."""
    if isinstance(result, Failure):
        return result
    return result.failure if isinstance(result, Failed) else None


def followed(given: Deferred[T]) -> Deferred[T]:
    """Return a Deferred of what another one gives, that may be followed by others as well.

    Cancelling it cancels that one.
    """
    own: Deferred[T] = Deferred(lambda _: given.cancel())

    def hand_on(result: Any) -> Any:
        failure = failure_of(result)
        if not own.called:
            own.callback(failure if failure is not None else result)
        return Failed(failure) if failure is not None else result

    given.addBoth(hand_on)
    return own
