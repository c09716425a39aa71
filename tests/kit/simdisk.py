"""A simulated disk: files whose writes are lost, in any part, unless they were synced.

`SimDisk` keeps real files in a folder and, beside them, what would be left of them after a power
failure. SQLite comes through a VFS of its own (`vfs`, a name), plain files through `files` (as
`os`), and threads through `threads`: their jobs run in later turns of a `Clock`, so a history has
one order. Give all three to `SqliteLog`, `OutboxFile` or `InboxFile`:

    disk = SimDisk(folder, random)
    log = SqliteLog(disk.folder / "data", reactor=clock, limits=LIMITS, vfs=disk.vfs,
                    files=disk.files, threads=SimThreads(clock, delay))
    disk.cut_at = 17     # the power fails in the middle of the 17th operation from now on
    disk.crash()         # ... or here; nothing of the old process can write any more
    disk = disk.restart()  # another folder, with what was left
    disk = disk.killed()   # ... or all of it: only the process was killed, not the machine

What a power failure leaves of a file: what was synced, and of each later write any of its sectors.
Of names that were made, removed or changed since their folder was synced, the first few (a journal
of metadata keeps their order). A sync that fails has lost what it was to sync: the kernel calls
those pages clean, so a later sync does not bring them back (SEMANTICS 19). Syncs cost nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import apsw
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.disk.database import FULL_ERRNOS
from msgservice.disk.guarded import GuardedFile
from msgservice.disk.mark import Mark, MarkFile

T = TypeVar("T")
SECTOR = 512
_numbers = count(1)


class PowerFailed(apsw.IOError):
    """Raised by every operation from the cut on."""


@dataclass(frozen=True, slots=True)
class Write:
    """A write that was not synced; with no data, a new length."""

    offset: int
    data: bytes


@dataclass(slots=True)
class Kept:
    """One file, beyond its name. `durable`: what a power failure cannot take."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        """Note a write."""
        self.pending.append(Write(offset, data))

    def truncate(self, size: int) -> None:
        """Note a new length."""
        self.pending.append(Write(size, b""))

    def sync(self) -> None:
        """Make all that was written durable."""
        for write in self.pending:
            _apply(self.durable, write)
        self.pending.clear()

    def after_power_failure(self, random: Random) -> bytes:
        """Return what is left."""
        left = bytearray(self.durable)
        luck = random.choice([0.0, 0.5, 1.0])
        for write in self.pending:
            if not write.data:
                if random.random() < luck:
                    _apply(left, write)
                continue
            for at in range(0, len(write.data), SECTOR):
                if random.random() < luck:
                    _apply(left, Write(write.offset + at, write.data[at : at + SECTOR]))
        return bytes(left)


def _apply(content: bytearray, write: Write) -> None:
    if not write.data:
        del content[write.offset :]
        content.extend(bytes(write.offset - len(content)))
        return
    end = write.offset + len(write.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[write.offset : end] = write.data


class SimDisk:
    """See the module."""

    def __init__(self, folder: Path, random: Random, left: dict[str, bytes] | None = None) -> None:
        self.root = folder
        self.random = random
        self.life = next(_numbers)
        self.folder = folder / f"life-{self.life}"
        self.folder.mkdir(parents=True)
        self.is_dead = False
        self.operations = 0
        self.cut_at: int | None = None  # the power fails in this one
        self.when_cut: Callable[[], None] = lambda: None
        self.capacity: int | None = None  # bytes of all files; beyond it there is no room
        self.fail_sync: Callable[[str], bool] = lambda name: False
        self.full: Callable[[str], int] = lambda name: 0  # an errno, or 0
        self._free = 1 << 40
        self._names: dict[str, Kept] = {}
        self._durable_names: dict[str, Kept] = {}
        self._renaming: list[tuple[str, Kept | None]] = []  # since the folder was synced
        self._open: dict[int, str] = {}
        for name, content in (left or {}).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            kept = Kept(bytearray(content))
            self._names[name] = self._durable_names[name] = kept
        self.vfs = f"simdisk-{self.life}"
        self._vfs = SimVFS(self)
        self.files: Any = SimFiles(self)

    # --- the power

    def crash(self) -> None:
        """Nothing of this life can change anything any more."""
        self.is_dead = True

    def restart(self) -> SimDisk:
        """Return a disk with what the power failure left."""
        self.is_dead = True
        names = dict(self._durable_names)
        for name, kept in self._renaming[: self.random.randint(0, len(self._renaming))]:
            if kept is None:
                names.pop(name, None)
            else:
                names[name] = kept
        left = {name: kept.after_power_failure(self.random) for name, kept in names.items()}
        return SimDisk(self.root, self.random, left)

    def killed(self) -> SimDisk:
        """Return a disk that holds all that was written, in what is synced and what is not."""
        self.is_dead = True
        disk = SimDisk(self.root, self.random, self.copy())
        disk._names, disk._durable_names = self._names, self._durable_names
        disk._renaming = self._renaming
        return disk

    def copy(self) -> dict[str, bytes]:
        """Return all files as they stand."""
        return {name: (self.folder / name).read_bytes() for name in self._names}

    def close(self) -> None:
        """Let the VFS go, once nothing is open on it."""
        self._vfs.unregister()

    # --- room

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum((self.folder / name).stat().st_size for name in self._names)

    @property
    def free(self) -> int:
        """Bytes that it says are free."""
        return self._free if self.capacity is None else max(0, self.capacity - self.used)

    @free.setter
    def free(self, size: int) -> None:
        self._free = size

    def _check_room(self, name: str, size: int) -> None:
        if self.capacity is None:
            return
        path = self.folder / name
        grows = size - (path.stat().st_size if path.exists() else 0)
        if grows > 0 and self.used + grows > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # --- what happens to files

    def step(self) -> None:
        """Count an operation; the power may fail in it. Raises `PowerFailed`."""
        self.operations += 1
        if self.cut_at is not None and self.operations >= self.cut_at and not self.is_dead:
            self.is_dead = True
            self.when_cut()
        if self.is_dead:
            raise PowerFailed("the power failed")

    def name_of(self, path: str | os.PathLike[str]) -> str:
        """Return how a file of this disk is called here."""
        return str(Path(path).relative_to(self.folder))

    def made(self, name: str) -> Kept:
        """Return the file of that name, made if it is new."""
        kept = self._names.get(name)
        if kept is None:
            kept = self._names[name] = Kept()
            self._renaming.append((name, kept))
        return kept

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write; the power may fail in the middle of it. `OSError` where there is no room."""
        number = self.full(name)
        if number:
            raise OSError(number, os.strerror(number))
        self._check_room(name, offset + len(data))
        kept = self.made(name)
        try:
            self.step()
        except PowerFailed:
            kept.write(offset, data)  # in part, as `after_power_failure` says
            raise
        kept.write(offset, data)

    def truncate(self, name: str, size: int) -> None:
        """Give a file another length. `OSError` where there is no room."""
        self._check_room(name, size)
        self.step()
        self.made(name).truncate(size)

    def sync(self, name: str) -> None:
        """Sync a file. `OSError` where that is to fail: then it has lost what it was to sync."""
        kept = self.made(name)
        self.step()
        if self.fail_sync(name):
            kept.pending.clear()
            raise OSError(errno.EIO, "injected: sync failed")
        kept.sync()

    def unlink(self, name: str) -> None:
        """Remove a name."""
        self.step()
        if self._names.pop(name, None) is not None:
            self._renaming.append((name, None))

    def rename(self, name: str, to: str) -> None:
        """Give a file another name."""
        self.step()
        kept = self._names.pop(name)
        self._names[to] = kept
        self._renaming += [(to, kept), (name, None)]

    def sync_names(self) -> None:
        """Sync the folder."""
        self.step()
        self._durable_names = dict(self._names)
        self._renaming.clear()


class SimFiles:
    """Plain files of a `SimDisk`: those functions of `os` that change something."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk
        self._open: dict[int, str] = {}

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        """See `os.open`."""
        if Path(path) != self._disk.folder and not flags & os.O_DIRECTORY:
            if flags & os.O_CREAT and not Path(path).exists():
                self._disk.step()
                self._disk.made(self._disk.name_of(path))
            descriptor = os.open(path, flags, mode)
            self._open[descriptor] = self._disk.name_of(path)
            return descriptor
        descriptor = os.open(path, flags, mode)
        self._open[descriptor] = ""
        return descriptor

    def close(self, descriptor: int) -> None:
        """See `os.close`."""
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        """See `os.pwrite`."""
        self._disk.write(self._open[descriptor], offset, bytes(data))
        return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, length: int) -> None:
        """See `os.ftruncate`."""
        self._disk.truncate(self._open[descriptor], length)
        os.ftruncate(descriptor, length)

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        """See `os.posix_fallocate`; nothing is allocated really."""
        size = os.fstat(descriptor).st_size
        if size < offset + length:
            self.ftruncate(descriptor, offset + length)

    def fsync(self, descriptor: int) -> None:
        """See `os.fsync`."""
        name = self._open[descriptor]
        if name:
            self._disk.sync(name)
        else:
            self._disk.sync_names()

    fdatasync = fsync

    def unlink(self, path: str | os.PathLike[str]) -> None:
        """See `os.unlink`."""
        self._disk.unlink(self._disk.name_of(path))
        Path(path).unlink()

    def replace(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """See `os.replace`."""
        self._disk.rename(self._disk.name_of(source), self._disk.name_of(target))
        Path(source).replace(target)

    def sync(self) -> None:
        """See `os.sync`: nothing is promised by it, and no quota is simulated."""

    def statvfs(self, path: str | os.PathLike[str]) -> Any:
        """See `os.statvfs`: the room that the disk says it has."""
        free = self._disk.free

        @dataclass
        class Found:
            f_frsize: int = 1
            f_bavail: int = free
            f_bfree: int = free

        return Found()


class SimVFS(apsw.VFS):
    """SQLite's way to a `SimDisk`."""

    def __init__(self, disk: SimDisk) -> None:
        super().__init__(disk.vfs, "")
        self._disk = disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> SimVFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if self._disk.is_dead:
            raise PowerFailed("the power failed")
        is_new = not Path(path or "").exists()
        file = SimVFSFile(name, flags, self._disk, self._disk.name_of(path or ""))
        if is_new:
            self._disk.step()
            self._disk.made(file.name)
            # SQLite's own: the folder of a new journal or WAL is synced with its first sync.
            file.syncs_names = bool(
                flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL)
            )
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._disk.unlink(self._disk.name_of(filename))
        super().xDelete(filename, syncdir)
        if syncdir:
            self._disk.sync_names()


class SimVFSFile(apsw.VFSFile):
    """A file that SQLite has open."""

    def __init__(
        self, name: str | apsw.URIFilename | None, flags: list[int], disk: SimDisk, called: str
    ) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self.name = called
        self.syncs_names = False

    def xWrite(self, data: bytes, offset: int) -> None:
        try:
            self._disk.write(self.name, offset, bytes(data))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise apsw.FullError("injected: disk full") from None
            raise apsw.IOError(f"injected: {error.strerror}") from None
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._disk.truncate(self.name, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        try:
            self._disk.sync(self.name)
        except OSError:
            raise apsw.IOError("injected: sync failed") from None
        if self.syncs_names:
            self._disk.sync_names()
            self.syncs_names = False


def close_as_killed(file: GuardedFile) -> None:
    """Close what the kernel closes of an outbox or inbox whose process is killed, unless it was
    closed: nothing is written, and its transaction is undone."""
    if file._lock._descriptor is None:
        return
    if file._db is not None:
        file._db.close(True)
    if isinstance(file._marks, SimMarks):
        file._marks._file.close()
    pages = file.pages
    for descriptor in (pages._mark, pages._database, *(pages._held or ())):
        if descriptor is not None:
            os.close(descriptor)
    pages._mark = pages._database = pages._held = None
    file._lock.release()


class SimThreads:
    """Workers and mark writers without threads: what they do happens in later turns of a `Clock`.

    `delay()`: seconds that a job takes.
    """

    def __init__(self, clock: Clock | Any, delay: Callable[[], float] = lambda: 0.0) -> None:
        self._clock = clock
        self._delay = delay

    def worker(self, name: str) -> SimWorker:
        """Return a worker; each has its own queue."""
        return SimWorker(self._clock, self._delay)

    def marks(self, file: MarkFile, interval: float) -> SimMarks:
        """Return a writer of marks."""
        return SimMarks(self._clock, file, max(interval, 0.001))


class SimWorker:
    """Jobs one after the other, each in a turn of its own."""

    def __init__(self, clock: Any, delay: Callable[[], float]) -> None:
        self._clock = clock
        self._delay = delay
        self._jobs: list[tuple[Callable[[], Any], Deferred[Any]]] = []
        self._is_stopped = False

    def submit(self, job: Callable[[], T]) -> Deferred[T]:
        """See `Worker`."""
        assert not self._is_stopped
        waiter: Deferred[T] = Deferred()
        self._jobs.append((job, waiter))
        if len(self._jobs) == 1:
            self._clock.callLater(self._delay(), self._run)
        return waiter

    @property
    def is_idle(self) -> bool:
        """See `Worker`."""
        return not self._jobs

    def stop(self) -> None:
        """See `Worker`."""
        self._is_stopped = True

    def _run(self) -> None:
        job, waiter = self._jobs[0]
        try:
            result = job()
        except BaseException:
            told: Callable[[], None] = lambda failure=Failure(): waiter.errback(failure)  # type: ignore[misc]  # noqa: B008, E731 - now is when it failed
        else:
            told = lambda: waiter.callback(result)  # noqa: E731 - told when the next one is on its way
        del self._jobs[0]
        if self._jobs:
            self._clock.callLater(self._delay(), self._run)
        told()


class SimMarks:
    """Marks that are written in later turns; the newest counts."""

    def __init__(self, clock: Any, file: MarkFile, interval: float) -> None:
        self._clock = clock
        self._file = file
        self._interval = interval
        self._next: Mark | None = None
        self._timer: Any = None
        self.error: OSError | None = None
        self._full: OSError | None = None

    @property
    def is_full(self) -> bool:
        """See `MarkWriter`."""
        return self._full is not None

    def submit(self, mark: Mark) -> None:
        """See `MarkWriter`."""
        self._next = mark
        if self._timer is None and self.error is None:
            self._timer = self._clock.callLater(self._interval, self._fire)

    def wait(self, mark: Mark) -> None:
        """See `MarkWriter`."""
        self._write()
        error = self.error or self._full
        if error is not None:
            raise error

    def stop(self) -> None:
        """See `MarkWriter`."""
        self._write()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._file.close()

    def _fire(self) -> None:
        self._timer = None
        self._write()

    def _write(self) -> None:
        mark, self._next = self._next, None
        if mark is None or self.error is not None:
            return
        try:
            self._file.write(mark)
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                self.error = error
                return
            # Written as soon as there is room, unless a newer one comes first.
            self._full, self._next = error, mark
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.callLater(max(self._interval, 0.1), self._fire)
        except PowerFailed as error:
            self.error = OSError(errno.EIO, str(error))
        else:
            self._full = None
