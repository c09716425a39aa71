"""What waits for a receiver is cancelled on purpose (SEMANTICS 10; DELIVERY 38, 49)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from msgservice.core.frames import Transfer
from msgservice.errors import BadSubject, UnknownReceiver
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from msgservice.node import purge
from msgservice.node.expiry import LOOK_AGAIN, TOLD_WITHIN
from msgservice.node.purge import REASON, Purged
from msgservice.records import position_of
from tests.kit.nodes import CountingLog, FailingLog, NodeWorld, ScriptedPeer
from tests.unit.test_node_expiry import GRACE, ORDERS, account, away, told, wrong

CANCELLED = ("billing", Status.CANCELLED, REASON)


class World(NodeWorld):
    """A node with a producer and an operator."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.shop, self.operator = self.peer("shop", status_from=1), self.peer("operator")
        self._sequence = 0

    def send(self, *bodies: bytes, subject: str = "orders.new") -> None:
        for body in bodies:
            self._sequence += 1
            self.shop.transfer(self._sequence, subject, [body])
        self.settle()

    def page(self, **asked: Any) -> dict[str, Any]:
        question = {"name": "billing", **asked}
        ok, page = self.operator.request("$node.receivers.purge", question)
        assert ok, page
        found: dict[str, Any] = page
        return found

    def purge(self, *asked: Any, **more: Any) -> Purged:
        found: list[Purged] = []
        self.node.purge("billing", *asked, **more).addCallback(found.append)
        self.settle()
        (one,) = found
        return one

    def pause(self, paused: bool) -> None:
        act = "pause" if paused else "resume"
        assert self.operator.request(f"$node.receivers.{act}", {"name": "billing"})[0]


def test_49_what_waits_for_a_paused_receiver_is_counted_and_then_cancelled() -> None:
    world = World()
    world.peer("billing", receive=ORDERS)
    world.pause(True)
    world.send(b"one", b"two", b"three")
    would = world.page(dry_run=True)
    assert (3, 0, None) == (would["count"], would["in_flight"], would["next"])
    world.settle(1)
    assert told(world.shop) == {}
    assert 3 == account(world).queued
    assert world.page(end=would["end"]) == would
    world.settle(TOLD_WITHIN)
    assert told(world.shop) == {CANCELLED: [(1, 3)]}
    assert (0, {int(Status.CANCELLED): 3}) == (account(world).queued, account(world).settled)
    assert 0 == world.page()["count"]
    world.pause(False)
    world.send(b"four")
    assert [b"four"] == world.peer("billing", receive=ORDERS).bodies()
    assert not wrong(world)


@pytest.mark.parametrize("tail_bytes", [1, Limits().tail_bytes])
def test_49_of_a_subject_nothing_else_is_cancelled_loaded_or_not(tail_bytes: int) -> None:
    world = World(limits=Limits(tail_bytes=tail_bytes))
    away(world)
    away(world, "books")
    for at in range(6):
        world.send(b"%d" % at, subject=("orders.new", "orders.old", "orders.new", "x")[at % 4])
    world.settle(LOOK_AGAIN)
    done = world.purge("orders.new")
    assert (3, 0) == (done.count, done.in_flight)
    world.settle(TOLD_WITHIN)
    assert told(world.shop) == {CANCELLED: [(1, 1), (3, 3), (5, 5)]}
    assert [b"1", b"5"] == world.peer("billing", receive=ORDERS).bodies()
    books = [b"0", b"1", b"2", b"4", b"5"]
    assert books == world.peer("books", receive=ORDERS).bodies()
    assert not wrong(world)


def test_49_what_is_in_flight_is_left_to_its_answer_and_counted() -> None:
    world = World()
    billing = world.peer("billing", receive=ORDERS, window=(1, 1000))
    world.send(b"one", b"two", b"three")
    (first,) = billing.take(Transfer)
    would = world.purge(dry_run=True)
    assert (2, 1) == (would.count, would.in_flight)
    assert would == world.purge()
    world.settle(TOLD_WITHIN)
    assert told(world.shop) == {CANCELLED: [(2, 3)]}
    billing.ack(first)
    world.settle()
    assert told(world.shop) == {("billing", Status.ACKNOWLEDGED, ""): [(1, 1)]}
    world.send(b"four")
    assert [b"four"] == billing.bodies()
    assert not wrong(world)


def test_49_what_comes_after_the_count_is_not_touched() -> None:
    world = World()
    away(world)
    world.send(b"one")
    would = world.page(dry_run=True)
    world.send(b"two")
    assert 1 == world.page(end=would["end"])["count"]
    assert [b"two"] == world.peer("billing", receive=ORDERS).bodies()


def test_49_of_a_batch_that_goes_beyond_the_end_the_rest_stays() -> None:
    world = World()
    away(world)
    world.shop.transfer(1, "orders.new", [b"one", b"two", b"three"])
    world.settle()
    done = world.page(end=position_of(1, 1))
    assert (2, None) == (done["count"], done["next"])
    assert [b"three"] == world.peer("billing", receive=ORDERS).bodies()


def test_49_it_goes_in_pages_and_what_no_page_had_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "MESSAGES", 2)
    world = World()
    away(world)
    world.send(b"1", b"2", b"3", b"4", b"5")
    would = world.purge(dry_run=True)
    assert 5 == would.count
    first = world.page()
    assert 2 == first["count"]
    assert 3 == account(world).queued  # a page is on disk when it is answered
    second = world.page(after=first["next"], end=first["end"])
    assert second["next"] is not None
    settled = 2 + second["count"]
    assert 2 < settled < 5
    world.settle(TOLD_WITHIN)
    assert told(world.shop) == {CANCELLED: [(1, settled)]}
    assert 5 - settled == world.purge().count
    assert 0 == account(world).queued
    assert not wrong(world)


def test_49_a_page_is_answered_when_it_is_on_disk() -> None:
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = World(log=log, clock=clock)
    away(world)
    world.send(b"one")
    log.hold = True
    done: list[Purged] = []
    world.node.purge("billing").addCallback(done.append)
    world.settle(1)
    assert [] == done
    log.release()
    world.settle(5)
    assert [1] == [one.count for one in done]


def test_49_after_a_start_a_receiver_has_time_to_say_what_it_had() -> None:
    world = World()
    away(world)
    world.send(b"one")
    again = World(log=world.log, clock=world.clock)
    done = again.purge()
    assert (0, 1) == (done.count, done.in_flight)
    again.settle(GRACE)
    assert 1 == again.purge().count
    again.settle(TOLD_WITHIN)
    reason = f"{REASON} (it may have been handled)"
    assert list(told(again.shop)) == [("billing", Status.CANCELLED, reason)]


def test_49_the_cursor_of_who_is_away_passes_what_was_purged() -> None:
    world = World()
    away(world)
    world.send(b"one", b"two")
    assert 2 == world.purge().count
    world.settle(TOLD_WITHIN + 2 * LOOK_AGAIN)
    row = world.node.parts.directory.named("billing")
    assert world.node.parts.dispatch.outlets[row.number].backlog.cursor >= position_of(2)


def test_49_what_cannot_be_purged_is_told_so() -> None:
    world = World()
    away(world)

    def refused(peer: ScriptedPeer, **asked: Any) -> str:
        ok, said = peer.request("$node.receivers.purge", asked)
        assert not ok
        return str(said)

    assert "nobody" in refused(world.operator, name="nobody")
    assert "a..b" in refused(world.operator, name="billing", subject="a..b")
    failures: list[Any] = []
    world.node.purge("nobody").addErrback(failures.append)
    world.node.purge("billing", "a..b").addErrback(failures.append)
    assert [UnknownReceiver, BadSubject] == [failure.type for failure in failures]


def test_49_a_producer_is_told_of_each_page_once_and_of_nothing_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purge, "MESSAGES", 5)
    clock = Clock()
    log = CountingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = World(log=log, clock=clock)
    away(world)
    world.send(*[b"x"] * 100)
    log.pieces, after, pages = 0, 0, 0
    while after is not None:
        after = world.page(after=after)["next"]
        world.settle(TOLD_WITHIN + 0.1)
        pages += 1
    assert pages > 10
    assert told(world.shop) == {CANCELLED: [(1, 100)]}
    assert 100 == log.pieces
