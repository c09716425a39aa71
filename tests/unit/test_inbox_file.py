"""A receiver's stored inbox: effect and mark in one transaction (SEMANTICS 25)."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent

from msgservice.core.frames import Transfer
from msgservice.core.inbox import Arrival
from msgservice.core.marks import HOLES_MAX
from msgservice.errors import LogDamaged, LogFailed, LogLocked, LogUnavailable, Reject
from msgservice.message import BareMessage, encode_messages
from msgservice.receiver.inbox.file import Handled, InboxFile
from msgservice.receiver.inbox.rejections import Rejections
from msgservice.receiver.inbox.transaction import Transaction
from msgservice.records import Resume
from tests.kit.faulty_vfs import faulty_vfs
from tests.kit.threads import ThreadCalls


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


def arrival_of(first: int, count: int) -> Arrival:
    messages = encode_messages([BareMessage(b"%d" % (first + i)) for i in range(count)])
    transfer = Transfer(first, "a", msgspec.Raw(messages))
    return Arrival(transfer, count, None, [(first, first + count - 1)])


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


def test_a_fault_of_our_own_is_logged_and_fails_whoever_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    box = Box(path)

    def save(*arguments: Any) -> None:
        raise ValueError("a fault of ours")

    waiting = [box.start(1, "a")]  # its commit runs: the other two are behind it
    monkeypatch.setattr(Rejections, "save", save)
    waiting += [box.start(2, "b"), box.start(3, "c")]
    assert box.threads.wait(waiting[0]) == Handled(1, None)
    for one in waiting[1:]:
        with pytest.raises(LogFailed, match="a fault of ours"):
            box.threads.wait(one)
    assert [str(event["log_failure"].value) for event in logged_failures] == ["a fault of ours"]
    logged_failures.clear()
    box.close()


@pytest.mark.parametrize("place", ["commit", "statement"])
def test_a_fault_of_our_own_behind_a_commit_fails_whoever_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent], place: str
) -> None:
    box = Box(path)

    def fail(*arguments: Any) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(InboxFile, "_undo", fail)
    monkeypatch.setattr(Rejections, "adopt" if place == "commit" else "save", fail)
    waiting = [box.start(1, "a"), box.start(2, "b")]  # the second is behind the first's commit
    for one in waiting:
        with pytest.raises(LogFailed, match="a fault of ours"):
            box.threads.wait(one)
    with pytest.raises(LogFailed, match="a fault of ours"):
        box.run(3, "c")
    assert "a fault of ours" in {str(event["log_failure"].value) for event in logged_failures}
    logged_failures.clear()
    box.close()


def test_a_file_that_another_program_writes_to_refuses_what_waits(box: Box, path: Path) -> None:
    box.file._file.db.set_busy_timeout(0)
    other = apsw.Connection(str(path))
    other.execute("begin immediate")
    waiting = [box.start(1, "a"), box.start(2, "b")]
    for one in waiting:
        with pytest.raises(LogUnavailable, match="locked"):
            box.threads.wait(one)
    other.execute("rollback")
    other.close()
    assert box.run(1, "a") == Handled(1, None)


def test_25_effects_and_marks_survive_together(box: Box, path: Path, tmp_path: Path) -> None:
    for i in range(1, 20):
        arrival = arrival_of(i, 1)
        box.run(i, f"m{i}", arrival=arrival)
        image = tmp_path / f"image{i}"
        image.mkdir()
        for file in path.parent.glob("inbox.db*"):
            shutil.copy(file, image)
        killed = Box(image / path.name)
        assert killed.file.resume("node", "i.1") == Resume(floor=i + 1, last=arrival.up_to(i))
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


def test_6_a_run_that_was_committed_in_part_is_what_resume_names(box: Box, path: Path) -> None:
    """Else a log that went back gives these sequences to others, which are then called taken."""
    arrival = arrival_of(1, 4)
    assert box.run(1, "a", "b", "!c", "d", arrival=arrival).count == 2
    assert box.file.resume("node", "i.1") == Resume(floor=3, last=arrival.up_to(2))
    assert box.run(3, "!c", arrival=arrival).count == 0
    assert box.file.resume("node", "i.1") == Resume(floor=3, last=arrival.up_to(2))
    assert box.run(3, "c", handle=reject, arrival=arrival).count == 0
    box.close()
    again = Box(path)
    assert again.file.resume("node", "i.1") == Resume(floor=3, last=arrival.up_to(3))
    again.close()


def test_6_the_floor_passes_nothing_that_is_newer_than_what_resume_names(
    box: Box, path: Path
) -> None:
    """What was given up there and never taken here is named by nothing: its sequence may be reused.

    A log that went back gives it to another message, which must not be a repeat.
    """
    first = arrival_of(1, 2)
    box.run(1, "a", "b", arrival=first)
    for n in (3, 4):  # fails until the sender gives it up
        box.run(n, "!", arrival=arrival_of(n, 1), floor=n)
    assert box.file.resume("node", "i.1") == Resume(floor=3, last=first.up_to(2))
    arrival = arrival_of(6, 2)
    box.run(6, "f", "!", arrival=arrival, floor=5, handle=reject)
    assert box.file.resume("node", "i.1") == Resume(floor=3, last=arrival.up_to(6))
    box.run(7, "g", after=6, arrival=arrival, floor=5)
    box.close()
    again = Box(path)
    expected = Resume(floor=3, ranges=((7, 7),), last=arrival.up_to(7))
    assert again.file.resume("node", "i.1") == expected
    again.close()


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
    monkeypatch.setattr("msgservice.receiver.inbox.rejections.REJECTED_MAX", 3)
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


def test_6_what_was_never_taken_stays_a_hole_below_the_senders_floor(box: Box) -> None:
    """A log that goes back has it open again: named as taken, it would count as acknowledged."""
    box.run(2, "b", after=1)
    box.run(5, "e", after=4)
    box.run(9, "!i", after=8, floor=5)
    assert box.file.resume("node", "i.1") == Resume(floor=1, ranges=((2, 2), (5, 5)))
    box.run(9, "i", after=8, floor=9)
    assert box.file.resume("node", "i.1") == Resume(floor=1, ranges=((2, 2), (5, 5), (9, 9)))
    assert box.done() == ["b", "e", "i"]


def test_6_of_many_holes_below_what_is_settled_the_newest_are_kept(box: Box) -> None:
    for n in range(2, 2 * HOLES_MAX + 22, 2):
        box.run(n, str(n), after=n - 1, floor=n)
    resume = box.file.resume("node", "i.1")
    assert (resume.floor, len(resume.ranges)) == (19, HOLES_MAX + 1)  # one is not settled yet


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


class Gate:
    """A gate, and a handler that heeds it."""

    def __init__(self) -> None:
        self.is_shut = False

    @property
    def is_over(self) -> bool:
        return False

    def begin(self, until: float | None) -> float:
        return 0.0

    def __call__(self, body: str, transaction: Transaction) -> None:
        if self.is_shut:
            raise LookupError(body)
        write(body, transaction)


def test_3_nothing_of_a_lane_is_handled_behind_a_commit_that_failed(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.full = lambda name: True
        lanes = [Gate(), Gate()]
        # The first of each lane is in the transaction that fails, the others wait behind it.
        box.file.transaction(lambda transaction: None)
        waiters = [
            box.start(first, f"{first}", handle=lanes[lane], gate=lanes[lane])
            for first, lane in ((1, 0), (2, 1))
        ]
        behind: list[Deferred[Handled]] = []

        def more(failure: Any) -> None:
            if not behind:
                faults.full = lambda name: False
                behind.extend(
                    box.start(first, f"{first}", handle=lanes[lane], gate=lanes[lane])
                    for first, lane in ((3, 1), (4, 0))
                )

        for waiter in waiters:
            waiter.addErrback(more)
        box.threads.wait(gatherResults(waiters))
        for handled in box.threads.wait(gatherResults(behind)):
            assert isinstance(handled.error, LookupError)
        assert box.done() == []
        box.close()


def test_3_nothing_of_a_lane_is_handled_behind_a_result_that_is_an_error(box: Box) -> None:
    lane = Gate()

    def handle(body: str, transaction: Transaction) -> Any:
        lane(body, transaction)
        return Deferred() if body == "a" else None

    waiters = [box.start(n, body, handle=handle, gate=lane) for n, body in ((1, "a"), (2, "b"))]
    first, second = box.threads.wait(gatherResults(waiters))
    assert isinstance(first.error, TypeError)
    assert isinstance(second.error, LookupError)
    assert box.done() == []


def by_statement(transaction: Transaction) -> None:
    transaction.execute("insert or rollback into once values (1)")


def by_table(transaction: Transaction) -> None:
    transaction.execute("create table strict(k primary key on conflict rollback)")
    transaction.executemany("insert into strict values (?)", [(1,), (1,)])


def by_trigger(transaction: Transaction) -> None:
    transaction.execute("create table watched(k)")
    transaction.execute(
        "create trigger no before insert on watched begin select raise(rollback, 'no'); end"
    )
    transaction.execute("insert into watched values (1)")


def while_many_are_made(transaction: Transaction) -> None:
    def bodies() -> Iterator[tuple[str]]:
        yield ("effect",)
        with suppress(apsw.Error):
            by_statement(transaction)
        yield ("effect",)

    transaction.executemany("insert into done values (?)", bodies())


POISONS = [by_statement, by_table, by_trigger, while_many_are_made]


@pytest.fixture
def once(box: Box) -> Box:
    box.transaction(lambda tx: tx.execute("create table once(k primary key)"))
    box.transaction(lambda tx: tx.execute("insert into once values (1)"))
    return box


@pytest.mark.parametrize("is_swallowed", [False, True])
@pytest.mark.parametrize("poison", POISONS)
def test_25_a_message_that_rolls_the_transaction_back_fails_alone(
    once: Box, path: Path, poison: Any, is_swallowed: bool
) -> None:
    handled: list[str] = []

    def handle(body: str, transaction: Transaction) -> None:
        handled.append(body)
        write(body, transaction)
        if body == "poison":
            try:
                poison(transaction)
            except Exception:
                if not is_swallowed:
                    raise
            with suppress(RuntimeError):
                transaction.execute("insert into done values ('effect')")
            with suppress(RuntimeError):
                transaction.executemany("insert into done values (?)", [("effect",)])

    waiters = [
        once.start(1, "a", handle=handle),
        once.start(2, "b", "poison", "never", handle=handle),
        once.start(10, "c", after=9, handle=handle),
    ]
    results = once.threads.wait(gatherResults(waiters))
    assert [result.count for result in results] == [1, 1, 1]
    assert [result.error is None for result in results] == [True, False, True]
    assert once.done() == ["a", "b", "c"]
    assert once.file.resume("node", "i.1") == Resume(floor=3, ranges=((10, 10),))
    assert max(handled.count(body) for body in handled) <= 2
    assert "never" not in handled


def test_25_what_is_rolled_back_is_no_commit_of_any_statement(once: Box, path: Path) -> None:
    """Whatever is written behind it would be committed on its own: another process looks."""
    seen: list[int] = []

    def handle(body: str, transaction: Transaction) -> None:
        with suppress(apsw.Error):
            by_statement(transaction)
        with suppress(RuntimeError):
            transaction.execute("insert into done values ('effect')")
        with sqlite3.connect(path) as db:
            seen.extend(db.execute("select count(*) from done").fetchone())
        db.close()

    assert isinstance(once.run(1, "a", handle=handle).error, RuntimeError)
    assert seen == [0]


def test_25_every_poison_of_a_transaction_fails_alone_and_each_lane_stays_in_order(
    once: Box,
) -> None:
    handled: list[str] = []
    lanes = [Gate() for _ in range(3)]

    def handle_in(lane: Gate) -> Any:
        def handle(body: str, transaction: Transaction) -> None:
            if not lane.is_shut:
                handled.append(body)
            lane(body, transaction)
            if body.startswith("poison"):
                by_statement(transaction)

        return handle

    said = [("a1", 0), ("poison", 1), ("b2", 1), ("c1", 2), ("poison", 2), ("c3", 2), ("a2", 0)]
    waiters = [
        once.start(first, body, handle=handle_in(lanes[lane]), gate=lanes[lane])
        for first, (body, lane) in enumerate(said, 1)
    ]
    results = once.threads.wait(gatherResults(waiters))
    assert [type(result.error) for result in results] == [
        type(None),
        apsw.ConstraintError,
        LookupError,
        type(None),
        apsw.ConstraintError,
        LookupError,
        type(None),
    ]
    assert once.done() == ["a1", "c1", "a2"]
    assert max(handled.count(body) for body in handled if body != "poison") <= 2


def test_25_a_rejection_of_what_rolled_the_transaction_back_is_kept(once: Box) -> None:
    def handle(body: str, transaction: Transaction) -> None:
        try:
            by_statement(transaction)
        except apsw.ConstraintError as error:
            raise Reject("twice") from error

    assert isinstance(once.run(1, "a", handle=handle).error, Reject)
    assert [(r.first, r.reason) for r in once.file.rejected("node", "i.1")] == [(1, "twice")]


def test_25_work_that_rolls_the_transaction_back_fails_alone(once: Box) -> None:
    waiters: list[Deferred[Any]] = [once.start(1, "a"), once.file.transaction(by_statement)]
    with pytest.raises(apsw.ConstraintError):
        once.threads.wait(waiters[1])
    assert once.threads.wait(waiters[0]) == Handled(1, None)
    assert once.run(2, "b") == Handled(1, None)
    assert once.done() == ["a", "b"]


def test_no_room_for_a_statement_that_a_handler_swallows_fails_all_of_the_transaction(
    path: Path,
) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")

        def handle(body: str, transaction: Transaction) -> None:
            write(body, transaction)
            faults.full = lambda name: True
            with suppress(apsw.Error):
                for _ in range(40):  # beyond the page cache, so that it must write
                    transaction.execute("insert into done values (zeroblob(?))", (1 << 20,))
            faults.full = lambda name: False
            with suppress(RuntimeError):
                transaction.execute("insert into done values ('effect')")

        with pytest.raises(LogUnavailable):
            box.run(1, "a", handle=handle)
        assert box.done() == []
        assert box.run(1, "a") == Handled(1, None)
        box.close()


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
    monkeypatch.setattr("msgservice.receiver.inbox.file.CHECKPOINT_COMMITS", 1)
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.full = lambda name: name == "inbox.db"
        assert box.run(1, "a") == Handled(1, None)
        assert box.run(1, "a") == Handled(1, None)
        faults.full = lambda name: False
        assert box.done() == ["a"]
        box.close()


def test_a_write_ahead_log_of_later_than_the_copy_that_was_put_back_is_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.receiver.inbox.file.CHECKPOINT_COMMITS", 2)
    box = Box(path)
    box.run(1, "a")
    box.close()
    copy = {one: one.read_bytes() for one in (path, path.with_name(f"{path.name}.mark"))}
    box = Box(path)
    for sequence in (2, 3, 4):  # the first two are folded in, and no longer in the log
        box.run(sequence, "b")
    wal = path.with_name(f"{path.name}-wal")
    later = wal.read_bytes()
    box.close()
    for one, content in copy.items():
        one.write_bytes(content)
    wal.write_bytes(later)
    with pytest.raises(LogDamaged, match="of a later moment"):
        Box(path)
    wal.write_bytes(b"")
    box = Box(path)
    assert box.done() == ["a"]
    assert box.file.resume("node", "i.1").floor == 2
    box.close()


def test_19_no_room_at_the_end_is_no_failure(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        box.run(1, "a")
        faults.full = lambda name: True
        box.close()
    again = Box(path)
    assert again.file.resume("node", "i.1").floor == 2
    assert again.done() == ["a"]
    again.close()


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


# --- damage: a file that went back in time, whole or in part


def mark_of(path: Path) -> Path:
    return path.with_name(path.name + ".mark")


def is_damaged(path: Path, sentence: str) -> None:
    threads = ThreadCalls()
    file = InboxFile(path, reactor=threads)
    with pytest.raises(LogDamaged, match=sentence):
        threads.wait(file.open())


def filled(path: Path, first: int, *bodies: str) -> bytes:
    """Run these in an inbox; return its file, closed."""
    box = Box(path)
    box.run(first, *bodies)
    box.close()
    return path.read_bytes()


def change(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def test_an_older_copy_is_damaged(path: Path) -> None:
    older = filled(path, 1, "a")
    filled(path, 2, "b", "c")
    path.write_bytes(older)
    is_damaged(path, "its last 1 commits are missing")


def test_an_older_copy_with_its_mark_is_what_it_was(path: Path) -> None:
    older = filled(path, 1, "a"), mark_of(path).read_bytes()
    filled(path, 2, "b")
    path.write_bytes(older[0])
    mark_of(path).write_bytes(older[1])
    box = Box(path)
    assert box.done() == ["a"]
    box.close()


def test_a_file_that_is_gone_is_not_begun_anew(path: Path) -> None:
    filled(path, 1, "a")
    path.unlink()
    is_damaged(path, "inbox.db is missing")
    assert not path.exists()


@pytest.mark.parametrize("content", [None, b""])
def test_a_mark_that_is_gone_is_damaged(path: Path, content: bytes | None) -> None:
    filled(path, 1, "a")
    mark_of(path).unlink()
    if content is not None:
        mark_of(path).write_bytes(content)
    is_damaged(path, "its high-water mark, inbox.db.mark, is missing or unreadable")


@pytest.mark.parametrize(
    "statement",
    [
        "update msgservice_mark set floor = 2",
        "delete from msgservice_mark",
        "update msgservice_rejected set reason = 'another'",
        "delete from msgservice_rejected",
        "update msgservice_head set tables = 0",
    ],
)
def test_marks_and_rejections_are_those_of_the_last_commit(path: Path, statement: str) -> None:
    box = Box(path)
    box.run(1, "a", "b")

    def reject(body: str, transaction: Transaction) -> None:
        raise Reject("why")

    box.run(3, "c", handle=reject)
    box.close()
    change(path, statement)
    is_damaged(path, "its marks are not those of its last commit")


def test_a_head_that_is_gone_is_damaged(path: Path) -> None:
    filled(path, 1, "a")
    change(path, "delete from msgservice_head")
    is_damaged(path, "its head is missing")


def test_a_rejection_that_is_forgotten_is_not_missed(path: Path) -> None:
    box = Box(path)

    def reject(body: str, transaction: Transaction) -> None:
        raise Reject("why")

    box.run(1, "a", handle=reject)
    box.run(1, "a", handle=reject)
    box.run(2, "b", floor=2)
    assert box.file.rejected("node", "i.1") == ()
    box.close()
    assert Box(path).done() == ["b"]


def test_a_first_page_of_before_a_table_was_made_is_damaged(path: Path) -> None:
    threads = ThreadCalls()
    file = InboxFile(path, reactor=threads)
    threads.wait(file.open())
    threads.wait(file.close())
    first = path.read_bytes()[:4096]
    whole = filled(path, 1, "a")
    path.write_bytes(first + whole[4096:])
    is_damaged(path, "its tables are older than its last commit")


def test_pages_of_handlers_that_do_not_hold_together_are_damaged(path: Path) -> None:
    whole = bytearray(filled(path, 1, *["x" * 3000] * 20))
    db = sqlite3.connect(path)
    (page,) = db.execute("select rootpage from sqlite_schema where name = 'done'").fetchone()
    db.close()
    at = (page - 1) * 4096
    whole[at + 3 : at + 5] = b"\0\0"  # it has no cells
    path.write_bytes(whole)
    is_damaged(path, "its pages do not hold together")


def test_tables_may_be_changed_while_no_receiver_runs(path: Path) -> None:
    filled(path, 1, "a")
    change(path, "create index by_body on done(body)", "update done set body = 'A'")
    box = Box(path)
    assert box.done() == ["A"]
    box.close()


def test_what_only_reads_is_no_commit(path: Path) -> None:
    box = Box(path)
    box.run(1, "a")
    head = "select commits from msgservice_head"
    before = box.transaction(lambda tx: tx.execute(head))
    box.done()
    assert box.transaction(lambda tx: tx.execute(head)) == before
    box.close()


def test_a_file_of_version_1_is_brought_up(path: Path) -> None:
    filled(path, 1, "a", "b")
    change(
        path,
        *(
            f"alter table msgservice_head drop column {name}"
            for name in ("commits", "crc", "tables", "turn")
        ),
        "pragma user_version = 1",
    )
    mark_of(path).unlink()
    box = Box(path)
    assert box.file.resume("node", "i.1").floor == 3
    box.run(3, "c")
    box.close()
    box = Box(path)
    assert box.done() == ["a", "b", "c"]
    box.close()
