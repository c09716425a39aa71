"""Handlers of sessions: in order in each lane, side by side over lanes, however they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.faces.sessions.handlers import Handlers, Job, Outcome, SessionMessage
from msgservice.faces.sessions.limits import SessionLimits
from tests.kit.receiver_world import ThreadedClock
from tests.kit.threads import ThreadCalls


def a_message(content: Any) -> SessionMessage:
    return SessionMessage(content, None, ("127.0.0.1", 1))


def hear(outcome: Outcome, ended: Callable[[str | None], None]) -> None:
    if isinstance(outcome, Job):
        outcome.then(ended)
    else:
        ended(outcome)


class Ends:
    """What was said of each message."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers
        self.all: list[tuple[Any, str | None]] = []

    def submit(self, lane: object, content: Any) -> None:
        def ended(failure: str | None) -> None:
            self.all.append((content, failure))

        if content is None:
            self.handlers.after(lane, ended)
        else:
            hear(self.handlers.submit(lane, a_message(content)), ended)


def made(function: Any, **options: Any) -> Ends:
    limits = SessionLimits(stop_seconds=2.0)
    return Ends(Handlers(Clock(), function, limits=limits, **options))


async def at_once(message: SessionMessage) -> None:
    await succeed(None)


def test_a_long_lane_of_coroutines_that_end_at_once_is_handled_in_order() -> None:
    gate: Deferred[None] = Deferred()
    ends = made(lambda message: gate if message.content == 0 else at_once(message))
    for n in range(5_000):
        ends.submit("lane", n)
    assert ends.all == []
    gate.callback(None)
    assert ends.all == [(n, None) for n in range(5_000)]


def test_one_at_a_time_in_a_lane_and_lanes_side_by_side() -> None:
    waits: dict[Any, Deferred[None]] = {}

    def handle(message: SessionMessage) -> Deferred[None]:
        waits[message.content] = Deferred()
        return waits[message.content]

    ends = made(handle)
    for content in ("a1", "a2", "b1", "b2"):
        ends.submit(content[0], content)
    assert set(waits) == {"a1", "b1"}
    waits["b1"].callback(None)
    assert set(waits) == {"a1", "b1", "b2"}
    waits["a1"].callback(None)
    waits["b2"].callback(None)
    waits["a2"].callback(None)
    assert [content for content, _ in ends.all] == ["b1", "a1", "b2", "a2"]


def test_a_handler_that_fails_is_told_with_the_class_and_a_short_text(
    logged_failures: list[LogEvent],
) -> None:
    async def later(message: SessionMessage) -> None:
        raise ValueError("x" * 1_000)

    def now(message: SessionMessage) -> None:
        raise KeyError(message.content)

    for function, begin in ((later, "ValueError: xxx"), (now, "KeyError: 1")):
        ends = made(function)
        ends.submit("lane", 1)
        ((_, failure),) = ends.all
        assert failure is not None
        assert failure.startswith(begin)
        assert len(failure) <= 200
    assert len(logged_failures) == 2
    logged_failures.clear()


def test_without_a_message_it_is_said_when_all_before_have_ended() -> None:
    gate: Deferred[None] = Deferred()
    ends = made(lambda message: gate)
    ends.submit("lane", 1)
    ends.submit("lane", None)
    assert ends.all == []
    gate.callback(None)
    assert ends.all == [(1, None), (None, None)]


def test_generators_are_refused_at_the_door_and_where_one_is_returned(
    logged_failures: list[LogEvent],
) -> None:
    def generator(message: SessionMessage) -> Iterator[None]:
        yield

    with pytest.raises(TypeError, match="generator"):
        made(generator)
    ends = made(lambda message: generator(message))
    ends.submit("lane", 1)
    assert ends.all[0][1] is not None
    assert ends.all[0][1].startswith("TypeError")
    assert len(logged_failures) == 1
    logged_failures.clear()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_whatever_a_handler_raises_is_its_failure_and_the_next_of_its_lane_begins(
    kind: type[BaseException], logged_failures: list[LogEvent]
) -> None:
    def handle(message: SessionMessage) -> None:
        if message.content == 1:
            raise kind("no")

    async def later(message: SessionMessage) -> None:
        handle(message)

    for function in (handle, later):
        ends = made(function)
        for n in range(3):
            ends.submit("lane", n)
        assert ends.all == [(0, None), (1, f"{kind.__name__}: no"), (2, None)]
        assert ends.handlers.stop().called  # nothing counts as running
    logged_failures.clear()


def test_a_failure_that_has_no_text_is_told_by_its_class(logged_failures: list[LogEvent]) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise SystemExit

    def handle(message: SessionMessage) -> None:
        raise Odd

    ends = made(handle)
    ends.submit("lane", 1)
    assert ends.all == [(1, "Odd")]
    logged_failures.clear()


class CallsLater:
    async def __call__(self, message: SessionMessage) -> None:
        pass


@pytest.mark.parametrize("function", [at_once, partial(at_once), CallsLater()])
def test_a_coroutine_function_is_refused_for_threads(function: Any) -> None:
    with pytest.raises(TypeError, match="a coroutine function cannot run on threads"):
        made(function, threads=1)
    made(function)


def test_what_a_thread_cannot_wait_for_fails_its_message(logged_failures: list[LogEvent]) -> None:
    ran: list[object] = []

    async def body() -> None:
        ran.append(1)

    def generator() -> Iterator[None]:
        yield

    results = {
        "coroutine": lambda: body(),
        "Deferred": lambda: Deferred(),
        "generator": lambda: generator(),
    }
    reactor = ThreadCalls()
    handlers = Handlers(
        reactor,  # type: ignore[arg-type]  # of a reactor it needs only this
        lambda message: results[message.content](),
        threads=1,
        limits=SessionLimits(),
    )
    ended: list[str | None] = []
    all_ended: Deferred[None] = Deferred()

    def done(failure: str | None) -> None:
        ended.append(failure)
        if len(ended) == len(results):
            all_ended.callback(None)

    for name in results:
        hear(handlers.submit("lane", a_message(name)), done)
    reactor.wait(all_ended)
    for name, failure in zip(results, ended, strict=True):
        assert failure is not None
        assert failure.startswith("TypeError: a handler")
        assert f"returned a {name}" in failure
    assert ran == []
    logged_failures.clear()


@pytest.mark.parametrize("wrong", [1, "handler"])
def test_what_cannot_be_called_is_no_handler(wrong: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        made(wrong)


def test_a_stop_waits_for_those_that_run_and_begins_nothing_more() -> None:
    gate: Deferred[None] = Deferred()
    begun: list[Any] = []

    def handle(message: SessionMessage) -> Deferred[None]:
        begun.append(message.content)
        return gate

    ends = made(handle)
    ends.submit("lane", 1)
    ends.submit("lane", 2)
    stopped = ends.handlers.stop()
    assert not stopped.called
    gate.callback(None)
    assert stopped.called
    assert begun == [1]


def test_what_comes_while_a_handler_runs_waits_until_its_end_is_known() -> None:
    clock = Clock()
    ended: list[Any] = []

    def handle(message: SessionMessage) -> None:
        if message.content == 1:
            hear(handlers.submit("lane", a_message(2)), lambda failure: ended.append(2))
            handlers.after("lane", lambda failure: ended.append("all"))

    handlers = Handlers(clock, handle, limits=SessionLimits())
    hear(handlers.submit("lane", a_message(1)), lambda failure: ended.append(1))
    assert ended == [1]
    clock.advance(0)
    assert ended == [1, 2, "all"]


def test_a_stop_within_a_handler_waits_until_its_end_is_known() -> None:
    clock = Clock()
    stops: list[Deferred[None]] = []
    handlers = Handlers(clock, lambda _: stops.append(handlers.stop()), limits=SessionLimits())
    assert handlers.submit("lane", a_message(1)) is None
    assert not stops[0].called
    clock.advance(0)
    assert stops[0].called


def test_a_thread_that_cannot_begin_fails_its_message(
    logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(pool: object) -> None:
        raise RuntimeError("can't start new thread")

    ends = made(print, threads=1)
    monkeypatch.setattr("msgservice.faces.sessions.handlers._Pool.start", no_more)
    ends.submit("lane", 1)
    assert ends.all == [(1, "RuntimeError: can't start new thread")]
    logged_failures.clear()


def test_a_stop_waits_for_stop_seconds_at_most() -> None:
    clock = Clock()
    handlers = Handlers(clock, lambda message: Deferred(), limits=SessionLimits(stop_seconds=2.0))
    handlers.submit("lane", a_message(1))
    stopped = handlers.stop()
    clock.advance(1.9)
    assert not stopped.called
    clock.advance(0.2)
    assert stopped.called


def test_threads_keep_the_order_of_a_lane_and_run_lanes_side_by_side() -> None:
    reactor = ThreadCalls()
    both = threading.Barrier(2, timeout=30)
    order: dict[str, list[int]] = {"a": [], "b": []}

    def handle(message: SessionMessage) -> None:
        lane, n = message.content
        both.wait()  # it breaks unless the other lane runs at the same time
        order[lane].append(n)

    handlers = Handlers(reactor, handle, threads=2, limits=SessionLimits())  # type: ignore[arg-type]  # of a reactor it needs only this
    ended: list[str | None] = []
    all_ended: Deferred[None] = Deferred()

    def done(failure: str | None) -> None:
        ended.append(failure)
        if len(ended) == 40:
            all_ended.callback(None)

    for n in range(20):
        for lane in order:
            hear(handlers.submit(lane, a_message((lane, n))), done)
    reactor.wait(all_ended)
    assert ended == [None] * 40
    assert order == {"a": list(range(20)), "b": list(range(20))}
    assert handlers.stop().called


def test_a_deferred_that_fails_has_failed_for_all_messages_that_it_was_returned_for(
    logged_failures: list[LogEvent],
) -> None:
    ready: Deferred[None] = Deferred()
    ends = made(lambda message: ready)
    ends.submit("lane", 1)
    ends.submit("other", 2)
    ready.errback(RuntimeError("no database"))
    ends.submit("lane", 3)  # and when it has failed before
    assert ends.all == [(n, "RuntimeError: no database") for n in (1, 2, 3)]
    assert len(logged_failures) == 3
    logged_failures.clear()


def test_threads_end_when_a_handler_does_that_ran_longer_than_the_stop_waited() -> None:
    clock = ThreadedClock()
    begun, gate = threading.Event(), threading.Event()
    running: list[threading.Thread] = []

    def handle(message: SessionMessage) -> None:
        running.append(threading.current_thread())
        begun.set()
        assert gate.wait(30)

    handlers = Handlers(clock, handle, threads=1, limits=SessionLimits(stop_seconds=2.0))
    ended: list[str | None] = []
    hear(handlers.submit("lane", a_message(1)), ended.append)
    assert begun.wait(30)
    stopped = handlers.stop()
    clock.advance(2.1)
    assert stopped.called
    gate.set()
    while not ended:
        function, arguments, options = clock.calls_from_threads.get(timeout=30)
        function(*arguments, **options)
    running[0].join(30)
    assert not running[0].is_alive()


def test_what_waits_for_a_thread_at_a_stop_is_not_begun() -> None:
    clock = ThreadedClock()
    begun, gate = threading.Event(), threading.Event()
    handled: list[Any] = []

    def handle(message: SessionMessage) -> None:
        handled.append(message.content)
        begun.set()
        assert gate.wait(30)

    handlers = Handlers(clock, handle, threads=1, limits=SessionLimits(stop_seconds=2.0))
    ended: list[Any] = []
    for lane in (1, 2, 3):
        hear(handlers.submit(lane, a_message(lane)), lambda failure, n=lane: ended.append(n))  # type: ignore[misc]  # a default is what binds it
    assert begun.wait(30)
    stopped = handlers.stop()
    gate.set()
    while not stopped.called:
        function, arguments, options = clock.calls_from_threads.get(timeout=30)
        function(*arguments, **options)
    assert handled == ended == [1]  # the others are not answered: the next process gets them
