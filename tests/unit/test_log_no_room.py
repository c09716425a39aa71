"""No room is more than ENOSPC: a quota, a limit on the size of files (SEMANTICS 19).

`RLIMIT_FSIZE` gives EFBIG, which SQLite calls a failed write, as it does with EDQUOT.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from twisted.internet.defer import Deferred

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.runs import producer_run
from msgservice.disk import database
from msgservice.disk.folder import Reserve
from msgservice.disk.mark import MARKS_SIZE, Mark, MarkFile, MarkWriter
from msgservice.errors import DataFolderUnusable, LogUnavailable
from msgservice.limits import Limits
from msgservice.log.copying import copy_log
from msgservice.log.schema import SCHEMA
from msgservice.log.state import Letters, State
from msgservice.message import Status
from msgservice.receiver.inbox.file import InboxFile
from msgservice.records import Batch, RefusedBatch
from tests.kit.logs import Driver, make_batch
from tests.kit.threads import ThreadCalls

LIMITS = Limits(reserve_bytes=64 * 1024)
FILE_BYTES = 400 * 1024


@pytest.fixture
def file_limit() -> Iterator[Callable[[int | None], None]]:
    """Set what a file of this process may grow to; None: as before."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        soft = before[0] if size is None else size
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield limit
    limit(None)


def test_19_a_limit_on_files_refuses_and_ends_nothing(
    file_limit: Callable[[int | None], None], tmp_path: Path
) -> None:
    log = Driver("sqlite", tmp_path, LIMITS).open()
    log.receivers(1)
    audience = log.log.audience([1])
    stored = []
    file_limit(FILE_BYTES)
    for sequence in range(1, 40):
        (outcome,) = log.append(make_batch(audience, sequence, [os.urandom(40_000)]))
        if isinstance(outcome, Batch):
            stored.append(outcome)
        else:
            assert isinstance(outcome, RefusedBatch)
            break
    assert 0 < len(stored) < 30
    assert isinstance(outcome, RefusedBatch)
    log.close()
    log = Driver("sqlite", tmp_path, LIMITS).open()  # it starts all the same
    audience = log.log.audience([1])
    assert [b.number for b in log.read([audience])] == [b.number for b in stored]
    log.progress(1, stored[0].last, settled={Status.ACKNOWLEDGED: 1})
    file_limit(None)
    log.progress(1, stored[1].last, settled={Status.ACKNOWLEDGED: 1})
    again = make_batch(audience, 100)
    assert log.append(again) == [again]
    assert log.wait(log.log.audit()) == []
    log.close()


def test_19_after_a_quota_was_met_more_than_the_reserve_is_asked_for(
    file_limit: Callable[[int | None], None], tmp_path: Path
) -> None:
    size = 256 * 1024
    reserve = Reserve(tmp_path, size)
    assert reserve.make()
    assert reserve.give_up(at_once=True)
    file_limit(size + reserve.watermark)
    assert not reserve.make()  # it would be whole, with next to nothing beside it
    assert list(tmp_path.iterdir()) == []
    file_limit(None)
    assert reserve.make()
    assert (tmp_path / "reserve").stat().st_size == size


class LazyQuota:
    """The module `os` at a quota that counts what was removed until all is written: as btrfs's.

    There is no room for `what`: to write marks, or to cut a file short.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._was_removed = self.has_room = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def unlink(self, path: Path) -> None:
        path.unlink()
        self._was_removed |= path.name == "reserve"

    def sync(self) -> None:
        self.has_room = self._was_removed

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self._check("pwrite", offset)
        return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, length: int) -> None:
        self._check("ftruncate", length)
        os.ftruncate(descriptor, length)

    def _check(self, what: str, offset: int) -> None:
        if what == self._what and not self.has_room and offset <= MARKS_SIZE:
            raise OSError(errno.EDQUOT, "quota")


@pytest.mark.parametrize("what", ["pwrite", "ftruncate"])
def test_19_a_log_at_its_quota_opens_on_the_reserve(what: str, tmp_path: Path) -> None:
    log = Driver("sqlite", tmp_path, LIMITS).open()
    (stored,) = log.append(make_batch(log.log.audience([]), 1))
    log.close()
    assert isinstance(stored, Batch)
    if what == "ftruncate":  # of the sums of its pages, where they begin anew
        (tmp_path / "log.db-wal").unlink()
    assert (tmp_path / "reserve").exists()
    files = LazyQuota(what)
    log = Driver("sqlite", tmp_path, LIMITS, files=files).open()
    assert files.has_room
    assert log.snapshot.next_number == stored.number + 1
    log.close()


def do_all(steps: Iterable[Callable[[], object]]) -> None:
    for step in steps:
        step()


def test_an_outbox_is_full_and_goes_on(
    file_limit: Callable[[int | None], None], tmp_path: Path
) -> None:
    calls = ThreadCalls()
    box = OutboxFile(tmp_path / "outbox.db", reactor=calls)
    calls.wait(box.open())
    file_limit(FILE_BYTES)

    def append(sequence: int) -> None:
        calls.wait(
            box.append([producer_run(sequence, 1, "a", b"\x91\x91\xc4\x00" + bytes(100_000))])
        )

    with pytest.raises(LogUnavailable):
        do_all(partial(append, sequence) for sequence in range(1, 20))
    file_limit(None)
    append(100)
    calls.wait(box.close())


def test_an_inbox_is_full_and_goes_on(
    file_limit: Callable[[int | None], None], tmp_path: Path
) -> None:
    calls = ThreadCalls()
    inbox = InboxFile(tmp_path / "inbox.db", reactor=calls)
    calls.wait(inbox.open())
    calls.wait(inbox.transaction(lambda t: t.execute("create table mine(body blob)")))
    file_limit(FILE_BYTES)

    def write() -> Deferred[Any]:
        return inbox.transaction(
            lambda t: t.execute("insert into mine values(?)", (bytes(100_000),))
        )

    with pytest.raises(LogUnavailable):
        do_all(lambda: calls.wait(write()) for _ in range(20))
    file_limit(None)
    calls.wait(write())
    calls.wait(inbox.close())


def test_22_a_mark_without_room_is_written_later(tmp_path: Path) -> None:
    class Full(MarkFile):
        has_room = False

        def write(self, mark: Mark) -> None:
            if not self.has_room:
                raise OSError(errno.EDQUOT, "quota")
            super().write(mark)

    file = Full(tmp_path / "mark")
    marks = MarkWriter(file, 0.0)
    mark = Mark("0" * 32, 1, 0, 7)
    marks.submit(mark)
    with pytest.raises(OSError, match="quota"):
        marks.wait(mark)
    assert marks.error is None
    assert marks.is_full
    file.has_room = True
    marks.wait(mark)
    assert not marks.is_full
    marks.stop()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def older_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A log that is to be migrated; the files in its folder."""
    log = Driver("sqlite", folder, LIMITS).open()
    audience = log.log.audience([])
    log.append(*[make_batch(audience, n, [os.urandom(60_000)]) for n in range(1, 11)])
    log.close()
    longer = replace(SCHEMA, steps=(*SCHEMA.steps, "create table extra(a)"))
    monkeypatch.setattr("msgservice.log.sqlite.SCHEMA", longer)
    return names_in(folder)


@pytest.mark.parametrize("limit", ["max_bytes", "kept_batches", "disk", "audiences"])
def test_19_history_gives_way_in_a_log_that_was_brought_up_and_takes_nothing_in(
    limit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who refuses all cannot wait until something comes in: the copy of before fills a disk too."""
    older_log(tmp_path, monkeypatch)
    limits = {"max_bytes": 500_000, "kept_batches": 10}
    log = Driver(
        "sqlite", tmp_path, replace(LIMITS, **{limit: limits[limit]} if limit in limits else {})
    ).open()
    free = 1 << 40
    monkeypatch.setattr(Reserve, "free", lambda _: free)
    before = log.log.room().used
    assert (log.log.room().full is not None) is (limit in limits)
    for hour in range(2):
        log.wait(log.log.retain(hour * 3_600_000))
        if limit not in limits:
            assert log.snapshot.next_number == 11
            assert log.log.room().used > 600_000, "the way back is spoilt without need"
    if limit == "disk":
        free = 0
    elif limit == "audiences":
        log.log.want_room("audiences")
    for hour in range(2, 6):
        while log.wait(log.log.retain(hour * 3_600_000)):
            pass
    assert log.log.room().used < before
    if limit != "disk":
        assert log.log.room().full is None
    log.close()


def test_a_migration_looks_for_room_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = older_log(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(
            "msgservice.disk.database.os.statvfs",
            lambda _: SimpleNamespace(f_bavail=10, f_frsize=4096),
        )
        with pytest.raises(DataFolderUnusable, match=r"needs \d+ bytes, 40960 are free: make room"):
            Driver("sqlite", tmp_path, LIMITS).open()
    assert names_in(tmp_path) == before
    Driver("sqlite", tmp_path, LIMITS).open().close()


def test_a_copy_that_met_the_limit_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, file_limit: Callable[[int | None], None], tmp_path: Path
) -> None:
    before = older_log(tmp_path, monkeypatch)
    file_limit(FILE_BYTES)
    with pytest.raises(DataFolderUnusable, match="make room; nothing was changed"):
        Driver("sqlite", tmp_path, LIMITS).open()
    file_limit(None)
    assert names_in(tmp_path) == before


def test_a_backup_ends_however_much_is_written_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = Driver("sqlite", tmp_path / "log", LIMITS).open()
    audience = log.log.audience([])
    log.append(*[make_batch(audience, n, [os.urandom(60_000)]) for n in range(1, 101)])
    steps = 0

    def step(running: apsw.Backup) -> None:
        nonlocal steps
        steps += 1
        assert steps < 100, "it begins anew after each commit"
        log.append(make_batch(audience, 1000 + steps))
        running.step(100)

    monkeypatch.setattr(database, "_step", step)
    copy_log(tmp_path / "log", tmp_path / "copy")
    assert steps > 10
    copy = Driver("sqlite", tmp_path / "copy", LIMITS).open()
    assert len(copy.read([copy.log.audience([])], bytes_max=1 << 30)) > 0
    assert copy.snapshot.next_number == 101
    copy.close()
    log.close()


def test_the_room_is_known_without_a_look_at_the_dead_letters_of_each_receiver() -> None:
    """It is asked for with every run that comes in."""

    class ByReceiver(dict[int, Letters]):
        looks = 0

        def values(self) -> Any:
            ByReceiver.looks += 1
            return super().values()

    state = State(used=5)
    state.set_letters(ByReceiver(dict.fromkeys(range(100), Letters(1, 10))))
    taken = [state.taken for _ in range(100)]
    assert taken == [5 + 100 * 10] * 100
    assert ByReceiver.looks == 1
