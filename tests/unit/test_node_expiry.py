"""Messages whose ttl is over, at a node (SEMANTICS 15, 17; DELIVERY 38, 39, 44)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from msgservice.core.backlog import Backlog
from msgservice.core.frames import Nack, StatusFrame, Transfer
from msgservice.core.ranges import RangeSet
from msgservice.core.refusal import Refusal
from msgservice.core.runs import EXPIRED_REASON
from msgservice.disk.database import rows
from msgservice.errors import LogUnavailable
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status
from msgservice.node.due import AGAIN, HELD_FOR
from msgservice.node.expiry import LOOK_AGAIN, TOLD_WITHIN
from msgservice.records import Account, Resume, position_of
from tests.kit.nodes import CountingLog, FailingLog, LateLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}
ALL = {"subjects": [">"]}
GRACE = Limits().link_delay_max + Limits().hello_timeout
DAY = 24 * 3600 * 1000


def away(world: NodeWorld, name: str = "billing", **receive: Any) -> None:
    world.peer(name, receive=receive or ORDERS).connection.abort()
    world.settle()


def told(peer: ScriptedPeer) -> dict[tuple[str, Status, str], list[tuple[int, int]]]:
    """(receiver, state, reason) -> ranges of final states that came, each as one."""
    found: dict[tuple[str, Status, str], RangeSet] = {}
    for frame in peer.take(StatusFrame):
        if Status(frame.state).final:
            key = (frame.receiver, Status(frame.state), frame.reason)
            for first, last in frame.ranges:
                found.setdefault(key, RangeSet()).add(first, last)
    return {key: list(ranges) for key, ranges in found.items()}


def account(world: NodeWorld, name: str = "billing") -> Account:
    number = world.node.parts.directory.named(name).number
    found: list[list[Account]] = []
    world.log.accounts([number]).addCallback(found.append)
    world.settle()
    ((one,),) = found
    assert not one.unaccounted
    return one


def wrong(world: NodeWorld) -> list[str]:
    found: list[list[str]] = []
    world.log.audit().addCallback(found.append)
    world.settle()
    return found[0]


def exceptions(world: NodeWorld) -> list[tuple[int, int, int]]:
    db = world.log._store.db
    return rows(db, "select first, last, status from exception order by receiver, first")


def test_15_what_waits_for_who_is_away_expires_when_it_is_due_and_not_before() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    away(world)
    shop.transfer(1, "orders.new", [b"one", b"two"], ttl=5000)
    shop.transfer(3, "orders.new", [b"three"])
    world.settle(4.9)
    assert told(shop) == {}
    world.settle(0.2)
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(1, 2)]}
    at = account(world)
    assert (1, {int(Status.EXPIRED): 2}) == (at.queued, at.settled)
    billing = world.peer("billing", receive=ORDERS)
    assert [b"three"] == billing.bodies()
    assert not wrong(world)


def test_who_is_connected_and_full_is_sent_nothing_whose_time_is_over() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS, window=(1, 1000))
    shop.transfer(1, "orders.new", [b"one"], ttl=5000)
    shop.transfer(2, "orders.new", [b"two"], ttl=5000)
    shop.transfer(3, "orders.new", [b"three"])
    world.settle(6)
    (first,) = billing.take(Transfer)
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(2, 2)]}
    billing.ack(first)  # it was handed over: its answer counts, however late
    world.settle()
    assert told(shop) == {("billing", Status.ACKNOWLEDGED, ""): [(1, 1)]}
    assert [b"three"] == billing.bodies()


def test_what_is_about_to_be_sent_is_judged_before_the_pass_comes_to_it() -> None:
    log = LateLog(MemoryLog(reactor=(clock := Clock()), limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop", status_from=1)
    away(world)
    shop.transfer(1, "orders.new", [b"one"], ttl=5000)
    world.settle()
    world.node.parts.due.stop()
    world.settle(6)
    billing = world.peer("billing", receive=ORDERS)
    assert [] == billing.bodies()
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(1, 1)]}


def test_what_is_left_of_the_ttl_goes_on_to_the_receiver() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    away(world)
    shop.transfer(1, "orders.new", [b"one"], ttl=5000)
    shop.transfer(2, "orders.new", [b"two"])
    world.settle(3)
    sent = world.peer("billing", receive=ORDERS).take(Transfer)
    assert sent[0].ttl is not None
    assert 1500 < sent[0].ttl <= 2000
    assert sent[1].ttl is None


def test_what_was_sent_and_not_answered_expires_with_an_unknown_outcome() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"], ttl=5000)
    world.settle(6)
    assert [b"one"] == billing.bodies()
    assert told(shop) == {}  # it is left to its answer
    billing.connection.abort()
    world.settle()
    reason = f"{EXPIRED_REASON} (outcome unknown)"
    assert told(shop) == {("billing", Status.EXPIRED, reason): [(1, 1)]}
    late = Resume(floor=position_of(2))  # it says now that it had it: what was told stays
    assert [] == world.peer("billing", receive=ORDERS, resume=late).bodies()
    assert told(shop) == {}
    assert account(world).settled == {int(Status.EXPIRED): 1}


def test_what_a_resume_names_counts_for_what_had_not_expired() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"], ttl=5000)
    world.settle(1)
    billing.connection.abort()
    world.settle(1)
    world.peer("billing", receive=ORDERS, resume=Resume(floor=position_of(2)))
    world.settle(10)
    assert told(shop) == {("billing", Status.ACKNOWLEDGED, ""): [(1, 1)]}


def test_a_head_that_expires_while_it_waits_lets_its_lane_go_on() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"], ttl=5000)
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    first = billing.take(Transfer)[0]
    billing.nack(first.sequence, first.sequence, Action.RETRY, 3_600_000, "not yet")
    world.settle(6)
    assert [b"two"] == billing.bodies()
    assert told(shop)[("billing", Status.EXPIRED, EXPIRED_REASON)] == [(1, 1)]
    assert not wrong(world)


@pytest.mark.parametrize("comes_back", [False, True])
def test_after_a_start_a_receiver_has_time_to_say_what_it_had(comes_back: bool) -> None:
    clock = Clock()
    clock.advance(1000)
    world = NodeWorld(clock=clock)
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"], ttl=15_000)
    world.settle()
    assert [b"one"] == billing.bodies()
    world.node.stopService()
    world.settle(10)
    world.start()
    shop = world.peer("shop", status_from=1)
    world.settle(GRACE / 2)
    assert told(shop) == {}
    if comes_back:
        world.peer("billing", receive=ORDERS, resume=Resume(floor=position_of(2)))
        expected = ("billing", Status.ACKNOWLEDGED, "")
    else:
        world.settle(GRACE / 2 + 1)
        expected = ("billing", Status.EXPIRED, f"{EXPIRED_REASON} (it may have been handled)")
    assert told(shop) == {expected: [(1, 1)]}


class UnreadLog:
    """A log that cannot be read by these calls, each once, from when they are noted here."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.fails: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in self.fails:
            self.fails.discard(name)
            return lambda *_: fail(LogUnavailable("the disk says no"))
        return getattr(self._log, name)


def unread_world() -> tuple[NodeWorld, UnreadLog]:
    clock = Clock()
    clock.advance(1000)
    log = UnreadLog(MemoryLog(reactor=clock, limits=Limits()))
    return NodeWorld(log=log, clock=clock), log


def test_what_was_stored_before_a_start_expires_though_the_log_was_not_read_when_it_was_due(
    logged_failures: list[LogEvent],
) -> None:
    world, log = unread_world()
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"], ttl=15_000)
    world.settle()
    world.node.stopService()
    world.settle(10)
    world.start()
    shop = world.peer("shop", status_from=1)
    world.settle(GRACE - 1)
    log.fails = {"expiring"}
    world.settle(1.5)
    assert not log.fails
    assert told(shop) == {}
    world.settle(2)
    expected = ("billing", Status.EXPIRED, f"{EXPIRED_REASON} (it may have been handled)")
    assert told(shop) == {expected: [(1, 1)]}
    assert ["the disk says no"] == [str(each["log_failure"].value) for each in logged_failures]
    logged_failures.clear()


@pytest.mark.parametrize("call", ["expiring", "accounts"])
def test_what_others_have_settled_is_told_though_the_log_was_not_read(
    call: str, logged_failures: list[LogEvent]
) -> None:
    world, log = unread_world()
    shop = world.peer("shop", status_from=1)
    away(world)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle(LOOK_AGAIN)
    assert shop.request("$node.receivers.purge", {"name": "billing"})[0]
    log.fails = {call}
    world.settle(TOLD_WITHIN + 0.1)
    assert not log.fails
    world.settle(2 * AGAIN)
    assert {("billing", Status.CANCELLED): [(1, 1)]} == {
        key[:2]: ranges for key, ranges in told(shop).items()
    }
    # And its cursor has passed what nobody is to get: it keeps nothing in the log.
    assert position_of(2) - 1 == world.node.parts.directory.named("billing").cursor
    assert ["the disk says no"] == [str(each["log_failure"].value) for each in logged_failures]
    logged_failures.clear()


def test_what_comes_after_a_start_waits_for_no_grace() -> None:
    world = NodeWorld()
    away(world)
    world.node.stopService()
    world.settle()
    world.start()
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"], ttl=100)
    world.settle(0.2)
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(1, 1)]}


def test_39_a_clock_far_ahead_expires_nothing_for_a_minute() -> None:
    clock = Clock()
    clock.advance(1000)
    world = NodeWorld(clock=clock)
    shop = world.peer("shop")
    away(world)
    shop.transfer(1, "orders.new", [b"one"], ttl=5000)
    world.settle(2)
    shop.transfer(2, "orders.new", [b"two"])  # with which the log says how late it is
    world.settle()
    world.node.stopService()
    world.settle()
    clock.advance(366 * 24 * 3600.0)
    world.start()
    shop = world.peer("shop", status_from=1)
    world.settle(HELD_FOR - 1)
    billing = world.peer("billing", receive=ORDERS)
    assert [b"one", b"two"] == billing.bodies()  # nothing is judged by that clock
    billing.connection.abort()
    world.settle()
    assert told(shop) == {}
    world.settle(2)
    ((_, status, _),) = told(shop)
    assert status is Status.EXPIRED


def test_many_that_expire_for_who_is_away_are_one_row_whatever_lies_between() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    away(world)
    away(world, "other", subjects=["other"])
    for n in range(20):
        shop.transfer(3 * n + 1, "orders.new", [b"a", b"b"], ttl=1000)
        shop.transfer(3 * n + 3, "other", [b"c"])
    world.settle(1.1)
    # All is settled for it, so its cursor has passed all: nothing of it keeps a batch in the log.
    assert [(position_of(1), position_of(39, 1), int(Status.EXPIRED))] == exceptions(world)
    world.settle(LOOK_AGAIN + 1)
    cursor = world.node.parts.directory.named("billing").cursor
    assert cursor >= position_of(39, 1)
    assert (0, {int(Status.EXPIRED): 40}) == (account(world).queued, account(world).settled)
    assert 20 == account(world, "other").queued
    shop.transfer(61, "orders.new", [b"last"])
    world.settle()
    assert [b"last"] == world.peer("billing", receive=ORDERS).bodies()
    assert not wrong(world)


def test_what_does_not_expire_between_is_no_part_of_the_range() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    away(world)
    for n in range(1, 10):
        shop.transfer(n, "orders.new", [b"%d" % n], ttl=None if n == 5 else 1000)
    world.settle(1.1)
    assert {(1, 4), (6, 9)} == set(told(shop)[("billing", Status.EXPIRED, EXPIRED_REASON)])
    assert 1 == account(world).queued
    assert [b"5"] == world.peer("billing", receive=ORDERS).bodies()


def test_a_part_that_was_acknowledged_stays_so() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS | {"order": "none"}, window=(3, 10_000))
    shop.transfer(1, "orders.new", [b"1", b"2", b"3", b"4", b"5"], ttl=5000)
    world.settle()
    sent = billing.take(Transfer)
    assert sent[0].sequence == position_of(1)
    billing.connection.send(
        __import__("msgservice.core.frames").core.frames.Ack(
            [(sent[0].sequence + 1, sent[0].sequence + 1)]
        )
    )
    world.settle()
    billing.connection.abort()
    world.settle(40)
    found = told(shop)
    assert [(2, 2)] == found.pop(("billing", Status.ACKNOWLEDGED, ""))
    expired = RangeSet(r for ranges in found.values() for r in ranges)
    assert [(1, 1), (3, 5)] == list(expired)
    at = account(world)
    assert (0, {3: 1, 4: 4}) == (at.queued, at.settled)


def test_what_could_not_be_stored_is_stored_with_the_next_group() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop", status_from=1)
    away(world)
    shop.transfer(1, "orders.new", [b"one"], ttl=1000)
    world.settle()
    log.fail_next = True
    world.settle(1.1)
    assert told(shop) == {}
    world.settle(2)
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(1, 1)]}
    assert {4: 1} == account(world).settled


def test_one_that_expires_at_once_is_stored_and_told_so() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    billing = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"one"], ttl=0)
    world.settle(0.1)
    assert [] == billing.bodies()
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(1, 1)]}


def test_one_that_expires_before_what_was_looked_at_is_not_passed_by() -> None:
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    away(world)
    shop.transfer(1, "orders.new", [b"one"], ttl=100)
    world.settle(50)
    shop.transfer(2, "orders.new", [b"two"], ttl=0)
    shop.transfer(3, "orders.new", [b"three"], ttl=5)
    world.settle(1)
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(1, 3)]}


def test_a_ttl_beyond_the_limit_is_refused_with_the_limit_named() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    away(world)
    shop.transfer(1, "orders.new", [b"one"], ttl=366 * DAY)
    shop.transfer(2, "orders.new", [b"two"], ttl=366 * DAY + 1)
    world.settle()
    (nack,) = shop.take(Nack)
    assert (2, Action.REFUSED) == (nack.first, nack.action)
    assert "at most 366 days" in nack.reason


def test_pages_of_very_many_leave_others_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.node.expiry.PAGE", 4)
    world = NodeWorld()
    shop = world.peer("shop", status_from=1)
    for name in ("a", "b", "c"):
        away(world, name)
    for n in range(1, 31):
        shop.transfer(n, "orders.new", [b"x"], ttl=1000 + n)
    world.settle(3)
    reason = (Status.EXPIRED, EXPIRED_REASON)
    assert told(shop) == {(name, *reason): [(1, 30)] for name in ("a", "b", "c")}
    assert not wrong(world)


def test_what_a_resume_has_named_and_is_not_loaded_is_no_part_of_a_decree() -> None:
    backlog = Backlog(ordered=True, cursor=0, retry_delay=lambda attempts: 1.0)
    backlog.receive_resume(3, [(6, 7)])
    over = Refusal(Action.DEAD, EXPIRED_REASON)
    assert [(3, 5), (8, 9)] == backlog.decree(1, 9, Status.EXPIRED, over)
    assert [] == backlog.decree(1, 9, Status.EXPIRED, over)  # final states do not change


def test_what_is_not_loaded_of_who_is_connected_is_told_when_it_is_stored() -> None:
    clock, limits = Clock(), Limits(tail_bytes=1, loaded_bytes=1)
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(log=log, clock=clock, limits=limits)
    shop = world.peer("shop", status_from=1)
    world.peer("billing", receive=ORDERS, window=(1, 1000))
    for n in range(1, 6):
        shop.transfer(n, "orders.new", [b"x" * 1000], ttl=5000)
    world.settle(3)
    log.hold = True
    world.settle(3)
    assert told(shop) == {}
    (progress,) = [one for group, _ in log._held for one in group.progress]
    (row,) = progress.exceptions  # one row of all: nothing of them was loaded
    assert (position_of(1) + 1, position_of(5)) == (row.first, row.last)
    log.release()
    world.settle()
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(2, 5)]}


def test_a_producer_is_told_of_what_expired_and_of_nothing_behind_it() -> None:
    clock = Clock()
    log = CountingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    shop = world.peer("shop", status_from=1)
    away(world)
    for n in range(1, 51):
        shop.transfer(n, "orders.new", [b"x"], ttl=1000 if n in (7, 9) else None)
    world.settle(0.5)
    log.pieces = 0
    world.settle(1)
    assert told(shop) == {("billing", Status.EXPIRED, EXPIRED_REASON): [(7, 7), (9, 9)]}
    assert 3 == log.pieces
