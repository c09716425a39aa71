"""A lane goes on behind a dead letter once that is on disk (SEMANTICS 3).

A node that is killed before sends the dead one again, and then it may be handled: behind what came
after it.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import Transfer
from msgservice.core.ranges import Range
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status
from msgservice.records import Resume
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer, state_of


class DeadHead:
    """A receiver with a lane `a` of three messages, of which the first will be dead, and another.

    From then on the log is held, so that the dead letter is in memory only.
    """

    def __init__(self, order: str = "strict", **limits: Any) -> None:
        clock, bounds = Clock(), Limits(max_attempts=1, **limits)
        self.memory = MemoryLog(reactor=clock, limits=bounds)
        self.log = FailingLog(self.memory)
        self.world = NodeWorld(bounds, log=self.log, clock=clock)
        self.order = order
        self.shop = self.world.peer("shop", status_from=1)
        self.billing = self.attach()
        self.shop.transfer(1, "a", [b"dead", b"a2", b"a3"])
        self.world.settle()
        (self.first,) = self.billing.take(Transfer)
        self.log.hold = True

    def attach(self, *taken: Range, incarnation: str = "r1") -> ScriptedPeer:
        return self.world.peer(
            "billing",
            incarnation=incarnation,
            receive={"subjects": [">"], "order": self.order},
            resume=Resume(1, taken),
        )

    @property
    def outlet(self) -> Any:
        (outlet,) = self.world.node.parts.dispatch
        return outlet

    def nack(self, action: Action) -> None:
        at = self.first.sequence
        self.billing.nack(at, at, int(action), 0, "no")
        self.world.settle()

    def reconnects(self, incarnation: str) -> None:
        self.billing.connection.abort()
        self.world.settle()
        self.billing = self.attach(incarnation=incarnation)

    def kill(self) -> None:
        """Kill the node, and start it on what is stored."""
        node = self.world.node
        for peer in list(node.parts.connections.peers):
            if peer.connection is not None:
                peer.connection.abort()
        node.parts.commits.stop()
        node.parts.dispatch.stop()
        node.parts.upkeep.stop()
        self.memory._opened = False
        self.world.log = self.log = FailingLog(self.memory)
        self.world.start()

    def statuses(self) -> list[tuple[int, int]]:
        self.world.settle()
        return self.shop.statuses().get(("billing", Status.DEAD), [])


def test_3_behind_a_message_without_attempts_left_nothing_leaves_before_it_is_stored() -> None:
    scene = DeadHead()
    scene.nack(Action.RETRY)
    scene.world.settle(100.0)
    assert [] == scene.billing.bodies()
    scene.log.release()
    scene.world.settle()
    assert [b"a2", b"a3"] == scene.billing.bodies()
    assert [(1, 1)] == scene.statuses()


def test_3_a_node_that_is_killed_before_sends_the_dead_one_first() -> None:
    scene = DeadHead()
    scene.nack(Action.RETRY)
    handled = scene.billing.take(Transfer)
    for transfer in handled:
        scene.billing.ack(transfer)
    scene.world.settle()
    taken = [(transfer.sequence, transfer.sequence) for transfer in handled]
    scene.kill()
    scene.billing = scene.attach(*taken)
    assert [b"dead", b"a2", b"a3"] == scene.billing.bodies()


def test_3_other_lanes_and_receivers_without_order_do_not_wait_for_a_dead_letter() -> None:
    scene = DeadHead()
    scene.shop.transfer(4, "b", [b"b1", b"b2"])
    scene.log.release()
    scene.world.settle()
    (other,) = scene.billing.take(Transfer)
    scene.log.hold = True
    scene.nack(Action.RETRY)
    scene.billing.nack(other.sequence, other.sequence, int(Action.LATER), 50, "busy")
    scene.world.settle(2.0)
    assert [b"b1"] == scene.billing.bodies()

    scene = DeadHead("none")
    scene.nack(Action.RETRY)
    at = scene.first.sequence + 1
    scene.billing.nack(at, at, int(Action.LATER), 50, "busy")
    scene.world.settle(2.0)
    assert [b"a2"] == scene.billing.bodies()


@pytest.mark.parametrize("action", [Action.DEAD, Action.REFUSED])
def test_3_a_receiver_that_forgot_its_rejection_gets_nothing_behind_it(action: Action) -> None:
    scene = DeadHead()
    scene.nack(action)
    assert [] == scene.billing.bodies()  # a2 and a3 are with it
    scene.reconnects("r2")
    scene.world.settle(100.0)
    assert [] == scene.billing.bodies()
    scene.log.release()
    scene.world.settle()
    assert b"a2" == scene.billing.bodies()[0]


def test_3_what_comes_to_be_sent_behind_a_rejection_waits_for_it() -> None:
    scene = DeadHead()
    scene.nack(Action.DEAD)
    at = scene.first.sequence + 1
    scene.billing.nack(at, at, int(Action.LATER), 50, "busy")
    scene.world.settle(10.0)
    assert [] == scene.billing.bodies()
    assert scene.outlet.flight.next_deadline() is None  # nothing is tried in vain
    scene.log.release()
    scene.world.settle()
    (again,) = scene.billing.take(Transfer)
    assert at == again.sequence
    scene.billing.ack(again)
    scene.world.settle()
    assert [b"a3"] == scene.billing.bodies()


def test_3_a_connection_lost_with_the_last_attempt_blocks_the_lane_on_the_next() -> None:
    scene = DeadHead()
    scene.reconnects("r2")  # from now on one message is sent alone
    assert [b"dead"] == scene.billing.bodies()
    scene.reconnects("r3")  # … and lost: that attempt was its last
    scene.world.settle(10.0)
    assert [] == scene.billing.bodies()
    scene.log.release()
    scene.world.settle()
    assert [b"a2"] == scene.billing.bodies()


def test_3_a_lane_is_blocked_still_when_it_was_unloaded_meanwhile() -> None:
    scene = DeadHead()
    scene.nack(Action.RETRY)
    scene.billing.connection.abort()
    scene.world.settle(100.0)
    assert 0 == scene.outlet.backlog.open_runs
    scene.billing = scene.attach()
    scene.world.settle(10.0)
    assert [] == scene.billing.bodies()
    scene.log.release()
    scene.world.settle()
    assert [b"a2", b"a3"] == scene.billing.bodies()


def test_3_a_dead_letter_that_cannot_be_written_says_so_and_its_lane_waits() -> None:
    scene = DeadHead()
    scene.log.hold = False
    scene.log.fail_always = True
    scene.nack(Action.RETRY)
    scene.world.settle(5.0)
    assert [] == scene.billing.bodies()
    ok, answer = scene.shop.request("$node.receivers.list", {})
    assert ok
    (told,) = [one for one in answer["receivers"] if one["name"] == "billing"]
    assert "dead letter" in told["last_error"]
    scene.log.fail_always = False
    scene.world.settle(2.0)
    assert [b"a2", b"a3"] == scene.billing.bodies()
    assert "" == state_of(scene.world, "billing").last_error


def test_3_nothing_is_left_of_a_lane_whose_dead_letter_is_stored() -> None:
    scene = DeadHead()
    scene.nack(Action.RETRY)
    scene.log.release()
    scene.world.settle()
    for transfer in scene.billing.take(Transfer):
        scene.billing.ack(transfer)
    scene.world.settle()
    stuck = scene.outlet.backlog._stuck
    assert ({}, None) == (stuck.by_lane, stuck.fronts)
    assert 0 == scene.outlet.backlog.open_runs


def test_3_a_node_that_stops_with_a_dead_letter_in_memory_stores_it_first() -> None:
    scene = DeadHead()
    scene.nack(Action.RETRY)
    stopped: Deferred[Any] = scene.world.node.stopService()
    scene.world.settle()
    scene.log.release()
    scene.world.settle(scene.world.limits.stop_timeout + 1)
    assert stopped.called
    scene.world.start()
    scene.billing = scene.attach()
    assert [b"a2", b"a3"] == scene.billing.bodies()
