"""Replays at a node: rewinds, history for new receivers, what suspended ones were left out of."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock

from msgservice.core.copies import REPLAY_OF
from msgservice.core.frames import Transfer
from msgservice.errors import LimitReached, LogUnavailable
from msgservice.identity.rules import Rules
from msgservice.identity.users import User
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import FLAG_REPLAY, FLAG_RETAIN, decode_messages
from msgservice.node.commits import LIVE_FOR, Commits, Lasted
from msgservice.node.gate import Door
from msgservice.node.replayer import LIVE_PAGE_BYTES, PAGE_BYTES, PAGE_BYTES_LEAST, PAGES
from msgservice.records import (
    LEFT_OUT,
    REWIND,
    START,
    Group,
    Replay,
    Resume,
    hash_of,
    position_of,
)
from tests.kit.dict_log import Content, DictLog
from tests.kit.limits import Limits as SmallLimits
from tests.kit.nodes import FailingLog, LateLog, NodeWorld, ScriptedPeer, state_of
from tests.kit.passes import HERE, users_of

SUBJECTS = {"subjects": ["orders.>"]}


class Taking(ScriptedPeer):
    """A receiver that acknowledges what comes, and remembers it: body, and whether it is a copy."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answering = True
        self.got: list[tuple[bytes, bool]] = []
        self.replay_of: list[str | None] = []

    def ack(self, transfer: Transfer) -> None:
        for message in decode_messages(transfer.messages):
            self.got.append((message.body, bool(transfer.flags & FLAG_REPLAY)))
            self.replay_of.append((message.headers or {}).get(REPLAY_OF))
        super().ack(transfer)

    @property
    def all(self) -> list[bytes]:
        return [body for body, _ in self.got]

    @property
    def copies(self) -> list[bytes]:
        return [body for body, is_copy in self.got if is_copy]


def taking(world: NodeWorld, name: str = "billing", **receive: Any) -> Taking:
    peer = world.peer(name, receive=SUBJECTS | receive, kind=Taking, answering=True)
    assert isinstance(peer, Taking)
    return peer


def send(shop: ScriptedPeer, numbers: Iterable[int], subject: str = "orders.new") -> list[bytes]:
    bodies = [b"%d" % number for number in numbers]
    for number, body in zip(numbers, bodies, strict=True):
        shop.transfer(number, subject, [body])
    shop.world.settle()
    return bodies


def ask(peer: ScriptedPeer, operation: str, **arguments: Any) -> Any:
    ok, answer = peer.request(f"$node.receivers.{operation}", arguments)
    assert ok, answer
    return answer["replay"]


def refused(peer: ScriptedPeer, operation: str, **arguments: Any) -> str:
    ok, answer = peer.request(f"$node.receivers.{operation}", arguments)
    assert not ok
    return str(answer)


def unaccounted(world: NodeWorld) -> list[int]:
    found: list[Any] = []
    world.log.accounts().addCallback(found.extend)
    world.settle()
    return [one.unaccounted for one in found]


def audit(world: NodeWorld) -> list[str]:
    found: list[Any] = []
    world.log.audit().addCallback(found.append)
    world.settle()
    return list(found[0])


# --- rewind --------------------------------------------------------------------------------------


def test_13_a_rewind_sends_what_was_acknowledged_again_as_copies() -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    bodies = send(shop, range(1, 6))
    begun = ask(shop, "rewind", name="billing", first=position_of(2), end=position_of(4))
    assert (REWIND, position_of(2), position_of(4)) == (begun["kind"], begun["first"], begun["end"])
    world.settle()
    assert bodies == [body for body, is_copy in billing.got if not is_copy]
    assert bodies[1:4] == billing.copies
    assert [f"log:{position_of(n)}" for n in (2, 3, 4)] == billing.replay_of[5:]
    told = ask(shop, "replay", name="billing")
    assert (3, 0, True) == (told["copied"], told["skipped"], told["over"])
    assert not any(unaccounted(world))
    assert [] == audit(world)


def test_47_a_rewind_of_everything_leaves_out_copies() -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    bodies = send(shop, range(1, 4))
    for _ in range(3):
        ask(shop, "rewind", name="billing")
        world.settle()
    assert bodies * 3 == billing.copies


def test_47_copies_of_a_lane_keep_its_order_and_come_before_what_is_sent_later() -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    bodies = send(shop, range(1, 50))
    ask(shop, "rewind", name="billing")
    later = send(shop, range(50, 60))
    assert [*bodies, *bodies, *later] == billing.all


def test_47_pages_come_as_the_receiver_takes_them() -> None:
    """It takes one message at a time: no more than a page of copies waits for it."""
    limits = SmallLimits(backlog_bytes=8192)
    world = NodeWorld(limits)
    shop, billing = world.peer("shop"), taking(world)
    bodies = [b"%d" % n * 100 for n in range(1, 101)]
    for n, body in enumerate(bodies, 1):
        shop.transfer(n, "orders.new", [body])
        world.settle()
    billing.answering = False
    ask(shop, "rewind", name="billing")
    world.settle()
    queued = state_of(world, "billing").queued_bytes
    assert 0 < queued <= 2 * 8192 // 4 + 1000
    replay = state_of(world, "billing").replay
    assert replay is not None
    assert not replay.over
    assert 0 < replay.copied < 40
    for _ in range(40):
        billing.answering = True
        billing.turn_ended(billing.connection)
        world.settle()
    assert bodies == billing.copies
    assert not any(unaccounted(world))


@pytest.mark.parametrize("sends", [False, True])
def test_47_a_page_is_small_while_somebody_sends_and_waits_for_its_group(
    monkeypatch: pytest.MonkeyPatch, *, sends: bool
) -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    bodies = [bytes([n]) * 200_000 for n in range(1, 9)]
    for number, body in enumerate(bodies, 1):
        shop.transfer(number, "orders.new", [body])
        world.settle()
    world.settle(LIVE_FOR + 1)
    asked: list[int] = []
    replay = world.log.replay

    def counted(row: Replay, patterns: Any, size: int, *more: Any) -> Any:
        asked.append(size)
        return replay(row, patterns, size, *more)

    monkeypatch.setattr(world.log, "replay", counted)
    if sends:
        shop.transfer(9, "else", [b"something else"])
        world.settle()
    ask(shop, "rewind", name="billing")
    world.settle()
    assert bodies == billing.copies
    assert {LIVE_PAGE_BYTES if sends else PAGE_BYTES} == set(asked)


def test_47_a_page_takes_no_longer_than_others_may_wait_and_then_they_have_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a page costs is measured: 5 ms while somebody sends, and a rest twice as long."""
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    bodies = [bytes([n]) * 20_000 for n in range(1, 33)]
    for number, body in enumerate(bodies, 1):
        shop.transfer(number, "orders.new", [body])
        world.settle()
    asked: list[int] = []
    at: list[float] = []
    replay = world.log.replay

    def counted(row: Replay, patterns: Any, size: int, *more: Any) -> Any:
        asked.append(size)
        at.append(world.clock.seconds())
        return replay(row, patterns, size, *more)

    monkeypatch.setattr(world.log, "replay", counted)
    monkeypatch.setattr(Commits, "lasted", property(lambda _: Lasted(0.08, 0.02)))
    shop.transfer(33, "else", [b"something else"])
    world.settle()
    ask(shop, "rewind", name="billing")
    for number in range(34, 104):
        shop.transfer(number, "else", [b"something else"])
        world.settle(0.05)
    assert bodies == billing.copies
    assert LIVE_PAGE_BYTES == asked[0]
    assert PAGE_BYTES_LEAST == asked[-1]
    # Each page is followed by a rest of 0.2 s; the one behind it is read meanwhile.
    spans = [later - before for before, later in itertools.pairwise(at[1:])]
    assert min(spans) >= 0.19


def test_47_a_rewind_goes_on_for_a_receiver_that_comes_back() -> None:
    world = NodeWorld(SmallLimits(backlog_bytes=4096))
    shop, billing = world.peer("shop"), taking(world)
    bodies = [b"%d" % n * 60 for n in range(1, 61)]
    for n, body in enumerate(bodies, 1):
        shop.transfer(n, "orders.new", [body])
        world.settle()
    billing.connection.abort()
    world.settle()
    ask(shop, "rewind", name="billing")
    world.settle(5)
    assert (ask(shop, "replay", name="billing")["over"]) is False
    again = world.peer("billing", receive=SUBJECTS, kind=Taking, answering=True,
                       resume=Resume(floor=position_of(61)))  # fmt: skip
    assert isinstance(again, Taking)
    world.settle(5)
    assert bodies == again.copies


def test_47_a_rewind_is_called_off_and_what_was_copied_stays() -> None:
    world = NodeWorld(SmallLimits(backlog_bytes=4096))
    shop, billing = world.peer("shop"), taking(world)
    for n in range(1, 61):
        shop.transfer(n, "orders.new", [b"%d" % n * 60])
        world.settle()
    billing.answering = False
    ask(shop, "rewind", name="billing")
    world.settle()
    told = ask(shop, "rewind_cancel", name="billing")
    assert told["over"]
    assert told["next"] == told["end"] + 1
    assert 0 < told["copied"] < 60
    assert ask(shop, "rewind_cancel", name="billing") is None
    billing.answering = True
    billing.turn_ended(billing.connection)
    world.settle(2)
    assert told["copied"] == len(billing.copies)
    ask(shop, "rewind", name="billing")  # and another may begin
    world.settle()


@pytest.mark.parametrize("asked", ["before", "behind"])
def test_47_who_calls_a_rewind_off_while_the_node_stops_is_told_so(asked: str) -> None:
    clock = Clock()
    log = LateLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop")
    taking(world)
    send(shop, range(1, 4))
    log.is_late = True
    ask(shop, "rewind", name="billing")  # its first page is being read
    told: list[Any] = []

    def call_off() -> None:
        ending = Deferred.fromCoroutine(world.node.parts.operations.call_off("billing"))
        ending.addBoth(told.append)

    if asked == "before":
        call_off()
        world.settle()
        assert not told
    world.node.stopService()
    if asked == "behind":
        call_off()
    world.settle()
    (failure,) = told
    assert isinstance(failure.value, LogUnavailable)
    assert "the node stops" == str(failure.value)
    world.settle(Limits().stop_timeout)
    assert not world.node.is_running


def test_47_what_cannot_be_rewound_is_refused_and_says_why() -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    send(shop, range(1, 4))
    assert "unknown receiver 'x'" in refused(shop, "rewind", name="x")
    nine, four, three, two = map(position_of, (9, 4, 3, 2))
    assert f"first is {nine}, and the log ends at {four - 1}" == refused(
        shop, "rewind", name="billing", first=nine
    )
    assert f"end is {two}, which lies before the first, {three}" == refused(
        shop, "rewind", name="billing", first=three, end=two
    )
    assert "no time" in refused(shop, "rewind", name="billing", first="@yesterday")
    assert "no time zone" in refused(shop, "rewind", name="billing", first="@2026-11-29T07:00")
    assert "nowhere" in refused(shop, "rewind", name="billing", first="nowhere")
    assert (
        "suspended asks for what a receiver was left out of while it was suspended:"
        " receiver 'billing' was left out of nothing"
    ) == refused(shop, "rewind", name="billing", suspended=True)
    assert "unknown receiver 'x'" in refused(shop, "rewind_cancel", name="x")
    billing.answering = False
    send(shop, range(4, 5))
    world.node.parts.replayer.stop()  # as if it were slow
    ask(shop, "rewind", name="billing")
    assert "runs already" in refused(shop, "rewind", name="billing")


def test_47_a_rewind_begins_at_a_message_or_a_time() -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    wall = world.node.time.wall
    send(shop, (1,))
    world.settle(10)
    middle = datetime.fromtimestamp(wall() / 1000 + 0, UTC)
    send(shop, (2,))
    world.settle(10)
    last = datetime.fromtimestamp(wall() / 1000, UTC)
    send(shop, (3,))
    ask(shop, "rewind", name="billing", first=f"@{middle.isoformat()}", end=f"@{last.isoformat()}")
    world.settle()
    assert [b"2"] == billing.copies
    counted = ask(shop, "rewind_count", name="billing", first=f"@{last.isoformat()}")
    assert (1, True) == (counted["copied"], counted["over"])
    ask(shop, "rewind", name="billing", first=f"log:{position_of(3)}")
    world.settle()
    assert [b"2", b"3"] == billing.copies


def test_47_what_is_kept_no_more_is_refused_or_begins_later() -> None:
    world = NodeWorld(SmallLimits(keep_seconds=0, keep_bytes=0))
    shop, billing = world.peer("shop"), taking(world)
    send(shop, range(1, 4))
    world.settle(5)
    assert "nothing is kept" in refused(shop, "rewind", name="billing")
    billing.answering = False
    send(shop, range(4, 6))
    told = ask(shop, "rewind", name="billing")
    assert told["first"] == told["kept_from"] == position_of(4)


def test_47_a_full_log_holds_a_replay_up_and_says_so() -> None:
    world = NodeWorld(SmallLimits(max_bytes=200_000, keep_bytes=0))
    shop, billing = world.peer("shop"), taking(world)
    body = b"x" * 20_000
    for n in range(1, 9):
        shop.transfer(n, "orders.new", [body])
        world.settle()
    full = lambda: "the disk says no"  # noqa: E731
    world.log._store.fullness = full  # type: ignore[method-assign]  # a full disk
    world.log._store._full = "the disk says no"
    ask(shop, "rewind", name="billing")
    world.settle()
    assert "the disk says no" in ask(shop, "replay", name="billing")["waits"]
    assert [] == billing.copies
    del world.log._store.fullness
    world.log._store._full = None
    world.settle(3)
    assert [body] * 8 == billing.copies
    assert not any(unaccounted(world))


def test_47_a_removal_ends_a_replay() -> None:
    world = NodeWorld(SmallLimits(backlog_bytes=4096))
    shop, billing = world.peer("shop"), taking(world)
    for n in range(1, 31):
        shop.transfer(n, "orders.new", [b"%d" % n * 60])
        world.settle()
    billing.answering = False
    ask(shop, "rewind", name="billing")
    removed = Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle(3)
    assert removed.called
    assert "unknown receiver" in refused(shop, "replay", name="billing")
    again = taking(world)
    bodies = send(shop, range(31, 33))
    assert bodies == again.all
    assert not any(unaccounted(world))


def test_47_others_go_on_when_receivers_are_removed_whose_pages_are_read() -> None:
    clock = Clock()
    log = LateLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop")
    first = [f"first{n}" for n in range(PAGES)]
    for name in first:
        taking(world, name)
    last = taking(world, "last")
    bodies = send(shop, range(1, 4))
    log.is_late = True
    for name in (*first, "last"):
        ask(shop, "rewind", name=name)
    for name in first:
        removed = Deferred.fromCoroutine(world.node.remove_receiver(name))
        world.settle()
        assert removed.called
    assert [] == last.copies
    log.go_on()  # nobody stores anything any more
    world.settle()
    assert bodies == last.copies


def test_47_a_group_that_failed_repeats_no_page() -> None:
    log = FailingLog(DictLog(reactor=(clock := Clock()), limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop, billing = world.peer("shop"), taking(world)
    bodies = send(shop, range(1, 30))
    ask(shop, "rewind", name="billing")
    log.fail_next = True
    world.settle(5)
    assert bodies == billing.copies


# --- start ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["first", 0, position_of(1), "@1970-01-01T00:00:00Z"])
def test_9_a_new_receiver_has_history_first_and_then_what_is_new(start: str | int) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    taking(world, "other")
    history = send(shop, range(1, 20))
    billing = taking(world, start=start)
    new = send(shop, range(20, 30))
    assert [*history, *new] == billing.all
    assert history == billing.copies
    assert not any(unaccounted(world))
    assert [] == audit(world)


@pytest.mark.parametrize(("start", "first"), [("new", 20), (None, 20), (position_of(11), 11)])
def test_9_it_begins_where_it_says(start: str | int | None, first: int) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    send(shop, range(1, 20))
    billing = taking(world, start=start)
    send(shop, range(20, 22))
    assert [b"%d" % n for n in range(first, 22)] == billing.all


def test_9_it_begins_at_a_time() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    send(shop, range(1, 3))
    world.settle(10)
    at = datetime.fromtimestamp(world.node.time.wall() / 1000, UTC)
    send(shop, range(3, 5))
    assert [b"3", b"4"] == taking(world, start=f"@{at.isoformat()}").all


def test_9_start_counts_only_when_a_receiver_is_first_made() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    send(shop, (1,))
    billing = taking(world)
    billing.connection.abort()
    world.settle()
    again = taking(world, start="first")
    send(shop, (2,))
    assert [b"2"] == again.all


@pytest.mark.parametrize("at_group", range(1, 18))
@pytest.mark.parametrize("fails", [False, True])
def test_48_who_starts_and_gets_more_subjects_has_each_message_once(
    at_group: int, fails: bool
) -> None:
    """While any group of its history is written: as what is retained, or as history, not twice."""
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(SmallLimits(backlog_bytes=4096), log=log, clock=clock)
    shop = world.peer("shop")
    for number in range(1, 41):
        subject = f"prices.{number}" if number % 2 else "orders.new"
        flags = FLAG_RETAIN if number % 2 else 0
        shop.transfer(number, subject, [b"%02d" % number * 200], flags=flags)
        world.settle()
    groups, append = 0, log.append

    def counted(group: Group) -> Any:
        nonlocal groups
        groups += 1
        if groups == at_group:
            both = ["orders.>", "prices.>"]
            change = world.node.parts.receivers.change
            clock.callLater(0, ensureDeferred, change("billing", patterns=both))
            log.fail_next = fails
        return append(group)

    log.append = counted  # type: ignore[method-assign]  # counts
    billing = taking(world, start="first")
    for _ in range(12):
        world.settle(1)
    assert groups >= at_group
    shop.transfer(41, "prices.41", [b"end"])
    world.settle()
    assert [*range(1, 41)] == sorted(int(body[:2]) for body in billing.all[:-1])
    assert b"end" == billing.all[-1]
    assert [] == audit(world)


@pytest.mark.parametrize(
    "start", ["last", "@soon", "@2026-11-29T07:00", position_of(77), "@99999-01-01T00:00:00Z"]
)
def test_9_a_start_that_cannot_be_makes_no_receiver(start: str | int) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    send(shop, (1,))
    billing = world.peer("billing", receive=SUBJECTS | {"start": start})
    assert "start = " in (billing.lost_because or "")
    assert "unknown receiver" in refused(shop, "replay", name="billing")


def test_9_what_a_sender_addressed_to_others_is_no_history() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    taking(world, "other")
    shop.transfer(1, "orders.new", [b"secret"], to=["other"])
    shop.transfer(2, "orders.new", [b"open"])
    shop.transfer(3, "elsewhere", [b"other"])
    world.settle()
    assert [b"open"] == taking(world, start="first").all


def test_9_a_receiver_that_starts_is_in_no_audience() -> None:
    """What is addressed to it waits with its sender, in its order, until it has its history."""
    world = NodeWorld(SmallLimits(backlog_bytes=4096))
    shop = world.peer("shop")
    for n in range(1, 61):
        shop.transfer(n, "orders.new", [b"%d" % n * 60])
        world.settle()
    world.peer("billing", receive=SUBJECTS | {"start": "first"})
    row = world.node.parts.directory.named("billing")
    assert world.node.parts.replayer.runs(row.number)
    assert row.number not in world.node.parts.directory.audience("orders.new").members
    with pytest.raises(Exception, match="history"):
        world.node.parts.directory.audience_of(["billing"])


def test_9_history_and_what_comes_meanwhile_have_no_gap_under_load() -> None:
    """Messages come in every turn, so that there is always one more than was read."""
    world = NodeWorld(SmallLimits(backlog_bytes=16 * 1024))
    shop = world.peer("shop")
    sent = [b"%d" % n * 20 for n in range(1, 301)]
    for n, body in enumerate(sent, 1):
        shop.transfer(n, "orders.new", [body])
    world.settle()
    hello = SUBJECTS | {"start": "first"}
    billing = world.peer("billing", receive=hello, kind=Taking, answering=True)
    assert isinstance(billing, Taking)
    number = 301
    for _ in range(400):
        shop.transfer(number, "orders.new", [body := b"%d" % number * 20])
        sent.append(body)
        number += 1
        world.clock.advance(0)
        world.clock.advance(0.0005)
    world.settle(2)
    assert sent == billing.all
    assert 300 <= len(billing.copies) < 700
    assert not any(unaccounted(world))
    assert [] == audit(world)


def test_9_a_start_is_called_off_and_the_receiver_has_what_is_new_from_then_on() -> None:
    world = NodeWorld(SmallLimits(backlog_bytes=4096))
    shop = world.peer("shop")
    for n in range(1, 61):
        shop.transfer(n, "orders.new", [b"%d" % n * 60])
    world.settle()
    billing = world.peer("billing", receive=SUBJECTS | {"start": "first"})
    told = ask(shop, "rewind_cancel", name="billing")
    assert (START, True) == (told["kind"], told["over"])
    shop.transfer(61, "orders.new", [b"new"])
    world.settle()
    billing.answering = True
    billing.turn_ended(billing.connection)
    world.settle(2)
    assert 1 == state_of(world, "billing").routed - told["copied"]
    assert not any(unaccounted(world))


# --- suspended -----------------------------------------------------------------------------------


def suspended_world() -> tuple[NodeWorld, ScriptedPeer, Taking, list[bytes]]:
    """`billing` was suspended, left out of some messages, and has caught up."""
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    change = {"name": "billing", "on_full": "suspend", "backlog_bytes": 4096}
    assert shop.request("$node.receivers.change", change)[0]
    billing.answering = False
    bodies = [b"%d" % n * 300 for n in range(1, 41)]
    for n, body in enumerate(bodies, 1):
        shop.transfer(n, "orders.new", [body])
        world.settle(0.3)
    assert state_of(world, "billing").suspended
    return world, shop, billing, bodies


def test_18_what_a_suspended_receiver_was_left_out_of_is_counted_and_sent_on_request() -> None:
    world, shop, billing, bodies = suspended_world()
    state = state_of(world, "billing")
    assert state.left_out is not None
    left = len(bodies) - state.routed
    assert (left, True) == (state.left_out.messages, state.left_out.counted)
    billing.answering = True
    billing.turn_ended(billing.connection)
    world.settle(3)
    state = state_of(world, "billing")
    assert not state.suspended
    assert state.left_out is not None
    assert left == state.left_out.messages
    shop.transfer(41, "orders.new", [b"new"])
    world.settle()
    had = len(billing.all)
    counted = ask(shop, "rewind_count", name="billing", suspended=True)
    assert (LEFT_OUT, left) == (counted["kind"], counted["copied"])
    ask(shop, "rewind", name="billing", suspended=True)
    world.settle(5)
    assert bodies[-left:] == billing.all[had:] == billing.copies
    state = state_of(world, "billing")
    assert state.left_out is None
    assert not any(unaccounted(world))
    assert [] == audit(world)


def test_18_the_rest_stays_left_out_where_that_is_called_off() -> None:
    world, shop, billing, bodies = suspended_world()
    left = state_of(world, "billing").left_out
    assert left is not None
    billing.answering = True
    billing.turn_ended(billing.connection)
    world.settle(3)
    billing.answering = False
    ask(shop, "rewind", name="billing", suspended=True)
    told = ask(shop, "rewind_cancel", name="billing")
    rest = state_of(world, "billing").left_out
    assert rest is not None
    assert left.messages == told["copied"] + rest.messages
    billing.answering = True
    billing.turn_ended(billing.connection)
    world.settle(3)
    ask(shop, "rewind", name="billing", suspended=True)
    world.settle(5)
    assert bodies[-left.messages :] == billing.copies


# --- the end of the process ----------------------------------------------------------------------


class Noted(DictLog):
    """A log that keeps what a disk would have before each of its groups."""

    def __init__(self, *, reactor: Clock, limits: Limits) -> None:
        super().__init__(reactor=reactor, limits=limits)
        self.moments: list[Content] = []

    def append(self, group: Group) -> Deferred[Any]:
        self.moments.append(copy.deepcopy(self.content))
        return super().append(group)


@pytest.mark.parametrize("kind", [REWIND, START, LEFT_OUT])
def test_47_kill_9_before_any_group_neither_repeats_nor_skips(kind: str) -> None:
    limits = SmallLimits(backlog_bytes=4096)
    clock = Clock()
    log = Noted(reactor=clock, limits=limits)
    world = NodeWorld(limits, log=log, clock=clock)
    shop = world.peer("shop")
    taking(world, "other")
    if kind != START:
        taking(world)
    bodies = [b"%d" % n * 60 for n in range(1, 41)]
    for n, body in enumerate(bodies, 1):
        if kind == LEFT_OUT:
            row = world.node.parts.directory.named("billing")
            if n in (10, 31):
                world.node.parts.receivers.set_suspended(row, n == 10)
                world.settle()
        shop.transfer(n, "orders.new", [body])
        world.settle()
    expected = bodies[9:30] if kind == LEFT_OUT else bodies
    begin = len(log.moments)
    if kind == START:
        taking(world, start="first")
    else:
        ask(shop, "rewind", name="billing", suspended=kind == LEFT_OUT)
    world.settle(2)
    moments = log.moments[begin:]
    assert len(moments) > 5
    done = 0
    for moment in [*moments, log.content]:
        clock = Clock()
        after = DictLog(reactor=clock, limits=limits, content=moment)
        again = NodeWorld(limits, log=after, clock=clock)
        if not after.content.replays:
            continue  # it had not begun
        again.peer("billing", receive=SUBJECTS, kind=Taking, answering=True)
        again.settle(5)
        copies = [
            message.body
            for batch in after.content.batches.values()
            if batch.options.flags & FLAG_REPLAY
            for message in decode_messages(batch.messages)
        ]
        assert expected == copies
        assert not any(unaccounted(again))
        late = again.peer("late")
        late.transfer(1, "orders.new", [b"late"])
        again.settle(1)
        members = list(after.content.batches.values())[-1].audience.members
        assert again.node.parts.directory.named("billing").number in members
        done += 1
    assert done > 4


def test_47_an_audience_that_finds_no_place_is_waited_for() -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), taking(world)
    taking(world, "other")
    bodies = send(shop, range(1, 4))
    real = world.node.parts.directory.audience_alone
    asked: list[Any] = []

    def full(row: Any) -> Any:
        asked.append(row)
        if len(asked) == 1:  # when it begins
            return real(row)
        raise LimitReached("audiences", 1)

    world.node.parts.directory.audience_alone = full  # type: ignore[method-assign]
    ask(shop, "rewind", name="billing")
    world.settle()
    assert "audiences" in ask(shop, "replay", name="billing")["waits"]
    world.node.parts.directory.audience_alone = real  # type: ignore[method-assign]
    world.settle(2)
    assert bodies == billing.copies


def test_19_a_rewind_that_has_no_place_keeps_no_history_and_one_that_has_keeps_it() -> None:
    """Or it would keep the history that is to make room for it, and wait for that for ever."""
    limits = SmallLimits(audiences=4, keep_seconds=3600.0)
    world = NodeWorld(limits)
    shop, billing = world.peer("shop"), taking(world)
    for number, name in enumerate(("first", "second", "third", "fourth"), 1):
        taking(world, name)
        send(shop, [number])  # to one more: a set of its own
    assert 4 == len(world.log._store.state.totals)
    assert "audiences = 4" in refused(shop, "rewind", name="billing")
    assert ask(shop, "replay", name="billing") is None
    for _ in range(200):
        world.settle(1)  # history makes room
        if shop.request("$node.receivers.rewind", {"name": "billing"})[0]:
            break
    else:
        pytest.fail("no room is made")
    directory = world.node.parts.directory
    (row,) = [one for one in directory if one.name == "billing"]
    world.settle(2)
    assert ask(shop, "replay", name="billing")["over"]
    assert not directory.audience_alone(row).waiting
    assert billing.copies


def test_19_a_start_that_has_no_place_is_refused_and_keeps_no_history() -> None:
    limits = SmallLimits(audiences=4, keep_seconds=3600.0)
    world = NodeWorld(limits)
    shop = world.peer("shop")
    for number, name in enumerate(("first", "second", "third", "fourth"), 1):
        taking(world, name)
        send(shop, [number])  # to one more: a set of its own
    assert 4 == len(world.log._store.state.totals)
    for _ in range(200):
        late = taking(world, "late", start="first")
        world.settle(1)  # history makes room, and it comes again
        if late.node_hello is not None:
            break
        assert "audiences = 4" in str(late.lost_because)
        assert world.node.parts.directory.get("late") is None
    else:
        raise AssertionError("there never was a place")
    number = world.node.parts.directory.named("late").number
    told = world.node.parts.replayer.of(number)
    for _ in range(20):
        world.settle(1)
        told = world.node.parts.replayer.of(number)
    assert told is not None
    assert (True, "") == (told[0].is_over, told[1])
    assert not any(unaccounted(world))


def test_19_what_a_node_has_lost_is_sent_again_once_there_is_a_place() -> None:
    limits = SmallLimits(audiences=4, keep_seconds=3600.0)
    world = NodeWorld(limits)
    shop, billing = world.peer("shop"), taking(world)
    for number, name in enumerate(("first", "second", "third", "fourth"), 1):
        taking(world, name)
        send(shop, [number])  # to one more: a set of its own
    row = world.node.parts.directory.named("billing")
    lost = (position_of(4), position_of(4))

    def compare() -> Deferred[None]:
        receivers = world.node.parts.receivers
        return Deferred.fromCoroutine(receivers.forgotten(row, [lost], is_empty=False))

    refusals: list[Any] = []
    compare().addErrback(refusals.append)
    world.settle()
    (failure,) = refusals
    assert failure.check(LimitReached)
    assert not world.node.parts.replayer.runs(row.number)
    for _ in range(200):
        world.settle(1)  # history makes room
        refusals.clear()
        compare().addErrback(refusals.append)
        world.settle()
        if not refusals:
            break
    else:
        raise AssertionError("there never was a place")
    world.settle(1)
    assert [b"4"] == billing.copies


def test_19_the_place_of_a_replay_is_kept_as_long_as_it_runs_also_after_a_start() -> None:
    world = NodeWorld()
    taking(world)
    directory, replayer = world.node.parts.directory, world.node.parts.replayer
    row = directory.named("billing")
    replayer.stop()  # it copies nothing
    for begins in (
        lambda: replayer.load([Replay(row.number, REWIND, 0, 0, 5)]),
        lambda: ensureDeferred(world.node.parts.receivers.rewind("billing", 0, 5)),
    ):
        begins()
        directory.collect()
        assert directory.audience_alone(row).waiting
        replayer.forget(row.number)
        assert not directory.audience_alone(row).waiting


def test_47_a_replay_of_a_receiver_that_nobody_knows_is_let_go() -> None:
    world = NodeWorld()
    world.node.parts.replayer.load([Replay(77, REWIND, 0, 0, 5)])
    assert world.node.parts.replayer.of(77) is None


# --- where the copies are


def copies_told(world: NodeWorld, id_: str, name: str = "billing") -> tuple[int | None, str]:
    """Return which copy `status` tells of, and what `why` says."""
    asks = world.peer("asks")
    ok, status = asks.request("$node.status", {"id": id_})
    assert ok, status
    ok, why = asks.request("$node.why", {"id": id_})
    assert ok, why
    (cause,) = [one for one in why["causes"] if one["receiver"] == name]
    assert cause["copy"] == status["receivers"][name]["copy"]
    return cause["copy"], cause["sentence"]


@pytest.mark.parametrize("kind", [MemoryLog, DictLog])
def test_54_a_message_that_was_rewound_tells_of_its_newest_copy(kind: Any) -> None:
    clock = Clock()
    world = NodeWorld(log=kind(reactor=clock, limits=Limits()), clock=clock)
    shop, _, other = world.peer("shop"), taking(world), taking(world, "other")
    messages = [b"1", b"2", b"3"]
    shop.transfer(1, "orders.new", messages)
    shop.transfer(4, "orders.old", [b"4"])
    world.settle()
    own = f"shop/{hash_of(shop.hello.incarnation)}"
    assert (None, "billing has acknowledged it.") == copies_told(world, f"{own}/2")
    ask(shop, "rewind", name="billing", first=position_of(1, 1), end=position_of(1, 2))
    world.settle()
    assert (
        position_of(3),
        f"billing has acknowledged it. It was sent again, as log:{position_of(3)}.",
    ) == copies_told(world, f"{own}/2")
    assert position_of(3, 1) == copies_told(world, f"log:{position_of(1, 2)}")[0]
    assert {None} == {copies_told(world, f"{own}/{n}")[0] for n in (1, 4)}
    assert None is copies_told(world, f"{own}/2", "other")[0]
    ask(shop, "rewind", name="billing", first=position_of(1))
    world.settle()
    assert [4, 4, 4, 5] == [(copies_told(world, f"{own}/{n}")[0] or 0) >> 16 for n in range(1, 5)]
    assert [*messages, b"4"] == other.all


# --- what the user of a receiver may receive

SHOP = User(name="shop", rules=Rules(send=[">"], to=[">"]))
OPS = User(name="ops", rules=Rules(request=["$node.>"]))
WIDE = User(name="billing", rules=Rules(receive=["orders.>", "secret.>"]))
NARROW = User(name="billing", rules=Rules(receive=["orders.>"]))
OTHER = User(name="other", names=("other", "billing"), rules=Rules(receive=["orders.>"]))
BOTH = {"subjects": ["orders.>", "secret.>"]}


def as_user(world: NodeWorld, user: str, name: str = "", **more: Any) -> Any:
    return world.peer(name or user, door=Door(asks=False, user=user), shown=HERE, **more)


def as_billing(world: NodeWorld, user: str, subjects: dict[str, Any], **more: Any) -> Taking:
    return as_user(  # type: ignore[no-any-return]  # it is of this kind
        world, user, "billing", receive=subjects, kind=Taking, **({"answering": True} | more)
    )


@pytest.mark.parametrize("log", [None, DictLog])
@pytest.mark.parametrize("taken_by", ["a reload", "its new user"])
def test_32_a_rewind_sends_nothing_that_the_user_may_not_receive(log: Any, taken_by: str) -> None:
    clock = Clock()
    world = NodeWorld(
        users=users_of(SHOP, OPS, WIDE, OTHER),
        clock=clock,
        log=log and log(reactor=clock, limits=Limits()),
    )
    billing = as_billing(world, "billing", BOTH)
    shop = as_user(world, "shop")
    shop.transfer(1, "orders.new", [b"order"])
    shop.transfer(2, "secret.x", [b"secret"])
    shop.transfer(3, "secret.x", [b"for billing"], to=("billing",))
    world.settle()
    assert [b"order", b"secret", b"for billing"] == billing.all
    if taken_by == "a reload":
        world.node.reload_users(users_of(SHOP, OPS, NARROW, OTHER))
    else:
        Deferred.fromCoroutine(world.node.parts.receivers.own("billing", "other"))
    world.settle()
    user = "billing" if taken_by == "a reload" else "other"
    again = as_billing(world, user, SUBJECTS, resume=Resume(floor=position_of(4)), incarnation="i1")
    ops = as_user(world, "ops")
    assert 2 == ask(ops, "rewind_count", name="billing")["copied"]
    ask(ops, "rewind", name="billing")
    world.settle()
    assert [b"order", b"for billing"] == again.copies
    assert not any(unaccounted(world))


def test_32_history_that_was_read_before_a_right_was_taken_away_is_not_copied_after() -> None:
    world = NodeWorld(SmallLimits(backlog_bytes=8192), users=users_of(SHOP, OPS, WIDE))
    shop = as_user(world, "shop")
    for number in range(1, 101):
        shop.transfer(number, "secret.x", [b"%d" % number * 100])
        world.settle()
    shop.transfer(101, "orders.new", [b"order"])
    world.settle()
    as_billing(world, "billing", BOTH | {"start": "first"}, answering=False)
    world.settle(5)
    before = state_of(world, "billing").replay
    assert before is not None
    assert 0 < before.copied < 60
    assert not before.over
    world.node.reload_users(users_of(SHOP, OPS, NARROW))
    world.settle()
    as_billing(world, "billing", SUBJECTS, incarnation="i2")
    world.settle(10)
    after = state_of(world, "billing").replay
    assert after is not None
    assert after.over
    assert before.copied + 1 == after.copied
