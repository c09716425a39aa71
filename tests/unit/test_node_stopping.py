"""A node that is told to stop while it still starts (found by tests/simulation)."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.node.node import Node

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
    assert not node.running_now
    assert [] == clock.getDelayedCalls()
