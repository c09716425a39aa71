"""The producer's outbox on disk (SEMANTICS 26)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent

from msgservice.client.outbox_file import OutboxFile, OutboxSnapshot
from msgservice.client.outbox_left import row_size
from msgservice.core.runs import Run, producer_run
from msgservice.errors import LogDamaged, LogFailed, LogLocked, LogUnavailable, OutboxFull
from msgservice.message import RunOptions
from tests.kit.faulty_vfs import Faults, faulty_vfs
from tests.kit.threads import ThreadCalls


def run(first: int, count: int = 1, **more: Any) -> Run:
    return producer_run(first, count, "orders.new", b"\x91\x91\xc4\x01%d" % first, **more)


def kept(runs: Iterable[Run]) -> list[tuple[Any, ...]]:
    """Return what is kept of these."""
    return [(r.first, r.count, r.subject, bytes(r.messages), r.options) for r in runs]


class Box:
    def __init__(self, path: Path, **more: Any) -> None:
        self.threads = ThreadCalls()
        self.file = OutboxFile(path, reactor=self.threads, **more)
        self.snapshot: OutboxSnapshot = self.threads.wait(self.file.open())

    def append(self, *runs: Run) -> None:
        self.threads.wait(self.file.append(runs))

    def read(self) -> list[Run]:
        page: list[Run] = self.threads.wait(self.file.read())
        return page

    def close(self) -> None:
        self.threads.wait(self.file.close())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "outbox.db"


@pytest.fixture
def box(path: Path) -> Iterator[Box]:
    box = Box(path)
    yield box
    box.close()


def test_a_new_outbox_is_empty_and_has_an_incarnation(box: Box) -> None:
    assert (box.snapshot.sequence, box.snapshot.runs) == (0, ())
    assert len(box.snapshot.incarnation) == 32


def test_open_runs_come_back_in_order_as_they_were(path: Path) -> None:
    box = Box(path)
    runs = [
        run(1, 3),
        run(4, options=RunOptions(("a", "b"), flags=4)),
        run(5, 200, options=RunOptions(())),
    ]
    box.append(*runs[:2])
    box.append(runs[2])
    box.close()
    again = Box(path)
    assert kept(again.snapshot.runs) == kept(runs)
    assert (again.snapshot.sequence, again.snapshot.incarnation) == (204, box.file.incarnation)
    assert again.file.size == sum(map(row_size, runs))
    again.close()


@pytest.mark.parametrize("count", [1, 16, 400, 1000])
def test_many_runs_of_one_append_come_back(count: int, path: Path) -> None:
    box = Box(path)
    runs = [run(i) for i in range(1, count + 1)]
    box.append(*runs)
    box.close()
    again = Box(path)
    assert kept(again.snapshot.runs) == kept(runs)
    again.close()


def test_what_was_there_is_read_in_pages_and_new_runs_are_none_of_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.client.outbox_left.PAGE_RUNS", 3)
    box = Box(path)
    runs = [run(i) for i in range(1, 9)]
    box.append(*runs)
    box.close()
    again = Box(path)
    assert kept(again.snapshot.runs) == kept(runs[:3])
    assert (again.snapshot.open_ranges, again.snapshot.messages) == (((1, 8),), 8)
    assert again.file.size == sum(map(row_size, runs))
    again.file.settle([(1, 2)])
    again.append(run(9))
    assert again.file.settled_to == 2
    assert kept(again.read()) == kept(runs[3:6])
    again.file.settle([(3, 6)])
    again.append(run(10))
    assert again.file.settled_to == 6  # the seventh was not read, and is open
    assert again.file.has_more
    assert kept(again.read()) == kept(runs[6:])
    assert not again.file.has_more
    again.file.settle([(7, 9)])
    again.append(run(11))
    assert (again.file.settled_to, again.file.size) == (9, 2 * row_size(run(10)))
    again.close()
    last = Box(path)
    assert [r.first for r in last.snapshot.runs] == [10, 11]
    last.close()


@pytest.mark.parametrize("limit", [1, 60])
def test_a_page_is_bounded_in_bytes_and_has_at_least_one_run(
    limit: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.client.outbox_left.PAGE_BYTES", limit)
    box = Box(path)
    box.append(*[producer_run(i, 1, "a", b"\x91\x91\xc4\x14" + b"x" * 20) for i in range(1, 8)])
    box.close()
    again = Box(path)
    found = list(again.snapshot.runs)
    sizes = [len(found)]
    while again.file.has_more:
        page = again.read()
        found += page
        sizes.append(len(page))
    assert [r.first for r in found] == list(range(1, 8))
    assert set(sizes[:-1]) == {1 if limit == 1 else 3}
    again.close()


def test_what_was_told_survives_a_kill(path: Path, tmp_path: Path) -> None:
    box = Box(path)
    for i in range(1, 20):
        box.append(run(i))
        image = tmp_path / f"image{i}"
        shutil.copytree(path.parent, image)
        killed = Box(image / path.name)
        assert [r.first for r in killed.snapshot.runs] == list(range(1, i + 1))
        assert killed.snapshot.sequence == i
        killed.close()
    box.close()


def test_settled_runs_go_and_the_sequence_stays(path: Path) -> None:
    box = Box(path)
    box.append(run(1, 10), run(11, 10), run(21, 10))
    box.file.settle([(1, 10), (15, 30)])
    assert box.file.size == row_size(run(11, 10))
    box.close()
    again = Box(path)
    assert [r.first for r in again.snapshot.runs] == [11]
    assert again.snapshot.sequence == 30
    again.file.settle([(11, 14), (15, 20)])
    again.close()
    last = Box(path)
    assert (last.snapshot.runs, last.snapshot.sequence) == ((), 30)
    last.close()


def test_a_run_goes_when_all_of_it_is_settled_piece_by_piece(box: Box) -> None:
    box.append(run(1, 4), run(5, 4))
    box.file.settle([(2, 3)])
    box.file.settle([(1, 1)])
    assert box.file.size == 2 * row_size(run(1))
    box.file.settle([(4, 6)])
    assert box.file.size == row_size(run(5))
    box.file.settle([(1, 8)])
    box.file.settle([(1, 8)])
    assert box.file.size == 0


class Moves(list[int]):
    """A list that counts how many of its entries a deletion moves."""

    moved = 0

    def __delitem__(self, at: Any) -> None:
        self.moved += len(self)
        super().__delitem__(at)


def test_what_is_settled_one_by_one_does_not_move_all_that_is_open(box: Box) -> None:
    box.append(*[run(n) for n in range(1, 5001)])
    box.file._firsts = numbers = Moves(box.file._firsts)
    for n in range(1, 2001):
        box.file.settle([(n, n)])
    assert numbers.moved == 0
    assert box.file._lowest() == 2000
    for n in [*range(3001, 5001), *range(2001, 3000)]:
        box.file.settle([(n, n)])
    assert box.file._lowest() == 2999
    assert len(box.file._firsts) < 1100
    assert box.file.size == row_size(run(3000))
    box.file.settle([(3000, 3000)])
    assert box.file._lowest() == box.file.sequence == 5000
    assert box.file.size == 0


def test_appends_while_a_commit_runs_share_the_next_one(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.syncs.clear()
        waiters = [box.file.append([run(i)]) for i in range(1, 101)]
        box.threads.wait(gatherResults(waiters))
        syncs = faults.syncs.count("outbox.db-wal")
        box.close()
    assert 1 <= syncs < 20


def test_a_full_outbox_refuses_and_takes_again_when_there_is_room(path: Path) -> None:
    box = Box(path, size_max=2 * row_size(run(1)))
    box.append(run(1), run(2))
    with pytest.raises(OutboxFull, match=f"at most {2 * row_size(run(1))}"):
        box.append(run(3))
    assert box.file.sequence == 2
    box.file.settle([(1, 1)])
    box.append(run(3))
    box.close()
    again = Box(path)
    assert [r.first for r in again.snapshot.runs] == [2, 3]
    again.close()


def test_sequences_only_rise(box: Box) -> None:
    box.append(run(5, 5))
    with pytest.raises(ValueError, match="9 was handed in before"):
        box.append(run(9))


def test_the_file_is_locked(box: Box, path: Path) -> None:
    with pytest.raises(LogLocked, match=r"outbox\.db is held by process"):
        Box(path)


def test_a_new_incarnation_stays(path: Path) -> None:
    box = Box(path)
    box.append(run(1))
    old = box.file.incarnation
    new = box.threads.wait(box.file.renew())
    assert new != old
    assert box.file.incarnation == new
    box.close()
    again = Box(path)
    assert (again.snapshot.incarnation, len(again.snapshot.runs)) == (new, 1)
    again.close()


def test_after_close_nothing_is_taken(path: Path) -> None:
    box = Box(path)
    waiter = box.file.append([run(1)])
    box.close()
    box.close()
    box.threads.wait(waiter)
    with pytest.raises(LogUnavailable):
        box.append(run(2))


def test_no_room_on_the_disk_fails_the_append_alone(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        box.append(run(1))
        faults.full = lambda name: True
        with pytest.raises(LogUnavailable):
            box.append(run(2))
        assert box.file.size == row_size(run(1))
        faults.full = lambda name: False
        box.append(run(3))
        box.close()
        again = Box(path)
        assert [r.first for r in again.snapshot.runs] == [1, 3]
        again.close()


def test_no_room_for_a_checkpoint_takes_back_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.client.outbox_file.CHECKPOINT_BYTES", 1)
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.full = lambda name: name == "outbox.db"
        box.append(run(1))
        box.append(run(2))
        faults.full = lambda name: False
        box.close()
        again = Box(path)
        assert [r.first for r in again.snapshot.runs] == [1, 2]
        again.close()


def test_a_write_ahead_log_of_later_than_the_copy_that_was_put_back_is_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.client.outbox_file.CHECKPOINT_BYTES", 2 * 4096 * 4)
    box = Box(path)
    box.append(run(1))
    box.close()
    copy = {one: one.read_bytes() for one in (path, path.with_name(f"{path.name}.mark"))}
    box = Box(path)
    for first in (2, 3, 4):  # the first two are folded in, and no longer in the log
        box.append(run(first))
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
    assert kept(box.snapshot.runs) == kept([run(1)])
    box.close()


@pytest.mark.parametrize("full", ["outbox.db", "outbox.db-wal"])
def test_19_no_room_at_the_end_is_no_failure(path: Path, full: str) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        box.append(run(1), run(2))
        box.file.settle([(1, 1)])
        faults.full = lambda name: name == full
        box.close()
    again = Box(path)
    assert [r.first for r in again.snapshot.runs][-1:] == [2]
    again.close()


def test_19_a_failed_sync_is_never_told_as_stored(path: Path) -> None:
    faults: Faults
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        box.append(run(1))
        faults.sync = lambda name: True
        with pytest.raises(LogFailed):
            box.append(run(2))
        faults.sync = lambda name: False
        with pytest.raises(LogFailed):
            box.append(run(3))
        box.close()
        again = Box(path)
        assert again.snapshot.runs[0].first == 1
        again.close()


def test_6_the_id_of_a_log_that_found_no_room_is_written_with_what_is_next(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        box.append(run(1))
        faults.full = lambda name: True
        box.file.note_log("log")
        with pytest.raises(LogUnavailable):
            box.append(run(2))
        faults.full = lambda name: False
        box.append(run(3))
        box.close()
    again = Box(path)
    assert again.snapshot.log_id == "log"
    again.close()


@pytest.mark.parametrize("is_written", [True, False])
def test_6_the_newest_id_of_a_log_is_kept(path: Path, is_written: bool) -> None:
    box = Box(path)
    for number in range(4):
        box.file.note_log(f"log-{number}")
    if is_written:
        box.append(run(1))
    box.close()
    again = Box(path)
    assert again.snapshot.log_id == "log-3"
    again.close()


def test_a_fault_of_our_own_behind_a_commit_fails_whoever_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    box = Box(path)

    def fail(*arguments: Any) -> None:
        raise ValueError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(OutboxFile, "_write", fail)
        patched.setattr(OutboxFile, "_remove", fail)
        waiting = [box.file.append([run(1)]), box.file.append([run(2)])]
        for one in waiting:
            with pytest.raises(LogFailed, match="a fault of ours"):
                box.threads.wait(one)
    with pytest.raises(LogFailed, match="a fault of ours"):
        box.append(run(3))
    assert ["a fault of ours"] == [str(event["log_failure"].value) for event in logged_failures]
    logged_failures.clear()
    box.close()


def test_19_what_waits_behind_a_failed_sync_fails_with_it(path: Path) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.sync = lambda name: True
        told: list[Any] = []
        for first in (1, 2, 3):
            box.file.append([run(first)]).addErrback(told.append)
        # The writer has nothing more to do: whatever is told, is told with its one answer.
        function, arguments, _ = box.threads._calls.get(timeout=60)
        function(*arguments)
        assert [failure.check(LogFailed) for failure in told] == [LogFailed] * 3
        assert box.file.size == 0
        faults.sync = lambda name: False
        box.close()


def test_19_after_a_failed_sync_the_error_says_what_recovers_and_nothing_else_is_written(
    path: Path,
) -> None:
    with faulty_vfs() as faults:
        box = Box(path, vfs="faulty")
        faults.sync = lambda name: True
        with pytest.raises(LogFailed, match=r"outbox\.db cannot be written: .*sync failed.*close"):
            box.threads.wait(box.file.renew())
        faults.sync = lambda name: False
        faults.syncs.clear()
        calls: list[Callable[[], Deferred[Any]]] = [
            box.file.renew,
            lambda: box.file.append([run(1)]),
        ]
        for again in calls:
            with pytest.raises(LogFailed, match="close the client, then connect"):
                box.threads.wait(again())
        assert faults.syncs == []
        assert box.file.incarnation == box.snapshot.incarnation
        box.close()
        reopened = Box(path)
        reopened.append(run(1))
        reopened.close()


@pytest.mark.parametrize("damage", ["wal", "mark", "file", "messages"])
def test_damage_is_reported(damage: str, path: Path, tmp_path: Path) -> None:
    box = Box(path)
    for i in range(1, 20):
        box.append(run(i))
    box.threads.wait(box.file.renew())  # the mark of the last run is written by now, or is soon
    assert box.file._file._marks is not None
    from msgservice.disk.mark import Mark

    box.file._file._marks.wait(Mark("outbox", 19, 0, 0))
    image = tmp_path / "image"
    shutil.copytree(path.parent, image)
    box.close()
    if damage == "wal":
        wal = image / "outbox.db-wal"
        data = bytearray(wal.read_bytes())
        data[len(data) // 2] ^= 1
        wal.write_bytes(data)
    elif damage == "mark":
        (image / "outbox.db.mark").unlink()
    elif damage == "file":
        (image / "outbox.db").unlink()
        (image / "outbox.db-wal").unlink()
    else:
        db = apsw.Connection(str(image / "outbox.db"))
        db.execute("update run set messages = x'00' where first = 7")
        db.close()
    told = "outbox.db.mark, is missing" if damage == "mark" else None
    with pytest.raises(LogDamaged, match=told):
        Box(image / "outbox.db")
