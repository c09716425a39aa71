"""Pages of an earlier moment, put back whole: log, outbox and inbox say so (SEMANTICS 21).

Each kind of file is made twice, the second time with more in it; what is between the two copies is
then put back page by page, and file by file.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.runs import producer_run
from msgservice.disk.database import connect
from msgservice.disk.files import write_whole
from msgservice.disk.mark import MARKS_SIZE
from msgservice.disk.pages import PAGE, PageSums
from msgservice.errors import LogDamaged, LogError, LogFailed
from msgservice.log import sqlite
from msgservice.log.base import StoreLog
from msgservice.message import Status
from msgservice.receiver.inbox.file import InboxFile
from msgservice.records import Batch, DeadLetter, ExceptionRow, Progress
from tests.kit.logs import Driver, make_batch
from tests.kit.simdisk import SimDisk, SimThreads
from tests.kit.threads import ThreadCalls
from tests.powerloss.histories import Driver as Clocked

NAMES = {"log": "log.db", "outbox": "outbox.db", "inbox": "inbox.db"}


class Opened:
    """A file of one of the three kinds, in a folder."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.threads = ThreadCalls()
        self.file: Any
        if kind == "log":
            self.file = Driver("sqlite", folder, mark="strict").open()
        elif kind == "outbox":
            self.file = OutboxFile(folder / NAMES[kind], reactor=self.threads)
            self.threads.wait(self.file.open())
        else:
            self.file = InboxFile(folder / NAMES[kind], reactor=self.threads)
            self.threads.wait(self.file.open())

    def fill(self, first: int, last: int) -> None:
        """Add something of every table for each number."""
        for number in range(first, last + 1):
            getattr(self, f"_fill_{self.kind}")(number)

    def _fill_log(self, number: int) -> None:
        log: Driver = self.file
        if number == 1:
            log.receivers(1)
        batch = make_batch(log.log.audience([1]), number, [b"%d" % number * 99])
        log.append(batch)
        at = (batch.first,)
        if number % 2:
            row = ExceptionRow(1, *at * 2, Status.DEAD, 1, 0, "no")
            letter = DeadLetter(1, *at, "web", "i1", number, "a", b"\xc4\x01x", "no", 1, 5)
            step = Progress(receiver=1, cursor=batch.last, settled={Status.DEAD: 1})
            step.exceptions.append(row)
            step.dead.append(letter)
            log.append(progress=[step])
        else:
            log.progress(1, batch.last, settled={Status.ACKNOWLEDGED: 1})

    def _fill_outbox(self, number: int) -> None:
        messages = b"\x91\x91\xc5\x03\xe8" + b"%04d" % number * 250
        self.threads.wait(self.file.append([producer_run(number, 1, "orders.new", messages)]))
        if number % 3 == 0:
            self.file.settle([(number - 1, number - 1)])

    def _fill_inbox(self, number: int) -> None:
        def write(body: str, transaction: Any) -> None:
            transaction.execute("create table if not exists done(body)")
            transaction.execute("insert into done values (?)", (body,))

        items = [(number, f"{number}" * 300)]
        self.threads.wait(self.file.run("node", "i.1", items, write, after=number - 1))

    def close(self) -> None:
        if self.kind == "log":
            self.file.close()
        else:
            self.threads.wait(self.file.close())


Made = tuple[str, Path, Path]


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The kind, and two folders as a close left them: the older one has less."""
    folder = tmp_path_factory.mktemp(request.param)
    ignored = shutil.ignore_patterns("reserve")
    file = Opened(request.param, folder / "live")
    file.fill(1, 12)
    file.close()
    shutil.copytree(folder / "live", folder / "older", ignore=ignored)
    file = Opened(request.param, folder / "live")
    file.fill(13, 30)
    shutil.copytree(folder / "live", folder / "killed", ignore=ignored)
    file.close()
    shutil.copytree(folder / "live", folder / "newer", ignore=ignored)
    return request.param, folder / "older", folder / "newer"


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Callable[[Path], Path]:
    def copied(of: Path) -> Path:
        target = tmp_path / "copy"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(of, target)
        return target

    return copied


def changed_pages(older: bytes, newer: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, min(len(older), len(newer)), PAGE):
        if older[at : at + PAGE] != newer[at : at + PAGE]:
            yield at, older[at : at + PAGE]


def test_each_page_of_an_earlier_moment_is_damage(made: Made, copy: Any) -> None:
    kind, older, newer = made
    name = NAMES[kind]
    pages = [*changed_pages((older / name).read_bytes(), (newer / name).read_bytes())]
    assert len(pages) > 2
    for at, page in pages:
        folder = copy(newer)
        with (folder / name).open("r+b") as file:
            file.seek(at)
            file.write(page)
        with pytest.raises(LogDamaged):
            Opened(kind, folder)


@pytest.mark.parametrize("sessions", [0, 1, 2])
def test_a_write_ahead_log_of_an_earlier_moment_is_damage(
    sessions: int, made: Made, copy: Any
) -> None:
    kind, older, newer = made
    folder = copy(newer)
    name = NAMES[kind] + "-wal"
    for session in range(sessions):
        file = Opened(kind, folder)
        file.fill(31 + session, 31 + session)
        file.close()
    shutil.copy(older.parent / "killed" / name, folder / name)
    assert (folder / name).stat().st_size
    if kind == "inbox" and not sessions:  # its close adds nothing: it is what was folded in last
        Opened(kind, folder).close()
        return
    with pytest.raises(LogDamaged):
        Opened(kind, folder)


def test_an_older_copy_of_all_files_is_what_it_was(made: Made, copy: Any) -> None:
    kind, older, newer = made
    for folder in (older, newer, older.parent / "killed"):
        file = Opened(kind, copy(folder))
        file.fill(40, 41)
        file.close()


def test_what_another_program_has_changed_is_taken_as_it_is(made: Made, copy: Any) -> None:
    kind, _, newer = made
    folder = copy(newer)
    name = NAMES[kind]
    db = sqlite3.connect(folder / name)
    db.execute("create table of_another(x)")
    db.commit()
    db.close()
    Opened(kind, folder).close()
    # From then on it is guarded again.
    before = (folder / name).read_bytes()
    file = Opened(kind, folder)
    file.fill(31, 33)
    file.close()
    after = bytearray((folder / name).read_bytes())
    at, page = next(changed_pages(before[PAGE:], bytes(after[PAGE:])))
    after[PAGE + at : 2 * PAGE + at] = page
    (folder / name).write_bytes(after)
    with pytest.raises(LogDamaged):
        Opened(kind, folder)


def test_another_sqlite_in_this_process_takes_no_write_ahead_log_away(
    made: Made, copy: Any
) -> None:
    """Python's own does not see apsw's locks, which are for other processes: it held itself for the
    last one that had the file, and what was stored from then on had no name."""
    kind, _, newer = made
    folder = copy(newer)
    path, wal = folder / NAMES[kind], folder / (NAMES[kind] + "-wal")
    file = Opened(kind, folder)
    file.fill(31, 32)
    before = wal.stat()
    with sqlite3.connect(path) as db:
        db.execute("select count(*) from sqlite_schema").fetchone()
    db.close()
    file.fill(33, 34)
    assert wal.stat().st_ino == before.st_ino
    assert wal.stat().st_size > before.st_size
    killed = folder.with_name("killed")
    shutil.copytree(folder, killed, ignore=shutil.ignore_patterns("reserve"))
    file.close()
    file = Opened(kind, killed)  # the mark says that nothing is missing
    file.fill(35, 36)
    file.close()
    with sqlite3.connect(path) as db:  # and once it is closed, it is any other file
        db.execute("select count(*) from sqlite_schema").fetchone()
    db.close()
    assert not wal.exists()


def test_a_write_ahead_log_that_is_taken_away_meanwhile_is_no_damage(made: Made, copy: Any) -> None:
    kind, _, newer = made
    if kind == "log":
        return  # it watches its files, and ends
    folder = copy(newer)
    file = Opened(kind, folder)
    file.fill(31, 32)
    (folder / (NAMES[kind] + "-wal")).unlink()
    file.close()
    for first in (33, 35):
        file = Opened(kind, folder)
        file.fill(first, first + 1)
        file.close()


def test_sums_that_are_gone_are_made_anew(made: Made, copy: Any) -> None:
    kind, older, newer = made
    folder = copy(newer)
    name, mark = NAMES[kind], "log.mark" if kind == "log" else NAMES[kind] + ".mark"
    os.truncate(folder / mark, MARKS_SIZE)
    Opened(kind, folder).close()
    at, page = [*changed_pages((older / name).read_bytes(), (newer / name).read_bytes())][-1]
    with (folder / name).open("r+b") as file:
        file.seek(at)
        file.write(page)
    with pytest.raises(LogDamaged):
        Opened(kind, folder)


def test_damaged_sums_are_no_damage_of_the_file(made: Made, copy: Any) -> None:
    kind, _, newer = made
    mark = "log.mark" if kind == "log" else NAMES[kind] + ".mark"
    size = (newer / mark).stat().st_size
    assert size > MARKS_SIZE
    random = Random(kind)
    for _ in range(40):
        folder = copy(newer)
        data = bytearray((folder / mark).read_bytes())
        data[random.randrange(MARKS_SIZE, size)] ^= 1 << random.randrange(8)
        (folder / mark).write_bytes(data)
        Opened(kind, folder).close()
        Opened(kind, folder).close()


def test_an_outbox_whose_renewal_went_missing_is_damaged(tmp_path: Path) -> None:
    file = Opened("outbox", tmp_path / "live")
    file.fill(1, 1)
    before = (file.folder / "outbox.db-wal").read_bytes()
    file.threads.wait(file.file.renew())
    file.close()
    (file.folder / "outbox.db-wal").write_bytes(before)
    mark = (file.folder / "outbox.db.mark").read_bytes()
    # As if nothing had been folded in: what is left is whole, and a renewal older.
    file = Opened("outbox", tmp_path / "again")
    file.fill(1, 1)
    image = tmp_path / "image"
    shutil.copytree(file.folder, image)
    file.threads.wait(file.file.renew())
    file.close()
    assert mark != (file.folder / "outbox.db.mark").read_bytes()
    marks = (file.folder / "outbox.db.mark").read_bytes()[:MARKS_SIZE]
    (image / "outbox.db.mark").write_bytes(marks)
    with pytest.raises(LogDamaged, match="its newest incarnation is missing"):
        Opened("outbox", image)


@pytest.mark.parametrize("kind", ["outbox", "inbox"])
def test_a_small_file_of_before_there_were_sums_is_brought_up(kind: str, tmp_path: Path) -> None:
    file = Opened(kind, tmp_path)
    file.fill(1, 3)
    file.close()
    db = sqlite3.connect(tmp_path / NAMES[kind])
    if kind == "outbox":
        db.execute("drop table receipt")
        db.execute("alter table head drop column renewals")
        for column in ("log_id", "kept", "identity", "sender", "untaken", "relayed"):
            db.execute(f"alter table head drop column {column}")
        for column in ("ttl", "handed_at", "delay", "promise"):
            db.execute(f"alter table run drop column {column}")
    db.execute(f"alter table {'head' if kind == 'outbox' else 'msgservice_head'} drop column turn")
    db.execute(f"pragma user_version = {1 if kind == 'outbox' else 2}")
    db.close()
    os.truncate(tmp_path / (NAMES[kind] + ".mark"), MARKS_SIZE)
    for first in (4, 6):
        file = Opened(kind, tmp_path)
        file.fill(first, first + 1)
        file.close()


# --- a large log ----------------------------------------------------------------------------------


def stale_log(made: Made, copy: Any) -> Path:
    """Return a log with an old page that its opening does not read."""
    _, older, newer = made
    folder: Path = copy(newer)
    for at, page in changed_pages((older / "log.db").read_bytes(), (newer / "log.db").read_bytes()):
        folder = copy(newer)
        with (folder / "log.db").open("r+b") as file:
            file.seek(at)
            file.write(page)
        db = apsw.Connection(f"file:{folder}/log.db?immutable=1", flags=apsw.SQLITE_OPEN_URI | 1)
        with suppress(apsw.Error):
            letters = db.execute("select count(*) from dead").get
            if letters == 6:  # it has 15
                db.close()
                return folder
        db.close()
    raise AssertionError("no page of the dead letters alone")


@pytest.mark.parametrize("made", ["log"], indirect=True)
def test_a_large_log_is_compared_beside_its_work(
    made: Made, copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stale_log(made, copy)
    monkeypatch.setattr(sqlite, "LOOK_PAGES_MAX", 0)
    log = Driver("sqlite", folder).open()
    (sentence,) = log.wait(log.log.audit())
    assert "is not the one that was written last" in sentence
    with pytest.raises(LogFailed, match="is not the one that was written last"):
        log.append(make_batch(log.log.audience([1]), 31, [b"x"]))
    with suppress(LogError):
        log.close()


@pytest.mark.parametrize("made", ["log"], indirect=True)
def test_a_page_is_compared_before_another_takes_its_place(
    made: Made, copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stale_log(made, copy)
    monkeypatch.setattr(sqlite, "LOOK_PAGES_MAX", 0)
    monkeypatch.setattr(sqlite.SqliteLog, "_look_on", StoreLog._look_at_pages)
    log = Driver("sqlite", folder).open()
    letter = DeadLetter(1, 31 << 16, "web", "i1", 31, "a", b"\xc4\x01x", "no", 1, 5)
    step = Progress(receiver=1, cursor=30 << 16)
    step.dead.append(letter)
    log.append(progress=[step])
    with pytest.raises(LogFailed, match="is not the one that was written last"):
        log.close()


# --- no room --------------------------------------------------------------------------------------


def test_without_room_for_sums_the_log_is_folded_in_all_the_same(tmp_path: Path) -> None:
    disk = SimDisk(tmp_path, Random(1))
    clocked = Clocked()
    clocked.disk = disk
    clock: Any = clocked.clock

    def opened() -> OutboxFile:
        file = OutboxFile(
            disk.folder / "outbox.db",
            reactor=clock,
            vfs=disk.vfs,
            files=disk.files,
            threads=SimThreads(clock),
        )
        clocked.wait(file.open())
        return file

    file = opened()
    clocked.wait(file.append([producer_run(1, 1, "orders.new", b"\x91\x91\xc4\x01x")]))
    clock.advance(1)
    disk.full = lambda name: errno.ENOSPC if name.endswith(".mark") else 0
    clocked.wait(file.close())
    assert not (disk.folder / "outbox.db-wal").stat().st_size
    disk.full = lambda name: 0
    file = opened()
    clocked.wait(file.append([producer_run(2, 1, "orders.new", b"\x91\x91\xc4\x01y")]))
    clocked.wait(file.close())
    file = opened()
    assert [run.first for run in clocked.wait(file.between(1, 9))] == [1, 2]
    clocked.wait(file.close())
    disk.crash()
    disk.close()


def test_after_want_of_room_no_sums_are_struck_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large log these are millions, in memory at once and between two groups."""
    path = tmp_path / "some.db"
    pages = PageSums(path, tmp_path / "some.mark")
    pages.note_files()
    db = connect(str(path))
    written: list[int] = []
    write = pages._write

    def full(sums: dict[int, int]) -> None:
        raise OSError(errno.ENOSPC, "full")

    def counted(sums: dict[int, int]) -> None:
        written.append(len(sums))
        write(sums)

    def fold(way: Callable[[dict[int, int]], None], body: bytes) -> None:
        db.execute("insert into t values (?)", (body,))
        monkeypatch.setattr(pages, "_write", way)
        pages.take(db)
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    db.execute("create table t(body)")
    pages.begin(db)
    pages.look_at_all()
    fold(counted, b"x" * PAGE * 500)
    fold(full, b"x")
    fold(counted, b"x")
    assert written[0] > 500
    assert written[1] < 10
    db.execute("update t set body = ? where rowid = 1", (b"y" * PAGE * 500,))
    pages.take(db)
    db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    db.close()
    pages.close()
    again = PageSums(path, tmp_path / "some.mark")
    again.note_files()
    db = connect(str(path))
    assert not again.begin(db)
    again.look_at_all()
    db.close()
    again.close()


def test_sums_whose_write_was_lost_while_what_follows_them_was_not_are_made_again(
    tmp_path: Path,
) -> None:
    """The power fails before they are synced: of two writes the second may be left alone."""
    path, mark = tmp_path / "some.db", tmp_path / "some.mark"

    def opened() -> tuple[PageSums, apsw.Connection]:
        pages = PageSums(path, mark)
        pages.note_files()
        db = connect(str(path))
        assert not pages.begin(db)
        pages.look_at_all()
        return pages, db

    def fold(pages: PageSums, db: apsw.Connection) -> None:
        pages.take(db)
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    pages, db = opened()
    db.execute("create table t(body)")
    db.execute("insert into t values ('one')")
    fold(pages, db)
    db.execute("update t set body = 'two'")
    before = mark.read_bytes()
    pages.take(db)
    headers = MARKS_SIZE + 2 * 4096
    mark.write_bytes(mark.read_bytes()[:headers] + before[headers:])
    db.close()
    pages.close()

    pages, db = opened()
    fold(pages, db)
    db.close()
    pages.close()

    pages, db = opened()
    assert db.execute("select body from t").fetchall() == [("two",)]
    db.close()
    pages.close()


SECTOR = 512  # of sums, for 127 pages


class FullFiles:
    """The module `os`, but that for sums there is no room, nor to cut their file short."""

    is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self._check(offset)
        return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, length: int) -> None:
        self._check(length)
        os.ftruncate(descriptor, length)

    def _check(self, offset: int) -> None:
        if self.is_full and offset >= MARKS_SIZE:
            raise OSError(errno.EDQUOT, "quota")


def test_where_the_sums_cannot_be_given_up_either_the_log_goes_on(tmp_path: Path) -> None:
    """As on btrfs at its quota, where the room for that is missing as well."""
    files = FullFiles()
    log = Driver("sqlite", tmp_path, files=files).open()
    taken = 0
    for number in range(1, 8):
        files.is_full = number != 4
        batch = make_batch(log.log.audience([]), number, [b"x" * PAGE * 500])
        taken += sum(isinstance(outcome, Batch) for outcome in log.append(batch))
        if number == 5:
            assert taken == 5
            log.reopen()
    log.close()
    assert (tmp_path / "log.db-wal").stat().st_size > PAGE * 500
    files.is_full = False
    log = Driver("sqlite", tmp_path).open().reopen()
    assert log.snapshot.next_number == taken + 1
    assert log.wait(log.log.audit()) == []
    log.close()


def test_where_the_sums_cannot_be_given_up_either_an_outbox_closes(tmp_path: Path) -> None:
    files, threads = FullFiles(), ThreadCalls()
    for number in (1, 2, 3):
        files.is_full = False
        file = OutboxFile(tmp_path / "outbox.db", reactor=threads, files=files)
        assert threads.wait(file.open()).sequence == number - 1
        files.is_full = True
        threads.wait(file.append([producer_run(number, 1, "a", b"\x91\x91\xc4\x01x")]))
        threads.wait(file.close())
        assert (tmp_path / "outbox.db-wal").stat().st_size


class ShortFiles:
    """The module `os`, but that a write takes no more than some bytes; then there is no room."""

    def __init__(self, size_max: int) -> None:
        self.size_max = size_max
        self.short = 0  # writes that took less than they were given

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self.short += len(data) > self.size_max
        return os.pwrite(descriptor, data[: self.size_max], offset)


def test_a_write_that_takes_less_than_it_was_given_is_gone_on_with(tmp_path: Path) -> None:
    """Else old sums stand behind new pages, and the next start says that the file is damaged."""
    short = ShortFiles(SECTOR)
    threads = ThreadCalls()
    last = 0
    for files in (os, short, os):
        file = OutboxFile(tmp_path / "outbox.db", reactor=threads, files=files)
        assert last == threads.wait(file.open()).sequence
        file.settle([(1, last)])  # pages all over the file are used again
        runs = []
        for number in range(last + 1, last + 400):
            messages = b"\x91\x91\xc5\x03\xe8" + b"%04d" % number * 250
            runs.append(producer_run(number, 1, "orders.new", messages))
        threads.wait(file.append(runs))
        last = number
        threads.wait(file.close())
    assert short.short


def test_a_write_of_nothing_is_an_error(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    write_whole(ShortFiles(3), descriptor, b"0123456789", 5)
    assert b"0123456789" == os.pread(descriptor, 100, 5)
    with pytest.raises(OSError, match="0 of 4 bytes"):
        write_whole(ShortFiles(0), descriptor, b"0123", 0)
    os.close(descriptor)
