"""The table of open receipts in an outbox's file: its rows, and the SQL that changes them.

A row is written with its run, and deleted when all that it is about was told (DELIVERY 53). What
it means that a sequence is open is in `client.open_receipts`; when these changes are committed, in
`client.outbox_file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw
import msgspec

from msgservice.core.ranges import Range
from msgservice.core.refusal import Refusal
from msgservice.core.runs import Run
from msgservice.disk.database import as_json, insert_steps, one, rows
from msgservice.errors import (
    Ambiguous,
    Expired,
    LogDamaged,
    LogWentBack,
    MessageTooLarge,
    MsgServiceError,
    PeerForgot,
    refused,
)
from msgservice.message import PromiseOption, decode_messages

TABLE = """
create table receipt(
    first integer primary key,
    last integer not null,
    subject text not null,
    ids text,                       -- JSON: index of a message -> its sender's own id; or null
    promise text,                   -- as that of its run
    handed_at integer not null,     -- wall clock, ms
    errors text,                    -- JSON list: first, last, kind, its arguments; or null
    forgotten text                  -- JSON list: first, last; or null
);
"""
# What a file of before has, its receipts were not asked for by anybody: but they are open. Which
# ids their messages have, only these say: that is looked up when the file is opened.
UNKNOWN_IDS = "{}"
_INTO = "into receipt(first, last, subject, ids, promise, handed_at, errors, forgotten)"
FILL = f"""
insert {_INTO}
select first, first + count - 1, subject, '{UNKNOWN_IDS}', promise,
    iif(handed_at = 0, 1000 * unixepoch(), handed_at), null, null
from run;
"""  # noqa: S608 - fixed text

# When it has come to its end, or was listed after that: wall clock, ms. From then on it is kept for
# so long; of what an earlier process left, and nobody has asked for.
AGING = """
alter table receipt add column aged_from integer;
"""

_COLUMNS = 8

# The row that holds the first of them may begin before.
_OVERLAPPING = (
    " where first between coalesce((select max(first) from receipt where first <= ?1), ?1)"
    " and ?2 and last >= ?1"
)
_NOTE = f"""
update receipt set errors = json_insert(coalesce(errors, '[]'), '$[#]', json(?3))
{_OVERLAPPING}
"""  # noqa: S608 - fixed text
# One behind the other is one range: each of a run of very many may be forgotten by itself.
_NOTE_FORGOTTEN = f"""
update receipt set forgotten = case when json_extract(forgotten, '$[#-1][1]') = ?1 - 1
    then json_set(forgotten, '$[#-1][1]', ?2)
    else json_insert(coalesce(forgotten, '[]'), '$[#]', json(?3)) end
{_OVERLAPPING}
"""  # noqa: S608 - fixed text

# The row that holds the first of them may begin before.
_NOTE_AGING = """
update receipt set aged_from = ?5
where first between
    max(?3, coalesce((select max(first) from receipt where first <= ?1), ?1)) and ?2
    and last <= ?4 and (?6 or aged_from is null)
"""

_errors = msgspec.json.Decoder(list[tuple[int, int, str, list[str | int]]])
_ranges = msgspec.json.Decoder(list[tuple[int, int]])
_ids = msgspec.json.Decoder(dict[int, str])
_promise = msgspec.json.Decoder(PromiseOption)


class Step(NamedTuple):
    """One change of the table. `deletes`: it does, so that those that went are counted."""

    sql: str
    parameters: Any
    deletes: bool = False


class Row(msgspec.Struct, frozen=True):
    """One row: the receipts of one run. `errors`: why some are over, that were not delivered."""

    first: int
    last: int
    subject: str
    ids: dict[int, str] | None
    promise: PromiseOption | None
    handed_at: int
    errors: tuple[tuple[int, int, MsgServiceError], ...] = ()
    forgotten: tuple[Range, ...] = ()


class Found(msgspec.Struct, frozen=True):
    """The rows of a file that is opened, as ranges of sequences.

    `over`: of which no more can be heard. `lowest`: the first sequence of them all, or None.
    """

    count: int
    lowest: int | None
    rows: list[Range]
    promised: list[Range]
    over: list[Range]
    forgotten: list[Range]


def insert(runs: Sequence[Run], now: int) -> list[Step]:
    """Return the steps that write the rows of runs that are handed over now."""
    flat: list[Any] = []
    for run in runs:
        ids = None if run.source is None else run.source.ids
        promise = run.options.promise
        flat += (
            run.first,
            run.last,
            run.subject,
            None if ids is None else as_json(ids),
            None if promise is None else as_json(promise),
            now,
            None,
            None,
        )
    return [Step(*step) for step in insert_steps(_INTO, _COLUMNS, flat)]


def delete(first: int, last: int, before: int | None = None) -> Step:
    """Return the step that deletes the rows within a range; `before`: that ended before a time."""
    return Step(
        "delete from receipt where first between ?1 and ?2 and last <= ?2"
        " and (?3 is null or aged_from < ?3)",
        (first, last, before),
        deletes=True,
    )


def delete_oldest(count: int) -> Step:
    """Return the step that deletes so many of the oldest rows."""
    return Step(
        "delete from receipt where first in (select first from receipt order by first limit ?)",
        (count,),
        deletes=True,
    )


def note(first: int, last: int, error: MsgServiceError, refusal: Refusal | None) -> Step:
    """Return the step that keeps why no more will be heard of these."""
    kind, arguments = _said(error, refusal)
    return Step(_NOTE, (first, last, as_json([first, last, kind, arguments])))


def note_aging(part: Range, within: Range, now: int, *, again: bool) -> Step:
    """Return the step that has rows age from now on: those of `part` that lie whole in `within`.

    `again`: also those that do already.
    """
    return Step(_NOTE_AGING, (*part, *within, now, again))


def note_forgotten(first: int, last: int) -> Step:
    """Return the step that keeps that the program wants to know no more of these."""
    return Step(_NOTE_FORGOTTEN, (first, last, as_json([first, last])))


def look_at(db: apsw.Connection) -> Found:
    """Look at all rows of a file that is opened.

    What was kept of runs that are still to be sent is dropped: they are answered anew.
    """
    _look_up_ids(db)
    db.execute(
        "update receipt set errors = null where errors is not null"
        " and first in (select first from run)"
    )
    found: dict[str, list[Range]] = {"rows": [], "promised": [], "over": [], "forgotten": []}
    count = 0
    all_rows = "select first, last, promise is not null, errors, forgotten from receipt"
    for first, last, promised, errors, forgotten in db.execute(f"{all_rows} order by first"):
        count += 1
        _extend(found["rows"], first, last)
        if promised:
            _extend(found["promised"], first, last)
        try:
            # What was noted of several rows is in each of them.
            for low, high, *_ in _errors.decode(errors or "[]"):
                found["over"].append((max(low, first), min(high, last)))
            for low, high in _ranges.decode(forgotten or "[]"):
                found["forgotten"].append((max(low, first), min(high, last)))
        except msgspec.MsgspecError as error:
            raise LogDamaged("what is kept of receipts was changed", first, last) from error
    return Found(count=count, lowest=found["rows"][0][0] if count else None, **found)


def _look_up_ids(db: apsw.Connection) -> None:
    """Write the ids of messages into the rows that a file of before got."""
    where = "where ids = ?"
    unknown = [first for (first,) in rows(db, f"select first from receipt {where}", (UNKNOWN_IDS,))]  # noqa: S608 - fixed text
    if not unknown:
        return
    db.execute("begin immediate")
    for first in unknown:
        messages = one(db, "select messages from run where first = ?", (first,))
        found = enumerate(decode_messages(messages)) if messages is not None else ()
        ids = {index: message.id for index, message in found if message.id is not None}
        said = as_json(ids) if ids else None
        db.execute("update receipt set ids = ? where first = ?", (said, first))
    db.execute("commit")


def lowest(db: apsw.Connection) -> int | None:
    """Return the first sequence of all rows, or None."""
    number: int | None = one(db, "select min(first) from receipt")
    return number


def page(db: apsw.Connection, after: int, limit: int) -> list[Row]:
    """Return rows that reach beyond `after`, rising: of `limit` messages, or a few more."""
    before = one(db, "select max(first) from receipt where first <= ?", (after + 1,))
    found: list[Row] = []
    messages = 0
    for row in db.execute(
        "select first, last, subject, ids, promise, handed_at, errors, forgotten from receipt"
        " where first >= ? and last > ? order by first",
        (after + 1 if before is None else before, after),
    ):
        found.append(_row(*row))
        messages += found[-1].last - max(found[-1].first, after + 1) + 1
        if messages >= limit:
            break
    return found


def open_rows(db: apsw.Connection) -> list[Range]:
    """Return the rows, rising; for tests."""
    return [(first, last) for first, last in rows(db, "select first, last from receipt")]


def _row(
    first: int,
    last: int,
    subject: str,
    ids: str | None,
    promise: str | None,
    handed_at: int,
    errors: str | None,
    forgotten: str | None,
) -> Row:
    try:
        return Row(
            first=first,
            last=last,
            subject=subject,
            ids=None if ids is None else _ids.decode(ids),
            promise=None if promise is None else _promise.decode(promise),
            handed_at=handed_at,
            errors=tuple(
                (max(low, first), min(high, last), _error(kind, arguments, subject))
                for low, high, kind, arguments in _errors.decode(errors or "[]")
            ),
            forgotten=tuple(_ranges.decode(forgotten or "[]")),
        )
    except (msgspec.MsgspecError, LookupError, TypeError) as error:
        raise LogDamaged("what is kept of receipts was changed", first, last) from error


def _extend(ranges: list[Range], first: int, last: int) -> None:
    if ranges and ranges[-1][1] == first - 1:
        ranges[-1] = (ranges[-1][0], last)
    else:
        ranges.append((first, last))


def _said(error: MsgServiceError, refusal: Refusal | None) -> tuple[str, list[str | int]]:
    match error:
        case LogWentBack():
            return "LogWentBack", [error.peer, error.own, error.seen]
        case PeerForgot():
            return "PeerForgot", [error.peer, error.first, error.last]
        case MessageTooLarge():
            return "MessageTooLarge", [error.size, error.size_max]
        case Expired() | Ambiguous():
            return ("Expired" if isinstance(error, Expired) else "Ambiguous"), [str(error)]
    if refusal is None:
        return "Refused", [0, "", str(error)]
    return "Refused", [refusal.code, refusal.about, refusal.reason]


def _error(kind: str, arguments: list[Any], subject: str) -> MsgServiceError:
    if kind == "Refused":
        code, about, reason = arguments
        return refused(code, about, reason, subject)
    kinds: dict[str, type[MsgServiceError]] = {
        one.__name__: one for one in (LogWentBack, PeerForgot, MessageTooLarge, Expired, Ambiguous)
    }
    return kinds[kind](*arguments)
