"""SQLite connections as all files here use them: pragmas, rows, full disk, backups.

Knows no table. How a file of an older version is brought up is in `disk.migrations`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import apsw
import msgspec

from msgservice.disk.files import OS, Files, write_whole
from msgservice.disk.filesystem import REWRITING_FILESYSTEMS, filesystem_of
from msgservice.errors import DataFolderUnusable, LogLocked

BACKUP_PAGES = 1000  # of one step

COPY_MARGIN = 1024 * 1024  # bytes that a migration may take beside the copy

BUSY_WAIT_MS = 5000  # for the other connection of this process, which reads pages
SHORT_WAIT_MS = 100  # somebody who copies a file may read for longer: then the next time

# SQLite 3.7.0 to 3.51.2 can corrupt a WAL database when two connections write or checkpoint at
# once (sqlite.org/wal.html#walresetbug).
SQLITE_VERSION_MIN = (3, 51, 3)

HOLDER_ALONE = (
    "another process: on {} one at a time opens it; end that one, or copy a writable snapshot"
)

CRC_MASK = 0xFFFFFFFF

# apsw keeps statements prepared whose text is at most 16 KiB; 384 rows of 16 columns are 13 KiB.
INSERT_ROWS = (384, 256, 128, 64, 32, 16)


def rows(db: apsw.Connection, sql: str, parameters: Any = ()) -> list[Any]:
    """Return all rows of a query, as tuples."""
    return db.execute(sql, parameters).fetchall()


def one(db: apsw.Connection, sql: str, parameters: Any = ()) -> Any:
    """Return the first row (a tuple), its value where it has one column, or None."""
    return db.execute(sql, parameters).get


def row_crc(*row: object) -> int:
    """Return the CRC of a row; those of a table add up, below `CRC_MASK`, to what is kept of it."""
    return crc32(msgspec.msgpack.encode(row))


@lru_cache(maxsize=256)
def insert_sql(into: str, columns: int, count: int) -> str:
    """Return the statement that inserts `count` rows in one step."""
    row = "(" + ",".join("?" * columns) + ")"
    return f"insert {into} values" + ",".join([row] * count)


def insert_steps(into: str, columns: int, flat: list[Any]) -> list[tuple[str, list[Any]]]:
    """Return the statements, each with its parameters, that insert many rows in few steps.

    `into`: what follows `insert`, `into batch` or `or replace into run` say. `flat`: the rows'
    values, one after the other.
    """
    count, at = len(flat) // columns, 0
    if count == 1:
        return [(insert_sql(into, columns, 1), flat)]
    steps = []
    while left := count - at:
        some = next((size for size in INSERT_ROWS if size <= left), left)
        sql = insert_sql(into, columns, some)
        steps.append((sql, flat[at * columns : (at + some) * columns]))
        at += some
    return steps


def as_json(values: Any) -> str:
    """Return `values` as a parameter for json_each."""
    return msgspec.json.encode(values).decode()


# What a file or its folder that cannot be used is told as.
UNUSABLE = (
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.IOError,
    apsw.FullError,
    apsw.BusyError,
    OSError,
)


def check_sqlite() -> None:
    """Refuse a SQLite that can corrupt a log."""
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split(".")[:3])
    if version < SQLITE_VERSION_MIN:
        raise DataFolderUnusable(
            "(any)",
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a log in WAL mode:"
            f" at least {'.'.join(map(str, SQLITE_VERSION_MIN))} is needed",
        )


# What a write fails with when there is no room for it: the disk, a quota, a limit on the file.
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# A sync that failed is more than that: nothing written before it is to be trusted.
_FAILED_SYNCS = (apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC)


def is_full(db: apsw.Connection, error: BaseException | None) -> bool:
    """Whether this error of the connection's last call means that there is no room.

    SQLite has a code of its own for ENOSPC only; all others are failed writes to it.
    """
    if isinstance(error, apsw.FullError):
        return True
    return (
        isinstance(error, (apsw.IOError, apsw.CantOpenError))
        and getattr(error, "extendedresult", 0) not in _FAILED_SYNCS
        and db.system_errno in FULL_ERRNOS
    )


@contextmanager
def telling_full(db: apsw.Connection) -> Iterator[None]:
    """Turn what means that there is no room into `apsw.FullError`."""
    try:
        yield
    except (apsw.IOError, apsw.CantOpenError) as error:
        if is_full(db, error):
            raise apsw.FullError(f"no room: {error}") from error
        raise


@contextmanager
def waiting_shortly(db: apsw.Connection) -> Iterator[None]:
    """Wait for other connections for a moment only, where what is done can be left for later.

    What is done may close this connection, and open another: a disk has failed then.
    """
    db.set_busy_timeout(SHORT_WAIT_MS)
    try:
        yield
    finally:
        with suppress(apsw.ConnectionClosedError):
            db.set_busy_timeout(BUSY_WAIT_MS)


def make_private(path: str | Path, files: Files = OS) -> None:
    """Files of ours are their owner's alone, whatever the umask and the folder's mode.

    SQLite makes a file with 0644 less the umask, and gives the write-ahead log and the shared
    memory beside it the mode of the database: so that is made before SQLite sees it. One that
    exists is left as it is: who opened it to others did so on purpose.
    """
    try:
        descriptor = files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        files.close(descriptor)


def open_private(path: str | Path, files: Files = OS) -> int:
    """Return a descriptor of the file, for reading and writing; made as `make_private` does."""
    make_private(path, files)
    return files.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def connect(
    path: str, *, vfs: str | None = None, readonly: bool = False, files: Files = OS
) -> apsw.Connection:
    """Return a connection with every pragma that durability depends on set explicitly.

    Where mapped memory is not safe to write, the index of the write-ahead log is in this process
    alone, and so is the file: `LogLocked` while another process has it open.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | (0 if readonly else apsw.SQLITE_OPEN_CREATE)
    if path != ":memory:" and not readonly:
        with suppress(OSError):  # SQLite says it better
            make_private(path, files)
    kind = filesystem_of(Path(path).parent) if vfs is None and path != ":memory:" else ""
    is_alone = kind in REWRITING_FILESYSTEMS
    vfs = "unix-excl" if is_alone else vfs
    db = apsw.Connection(path, flags=flags, vfs=vfs, statementcachesize=256)
    try:
        with telling_full(db):
            _prepare_connection(db, readonly=readonly)
    except apsw.BusyError as error:
        if not is_alone:
            raise
        db.close()
        raise LogLocked(path, HOLDER_ALONE.format(kind), "") from error
    return db


def _prepare_connection(db: apsw.Connection, *, readonly: bool) -> None:
    db.set_busy_timeout(BUSY_WAIT_MS)
    # A close must not fold a damaged WAL into the file before it has been looked at.
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.execute("pragma mmap_size = 0")
    if not one(db, "pragma page_count"):
        # A drained backlog gives its pages back to the disk. In a file that has pages it changes
        # nothing, and is a commit all the same.
        db.execute("pragma auto_vacuum = incremental")
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute("pragma wal_autocheckpoint = 0")
    db.execute("pragma temp_store = memory")
    db.execute("pragma cache_size = -16384")
    if readonly:
        db.execute("pragma query_only = 1")


_TABLES_AT = 40  # of a database's first page: the count that `pragma schema_version` tells


def backup(db: apsw.Connection, target: Path, files: Files = OS) -> None:
    """Write a whole, synced copy of the database to `target`, replacing what is there.

    Its owner gives it the name that it is to have. It is of the moment when it begins, however much
    is written meanwhile. Raises `DataFolderUnusable` where there is no room for it, and leaves
    nothing behind then.
    """
    _remove(target, files)
    needed = one(db, "pragma page_count") * one(db, "pragma page_size") + COPY_MARGIN
    _check_room(target, needed, files)
    try:
        make_private(target, files)
        tables = _copy_pages(db, target)
        descriptor = files.open(target, os.O_RDWR)
        try:
            # SQLite counts anew in a copy; an inbox says with each commit how far it was.
            write_whole(files, descriptor, tables.to_bytes(4, "big"), _TABLES_AT)
            files.fsync(descriptor)
        finally:
            files.close(descriptor)
    except (apsw.FullError, OSError) as error:
        _remove(target, files)
        if isinstance(error, OSError) and error.errno not in FULL_ERRNOS:
            raise
        _check_room(target, needed, files)
        raise DataFolderUnusable(str(target.parent), _no_room(target, needed, "too few")) from error
    except BaseException:
        _remove(target, files)
        raise


def _copy_pages(db: apsw.Connection, target: Path) -> int:
    """Copy all pages; return how often tables were made or changed there (`schema_version`)."""
    # Inside a transaction that reads: otherwise a backup begins anew after every commit of another
    # connection, and under load never ends.
    db.execute("begin")
    try:
        one(db, "select count(*) from sqlite_schema")
        tables: int = one(db, "pragma schema_version")
        copy = apsw.Connection(str(target), vfs=db.open_vfs)
        try:
            # It is removed where it is not whole: no journal that a kill would leave.
            copy.execute("pragma journal_mode = off")
            with telling_full(copy), copy.backup("main", db, "main") as running:
                while not running.done:
                    _step(running)
        finally:
            copy.close()
    finally:
        db.execute("rollback")
    return tables


def _step(running: apsw.Backup) -> None:
    running.step(BACKUP_PAGES)


def _remove(target: Path, files: Files) -> None:
    with suppress(FileNotFoundError):
        files.unlink(target)


def _check_room(target: Path, needed: int, files: Files) -> None:
    found = files.statvfs(target.parent)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise DataFolderUnusable(str(target.parent), _no_room(target, needed, str(free)))


def _no_room(target: Path, needed: int, free: str) -> str:
    return (
        f"the copy {target.name} needs {needed} bytes, {free} are free: make room; nothing was"
        " changed"
    )


def sync_folder(folder: Path, files: Files = OS) -> None:
    """Make renames and new files in `folder` durable."""
    descriptor = files.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.fsync(descriptor)
    finally:
        files.close(descriptor)
