"""Blocking handlers on threads of their own: order, room, and what happens at the end."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.core.frames import Ack
from msgservice.errors import Reject, Retry
from msgservice.limits import Limits
from msgservice.message import Action
from msgservice.receiver.received import ReceivedMessage
from tests.kit.receiver_world import Node, World, results_of


class Blocking:
    """A handler that blocks until the test lets a message pass; every thread may be in it."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.threads: set[int] = set()
        self.side_by_side = 0
        self._now = 0
        self._lock = threading.Lock()
        self._may_end: dict[bytes, threading.Event] = defaultdict(threading.Event)
        self.has_begun: dict[bytes, threading.Event] = defaultdict(threading.Event)

    def __call__(self, message: ReceivedMessage) -> None:
        with self._lock:
            self.begun.append(message.body)
            self.threads.add(threading.get_ident())
            self._now += 1
            self.side_by_side = max(self.side_by_side, self._now)
            may_end = self._may_end[message.body]
        self.has_begun[message.body].set()
        assert may_end.wait(60)
        with self._lock:
            self._now -= 1

    def let(self, *bodies: bytes) -> None:
        for body in bodies:
            with self._lock:
                event = self._may_end[body]
            event.set()

    def wait_for(self, *bodies: bytes) -> None:
        for body in bodies:
            assert self.has_begun[body].wait(60), body


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    made = Blocking()
    yield made
    for event in list(made._may_end.values()):
        event.set()


def test_lanes_run_side_by_side_on_threads_that_are_not_the_reactors(blocking: Blocking) -> None:
    world = World(blocking, threads=2)
    world.node.offer([b"a1", b"a2"], "a")
    world.node.offer([b"b1", b"b2"], "b")
    world.run()
    blocking.wait_for(b"a1", b"b1")
    assert blocking.side_by_side == 2
    blocking.let(b"b1", b"b2")
    world.until(lambda: world.node.backlog.above)
    assert world.node.acknowledged == [(3, 4)]
    blocking.let(b"a1", b"a2")
    world.until(lambda: world.node.backlog.cursor == 4)
    assert threading.get_ident() not in blocking.threads
    world.stop()


def test_3_a_thread_begins_nothing_more_of_an_incarnation_that_is_over(
    blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.receiver.handling.threads.SLICE_SECONDS", 1e9)
    world = World(blocking, threads=2)
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    blocking.wait_for(b"1")
    node = Node(world.clock, incarnation="log.2")
    world.attach(node)
    world.run()
    node.offer([b"new"])
    world.run()
    blocking.let(b"1", b"2", b"3", b"new")
    world.until(lambda: node.backlog.cursor == 1)
    assert blocking.begun == [b"1", b"new"]
    world.stop()


@pytest.mark.parametrize("order", ["strict", "none"])
def test_3_a_thread_begins_nothing_more_once_the_order_is_another(
    blocking: Blocking, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr("msgservice.receiver.handling.threads.SLICE_SECONDS", 1e9)
    world = World(blocking, threads=2, order=order)
    world.node.offer([b"1", b"2", b"3"])
    world.run()
    at_once = (b"1",) if order == "strict" else (b"1", b"2")
    blocking.wait_for(*at_once)
    node = world.change_order("none" if order == "strict" else "strict")
    node.offer([b"1", b"2", b"3"])
    node.offer([b"4"])
    world.run(1)
    blocking.let(*at_once)
    world.until(lambda: node.backlog.cursor == len(at_once))
    blocking.wait_for(b"3")
    if order == "strict":
        blocking.wait_for(b"2")
    assert blocking.begun.count(b"1") == 1
    blocking.let(b"2", b"3", b"4")
    world.until(lambda: node.backlog.cursor == 4)
    assert sorted(blocking.begun) == [b"1", b"2", b"3", b"4"]
    world.stop()


def test_a_lane_keeps_its_order_on_any_number_of_threads() -> None:
    seen: list[bytes] = []
    world = World(lambda message: seen.append(message.body), threads=4)
    bodies = [b"%d" % n for n in range(500)]
    for at in range(0, 500, 50):
        world.node.offer(bodies[at : at + 50])
    world.until(lambda: world.node.backlog.cursor == 500)
    assert seen == bodies
    world.stop()


def test_without_order_one_run_is_spread_over_the_threads(blocking: Blocking) -> None:
    world = World(blocking, threads=3, order="none")
    world.node.offer([b"1", b"2", b"3", b"4"])
    world.run()
    blocking.wait_for(b"1", b"2", b"3")
    blocking.let(b"2")
    world.until(lambda: world.node.acknowledged)
    blocking.wait_for(b"4")
    assert world.node.acknowledged == [(2, 2)]
    blocking.let(b"1", b"3", b"4")
    world.until(lambda: world.node.backlog.cursor == 4)
    assert blocking.side_by_side == 3
    world.stop()


@pytest.mark.parametrize("order", ["strict", "none"])
def test_outcomes_are_those_of_any_handler(order: str, logged_failures: list[LogEvent]) -> None:
    tries: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        tries.append(message.body)
        if message.body == b"2" and tries.count(b"2") == 1:
            raise Retry(0.5)
        if message.body == b"3":
            raise Reject("no")
        if message.body == b"4" and tries.count(b"4") == 1:
            raise KeyError("oops")

    world = World(handle, threads=2, order=order)
    world.node.offer([b"1", b"2", b"3", b"4", b"5"])

    def drained() -> bool:
        if world.clock.calls_from_threads.empty():  # type: ignore[attr-defined]  # a ThreadedClock
            world.run(1)
        return world.node.backlog.cursor == 5

    world.until(drained)
    actions = sorted((nack.first, nack.action) for nack in world.node.nacks)
    assert actions == [(2, Action.RETRY), (3, Action.DEAD), (4, Action.RETRY)]
    assert sorted(tries) == [b"1", b"2", b"2", b"3", b"4", b"4", b"5"]
    assert len(logged_failures) == 1
    logged_failures.clear()
    world.stop()


def test_a_batch_on_a_thread_is_acknowledged_as_one() -> None:
    got: list[list[bytes]] = []
    world = World(lambda messages: got.append([m.body for m in messages]), threads=1, batch=True)
    world.node.offer([b"1", b"2"])
    world.until(lambda: world.node.answers)
    assert (got, world.node.answers) == ([[b"1", b"2"]], [Ack([(1, 2)])])
    world.stop()


def test_a_handler_on_a_thread_may_not_return_a_deferred(logged_failures: list[LogEvent]) -> None:
    world = World(lambda message: Deferred(), threads=1)
    world.node.offer([b"1"])
    world.until(lambda: world.node.nacks)
    assert "use threads=0" in world.node.nacks[0].reason
    logged_failures.clear()
    world.stop()


def test_stopping_waits_for_a_handler_and_sends_its_answer(blocking: Blocking) -> None:
    world = World(blocking, threads=1)
    world.node.offer([b"1", b"2"])
    world.run()
    blocking.wait_for(b"1")
    stopped = results_of(world.receiver.stop())
    world.run(1)
    assert stopped == []
    blocking.let(b"1")
    world.until(lambda: stopped)
    assert blocking.begun == [b"1"]
    assert world.node.answers == [Ack([(1, 1)])]


def test_stopping_does_not_wait_longer_than_its_limit_for_a_handler(blocking: Blocking) -> None:
    world = World(blocking, threads=1, limits=Limits(stop_timeout=2))
    world.node.offer([b"1"])
    world.run()
    blocking.wait_for(b"1")
    stopped = results_of(world.receiver.stop())
    world.run(3)
    assert stopped == [None]
    assert world.node.answers == []
    blocking.let(b"1")


def test_threads_are_made_when_there_is_work(blocking: Blocking) -> None:
    before = set(threading.enumerate())  # of which some may end meanwhile: others' pools
    world = World(blocking, threads=4)
    assert set(threading.enumerate()) <= before
    world.node.offer([b"1"])
    world.run()
    blocking.wait_for(b"1")
    made = {thread.ident for thread in set(threading.enumerate()) - before}
    assert blocking.threads <= made
    blocking.let(b"1")
    world.until(lambda: world.node.backlog.cursor == 1)
    world.stop()
