"""Many who wait for one event (`msgservice.waiters`)."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from msgservice.waiters import Waiters, followed


def told(waiter: Deferred[int]) -> list[int | BaseException]:
    """Return a list that gets what it fires with."""
    found: list[int | BaseException] = []
    waiter.addCallbacks(found.append, lambda failure: found.append(failure.value))
    return found


def test_all_are_told_in_the_order_in_which_they_came() -> None:
    waiters: Waiters[int] = Waiters()
    order: list[str] = []
    waiters.wait().addCallback(lambda value: order.append(f"first {value}"))
    waiters.wait().addCallback(lambda value: order.append(f"second {value}"))
    waiters.fire(7)
    assert ["first 7", "second 7"] == order
    assert 0 == len(waiters)


def test_who_comes_while_others_are_told_waits_for_the_next_event() -> None:
    waiters: Waiters[int] = Waiters()
    late: list[Deferred[int]] = []
    waiters.wait().addCallback(lambda _: late.append(waiters.wait()))
    waiters.fire(1)
    found = told(late[0])
    assert [] == found
    waiters.fire(2)
    assert [2] == found


def test_who_cancels_ends_his_own_wait() -> None:
    waiters: Waiters[int] = Waiters()
    gone, stays = waiters.wait(), waiters.wait()
    found = told(gone), told(stays)
    gone.cancel()
    assert 1 == len(waiters)
    waiters.fire(1)
    assert [CancelledError] == [type(one) for one in found[0]]
    assert [1] == found[1]


def test_one_that_is_told_may_cancel_another() -> None:
    waiters: Waiters[int] = Waiters()
    first, second = waiters.wait(), waiters.wait()
    first.addCallback(lambda _: second.cancel())
    found = told(second)
    waiters.fire(1)
    assert [CancelledError] == [type(one) for one in found]


def test_what_one_does_with_a_failure_concerns_no_other() -> None:
    waiters: Waiters[int] = Waiters()
    seen: list[Failure] = []
    error = ValueError("no")
    for _ in range(2):
        waiters.wait().addErrback(seen.append)
    waiters.fail(Failure(error))
    assert [error, error] == [failure.value for failure in seen]
    assert seen[0] is not seen[1]


def test_those_who_were_taken_are_told_by_themselves_or_wait_again_before_the_others() -> None:
    waiters: Waiters[int] = Waiters()
    order: list[str] = []
    early = waiters.wait()
    early.addCallback(lambda _: order.append("early"))
    taken = waiters.take()
    waiters.wait().addCallback(lambda _: order.append("late"))
    waiters.put_back(taken)
    waiters.fire(1)
    taken.fire(2)
    assert ["early", "late"] == order


def test_who_cancels_after_he_was_taken_is_not_told() -> None:
    waiters: Waiters[int] = Waiters()
    waiter = waiters.wait()
    found = told(waiter)
    taken = waiters.take()
    waiter.cancel()
    taken.fire(1)
    assert [CancelledError] == [type(one) for one in found]


def test_a_deferred_is_followed_by_any_number_whatever_becomes_of_it() -> None:
    given: Deferred[int] = Deferred()
    heard = [told(followed(given)), told(followed(given))]
    given.callback(7)
    heard.append(told(followed(given)))
    assert [[7]] * 3 == heard
    failing: Deferred[int] = Deferred()
    error = RuntimeError("no database")
    heard = [told(followed(failing)), told(followed(failing))]
    failing.errback(error)
    heard.append(told(followed(failing)))
    assert [[error]] * 3 == heard


def test_cancelling_who_follows_cancels_the_deferred() -> None:
    given: Deferred[int] = Deferred()
    own = followed(given)
    heard = told(own)
    own.cancel()
    assert isinstance(heard[0], CancelledError)
    assert given.called
