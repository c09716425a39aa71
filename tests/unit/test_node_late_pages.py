"""Pages of the log that are read late, when more is stored than when they were asked for."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import Transfer
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from tests.kit.nodes import LateLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}


def a_world() -> tuple[NodeWorld, LateLog]:
    clock = Clock()
    log = LateLog(MemoryLog(reactor=clock, limits=Limits()))
    return NodeWorld(log=log, clock=clock), log


def start_again(world: NodeWorld) -> None:
    """The tail is empty then: what waits is read from the log."""
    world.node.stopService()
    world.settle(20)
    world.start()


def handle_all(world: NodeWorld, peer: ScriptedPeer) -> list[int]:
    """Acknowledge whatever comes, one message at a time; return the sender's numbers of it."""
    handled = []
    while transfers := peer.take(Transfer):
        for transfer in transfers:
            handled.append(transfer.sequence)
            peer.ack(transfer)
        world.settle(0.1)  # a page is followed by a rest: somebody has sent just now
    return handled


@pytest.mark.parametrize("new", ["to", "receiver"])
def test_1_a_message_of_a_new_set_of_receivers_is_not_passed_over_by_a_late_page(new: str) -> None:
    """The page knew the sets of when it was asked for, and held a batch behind the new set's."""
    world, log = a_world()
    world.peer("billing", receive=ORDERS).connection.abort()
    Deferred.fromCoroutine(world.node.add_receiver("other", ["never"]))
    world.settle()
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"waits for billing"])
    world.settle()
    start_again(world)
    shop = world.peer("shop", status_from=1)
    log.is_late = True
    billing = world.peer("billing", receive=ORDERS)
    if new == "to":
        shop.transfer(2, "orders.new", [b"of a new set"], to=["billing", "other"])
    else:
        Deferred.fromCoroutine(world.node.add_receiver("audit", ["orders.2"]))
        world.settle()
        shop.transfer(2, "orders.2", [b"of a new set"])
    shop.transfer(3, "orders.new", [b"of the set of before"])
    world.settle()
    log.go_on()
    world.settle(0.1)
    handled = handle_all(world, billing)
    assert len(handled) == 3
    assert handled == sorted(handled)
    again = world.peer("shop", status_from=1)
    assert again.statuses()["billing", Status.ACKNOWLEDGED] == [(1, 3)]
