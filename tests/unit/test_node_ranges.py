"""What a sender may have taken out of order: `sender_ranges`."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from msgservice.core.frames import Ack, Nack
from msgservice.limits import Limits
from msgservice.message import Action
from msgservice.node.intake import FULL_DELAY_MS
from msgservice.receiver_options import ReceiverOptions
from tests.kit.nodes import NodeWorld

COUNT = 40


def test_20_a_sender_whose_lanes_are_held_up_waits_at_the_limit_and_loses_nothing() -> None:
    """Every other message is for a receiver that is full: what is taken between is in ranges."""
    world = NodeWorld(Limits(sender_ranges=5, heartbeat=600.0))
    options = ReceiverOptions(backlog_bytes=1)
    adding = world.node.parts.receivers.add("slow", ["slow.>"], options)
    Deferred.fromCoroutine(adding)
    world.settle()
    other = world.peer("other")
    other.transfer(1, "slow.first", [b"x"])
    world.settle(1)
    client = world.node.client("shop")
    world.settle()
    receipts: list[Any] = []
    for n in range(COUNT):
        subject = f"slow.{n}" if n % 2 == 0 else f"fine.{n}"
        client.send(subject, b"%d" % n).addBoth(receipts.append)
        world.settle()
    world.settle(30)
    assert client._connector.attempts == 1  # it was never turned away
    assert len(receipts) == 5
    slow = world.peer("slow", receive={}, answering=True)
    world.settle(120)
    assert slow.lost_because is None
    assert len(receipts) == COUNT
    assert client._connector.attempts == 1


def test_20_one_run_too_many_is_to_come_again_and_holes_may_be_filled() -> None:
    world = NodeWorld(Limits(sender_ranges=2))
    shop = world.peer("shop")
    for n in (3, 6, 9):
        shop.transfer(n, f"a.{n}", [b"x"], after=n - 1)
    world.settle()
    assert [(nack.action, nack.delay) for nack in shop.take(Nack)] == [
        (Action.LATER, FULL_DELAY_MS)  # or it would come again at once, and be refused again
    ]
    assert shop.take(Ack) == [Ack([(3, 3), (6, 6)])]
    shop.transfer(1, "a.1", [b"x", b"x"])
    world.settle()
    shop.transfer(9, "a.9", [b"x"], after=8, nacks=1)
    world.settle()
    assert [one for ack in shop.take(Ack) for one in ack.ranges] == [(1, 2), (9, 9)]
    assert shop.lost_because is None


def test_3_what_is_behind_one_run_too_many_waits_with_it_where_it_would_fill_a_hole() -> None:
    """A producer that starts again sends a lane whole that was stuck, with others' taken."""
    world = NodeWorld(Limits(sender_ranges=2))
    billing = world.peer("billing", receive={"subjects": [">"]}, answering=True)
    shop = world.peer("shop")
    for n in (3, 12):
        shop.transfer(n, f"m.{n}", [b"%d" % n], after=n - 1)
    world.settle()
    shop.take(Ack)
    for n in (10, 11):
        shop.transfer(n, "lane", [b"%d" % n])
    shop.transfer(13, "m.13", [b"13"])
    world.settle()
    assert [(nack.first, nack.action) for nack in shop.take(Nack)] == [(10, Action.LATER)]
    assert shop.take(Ack) == [Ack([(13, 13)])]
    shop.transfer(4, "m.4", [b"4"] * 6, nacks=1)
    for n in (10, 11):
        shop.transfer(n, "lane", [b"%d" % n], nacks=1)
    world.settle()
    assert [one for ack in shop.take(Ack) for one in ack.ranges] == [(4, 11)]
    assert world.resume("shop", "i1").ranges == ((3, 13),)
    assert billing.lost_because is None
