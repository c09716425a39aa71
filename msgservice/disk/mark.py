"""High-water marks: a small file that names the newest commit that is known to be synced.

SQLite drops a damaged tail of its WAL without a word (SEMANTICS 21, 22); the mark shows that
something was there. It is synced by a thread of its own while the next group commits. What a log
compares it with is in `log.wholeness`.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from zlib import crc32

import msgspec

from msgservice.disk.database import FULL_ERRNOS, open_private, sync_folder
from msgservice.disk.files import OS, Files, write_whole
from msgservice.threads import begin_daemon

MARK_NAME = "log.mark"
MARK_GONE = "its high-water mark, {name}, is missing or unreadable"  # beside what is not new

_MAGIC = b"msgsmark"

_record = struct.Struct("<8s32sQQI")

# Two places, written in turn, each in its own sector and page: a torn write spoils one of them.
_PLACES = (0, 4096)

MARKS_SIZE = 8192  # sums of pages follow (`disk.pages`)


class Mark(msgspec.Struct, frozen=True, gc=False):
    """The newest commit that is known to be synced."""

    log_id: str
    number: int  # newest batch
    commits: int  # groups that held more than batches
    chain: int  # of the newest batch

    def encode(self) -> bytes:
        """Return the record, with its CRC at the end."""
        body = _record.pack(_MAGIC, self.log_id.encode(), self.number, self.commits, self.chain)
        return body + struct.pack("<I", crc32(body))


def read_mark(path: Path) -> Mark | None:
    """Return the newest valid mark of the file, or None where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MARKS_SIZE)
    except FileNotFoundError:
        return None
    best: Mark | None = None
    for place in _PLACES:
        body = data[place : place + _record.size]
        tail = data[place + _record.size : place + _record.size + 4]
        if len(tail) < 4 or struct.unpack("<I", tail)[0] != crc32(body):
            continue
        magic, log_id, number, commits, chain = _record.unpack(body)
        if magic != _MAGIC:
            continue
        mark = Mark(log_id.decode(), number, commits, chain)
        if best is None or (number, commits) > (best.number, best.commits):
            best = mark
    return best


def open_mark(path: Path, files: Files = OS) -> int:
    """Return a descriptor of the mark file, made if it is new; raises `OSError`."""
    new = not path.exists()
    descriptor = open_private(path, files)
    try:
        if new or os.fstat(descriptor).st_size < MARKS_SIZE:
            files.posix_fallocate(descriptor, 0, MARKS_SIZE)
            files.fsync(descriptor)
            sync_folder(path.parent, files)
    except BaseException:
        files.close(descriptor)
        raise
    return descriptor


class MarkFile:
    """The open mark file; `write` returns when the mark is synced."""

    def __init__(self, path: Path, files: Files = OS) -> None:
        self._files = files
        self._descriptor = open_mark(path, files)
        self._turn = 0

    def write(self, mark: Mark) -> None:
        """Write and sync."""
        write_whole(self._files, self._descriptor, mark.encode(), _PLACES[self._turn])
        self._files.fdatasync(self._descriptor)
        self._turn = 1 - self._turn

    def close(self) -> None:
        """Close the file."""
        self._files.close(self._descriptor)


def begin_mark(path: Path, mark: Mark, files: Files = OS) -> MarkFile:
    """Open the file, made if needed, and write the first mark; raises `OSError`."""
    file = MarkFile(path, files)
    try:
        file.write(mark)
    except BaseException:
        file.close()
        raise
    return file


# Seconds between two marks. A mark for every group would be as many syncs again as the groups are,
# on the same disk at the same time, and its thread takes the interpreter's lock from the reactor's
# (bench/latency.py: every 5 ms, a tenth of what the node does for a lone message); what the mark
# does not cover yet is guarded by `PeerForgot`, as the last group always is (SEMANTICS 22).
MARK_INTERVAL = 0.02

FULL_WAIT = 0.2  # seconds until a mark that had no room is tried again


class MarkWriter:
    """Syncs marks on a thread of its own, at most every `interval` seconds; the newest counts.

    That thread sleeps through the interval, however many marks are submitted meanwhile: to be
    woken for each would cost the groups two switches of the interpreter each.
    """

    def __init__(self, file: MarkFile, interval: float = MARK_INTERVAL) -> None:
        self._file = file
        self._interval = interval
        lock = threading.Lock()
        self._submitted = threading.Condition(lock)
        self._synced = threading.Condition(lock)
        self._stopping = threading.Event()
        self._newest: Mark | None = None
        self._taken: Mark | None = None  # the one that is being written, or was
        self._is_waiting = False  # the thread, for one that is newer
        self._written: Mark | None = None
        self._full: OSError | None = None  # no room for the newest: it is tried again
        self.error: OSError | None = None
        self._thread = begin_daemon("msgservice log mark", self._run)

    @property
    def is_full(self) -> bool:
        """Whether there was no room for the newest mark; it is written as soon as there is."""
        return self._full is not None

    def submit(self, mark: Mark) -> None:
        """Have this mark written, unless a newer one comes first."""
        # The thread says that it waits, and then looks once more: it is woken, or has seen this.
        self._newest = mark
        if self._is_waiting:
            with self._submitted:
                self._submitted.notify()

    def wait(self, mark: Mark) -> None:
        """Return when `mark` or a newer one is synced; raises the `OSError` that prevents it.

        Where that is want of room, it may be called again once there is some.
        """
        with self._synced:
            self._full = None
            while (
                self.error is None
                and self._full is None
                and not (
                    self._written is not None
                    and (self._written.number, self._written.commits) >= (mark.number, mark.commits)
                )
            ):
                self._synced.wait()
            error = self.error or self._full
            if error is not None:
                raise error

    def _put_back(self, error: OSError) -> bool:
        """Wait before a mark that had no room is tried again; False when all is to end."""
        with self._synced:
            self._full = error
            self._taken = None
            self._synced.notify_all()
        return not self._stopping.wait(FULL_WAIT)

    def stop(self) -> None:
        """Write what is waiting, end the thread and close the file."""
        with self._submitted:
            self._stopping.set()
            self._submitted.notify()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        while True:
            with self._submitted:
                self._is_waiting = True
                while self._newest is self._taken and not self._stopping.is_set():
                    self._submitted.wait()
                self._is_waiting = False
                mark = self._newest
                if mark is None or mark is self._taken:
                    return
                self._taken = mark
            try:
                self._file.write(mark)
            except OSError as error:
                if error.errno in FULL_ERRNOS:
                    if self._put_back(error):
                        continue
                    return
                with self._synced:
                    self.error = error
                    self._synced.notify_all()
                return
            with self._synced:
                self._full = None
                self._written = mark
                self._synced.notify_all()
            if self._interval:
                self._stopping.wait(self._interval)
