"""Another program reads a file of ours, or holds it alone, while its owner opens and closes it.

What is folded in is what nobody reads any more; the rest is in the write-ahead log, synced. Where
mapped memory is not safe to write, as on btrfs, a file is open in one process alone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.runs import producer_run
from msgservice.errors import DataFolderUnusable, LogLocked
from msgservice.limits import Limits
from msgservice.log.copying import copy_log
from msgservice.receiver.inbox.file import InboxFile
from tests.kit.logs import Driver, make_batch
from tests.kit.threads import ThreadCalls

LIMITS = Limits(reserve_bytes=64 * 1024)


@contextmanager
def another_program(path: Path, begin: str) -> Iterator[None]:
    # Of the same SQLite: another in one process would not see its locks.
    with closing(apsw.Connection(str(path))) as db:
        db.execute(begin)
        db.execute("select count(*) from sqlite_master").fetchone()
        yield


def of_the_log(path: Path, number: int) -> int:
    """Open the log, append one batch, close; return how many it had."""
    log = Driver("sqlite", path.parent, LIMITS).open()
    had = log.snapshot.next_number - 1
    log.append(make_batch(log.log.audience([]), number))
    log.close()
    return had


def of_an_outbox(path: Path, number: int) -> int:
    calls = ThreadCalls()
    box = OutboxFile(path, reactor=calls)
    had: int = calls.wait(box.open()).sequence
    calls.wait(box.append([producer_run(number, 1, "a", b"\x91\x91\xc4\x00")]))
    calls.wait(box.close())
    return had


def of_an_inbox(path: Path, number: int) -> int:
    calls = ThreadCalls()
    box = InboxFile(path, reactor=calls)
    calls.wait(box.open())

    def work(transaction: Any) -> int:
        transaction.execute("create table if not exists mine(number)")
        ((had,),) = transaction.execute("select count(*) from mine")
        transaction.execute("insert into mine values (?)", (number,))
        return int(had)

    had: int = calls.wait(box.transaction(work))
    calls.wait(box.close())
    return had


OWNERS = pytest.mark.parametrize("use", [of_the_log, of_an_outbox, of_an_inbox])


@OWNERS
def test_who_reads_a_file_keeps_nobody_from_opening_and_closing_it(
    use: Callable[[Path, int], int], tmp_path: Path
) -> None:
    path = tmp_path / "data" / "log.db"
    had = [use(path, 1)]
    with another_program(path, "begin"):
        had += [use(path, 2), use(path, 3)]
        assert path.with_name("log.db-wal").stat().st_size > 0  # not folded: it is read
    had += [use(path, 4), use(path, 5)]
    assert had == [0, 1, 2, 3, 4]


@OWNERS
def test_who_holds_a_file_alone_is_told_by_an_error_of_ours(
    use: Callable[[Path, int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msgservice.disk.database.filesystem_of", lambda folder: "ext4")
    monkeypatch.setattr("msgservice.disk.database.BUSY_WAIT_MS", 1)
    path = tmp_path / "data" / "log.db"
    use(path, 1)
    with (
        another_program(path, "pragma locking_mode = exclusive; begin immediate"),
        pytest.raises(DataFolderUnusable, match=r"data.*cannot be used: .*database is locked"),
    ):
        use(path, 2)
    assert use(path, 2) == 1


# --- On a filesystem where a file is open in one process alone -----------------------------------

ROOT = Path(__file__).parents[2]

# Programs of another process. Arguments: the type of the filesystem, then what each says.
BEGIN = """
import os, signal, sys
from pathlib import Path
import apsw
from msgservice.disk import database
from msgservice.errors import LogLocked
from msgservice.log.copying import copy_log
from tests.kit.logs import Driver, make_batch

database.filesystem_of = lambda folder: sys.argv[1]
database.BUSY_WAIT_MS = 1
path = Path(sys.argv[2])
"""
# Reads a file until it is killed.
READ = """
db = apsw.Connection(str(path))
db.execute("select count(*) from sqlite_master").fetchone()
print("reads", flush=True)
input()
"""
# What it is told who reads a file, and who copies the log.
REFUSED = """
try:
    apsw.Connection(str(path)).execute("select count(*) from sqlite_master").fetchone()
except apsw.BusyError as error:
    print(error)
try:
    copy_log(path.parent, sys.argv[3])
except LogLocked as error:
    print(error)
"""
# Appends one batch, and is killed with the log open.
KILLED = """
log = Driver("sqlite", path.parent).open()
log.append(make_batch(log.log.audience([])))
os.kill(os.getpid(), signal.SIGKILL)
"""


def another_process(code: str, kind: str, *paths: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BEGIN + code, kind, *map(str, paths)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def files_of(path: Path) -> set[str]:
    return {found.name for found in path.parent.iterdir() if found.name.startswith(path.name)}


@pytest.fixture
def on_btrfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msgservice.disk.database.filesystem_of", lambda folder: "btrfs")
    monkeypatch.setattr("msgservice.disk.database.BUSY_WAIT_MS", 1)


@pytest.mark.usefixtures("on_btrfs")
def test_the_connections_of_one_process_share_an_index_that_no_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "data" / "log.db"
    log = Driver("sqlite", path.parent, LIMITS).open()
    audience = log.log.audience([])
    for number in (1, 2, 3):
        log.append(make_batch(audience, number))
        assert len(log.read([audience])) == number  # over the connection that reads
    copy_log(path.parent, tmp_path / "copy")
    with another_program(path, "begin"):
        log.append(make_batch(audience, 4))
    assert files_of(path) == {"log.db", "log.db-wal"}
    log.close()
    assert of_the_log(path, 5) == 4
    assert of_the_log(tmp_path / "copy" / "log.db", 4) == 3


@pytest.mark.usefixtures("on_btrfs")
def test_a_log_in_use_is_refused_to_other_processes_which_are_told_why(tmp_path: Path) -> None:
    path, copy = tmp_path / "data" / "log.db", tmp_path / "copy"
    log = Driver("sqlite", path.parent, LIMITS).open()
    log.append(make_batch(log.log.audience([])))
    told, _ = another_process(REFUSED, "btrfs", path, copy).communicate()
    assert told.splitlines() == [
        "database is locked",
        f"{path} is held by another process: on btrfs one at a time opens it; end that one, or copy"
        " a writable snapshot",
    ]
    assert not (copy / "log.db").exists()
    log.append(make_batch(log.log.audience([]), 2))
    log.close()
    told, _ = another_process(REFUSED, "btrfs", path, copy).communicate()
    assert told == ""
    assert of_the_log(copy / "log.db", 3) == 2


@OWNERS
@pytest.mark.usefixtures("on_btrfs")
def test_whose_file_another_process_reads_is_told_at_opening_it(
    use: Callable[[Path, int], int], tmp_path: Path
) -> None:
    path = tmp_path / "data" / "log.db"
    use(path, 1)
    assert "log.db-shm" not in files_of(path)
    with another_process(READ, "btrfs", path) as reading:
        assert reading.stdout is not None
        try:
            assert reading.stdout.readline() == "reads\n"
            with pytest.raises(LogLocked, match=r"log\.db is held by another process: on btrfs"):
                use(path, 2)
        finally:
            reading.kill()
    assert use(path, 2) == 1


@pytest.mark.parametrize(
    ("before", "after"), [("ext4", "btrfs"), ("btrfs", "btrfs"), ("btrfs", "ext4")]
)
def test_what_a_killed_process_left_is_whole_with_either_index(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / "log.db"
    with another_process(KILLED, before, path) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert ("log.db-shm" in files_of(path)) == (before == "ext4")
    assert path.with_name("log.db-wal").stat().st_size > 0
    monkeypatch.setattr("msgservice.disk.database.filesystem_of", lambda folder: after)
    assert [of_the_log(path, number) for number in (2, 3)] == [1, 2]
