"""The relay: hands the rows of an outbox table to a node, in order, once, and tells their fate.

A relay is a client with an outbox file, so that all that holds for one holds for it: what is in the
file survives, and is sent again until the node has it; receipts too. One loop goes between the
table and the file, a step at a time:

    step on the thread: write fates, take rows (each is given its sequence, committed)
    hand over: the outbox's file has them, synced
    the next step

So at any moment at most one batch is between the two, and a kill there is found out by numbers
(`outbox.rows`). What waits for a node that is away waits in the table: the file takes no more than
`limits.window_messages`, and `window_bytes`.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.arguments import (
    check_counts,
    check_flags,
    check_functions,
    check_kind,
    check_seconds,
)
from msgservice.client.client import HELD_BYTES, Client
from msgservice.client.disk import DiskOutbox, open_outbox
from msgservice.client.receipt import Receipts
from msgservice.clock import Reactor, monotonic_of, timed
from msgservice.core.backoff import delay_of
from msgservice.core.reasons import one_line
from msgservice.core.subjects import check_name
from msgservice.errors import (
    BadValue,
    ClientClosed,
    LimitReached,
    LogFailed,
    LogUnavailable,
    MsgServiceError,
    OutboxFull,
    OutboxTableTaken,
)
from msgservice.identity.prover import prover_of
from msgservice.interfaces import IChannelUser, IConnector
from msgservice.limits import Limits
from msgservice.outbox.fates import Fate, Fates
from msgservice.outbox.parcels import Parcel
from msgservice.outbox.rows import LOOKED_AT_ROWS, RelayRows, Step, Taken
from msgservice.outbox.table import TABLE, OutboxTable
from msgservice.threads import Worker
from msgservice.transport.registry import Transports
from msgservice.unlogged import speak
from msgservice.waiters import Waiters

POLL = 0.1  # seconds between two looks at a table in which nothing waits
BATCH_ROWS, BATCH_BYTES = 1000, 8 * 1024 * 1024  # of one step
KEEP = 24 * 3600.0  # seconds for which rows stay that were acknowledged …
KEEP_FAILED = 30 * 24 * 3600.0  # … and those that were not
FATES_WAIT = 0.05  # seconds that news are gathered for
FATES_MAX = 10_000  # ranges that wait for the table; beyond that no more news are looked at
RETRY_MIN, RETRY_MAX = 0.1, 15.0  # seconds between two tries to reach the database
DELETE_EVERY = 10.0  # seconds, unless there was more to delete
ENDED_EVERY = 1.0  # seconds between two looks for receipts of before that have ended …
ENDED_RANGES, ENDED_RECEIPTS = 256, 1000  # … at so many ranges, and at so many receipts
LOST_EVERY = 600.0  # seconds between two looks for rows whose receipts are kept no more
SQLITE_WAIT = 1.0  # seconds that SQLite waits for a lock, before it is told
SLOW = 30.0  # seconds after which it is told that the database does not answer
STEP_PATIENCE = 5.0  # seconds that the end of a relay waits for a step


class Relay:
    """The relay of one outbox table: a client of the node at `address`, with an outbox file.

    `name`: of this sender. `outbox`: the path of its file, which belongs to this table from then
    on. `database`: `sqlite:///FILE`, or `connect` returns a new connection of DB-API whenever one
    is needed, on a thread of the relay's own. `table`: its name, or an `OutboxTable`. `creates`:
    make the tables where they are missing. `take_over`: from a relay whose file is lost.

    `poll`: seconds between two looks at a table in which nothing waits. `batch`: rows taken at
    once. `keep`, `keep_failed`: seconds for which rows stay that were acknowledged, and those that
    were not; None: for ever; `keep=0`: they go with their last acknowledgement. `user`, `password`,
    `token`, `transports` and `limits` as for `connect`.

    Raises `TypeError`, `ValueError`, `BadValue`, `BadName`, `BadAddress` for what is wrong.
    """

    _logger = Logger()

    def __init__(
        self,
        reactor: Reactor,
        address: str,
        *,
        name: str,
        outbox: str | Path,
        connect: Callable[[], Any] | None = None,
        database: str | None = None,
        table: OutboxTable | str = TABLE,
        creates: bool = False,
        take_over: bool = False,
        poll: float = POLL,
        batch: int = BATCH_ROWS,
        keep: float | None = KEEP,
        keep_failed: float | None = KEEP_FAILED,
        limits: Limits | None = None,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        transports: Transports | None = None,
    ) -> None:
        limits = Limits() if limits is None else limits
        check_kind(Limits, "Limits are needed", limits=limits)
        check_kind((str, Path), "the path of a file is needed", outbox=outbox)
        check_flags(creates=creates, take_over=take_over)
        check_functions(connect=connect)
        check_seconds(poll=poll)
        check_counts(1, batch=batch)
        if (connect is None) is (database is None):
            raise BadValue("database", "is given, or `connect`: one of both")
        if isinstance(table, str):
            table = OutboxTable(table, limits=limits)
        check_kind(OutboxTable, "an OutboxTable, or the name of one", table=table)
        self.table = table
        self.name = check_name(name)
        self._reactor = timed(reactor)
        self._now = monotonic_of(self._reactor)
        self._address, self._path, self._limits = address, Path(outbox), limits
        self._connect = sqlite_at(database) if connect is None else connect
        self._creates, self._take_over = creates, take_over
        self._poll, self._batch = poll, batch
        self._keep = _milliseconds("keep", keep)
        self._keep_failed = _milliseconds("keep_failed", keep_failed)
        self._prover = prover_of(self._reactor, user=user, password=password, token=token)
        transports = Transports() if transports is None else transports
        self._transport = transports.find(address)
        self._transport.check_dial(address)

        self.handed = 0  # rows that were handed over, since it was made
        self.settled = 0  # rows whose fate was written
        self._renew()

    def _renew(self) -> None:
        """Be as one that was never started."""
        self._disk: DiskOutbox | None = None
        self._client: Client | None = None
        self._rows: RelayRows | None = None
        self._worker: Worker | None = None
        self._fates = Fates(self._has_news)
        self._pending: list[Fate] = []  # that are not in the table yet
        self._is_stopping = self._has_stopped = False
        self._starting: Waiters[None] = Waiters()
        self._stopped: Waiters[None] = Waiters()
        self._error: Failure | None = None  # that ended it
        self._loop: Deferred[None] | None = None
        self._resting: Deferred[None] | None = None
        self._rest: IDelayedCall | None = None
        self._gathering: IDelayedCall | None = None  # of news
        self._is_awake = False  # somebody said so since the last step began
        self._stepping: Deferred[Taken] | None = None
        self._overdue: IDelayedCall | None = None  # of the end of that, once it is to stop
        self._tries = 0  # to reach the database, in a row
        self._refusals = 0  # of the file, in a row
        self._may_take_at = 0.0  # after a file that had no room
        self._again = False  # what was taken last was not handed over
        self._delete_at = self._ended_at = self._lost_at = 0.0
        self._ended_to = self._lost_to = 0

    # --- getters

    @property
    def client(self) -> Client:
        """The client that it hands over with; `why` says how its connection is. Send nothing."""
        if self._client is None:
            raise ClientClosed("the relay was not started")
        return self._client

    # --- its life

    def start(self) -> Deferred[None]:
        """Open the file, claim the table, begin; fires when the table is its own.

        A database that cannot be reached, or has no such table, is waited for, and the log says so.
        Fails with `OutboxTableTaken`; for the file with `LogLocked`, `LogTooNew`, `LogDamaged`,
        `DataFolderUnusable`; and with `ClientClosed` where it was stopped.
        """
        if self._is_stopping:
            return fail(ClientClosed("the relay was stopped"))
        waiting = self._starting.wait()
        if self._loop is None:
            speak()
            self._loop = Deferred.fromCoroutine(self._live())
            self._loop.addErrback(lambda f: self._logger.failure("a relay has ended", f))
        return waiting

    def begin_again(self) -> Deferred[None]:
        """Start, as `start` does, also where it has been stopped and that is over."""
        if self._has_stopped or (self._is_stopping and self._loop is None):
            self._renew()
        return self.start()

    def stop(self) -> Deferred[None]:
        """Finish the step that runs, write what is known, leave; fires when done. May come twice.

        Takes at most `limits.stop_timeout`, and a little for the table.
        """
        if self._has_stopped or self._loop is None:
            self._is_stopping = True
            return succeed(None)
        waiting = self._stopped.wait()
        if not self._is_stopping:
            self._is_stopping = True
            self._overdue = self._reactor.callLater(STEP_PATIENCE, self._give_up)
            self.wake()
        return waiting

    def _give_up(self) -> None:
        """Wait no more for a step that does not end: the next start finds out what it did."""
        self._overdue = None
        if self._stepping is not None:
            self._stepping.cancel()

    def when_stopped(self) -> Deferred[None]:
        """Fires when it has stopped; fails with what ended it, where it was not told to."""
        if self._has_stopped:
            return succeed(None) if self._error is None else fail(self._error)
        return self._stopped.wait().addCallback(lambda _: self._error)

    def wake(self) -> None:
        """Look at the table now: something was committed."""
        self._is_awake = True
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    def as_service(self) -> IService:
        """Return an `IService` that starts and stops it, for `setServiceParent`."""
        service: IService = _RelayService(self)
        return service

    # --- the loop

    async def _live(self) -> None:
        try:
            await self._open()
            await self._work()
        except Exception:
            self._error = Failure()
            if not self._starting:
                self._logger.critical(
                    "{name}: the relay of the table {table} has stopped: {error}",
                    line="outbox-relay-stopped",
                    name=self.name,
                    table=self.table.names.name,
                    error=one_line(str(self._error.value)),
                )
        await self._close()
        self._has_stopped = True
        starting, stopped = self._starting, self._stopped
        if starting:
            error = self._error
            starting.fail(ClientClosed("the relay was stopped") if error is None else error)
        stopped.fire(None)

    async def _open(self) -> None:
        self._disk = disk = await open_outbox(
            self._reactor,
            self._path,
            bytes_max=HELD_BYTES,
            sender=self.name,
            keeps_receipts=True,
        )
        self._client = Client(
            reactor=self._reactor,
            name=self.name,
            connector_factory=self._connector,
            limits=self._limits,
            new_incarnation=lambda: secrets.token_hex(16),
            outbox=disk,
            prover=self._prover,
        )
        self._client.start()
        self._rows = RelayRows(
            self._connect,
            self.table,
            identity=disk.identity,
            keep=self._keep,
            keep_failed=self._keep_failed,
            take_over=self._take_over,
            creates=self._creates,
        )
        self._worker = Worker(self._reactor, "msgservice outbox table")

    def _connector(self, make_user: Callable[[], IChannelUser]) -> IConnector:
        connector: IConnector = self._transport.connector(
            self._reactor, self._address, make_user, self._limits
        )
        return connector

    async def _work(self) -> None:
        rows, worker = self._rows, self._worker
        assert rows is not None
        assert worker is not None
        while True:
            # All that is known by now is written, also at the end.
            is_last = self._is_stopping
            self._is_awake = False
            self._gather_fates()
            step = self._next_step(takes=not is_last)
            self._stepping = worker.submit(partial(rows.step, step))
            slow = self._reactor.callLater(SLOW, self._tell_slow)
            try:
                taken = await self._stepping
            except OutboxTableTaken:
                raise
            except Exception as error:  # whatever a driver raises
                if is_last or isinstance(error, CancelledError):
                    return
                self._tell_unreachable(error, rows)
                self._tries += 1
                await self._pause(_delay(self._tries))
                continue
            finally:
                self._stepping = None
                if slow.active():
                    slow.cancel()
            self._tell_reached(taken)
            self._have_written(step)
            self._starting.fire(None)
            if taken.parcels:
                await self._hand_over(taken.parcels)
            await self._look_after(step, taken)
            if is_last:
                return
            if not (taken.has_more or taken.rows or self._again) and not self._is_awake:
                await self._pause(self._poll)

    def _next_step(self, *, takes: bool) -> Step:
        client, disk = self.client, self._disk
        assert disk is not None
        now = self._now()
        rows = 0
        if takes and now >= self._may_take_at:
            unanswered = client.unanswered
            # A file that has no room for as much may have some for less.
            batch = max(1, self._batch >> self._refusals)
            rows = min(batch, max(0, self._limits.window_messages - unanswered))
            bytes_held = HELD_BYTES - client.room[1]
            if bytes_held > self._limits.window_bytes:
                rows = 0
        deletes = now >= self._delete_at
        if deletes:
            self._delete_at = now + DELETE_EVERY
        looks_from = None
        if self._lost_to or now >= self._lost_at:
            looks_from = self._lost_to + 1
        return Step(
            now=time.time_ns() // 1_000_000,
            kept=disk.kept,
            next=client.next_sequence,
            fates=tuple(self._pending),
            rows=rows,
            size=BATCH_BYTES >> self._refusals,
            again=self._again,
            deletes=deletes,
            looks_from=looks_from,
            max_batch=self._limits.max_batch,
            relayed=disk.relayed,
        )

    async def _hand_over(self, parcels: list[Parcel]) -> None:
        """Hand over what was taken; it is in the file then, or will be taken again."""
        runs = [parcel.run for parcel in parcels]
        try:
            receipts = await self.client.hand_over(runs)
        except (OutboxFull, LimitReached, LogUnavailable) as error:
            # None of them is in the file: their rows wait again, with the next step.
            self._again = True
            self._refusals += 1
            self._may_take_at = self._now() + _delay(self._refusals)
            self._logger.warn(
                "{name}: rows could not be handed over, and wait: {error}",
                line="outbox-not-handed",
                name=self.name,
                error=one_line(str(error)),
            )
            return
        self._refusals = 0
        self._handed_over(receipts)

    def _handed_over(self, receipts: Receipts) -> None:
        self.handed += len(receipts)
        for run in receipts.runs:
            self._fates.follow(run)  # type: ignore[arg-type]  # a client's are `HandedRun`s

    # --- fates

    def _has_news(self) -> None:
        if self._gathering is None and not self._is_stopping:
            self._gathering = self._reactor.callLater(FATES_WAIT, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self.wake()

    def _gather_fates(self) -> None:
        if len(self._pending) < FATES_MAX and self._fates.has_news:
            self._pending += self._fates.take()
            if self._fates.has_news:
                self._has_news()

    def _have_written(self, step: Step) -> None:
        """Fates are committed: the file need not keep their receipts any more."""
        self._again = False
        written, self._pending = self._pending[: len(step.fates)], self._pending[len(step.fates) :]
        assert self._disk is not None
        self._disk.note_relayed(self.table.names.name)  # it was claimed, before any row leaves
        for fate in written:
            self._disk.let_go(fate.first, fate.last)
            self.settled += fate.last - fate.first + 1
        self._fates.written(written)

    async def _look_after(self, step: Step, taken: Taken) -> None:
        """Look after what goes on beside the rows that come: seldom, and a little at a time."""
        now = self._now()
        if taken.deleted:
            self._delete_at = now if taken.deleted >= 1000 else self._delete_at
        if step.looks_from is not None:
            self._find_lost(taken.looked_at)
        if now >= self._ended_at and not self._is_stopping:
            self._ended_at = now + ENDED_EVERY
            await self._find_ended()

    async def _find_ended(self) -> None:
        """Follow runs that nobody follows, and that have come to their end.

        Those of an earlier process, and those that were too many: the file alone knows of them.
        """
        disk = self._disk
        assert disk is not None
        disk.flush()
        ranges = disk.receipts.ended.from_(self._ended_to + 1, ENDED_RANGES)
        self._ended_to = ranges[-1][1] if len(ranges) == ENDED_RANGES else 0
        budget = ENDED_RECEIPTS
        for first, last in ranges:
            for low, high in self._fates.unfollowed(first, last):
                while low <= high and budget > 0 and self._fates.has_room:
                    count = min(high - low + 1, budget)
                    try:
                        receipts = await self.client.receipts(low - 1, count, keep=True)
                    except MsgServiceError as error:
                        if isinstance(error, ClientClosed | LogFailed):
                            raise
                        return  # it is looked again
                    if not receipts:
                        break
                    budget -= len(receipts)
                    for run in dict.fromkeys([receipt.run for receipt in receipts]):
                        self._fates.follow(run)  # type: ignore[arg-type]  # as above
                    low = receipts[-1].sequence + 1
        if budget <= 0:
            self._ended_at = 0.0  # there is more

    def _find_lost(self, sequences: list[int]) -> None:
        """Rows were handed over: what becomes of those without a receipt is not known any more."""
        disk = self._disk
        assert disk is not None
        for sequence in sequences:
            if sequence in disk.receipts.done and self._fates.unfollowed(sequence, sequence):
                why = "its receipt is kept no more"
                self._pending.append(Fate(sequence, sequence, "unknown", None, why))
        if len(sequences) < LOOKED_AT_ROWS:
            self._lost_to, self._lost_at = 0, self._now() + LOST_EVERY
        else:
            self._lost_to = sequences[-1]

    # --- the database that cannot be reached

    def _tell_unreachable(self, error: Exception, rows: RelayRows) -> None:
        if self._tries:
            return  # it was told
        if rows.is_of_driver(error):
            self._logger.warn(
                "{name}: the table {table} cannot be used, and is tried again: {error}",
                line="outbox-table-unavailable",
                name=self.name,
                table=self.table.names.name,
                error=one_line(f"{type(error).__name__}: {error}"),
            )
        else:
            self._logger.failure(
                "{name}: a step of the relay failed, and is tried again",
                Failure(error),
                name=self.name,
            )

    def _tell_slow(self) -> None:
        self._logger.warn(
            "{name}: the table {table} has not answered for {seconds} s, and is waited for",
            line="outbox-table-slow",
            name=self.name,
            table=self.table.names.name,
            seconds=SLOW,
        )

    def _tell_reached(self, taken: Taken) -> None:
        if self._tries:
            self._logger.info(
                "{name}: the table {table} is used again",
                line="outbox-table-available",
                name=self.name,
                table=self.table.names.name,
            )
        self._tries = 0
        if taken.taken_over is not None:
            self._logger.warn(
                "{name}: the table {table} was taken over: {count} rows that were not settled wait"
                " again",
                line="outbox-table-taken-over",
                name=self.name,
                table=self.table.names.name,
                count=taken.taken_over,
            )
        for notice in taken.older:
            self._logger.warn(
                "{name}: the table {table}: {notice}",
                line="outbox-table-older",
                name=self.name,
                table=self.table.names.name,
                notice=notice,
            )
        if taken.refused:
            self._logger.error(
                "{name}: {count} rows of {table} cannot be sent: their column reason says why",
                line="outbox-rows-refused",
                name=self.name,
                count=taken.refused,
                table=self.table.names.name,
            )

    # --- resting, and the end

    async def _pause(self, seconds: float) -> None:
        """Wait for so long, or until somebody wakes it."""
        if self._is_stopping:
            return
        resting: Deferred[None] = Deferred()
        self._resting = resting
        self._rest = self._reactor.callLater(seconds, self._rested)
        try:
            await resting
        finally:
            self._resting = None
            if self._rest is not None and self._rest.active():
                self._rest.cancel()
            self._rest = None

    def _rested(self) -> None:
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    async def _close(self) -> None:
        self._is_stopping = True
        for call in (self._gathering, self._overdue):
            if call is not None:
                call.cancel()
        self._gathering = self._overdue = None
        self._fates.close()
        worker, rows = self._worker, self._rows
        if worker is not None and rows is not None:
            # A driver that waits for a server that says nothing holds up nobody.
            closing = worker.submit(rows.close)
            closing.addTimeout(STEP_PATIENCE, self._reactor)
            worker.stop()
            with suppress(Exception):  # it is given up
                await closing
        if self._client is not None:
            await self._client.close()


class _RelayService(Service):
    """A Twisted service around a relay. What keeps it from starting is in the log.

    Started again it begins anew, once its stop is over.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._stopping: Deferred[None] = succeed(None)

    def startService(self) -> None:
        super().startService()
        self._stopping.addCallback(self._begin)

    def _begin(self, _: object) -> None:
        if self.running:  # else it was stopped again meanwhile
            self._relay.begin_again().addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> None:
        if failure.check(CancelledError, ClientClosed):
            return
        self._relay._logger.critical(  # noqa: SLF001 - its own
            "{name}: the relay does not start: {error}",
            line="outbox-relay-not-started",
            name=self._relay.name,
            error=one_line(str(failure.value)),
        )

    def stopService(self) -> Deferred[None]:
        super().stopService()
        stopped: Deferred[None] = Deferred()
        self._stopping.addCallback(lambda _: self._relay.stop())
        self._stopping.addCallback(stopped.callback)
        return stopped


def sqlite_at(url: str | None) -> Callable[[], sqlite3.Connection]:
    """Return what connects to `sqlite:///FILE`; `BadValue` for another URL."""
    path = (url or "").removeprefix("sqlite:///")
    if not isinstance(url, str) or path == url or not path or path == ":memory:":
        raise BadValue(
            "database",
            f"is sqlite:///FILE (sqlite:////FILE from the root on), not {url!r}: for another"
            " database there is `connect`",
        )

    def connect() -> sqlite3.Connection:
        # It is not made here: an empty one in a wrong place would hide the mistake.
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}: is the path right?")
        uri = f"{Path(path).absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=SQLITE_WAIT, isolation_level=None)

    return connect


def _delay(failures: int) -> float:
    return delay_of(failures, delay_min=RETRY_MIN, delay_max=RETRY_MAX)


def _milliseconds(name: str, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise BadValue(name, f"is a number of seconds, or None, not {seconds!r}")
    if not 0 <= seconds <= 100 * 366 * 86400.0:
        raise BadValue(name, f"is 0 to 100 years in seconds, or None, not {seconds!r}")
    return int(seconds * 1000)
