"""A node that is told to stop while it still starts, is started again, or does not start."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.errors import LogLocked
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.node.node import Node
from tests.kit.receiver_world import results_of

STEP = 0.01  # what each step of the log takes


@pytest.mark.parametrize("steps", range(6))
def test_a_node_that_is_stopped_while_it_starts_does_not_go_on_starting(steps: int) -> None:
    clock, limits = Clock(), Limits()
    failures: list[Exception] = []
    log = MemoryLog(reactor=clock, limits=limits, delay=STEP)
    node = Node(clock, log, limits=limits, rng=lambda: 1.0, failed=failures.append)
    node.startService()
    clock.pump([STEP] * steps)
    stopped = node.stopService()
    clock.pump([STEP] * 1000)

    assert stopped.called
    assert [] == failures
    assert not node.is_running
    assert [] == clock.getDelayedCalls()


# --- started again, and not at all


class World:
    """A node on a log in memory that outlives its starts; where `error` is set, it cannot open."""

    def __init__(self) -> None:
        self.clock, limits = Clock(), Limits()
        self.failures: list[Exception] = []
        self.error: Exception | None = None
        log = MemoryLog(reactor=self.clock, limits=limits, delay=STEP)
        self._open = log.open
        setattr(log, "open", self.open)  # noqa: B010 - mypy knows it as a method
        self.node = Node(
            self.clock, log, limits=limits, rng=lambda: 1.0, failed=self.failures.append
        )

    def open(self) -> Deferred[Any]:
        return self._open() if self.error is None else fail(self.error)

    def run(self, seconds: float = 10.0) -> None:
        self.clock.pump([STEP] * round(seconds / STEP))


def test_a_node_is_started_again_after_it_has_stopped() -> None:
    world = World()
    for _ in range(3):
        ready = results_of(world.node.when_ready())
        world.node.startService()
        world.node.startService()  # it is started already
        world.run()
        assert ready == [None]
        client = world.node.client("shop")
        sent = results_of(client.send("a.b", b"x"))
        world.run()
        assert [receipt.sequence for receipt in sent] == [1]
        client.close()
        world.run()
        stopped = [results_of(world.node.stopService()) for _ in range(2)]
        world.run()
        assert stopped == [[None], [None]]
        assert not world.node.is_running
        assert world.clock.getDelayedCalls() == []
    assert results_of(world.node.stopService()) == [None]  # there is nothing to stop
    assert world.failures == []


@pytest.mark.parametrize("steps", [0, 1, 3, 100])
def test_a_node_that_is_started_while_it_stops_works_when_it_has_stopped(steps: int) -> None:
    world = World()
    world.node.startService()
    world.clock.pump([STEP] * steps)
    stopped = results_of(world.node.stopService())
    world.node.startService()
    world.run()
    assert stopped == [None]
    assert world.node.is_running
    assert results_of(world.node.when_ready()) == [None]
    # … and not where the last word was to stop.
    world.node.stopService()
    world.node.startService()
    world.node.stopService()
    world.run()
    assert not world.node.is_running
    assert world.clock.getDelayedCalls() == []
    assert world.failures == []


def test_a_client_of_a_node_that_stops_goes_on_when_it_is_started_again() -> None:
    world = World()
    world.node.startService()
    world.run()
    client = world.node.client("shop")
    world.run()
    world.node.stopService()
    world.run()
    sent = results_of(client.send("a.b", b"x"))
    world.run()
    assert sent == []
    world.node.startService()
    world.run(60)
    assert [receipt.sequence for receipt in sent] == [1]


def test_who_asks_a_node_that_has_not_started_is_told_why_at_once() -> None:
    world = World()
    world.error = LogLocked("data", "process 17")
    before = results_of(world.node.when_ready())
    world.node.startService()
    world.run()
    assert world.failures == [world.error]
    after = results_of(world.node.when_ready())
    assert [failure.value for failure in (*before, *after)] == [world.error, world.error]
    client = world.node.client("shop")
    world.run()
    assert str(world.error) in str(client.why())
    stopped = results_of(world.node.stopService())
    world.run()
    assert stopped == [None]
    assert [failure.value for failure in results_of(world.node.when_ready())] == [world.error]
    # Another start has its own outcome.
    world.error = None
    again = results_of(client.send("a.b", b"x"))
    world.node.startService()
    world.run(60)
    assert results_of(world.node.when_ready()) == [None]
    assert [receipt.sequence for receipt in again] == [1]


def test_a_node_whose_owner_fails_at_its_failure_tells_who_waits_all_the_same(
    logged_failures: list[LogEvent],
) -> None:
    def failed(error: Exception) -> None:
        raise ValueError("a fault of the program's")

    world = World()
    world.node._failed = failed
    world.error = LogLocked("data", "process 17")
    before = results_of(world.node.when_ready())
    world.node.startService()
    world.run()
    assert [failure.value for failure in before] == [world.error]
    assert [str(event["log_failure"].value) for event in logged_failures] == [
        "a fault of the program's"
    ]
    logged_failures.clear()
    stopped = results_of(world.node.stopService())
    world.run()
    assert stopped == [None]
