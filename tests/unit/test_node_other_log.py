"""A node asks its log for what `ILog` says, and no more: one of plain dicts serves as well."""

from __future__ import annotations

from twisted.internet.task import Clock

from msgservice.limits import Limits
from msgservice.message import Status
from tests.kit.dict_log import DictLog
from tests.kit.nodes import NodeWorld


def test_a_node_delivers_and_starts_again_on_a_log_of_plain_dicts() -> None:
    clock, limits = Clock(), Limits(keep_seconds=0)
    log = DictLog(reactor=clock, limits=limits)
    world = NodeWorld(limits, log, clock)
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive={"subjects": ["orders.>"]}, answering=True)
    world.peer("stock", receive={"subjects": ["orders.>"]})
    shop.transfer(1, "orders.new", [b"one", b"two"])
    world.settle()
    assert billing.bodies() == []  # it has answered all
    assert shop.statuses()["billing", Status.ACKNOWLEDGED] == [(1, 2)]
    world.node.stopService()
    world.settle()
    world.log = DictLog(reactor=clock, limits=limits, content=log.content)
    world.start()
    stock = world.peer("stock", receive={"subjects": ["orders.>"]}, answering=False)
    world.settle()
    assert stock.bodies() == [b"one", b"two"]
    assert world.peer("shop", status_from=1).node_resume is not None
    assert world.failures == []
