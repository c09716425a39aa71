"""Guarded files: one SQLite file with its lock, its high-water mark and the sums of its pages.

What a producer's outbox and a receiver's stored inbox have in common: how they are opened, folded
and closed, beside which files. Knows no table; what the mark's numbers count, its owner says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import apsw
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.disk.damage import told_as_damage
from msgservice.disk.database import UNUSABLE, check_sqlite, connect, is_full, waiting_shortly
from msgservice.disk.files import Files
from msgservice.disk.filesystem import check_filesystem
from msgservice.disk.folder import (
    FileWatch,
    FolderLock,
    check_names,
    make_folder,
)
from msgservice.disk.machine import Jobs, Marks, Threads
from msgservice.disk.mark import MARK_INTERVAL, Mark, begin_mark, read_mark
from msgservice.disk.migrations import Schema, migrate
from msgservice.disk.pages import PageSums
from msgservice.errors import DataFolderUnusable, LogDamaged, LogUnavailable

T = TypeVar("T")


class GuardedFile:
    """The file that `path` leads to, its lock and mark beside it; all on its worker's thread.

    `numbered`: whether the number of a mark names something that can be missing.
    """

    _logger = Logger()

    def __init__(
        self, path: Path, *, numbered: bool, vfs: str | None, files: Files, threads: Threads
    ) -> None:
        # What stands beside the file must be the same by whatever link somebody comes.
        self.path = path = Path(os.path.realpath(path))
        self._numbered = numbered
        self._vfs = vfs
        self._files = files
        self._threads = threads
        self._lock = FolderLock(path.with_name(path.name + ".lock"), held=path, files=files)
        self._mark_path = path.with_name(path.name + ".mark")
        self._beside = (self._mark_path.name, path.name + "-wal")
        self.pages = PageSums(path, self._mark_path, files)
        self._db: apsw.Connection | None = None
        self._marks: Marks | None = None
        self._watch: FileWatch | None = None
        self._worker: Jobs | None = None
        self._notices: list[str] = []

    @property
    def db(self) -> apsw.Connection:
        """The connection of an open file."""
        assert self._db is not None
        return self._db

    @property
    def replaced(self) -> str | None:
        """The name of one of the files that was replaced or removed meanwhile, or None."""
        return None if self._watch is None else self._watch.replaced or self._watch.gone

    def begin(self, name: str, job: Callable[[], T]) -> Deferred[T]:
        """Open the file by a job, on a thread of this name that is its own until it is closed."""
        if self._worker is not None:
            return fail(
                RuntimeError(f"{self.path.name} was opened before: make another of its file")
            )
        worker = self._worker = self._threads.worker(name)

        def not_opened(failure: Failure) -> Failure:
            worker.stop()
            return failure

        return worker.submit(job).addErrback(not_opened)

    def submit(self, job: Callable[[], T]) -> Deferred[T]:
        """Run a job on the file's thread, behind those before."""
        assert self._worker is not None
        return self._worker.submit(job)

    async def end(self, job: Callable[[], None]) -> None:
        """Close the file by a job, the last of its thread."""
        assert self._worker is not None
        try:
            await self._worker.submit(job)
        finally:
            self._worker.stop()

    def open(self, load: Callable[[apsw.Connection, Mark | None], tuple[T, Mark]]) -> T:
        """Lock, check and load: `load` gets the mark that was found, returns that to begin with.

        Raises `LogLocked`, `LogTooNew`, `LogDamaged`, `DataFolderUnusable`; nothing is open then.
        """
        check_sqlite()
        make_folder(self.path.parent)
        check_filesystem(self.path.parent)
        self._lock.acquire()
        try:
            check_names(self.path.parent, (self.path.name, *self._beside), self.path)
            mark = read_mark(self._mark_path)
            last = mark.number if mark is not None and self._numbered else 0
            if mark is not None and not self.path.exists():
                raise LogDamaged(f"{self.path.name} is missing", min(1, last), last)
            with told_as_damage(last):
                found, first = self._load(load, mark)
        except UNUSABLE as error:
            self._lock.release()
            raise DataFolderUnusable(str(self.path), str(error)) from error
        except BaseException:
            self._lock.release()
            raise
        try:
            file = begin_mark(self._mark_path, first, self._files)
        except OSError as error:
            self._close()
            reason = f"{self._mark_path.name}: {error.strerror or error}"
            raise DataFolderUnusable(str(self.path), reason) from error
        self._marks = self._threads.marks(file, MARK_INTERVAL)
        names = (self.path.name, self._mark_path.name, self.path.name + ".lock")
        self._watch = FileWatch(self.path.parent, names)
        return found

    def _load(
        self, load: Callable[[apsw.Connection, Mark | None], tuple[T, Mark]], mark: Mark | None
    ) -> tuple[T, Mark]:
        self.pages.note_files()
        db = self._db = connect(str(self.path), vfs=self._vfs, files=self._files)
        try:
            found = load(db, mark)
            self.fold(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except BaseException:
            db.close(True)
            self.pages.close()
            raise
        return found

    def migrate(self, db: apsw.Connection, schema: Schema) -> None:
        """The file is brought to the newest version: `disk.migrations.migrate`."""
        if not schema.keeps_sums(db):
            self.pages.forget()
        self._notices = migrate(db, schema, self.path, self._files)

    def tell(self) -> None:
        """The outcome of opening it is logged, on the reactor's thread."""
        for notice in self._notices:
            self._logger.warn("{notice}", line="file-notice", notice=notice)

    def fold(self, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> None:
        """Fold the write-ahead log in; raises `apsw.Error`, `OSError`, `LogDamaged`.

        What somebody still reads stays in it until the next time: it is synced there.
        """
        self.pages.take(self.db)
        with suppress(apsw.BusyError), waiting_shortly(self.db):
            self.db.wal_checkpoint(mode=mode)

    def mark(self, mark: Mark) -> None:
        """Have the newest commit marked."""
        if self._marks is not None:
            self._marks.submit(mark)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close and unlock when this is over, however it ends.

        No room for more is no failure: what is committed is in the write-ahead log.
        """
        try:
            yield
        except LogUnavailable:
            pass  # no room for what was still to be written
        except (apsw.Error, OSError) as error:
            if not is_full(self.db, error):
                raise
        finally:
            self._close()

    def _close(self) -> None:
        self.db.close(True)
        self.pages.close()
        if self._marks is not None:
            self._marks.stop()
        self._lock.release()
