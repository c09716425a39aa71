"""Delayed messages at a node: accepted, told, moved when due, cancelled (DELIVERY 43, 44)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from msgservice.core.frames import Ack, AudienceFrame, Nack, Routed, Transfer
from msgservice.errors import LimitReached, LogUnavailable
from msgservice.identity.rules import Rules
from msgservice.identity.users import User, Users
from msgservice.limits import BATCH_MESSAGES_MAX, TIME_DAYS_MAX
from msgservice.log.memory import MemoryLog
from msgservice.message import FLAG_RETAIN, FLAG_RETAIN_ONLY, Action, Status, decode_messages
from msgservice.node import delayed
from msgservice.node.commits import Commits, Lasted
from msgservice.node.delayed import BEGIN
from msgservice.node.dispatch import Dispatch
from msgservice.node.gate import Door
from msgservice.records import Resume, hash_of
from tests.kit.inline import by_append
from tests.kit.limits import Limits
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

MINUTE = 60_000
DELAY_MAX = TIME_DAYS_MAX * 24 * 3600


def world_with(log: Any = None, **more: Any) -> tuple[NodeWorld, ScriptedPeer, ScriptedPeer]:
    world = NodeWorld(log=log, **more)
    billing = world.peer("billing", receive={"subjects": ["orders.>"]}, resume=Resume())
    return world, billing, world.peer("shop", status_from=1)


def send(
    peer: ScriptedPeer, sequence: int, *bodies: bytes, delay: int | None = MINUTE, **fields: Any
) -> None:
    peer.transfer(sequence, "orders.new", list(bodies) or [b"one"], delay=delay, **fields)
    peer.world.settle()


def later(world: NodeWorld, seconds: float) -> None:
    world.settle(seconds)


def got(peer: ScriptedPeer) -> list[bytes]:
    """Return the bodies that came, which are acknowledged now."""
    bodies = []
    while transfers := peer.take(Transfer):
        for transfer in transfers:
            bodies += [message.body for message in decode_messages(transfer.messages)]
            peer.ack(transfer)
        peer.world.settle()
    return bodies


def test_43_it_is_acknowledged_and_told_when_it_is_due_and_delivered_then() -> None:
    world, billing, shop = world_with()
    now = world.node.parts.due.now()
    send(shop, 1, b"one", b"two")
    (waits,) = shop.take(Routed)
    assert (1, 2, 0) == (waits.first, waits.last, waits.position)
    assert now + MINUTE == waits.due
    assert [AudienceFrame(waits.audience, [])] == shop.take(AudienceFrame)
    assert [[(1, 2)]] == [frame.ranges for frame in shop.take(Ack)]
    later(world, 59.9)
    assert [] == got(billing)
    later(world, 0.2)
    (transfer,) = billing.take(Transfer)
    (routed,) = shop.take(Routed)
    assert (1, 2, 0) == (routed.first, routed.last, routed.due)
    assert routed.position == transfer.sequence
    assert [["billing"]] == [frame.receivers for frame in shop.take(AudienceFrame)]
    billing.ack(transfer)
    world.settle()
    assert {("billing", Status.ACKNOWLEDGED): [(1, 2)]} == shop.statuses()


def test_16_it_holds_up_nobody_and_goes_in_the_order_in_which_it_is_due() -> None:
    world, billing, shop = world_with()
    send(shop, 1, b"in two minutes", delay=2 * MINUTE)
    send(shop, 2, b"in a minute")
    send(shop, 3, b"now", delay=None)
    send(shop, 4, b"no delay", delay=0)
    assert [b"now", b"no delay"] == got(billing)
    later(world, 60.1)
    assert [b"in a minute"] == got(billing)
    later(world, 60)
    assert [b"in two minutes"] == got(billing)


def test_16_who_gets_it_is_decided_when_it_is_due() -> None:
    world, billing, shop = world_with()
    send(shop, 1)
    other = world.peer("other", receive={"subjects": ["orders.>"]}, resume=Resume())
    world.settle()
    later(world, 60.1)
    assert [b"one"] == got(other) == got(billing)


def test_43_whom_it_names_is_decided_when_it_is_accepted() -> None:
    world, _, shop = world_with()
    send(shop, 1, to=("billing",))
    send(shop, 2, b"two", to=("nobody",))
    (nack,) = shop.take(Nack)
    assert (2, Action.REFUSED) == (nack.first, nack.action)
    Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle(1)
    world.peer("billing", receive={"subjects": ["else"]}, resume=Resume())
    later(world, 60.1)
    assert {("billing", Status.REMOVED): [(1, 1)]} == shop.statuses()


def test_43_a_sender_that_comes_back_is_told_what_waits_and_then_what_became_of_it() -> None:
    world, billing, shop = world_with()
    send(shop, 1, b"one", b"two")
    shop.connection.abort()
    world.settle()
    again = world.peer("shop", status_from=1)
    world.settle()
    (waits,) = again.take(Routed)
    assert waits.due
    send(again, 1, b"one", b"two")  # it had not heard the answer
    assert {waits.due} == {frame.due for frame in again.take(Routed)}
    assert [] == got(billing)
    later(world, 60.1)
    (routed,) = again.take(Routed)
    assert (0, True) == (routed.due, routed.position > 0)
    assert [b"one", b"two"] == got(billing)
    assert {("billing", Status.ACKNOWLEDGED): [(1, 2)]} == again.statuses()
    send(again, 1, b"one", b"two")
    assert [] == got(billing)
    assert {routed.position} == {frame.position for frame in again.take(Routed)}


def test_43_it_waits_on_over_a_restart() -> None:
    world, billing, shop = world_with()
    send(shop, 1)
    later(world, 30)
    world.node.stopService()
    world.settle(1)
    world.start()
    billing = world.peer("billing", receive={"subjects": ["orders.>"]}, resume=Resume())
    later(world, 25)
    assert [] == got(billing)
    later(world, 10)
    assert [b"one"] == got(billing)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"delay": DELAY_MAX * 1000 + 1}, "366 days"),
        ({"flags": FLAG_RETAIN_ONLY}, "retain"),
        ({"flags": FLAG_RETAIN, "to": ("billing",)}, "'to'"),
    ],
)
def test_44_what_cannot_be_is_refused_by_name_and_hurts_nobody(
    fields: dict[str, Any], reason: str
) -> None:
    world, _, shop = world_with()
    send(shop, 1, **fields)
    (nack,) = shop.take(Nack)
    assert Action.REFUSED == nack.action
    assert reason in nack.reason
    send(shop, 2, delay=DELAY_MAX * 1000)
    assert shop.take(Ack)
    assert world.node.log.next_due() is not None


def test_44_ttl_and_delay_count_from_one_moment_and_what_is_left_is_said_when_it_is_due() -> None:
    world, billing, shop = world_with()
    send(shop, 1, ttl=2 * MINUTE)
    later(world, 60.1)
    (came,) = billing.take(Transfer)
    assert came.ttl is not None
    assert MINUTE - 500 < came.ttl <= MINUTE
    billing.ack(came)
    world.settle()
    assert {("billing", Status.ACKNOWLEDGED): [(1, 1)]} == shop.statuses()


def test_44_one_that_was_moved_expires_where_it_was_not_delivered() -> None:
    world, billing, shop = world_with()
    billing.connection.abort()
    world.settle(60)  # it is known to be away
    send(shop, 1, ttl=2 * MINUTE)
    later(world, 60.1)
    (waits, told) = shop.take(Routed)
    assert (waits.position, told.position > 0) == (0, True)
    assert {} == shop.statuses()
    later(world, 63)
    assert {("billing", Status.EXPIRED): [(1, 1)]} == shop.statuses()
    assert [] == got(world.peer("billing", receive={"subjects": ["orders.>"]}, resume=Resume()))


def test_44_one_whose_time_is_over_when_it_is_due_expires_and_is_delivered_to_nobody() -> None:
    world, billing, shop = world_with()
    send(shop, 1, ttl=MINUTE // 2)
    (listed,) = shop.request("$node.delayed.list", {})[1]["delayed"]
    assert listed["expires"] == listed["due"] - MINUTE // 2
    later(world, 62)
    ((state, ranges),) = shop.statuses().items()
    assert (("billing", Status.EXPIRED), {(1, 1)}) == (state, set(ranges))
    assert [] == got(billing)


def test_44_what_expires_while_the_node_is_down_is_expired_after_the_start() -> None:
    world, billing, shop = world_with()
    send(shop, 1, b"over", ttl=2 * MINUTE)
    send(shop, 2, b"not over", ttl=100 * MINUTE)
    down(world)
    world.clock.advance(10 * 60)
    world.start()
    world.settle(1)
    billing = world.peer("billing", receive={"subjects": ["orders.>"]}, resume=Resume())
    assert [b"not over"] == got(billing)
    shop = world.peer("shop", status_from=1)
    assert {
        ("billing", Status.EXPIRED): [(1, 1)],
        ("billing", Status.ACKNOWLEDGED): [(2, 2)],
    } == shop.statuses()


def test_39_a_clock_a_year_ahead_at_a_start_and_back_again_takes_nothing_before_its_time() -> None:
    """Who sets it right within the minute has lost nothing; behind that, all is by the clock."""
    year = 365 * 24 * 3600.0
    world, billing, shop = world_with()
    billing.connection.abort()
    world.settle(60)
    send(shop, 1, b"later", delay=10 * MINUTE)
    send(shop, 2, b"lives on", delay=None, ttl=10 * MINUTE)
    send(shop, 3, b"kept", delay=10 * MINUTE, flags=FLAG_RETAIN)
    down(world)
    world.clock.rightNow += year
    world.start()
    for _ in range(30):
        world.settle(1)
    assert world.node.parts.due.is_held
    assert world.node.log.next_due() is not None
    down(world)
    world.clock.rightNow -= year
    world.start()
    world.settle(1)
    billing = world.peer("billing", receive={"subjects": ["orders.>"]}, resume=Resume())
    assert [b"lives on"] == got(billing)
    world.settle(400)
    assert [] == got(billing)
    world.settle(200)
    assert [b"later", b"kept"] == got(billing)
    again = world.peer("shop", status_from=1)
    assert {("billing", Status.ACKNOWLEDGED): [(1, 3)]} == again.statuses()


def test_39_a_minute_after_a_start_a_year_ahead_all_is_by_that_clock() -> None:
    world, billing, shop = world_with()
    billing.connection.abort()
    world.settle(60)
    send(shop, 1, b"later", delay=10 * MINUTE)
    send(shop, 2, b"over", delay=None, ttl=10 * MINUTE)
    down(world)
    world.clock.rightNow += 365 * 24 * 3600.0
    world.start()
    for _ in range(70):
        world.settle(1)
    assert world.node.log.next_due() is None
    billing = world.peer("billing", receive={"subjects": ["orders.>"]}, resume=Resume())
    assert [b"later"] == got(billing)
    again = world.peer("shop", status_from=1)
    world.settle(1)
    assert [(2, 2)] == again.statuses()["billing", Status.EXPIRED]


def down(world: NodeWorld) -> None:
    """Stop the node; its log stays."""
    stopped: list[Any] = []
    world.node.stopService().addCallback(stopped.append)
    for _ in range(100):
        world.clock.advance(0.1)
    assert stopped


def test_43_a_backlog_that_is_full_refuses_nothing_that_is_due_later() -> None:
    world, billing, shop = world_with()
    parts = world.node.parts
    parts.dispatch.full = lambda audience: "billing is too far behind"  # type: ignore[method-assign]  # as if it were
    send(shop, 1)
    send(shop, 2, b"two", to=("billing",))
    assert [] == shop.take(Nack)
    send(shop, 3, delay=None)
    assert 1 == len(shop.take(Nack))
    later(world, 60.1)
    assert [b"one", b"two"] == got(billing)


def test_43_what_has_no_place_for_its_receivers_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, billing, shop = world_with()
    send(shop, 1)
    shop.transfer(2, "orders.old", [b"two"], delay=MINUTE)
    world.settle()
    directory = world.node.parts.directory
    whole = directory.audience

    def audience(subject: str, path: Sequence[str] = ()) -> Any:
        if subject == "orders.new":
            raise LimitReached("audiences", 1)
        return whole(subject, path)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "audience", audience)
        later(world, 60.1)
        later(world, 3)
        assert [b"two"] == got(billing)
    later(world, 1.5)
    assert [b"one"] == got(billing)


def test_43_nothing_but_what_has_no_place_for_its_receivers_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that is due is left: the group that was to have it has nothing to store."""
    world, billing, shop = world_with()
    send(shop, 1)
    send(shop, 2, b"two", delay=2 * MINUTE)

    def audience(*_: object) -> Any:
        raise LimitReached("audiences", 1)

    with monkeypatch.context() as patch:
        patch.setattr(world.node.parts.directory, "audience", audience)
        later(world, 60.1)
        later(world, 3)
        assert [] == got(billing)
    later(world, 1.5)
    assert [b"one"] == got(billing)
    later(world, 60)
    assert [b"two"] == got(billing)


def test_what_is_due_waits_for_a_disk_that_fails() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world, billing, shop = world_with(log, clock=clock)
    send(shop, 1)
    log.fail_always = True
    later(world, 60.1)
    later(world, 5)
    assert [] == got(billing)
    log.fail_always = False
    for _ in range(4):
        later(world, 1)
    assert [b"one"] == got(billing)


# --- cancelling


def cancel(peer: ScriptedPeer, id_: str, **more: Any) -> tuple[bool, Any]:
    return peer.request("$node.delayed.cancel", {"id": id_, **more})


def test_49_what_is_cancelled_is_told_and_delivered_to_nobody() -> None:
    world, billing, shop = world_with()
    send(shop, 1, b"one", b"two", b"three")
    shop.take(Routed)
    shop.take(AudienceFrame)
    name = f"shop/{hash_of(shop.hello.incarnation)}/2"
    ok, told = cancel(shop, name, reason="no more")
    assert ok, told
    assert 1 == told["cancelled"]
    (routed,) = shop.take(Routed)
    assert (2, 2, 0, 0) == (routed.first, routed.last, routed.position, routed.due)
    assert [["$delayed"]] == [frame.receivers for frame in shop.take(AudienceFrame)]
    assert {("$delayed", Status.CANCELLED): [(2, 2)]} == shop.statuses()
    ok, status = shop.request("$node.status", {"id": name})
    assert ok, status
    assert "cancelled" == status["receivers"]["$delayed"]["status"]
    assert "no more" in status["receivers"]["$delayed"]["reason"]
    later(world, 60.1)
    assert [b"one", b"three"] == got(billing)
    shop.connection.abort()
    world.settle()
    again = world.peer("shop", status_from=1)
    world.settle()
    assert [(2, 2)] == again.statuses()["$delayed", Status.CANCELLED]
    assert 3 == sum(frame.last - frame.first + 1 for frame in again.take(Routed))


@pytest.mark.parametrize("id_", ["unknown", "shop/0000000000000000/1", "log:3", ""])
def test_what_does_not_wait_is_not_cancelled(id_: str) -> None:
    _, _, shop = world_with()
    send(shop, 1, delay=None)
    ok, told = cancel(shop, id_)
    assert not ok
    assert f"no message {id_!r} waits until it is due" in told
    ok, _ = cancel(shop, f"shop/{hash_of(shop.hello.incarnation)}/1")
    assert not ok


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_16_what_is_left_of_a_run_that_is_cancelled_in_part_when_it_is_due_keeps_its_order(
    cut: int,
) -> None:
    """The page with it was read before the cancel, and is moved behind it."""
    clock = Clock()
    world, billing, shop = world_with(SlowPages(reactor=clock, limits=Limits()), clock=clock)
    send(shop, 1, b"1", b"2", b"3", b"4")
    send(shop, 5, b"5")
    hashed = hash_of(shop.hello.incarnation)
    later(world, 60.05)
    assert cancel(shop, f"shop/{hashed}/{cut}")[0]
    later(world, 3.0)
    assert [b"%d" % number for number in range(1, 6) if number != cut] == got(billing)


class SlowPages(MemoryLog):
    """A log whose pages of what is due come a while after they were read."""

    def due(self, to: int, after: tuple[int, int], count_max: int) -> Deferred[Any]:
        waiter: Deferred[Any] = Deferred()
        reading = super().due(to, after, count_max)
        reading.addCallback(
            lambda page: self._reactor.callLater(0.2 if page else 0.0, waiter.callback, page)
        )
        return waiter


def test_49_more_than_are_cancelled_at_once_are_refused_and_wait_on() -> None:
    world, billing, shop = world_with()
    send(shop, 1)
    name = f"shop/{hash_of(shop.hello.incarnation)}/1"
    ok, told = cancel(shop, name, count=BATCH_MESSAGES_MAX + 1)
    assert not ok
    assert "count = 4097: at most 4096" in told
    later(world, 60.1)
    assert [b"one"] == got(billing)


@pytest.mark.parametrize("operation", ["status", "why", "undo"])
def test_43_a_message_that_is_moved_while_it_is_looked_for_is_found(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """It waits when the log is looked at, and is in the log when what waits is."""
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world, _, shop = world_with(log, clock=clock)
    send(shop, 1)
    log.hold = True
    later(world, 60.1)
    find = log.find

    def moved_since(*asked: Any) -> Deferred[Any]:
        found: Deferred[Any] = find(*asked)

        def later(one: Any) -> Deferred[Any]:
            log.release()
            return deferLater(clock, 0.1, lambda: one)

        return found.addCallback(later)

    monkeypatch.setattr(log, "find", moved_since, raising=False)
    name = f"shop/{hash_of(shop.hello.incarnation)}/1"
    shop.ask(f"$node.{operation}", {"id": name})
    world.settle(1)
    ok, told = shop.answer()
    assert ok, told
    assert "billing" in (told["receivers"] if "receivers" in told else told["causes"][0].values())


def test_what_was_moved_or_cancelled_is_not_cancelled() -> None:
    world, _, shop = world_with()
    send(shop, 1)
    send(shop, 2, delay=2 * MINUTE)
    hashed = hash_of(shop.hello.incarnation)
    later(world, 60.1)
    assert not cancel(shop, f"shop/{hashed}/1")[0]
    assert cancel(shop, f"shop/{hashed}/2")[0]
    assert not cancel(shop, f"shop/{hashed}/2")[0]


def test_what_waits_is_listed_in_the_order_in_which_it_is_due() -> None:
    _, _, shop = world_with()
    send(shop, 1, b"x", b"y", delay=2 * MINUTE)
    send(shop, 3, to=("billing",))
    ok, page = shop.request("$node.delayed.list", {})
    assert ok, page
    assert [3, 1] == [int(one["sender"].rpartition("/")[2]) for one in page["delayed"]]
    assert [["billing"], None] == [one["to"] for one in page["delayed"]]
    assert [1, 2] == [one["messages"] for one in page["delayed"]]
    ok, page = shop.request("$node.delayed.list", {"limit": 1})
    assert 1 == len(page["delayed"])
    ok, page = shop.request("$node.delayed.list", {"limit": 1, "after": page["next"]})
    assert [2] == [one["messages"] for one in page["delayed"]]
    ok, status = shop.request("$node.status", {"id": page["delayed"][0]["sender"]})
    assert ok, status
    assert (0, {}) == (status["position"], status["receivers"])
    assert page["delayed"][0]["due"] == status["due"]


def test_27_only_what_is_ones_own_is_cancelled_or_listed_without_the_right() -> None:
    rules = Rules(send=[">"])
    users = Users(
        [User(name=name, rules=rules) for name in ("anna", "bert")],
        secret=b"a secret of tests",
        passwords={},
    )
    world = NodeWorld(users=users)
    anna = world.peer("anna.shop", status_from=1, door=Door(asks=False, user="anna"))
    bert = world.peer("bert.shop", status_from=1, door=Door(asks=False, user="bert"))
    send(anna, 1)
    name = f"anna.shop/{hash_of(anna.hello.incarnation)}/1"
    ok, told = cancel(bert, name)
    assert not ok
    assert f"no message {name!r} waits until it is due" in told
    ok, page = bert.request("$node.delayed.list", {})
    assert [] == page["delayed"]
    ok, page = anna.request("$node.delayed.list", {})
    assert [name] == [one["sender"] for one in page["delayed"]]
    assert cancel(anna, name)[0]


def test_many_runs_due_at_once_are_moved_in_pages_and_in_order() -> None:
    world, billing, shop = world_with()
    for sequence in range(1, 1201):
        shop.transfer(sequence, "orders.new", [b"%d" % sequence], delay=MINUTE)
        if sequence % 100 == 0:
            world.settle()
            shop.frames.clear()
    world.settle()
    groups: list[int] = []
    append = world.node.log.append

    def counted(group: Any) -> Any:
        groups.append(len(group.due))
        return append(group)

    world.node.log.append = counted  # type: ignore[method-assign]  # counts
    by_append(world.node.log)
    later(world, 61)
    later(world, 1)
    assert [b"%d" % n for n in range(1, 1201)] == got(billing)
    assert [500, 500, 200] == [count for count in groups if count]
    assert world.node.log.next_due() is None
    # Its sender is told of each once, however many make a page.
    routed = [frame for frame in shop.take(Routed) if frame.position]
    assert list(range(1, 1201)) == [frame.first for frame in routed]


def pages_of(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for name in ("PAGE_FIRST", "PAGE_LEAST", "PAGE_MOST"):
        monkeypatch.setattr(delayed, name, count)


def test_a_page_of_what_is_due_is_as_large_as_its_turn_may_be_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """30 ms: what a run costs is taken from the pages before."""
    cost = [0.0]
    sizes: list[int] = []
    world, _, shop = world_with()
    monkeypatch.setattr(
        Commits, "lasted", property(lambda _: Lasted(0.001, cost[0] * (sizes or [0])[-1]))
    )
    for sequence in range(1, 4001):
        shop.transfer(sequence, "orders.new", [b"%d" % sequence], delay=MINUTE)
        if sequence % 100 == 0:
            world.settle()
            shop.frames.clear()
    world.settle()
    append = world.node.log.append

    def counted(group: Any) -> Any:
        if group.due:
            sizes.append(len(group.due))
            cost[0] = 0.00003 if sum(sizes) > 1500 else 0.00006
        return append(group)

    world.node.log.append = counted  # type: ignore[method-assign]  # counts
    by_append(world.node.log)
    later(world, 61)
    later(world, 5)
    assert 4000 == sum(sizes)
    # The first are read before anything is known; then 500 runs of 60 µs, and up to 1000 of 30.
    assert [500, 500, 500, 500] == sizes[:4]
    assert 500 < max(sizes[4:]) <= 1000
    assert sizes[3:-1] == sorted(sizes[3:-1])


def paged(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> tuple[FailingLog, NodeWorld, ScriptedPeer, ScriptedPeer]:
    """Return a world with so many runs that are due in a minute, and moved two at a time."""
    pages_of(monkeypatch, 2)
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world, billing, shop = world_with(log, clock=clock)
    for sequence in range(1, count + 1):
        shop.transfer(sequence, "orders.new", [b"%d" % sequence], delay=MINUTE)
    world.settle()
    return log, world, billing, shop


def test_43_the_next_page_is_written_before_anybody_is_told_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the writer does not wait while what it has written is told, nor the other way."""
    log, world, billing, _ = paged(monkeypatch, 6)
    happened: list[Any] = []
    append, stored = log.append, Dispatch.stored

    def counted(group: Any) -> Any:
        happened.append(len(group.due))
        return append(group)

    def told(dispatch: Dispatch, batches: list[Any]) -> None:
        happened.append("told")
        stored(dispatch, batches)

    monkeypatch.setattr(log, "append", counted)
    monkeypatch.setattr(Dispatch, "stored", told)
    log.hold = True
    later(world, 60.1)
    log.release()
    world.settle(1)
    assert [2, 2, "told"] == happened[:3]
    assert [b"%d" % n for n in range(1, 7)] == got(billing)


def test_43_nothing_overtakes_a_page_that_was_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    log, world, billing, _ = paged(monkeypatch, 7)
    log.hold = True
    later(world, 60.1)
    log.refuse()
    later(world, 0.5)
    assert [] == got(billing)
    for _ in range(4):
        later(world, 1)
    assert [b"%d" % n for n in range(1, 8)] == got(billing)
    assert log.next_due() is None


def test_43_nothing_overtakes_a_page_that_fails_while_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, world, billing, _ = paged(monkeypatch, 7)
    due = log.due

    def slow(*asked: Any) -> Deferred[Any]:
        reading: Deferred[Any] = due(*asked)
        if asked[1] == BEGIN:
            return reading
        return reading.addCallback(lambda page: deferLater(world.clock, 0.2, lambda: page))

    monkeypatch.setattr(log, "due", slow, raising=False)
    log.hold = True
    later(world, 60.05)
    log.refuse()
    for _ in range(6):
        later(world, 1)
    assert [b"%d" % n for n in range(1, 8)] == got(billing)
    assert log.next_due() is None


@pytest.mark.parametrize("held", [False, True])
def test_43_nothing_overtakes_a_page_that_waits_on_as_its_group_had_no_room_for_it(
    monkeypatch: pytest.MonkeyPatch, *, held: bool
) -> None:
    """The disk has room for the progress of a group, and none for what is due: that waits on."""
    log, world, billing, _ = paged(monkeypatch, 7)
    append = log._log.append
    left: list[Any] = []

    def without_room(group: Any) -> Any:
        if group.due and not left:
            left.extend(group.due)
            return append(msgspec.structs.replace(group, due=[]))
        return append(group)

    monkeypatch.setattr(log._log, "append", without_room)
    log.hold = held
    later(world, 60.1)
    log.release()
    for _ in range(4):
        later(world, 1)
    assert len(left) == 2
    assert [b"%d" % n for n in range(1, 8)] == got(billing)
    assert log.next_due() is None


@pytest.mark.parametrize("cut", [2, 4, 6, 8])
@pytest.mark.parametrize("held", [False, True])
def test_16_a_cancel_while_pages_are_written_keeps_the_order(
    monkeypatch: pytest.MonkeyPatch, cut: int, *, held: bool
) -> None:
    """Of the run that is written, of one that is handed over, of one that is read, and behind."""
    pages_of(monkeypatch, 1)
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world, billing, shop = world_with(log, clock=clock)
    for sequence in range(1, 11, 2):
        send(shop, sequence, b"%d" % sequence, b"%d" % (sequence + 1))
    if held:
        log.hold = True
        later(world, 60.1)
    else:
        later(world, 59.9)
    shop.ask("$node.delayed.cancel", {"id": f"shop/{hash_of(shop.hello.incarnation)}/{cut}"})
    later(world, 0.2)
    log.release()
    later(world, 3)
    came = [int(body) for body in got(billing)]
    assert sorted(came) == came
    assert {*range(1, 11)} - {cut} <= {*came}
    assert (cut in came) is not shop.answer()[0]


def test_a_sender_without_room_is_told_of_each_run_that_was_moved_in_one_pass_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from the first on for each page that was moved meanwhile: that would be a square."""
    pages_of(monkeypatch, 100)
    world, billing, shop = world_with()
    for sequence in range(1, 1201):
        shop.transfer(sequence, "orders.new", [b"%d" % sequence], delay=MINUTE)
        if sequence % 100 == 0:
            world.settle()
            shop.frames.clear()
    world.settle()
    far = next(p for p in world.node.parts.connections.peers if p.name == "shop")
    waiting: Deferred[None] = Deferred()
    asked: list[int] = []
    history = world.node.log.history

    def counted(*args: Any) -> Any:
        asked.append(args[2])
        return history(*args)

    monkeypatch.setattr(world.node.log, "history", counted)
    with monkeypatch.context() as patched:  # as one whose pipe is full
        patched.setattr(type(far), "room", lambda peer: waiting)
        patched.setattr(type(far), "is_writable", False)
        later(world, 61)
        later(world, 1)
        assert world.node.log.next_due() is None
        assert [] == [frame for frame in shop.take(Routed) if frame.position]
    waiting.callback(None)
    later(world, 1)
    routed = [frame for frame in shop.take(Routed) if frame.position]
    assert list(range(1, 1201)) == [frame.first for frame in routed]
    assert sorted(set(asked)) == asked  # of none on twice
    assert len(got(billing)) == 1200


def test_39_a_log_that_is_closed_while_what_is_due_is_moved_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, logged_failures: list[Any]
) -> None:
    """The page behind is read meanwhile, and a node that stops just then has no log any more."""
    world, billing, shop = world_with()
    due = world.log.due

    def closed_behind(now: int, after: tuple[int, int], count: int) -> Any:
        if after != BEGIN:
            raise LogUnavailable("the log is not open")
        return due(now, after, count)

    monkeypatch.setattr(world.log, "due", closed_behind)
    send(shop, 1, b"one", delay=1000)
    later(world, 2)
    assert [b"one"] == got(billing)
    assert [] == logged_failures
