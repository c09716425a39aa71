"""Work of many has its slice of each turn; the rest waits its turn, in order."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from msgservice.node.slices import Slices


class Turns(Clock):
    """A clock on which what is to be called at once is called in the next turn, as reactors do."""

    def turn(self) -> None:
        due, self.calls = self.calls, []
        for call in due:
            call.called = 1
            call.func()


class World:
    """Slices of 10 s, on a clock that stands still but for what work takes."""

    def __init__(self) -> None:
        self.clock = Turns()
        self.time = 0.0
        self.done: list[int] = []
        self.slices = Slices(self.clock, lambda: self.time, 10.0)

    def work(self, number: int, seconds: float = 1.0) -> Callable[[], int]:
        def work() -> int:
            self.time += seconds
            self.done.append(number)
            return number

        return work

    def turn(self) -> int:
        """Let a turn pass; return how many were done in it."""
        before = len(self.done)
        self.clock.turn()
        return len(self.done) - before


def test_what_fits_into_the_slice_of_a_turn_is_done_at_once() -> None:
    world = World()
    results: list[int] = []
    for number in range(10):
        world.slices.run(world.work(number)).addCallback(results.append)
    assert results == list(range(10))
    world.turn()
    assert not world.clock.getDelayedCalls()


def test_what_does_not_waits_its_turn_in_the_order_it_came() -> None:
    world = World()
    results: list[int] = []
    for number in range(25):
        world.slices.run(world.work(number)).addCallback(results.append)
    assert results == list(range(10))
    assert world.turn() == 10
    world.slices.run(world.work(25)).addCallback(results.append)  # behind those that wait
    assert len(results) == 20
    assert world.turn() == 6
    world.turn()
    assert results == list(range(26))
    assert not world.clock.getDelayedCalls()


def test_the_slice_of_a_turn_is_one_for_what_waited_and_what_comes() -> None:
    world = World()
    for number in range(18):
        world.slices.run(world.work(number))
    assert world.turn() == 8
    for number in range(18, 22):
        world.slices.run(world.work(number))
    assert len(world.done) == 20
    assert world.turn() == 2


def test_one_that_takes_longer_than_a_slice_is_done_all_the_same() -> None:
    world = World()
    for number in range(3):
        world.slices.run(world.work(number, seconds=100.0))
    assert [world.turn(), world.turn(), world.turn()] == [1, 1, 0]


def test_one_that_is_cancelled_is_not_done_and_the_others_are() -> None:
    world = World()
    waiting: list[Deferred[int]] = [world.slices.run(world.work(n)) for n in range(13)]
    failed: list[object] = []
    waiting[11].addErrback(lambda failure: failed.append(failure.trap(CancelledError)))
    waiting[11].cancel()
    assert failed == [CancelledError]
    world.turn()
    assert world.done == [*range(11), 12]


def test_what_work_raises_is_its_own_failure() -> None:
    world = World()
    failed: list[str] = []

    def fail() -> None:
        raise ValueError("a reason")

    for number in range(11):
        world.slices.run(world.work(number))
    for _ in range(2):
        world.slices.run(fail).addErrback(lambda failure: failed.append(str(failure.value)))
    world.turn()
    assert failed == ["a reason"] * 2
    assert world.turn() == 0


def test_a_stop_leaves_no_timer_and_ends_what_waits() -> None:
    world = World()
    waiting = [world.slices.run(world.work(n)) for n in range(12)]
    world.slices.stop()
    assert not world.clock.getDelayedCalls()
    for one in waiting[10:]:
        one.addErrback(lambda failure: failure.trap(CancelledError))
    assert world.turn() == 0
    assert world.done == list(range(10))
