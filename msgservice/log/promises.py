"""Promises in a log: which are open, and what was decided about them (DELIVERY 55).

A run that came with a promise has a row in the table `promise`, written with its batch, until all
of it is decided. What was decided is a state in `finished`, at the reserved receiver `$promise`:
written in the entry that takes the row away, so that nothing is decided twice. Who decides, and by
what, is `node.promises`.
"""

from __future__ import annotations

from typing import Any

import apsw
import msgspec

from msgservice.core.ranges import RangeSet
from msgservice.disk.database import as_json, insert_steps, rows
from msgservice.log import queries
from msgservice.log.state import Staged, State
from msgservice.message import Status
from msgservice.records import PROMISED, Batch, OpenPromise, PromiseFound, Verdict

Operation = tuple[str, Any]  # SQL, parameters
COLUMNS = "sender, first, last, position, need, until, cancels"
Row = tuple[int, int, int, int, int, int, int]

_decode = msgspec.json.Decoder(tuple[int, int, bool, int]).decode
# From the row on that begins at the first of them, or before: a sender may have very many.
_OVERLAPPING = (
    f"select {COLUMNS} from promise where sender = ?1 and first <= ?2 and last >= ?3"  # noqa: S608
    " and first >= coalesce((select max(first) from promise where sender = ?1 and first <= ?3), 0)"
)
_OPEN = (
    "select need, until, cancels from promise where sender = ?1 and last >= ?2 and first = ("
    "select max(first) from promise where sender = ?1 and first <= ?2)"
)
_DECIDED = (
    "select promise, status, reason from finished where sender = ?1 and receiver = ?2"
    " and last >= ?3 and first = (select max(first) from finished where sender = ?1"
    " and receiver = ?2 and first <= ?3)"
)
_DELETE = """
delete from promise where (sender, first) in (
    select a.value ->> 0, a.value ->> 1 from json_each(?) as a)
"""
# The usual verdict is about whole runs that follow each other, in their thousands: of those that
# were promised alike one row is read, and all go together.
_ALIKE = (
    "select need, until, cancels, min(first), max(last), sum(last - first + 1) from promise"
    " where sender = ?1 and first between"
    " coalesce((select max(first) from promise where sender = ?1 and first <= ?2), ?2) and ?3"
    " and last >= ?2 group by need, until, cancels order by 4"
)
_DELETE_ALL = "delete from promise where sender = ? and first between ? and ?"


def stage_promises(staged: Staged, promised: list[Batch], operations: list[Operation]) -> None:
    """Stage the rows of new batches that came with a promise."""
    flat: list[Any] = []
    for batch in promised:
        promise = batch.promise
        assert promise is not None
        sender = staged.senders[batch.sender, batch.incarnation].id
        need = promise.need or len(batch.audience.members)
        last = batch.sequence + batch.count - 1
        flat += (sender, batch.sequence, last, batch.first, need, promise.until)
        flat.append(int(promise.cancels))
    operations += insert_steps("into promise", 7, flat)


def stage_verdicts(
    db: apsw.Connection,
    staged: Staged,
    verdicts: list[Verdict],
    now: int,
    operations: list[Operation],
) -> list[tuple[tuple[int, int], ...]]:
    """Stage what was decided; return of each verdict what was open of it until now, rising.

    `now`: wall clock, ms.
    """
    gone: dict[tuple[int, int], None] = {}
    left: dict[tuple[int, int], Row] = {}
    finished: list[Any] = []
    decided: list[tuple[tuple[int, int], ...]] = []
    seen: dict[int, RangeSet] = {}  # sender -> what verdicts before this were about …
    whole: dict[int, RangeSet] = {}  # … and of that, what they were about in whole runs
    for verdict in verdicts:
        key = (verdict.sender, verdict.incarnation)
        known = staged.senders.get(key) or staged.state.sender(key)
        if known is None:
            decided.append(())
            continue
        first, last = verdict.first, verdict.last
        state = (int(verdict.status), verdict.reason, staged.age)
        before, all_of = (each.setdefault(known.id, RangeSet()) for each in (seen, whole))
        alike = None if before.overlaps(first, last) else _alike(db, known.id, first, last)
        before.add(first, last)
        if alike is not None:
            for need, until, cancels, low, high in alike:
                promised = as_json((need, until, bool(cancels), now))
                finished += (known.id, PROMISED, low, high, *state, promised)
            if alike:
                all_of.add(first, last)
                operations.append((_DELETE_ALL, (known.id, first, last)))
            decided.append(tuple(RangeSet(row[3:] for row in alike)))
            continue
        found: list[Row] = [
            row
            for row in rows(db, _OVERLAPPING, (known.id, last, first))
            if (row[0], row[1]) not in gone and not all_of.covers(row[1], row[2])
        ]
        found += [
            row
            for row in left.values()
            if row[0] == known.id and row[1] <= last and row[2] >= first
        ]
        found.sort(key=lambda row: row[1])
        ranges: list[tuple[int, int]] = []
        written: list[tuple[int, int, str]] = []  # first, last, what was promised
        for row in found:
            left.pop((row[0], row[1]), None)
            gone[row[0], row[1]] = None
            low, high = max(row[1], first), min(row[2], last)
            follows = bool(ranges) and ranges[-1][1] + 1 == low
            if follows:
                ranges[-1] = (ranges[-1][0], high)
            else:
                ranges.append((low, high))
            for begin, end in ((row[1], low - 1), (high + 1, row[2])):
                if begin <= end:
                    piece = (row[0], begin, end, row[3] + begin - row[1], *row[4:])
                    left[row[0], begin] = piece
            promised = as_json((*row[4:6], bool(row[6]), now))
            if follows and written[-1][2] == promised:
                written[-1] = (written[-1][0], high, promised)
            else:
                written.append((low, high, promised))
        for low, high, promised in written:
            finished += (known.id, PROMISED, low, high, *state, promised)
        decided.append(tuple(ranges))
    if gone:
        operations.append((_DELETE, (as_json(list(gone)),)))
    flat = [value for row in left.values() for value in row]
    operations += insert_steps("or replace into promise", 7, flat)
    operations += insert_steps("or replace into finished", 8, finished)
    return decided


def _alike(
    db: apsw.Connection, sender: int, first: int, last: int
) -> list[tuple[int, int, int, int, int]] | None:
    """Return what is open of these: need, until, cancels, first, last of what is alike, rising.

    None where it is not in whole runs that follow each other.
    """
    found: list[tuple[int, int, int, int, int]] = []
    for *terms, low, high, count in rows(db, _ALIKE, (sender, first, last)):
        if low < first or high > last or count != high - low + 1:
            return None
        found.append((*terms, low, high))
    return found


def promise_of(db: apsw.Connection, sender: int, sequence: int) -> PromiseFound | None:
    """Return the promise that a message of a sender, by its number, has come with."""
    for need, until, cancels in rows(db, _OPEN, (sender, sequence)):
        return PromiseFound(need, until, bool(cancels))
    for promised, status, reason in rows(db, _DECIDED, (sender, PROMISED, sequence)):
        if promised is None:  # decided by an older program
            return PromiseFound(0, 0, False, Status(status), reason)
        need, until, cancels, decided_at = _decode(promised)
        return PromiseFound(need, until, cancels, Status(status), reason, decided_at)
    return None


def open_promises(db: apsw.Connection, state: State) -> list[OpenPromise]:
    """Return all that are open: those that have to be decided before long first."""
    found: list[Row] = list(rows(db, f"select {COLUMNS} from promise order by until, position"))  # noqa: S608
    senders = queries.senders_of(db, state, sorted({row[0] for row in found}))
    return [
        OpenPromise(*senders[row[0]], *row[1:6], bool(row[6])) for row in found if row[0] in senders
    ]
