"""Groups into transactions: the writing half of a log, over one SQLite connection.

Called on one thread only (the writer's), calls nothing back, knows no Deferred. In the usual case a
group is one to four steps of SQLite, whatever the number of its batches: rows of batches go in by
the hundred, and what they imply for senders and audiences is not written with every group but at
the next `save` (the rows since then are replayed at start). Fewer steps matter beyond SQLite's own
work: apsw gives up the GIL at each, and must win it back from a busy reactor.

Invariant: `state` is what the last commit left; see `state.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import apsw
import msgspec

from msgservice.errors import LogDamaged, LogFailed, LogFull, LogUnavailable
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.log import queries
from msgservice.log.dedupe import COLUMNS, forget_numbers, take_batches
from msgservice.log.folder import Reserve
from msgservice.log.schema import connect, insert_steps, one, rows
from msgservice.log.state import ReceiverState, SenderState, Staged, State, Totals, hash_of
from msgservice.log.wholeness import Mark, MarkWriter, replay
from msgservice.message import Status
from msgservice.records import (
    Audience,
    Batch,
    ExceptionRow,
    Group,
    Outcome,
    ReceiverRow,
    RefusedBatch,
    Room,
    Snapshot,
)

T = TypeVar("T")

# The WAL is folded into the file when about so much was written: large enough that hot pages are
# folded once and not a hundred times, small enough that folding it does not hold up a group for
# more than some 20 ms, and that replay at start stays below a second.
CHECKPOINT_BYTES = 16 * 1024 * 1024
# How long a sender is asked to wait when there is no room, seconds.
FULL_DELAY = 1.0

_COMMITS = (
    -1
)  # row of the table progress whose cursor counts the groups that held more than batches

Operation = tuple[str, Any, bool]  # SQL, parameters, whether these are many

_OPEN = (int(Status.QUEUED), int(Status.ACKNOWLEDGED))  # rows that go when the cursor passed them


_DELETE_PASSED = "delete from exception where receiver = ? and last <= ? and status in (1, 3)"
_SAVE_SENDER = (
    "update sender set floor = ?, ranges = ?, last = ?, status_from = ?, seen_at = ? where id = ?"
)
_SAVE_AUDIENCE = (
    "update audience set messages = ?, bytes = ?, last = ?, dropped = ? where number = ?"
)


def encode_ranges(sender: SenderState) -> bytes:
    """Return the ranges above the floor as they are kept in the table."""
    return msgspec.msgpack.encode(list(sender.ranges) if sender.ranges is not None else [])


class Store:
    """See the module. `path` may be `:memory:`.

    `used_max` and the reserve decide when a log is full; `faults` is called with the name of each
    point where a crash is interesting (tests and the simulator).
    """

    def __init__(
        self,
        path: str,
        *,
        limits: Limits,
        audiences: dict[tuple[int, ...], Audience],
        reserve: Reserve | None = None,
        mark: Literal["behind", "strict"] = "behind",
        vfs: str | None = None,
        faults: Callable[[str], None] | None = None,
    ) -> None:
        self.limits = limits
        self.state = State()
        self.marks: MarkWriter | None = None
        self.failed: LogFailed | None = None
        self.db: apsw.Connection = None  # type: ignore[assignment]  # set by `open`
        self._path = path
        self._audiences = audiences
        self.reserve = reserve
        self._strict = mark == "strict"
        self._vfs = vfs
        self._faults = faults or (lambda point: None)
        self.tidied_at = 0  # wall clock, ms: when retention last forgot what nobody needs
        # Never more in the WAL than what the low watermark keeps free for it.
        self._checkpoint_bytes = min(
            CHECKPOINT_BYTES, reserve.watermark if reserve is not None else CHECKPOINT_BYTES
        )
        self._written = 0  # bytes since the last checkpoint, about
        self._free = 0
        self._full: str | None = None

    # --- opening and closing -------------------------------------------------------------------

    def connect(self) -> None:
        """Open the connection; nothing is read yet."""
        self.db = connect(self._path, vfs=self._vfs)

    def create(self, log_id: str) -> None:
        """Write what a new log begins with, if this file is a new one."""
        if one(self.db, "select count(*) from head"):
            return
        self.transact(
            [
                ("insert into meta values('log_id', ?)", (log_id,), False),
                ("insert into head values(1, 0, 0, 0, 1, 0)", (), False),
            ]
        )

    def load(self) -> None:
        """Read the committed state; raises `LogDamaged` where it does not hold together."""
        db, state = self.db, State()
        head = one(db, "select saved, chain, used, oldest, oldest_chain from head")
        log_id = one(db, "select value from meta where key = 'log_id'")
        if head is None or log_id is None:
            raise LogDamaged("its head is missing", 0, 0)
        state.log_id = log_id
        state.saved, state.chain, state.used, state.oldest, state.oldest_chain = head
        state.commits = one(db, "select cursor from progress where receiver = ?", (_COMMITS,)) or 0
        self._load_audiences(state)
        self._load_senders(state)
        self._load_receivers(state)
        last = one(db, "select max(number) from batch")
        last = state.saved if last is None else last
        if last < state.saved:
            raise LogDamaged("its newest batches are missing", last + 1, state.saved)
        replay(db, state, last)
        self.state = state

    def _load_audiences(self, state: State) -> None:
        found = rows(
            self.db, "select number, members, messages, bytes, last, dropped from audience"
        )
        for number, text, messages, size, last, dropped in found:
            members = tuple(json.loads(text))
            audience = self._audiences.get(members)
            if audience is None or audience.number != number:
                audience = self._audiences[members] = Audience(number, members)
            audience.stored = True
            state.totals[number] = Totals(audience, messages, size, last, dropped)

    def _load_senders(self, state: State) -> None:
        found = rows(
            self.db,
            "select id, name, incarnation, floor, ranges, last, status_from, seen_at from sender",
        )
        for number, name, incarnation, floor, ranges, last, status_from, seen_at in found:
            sender = SenderState(number, (name, incarnation), seen_at)
            for first, end in msgspec.msgpack.decode(ranges):
                sender.take(first, end)
            sender.floor = max(sender.floor, floor)
            sender.last = None if last is None else tuple(msgspec.msgpack.decode(last))
            sender.status_from = status_from
            state.senders[sender.key] = state.senders_by_id[number] = sender
            state.next_sender = max(state.next_sender, number + 1)

    def _load_receivers(self, state: State) -> None:
        found = rows(
            self.db,
            "select number, name, address, patterns, ordering, paused, configured,"
            " window_messages, window_bytes, created_at, routed_base, cursor, removed,"
            " acknowledged_count, expired_count, dead_count, cancelled_count, removed_count,"
            " settled_bytes, collected, inbox"
            " from receiver join progress on receiver = number order by number",
        )
        for row in found:
            number, name, address, patterns, order, paused, configured = row[:7]
            window_messages, window_bytes, created_at, base, cursor, removed = row[7:13]
            at = ReceiverState(number, cursor)
            at.removed = bool(removed)
            at.settled = list(row[13:18])
            at.bytes, at.collected, at.inbox = row[18:21]
            state.receivers[number] = at
            state.rows[number] = ReceiverRow(
                number=number,
                name=name,
                address=address,
                patterns=tuple(json.loads(patterns)),
                order=order,
                paused=bool(paused),
                configured=bool(configured),
                window_messages=window_messages,
                window_bytes=window_bytes,
                created_at=created_at,
                routed_base=base,
            )
        open_rows = rows(
            self.db,
            "select receiver, max(last) from exception where status in (?, ?) group by receiver",
            _OPEN,
        )
        for receiver, last in open_rows:
            if receiver in state.receivers:
                state.receivers[receiver].open_to = last

    def snapshot(self, notices: Sequence[str]) -> Snapshot:
        """Return what the node needs to begin."""
        state = self.state
        receivers = []
        exceptions: dict[int, list[ExceptionRow]] = {}
        for number, row in state.rows.items():
            at = state.receivers[number]
            receivers.append(_with_progress(row, at))
            if not at.removed:
                found = queries.exceptions_of(self.db, number, max(at.cursor, 0), INTEGER_MAX)
                if found:
                    exceptions[number] = found
        return Snapshot(
            log_id=state.log_id,
            next_number=state.next_number,
            receivers=receivers,
            audiences=[total.audience for total in state.totals.values()],
            exceptions=exceptions,
            notices=notices,
        )

    def close(self, *, clean: bool) -> None:
        """Save, fold the WAL in and close."""
        try:
            if clean and self.failed is None:
                self.save()
                self.checkpoint(truncate=True)
        finally:
            self.db.close()

    # --- groups --------------------------------------------------------------------------------

    def apply(self, group: Group) -> list[Outcome]:
        """Store a group in one synced transaction; see `ILog.append`."""
        if self.failed is not None:
            raise self.failed
        full = self.fullness() if group.batches else None
        try:
            return self._commit(group, group.batches, full)
        except apsw.FullError:
            return self._commit_on_full_disk(group)

    def _commit_on_full_disk(self, group: Group) -> list[Outcome]:
        """Store all but the batches; on the reserve's blocks if there is no other way."""
        self._full = "the disk is full"
        self.make_room(lambda: self._commit(group, [], None))
        return [RefusedBatch(LogFull(self._full, delay=FULL_DELAY)) for _ in group.batches]

    def make_room(self, job: Callable[[], T]) -> T:
        """Run a job that met a full disk again: with an empty WAL, then without the reserve."""
        # Folding needs next to no room, and the WAL's own blocks are used again.
        self.checkpoint(truncate=True)
        try:
            return job()
        except apsw.FullError:
            if self.reserve is None or not self.reserve.give_up():
                raise LogUnavailable("the disk is full") from None
        self.checkpoint(truncate=True)
        try:
            return job()
        except apsw.FullError:
            raise LogUnavailable("the disk is full") from None

    def _commit(self, group: Group, batches: list[Batch], full: LogFull | None) -> list[Outcome]:
        staged = Staged(self.state)
        operations: list[Operation] = []
        placed = self._stage_receivers(staged, group, operations)
        outcomes, flat = take_batches(
            staged,
            batches,
            group.now,
            used_max=self.limits.max_bytes,
            full=full,
            lookup=lambda sender, first, last: queries.runs_of(
                self.db, self.state, sender, first, last
            ),
        )
        self._stage_batches(staged, flat, operations)
        self._stage_floors(staged, group, operations)
        self._stage_progress(staged, group, operations)
        try:
            self._write(staged, operations)
        except BaseException:
            forget_numbers(staged)
            raise
        for row, cursor in placed:
            row.cursor = cursor
        self._faults("after commit")
        self._written += sum(batch.size + 320 for batch in staged.fresh) + 4096 * 6
        self._write_mark()
        return outcomes

    def _write(self, staged: Staged, operations: list[Operation]) -> None:
        """Commit what a group staged, or raise and leave all as it was."""
        try:
            self._faults("before commit")
            self.transact(operations)
        except (apsw.IOError, apsw.BusyError, apsw.CantOpenError) as error:
            if not self._recover(staged, error):
                raise LogUnavailable(str(error)) from error
        except apsw.FullError:
            raise
        except apsw.Error as error:
            self.failed = LogFailed(f"the log cannot be written: {error}")
            raise self.failed from error
        else:
            self.state.adopt(staged)

    def transact(self, operations: list[Operation]) -> None:
        """Run the operations in one transaction; a single one is its own."""
        db = self.db
        if not operations:
            return
        if len(operations) == 1 and not operations[0][2]:
            db.execute(operations[0][0], operations[0][1])
            return
        db.execute("begin immediate")
        try:
            for sql, parameters, many in operations:
                if many:
                    db.executemany(sql, parameters)
                else:
                    db.execute(sql, parameters)
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise

    def guard(self, job: Callable[[], T]) -> T:
        """Run a job that writes beside the groups; a failed write or sync is recovered from."""
        try:
            return job()
        except (apsw.IOError, apsw.BusyError, apsw.CantOpenError) as error:
            self._recover(Staged(self.state), error)
            raise LogUnavailable(str(error)) from error
        except apsw.FullError as error:
            raise LogUnavailable(str(error)) from error
        except apsw.Error as error:
            self.failed = LogFailed(f"the log cannot be written: {error}")
            raise self.failed from error

    def _recover(self, staged: Staged, error: Exception) -> bool:
        """Reopen after a failed write or sync; return whether the group is in the log after all.

        The kernel calls pages clean that it could not write, so nothing written before may be
        trusted to a later sync: every page of the WAL is written anew into the file, and that
        synced, before anything is answered (SEMANTICS 19).
        """
        try:
            self.db.close(True)
            self.connect()
            self.load()
            self.checkpoint(truncate=True, raising=True)
        except (apsw.Error, LogDamaged) as second:
            self.failed = LogFailed(f"{error}; then reopening failed: {second}")
            raise self.failed from second
        return (self.state.next_number, self.state.chain, self.state.commits) == (
            staged.number,
            staged.chain,
            staged.commits,
        )

    def _write_mark(self) -> None:
        if self.marks is None:
            return
        state = self.state
        mark = Mark(state.log_id, state.next_number - 1, state.commits, state.chain)
        self.marks.submit(mark)
        try:
            if self._strict:
                self.marks.wait(mark)
            elif self.marks.error is not None:
                raise self.marks.error
        except OSError as error:
            self.failed = LogFailed(f"the high-water mark cannot be written: {error}")
            raise self.failed from error

    # --- the parts of a group ------------------------------------------------------------------

    def _stage_receivers(
        self, staged: Staged, group: Group, operations: list[Operation]
    ) -> list[tuple[ReceiverRow, int]]:
        """Stage `receivers` and `removed`; return rows whose cursor is decided here."""
        placed = []
        for row in group.receivers:
            at = staged.receiver(row.number)
            if at is None:
                cursor = row.cursor if row.cursor >= 0 else (staged.number << 16) - 1
                at = staged.receivers[row.number] = ReceiverState(row.number, cursor)
                at.inbox = row.inbox
                placed.append((row, cursor))
                operations.append(_progress_operation([at]))
            staged.rows[row.number] = row
            operations.append(
                (
                    "insert or replace into receiver values (?,?,?,?,?,?,?,?,?,?,?)",
                    (
                        row.number,
                        row.name,
                        row.address,
                        json.dumps(row.patterns),
                        row.order,
                        row.paused,
                        row.configured,
                        row.window_messages,
                        row.window_bytes,
                        row.created_at,
                        row.routed_base,
                    ),
                    False,
                )
            )
        for number in group.removed:
            at = staged.receiver(number)
            if at is not None and not at.removed:
                self._stage_removal(at, operations)
        return placed

    def _stage_removal(self, at: ReceiverState, operations: list[Operation]) -> None:
        """One range row from the cursor on says REMOVED; what was waiting is counted so."""
        number = at.number
        audiences = [
            audience
            for audience, total in self.state.totals.items()
            if number in total.audience.members
        ]
        routed = queries.count_all(self.db, audiences)
        at.settle(Status.REMOVED, queries.queued(self.db, number, at.cursor, audiences, routed))
        at.removed = True
        first = at.cursor + 1
        for row in queries.exceptions_of(self.db, number, first, INTEGER_MAX):
            if row.status.final and row.first == first:
                first = row.last + 1
        operations += [
            (
                "delete from exception where receiver = ? and status = ?",
                (number, int(Status.QUEUED)),
                False,
            ),
            (
                "insert into exception values (?, ?, ?, ?, 0, 0, '')",
                (number, first, INTEGER_MAX, int(Status.REMOVED)),
                False,
            ),
            _progress_operation([at]),
        ]

    def _stage_batches(
        self, staged: Staged, flat: list[object], operations: list[Operation]
    ) -> None:
        if staged.new_senders:
            operations.append(
                (
                    "insert into sender values (?, ?, ?, ?, 1, ?, null, 1, ?)",
                    [
                        (s.id, *s.key, hash_of(s.key[1]), b"\x90", s.seen_at)
                        for s in staged.new_senders
                    ],
                    True,
                )
            )
        if staged.new_audiences:
            operations.append(
                (
                    "insert into audience values (?, ?, 0, 0, 0, 0)",
                    [
                        (total.audience.number, json.dumps(total.audience.members))
                        for total in staged.new_audiences
                    ],
                    True,
                )
            )
        operations += [
            (sql, parameters, False) for sql, parameters in insert_steps("batch", COLUMNS, flat)
        ]
        ids = [
            (name, batch.first + index)
            for batch in staged.fresh
            if batch.ids
            for index, name in batch.ids
        ]
        if ids:
            operations.append(("insert or ignore into message_id values (?, ?)", ids, True))

    def _stage_progress(self, staged: Staged, group: Group, operations: list[Operation]) -> None:
        if not (group.receivers or group.removed or group.progress or group.floors):
            return
        moved: dict[int, ReceiverState] = {}
        replaced: list[tuple[int, int, int]] = []
        added: list[tuple[object, ...]] = []
        passed: list[tuple[int, int]] = []
        dead: list[tuple[object, ...]] = []
        for step in group.progress:
            at = staged.receiver(step.receiver)
            if at is None or at.removed:
                continue  # what it settles was counted when it was removed
            moved[step.receiver] = at
            at.cursor = max(at.cursor, step.cursor)
            for status, count in step.settled.items():
                at.settle(status, count)
            at.bytes += step.settled_bytes
            if step.inbox is not None:
                at.inbox = step.inbox
            for row in step.exceptions:
                replaced.append((step.receiver, row.first, row.last))
                added.append(
                    (
                        step.receiver,
                        row.first,
                        row.last,
                        int(row.status),
                        row.attempts,
                        row.next_at,
                        row.reason,
                    )
                )
                if row.status in _OPEN:
                    at.open_to = max(at.open_to, row.last)
            if at.open_to:
                passed.append((step.receiver, at.cursor))
                if at.cursor >= at.open_to:
                    at.open_to = 0
            dead += [
                (
                    step.receiver,
                    letter.position,
                    letter.sender,
                    letter.incarnation,
                    letter.sequence,
                    letter.subject,
                    letter.message,
                    letter.reason,
                    letter.attempts,
                    letter.at,
                )
                for letter in step.dead
            ]
        many: list[tuple[str, list[Any]]] = [
            ("delete from exception where receiver = ? and first between ? and ?", replaced),
            ("insert or replace into exception values (?,?,?,?,?,?,?)", added),
            (
                _DELETE_PASSED,
                passed,
            ),
            ("insert or replace into dead values (?,?,?,?,?,?,?,?,?,?)", dead),
        ]
        operations += [(sql, parameters, True) for sql, parameters in many if parameters]
        # The count of such groups sits in a row of the same table: one step less per group.
        staged.commits += 1
        states = [ReceiverState(_COMMITS, staged.commits), *moved.values()]
        operations += [_progress_operation(states[i : i + 256]) for i in range(0, len(states), 256)]

    def _stage_floors(self, staged: Staged, group: Group, operations: list[Operation]) -> None:
        for floor in group.floors:
            key = (floor.sender, floor.incarnation)
            if key not in staged.senders and key not in self.state.senders:
                continue
            sender = staged.sender(key, group.now)
            if floor.status_from <= sender.status_from:
                continue
            sender.status_from = floor.status_from
            operations += [
                (
                    "update sender set status_from = ? where id = ?",
                    (sender.status_from, sender.id),
                    False,
                ),
                (
                    "delete from finished where sender = ? and last < ?",
                    (sender.id, sender.status_from),
                    False,
                ),
            ]

    # --- saving and folding --------------------------------------------------------------------

    @property
    def wants_checkpoint(self) -> bool:
        """Whether `maintain` should run before long."""
        return self._written >= self._checkpoint_bytes

    def wrote(self, size: int) -> None:
        """Count what another part has written towards the next checkpoint."""
        self._written += size

    def maintain(self) -> None:
        """Save and fold the WAL in, if it is time."""
        if self.failed is None and self.wants_checkpoint:
            self.guard(self.save)
            self.checkpoint()

    def save(self) -> None:
        """Write what the batches since the last save say of senders and audiences."""
        state = self.state
        last = state.next_number - 1
        if last == state.saved and not state.dirty_senders and not state.dirty_totals:
            return
        try:
            self.transact(self.save_operations())
        except apsw.FullError:
            return  # replayed instead; accepting stops by the watermark
        self.saved()

    def save_operations(self) -> list[Operation]:
        """Return the operations of a save, for a transaction that does more than that."""
        state = self.state
        senders = [state.senders[key] for key in state.dirty_senders if key in state.senders]
        totals = [state.totals[a] for a in state.dirty_totals if a in state.totals]
        return [
            (
                _SAVE_SENDER,
                [
                    (
                        s.floor,
                        encode_ranges(s),
                        None if s.last is None else msgspec.msgpack.encode(s.last),
                        s.status_from,
                        s.seen_at,
                        s.id,
                    )
                    for s in senders
                ],
                True,
            ),
            (
                _SAVE_AUDIENCE,
                [(t.messages, t.bytes, t.last, t.dropped, t.audience.number) for t in totals],
                True,
            ),
            (
                "update head set saved = ?, chain = ?, used = ?",
                (state.next_number - 1, state.chain, state.used),
                False,
            ),
        ]

    def saved(self) -> None:
        """Note that `save_operations` were committed."""
        state = self.state
        state.saved = state.next_number - 1
        state.dirty_senders.clear()
        state.dirty_totals.clear()

    def checkpoint(self, *, truncate: bool = False, raising: bool = False) -> None:
        """Fold the WAL into the file and sync that."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            self._faults("before checkpoint")
            self.db.wal_checkpoint(mode=mode)
            self._written = 0
        except (apsw.FullError, apsw.BusyError):
            if raising:
                raise
        except apsw.Error as error:
            if raising:
                raise
            self._recover(Staged(self.state), error)

    # --- room ----------------------------------------------------------------------------------

    def fullness(self) -> LogFull | None:
        """Look at the disk; return why no batch may be accepted now, or None (SEMANTICS 19)."""
        reserve = self.reserve
        if reserve is None:
            self._full = None
        else:
            self._free = reserve.free()
            # Once full, twice the watermark must be free: no flapping at the edge.
            wanted = reserve.watermark * (2 if self._full else 1)
            if self._free < wanted or not reserve.make():
                self._full = f"{self._free} bytes are free on the disk"
            else:
                self._full = None
        return None if self._full is None else LogFull(self._full, delay=FULL_DELAY)

    def room(self) -> Room:
        """Return how full the log is."""
        used, maximum = self.state.used, self.limits.max_bytes
        full = self._full
        if full is None and used >= maximum:
            full = f"{used} bytes are used, at most {maximum} allowed"
        return Room(used=used, maximum=maximum, free=self._free, full=full)


def _progress_operation(states: list[ReceiverState]) -> Operation:
    row = "(?,?,?,?,?,?,?,?,?,?,?)"
    parameters: list[object] = []
    for at in states:
        parameters += (at.number, at.cursor, at.removed, *at.settled, at.bytes, at.collected)
        parameters.append(at.inbox)
    return (
        "insert or replace into progress values " + ",".join([row] * len(states)),  # noqa: S608 - no input in it
        parameters,
        False,
    )


def _with_progress(row: ReceiverRow, at: ReceiverState) -> ReceiverRow:
    return ReceiverRow(
        number=row.number,
        name=row.name,
        address=row.address,
        patterns=row.patterns,
        order=row.order,
        paused=row.paused,
        configured=row.configured,
        window_messages=row.window_messages,
        window_bytes=row.window_bytes,
        created_at=row.created_at,
        removed=at.removed,
        cursor=at.cursor,
        inbox=at.inbox,
        routed_base=row.routed_base,
        settled=at.settled_by_status,
        settled_bytes=at.bytes,
    )
