"""A receiver's RESUME says what it has taken, though the node never heard it answer."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import Transfer
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from msgservice.records import Resume
from tests.nodes import NodeWorld

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
