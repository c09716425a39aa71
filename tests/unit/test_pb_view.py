"""The view of a node's receivers: one for all, in pages, one update under way for each watcher."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.spread.jelly import unjelly

from msgservice.node.view import LOOK_ROWS, PAGE_ROWS, UPDATE_EVERY, VIEW_EVERY, ReceiversView, Row
from msgservice.records import ReceiverRow
from msgservice.transport.pb.expressions import Expressions, encode


def row(name: str, number: int) -> ReceiverRow:
    return ReceiverRow(number=number, name=name, patterns=(">",))


class Broker:
    """A connection: what is called over it comes to its observer as it would at the other side."""

    is_writable = True

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def cachedRemotelyAs(self, view: ReceiversView) -> int:
        return 7

    def call_jellied(
        self, command: bytes, target: int, name: bytes, arguments: list[Any]
    ) -> Deferred[None]:
        assert (b"cachemessage", 7, b"rows") == (command, target, name)
        decoder = Expressions(lambda: 1_000_000)
        decoder.feed(encode(arguments))
        (said,) = decoder.take()
        return self._observer.take(*unjelly(said))


class Observer:
    """A watcher whose answers are the test's to give."""

    def __init__(self) -> None:
        self.broker = Broker(self)
        self.updates: list[tuple[dict[str, Any], list[str], bool]] = []
        self.rows: dict[str, Any] = {}
        self.under_way: list[Deferred[None]] = []

    def take(self, rows: Any, gone: Any, is_complete: bool) -> Deferred[None]:
        assert not self.under_way, "two updates under way"
        self.updates.append((rows, gone, is_complete))
        self.rows.update(rows)
        for one in gone:
            self.rows.pop(one)
        answer: Deferred[None] = Deferred()
        self.under_way.append(answer)
        return answer

    def answer(self) -> None:
        self.under_way.pop().callback(None)


class World:
    def __init__(self, count: int) -> None:
        self.clock = Clock()
        self.receivers = {f"r{n}": row(f"r{n}", n) for n in range(count)}
        self.cursors = dict.fromkeys(self.receivers, 0)
        self.looked: list[int] = []
        self.view = ReceiversView(
            clock=self.clock,
            rows=lambda: list(self.receivers.values()),
            here=set,
            look=self.look,
        )

    def look(self, one: ReceiverRow, connected: bool) -> Row:
        self.looked.append(one.number)
        return Row(connected, False, False, False, self.cursors[one.name])

    def watch(self) -> Observer:
        observer = Observer()
        state = self.view.getStateToCacheAndObserveFor(None, observer)
        assert {"rows": {}, "is_complete": False} == state
        return observer

    def wait(self, seconds: float, *observers: Observer) -> None:
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)
            for one in observers:
                if one.under_way:
                    one.answer()


def test_a_watcher_gets_all_in_pages_and_is_told_when_it_has_all() -> None:
    world = World(1000)
    observer = world.watch()
    world.wait(2, observer)
    assert 1000 == len(observer.rows)
    assert all(len(rows) <= PAGE_ROWS for rows, _, _ in observer.updates)
    assert [False] * (len(observer.updates) - 1) + [True] == [
        done for _, _, done in observer.updates
    ]


def test_only_what_changes_is_told_and_what_goes_too() -> None:
    world = World(10)
    observer = world.watch()
    world.wait(1, observer)
    observer.updates.clear()
    world.wait(1, observer)
    assert [] == observer.updates
    world.cursors["r3"] = 7
    del world.receivers["r4"]
    world.wait(1, observer)
    assert [({"r3": row_of(7)}, ["r4"], True)] == observer.updates
    world.cursors["r3"] = 1
    world.wait(1, observer)
    (told,) = observer.updates[-1][0].values()
    assert [bool] * 4 + [int, int, str] == [type(value) for value in told.values()]  # 1 is no True


def row_of(cursor: int) -> dict[str, Any]:
    return Row(False, False, False, False, cursor)._asdict()


def test_a_view_of_nothing_is_complete() -> None:
    world = World(0)
    observer = world.watch()
    world.wait(1, observer)
    assert [({}, [], True)] == observer.updates


def test_who_does_not_answer_gets_no_second_update_and_then_all_that_changed_once() -> None:
    world = World(5)
    slow, quick = world.watch(), world.watch()
    for cursor in range(1, 20):
        world.cursors["r1"] = cursor
        world.wait(VIEW_EVERY, quick)
    assert 1 == len(slow.updates)
    assert len(quick.updates) > 5
    slow.answer()
    world.wait(1)
    assert [{"r1": row_of(19)}] == [rows for rows, _, _ in slow.updates[1:]]


def test_who_has_let_go_is_told_nothing_more_though_an_update_is_answered_late() -> None:
    world = World(3 * PAGE_ROWS)
    observer = world.watch()
    world.wait(0.5)
    assert 1 == len(observer.updates)
    world.view.stoppedObserving(None, observer)
    again = world.watch()  # somebody else
    world.wait(1, observer, again)
    assert 1 == len(observer.updates)
    assert 3 * PAGE_ROWS == len(again.rows)


def test_nothing_is_told_while_the_connection_has_no_room() -> None:
    world = World(5)
    observer = world.watch()
    observer.broker.is_writable = False
    world.wait(2)
    assert [] == observer.updates
    observer.broker.is_writable = True
    world.wait(1)
    assert 5 == len(observer.rows)


def test_updates_of_one_watcher_are_no_closer_than_that() -> None:
    world = World(2000)
    observer = world.watch()
    at: list[float] = []
    told = 0
    for _ in range(2000):
        world.clock.advance(0.001)
        if len(observer.updates) > told:
            told = len(observer.updates)
            at.append(world.clock.seconds())
            observer.answer()
    assert len(at) > 5
    assert min(b - a for a, b in pairwise(at)) >= UPDATE_EVERY - 0.001


def test_no_turn_looks_at_more_than_some_and_nobody_looks_when_nobody_watches() -> None:
    world = World(2 * LOOK_ROWS + 5)
    observer = world.watch()
    assert LOOK_ROWS == len(world.looked)
    world.clock.advance(0)  # all turns that follow at once
    assert 2 * LOOK_ROWS + 5 == len(world.looked)
    world.view.stoppedObserving(None, observer)
    assert 0 == world.view.watchers
    world.looked.clear()
    world.wait(2)
    assert [] == world.looked
    assert [] == world.clock.getDelayedCalls()


def test_a_fault_is_logged_and_looking_goes_on(logged_failures: list[Any]) -> None:
    world = World(3)
    fails = [True]
    look = world.look

    def once(one: ReceiverRow, connected: bool) -> Row:
        if fails.pop() if fails else False:
            raise RuntimeError("a fault")
        return look(one, connected)

    world.view._look = once
    observer = world.watch()
    world.wait(2, observer)
    assert 3 == len(observer.rows)
    assert 1 == len(logged_failures)
    logged_failures.clear()


@pytest.mark.parametrize("count", [2, 20])
def test_watchers_share_the_looking(count: int) -> None:
    world = World(100)
    observers = [world.watch() for _ in range(count)]
    world.wait(1.0, *observers)
    assert len(world.looked) <= 100 * 6
    assert all(100 == len(one.rows) for one in observers)
