"""The node where two things meet: a stop under load, two connections of a name, a page and a commit."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice import Limits
from msgservice.connection import Connection
from msgservice.core.frames import (
    Ack,
    Frame,
    Transfer,
)
from msgservice.log.memory import MemoryLog
from msgservice.records import Group, Resume
from tests.nodes import FailingLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}


def failing_world(limits: Limits | None = None) -> tuple[NodeWorld, FailingLog]:
    clock = Clock()
    limits = limits or Limits()
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    return NodeWorld(limits, log=log, clock=clock), log


# --- stopping


class Streaming(ScriptedPeer):
    """Sends another batch for each that is acknowledged, and never pauses."""

    next = 1

    def received(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Ack):
            for first, last in frame.ranges:
                for _ in range(first, last + 1):
                    self.world.clock.callLater(0.004, self.send_next)

    def send_next(self) -> None:
        self.transfer(self.next, "orders.new", [b"x"])
        self.next += 1


class SlowDisk:
    """A log whose groups take 10 ms."""

    def __init__(self, log: MemoryLog, clock: Clock) -> None:
        self._log, self._clock = log, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, group: Group) -> Deferred[Any]:
        later: Deferred[Any] = Deferred()
        self._log.append(group).addCallback(
            lambda outcomes: self._clock.callLater(0.01, later.callback, outcomes)
        )
        return later


def test_21_a_node_stops_within_its_time_while_a_producer_streams() -> None:
    clock = Clock()
    log = SlowDisk(MemoryLog(reactor=clock, limits=Limits()), clock)
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop", kind=Streaming)
    for _ in range(20):
        shop.send_next()
        world.clock.advance(0.001)
    stopped: list[Any] = []
    world.node.stopService().addBoth(stopped.append)
    for _ in range(int(world.limits.stop_timeout / 0.005)):
        world.clock.advance(0.005)
    assert stopped == [None]


def test_21_a_node_stops_within_its_time_though_its_disk_takes_nothing() -> None:
    world, log = failing_world()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    log.fail_always = True
    billing.ack(billing.take(Transfer)[0])
    world.settle()
    stopped: list[Any] = []
    world.node.stopService().addBoth(stopped.append)
    world.settle(2 * world.limits.stop_timeout + 2)
    assert stopped == [None]


# --- two connections of one receiver


def test_27_a_receiver_that_comes_back_while_its_old_connection_says_goodbye() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    old = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    old.connection.bye()  # it stops, and its handler is not done yet
    world.settle()
    new = world.peer("billing", incarnation="i2", receive=ORDERS)
    world.settle()
    assert new.lost_because is None
    assert new.bodies() == [b"one"]
    world.settle(2 * world.limits.replaced_timeout)
    assert old.lost_because is not None


class Slow(ScriptedPeer):
    """Does not say RESUME by itself."""

    def greeted(self, connection: Connection, hello: Any) -> None:
        self.node_hello = hello


@pytest.mark.parametrize("change", ["pause", "remove"])
def test_10_who_was_greeted_before_its_receiver_was_paused_or_removed_is_fed_nothing(
    change: str,
) -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS).connection.abort()
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    billing = world.peer("billing", receive={}, kind=Slow)
    if change == "pause":
        shop.request("$node.receivers.pause", {"name": "billing"})
    else:
        shop.request("$node.receivers.remove", {"name": "billing", "confirm": 1})
    billing.connection.resume(Resume())
    world.settle()
    assert billing.bodies() == []
    assert not billing.connection.is_open
