"""The SQL of retention's entries, and what they do to the staged state.

Which batches, letters, senders, audiences and receivers go was decided in `retention.py`; here is
only what follows from that and from the tables. Before a row of a batch goes, what became of its
messages is written into `finished`, and its CRC into `run` for the sender's dedupe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apsw
import msgspec

from msgservice.disk.database import as_json, insert_steps, one, rows
from msgservice.limits import BATCH_INDEX_BITS, RUNS_REMEMBERED
from msgservice.log import history, queries
from msgservice.log.dedupe import mark_of, named_of
from msgservice.log.entries import (
    ClearRetained,
    DropBatches,
    DropLetters,
    Entry,
    Forget,
    ForgetKeys,
    ForgetSenders,
    ForgetStates,
    GrowOlder,
)
from msgservice.log.schema import INTO_FINISHED
from msgservice.log.staging import (
    ASKED,
    AUDIENCES_USED,
    CLEAR_EXPIRED,
    CLEAR_RETAINED,
    DEAD_SIZE,
    SENDERS_USED,
    Operation,
    count_operations,
    used_operation,
)
from msgservice.log.state import Gone, Staged
from msgservice.message import Status
from msgservice.records import PROMISED, ExceptionRow, position_of

_HEAD = """
select json_group_array(json_array(number, audience, sender, sequence, count, crc, chain)) from (
    select number, audience, sender, sequence, count, crc, chain from batch
    where number between ?1 and ?2 order by number)
"""

_SUBJECTS = """
select json_group_array(json_array(number, subject, flags)) from batch
where number between ?1 and ?2
"""

# Messages that were taken by their keys as what these rows are, as rows of their senders'.
_ALIASES = """
select json_group_array(json_array(number, audience, sender, sequence, 1, crc, chain)) from (
    select b.number, b.audience, a.sender, a.sequence, a.crc, b.chain
    from batch as b cross join alias as a on a.of_sender = b.sender and a.of_sequence = b.sequence
    where b.number between ?1 and ?2 order by a.sender, a.sequence)
"""
_DELETE_ALIASES = """
delete from alias where (sender, sequence) in (
    select a.value ->> 0, a.value ->> 1 from json_each(?) as a)
"""

# By their ids they are found for as long as their states are kept.
_KEEP_IDS = """
insert or ignore into finished_id
select m.id, b.sender, b.sequence + m.position - (b.number << ?1), ?2
from message_id as m cross join batch as b on b.number = m.position >> ?1
where m.position < ?3
"""
_KEEP_FORMER = """
insert or replace into former
select id, name, incarnation, hash, ?2 from sender
where id in (select value from json_each(?1))
    and exists (select 1 from finished where finished.sender = sender.id)
"""
_OLDEST_STATES = """
select sender, receiver, first from finished where at < ?1
order by at, sender, receiver, first limit ?2
"""
_OLDEST_HEARD = """
select f.sender, f.receiver, f.first
from finished as f left join sender as s on s.id = f.sender
where f.at < ?1 and (s.id is null or f.last < s.status_from)
order by f.at, f.sender, f.receiver, f.first limit ?2
"""
_OLDEST_IDS = """
select name, at, sender, sequence from finished_id where at < ?1
order by at, name, sender, sequence limit ?2
"""
_OLDEST_FORMER = "select sender from former where at < ?1 order by at, sender limit ?2"
_DELETE_STATES = """
delete from finished where (sender, receiver, first) in (
    select a.value ->> 0, a.value ->> 1, a.value ->> 2 from json_each(?) as a)
"""
_DELETE_IDS = """
delete from finished_id where (name, at, sender, sequence) in (
    select a.value ->> 0, a.value ->> 1, a.value ->> 2, a.value ->> 3 from json_each(?) as a)
"""
# All of a sender's messages up to one go together, at all receivers: the rest would be told as all.
_BEHIND_SOME = """
select first from finished where sender = ?1 and receiver = ?2 and first <= ?3 and at < ?4
order by first limit 1 offset ?5
"""
_UP_TO = """
select first, last from finished where sender = ?1 and receiver = ?2 and first <= ?3 and at < ?4
"""
_CUT_STATES = """
update finished set first = a.value ->> 3 from json_each(?1) as a
where sender = a.value ->> 0 and receiver = a.value ->> 1 and finished.first = a.value ->> 2
"""
_DELETE_FORMER = """
delete from former where sender in (select a.value ->> 0 from json_each(?) as a)
"""

# SQLite joins no pages for a row that became shorter in its place: where the frame was most of it,
# nine tenths of each page would be kept. For a row that goes and comes again it does.
CLEARED_MAX = 128  # bytes of a frame whose row stays in its place
_CLEAR = "update batch set frame = null where number in (select value from json_each(?))"
_MOVE_AWAY = """
update batch set frame = null, number = -number
where number in (select value from json_each(?))
"""
_MOVE_BACK = "update batch set number = -number where number < 0"

# An outcome of a promise is as old as the states that it is about: of what is in the log, it has no
# age yet. It is found by its row, of which a sender may have very many.
_IN_LOG = """
select 1 from batch where sender = ?1 and sequence <= ?3 and sequence + count > ?2
    and sequence >= coalesce(
        (select max(sequence) from batch where sender = ?1 and sequence <= ?2), 0) limit 1
"""
_LAST_OF = "select last from finished where sender = ? and receiver = ? and first = ?"
_STAY = """
update finished set at = ?2 where (sender, receiver, first) in (
    select a.value ->> 0, a.value ->> 1, a.value ->> 2 from json_each(?1) as a)
"""
_PROMISES_LEAVE = """
update finished set at = ?1 where sender = ?2 and receiver = ?5 and first <= ?4 and last >= ?3
    and first >= coalesce((select max(first) from finished
        where sender = ?2 and receiver = ?5 and first <= ?3), 0)
"""

# What is known of a message at one receiver is not forgotten before what is known at another: else
# it would be told as if it had been for the second alone. So rows are one only where they were
# written in the same span of the log's age, and those of a span are forgotten together.
SPAN = 6 * 3600 * 1000

_FORGET_RUNS = (
    "delete from run where sender = ?1 and sequence < (select sequence from run"
    " where sender = ?1 order by sequence desc limit 1 offset ?2)"
)

_SAVE_DROPPED = """
update audience set dropped = a.value ->> 1 from json_each(?) as a where number = a.value ->> 0
"""
_SAVE_COLLECTED = """
update progress set collected = a.value ->> 1 from json_each(?) as a where receiver = a.value ->> 0
"""
_DELETE_GONE = """
delete from exception where (receiver, first) in (
    select a.value ->> 0, a.value ->> 1 from json_each(?) as a)
"""

_FORGET_KEYS = """
delete from idempotency where digest in (
    select digest from idempotency where at < ? order by at, digest limit ?)
"""

_SAVE_SEEN = """
update sender set seen_at = a.value ->> 1 from json_each(?) as a
where sender.id = a.value ->> 0
"""

Range = tuple[int, int, int, str]  # first and last sequence, state, reason
State = tuple[int, int, int]  # sender, receiver, first sequence

_decode_subjects = msgspec.json.Decoder(list[tuple[int, str, int]]).decode
_decode = msgspec.json.Decoder(list[list[int]]).decode


def stage_removal(
    db: apsw.Connection, staged: Staged, entry: Entry, operations: list[Operation]
) -> None:
    """Stage an entry of retention."""
    staged.gone = gone = Gone(staged.state)
    _STAGES[type(entry)](db, staged, gone, entry, operations)
    operations += count_operations(staged)


def _drop_batches(
    db: apsw.Connection,
    staged: Staged,
    gone: Gone,
    entry: DropBatches,
    operations: list[Operation],
) -> None:
    state = staged.state
    size_sum = 0
    for number, audience, size in entry.frames:
        total = gone.totals.get(audience)
        if total is None:
            total = gone.totals[audience] = state.totals[audience].copy()
        total.dropped = max(total.dropped, number)
        size_sum += size
    head: list[list[int]] = []
    if entry.oldest > state.oldest:
        head = _decode(one(db, _HEAD, (state.oldest, entry.oldest - 1)))
        gone.oldest, gone.oldest_chain = head[-1][0] + 1, head[-1][6]
        by_key = _decode(one(db, _ALIASES, (state.oldest, gone.oldest - 1)))
        if by_key:
            operations.append((_DELETE_ALIASES, (as_json([row[2:4] for row in by_key]),)))
            staged.aliases -= len(by_key)
        operations += _finish(db, staged, head, [*head, *by_key])
        operations += _remember_runs(db, [*head, *by_key])
        below = position_of(gone.oldest)
        operations += [
            (_KEEP_IDS, (BATCH_INDEX_BITS, staged.age, below)),
            ("delete from batch where number < ?", (gone.oldest,)),
            ("delete from message_id where position < ?", (below,)),
        ]
    rest = [(number, size) for number, _, size in entry.frames if number >= gone.oldest]
    if rest:
        operations += [
            (_CLEAR, (as_json([number for number, size in rest if size <= CLEARED_MAX]),)),
            (_MOVE_AWAY, (as_json([number for number, size in rest if size > CLEARED_MAX]),)),
            (_MOVE_BACK, ()),
        ]
    dropped = [(audience, total.dropped) for audience, total in gone.totals.items()]
    operations += [
        (_SAVE_DROPPED, (as_json(dropped),)),
        (
            "update head set used = used - ?, oldest = ?, oldest_chain = ?",
            (size_sum, gone.oldest, gone.oldest_chain),
        ),
    ]
    staged.used -= size_sum
    staged.written = len(entry.frames) * 64 + len(head) * 64 + 16 * 4096


def _finish(
    db: apsw.Connection,
    staged: Staged,
    head: Sequence[list[int]],
    rows: Sequence[list[int]],
) -> list[Operation]:
    """Write what became of these rows' messages at each receiver, as ranges of sequences.

    Whether their producers have heard it or not: others ask for it as well.

    `rows`: these, and what was taken by its key as one of them.
    """
    state = staged.state
    low, high = position_of(head[0][0]), position_of(head[-1][0] + 1) - 1
    exceptions: dict[int, list[ExceptionRow]] = {}
    ranges: dict[tuple[int, int], list[Range]] = {}
    for sender, audience, run in _joined(rows):
        for receiver in state.totals[audience].audience.members:
            if receiver not in exceptions:
                exceptions[receiver] = history.exceptions_of(db, receiver, low, high)
            found = ranges.setdefault((sender, receiver), [])
            if not exceptions[receiver]:
                end = run[-1][3] + run[-1][4] - 1
                _extend(found, run[0][3], end, Status.ACKNOWLEDGED, "")
                continue
            for number, _audience, _sender, sequence, count, _crc, _chain in run:
                first = position_of(number)
                for start, stop, status, _attempts, reason in history.segments(
                    first, first + count - 1, high, exceptions[receiver]
                ):
                    begin = sequence + start - first
                    _extend(found, begin, begin + stop - start, status, reason)
    written: list[Any] = []
    for (sender, receiver), found in ranges.items():
        for begin, end, state_number, reason in found:
            before = one(
                db,
                "select first, last, status, reason, at from finished where sender = ?"
                " and receiver = ? and first <= ? order by first desc limit 1",
                (sender, receiver, begin),
            )
            if (
                before
                and (before[1] + 1, *before[2:4]) == (begin, state_number, reason)
                and before[4] // SPAN == staged.age // SPAN
            ):
                begin = before[0]
            written += (sender, receiver, begin, end, state_number, reason, staged.age)
    leaves: dict[int, tuple[int, int]] = {}  # sender -> its first and last sequence of these
    for sender, _audience, run in _joined(rows):
        begin, end = run[0][3], run[-1][3] + run[-1][4] - 1
        before_it = leaves.get(sender, (begin, end))
        leaves[sender] = min(begin, before_it[0]), max(end, before_it[1])
    gone = [
        (receiver, row.first)
        for receiver, overlapping in exceptions.items()
        for row in overlapping
        if row.last <= high
    ]
    return [
        *insert_steps(f"or replace {INTO_FINISHED}", 7, written),
        *(
            (_PROMISES_LEAVE, (staged.age, sender, *span, PROMISED))
            for sender, span in leaves.items()
        ),
        (_DELETE_GONE, (as_json(gone),)),
    ]


def _joined(head: Sequence[list[int]]) -> Iterator[tuple[int, int, list[list[int]]]]:
    """Yield (sender, audience, rows) for rows whose sequences follow each other.

    What becomes of such rows is the same ranges for each receiver, unless it has exceptions there:
    so an audience of a thousand costs once per run of rows, and not once per row.
    """
    open_runs: dict[int, list[list[int]]] = {}  # sender -> rows
    for row in head:
        run = open_runs.get(row[2])
        if run is not None:
            if run[-1][1] == row[1] and run[-1][3] + run[-1][4] == row[3]:
                run.append(row)
                continue
            yield run[0][2], run[0][1], run
        open_runs[row[2]] = [row]
    for run in open_runs.values():
        yield run[0][2], run[0][1], run


def _extend(found: list[Range], begin: int, end: int, status: Status, reason: str) -> None:
    """Add a range, to the last one where it goes on with the same state."""
    if found and (found[-1][1] + 1, *found[-1][2:]) == (begin, int(status), reason):
        begin = found.pop()[0]
    found.append((begin, end, int(status), reason))


def _remember_runs(db: apsw.Connection, head: Sequence[list[int]]) -> list[Operation]:
    """Keep what tells each sender's last runs from others, whose rows go (SEMANTICS 4).

    That is the CRC of the messages, and above it a mark of the rest.
    """
    newest: dict[int, list[tuple[int, int, int, int, int, int]]] = {}
    numbers = [row[0] for row in head]
    subjects = _decode_subjects(one(db, _SUBJECTS, (min(numbers), max(numbers))))
    marks = {number: mark_of(subject, named_of(flags)) for number, subject, flags in subjects}
    for number, audience, sender, sequence, count, crc, _chain in head:
        content = marks[number] << 32 | crc
        newest.setdefault(sender, []).append((sender, sequence, count, content, audience, number))
    operations: list[Operation] = []
    for sender, found in newest.items():
        found.sort(key=lambda run: run[1])
        kept = [value for run in found[-RUNS_REMEMBERED:] for value in run]
        operations += [
            *insert_steps("or replace into run", 6, kept),
            (_FORGET_RUNS, (sender, RUNS_REMEMBERED - 1)),
        ]
    return operations


def _drop_letters(
    db: apsw.Connection,
    staged: Staged,
    gone: Gone,
    entry: DropLetters,
    operations: list[Operation],
) -> None:
    where = (entry.receiver, entry.last)
    ((count, size),) = rows(
        db,
        f"select count(*), coalesce(sum({DEAD_SIZE}), 0) from dead"  # noqa: S608 - fixed text
        " where receiver = ? and position <= ?",
        where,
    )
    staged.add_letters(entry.receiver, -count, -size)
    staged.written = size
    operations.append(("delete from dead where receiver = ? and position <= ?", where))


def _forget_senders(
    db: apsw.Connection,
    staged: Staged,
    gone: Gone,
    entry: ForgetSenders,
    operations: list[Operation],
) -> None:
    ids = (as_json(entry.senders),)
    by_key = one(
        db, "select count(*) from alias where sender in (select value from json_each(?))", ids
    )
    if by_key:
        staged.aliases -= by_key
        operations.append(
            ("delete from alias where sender in (select value from json_each(?))", ids)
        )
    operations += [
        (_KEEP_FORMER, (*ids, staged.age)),
        ("delete from run where sender in (select value from json_each(?))", ids),
        ("delete from promise where sender in (select value from json_each(?))", ids),
        ("delete from sender where id in (select value from json_each(?))", ids),
        # Their numbers are part of the chain: none is given to another sender.
        used_operation(SENDERS_USED, staged.next_sender - 1),
    ]
    keys = queries.senders_of(db, staged.state, entry.senders)
    gone.senders = list(keys.items())


def _forget(
    db: apsw.Connection, staged: Staged, gone: Gone, entry: Forget, operations: list[Operation]
) -> None:
    state = staged.state
    if entry.seen:
        for number, age in entry.seen:
            if number in state.senders_by_id:
                staged.sender(state.senders_by_id[number].key).seen_at = age
        operations.append((_SAVE_SEEN, (as_json(entry.seen),)))
    used = max(entry.audiences, default=0)
    if used > state.audiences_used:
        gone.audiences_used = used
        operations.append(used_operation(AUDIENCES_USED, used))
    collected: dict[int, int] = {}
    for number in entry.audiences:
        total = state.totals[number]
        for receiver in total.audience.members:
            at = staged.receiver(receiver)
            if at is not None:
                at.collected += total.messages
                collected[receiver] = at.collected
    if entry.audiences:
        numbers = (as_json(entry.audiences),)
        asked = (as_json([f"{ASKED}{number}" for number in entry.audiences]),)
        operations += [
            ("delete from audience where number in (select value from json_each(?))", numbers),
            ("delete from meta where key in (select value from json_each(?))", asked),
            (_SAVE_COLLECTED, (as_json(list(collected.items())),)),
        ]
    if entry.receivers:
        numbers = (as_json(entry.receivers),)
        operations += [
            (f"delete from {table} where {column} in (select value from json_each(?))", numbers)  # noqa: S608 - fixed names
            for table, column in (
                ("exception", "receiver"),
                ("progress", "receiver"),
                ("receiver", "number"),
            )
        ]
    gone.audiences, gone.receivers = entry.audiences, entry.receivers


def _forget_states(
    db: apsw.Connection,
    staged: Staged,
    gone: Gone,
    entry: ForgetStates,
    operations: list[Operation],
) -> None:
    states, stay, cut = states_to_forget(db, entry)
    if stay:
        operations.append((_STAY, (as_json(stay), staged.age)))
    if cut:
        operations.append((_CUT_STATES, (as_json(cut),)))
    ids = [*rows(db, _OLDEST_IDS, (entry.before, entry.ids))]
    senders = [*rows(db, _OLDEST_FORMER, (entry.before, entry.senders))]
    operations += [
        (_DELETE_STATES, (as_json(states),)),
        (_DELETE_IDS, (as_json(ids),)),
        (_DELETE_FORMER, (as_json(senders),)),
    ]


def states_to_forget(
    db: apsw.Connection, entry: ForgetStates
) -> tuple[list[State], list[State], list[tuple[int, int, int, int]]]:
    """Return the rows of states that an entry deletes, those that stay, and those that it cuts.

    Each as sender, receiver, first sequence; and where one that is cut begins then.
    """
    text = _OLDEST_HEARD if entry.heard else _OLDEST_STATES
    states = [*rows(db, text, (entry.before, entry.states))]
    stay = [
        row
        for row in states
        if row[1] == PROMISED and rows(db, _IN_LOG, (row[0], row[2], one(db, _LAST_OF, tuple(row))))
    ]
    if stay:
        states = [row for row in states if row not in set(stay)]
    deleted, cut = _whole_messages(db, entry, states)
    return deleted, stay, cut


def _whole_messages(
    db: apsw.Connection, entry: ForgetStates, oldest: Sequence[State]
) -> tuple[list[State], list[tuple[int, int, int, int]]]:
    """Return the rows to delete, and those to cut, with where each begins then.

    Of each sender it is all that there is up to the last of its messages in `oldest`, or up to an
    earlier one where that were more rows than go at once.
    """
    upto: dict[int, int] = {}
    deleted = [row for row in oldest if row[1] == PROMISED]
    for row in oldest:
        upto[row[0]] = max(upto.get(row[0], 0), one(db, _LAST_OF, tuple(row)))
    cut: list[tuple[int, int, int, int]] = []
    for sender, last in upto.items():
        # What is decided of promises has rows of its own, which nobody finds without the states.
        receivers = [number for number in history.receivers_of(db, sender) if number != PROMISED]
        each = max(1, entry.states // max(1, len(receivers)))
        for receiver in receivers:
            behind = one(db, _BEHIND_SOME, (sender, receiver, last, entry.before, each))
            if behind is not None:
                last = behind - 1
        for receiver in receivers:
            for first, end in rows(db, _UP_TO, (sender, receiver, last, entry.before)):
                if end <= last:
                    deleted.append((sender, receiver, first))
                else:
                    cut.append((sender, receiver, first, last + 1))
    return deleted, cut


def _forget_keys(
    db: apsw.Connection, staged: Staged, gone: Gone, entry: ForgetKeys, operations: list[Operation]
) -> None:
    which = (entry.before, entry.count)
    staged.keys -= one(
        db, "select count(*) from (select 1 from idempotency where at < ? limit ?)", which
    )
    operations.append((_FORGET_KEYS, which))


def _clear_retained(
    db: apsw.Connection,
    staged: Staged,
    gone: Gone,
    entry: ClearRetained,
    operations: list[Operation],
) -> None:
    subjects = as_json(entry.subjects)
    if entry.expired:
        operations.append((CLEAR_EXPIRED, (subjects, entry.expired)))
    else:
        operations.append((CLEAR_RETAINED, (subjects,)))


def _grow_older(
    db: apsw.Connection, staged: Staged, gone: Gone, entry: GrowOlder, operations: list[Operation]
) -> None:
    """All that it says is its age."""


_STAGES: dict[type[Entry], Callable[..., None]] = {
    DropBatches: _drop_batches,
    DropLetters: _drop_letters,
    ForgetSenders: _forget_senders,
    ForgetStates: _forget_states,
    ForgetKeys: _forget_keys,
    ClearRetained: _clear_retained,
    Forget: _forget,
    GrowOlder: _grow_older,
}
