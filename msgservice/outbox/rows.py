"""The rows of an outbox table, as a relay has them: everything that it says to the database.

All of it blocks, on the relay's own thread. One call is one `step`: what is to be written, and the
next rows that wait, in one transaction. A row is given its sequence, committed, before its message
is handed over; so whether it was handed over is decided by one number, the last sequence that the
outbox's file has kept. What is beyond that when a table is claimed was not, and waits again.

A connection that failed is closed, and whatever its transaction did is found out by claiming the
table anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgservice.errors import MessageTooLarge, OutboxTableTaken
from msgservice.outbox.fates import Fate
from msgservice.outbox.parcels import Packing, Parcel, Row
from msgservice.outbox.sql import (
    ACKNOWLEDGED,
    ENDED,
    SQLITE,
    Wording,
    cursor_of,
    dialect_of,
    driver_of,
    style_of,
    values_of,
)
from msgservice.outbox.table import OutboxTable

DELETED_ROWS = 1000  # in one statement
JSON_FACTOR = 8  # characters of JSON for a byte of what it says, and more than any needs
LOOKED_AT_ROWS = 5000  # whose receipts are looked for, in one step

_IS_ONE_WAITING = "select 1 from {table} where state = 'waiting' limit 1"
_SIZES = (
    "select id, coalesce(length(body), 0), coalesce(length(headers), 0) +"
    " coalesce(length(options), 0) from {table} where state = 'waiting' order by id limit ?"
)
_ROWS_WHERE = " from {table} where state = 'waiting' and id between ? and ? order by id limit ?"
# Whoever deletes or changes a row meanwhile has done so before it is taken, or comes too late.
_ROWS = f"select id, enqueued_at, subject, body, headers, options{_ROWS_WHERE} for update"
# SQLite keeps anything in any column, text that is no UTF-8 say, which its driver fails at.
_ROWS_OF_SQLITE = (
    "select id, case when typeof(enqueued_at) in ('integer', 'real')"
    " then cast(enqueued_at as integer) end, cast(subject as blob), cast(body as blob),"
    f" cast(headers as blob), cast(options as blob){_ROWS_WHERE}"
)
_ASSIGN = "update {table} set state = 'handed', sequence = ? where id = ?"
# One statement for all of them, where lists are arrays: less work at both ends.
_ASSIGN_ALL = (
    "update {table} set state = 'handed', sequence = given.sequence"
    " from unnest(cast(? as bigint[]), cast(? as bigint[])) as given(sequence, id)"
    " where {table}.id = given.id"
)
_REFUSE = "update {table} set state = 'refused', reason = ?, ended_at = ? where id = ?"
_END = (
    "update {table} set state = ?, receivers = ?, reason = ?, ended_at = ?"
    " where state = 'handed' and sequence between ? and ?"
)
_END_AWAY = "delete from {table} where state = 'handed' and sequence between ? and ?"
_AGAIN = "update {table} set state = 'waiting', sequence = null where state = 'handed'"
_NOT_HANDED = f"{_AGAIN} and sequence > ?"
_DELETE = (
    "delete from {table} where id in (select id from {table}"
    " where state = ? and ended_at < ? order by ended_at limit ?)"
)
_OPEN = (
    "select sequence from {table} where state = 'handed' and sequence between ? and ?"
    " order by sequence limit ?"
)
_CLAIMED = "select outbox, assigned, handed from {relay} where id = 1"
# The last transaction of a relay that was killed may still be under way: what it has done is waited
# for, and seen by what follows.
_CLAIMED_LOCKED = f"{_CLAIMED} for update"
_CLAIM_FIRST = "insert into {relay}(id, outbox, assigned, handed) values (1, ?, ?, ?)"
_CLAIM = "update {relay} set outbox = ?, assigned = ?, handed = ? where id = 1"
_GO_ON = "update {relay} set assigned = ?, handed = ? where id = 1 and outbox = ? and assigned = ?"
_OF_POSTGRESQL = ("psycopg", "psycopg2", "pg8000")
# What was given a sequence must be on disk before its message is handed over.
_SYNCED = (
    "select set_config('synchronous_commit', 'local', false)"
    " where current_setting('synchronous_commit') = 'off'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The next step: what is to be written, and what may be taken.

    `kept`: the last sequence in the outbox's file; `next`: the one that is given next. `fates`: to
    be written, at `now`, ms. `rows`, `size`: as many may be taken, 0 rows: none. `again`: what was
    taken and not handed over waits again. `looks_from`: rows that were handed over are listed, from
    this sequence on, or None. `max_batch`: of the node, bytes. `relayed`: the table that the
    outbox's file is of, as it says; empty where it says none.
    """

    now: int
    kept: int
    next: int
    fates: Sequence[Fate] = ()
    rows: int = 0
    size: int = 0
    again: bool = False
    deletes: bool = False
    looks_from: int | None = None
    max_batch: int = 0
    relayed: str = ""


@dataclass(slots=True)
class Taken:
    """The outcome of a step. `rows`: so many were taken; those in `parcels` are handed over next.

    `taken_over`: where it was taken over, how many rows wait again; `older`: what was found to be
    an older copy when the table was claimed. `looked_at`: sequences of rows that were handed over,
    rising, where they were asked for.
    """

    rows: int = 0
    refused: int = 0
    deleted: int = 0
    has_more: bool = False
    parcels: list[Parcel] = field(default_factory=list)
    taken_over: int | None = None
    older: list[str] = field(default_factory=list)
    looked_at: list[int] = field(default_factory=list)


class _Moved(Exception):
    """The table is not as this relay has left it: whose it is, and what it holds, is to be seen."""


class RelayRows:
    """The rows of one table, for the relay whose outbox's file is `identity`.

    `connect` returns a new connection of DB-API. `take_over`: from another outbox, once. `keep`,
    `keep_failed`: ms for which rows stay that were acknowledged, and those that were not; None: for
    ever. `creates`: the tables are made where they are missing.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        table: OutboxTable,
        *,
        identity: str,
        keep: int | None,
        keep_failed: int | None,
        take_over: bool = False,
        creates: bool = False,
    ) -> None:
        self._connect, self._table, self._identity = connect, table, identity
        self._keep = {state: keep if state == ACKNOWLEDGED else keep_failed for state in ENDED}
        self._take_over, self._creates = take_over, creates
        self._packing = Packing(table.limits)
        self._connection: Any = None
        self._wording: Wording | None = None
        self._is_sqlite = self._has_arrays = False
        self._file: tuple[Path, os.stat_result] | None = None  # of SQLite, as it was opened
        self._is_ascii = False  # the database has no other letters
        # The last sequence that a row was given: what the table may say. None: not claimed yet.
        self._assigned: set[int] | None = None

    def step(self, step: Step) -> Taken:
        """Take one step. Raises `OutboxTableTaken`, and what the driver raises.

        After an error nothing of it is known: the fates are to be written again, and nothing was
        taken.
        """
        try:
            taken = Taken()
            if self._is_replaced():
                self.close()
            if self._connection is None:
                self._open(step, taken)
            try:
                self._work(step, taken)
            except _Moved:
                self.close()
                self._open(step, taken)
                self._work(step, taken)
        except BaseException as error:
            # What others have said must not hold up the rest: it is written with escapes then.
            self._is_ascii |= isinstance(error, UnicodeError) or _is_called(error, "DataError")
            self.close()
            raise
        return taken

    def close(self) -> None:
        """Close the connection; what was not committed is rolled back."""
        connection, self._connection = self._connection, None
        self._file = None
        if connection is not None:
            with suppress(Exception):  # it has failed already
                connection.close()

    def is_of_driver(self, error: BaseException) -> bool:
        """Whether an error is one of DB-API's: of the database, not of this program."""
        return _is_called(error, "Error") or isinstance(error, OSError)

    # --- on the connection

    def _open(self, step: Step, taken: Taken) -> None:
        connection = self._connection = self._connect()
        self._wording = Wording(self._table.names, style_of(connection))
        self._is_sqlite = dialect_of(connection) == SQLITE
        if self._is_sqlite:
            connection.text_factory = str  # the connection is the relay's, whoever has made it
        self._has_arrays = driver_of(connection) in _OF_POSTGRESQL
        if getattr(connection, "autocommit", False) is True:
            connection.autocommit = False  # a step is one transaction
        cursor = cursor_of(connection)
        try:
            if self._has_arrays:
                self._execute(cursor, _SYNCED)
                connection.commit()
            self._begin(cursor)
            if self._creates:
                self._table.create(connection)
            self._claim(cursor, step, taken)
            connection.commit()
            if self._is_sqlite:
                self._note_file(cursor)
        finally:
            cursor.close()
        self._take_over = self._creates = False

    def _note_file(self, cursor: Any) -> None:
        cursor.execute("pragma database_list")
        for _, name, path in self._tuples(cursor):
            if name == "main" and path:
                self._file = Path(path), Path(path).stat()

    def _is_replaced(self) -> bool:
        """Whether another file has the name of this one of SQLite: nobody writes to it any more."""
        if self._file is None:
            return False
        path, found = self._file
        return not os.path.samestat(found, path.stat())

    def _work(self, step: Step, taken: Taken) -> None:
        connection = self._connection
        cursor = cursor_of(connection)
        try:
            writes = bool(step.fates) or step.again or step.deletes
            if not writes and step.looks_from is None and not self._is_one_waiting(cursor, step):
                connection.rollback()
                return
            self._begin(cursor)
            if step.again:
                self._execute(cursor, _NOT_HANDED, step.kept)
            self._write_fates(cursor, step)
            if step.deletes:
                taken.deleted = self._delete(cursor, step.now)
            if step.looks_from is not None:
                self._execute(cursor, _OPEN, step.looks_from, step.kept, LOOKED_AT_ROWS)
                taken.looked_at = [row[0] for row in self._tuples(cursor)]
            last = self._take(cursor, step, taken) if step.rows else max(self._assigned or {0})
            self._go_on(cursor, step, last)
            connection.commit()
        finally:
            cursor.close()
        self._assigned = {last}

    def _is_one_waiting(self, cursor: Any, step: Step) -> bool:
        if not step.rows:
            return False
        self._execute(cursor, _IS_ONE_WAITING)
        return cursor.fetchone() is not None

    def _begin(self, cursor: Any) -> None:
        # PostgreSQL has begun one by itself. SQLite would too, and could find at its first write
        # that somebody else has written meanwhile.
        if self._is_sqlite and not self._connection.in_transaction:
            cursor.execute("begin immediate")

    def _claim(self, cursor: Any, step: Step, taken: Taken) -> None:
        """Look whose the table is, and have what was not handed over wait again."""
        name, kept = self._table.names.name, step.kept
        given = step.next - 1
        self._execute(cursor, _CLAIMED if self._is_sqlite else _CLAIMED_LOCKED)
        found = self._tuples(cursor)
        is_claimed = bool(found) and found[0][0] == self._identity  # by another name, maybe
        if not is_claimed and step.relayed not in ("", name):
            raise OutboxTableTaken(
                name,
                f"cannot be relayed with an outbox file that is of the table {step.relayed}: each"
                " table needs a file of its own",
            )
        if not found:
            # Of rows that were handed over nobody says by whom, unless that was this relay.
            if self._assigned is not None:
                self._execute(cursor, _NOT_HANDED, kept)
            else:
                self._execute(cursor, _AGAIN)
                taken.taken_over = max(0, cursor.rowcount) or None
            self._execute(cursor, _CLAIM_FIRST, self._identity, given, kept)
            self._assigned = {given}
            return
        ((outbox, assigned, handed),) = found
        if outbox != self._identity:
            if self._assigned is not None:
                raise OutboxTableTaken(name, "was taken over by a relay with another outbox file")
            if not self._take_over:
                raise OutboxTableTaken(
                    name,
                    "is relayed with another outbox file: stop that relay, or use its file. If the"
                    " file is lost, take over: what was not settled is handed over again then, and"
                    " may come twice",
                )
            self._execute(cursor, _AGAIN)
            taken.taken_over = cursor.rowcount
        else:
            # A lower one is of an older copy of the database.
            if self._assigned is not None and assigned > max(self._assigned):
                raise OutboxTableTaken(name, "was relayed by a copy of this outbox file meanwhile")
            if handed > kept:
                taken.older.append(
                    f"the outbox file ends with {kept} and has ended with {handed}: it is an older"
                    " copy; what is not settled beyond that may come twice"
                )
            if kept > assigned:
                taken.older.append(
                    f"the table ends with {assigned}, and the outbox file with {kept}: it is an"
                    " older copy; what was enqueued before may come twice"
                )
            self._execute(cursor, _NOT_HANDED, kept)
        assigned = max(assigned, given) if outbox == self._identity else given
        self._execute(cursor, _CLAIM, self._identity, assigned, kept)
        self._assigned = {assigned}

    def _write_fates(self, cursor: Any, step: Step) -> None:
        away = self._keep[ACKNOWLEDGED] == 0
        gone = [fate for fate in step.fates if away and fate.state == ACKNOWLEDGED]
        if gone:
            self._execute_many(cursor, _END_AWAY, [(fate.first, fate.last) for fate in gone])
        ended = [
            (
                fate.state,
                self._said(fate.receivers),
                self._said(fate.reason),
                step.now,
                fate.first,
                fate.last,
            )
            for fate in step.fates
            if not away or fate.state != ACKNOWLEDGED
        ]
        if ended:
            self._execute_many(cursor, _END, ended)

    def _delete(self, cursor: Any, now: int) -> int:
        deleted = 0
        for state, keep in self._keep.items():
            if keep is not None:
                self._execute(cursor, _DELETE, state, now - keep, DELETED_ROWS)
                deleted = max(deleted, cursor.rowcount)
        return deleted

    def _take(self, cursor: Any, step: Step, taken: Taken) -> int:
        """Give the next rows their sequences; return the last one that was given."""
        last = max(self._assigned or {0})
        self._execute(cursor, _SIZES, step.rows)
        sizes = self._tuples(cursor)
        if not sizes:
            return last
        refused: list[tuple[str | None, int, int]] = []
        chosen: list[int] = []
        filled = 0
        for id_, body, more in sizes:
            # JSON may be longer than what it says; what is too large all the same is never read.
            if max(body, more // JSON_FACTOR) > step.max_batch:
                if chosen:
                    break
                refused.append((str(MessageTooLarge(body + more, step.max_batch)), step.now, id_))
                continue
            if chosen and filled + body + more > step.size:
                break
            chosen.append(id_)
            filled += body + more
        rows = self._read(cursor, chosen)
        packed = self._packing.pack(rows, step.max_batch, step.now)
        assigned: list[tuple[int, int]] = []
        sequence = step.next - 1
        for parcel in packed.parcels:
            for row in parcel.rows:
                sequence += 1
                assigned.append((sequence, row))
        self._assign(cursor, assigned)
        refused += [(self._said(reason), step.now, row) for row, reason in packed.refused]
        if refused:
            self._execute_many(cursor, _REFUSE, refused)
        taken.rows, taken.refused = len(rows), len(refused)
        taken.parcels = packed.parcels
        taken.has_more = len(chosen) < len(sizes) or len(sizes) == step.rows
        return max(last, sequence)

    def _read(self, cursor: Any, ids: Sequence[int]) -> list[Row]:
        if not ids:
            return []
        which = ids[0], ids[-1], len(ids)
        self._execute(cursor, _ROWS_OF_SQLITE if self._is_sqlite else _ROWS, *which)
        return [
            Row(id_, enqueued_at, subject, _bytes(body), headers, options)
            for id_, enqueued_at, subject, body, headers, options in self._tuples(cursor)
        ]

    def _assign(self, cursor: Any, assigned: Sequence[tuple[int, int]]) -> None:
        if assigned and self._has_arrays:
            self._execute(cursor, _ASSIGN_ALL, *map(list, zip(*assigned, strict=True)))
        elif assigned:
            self._execute_many(cursor, _ASSIGN, assigned)
        # A trigger or a policy may have kept a row: it would wait, and be handed over, for ever.
        if 0 <= cursor.rowcount < len(assigned):
            raise PermissionError(
                f"{len(assigned) - cursor.rowcount} of {len(assigned)} rows could not be marked as"
                " handed over: a trigger or a policy of the table keeps them as they are"
            )

    def _go_on(self, cursor: Any, step: Step, last: int) -> None:
        """Note the last sequence, if nobody else has had the table since."""
        assert self._assigned is not None
        was = max(self._assigned)
        self._execute(cursor, _GO_ON, last, step.kept, self._identity, was)
        if cursor.rowcount != 1:
            raise _Moved
        self._assigned.add(last)  # it may be committed, and the answer lost

    # --- how it is said

    def _said(self, text: str | None) -> str | None:
        """Return text as this database can keep it: where it must be, with the escapes of JSON."""
        if text is None or not self._is_ascii:
            return text
        return "".join([c if " " <= c <= "~" else json.dumps(c)[1:-1] for c in text])

    def _execute(self, cursor: Any, statement: str, *values: Any) -> None:
        assert self._wording is not None
        said = self._wording.say(statement)
        if values:
            cursor.execute(said, self._wording.given(values))
        else:
            cursor.execute(said.replace("%%", "%") if "%%" in said else said)

    def _execute_many(self, cursor: Any, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        wording = self._wording
        assert wording is not None
        cursor.executemany(wording.say(statement), [wording.given(one) for one in values])

    def _tuples(self, cursor: Any) -> list[tuple[Any, ...]]:
        return [values_of(row) for row in cursor.fetchall()]


def _is_called(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _bytes(body: Any) -> bytes:
    """Return a body; one that was written as text, by SQL of somebody's own, as UTF-8."""
    return body.encode() if isinstance(body, str) else bytes(body)
