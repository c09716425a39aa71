"""From the tables to the state in memory, when a log is opened (or reopened after a failure)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import apsw
import msgspec

from msgservice.core.marks import encode_ranges
from msgservice.disk.database import one, rows
from msgservice.errors import LogDamaged
from msgservice.limits import INTEGER_MAX
from msgservice.log import delayed, history, queries, receiver_table
from msgservice.log.promises import open_promises
from msgservice.log.staging import (
    ASKED,
    AUDIENCES_USED,
    COMMITS_ROW,
    DEAD_SIZE,
    OPEN,
    SENDERS_USED,
    SINCE,
    WALL,
)
from msgservice.log.state import Letters, ReceiverProgress, State, Totals
from msgservice.log.wholeness import replay
from msgservice.records import (
    RETAINED_OVERHEAD,
    Audience,
    ExceptionRow,
    ReceiverRow,
    Replay,
    Snapshot,
)

RETAINED_SIZES = """
select subject, octet_length(message) + octet_length(subject) + ?, expires_at from retained
"""


def load(db: apsw.Connection, interned: dict[tuple[int, ...], Audience]) -> State:
    """Return the committed state, replayed to the last batch.

    `interned`: the audiences that the node may hold already. Raises `LogDamaged` where the tables
    do not hold together.
    """
    state = State()
    head = one(db, "select saved, chain, used, oldest, oldest_chain from head")
    log_id = one(db, "select value from meta where key = 'log_id'")
    if head is None or log_id is None:
        raise LogDamaged("its head is missing", 0, 0)
    state.log_id = log_id
    state.saved, state.chain, state.used, state.oldest, state.oldest_chain = head
    state.commits = one(db, "select cursor from progress where receiver = ?", (COMMITS_ROW,)) or 0
    state.waiting = delayed.waiting_of(db)
    _load_ages(db, state)
    _load_audiences(db, state, interned)
    _load_senders(db, state)
    _load_receivers(db, state)
    replays = rows(
        db, "select receiver, kind, first, next, end, copied, skipped, since from replay"
    )
    state.replays = {row[0]: Replay(*row) for row in replays}
    state.keys = one(db, "select count(*) from idempotency")
    state.aliases = one(db, "select count(*) from alias")
    newest = one(db, "select stored_at from batch order by number desc limit 1")
    state.stored_at = newest or 0
    last = one(db, "select max(number) from batch")
    last = state.saved if last is None else last
    if last < state.saved:
        raise LogDamaged("its newest batches are missing", last + 1, state.saved)
    replay(db, state, last, _ages_since(db))
    return state


def _ages_since(db: apsw.Connection) -> list[tuple[int, int]]:
    """Return from which batch on the log had which age, rising, of those since the last save."""
    found = rows(
        db,
        "select cast(substr(key, ?) as integer) as number, value from meta where key glob ?"
        " order by number",
        (len(SINCE) + 1, f"{SINCE}*"),
    )
    return [(int(number), int(age)) for number, age in found]


def _load_ages(db: apsw.Connection, state: State) -> None:
    """The age of the log; older versions stamped with the wall clock, so it goes on from there."""
    state.wall = one(db, "select value from meta where key = ?", (WALL,)) or 0
    age = one(db, "select value from meta where key = 'age'")
    if age is None:
        stamps = one(
            db,
            "select max(coalesce((select max(seen_at) from sender), 0),"
            " coalesce((select max(at) from finished), 0))",
        )
        state.age = stamps
        return
    state.age = age
    text = one(db, "select value from meta where key = 'ages'")
    state.ages = [] if text is None else msgspec.json.decode(text, type=list[tuple[int, int]])


def _load_audiences(
    db: apsw.Connection, state: State, interned: dict[tuple[int, ...], Audience]
) -> None:
    used = one(db, "select value from meta where key = ?", (AUDIENCES_USED,))
    if used is None:  # none was collected, or by a version that did not say so
        used = one(db, "select max(audience) from run") or 0
    state.audiences_used = used
    asked = dict(
        rows(
            db,
            "select cast(substr(key, ?) as integer), value from meta where key glob ?",
            (len(ASKED) + 1, f"{ASKED}*"),
        )
    )
    found = rows(db, "select number, members, messages, bytes, last, dropped from audience")
    for number, text, messages, size, last, dropped in found:
        members = tuple(json.loads(text))
        audience = interned.get(members)
        if audience is None or audience.number != number:
            audience = interned[members] = Audience(number, members)
        audience.stored = True
        audience.asked_by = asked.get(number)
        state.totals[number] = Totals(audience, messages, size, last, dropped)
    for audience in list(interned.values()):
        if audience.number not in state.totals:
            # Forgotten by an entry whose commit was found to be there when it was opened again.
            audience.stored = False


def _load_senders(db: apsw.Connection, state: State) -> None:
    used = one(db, "select value from meta where key = ?", (SENDERS_USED,)) or 0
    state.next_sender = used + 1
    for row in rows(db, f"select {queries.SENDER} from sender"):  # noqa: S608 - fixed names
        sender = queries.sender_from(row)
        state.senders[sender.key] = state.senders_by_id[sender.id] = sender
        state.next_sender = max(state.next_sender, sender.id + 1)
        if encode_ranges(sender) != row[4]:
            state.dirty_senders.add(sender.key)  # its floor was written since its last save
    state.saved_sender = partial(queries.saved_sender, db)


def _load_receivers(db: apsw.Connection, state: State) -> None:
    # Each is made and forgotten together with its progress.
    lost = rows(
        db,
        "select number from receiver where number not in (select receiver from progress)"
        " union select receiver from progress"
        " where receiver != ? and receiver not in (select number from receiver)",
        (COMMITS_ROW,),
    )
    if lost:
        named = ", ".join(str(number) for (number,) in lost[:10])
        raise LogDamaged(f"of some receivers only a part is there: {named}", 0, 0)
    own = ", ".join(f"receiver.{name}" for name in receiver_table.COLUMNS)
    found = rows(
        db,
        f"select {own}, cursor, removed, acknowledged_count, expired_count,"  # noqa: S608
        " dead_count, cancelled_count, removed_count, settled_bytes, collected, inbox, removed_at"
        " from receiver join progress on receiver = number order by number",
    )
    for values in found:
        row = receiver_table.row_of(values[: len(receiver_table.COLUMNS)])
        own_values = values[len(receiver_table.COLUMNS) :]
        cursor, removed, *settled, size, collected, inbox, removed_at = own_values
        at = ReceiverProgress(row.number, cursor)
        if removed:
            at.removed_at = state.age if removed_at is None else removed_at
        at.settled = settled
        at.bytes, at.collected, at.inbox = size, collected, inbox
        state.receivers[row.number], state.rows[row.number] = at, row
    letters = rows(
        db,
        f"select receiver, count(*), sum({DEAD_SIZE}) from dead group by receiver",  # noqa: S608
    )
    state.set_letters({receiver: Letters(count, size) for receiver, count, size in letters})
    open_rows = rows(
        db,
        "select receiver, max(last) from exception where status in (?, ?) group by receiver",
        OPEN,
    )
    for receiver, last in open_rows:
        if receiver in state.receivers:
            state.receivers[receiver].open_to = last


def snapshot(db: apsw.Connection, state: State, notices: Sequence[str]) -> Snapshot:
    """Return what the node needs to begin."""
    # Such a row says nothing; what it was about is sent again, to this receiver and no other.
    damaged = rows(
        db,
        "select receiver, count(*) from exception where last < first group by receiver",
    )
    notices = [
        *notices,
        *(
            f"receiver {state.rows[number].name!r}: {count} damaged rows about its messages are"
            " left out; what they were about is sent again"
            for number, count in damaged
            if number in state.rows
        ),
    ]
    receivers = []
    exceptions: dict[int, list[ExceptionRow]] = {}
    for number, row in state.rows.items():
        at = state.receivers[number]
        receivers.append(_with_progress(row, at))
        if not at.removed:
            found = history.exceptions_of(db, number, max(at.cursor, 0), INTEGER_MAX)
            if found:
                exceptions[number] = found
    return Snapshot(
        log_id=state.log_id,
        next_number=state.next_number,
        receivers=receivers,
        audiences=[total.audience for total in state.totals.values()],
        exceptions=exceptions,
        notices=notices,
        wall=state.wall,
        expires=one(db, "select min(expires_at) from batch where expires_at is not null"),
        replays=[*state.replays.values()],
        retained=rows(db, RETAINED_SIZES, (RETAINED_OVERHEAD,)),
        promises=open_promises(db, state),
    )


def _with_progress(row: ReceiverRow, at: ReceiverProgress) -> ReceiverRow:
    return replace(
        row,
        removed=at.removed,
        cursor=at.cursor,
        inbox=at.inbox,
        settled=at.settled_by_status,
        settled_bytes=at.bytes,
    )
