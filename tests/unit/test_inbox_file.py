"""A receiver's stored inbox: effect and mark in one transaction (SEMANTICS 25)."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults

from msgservice.errors import LogFailed, LogLocked, LogUnavailable, Reject
from msgservice.log.inbox_file import Handled, InboxFile, Transaction
from msgservice.records import Resume
from tests.faulty_vfs import faulty_vfs
from tests.threads import ThreadCalls


class Box:
    def __init__(self, path: Path, **more: Any) -> None:
        self.threads = ThreadCalls()
        self.file = InboxFile(path, reactor=self.threads, **more)
        self.inbox = self.threads.wait(self.file.open())
        self.transaction(lambda tx: tx.execute("create table if not exists done(body)"))

    def transaction(self, work: Any) -> Any:
        return self.threads.wait(self.file.transaction(work))

    def start(self, first: int, *bodies: str, handle: Any = None, **more: Any) -> Deferred[Handled]:
        items = [(first + i, body) for i, body in enumerate(bodies)]
        more.setdefault("after", first - 1)
        return self.file.run("node", "i.1", items, handle or write, **more)

    def run(self, first: int, *bodies: str, **more: Any) -> Handled:
        return self.threads.wait(self.start(first, *bodies, **more))

    def done(self) -> list[str]:
        found = self.transaction(lambda tx: tx.execute("select body from done order by rowid"))
        return [body for (body,) in found]

    def close(self) -> None:
        self.threads.wait(self.file.close())


def write(body: str, transaction: Transaction) -> None:
    transaction.execute("insert into done values (?)", (body,))
    if body.startswith("!"):
        raise ValueError(body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


@pytest.fixture
def box(path: Path) -> Iterator[Box]:
    box = Box(path)
    yield box
    box.close()


def test_25_a_message_that_comes_again_is_not_handled_again(box: Box) -> None:
    assert box.run(1, "a", "b") == Handled(2, None)
    assert box.run(1, "a", "b", "c") == Handled(3, None)
    assert box.done() == ["a", "b", "c"]


def test_25_effects_and_marks_survive_together(box: Box, path: Path, tmp_path: Path) -> None:
    for i in range(1, 20):
        box.run(i, f"m{i}", last=(i, i, i * 7))
        image = tmp_path / f"image{i}"
        image.mkdir()
        for file in path.parent.glob("inbox.db*"):
            shutil.copy(file, image)
        killed = Box(image / path.name)
        assert killed.file.resume("node", "i.1") == Resume(floor=i + 1, last=(i, i, i * 7))
        assert len(killed.done()) == i
        assert killed.inbox == box.inbox
        killed.close()


def test_25_a_handler_that_raises_undoes_its_own_writes_only(box: Box) -> None:
    handled = box.run(1, "a", "b", "!c", "d")
    assert handled.count == 2
    assert isinstance(handled.error, ValueError)
    assert box.done() == ["a", "b"]
    assert box.file.resume("node", "i.1") == Resume(floor=3)
    assert box.run(3, "c", "d") == Handled(2, None)
    assert box.done() == ["a", "b", "c", "d"]


def test_25_one_run_that_fails_leaves_the_others_of_the_transaction_alone(box: Box) -> None:
    waiters = [box.start(1, "a"), box.start(2, "!b", "c"), box.start(10, "x", after=9)]
    results = box.threads.wait(gatherResults(waiters))
    assert [handled.count for handled in results] == [1, 0, 1]
    assert box.done() == ["a", "x"]
    assert box.file.resume("node", "i.1").ranges == ((10, 10),)


def reject(body: str, transaction: Transaction) -> None:
    raise Reject(f"no {body}")


def test_25_a_rejection_is_kept_until_the_senders_floor_passes_it(box: Box, path: Path) -> None:
    assert box.run(1, "a", handle=reject).count == 0
    box.run(2, "b")
    assert box.run(3, "c", handle=reject).count == 0
    assert box.run(4, "d\ud800", handle=reject).count == 0
    kept = [(1, 1, "no a"), (3, 3, "no c"), (4, 4, "no d?")]
    assert [*box.file.rejected("node", "i.1")] == kept
    assert box.file.rejected("node", "i.2") == ()
    assert box.done() == ["b"]
    box.run(5, "e", floor=3)
    assert [*box.file.rejected("node", "i.1")] == kept[1:]
    box.close()
    again = Box(path)
    assert [*again.file.rejected("node", "i.1")] == kept[1:]
    again.run(6, "f", floor=6)
    assert again.file.rejected("node", "i.1") == ()
    again.close()
    with sqlite3.connect(path) as db:
        assert db.execute("select count(*) from msgservice_rejected").fetchone() == (0,)
    db.close()


def test_25_rejections_of_one_incarnation_are_bounded(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.log.inbox_rejections.REJECTED_MAX", 3)
    for sequence in range(1, 6):
        box.run(sequence, "x", handle=reject)
    assert [one.first for one in box.file.rejected("node", "i.1")] == [3, 4, 5]


def test_25_an_inbox_of_before_there_were_rejections_is_taken_over(path: Path) -> None:
    box = Box(path)
    box.run(1, "a")
    box.close()
    with sqlite3.connect(path) as db:
        db.execute("drop table msgservice_rejected")
    db.close()
    again = Box(path)
    assert again.run(2, "b", handle=reject).count == 0
    assert [one.first for one in again.file.rejected("node", "i.1")] == [2]
    assert again.file.resume("node", "i.1").floor == 2
    again.close()


def test_1_the_gap_before_a_run_is_taken_with_it(box: Box) -> None:
    box.run(5, "e", after=0)
    assert box.file.resume("node", "i.1") == Resume(floor=6)
    box.run(9, "!i", after=5)
    assert box.file.resume("node", "i.1") == Resume(floor=6)


def test_1_all_below_the_senders_floor_is_taken(box: Box) -> None:
    """What became dead leaves no hole for ever."""
    box.run(2, "b", after=1)
    box.run(5, "e", after=4)
    assert box.file.resume("node", "i.1").ranges == ((2, 2), (5, 5))
    box.run(9, "!i", after=8, floor=5)
    assert box.file.resume("node", "i.1") == Resume(floor=6)
    box.run(9, "i", after=8, floor=3)
    assert box.file.resume("node", "i.1") == Resume(floor=6, ranges=((9, 9),))
    assert box.done() == ["b", "e", "i"]


def test_runs_with_holes_skip_what_was_taken(box: Box) -> None:
    box.run(2, "b", after=1)
    box.run(1, "a", "B", "c")
    assert box.done() == ["b", "a", "c"]


def test_incarnations_are_kept_apart(box: Box) -> None:
    box.run(1, "a")
    box.threads.wait(box.file.run("node", "i.2", [(1, "a")], write, after=0))
    assert box.done() == ["a", "a"]


@pytest.mark.parametrize(
    "sql",
    [
        "commit",
        "rollback",
        "begin",
        "savepoint x",
        "release message",
        "pragma synchronous = off",
        "attach ':memory:' as other",
        "delete from msgservice_mark",
        "update msgservice_head set inbox = ''",
        "drop table msgservice_mark",
    ],
)
def test_a_handler_cannot_touch_what_is_not_its_own(box: Box, sql: str) -> None:
    def meddle(body: str, transaction: Transaction) -> None:
        transaction.execute("insert into done values ('x')")
        transaction.execute(sql)

    handled = box.run(1, "a", handle=meddle)
    assert "not authorized" in str(handled.error)
    assert box.done() == []
    assert box.run(1, "a") == Handled(1, None)


def test_25_a_transaction_is_over_when_the_handler_returns(box: Box) -> None:
    kept: list[Transaction] = []
    box.run(1, "a", handle=lambda body, transaction: kept.append(transaction))
    with pytest.raises(RuntimeError, match="over"):
        kept[0].execute("insert into done values ('late')")
    assert box.done() == []


@pytest.mark.parametrize("kind", ["coroutine", "deferred"])
def test_25_an_awaitable_result_is_an_error_and_writes_nothing(box: Box, kind: str) -> None:
    async def later(body: str) -> None:
        pytest.fail("ran")

    def handle(body: str, transaction: Transaction) -> object:
        transaction.execute("insert into done values ('x')")
        return later(body) if kind == "coroutine" else Deferred()

    handled = box.run(1, "a", handle=handle)
    assert isinstance(handled.error, TypeError)
    assert box.done() == []


def test_runs_while_a_commit_runs_share_the_next_one(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.syncs.clear()
        waiters = [box.start(i, f"m{i}") for i in range(1, 101)]
        box.threads.wait(gatherResults(waiters))
        syncs = faults.syncs.count("inbox.db-wal")
        assert len(box.done()) == 100
        box.close()
    assert 1 <= syncs < 20


def test_a_handler_may_hand_in_more(box: Box) -> None:
    more: list[Deferred[Handled]] = []

    def handle(body: str, transaction: Transaction) -> None:
        write(body, transaction)
        more.append(box.start(2, "b"))

    assert box.run(1, "a", handle=handle) == Handled(1, None)
    assert box.threads.wait(more[0]) == Handled(1, None)
    assert box.done() == ["a", "b"]


def test_a_transaction_of_its_own_commits_or_leaves_no_trace(box: Box) -> None:
    def work(transaction: Transaction) -> int:
        transaction.executemany("insert into done values (?)", [("x",), ("y",)])
        return 7

    def broken(transaction: Transaction) -> None:
        transaction.execute("insert into done values ('z')")
        raise KeyError("no")

    assert box.transaction(work) == 7
    with pytest.raises(KeyError):
        box.transaction(broken)
    assert box.done() == ["x", "y"]


def test_no_room_fails_all_of_the_transaction_and_it_can_be_handed_in_again(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        box.run(1, "a")
        faults.full = lambda name: True
        with pytest.raises(LogUnavailable):
            box.run(2, "b")
        assert box.file.resume("node", "i.1").floor == 2
        faults.full = lambda name: False
        assert box.run(2, "b") == Handled(1, None)
        assert box.done() == ["a", "b"]
        box.close()


def test_25_no_room_for_a_checkpoint_takes_back_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.log.inbox_file.CHECKPOINT_COMMITS", 1)
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.full = lambda name: name == "inbox.db"
        assert box.run(1, "a") == Handled(1, None)
        assert box.run(1, "a") == Handled(1, None)
        faults.full = lambda name: False
        assert box.done() == ["a"]
        box.close()


def test_19_a_failed_sync_is_never_told_as_done(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.sync = lambda name: True
        waiters = [box.start(1, "a"), box.start(2, "b")]
        for waiter in waiters:
            with pytest.raises(LogFailed):
                box.threads.wait(waiter)
        assert box.file.resume("node", "i.1") == Resume()
        faults.sync = lambda name: False
        box.close()


def test_the_file_is_locked(box: Box, path: Path) -> None:
    with pytest.raises(LogLocked, match=r"inbox\.db is held by process"):
        Box(path)


def test_closing_finishes_what_was_handed_in(path: Path) -> None:
    box = Box(path)
    waiters = [box.start(1, "a"), box.start(2, "b")]
    box.close()
    assert [box.threads.wait(waiter) for waiter in waiters] == [Handled(1, None)] * 2
    with pytest.raises(LogUnavailable):
        box.run(3, "c")
