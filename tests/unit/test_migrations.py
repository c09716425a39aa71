"""Files of the first version are brought up: by one copy and one transaction, or not at all.

`old_files/version_1.tar.xz` holds a log, an outbox and an inbox as the first programs left them.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import apsw
import msgspec
import pytest
from twisted.logger import globalLogPublisher

from msgservice.client import outbox_file
from msgservice.client.outbox_file import OutboxFile
from msgservice.disk.database import backup, connect
from msgservice.disk.migrations import Schema, migrate
from msgservice.errors import DataFolderUnusable, LimitReached, LogDamaged, LogTooNew
from msgservice.log import sqlite
from msgservice.log.schema import SCHEMA
from msgservice.log.sqlite import SqliteLog
from msgservice.receiver.inbox import file as inbox_file
from msgservice.receiver.inbox.file import InboxFile
from msgservice.records import Batch, Group, Progress, ReceiverRow
from tests.kit.logs import make_batch
from tests.kit.simdisk import SimDisk, SimThreads
from tests.powerloss.histories import LIMITS, Driver, Stopped

FILES = Path(__file__).with_name("old_files") / "version_1.tar.xz"
MODULES: dict[str, Any] = {"log": sqlite, "outbox": outbox_file, "inbox": inbox_file}


class Kind:
    """One kind of file, on a disk of its own in its first version."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind = kind
        self.name = f"{kind}.db"
        self.root = root
        with tarfile.open(FILES) as archive:
            members = [m for m in archive if m.isfile() and m.name.startswith(f"{kind}/")]
            self.files = {Path(m.name).name: self._content(archive, m) for m in members}
        self.dump = self.dump_of(self.files[self.name])
        self.notices: list[str] = []

    def _content(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(member)
        assert file is not None
        return file.read()

    def disk(self) -> SimDisk:
        return SimDisk(self.root, Random(1), dict(self.files))

    def open(self, disk: SimDisk) -> object:
        """Open the file, return what it holds, and close it; `Stopped` where it is cut off."""
        driver = Driver()
        driver.disk = disk
        clock: Any = driver.clock
        more: dict[str, Any] = {
            "reactor": clock,
            "entropy": Random(1).randbytes,
            "vfs": disk.vfs,
            "files": disk.files,
            "threads": SimThreads(clock, lambda: 0.001),
        }
        found: object
        opened: Any
        if self.kind == "log":
            opened = SqliteLog(disk.folder, limits=LIMITS, **more)
            snapshot = driver.wait(opened.open())
            self.notices = list(snapshot.notices)
            found = (snapshot.log_id, snapshot.next_number, snapshot.receivers)
            assert driver.wait(opened.audit()) == []
        elif self.kind == "outbox":
            opened = OutboxFile(disk.folder / self.name, **more)
            left = driver.wait(opened.open())
            runs = [msgspec.structs.astuple(run) for run in left.runs]
            found = (left.incarnation, left.sequence, runs)
        else:
            opened = InboxFile(disk.folder / self.name, **more)
            found = (driver.wait(opened.open()), opened.resume("node", "i.1"))
        driver.wait(opened.close())
        return found

    def log_on(self, disk: SimDisk, **limits: Any) -> tuple[Driver, SqliteLog]:
        """An open log, and who waits for it."""
        driver = Driver()
        driver.disk = disk
        clock: Any = driver.clock
        log = SqliteLog(
            disk.folder,
            limits=replace(LIMITS, **limits),
            reactor=clock,
            entropy=Random(1).randbytes,
            vfs=disk.vfs,
            files=disk.files,
            threads=SimThreads(clock, lambda: 0.001),
        )
        driver.wait(log.open())
        return driver, log

    def wait_and_stop(self, disk: SimDisk, group: Group | None = None) -> None:
        """Open a log, let days pass in which it takes in this group alone, and close it."""
        if self.kind != "log":
            self.open(disk)
            return
        driver, log = self.log_on(disk)
        for hour in range(0, 60, 10):
            while driver.wait(log.retain(hour * 3_600_000)):
                pass
            if group is not None and hour == 30:
                driver.wait(log.append(group))
        driver.wait(log.close())

    def dump_of(self, content: bytes, wal: bytes = b"") -> tuple[int, list[str]]:
        """The version of a file and all that is in it, as another program reads it."""
        self.root.mkdir(exist_ok=True)
        path = self.root / "looked-at.db"
        for name, value in (("", content), ("-wal", wal), ("-shm", b"")):
            path.with_name(path.name + name).unlink(missing_ok=True)
            if value:
                path.with_name(path.name + name).write_bytes(value)
        db = sqlite3.connect(path)
        try:
            (version,) = db.execute("pragma user_version").fetchone()
            return version, list(db.iterdump())
        finally:
            db.close()

    def dump_on(self, disk: SimDisk) -> tuple[int, list[str]]:
        files = disk.copy()
        return self.dump_of(files[self.name], files.get(self.name + "-wal", b""))

    @property
    def schema(self) -> Schema:
        found = MODULES[self.kind].SCHEMA
        assert isinstance(found, Schema)
        return found

    def copies(self, disk: SimDisk) -> list[str]:
        return sorted(name for name in disk.copy() if ".before-" in name)


@pytest.fixture(params=["log", "outbox", "inbox"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return Kind(request.param, tmp_path / "disk")


@pytest.fixture
def step(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Schema]:
    """Add a step to the newest version."""

    def add(sql: str) -> Schema:
        longer = replace(kind.schema, steps=(*kind.schema.steps, sql))
        monkeypatch.setattr(MODULES[kind.kind], "SCHEMA", longer)
        return longer

    return add


def test_a_file_of_version_1_is_brought_up_after_one_copy(kind: Kind) -> None:
    disk = kind.disk()
    said: list[str] = []

    def observe(event: Any) -> None:
        said.append(event.get("notice", ""))

    observer: Any = observe
    globalLogPublisher.addObserver(observer)
    try:
        found = kind.open(disk)
    finally:
        globalLogPublisher.removeObserver(observer)
    newest = kind.schema.newest
    copy = f"{kind.name}.before-{newest}"
    assert kind.copies(disk) == [copy]
    assert stat.S_IMODE((disk.folder / copy).stat().st_mode) == 0o600
    assert kind.dump_of(disk.copy()[copy]) == kind.dump
    told = f"{kind.name} is migrated from version 1 to {newest}; copy in {copy}"
    assert told in (kind.notices if kind.kind == "log" else said)
    assert kind.dump_on(disk)[0] == newest
    assert kind.open(disk) == found
    assert kind.copies(disk) == [copy]


def test_a_copy_of_before_is_not_overwritten(kind: Kind) -> None:
    copy = f"{kind.name}.before-{kind.schema.newest}"
    kind.files[copy] = b"of an earlier time"
    kind.files[copy + ".partial"] = b"of an upgrade that was killed"
    disk = kind.disk()
    kind.open(disk)
    assert kind.copies(disk) == [copy, f"{copy}-2"]
    assert disk.copy()[copy] == b"of an earlier time"
    assert kind.dump_of(disk.copy()[f"{copy}-2"]) == kind.dump


def test_the_copy_can_take_the_place_of_the_file(kind: Kind) -> None:
    disk = kind.disk()
    expected = kind.open(disk)
    left = {name: content for name, content in disk.copy().items() if "db-" not in name}
    left[kind.name] = left[f"{kind.name}.before-{kind.schema.newest}"]
    if kind.kind == "inbox":
        del left[kind.name + ".mark"]  # version 1 had none
    assert kind.open(SimDisk(disk.root, Random(1), left)) == expected


def test_a_file_that_was_put_back_and_used_is_brought_up_once_more(
    kind: Kind, tmp_path: Path
) -> None:
    """The older program leaves the sums of pages that the newer one has noted as they are."""
    disk = kind.disk()
    expected = kind.open(disk)
    left = {name: content for name, content in disk.copy().items() if "db-" not in name}
    left[kind.name] = left.pop(f"{kind.name}.before-{kind.schema.newest}")
    if kind.kind == "inbox":
        del left[kind.name + ".mark"]  # version 1 had none
    path = tmp_path / kind.name
    path.write_bytes(left[kind.name])
    db = connect(str(path))
    db.execute("create table older(a)")
    db.execute("insert into older select zeroblob(4000) from json_each('[1, 2, 3, 4, 5, 6, 7]')")
    db.execute("drop table older")  # a file of as many pages, and more
    db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    db.close()
    left[kind.name], left[kind.name + "-wal"] = path.read_bytes(), b""
    assert kind.open(SimDisk(disk.root, Random(1), left)) == expected


def brought_up(kind: Kind, step: Callable[[str], Schema], monkeypatch: Any) -> tuple[SimDisk, Any]:
    """A disk with a file that has a mark, one version up, where this is the older program again;
    and what the file held."""
    disk = kind.disk()
    expected = kind.open(disk)
    older = kind.schema
    step("create table msgservice_more(a)")
    kind.open(disk)
    kind.wait_and_stop(disk)
    kind.wait_and_stop(disk)
    monkeypatch.setattr(MODULES[kind.kind], "SCHEMA", older)
    return disk, expected


def put_back(kind: Kind, disk: SimDisk) -> SimDisk:
    left = {name: content for name, content in disk.copy().items() if "db-" not in name}
    left[kind.name] = left[f"{kind.name}.before-{kind.schema.newest + 1}"]
    return SimDisk(disk.root, Random(1), left)


def test_a_copy_takes_the_place_of_a_file_that_has_taken_nothing_in_since(
    kind: Kind, step: Callable[[str], Schema], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the newer program was started, stood by and was stopped: its mark says what the
    copy has."""
    disk, expected = brought_up(kind, step, monkeypatch)
    assert kind.open(put_back(kind, disk)) == expected


def test_a_copy_counts_changes_of_tables_as_the_file_does(tmp_path: Path) -> None:
    """An inbox says with each commit how many there were: SQLite's backup begins to count anew."""
    db = connect(str(tmp_path / "of.db"))
    for name in "abc":
        db.execute(f"create table {name}(a)")
    backup(db, tmp_path / "copy.db")
    copy = connect(str(tmp_path / "copy.db"))
    assert copy.pragma("schema_version") == db.pragma("schema_version") > 1
    assert copy.pragma("integrity_check") == "ok"
    copy.close()
    db.close()


def test_a_copy_does_not_take_the_place_of_a_log_that_has_taken_something_in(
    step: Callable[[str], Schema], monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    if kind.kind != "log":
        pytest.skip("its marks count what is taken in and nothing else")
    disk, _ = brought_up(kind, step, monkeypatch)
    longer = replace(kind.schema, steps=(*kind.schema.steps, "never run again"))
    older = kind.schema
    monkeypatch.setattr(MODULES[kind.kind], "SCHEMA", longer)
    kind.wait_and_stop(disk, Group(receivers=[ReceiverRow(number=99, name="r99", cursor=-1)]))
    monkeypatch.setattr(MODULES[kind.kind], "SCHEMA", older)
    with pytest.raises(LogDamaged, match="are missing"):
        kind.open(put_back(kind, disk))


@pytest.mark.parametrize("limit", ["audiences", "kept_batches"])
def test_a_log_that_was_brought_up_lets_history_go_where_something_finds_no_room(
    limit: str, step: Callable[[str], Schema], kind: Kind
) -> None:
    """Else what it refuses would never come in, and nothing ever go."""
    if kind.kind != "log":
        pytest.skip("it is the log that keeps history")
    disk = kind.disk()
    driver, log = kind.log_on(disk, keep_seconds=1e6)
    steps = [Progress(receiver=number, cursor=(2 << 16) + 1) for number in (1, 2)]
    driver.wait(log.append(Group(progress=steps)))
    driver.wait(log.close())
    step("create table msgservice_more(a)")
    few = {"kept_batches": 2} if limit == "kept_batches" else {limit: 1}
    driver, log = kind.log_on(disk, keep_seconds=1e6, **few)
    if limit == "audiences":
        with pytest.raises(LimitReached, match="audiences"):
            log.audience([1])
        log.want_room("audiences", "")
        for minute in range(0, 60, 10):
            while driver.wait(log.retain(minute * 60_000)):
                pass
    group = Group(batches=[make_batch(log.audience([1]), 4)])
    (taken,) = driver.wait(log.append(group)).outcomes
    assert isinstance(taken, Batch)
    assert taken.number == 3
    driver.wait(log.close())


def test_a_step_that_changes_nothing_makes_no_copy(
    kind: Kind, step: Callable[[str], Schema]
) -> None:
    disk = kind.disk()
    kind.open(disk)
    copies = kind.copies(disk)
    step("")
    kind.open(disk)
    assert kind.copies(disk) == copies
    assert kind.dump_on(disk)[0] == kind.schema.newest


@pytest.mark.parametrize("end", ["killed", "power failure"])
def test_an_upgrade_that_is_cut_off_anywhere_is_done_again(kind: Kind, end: str) -> None:
    whole = kind.disk()
    expected = kind.open(whole)
    newest = kind.schema.newest
    versions = set()
    for cut in range(1, whole.operations + 1):
        disk = kind.disk()
        disk.cut_at = cut
        with pytest.raises(Stopped):
            kind.open(disk)
        disk = disk.killed() if end == "killed" else disk.restart()
        version, _ = found = kind.dump_on(disk)
        versions.add(version)
        assert version == newest or found == kind.dump
        copies = kind.copies(disk)
        assert version == 1 or copies == [f"{kind.name}.before-{newest}"]
        assert kind.open(disk) == expected
        copies = kind.copies(disk)
        assert copies[0] == f"{kind.name}.before-{newest}"
        assert len(copies) <= 2  # the second where the first had its name already
        assert all(kind.dump_of(disk.copy()[name]) == kind.dump for name in copies)
    assert versions == {1, newest}


def test_a_step_that_fails_leaves_the_file_as_it_was(
    kind: Kind, step: Callable[[str], Schema]
) -> None:
    longer = step("insert into no_such_table values (1)")
    disk = kind.disk()
    names = set(disk.copy())
    with pytest.raises(LogDamaged) as raised:
        kind.open(disk)
    for part in (
        f"{kind.name} of version 1 cannot be brought to {longer.newest}: ",
        "no such table: no_such_table",
        f"it stays as it was, and the copy {kind.name}.before-{longer.newest}",
    ):
        assert part in str(raised.value)
    assert kind.dump_on(disk) == kind.dump
    assert not kind.copies(disk)
    assert names <= set(disk.copy())


def test_a_file_of_a_newer_version_is_refused_and_left_alone(kind: Kind) -> None:
    disk = kind.disk()
    kind.open(disk)
    db = sqlite3.connect(disk.folder / kind.name)
    newest = kind.schema.newest
    db.execute(f"pragma user_version = {newest + 1}")
    db.close()
    before = {path.name: path.read_bytes() for path in disk.folder.iterdir()}
    with pytest.raises(LogTooNew, match=f"{kind.name} has .* {newest + 1}, .* up to {newest}:"):
        kind.open(disk)
    after = {path.name: path.read_bytes() for path in disk.folder.iterdir()}
    assert after[kind.name] == before[kind.name]
    assert [name for name in after if name.endswith("-wal") and after[name]] == []
    assert kind.copies(disk) == [f"{kind.name}.before-{newest}"]


@pytest.mark.parametrize("place", ["copy", "steps"])
def test_a_full_disk_refuses_and_leaves_nothing_half_done(
    kind: Kind, place: str, step: Callable[[str], Schema]
) -> None:
    longer = step("create table extra(a); insert into extra values (zeroblob(30000))")
    end = ".partial" if place == "copy" else "-wal"
    disk = kind.disk()

    def full(name: str) -> int:
        # What the file has when it is opened is written: the steps are not.
        is_meant = name.endswith(end) and (place == "copy" or copied(disk))
        return errno.ENOSPC if is_meant else 0

    disk.full = full
    with pytest.raises(DataFolderUnusable, match="make room"):
        kind.open(disk)
    assert kind.dump_on(disk) == kind.dump
    assert not kind.copies(disk)
    disk.full = lambda _: 0
    kind.open(disk)
    assert kind.dump_on(disk)[0] == longer.newest
    assert kind.copies(disk) == [f"{kind.name}.before-{longer.newest}"]


def copied(disk: SimDisk) -> bool:
    return any(".before-" in path.name for path in disk.folder.iterdir())


@pytest.mark.parametrize("age", [70_000, None])
def test_who_was_removed_before_logs_said_when_was_so_at_the_upgrade(age: int | None) -> None:
    """His dead letters stay for as long from then on; older logs' ages are the newest stamps."""
    schema = SCHEMA
    db = apsw.Connection(":memory:")
    migrate(db, replace(schema, steps=schema.steps[:6]), None)
    if age is not None:
        db.execute("insert into meta values ('age', ?)", (age,))
    db.execute("insert into finished values (1, 1, 1, 1, 3, '', 50000)")
    for number, removed in ((-1, 0), (1, 1), (2, 0)):
        db.execute(
            "insert into progress values (?, 0, ?, 0, 0, 0, 0, 0, 0, 0, null)", (number, removed)
        )
    migrate(db, schema, None)
    found = dict(db.execute("select receiver, removed_at from progress"))
    assert {-1: None, 1: age or 50_000, 2: None} == found
