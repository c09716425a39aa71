"""Retained messages at a node: who joins has them first, then all that is sent (DELIVERY 48)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from msgservice.core.frames import Ack, Nack, Transfer
from msgservice.errors import LimitReached, LogUnavailable
from msgservice.identity.rules import Rules
from msgservice.identity.users import User
from msgservice.log.memory import MemoryLog
from msgservice.message import (
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    FLAG_RETAINED,
    Action,
    decode_messages,
    options_of,
)
from msgservice.node.gate import Door
from msgservice.node.retained import SPARE, RetainedIndex
from msgservice.records import NODE, Group, ReceiverRow, hash_of
from tests.kit.limits import Limits
from tests.kit.logs import make_batch
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer
from tests.kit.passes import HERE, users_of


def got(peer: ScriptedPeer) -> list[tuple[str, bytes, bool]]:
    """(subject, body, retained) of what came, taken out."""
    return [
        (transfer.subject, message.body, bool(transfer.flags & FLAG_RETAINED))
        for transfer in peer.take(Transfer)
        for message in decode_messages(transfer.messages)
    ]


def receiver(world: NodeWorld, name: str, *subjects: str, **more: Any) -> ScriptedPeer:
    return world.peer(name, receive={"subjects": list(subjects), **more}, answering=False)


def keep(
    shop: ScriptedPeer, sequence: int, subject: str, *bodies: bytes, flags: int = FLAG_RETAIN
) -> None:
    shop.transfer(sequence, subject, list(bodies), flags=flags)
    shop.world.settle()


def test_48_who_attaches_first_has_what_is_retained_and_then_the_rest() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    keep(shop, 1, "prices.a", b"1", b"2")
    keep(shop, 3, "prices.b", b"3")
    keep(shop, 4, "other", b"4")
    keep(shop, 5, "prices.a", b"5")
    late = receiver(world, "late", "prices.>")
    keep(shop, 6, "prices.b", b"6")
    assert got(late) == [
        ("prices.b", b"3", True),
        ("prices.a", b"5", True),
        ("prices.b", b"6", False),
    ]
    again = receiver(world, "late", "prices.>")
    assert [retained for _, _, retained in got(again)] == [True, True, False]  # it had not ACKed


def test_48_what_is_retained_stays_where_a_limit_was_lowered_and_that_is_told(
    logged: list[Any],
) -> None:
    def lines() -> list[Any]:
        return [event for event in logged if event.get("line") == "retained-beyond-limits"]

    kept = [("a", 500, 0), ("b", 300, 0), ("c", 200, 0)]
    for limits, fits in (
        (Limits(retained=2, retained_bytes=1000), False),
        (Limits(retained=3, retained_bytes=999), False),
        (Limits(retained=3, retained_bytes=1000), True),
    ):
        logged.clear()
        index = RetainedIndex(limits)
        index.load(kept)
        assert (not lines()) is fits
        assert all(subject in index for subject, _, _ in kept)
        for subject, size in (("b", 300), ("b", 10), ("c", 200)):
            index.check_room(subject, size)
        for subject, size in (("b", 301), ("d", 1)):
            with pytest.raises(LimitReached):
                index.check_room(subject, size)
        index.stored([("a", 0, 0)])  # cleared
        index.check_room("b", 301)
        index.check_room("d" if limits.retained == 3 else "b", 1)


def test_48_a_copy_is_of_the_node_and_says_whose_it_was() -> None:
    world = NodeWorld()
    keep(world.peer("shop", incarnation="i7"), 4, "a", b"1")
    (transfer,) = receiver(world, "late", ">").take(Transfer)
    assert transfer.origin is not None
    assert (transfer.origin.sender, transfer.origin.sequence) == ("shop", 4)
    assert NODE != transfer.origin.sender


def test_48_what_is_handed_in_while_somebody_joins_is_neither_lost_nor_doubled() -> None:
    """The group under way holds a message for those of before; the next begins the membership."""
    clock = Clock()
    failing = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=failing, clock=clock)
    shop = world.peer("shop")
    failing.hold = True
    shop.transfer(1, "a", [b"1"], flags=FLAG_RETAIN)
    world.settle()
    shop.transfer(2, "a", [b"2"], flags=FLAG_RETAIN)
    shop.transfer(3, "b", [b"3"])
    late = receiver(world, "late", ">")
    failing.release()
    world.settle(1)
    assert got(late) == [("a", b"1", True), ("a", b"2", False), ("b", b"3", False)]


def test_48_without_a_body_nothing_is_retained_any_more() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    keep(shop, 1, "a", b"1")
    keep(shop, 2, "a", b"")
    assert got(receiver(world, "late", ">")) == []


def test_48_it_may_be_for_those_who_join_alone() -> None:
    world = NodeWorld()
    there = receiver(world, "there", ">")
    shop = world.peer("shop", status_from=1)
    keep(shop, 1, "a", b"1", flags=FLAG_RETAIN | FLAG_RETAIN_ONLY)
    assert got(there) == []
    assert [frame.ranges for frame in shop.take(Ack)] == [[(1, 1)]]
    assert got(receiver(world, "late", ">")) == [("a", b"1", True)]


def test_48_who_wants_none_has_none_and_who_is_made_by_an_operator_has() -> None:
    world = NodeWorld()
    keep(world.peer("shop"), 1, "a", b"1")
    assert got(receiver(world, "none", ">", retained=False)) == []
    Deferred.fromCoroutine(world.node.add_receiver("made", [">"]))
    world.settle()
    assert got(world.peer("made", receive={})) == [("a", b"1", True)]


def test_48_who_starts_with_history_has_first_what_has_left_the_log() -> None:
    limits = Limits(keep_seconds=0, keep_bytes=0, retained_at_join=1)
    world = NodeWorld(limits)
    shop = world.peer("shop")
    early = receiver(world, "early", ">")
    for sequence, subject in ((1, "a"), (2, "b"), (3, "c")):
        keep(shop, sequence, subject, b"%d" % sequence)
        if sequence < 3:
            for transfer in early.take(Transfer):
                early.ack(transfer)
    world.settle(120)
    gone = [("a", b"1", True), ("b", b"2", True)]
    third, fourth = ("c", b"3", False), ("d", b"4", False)
    for name, start in (("first", "first"), ("position", 0)):
        late = receiver(world, name, ">", start=start)
        assert got(late) == [*gone, third], name
    none = receiver(world, "none", ">", start="first", retained=False)
    assert got(none) == [third]
    later = receiver(world, "later", ">", start=world.log.kept_from())
    assert got(later) == [third]
    keep(shop, 4, "d", b"4")
    assert got(none) == got(later) == [fourth]


def test_48_more_subjects_bring_what_is_retained_of_these() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    keep(shop, 1, "a", b"1")
    keep(shop, 2, "b", b"2")
    first = receiver(world, "late", "a")
    (transfer,) = first.take(Transfer)
    assert transfer.subject == "a"
    first.ack(transfer)
    world.settle()
    assert got(receiver(world, "late", "a", "b")) == [("b", b"2", True)]


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"retained_at_join": 2}, "retained_at_join"),
        ({"retained_at_join_bytes": 300}, "retained_at_join_bytes"),
    ],
)
def test_48_more_than_one_may_get_at_first_is_refused_and_named(
    limits: dict[str, int], named: str
) -> None:
    world = NodeWorld(Limits(**limits))
    shop = world.peer("shop")
    for at, subject in enumerate(("a", "b", "c"), 1):
        keep(shop, at, subject, b"1")
    late = receiver(world, "late", ">")
    assert late.lost_because is not None
    assert named in late.lost_because
    assert [row.name for row in world.node.parts.directory] == []
    assert len(got(receiver(world, "late", "a", "b"))) == 2
    assert got(receiver(world, "other", ">", retained=False)) == []


def test_48_more_subjects_than_the_limit_are_refused_for_now() -> None:
    world = NodeWorld(Limits(retained=1))
    shop = world.peer("shop")
    keep(shop, 1, "a", b"1")
    keep(shop, 2, "a", b"2")
    keep(shop, 3, "b", b"3")
    (nack,) = shop.take(Nack)
    assert (nack.first, nack.action, nack.about) == (3, Action.LATER, "retained")
    keep(shop, 3, "c", b"")  # it ends what there is not


@pytest.mark.parametrize("before", [b"1", b""], ids=["kept", "cleared"])
def test_48_on_a_node_that_does_nothing_else_no_subject_counts_twice(before: bytes) -> None:
    """What was on its way last is stored, and no other group comes to say so."""
    world = NodeWorld(Limits(retained=2))
    shop = world.peer("shop")
    keep(shop, 1, "a", before)
    world.settle(60)
    keep(shop, 2, "b", b"1")
    world.settle(60)
    if not before:
        keep(shop, 3, "c", b"1")
        world.settle(60)
    assert [] == shop.take(Nack)
    keep(shop, 4, "d", b"1")
    (nack,) = shop.take(Nack)
    assert (nack.first, nack.action, nack.about) == (4, Action.LATER, "retained")


def test_48_what_is_on_its_way_takes_room_as_what_is_retained_does() -> None:
    world = NodeWorld(Limits(retained_bytes=20_000))
    shop = world.peer("shop")
    body = b"x" * 8000
    for sequence, subject in ((1, "a"), (2, "b"), (3, "c"), (4, "a")):  # in one group
        shop.transfer(sequence, subject, [body], flags=FLAG_RETAIN)
    world.settle()
    assert [(nack.first, nack.about) for nack in shop.take(Nack)] == [(3, "retained_bytes")]
    assert listed(shop) == ["a", "b"]
    for sequence in range(5, 9):  # what takes the place of another takes its room
        shop.transfer(sequence, "b", [body], flags=FLAG_RETAIN)
    world.settle()
    assert shop.take(Nack) == []
    keep(shop, 9, "a", b"")
    shop.transfer(3, "c", [body], flags=FLAG_RETAIN, nacks=1)
    world.settle()
    assert shop.take(Nack) == []
    assert listed(shop) == ["b", "c"]


def test_48_who_may_send_nothing_keeps_nobody_from_retaining() -> None:
    users = users_of(User(name="shop", rules=Rules(send=["a"])), User(name="other", rules=Rules()))
    world = NodeWorld(Limits(retained=2), users=users)
    shop, other = (
        world.peer(name, door=Door(asks=False, user=name), shown=HERE) for name in ("shop", "other")
    )
    for number in (1, 2):
        other.transfer(number, f"b.{number}", [b"x"], flags=FLAG_RETAIN)
    shop.transfer(1, "a", [b"x"], flags=FLAG_RETAIN)
    world.settle()
    assert [Action.REFUSED] * 2 == [nack.action for nack in other.take(Nack)]
    assert [] == shop.take(Nack)
    assert [[(1, 1)]] == [ack.ranges for ack in shop.take(Ack)]


def test_48_it_is_there_after_a_start() -> None:
    world = NodeWorld()
    keep(world.peer("shop"), 1, "a", b"1")
    world.start()
    assert got(receiver(world, "late", ">")) == [("a", b"1", True)]


def test_48_a_copy_that_the_configuration_brings_waits_once_for_its_receiver() -> None:
    world = NodeWorld()
    keep(world.peer("shop"), 1, "a", b"1")
    world.configured = [ReceiverRow(number=0, name="late", patterns=("b",))]
    world.start()
    world.configured = [ReceiverRow(number=0, name="late", patterns=("a", "b"))]
    world.start()
    queued = world.node.parts.dispatch.outlets[1].progress.queued
    late = receiver(world, "late", "a", "b")
    (transfer,) = late.take(Transfer)
    assert len(transfer.messages) == queued.look()
    late.ack(transfer)
    world.settle(1.0)
    assert 0 == queued.look()


def test_the_index_knows_what_is_on_its_way_until_two_groups_have_ended() -> None:
    index = RetainedIndex(Limits(retained=2))
    assert not index.is_for([">"], check=True)
    index.coming("a", 10)
    index.stored(())
    assert index.is_for(["a"], check=True)
    assert not index.is_for(["a", "b"], ["a"], check=True)
    index.stored([("a", 7, 0)])
    index.stored([("a", 0, 0)])
    assert not index.is_for([">"], check=True)
    index.coming("x", 10)
    index.coming("y", 10)
    with pytest.raises(LimitReached, match="retained"):
        index.check_room("z", 1)
    index.check_room("x", 1)


def test_48_what_becomes_due_with_the_flag_is_known_to_who_joins_while_it_is_stored() -> None:
    """It waited in a log; from when its group begins it is on its way as any other."""
    clock = Clock()
    inner = MemoryLog(reactor=clock, limits=Limits())
    failing = FailingLog(inner)
    world = NodeWorld(log=failing, clock=clock)
    due_at = world.node.parts.due.now() + 1000
    waits = make_batch(
        inner.audience([]),
        1,
        [b"late"],
        subject="a",
        options=options_of(FLAG_RETAIN),
        due_at=due_at,
    )
    inner.append(Group(now=1, batches=[waits]))
    world.settle()
    world.node.parts.due.look()
    failing.hold = True
    world.settle(1.1)
    late = receiver(world, "late", ">")
    failing.release()
    world.settle(1)
    assert got(late) == [("a", b"late", True)]


def test_48_what_has_expired_counts_no_longer_and_takes_no_room() -> None:
    world = NodeWorld(Limits(retained=2, retained_at_join=1))
    shop = world.peer("shop")
    shop.transfer(1, "a", [b"1"], flags=FLAG_RETAIN, ttl=5000)
    shop.transfer(2, "b", [b"2"], flags=FLAG_RETAIN)
    shop.transfer(3, "c", [b"3"], flags=FLAG_RETAIN)
    world.settle()
    assert [(nack.first, nack.about) for nack in shop.take(Nack)] == [(3, "retained")]
    world.settle(4.9)
    assert listed(shop) == ["a", "b"]
    world.settle(0.2)
    assert listed(shop) == ["b"]
    keep(shop, 3, "c", b"3")
    assert shop.take(Nack) == []
    keep(shop, 4, "c", b"")
    assert got(receiver(world, "late", ">")) == [("b", b"2", True)]


def test_48_what_expired_while_the_node_was_down_goes_at_the_start() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.transfer(1, "a", [b"1"], flags=FLAG_RETAIN, ttl=5000)
    keep(shop, 2, "b", b"2")
    world.node.stopService()
    world.settle(1)
    world.clock.advance(10)
    world.start()
    world.settle(1)
    assert listed(world.peer("shop")) == ["b"]


def test_17_48_who_joins_has_what_expires_though_the_wall_clock_was_ahead_for_a_moment() -> None:
    world = NodeWorld()
    right, ahead = world.node.time.wall, [0]
    world.node.time.wall = lambda: right() + ahead[0]
    shop = world.peer("shop")
    shop.transfer(1, "a", [b"1"], flags=FLAG_RETAIN, ttl=60_000)
    world.settle()
    ahead[0] = 365 * 24 * 3600 * 1000
    shop.transfer(2, "x", [b"2"])
    world.settle()
    ahead[0] = 0
    assert got(receiver(world, "late", "a")) == [("a", b"1", True)]
    world.settle(61)
    assert got(receiver(world, "later", "a")) == []


def test_48_a_newer_one_stays_when_the_one_before_expires() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    kept = [("a", 5000), ("a", 9000), ("b", None), ("b", 7000), ("c", 5000), ("c", None)]
    for sequence, (subject, ttl) in enumerate(kept, 1):
        shop.transfer(sequence, subject, [b"%d" % sequence], flags=FLAG_RETAIN, ttl=ttl)
        world.settle()
    world.settle(5.1)
    assert listed(shop) == ["a", "b", "c"]
    world.settle(2)
    assert listed(shop) == ["a", "c"]
    world.settle(2)
    assert listed(shop) == ["c"]
    assert shop.request("$node.retained.get", {"subject": "c"})[0]
    assert got(receiver(world, "late", ">")) == [("c", b"6", True)]


def test_48_what_has_expired_is_let_go_of_as_soon_as_the_disk_has_room() -> None:
    clock = Clock()
    inner = MemoryLog(reactor=clock, limits=Limits())
    failing = FailingLog(inner)
    world = NodeWorld(log=failing, clock=clock)
    shop = world.peer("shop")
    shop.transfer(1, "a", [b"1"], flags=FLAG_RETAIN, ttl=1000)
    world.settle()
    clear, asked = inner.clear_retained, []

    def full(subjects: Sequence[str], expired: int = 0) -> Deferred[None]:
        asked.append(subjects)
        return fail(LogUnavailable("the disk is full"))

    inner.clear_retained = full  # type: ignore[method-assign]  # as a disk without room
    world.settle(3.5)
    assert [["a"]] * 3 == asked
    inner.clear_retained = clear  # type: ignore[method-assign]  # it has room
    world.settle(1)
    assert listed(shop) == []


def listed(peer: ScriptedPeer) -> list[str]:
    """The subjects of which the node says that a message is retained."""
    ok, told = peer.request("$node.retained.list", {})
    assert ok, told
    return [one["subject"] for one in told["retained"]]


def test_the_index_holds_no_more_times_than_twice_what_expires() -> None:
    index = RetainedIndex(Limits())
    for at in range(1, 10_000):
        index.stored([("a", 7, at), ("b", 7, 20_000 - at)])
    assert len(index._times) < 2 * SPARE
    assert index.expires_first() == 9999
    assert index.expired(9_999, 10) == ["a"]
    assert index.expired(30_000, 1) == ["a"]
    assert sorted(index.expired(30_000, 10)) == ["a", "b"]
    index.clear_expired(["a", "b"], 9_999)
    assert "a" not in index
    assert index.expires_first() == 10_001


# --- with a delay (DELIVERY 43)

MINUTE = 60_000


def keep_later(
    shop: ScriptedPeer,
    sequence: int,
    body: bytes,
    *,
    subject: str = "a",
    flags: int = FLAG_RETAIN,
    **more: Any,
) -> None:
    shop.transfer(sequence, subject, [body], flags=flags, **({"delay": MINUTE} | more))
    shop.world.settle()


def bodies_of(world: NodeWorld, subject: str = "a") -> list[bytes]:
    """The body of what is retained of a subject, if anything is."""
    found: list[Any] = []
    world.node.log.retained("", 100).addCallback(found.extend)
    world.settle()
    return [
        message.body
        for one in found
        if one.subject == subject
        for message in decode_messages(one.message)
    ]


def test_48_one_with_a_delay_is_retained_when_it_is_due_and_not_before() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    keep(shop, 1, "a", b"1")
    keep_later(shop, 2, b"later")
    keep(shop, 3, "a", b"3")
    assert got(receiver(world, "early", ">")) == [("a", b"3", True)]
    world.settle(59)
    assert [b"3"] == bodies_of(world)
    world.settle(1.1)
    assert [b"later"] == bodies_of(world)  # the newest by its number, whenever it was accepted
    assert got(receiver(world, "late", ">")) == [("a", b"later", True)]
    keep(shop, 4, "a", b"4")
    assert got(receiver(world, "last", ">")) == [("a", b"4", True)]


def test_48_who_joins_while_it_waits_has_it_once_as_what_is_new() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    keep_later(shop, 1, b"later")
    early = receiver(world, "early", ">")
    assert [] == got(early)
    world.settle(60.1)
    assert [("a", b"later", False)] == got(early)


def test_48_for_those_who_join_alone_it_is_delivered_to_nobody_when_it_is_due() -> None:
    world = NodeWorld()
    there = receiver(world, "there", ">")
    shop = world.peer("shop", status_from=1)
    keep_later(shop, 1, b"later", flags=FLAG_RETAIN | FLAG_RETAIN_ONLY)
    world.settle(60.1)
    assert [] == got(there)
    assert got(receiver(world, "late", ">")) == [("a", b"later", True)]


def test_48_an_empty_one_ends_what_is_retained_when_it_is_due() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    keep(shop, 1, "a", b"1")
    keep_later(shop, 2, b"")
    world.settle(59)
    assert [b"1"] == bodies_of(world)
    world.settle(1.1)
    assert [] == bodies_of(world)


def test_48_one_that_is_cancelled_is_retained_never_and_the_rest_of_its_run_is() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "a", [b"1", b"2", b"3"], flags=FLAG_RETAIN, delay=MINUTE)
    keep_later(shop, 4, b"of b", subject="b")
    identity = f"shop/{hash_of(shop.hello.incarnation)}/"
    for sequence in (3, 4):
        shop.request("$node.delayed.cancel", {"id": f"{identity}{sequence}"})
    world.settle(60.1)
    assert ([b"2"], []) == (bodies_of(world), bodies_of(world, "b"))


def test_48_with_a_ttl_it_is_retained_until_that_ends_which_counts_from_the_call() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    keep_later(shop, 1, b"later", ttl=2 * MINUTE)
    world.settle(60.1)
    assert [b"later"] == bodies_of(world)
    world.settle(59)
    assert [b"later"] == bodies_of(world)
    world.settle(1.1)
    assert [] == bodies_of(world)
    assert [] == got(receiver(world, "late", ">"))


def test_48_it_is_retained_when_it_is_due_over_a_restart_too() -> None:
    world = NodeWorld()
    keep_later(world.peer("shop"), 1, b"later")
    world.node.stopService()
    world.settle(1)
    world.start()
    world.settle(30)
    assert [] == bodies_of(world)
    world.settle(30)
    assert got(receiver(world, "late", ">")) == [("a", b"later", True)]


def test_48_without_room_among_what_is_retained_it_waits_on_and_its_lane_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PAGE_FIRST", "PAGE_LEAST", "PAGE_MOST"):
        monkeypatch.setattr(f"msgservice.node.delayed.{name}", 2)
    world = NodeWorld(limits=Limits(retained=1))
    there = receiver(world, "there", ">")
    shop = world.peer("shop", status_from=1)
    keep_later(shop, 1, b"1")
    keep_later(shop, 2, b"2", flags=0)
    keep_later(shop, 3, b"of b", subject="b", flags=0)
    keep_later(shop, 4, b"4", flags=0)
    keep(shop, 5, "c", b"5")
    keep_later(shop, 6, b"6", subject="d")
    (nack,) = shop.take(Nack)  # there is no room by now
    assert (6, Action.LATER) == (nack.first, nack.action)
    world.settle(60.1)
    world.settle(3)
    assert [("c", b"5", False), ("b", b"of b", False)] == got(there)
    keep(shop, 7, "c", b"")
    for _ in range(6):
        world.settle(1)
    assert [b"", b"1", b"2", b"4"] == [body for _, body, _ in got(there)]
    assert [b"1"] == bodies_of(world)
    assert world.node.log.next_due() is None


def test_48_an_empty_one_that_is_due_needs_no_room() -> None:
    world = NodeWorld(limits=Limits(retained=1))
    shop = world.peer("shop")
    keep_later(shop, 1, b"")
    keep(shop, 2, "c", b"2")
    world.settle(60.1)
    assert world.node.log.next_due() is None
