"""From the parts of a group to SQL: what each writes, and what it does to the staged state.

Pure of transactions: these functions fill a list of operations and a `Staged`; `store.py` runs the
one and adopts the other. What a group asks of the committed tables (what a removed receiver still
has waiting) is read here, before its transaction begins.
"""

from __future__ import annotations

import json
from typing import Any

import apsw
import msgspec

from msgservice.limits import INTEGER_MAX
from msgservice.log import history, queries
from msgservice.log.dedupe import COLUMNS
from msgservice.log.schema import insert_steps
from msgservice.log.state import ReceiverState, SenderState, Staged, State, hash_of
from msgservice.message import Status
from msgservice.records import Group, ReceiverRow

Operation = tuple[str, Any, bool]  # SQL, parameters, whether these are many

# Row of the table progress whose cursor counts the groups that held more than batches.
COMMITS_ROW = -1
OPEN = (int(Status.QUEUED), int(Status.ACKNOWLEDGED))  # rows that go when the cursor passed them

_DELETE_PASSED = "delete from exception where receiver = ? and last <= ? and status in (1, 3)"
_SAVE_SENDER = (
    "update sender set floor = ?, ranges = ?, last = ?, status_from = ?, seen_at = ? where id = ?"
)
_SAVE_AUDIENCE = (
    "update audience set messages = ?, bytes = ?, last = ?, dropped = ? where number = ?"
)


def stage_receivers(
    db: apsw.Connection, staged: Staged, group: Group, operations: list[Operation]
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
            operations.append(progress_operation([at]))
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
            _stage_removal(db, staged.state, at, operations)
    return placed


def _stage_removal(
    db: apsw.Connection, state: State, at: ReceiverState, operations: list[Operation]
) -> None:
    """One range row from the cursor on says REMOVED; what was waiting is counted so."""
    number = at.number
    audiences = [
        audience for audience, total in state.totals.items() if number in total.audience.members
    ]
    routed = queries.count_all(db, audiences)
    at.settle(Status.REMOVED, queries.queued(db, number, at.cursor, audiences, routed))
    at.removed = True
    first = at.cursor + 1
    for row in history.exceptions_of(db, number, first, INTEGER_MAX):
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
        progress_operation([at]),
    ]


def stage_batches(staged: Staged, flat: list[object], operations: list[Operation]) -> None:
    """Stage the rows of new batches, and what is new with them: senders, audiences, ids."""
    if staged.new_senders:
        operations.append(
            (
                "insert into sender values (?, ?, ?, ?, 1, ?, null, 1, ?)",
                [(s.id, *s.key, hash_of(s.key[1]), b"\x90", s.seen_at) for s in staged.new_senders],
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


def stage_progress(staged: Staged, group: Group, operations: list[Operation]) -> None:
    """Stage what receivers have settled, and count the group."""
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
            if row.status in OPEN:
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
    states = [ReceiverState(COMMITS_ROW, staged.commits), *moved.values()]
    operations += [progress_operation(states[i : i + 256]) for i in range(0, len(states), 256)]


def stage_floors(staged: Staged, group: Group, operations: list[Operation]) -> None:
    """Stage from where on senders want states."""
    for floor in group.floors:
        key = (floor.sender, floor.incarnation)
        if key not in staged.senders and key not in staged.state.senders:
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


def progress_operation(states: list[ReceiverState]) -> Operation:
    """Return the operation that writes these states, in one step."""
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


def save_operations(state: State) -> list[Operation]:
    """Return the operations of a save, for a transaction that does more than that."""
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


def encode_ranges(sender: SenderState) -> bytes:
    """Return the ranges above the floor as they are kept in the table."""
    return msgspec.msgpack.encode(list(sender.ranges) if sender.ranges is not None else [])
