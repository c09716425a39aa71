"""Sets of receivers that come and go: limited within one read too, and let go of (SEMANTICS 20)."""

from __future__ import annotations

import itertools

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from msgservice.core.frames import Ack, Nack
from msgservice.errors import LimitReached
from msgservice.limits import Limits
from msgservice.message import Action
from tests.kit.nodes import NodeWorld, ScriptedPeer


def acked(peer: ScriptedPeer) -> int:
    return sum(last - first + 1 for ack in peer.take(Ack) for first, last in ack.ranges)


def world_with_receivers(limits: Limits, count: int) -> tuple[NodeWorld, list[list[str]]]:
    """A node and `count` receivers; and many sets of them."""
    world = NodeWorld(limits)
    names = [f"r{n}" for n in range(count)]
    for name in names:
        world.peer(name, receive={"subjects": [f"only.{name}"]})
    return world, [list(c) for k in (2, 3, 4) for c in itertools.combinations(names, k)]


def test_20_the_limit_of_audiences_holds_within_one_read() -> None:
    world, sets = world_with_receivers(Limits(audiences=8, to_audiences=8), 12)
    shop = world.peer("shop")
    for sequence, names in enumerate(sets[:300], 1):
        shop.transfer(sequence, f"z.{sequence}", [b"x"], to=names)
    world.settle(1)
    assert acked(shop) == 8
    nacks = shop.take(Nack)
    assert len(nacks) == 292
    assert {nack.action for nack in nacks} == {Action.LATER}
    assert len(world.log._store.state.totals) == 8
    stored = world.log._store.state.totals.values()
    assert len({total.audience.members for total in stored}) == 8


def test_20_no_sender_uses_up_the_sets_of_others_and_the_log_says_so_once(
    logged: list[LogEvent],
) -> None:
    limits = Limits(audiences=20, sender_audiences=5, keep_seconds=0.0, keep_bytes=0)
    world, sets = world_with_receivers(limits, 12)
    for number in range(5):
        shop = world.peer(f"shop{number}")
        for sequence, names in enumerate(sets[number * 10 : number * 10 + 10], 1):
            shop.transfer(sequence, f"z.{sequence}", [b"x"], to=names)
        world.settle()
        assert acked(shop) == (5 if number < 3 else 0)
    said = [e for e in logged if str(e.get("log_format")).startswith("no new set of receivers")]
    assert [event["error"] for event in said] == ["limit sender_audiences = 5 reached"]
    other = world.peer("other")
    for sequence in range(1, 4):
        other.transfer(sequence, f"only.r{sequence}", [b"x"])
    world.settle()
    assert acked(other) == 3


def test_20_sets_of_receivers_that_come_and_go_cost_nothing_for_ever() -> None:
    world = NodeWorld(Limits(audiences=50, keep_seconds=0.0, keep_bytes=0))
    world.peer("stay", receive={"subjects": [">"]}, answering=True)
    shop = world.peer("shop")
    for n in range(40):
        world.peer(f"r{n}", receive={"subjects": [">"]}, answering=True)
        shop.transfer(n + 1, "a", [b"x"])
        world.settle(0.1)
        Deferred.fromCoroutine(world.node.remove_receiver(f"r{n}"))
        world.settle(1.2)
        world.log._retention.tidied_at = None
        world.settle(2.2)
    assert acked(shop) == 40
    dispatch, directory = world.node.parts.dispatch, world.node.parts.directory
    (stay,) = dispatch
    assert len(dispatch._audiences) <= 2
    assert len(dispatch._live) <= 2
    assert len(directory._known) <= 2
    assert len(stay.audiences) <= 2
    # What became of their messages is known for a week; then the receivers are forgotten too.
    world.log._store.age += 8 * 24 * 3600 * 1000
    world.settle(5)
    assert len(directory._by_number) <= 2
    assert len(world.log._store.state.rows) <= 2
    shop.transfer(41, "a", [b"x"])
    world.settle()
    assert acked(shop) == 1


@pytest.mark.parametrize(
    "limits",
    [Limits(sender_audiences=2), Limits(to_audiences=2), Limits(audiences=2, to_audiences=2)],
    ids=["of one sender", "of all", "of all and of patterns"],
)
def test_19_nobody_waits_for_the_place_of_a_set_that_only_history_has(limits: Limits) -> None:
    world = NodeWorld(limits)
    names = [f"r{n}" for n in range(3)]
    for name in names:
        world.peer(name, receive={"subjects": [f"only.{name}"]}, answering=True)
    shop = world.peer("shop")
    nacks = taken = 0
    for sequence, name in enumerate(names, 1):
        for _ in range(4):  # each second, as long as it is told to wait
            shop.transfer(sequence, "z", [b"x"], to=[name], nacks=nacks)
            world.settle(1.0)
            nacks += len(shop.take(Nack))
            if acked(shop):
                taken += 1
                break
    assert 3 == taken
    assert limits.keep_seconds == 3600.0


def test_removed_receivers_are_limited() -> None:
    world = NodeWorld(Limits(removed_receivers=2))
    for n in range(2):
        Deferred.fromCoroutine(world.node.add_receiver(f"r{n}", [">"]))
        world.settle()
        Deferred.fromCoroutine(world.node.remove_receiver(f"r{n}"))
        world.settle()
    failed: list[object] = []
    Deferred.fromCoroutine(world.node.add_receiver("r9", [">"])).addBoth(failed.append)
    world.settle()
    (failure,) = failed
    assert isinstance(failure, Failure)
    assert failure.check(LimitReached)
    assert world.peer("r9", receive={"subjects": [">"]}).lost_because is not None


def test_20_what_is_refused_for_want_of_room_costs_no_look_at_all_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is quadratic in what one sender may send at once."""
    world, sets = world_with_receivers(Limits(sender_audiences=5), 12)
    shop = world.peer("shop")
    looks, collect = [0], world.node.parts.directory.collect

    def counted() -> None:
        looks[0] += 1
        collect()

    monkeypatch.setattr(world.node.parts.directory, "collect", counted)
    for sequence, names in enumerate(sets[:300], 1):
        shop.transfer(sequence, f"z.{sequence}", [b"x"], to=names)
    world.settle(0.1)
    assert acked(shop) == 5
    assert len(shop.take(Nack)) == 295
    assert looks[0] <= 3


def test_20_sets_that_to_has_made_count_as_such_after_a_restart() -> None:
    limits = Limits(sender_audiences=5, to_audiences=7)
    world, sets = world_with_receivers(limits, 12)
    shop = world.peer("shop")
    for sequence, names in enumerate(sets[:6], 1):
        shop.transfer(sequence, f"z.{sequence}", [b"x"], to=names)
    world.settle()
    assert acked(shop) == 5
    stopped: list[object] = []
    world.node.stopService().addBoth(stopped.append)
    world.settle(limits.stop_timeout + 1)
    assert stopped == [None]
    for audience in world.log._audiences.values():
        audience.asked_by = None  # what is in memory goes with the process
    world.start()
    shop, other = world.peer("shop"), world.peer("other")
    shop.transfer(7, "z.7", [b"x"], to=sets[7])
    world.settle()
    assert [nack.reason for nack in shop.take(Nack)] == ["limit sender_audiences = 5 reached"]
    for sequence, names in enumerate(sets[10:15], 1):
        other.transfer(sequence, f"z.{sequence}", [b"x"], to=names)
    world.settle()
    assert acked(other) == 2
    assert {nack.reason for nack in other.take(Nack)} == {"limit to_audiences = 7 reached"}


def test_20_a_set_that_is_forgotten_leaves_nothing_of_who_made_it() -> None:
    world = NodeWorld(Limits(audiences=1, keep_seconds=0.0, keep_bytes=0))
    answering = [world.peer(f"s{n}", receive={"subjects": []}, answering=True) for n in range(3)]
    shop = world.peer("shop")
    shop.transfer(1, "z", [b"x"], to=[peer.hello.name for peer in answering])
    world.settle(0.1)
    assert acked(shop) == 1
    db = world.log._store.db
    asked = "select value from meta where key glob 'asked:*'"
    assert db.execute(asked).fetchall() == [("shop",)]
    world.settle(1.2)
    world.log._retention.tidied_at = None
    world.settle(2.2)
    assert db.execute(asked).fetchall() == []
