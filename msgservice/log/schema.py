"""The tables of a log, and how a file of an older version becomes one of this version.

`SCHEMA_VERSION` is kept in SQLite's `user_version`; `APPLICATION_ID` says that a file is ours.
Migrations are numbered by the version that they lead to, and run in one transaction after a copy
of the file was made beside it. What the columns mean is in docs/log.md. Nothing here reads or
writes messages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw

from msgservice.disk.database import backup
from msgservice.disk.files import OS, Files
from msgservice.errors import LogDamaged, LogTooNew

APPLICATION_ID = 0x6D736773  # "msgs"
SCHEMA_VERSION = 5


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


MIGRATIONS: dict[int, Callable[[apsw.Connection], None]] = {
    1: lambda db: _execute_all(db, _VERSION_1),
    2: lambda db: _execute_all(db, _VERSION_2),
    3: lambda db: _execute_all(db, _VERSION_3),
    # No other table; but an older program would not keep the sums of pages, so it is to refuse.
    4: lambda db: None,
    # Nor here; but an older program would send on the bits of `flags` that are only kept.
    5: lambda db: None,
}
"""Migrations: what leads to each version of the schema from the one before it."""
UNCOPIED = frozenset({4, 5})
"""Those that change nothing in the file."""


def _execute_all(db: apsw.Connection, script: str) -> None:
    db.execute(script)


def version_of(db: apsw.Connection) -> int:
    """Return the schema version; `LogDamaged` where the file is not a log at all."""
    application = db.pragma("application_id")
    version = db.pragma("user_version")
    if version and application != APPLICATION_ID:
        raise LogDamaged("the file is not a log of msgservice", 0, 0)
    assert isinstance(version, int)
    return version


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
