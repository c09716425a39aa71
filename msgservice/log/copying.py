"""A whole copy of a log, under a name of its own (SEMANTICS 6).

The copy is taken by SQLite's own backup, so the log may be in use meanwhile. It gets a new id: what
peers remember of the original must not make them drop what the copy sends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import apsw

from msgservice.disk.damage import told_as_damage
from msgservice.disk.database import UNUSABLE, backup, check_sqlite, connect, sync_folder
from msgservice.disk.filesystem import check_filesystem
from msgservice.disk.folder import LOCK_NAME, FolderLock, make_folder
from msgservice.disk.mark import MARK_NAME, Mark, MarkFile
from msgservice.disk.migrations import migrate
from msgservice.errors import DataFolderUnusable
from msgservice.log.loading import load
from msgservice.log.schema import SCHEMA
from msgservice.log.sqlite import LOG_NAME


def copy_log(
    source: str | Path, target: str | Path, *, entropy: Callable[[int], bytes] = os.urandom
) -> str:
    """Copy the log of one data folder into another; return the id of the copy.

    Blocks until the copy is synced and was read through. Raises `DataFolderUnusable` where there
    is no log that can be opened, or where the target has one, or what is left of one; `LogLocked`;
    `LogTooNew`; `LogDamaged` where the copy is not whole. Of a log of an older version the copy is
    brought up; the log stays as it is.
    """
    check_sqlite()
    path, folder = Path(source) / LOG_NAME, Path(target)
    if not path.exists():
        raise DataFolderUnusable(str(source), "there is no log in it")
    make_folder(folder)
    check_filesystem(folder)
    lock = FolderLock(folder / LOCK_NAME, folder=folder)
    lock.acquire()
    try:
        if (folder / LOG_NAME).exists():
            raise DataFolderUnusable(str(folder), "there is a log in it already")
        _make_clear(folder)
        with told_as_damage(0):
            return _copy(path, folder, entropy)
    finally:
        lock.release()


def _make_clear(folder: Path) -> None:
    """Refuse, or remove, what the folder has that would be taken for the copy's.

    What a log that was there left behind is replayed into the copy, or held against it. A mark
    alone says nothing of a log that is gone: a copy that was killed leaves one.
    """
    wal = folder / (LOG_NAME + "-wal")
    if wal.exists() and wal.stat().st_size:
        raise DataFolderUnusable(
            str(folder),
            f"{wal.name} is in it, of a log that is gone: move it away, or take another",
        )
    for name in (wal.name, LOG_NAME + "-shm", MARK_NAME):
        (folder / name).unlink(missing_ok=True)


def _copy(path: Path, folder: Path, entropy: Callable[[int], bytes]) -> str:
    # Under another name until it is whole: a crash leaves nothing that looks like a log.
    unfinished = folder / (LOG_NAME + ".copy")
    _remove(unfinished)
    try:
        original = connect(str(path), readonly=True)
    except UNUSABLE as error:
        raise DataFolderUnusable(str(path.parent), str(error)) from error
    try:
        SCHEMA.version_of(original)
        backup(original, unfinished)
    finally:
        original.close()
    try:
        return _finish(unfinished, folder, entropy(16).hex())
    except BaseException:
        _remove(unfinished)
        raise


def _finish(unfinished: Path, folder: Path, log_id: str) -> str:
    copy = connect(str(unfinished))
    try:
        migrate(copy, SCHEMA, None)
        copy.execute("update meta set value = ? where key = 'log_id'", (log_id,))
        # What of them was sent since it does not know: it cancels nothing (DELIVERY 55).
        copy.execute("update promise set cancels = 0")
        state = load(copy, {})
        copy.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        # In one file, so that the rename takes all of it.
        copy.execute("pragma journal_mode = delete")
    finally:
        copy.close()
    mark = MarkFile(folder / MARK_NAME)
    mark.write(Mark(log_id, state.next_number - 1, state.commits, state.chain))
    mark.close()
    unfinished.replace(folder / LOG_NAME)
    sync_folder(folder)
    return log_id


def _remove(unfinished: Path) -> None:
    for beside in ("", "-wal", "-shm"):
        unfinished.with_name(unfinished.name + beside).unlink(missing_ok=True)
