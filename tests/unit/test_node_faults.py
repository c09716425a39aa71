"""A fault while one sender or receiver is told something ends that one's connection alone."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from twisted.logger import LogEvent

from msgservice.core.frames import Ack, Transfer
from msgservice.message import Status
from msgservice.node.ingress import Ingress
from msgservice.node.outlet import Outlet
from msgservice.node.peer import Peer
from tests.kit.nodes import NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"], "order": "none"}
Failures = list[LogEvent]


def fails(*_: Any) -> NoReturn:
    raise ZeroDivisionError("a fault of ours")


def fail_for(monkeypatch: pytest.MonkeyPatch, kind: type, method: str, name: str) -> None:
    """From now on this method raises for one of them."""
    real = getattr(kind, method)

    def faulty(self: Any, *arguments: Any) -> Any:
        sender = getattr(self, "_sender", None)  # of an ingress
        whose = getattr(self, "name", "") or getattr(self, "_name", "") or (sender and sender.name)
        return fails() if whose == name else real(self, *arguments)

    monkeypatch.setattr(kind, method, faulty)


def expect_one_fault(world: NodeWorld, bad: ScriptedPeer, failures: Failures, name: str) -> None:
    assert bad.lost_because is not None
    assert [] == world.failures
    assert {event["name"] for event in failures} == {name}
    failures.clear()


@pytest.mark.parametrize("method", ["stored", "flush"])
def test_a_fault_while_one_sender_is_answered_ends_its_connection_alone(
    monkeypatch: pytest.MonkeyPatch, logged_failures: Failures, method: str
) -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive=ORDERS, answering=True)
    bad, good = world.peer("bad", status_from=1), world.peer("good", status_from=1)
    with monkeypatch.context() as patch:
        fail_for(patch, Ingress, method, "bad")
        bad.transfer(1, "orders.new", [b"bad"])
        good.transfer(1, "orders.new", [b"good"])
        world.settle()
    expect_one_fault(world, bad, logged_failures, "sender 'bad'")
    assert [[(1, 1)]] == [ack.ranges for ack in good.take(Ack)]
    assert {("billing", Status.ACKNOWLEDGED): [(1, 1)]} == good.statuses()
    again = world.peer("bad", status_from=1)
    again.transfer(1, "orders.new", [b"bad"])  # it was not acknowledged
    world.settle()
    assert [[(1, 1)]] == [ack.ranges for ack in again.take(Ack)]
    assert {("billing", Status.ACKNOWLEDGED)} == set(again.statuses())
    assert billing.lost_because is None
    assert 0 == world.node.parts.commits.uncommitted_bytes


def test_a_fault_while_one_receiver_is_told_ends_its_connection_alone(
    monkeypatch: pytest.MonkeyPatch, logged_failures: Failures
) -> None:
    world = NodeWorld()
    bad = world.peer("bad", receive=ORDERS)
    good = world.peer("good", receive=ORDERS)
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    with monkeypatch.context() as patch:
        real = world.node.parts.tracker.settled
        patch.setattr(
            world.node.parts.tracker,
            "settled",
            lambda name, s: fails() if name == "bad" else real(name, s),
        )
        for receiver in (bad, good):
            (transfer,) = receiver.take(Transfer)
            receiver.ack(transfer)
        world.settle()
    expect_one_fault(world, bad, logged_failures, "receiver 'bad'")
    assert good.lost_because is None
    # Also of the one that failed: it is on disk.
    told = {key: set(ranges) for key, ranges in shop.statuses().items()}
    assert told == {(name, Status.ACKNOWLEDGED): {(1, 1)} for name in ("bad", "good")}
    again = world.peer("bad", receive=ORDERS)
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    assert again.bodies() == [b"two"]


def test_a_fault_while_one_receiver_is_fed_ends_its_connection_alone(
    monkeypatch: pytest.MonkeyPatch, logged_failures: Failures
) -> None:
    world = NodeWorld()
    bad = world.peer("bad", receive=ORDERS)
    good = world.peer("good", receive=ORDERS)
    shop = world.peer("shop", status_from=1)
    with monkeypatch.context() as patch:
        fail_for(patch, Outlet, "pump", "bad")
        shop.transfer(1, "orders.new", [b"one"])
        world.settle()
    expect_one_fault(world, bad, logged_failures, "receiver 'bad'")
    assert good.bodies() == [b"one"]
    assert [[(1, 1)]] == [ack.ranges for ack in shop.take(Ack)]
    assert world.peer("bad", receive=ORDERS).bodies() == [b"one"]


def test_a_fault_while_one_sender_is_told_states_ends_its_connection_alone(
    monkeypatch: pytest.MonkeyPatch, logged_failures: Failures
) -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive=ORDERS)
    bad, good = world.peer("bad", status_from=1), world.peer("good", status_from=1)
    bad.transfer(1, "orders.new", [b"bad"])
    good.transfer(1, "orders.new", [b"good"])
    world.settle()
    with monkeypatch.context() as patch:
        fail_for(patch, Peer, "tell", "bad")
        for transfer in billing.take(Transfer):
            billing.ack(transfer)
        world.settle()
    expect_one_fault(world, bad, logged_failures, "sender 'bad'")
    assert {("billing", Status.ACKNOWLEDGED): [(1, 1)]} == good.statuses()
    assert {("billing", Status.ACKNOWLEDGED): [(1, 1)]} == world.peer(
        "bad", status_from=1
    ).statuses()
