"""Another program reads a file of ours, or holds it alone, while its owner opens and closes it.

What is folded in is what nobody reads any more; the rest is in the write-ahead log, synced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from msgservice.client.outbox_file import OutboxFile
from msgservice.core.runs import producer_run
from msgservice.errors import DataFolderUnusable
from msgservice.limits import Limits
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
    monkeypatch.setattr("msgservice.disk.database.BUSY_WAIT_MS", 1)
    path = tmp_path / "data" / "log.db"
    use(path, 1)
    with (
        another_program(path, "pragma locking_mode = exclusive; begin immediate"),
        pytest.raises(DataFolderUnusable, match=r"data.*cannot be used: .*database is locked"),
    ):
        use(path, 2)
    assert use(path, 2) == 1
