"""A receiver's RESUME says what it has taken, though the node never heard it answer: SEMANTICS 1."""

from __future__ import annotations

from msgservice.core.frames import Transfer
from msgservice.message import Status
from msgservice.node.outlet import UNLOAD_AFTER
from msgservice.records import Resume
from tests.nodes import NodeWorld

ORDERS = {"subjects": ["orders.>"]}


def test_11_what_a_resume_settles_is_told_to_the_sender_at_once() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    (transfer,) = billing.take(Transfer)
    last = transfer.sequence + 1
    billing.connection.abort()  # it has handled both, and nobody heard
    world.settle(UNLOAD_AFTER + 1)  # so long away that nothing of it is loaded any more
    world.peer("billing", receive=ORDERS, resume=Resume(1, ((transfer.sequence, last),)))
    world.settle()
    assert [(1, 2)] == shop.statuses()["billing", Status.ACKNOWLEDGED]
