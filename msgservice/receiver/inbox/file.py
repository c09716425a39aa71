"""A receiver's stored inbox: what its handler writes commits together with the mark (SEMANTICS 25).

Handlers run on the reactor's thread, inside one SQLite transaction for all runs that are waiting;
only the commit, the part that waits for the disk, runs on a worker's thread. Runs that arrive
meanwhile form the next transaction. So an effect that a handler writes through its transaction
happens once, however often its message is sent.
"""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import apsw
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.core.inbox import Arrival, sendable
from msgservice.core.marks import Key, SenderState, keep_newest, raised_floor
from msgservice.disk.database import is_full, one, row_crc, telling_full
from msgservice.disk.files import OS, Files
from msgservice.disk.guarded import GuardedFile
from msgservice.disk.machine import OwnThreads, Threads
from msgservice.disk.mark import MARK_GONE, Mark
from msgservice.disk.migrations import Schema
from msgservice.errors import GENERATORS, LogDamaged, LogFailed, LogUnavailable, Reject, has_not_run
from msgservice.limits import TRANSACTION_MESSAGES_MAX
from msgservice.receiver.inbox.marks import StoredMarks
from msgservice.receiver.inbox.rejections import Rejections
from msgservice.receiver.inbox.transaction import RolledBack, Transaction
from msgservice.records import Rejected, Resume

TOLD_MAX = 1024  # runs of which is told in one turn that they are committed
CHECKPOINT_COMMITS = 256
# A file up to this size is looked through at start, handlers' tables too: about 1 s for all of it.
LOOK_BYTES_MAX = 512 * 1024 * 1024

T = TypeVar("T")

_TABLES = """
create table msgservice_head(id integer primary key check (id = 1), inbox text not null);
create table msgservice_mark(
    sender text not null,
    incarnation text not null,
    floor integer not null,
    ranges blob not null,
    last blob,
    primary key (sender, incarnation)
) without rowid;
"""
# Counted and added up with every commit, so that a file that went back in time, or part of one, is
# seen at the next start. An older program would not count: it refuses the file.
_VERSION_2 = """
alter table msgservice_head add column commits integer not null default 0;
alter table msgservice_head add column crc integer;
alter table msgservice_head add column tables integer not null default 0;
"""
# No other table, but an older program would not keep the sums of pages: it refuses the file.
_VERSION_3 = ""
# Of the page sums: a write-ahead log that is not this file's is seen at the next start.
_VERSION_4 = """
alter table msgservice_head add column turn integer not null default 0;
"""
SCHEMA = Schema(0x6D736962, (_TABLES, _VERSION_2, _VERSION_3, _VERSION_4), sums_since=3)  # "msib"
# Our own statements carry a mark, so that the same words from a handler are another statement:
# a prepared one is not checked again by the authorizer.
_OWN = " /* msgservice */"
_BEGIN, _COMMIT, _ROLLBACK = ("begin immediate" + _OWN, "commit" + _OWN, "rollback" + _OWN)
_SAVE_HEAD = (
    "update msgservice_head set commits = ?, crc = ?, tables = ?, turn = ? /* msgservice */"
)
# Of all tables; SQLite counts it up whenever one is made or changed.
_VERSION_OF_TABLES = "pragma schema_version /* msgservice */"
_FORBIDDEN = {
    apsw.SQLITE_TRANSACTION,
    apsw.SQLITE_SAVEPOINT,
    apsw.SQLITE_ATTACH,
    apsw.SQLITE_DETACH,
    apsw.SQLITE_PRAGMA,
}
_WRITES = {apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE, apsw.SQLITE_DROP_TABLE}


class Gate(Protocol):
    """The gate of a lane's runs that were handed in together.

    It is shut as soon as a message of one of them fails, or the commit does, and before anything
    else is handled; what `handle` raises when it is shut is its owner's affair.
    """

    is_shut: bool

    @property
    def is_over(self) -> bool:
        """Whether the slice of the turn has passed: the next transaction is for the others."""

    def begin(self, until: float | None) -> float:
        """A transaction comes to its run, the first one where `until` is None.

        Returns when the slice is over; `handle` may raise from then on.
        """


@dataclass(frozen=True, slots=True)
class Handled:
    """The outcome of a run: the first `count` messages are committed with their marks.

    `error`: what the handler raised for the next one, or None when all are committed.
    """

    count: int
    error: BaseException | None


@dataclass(slots=True)
class _WaitingRun(Generic[T]):
    """The new messages of a run, until their transaction is committed."""

    key: Key
    after: int
    items: Sequence[tuple[int, T]]
    handle: Callable[[T, Transaction], object]
    first: int | None
    arrival: Arrival | None
    floor: int
    gate: Gate | None
    waiter: Deferred[Handled]
    handled: Handled | None = None
    poison: tuple[int, BaseException] | None = None  # which message may not be handled, and why


@dataclass(slots=True)
class _WaitingCall:
    """The call of `transaction`, until its transaction is committed."""

    work: Callable[[Transaction], Any]
    waiter: Deferred[Any]
    result: Any = None
    error: BaseException | None = None
    poison: BaseException | None = None


_Waiting = _WaitingRun[Any] | _WaitingCall


class _Stage:
    """The outcome of one transaction, until it is committed."""

    __slots__ = ("changes", "fresh", "newest", "settled", "shut", "staged")

    def __init__(self, changes: int) -> None:
        self.changes = changes  # of the connection, before it
        self.staged: dict[Key, SenderState] = {}
        self.newest: dict[Key, tuple[int, Arrival]] = {}  # of each, what RESUME is to name
        self.settled: dict[Key, int] = {}  # of each, below what its sender has settled all
        self.fresh: list[tuple[Key, Rejected]] = []
        self.shut: list[Gate] = []  # those that it has shut

    def remember(self, run: _WaitingRun[Any], mark: SenderState, last: int) -> None:
        """A sequence of the run was taken, or rejected: see `core.marks.Marks.remember`."""
        if run.arrival is None:
            return
        known = self.newest.get(run.key)
        newest = known[0] if known is not None else mark.last[1] if mark.last is not None else 0
        if last > newest:
            self.newest[run.key] = (last, run.arrival)

    def settle_below(self, run: _WaitingRun[Any], mark: SenderState) -> None:
        """The run's floor was said: see `core.marks.Marks`."""
        self.settled[run.key] = max(run.floor, mark.floor)
        if mark.ranges is not None:
            mark.take(mark.floor, raised_floor(mark.floor, mark.ranges, run.floor) - 1)

    def shut_gate(self, run: _WaitingRun[Any]) -> None:
        """A message of the run has failed."""
        if run.gate is not None and not run.gate.is_shut:
            run.gate.is_shut = True
            self.shut.append(run.gate)


class InboxFile:
    """The stored inbox in the file `path`; its folder is made if needed.

    `entropy` gives the random bytes of a new inbox's id. `vfs`: for tests. `ranges_max`: of
    what was taken of one incarnation, the newest are kept; 0: all.
    """

    _logger = Logger()

    def __init__(
        self,
        path: str | Path,
        *,
        reactor: IReactorFromThreads,
        entropy: Callable[[int], bytes] = os.urandom,
        vfs: str | None = None,
        files: Files = OS,
        threads: Threads | None = None,
        ranges_max: int = 0,
    ) -> None:
        self._ranges_max = ranges_max
        self.path = Path(path)
        self.inbox = ""  # names this inbox: HELLO `inbox`
        self._entropy = entropy
        threads = OwnThreads(reactor) if threads is None else threads
        self._file = GuardedFile(self.path, numbered=False, vfs=vfs, files=files, threads=threads)
        self._marks = StoredMarks()
        self._counted = 0  # commits that changed something, since the file was made
        self._rejections = Rejections()
        self._waiting: deque[_Waiting] = deque()
        self._committing: Deferred[None] | None = None
        self._opened = False
        self._failed: LogFailed | None = None
        self._guarded = False
        self._commits = 0

    # --- opening and closing -------------------------------------------------------------------

    def open(self) -> Deferred[str]:
        """Lock, check and load; fires with the inbox's id.

        Fails with `LogLocked`, `LogTooNew`, `LogDamaged`, `DataFolderUnusable`.
        """
        opening = self._file.begin("msgservice inbox", self._open_file)
        return opening.addCallback(self._remember)

    def _remember(self, inbox: str) -> str:
        self.inbox = inbox
        self._opened = True
        self._file.tell()
        return inbox

    def _open_file(self) -> str:
        inbox = self._file.open(self._load)
        self._file.db.authorizer = self._authorize
        return inbox

    def _load(self, db: apsw.Connection, high_water: Mark | None) -> tuple[str, Mark]:
        self._file.migrate(db, SCHEMA)
        head = one(db, "select inbox, commits, crc, tables, turn from msgservice_head")
        if head is None:
            if high_water is not None:
                raise LogDamaged("its head is missing", 0, 0)
            head = (self._entropy(16).hex(), 0, None, 0, 0)
            db.execute("insert into msgservice_head values (1, ?, ?, ?, ?, ?)", head)
        inbox, self._counted, crc, tables, turn = head
        if not isinstance(inbox, str):
            raise LogDamaged("the id of the inbox is unreadable", 0, 0)
        self._marks.load(db)
        self._rejections.load(db)
        self._check_head(db, (inbox, crc, tables, turn), high_water)
        return inbox, Mark(inbox, self._counted, 0, 0)

    def _check_head(
        self,
        db: apsw.Connection,
        head: tuple[str, int | None, int, int],
        high_water: Mark | None,
    ) -> None:
        """Raise `LogDamaged` where the file is not as the last commit left it."""
        inbox, crc, tables, turn = head
        expected = row_crc(inbox, self._counted, self._marks.total, self._rejections.total, tables)
        if crc is None and not self._counted and high_water is None:
            # A new file, or one of before this was kept.
            db.execute(_SAVE_HEAD, (0, expected, 0, 0))
        elif crc != expected:
            raise LogDamaged("its marks are not those of its last commit", 0, 0)
        # Who changes tables while no receiver runs only counts up.
        if one(db, _VERSION_OF_TABLES) < tables:
            raise LogDamaged("its tables are older than its last commit", 0, 0)
        if high_water is None:
            if self._counted:
                raise LogDamaged(MARK_GONE.format(name=f"{self.path.name}.mark"), 0, 0)
        elif high_water.log_id != inbox:
            raise LogDamaged("the high-water mark belongs to another inbox", 0, 0)
        elif high_water.number > self._counted:
            lost = high_water.number - self._counted
            raise LogDamaged(f"its last {lost} commits are missing", 0, 0)
        self._file.pages.begin(db)
        self._file.pages.check_turn(turn)
        if one(db, "pragma page_count") * one(db, "pragma page_size") <= LOOK_BYTES_MAX:
            # Handlers' tables have no sums over their rows. What another program has changed is
            # taken as it is found, so long as it holds together.
            self._file.pages.look_at_all()
            found = one(db, "pragma quick_check(1)")
            if found != "ok":
                raise LogDamaged(f"its pages do not hold together: {found}", 0, 0)

    def _authorize(
        self, action: int, one: str | None, two: str | None, database: str | None, by: str | None
    ) -> int:
        """Keep handlers out of the transaction itself and of our tables."""
        if self._guarded and (
            action in _FORBIDDEN or (action in _WRITES and (one or "").startswith("msgservice_"))
        ):
            return apsw.SQLITE_DENY
        return apsw.SQLITE_OK

    def close(self) -> Deferred[None]:
        """Finish what was handed in, close and unlock. Safe to call twice."""
        if not self._opened:
            return succeed(None)
        self._opened = False
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        while self._committing is not None:
            waiter: Deferred[None] = Deferred()
            self._committing.chainDeferred(waiter)
            await waiter
        await self._file.end(self._close_file)

    def _close_file(self) -> None:
        with self._file.closing():
            if self._failed is None:
                self._file.fold(apsw.SQLITE_CHECKPOINT_TRUNCATE)

    # --- marks ---------------------------------------------------------------------------------

    def resume(self, sender: str, incarnation: str) -> Resume:
        """Return *now* what was taken of this incarnation (committed state)."""
        mark = self._marks.of((sender, incarnation))
        if mark is None:
            return Resume()
        ranges = tuple(mark.ranges) if mark.ranges is not None else ()
        return Resume(floor=mark.floor, ranges=ranges, last=mark.last)

    def rejected(self, sender: str, incarnation: str) -> tuple[Rejected, ...]:
        """Return *now* what was rejected of this incarnation and may still come again."""
        return self._rejections.of((sender, incarnation))

    def run(
        self,
        sender: str,
        incarnation: str,
        items: Sequence[tuple[int, T]],
        handle: Callable[[T, Transaction], object],
        *,
        after: int,
        first: int | None = None,
        arrival: Arrival | None = None,
        floor: int = 0,
        gate: Gate | None = None,
    ) -> Deferred[Handled]:
        """Handle messages once each: `handle(message, transaction)`, their writes and the marks.

        `items`: (sequence, message), rising; those taken before are skipped. `after`: nothing of
        the sender's between it and the first of `items` is open; that gap is taken with it.
        `first`: where the first of `items` begins, when it stands for several sequences.
        `arrival`: what they came in, remembered as far as it is committed. `floor`: all of the
        sender's below it is settled (SEMANTICS 1), whatever becomes of this run. `gate`: see
        `Gate`.

        Fires with a `Handled` after the commit's sync. When `handle` raises for a message, what
        it wrote for that one is undone, those before it are committed, those behind it are not
        handled. A `Reject` is committed like a mark, see `rejected`. A statement that rolls back
        all of the transaction fails its message alone: the others are handled once more.
        `handle` must be done when it returns: an awaitable result is an error. Fails
        with `LogUnavailable` (nothing of the run is committed) or `LogFailed`.
        """
        waiter: Deferred[Handled] = Deferred()
        key = (sender, incarnation)
        run = _WaitingRun(key, after, items, handle, first, arrival, floor, gate, waiter)
        return self._enter(run, waiter)

    def transaction(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Run `work(transaction)`; fires with its result after the commit's sync.

        When it raises, what it wrote is undone and this fails with that.
        """
        waiter: Deferred[T] = Deferred()
        return self._enter(_WaitingCall(work, waiter), waiter)

    def _enter(self, entry: _Waiting, waiter: Deferred[T]) -> Deferred[T]:
        if self._failed is not None:
            return fail(self._failed)
        if not self._opened:
            return fail(LogUnavailable("the inbox is not open"))
        self._waiting.append(entry)
        self._start()
        return waiter

    # --- transactions --------------------------------------------------------------------------

    def _start(self) -> None:
        """Handle what is waiting and have it committed, unless a commit runs."""
        if self._committing is not None or not self._waiting:
            return
        db = self._file.db
        # Handlers run now, and may hand in more: that has its turn behind them.
        committing = self._committing = Deferred[None]()
        entries: list[_Waiting] = []
        try:
            stage = self._handle_waiting(db, entries)
            staged = stage.staged
            for key, (newest, arrival) in stage.newest.items():
                staged[key].last = arrival.up_to(newest)
            marks = self._marks.save(db, staged)
            rejected = self._rejections.save(db, stage.fresh, stage.settled)
            counted = self._counted
            if db.total_changes() != stage.changes:  # what only reads has nothing to sync
                counted += 1
                tables = one(db, _VERSION_OF_TABLES)
                crc = row_crc(self.inbox, counted, marks.total, rejected.total, tables)
                db.execute(_SAVE_HEAD, (counted, crc, tables, self._file.pages.turn))
        except BaseException as error:
            # The transaction itself is gone (no room, a failed write), with all in it.
            if not entries:  # it did not begin, or not again
                entries = [*self._waiting]
                self._waiting.clear()
            if not isinstance(error, apsw.Error):
                self._log_fault()
            self._committed(entries, committing, Failure())
            return

        def adopt(_: None) -> None:
            self._counted = counted
            self._marks.adopt(marks)
            self._rejections.adopt(rejected)

        self._file.submit(lambda: self._commit(counted)).addCallback(adopt).addBoth(
            lambda result: self._committed(entries, committing, result)
        )

    def _log_fault(self) -> None:
        """A fault of our own is logged, the error that is handled now."""
        self._logger.failure("committing to the inbox {path}", path=str(self.path))

    def _handle_waiting(self, db: apsw.Connection, entries: list[_Waiting]) -> _Stage:
        """Handle what is waiting in a transaction; what it holds is in `entries` then.

        Where a statement rolls it back, those before it are handled again and the message that did
        it has failed; what comes behind has the next transaction, so that nobody is handled more
        often than there are such messages behind him.
        """
        entries_max = TRANSACTION_MESSAGES_MAX
        while True:
            db.execute(_BEGIN)
            stage = _Stage(db.total_changes())
            messages, until = 0, None
            try:
                while self._waiting and len(entries) < entries_max:
                    if messages >= TRANSACTION_MESSAGES_MAX:
                        break
                    entry = self._waiting.popleft()
                    entries.append(entry)
                    if isinstance(entry, _WaitingRun):
                        messages += len(entry.items)
                        gate = entry.gate
                        if gate is not None:
                            until = gate.begin(until)
                        self._handle_run(db, entry, stage)
                        if gate is not None and gate.is_over:
                            break  # the others are first in the next one
                    else:
                        messages += 1
                        self._handle_call(db, entry)
            except RolledBack:
                entries_max = len(entries)
                self._waiting.extendleft(reversed(entries))
                entries.clear()
                for gate in stage.shut:
                    gate.is_shut = False
            else:
                return stage

    def _commit(self, counted: int) -> None:
        """On the worker's thread: nothing else touches the connection meanwhile."""
        db = self._file.db
        if name := self._file.replaced:
            raise OSError(f"{name} was replaced or removed while the inbox was in use")
        with telling_full(db):
            db.execute(_COMMIT)
        self._file.mark(Mark(self.inbox, counted, 0, 0))
        self._commits += 1
        if self._commits % CHECKPOINT_COMMITS == 0:
            # No room for that is no reason to take back what is committed.
            with suppress(apsw.FullError), telling_full(db):
                self._file.fold()

    def _committed(
        self,
        entries: list[_Waiting],
        committing: Deferred[None],
        result: object,
    ) -> None:
        """Tell everybody what became of their runs, and go on."""
        failure: Exception | None = None
        try:
            if isinstance(result, Failure):
                failure = self._undo(result)
                for entry in entries:
                    if isinstance(entry, _WaitingRun) and entry.gate is not None:
                        entry.gate.is_shut = True
        except BaseException as error:
            self._log_fault()
            failure = self._fail(str(error))
        self._tell(entries, 0, failure, committing)

    def _tell(
        self,
        entries: list[_Waiting],
        at: int,
        failure: Exception | None,
        committing: Deferred[None],
    ) -> None:
        """Tell the entries from `at` on, so many in a turn; then what waits has its transaction.

        What they hand in when they are told is in that, all of it.
        """
        stop = at + TOLD_MAX
        try:
            for entry in entries[at:stop]:
                if failure is not None:
                    entry.waiter.errback(failure)
                elif isinstance(entry, _WaitingRun):
                    assert entry.handled is not None
                    entry.waiter.callback(entry.handled)
                elif entry.error is not None:
                    entry.waiter.errback(entry.error)
                else:
                    entry.waiter.callback(entry.result)
        except BaseException as error:
            self._log_fault()
            failure = self._fail(str(error))
            for entry in entries[at:]:
                if not entry.waiter.called:
                    entry.waiter.errback(failure)
            stop = len(entries)
        if stop < len(entries):
            # In a turn of its own, that of a job of the worker's that does nothing.
            self._file.submit(_nothing).addCallback(
                lambda _: self._tell(entries, stop, failure, committing)
            )
            return
        self._committing = None
        if self._failed is not None:
            while self._waiting:
                self._waiting.popleft().waiter.errback(self._failed)
        self._start()
        committing.callback(None)

    def _undo(self, failure: Failure) -> Exception:
        """Roll back what could not be committed; return what to tell."""
        db = self._file.db
        full = failure.check(apsw.BusyError) is not None or is_full(db, failure.value)
        try:
            if db.in_transaction:
                db.execute(_ROLLBACK)
        except apsw.Error:
            full = False
        if full:
            return LogUnavailable(failure.getErrorMessage())
        return self._fail(failure.getErrorMessage())

    def _fail(self, reason: str) -> LogFailed:
        """A failed sync, or a fault of our own: nothing can be trusted any more (SEMANTICS 19)."""
        self._failed = LogFailed(
            f"the inbox {self.path} cannot be written: {reason}; nothing is handled until it is"
            " opened again: start the receiver again (startService)"
        )
        return self._failed

    def _handle_run(self, db: apsw.Connection, run: _WaitingRun[Any], stage: _Stage) -> None:
        mark = stage.staged.get(run.key)
        if mark is None:
            known = self._marks.of(run.key)
            mark = stage.staged[run.key] = (
                known.copy() if known is not None else SenderState(0, run.key, 0)
            )
        self._handle_items(db, run, mark, stage)
        stage.settle_below(run, mark)
        if self._ranges_max and mark.ranges is not None:
            keep_newest(mark.ranges, self._ranges_max)

    def _handle_items(
        self, db: apsw.Connection, run: _WaitingRun[Any], mark: SenderState, stage: _Stage
    ) -> None:
        after = run.after
        for count, (sequence, message) in enumerate(run.items):
            if mark.missing(sequence, sequence):
                error = self._handle_message(db, run, sequence, message)
                if error is not None:
                    run.handled = Handled(count, error)
                    stage.shut_gate(run)
                    if count:
                        stage.remember(run, mark, after)
                    if isinstance(error, Reject):
                        stage.remember(run, mark, sequence)
                        first = run.first if run.first is not None and not count else sequence
                        reason = sendable(error.reason)
                        stage.fresh.append((run.key, Rejected(first, sequence, reason)))
                    return
            mark.take(min(after + 1, sequence), sequence)
            after = sequence
        if run.items:
            stage.remember(run, mark, after)
        run.handled = Handled(len(run.items), None)

    def _handle_message(
        self, db: apsw.Connection, run: _WaitingRun[Any], sequence: int, message: Any
    ) -> BaseException | None:
        if run.poison is not None and run.poison[0] == sequence:
            return run.poison[1]
        try:
            return self._guarded_call(db, run.handle, message)[1]
        except RolledBack as rolled:
            run.poison = (sequence, rolled.error)
            raise

    def _handle_call(self, db: apsw.Connection, call: _WaitingCall) -> None:
        if call.poison is not None:
            call.error = call.poison
            return
        try:
            call.result, call.error = self._guarded_call(db, call.work)
        except RolledBack as rolled:
            call.poison = rolled.error
            raise

    def _guarded_call(
        self, db: apsw.Connection, work: Callable[..., Any], *arguments: Any
    ) -> tuple[Any, BaseException | None]:
        """Run `work(*arguments, transaction)` in a savepoint; return (result, what it raised)."""
        db.execute("savepoint message" + _OWN)
        transaction = Transaction(db)
        self._guarded = True
        result: Any = None
        error: BaseException | None = None
        try:
            result = work(*arguments, transaction)
            if result is not None:
                error = _is_unfinished(result)
        except BaseException as raised:  # as a Deferred would: no handler may end the reactor
            error = raised
        finally:
            self._guarded = False
            transaction.end()
        if not db.in_transaction:
            lost = transaction.lost
            if isinstance(lost, apsw.ConstraintError):
                raise RolledBack(transaction.rolled_back() if error is None else error)
            # SQLite did it on its own: no room, or a failed write.
            raise lost if isinstance(lost, apsw.Error) else apsw.FullError(str(error))
        if error is not None:
            db.execute("rollback to message" + _OWN)
        db.execute("release message" + _OWN)
        return result, error


def _nothing() -> None:
    """A job of the worker's for the turn that its end is told in."""


def _is_unfinished(result: object) -> TypeError | None:
    """Return what a handler fails with that is not done when it returns; None for one that is."""
    if isinstance(result, GENERATORS):
        return has_not_run(result)
    if not (inspect.isawaitable(result) or isinstance(result, Deferred)):
        return None
    if inspect.iscoroutine(result):
        result.close()
    return TypeError(
        "a handler with a transaction must be done when it returns: compute first, then write"
    )
