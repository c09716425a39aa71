"""Receivers that are away for too long are removed, and no others (DELIVERY 49)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from msgservice import Limits
from msgservice.administration import ReceiverState
from msgservice.core.frames import BYE_REMOVED, Transfer
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status
from msgservice.node.away import LOOK_AGAIN, WRITE_EVERY
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import Group, ReceiverRow, Snapshot
from tests.kit.inline import by_append
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer, state_of

ORDERS = {"subjects": ["orders.>"]}
QUICK = Limits(away_max=100.0, link_delay_max=4.0, hello_timeout=2.0)
GRACE = 6.0


def a_world(limits: Limits = QUICK, **more: Any) -> tuple[NodeWorld, ScriptedPeer]:
    """A node, and a producer that wants to know states; the time to come back is over."""
    world = NodeWorld(limits, **more)
    pass_time(world, GRACE)
    return world, world.peer("shop", status_from=1)


def pass_time(world: NodeWorld, seconds: float) -> None:
    """Let time pass in steps that the age of a log has too."""
    for _ in range(int(seconds * 2)):
        world.clock.advance(0.5)
        world.clock.advance(0)
    world.settle()


def go(peer: ScriptedPeer) -> None:
    peer.connection.abort()
    peer.world.settle()


def names(world: NodeWorld) -> list[str]:
    return sorted(row.name for row in world.node.parts.directory)


def again(world: NodeWorld, *, limits: Limits | None = None) -> None:
    """Kill the node: the next one has what the log says, and nothing else."""
    world.limits = limits or world.limits
    snapshots: list[Snapshot] = []
    log = world.log
    world.node.parts.due.stop()
    world.node.parts.upkeep.stop()
    world.node.parts.receivers.stop()  # what it would say from here on is not stored
    world.node.parts.connections.abort()
    log.close().addBoth(lambda _: log.open().addCallback(snapshots.append))
    world.start()


def listed(world: NodeWorld, name: str) -> ReceiverState:
    return state_of(world, name)


def test_49_who_is_away_for_too_long_is_removed_and_producers_are_told() -> None:
    world, shop = a_world()
    go(world.peer("billing", receive=ORDERS))
    shop.transfer(1, "orders.new", [b"one"])
    pass_time(world, 98)
    assert ["billing"] == names(world)
    assert 97 <= (listed(world, "billing").away_s or 0) < 100
    with capturedLogs() as logs:
        pass_time(world, 5)
    assert [] == names(world)
    assert shop.statuses()["billing", Status.REMOVED] == [(1, 1)]
    (said,) = [
        formatEvent(one) for one in logs if one["log_format"].startswith("receiver {name} was")
    ]
    assert said is not None
    assert "'billing'" not in said
    assert "receiver billing was away for longer than its away_max of 100 s" in said
    assert "1 message(s)" in said


def test_49_who_comes_back_begins_anew_and_who_is_here_stays() -> None:
    world, _ = a_world()
    world.peer("here", receive=ORDERS)
    go(world.peer("billing", receive=ORDERS))
    pass_time(world, 90)
    back = world.peer("billing", receive=ORDERS)
    pass_time(world, 300)
    assert ["billing", "here"] == names(world)
    assert listed(world, "billing").away_s is None
    go(back)
    pass_time(world, 95)
    assert ["billing", "here"] == names(world)
    pass_time(world, 10)
    assert ["here"] == names(world)


def test_49_a_receiver_that_was_removed_so_is_told_when_it_comes() -> None:
    world, _ = a_world()
    first = world.peer("billing", receive=ORDERS)
    assert first.node_hello is not None
    known = first.node_hello.incarnation
    go(first)
    pass_time(world, 105)
    assert [] == names(world)
    late = world.peer("billing", receive=ORDERS | {"known": known})
    assert late.bye == (BYE_REMOVED, "removed")


def test_49_without_away_max_nobody_is_removed_and_nothing_waits_for_it() -> None:
    world, _ = a_world(Limits())
    go(world.peer("billing", receive=ORDERS))
    world.settle(40_000_000)
    assert ["billing"] == names(world)
    row = world.node.parts.directory.named("billing")
    assert (row.away_since, world.node.parts.away.earliest()) == (None, None)
    assert listed(world, "billing").away_max == 0


def test_49_its_own_away_max_counts_before_that_of_the_node() -> None:
    world, shop = a_world()
    for name, seconds in (("short", 10), ("long", 1000), ("as-the-node", 0)):
        asked = {"name": name, "subjects": ["x"], "away_max": seconds}
        assert shop.request("$node.receivers.add", asked)[0]
    assert [10, 1000, 100] == [
        listed(world, name).away_max for name in ("short", "long", "as-the-node")
    ]
    pass_time(world, 13)
    assert ["as-the-node", "long"] == names(world)
    pass_time(world, 100)
    assert ["long"] == names(world)
    assert shop.request("$node.receivers.change", {"name": "long", "away_max": 50})[0]
    pass_time(world, 3)
    assert [] == names(world)


def test_49_one_of_the_configuration_stays_and_takes_no_away_max(
    logged_failures: list[Any],
) -> None:
    configured = [ReceiverRow(number=0, name="fixed", patterns=("x",))]
    world, shop = a_world(configured=configured)
    pass_time(world, 300)
    assert ["fixed"] == names(world)
    ok, why = shop.request("$node.receivers.change", {"name": "fixed", "away_max": 5})
    assert (ok, why) == (False, "away_max a receiver of the configuration is never removed")
    options = ReceiverOptions(away_max=5)
    with pytest.raises(ValueError, match="never removed"):
        world.node.parts.receivers.add("x", ["x"], options, configured=True).send(None)
    # Once the file no longer says it, it is as any other.
    world.configured = []
    again(world)
    pass_time(world, 90)
    assert ["fixed"] == names(world)
    pass_time(world, 30)
    assert [] == names(world)


def test_49_bounds_of_away_max_are_those_of_the_limit() -> None:
    _, shop = a_world()
    for seconds in (-1, 2**50):
        ok, why = shop.request(
            "$node.receivers.add", {"name": "a", "subjects": [], "away_max": seconds}
        )
        assert not ok
        assert "away_max" in why


def test_49_one_that_is_paused_stays_and_its_time_begins_when_it_is_resumed() -> None:
    world, shop = a_world()
    go(world.peer("billing", receive=ORDERS))
    pass_time(world, 50)
    assert shop.request("$node.receivers.pause", {"name": "billing"})[0]
    pass_time(world, 500)
    assert listed(world, "billing").away_s is None
    assert shop.request("$node.receivers.resume", {"name": "billing"})[0]
    pass_time(world, 95)
    assert ["billing"] == names(world)
    pass_time(world, 10)
    assert [] == names(world)


def test_49_one_with_dead_letters_stays_until_they_are_dropped_and_it_is_said() -> None:
    world, shop = a_world()
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    (came,) = billing.take(Transfer)
    billing.nack(came.sequence, came.sequence, Action.DEAD, reason="no")
    pass_time(world, 1)
    go(billing)
    with capturedLogs() as logs:
        pass_time(world, 100 + 3 * LOOK_AGAIN / 1000)
    assert ["billing"] == names(world)
    said = [formatEvent(one) for one in logs if "stays" in one["log_format"]]
    assert 1 == len(said), "once, not with each look"
    assert "it has dead letters" in str(said)
    assert listed(world, "billing").stays == "it has dead letters"
    ok, _ = shop.request("$node.dead.drop", {"receiver": "billing"})
    assert ok
    pass_time(world, LOOK_AGAIN / 1000 + 3)
    assert [] == names(world)


def test_49_time_away_goes_on_over_a_kill_and_standing_still_is_no_time_away() -> None:
    world, _ = a_world()
    go(world.peer("billing", receive=ORDERS))
    pass_time(world, 60)
    since = world.node.parts.directory.named("billing").away_since
    again(world)
    assert world.node.parts.directory.named("billing").away_since == since
    assert 58 <= (listed(world, "billing").away_s or 0) <= 61
    world.clock.advance(0)
    pass_time(world, 30)
    assert ["billing"] == names(world)
    pass_time(world, 15)
    assert [] == names(world)


def test_49_after_a_start_nobody_is_removed_before_it_had_time_to_come_back() -> None:
    world, _ = a_world()
    go(world.peer("billing", receive=ORDERS))
    go(world.peer("other", receive=ORDERS))
    pass_time(world, 99)
    again(world)
    pass_time(world, GRACE - 1)
    assert ["billing", "other"] == names(world)
    world.peer("billing", receive=ORDERS)
    pass_time(world, 5)
    assert ["billing"] == names(world)


def test_49_who_was_here_when_the_node_was_killed_is_away_from_the_start_on() -> None:
    world, _ = a_world()
    world.peer("billing", receive=ORDERS)
    pass_time(world, 500)
    again(world)
    pass_time(world, 95)
    assert ["billing"] == names(world)
    again(world)  # what was counted is in the log by then
    pass_time(world, 15)
    assert [] == names(world)


def test_49_a_time_away_that_ended_while_nobody_counted_is_forgotten() -> None:
    world, _ = a_world()
    go(world.peer("billing", receive=ORDERS))
    pass_time(world, 50)
    again(world, limits=Limits(link_delay_max=4.0, hello_timeout=2.0))
    world.peer("billing", receive=ORDERS)
    pass_time(world, 200)
    again(world, limits=QUICK)
    pass_time(world, 95)
    assert ["billing"] == names(world)


def test_49_one_that_comes_while_its_removal_begins_stays() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=QUICK))
    world, _ = a_world(log=log, clock=clock)
    go(world.peer("billing", receive=ORDERS))
    accounts = log.accounts
    came: list[ScriptedPeer] = []

    def late(numbers: Sequence[int] | None = None) -> Any:
        found = accounts(numbers)
        if not came and numbers is not None:
            came.append(world.peer("billing", receive=ORDERS))
        return found

    log.__dict__["accounts"] = late
    pass_time(world, 105)
    assert came
    assert ["billing"] == names(world)
    assert came[0].bye is None
    assert listed(world, "billing").connected


def test_49_a_removal_that_fails_is_tried_again(logged_failures: list[Any]) -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=QUICK))
    world, _ = a_world(log=log, clock=clock)
    go(world.peer("billing", receive=ORDERS))
    pass_time(world, 95)
    log.__dict__["accounts"] = _refuses
    pass_time(world, 10)
    assert ["billing"] == names(world)
    del log.__dict__["accounts"]
    pass_time(world, LOOK_AGAIN / 1000 + 3)
    assert [] == names(world)


def _refuses(numbers: Sequence[int] | None = None) -> Any:
    from twisted.internet.defer import fail

    from msgservice.errors import LogUnavailable

    return fail(LogUnavailable("the disk says no"))


def test_49_many_go_in_pages_and_none_is_left() -> None:
    world, _ = a_world()
    for n in range(50):
        go(world.peer(f"r{n}", receive=ORDERS))
    pass_time(world, 110)
    assert [] == names(world)


def test_49_an_idle_log_writes_its_age_while_somebody_is_away() -> None:
    clock = Clock()
    log = MemoryLog(reactor=clock, limits=QUICK)
    appended: list[Group] = []
    append = log.append

    def watched(group: Group) -> Any:
        appended.append(group)
        return append(group)

    log.append = watched  # type: ignore[method-assign]  # looked at on its way
    by_append(log)
    limits = Limits(away_max=10_000.0, link_delay_max=4.0, hello_timeout=2.0)
    world, _ = a_world(limits, log=log, clock=clock)
    go(world.peer("billing", receive=ORDERS))
    pass_time(world, 1)
    before = len(appended)
    pass_time(world, 3.5 * WRITE_EVERY / 1000)
    assert len(appended) - before == 3
