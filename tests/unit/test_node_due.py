"""The clock for what falls due (DELIVERY 39)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from msgservice.clock import Time
from msgservice.errors import LogUnavailable
from msgservice.node.due import AGAIN, DAY, HELD_FOR, Due
from msgservice.records import Group
from tests.kit.logs import NOW, ContractDriver, make_batch


class Things:
    """A source of numbers that are due at a time: a page is two of them."""

    def __init__(self, *at: int) -> None:
        self.waiting = sorted(at)
        self.done: list[tuple[int, list[int]]] = []
        self.answer: Callable[[], Deferred[bool]] | None = None

    def earliest(self) -> int | None:
        return self.waiting[0] if self.waiting else None

    def act(self, now: int) -> Deferred[bool]:
        if self.answer is not None:
            return self.answer()
        page = [at for at in self.waiting if at <= now][:2]
        self.waiting = self.waiting[len(page) :]
        self.done.append((now, page))
        return succeed(bool(self.waiting) and self.waiting[0] <= now)


def make_due(seen: int = 0, at: float = 1000.0) -> tuple[Due, Clock]:
    clock = Clock()
    clock.advance(at)
    return Due(Time(clock), seen), clock


def test_each_is_acted_on_when_it_is_due_and_not_before_a_page_in_a_turn() -> None:
    due, clock = make_due()
    things = Things(1_000_500, 1_000_500, 1_000_500, 1_002_000)
    due.register(things)
    due.start()
    clock.advance(0.499)
    assert things.done == []
    clock.advance(0.001)
    assert [page for _, page in things.done] == [[1_000_500, 1_000_500], [1_000_500]]
    clock.advance(1.5)
    assert things.done[-1] == (1_002_000, [1_002_000])
    assert not clock.getDelayedCalls()


def test_a_timer_that_fires_for_what_is_due_finds_it_due() -> None:
    """Whatever floats make of the time: else it is set again for the same, without an end."""
    for began in (0.1, 57.339, 28.0017):
        for after in range(1, 700, 3):
            due, clock = make_due(at=began)
            wall = due.now()
            due.register(Things(wall + after))
            due.start()
            (timer,) = clock.getDelayedCalls()
            clock.rightNow = timer.getTime()
            assert wall + after == due.now(), (began, after)


def test_what_comes_later_and_is_due_earlier_is_looked_for() -> None:
    due, clock = make_due()
    things = Things(1_100_000)
    due.register(things)
    due.start()
    things.waiting.insert(0, 1_001_000)
    due.look()
    clock.advance(1)
    assert things.done == [(1_001_000, [1_001_000])]
    assert len(clock.getDelayedCalls()) == 1  # one timer, however many there are


def test_a_source_is_not_asked_again_while_it_acts_and_keeps_nobody_else_waiting() -> None:
    due, clock = make_due()
    slow, other = Things(1_000_000), Things(1_000_000, 1_001_000)
    answers: list[Deferred[bool]] = []

    def later() -> Deferred[bool]:
        answers.append(Deferred())
        return answers[-1]

    slow.answer = later
    due.register(slow)
    due.register(other)
    due.start()
    clock.advance(0)
    clock.advance(1)
    assert len(answers) == 1
    assert [page for _, page in other.done] == [[1_000_000], [1_001_000]]
    slow.waiting = []
    answers[0].callback(False)
    assert not clock.getDelayedCalls()


def test_what_failed_or_was_left_is_tried_again_after_a_pause(
    logged_failures: list[LogEvent],
) -> None:
    due, clock = make_due()
    things = Things(1_000_000)
    things.answer = lambda: fail(ValueError("no disk"))
    due.register(things)
    due.start()
    clock.advance(0)
    assert [event["log_failure"].getErrorMessage() for event in logged_failures] == ["no disk"]
    logged_failures.clear()
    things.answer = lambda: succeed(False)
    clock.advance(AGAIN)
    things.answer = None
    clock.advance(AGAIN / 2)
    assert things.done == []
    clock.advance(AGAIN / 2)
    assert len(things.done) == 1


@pytest.mark.parametrize("error", [LogUnavailable("the log is not open"), ValueError("a fault")])
def test_what_ends_with_the_node_is_no_failure(
    logged_failures: list[LogEvent], error: Exception
) -> None:
    """A page that was asked of the log for a look of before, and comes when that is closed."""
    due, clock = make_due()
    things, waiter = Things(1_000_000), Deferred[bool]()
    things.answer = lambda: waiter
    due.register(things)
    due.start()
    clock.advance(0)
    due.stop()
    waiter.errback(error)
    assert len(logged_failures) == (not isinstance(error, LogUnavailable))
    logged_failures.clear()
    assert not clock.getDelayedCalls()


def test_the_clock_does_not_go_back_with_the_wall_clock() -> None:
    clock = Clock()
    clock.advance(1000)
    time, wall = Time(clock), [5_000_000]
    time.wall = lambda: wall[0]
    due = Due(time)
    wall[0] = 0
    clock.advance(1)
    assert due.now() == 5_001_000


def test_a_start_far_ahead_of_the_log_says_so_and_waits_a_minute() -> None:
    due, clock = make_due(seen=1_000_000, at=1000 + 366 * 24 * 3600.0)
    things = Things(2_000_000)
    due.register(things)
    with capturedLogs() as logs:
        due.start()
    (said,) = [formatEvent(event) for event in logs]
    assert "366.0 days ahead" in said
    assert due.is_held
    clock.advance(HELD_FOR - 0.001)
    assert things.done == []
    clock.advance(0.001)
    assert len(things.done) == 1
    assert not due.is_held


def test_a_start_a_day_ahead_waits_for_nothing_and_one_behind_says_so() -> None:
    due, clock = make_due(seen=1_000_000, at=1000 + DAY / 1000)
    things = Things(2_000_000)
    due.register(things)
    with capturedLogs() as logs:
        due.start()
        clock.advance(0)
    assert len(things.done) == 1
    assert not logs
    due, clock = make_due(seen=DAY)
    with capturedLogs() as logs:
        due.start()
    (said,) = [formatEvent(event) for event in logs]
    assert "85400 seconds behind" in said


def test_after_a_stop_there_is_no_timer_and_nothing_is_acted_on() -> None:
    due, clock = make_due()
    things = Things(1_001_000)
    due.register(things)
    due.start()
    due.stop()
    assert not clock.getDelayedCalls()
    due.look()
    assert not clock.getDelayedCalls()


def test_the_log_says_the_wall_clock_when_it_was_written_last(tmp_path: Path) -> None:
    driver = ContractDriver("sqlite", tmp_path).open()
    assert driver.snapshot.wall == 0
    driver.wait(driver.log.retain(1_000))
    audience = driver.log.audience(())
    driver.wait(driver.log.append(Group(now=NOW, batches=[make_batch(audience)])))
    driver.wait(driver.log.retain(3_500))
    driver.reopen()
    assert driver.snapshot.wall == NOW + 2_500  # and what has passed since
    # One that was set back is what it is: what counts is what it was last.
    driver.wait(driver.log.retain(10_000))
    driver.wait(driver.log.retain(12_000))
    driver.wait(driver.log.append(Group(now=NOW - DAY, batches=[make_batch(audience, 2)])))
    driver.reopen()
    assert driver.snapshot.wall == NOW - DAY
    driver.close()
