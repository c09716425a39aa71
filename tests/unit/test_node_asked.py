"""What a peer may ask of a node: how long a message waits, and whom it names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import Deferred

from msgservice import Limits
from msgservice.core.frames import Ack, Nack, Transfer
from msgservice.message import Action
from tests.kit.nodes import NodeWorld, ScriptedPeer, state_of

ORDERS = {"subjects": ["orders.>"]}


@pytest.mark.parametrize("action", [Action.RETRY, Action.LATER])
def test_14_a_receiver_cannot_put_a_message_off_for_ever(action: Action) -> None:
    world = NodeWorld(Limits(asked_delay_max=100.0))
    billing = world.peer("billing", receive=ORDERS)
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, action, delay=2**53 - 1, reason="not now")
    world.settle(90)
    assert [] == billing.take(Transfer)
    _, answer = shop.request("$node.receivers.list", {})
    assert "asked_delay_max = 100 s" in answer["receivers"][0]["last_error"]
    world.settle(15)
    assert [b"one"] == billing.bodies()


def test_more_names_than_there_may_be_receivers_are_refused_with_the_limit() -> None:
    world = NodeWorld()
    world.peer("billing", receive=ORDERS)
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"x"], to=["billing"] * 100_000)
    shop.transfer(2, "orders.old", [b"x"], to=["billing"])
    world.settle()
    (nack,) = shop.take(Nack)
    assert (nack.first, nack.last, nack.action) == (1, 1, Action.REFUSED)
    assert "100000 names, receivers = 10000 allowed" in nack.reason
    assert [[(2, 2)]] == [ack.ranges for ack in shop.take(Ack)]


def test_remembered_lists_of_names_are_bounded_by_their_names() -> None:
    world = NodeWorld(Limits(subjects=100))
    for n in range(8):
        world.peer(f"receiver-{n}", receive={"subjects": []}).connection.abort()
    directory = world.node.parts.directory
    for n in range(200):
        names = [f"receiver-{k % 8}" for k in range(30 + n)]
        audience = directory.audience_of(names)
        assert audience is directory.audience_of(names)
        held = sum(len(key) for key in directory._by_names)
        assert held <= max(100, len(names))


def test_14_after_a_restart_no_message_waits_longer_than_the_nodes_own_delay() -> None:
    """What is stored is a time of the wall clock, which may have been set back meanwhile."""
    world = NodeWorld(Limits(retry_delay_max=50.0))
    billing = world.peer("billing", receive=ORDERS)
    world.peer("shop").transfer(1, "orders.new", [b"one"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, Action.RETRY, delay=3_600_000, reason="no")
    world.settle(5)
    world.node.stopService()
    world.settle(20)
    world.start()
    again = world.peer("billing", receive=ORDERS)
    world.settle(45)
    assert [] == again.bodies()
    world.settle(10)
    assert [b"one"] == again.bodies()


def connected_again(world: NodeWorld) -> None:
    world.peer("billing", receive=ORDERS).connection.abort()
    world.settle()
    assert state_of(world, "billing").last_error
    world.peer("billing", receive=ORDERS, answering=True)


def tried_again(world: NodeWorld) -> None:
    billing = world.peer("billing", receive=ORDERS)
    world.peer("shop").transfer(1, "orders.new", [b"one"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, Action.RETRY, delay=5000, reason="boom")
    world.settle(1)
    assert state_of(world, "billing").last_error == "boom"
    world.settle(5)
    (transfer,) = billing.take(Transfer)
    billing.ack(transfer)


def resumed(world: NodeWorld) -> None:
    world.peer("billing", receive=ORDERS)
    for paused in (True, False):
        Deferred.fromCoroutine(world.node.parts.receivers.pause("billing", paused))
        world.settle(1)
        assert paused is bool(state_of(world, "billing").last_error)


@pytest.mark.parametrize("trouble", [connected_again, tried_again, resumed])
def test_a_receiver_that_is_well_again_shows_no_error(
    trouble: Callable[[NodeWorld], None],
) -> None:
    world = NodeWorld()
    trouble(world)
    world.settle(1)
    assert state_of(world, "billing").last_error == ""


def test_3_a_receiver_that_waits_whole_for_its_stuck_lanes_says_so() -> None:
    world = NodeWorld(Limits(window_bytes=65_536))
    billing = world.peer("billing", receive=ORDERS)
    shop = world.peer("shop")
    shop.transfer(1, "orders.stuck", [b"head"])
    world.settle()
    (head,) = billing.take(Transfer)
    billing.nack(head.sequence, head.sequence, Action.RETRY, delay=60_000, reason="boom")
    world.settle()
    for sequence in range(2, 10):
        shop.transfer(sequence, "orders.stuck", [bytes(10_000)])
        world.settle()
    shop.transfer(10, "orders.well", [b"another lane"])
    world.settle()
    assert [] == billing.take(Transfer)
    told = state_of(world, "billing").last_error
    assert told.startswith("boom")
    assert "exceptions = 10000" in told
    assert "window_bytes = 65536" in told


def test_3_a_lane_that_is_stuck_with_little_behind_it_holds_up_no_other() -> None:
    world = NodeWorld(Limits(window_bytes=65_536))
    billing = world.peer("billing", receive=ORDERS)
    shop = world.peer("shop")
    shop.transfer(1, "orders.stuck", [b"head"])
    world.settle()
    (head,) = billing.take(Transfer)
    billing.nack(head.sequence, head.sequence, Action.RETRY, delay=60_000, reason="boom")
    shop.transfer(2, "orders.stuck", [bytes(10_000)])
    shop.transfer(3, "orders.well", [b"another lane"])
    world.settle()
    assert [b"another lane"] == billing.bodies()
    assert state_of(world, "billing").last_error == "boom"


@pytest.mark.parametrize("failed", [False, True])
def test_who_has_left_orderly_has_no_error_for_what_it_did_not_take_any_more(
    failed: bool,
) -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    (run,) = billing.take(Transfer)
    action, said = (1, "no bank") if failed else (4, "receiver billing stops")
    billing.nack(run.sequence, run.sequence + 1, action, 1, said)
    world.settle()
    assert said in last_error(shop)
    billing.connection.bye()
    world.settle()
    billing.connection.close()
    world.settle()
    assert ("no bank" if failed else "") == last_error(shop)
    again = world.peer("billing", receive=ORDERS)
    world.settle(5)
    for one in again.take(Transfer):
        again.ack(one)
    world.settle()
    assert "" == last_error(shop)


def last_error(peer: ScriptedPeer) -> str:
    ok, page = peer.request("$node.receivers.list", {})
    assert ok
    found: str = page["receivers"][0]["last_error"]
    return found
