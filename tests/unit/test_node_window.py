"""The window that the node's HELLO names: one who sends beyond it is told so, and nobody is hurt.

What is unanswered is held back by a log that takes its time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from msgservice import Limits
from msgservice.core.frames import Ack, Nack, Transfer
from msgservice.errors import LogFull
from msgservice.log.memory import MemoryLog
from msgservice.message import decode_messages
from msgservice.records import Appended, RefusedBatch
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}


def holding_world(limits: Limits) -> tuple[NodeWorld, FailingLog]:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits, log=log, clock=clock)
    return world, log


def covered(peer: ScriptedPeer) -> set[int]:
    ranges = [pair for ack in peer.take(Ack) for pair in ack.ranges]
    return {n for first, last in ranges for n in range(first, last + 1)}


def taken(receiver: ScriptedPeer) -> list[int]:
    """The messages of each run that came; they are acknowledged."""
    transfers = receiver.take(Transfer)
    for transfer in transfers:
        receiver.ack(transfer)
    receiver.world.settle()
    return [len(decode_messages(transfer.messages)) for transfer in transfers]


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Limits(window_messages=5), "6 messages unanswered, at most 5 allowed (window_messages)"),
        (Limits(window_bytes=2500), "bytes unanswered, at most 2500 allowed (window_bytes)"),
    ],
    ids=["messages", "bytes"],
)
def test_one_who_sends_beyond_the_window_is_told_its_name_and_loses_nothing_that_was_taken(
    limits: Limits, sentence: str
) -> None:
    world, log = holding_world(limits)
    billing = world.peer("billing", receive=ORDERS)
    shop, other = world.peer("shop", status_from=1), world.peer("other")
    log.hold = True
    other.transfer(1, "orders.new", [b"of another"])
    shop.transfer(1, "orders.new", [b"a" * 500] * 2)
    shop.transfer(3, "orders.new", [b"b" * 500] * 2)
    world.settle()
    assert shop.lost_because is None
    shop.transfer(5, "orders.new", [b"c" * 500] * 2)
    world.settle()
    assert shop.lost_because is not None
    assert sentence in shop.lost_because
    assert "(code 16)" in shop.lost_because
    log.release()
    world.settle()
    assert covered(other) == {1}
    assert other.lost_because is None
    assert sum(taken(billing)) == 5
    again = world.peer("shop", status_from=1)
    assert again.node_resume is not None
    assert again.node_resume.floor == 5
    again.transfer(5, "orders.new", [b"c" * 500] * 2)
    world.settle()
    assert covered(again) == {5, 6}
    assert taken(billing) == [2]


def test_one_run_alone_may_be_larger_than_the_window() -> None:
    world, log = holding_world(Limits(window_messages=2, window_bytes=100))
    shop = world.peer("shop")
    log.hold = True
    shop.transfer(1, "orders.new", [b"x" * 100] * 10)
    world.settle()
    assert shop.lost_because is None
    log.release()
    world.settle()
    assert covered(shop) == set(range(1, 11))
    log.hold = True
    shop.transfer(11, "orders.new", [b"x"])
    shop.transfer(12, "orders.new", [b"x" * 100] * 10)
    world.settle()
    assert shop.lost_because is not None


def refused_at_once(world: NodeWorld, log: FailingLog, shop: ScriptedPeer) -> int:
    for n in (1, 2, 3):
        shop.transfer(n, "orders.new", [b"x"], to=["nobody"])
    return 0


def refused_by_the_log(world: NodeWorld, log: FailingLog, shop: ScriptedPeer) -> int:
    log.fail_next = True
    for n in (1, 2, 3):
        shop.transfer(n, "orders.new", [b"x"])
    world.settle()
    return 1


def discarded(world: NodeWorld, log: FailingLog, shop: ScriptedPeer) -> int:
    log.fail_next = True
    shop.transfer(1, "orders.new", [b"x"])
    world.settle()
    for n in range(2, 30):
        shop.transfer(n, "orders.new", [b"x"])
    return 1


def withdrawn(world: NodeWorld, log: FailingLog, shop: ScriptedPeer) -> int:
    """One is in a group that will fail, two of its lane wait for the next."""
    log.hold = True
    shop.transfer(1, "orders.new", [b"x"])
    world.settle()
    shop.transfer(2, "orders.new", [b"x"])
    shop.transfer(3, "orders.new", [b"x"])
    world.settle()
    log.refuse()
    return 1


def full(world: NodeWorld, log: FailingLog, shop: ScriptedPeer) -> int:
    """The log refuses one of a group, and its lane's others of the next are withdrawn."""
    log.hold = True
    shop.transfer(1, "orders.new", [b"x"])
    world.settle()
    shop.transfer(2, "orders.new", [b"x"])
    shop.transfer(3, "orders.new", [b"x"])
    world.settle()
    (held,) = log._held
    held[1].callback(Appended([RefusedBatch(LogFull("log full", delay=0.001))], []))
    log._held.clear()
    log.hold = False
    return 1


@pytest.mark.parametrize(
    "answered", [refused_at_once, refused_by_the_log, discarded, withdrawn, full]
)
def test_what_was_refused_withdrawn_or_discarded_counts_no_more(
    answered: Callable[[NodeWorld, FailingLog, ScriptedPeer], int],
) -> None:
    world, log = holding_world(Limits(window_messages=3))
    shop = world.peer("shop")
    nacks = answered(world, log, shop)
    world.settle(3)
    assert len(shop.take(Nack)) >= 1
    log.hold = True
    for n in (41, 42, 43):
        shop.transfer(n, "orders.new", [b"x"], nacks=nacks)
    world.settle()
    assert shop.lost_because is None
    log.release()
    world.settle()
    assert covered(shop) == {41, 42, 43}
    log.hold = True
    for n in (44, 45, 46, 47):
        shop.transfer(n, "orders.new", [b"x"], nacks=nacks)
    world.settle()
    assert shop.lost_because is not None


def test_a_smaller_window_after_a_restart_counts_from_then_on() -> None:
    world, log = holding_world(Limits(window_messages=10))
    shop = world.peer("shop")
    log.hold = True
    for n in range(1, 9):
        shop.transfer(n, "orders.new", [b"x"])
    world.settle()
    assert shop.lost_because is None
    log.release()
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.limits = Limits(window_messages=2)
    world.start()
    shop = world.peer("shop")
    assert shop.node_hello is not None
    assert shop.node_hello.options.window == (2, world.limits.window_bytes)
    log.hold = True
    shop.transfer(9, "orders.new", [b"x"])
    shop.transfer(10, "orders.new", [b"x"])
    world.settle()
    assert shop.lost_because is None
    shop.transfer(11, "orders.new", [b"x"])
    world.settle()
    assert shop.lost_because is not None
    assert "at most 2 allowed" in shop.lost_because


@pytest.mark.parametrize("window", [(0, 0), (0, 1000), (5, 0)])
def test_a_receiver_whose_window_contains_0_gets_one_run_at_a_time_also_while_it_lags(
    window: tuple[int, int],
) -> None:
    world, _ = holding_world(Limits())
    shop = world.peer("shop")
    billing = world.peer("billing", receive=ORDERS)
    billing.connection.abort()
    world.settle()
    for number in (1, 2, 3):
        shop.transfer(number, "orders.new", [b"%d" % number])
        world.settle()
    billing = world.peer("billing", receive=ORDERS, window=window)
    got = [taken(billing) for _ in range(3)]
    assert [[1], [1], [1]] == got
