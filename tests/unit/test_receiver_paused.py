"""A paused receiver stays with its node, so that it is there when it is resumed or removed.

One that was sent away for good would dial again after up to `link_delay_max`, and an operator who
has resumed it would see nothing happen.
"""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from msgservice.node.peer import PAUSED_STAY
from msgservice.receiver.ways import Attachment
from tests.kit.nodes import state_of
from tests.unit.test_receiver_removed import cut
from tests.unit.test_receiver_restored_log import Reached


class Paused:
    """A receiver of the library that is paused while it is well, and messages wait for it."""

    def __init__(self, way: str, seconds: float) -> None:
        self.seen: list[bytes] = []
        self.reached = reached = Reached(way, lambda message: self.seen.append(message.body))
        self.world = reached.world
        self.way = reached.receiver.ways[0]
        reached.settle()
        self.ask(True)
        self.pass_time(seconds)
        self.world.peer("shop").transfer(1, "a.b", [b"one"])
        self.world.settle()
        assert self.seen == []

    def pass_time(self, seconds: float) -> None:
        """In steps that are small enough for what is on its way to arrive."""
        self.world.clock.pump([0.1] * int(seconds * 10))
        self.world.settle()

    def ask(self, paused: bool) -> None:
        Deferred.fromCoroutine(self.world.node.pause_receiver("billing", paused))
        self.world.settle()


@pytest.mark.parametrize("way", ["attached", "embedded", "dialled"])
@pytest.mark.parametrize("minutes", [0.1, 0.9, 1.1, 5, 30])
def test_a_resumed_receiver_goes_on_within_seconds(way: str, minutes: float) -> None:
    paused = Paused(way, minutes * 60)
    paused.ask(False)
    # Twice `link_delay_min`, doubled: its second failure, had the first connection been short.
    paused.pass_time(4 * paused.world.limits.link_delay_min)
    assert paused.seen == [b"one"]
    state = state_of(paused.world, "billing")
    assert (state.connected, state.last_error) == (True, "")


def test_a_paused_receiver_is_seen_and_says_itself_that_it_is_paused() -> None:
    paused = Paused("attached", 10)
    state = state_of(paused.world, "billing")
    assert (state.paused, state.connected, state.last_error) == (True, True, "paused")
    assert (paused.way.connected, paused.way.error) == (False, "the node says: paused")
    paused.ask(False)
    paused.pass_time(10)
    assert (paused.way.connected, paused.way.error) == (True, "")


def test_a_paused_receiver_says_again_what_it_has_taken_after_a_while() -> None:
    paused = Paused("attached", 10)
    (peer,) = [peer for peer in paused.world.node.parts.connections.peers if peer.outlet]
    paused.pass_time(PAUSED_STAY + 5)
    (again,) = [peer for peer in paused.world.node.parts.connections.peers if peer.outlet]
    assert again is not peer


def test_a_paused_receiver_that_is_removed_is_told_so_at_once() -> None:
    paused = Paused("attached", 10)
    Deferred.fromCoroutine(paused.world.node.remove_receiver("billing"))
    paused.world.settle()
    assert isinstance(paused.way, Attachment)
    assert paused.way.is_over
    assert "removed" in paused.way.error


def test_no_timer_of_a_paused_receiver_is_left_when_its_connection_ends() -> None:
    paused = Paused("attached", 10)
    paused.reached.receiver.stop()
    paused.reached.settle()
    paused.reached.stop()
    assert paused.world.clock.getDelayedCalls() == []


def test_a_resumed_receiver_whose_node_was_long_away_before_goes_on_within_seconds() -> None:
    """Its attempts had failed for long, and the connection that was paused was a short one."""
    seen: list[bytes] = []
    reached = Reached("attached", lambda message: seen.append(message.body))
    world, way = reached.world, reached.receiver.ways[0]
    cut(reached)
    world.clock.pump([0.1] * 3000)
    reached.listen()
    while not way.connected:
        world.clock.pump([0.1])
    for paused in (True, False):
        Deferred.fromCoroutine(world.node.pause_receiver("billing", paused))
        world.clock.pump([0.1] * 40)
    assert way.connected
