"""Receipts that survive their process: DELIVERY 53. Real files, real SQLite, a node that is a list.

A crash is a copy of the files at that moment, opened by another client (`test_client_disk`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.administration import RETELL
from msgservice.client import receipt_rows
from msgservice.client.disk import LOOKED_EVERY, SAID_WAITING
from msgservice.client.promise import Promise
from msgservice.client.receipt import Change, Receipt
from msgservice.client.receipt_rows import note
from msgservice.errors import (
    ClientClosed,
    LogWentBack,
    NotDelivered,
    PeerForgot,
    Refused,
    UnknownMessage,
)
from msgservice.message import Action, Status
from msgservice.node.replies import refusal
from msgservice.records import PROMISE
from tests.kit.clients import ClientWorld, error_of, now
from tests.unit.test_client_disk import DiskWorld, _once, restarted


def listed(world: DiskWorld, after: int = 0, limit: int = 1000) -> list[Receipt]:
    """The receipts that are open, with what the node has said of them by now."""
    found = world.calls.wait(world.client.receipts(after, limit))
    world.settle()
    return found


def sequences(world: DiskWorld, after: int = 0, limit: int = 1000) -> list[int]:
    return [receipt.sequence for receipt in listed(world, after, limit)]


def send(world: DiskWorld, *bodies: bytes, **options: Any) -> None:
    """Hand over each in a turn of its own, so that each has a row of its own."""
    for body in bodies:
        world.client.send("a", body, **options)
        world.written()


def rows(folder: Path) -> list[tuple[int, int]]:
    """The rows of a file that nobody has open, or that another reads beside it."""
    db = apsw.Connection(str(folder / "outbox.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [*db.execute("select first, last from receipt order by first")]
    finally:
        db.close()


def changes_of(receipt: Receipt) -> tuple[list[Change], list[BaseException | None]]:
    """The changes that come from now on, and with what they ended."""
    found: list[Change] = []
    ends: list[BaseException | None] = []

    async def follow() -> None:
        async for change in receipt.changes():
            found.append(change)  # noqa: PERF401 - each at once

    following = Deferred.fromCoroutine(follow())
    following.addCallbacks(lambda _: ends.append(None), lambda f: ends.append(f.value))
    return found, ends


def test_53_a_killed_producer_learns_what_became_of_each_message(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2", b"3")
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 3))
    world.node.say("r2", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    again = restarted(world, tmp_path / "second")
    # What was final in the process before was told there; its row may not have gone by then.
    receipts = [one for one in listed(again) if one.sequence > 1]
    assert [2, 3] == [one.sequence for one in receipts]
    assert {"r1": Status.ACKNOWLEDGED, "r2": Status.QUEUED} == receipts[0].statuses
    assert (2 << 16) == receipts[0].position
    waits = [one.acknowledged() for one in receipts]
    again.node.say("r2", Status.ACKNOWLEDGED, (2, 2))
    again.node.say("r2", Status.DEAD, (3, 3), reason="no")
    again.settle()
    now(waits[0])
    dead = error_of(waits[1], NotDelivered)
    assert ("r2", "dead", "no") == (dead.receiver, dead.state, dead.reason)
    again.close()
    assert [] == rows(tmp_path / "second")
    world.close()


def test_53_what_became_final_before_anybody_asked_is_told_to_who_asks(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    again = restarted(world, tmp_path / "second")
    again.say_acknowledged(1)
    again.node.say("r1", Status.CANCELLED, (2, 2), reason="not wanted")
    again.node.say("r2", Status.REMOVED, (2, 2))
    again.settle()
    third = restarted(again, tmp_path / "third")
    first, second = listed(third)
    assert dict.fromkeys(("r1", "r2"), Status.ACKNOWLEDGED) == first.statuses
    assert {"r1": Status.CANCELLED, "r2": Status.REMOVED} == second.statuses
    assert Change("r1", Status.CANCELLED, "not wanted") in changes_of(second)[0]
    third.close()
    assert [] == rows(tmp_path / "third")
    for one in (again, world):
        one.close()


def test_53_what_was_listed_and_not_told_is_listed_again_after_a_crash(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1")
    again = restarted(world, tmp_path / "second")
    receipts = listed(again)
    assert receipts
    third = restarted(again, tmp_path / "third")
    assert [1] == sequences(third)
    for one in (third, again, world):
        one.close()


def test_53_a_client_wants_the_states_from_its_lowest_open_receipt_on(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2", b"3")
    world.clock.advance(LOOKED_EVERY / 1000)
    world.say_acknowledged(1)
    send(world, b"4")  # with whose row that of the first goes
    world.settle()
    again = restarted(world, tmp_path / "second")
    assert 2 == again.node.hellos[-1].options.status_from
    receipts = listed(again)
    again.clock.advance(LOOKED_EVERY / 1000)
    again.say_acknowledged(2, 4)
    assert all(one.settled().called for one in receipts)
    send(again, b"5")
    again.node.cut()
    again.advance(1)
    assert 5 == again.node.hellos[-1].options.status_from
    again.close()
    world.close()


def deletions(world: DiskWorld, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the file is told to delete from now on."""
    file = world.client._hop._disk.file  # type: ignore[union-attr] # it has one
    change = file.change_receipts
    found: list[tuple[int, int]] = []

    def noted(steps: Any) -> None:
        steps = list(steps)
        found.extend(step.parameters[:2] for step in steps if step.deletes)
        change(steps)

    monkeypatch.setattr(file, "change_receipts", noted)
    return found


def test_53_rows_of_many_messages_that_ended_go_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1")
    found = deletions(world, monkeypatch)
    for sequence in range(2, SAID_WAITING):  # of each it is said that it is taken, and the end
        send(world, b"x")
        world.say_acknowledged(sequence)
    assert 2 <= len(found) <= 4
    assert {2} == {first for first, _ in found}
    assert [last for _, last in found] == sorted(last for _, last in found)
    world.close()
    assert [(1, 1)] == rows(tmp_path / "first")


def test_53_what_has_ended_is_not_listed_though_its_row_has_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    world.clock.advance(LOOKED_EVERY / 1000)
    world.say_acknowledged(1)
    found = deletions(world, monkeypatch)
    send(world, b"3")
    world.say_acknowledged(3)
    assert [] == found
    assert [2] == sequences(world)
    assert [(3, 3)] == found
    world.close()


def test_53_where_there_is_room_for_few_rows_they_go_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = DiskWorld(tmp_path / "first", receipts_max=4)
    send(world, b"1", b"2")
    found = deletions(world, monkeypatch)
    world.say_acknowledged(2)
    assert [(2, 2)] == found
    world.close()


def test_53_receipts_are_listed_page_by_page(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    world.client.send_many("a", [b"%d" % n for n in range(7)])
    world.written()
    send(world, b"8", b"9")
    again = restarted(world, tmp_path / "second")
    pages = [sequences(again, after, 3) for after in (0, 3, 6, 9)]
    assert [[1, 2, 3], [4, 5, 6], [7, 8, 9], []] == pages
    again.say_acknowledged(1, 9)
    assert [] == sequences(again)
    again.close()
    assert [] == rows(tmp_path / "second")
    world.close()


def test_53_half_a_row_that_was_listed_is_half_told(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    world.client.send_many("a", [b"%d" % n for n in range(4)])
    world.written()
    again = restarted(world, tmp_path / "second")
    assert [1, 2] == sequences(again, 0, 2)
    again.say_acknowledged(1, 4)
    again.close()
    assert [(1, 4)] == rows(tmp_path / "second")
    third = restarted(again, tmp_path / "third")
    assert 4 == len(listed(third))
    third.close()
    assert [] == rows(tmp_path / "third")
    world.close()


def test_53_receipts_that_the_program_dropped_are_deleted_when_they_are_final(
    tmp_path: Path,
) -> None:
    world = DiskWorld(tmp_path)
    send(world, b"1", b"2")
    assert [1, 2] == sequences(world)
    world.say_acknowledged(1, 2)
    assert [] == sequences(world)
    world.close()
    assert [] == rows(tmp_path)


def test_53_a_dropped_receipt_is_given_again_with_all_that_is_known(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    send(world, b"1", id="one")
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    (receipt,) = listed(world)
    assert {"r1": Status.ACKNOWLEDGED, "r2": Status.QUEUED} == receipt.statuses
    assert ("one", 1 << 16) == (receipt.id, receipt.position)
    world.node.say("r2", Status.EXPIRED, (1, 1))
    world.settle()
    error_of(receipt.acknowledged(), NotDelivered)
    world.close()


def test_53_a_node_that_cannot_tell_again_is_asked_by_another_connection(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    world.node.knows_retell = False
    send(world, b"1")
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    (receipt,) = listed(world)
    world.advance(1)
    assert 2 == len(world.node.hellos)
    assert {"r1": Status.ACKNOWLEDGED, "r2": Status.QUEUED} == receipt.statuses
    world.close()


def test_53_a_node_that_fails_to_tell_again_is_asked_once_more_on_the_same_connection(
    tmp_path: Path,
) -> None:
    world = DiskWorld(tmp_path)
    world.node.fails_retell = [refusal("not now"), refusal("not now")]
    send(world, b"1")
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    (receipt,) = listed(world)
    for _ in range(8):
        world.advance(1)
    assert 1 == len(world.node.hellos)
    assert [] == world.node.fails_retell
    assert {"r1": Status.ACKNOWLEDGED, "r2": Status.QUEUED} == receipt.statuses
    world.close()


def test_53_a_node_that_has_nothing_of_it_is_left_alone(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    world.node.fails_retell = [refusal("no message", UnknownMessage.refusal_code)]
    send(world, b"1")
    world.settle()
    listed(world)
    for _ in range(8):
        world.advance(1)
    assert 1 == len(world.node.hellos)
    assert 1 == len([one for one in world.node.requests if one.subject == RETELL.right])
    world.close()


def test_53_what_the_node_has_not_got_is_listed_and_accepted_later(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first", start=False)
    send(world, b"1", b"2", id="x")
    again = DiskWorld(world.crash(tmp_path / "second"), start=False)
    receipts = listed(again)
    accepted = [one.accepted for one in receipts]
    assert [1, 2] == [one.sequence for one in receipts]
    assert ["x", "x"] == [one.id for one in receipts]
    again.start()
    assert [1 << 16, 2 << 16] == [now(one).position for one in accepted]
    again.say_acknowledged(1, 2)
    assert all(one.settled().called for one in receipts)
    again.close()
    assert [] == rows(tmp_path / "second")
    world.close()


@pytest.mark.usefixtures("pages_of_two")
def test_53_receipts_of_runs_that_are_not_read_yet_are_those_of_the_runs(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first", start=False)
    send(world, *[b"%d" % n for n in range(6)])
    again = DiskWorld(world.crash(tmp_path / "second"), start=False, window=(1, 1 << 20))
    receipts = listed(again)
    assert 6 == len(receipts)
    again.start()
    again.calls.wait(_once(again, lambda: again.client.unanswered == 0))
    again.say_acknowledged(1, 6)
    for receipt in receipts:
        now(receipt.acknowledged())
    again.close()
    assert [] == rows(tmp_path / "second")
    world.close()


@pytest.fixture
def pages_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.client.outbox_left.PAGE_RUNS", 2)


def refusing(world: DiskWorld) -> None:
    world.node.refusal = lambda transfer: (Action.REFUSED, 0, "not that", 0, "")


def test_53_a_refusal_that_nobody_asked_for_is_told_to_the_next_process(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first", start=False)
    send(world, b"1", b"2")
    again = DiskWorld(world.crash(tmp_path / "second"), start=False)
    refusing(again)
    again.start()
    again.node.refusal = lambda transfer: None
    send(again, b"3")
    assert [b"3"] == again.node.bodies()
    third = restarted(again, tmp_path / "third")
    first, second, _ = listed(third)
    for receipt in (first, second):
        assert "not that" == str(error_of(receipt.accepted, Refused))
        found, ends = changes_of(receipt)
        assert ([], "not that") == (found, str(ends[0]))
    third.say_acknowledged(3)
    third.close()
    assert [] == rows(tmp_path / "third")
    for one in (again, world):
        one.close()


def test_53_a_refusal_that_was_told_is_listed_no_more(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    refusing(world)
    send(world, b"1")
    assert [] == sequences(world)
    world.close()
    assert [] == rows(tmp_path)


def test_53_what_is_refused_twice_is_told_as_the_last_says(tmp_path: Path) -> None:
    """Its refusal is on disk and its settlement is not: it is sent again, and taken."""
    world = DiskWorld(tmp_path / "first", start=False)
    send(world, b"1")
    row = apsw.Connection(str(world.crash(tmp_path / "second") / "outbox.db"))
    noted = note(1, 1, Refused("not that"), None)
    row.execute(noted.sql, noted.parameters)
    row.close()
    again = DiskWorld(tmp_path / "second", start=False)
    (receipt,) = listed(again)
    again.start()
    assert 1 << 16 == now(receipt.accepted).position
    again.close()
    world.close()


def renewed(before: DiskWorld, folder: Path) -> DiskWorld:
    """A process whose node has seen more than was ever sent: it has taken a new incarnation."""
    world = restarted(before, folder)
    old = world.disk.file.incarnation
    world.node.inboxes[old].marks.take(0, 100)
    world.node.cut()
    world.advance(2.0)
    while world.disk.file.incarnation == old:
        call, args, kwargs = world.calls._calls.get(timeout=60)
        call(*args, **kwargs)
    return world


def test_53_a_log_that_went_back_is_told_after_a_restart_too(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    again = renewed(world, tmp_path / "second")
    again.advance(2.0)
    send(again, b"3")  # with which the file learns that the others are settled
    third = restarted(again, tmp_path / "third")
    first, second, newest = listed(third)
    for receipt in (first, second):
        error_of(receipt.acknowledged(), LogWentBack)
        assert receipt.settled().called
    third.say_acknowledged(3)
    now(newest.acknowledged())
    third.close()
    assert [] == rows(tmp_path / "third")
    for one in (again, world):
        one.close()


def test_53_what_the_node_has_lost_is_told(tmp_path: Path, logged: list[LogEvent]) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    again = restarted(world, tmp_path / "second")
    again.node.forget()
    again.node.cut()
    again.advance(2.0)
    receipts = listed(again)
    assert 2 == len(receipts)
    for receipt in receipts:
        error_of(receipt.acknowledged(), PeerForgot)
    again.close()
    assert [] == rows(tmp_path / "second")
    world.close()


def test_53_the_outcome_of_a_promise_is_told_after_a_restart(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first", start=False)
    world.node.features = ["promises"]
    world.start()
    send(world, b"1", promise=Promise(need="any", within=10))
    world.say_acknowledged(1)
    again = restarted(world, tmp_path / "second")
    (receipt,) = listed(again)
    assert Promise(need=1, within=10) == receipt.promise
    promised = receipt.promised()
    found, ends = changes_of(receipt)
    assert not ends
    again.node.say(PROMISE, Status.ACKNOWLEDGED, (1, 1))
    again.settle()
    assert now(promised).kept
    assert Change(PROMISE, Status.ACKNOWLEDGED) == found[-1]
    assert [None] == ends
    again.close()
    assert [] == rows(tmp_path / "second")
    world.close()


def test_53_what_a_file_of_before_had_is_listed_with_its_ids(tmp_path: Path) -> None:
    """Of version 7, which had no rows of receipts: only the messages say their ids."""
    world = DiskWorld(tmp_path / "first", start=False)
    world.client.send("a", b"1", id="one")
    world.client.send("a", b"2")
    world.client.send("a", b"3", id="three")
    world.written()
    send(world, b"4")
    folder = world.crash(tmp_path / "second")
    db = apsw.Connection(str(folder / "outbox.db"))
    kept = db.execute("select name from sqlite_master where name like 'receipt%'").fetchall()
    assert [("receipt",)] == kept
    for step in receipt_rows.FILL.split(";"):
        if step.strip():
            db.execute("delete from receipt")
            db.execute(step)
    db.close()
    again = DiskWorld(folder, start=False)
    assert ["one", None, "three", None] == [receipt.id for receipt in listed(again)]
    again.start()
    again.settle()
    again.say_acknowledged(1, 4)
    assert [] == listed(again)
    again.close()


def test_53_what_the_program_forgets_is_listed_no_more(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    world.client.send_many("a", [b"1", b"2", b"3"])
    world.written()
    send(world, b"4")
    receipts = listed(world)
    for at in (1, 3):
        world.calls.wait(receipts[at].forget())
    again = restarted(world, tmp_path / "second")
    assert [1, 3] == sequences(again)
    assert [(1, 3)] == rows(tmp_path / "second")
    wait = receipts[1].acknowledged()
    world.say_acknowledged(1, 4)
    now(wait)  # that receipt goes on as it was
    for one in (again, world):
        one.close()


def test_53_each_of_a_long_run_is_forgotten_and_the_row_stays_short(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    world.client.send_many("a", [b"x"] * 500)
    world.written()
    for receipt in listed(world, 0, 1000)[100:400]:
        world.calls.wait(receipt.forget())
    db = apsw.Connection(str(tmp_path / "first" / "outbox.db"), flags=apsw.SQLITE_OPEN_READONLY)
    assert [("[[101,400]]",)] == [*db.execute("select forgotten from receipt")]
    db.close()
    again = restarted(world, tmp_path / "second")
    assert [*range(1, 101), *range(401, 501)] == sequences(again)
    for one in (again, world):
        one.close()


def test_53_what_is_listed_to_be_kept_stays_until_it_is_forgotten(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    for receipts in (world.calls.wait(world.client.receipts(keep=True)) for _ in range(2)):
        world.say_acknowledged(1)
        now(receipts[0].acknowledged())
    again = restarted(world, tmp_path / "second")
    receipts = again.calls.wait(again.client.receipts(keep=True))
    again.say_acknowledged(2)
    assert all(receipt.settled().called for receipt in receipts)
    assert [1, 2] == [one.sequence for one in again.calls.wait(again.client.receipts(keep=True))]
    again.calls.wait(receipts[1].forget())
    again.close()
    assert [(1, 1)] == rows(tmp_path / "second")
    error_of(world.client.receipts(keep=1), TypeError)  # type: ignore[arg-type]  # that is the test
    world.close()


def test_53_send_many_is_forgotten_at_once(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    sent = world.client.send_many("a", [b"%d" % n for n in range(5)])
    world.written()
    world.calls.wait(now(sent).forget())
    assert [] == rows(tmp_path)
    world.close()


def test_53_more_runs_than_are_kept_let_the_oldest_go(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path, receipts_max=3)
    send(world, *[b"%d" % n for n in range(8)])
    assert [6, 7, 8] == sequences(world)
    warned = [event for event in logged if "open receipts" in str(event.get("log_format"))]
    assert 1 == len(warned)
    world.say_acknowledged(1, 8)
    world.close()
    assert [] == rows(tmp_path)


def test_53_rows_that_are_to_go_make_room_for_those_that_come(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    world = DiskWorld(tmp_path, receipts_max=3)
    for subject in ("a", "b", "c"):
        world.client.send(subject, b"1")
    world.written()
    world.say_acknowledged(1, 3)  # the three are deleted with what is written next
    assert [(1, 1), (2, 2), (3, 3)] == rows(tmp_path)
    for subject in ("a", "b"):
        world.client.send(subject, b"2")
    world.written()
    assert [4, 5] == sequences(world)
    assert [(4, 4), (5, 5)] == rows(tmp_path)
    assert [] == [event for event in logged if "open receipts" in str(event.get("log_format"))]
    world.close()


def test_53_no_receipts_are_kept_where_none_are_asked_for(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path, receipts_max=0)
    send(world, b"1")
    assert ([], 0) == (rows(tmp_path), world.disk.file.receipts)
    world.close()


def later(world: DiskWorld, *, days: float) -> None:
    """So much time passes, and something is said: what is too old is looked for then."""
    world.clock.advance(days * 24 * 3600)
    world.advance(70)  # it dials anew, if its node was not heard meanwhile
    world.client.send("other", b"x")
    world.written()


def test_53_what_has_ended_and_nobody_asked_for_goes_after_days(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    again = restarted(world, tmp_path / "second")
    again.say_acknowledged(1)
    later(again, days=again.limits.finished_days)
    again.node.say("r1", Status.ACKNOWLEDGED, (2, 2))
    again.settle()
    again.close()
    assert [(2, 2), (3, 3)] == rows(tmp_path / "second")
    world.close()


def test_53_what_ended_after_days_is_kept_for_as_long_from_then_on(tmp_path: Path) -> None:
    """Counted from when it has ended, in whichever process: its receiver was away for long."""
    world = DiskWorld(tmp_path / "first")
    send(world, b"1")
    days = world.limits.finished_days
    again = restarted(world, tmp_path / "second")
    later(again, days=days + 1)
    again.say_acknowledged(1)
    later(again, days=days / 2)
    third = restarted(again, tmp_path / "third")
    third.clock.advance(again.clock.seconds())
    later(third, days=0)
    third.calls.wait(third.client.receipts(keep=True))  # from this on it is kept for as long again
    later(third, days=0)
    fourth = restarted(third, tmp_path / "fourth")
    fourth.clock.advance(third.clock.seconds())
    later(fourth, days=days * 3 / 4)
    assert [1] == sequences(fourth)[:1]
    for one in (fourth, third, again, world):
        one.close()


def test_53_what_is_listed_to_be_kept_stays_however_old_it_is(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    again = restarted(world, tmp_path / "second")
    (first, _) = again.calls.wait(again.client.receipts(keep=True))
    again.say_acknowledged(1)
    again.say_acknowledged(2)
    later(again, days=again.limits.finished_days + 1)
    assert [1, 2] == sequences(again)[:2]
    again.calls.wait(first.forget())
    again.close()
    assert (1, 1) not in rows(tmp_path / "second")
    world.close()


def test_53_who_keeps_all_receipts_keeps_those_of_before_too(tmp_path: Path) -> None:
    """A relay writes down what became of each; it may come to that late."""
    world = DiskWorld(tmp_path / "first")
    send(world, b"1")
    again = restarted(world, tmp_path / "second")
    again.disk._keeps_receipts = True
    again.say_acknowledged(1)
    later(again, days=again.limits.finished_days + 1)
    again.close()
    assert (1, 1) in rows(tmp_path / "second")
    world.close()


def test_53_of_very_many_that_ended_some_are_looked_at_each_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.client.disk.AGED_RANGES", 2)
    world = DiskWorld(tmp_path / "first")
    send(world, *[b"x"] * 9)
    again = restarted(world, tmp_path / "second")
    for sequence in range(1, 10, 2):  # what lies between is open: each is a range of its own
        again.say_acknowledged(sequence)
    file = again.client._hop._disk.file  # type: ignore[union-attr] # it has one
    change, deleted = file.change_receipts, [0]

    def counted(steps: Any) -> None:
        steps = list(steps)
        deleted.append(len(steps))
        change(steps)

    monkeypatch.setattr(file, "change_receipts", counted)
    again.clock.advance(again.limits.finished_days * 24 * 3600 + 120)
    for sequence in (2, 4, 6, 8):  # each time one more has ended, and it is looked
        again.advance(70)
        again.node.say("r1", Status.ACKNOWLEDGED, (sequence, sequence))
        again.settle()
    again.close()
    assert 2 == max(deleted)
    assert [(at, at) for at in (2, 4, 6, 8)] == rows(tmp_path / "second")
    world.close()


def test_53_without_a_file_those_are_listed_that_somebody_holds() -> None:
    world = ClientWorld()
    sent = [world.client.send("a", b"%d" % n) for n in range(3)]
    world.settle()
    receipts = [now(one) for one in sent]
    world.say_acknowledged(2)
    assert [1, 3] == [one.sequence for one in now(world.client.receipts())]
    del receipts
    now(now(sent[0]).forget())


def test_53_a_page_that_cannot_be_is_refused(tmp_path: Path) -> None:
    world = DiskWorld(tmp_path)
    error_of(world.client.receipts(-1), ValueError)
    error_of(world.client.receipts(0, 0), ValueError)
    error_of(world.client.receipts("1"), TypeError)  # type: ignore[arg-type]  # that is the test
    world.close()
    error_of(world.client.receipts(), ClientClosed)


def test_53_changes_are_whom_it_is_for_and_then_each_final_state() -> None:
    world = ClientWorld()
    sent = world.client.send("a", b"1")
    world.settle()
    receipt = now(sent)
    found, ends = changes_of(receipt)
    assert [Change("")] == found
    world.node.say("r1", Status.SENT, (1, 1))
    world.settle()
    assert [Change("")] == found
    world.node.say("r2", Status.DEAD, (1, 1), reason="no\nand why")
    world.settle()
    assert [Change(""), Change("r2", Status.DEAD, "no\nand why")] == found
    assert not ends
    world.node.say("r1", Status.ACKNOWLEDGED, (1, 1))
    world.settle()
    assert Change("r1", Status.ACKNOWLEDGED) == found[-1]
    assert [None] == ends
    assert sorted(found) == sorted(changes_of(receipt)[0])  # each iteration begins anew


def test_53_changes_of_many_that_are_cut_by_the_end_of_the_client() -> None:
    world = ClientWorld()
    sent = world.client.send_many("a", [b"1", b"2"])
    world.settle()
    follows = [changes_of(receipt) for receipt in now(sent)]
    world.node.say("r1", Status.ACKNOWLEDGED, (2, 2))
    world.settle()
    world.client.close()
    world.advance(20)
    assert [[Change("")], [Change(""), Change("r1", Status.ACKNOWLEDGED)]] == [
        found for found, _ in follows
    ]
    for _, ends in follows:
        assert isinstance(ends[0], ClientClosed)


def test_53_what_a_new_incarnation_sends_again_is_told_as_of_that_one(
    tmp_path: Path, logged: list[LogEvent]
) -> None:
    """It was lost, and its settlement is not on disk: so it is sent again after a crash."""
    world = DiskWorld(tmp_path / "first")
    send(world, b"1", b"2")
    again = renewed(world, tmp_path / "second")
    third = restarted(again, tmp_path / "third")
    lost, sent = listed(third)
    error_of(lost.acknowledged(), LogWentBack)
    third.say_acknowledged(2)
    now(sent.acknowledged())
    third.close()
    assert [] == rows(tmp_path / "third")
    for one in (again, world):
        one.close()
