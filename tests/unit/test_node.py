"""The node as its peers see it, on a memory log and virtual time."""

from __future__ import annotations

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice import Limits
from msgservice.core.frames import Ack, AudienceFrame, Nack, ReceiveOptions, Routed, Transfer
from msgservice.core.ranges import RangeSet
from msgservice.errors import LogFailed
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status, WireMessage, decode_messages, encode_messages
from msgservice.records import Resume
from tests.kit.nodes import FailingLog, NodeWorld

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
    assert [Nack(1, 1, Action.REFUSED, 0, "unknown receiver 'nobody'", 2, "nobody")] == shop.take(
        Nack
    )
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
    for number in range(world.limits.replacements + 3):
        last = world.peer("billing", incarnation=f"i{number % 2}", receive=ORDERS)
    assert last.lost_because is not None
    world.settle(31.0)
    assert world.peer("billing", receive=ORDERS).lost_because is None


def test_removing_a_receiver_settles_what_waited_for_it() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS).connection.abort()
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert shop.request("$node.receivers.remove", {"name": "billing"}) == (
        True,
        {"queued": 1, "dead": 0},
    )
    removed = shop.request("$node.receivers.remove", {"name": "billing", "confirm": 1})
    assert removed == (True, {"removed": 1, "dead": 0})
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


def test_what_a_paused_receiver_says_it_has_taken_counts() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    (sent,) = billing.take(Transfer)
    assert shop.request("$node.receivers.pause", {"name": "billing"})[0]
    billing.connection.abort()  # with its answer
    world.settle()
    first = sent.sequence
    again = world.peer("billing", receive={}, resume=Resume(1, ((first, first),)))
    assert again.node_hello is not None
    assert again.node_hello.options.receive == ReceiveOptions(order="strict", paused=True)
    assert shop.statuses() == {("billing", Status.ACKNOWLEDGED): [(1, 1)]}
    assert shop.request("$node.receivers.resume", {"name": "billing"})[0]
    resume = Resume(1, ((first, first),))
    assert world.peer("billing", receive={}, resume=resume).bodies() == [b"two"]


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


def test_a_receiver_that_lags_beyond_the_tail_pages_from_the_log() -> None:
    world = NodeWorld(Limits(tail_bytes=8000))
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS, window=(2, 1 << 20))
    for n in range(1, 41):
        shop.transfer(n, "orders.new", [str(n).encode() * 20])
    world.settle()
    seen: list[bytes] = []
    while transfers := billing.take(Transfer):
        for transfer in transfers:
            seen += [message.body for message in decode_messages(transfer.messages)]
            billing.ack(transfer)
        world.settle()
    assert [str(n).encode() * 20 for n in range(1, 41)] == seen


def test_the_window_of_a_receiver_is_kept() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS, window=(3, 1 << 20))
    for n in range(1, 11):
        shop.transfer(n, "orders.new", [b"x"])
    world.settle()
    transfers = billing.take(Transfer)
    assert 3 == len(transfers)
    billing.ack(transfers[0])
    world.settle()
    assert 1 == len(billing.take(Transfer))


def test_a_receiver_that_takes_less_gets_the_run_cut_and_what_is_too_large_waits() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS, max_batch=1000, answering=False)
    shop.transfer(1, "orders.new", [b"a" * 400, b"b" * 400, b"c" * 400, b"d" * 2000, b"e"])
    world.settle()
    transfers = billing.take(Transfer)
    assert [2, 1] == [len(decode_messages(t.messages)) for t in transfers]
    for transfer in transfers:
        billing.ack(transfer)
    world.settle()
    assert {("billing", Status.ACKNOWLEDGED): [(1, 3)]} == shop.statuses()
    outlet = next(iter(world.node.parts.dispatch))
    assert "waits: a message of 2008 bytes, and the receiver takes 1000" in outlet.trouble
    billing.connection.abort()
    world.settle()
    billing = world.peer("billing", receive=ORDERS)
    assert [b"d" * 2000, b"e"] == billing.bodies()


def test_3_without_order_each_message_is_answered_alone() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS | {"order": "none"})
    shop.transfer(1, "orders.new", [b"one", b"two", b"three"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence + 1, transfer.sequence + 1, Action.RETRY, 1000)
    billing.connection.send(
        Ack([(transfer.sequence, transfer.sequence), (transfer.sequence + 2,) * 2])
    )
    world.settle()
    acknowledged = RangeSet(shop.statuses()[("billing", Status.ACKNOWLEDGED)])
    assert RangeSet([(1, 1), (3, 3)]) == acknowledged
    world.settle(1.5)
    assert [b"two"] == billing.bodies()


def test_18_a_full_backlog_refuses_only_what_has_that_receiver_in_its_audience() -> None:
    world = NodeWorld(Limits(backlog_bytes=1000))
    shop = world.peer("shop")
    world.peer("away", receive={"subjects": ["big.>"]}).connection.abort()
    billing = world.peer("billing", receive=ORDERS, answering=False)
    shop.transfer(1, "big.new", [bytes(2000)])
    world.settle(0.5)
    shop.transfer(2, "big.new", [b"x"])
    shop.transfer(3, "orders.new", [b"fine"])
    world.settle()
    (nack,) = shop.take(Nack)
    assert (2, Action.LATER) == (nack.first, nack.action)
    assert "'away'" in nack.reason
    assert [b"fine"] == billing.bodies()
    away = world.peer("away", receive={}, answering=True)
    world.settle(0.5)
    shop.transfer(2, "big.new", [b"x"], nacks=1)
    world.settle()
    assert away.lost_because is None
    assert not shop.take(Nack)


def test_5_two_incarnations_of_a_name_are_two_senders() -> None:
    world = NodeWorld()
    one = world.peer("shop", incarnation="i1", status_from=1)
    two = world.peer("shop", incarnation="i2", status_from=1)
    world.peer("billing", receive=ORDERS, answering=True)
    one.transfer(1, "orders.new", [b"of one"])
    world.settle()
    assert {("billing", Status.ACKNOWLEDGED): [(1, 1)]} == one.statuses()
    assert {} == two.statuses()
    two.transfer(1, "orders.new", [b"of two"])
    world.settle()
    assert {("billing", Status.ACKNOWLEDGED): [(1, 1)]} == two.statuses()
    assert one.lost_because is None


def test_5_newest_connection_of_an_incarnation_wins() -> None:
    world = NodeWorld()
    old = world.peer("shop")
    world.peer("shop")
    world.settle(1.5)
    assert old.lost_because is not None


def test_8_an_audience_is_decided_when_the_batch_is_stored() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"before"])
    world.settle()
    late = world.peer("late", receive=ORDERS)
    shop.transfer(2, "orders.new", [b"after"])
    world.settle()
    assert [b"after"] == late.bodies()


def test_8_require_refuses_what_nobody_receives() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"x"], flags=4)
    world.settle()
    (nack,) = shop.take(Nack)
    assert (Action.REFUSED, "no receiver for subject 'orders.new'") == (nack.action, nack.reason)


def test_8_a_name_that_is_added_again_is_another_receiver() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    first = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"old"])
    world.settle()
    assert shop.request("$node.receivers.remove", {"name": "billing", "confirm": 10})[0]
    again = world.peer("billing", receive=ORDERS)
    shop.transfer(2, "orders.new", [b"new"])
    world.settle()
    assert [b"new"] == again.bodies()
    assert first.node_hello is not None
    assert again.node_hello is not None
    assert first.node_hello.incarnation != again.node_hello.incarnation


def test_14_a_message_that_fails_too_often_is_dead() -> None:
    world = NodeWorld(Limits(max_attempts=3, retry_delay_max=1.0))
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"poison", b"fine"])
    for _ in range(3):
        world.settle(2.0)
        transfer = billing.take(Transfer)[0]
        billing.nack(transfer.sequence, transfer.sequence, Action.RETRY, reason="KeyError: 'x'")
    world.settle()
    assert {("billing", Status.DEAD): [(1, 1)]} == shop.statuses()
    assert [b"fine"] == billing.bodies()
    _, answer = shop.request("$node.dead.list", {"receiver": "billing"})
    assert (3, "KeyError: 'x'") == (answer["dead"][0]["attempts"], answer["dead"][0]["reason"])


def test_27_a_configured_receiver_may_only_repeat_its_patterns() -> None:
    world = NodeWorld()
    configured = world.node.add_receiver("billing", ["orders.>"], configured=True)
    done = Deferred.fromCoroutine(configured)
    world.settle()
    assert done.called
    other = world.peer("billing", receive={"subjects": ["everything.>"]})
    assert other.lost_because is not None
    assert world.peer("billing", receive=ORDERS).lost_because is None
    assert world.peer("billing", receive={}).lost_because is None


def test_2_a_group_that_fails_is_nacked_and_taken_when_it_comes_again() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    log.fail_next = True
    shop.transfer(1, "orders.a", [b"a1"])
    shop.transfer(2, "orders.a", [b"a2"])
    shop.transfer(3, "orders.b", [b"b1"])
    world.settle()
    nacks = shop.take(Nack)
    assert [(1, Action.LATER), (3, Action.LATER)] == [(n.first, n.action) for n in nacks]
    # What was on its way behind a1 when the NACK was sent is discarded, not stored.
    shop.transfer(4, "orders.a", [b"a3"])
    world.settle(2.0)
    assert [] == billing.bodies()
    shop.transfer(1, "orders.a", [b"a1"], nacks=2)
    shop.transfer(2, "orders.a", [b"a2"], nacks=2)
    shop.transfer(3, "orders.b", [b"b1"], nacks=2)
    shop.transfer(4, "orders.a", [b"a3"], nacks=2)
    world.settle(2.0)
    assert [b"a1", b"a2", b"b1", b"a3"] == billing.bodies()


def test_19_a_log_that_cannot_be_made_whole_ends_the_node() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop")
    log.fail_next, log.error = True, LogFailed("fsync: input/output error")
    shop.transfer(1, "orders.a", [b"a1"])
    world.settle()
    assert [log.error] == world.failures
    assert [] == shop.take(Ack)
    assert shop.lost_because is not None


def test_23_every_message_is_accounted_for() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    world.peer("a", receive=ORDERS, answering=True)
    world.peer("b", receive=ORDERS)
    for n in range(1, 8):
        shop.transfer(2 * n, "orders.new", [b"x", b"y"])
    world.settle()
    _, answer = shop.request("$node.receivers.list", {})
    rows = {row["name"]: row for row in answer["receivers"]}
    assert (14, 0, {"acknowledged": 14}, 0) == tuple(
        rows["a"][key] for key in ("routed", "queued", "settled", "unaccounted")
    )
    assert (14, 14, {}, 0) == tuple(
        rows["b"][key] for key in ("routed", "queued", "settled", "unaccounted")
    )
    assert (True, {"discrepancies": []}) == shop.request("$node.audit", {})


def test_producers_are_paused_while_too_much_waits_for_the_disk() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(Limits(uncommitted_bytes=1000), log=log, clock=clock)
    shop = world.peer("shop")
    log.hold = True
    for n in range(1, 20):
        shop.transfer(n, "orders.new", [bytes(300)])
        world.settle()
    taken_in = world.node.parts.commits.uncommitted_bytes
    assert taken_in < 3000
    log.release()
    world.settle()
    assert RangeSet([(1, 19)]) == RangeSet(
        (first, last) for ack in shop.take(Ack) for first, last in ack.ranges
    )


def test_a_look_for_a_goodbye_takes_nothing_in_however_long_the_disk_hangs() -> None:
    clock = Clock()
    limits = Limits(uncommitted_bytes=1000, heartbeat=2.0)
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits, log=log, clock=clock)
    shop = world.peer("shop")
    log.hold = True
    for n in range(1, 60):
        shop.transfer(n, "orders.new", [bytes(300)])
        world.settle(1.1)  # the node looks each second
    assert world.node.parts.commits.uncommitted_bytes < 3000
    assert shop.lost_because is None
    log.release()
    world.settle(5)
    taken = RangeSet((first, last) for ack in shop.take(Ack) for first, last in ack.ranges)
    assert RangeSet([(1, 59)]) == taken


def test_a_status_can_be_asked_for_by_position_identity_and_id() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS)
    messages = encode_messages([WireMessage(b"{}", None, "o-17")])
    shop.connection.send(Transfer(1, "orders.new", msgspec.Raw(messages)))
    world.settle()
    (routed,) = shop.take(Routed)
    _, by_position = shop.request("$node.status", {"id": f"log:{routed.position}"})
    sent = {"status": "sent", "attempts": 0, "reason": "", "copy": None, "copy_to": None}
    assert {"billing": sent} == by_position["receivers"]
    assert by_position == shop.request("$node.status", {"id": "o-17"})[1]
    assert by_position == shop.request("$node.status", {"id": by_position["sender"]})[1]
    ok, answer = shop.request("$node.status", {"id": "log:1"})
    assert not ok
    assert "log:1" in str(answer)


def test_a_sender_that_leaves_gets_its_answers_before_the_connection_closes() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop")
    log.hold = True
    shop.transfer(1, "orders.new", [b"x"])
    shop.connection.bye()
    world.settle(1.0)
    assert shop.lost_because is None
    log.release()
    world.settle()
    assert [Ack([(1, 1)])] == shop.take(Ack)
    assert shop.lost_because is not None


def test_attaching_with_too_many_patterns_is_a_clear_error() -> None:
    world = NodeWorld(Limits(patterns=2))
    bad = world.peer("billing", receive={"subjects": ["a", "b", "c"]})
    assert bad.lost_because is not None
    assert "patterns = 2" in bad.lost_because
    twice = world.peer("billing", receive={"subjects": ["a", "a"]})
    assert twice.lost_because is not None
    assert "twice" in twice.lost_because


def test_1_what_was_refused_leaves_no_hole_once_the_sender_has_settled_it() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    for n in range(1, 21):
        subject = "orders.new" if n % 2 else "nobody.new"
        shop.transfer(n, subject, [b"x"], flags=4, floor=n)
        world.settle()
    assert 10 == len(shop.take(Nack))
    assert 10 == len(billing.bodies())
    shop.transfer(21, "orders.new", [b"last"], floor=21)
    world.settle()
    resume = world.resume("shop", "i1")
    assert (22, ()) == (resume.floor, resume.ranges)


def test_a_floor_above_the_sequence_is_malformed() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(3, "orders.new", [b"x"], floor=4)
    world.settle()
    assert shop.lost_because is not None
    assert "floor 4" in shop.lost_because


@pytest.mark.parametrize("order", ["strict", "none"])
def test_what_is_too_large_for_a_receiver_keeps_nothing_of_other_lanes_back(order: str) -> None:
    """All that its first windows hold is too large: what lies behind is loaded all the same."""
    world = NodeWorld()
    shop = world.peer("shop")
    receive = {**ORDERS, "order": order}
    world.peer("billing", receive=receive, window=(3, 1 << 20)).connection.abort()
    world.settle()
    for n in range(1, 13):
        shop.transfer(n, f"orders.{n}", [b"x" * (2000 if n < 10 else 1)])
    world.settle()
    billing = world.peer("billing", receive=receive, window=(3, 1 << 20), max_batch=1000)
    world.settle()
    assert [1, 1, 1] == [len(decode_messages(one.messages)) for one in billing.take(Transfer)]
