"""A receiver that leaves hears the node's goodbye when what it has answered is on disk."""

from __future__ import annotations

from twisted.internet.task import Clock

from msgservice import Limits
from msgservice.core.frames import BYE_CLOSING, BYE_REMOVED, BYE_REPLACED, Transfer
from msgservice.log.memory import MemoryLog
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer


class Leaving:
    """A receiver that was sent two messages, has answered the first, and says goodbye."""

    def __init__(self, *, shared: bool = False) -> None:
        clock, limits = Clock(), Limits()
        self.log = FailingLog(MemoryLog(reactor=clock, limits=limits))
        self.world = world = NodeWorld(limits, log=self.log, clock=clock)
        self.how = {"subjects": ["orders"], "order": "none", "shared": shared}
        self.receiver = world.peer("billing", receive=self.how)
        shop = world.peer("shop")
        for sequence in (1, 2):
            shop.transfer(sequence, "orders", [b"%d" % sequence])
            world.settle()
        self.log.hold = True
        self.receiver.ack(self.receiver.take(Transfer)[0])
        self.receiver.connection.bye()
        world.settle()

    def acknowledged(self) -> int:
        """What the log has counted."""
        asks: ScriptedPeer = self.world.peer("asks")
        ok, told = asks.request("$node.receivers.list", {})
        assert ok
        (row,) = told["receivers"]
        return int(row["settled"].get("acknowledged", 0))


def test_the_goodbye_waits_for_the_disk() -> None:
    for shared in (False, True):
        leaving = Leaving(shared=shared)
        leaving.world.settle(5)
        assert leaving.receiver.bye is None
        leaving.log.release()
        leaving.world.settle()
        assert leaving.receiver.bye == (BYE_CLOSING, "goodbye")
        assert leaving.acknowledged() == 1


def test_a_group_that_failed_is_waited_for_until_it_is_stored() -> None:
    leaving = Leaving()
    leaving.log.fail_always = True
    leaving.log.refuse()
    leaving.world.settle(1)
    assert leaving.receiver.bye is None
    leaving.log.fail_always = False
    leaving.world.settle(10)
    assert leaving.receiver.bye == (BYE_CLOSING, "goodbye")
    assert leaving.acknowledged() == 1


def test_one_that_has_gone_before_is_waited_for_no_more() -> None:
    leaving = Leaving()
    outlet = leaving.world.node.parts.dispatch.outlets[1]
    leaving.receiver.connection.abort()
    leaving.world.settle()
    assert outlet.progress._moments == []
    leaving.log.release()
    leaving.world.settle()
    assert leaving.receiver.bye is None
    assert leaving.acknowledged() == 1


def test_another_connection_takes_its_place_meanwhile() -> None:
    leaving = Leaving()
    newer = leaving.world.peer("billing", receive=leaving.how)
    assert leaving.receiver.bye is not None
    assert leaving.receiver.bye[0] == BYE_REPLACED
    leaving.log.release()
    leaving.world.settle()
    assert newer.bodies() == [b"2"]
    assert newer.bye is None


def test_it_is_removed_meanwhile() -> None:
    leaving = Leaving()
    asks = leaving.world.peer("asks")
    asks.ask("$node.receivers.remove", {"name": "billing", "confirm": 2})
    leaving.log.release()
    leaving.world.settle(1)
    assert leaving.receiver.bye is not None
    assert leaving.receiver.bye[0] in (BYE_CLOSING, BYE_REMOVED)
    assert leaving.receiver.lost_because is not None
    assert leaving.world.failures == []


def test_the_node_stops_meanwhile() -> None:
    leaving = Leaving()
    stopped: list[object] = []
    leaving.world.node.stopService().addCallback(stopped.append)
    leaving.world.settle(0.5)
    leaving.log.release()
    leaving.world.settle(leaving.world.limits.stop_timeout + 1)
    assert stopped == [None]
    assert leaving.receiver.bye is not None
