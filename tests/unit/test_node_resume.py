"""A receiver's RESUME says what it has taken, though the node never heard it answer."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import Ack, Transfer
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import Resume
from tests.kit.nodes import NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}


class SlowReader:
    """A log whose pages come a turn later, as from a disk."""

    def __init__(self, log: MemoryLog, clock: Clock) -> None:
        self._log, self._clock = log, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, *arguments: Any) -> Deferred[Any]:
        later: Deferred[Any] = Deferred()
        self._log.read(*arguments).addCallback(
            lambda page: self._clock.callLater(0.001, later.callback, page)
        )
        return later


def test_11_what_a_resume_settles_while_the_backlog_is_loaded_is_told_at_once() -> None:
    clock = Clock()
    log = SlowReader(MemoryLog(reactor=clock, limits=Limits()), clock)
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    (transfer,) = billing.take(Transfer)  # it handles both, and nobody hears
    world.node.stopService()
    world.settle(20)
    world.start()
    shop = world.peer("shop", status_from=1)
    taken = ((transfer.sequence, transfer.sequence + 1),)
    world.peer("billing", receive=ORDERS, resume=Resume(1, taken))
    world.settle(0.1)
    assert shop.statuses()["billing", Status.ACKNOWLEDGED] == [(1, 2)]


def test_20_a_resume_may_say_all_that_a_larger_window_lets_through() -> None:
    world = NodeWorld(Limits(exceptions=4, window_messages=8))
    options = ReceiverOptions(order="none", window_messages=200)
    Deferred.fromCoroutine(world.node.parts.receivers.add("billing", ["orders.>"], options))
    world.settle()
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"x"] * 8)
    world.settle()
    taken = tuple((n, n) for n in range(1, 200, 2))  # each other one of a whole window
    billing = world.peer("billing", receive={}, resume=Resume(1, taken))
    world.settle()
    assert billing.lost_because is None
    assert billing.take(Transfer)


def test_20_a_resume_may_say_all_that_the_node_knows_though_limits_are_lower_now() -> None:
    world = NodeWorld(Limits(exceptions=40, window_messages=8))
    receive = {"subjects": ["orders.>"], "order": "none"}
    billing = world.peer("billing", receive=receive)
    shop = world.peer("shop")
    taken = []
    for turn in range(8):
        shop.transfer(turn * 4 + 1, "orders.new", [b"x"] * 4)
        world.settle()
        for transfer in billing.take(Transfer):
            first = transfer.sequence
            billing.connection.send(Ack([(first, first), (first + 2, first + 2)]))
            billing.nack(first + 1, first + 1, Action.LATER, 99_000)
            billing.nack(first + 3, first + 3, Action.LATER, 99_000)
            taken += [(first, first), (first + 2, first + 2)]
    world.settle()
    assert len(taken) == 16
    world.node.stopService()
    world.settle(20)
    world.limits = Limits(exceptions=4, window_messages=8)
    world.start()
    billing = world.peer("billing", receive=receive, resume=Resume(1, tuple(taken)))
    world.settle()
    assert billing.lost_because is None


@pytest.mark.parametrize("order", ["strict", "none"])
def test_20_a_resume_may_say_all_that_a_window_let_through_that_is_smaller_now(
    order: str,
) -> None:
    world = NodeWorld(Limits(window_messages=400))
    receive = {"subjects": ["orders.>"], "order": order}
    billing = world.peer("billing", receive=receive)
    shop = world.peer("shop", status_from=1)
    for n in range(1, 401):
        shop.transfer(n, f"orders.{n}", [b"x"])
    world.settle()
    given = [transfer.sequence for transfer in billing.take(Transfer)]
    assert len(given) == 400
    taken = [(one, one) for one in given[::2]]  # each other one, and nobody hears of it
    world.node.stopService()
    world.settle(20)
    world.limits = Limits(exceptions=4, window_messages=8)
    world.start()
    shop = world.peer("shop", status_from=1)
    for _ in range(3):
        billing = world.peer(
            "billing", receive=receive, resume=Resume(1, tuple(taken)), answering=True
        )
        world.settle(1)
        assert billing.lost_because is None
        billing.connection.abort()
        world.settle(1)
    assert sum(last - first + 1 for first, last in acknowledged(shop)) == 400


def acknowledged(peer: ScriptedPeer) -> list[tuple[int, int]]:
    told = peer.statuses()
    assert set(told) == {("billing", Status.ACKNOWLEDGED)}
    return told["billing", Status.ACKNOWLEDGED]
