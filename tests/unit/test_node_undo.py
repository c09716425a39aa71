"""What is undone is accounted for exactly: each message at each receiver in one way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from msgservice.core.frames import Reply, Request, Transfer
from msgservice.errors import LogUnavailable
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Status, WireMessage, encode_messages
from msgservice.node import undo
from msgservice.node.outlet import Outlet
from msgservice.records import hash_of
from tests.kit.nodes import FailingLog, NodeWorld, state_of

ORDERS = {"subjects": ["orders.>"]}
SENDER = "shop/4cd9b7672d7fbee8"


class World(NodeWorld):
    """A node with one receiver that takes what comes, and two that get nothing for now."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.here = self.peer("here", receive=ORDERS)
        self.away = self.peer("away", receive=ORDERS)
        self.away.connection.abort()
        self.settle()
        self.shop, self.operator = self.peer("shop", status_from=1), self.peer("operator")
        self.sent = 0

    def send(self, *bodies: bytes, **more: Any) -> None:
        self.shop.transfer(self.sent + 1, "orders.new", list(bodies), **more)
        self.sent += len(bodies)
        self.settle()

    def undo(self, id_: str, count: int = 1) -> dict[str, Any]:
        ok, told = self.operator.request("$node.undo", {"id": id_, "count": count, "reason": "no"})
        assert ok, told
        self.settle(1)
        return dict(told)

    def acknowledge(self) -> None:
        for transfer in self.here.take(Transfer):
            self.here.ack(transfer)
        self.settle(1)


def test_undo_cancels_what_waits_leaves_what_is_in_flight_and_what_is_handled() -> None:
    world = World()
    world.send(b"one")
    world.acknowledge()
    world.send(b"two")
    first = world.undo(f"{SENDER}/1")
    assert first["receivers"] == {"here": {"acknowledged": 1}, "away": {"cancelled": 1}}
    second = world.undo("log:131072")
    assert second["receivers"] == {"here": {"in_flight": 1}, "away": {"cancelled": 1}}
    assert (second["sender"], second["subject"]) == (f"{SENDER}/2", "orders.new")
    again = world.undo(f"{SENDER}/1")
    assert again["receivers"] == {"here": {"acknowledged": 1}, "away": {"cancelled_before": 1}}
    world.acknowledge()
    for name, settled in (("here", {"acknowledged": 2}), ("away", {"cancelled": 2})):
        state = state_of(world, name)
        assert (state.settled, state.queued, state.unaccounted) == (settled, 0, 0)
    assert {(1, 1), (2, 2)} <= set(world.shop.statuses()[("away", Status.CANCELLED)]) or [
        (1, 2)
    ] == world.shop.statuses()[("away", Status.CANCELLED)]
    world.away = world.peer("away", receive=ORDERS)
    world.settle(1)
    assert world.away.bodies() == []


def test_a_message_in_the_middle_of_a_batch_is_undone_alone() -> None:
    world = World()
    world.send(*[b"%d" % number for number in range(5)])
    told = world.undo(f"{SENDER}/3")
    assert told["receivers"]["away"] == {"cancelled": 1}
    before = state_of(world, "away")
    assert (before.queued, before.settled) == (4, {"cancelled": 1})
    world.away = world.peer("away", receive=ORDERS)
    world.settle(1)
    assert world.away.bodies() == [b"0", b"1", b"3", b"4"]


@pytest.mark.parametrize("page", [1, 2, 64])
def test_a_range_is_undone_in_pages_and_adds_up(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "PIECES", page)
    world = World()
    world.send(b"0", b"1", b"2")
    world.acknowledge()
    world.send(b"3", b"4", b"5")
    asked: dict[str, Any] = {"id": f"{SENDER}/2", "count": 4}
    totals: dict[str, dict[str, int]] = {}
    messages = 0
    while True:
        ok, told = world.operator.request("$node.undo", asked)
        assert ok, told
        messages += told["messages"]
        for name, outcomes in told["receivers"].items():
            for outcome, count in outcomes.items():
                totals.setdefault(name, {}).setdefault(outcome, 0)
                totals[name][outcome] += count
        if told["next"] is None:
            break
        asked = {"id": told["next"], "count": told["left"]}
    assert messages == 4
    assert totals == {"here": {"acknowledged": 2, "in_flight": 2}, "away": {"cancelled": 4}}
    world.settle(1)
    assert state_of(world, "away").queued == 2


def test_beyond_what_was_sent_there_is_nothing_to_undo() -> None:
    world = World()
    world.send(b"one")
    told = world.undo(f"{SENDER}/1", count=1000)
    assert (told["messages"], told["receivers"]["away"]) == (1, {"cancelled": 1})
    ok, said = world.operator.request("$node.undo", {"id": f"{SENDER}/2"})
    assert not ok
    assert "no message" in said
    ok, said = world.operator.request("$node.undo", {"id": f"{SENDER}/1", "count": 0})
    assert not ok
    assert "count" in said


def undo_all(world: World, **asked: Any) -> list[dict[str, Any]]:
    """The pages of an undo."""
    pages: list[dict[str, Any]] = []
    while True:
        ok, told = world.operator.request("$node.undo", asked)
        assert ok, told
        pages.append(told)
        if told["next"] is None:
            return pages
        asked = {"id": told["next"], "count": told["left"]}


def test_a_count_far_beyond_what_was_sent_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undo, "PIECES", 8)
    world = World()
    for number in range(20):
        world.send(b"%d" % number)
    pages = undo_all(world, id=f"{SENDER}/1", count=2**53 - 1)
    assert [8, 8, 4] == [page["messages"] for page in pages]
    assert 20 == sum(page["receivers"]["away"]["cancelled"] for page in pages)
    assert 0 == state_of(world, "away").queued
    # Where a page begins nothing may be left: the next is undone all the same.
    (page,) = undo_all(world, id=f"{SENDER}/400", count=2)
    assert (0, {}) == (page["messages"], page["receivers"])
    ok, said = world.operator.request("$node.undo", {"id": "other/4cd9b7672d7fbee8/1", "count": 2})
    assert not ok
    assert "no message" in said


def test_a_message_is_undone_by_its_idempotency_key() -> None:
    world = World()
    message = WireMessage(b"paid", None, None, "order-17")
    raw = msgspec.Raw(encode_messages([message]))
    world.shop.connection.send(Transfer(1, "orders.new", raw))
    world.settle()
    for asked in (
        {"key": "order-17"},
        {"key": "order-17", "sender": "other"},
        {"key": "order-18", "sender": "shop"},
    ):
        ok, said = world.operator.request("$node.undo", asked)
        assert (ok, "no message with the key" in said) == (False, True)
    for wrong in ({"key": "order-17", "id": f"{SENDER}/1"}, {}):
        ok, said = world.operator.request("$node.undo", wrong)
        assert (ok, "one of both" in said) == (False, True)
    (page,) = undo_all(world, key="order-17", sender="shop")
    assert page["receivers"] == {"here": {"in_flight": 1}, "away": {"cancelled": 1}}
    assert f"{SENDER}/1" == page["sender"]
    # As who has sent it again is told.
    again = world.peer("shop", incarnation="i2", status_from=1)
    again.connection.send(Transfer(1, "orders.new", raw))
    world.settle(1)
    assert [(1, 1)] == again.statuses()["away", Status.CANCELLED]
    (page,) = undo_all(world, id=f"shop/{hash_of('i2')}/1")
    assert page["receivers"]["away"] == {"cancelled_before": 1}


def test_what_a_second_sender_has_of_a_key_is_undone_and_both_are_told() -> None:
    world = World()
    raw = msgspec.Raw(encode_messages([WireMessage(b"paid", None, None, "k")]))
    world.shop.connection.send(Transfer(1, "orders.new", raw))
    world.settle()
    again = world.peer("shop", incarnation="i2", status_from=1)
    again.transfer(1, "orders.new", [b"before"])
    again.connection.send(Transfer(2, "orders.new", raw))
    world.settle(1)
    (page,) = undo_all(world, id=f"shop/{hash_of('i2')}/1", count=5)
    assert (2, {"cancelled": 2}) == (page["messages"], page["receivers"]["away"])
    world.settle(1)
    assert (1, 1) in world.shop.statuses()["away", Status.CANCELLED]
    told = again.statuses()["away", Status.CANCELLED]
    assert {1, 2} == {n for low, high in told for n in range(low, high + 1)}


@pytest.mark.parametrize("page", [1, 2, 64])
def test_what_another_sent_behind_a_key_is_not_undone_with_what_came_by_it(
    page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is asked for, and the first of a page, may have been taken as another's."""
    monkeypatch.setattr(undo, "PIECES", page)
    world = World()
    keyed = [
        msgspec.Raw(encode_messages([WireMessage(b"paid", None, None, key)])) for key in ("k", "l")
    ]
    for sequence, raw in enumerate(keyed, 1):
        world.shop.connection.send(Transfer(sequence, "orders.new", raw))
    world.settle()
    world.sent = 2
    world.send(b"of the first", b"and one more", b"and a third")
    again = world.peer("shop", incarnation="i2", status_from=1)
    again.connection.send(Transfer(1, "orders.new", keyed[0]))
    again.transfer(2, "orders.new", [b"own"])
    again.connection.send(Transfer(3, "orders.new", keyed[1]))
    again.transfer(4, "orders.new", [b"last"])
    world.settle(1)
    pages = undo_all(world, id=f"shop/{hash_of('i2')}/1", count=4)
    assert f"shop/{hash_of('i2')}/1" == pages[0]["sender"]
    assert 4 == sum(one["messages"] for one in pages)
    world.settle(1)
    told = again.statuses()["away", Status.CANCELLED]
    assert {1, 2, 3, 4} == {n for low, high in told for n in range(low, high + 1)}
    told = world.shop.statuses()["away", Status.CANCELLED]
    assert {1, 2} == {n for low, high in told for n in range(low, high + 1)}
    assert 3 == state_of(world, "away").queued


def test_one_that_is_removed_meanwhile_is_told_as_removed() -> None:
    log = FailingLog(MemoryLog(reactor=(clock := Clock()), limits=Limits()))
    world = World(log=log, clock=clock)
    world.send(b"one", b"two")
    log.hold = True
    removing = Deferred.fromCoroutine(world.node.parts.operations.remove("away", 2))
    world.settle()
    asked = {"id": f"{SENDER}/1", "count": 2}
    raw = msgspec.Raw(encode_messages([WireMessage(msgspec.json.encode(asked))]))
    world.operator.connection.send(Request(1, "$node.undo", raw))
    world.settle()
    log.release()
    world.settle(1)
    assert not isinstance(removing.result, Failure)
    (reply,) = world.operator.take(Reply)
    ((_, ok, answer),) = reply.replies
    body = msgspec.msgpack.decode(answer, type=WireMessage).body
    assert ok
    assert msgspec.json.decode(body)["receivers"] == {
        "here": {"in_flight": 2},
        "away": {"removed": 2},
    }


def test_one_that_was_removed_and_came_again_under_its_name_has_the_account_of_both() -> None:
    world = World()
    world.send(b"one", b"two")
    Deferred.fromCoroutine(world.node.parts.operations.remove("away", 2))
    world.settle(1)
    world.away = world.peer("away", receive=ORDERS)
    world.away.connection.abort()
    world.settle()
    world.send(b"three")
    (page,) = undo_all(world, id=f"{SENDER}/1", count=3)
    assert page["receivers"]["away"] == {"removed": 2, "cancelled": 1}
    assert sum(sum(of.values()) for of in page["receivers"].values()) == 6


def test_one_whose_removal_fails_is_not_told_as_removed(
    monkeypatch: pytest.MonkeyPatch, logged_failures: list[Any]
) -> None:
    world = World()
    world.send(b"one", b"two")
    stored: Deferred[None] = Deferred()
    monkeypatch.setattr(Outlet, "all_stored", lambda _: stored)
    removing = Deferred.fromCoroutine(world.node.parts.operations.remove("away", 2))
    world.settle()
    monkeypatch.undo()
    asked = {"id": f"{SENDER}/1", "count": 2}
    raw = msgspec.Raw(encode_messages([WireMessage(msgspec.json.encode(asked))]))
    world.operator.connection.send(Request(1, "$node.undo", raw))
    world.settle(1)
    assert [] == world.operator.take(Reply)  # whether it stays is not known yet
    stored.errback(LogUnavailable("no disk"))
    world.settle(1)
    (reply,) = world.operator.take(Reply)
    ((_, ok, answer),) = reply.replies
    told = msgspec.json.decode(msgspec.msgpack.decode(answer, type=WireMessage).body)
    assert (ok, told["receivers"]) == (True, {"here": {"in_flight": 2}, "away": {"cancelled": 2}})
    assert isinstance(removing.result, Failure)
    removing.addErrback(lambda _: None)
    logged_failures.clear()


def test_very_many_receivers_are_undone_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for number in range(60):
        Deferred.fromCoroutine(world.node.add_receiver(f"r{number}", ["orders.>"]))
    world.settle()
    world.send(b"one", b"two", b"three")
    turns: dict[int, int] = {}
    turn = [0]
    now = [0.0]
    decreed = Outlet.decree

    def decree(self: Outlet, *given: Any) -> int:
        now[0] += 0.004  # so long it takes
        turns[turn[0]] = turns.get(turn[0], 0) + 1
        return decreed(self, *given)

    slices = world.node.parts.undo._slices
    begin = slices._begin

    def begins() -> None:
        turn[0] += 1
        begin()

    monkeypatch.setattr(slices, "_begin", begins)  # once in each turn of the reactor
    monkeypatch.setattr(Outlet, "decree", decree)
    monkeypatch.setattr(slices, "_now", lambda: now[0])
    told = world.undo(f"{SENDER}/1", count=3)
    assert {"cancelled": 3} == told["receivers"]["r7"]
    assert 61 == sum(turns.values()), turns
    assert 3 >= max(turns.values())


def test_what_waits_until_it_is_due_is_undone_whole() -> None:
    world = World()
    world.send(b"later", delay=60_000)
    told = world.undo(f"{SENDER}/1")
    assert told["receivers"] == {"$delayed": {"cancelled": 1}}
    assert world.undo(f"{SENDER}/1")["receivers"] == {"$delayed": {"cancelled_before": 1}}
    world.settle(120)
    assert world.here.bodies() == []


@pytest.mark.parametrize("page", [1, 2, 3, 64])
def test_a_range_of_what_waits_until_it_is_due_is_undone_in_pages(
    page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is passed over: what is cancelled takes no room of its page any more."""
    monkeypatch.setattr(undo, "PIECES", page)
    world = World()
    for number in range(10):
        world.send(b"%d" % number, delay=60_000 if number % 4 else None)
    told = undo_all(world, id=f"{SENDER}/1", count=9)
    assert sum(one["messages"] for one in told) == 9
    assert sum(one["receivers"].get("$delayed", {}).get("cancelled", 0) for one in told) == 6
    assert sum(one["receivers"].get("away", {}).get("cancelled", 0) for one in told) == 3
    world.acknowledge()
    world.settle(120)
    assert world.here.bodies() == [b"9"]


@pytest.mark.parametrize("is_read_late", [False, True])
def test_what_falls_due_while_it_is_undone_is_undone_at_its_receivers(
    monkeypatch: pytest.MonkeyPatch, *, is_read_late: bool
) -> None:
    """It is being moved: when that is stored nothing of it waits, and each receiver has it."""
    log = FailingLog(MemoryLog(reactor=(clock := Clock()), limits=Limits()))
    world = World(log=log, clock=clock)
    world.send(b"due now", delay=60_000)
    history = log.history
    if is_read_late:  # it is moved before anything of it is looked for among what waits

        def moved_since(*asked: Any) -> Deferred[Any]:
            known: Deferred[Any] = history(*asked)

            def later(found: Any) -> Deferred[Any]:
                log.release()
                return deferLater(clock, 0.1, lambda: found)

            return known.addCallback(later)

        monkeypatch.setattr(log, "history", moved_since, raising=False)
    log.hold = True
    world.settle(60.1)
    world.operator.ask("$node.undo", {"id": f"{SENDER}/1", "reason": "no"})
    world.settle(0.1)
    log.release()
    world.settle(1)
    ok, told = world.operator.answer()
    assert ok, told
    assert told["receivers"] == {"here": {"in_flight": 1}, "away": {"cancelled": 1}}
    assert told["messages"] == 1
    world.away = world.peer("away", receive=ORDERS)
    world.settle(1)
    assert world.away.bodies() == []


def test_who_was_taken_from_and_may_have_it_is_in_flight() -> None:
    """A receiver that was lost with a message unanswered may have handled it: it says so later."""
    world = World()
    world.send(b"one")
    world.here.connection.abort()
    world.settle()
    assert world.undo(f"{SENDER}/1")["receivers"]["here"] == {"in_flight": 1}
    world.here = world.peer("here", receive=ORDERS)
    world.settle(1)
    assert world.here.bodies() == [b"one"]


def test_what_is_from_before_the_nodes_start_may_have_been_handled_until_its_receiver_says() -> (
    None
):
    world = World()
    world.send(b"one", b"two")
    world.node.stopService()
    world.settle(1)
    world.start()
    world.operator = world.peer("operator")
    assert world.undo(f"{SENDER}/1")["receivers"]["away"] == {"in_flight": 1}
    world.away = world.peer("away", receive=ORDERS)
    world.settle(1)
    assert world.away.bodies() == [b"one", b"two"]
