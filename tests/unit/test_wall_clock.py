"""The wall clock may jump; only what people read comes from it."""

from collections.abc import Callable
from typing import Any

import pytest

from msgservice.core.frames import Transfer
from msgservice.limits import Limits
from msgservice.message import Action, Status
from tests.kit.nodes import NodeWorld, ScriptedPeer

YEAR = 365 * 24 * 3600 * 1000  # ms
ORDERS = {"subjects": ["orders.>"]}


class Wall:
    """A wall clock beside the test's clock, that somebody sets."""

    def __init__(self) -> None:
        self.offset = 2 * YEAR

    def of(self, reactor: Any) -> Callable[[], int]:
        return lambda: int(reactor.seconds() * 1000) + self.offset


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr("msgservice.clock.wall_of", wall.of)
    return wall


def fail_one(world: NodeWorld, billing: ScriptedPeer, *, delay_s: int) -> None:
    """Let a message fail, to be tried again after `delay_s`."""
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, Action.RETRY, delay=delay_s * 1000)
    world.settle()


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_17_a_jump_neither_hastens_nor_delays_a_retry(wall: Wall, jump: int) -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive=ORDERS, answering=False)
    fail_one(world, billing, delay_s=100)
    wall.offset += jump
    world.settle(90)
    assert [] == billing.bodies()
    world.settle(20)
    assert [b"one"] == billing.bodies()


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_17_after_a_restart_a_retry_waits_no_longer_than_retries_do(wall: Wall, jump: int) -> None:
    world = NodeWorld(Limits(retry_delay_max=300.0))
    billing = world.peer("billing", receive=ORDERS)
    fail_one(world, billing, delay_s=100)
    world.node.stopService()
    world.settle(20)
    wall.offset += jump
    world.start()
    again = world.peer("billing", receive=ORDERS)
    world.settle(310)
    assert [b"one"] == again.bodies()


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_17_a_jump_forgets_nobody_and_nothing(wall: Wall, jump: int) -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive=ORDERS, answering=True)
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle(3)
    shop.connection.abort()
    world.settle(1)
    wall.offset += jump
    world.settle(5)
    again = world.peer("shop", status_from=1)
    assert again.node_resume is not None
    assert again.node_resume.floor == 2
    assert again.statuses() == {("billing", int(Status.ACKNOWLEDGED)): [(1, 1)]}
    billing.answering = False
    again.transfer(1, "orders.new", [b"one"])  # its ACK was lost
    world.settle(1)
    assert billing.bodies() == []


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_17_history_is_kept_as_long_as_it_is_to_be(wall: Wall, jump: int) -> None:
    world = NodeWorld(Limits(keep_seconds=100.0))
    shop = world.peer("shop")
    shop.transfer(1, "nobody.waits", [b"one"])
    world.settle(3)
    wall.offset += jump
    world.settle(60)
    assert world.log.room().used > 0
    world.settle(60)
    assert world.log.room().used == 0


def test_5_a_connected_sender_is_not_away(wall: Wall) -> None:
    world = NodeWorld(Limits(keep_seconds=0.0, keep_bytes=0, sender_days=0.01, heartbeat=1e6))
    shop = world.peer("shop")
    shop.transfer(1, "orders.new", [b"one"])
    world.settle(3)
    for _ in range(15):  # two hours
        world.settle(480)
    assert shop.lost_because is None
    assert world.resume("shop", "i1").floor == 2
    shop.connection.abort()
    for _ in range(12):
        world.settle(480)
    assert world.resume("shop", "i1").floor == 1
