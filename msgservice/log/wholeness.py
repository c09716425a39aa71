"""The log's proof that it still holds all that it acknowledged (SEMANTICS 21, 22).

SQLite drops a damaged tail of its WAL without a word. So a file of its own, the high-water mark,
names the newest batch that is known to be committed, with its chain value; it is synced by its own
thread while the next group commits. `check_mark` compares it with what SQLite found. The chain
itself (every batch's CRC goes into the next one's) is followed in `replay` and `check_chain`.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast
from zlib import crc32

import apsw

from msgservice.errors import LogDamaged
from msgservice.log.dedupe import chain_of
from msgservice.log.files import OS, Files
from msgservice.log.schema import FULL_ERRNOS, one, open_private, sync_folder
from msgservice.log.state import State

MARK_NAME = "log.mark"
_MAGIC = b"msgsmark"
_record = struct.Struct("<8s32sQQI")
# Two places, written in turn, each in its own sector and page: a torn write spoils one of them.
_PLACES = (0, 4096)
MARKS_SIZE = 8192  # sums of pages follow (`log.pages`)


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known to be committed."""

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
        self._files.pwrite(self._descriptor, mark.encode(), _PLACES[self._turn])
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
# on the same disk at the same time (bench/latency.py: a tenth of a message's way); what the mark
# does not cover yet is guarded by `PeerForgot`, as the last group always is (SEMANTICS 22).
MARK_INTERVAL = 0.005
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
        self._next: Mark | None = None
        self._written: Mark | None = None
        self._full: OSError | None = None  # no room for the newest: it is tried again
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="msgservice log mark", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether there was no room for the newest mark; it is written as soon as there is."""
        return self._full is not None

    def submit(self, mark: Mark) -> None:
        """Have this mark written, unless a newer one comes first."""
        with self._submitted:
            self._next = mark
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

    def _put_back(self, mark: Mark, error: OSError) -> bool:
        """Wait before a mark that had no room is tried again; False when all is to end."""
        with self._synced:
            self._full = error
            if self._next is None:
                self._next = mark
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
                while self._next is None and not self._stopping.is_set():
                    self._submitted.wait()
                mark, self._next = self._next, None
                if mark is None:
                    return
            try:
                self._file.write(mark)
            except OSError as error:
                if error.errno in FULL_ERRNOS:
                    if self._put_back(mark, error):
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


def check_mark(mark: Mark | None, state: State, db: apsw.Connection) -> None:
    """Raise `LogDamaged` where the log holds less than, or other than, the mark says."""
    last = state.next_number - 1
    if mark is None:
        if last or state.commits:
            raise LogDamaged("the high-water mark is missing or unreadable", state.oldest, last)
        return
    if mark.log_id != state.log_id:
        raise LogDamaged("the high-water mark belongs to another log", state.oldest, last)
    if mark.number > last:
        raise LogDamaged("its newest batches are missing", last + 1, mark.number)
    if mark.commits > state.commits:
        lost = mark.commits - state.commits
        raise LogDamaged(f"the last {lost} changes of receivers are missing", last + 1, last + 1)
    if mark.number >= state.oldest:
        chain = one(db, "select chain from batch where number = ?", (mark.number,))
        if chain != mark.chain:
            raise LogDamaged("a batch is not the one that was stored", mark.number, mark.number)


_CHAINED = (
    "select number, audience, sender, sequence, size, count, crc, chain, frame, after,"
    " before_messages, before_bytes, subject, stored_at, flags, origin"
    " from batch where number between ? and ? order by number"
)


class ChainedRow(NamedTuple):
    """A row of the table batch, checked."""

    number: int
    audience: int
    sender: int
    sequence: int
    size: int
    messages: int
    crc: int
    chain: int
    frame: bytes | None
    after: int
    before_messages: int
    before_bytes: int
    subject: str
    stored_at: int
    flags: int
    origin: bytes | None


def chained_rows(db: apsw.Connection, first: int, last: int, chain: int) -> Iterator[ChainedRow]:
    """Yield the rows `first` to `last`, following the chain through them.

    `chain`: of the batch before `first`. Raises `LogDamaged` for a gap, a row that was changed, or
    a frame that was.
    """
    expected = first
    for values in db.execute(_CHAINED, (first, last)):
        row = ChainedRow(*cast("tuple[Any, ...]", values))
        number = row.number
        if number != expected:
            raise LogDamaged("batches are missing", expected, number - 1)
        try:
            words = crc32(row.subject.encode())
            if row.origin is not None:
                words = crc32(row.origin, words)
            chain = chain_of(
                chain,
                number,
                row.audience,
                row.sender,
                row.sequence,
                row.size,
                row.stored_at,
                row.after,
                row.messages,
                row.flags,
                row.crc,
                words,
            )
        except (struct.error, TypeError, AttributeError):  # not even of the right types
            raise LogDamaged("a batch's row was changed", number, number) from None
        if chain != row.chain:
            raise LogDamaged("a batch's row was changed", number, number)
        frame = row.frame
        if frame is not None and (len(frame) != row.size or crc32(frame) != row.crc):
            raise LogDamaged("a batch's messages were changed", number, number)
        expected += 1
        yield row
    if expected <= last:
        raise LogDamaged("batches are missing", expected, last)


def replay(db: apsw.Connection, state: State, last: int) -> None:
    """Bring `state` from batch `state.saved` to batch `last`, checking all between."""
    for row in chained_rows(db, state.saved + 1, last, state.chain):
        known, total = state.senders_by_id.get(row.sender), state.totals.get(row.audience)
        if known is None or total is None or row.frame is None:
            raise LogDamaged(
                "a batch's sender, audience or messages are missing", row.number, row.number
            )
        if (row.before_messages, row.before_bytes) != (total.messages, total.bytes):
            raise LogDamaged("a batch's place in its audience is wrong", row.number, row.number)
        stop = row.sequence + row.messages - 1
        known.take(min(row.after + 1, row.sequence), stop)
        if known.last is None or stop > known.last[1]:
            known.last = (row.sequence, stop, row.crc)
        known.seen_at = state.age
        total.messages += row.messages
        total.bytes += row.size
        total.last = row.number
        state.used += row.size
        state.dirty_senders.add(known.key)
        state.dirty_totals.add(row.audience)
        state.chain = row.chain
    state.next_number = last + 1
