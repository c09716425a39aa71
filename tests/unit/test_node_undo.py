"""What is undone is accounted for exactly: each message at each receiver in one way."""

from __future__ import annotations

from typing import Any

import pytest

from msgservice.core.frames import Transfer
from msgservice.message import Status
from msgservice.node import undo
from tests.kit.nodes import NodeWorld, state_of

ORDERS = {"subjects": ["orders.>"]}
SENDER = "shop/4cd9b7672d7fbee8"


class World(NodeWorld):
    """A node with one receiver that takes what comes, and two that get nothing for now."""

    def __init__(self) -> None:
        super().__init__()
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
    monkeypatch.setattr(undo, "MESSAGES", page)
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


def test_what_waits_until_it_is_due_is_undone_whole() -> None:
    world = World()
    world.send(b"later", delay=60_000)
    told = world.undo(f"{SENDER}/1")
    assert told["receivers"] == {"$delayed": {"cancelled": 1}}
    assert world.undo(f"{SENDER}/1")["receivers"] == {"$delayed": {"cancelled_before": 1}}
    world.settle(120)
    assert world.here.bodies() == []


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
