"""The node as its peers see it, on a memory log and virtual time."""

from __future__ import annotations

from msgservice.core.frames import Ack, AudienceFrame, Nack, Routed, Transfer
from msgservice.message import Action, Status
from tests.nodes import NodeWorld

ORDERS = {"subjects": ["orders.>"]}


def test_a_transfer_is_acknowledged_routed_and_delivered() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    (audience,) = shop.take(AudienceFrame)
    (routed,) = shop.take(Routed)
    assert audience.receivers == ["billing"]
    assert (1, 2, audience.audience) == (routed.first, routed.last, routed.audience)
    assert [Ack([(1, 2)])] == shop.take(Ack)
    (transfer,) = billing.take(Transfer)
    assert routed.position == transfer.sequence
    assert shop.statuses() == {}
    billing.ack(transfer)
    world.settle()
    assert shop.statuses() == {("billing", Status.ACKNOWLEDGED): [(1, 2)]}


def test_who_is_away_gets_its_messages_in_order_when_it_comes() -> None:
    world = NodeWorld()
    world.peer("billing", receive=ORDERS).connection.abort()
    shop = world.peer("shop")
    for n in range(1, 6):
        shop.transfer(n, "orders.new", [str(n).encode()])
        world.settle()
    billing = world.peer("billing", receive={}, answering=False)
    assert billing.bodies() == [b"1", b"2", b"3", b"4", b"5"]


def test_what_was_not_answered_comes_again_after_a_reconnect() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    first, _ = billing.take(Transfer)
    billing.ack(first)
    billing.connection.abort()
    world.settle()
    assert world.peer("billing", receive={}).bodies() == [b"two"]


def test_a_repeated_sequence_is_acknowledged_and_not_stored() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    (routed,) = shop.take(Routed)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert [Ack([(1, 1)]), Ack([(1, 1)])] == shop.take(Ack)
    assert [routed] == shop.take(Routed)
    assert billing.bodies() == [b"one"]


def test_an_unknown_name_in_to_is_refused_and_the_lane_goes_on() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    billing = world.peer("billing", receive={"subjects": []})
    shop.transfer(1, "orders.new", [b"one"], to=["nobody"])
    shop.transfer(2, "orders.new", [b"two"], to=["billing"])
    world.settle()
    assert [Nack(1, 1, Action.REFUSED, 0, "unknown receiver 'nobody'")] == shop.take(Nack)
    assert [Ack([(2, 2)])] == shop.take(Ack)
    assert billing.bodies() == [b"two"]


def test_one_message_reaches_several_receivers_and_each_is_told_apart() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("a", receive=ORDERS, answering=True)
    slow = world.peer("b", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert shop.statuses() == {("a", Status.ACKNOWLEDGED): [(1, 1)]}
    slow.ack(slow.take(Transfer)[0])
    world.settle()
    assert shop.statuses() == {("b", Status.ACKNOWLEDGED): [(1, 1)]}


def test_a_rejected_message_is_dead_and_keeps_its_body() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"bad", b"good"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, reason="no such customer")
    billing.connection.send(Ack([(transfer.sequence + 1, transfer.sequence + 1)]))
    world.settle()
    assert shop.statuses() == {
        ("billing", Status.DEAD): [(1, 1)],
        ("billing", Status.ACKNOWLEDGED): [(2, 2)],
    }
    ok, answer = shop.request("$node.dead.list", {"receiver": "billing"})
    assert ok
    assert answer["dead"][0]["reason"] == "no such customer"


def test_a_message_is_tried_again_and_its_lane_waits_for_it() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.a", [b"a1", b"a2"])
    shop.transfer(3, "orders.b", [b"b1"])
    world.settle()
    a, b = billing.take(Transfer)
    billing.nack(a.sequence, a.sequence, Action.RETRY, reason="later")
    billing.ack(b)
    world.settle()
    shop.transfer(4, "orders.a", [b"a3"])
    shop.transfer(5, "orders.b", [b"b2"])
    world.settle()
    assert billing.bodies() == [b"b2"]
    world.settle(2.0)
    (again,) = billing.take(Transfer)
    assert (a.sequence, 1) == (again.sequence, again.nacks)
    billing.ack(again)
    world.settle()
    assert billing.bodies() == [b"a2", b"a3"]


def test_a_node_that_restarts_has_receivers_cursors_and_attempts() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    for n in range(1, 5):
        shop.transfer(n, f"orders.{n}", [str(n).encode()])
    world.settle()
    one, two, three, _four = billing.take(Transfer)
    billing.ack(one)
    billing.ack(three)
    billing.nack(two.sequence, two.sequence, Action.RETRY, 60_000, "not yet")
    world.settle()
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.start()
    again = world.peer("billing", receive={})
    assert again.bodies() == [b"4"]
    world.settle(61.0)
    assert again.bodies() == [b"2"]


def test_newest_connection_of_a_receiver_wins() -> None:
    world = NodeWorld()
    old = world.peer("billing", receive=ORDERS)
    new = world.peer("billing", receive=ORDERS)
    world.settle(1.5)
    assert old.bye is not None
    assert old.lost_because is not None
    assert new.lost_because is None


def test_a_name_that_is_replaced_too_often_is_held() -> None:
    world = NodeWorld()
    for _ in range(world.limits.replacements + 3):
        last = world.peer("billing", receive=ORDERS)
    assert last.lost_because is not None
    world.settle(31.0)
    assert world.peer("billing", receive=ORDERS).lost_because is None


def test_removing_a_receiver_settles_what_waited_for_it() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS).connection.abort()
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert shop.request("$node.receivers.remove", {"name": "billing"}) == (True, {"queued": 1})
    removed = shop.request("$node.receivers.remove", {"name": "billing", "confirm": 1})
    assert removed == (True, {"removed": 1})
    assert shop.statuses() == {("billing", Status.REMOVED): [(1, 1)]}


def test_a_paused_receiver_gets_nothing_until_it_goes_on() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    assert shop.request("$node.receivers.pause", {"name": "billing"})[0]
    shop.transfer(1, "orders.new", [b"one"])
    world.settle(2.0)
    assert billing.bodies() == []
    assert shop.request("$node.receivers.resume", {"name": "billing"})[0]
    assert world.peer("billing", receive={}).bodies() == [b"one"]


def test_a_sender_that_comes_back_is_told_all_states_from_where_it_asks() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS, answering=True)
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    shop.connection.abort()
    world.settle()
    again = world.peer("shop", status_from=2)
    assert again.node_resume is not None
    assert list(again.node_resume.ranges) == [(1, 2)] or again.node_resume.floor == 3
    assert again.statuses() == {("billing", Status.ACKNOWLEDGED): [(2, 2)]}
