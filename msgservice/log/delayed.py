"""The runs that wait until they are due: their table, and what a group does to it (SEMANTICS 16).

A run that is due later is accepted like any other (`dedupe.py`), but gets no number: its row stands
here, and no cursor meets it. When it is due it leaves with a group that has decided for whom it is,
or it is cancelled before. No batch says that such a run was taken, so its sender's marks are
written with its row; and nothing chains these rows, so the head has their number, their bytes and
the sum of their CRCs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from zlib import crc32

import apsw
import msgspec

from msgservice.core.subjects import matches
from msgservice.disk.database import as_json, insert_steps, one, rows
from msgservice.errors import LogDamaged
from msgservice.limits import BATCH_INDEX_BITS
from msgservice.log import queries
from msgservice.log.dedupe import FRAME_FLAGS, MATCHED, NAMED, mark_of, named_of
from msgservice.log.history import split_identity
from msgservice.log.queries import PAGE_BYTES, audience_of, checksum, sender_of, senders_of
from msgservice.log.repeats import TakenRun
from msgservice.log.schema import INTO_FINISHED
from msgservice.log.state import Staged, State, Waiting
from msgservice.message import MessageParts, Status, options_of
from msgservice.records import (
    NOBODY,
    NOT_YET,
    Batch,
    Cancel,
    Delayed,
    Found,
    Origin,
)

Operation = tuple[str, Any]

COLUMNS = (
    "id, due_at, sender, sequence, count, size, subject, audience, accepted_at, after, flags, crc,"
    " row_crc, ids, origin, expires_at"
)
LOOKED_AT = 10_000  # messages with one id among which a sender's is looked for

_PAGE = """
select json_group_array(json_array(id, due_at, sender, sequence, count, size, subject, audience,
        accepted_at, after, flags, crc, row_crc, ids, nullif(hex(origin), ''), expires_at)),
    cast(group_concat(frame, '') as blob)
from (select d.* from json_each(?1) as a cross join delayed as d where d.id = a.value)
"""

_HEADS = """
select json_group_array(json_array(id, size)) from (
    select id, size from delayed
    where due_at <= ?1 and (due_at > ?2 or (due_at = ?2 and id > ?3)) and due_at >= ?2
    order by due_at, id limit ?4)
"""

# What was taken by its key as a message that waits is that.
_OF_ALIAS = f"""
select {", ".join(f"d.{column}" for column in COLUMNS.split(", "))}
from alias as a cross join delayed as d on d.sender = a.of_sender and d.sequence = a.of_sequence
where a.sender = ? and a.sequence = ?
"""  # noqa: S608 - fixed names

# … and was handed in with an id of its own.
_OF_ALIAS_WITH_ID = f"""
select {", ".join(f"d.{column}" for column in COLUMNS.split(", "))}
from finished_id as f cross join alias as a on a.sender = f.sender and a.sequence = f.sequence
cross join delayed as d on d.sender = a.of_sender and d.sequence = a.of_sequence
where f.name = ? order by d.id desc limit ?
"""  # noqa: S608 - fixed names

# Those of a sender that overlap its sequences.
_OVERLAPPING = """
select id, due_at, sequence, count, crc, audience, subject, flags from delayed
where sender = ?1 and sequence <= ?3 and sequence + count > ?2 and sequence >= coalesce(
    (select max(sequence) from delayed where sender = ?1 and sequence <= ?2), 0)
order by sequence
"""

# What was taken by its key as a message that was cancelled is so as well.
_CANCEL_ALIASES = f"""
insert or replace {INTO_FINISHED}
select sender, ?1, sequence, sequence, ?2, ?3, ?4 from alias
where of_sender = ?5 and of_sequence between ?6 and ?7
"""  # noqa: S608

_SAVE_HEAD = """
update head set delayed_count = ?, delayed_size = ?, delayed_crcs = ?, delayed_last = ?
"""

# In one row: every step of a statement may have to wait for a busy reactor.
_LEAVING = """
select json_group_array(json_array(id, count, size, row_crc)) from delayed
where id in (select value from json_each(?))
"""
NOT_THERE = (0, 0, 0, 0)

# Of what leaves: each row is there as it was read where the first three say the same as what was
# read, for a row only ever goes, or gets shorter.
_LEAVING_SUMS = """
select count(*), coalesce(sum(count), 0), coalesce(sum(size), 0), coalesce(sum(row_crc), 0)
from delayed where id in (select value from json_each(?))
"""

# Up to a row, itself among them, how many there are; and when the next one is due.
_BEHIND = """
select (select count(*) from delayed where due_at <= ?1 and (due_at < ?1 or id <= ?2)),
    (select due_at from delayed where due_at >= ?1 and (due_at > ?1 or id > ?2)
        order by due_at, id limit 1)
"""

_FIRST = """
select json_group_array(json_array(id, due_at))
from (select id, due_at from delayed order by due_at, id limit ?)
"""

_decode_leaving = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode
_decode_heads = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_rows = msgspec.json.Decoder(
    list[tuple[int, int, int, int, int, int, str, int, int, int, int, int, int, Any, Any, Any]]
).decode
_decode_ids = msgspec.json.Decoder(tuple[tuple[int, str], ...]).decode
_decode_origin = msgspec.msgpack.Decoder(Origin).decode
_encode = msgspec.msgpack.Encoder().encode


def _crc_of(values: Sequence[Any]) -> int:
    """Return the CRC that the values of a row have: of all columns in their order, but itself."""
    # One that never expires has that of before there was this.
    end = 15 if values[15] is None else 16
    return crc32(_encode((*values[:12], *values[13:end])))


class Row(NamedTuple):
    """A row of the table, without its messages."""

    id: int
    due_at: int
    sender: int
    sequence: int
    messages: int
    size: int
    subject: str
    audience: int
    accepted_at: int
    after: int
    flags: int
    crc: int
    row_crc: int
    ids: str | None
    origin: bytes | None
    expires_at: int | None = None

    @property
    def last(self) -> int:
        """The sequence of its last message."""
        return self.sequence + self.messages - 1

    @property
    def own_crc(self) -> int:
        """The CRC that its values have."""
        return _crc_of(self)

    def sealed(self) -> Row:
        """Return it with the CRC of its values."""
        return self._replace(row_crc=self.own_crc)

    @property
    def named_ids(self) -> tuple[tuple[int, str], ...]:
        """(index, id) of its messages that have an id, rising."""
        return () if self.ids is None else _decode_ids(self.ids)


def _damaged(row_id: int) -> LogDamaged:
    return LogDamaged(f"delayed messages were changed (row {row_id})", 0, 0)


# --- reading -------------------------------------------------------------------------------------


def waiting_of(db: apsw.Connection) -> Waiting:
    """Return what the head says of all rows; `LogDamaged` where the rows say something else."""
    said = rows(db, "select delayed_count, delayed_size, delayed_crcs, delayed_last from head")[0]
    found = rows(
        db,
        "select count(*), coalesce(sum(size), 0), coalesce(sum(row_crc), 0),"
        " coalesce(max(id) >> ?, 0) from delayed",
        (BATCH_INDEX_BITS,),
    )[0]
    if said[:3] != found[:3] or said[3] < found[3]:
        raise LogDamaged(
            f"delayed messages are missing or were changed: {found[0]} runs of {found[1]} bytes are"
            f" there, {said[0]} of {said[1]} were accepted",
            0,
            0,
        )
    count, size, crcs, last = said
    return Waiting(count, size, crcs, last, one(db, "select min(due_at) from delayed"))


def due(
    db: apsw.Connection, state: State, to: int, after: tuple[int, int], count_max: int
) -> list[Batch]:
    """Return the next runs that are due at this time, in their order, behind (due_at, id)."""
    numbers: list[int] = []
    size_sum = 0
    for number, size in _decode_heads(one(db, _HEADS, (to, *after, count_max))):
        size_sum += size
        if numbers and size_sum > PAGE_BYTES:
            break
        numbers.append(number)
    return _batches(db, state, numbers)


def _batches(db: apsw.Connection, state: State, numbers: Sequence[int]) -> list[Batch]:
    if not numbers:
        return []
    text, frames = one(db, _PAGE, (as_json(numbers),))
    found = _decode_rows(text)
    keys = senders_of(db, state, {values[2] for values in found})
    view, at = memoryview(frames or b""), 0
    batches = []
    for values in found:
        if values[14]:
            values = (*values[:14], bytes.fromhex(values[14]), values[15])
        (number, due_at, sender, sequence, count, size, subject, audience) = values[:8]
        (after, flags, crc, row_crc, ids, origin, expires_at) = values[9:]
        messages = bytes(view[at : at + size])
        at += size
        if _crc_of(values) != row_crc or checksum(messages) != crc or sender not in keys:
            raise _damaged(number)
        name, incarnation = keys[sender]
        batch = Batch(  # by position, once a run, as `Acceptance.batch`
            name,
            incarnation,
            sequence,
            count,
            subject,
            audience_of(db, state, audience) if audience else NOBODY,
            messages,
            size,
            crc,
            after,
            options_of(flags & FRAME_FLAGS),
            () if ids is None else _decode_ids(ids),
            None if origin is None else _decode_origin(origin),
        )
        batch.addressed = bool(flags & NAMED)
        batch.due_at, batch.delayed_id, batch.expires_at = due_at, number, expires_at
        batches.append(batch)
    return batches


def _shown(db: apsw.Connection, state: State, row: Row, name: str, incarnation: str) -> Delayed:
    if row.own_crc != row.row_crc:
        raise _damaged(row.id)
    to = audience_of(db, state, row.audience).members if row.flags & NAMED else None
    return Delayed(
        id=row.id,
        due_at=row.due_at,
        accepted_at=row.accepted_at,
        sender=name,
        incarnation=incarnation,
        first=row.sequence,
        last=row.last,
        subject=row.subject,
        size=row.size,
        to=to,
        ids=row.named_ids,
        expires_at=row.expires_at,
    )


def page(
    db: apsw.Connection, state: State, after: tuple[int, int], count_max: int
) -> list[Delayed]:
    """Return the next runs that wait, in the order in which they are due, behind (due_at, id)."""
    found = [
        Row(*values)
        for values in rows(
            db,
            f"select {COLUMNS} from delayed where due_at >= ?1"  # noqa: S608 - fixed names
            " and (due_at > ?1 or id > ?2) order by due_at, id limit ?3",
            (*after, count_max),
        )
    ]
    keys = senders_of(db, state, {row.sender for row in found})
    return [_shown(db, state, row, *keys[row.sender]) for row in found if row.sender in keys]


def find(
    db: apsw.Connection, state: State, identity: str, senders: Collection[str] | None
) -> Found | None:
    """Return a message that waits, by `SENDER/HASH/SEQUENCE`; or one by its id.

    `senders`: patterns of names, and of the messages with an id the one accepted last of those.
    """
    parts = split_identity(identity)
    if parts is not None:
        sequence = parts[2]
        called = rows(
            db,
            "select id, name, incarnation from sender where name = ? and hash = ?",
            parts[:2],
        )
        for sender, name, incarnation in called:
            for values in rows(
                db,
                f"select {COLUMNS} from delayed where sender = ?1 and sequence <= ?2"  # noqa: S608
                " and sequence + count > ?2",
                (sender, sequence),
            ):
                return _found(Row(*values), name, incarnation, sequence)
            for values in rows(db, _OF_ALIAS, (sender, sequence)):
                row = Row(*values)
                key = sender_of(db, state, row.sender)
                if key is not None:
                    return _found(row, *key, row.sequence)
    for row, place in _with_id(db, state, identity):
        key = sender_of(db, state, row.sender)
        if key is None:
            continue
        if senders is None or any(matches(pattern, key[0]) for pattern in senders):
            return _found(row, *key, row.sequence + place)
    return None


def _with_id(db: apsw.Connection, state: State, name: str) -> Iterator[tuple[Row, int]]:
    """Yield the rows with a message of this id, newest first, and which of theirs it is."""
    for number, place in rows(
        db,
        "select delayed, place from delayed_id where name = ? order by delayed desc limit ?",
        (name, LOOKED_AT),
    ):
        for values in rows(db, f"select {COLUMNS} from delayed where id = ?", (number,)):  # noqa: S608
            yield Row(*values), place
    if state.aliases:
        for values in rows(db, _OF_ALIAS_WITH_ID, (name, LOOKED_AT)):
            yield Row(*values), 0


def _found(row: Row, name: str, incarnation: str, sequence: int) -> Found:
    if row.own_crc != row.row_crc:
        raise _damaged(row.id)
    return Found(
        position=0,
        sender=name,
        incarnation=incarnation,
        sequence=sequence,
        subject=row.subject,
        size=row.size,
        stored_at=row.accepted_at,
        states={},
        due=row.due_at,
    )


def runs_of(
    db: apsw.Connection,
    state: State,
    sender: int,
    first: int,
    last: int,
    without: Collection[int] = (),
) -> Iterator[TakenRun]:
    """Yield the runs of a sender that wait and overlap these sequences, rising.

    `without`: the ids of those that leave.
    """
    for number, due_at, sequence, count, crc, audience, subject, flags in rows(
        db, _OVERLAPPING, (sender, first, last)
    ):
        if number not in without:
            whom = audience_of(db, state, audience) if audience else NOBODY
            mark = mark_of(subject, named_of(flags))
            yield TakenRun(-number, sequence, count, crc, whom, None, mark, due_at)


class StoredRuns:
    """The runs that are committed, for the writer that looks for duplicates (`repeats.Stored`).

    `leaving`: the ids of runs that wait and leave with the group: what it stores is asked first.
    """

    def __init__(self, db: apsw.Connection, state: State, leaving: Collection[int] = ()) -> None:
        self._db = db
        self._state = state
        self._leaving = leaving

    def runs(self, sender: int, first: int, last: int) -> list[TakenRun]:
        """See `repeats.Stored.runs`."""
        db, state = self._db, self._state
        found = queries.runs_of(db, state, sender, first, last)
        if state.waiting.count:
            found += runs_of(db, state, sender, first, last, self._leaving)
            found.sort(key=lambda run: run.sequence)
        return found

    def messages(self, number: int) -> bytes | None:
        """See `repeats.Stored.messages`."""
        if number < 0:
            return frame_of(self._db, -number)
        frame: bytes | None = one(self._db, "select frame from batch where number = ?", (number,))
        return frame


def frame_of(db: apsw.Connection, number: int) -> bytes | None:
    """Return the messages of a row; None where it is not there."""
    found: bytes | None = one(db, "select frame from delayed where id = ?", (number,))
    return found


# --- recounting ----------------------------------------------------------------------------------


def check_page(
    db: apsw.Connection, after: int, say: Callable[[str], None], count_max: int = 2048
) -> int | None:
    """Look at the rows behind an id, say what is wrong, and return the last one's, or None.

    Where there are no more, all of them together are compared with the head.
    """
    found = rows(
        db,
        f"select {COLUMNS}, frame from delayed where id > ? order by id limit ?",  # noqa: S608
        (after, count_max),
    )
    last, size = None, 0
    for *values, frame in found:
        row = Row(*values)
        named = rows(
            db, "select place, name from delayed_id where delayed = ? order by place", (row.id,)
        )
        if row.own_crc != row.row_crc or len(frame) != row.size or crc32(frame) != row.crc:
            say(str(_damaged(row.id)))
        elif tuple(named) != row.named_ids:
            say(f"delayed row {row.id}: its ids are not those that it is found by")
        last, size = row.id, size + len(frame)
        if size > PAGE_BYTES:
            return last
    if len(found) < count_max:
        try:
            waiting_of(db)
        except LogDamaged as damage:
            say(str(damage))
        return None
    return last


# --- what a group does ---------------------------------------------------------------------------


class Change:
    """The change of the table by one group: what leaves it, what comes, and the sums then."""

    def __init__(self, db: apsw.Connection, staged: Staged) -> None:
        self._db = db
        self._staged = staged
        self.leaving: set[int] = set()  # the ids of what leaves
        self._leaving_size = self._leaving_crcs = 0  # its bytes, and the sum of its CRCs
        self._leaving_ids = False  # whether messages of it may have an id
        # Where all that leaves was due, the last of it: when it was, and its id.
        self._due_to: tuple[int, int] | None = None
        self._new: dict[int, tuple[Row, bytes | memoryview | msgspec.Raw]] = {}
        self._finished: list[Any] = []
        self._named: list[Any] = []  # the ids of what was cancelled
        self._cancelled: list[tuple[int, int, int, str]] = []  # sender, first, last, why

    def move(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return those of these that still wait, as they were read: they become batches.

        None is moved twice. Of one a part was cancelled since: what is left of it goes before what
        is behind it, when it has been read anew.
        """
        ids = [batch.delayed_id for batch in batches]
        leaving, wanted = set(ids), as_json(ids)
        there, messages, size, crcs = rows(self._db, _LEAVING_SUMS, (wanted,))[0]
        self._leaving_ids = any([batch.ids for batch in batches])  # noqa: C419 - speed
        if (
            not self.leaving
            and there == len(leaving) == len(batches)
            and messages == sum([batch.count for batch in batches])
            and size == sum([batch.size for batch in batches])
        ):
            self.leaving |= leaving
            self._leaving_size, self._leaving_crcs = size, crcs
            self._due_to = max([(batch.due_at, batch.delayed_id) for batch in batches])
            return list(batches)
        found = {row[0]: row for row in _decode_leaving(one(self._db, _LEAVING, (wanted,)))}
        taken: list[Batch] = []
        for batch in batches:
            if batch.delayed_id in self.leaving:
                continue
            number, count, size, crc = found.get(batch.delayed_id, NOT_THERE)
            if count != batch.count:  # what is left of one cut at its front is another row
                break
            self._leave(number, size, crc)
            taken.append(batch)
        return taken

    def _leave(self, number: int, size: int, crc: int) -> None:
        self.leaving.add(number)
        self._leaving_size += size
        self._leaving_crcs += crc
        self._due_to = None

    def accept(self, now: int) -> None:
        """Make the rows of what the group accepts that is due later."""
        for batch, number in self._staged.delayed.items():
            named = as_json([[index, name] for index, name in batch.ids]) if batch.ids else None
            row = Row(
                number,
                batch.due_at,
                self._staged.sender((batch.sender, batch.incarnation)).id,
                batch.sequence,
                batch.count,
                batch.size,
                batch.subject,
                batch.audience.number if batch.addressed else 0,
                now,
                batch.after,
                batch.options.flags | (NAMED if batch.addressed else MATCHED),
                batch.crc,
                0,
                named,
                None if batch.origin is None else _encode(batch.origin),
                batch.expires_at,
            )
            self._new[number] = (row.sealed(), batch.messages)

    def cancel(self, wanted: Cancel) -> tuple[tuple[int, int], ...]:
        """Take back what still waits of these sequences; return what that is, rising."""
        key = (wanted.sender, wanted.incarnation)
        staged = self._staged
        known = staged.senders.get(key) or staged.state.sender(key)
        if known is None:
            return ()
        found: list[tuple[Row, bytes | memoryview | msgspec.Raw | None]] = [
            (Row(*values), None)
            for values in rows(
                self._db,
                f"select {COLUMNS} from delayed where sender = ? and sequence <= ?"  # noqa: S608
                " and sequence + count > ?",
                (known.id, wanted.last, wanted.first),
            )
            if values[0] not in self.leaving and values[0] not in self._new
        ]
        found += [
            (row, frame)
            for row, frame in self._new.values()
            if row.sender == known.id and row.sequence <= wanted.last and row.last >= wanted.first
        ]
        found.sort(key=lambda item: item[0].sequence)
        ranges = []
        for row, frame in found:
            first, last = max(row.sequence, wanted.first), min(row.last, wanted.last)
            ranges.append((first, last))
            self._cut(row, frame, first, last)
            self._cancelled.append((known.id, first, last, wanted.reason))
            state = (int(Status.CANCELLED), wanted.reason, staged.age)
            self._finished += (known.id, NOT_YET, first, last, *state)
            for index, name in row.named_ids:
                if first <= row.sequence + index <= last:
                    self._named += (name, known.id, row.sequence + index, staged.age)
        return tuple(ranges)

    def _cut(
        self,
        row: Row,
        frame: bytes | memoryview | msgspec.Raw | None,
        first: int,
        last: int,
    ) -> None:
        """Take these sequences out of a row; what is left of it keeps its place in the order."""
        if row.id in self._new:
            del self._new[row.id]
        else:
            self._leave(row.id, row.size, row.row_crc)
            self._leaving_ids = True
        if first == row.sequence and last == row.last:
            return
        if frame is None:
            frame = frame_of(self._db, row.id)
            assert frame is not None
        if crc32(frame) != row.crc:
            raise _damaged(row.id)
        parts = MessageParts(frame)
        for low, high in ((row.sequence, first - 1), (last + 1, row.last)):
            if low > high:
                continue
            start, stop = low - row.sequence, high - row.sequence + 1
            messages = parts.run(start, stop)
            named = [[at - start, name] for at, name in row.named_ids if start <= at < stop]
            origin = None if row.origin is None else _decode_origin(row.origin).behind(start)
            piece = row._replace(
                id=row.id + start,
                sequence=low,
                messages=stop - start,
                size=len(messages),
                after=low - 1 if start else row.after,
                crc=crc32(messages),
                ids=as_json(named) if named else None,
                origin=None if origin is None else _encode(origin),
            )
            self._new[piece.id] = (piece.sealed(), messages)

    def _next_due(self) -> int | None:
        """Return when the first is due of the rows that stay, or None."""
        if not self.leaving:
            return self._staged.state.waiting.next_due
        if self._due_to is not None:
            following: int | None
            count, following = rows(self._db, _BEHIND, self._due_to)[0]
            if count == len(self.leaving):  # nothing before it stays
                return following
        head = _decode_heads(one(self._db, _FIRST, (len(self.leaving) + 1,)))
        return next((due_at for number, due_at in head if number not in self.leaving), None)

    def stage(self, operations: list[Operation]) -> bool:
        """Stage what leaves or comes; return whether anything changes but what leaves for the log.

        To be called where there is some.
        """
        staged = self._staged
        before = staged.state.waiting
        gone = as_json(list(self.leaving))
        flat: list[Any] = []
        named: list[Any] = []
        for row, frame in self._new.values():
            flat += (*row, frame)
            for index, name in row.named_ids:
                named += (name, row.id, index)
        times = [row.due_at for row, _ in self._new.values()]
        following = self._next_due()
        if following is not None:
            times.append(following)
        staged.waiting = replace(
            staged.waiting,
            count=before.count - len(self.leaving) + len(self._new),
            size=before.size - self._leaving_size + sum(row.size for row, _ in self._new.values()),
            crcs=before.crcs
            - self._leaving_crcs
            + sum(row.row_crc for row, _ in self._new.values()),
            next_due=min(times, default=None),
        )
        if self.leaving:
            leave = "in (select value from json_each(?))"
            operations.append((f"delete from delayed where id {leave}", (gone,)))  # noqa: S608
            if self._leaving_ids:
                operations.append((f"delete from delayed_id where delayed {leave}", (gone,)))  # noqa: S608
        operations += insert_steps(f"into delayed ({COLUMNS}, frame)", 17, flat)
        operations += insert_steps("or ignore into delayed_id", 3, named)
        operations += insert_steps(f"or replace {INTO_FINISHED}", 7, self._finished)
        operations += insert_steps("or replace into finished_id", 4, self._named)
        if self._cancelled and (staged.aliases or staged.state.aliases):
            for sender, first, last, reason in self._cancelled:
                values = (NOT_YET, int(Status.CANCELLED), reason, staged.age, sender, first, last)
                operations.append((_CANCEL_ALIASES, values))
        now = staged.waiting
        operations.append((_SAVE_HEAD, (now.count, now.size, now.crcs, now.last)))
        return bool(staged.delayed or any(staged.cancelled))
