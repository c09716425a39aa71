"""Calls that cross to the reactor's thread: what is given up and what has come, at any moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import CancelledError, Deferred

from msgservice.blocking.thread import Call, ReactorThread
from msgservice.errors import ClientClosed
from msgservice.receiver.deliveries import Deliveries, delivery_of
from msgservice.receiver.received import ReceivedMessage, RunFacts, decode_received

PATIENCE = 60.0


@pytest.fixture
def thread() -> Iterator[ReactorThread]:
    made = ReactorThread()
    yield made
    made.stop()


def test_an_outcome_that_comes_after_its_call_was_given_up_is_not_wanted() -> None:
    unwanted: list[int] = []
    waiting: Deferred[int] = Deferred()
    call = Call(lambda: waiting, unwanted.append)
    call.begin()
    assert not call.wait(0)
    assert call.give_up()
    waiting.callback(5)
    assert unwanted == [5]


def test_a_call_whose_outcome_has_come_cannot_be_given_up() -> None:
    unwanted: list[int] = []
    waiting: Deferred[int] = Deferred()
    call = Call(lambda: waiting, unwanted.append)
    call.begin()
    waiting.callback(5)
    assert not call.give_up()
    assert call.wait(None)
    assert (call.result(), unwanted) == (5, [])
    call.drop()  # the thread was interrupted all the same
    assert unwanted == [5]


def test_a_call_that_was_given_up_before_its_turn_is_not_begun() -> None:
    call: Call[int] = Call(lambda: pytest.fail("begun"), None)
    assert call.give_up()
    call.begin()
    call.cancel()


def test_what_is_given_up_is_cancelled_on_the_thread_of_the_reactor(thread: ReactorThread) -> None:
    cancelled = threading.Event()
    where: list[int | None] = []

    def cancel(_: Deferred[int]) -> None:
        where.append(threading.get_ident())
        cancelled.set()

    with pytest.raises(TimeoutError):
        thread.wait(lambda: Deferred(cancel), 0.01)
    assert cancelled.wait(PATIENCE)
    assert where != [threading.get_ident()]


def test_errors_come_to_the_thread_that_has_called(thread: ReactorThread) -> None:
    def fails() -> int:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        thread.call(fails)
    failed: Deferred[int] = Deferred()
    failed.errback(ValueError("there"))
    with pytest.raises(ValueError, match="there"):
        thread.wait(lambda: failed)


def test_calls_of_many_threads_wake_the_reactor_once(thread: ReactorThread) -> None:
    woken = 0
    wakes = thread._reactor.callFromThread

    def wake(*call: object) -> None:
        nonlocal woken
        woken += 1
        wakes(*call)  # type: ignore[arg-type]  # what it was given

    def hold() -> None:
        began.set()
        goes_on.wait(PATIENCE)

    began, goes_on = threading.Event(), threading.Event()
    holding = threading.Thread(target=thread.call, args=(hold,))
    holding.start()
    assert began.wait(PATIENCE)
    thread._reactor.callFromThread = wake  # type: ignore[method-assign, assignment]  # counts
    callers = [threading.Thread(target=thread.call, args=(int,)) for _ in range(20)]
    for each in callers:
        each.start()
    while len(thread._calls) < 20:
        pass
    goes_on.set()
    for each in (holding, *callers):
        each.join(PATIENCE)
    # The turn that was held up goes on with those that came meanwhile.
    assert woken <= 1


def test_nothing_is_called_at_the_end_of_a_process() -> None:
    thread = ReactorThread()
    thread.stop()
    thread.stop()
    with pytest.raises(ClientClosed, match="the process is ending"):
        thread.call(int)
    thread.tell(lambda: pytest.fail("told"))


# --- messages one by one


def messages(*bodies: bytes) -> list[ReceivedMessage]:
    facts = RunFacts(1, "orders.new", "node", None, 0, lambda body, _: body)
    return decode_received(msgspec.msgpack.encode([[body] for body in bodies]), facts)


def take(deliveries: Deliveries) -> list[Any]:
    """Return the list in which the next message will be, with what its answer is told to."""
    taken: list[Any] = []
    deliveries.take().addCallback(taken.append)
    return taken


def test_a_message_that_nobody_got_is_given_to_the_next() -> None:
    deliveries = Deliveries()
    first, second = messages(b"1", b"2")
    taking = deliveries.take()
    answered = [deliveries.handle(first), deliveries.handle(second)]
    taking.addCallback(deliveries.put_back)  # whose thread had given it up
    taken = take(deliveries) + take(deliveries)
    assert [message for message, _ in taken] == [first, second]
    for one in taken:
        delivery_of(one).acknowledge()
    assert all(one.called for one in answered)


def test_what_nobody_has_taken_at_the_end_has_no_attempt() -> None:
    deliveries = Deliveries()
    (first,) = messages(b"1")
    failed: list[object] = []
    deliveries.handle(first).addErrback(lambda failure: failed.append(failure.type))
    deliveries.end()
    assert failed == [CancelledError]
    assert take(deliveries) == [None]


def test_a_message_that_its_receiver_has_cancelled_is_given_to_nobody() -> None:
    deliveries = Deliveries()
    first, second = messages(b"1", b"2")
    cancelled = deliveries.handle(first)
    cancelled.addErrback(lambda failure: failure.trap(CancelledError))
    cancelled.cancel()
    deliveries.handle(second)
    assert [message for message, _ in take(deliveries)] == [second]


def test_who_waits_no_more_takes_nothing() -> None:
    deliveries = Deliveries()
    taking = deliveries.take()
    taking.addErrback(lambda failure: failure.trap(CancelledError))
    taking.cancel()
    (first,) = messages(b"1")
    deliveries.handle(first)
    assert [message for message, _ in take(deliveries)] == [first]


def test_the_first_answer_counts() -> None:
    deliveries = Deliveries()
    (first,) = messages(b"1")
    answered = deliveries.handle(first)
    (taken,) = take(deliveries)
    delivery_of(taken).acknowledge()
    assert answered.called
    deliveries.end()


def test_of_those_who_look_for_messages_one_is_told_of_each() -> None:
    deliveries = Deliveries()
    looking = [deliveries.when_some() for _ in range(3)]
    first, second = messages(b"1", b"2")
    deliveries.handle(first)
    assert [one.called for one in looking] == [True, False, False]
    deliveries.look()  # the one that was told has gone
    assert [one.called for one in looking] == [True, True, False]
    deliveries.handle(second)
    assert [one.called for one in looking] == [True, True, True]
    taken = [deliveries.take_now(), deliveries.take_now(), deliveries.take_now()]
    assert [one and one[0] for one in taken] == [first, second, None]


def test_all_who_look_for_messages_are_told_that_it_is_over() -> None:
    deliveries = Deliveries()
    looking = [deliveries.when_some() for _ in range(3)]
    deliveries.end()
    assert all(one.called for one in [*looking, deliveries.when_some()])
    assert deliveries.take_now() is None


def test_who_takes_one_of_several_leaves_the_others_to_those_who_look() -> None:
    deliveries = Deliveries()
    first, second = messages(b"1", b"2")
    deliveries.handle(first)
    deliveries.handle(second)
    looking = [deliveries.when_some() for _ in range(2)]
    assert all(one.called for one in looking)
    waiting = deliveries.when_some()
    assert waiting.called  # two are there
    assert deliveries.take_now() is not None
    assert deliveries.take_now() is not None
    assert not deliveries.when_some().called
