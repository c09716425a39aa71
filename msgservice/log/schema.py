"""The tables of a log, and how a file of an older version becomes one of this version.

`SCHEMA_VERSION` is kept in SQLite's `user_version`; `APPLICATION_ID` says that a file is ours.
Migrations are numbered by the version that they lead to, and run in one transaction after a copy
of the file was made beside it. What the columns mean is in docs/log.md. Nothing here reads or
writes messages.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import apsw
import msgspec

from msgservice.errors import DataFolderUnusable, LogDamaged, LogTooNew
from msgservice.log.files import OS, Files

APPLICATION_ID = 0x6D736773  # "msgs"
SCHEMA_VERSION = 4

BACKUP_PAGES = 1000  # of one step
COPY_MARGIN = 1024 * 1024  # bytes that a migration may take beside the copy

BUSY_WAIT_MS = 5000  # for the other connection of this process, which reads pages

# SQLite 3.7.0 to 3.51.2 can corrupt a WAL database when two connections write or checkpoint at
# once (sqlite.org/wal.html#walresetbug).
SQLITE_VERSION_MIN = (3, 51, 3)

_VERSION_1 = """
create table meta(key text primary key, value) without rowid;

create table head(
    id integer primary key check (id = 1),
    saved integer not null,         -- batches up to here are in sender, audience and used
    chain integer not null,         -- chain of batch `saved`
    used integer not null,          -- bytes of frames not yet dropped, up to `saved`
    oldest integer not null,        -- number of the oldest row kept
    oldest_chain integer not null   -- chain of the batch before it
);

-- Rows are only ever appended, until retention drops the frame and later the row.
create table batch(
    number integer primary key,
    audience integer not null,
    sender integer not null,
    sequence integer not null,
    count integer not null,
    size integer not null,
    subject text not null,
    before_messages integer not null,
    before_bytes integer not null,
    stored_at integer not null,
    after integer not null,
    flags integer not null,
    crc integer not null,
    chain integer not null,
    origin blob,
    frame blob
);
create index batch_audience on batch(audience);
create index batch_sender on batch(sender, sequence);

create table audience(
    number integer primary key,
    members text not null,
    messages integer not null,      -- totals, up to `head.saved`
    bytes integer not null,
    last integer not null,          -- its last batch, up to `head.saved`
    dropped integer not null        -- none of its batches up to here has a frame
);

create table receiver(
    number integer primary key,
    name text not null,
    address text,
    patterns text not null,
    ordering text not null,
    paused integer not null,
    configured integer not null,
    window_messages integer,
    window_bytes integer,
    created_at integer not null,
    routed_base integer not null
);

create table progress(
    receiver integer primary key,   -- -1: its cursor counts the groups that held more than batches
    cursor integer not null,
    removed integer not null,
    acknowledged_count integer not null,
    expired_count integer not null,
    dead_count integer not null,
    cancelled_count integer not null,
    removed_count integer not null,
    settled_bytes integer not null,
    collected integer not null,     -- messages of audiences that were collected
    inbox text
);

create table exception(
    receiver integer not null,
    first integer not null,
    last integer not null,
    status integer not null,
    attempts integer not null,
    next_at integer not null,
    reason text not null,
    primary key (receiver, first)
) without rowid;

create table sender(
    id integer primary key,
    name text not null,
    incarnation text not null,
    hash text not null,
    floor integer not null,
    ranges blob not null,
    last blob,                      -- (first, last, crc) of the newest run
    status_from integer not null,
    seen_at integer not null,
    unique (name, incarnation)
);
create index sender_hash on sender(name, hash);

create table finished(
    sender integer not null,
    receiver integer not null,
    first integer not null,
    last integer not null,
    status integer not null,
    reason text not null,
    at integer not null,
    primary key (sender, receiver, first)
) without rowid;

create table run(
    sender integer not null,
    sequence integer not null,
    count integer not null,
    crc integer not null,
    audience integer not null,
    number integer not null,
    primary key (sender, sequence)
) without rowid;

create table dead(
    receiver integer not null,
    position integer not null,
    sender text not null,
    incarnation text not null,
    sequence integer not null,
    subject text not null,
    message blob not null,
    reason text not null,
    attempts integer not null,
    at integer not null,
    primary key (receiver, position)
) without rowid;

create table message_id(
    id text not null,
    position integer not null,
    primary key (id, position)
) without rowid;
create index message_id_position on message_id(position);
"""

_VERSION_2 = """
alter table receiver add column on_full text not null default 'refuse';
alter table receiver add column backlog_bytes integer not null default 0;
alter table receiver add column suspended integer not null default 0;
"""

_VERSION_3 = """
alter table receiver add column epoch text not null default '';
"""

# apsw keeps statements prepared whose text is at most 16 KiB; 384 rows of 16 columns are 13 KiB.
INSERT_ROWS = (384, 256, 128, 64, 32, 16)

MIGRATIONS: dict[int, Callable[[apsw.Connection], None]] = {
    1: lambda db: _execute_all(db, _VERSION_1),
    2: lambda db: _execute_all(db, _VERSION_2),
    3: lambda db: _execute_all(db, _VERSION_3),
    # No other table; but an older program would not keep the sums of pages, so it is to refuse.
    4: lambda db: None,
}
"""What leads to each version from the one before it."""
UNCOPIED = frozenset({4})
"""Those that change nothing in the file."""


def _execute_all(db: apsw.Connection, script: str) -> None:
    db.execute(script)


def rows(db: apsw.Connection, sql: str, parameters: Any = ()) -> list[Any]:
    """Return all rows of a query, as tuples."""
    return db.execute(sql, parameters).fetchall()


def one(db: apsw.Connection, sql: str, parameters: Any = ()) -> Any:
    """Return the first row (a tuple), its value where it has one column, or None."""
    return db.execute(sql, parameters).get


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
UNUSABLE = (apsw.CantOpenError, apsw.ReadOnlyError, apsw.IOError, apsw.FullError, OSError)


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
def full_is_told(db: apsw.Connection) -> Iterator[None]:
    """Turn what means that there is no room into `apsw.FullError`."""
    try:
        yield
    except (apsw.IOError, apsw.CantOpenError) as error:
        if is_full(db, error):
            raise apsw.FullError(f"no room: {error}") from error
        raise


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
    """Return a connection with every pragma that durability depends on set explicitly."""
    flags = apsw.SQLITE_OPEN_READWRITE | (0 if readonly else apsw.SQLITE_OPEN_CREATE)
    if path != ":memory:" and not readonly:
        with suppress(OSError):  # SQLite says it better
            make_private(path, files)
    db = apsw.Connection(path, flags=flags, vfs=vfs, statementcachesize=256)
    with full_is_told(db):
        _prepare_connection(db, readonly=readonly)
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


def version_of(db: apsw.Connection) -> int:
    """Return the schema version; `LogDamaged` where the file is not a log at all."""
    application = db.pragma("application_id")
    version = db.pragma("user_version")
    if version and application != APPLICATION_ID:
        raise LogDamaged("the file is not a log of msgservice", 0, 0)
    assert isinstance(version, int)
    return version


def prepare(db: apsw.Connection, application: int, script: str, later: Sequence[str] = ()) -> None:
    """Make the tables of a small file (outbox, inbox) if it is new, and bring an older one up.

    `script` makes version 1, the first of `later` leads from that to 2, and so on; all of it is one
    transaction. Raises `LogTooNew`, or `LogDamaged` where the file is something else.
    """
    newest = 1 + len(later)
    version = one(db, "pragma user_version")
    if version and db.pragma("application_id") != application:
        raise LogDamaged("the file is another one than it should be", 0, 0)
    if version > newest:
        raise LogTooNew(version, newest)
    if version == newest:
        return
    db.execute("begin immediate")
    for step in (script, *later)[version:]:
        db.execute(step)
    db.pragma("user_version", newest)
    db.pragma("application_id", application)
    db.execute("commit")


def migrate(db: apsw.Connection, path: Path | None, files: Files = OS) -> list[str]:
    """Bring the file to this version; return what was done, as sentences.

    A file that holds something is copied to `NAME.before-VERSION` first, and the copy synced,
    where the migration changes more than the number.
    Raises `LogTooNew`.
    """
    version = version_of(db)
    if version > SCHEMA_VERSION:
        raise LogTooNew(version, SCHEMA_VERSION)
    notices = []
    copy: Path | None = None
    for target in range(version + 1, SCHEMA_VERSION + 1):
        if version and path is not None and target in UNCOPIED:
            notices.append(f"migrated from version {target - 1} to {target}")
        elif version and path is not None:
            copy = path.with_name(f"{path.name}.before-{target}")
            backup(db, copy, files=files)
            notices.append(f"migrated from version {target - 1} to {target}; copy in {copy.name}")
        db.execute("begin immediate")
        try:
            MIGRATIONS[target](db)
            db.pragma("user_version", target)
            db.pragma("application_id", APPLICATION_ID)
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            if copy is not None:
                copy.unlink(missing_ok=True)  # of a file that is as it was: it only takes room
            raise
    return notices


def backup(db: apsw.Connection, target: Path, files: Files = OS) -> None:
    """Write a whole, synced copy of the database to `target`, replacing what is there.

    It is of the moment when it begins, however much is written meanwhile. Raises
    `DataFolderUnusable` where there is no room for it, and leaves nothing behind then.
    """
    partial = target.with_name(target.name + ".partial")
    _remove(partial, files)
    needed = one(db, "pragma page_count") * one(db, "pragma page_size") + COPY_MARGIN
    _check_room(target, needed, files)
    try:
        make_private(partial, files)
        _copy_pages(db, partial)
        descriptor = files.open(partial, os.O_RDONLY)
        try:
            files.fsync(descriptor)
        finally:
            files.close(descriptor)
        files.replace(partial, target)
    except (apsw.FullError, OSError) as error:
        _remove(partial, files)
        if isinstance(error, OSError) and error.errno not in FULL_ERRNOS:
            raise
        _check_room(target, needed, files)
        raise DataFolderUnusable(str(target.parent), _no_room(target, needed, "too few")) from error
    except BaseException:
        _remove(partial, files)
        raise
    sync_folder(target.parent, files)


def _copy_pages(db: apsw.Connection, partial: Path) -> None:
    # Inside a transaction that reads: otherwise a backup begins anew after every commit of another
    # connection, and under load never ends.
    db.execute("begin")
    try:
        one(db, "select count(*) from sqlite_schema")
        copy = apsw.Connection(str(partial))
        try:
            with full_is_told(copy), copy.backup("main", db, "main") as running:
                while not running.done:
                    _step(running)
        finally:
            copy.close()
    finally:
        db.execute("rollback")


def _step(running: apsw.Backup) -> None:
    running.step(BACKUP_PAGES)


def _remove(partial: Path, files: Files) -> None:
    with suppress(FileNotFoundError):
        files.unlink(partial)


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
