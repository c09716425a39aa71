"""Removing a receiver while others remove, add or change it: one outcome, told to everybody."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from msgservice import Limits
from msgservice.core.frames import Ack, Nack, Reply, Request, StatusFrame, Transfer
from msgservice.core.ranges import RangeSet
from msgservice.errors import UnknownReceiver
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status, WireMessage, encode_messages
from msgservice.node.directory import Directory
from msgservice.node.outlet_progress import DEAD_LETTERS_MAX
from msgservice.records import DeadLetter
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}
NOWHERE = "unix:/nowhere/at/all"


def world_with_backlog() -> tuple[NodeWorld, ScriptedPeer]:
    """A node with one message that waits for "billing", which is away; and who sent it."""
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS).connection.abort()
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    return world, shop


def holding_world() -> tuple[NodeWorld, FailingLog]:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    return NodeWorld(log=log, clock=clock), log


def ask(peer: ScriptedPeer, subject: str, arguments: dict[str, Any]) -> None:
    message = WireMessage(msgspec.json.encode(arguments))
    peer.connection.send(Request(1, subject, msgspec.Raw(encode_messages([message]))))


def answer(peer: ScriptedPeer) -> tuple[bool, Any]:
    (reply,) = peer.take(Reply)
    _, ok, raw = reply.replies[0]
    body = msgspec.msgpack.decode(raw, type=WireMessage).body
    return ok, msgspec.json.decode(body) if ok else body.decode()


def result_of(deferred: Deferred[Any]) -> list[Any]:
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results


def test_10_two_who_remove_a_receiver_at_once_get_the_same_answer() -> None:
    world, shop = world_with_backlog()
    other = world.peer("other")
    for peer in (shop, other):
        ask(peer, "$node.receivers.remove", {"name": "billing", "confirm": 1})
    world.settle()
    assert answer(shop) == answer(other) == (True, {"removed": 1, "dead": 0})
    assert shop.statuses() == {("billing", Status.REMOVED): [(1, 1)]}
    ok, reason = shop.request("$node.receivers.remove", {"name": "billing", "confirm": 1})
    assert (ok, reason) == (False, "unknown receiver 'billing'")


def test_two_programs_that_remove_a_receiver_at_once_get_the_same_answer() -> None:
    world, _ = world_with_backlog()
    remove = world.node.remove_receiver
    told = [result_of(Deferred.fromCoroutine(remove("billing"))) for _ in range(3)]
    world.settle()
    assert told == [[1], [1], [1]]


def test_one_who_confirmed_too_few_does_not_join_one_who_confirmed_enough() -> None:
    world, shop = world_with_backlog()
    other = world.peer("other")
    ask(shop, "$node.receivers.remove", {"name": "billing", "confirm": 1})
    ask(other, "$node.receivers.remove", {"name": "billing", "confirm": 0})
    world.settle()
    assert answer(shop) == (True, {"removed": 1, "dead": 0})
    ok, reason = answer(other)
    assert not ok
    assert "1 message waits for 'billing'" in reason


def test_what_a_receiver_asked_behind_its_answers_is_answered_while_its_removal_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left of its answers is heard no more; what came behind them is."""
    monkeypatch.setattr("msgservice.node.outlet.TURN_ANSWERS", 1)
    world, log = holding_world()
    billing = world.peer("billing", receive=ORDERS)
    shop = world.peer("shop")
    for sequence in range(1, 101):
        shop.transfer(sequence, "orders.new", [b"x"])
    world.settle()
    log.hold = True
    billing.connection.send(Ack([(one.sequence, one.sequence) for one in billing.take(Transfer)]))
    ask(billing, "$node.info", {})
    removed: list[Any] = []

    def remove() -> None:
        Deferred.fromCoroutine(world.node.remove_receiver("billing")).addBoth(removed.append)

    world.clock.callLater(0, remove)  # while they are heard: one in each turn
    world.settle()
    ok, _ = answer(billing)
    assert ok
    assert [] == removed
    log.release()
    world.settle()
    assert [type(one) for one in removed] == [int]
    assert removed > [0], "it was removed before all of them were heard"


def test_one_who_removes_while_the_removal_is_stored_gets_the_same_answer() -> None:
    world, log = holding_world()
    world.peer("billing", receive=ORDERS)
    log.hold = True
    first = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle()
    second = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle()
    assert first == second == []  # not before it is on disk
    log.release()
    world.settle()
    assert first == second == [0]
    late = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle()
    assert [type(one.value) for one in late if isinstance(one, Failure)] == [UnknownReceiver]


def test_10_what_expires_while_the_removal_is_stored_is_removed_and_told_so_alone() -> None:
    """One final state, told once: the log has what the removal says."""
    world, log = holding_world()
    shop, operator = world.peer("shop", status_from=1), world.peer("operator")
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"], ttl=1000)
    world.settle()
    billing.connection.abort()  # what it had is loaded, and waits for it to come back
    world.settle()
    log.hold = True
    ask(operator, "$node.receivers.remove", {"name": "billing", "confirm": 10})
    world.settle()
    world.settle(2)
    log.release()
    world.settle(2)
    assert {("billing", Status.REMOVED): [(1, 1)]} == shop.statuses()


def listed(peer: ScriptedPeer) -> list[tuple[str, bool, str]]:
    rows = peer.request("$node.receivers.list", {})[1]["receivers"]
    return [(row["name"], row["paused"], row["last_error"]) for row in rows]


def test_9_a_receiver_is_told_of_its_removal_when_that_is_on_disk() -> None:
    world, log = holding_world()
    shop, billing = world.peer("shop", status_from=1), world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    (in_flight,) = billing.take(Transfer)
    log.fail_always = True
    removed = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle(3)
    assert (removed, billing.bye, billing.connection.is_gone) == ([], None, False)
    assert listed(shop) == [("billing", True, "being removed")]
    # What it answers counts no more, and it gets nothing more.
    billing.ack(in_flight)
    shop.transfer(2, "orders.new", [b"two"])
    again = world.peer("billing", incarnation="i2", receive={"subjects": ["other"]})
    world.settle()
    assert (again.take(Transfer), again.bye, billing.bye) == ([], None, None)
    log.fail_always = False
    world.settle(3)
    assert removed == [1]
    assert (billing.bye, again.bye) == ((2, "removed"), (2, "removed"))
    assert listed(shop) == []
    assert shop.statuses() == {("billing", Status.REMOVED): [(1, 1)]}
    assert world.node.parts.dispatch.outlets == {}


def test_9_a_process_that_ends_before_a_removal_is_on_disk_has_told_nobody() -> None:
    world, log = holding_world()
    billing = world.peer("billing", receive=ORDERS)
    log.fail_always = True
    result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle(3)
    world.node.parts.commits.stop()
    billing.connection.abort()
    log.fail_always = False
    world.start()
    (row,) = world.peer("shop").request("$node.receivers.list", {})[1]["receivers"]
    assert (row["name"], row["paused"], billing.bye) == ("billing", False, None)
    again = world.peer("billing", receive=ORDERS)
    assert (again.bye, again.connection.is_gone) == (None, False)


def test_9_nothing_new_is_for_a_receiver_from_the_group_on_that_removes_it() -> None:
    world, log = holding_world()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS).connection.abort()
    world.settle()
    log.hold = True
    removed = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle()
    shop.transfer(1, "orders.new", [b"nobody's"])
    shop.transfer(2, "orders.new", [b"nobody's"], to=("billing",))
    world.settle()
    log.release()
    world.settle(1)
    assert removed == [0]
    assert shop.statuses() == {}
    (nack,) = shop.take(Nack)
    assert (2, Action.REFUSED, "unknown receiver 'billing'") == (
        nack.first,
        nack.action,
        nack.reason,
    )


def test_9_who_is_being_removed_is_not_changed_and_may_be_added_again_behind_it() -> None:
    world, log = holding_world()
    node = world.node
    world.peer("billing", receive=ORDERS).connection.abort()
    world.settle()
    log.hold = True
    result_of(Deferred.fromCoroutine(node.remove_receiver("billing")))
    world.settle()
    for asking in (
        lambda: node.change_receiver("billing", patterns=["other"]),
        lambda: node.pause_receiver("billing", True),
        lambda: node.pause_receiver("billing", False),
    ):
        (failure,) = result_of(Deferred.fromCoroutine(asking()))
        assert type(failure.value) is UnknownReceiver
    added = result_of(Deferred.fromCoroutine(node.add_receiver("billing", ["orders.>"])))
    world.settle()
    assert added == []
    log.release()
    world.settle()
    assert len(added) == 1
    assert node.parts.directory.named("billing").number == 2


def test_who_asks_before_a_removal_and_is_answered_after_it_is_told_that_there_is_none() -> None:
    clock = Clock()
    log = SlowAccounts(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    world.peer("billing", receive=ORDERS)
    log.hold = True
    late = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    log.hold = False
    first = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle()
    log.release()
    world.settle()
    assert first == [0]
    assert [type(one.value) for one in late if isinstance(one, Failure)] == [UnknownReceiver]


class SlowAccounts:
    """A log that answers `accounts` when it is told to."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.hold = False
        self._held: list[tuple[Deferred[Any], tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def accounts(self, *numbers: Any) -> Deferred[Any]:
        if not self.hold:
            found: Deferred[Any] = self._log.accounts(*numbers)
            return found
        waiter: Deferred[Any] = Deferred()
        self._held.append((waiter, numbers))
        return waiter

    def release(self) -> None:
        held, self._held = self._held, []
        for waiter, numbers in held:
            self._log.accounts(*numbers).chainDeferred(waiter)


@pytest.mark.parametrize("change", ["add", "change"])
def test_who_is_removed_while_it_is_made_or_changed_is_never_dialled(change: str) -> None:
    world, log = holding_world()
    node = world.node
    if change == "change":
        world.peer("billing", receive=ORDERS).connection.abort()
        world.settle()
    log.hold = True
    if change == "add":
        made = result_of(
            Deferred.fromCoroutine(node.add_receiver("billing", ["orders.>"], address=NOWHERE))
        )
    else:
        made = result_of(Deferred.fromCoroutine(node.change_receiver("billing", address=NOWHERE)))
    removed = result_of(Deferred.fromCoroutine(node.remove_receiver("billing")))
    world.settle()
    log.release()
    world.settle()
    assert removed == [0]
    assert len(made) == 1
    assert node.parts.connections.links == {}


@pytest.mark.parametrize("turns", [0, 1, 4])
def test_12_what_was_dead_before_the_removal_stays_dead_in_however_many_groups(turns: int) -> None:
    """All of it is told as dead: it is kept as that, and each has its dead letter."""
    world, log = holding_world()
    count = DEAD_LETTERS_MAX + 300
    billing = world.peer("billing", receive=ORDERS)
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"m"] * count)
    world.settle()
    (transfer,) = billing.take(Transfer)
    shop.transfer(count + 1, "orders.new", [b"waits"])
    world.settle()
    log.hold = True  # a group runs
    shop.transfer(count + 2, "others", [b"other"])
    world.settle()
    billing.nack(transfer.sequence, transfer.sequence + count - 1, Action.DEAD, reason="no")
    for _ in range(turns + 4):
        world.clock.advance(0)
    removed = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    for _ in range(4):
        world.clock.advance(0)
    log.release()
    world.settle(1)
    assert removed == [count + 1]
    states = {
        ("billing", Status.DEAD): [(1, count)],
        ("billing", Status.REMOVED): [(count + 1, count + 1)],
    }
    told = {state: list(RangeSet(ranges)) for state, ranges in shop.statuses().items()}
    assert told == states
    assert world.peer("shop", status_from=1).statuses() == states
    letters: list[DeadLetter] = []
    world.log.dead_letters(1, 0, 2 * count).addCallback(letters.extend)
    world.settle()
    assert len(letters) == count
    assert world.failures == []


def test_9_a_receiver_that_could_not_be_removed_is_as_it_was(
    logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours before anything was decided: who asked is told, and it is delivered to."""
    world, shop = world_with_backlog()
    billing = world.peer("billing", receive=ORDERS)
    world.settle()
    billing.take(Transfer)
    outlet = next(iter(world.node.parts.dispatch))

    async def broken(_: Any) -> None:
        raise ValueError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(type(outlet), "all_stored", broken)
        (failed,) = removed_now(world)
    assert isinstance(failed.value, ValueError)
    assert [failed.value] == [event["log_failure"].value for event in logged_failures]
    logged_failures.clear()
    assert (0, False) == (billing.bye and billing.bye[0], outlet.is_going)  # it comes again
    assert listed(shop) == [("billing", False, "not removed: a fault of ours")]
    again = world.peer("billing", receive=ORDERS)
    world.settle()
    (transfer,) = again.take(Transfer)
    again.ack(transfer)
    world.settle(1)
    assert shop.statuses() == {("billing", Status.ACKNOWLEDGED): [(1, 1)]}
    assert [0] == removed_now(world)


def raises(*_: object) -> Any:
    raise ValueError("a fault of ours")


def test_9_a_receiver_that_could_not_be_retired_is_as_it_was(
    logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the midst of it: the receiver is in audiences again."""
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive={"subjects": ["orders.>", "refunds.>"]})
    with monkeypatch.context() as patch:
        calls: list[Any] = [raises]
        changed = Directory._changed
        patch.setattr(Directory, "_changed", lambda self: calls.pop()() if calls else changed(self))
        (failed,) = removed_now(world)
    assert [failed.value] == [event["log_failure"].value for event in logged_failures]
    logged_failures.clear()
    assert listed(shop) == [("billing", False, "not removed: a fault of ours")]
    again = world.peer("billing", receive={"subjects": ["orders.>", "refunds.>"]})
    shop.transfer(1, "orders.new", [b"one"])
    shop.transfer(2, "refunds.new", [b"two"])
    world.settle()
    assert len(again.take(Transfer)) == 2
    assert removed_now(world) == [2]
    assert shop.statuses() == {("billing", Status.REMOVED): [(1, 2)]}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("directory", "remove"),
        ("connections", "dismiss_all"),
        ("connections", "forget"),
        ("dispatch", "remove"),
        ("tracker", "receiver_removed"),
        ("connections", "undial"),
    ],
)
def test_9_a_receiver_whose_removal_is_on_disk_is_removed_whatever_fails_then(
    part: str, name: str, logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, shop = world_with_backlog()
    billing = world.peer("billing", receive=ORDERS)
    world.settle()
    parts = world.node.parts
    with monkeypatch.context() as patch:
        patch.setattr(type(getattr(parts, part)), name, raises)
        assert removed_now(world) == [1]
    assert [event["log_failure"].type for event in logged_failures] == [ValueError]
    logged_failures.clear()
    if name != "dismiss_all":
        assert billing.bye == (2, "removed")
    if name != "receiver_removed":
        assert shop.statuses() == {("billing", Status.REMOVED): [(1, 1)]}
    if name != "remove":
        assert listed(shop) == []
    for peer in (shop, billing):
        peer.connection.abort()
    again = NodeWorld(log=world.log, clock=world.clock)
    asker = again.peer("asker", status_from=1)
    assert listed(asker) == []


def test_9_a_removal_that_could_not_be_handed_over_is_told(
    logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = world_with_backlog()
    monkeypatch.setattr(type(world.node.parts.commits), "removal", raises)
    (failed,) = removed_now(world)
    assert isinstance(failed.value, ValueError)
    (event,) = logged_failures
    assert "next start of the node says whether" in event["log_format"]
    logged_failures.clear()


def removed_now(world: NodeWorld) -> list[Any]:
    removed = result_of(Deferred.fromCoroutine(world.node.remove_receiver("billing")))
    world.settle()
    return removed


def test_10_a_removal_tells_a_producer_what_became_of_its_messages_there_and_nothing_else() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    stays = world.peer("stays", receive={"subjects": [">"]})
    world.peer("billing", receive=ORDERS).connection.abort()
    world.peer("idle", receive={"subjects": ["else.>"]}).connection.abort()
    for sequence in range(1, 41):
        shop.transfer(sequence, "orders.new" if sequence % 4 else "other", [b"x"])
    world.settle()
    assert len(stays.take(Transfer)) == 40
    shop.frames.clear()
    for name, waiting in (("idle", 0), ("billing", 30)):
        results = result_of(Deferred.fromCoroutine(world.node.remove_receiver(name)))
        world.settle()
        assert results == [waiting]
    assert {type(frame) for frame in shop.frames} == {StatusFrame}
    assert len(shop.frames) == 1
    ranges = [(first, first + 2) for first in range(1, 40, 4)]
    assert shop.statuses() == {("billing", Status.REMOVED): ranges}


def test_10_a_producer_that_does_not_read_is_told_of_removals_once_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, shop = world_with_backlog()
    world.peer("more", receive=ORDERS).connection.abort()
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    shop.frames.clear()
    far = next(p for p in world.node.parts.connections.peers if p.name == "shop")
    waiting: Deferred[None] = Deferred()
    with monkeypatch.context() as patched:  # as one whose pipe is full
        patched.setattr(type(far), "room", lambda peer: waiting)
        patched.setattr(type(far), "tell", lambda peer, news: False)
        for name in ("billing", "more"):
            Deferred.fromCoroutine(world.node.remove_receiver(name))
            world.settle()
    assert shop.frames == []
    waiting.callback(None)
    world.settle()
    assert shop.statuses() == {
        ("billing", Status.REMOVED): [(1, 2)],
        ("more", Status.REMOVED): [(2, 2)],
    }
