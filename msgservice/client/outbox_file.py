"""The producer's outbox on disk: what was handed over and is not yet the node's (SEMANTICS 26).

Runs go in with their sequences and stay until all of a run is settled. `append` fires after the
sync; what is appended while a commit runs goes into the next one. A settlement that a crash loses
only means that a run is sent again, so settlements ride with later commits. A high-water mark
beside the file guards its tail, as it does for a log. Nothing here knows what is in flight.

With its run goes a row of the receipts that are open (DELIVERY 53), whose SQL is in
`client.receipt_rows`. What is changed of these rides with later commits too.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import apsw
import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.client import receipt_rows
from msgservice.client.acked import Untaken
from msgservice.client.outbox_left import LeftRuns, row_size
from msgservice.client.receipt import OPEN_RECEIPTS
from msgservice.core.ranges import RangeSet
from msgservice.core.runs import Run
from msgservice.disk.database import as_json, insert_steps, is_full, one
from msgservice.disk.files import OS, Files
from msgservice.disk.guarded import GuardedFile
from msgservice.disk.machine import OwnThreads, Threads
from msgservice.disk.mark import MARK_GONE, Mark
from msgservice.disk.migrations import Schema
from msgservice.errors import (
    LogDamaged,
    LogFailed,
    LogUnavailable,
    OutboxFull,
    OutboxOfAnother,
)

SIZE_MAX = 1024 * 1024 * 1024  # bytes of open runs, unless told otherwise
# So many changes of receipts are written without waiting for the next append.
STEPS_WAITING = 256
# Settlements of so many bytes are written without waiting for the next append.
FIRSTS_KEPT = 1024  # numbers of runs that have gone, before the list is made anew
SETTLED_BYTES = 1024 * 1024
CHECKPOINT_BYTES = 8 * 1024 * 1024
_UPDATE_HEAD = "update head set sequence = max(sequence, ?), turn = ?, kept = coalesce(?, kept)"
_MARKED = "outbox"  # what the mark is for; the incarnation may change

_TABLES = """
create table head(
    id integer primary key check (id = 1),
    incarnation text not null,
    sequence integer not null       -- the last that the file ever held
);
create table run(
    first integer primary key,
    count integer not null,
    subject text not null,
    audience text,                  -- JSON list of names, or null
    flags integer not null,
    crc integer not null,           -- crc32 of messages
    messages blob not null
);
"""
# Counted, so that one that went missing is seen at the next start. An older program would not keep
# the sums of pages: it refuses the file.
_VERSION_2 = """
alter table head add column renewals integer not null default 0;    -- of the incarnation
"""
# Which log has what is no longer here.
_VERSION_3 = """
alter table head add column log_id text not null default '';
"""
# Of the page sums: a write-ahead log that is not this file's is seen at the next start.
_VERSION_4 = """
alter table head add column turn integer not null default 0;
"""
# A time counts from the hand-over: by the wall clock, which is all that two processes share.
_VERSION_5 = """
alter table run add column ttl integer;
alter table run add column handed_at integer not null default 0;
"""
# What waits at the node counts so too.
_VERSION_6 = """
alter table run add column delay integer;
"""
# So does the time of a promise.
_VERSION_7 = """
alter table run add column promise text;    -- JSON list: need, within, cancels; or null
"""
# Of the receipts that are open, which outlive the run, and the process.
_VERSION_8 = receipt_rows.TABLE + receipt_rows.FILL
# The last sequence may be of a run that could not be written: whoever counts what was handed over
# (`msgservice.outbox`) needs the last that was kept; and a name of the file that no renewal
# changes. And whose it is: the node knows its numbers by that name.
_VERSION_9 = """
alter table head add column kept integer not null default 0;
alter table head add column identity text not null default '';
alter table head add column sender text not null default '';
update head set kept = sequence;
"""
# Of receipts that nobody asks for: those of who was away for long went as soon as they had come to
# their end, where that counted from when they were handed over.
_VERSION_10 = receipt_rows.AGING
# Of the newest sequences, which the node has not taken: it has them from another outbox then, if
# from any, and has not forgotten them.
_VERSION_11 = """
alter table head add column untaken text not null default '[]';     -- JSON, see `client.acked`
"""
# Of a relay: the rows of another table would take what became of this one's for their own.
_VERSION_12 = """
alter table head add column relayed text not null default '';       -- the table that it is of
"""
SCHEMA = Schema(
    0x6D736F62,
    (
        _TABLES,
        _VERSION_2,
        _VERSION_3,
        _VERSION_4,
        _VERSION_5,
        _VERSION_6,
        _VERSION_7,
        _VERSION_8,
        _VERSION_9,
        _VERSION_10,
        _VERSION_11,
        _VERSION_12,
    ),
    sums_since=2,
)  # "msob"

_decode_untaken = msgspec.json.Decoder(list[Untaken]).decode


class _Receipts(NamedTuple):
    """The change of the rows of receipts by one commit: the rows deleted, of which so many were
    `dropped` since they were too many; and the lowest that is left, where that was looked at.
    """

    deleted: int
    lowest: int | None
    dropped: int


NO_RECEIPTS = _Receipts(0, None, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSnapshot:
    """The contents of an outbox when it was opened."""

    incarnation: str
    sequence: int  # the last that it ever held; 0 for a new one
    runs: tuple[Run, ...]  # the first page of open ones, rising; the rest by `read`
    open_ranges: tuple[tuple[int, int], ...]  # all that is open
    messages: int  # of all open runs
    messages_bytes: int
    receipts: receipt_rows.Found
    log_id: str = ""  # as `note_log` was last told
    untaken: tuple[Untaken, ...] = ()  # as `note_untaken` was
    kept: int = 0  # the last sequence of a run that was ever written
    identity: str = ""  # of the file, for as long as there is one
    relayed: str = ""  # as `note_relayed` was last told


class OutboxFile:
    """The outbox in the file `path`; its folder is made if needed.

    `size_max`: bytes of open runs. `receipts_max`: runs whose receipts are kept; beyond it the
    oldest go. `sender`: who opens it, where one does. `entropy` gives the random bytes of an
    incarnation. `vfs`: for tests, a SQLite VFS by name. `now`, ms since the epoch, may be set by
    who has a clock.
    """

    _logger = Logger()

    def __init__(
        self,
        path: str | Path,
        *,
        reactor: IReactorFromThreads,
        size_max: int = SIZE_MAX,
        receipts_max: int = OPEN_RECEIPTS,
        sender: str = "",
        entropy: Callable[[int], bytes] = os.urandom,
        vfs: str | None = None,
        files: Files = OS,
        threads: Threads | None = None,
    ) -> None:
        self.path = Path(path)
        self.incarnation = ""
        self.sequence = 0  # the last sequence that was handed in
        self.settled_to = 0  # no crash brings anything back up to here: SEMANTICS 1, `floor`
        self.size = 0  # bytes of open runs
        self.receipts = 0  # runs of which there is a row of receipts
        self.receipts_from: int | None = None  # the first sequence of these, committed; or None
        self.has_dropped = False  # rows that were too many, since somebody looked
        self.now: Callable[[], int] = lambda: time.time_ns() // 1_000_000
        self._size_max = size_max
        self.receipts_max = receipts_max
        self._sender = sender
        self._steps: list[receipt_rows.Step] = []  # changes of receipts that are not on disk
        self._entropy = entropy
        threads = OwnThreads(reactor) if threads is None else threads
        self._file = GuardedFile(self.path, numbered=True, vfs=vfs, files=files, threads=threads)
        self._left: LeftRuns | None = None
        self._opened = False
        self._failed: LogFailed | None = None
        self._kept_to = 0  # the last sequence that is committed
        self._rows = 0  # of receipts, that are committed; on the worker's thread
        self._renewals = 0
        self._firsts: list[int] = []  # of open runs, rising; may hold some that have gone
        self._head = 0  # before this all of them have gone
        self._open: dict[int, _Open] = {}  # first -> what is left of a run
        self._waiting: list[tuple[Sequence[Run], Deferred[None]]] = []
        self._gone: list[int] = []  # firsts of settled runs whose rows are still there
        self._gone_bytes = 0
        self._log_id: str | None = None  # noted, and not yet on disk
        self._untaken: str | None = None  # noted as JSON, and not yet on disk
        self._relayed: str | None = None
        self._committing: Deferred[Any] | None = None
        self._written = 0

    # --- opening and closing -------------------------------------------------------------------

    def open(self) -> Deferred[OutboxSnapshot]:
        """Lock, check and load.

        Fails with `LogLocked`, `LogTooNew`, `LogDamaged`, `OutboxOfAnother`, `DataFolderUnusable`.
        """
        opening = self._file.begin("msgservice outbox", lambda: self._file.open(self._load))
        return opening.addCallback(self._remember)

    def _remember(self, snapshot: OutboxSnapshot) -> OutboxSnapshot:
        assert self._left is not None
        self.incarnation = snapshot.incarnation
        self.sequence = snapshot.sequence
        self.size = self._left.size
        self._index(snapshot.runs)
        self.receipts, self.receipts_from = snapshot.receipts.count, snapshot.receipts.lowest
        self.settled_to = self._lowest()
        self._opened = True
        self._file.tell()
        return snapshot

    def _load(self, db: apsw.Connection, mark: Mark | None) -> tuple[OutboxSnapshot, Mark]:
        self._file.migrate(db, SCHEMA)
        head = one(
            db,
            "select incarnation, sequence, renewals, log_id, turn, kept, identity, sender, untaken,"
            " relayed from head",
        )
        if head is None:
            head = (self._entropy(16).hex(), 0, 0, "", 0, 0, "", "", "[]", "")
            db.execute("insert into head values (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", head)
        incarnation, sequence, self._renewals, log_id, turn, kept, identity, *rest = head
        sender, said, relayed = rest
        if not identity:
            identity = self._entropy(16).hex()
            db.execute("update head set identity = ?", (identity,))
        self._kept_to = sequence
        if mark is None and sequence:
            raise LogDamaged(MARK_GONE.format(name=f"{self.path.name}.mark"), 1, sequence)
        if mark is not None and mark.number > sequence:
            raise LogDamaged("its newest runs are missing", sequence + 1, mark.number)
        if mark is not None and mark.commits > self._renewals:
            raise LogDamaged("its newest incarnation is missing", 1, sequence)
        self._file.pages.begin(db)
        self._file.pages.check_turn(turn)
        self._file.pages.look_at_all()
        try:
            untaken = _decode_untaken(said)
        except msgspec.MsgspecError as error:
            raise LogDamaged("what the node has not taken was changed", 1, sequence) from error
        found = receipt_rows.look_at(db)
        self._rows = found.count
        left = self._left = LeftRuns(db)
        if self._sender and self._sender != sender:
            if sender and (left.open or found.count):
                raise OutboxOfAnother(str(self.path), sender, self._sender)
            db.execute("update head set sender = ?", (self._sender,))
        snapshot = OutboxSnapshot(
            incarnation=incarnation,
            sequence=sequence,
            runs=left.first_page,
            open_ranges=tuple(left.open),
            messages=left.messages,
            messages_bytes=left.messages_bytes,
            receipts=found,
            log_id=log_id,
            untaken=tuple(untaken),
            kept=kept,
            identity=identity,
            relayed=relayed,
        )
        left.first_page = ()
        return snapshot, Mark(_MARKED, sequence, self._renewals, 0)

    def close(self) -> Deferred[None]:
        """Write what is waiting, close and unlock. Safe to call twice."""
        if not self._opened:
            return succeed(None)
        self._opened = False
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        while self._committing is not None or self._waiting:
            await self._idle()
        gone, self._gone = self._gone, []
        steps, self._steps = self._steps, []
        heads = self._take_heads()
        await self._file.end(lambda: self._close_file(gone, heads, steps))

    def _idle(self) -> Deferred[None]:
        """Return a Deferred that fires when the commit that runs now is done."""
        waiter: Deferred[None] = Deferred()
        if self._committing is None:
            self._start()
        assert self._committing is not None
        self._committing.addCallback(lambda _: waiter.callback(None))
        return waiter

    def _close_file(self, gone: list[int], heads: _Heads, steps: list[receipt_rows.Step]) -> None:
        with self._file.closing():
            if self._failed is None:
                self._write([], gone, self.sequence, heads, steps)
                self._file.fold(apsw.SQLITE_CHECKPOINT_TRUNCATE)

    # --- reading what was there at the start ------------------------------------------------------

    @property
    def has_more(self) -> bool:
        """Whether open runs of before the start are still to be read."""
        return self._left is not None and self._left.has_more

    def read(self) -> Deferred[list[Run]]:
        """Read the next page of them, rising; one call at a time.

        Fails with `LogUnavailable` when the file is closed, `LogDamaged`, or as SQLite does.
        """
        if not self._opened:
            return fail(LogUnavailable("the outbox is not open"))

        def job() -> list[Run]:
            assert self._left is not None
            return self._left.page(self._file.db)

        def done(page: list[Run]) -> list[Run]:
            assert self._left is not None
            self._index(page)
            self._left.was_read(page)
            return page

        return self._file.submit(job).addCallback(done)

    def is_unread(self, last: int) -> bool:
        """Whether sequences up to `last` may be in the file and not in memory."""
        return self._left is not None and self._left.is_unread(last)

    def between(self, first: int, last: int) -> Deferred[list[Run]]:
        """Read runs by sequence without counting them, rising; fails as `read` does."""
        if not self._opened:
            return fail(LogUnavailable("the outbox is not open"))

        def job() -> list[Run]:
            assert self._left is not None
            return self._left.between(self._file.db, first, last)

        return self._file.submit(job)

    # --- receipts ------------------------------------------------------------------------------

    def change_receipts(self, steps: Iterable[receipt_rows.Step]) -> None:
        """Change rows of receipts; that rides with what is written next, or a few of its kind."""
        if self._opened and self._failed is None:
            self._steps += steps
            if len(self._steps) >= STEPS_WAITING:
                self._start()

    def write_receipts(self) -> Deferred[None]:
        """Commit the changes of receipts; fires when they are synced. Fails as `append` does."""
        return self.append([])

    def receipts_page(self, after: int, limit: int) -> Deferred[list[receipt_rows.Row]]:
        """Read the rows of receipts beyond `after`, of so many messages, or a few more.

        Fails with `LogUnavailable` when the file is closed, or has no room for what is to be noted,
        `LogFailed`, `LogDamaged`, or as SQLite does.
        """
        if self._failed is not None:
            return fail(self._failed)
        if not self._opened:
            return fail(LogUnavailable("the outbox is not open"))

        def read(_: object) -> Deferred[list[receipt_rows.Row]]:
            return self._file.submit(lambda: receipt_rows.page(self._file.db, after, limit))

        # What was noted of the rows is read with them.
        return self.write_receipts().addCallback(read) if self._steps else read(None)

    # --- runs ----------------------------------------------------------------------------------

    def append(self, runs: Sequence[Run]) -> Deferred[None]:
        """Append runs; fires after the sync. Cancelling stops the wait, not the write.

        Each begins above all sequences handed in before. Fails with `OutboxFull` (nothing kept),
        `LogUnavailable` (nothing kept, try again later), `LogFailed` (whether they are kept is seen
        when the file is opened again, and nothing is taken before). A run that failed leaves
        its sequences unused: what comes next must begin above them all the same.
        """
        if self._failed is not None:
            return fail(self._failed)
        if not self._opened:
            return fail(LogUnavailable("the outbox is not open"))
        size = sum(map(row_size, runs))
        if self.size + size > self._size_max:
            return fail(OutboxFull(self.size + size, self._size_max))
        for run in runs:
            if run.first <= self.sequence:
                raise ValueError(f"run begins at {run.first}, {self.sequence} was handed in before")
            self.sequence = run.last
            self._add(run)
        waiter: Deferred[None] = Deferred()
        self._waiting.append((runs, waiter))
        self._start()
        return waiter

    def settle(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Forget settled messages (acknowledged or refused): a run is deleted when all of it is."""
        for first, last in ranges:
            firsts = self._firsts
            at = max(0, bisect_left(firsts, first) - 1)
            while at < len(firsts) and firsts[at] <= last:
                start = firsts[at]
                entry = self._open.get(start)
                if entry is not None and entry.settle(first, last):
                    del self._open[start]
                    self.size -= entry.size
                    self._gone_bytes += entry.size
                    self._gone.append(start)
                at += 1
        if len(self._firsts) > FIRSTS_KEPT + 2 * len(self._open):
            self._firsts = [start for start in self._firsts if start in self._open]
            self._head = 0
        if self._gone_bytes >= SETTLED_BYTES:
            self._start()

    def write_settled(self) -> None:
        """Commit settlements now that would wait for the next commit; `settled_to` moves."""
        if self._gone and self._failed is None:
            self._start()

    def note_log(self, log_id: str) -> None:
        """Keep the id of the log that takes what is here; written before anything settled later.

        Where that fails for want of room, it is written with what is written next.
        """
        if not self._opened:
            return
        self._log_id = log_id
        self._start()

    def note_untaken(self, untaken: Sequence[Untaken]) -> None:
        """Keep which of the newest sequences the node has not taken; see `client.acked`.

        To be called before these are settled: it is written with that.
        """
        self._untaken = as_json(untaken)

    def note_relayed(self, table: str) -> None:
        """Keep the name of the table whose rows are here; written with the next of them."""
        self._relayed = table

    def renew(self) -> Deferred[str]:
        """Take a new incarnation (SEMANTICS 4, 6); fires with it when it is synced.

        Fails with `LogUnavailable` or `LogFailed`, as `append` does.
        """
        incarnation = self._entropy(16).hex()
        # With what became of receipts under the one before: of those it is told no more.
        steps, self._steps = self._steps, []

        def job() -> _Receipts:
            renewed = ("update head set incarnation = ?, renewals = renewals + 1", (incarnation,))
            receipts = self._commit([renewed], steps)
            self._renewals += 1
            self._mark()
            return receipts

        def done(receipts: _Receipts) -> str:
            self._note(0, receipts)
            self.incarnation = incarnation
            return incarnation

        def failed(failure: Failure) -> Failure:
            self._steps[:0] = steps
            return failure

        return self._file.submit(job).addCallbacks(done, failed)

    def _add(self, run: Run) -> None:
        self._firsts.append(run.first)
        size = row_size(run)
        self._open[run.first] = _Open(run.first, run.last, size)
        self.size += size

    def _index(self, page: Sequence[Run]) -> None:
        """Runs of the file that are in memory from now on; what was appended has higher numbers."""
        if page:
            at = bisect_left(self._firsts, page[0].first)
            self._head = min(self._head, at)
            self._firsts[at:at] = [run.first for run in page]
            for run in page:
                self._open[run.first] = _Open(run.first, run.last, row_size(run))

    def _remove(self, runs: Sequence[Run]) -> None:
        """Take runs back that could not be written."""
        for run in runs:
            if self._open.pop(run.first, None) is not None:
                at = bisect_left(self._firsts, run.first)
                self._head -= at < self._head
                del self._firsts[at]
                self.size -= row_size(run)

    def _lowest(self) -> int:
        """Return up to where nothing is open, in memory: on disk once it is committed."""
        firsts, open_ = self._firsts, self._open
        while self._head < len(firsts) and firsts[self._head] not in open_:
            self._head += 1
        lowest = firsts[self._head] - 1 if open_ else self.sequence
        left = self._left
        return min(lowest, left.read_to) if left and left.has_more else lowest

    # --- commits -------------------------------------------------------------------------------

    def _start(self) -> None:
        """Commit what is waiting, unless a commit runs."""
        if self._committing is not None:
            return
        group, self._waiting = self._waiting, []
        gone, self._gone, self._gone_bytes = self._gone, [], 0
        heads = self._take_heads()
        steps, self._steps = self._steps, []
        runs = [run for some, _ in group for run in some]
        sequence, settled_to = self.sequence, self._lowest()
        added = receipt_rows.insert(runs, self.now()) if self.receipts_max and runs else []
        rows_added = len(runs) if added else 0
        committing = self._committing = self._file.submit(
            lambda: self._write(runs, gone, sequence, heads, [*steps, *added], rows_added)
        )

        def done(result: _Receipts | Failure) -> None:
            self._committing = None
            is_due = False
            if isinstance(result, Failure):
                self._remove(runs)
                self._steps[:0] = steps
                self._gone += gone
                self._log_id = heads.log_id if self._log_id is None else self._log_id
                self._untaken = heads.untaken if self._untaken is None else self._untaken
                self._relayed = heads.relayed if self._relayed is None else self._relayed
            else:
                self.settled_to = settled_to
                self._note(rows_added, result)
                self.has_dropped = self.has_dropped or result.dropped > 0
                is_due = self._log_id is not None or len(self._steps) >= STEPS_WAITING
            behind: list[tuple[Sequence[Run], Deferred[None]]] = []
            if self._failed is not None:
                behind, self._waiting = self._waiting, []
                self._remove([run for some, _ in behind for run in some])
            elif self._waiting or is_due:
                self._start()
            for _, waiter in group:
                if isinstance(result, Failure):
                    waiter.errback(result)
                else:
                    waiter.callback(None)
            for _, waiter in behind:
                waiter.errback(self._failed)

        def fault(failure: Failure) -> None:
            self._logger.failure("after a commit of the outbox", failure)
            self._failed = self._failed or self._broken(failure.getErrorMessage())
            waiting, self._waiting = self._waiting, []
            for _, waiter in (*group, *waiting):
                if not waiter.called:
                    waiter.errback(self._failed)

        committing.addBoth(done).addErrback(fault)

    def _take_heads(self) -> _Heads:
        """Return what is to be changed in the head; it waits no more."""
        heads = _Heads(self._log_id, self._untaken, self._relayed)
        self._log_id = self._untaken = self._relayed = None
        return heads

    def _note(self, added: int, receipts: _Receipts) -> None:
        """Rows of receipts were written, and others deleted."""
        self.receipts += added - receipts.deleted
        if receipts.deleted or (added and self.receipts_from is None):
            self.receipts_from = receipts.lowest

    def _write(
        self,
        runs: Sequence[Run],
        gone: list[int],
        sequence: int,
        heads: _Heads,
        receipts: Sequence[receipt_rows.Step],
        rows_added: int = 0,
    ) -> _Receipts:
        """Commit runs, settlements, what was noted and receipts; on the worker's thread.

        `rows_added`: of receipts, by these changes.
        """
        # A run that was settled before it was written (a fast node) is written and removed here.
        flat: list[Any] = []
        for run in runs:
            to = None if run.options.to is None else as_json(run.options.to)
            crc = crc32(run.messages)
            flat += (run.first, run.count, run.subject, to, run.options.flags, crc, run.messages)
            ttl, until = run.options.ttl, run.expires_at
            handed_at = 0 if ttl is None or until is None else until - ttl
            delay, due_at = run.options.delay, run.due_at
            if delay is not None and due_at is not None:
                handed_at = due_at - delay
            promise = run.options.promise
            if promise is not None and run.promised_until is not None:
                handed_at = run.promised_until - promise.within
            flat += (ttl, handed_at, delay, None if promise is None else as_json(promise))
        steps: list[tuple[str, Any]] = [*insert_steps("into run", 11, flat)]
        if gone:
            text = msgspec.json.encode(gone).decode()
            steps.append(
                ("delete from run where first in (select value from json_each(?))", (text,))
            )
        turn = self._file.pages.turn
        kept = runs[-1].last if runs else None
        steps.append((_UPDATE_HEAD, (sequence, turn, kept)))
        for name, value in heads._asdict().items():
            if value is not None:
                steps.append((f"update head set {name} = ?", (value,)))  # noqa: S608 - our names
        found = self._commit(steps, receipts, rows_added)
        self._written += sum(map(row_size, runs)) + 4096 * 4
        if self._written >= CHECKPOINT_BYTES:
            self._commit([], checkpoint=True)
            self._written = 0
        self._kept_to = max(self._kept_to, sequence)
        self._mark()
        return found

    def _mark(self) -> None:
        """Have the newest commit marked; on the worker's thread."""
        self._file.mark(Mark(_MARKED, self._kept_to, self._renewals, 0))

    def _commit(
        self,
        steps: Sequence[tuple[str, Any]],
        receipts: Sequence[receipt_rows.Step] = (),
        rows_added: int = 0,
        *,
        checkpoint: bool = False,
    ) -> _Receipts:
        """Run changes in one transaction, or a checkpoint; on the worker's thread.

        Where more rows of receipts are left than may be, the oldest go. After a failed write or
        sync the handle is not used again (SEMANTICS 19).
        """
        if self._failed is not None:
            raise self._failed
        db = self._file.db
        if name := self._file.replaced:
            self._failed = LogFailed(
                f"{name} was replaced or removed while the outbox was in use; it takes nothing"
                " until it is opened again: close the client, then connect with this outbox anew"
            )
            raise self._failed
        try:
            if checkpoint:
                self._file.fold()
                return NO_RECEIPTS
            db.execute("begin immediate")
            for sql, parameters in steps:
                db.execute(sql, parameters)
            deleted, dropped, lowest = 0, 0, None
            for step in receipts:
                db.execute(step.sql, step.parameters)
                deleted += db.changes() if step.deletes else 0
            # Not before those went that have come to their end: they were too many no more.
            over = self._rows + rows_added - deleted - self.receipts_max if rows_added else 0
            if over > 0:
                oldest = receipt_rows.delete_oldest(over)
                db.execute(oldest.sql, oldest.parameters)
                dropped = db.changes()
                deleted += dropped
            if deleted or (receipts and self.receipts_from is None):
                lowest = receipt_rows.lowest(db)
            db.execute("commit")
        except (apsw.Error, OSError, LogDamaged) as error:
            if is_full(db, error):
                if checkpoint:
                    return NO_RECEIPTS  # the transaction is in the write-ahead log all the same
                if db.in_transaction:
                    db.execute("rollback")
                raise LogUnavailable(f"no room: {error}") from error
            # As for a log (SEMANTICS 19), but here the process can only be told: what is not
            # synced was not told either.
            self._failed = self._broken(str(error))
            raise self._failed from error
        self._rows += rows_added - deleted
        return _Receipts(deleted, lowest, dropped)

    def _broken(self, reason: str) -> LogFailed:
        return LogFailed(
            f"the outbox {self.path} cannot be written: {reason}; it takes nothing until it is"
            " opened again: close the client, then connect with this outbox anew"
        )


class _Heads(NamedTuple):
    """The columns of `head` that a commit changes; None: it stays as it is."""

    log_id: str | None
    untaken: str | None
    relayed: str | None


class _Open:
    """The unsettled rest of one run."""

    __slots__ = ("first", "last", "settled", "size")

    def __init__(self, first: int, last: int, size: int) -> None:
        self.first = first
        self.last = last
        self.size = size
        self.settled: RangeSet | None = None  # None: nothing yet

    def settle(self, first: int, last: int) -> bool:
        """Mark sequences as settled; return whether all are."""
        first, last = max(first, self.first), min(last, self.last)
        if first > last:
            return False
        if (first, last) == (self.first, self.last):
            return True
        if self.settled is None:
            self.settled = RangeSet()
        self.settled.add(first, last)
        return self.settled.covers(self.first, self.last)
