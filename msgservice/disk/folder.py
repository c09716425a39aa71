"""The data folder: held by one process, on a filesystem that can hold a log, with a reserve.

Knows nothing of what is in the log. The lock is `flock`, so it goes with the process however that
ends; the holder's pid is written into the file for people. The reserve is a file of really
allocated blocks that is given up when the disk is full, so that states can still be recorded
(SEMANTICS 19, 33).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgservice.disk.database import open_private, sync_folder
from msgservice.disk.files import OS, Files, write_whole
from msgservice.errors import DataFolderUnusable, LogLocked

LOCK_NAME = "lock"
RESERVE_NAME = "reserve"
# What must stay free beside the reserve for a new group to be accepted: the WAL of a checkpoint
# interval and the pages it is folded into. A quarter of the reserve, 16 MiB by default.
WATERMARK_DIVISOR = 4


def check_not_held(folder: Path) -> None:
    """A folder is held by no process: raises `LogLocked`. True at this moment only."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip()
        raise LogLocked(str(folder), f"process {holder}" if holder else "another process") from None
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make the folder if needed and see that it can be written: `DataFolderUnusable` if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataFolderUnusable(str(folder), error.strerror or str(error)) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise DataFolderUnusable(str(folder), "it is not writable")


def check_names(folder: Path, names: Iterable[str], held: Path) -> None:
    """Refuse a file that has a name elsewhere as well: raises `DataFolderUnusable` for `held`.

    Who opens it by that one meets another lock and mark, and another write-ahead log.
    """
    for path in map(folder.joinpath, names):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataFolderUnusable(str(held), error.strerror or str(error)) from None
        if stat.S_ISDIR(found.st_mode):
            reason = f"{path.name} is a folder, and must be a file"
        elif stat.S_ISLNK(found.st_mode):
            reason = f"{path.name} is a symbolic link, and what belongs to it stands elsewhere"
        elif found.st_nlink > 1:
            reason = f"{path.name} has another name too (a hard link), whose user it would not lock"
        else:
            continue
        raise DataFolderUnusable(str(held), reason)


Identity = tuple[int, int]  # device, inode


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class FileWatch:
    """Sees whether files that are open are still the ones that their names lead to.

    Names are all that a second process, a backup or a clean-up knows of them. Make one when all of
    the files are open.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._paths = {path: _identity(path) for path in map(folder.joinpath, names)}
        self._folder_identity = _identity(folder)

    @property
    def replaced(self) -> str | None:
        """The name of a file that is another one now, or None."""
        for path, before in self._paths.items():
            now = _identity(path)
            if before is not None and now is not None and now != before:
                return path.name
        return None

    @property
    def gone(self) -> str | None:
        """The folder, or the name of a file, that is not there any more; or None."""
        if _identity(self._folder) != self._folder_identity:
            return str(self._folder)
        for path, before in self._paths.items():
            if before is not None and _identity(path) is None:
                return path.name
        return None


class FolderLock:
    """Holds a file for this process until `release`.

    `held`: what errors name, instead of the folder. `folder`: is held as well, where all of it is
    one process's: it stays the same when somebody replaces all that is in it.
    """

    def __init__(
        self,
        path: Path,
        held: Path | None = None,
        folder: Path | None = None,
        files: Files = OS,
    ) -> None:
        self._files = files
        self._path = path
        self._held = str(held or path.parent)
        self._folder = folder
        self._descriptor: int | None = None
        self._folder_descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; raises `LogLocked` with the holder's pid."""
        while True:
            descriptor = self._open(self._path)
            self._lock(descriptor, descriptor)
            found = os.fstat(descriptor)
            if _identity(self._path) == (found.st_dev, found.st_ino):
                break
            self._files.close(descriptor)  # replaced since it was opened: it locks nobody out
        if self._folder is not None:
            folder = self._open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._lock(folder, descriptor)
            except BaseException:
                self._files.close(descriptor)
                raise
            self._folder_descriptor = folder
        with suppress(OSError):  # no room: the lock holds all the same, its pid is for people
            self._files.ftruncate(descriptor, 0)
            write_whole(self._files, descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def _open(self, path: Path, flags: int | None = None) -> int:
        try:
            if flags is None:
                return open_private(path, self._files)
            return self._files.open(path, flags)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataFolderUnusable(self._held, reason) from None

    def _lock(self, descriptor: int, told_by: int) -> None:
        """Lock a descriptor, or close it and raise; `told_by`: of the file that names a holder."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(told_by, 64, 0).decode(errors="replace").strip()
            self._files.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                reason = f"cannot be locked: {error.strerror}"
                raise DataFolderUnusable(self._held, reason) from None
            if descriptor != told_by:
                holder = ""  # of another file, that came with a backup
            raise LogLocked(
                self._held, f"process {holder}" if holder else "another process"
            ) from None

    def release(self) -> None:
        """Let go; the file stays, so that nobody can hold a lock on an unlinked one."""
        for descriptor in (self._folder_descriptor, self._descriptor):
            if descriptor is not None:
                self._files.close(descriptor)
        self._folder_descriptor = self._descriptor = None


class Reserve:
    """Blocks kept for the hour when the disk is full."""

    def __init__(self, folder: Path, size: int, files: Files = OS) -> None:
        self._files = files
        self._folder = folder
        self._folder_path = str(folder)
        self._path = folder / RESERVE_NAME
        self._size = size
        self.whole = False
        # What a quota leaves is told by nothing but trying: so much is asked for, for a moment,
        # before anything is accepted again.
        self._is_probing = False

    @property
    def watermark(self) -> int:
        """Bytes that must be free beside the reserve."""
        return self._size // WATERMARK_DIVISOR

    def free(self) -> int:
        """Return the bytes free on the filesystem for this process."""
        found = self._files.statvfs(self._folder_path)  # for each group: a path is made a string
        return found.f_bavail * found.f_frsize

    def make(self) -> bool:
        """Allocate the reserve if it is not whole and there is room; return whether it is whole."""
        if self.whole:
            return True
        try:
            present = self._path.stat().st_blocks * 512 if self._path.exists() else 0
            if self.free() + present < self._size + 2 * self.watermark:
                return False
            descriptor = open_private(self._path, self._files)
            try:
                beside = 2 * self.watermark if self._is_probing else 0
                self._files.posix_fallocate(descriptor, 0, self._size + beside)
                # What was asked for besides is given back; so is what an older configuration had.
                self._files.ftruncate(descriptor, self._size)
                self._files.fsync(descriptor)
            finally:
                self._files.close(descriptor)
            sync_folder(self._folder, self._files)
        except OSError:
            self.give_up()
            return False
        self.whole = True
        self._is_probing = False
        return True

    def give_up(self, *, at_once: bool = False) -> bool:
        """Give the blocks back to the filesystem; return whether there were any.

        `at_once`: also where the filesystem counts them for a quota until it has written that.
        """
        self.whole = False
        try:
            self._files.unlink(self._path)
        except OSError:
            return False
        if at_once:
            self._is_probing = True
            self._files.sync()
        return True
