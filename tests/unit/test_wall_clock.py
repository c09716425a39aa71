"""The wall clock may jump; only what people read comes from it."""

from collections.abc import Callable
from typing import Any

import pytest

from msgservice.core.frames import Transfer
from msgservice.limits import Limits
from msgservice.message import Action
from tests.nodes import NodeWorld, ScriptedPeer

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
    monkeypatch.setattr("msgservice.node.node.wall_of", wall.of)
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
