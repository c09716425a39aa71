"""Who a batch is for is decided when its group starts: a membership begins and ends with a group.

A group is held while it is stored; what comes meanwhile waits for the next one, and so do the
changes of receivers.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import Ack, AudienceFrame, Nack, Routed, Transfer
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import FLAG_REQUIRE, Action
from msgservice.records import NOBODY, Batch
from tests.bounds.meter import Meter
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}


class Held(NodeWorld):
    """A node whose first group, run 1, is under way until `release`."""

    def __init__(self, limits: Limits | None = None, *receivers: str) -> None:
        clock = Clock()
        limits = limits or Limits()
        self.failing = FailingLog(MemoryLog(reactor=clock, limits=limits))
        super().__init__(limits, log=self.failing, clock=clock)
        self.receivers = {name: self.peer(name, receive=ORDERS) for name in receivers}
        self.shop = self.peer("shop", status_from=1)
        self.failing.hold = True
        self.send(1)

    def send(self, sequence: int, subject: str = "orders.new", **fields: Any) -> None:
        """Hand a run of one message in; its body is its sequence."""
        self.shop.transfer(sequence, subject, [b"%d" % sequence], **fields)
        self.settle()

    def attach(self, name: str, *patterns: str) -> ScriptedPeer:
        """Let a receiver attach, also one that is there, with these patterns."""
        receive = {"subjects": list(patterns)} if patterns else ORDERS
        peer = self.receivers[name] = self.peer(name, receive=receive)
        return peer

    def remove(self, name: str) -> None:
        Deferred.fromCoroutine(self.node.remove_receiver(name)).addErrback(lambda _: None)
        self.settle()

    def release(self) -> None:
        """End the group that is held, and all that follow."""
        self.failing.release()
        self.settle()

    def bodies(self, name: str) -> list[bytes]:
        """Return all that came to a receiver and still comes, each acknowledged."""
        found: list[bytes] = []
        peer = self.receivers[name]
        while transfers := peer.take(Transfer):
            peer.frames = [*transfers, *peer.frames]
            found += peer.bodies()
            for transfer in transfers:
                peer.ack(transfer)
            self.settle()
        return found

    def routed(self) -> dict[int, list[str]]:
        """Return the receivers that the sender was told, by sequence."""
        names = {frame.audience: frame.receivers for frame in self.shop.take(AudienceFrame)}
        names[NOBODY.number] = []
        return {
            sequence: sorted(names[frame.audience])
            for frame in self.shop.take(Routed)
            for sequence in range(frame.first, frame.last + 1)
        }


def test_37_who_is_added_while_a_run_waits_gets_all_of_the_group_that_adds_it() -> None:
    world = Held(None, "billing")
    world.send(2)
    world.attach("late")
    world.send(3)
    world.release()
    world.send(4)
    assert [b"2", b"3", b"4"] == world.bodies("late")
    assert [b"1", b"2", b"3", b"4"] == world.bodies("billing")
    both = ["billing", "late"]
    assert {1: ["billing"], 2: both, 3: both, 4: both} == world.routed()


def test_37_who_is_removed_while_a_run_waits_gets_nothing_of_the_group_that_removes_it() -> None:
    world = Held(None, "billing", "archive")
    world.send(2)
    world.remove("archive")
    world.send(3)
    world.release()
    assert {1: ["archive", "billing"], 2: ["billing"], 3: ["billing"]} == world.routed()
    assert [b"1", b"2", b"3"] == world.bodies("billing")
    world.settle(1)
    assert world.shop.statuses().keys() >= {("billing", 3)}


def test_37_changed_patterns_count_for_all_of_the_group_that_changes_them() -> None:
    world = Held(None, "billing")
    world.send(2, "orders.new")
    world.send(3, "bills.new")
    world.attach("billing", "bills.>")
    world.send(4, "orders.new")
    world.send(5, "bills.new")
    world.release()
    assert [b"1", b"3", b"5"] == world.bodies("billing")
    assert {1: ["billing"], 2: [], 3: ["billing"], 4: [], 5: ["billing"]} == world.routed()


def test_37_a_named_receiver_that_is_removed_before_the_group_is_unknown() -> None:
    world = Held(None, "billing")
    world.send(2, to=["billing"])
    world.remove("billing")
    world.release()
    (nack,) = world.shop.take(Nack)
    assert (2, 2, Action.REFUSED) == (nack.first, nack.last, nack.action)
    assert 2 == world.node.parts.tail.next_number  # run 1 alone was stored
    assert {1} == world.routed().keys()


def test_37_a_name_is_no_other_receivers_before_the_removal_is_on_disk() -> None:
    world = Held(None, "billing")
    world.send(2, to=["billing"])
    world.remove("billing")
    early = world.attach("billing")
    assert early.bye is None
    world.release()
    assert (2, "removed") == early.bye
    (nack,) = world.shop.take(Nack)
    assert (2, 2, Action.REFUSED) == (nack.first, nack.last, nack.action)
    world.attach("billing")
    world.send(3, to=["billing"])
    assert [b"3"] == world.bodies("billing")
    assert {1: ["billing"], 3: ["billing"]} == world.routed()


def test_37_require_is_judged_by_who_is_there_when_the_group_starts() -> None:
    world = Held(None, "billing")
    world.send(2, "bills.new", flags=FLAG_REQUIRE)
    world.attach("late", "bills.>")
    world.send(3, "bills.new", flags=FLAG_REQUIRE)
    world.release()
    assert [b"2", b"3"] == world.bodies("late")
    world.failing.hold = True
    world.send(4, "orders.new")
    world.send(5, "bills.new", flags=FLAG_REQUIRE)
    world.remove("late")
    world.release()
    (nack,) = world.shop.take(Nack)
    assert (5, 5, Action.REFUSED) == (nack.first, nack.last, nack.action)


def test_37_a_set_that_finds_no_place_by_then_holds_its_lane() -> None:
    """Nothing of the lane overtakes what is to come again; other lanes go on."""
    world = Held(Limits(audiences=2, keep_seconds=3600), "billing")
    world.send(2, "bills.new")
    world.send(3, "orders.new")
    world.send(4, "orders.new", to=["billing"])  # a set that has its place
    world.attach("late", "orders.>")
    world.release()
    assert {1: ["billing"], 2: []} == world.routed()
    nacks = world.shop.take(Nack)
    assert [(3, Action.LATER)] == [(nack.first, nack.action) for nack in nacks]
    assert [1, 2] == [last for ack in world.shop.take(Ack) for _, last in ack.ranges]
    assert 3 == world.node.parts.tail.next_number


def test_37_nothing_is_decided_again_where_nothing_has_changed() -> None:
    world = Held(None, "billing")
    asked: list[int] = []
    acceptance: Any = world.node.parts.acceptance
    decide = acceptance.decide_again

    def noted(batches: list[Batch]) -> None:
        asked.append(len(batches))
        decide(batches)

    acceptance.decide_again = noted
    for sequence in range(2, 9):
        world.send(sequence)
    world.release()
    world.send(9)
    assert [] == asked
    world.failing.hold = True
    world.send(10)
    world.send(11)
    world.attach("late")
    world.release()
    assert [1] == asked
    assert [b"11"] == world.bodies("late")


def units_of_deciding(names: int, change: str) -> int:
    """Return what it costs to decide again for 40 runs that name so many receivers."""
    world = Held(None, "billing")
    to = [f"r{number}" for number in range(names)]
    for name in to:
        world.receivers[name] = world.peer(name, receive={"subjects": ["never"]})
    world.release()
    world.failing.hold = True
    world.send(2)
    for sequence in range(3, 43):
        world.send(sequence, "orders.new", to=to)
    if change == "another comes":
        world.attach("late")
    else:
        world.receivers["r1"].connection.abort()
        world.remove("r1")
    acceptance: Any = world.node.parts.acceptance
    decide, units = acceptance.decide_again, []

    def metered(batches: list[Batch]) -> None:
        meter = Meter()
        with meter.turn(change):
            decide(batches)
        units.append(meter.units)

    acceptance.decide_again = metered
    world.release()
    if change == "another comes":
        assert {tuple(sorted(to))} == {
            tuple(names) for sequence, names in world.routed().items() if sequence > 2
        }
    else:
        nacks = world.shop.take(Nack)
        assert 40 == sum(nack.last - nack.first + 1 for nack in nacks)
        assert all("'r1'" in nack.reason for nack in nacks)
    return units[0]


@pytest.mark.parametrize("change", ["another comes", "one of them goes"])
def test_37_what_is_decided_again_looks_at_the_names_of_a_set_once_not_for_each_run(
    change: str,
) -> None:
    assert units_of_deciding(100, change) < units_of_deciding(10, change) + 90 * 10


def test_37_a_receiver_that_is_too_far_behind_by_then_holds_the_lane() -> None:
    """Who joins an audience while a run waits may have no room: as when the run came."""
    world = Held(Limits(backlog_bytes=1000), "billing")
    world.release()
    world.attach("late", "big.>")
    world.receivers["late"].connection.abort()
    world.shop.transfer(2, "big.new", [bytes(2000)])
    world.settle(1)
    world.shop.take(Nack)
    world.failing.hold = True
    world.send(3)
    world.send(4)
    world.send(5, "other")
    world.attach("late", "big.>", "orders.>").connection.abort()
    world.send(6)  # its audience is decided with the change: refused as it comes
    world.release()
    nacks = world.shop.take(Nack)
    assert {(4, Action.LATER), (6, Action.LATER)} == {(n.first, n.action) for n in nacks}
    assert all("'late'" in nack.reason and 5 == nack.code for nack in nacks)
    assert {1, 2, 3, 5} == world.routed().keys()
