"""Sums of a database's pages: one of an earlier moment, back in its place, is seen (SEMANTICS 21).

A disk that drops a write that it had confirmed leaves a page that is whole, and old. Nothing in it
is wrong, so no checksum beside the rows can tell. So what each page holds is kept apart, behind the
marks of the mark file, and compared when the file is opened. Pages come into the file by folding
the write-ahead log in and in no other way: `take` notes what that is about to bring, which costs
nothing per group. What is still in the write-ahead log is not compared: it hides the pages below.

Whoever else closes the file last folds the write-ahead log in and removes it, which nobody here
does. Without one the sums begin anew, as they do for a file that has none: a table that is changed
by hand while nothing runs is no damage.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import apsw

from msgservice.disk.database import FULL_ERRNOS, one
from msgservice.disk.files import OS, Files, write_whole
from msgservice.disk.mark import MARKS_SIZE, open_mark
from msgservice.disk.second_sqlite import hold_against_own_process
from msgservice.errors import LogDamaged

PAGE = 4096
LOOK_PAGES = 508  # of one look: 2 MiB, two milliseconds
_SECTOR = 512
_SUMS = 127  # of one sector, which ends with a CRC of its own: a torn one knows nothing
_HEADERS = (MARKS_SIZE, MARKS_SIZE + 4096)  # written in turn, as the marks are
_SECTORS_AT = MARKS_SIZE + 2 * 4096
_MAGIC = b"msgspage"
_GAP = 64  # sectors: others that are no further apart are read and written in one piece
_RETIRED_MAX = 112
# Magic, turn, pages, salts and frames of the write-ahead log taken last, how many retired follow.
_header = struct.Struct("<8sQI8sII")
_WAL_HEADER = 32
_FRAME = 24 + PAGE
_frame_page = struct.Struct(f">I{_FRAME - 4}x")


class _Header(NamedTuple):
    turn: int
    pages: int  # that the file has when the write-ahead log is folded in
    salts: bytes  # which generation of the write-ahead log was taken last
    frames: int  # … and how much of it
    retired: tuple[bytes, ...]  # the generations before it

    def encode(self) -> bytes:
        body = _header.pack(_MAGIC, *self[:4], len(self.retired))
        body += b"".join(self.retired)
        body = body.ljust(_SECTOR - 4, b"\0")
        return body + struct.pack("<I", crc32(body))


def _decode(sector: bytes) -> _Header | None:
    body = sector[: _SECTOR - 4]
    if sector[_SECTOR - 4 :] != struct.pack("<I", crc32(body)):
        return None
    magic, turn, pages, salts, frames, count = _header.unpack_from(body)
    if magic != _MAGIC:
        return None
    places = range(_header.size, _header.size + count * 4, 4)
    return _Header(turn, pages, salts, frames, tuple(body[at : at + 4] for at in places))


class PageSums:
    """The sums of the pages of `database`, in its mark file; two threads may use it.

    `note_files` before the file is opened; `begin` when it is, and before anything is folded in;
    then `look` until it says False; `take` before every checkpoint; `close` behind the connection,
    not before it: to close a descriptor of a file ends this process's locks on it.

    `begun_by`: of pages that only go on with a long value so many bytes are summed up, and not all;
    for values that have a checksum beside them.
    """

    def __init__(
        self, database: Path, mark: Path, files: Files = OS, *, begun_by: int | None = None
    ) -> None:
        self._begun_by = begun_by
        self._path = database
        self._wal_path = database.with_name(database.name + "-wal")
        self._mark_path = mark
        self._files = files
        self._lock = threading.Lock()
        self._mark: int | None = None  # descriptors
        self._database: int | None = None
        self._held: list[int] | None = None
        self._known = _Header(0, 0, b"", 0, ())
        self._had_wal: bool | None = None  # whether it was there; to open the file makes one
        self._is_begun = False
        self._is_forgotten = False  # sums that are there are of before another program wrote
        self._is_anew = False  # the header is still to be written
        self._hidden: set[int] = set()  # pages that the write-ahead log brings: not compared
        self._next = 1  # the page to be looked at next
        self._last = 0

    def note_files(self) -> None:
        """Note the write-ahead log's presence: whether another program had the file open last."""
        if self._had_wal is None:
            self._had_wal = self._wal_path.exists()

    def forget(self) -> None:
        """Forget sums that are there: a program that keeps none has written since; before `begin`.

        It was put back, with the copy of before it was brought up, and has left the mark file.
        """
        self._is_forgotten = True

    def begin(self, db: apsw.Connection) -> bool:
        """Read what is known, and compare the write-ahead log with it.

        Return whether nothing is known any more, since another program had the file open. Raises
        `LogDamaged`; `OSError` where the mark file cannot be used.
        """
        if self._held is None:
            self._held = hold_against_own_process(self._path)
        if one(db, "pragma page_size") != PAGE:
            return False
        frames = _frames(db)
        self._next, self._hidden = 1, set()
        if self._mark is None:
            try:
                self._mark = open_mark(self._mark_path, self._files)
            except OSError as error:
                if error.errno not in FULL_ERRNOS:
                    raise
                return False  # a new file, and no room for it: the next start begins with them
        if self._database is None:
            self._database = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        found = [_decode(os.pread(self._mark, _SECTOR, place)) for place in _HEADERS]
        known = max((one for one in found if one is not None), default=None)
        self._last = one(db, "pragma page_count")
        is_foreign = known is not None and not self._had_wal
        if known is None or is_foreign or self._is_forgotten:
            self._begin_anew(known or self._known)
        else:
            self._known = known
        if frames:
            try:
                with _Frames(self._wal_path, frames) as wal:
                    self._check_wal(wal.salts, frames)
                    self._hidden.update(wal.newest(0))
            except _WalGone:
                is_foreign = True
                self._give_up()
        self._is_begun = True
        return is_foreign

    def _begin_anew(self, known: _Header) -> None:
        """Forget all sums; those of what is there are made by `look`."""
        assert self._mark is not None
        self._files.ftruncate(self._mark, MARKS_SIZE)
        self._files.fdatasync(self._mark)
        retired = _with_retired(known.retired, known.salts)
        self._known = _Header(known.turn, self._last, b"", 0, retired)
        self._is_anew = True

    def _check_wal(self, salts: bytes, frames: int) -> None:
        known = self._known
        if salts == known.salts:
            if frames < known.frames:
                raise LogDamaged(f"the end of {self._wal_path.name} is missing", 0, 0)
            # The header may have been kept, and the sums that were written before it not: nothing
            # of this generation is in the file until both are synced, so all of it is taken again.
            self._known = known._replace(frames=0)
        elif salts[4:] in known.retired:
            raise LogDamaged(f"{self._wal_path.name} is one of an earlier moment", 0, 0)

    @property
    def turn(self) -> int:
        """How often folding in was noted: what a commit says of the file that it goes on from."""
        return self._known.turn

    def check_turn(self, turn: int) -> None:
        """Hold the turn of the newest commit against the mark file; behind `begin`.

        A later one is of a write-ahead log that is not this file's: what it goes on from was folded
        into another, and is missing. Raises `LogDamaged`.
        """
        if self._mark is None or turn <= self._known.turn:
            return
        if not self._is_anew:
            raise LogDamaged(
                f"{self._wal_path.name} is of a later moment than the file and its mark: where"
                " these were put back from a copy, remove it, it belongs to what was there",
                0,
                0,
            )
        self._known = self._known._replace(turn=turn)

    @property
    def pages_left(self) -> int:
        """The number of pages that `look` has before it."""
        return max(0, self._last + 1 - self._next)

    def look_at_all(self) -> None:
        """Compare every page."""
        while self.look():
            pass

    def look(self) -> bool:
        """Compare some more pages with their sums; return whether there are more.

        Raises `LogDamaged` for one that is not as it was written last. Sums of pages that have
        none are made.
        """
        with self._lock:
            if self._mark is None or self._next > self._last:
                return False
            stop = min(self._next + LOOK_PAGES, self._last + 1)
            self._compare(range(self._next, stop))
            self._next = stop
            if stop <= self._last:
                return True
            self._hidden.clear()
            if self._is_anew:
                self._known = self._known._replace(turn=self._known.turn + 1)
                with suppress(OSError):  # those that are not kept are made at the next start
                    self._write_header()
            return False

    def _write_header(self) -> None:
        """Write what is known, synced."""
        assert self._mark is not None
        place = _HEADERS[self._known.turn % 2]
        write_whole(self._files, self._mark, self._known.encode(), place)
        self._files.fdatasync(self._mark)
        self._is_anew = False

    def _compare(self, pages: Iterable[int]) -> None:
        """Compare these pages, which rise, with their sums."""
        made: dict[int, int] = {}
        for sector, some in groupby(pages, key=lambda page: (page - 1) // _SUMS):
            sums, first = self._sector(sector), sector * _SUMS + 1
            wanted = [page for page in some if page not in self._hidden]
            if not wanted:
                continue
            at = wanted[0]
            data = memoryview(self._pages(at, wanted[-1] + 1 - at))
            for page in wanted:
                if page > self._known.pages:
                    break
                known = sums[page - first]
                begin = (page - at) * PAGE
                found = _sum(data[begin : begin + PAGE], self._begun_by)
                if found == known:
                    continue
                if known:
                    raise LogDamaged(
                        f"page {page} of {self._path.name} is not the one that was written last;"
                        f" if it was changed on purpose, cut {self._mark_path.name} to"
                        f" {MARKS_SIZE} bytes",
                        0,
                        0,
                    )
                made[page] = found
        if made:
            with suppress(OSError):  # those that are not kept are made at the next start
                self._write(made)

    def _pages(self, first: int, count: int) -> bytes:
        assert self._database is not None
        try:
            return os.pread(self._database, count * PAGE, (first - 1) * PAGE)
        except OSError as error:
            raise LogDamaged(f"{self._path.name} cannot be read: {error}", 0, 0) from error

    def take(self, db: apsw.Connection) -> None:
        """Note, synced, what a checkpoint is about to bring into the file.

        Between this and the checkpoint nothing may be committed. Raises `OSError`; `LogDamaged`
        where it would replace a damaged page; `apsw.FullError` where there is no room for sums, nor
        to forget them.
        """
        if self._mark is None:
            return
        frames = _frames(db)
        if not frames:
            return
        with self._lock:
            try:
                with _Frames(self._wal_path, frames) as wal:
                    self._take(wal, frames)
            except _WalGone:
                self._give_up()

    def _take(self, wal: _Frames, frames: int) -> None:
        known, pages = self._known, wal.pages
        taken, retired = known.frames, known.retired
        if wal.salts != known.salts:
            taken, retired = 0, _with_retired(retired, known.salts)
        if taken == frames:
            return
        newest = wal.newest(taken if taken < frames else 0)
        if self._next <= self._last:
            self._compare(page for page in sorted(newest) if self._next <= page <= self._last)
            self._hidden.update(newest)
        # SQLite need not write a page that is free.
        sums = dict.fromkeys(range(known.pages + 1, pages + 1), 0)
        sums.update(wal.sums_of(newest, self._begun_by))
        self._known = _Header(known.turn + 1, pages, wal.salts, frames, retired)
        try:
            self._write(sums)
            self._write_header()
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            try:
                self._give_up()
            except OSError as second:
                # Where files are copied on write, to cut one short needs room as well. Nothing is
                # noted, so nothing may be folded in: the next time all is taken again.
                self._known = known._replace(frames=0)
                if second.errno not in FULL_ERRNOS:
                    raise
                raise apsw.FullError(f"no room: {self._mark_path.name}") from second

    def _give_up(self) -> None:
        """Forget all sums: what is to be folded in cannot be noted, and is folded in all the same.

        Where there is no room, folding is what makes some.
        """
        assert self._mark is not None
        self._files.ftruncate(self._mark, MARKS_SIZE)
        self._files.fdatasync(self._mark)
        # Of how many pages stays: where nothing is written no sum is known, and none need be struck
        # out. To strike out those of all pages would take seconds of a large log.
        self._known = self._known._replace(salts=b"", frames=0)
        self._last = 0

    def _sector(self, number: int) -> array[int]:
        """Return the sums of a sector; zero where none is known."""
        assert self._mark is not None
        return _sums_of(os.pread(self._mark, _SECTOR, _SECTORS_AT + number * _SECTOR), number)

    def _write(self, sums: dict[int, int]) -> None:
        """Write these sums, in few pieces: at each call others may take the interpreter's lock."""
        assert self._mark is not None
        pages = sorted(sums)
        sectors = sorted({(page - 1) // _SUMS for page in pages})
        at = 0
        while at < len(sectors):
            end = at + 1
            while end < len(sectors) and sectors[end] - sectors[end - 1] <= _GAP:
                end += 1
            self._write_piece(sums, pages, sectors[at], sectors[end - 1])
            at = end

    def _write_piece(self, sums: dict[int, int], pages: list[int], first: int, last: int) -> None:
        """Write the sums of some sectors; `pages`: those that `sums` has, rising."""
        assert self._mark is not None
        place = _SECTORS_AT + first * _SECTOR
        data = os.pread(self._mark, (last + 1 - first) * _SECTOR, place)
        piece = bytearray()
        at = bisect_right(pages, first * _SUMS)
        for number in range(first, last + 1):
            begin = (number - first) * _SECTOR
            sector = _sums_of(data[begin : begin + _SECTOR], number)
            stop = bisect_right(pages, (number + 1) * _SUMS, at)
            some, before = pages[at:stop], number * _SUMS + 1
            at = stop
            if len(some) == _SUMS:
                sector = array("I", [sums[page] for page in some])
            else:
                for page in some:
                    sector[page - before] = sums[page]
            body = sector.tobytes()
            piece += body + struct.pack("<I", crc32(body, number))
        write_whole(self._files, self._mark, bytes(piece), place)

    def close(self) -> None:
        """Close what is open, behind the connections."""
        with self._lock:
            if self._mark is not None:
                self._files.close(self._mark)
            if self._database is not None:
                os.close(self._database)
            for descriptor in self._held or ():
                os.close(descriptor)
            self._mark = self._database = self._held = None
        if not self._is_begun and self._had_wal is False:
            # It was not opened after all, and the next one to try is to see what we saw.
            with suppress(OSError):
                if not self._wal_path.stat().st_size:
                    self._files.unlink(self._wal_path)


class _WalGone(Exception):
    """The write-ahead log is not the file of its name any more.

    Another SQLite in this very process does that: it does not see our locks. What it has folded in
    is not known to us.
    """


class _Frames:
    """The frames of a write-ahead log, without a copy of them."""

    def __init__(self, path: Path, count: int) -> None:
        size = _WAL_HEADER + count * _FRAME
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _WalGone from error
        try:
            if os.fstat(descriptor).st_size < size:
                raise _WalGone
            flags = mmap.MAP_SHARED
            self._map = mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._view = memoryview(self._map)
        self._count = count
        self.salts = bytes(self._view[16:24])
        # The last frame is of a commit, and says how many pages the file has then.
        at = size - _FRAME + 4
        self.pages = int.from_bytes(self._view[at : at + 4], "big")

    def __enter__(self) -> _Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self._view.release()
        self._map.close()

    def newest(self, first: int) -> dict[int, int]:
        """Return the newest frame of each page that one from `first` on brings."""
        with self._view[_WAL_HEADER + first * _FRAME :] as view:
            pages = [page for (page,) in _frame_page.iter_unpack(view)]
        return dict(zip(pages, range(first, self._count), strict=True))

    def sums_of(self, frames: dict[int, int], begun_by: int | None) -> dict[int, int]:
        """Return the sum of each page, which is in the frame that is named for it."""
        view, first = self._view, _WAL_HEADER + _FRAME - PAGE
        whole = PAGE if begun_by is None else begun_by
        sums = {}
        for page, frame in frames.items():
            at = first + frame * _FRAME
            # As `_sum`: there are some thousands, between two groups.
            sums[page] = crc32(view[at : at + (PAGE if view[at] else whole)]) or 1
        return sums


def _sums_of(sector: bytes, number: int) -> array[int]:
    body = sector[: _SUMS * 4]
    if sector[_SUMS * 4 :] != struct.pack("<I", crc32(body, number)):
        return array("I", bytes(_SUMS * 4))
    return array("I", body)


def _sum(page: memoryview, begun_by: int | None) -> int:
    """Return the sum of a page; never 0, which says that none is known.

    A page of a table or an index begins with its kind, one that goes on with a value with the
    number of the next such page, whose first byte is zero in a file of less than 64 GiB.
    """
    return crc32(page if begun_by is None or (page and page[0]) else page[:begun_by]) or 1


def _frames(db: apsw.Connection) -> int:
    """Return how many frames the write-ahead log has that count."""
    return max(0, db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])


def _with_retired(retired: tuple[bytes, ...], salts: bytes) -> tuple[bytes, ...]:
    """Add a generation of the write-ahead log, by the half that SQLite draws for each."""
    return (*retired, salts[4:])[-_RETIRED_MAX:] if salts else retired
