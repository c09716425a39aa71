"""Progress that waits for that of others, so that they share a group: of whom it waits, and when.

What waits for which group, of the commits alone, is in `test_node_commits`.
"""

from __future__ import annotations

import pytest

from msgservice.core.frames import Transfer
from msgservice.message import Status
from msgservice.node.commits import FEW_MESSAGES, GATHER
from msgservice.node.outlet import MANY_FOR
from tests.kit.nodes import NodeWorld, ScriptedPeer

ACKNOWLEDGED = Status.ACKNOWLEDGED


def turns(world: NodeWorld) -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        world.clock.advance(0)


def answered(receiver: ScriptedPeer) -> None:
    for transfer in receiver.take(Transfer):
        receiver.ack(transfer)
    turns(receiver.world)


def told(shop: ScriptedPeer) -> set[str]:
    """Whose acknowledgements the sender was told of since the last call."""
    return {name for name, state in shop.statuses() if state == ACKNOWLEDGED}


class Three:
    """A sender, a receiver of what comes alone, and one to which so many are in flight."""

    def __init__(self, flying: int) -> None:
        self.world = world = NodeWorld()
        self.many = world.peer("many", receive={"subjects": ["bulk.>"]})
        self.lone = world.peer("lone", receive={"subjects": ["orders.>"]})
        self.shop = world.peer("shop", status_from=1)
        self.shop.transfer(1, "bulk.new", [b"x"] * flying)
        self.sent = flying
        world.settle()

    def send(self, subject: str) -> None:
        self.sent += 1
        self.shop.transfer(self.sent, subject, [b"x"])
        turns(self.world)


@pytest.mark.parametrize("flying", [FEW_MESSAGES, FEW_MESSAGES + 1])
def test_26_what_comes_alone_waits_for_no_answers_of_who_has_very_many_to_give(
    flying: int,
) -> None:
    three = Three(flying)
    for _ in range(3):
        three.send("orders.new")
        answered(three.lone)
        at_once = {"lone"} if flying > FEW_MESSAGES else set()
        assert at_once == told(three.shop)
        three.world.clock.advance(2 * GATHER)
        turns(three.world)
        assert {"lone"} - at_once == told(three.shop)


def test_26_answers_of_who_has_very_many_to_give_share_groups_until_no_more_follow() -> None:
    three = Three(FEW_MESSAGES + 1)
    world, many, shop = three.world, three.many, three.shop
    answered(many)
    assert set() == told(shop)
    world.clock.advance(2 * GATHER)
    turns(world)
    assert {"many"} == told(shop)
    world.clock.advance(MANY_FOR)
    for at_once in (False, True):  # once it is looked at how many are in flight, they are few
        three.send("bulk.new")
        answered(many)
        assert at_once is ("many" in told(shop))
        world.clock.advance(2 * GATHER)
        turns(world)
        told(shop)


def test_26_who_leaves_with_very_many_in_flight_is_waited_for_no_more() -> None:
    three = Three(FEW_MESSAGES + 1)
    three.many.connection.abort()
    three.world.settle()
    commits = three.world.node.parts.commits
    assert ({}, {}) == (commits._awaited, commits._streaming)
