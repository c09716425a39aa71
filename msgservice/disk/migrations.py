"""Migrations: how a file of an older version becomes one of the newest.

A log, an outbox and an inbox each say their versions as a `Schema`; here they are brought up, all
in one way: one copy beside the file, and all steps in one transaction. What the tables mean is with
their owners. SQLite keeps the version in `user_version`, the kind of the file in `application_id`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import apsw

from msgservice.disk.database import backup, sync_folder, telling_full
from msgservice.disk.files import OS, Files
from msgservice.errors import LogDamaged, LogTooNew


@dataclass(frozen=True, slots=True)
class Schema:
    """The versions that files of one kind have had.

    `steps`: SQL that leads to version 1, to 2, and so on. An empty one changes nothing in the file;
    it is there so that an older program refuses it. `sums_since`: the first version whose programs
    keep the sums of its pages. `brought_up`: SQL behind the steps, where a copy was made.
    """

    application: int
    steps: tuple[str, ...]
    sums_since: int
    brought_up: str = ""

    @property
    def newest(self) -> int:
        """The version that this program writes."""
        return len(self.steps)

    def keeps_sums(self, db: apsw.Connection) -> bool:
        """Whether the program that had the file last has kept the sums of its pages (or is new)."""
        return not 0 < self.version_of(db) < self.sums_since

    def version_of(self, db: apsw.Connection) -> int:
        """The version of a file, 0 of a new one; `LogDamaged` where it is not of this kind."""
        version = db.pragma("user_version")
        if version and db.pragma("application_id") != self.application:
            raise LogDamaged("the file is another one than it should be", 0, 0)
        assert isinstance(version, int)
        return version


def migrate(db: apsw.Connection, schema: Schema, path: Path | None, files: Files = OS) -> list[str]:
    """A file is brought to the newest version, or stays as it is; returns what to tell of it.

    One that holds something is copied to `NAME.before-NEWEST` first, where steps change it; `path`:
    of the file, None of one in memory. Raises `LogTooNew`; `DataFolderUnusable` or `apsw.FullError`
    where there is no room; `LogDamaged` where a step fails.
    """
    version, newest = schema.version_of(db), schema.newest
    name = "log" if path is None else path.name
    if version > newest:
        raise LogTooNew(version, newest, name)
    if version == newest:
        return []
    pending = schema.steps[version:]
    copy: Path | None = None
    if version and path is not None and any(pending):
        # Without its name, until all steps are done: one killed in their midst leaves the file and
        # no copy of it, and the next start begins anew.
        copy = path.with_name(f"{name}.before-{newest}.partial")
        backup(db, copy, files)
    try:
        with telling_full(db):
            db.execute("begin immediate")
            for step in (*pending, schema.brought_up if copy is not None else ""):
                db.execute(step)
            db.pragma("user_version", newest)
            db.pragma("application_id", schema.application)
            if copy is not None:
                copy = _named(copy, files)
            db.execute("commit")
    except BaseException as error:
        if db.in_transaction:
            db.execute("rollback")
        if isinstance(error, apsw.IOError | OSError):
            raise  # a commit that was not synced may be found at the next start: the copy stays
        told = f"{name} of version {version} cannot be brought to {newest}: {error}"
        told += "; it stays as it was"
        if copy is not None:
            files.unlink(copy)
            told += f", and the copy {copy.name} is removed"
        if isinstance(error, apsw.FullError):
            raise apsw.FullError(f"{told}: make room") from error
        if isinstance(error, apsw.Error):
            raise LogDamaged(told, 0, 0) from error
        raise
    kept = f"; copy in {copy.name}" if copy is not None else ""
    return [f"{name} is migrated from version {version} to {newest}{kept}"] if version else []


def _named(partial: Path, files: Files) -> Path:
    """The copy gets the first free name: a copy of before is never overwritten."""
    name = partial.with_suffix("")
    numbered = (name.with_name(f"{name.name}-{number}") for number in count(2))
    copy = next(found for found in chain([name], numbered) if not found.exists())
    files.replace(partial, copy)
    sync_folder(copy.parent, files)
    return copy
