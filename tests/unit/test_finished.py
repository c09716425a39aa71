"""Statuses outlive their messages: how long, how many, and as people ask for them (DELIVERY 54)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec import Raw

from msgservice.core.frames import Transfer
from msgservice.disk.database import one
from msgservice.disk.migrations import migrate
from msgservice.log import removal, retention
from msgservice.log.entries import DropBatches, ForgetStates
from msgservice.log.schema import _VERSION_FINISHED, SCHEMA
from msgservice.message import Status, WireMessage, encode_messages
from msgservice.records import ExceptionRow, StatusFrom, hash_of
from tests.kit.limits import Limits
from tests.kit.logs import Driver, make_batch
from tests.kit.nodes import NodeWorld

MINUTE, HOUR = 60_000, 3_600_000
DAY = 24 * HOUR
NONE_KEPT = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0)


def opened(folder: Path, **limits: Any) -> Driver:
    log = Driver("memory", folder, replace(NONE_KEPT, **limits)).open()
    log.receivers(1, 2)
    return log


def sent(log: Driver, first: int, count: int, incarnation: str = "i1", name: str = "") -> None:
    """Messages with ids, acknowledged by one receiver, that have left the log."""
    audience = log.log.audience([1])
    batch = make_batch(
        audience,
        first,
        [b"x"] * count,
        incarnation=incarnation,
        ids=tuple((n, f"{name or incarnation}-{first + n}") for n in range(count)),
    )
    log.append(batch)
    log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: count})


def gone(log: Driver, elapsed: int = 1, here: tuple[tuple[str, str], ...] = ()) -> None:
    """All that may go has gone, so many ms after the log was opened."""
    while log.wait(log.log.retain(elapsed, here)):
        pass


def entries(log: Driver, monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> list[Any]:
    """The entries of a kind that are applied from now on."""
    seen: list[Any] = []
    store = log.log._store
    apply = store.apply

    def noting(entry: Any) -> Any:
        if isinstance(entry, kind):
            seen.append(entry)
        return apply(entry)

    monkeypatch.setattr(store, "apply", noting)
    return seen


def count(log: Driver, table: str) -> int:
    found: int = one(log.log._store.db, f"select count(*) from {table}")
    return found


def counted(log: Driver) -> tuple[int, int, int]:
    """What is there: states, ids, senders that are known by them alone."""
    return count(log, "finished"), count(log, "finished_id"), count(log, "former")


def test_54_a_sender_that_is_forgotten_leaves_what_became_of_its_messages(tmp_path: Path) -> None:
    log = opened(tmp_path, incarnations=3)
    for n in range(40):
        sent(log, 1, 2, f"life{n}")
    gone(log)
    left = tuple(("shop", f"life{n}") for n in range(40))
    log.wait(log.log.retain(MINUTE, (), left))
    gone(log)
    assert (40, 80) == counted(log)[:2]
    assert counted(log)[2] >= 30
    assert len(log.log._store.state.senders) + len(log.log._store.state.asleep) <= 4
    for identity in ("life0-2", f"shop/{hash_of('life0')}/2"):
        found = log.wait(log.log.find_finished(identity))
        assert found is not None
        assert ("shop", "life0", 2, True) == (
            found.sender,
            found.incarnation,
            found.sequence,
            found.removed,
        )
        assert {1: (Status.ACKNOWLEDGED, 0, "")} == found.states
    sent(log, 1, 1, "life0", name="anew")  # the same name comes back: a sender of its own
    gone(log)
    assert log.wait(log.log.find_finished("anew-1")) is not None
    assert log.wait(log.log.find_finished("life0-2")) is not None
    assert [] == log.wait(log.log.audit())
    gone(log, 7 * DAY + 7 * HOUR)
    assert (0, 0, 0) == counted(log)
    log.close()


def test_54_what_is_kept_is_bounded_and_what_a_producer_may_come_for_stays(tmp_path: Path) -> None:
    log = opened(tmp_path, finished_rows=50)
    here = (("shop", "heard"), ("shop", "away"))
    for n in range(60):  # a hole after each, so that each has a range of its own
        sent(log, 2 * n + 1, 1, "away")
        gone(log, 10, here)
    for n in range(100):
        sent(log, 2 * n + 1, 1, "heard")
        gone(log, 10, here)
    gone(log, 2 * MINUTE, here)
    assert 50 == counted(log)[1]
    assert counted(log)[0] >= 100 + 60  # none of them was heard so far
    log.append(statuses_from=[StatusFrom(sender="shop", incarnation="heard", status_from=181)])
    gone(log, 4 * MINUTE, here)
    states, ids, _ = counted(log)
    assert (60 + 10, 50) == (states, ids)
    for sequence, is_known in ((1, False), (179, False), (181, True), (199, True)):
        found = log.wait(log.log.find_finished(f"shop/{hash_of('heard')}/{sequence}"))
        assert (found is not None) == is_known
    for sequence in (1, 119):
        assert log.wait(log.log.find_finished(f"shop/{hash_of('away')}/{sequence}")) is not None
    assert log.wait(log.log.find_finished("heard-199")) is not None
    assert log.wait(log.log.find_finished("heard-1")) is None
    log.reopen()
    assert (70, 50, 0) == counted(log)
    log.close()


def test_54_what_became_of_it_is_forgotten_at_all_receivers_together(tmp_path: Path) -> None:
    log = opened(tmp_path)
    both = make_batch(log.log.audience([1, 2]), 1, [b"x"], incarnation="i1")
    log.append(both)
    for receiver in (1, 2):
        log.progress(receiver, both.last, settled={Status.ACKNOWLEDGED: 1})
    gone(log)
    for day in range(1, 7):  # more of its sender's, that the first alone gets
        sent(log, day + 1, 1)
        gone(log, day * DAY)
    identity = f"shop/{hash_of('i1')}/1"
    at = 7 * DAY - HOUR
    while (found := log.wait(log.log.find_finished(identity))) is not None:
        assert {1, 2} == set(found.states)
        assert at < 7 * DAY + 7 * HOUR
        at += HOUR
        gone(log, at)
    assert at >= 7 * DAY
    assert log.wait(log.log.find_finished(f"shop/{hash_of('i1')}/2")) is not None
    log.close()


@pytest.mark.parametrize("is_old", [False, True], ids=["too many", "too old"])
def test_54_each_call_forgets_whole_messages(
    is_old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One receiver has them all in one row, the other one row for each."""
    monkeypatch.setattr(retention, "FORGOTTEN_MAX", 7)
    log = opened(tmp_path, finished_rows=1_000_000 if is_old else 20)
    audience = log.log.audience([1, 2])
    for n in range(1, 61):
        batch = make_batch(audience, n, [b"x"], incarnation="i1")
        log.append(batch)
        log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: 1})
        status = Status.EXPIRED if n % 2 else Status.CANCELLED
        row = ExceptionRow(2, batch.first, batch.last, status, 0, 0, "")
        log.progress(2, batch.last, exceptions=[row], settled={status: 1})
    gone(log)
    assert 61 == count(log, "finished")
    log.append(statuses_from=[StatusFrom(sender="shop", incarnation="i1", status_from=61)])
    elapsed = 7 * DAY + 7 * HOUR if is_old else 2 * MINUTE
    before, more = 60, True
    while more:
        more = log.wait(log.log.retain(elapsed))
        known: list[int] = []
        for n in range(1, 61):
            found = log.wait(log.log.find_finished(f"shop/{hash_of('i1')}/{n}"))
            if found is not None:
                assert {1, 2} == set(found.states), (n, known)
                known.append(n)
        assert list(range(61 - len(known), 61)) == known
        assert before - 14 <= len(known) <= before  # a call is a small one
        before = len(known)
    assert len(known) == (0 if is_old else 19)
    log.close()


def test_54_it_ages_in_slices_and_a_call_moves_few_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "IDS_MAX", 100)
    monkeypatch.setattr(retention, "FORGOTTEN_MAX", 64)
    log = opened(tmp_path)
    for n in range(40):
        sent(log, 20 * n + 1, 20)
    drops = entries(log, monkeypatch, DropBatches)
    gone(log)
    assert 800 == count(log, "finished_id")
    oldest = [entry.oldest for entry in drops if entry.oldest > 1]
    assert max(high - low for low, high in zip([1, *oldest], oldest, strict=False)) <= 5
    forgets = entries(log, monkeypatch, ForgetStates)
    gone(log, 7 * DAY + 7 * HOUR)
    assert (0, 0, 0) == counted(log)
    assert len(forgets) == 800 // 64 + 1
    log.close()


def test_54_what_was_cancelled_before_an_upgrade_is_found_after_it() -> None:
    db = apsw.Connection(":memory:")
    before = SCHEMA.steps.index(_VERSION_FINISHED)
    migrate(db, replace(SCHEMA, steps=SCHEMA.steps[:before]), None)
    db.execute("insert into cancelled_id values ('mine', 4, 17, 90), ('mine', 4, 18, 91)")
    migrate(db, SCHEMA, None)
    found = db.execute("select name, at, sender, sequence from finished_id").fetchall()
    assert [("mine", 90, 4, 17), ("mine", 91, 4, 18)] == found


def test_54_the_queries_of_forgetting_are_found_by_an_index() -> None:
    db = apsw.Connection(":memory:")
    migrate(db, SCHEMA, None)
    for text in (removal._OLDEST_STATES, removal._OLDEST_IDS, removal._OLDEST_FORMER):
        plan = " ".join(row[3] for row in db.execute("explain query plan " + text, (1, 1)))
        assert "SCAN" not in plan
        assert "TEMP B-TREE" not in plan, plan


def removed_world() -> NodeWorld:
    """A node whose log has let go of three messages of the shop's."""
    world = NodeWorld(replace(Limits(), keep_seconds=0.0, keep_bytes=0))
    billing = world.peer("billing", receive={"subjects": ["orders.>"]})
    shop = world.peer("shop", status_from=1)
    messages = [WireMessage(b"one"), WireMessage(b"two", id="o-2"), WireMessage(b"three")]
    shop.connection.send(Transfer(1, "orders.new", Raw(encode_messages(messages))))
    world.settle()
    (transfer,) = billing.take(Transfer)
    billing.ack(transfer)
    world.settle()
    for _ in range(3):
        world.clock.advance(2)
        world.settle()
    return world


def test_54_status_and_why_of_a_message_that_has_left_the_log() -> None:
    world = removed_world()
    operator = world.peer("operator")
    ok, _ = operator.request("$node.status", {"id": "log:65537"})
    assert not ok  # a position is one of the log
    ok, page = operator.request("$node.status", {"id": "o-2"})
    assert ok, page
    assert (True, 0, 2, "") == (
        page["removed"],
        page["position"],
        page["sequence"],
        page["subject"],
    )
    assert {"billing": "acknowledged"} == {n: at["status"] for n, at in page["receivers"].items()}
    ok, causes = operator.request("$node.why", {"id": page["sender"]})
    assert ok, causes
    assert [("billing", "acknowledged")] == [(c["receiver"], c["kind"]) for c in causes["causes"]]
    assert causes["removed"]
    ok, undone = operator.request("$node.undo", {"id": "o-2"})
    assert ok, undone
    assert {"billing": {"acknowledged": 1}} == undone["receivers"]
    ok, _ = operator.request("$node.delayed.cancel", {"id": "o-2"})
    assert not ok
    ok, _ = operator.request("$node.receivers.rewind", {"name": "billing", "first": "o-2"})
    assert not ok
    other = world.peer("other", status_from=1)
    ok, _ = other.request("$node.status", {"id": "o-3"})
    assert not ok


def test_54_it_is_found_after_its_producer_has_heard_it_and_come_again() -> None:
    world = removed_world()
    world.peer("shop", status_from=4)
    world.settle()
    operator = world.peer("operator")
    ok, page = operator.request("$node.status", {"id": "o-2"})
    assert ok, page
    assert ["billing"] == [*page["receivers"]]
