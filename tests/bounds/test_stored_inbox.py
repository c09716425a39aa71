"""A stored inbox takes a deep lane of small runs over turns, and none of them is long."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import IDelayedCall

from msgservice.errors import Retry
from msgservice.receiver.handling.engine import Handling
from msgservice.receiver.received import ReceivedMessage
from tests.bounds.meter import Meter
from tests.kit.receiver_world import Node, ThreadedClock, World, results_of

RUNS = 20_000
WINDOW = (1 << 16, 1 << 26)


class MeteredClock(ThreadedClock):
    """A clock that meters the turns of handlers, and of what their thread has done for them."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()

    def callFromThread(self, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> None:  # noqa: A002  # Twisted's
        super().callFromThread(self._metered, callable, *args, **kwargs)

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any) -> IDelayedCall:  # type: ignore[override]  # noqa: A002  # Twisted's
        if isinstance(getattr(callable, "__self__", None), Handling):
            return super().callLater(delay, self._metered, callable, *args)
        return super().callLater(delay, callable, *args)

    def _metered(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        with self.meter.turn(getattr(function, "__qualname__", "?")):
            function(*args, **kwargs)


def deep(path: Path, handler: Callable[..., Any]) -> tuple[World, Meter]:
    """A lane of which all but the first run arrived while that was committed."""
    clock = MeteredClock()
    node = Node(clock, window=WINDOW)
    world = World(handler, node=node, inbox=path, attach=False, window=WINDOW[0])
    attachment = world.attach(node)
    world.until(lambda: attachment.connected)
    node.knows = False  # its own work is not what is counted
    for _ in range(RUNS):
        node.offer([b"x"])
    world.run()
    return world, clock.meter


def test_a_deep_lane_is_handed_in_by_transactions(tmp_path: Path) -> None:
    handled = 0

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        nonlocal handled
        handled += 1

    world, meter = deep(tmp_path / "inbox.db", handle)
    world.until(lambda: handled == RUNS)
    assert meter.over is None, meter.over
    world.stop()
    assert meter.over is None, meter.over


def test_a_deep_lane_whose_first_message_fails_is_given_up(tmp_path: Path) -> None:
    """What was handed in behind it, and what waited for that, is told and sent again."""

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        raise Retry(60)

    world, meter = deep(tmp_path / "inbox.db", handle)
    world.until(lambda: world.node.nacks)
    assert meter.over is None, meter.over
    world.stop()
    assert meter.over is None, meter.over


@pytest.mark.parametrize("how", ["stopped", "over"])
def test_a_deep_lane_that_has_been_handed_in_ends(tmp_path: Path, how: str) -> None:
    handled = 0

    def handle(message: ReceivedMessage, transaction: Any) -> None:
        nonlocal handled
        handled += 1

    world, meter = deep(tmp_path / "inbox.db", handle)
    handling = world.receiver.handling
    (node,) = handling.nodes.values()
    (lane,) = node.lanes.values()
    world.until(lambda: lane.running > 1000)
    with meter.turn(how):
        if how == "stopped":
            ended = results_of(world.receiver.stop())
        else:
            handling.removed(node)
    world.until(partial(_is_idle, handling))
    assert meter.over is None, meter.over
    assert handled < RUNS
    assert not lane.queue
    assert not node.works
    if how == "stopped":
        world.until(lambda: ended)
    else:
        world.stop()


def _is_idle(handling: Handling) -> bool:
    return not handling._calls
