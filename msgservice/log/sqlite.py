"""`SqliteLog`: the embedded log, one SQLite file in a data folder.

The writer's thread owns the connection that writes and checkpoints, the reader's thread another
that only reads. While the writer's has nothing to do, small groups are written on the reactor's
(`inline.py`), which is the owner then: one at a time. What a group does is in `store.py`; what the
folder holds, in docs/log.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeGuard, TypeVar

import apsw
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime

from msgservice.clock import monotonic_of
from msgservice.disk.damage import told_as_damage
from msgservice.disk.database import FULL_ERRNOS, check_sqlite, connect, waiting_shortly
from msgservice.disk.files import OS, Files
from msgservice.disk.filesystem import check_filesystem
from msgservice.disk.folder import (
    LOCK_NAME,
    FileWatch,
    FolderLock,
    Reserve,
    check_names,
    make_folder,
)
from msgservice.disk.machine import Jobs, OwnThreads, Threads
from msgservice.disk.mark import MARK_INTERVAL, MARK_NAME, Mark, MarkFile, begin_mark, read_mark
from msgservice.disk.migrations import migrate
from msgservice.disk.pages import PageSums
from msgservice.errors import DataFolderUnusable, LogDamaged, LogFailed
from msgservice.limits import Limits
from msgservice.log.base import StoreLog
from msgservice.log.inline import Inline, InlineCommits, inline_of_environment
from msgservice.log.schema import SCHEMA
from msgservice.log.store import Store
from msgservice.log.wholeness import check_mark
from msgservice.records import Snapshot

T = TypeVar("T")

LOG_NAME = "log.db"
# A file of up to so many pages, 64 MiB, is compared with its sums before it is opened: that takes
# some 40 ms. A larger one is beside everything else, from its first page on.
LOOK_PAGES_MAX = 16 * 1024
WATCHED = (LOG_NAME, LOG_NAME + "-wal", LOG_NAME + "-shm", MARK_NAME, LOCK_NAME)
# Bytes of a page that goes on with a long value: nearly all are of batches, which have a CRC each.
SUMMED_OF_VALUES = 512


def _has_time(reactor: object) -> TypeGuard[IReactorTime]:
    """Whether a reactor does more than take calls from threads."""
    return hasattr(reactor, "seconds")


class SqliteLog(StoreLog):
    """The log in the folder `path` (made if needed).

    `mark`: `strict` makes every append wait for its high-water mark (SEMANTICS 22). `entropy`
    gives the random bytes of a new log's id. `inline`: whether groups may be written on the
    reactor's thread (`log.inline`); None: as the environment says, else `auto`. `vfs` and `faults`
    are for tests: a SQLite VFS by name, and a function that is called (on the thread that writes)
    at each named point.
    """

    durable = True

    def __init__(
        self,
        path: str | Path,
        *,
        reactor: IReactorFromThreads,
        limits: Limits,
        mark: Literal["behind", "strict"] = "behind",
        entropy: Callable[[int], bytes] = os.urandom,
        inline: InlineCommits | None = None,
        vfs: str | None = None,
        files: Files = OS,
        threads: Threads | None = None,
        faults: Callable[[str], None] | None = None,
    ) -> None:
        if inline is None:
            inline = inline_of_environment()
        super().__init__(
            limits=limits,
            inline=Inline("off" if mark == "strict" else inline, limits),
            now=monotonic_of(reactor) if _has_time(reactor) else time.monotonic,
        )
        self.folder = Path(path)
        self._entropy = entropy
        self._vfs = vfs
        self._files = files
        self._threads = OwnThreads(reactor) if threads is None else threads
        self._lock = FolderLock(self.folder / LOCK_NAME, folder=self.folder, files=files)
        self._reserve = Reserve(self.folder, limits.reserve_bytes, files)
        self._writer: Jobs | None = None
        self._reader: Jobs | None = None
        self._reading: apsw.Connection | None = None
        self._closed: Deferred[None] | None = None
        self._mark_interval = 0.0 if mark == "strict" else MARK_INTERVAL
        self._write_with(
            Store(
                str(self.folder / LOG_NAME),
                limits=limits,
                audiences=self._audiences,
                reserve=self._reserve,
                pages=PageSums(
                    self.folder / LOG_NAME,
                    self.folder / MARK_NAME,
                    files,
                    begun_by=SUMMED_OF_VALUES,
                ),
                mark=mark,
                vfs=vfs,
                files=files,
                faults=faults,
            )
        )

    def _write(self, job: Callable[[], T]) -> Deferred[T]:
        self._check_open()
        assert self._writer is not None
        return self._writer.submit(job)

    @property
    def _may_write_now(self) -> bool:
        return self._writer is not None and self._writer.is_idle

    def _read(self, job: Callable[[apsw.Connection], T]) -> Deferred[T]:
        self._check_open()
        assert self._reader is not None

        def run() -> T:
            assert self._reading is not None
            with told_as_damage(self._store.state.next_number - 1):
                return job(self._reading)

        return self._reader.submit(run)

    # --- opening -------------------------------------------------------------------------------

    def open(self) -> Deferred[Snapshot]:
        """See `ILog.open`."""
        if self._writer is not None:
            raise RuntimeError("this log was opened before: make another of its folder")
        self._writer = self._threads.worker("msgservice log writer")
        self._reader = self._threads.worker("msgservice log reader")
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> Snapshot:
        assert self._writer is not None
        assert self._reader is not None
        try:
            snapshot = await self._writer.submit(self._open_files)
            await self._reader.submit(self._open_reader)
        except BaseException:
            self._writer.stop()
            self._reader.stop()
            raise
        self._remember(snapshot)
        looking = Deferred.fromCoroutine(self._look_on())
        looking.addErrback(lambda failure: self._logger.failure("looking at pages", failure))
        return snapshot

    async def _look_on(self) -> None:
        """Compare the pages that were not at the start; what is damaged then ends the log."""
        with suppress(LogDamaged):
            await self._look_at_pages()

    async def _look_at_pages(self) -> None:
        store = self._store
        assert self._reader is not None
        assert store.pages is not None
        try:
            while self._opened and store.pages.pages_left:
                if not await self._reader.submit(store.pages.look):
                    break
        except LogDamaged as damage:
            store.failed = LogFailed(str(damage))
            raise

    def _open_files(self) -> Snapshot:
        check_sqlite()
        make_folder(self.folder)
        check_filesystem(self.folder)
        self._lock.acquire()
        try:
            return self._open_locked()
        except BaseException:
            self._lock.release()
            raise

    def _open_locked(self) -> Snapshot:
        path, mark_path = self.folder / LOG_NAME, self.folder / MARK_NAME
        store = self._store
        check_names(self.folder, (LOG_NAME, MARK_NAME, LOG_NAME + "-wal"), self.folder)
        mark = read_mark(mark_path)
        if mark is not None and not path.exists():
            raise LogDamaged(f"{LOG_NAME} is missing", 1, mark.number)
        try:
            with told_as_damage(mark.number if mark is not None else 0):
                try:
                    notices = self._check_and_load(path, mark)
                except apsw.FullError:
                    if not self._reserve.give_up(at_once=True):
                        raise
                    notices = self._check_and_load(path, mark)
        except (
            apsw.CantOpenError,
            apsw.ReadOnlyError,
            apsw.IOError,
            apsw.FullError,
            apsw.BusyError,
        ) as error:
            raise DataFolderUnusable(str(self.folder), str(error)) from error
        store.fullness()
        state = store.state
        mark = Mark(state.log_id, state.next_number - 1, state.commits, state.chain)
        try:
            file = self._begin_mark(mark_path, mark)
        except OSError as error:
            store.db.close(True)
            if store.pages is not None:
                store.pages.close()
            reason = f"{MARK_NAME}: {error.strerror or error}"
            raise DataFolderUnusable(str(self.folder), reason) from error
        store.marks = self._threads.marks(file, self._mark_interval)
        return store.snapshot(notices)

    def _begin_mark(self, path: Path, mark: Mark) -> MarkFile:
        try:
            return begin_mark(path, mark, self._files)
        except OSError as error:
            if error.errno not in FULL_ERRNOS or not self._reserve.give_up(at_once=True):
                raise
            return begin_mark(path, mark, self._files)

    def _check_and_load(self, path: Path, mark: Mark | None) -> list[str]:
        store = self._store
        is_new = not path.exists()
        if store.pages is not None:
            store.pages.note_files()
        store.connect()
        try:
            if store.pages is not None and not SCHEMA.keeps_sums(store.db):
                store.pages.forget()
            notices = migrate(store.db, SCHEMA, path, self._files)
            if is_new:
                notices.append(
                    f"a new, empty log begins in {self.folder}: if there was one before, stop now"
                    " and put it back"
                )
            store.create(self._entropy(16).hex())
            store.load()
            check_mark(mark, store.state, store.db)
            notices += self._begin_pages()
            store.save()
            # What is in the WAL is synced there, for want of room or while somebody reads it.
            with suppress(apsw.FullError, apsw.BusyError), waiting_shortly(store.db):
                store.fold()
        except BaseException:
            # Without folding the WAL in: a damaged one stays as it is, for whoever repairs it.
            store.db.close(True)
            if store.pages is not None:
                store.pages.close()
            raise
        return notices

    def _begin_pages(self) -> list[str]:
        """Compare the pages of the file with their sums; a large file's later, in between."""
        pages = self._store.pages
        assert pages is not None
        try:
            is_foreign = pages.begin(self._store.db)
        except OSError as error:
            reason = f"{MARK_NAME}: {error.strerror or error}"
            if error.errno in FULL_ERRNOS:
                raise apsw.FullError(reason) from error  # there may be a reserve
            raise DataFolderUnusable(str(self.folder), reason) from error
        if pages.pages_left <= LOOK_PAGES_MAX:
            pages.look_at_all()
        if not is_foreign:
            return []
        return [
            f"another program had {LOG_NAME} open: what its pages should hold is not known, and is"
            " taken from what they hold now"
        ]

    def _open_reader(self) -> None:
        self._reading = connect(
            str(self.folder / LOG_NAME), vfs=self._vfs, files=self._files, readonly=True
        )
        self._store.watch_files = lambda: FileWatch(self.folder, WATCHED)
        self._store.begin_watch()

    # --- closing -------------------------------------------------------------------------------

    def close(self) -> Deferred[None]:
        """See `ILog.close`."""
        waiter: Deferred[None] = Deferred()
        if self._closed is not None:
            self._closed.addCallback(lambda _: waiter.callback(None))
            return waiter
        if not self._opened:
            waiter.callback(None)
            return waiter
        self._closed = Deferred.fromCoroutine(self._close())
        self._closed.chainDeferred(waiter)
        return waiter

    async def _close(self) -> None:
        assert self._writer is not None
        assert self._reader is not None
        writer, reader = self._writer, self._reader
        self._opened = False
        try:
            await reader.submit(self._close_reader)
            await writer.submit(self._close_files)
        finally:
            reader.stop()
            writer.stop()

    def _close_reader(self) -> None:
        assert self._reading is not None
        self._reading.close()

    def _close_files(self) -> None:
        try:
            self._store.close(clean=True)
        finally:
            if self._store.marks is not None:
                self._store.marks.stop()
            self._lock.release()
