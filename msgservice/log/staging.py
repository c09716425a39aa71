"""From a group that was decided about to SQL: what it writes, what it does to the staged state.

Pure of transactions: these functions fill a list of operations and a `Staged`; `store.py` runs the
one and adopts the other. What a group asks of the committed tables (what a removed receiver still
has waiting) is read here, before its transaction begins. What goes is staged in `removal.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import groupby
from typing import Any

import apsw
import msgspec

from msgservice.core.marks import SenderState, encode_ranges
from msgservice.core.ranges import RangeSet
from msgservice.disk.database import as_json, insert_steps, rows
from msgservice.errors import LogFull
from msgservice.limits import INTEGER_MAX
from msgservice.log import history, queries, receiver_table
from msgservice.log.accounts import is_member, queued_of
from msgservice.log.dedupe import COLUMNS, encode_origin, name_own, take_batches
from msgservice.log.delayed import Change, StoredRuns
from msgservice.log.entries import Age, Append
from msgservice.log.promises import stage_promises, stage_verdicts
from msgservice.log.replaying import position_at
from msgservice.log.schema import INTO_FINISHED
from msgservice.log.state import PLACES, Keyed, KeyRow, ReceiverProgress, Staged, State
from msgservice.message import (
    Status,
)
from msgservice.records import (
    DEAD_OVERHEAD,
    NOBODY,
    Batch,
    ExceptionRow,
    Join,
    LettersTaken,
    Outcome,
    PageOutcome,
    RefusedBatch,
    Replay,
    Retained,
    hash_of,
    position_of,
)

Operation = tuple[str, Any]  # SQL, parameters

# Row of the table progress whose cursor counts the groups that held more than batches.
COMMITS_ROW = -1
WALL = "wall"  # the wall clock when the log was written last
AUDIENCES_USED = "audiences_used"  # keys of the table meta: the highest numbers that were given
SENDERS_USED = "senders_used"
ASKED = "asked:"  # with the number of an audience behind it: the sender whose `to` made that
# With the number of a batch behind it: the age of the log since that was the next one, of batches
# since the last save.
SINCE = "age:"
GROUP_WRITTEN = 6 * 4096  # bytes that a group writes beside its batches, about
FULL_DELAY = 1.0  # seconds that a sender is asked to wait when there is no room
# What it counts, of its row; octet_length reads neither.
DEAD_SIZE = f"octet_length(message) + octet_length(reason) + {DEAD_OVERHEAD}"
OPEN = (int(Status.QUEUED), int(Status.ACKNOWLEDGED))  # rows that go when the cursor passed them

# Many rows in one step, each: see `queries.py` on what a step costs.
_DELETE_REPLACED = """
delete from exception where (receiver, first) in (
    select e.receiver, e.first from json_each(?) as a cross join exception as e
    where e.receiver = a.value ->> 0 and e.first between a.value ->> 1 and a.value ->> 2)
"""
_DELETE_PASSED = """
delete from exception where (receiver, first) in (
    select e.receiver, e.first from json_each(?) as a cross join exception as e
    where e.receiver = a.value ->> 0 and e.first <= a.value ->> 1 and e.last <= a.value ->> 1
        and e.status in (1, 3))
"""
_LETTERS = f"""
select count(*), coalesce(sum({DEAD_SIZE}), 0) from dead
where receiver = ? and position in (select value from json_each(?))
"""  # noqa: S608 - fixed text
_DELETE_LETTERS = """
delete from dead where receiver = ? and position in (select value from json_each(?))
"""
_SAVE_REPLAY = "insert or replace into replay values (?, ?, ?, ?, ?, ?, ?, ?)"
_SAVE_META = "insert or replace into meta values (?, ?)"
_SAVE_AGE = "insert or replace into meta values ('age', ?), (?, ?)"
_FORGET_AGES = "delete from meta where key glob 'age:*'"
_SETTLE_SENDERS = """
update sender set floor = a.value ->> 1 from json_each(?) as a where sender.id = a.value ->> 0
"""
_SAVE_SENDERS = """
update sender set floor = a.value ->> 1, ranges = unhex(a.value ->> 2), last = unhex(a.value ->> 3),
    status_from = a.value ->> 4, seen_at = a.value ->> 5
from json_each(?) as a where sender.id = a.value ->> 0
"""
# What became of messages whose batches have gone becomes the state of others as well.
_COPY_FINISHED = f"""
insert or replace {INTO_FINISHED}
select a.value ->> 0, f.receiver, a.value ->> 1, a.value ->> 1, f.status, f.reason, f.at
from json_each(?) as a cross join finished as f
where f.sender = a.value ->> 2 and f.first <= a.value ->> 3 and f.last >= a.value ->> 3
"""  # noqa: S608
CLEAR_RETAINED = "delete from retained where subject in (select value from json_each(?))"
CLEAR_EXPIRED = f"{CLEAR_RETAINED} and expires_at > 0 and expires_at <= ?"
_SAVE_AUDIENCES = """
update audience set messages = a.value ->> 1, bytes = a.value ->> 2, last = a.value ->> 3,
    dropped = a.value ->> 4
from json_each(?) as a where audience.number = a.value ->> 0
"""


def stage_append(
    db: apsw.Connection, staged: Staged, entry: Append, operations: list[Operation]
) -> tuple[list[Outcome], list[PageOutcome], list[PageOutcome]]:
    """Stage a group; return the outcomes of its own batches and of the others, pages and letters.

    Behind those of `own` are those of the copies of pages and letters.
    """
    if not (entry.batches or entry.is_more):
        stage_progress(staged, entry, operations)
        staged.written = GROUP_WRITTEN
        return [], [], []
    flat: list[object] = []
    pages: list[PageOutcome] = []
    letters: list[PageOutcome] = []
    copied: list[Outcome] = []
    own: list[Outcome] = []
    due: list[Batch] = []
    full = None if entry.full is None else LogFull(entry.full, delay=FULL_DELAY)
    change = Change(db, staged)
    stored = StoredRuns(db, staged.state, change.leaving)
    if entry.is_more:
        no_member = False
        if entry.receivers:
            stage_receivers(staged, entry, operations)
        copies: list[Batch] = []
        if entry.replays or entry.pages:
            stage_replays(staged, entry, operations)
            pages, copies = take_pages(staged, entry, operations)
        if entry.joins:
            _, flat = _take_copies(staged, entry, join_copies(db, staged, entry), stored)
        if entry.replays or entry.pages:
            copied, written = _take_copies(staged, entry, copies, stored)
            flat += written
            for page, outcome in zip(entry.pages, pages, strict=True):
                if isinstance(outcome, LogFull) and page.is_membership:
                    full = full or outcome  # the batches of its group are for who is no member now
                    no_member = True
        if entry.letters:
            letters, copies = take_letters(db, staged, entry, operations)
            more, written = _take_copies(staged, entry, copies, stored)
            copied += more
            flat += written
        if entry.due and not no_member:
            due = change.move(entry.due)
        if entry.own or due:
            name_own(staged, entry.own)
            own, written = _take(staged, entry, entry.own, full, stored)
            flat += written
            if own and isinstance(own[-1], RefusedBatch) and isinstance(own[-1].error, LogFull):
                full = own[-1].error  # nothing of the group finds room behind it
            flat += _take(staged, entry, due, None, stored, due=True)[1]
    # Behind all that is no sender's: no copy uses a key, whatever it was made of.
    outcomes: list[Outcome] = []
    if entry.batches:
        digests = []
        for batch in entry.batches:
            if batch.key is not None:
                digests.append(batch.key.digest)  # noqa: PERF401 - speed, where there is none
        if digests:
            staged.keyed = Keyed(queries.keys_of(db, staged.state, digests))
        freed = sum([batch.size for batch in due]) if due else 0
        outcomes, written = _take(staged, entry, entry.batches, full, stored, freed)
        flat += written
    if own or copied:
        outcomes[:0] = [*own, *copied]
    if staged.delayed:
        change.accept(entry.now)
    if entry.cancel:
        staged.cancelled = [change.cancel(wanted) for wanted in entry.cancel]
    if flat or staged.settled or staged.new_senders or staged.new_audiences:
        stage_batches(staged, flat, operations)
    if staged.keyed is not None:
        stage_keys(staged, staged.keyed, entry.due_now, operations)
    if staged.retained:
        stage_retained(staged, operations)
    if entry.statuses_from:
        stage_statuses_from(staged, entry, operations)
    is_changed = bool(change.leaving or staged.delayed) and change.stage(operations)
    if entry.verdicts:
        staged.decided = stage_verdicts(db, staged, entry.verdicts, entry.now, operations)
        is_changed = is_changed or any(staged.decided)
    if staged.delayed:  # of which no batch tells after a crash
        keys = dict.fromkeys((batch.sender, batch.incarnation) for batch in staged.delayed)
        marks = saved_marks([staged.senders[key] for key in keys])
        operations.append((_SAVE_SENDERS, (as_json(marks),)))
    stage_progress(staged, entry, operations, is_changed)
    if entry.removed:
        stage_removals(db, staged, entry, operations)
    written_bytes = GROUP_WRITTEN
    for batch in staged.fresh:
        written_bytes += batch.size + 320
    staged.written = written_bytes
    return outcomes, pages, letters


def _take(
    staged: Staged,
    entry: Append,
    batches: list[Batch],
    full: LogFull | None,
    stored: StoredRuns,
    freed: int = 0,
    *,
    due: bool = False,
) -> tuple[list[Outcome], list[object]]:
    """Take some batches of a group. `freed`: bytes that waited, and count as batches by now."""
    return take_batches(
        staged,
        batches,
        entry.now,
        used_max=INTEGER_MAX if due else entry.used_max + freed,
        full=full,
        ranges_max=entry.ranges_max,
        stored=stored,
        keys_max=entry.keys_max,
        due=due,
    )


def stage_replays(staged: Staged, entry: Append, operations: list[Operation]) -> None:
    """Stage `replays`: of receivers that are there."""
    for replay in entry.replays:
        at = staged.receiver(replay.receiver)
        if at is not None and not at.removed:
            _stage_replay(staged, replay, operations)


def _stage_replay(staged: Staged, replay: Replay, operations: list[Operation]) -> None:
    staged.replays[replay.receiver] = replay
    operations.append((_SAVE_REPLAY, msgspec.structs.astuple(replay)))


def take_pages(
    staged: Staged, entry: Append, operations: list[Operation]
) -> tuple[list[PageOutcome], list[Batch]]:
    """Stage the rows of those pages that hold and find room; return the outcomes, and all copies.

    A page is stored whole or not at all: its row says that all of it was copied.
    """
    used = staged.used
    outcomes: list[PageOutcome] = []
    copies: list[Batch] = []
    for page in entry.pages:
        number = page.replay.receiver
        known = staged.replays.get(number, staged.state.replays.get(number))
        if known is None or known.is_over or known.next != page.after:
            outcomes.append("void")
            continue
        size = sum(batch.size for batch in page.copies)
        why = entry.pages_full if size else None
        if why is None and size and used + size > entry.pages_used_max:
            why = f"{used} bytes are used, {size} more are too many"
        if why is not None:
            outcomes.append(LogFull(why, delay=FULL_DELAY))
            continue
        used += size
        copies += page.copies
        _stage_replay(staged, page.replay, operations)
        outcomes.append("stored")
    return outcomes, copies


def take_letters(
    db: apsw.Connection, staged: Staged, entry: Append, operations: list[Operation]
) -> tuple[list[PageOutcome], list[Batch]]:
    """Stage that dead letters go, of those that hold and whose copies find room.

    Returns the outcomes, and all copies. A letter that goes leaves its room to its copy.
    """
    outcomes: list[PageOutcome] = []
    copies: list[Batch] = []
    gone: set[tuple[int, int]] = set()
    used, freed = staged.used, 0
    for taken in entry.letters:
        number = taken.receiver
        wanted = {(number, position) for position in taken.positions}
        where = (number, as_json(taken.positions))
        count, size = rows(db, _LETTERS, where)[0]
        if count != len(taken.positions) or wanted & gone or _is_for_removed(staged, entry, taken):
            outcomes.append("void")
            continue
        coming = sum(batch.size for batch in taken.copies)
        why = entry.full if taken.copies else None
        if why is None and coming and used + coming > entry.used_max + freed + size:
            why = f"{used} bytes are used, {coming} more are too many"
        if why is not None:
            outcomes.append(LogFull(why, delay=FULL_DELAY))
            continue
        used += coming
        freed += size
        gone |= wanted
        copies += taken.copies
        staged.add_letters(number, -count, -size)
        operations.append((_DELETE_LETTERS, where))
        outcomes.append("stored")
    return outcomes, copies


def _is_for_removed(staged: Staged, entry: Append, taken: LettersTaken) -> bool:
    """Whether a receiver that is to get copies of letters is not there, or not any more."""
    for batch in taken.copies:
        for number in batch.audience.members:
            at = staged.receiver(number)
            if at is None or at.removed or number in entry.removed:
                return True
    return False


def _take_copies(
    staged: Staged, entry: Append, copies: list[Batch], stored: StoredRuns
) -> tuple[list[Outcome], list[object]]:
    """Store the copies of pages, or of letters, that have found room."""
    if not copies:
        return [], []
    name_own(staged, copies)
    return take_batches(
        staged,
        copies,
        entry.now,
        used_max=INTEGER_MAX,
        full=None,
        ranges_max=entry.ranges_max,
        stored=stored,
    )


def stage_age(staged: Staged, age: Age, operations: list[Operation]) -> None:
    """Stage that the log has grown older, before anything else of its entry."""
    since = f"{SINCE}{staged.number}"
    operations.append((_SAVE_AGE, (age.age, since, age.age)))
    if age.wall:
        operations.append((_SAVE_META, (WALL, age.wall)))
        staged.wall = age.wall
    if age.ages != staged.ages:
        operations.append((_SAVE_META, ("ages", as_json(age.ages))))
    staged.age, staged.ages = age.age, age.ages


def count_operations(staged: Staged) -> list[Operation]:
    """Count an entry that is more than batches; return what writes that."""
    # The count sits in a row of the table of receivers' progress: one step less per group.
    staged.commits += 1
    return progress_operations([ReceiverProgress(COMMITS_ROW, staged.commits)])


def stage_receivers(staged: Staged, group: Append, operations: list[Operation]) -> None:
    """Stage `receivers`."""
    for row in group.receivers:
        at = staged.receiver(row.number)
        if at is None:
            cursor = row.cursor if row.cursor >= 0 else position_of(staged.number) - 1
            at = staged.receivers[row.number] = ReceiverProgress(row.number, cursor)
            at.inbox = row.inbox
            operations += progress_operations([at])
        staged.rows[row.number] = row
        operations.append((receiver_table.WRITE, receiver_table.values_of(row)))


def stage_removals(
    db: apsw.Connection, staged: Staged, group: Append, operations: list[Operation]
) -> None:
    """Stage `removed`, behind the progress of the group: what was settled before stays so."""
    for number in group.removed:
        at = staged.receiver(number)
        if at is not None and not at.removed:
            rows = history.exceptions_of(db, number, at.cursor + 1, INTEGER_MAX)
            for step in group.progress:
                if step.receiver == number:
                    rows = _replaced(rows, step.exceptions)
            _stage_removal(db, staged, at, rows, operations)


def _replaced(rows: list[ExceptionRow], by: list[ExceptionRow]) -> list[ExceptionRow]:
    """Return a receiver's rows after a step of its progress, rising (`records.Progress`)."""
    if not by:
        return rows
    kept = RangeSet((row.first, row.last) for row in by)
    found = {row.first: row for row in rows if row.first not in kept}
    for row in by:
        if row.status is Status.ACKNOWLEDGED:  # these come first, and may have grown over others
            found[row.first] = row
    found.update((row.first, row) for row in by if row.status is not Status.ACKNOWLEDGED)
    return [found[first] for first in sorted(found)]


def _stage_removal(
    db: apsw.Connection,
    staged: Staged,
    at: ReceiverProgress,
    rows: list[ExceptionRow],
    operations: list[Operation],
) -> None:
    """One range row from the cursor on says REMOVED; what was waiting is counted so.

    `rows`: its exceptions above the cursor, rising.
    """
    number, state = at.number, staged.state
    audiences = [
        audience
        for audience, total in state.totals.items()
        if is_member(total.audience.members, number)
    ]
    final = [(row.first, row.last) for row in rows if row.status.final and row.last > at.cursor]
    waiting = queued_of(db, at.cursor, audiences, final)
    for total in staged.totals.values():  # what this very group brings it
        if is_member(total.audience.members, number):
            before = state.totals.get(total.audience.number)
            waiting += total.messages - (0 if before is None else before.messages)
    at.settle(Status.REMOVED, waiting)
    at.removed_at = staged.age
    first = at.cursor + 1
    for low, high in final:
        if low <= first <= high:
            first = high + 1
    operations += [
        (
            "delete from exception where receiver = ? and status = ?",
            (number, int(Status.QUEUED)),
        ),
        (
            # In place of a row that may be there: no row of one receiver may end the log.
            "insert or replace into exception values (?, ?, ?, ?, 0, 0, '')",
            (number, first, INTEGER_MAX, int(Status.REMOVED)),
        ),
        *progress_operations([at]),
    ]
    if number in state.replays or number in staged.replays:
        staged.replays[number] = None
        operations.append(("delete from replay where receiver = ?", (number,)))


def stage_batches(staged: Staged, flat: list[object], operations: list[Operation]) -> None:
    """Stage the rows of new batches, and what is new with them: senders, audiences, ids."""
    senders: list[Any] = []
    for new in staged.new_senders:
        name, incarnation = new.key
        hashed = hash_of(incarnation)
        senders += (new.id, name, incarnation, hashed, 1, b"\x90", None, 1, new.seen_at)
    audiences: list[Any] = []
    for total in staged.new_audiences:
        members = json.dumps(total.audience.members)
        audiences += (total.audience.number, members, 0, 0, 0, 0)
        if total.audience.asked_by is not None:
            asked = f"{ASKED}{total.audience.number}"
            operations.append((_SAVE_META, (asked, total.audience.asked_by)))
    ids: list[Any] = []
    promised: list[Batch] = []
    for batch in staged.fresh:
        if batch.ids:
            for index, name in batch.ids:
                ids += (name, batch.first + index)
        if batch.promise is not None:
            promised.append(batch)
    if senders:
        operations += insert_steps("into sender", 9, senders)
    if staged.settled:
        # Of what was taken, the rows of batches tell after a crash; of this, nothing does.
        settled = [(number, sender.floor) for number, sender in staged.settled.items()]
        operations.append((_SETTLE_SENDERS, (as_json(settled),)))
    if audiences:
        operations += insert_steps("into audience", 6, audiences)
    operations += insert_steps("into batch", COLUMNS, flat)
    if ids:
        operations += insert_steps("or ignore into message_id", 2, ids)
    if promised:
        stage_promises(staged, promised, operations)


def stage_retained(staged: Staged, operations: list[Operation]) -> None:
    """Stage the last messages of subjects that are to be retained; one without a body clears."""
    flat: list[Any] = []
    cleared: list[str] = []
    for subject, batch in staged.retained.items():
        row = Retained.of(batch)
        if row is None:
            cleared.append(subject)
            staged.retained_sizes.append((subject, 0, 0))
            continue
        origin = encode_origin(row.origin)
        flat += (subject, row.position, row.stored_at, row.expires_at, origin, row.message)
        staged.retained_sizes.append((subject, row.size, row.expires_at))
    operations += insert_steps("or replace into retained", 6, flat)
    if cleared:
        operations.append((CLEAR_RETAINED, (as_json(cleared),)))


def join_copies(db: apsw.Connection, staged: Staged, entry: Append) -> list[Batch]:
    """Return the copies of retained messages for who joins with this group, oldest first."""
    copies: list[Batch] = []
    for join in entry.joins:
        at = staged.receiver(join.receiver)
        if at is not None and not at.removed:
            found = [
                one
                for one in queries.retained_for(db, join.patterns, join.before)
                if not 0 < one.expires_at <= entry.due_now
            ]
            if join.asked is None:
                below = _history_from(db, staged, join)
            else:
                position, since = join.asked
                below = 0
                found = [
                    one for one in found if one.position >= position and one.stored_at >= since
                ]
            kept = queries.kept_of(db, [one.position for one in found if one.position >= below])
            found = [one for one in found if one.position not in kept]
            found.sort(key=lambda one: one.position)
            copies += [one.copy(join.audience) for one in found]
    return copies


def _history_from(db: apsw.Connection, staged: Staged, join: Join) -> int:
    """Return the position from which on a receiver has the messages of its subjects as history.

    Those of a page that found no room are read again, by the subjects that it has by then.
    """
    replay = staged.replays.get(join.receiver, staged.state.replays.get(join.receiver))
    if replay is None or not replay.is_open:
        return join.below
    below = min(join.below, replay.next)
    if replay.since:
        below = max(below, position_at(db, staged.state, replay.since))
    return below


def stage_keys(staged: Staged, keyed: Keyed, now: int, operations: list[Operation]) -> None:
    """Stage the keys of new batches, and what was taken by its key: no row of a batch says that.

    That of one which waits is remembered from when it is due: until then it is always known. `now`:
    by the clock of what falls due.
    """
    ids: list[Any] = []
    waiting: list[Any] = []
    flat: list[Any] = []
    for use, row in keyed.fresh:
        at = _known_from(staged, row, now)
        flat += (use.digest, use.content, row.sender, row.sequence, at)
    operations += insert_steps("into idempotency", 5, flat)
    if not keyed.aliases:
        return
    flat = []
    gone: list[tuple[int, ...]] = []
    for alias in keyed.aliases.values():
        of = alias.of
        if of.audience is NOBODY and not of.position:
            gone.append((alias.sender, alias.sequence, of.sender, of.sequence))
        flat += (alias.sender, alias.sequence, of.sender, of.sequence, alias.crc)
        for name in alias.ids:
            if of.position:
                ids += (name, of.position)
            elif of.due:  # it has none yet, and is found by who has handed it in (`history.find`)
                at = _known_from(staged, of, now)
                waiting += (name, alias.sender, alias.sequence, at)
    operations += insert_steps("or replace into alias", 5, flat)
    operations += insert_steps("or ignore into message_id", 2, ids)
    operations += insert_steps("or replace into finished_id", 4, waiting)
    if gone:
        operations.append((_COPY_FINISHED, (as_json(gone),)))
    # After a crash the rows of batches say what was taken of a sender, but for this.
    operations.append((_SAVE_SENDERS, (as_json(saved_marks(keyed.senders.values())),)))


def _known_from(staged: Staged, row: KeyRow, now: int) -> int:
    """Return the age of the log from which on the time counts that a message is remembered."""
    return staged.age + (max(0, row.due - now) if row.due else 0)


def stage_progress(
    staged: Staged, group: Append, operations: list[Operation], is_changed: bool = False
) -> None:
    """Stage what receivers have settled, and count the group.

    `is_changed`: so have runs that wait until they are due.
    """
    is_more = group.receivers or group.removed or group.progress or group.statuses_from
    by_key = staged.keyed is not None and staged.keyed.aliases
    if not (is_more or group.replays or group.pages or group.letters or by_key or is_changed):
        return
    moved: dict[int, ReceiverProgress] = {}
    replaced: list[tuple[int, int, int]] = []
    added: dict[int, list[ExceptionRow]] = {}  # by receiver
    passed: list[tuple[int, int]] = []
    dead: list[Any] = []
    for step in group.progress:
        at = staged.receiver(step.receiver)
        if at is None or at.removed_at is not None:
            continue  # what it settles was counted when it was removed, in an earlier group
        moved[step.receiver] = at
        if step.cursor > at.cursor:
            at.cursor = step.cursor
        settled = at.settled
        for status, count in step.settled.items():
            settled[PLACES[status]] += count
        at.bytes += step.settled_bytes
        if step.inbox is not None:
            at.inbox = step.inbox
        if step.exceptions:
            added.setdefault(step.receiver, []).extend(step.exceptions)
        for row in step.exceptions:
            replaced.append((step.receiver, row.first, row.last))
            if row.status in OPEN:
                at.open_to = max(at.open_to, row.last)
        if at.open_to:
            passed.append((step.receiver, at.cursor))
            if at.cursor >= at.open_to:
                at.open_to = 0
        if step.dead:
            taken = sum(letter.size for letter in step.dead)
            staged.add_letters(step.receiver, len(step.dead), taken)
        for letter in step.dead:
            dead += (
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
                letter.flags,
                None if letter.origin is None else encode_origin(letter.origin),
                letter.code,
            )
    flat: list[Any] = []
    for receiver, found in added.items():
        for row in _not_replaced(found):
            status = int(row.status)
            flat += (receiver, row.first, row.last, status, row.attempts, row.next_at, row.reason)
    if replaced:
        operations.append((_DELETE_REPLACED, (as_json(replaced),)))
        operations += insert_steps("or replace into exception", 7, flat)
    if passed:
        operations.append((_DELETE_PASSED, (as_json(passed),)))
    if dead:
        operations += insert_steps("or replace into dead", 13, dead)
    # The count of such groups sits in a row of the same table: one step less per group.
    staged.commits += 1
    states = [ReceiverProgress(COMMITS_ROW, staged.commits), *moved.values()]
    operations += progress_operations(states)


def _not_replaced(found: list[ExceptionRow]) -> list[ExceptionRow]:
    """Rows that no later one replaces: each replaces those before it that begin inside it.

    One peer can have many thousands of rows in a group, so they are swept through once: from the
    lowest first position on, with the rows that reach there in a heap, the latest on top.
    """
    if len(found) < 2:
        return found
    order = sorted(range(len(found)), key=lambda at: found[at].first)
    reaching: list[tuple[int, int]] = []  # (-place in `found`, last position)
    kept: list[ExceptionRow] = []
    for first, places in groupby(order, key=lambda at: found[at].first):
        for at in places:
            heappush(reaching, (-at, found[at].last))
        while reaching[0][1] < first:
            heappop(reaching)
        latest = found[-reaching[0][0]]
        if latest.first == first:
            kept.append(latest)
    return kept


def stage_statuses_from(staged: Staged, group: Append, operations: list[Operation]) -> None:
    """Stage from where on senders want states."""
    for wanted in group.statuses_from:
        key = (wanted.sender, wanted.incarnation)
        if key not in staged.senders and staged.state.sender(key) is None:
            continue
        sender = staged.sender(key)
        if wanted.status_from <= sender.status_from:
            continue
        sender.status_from = wanted.status_from
        operations += [
            (
                "update sender set status_from = ? where id = ?",
                (sender.status_from, sender.id),
            ),
        ]


def progress_operations(states: list[ReceiverProgress]) -> list[Operation]:
    """Return the operations that write these states."""
    flat: list[Any] = []
    for at in states:
        removed_at = at.removed_at
        flat += (
            at.number,
            at.cursor,
            removed_at is not None,
            *at.settled,
            at.bytes,
            at.collected,
            at.inbox,
            removed_at,
        )
    return [*insert_steps("or replace into progress", 12, flat)]


def save_operations(state: State) -> list[Operation]:
    """Return the operations of a save, for a transaction that does more than that."""
    dirty = [state.senders.get(key) for key in state.dirty_senders]
    senders = saved_marks([sender for sender in dirty if sender is not None])
    totals = [
        (audience, total.messages, total.bytes, total.last, total.dropped)
        for audience in state.dirty_totals
        if (total := state.totals.get(audience)) is not None
    ]
    head = (state.next_number - 1, state.chain, state.used)
    return [
        (_FORGET_AGES, ()),
        (_SAVE_AGE, (state.age, f"{SINCE}{state.next_number}", state.age)),
        (_SAVE_META, ("ages", as_json(state.ages))),
        (_SAVE_SENDERS, (as_json(senders),)),
        (_SAVE_AUDIENCES, (as_json(totals),)),
        ("update head set saved = ?, chain = ?, used = ?", head),
    ]


def saved_marks(senders: Iterable[SenderState]) -> list[tuple[Any, ...]]:
    """Return what `_SAVE_SENDERS` writes of these."""
    return [
        (
            sender.id,
            sender.floor,
            encode_ranges(sender).hex(),
            None if sender.last is None else msgspec.msgpack.encode(sender.last).hex(),
            sender.status_from,
            sender.seen_at,
        )
        for sender in senders
    ]


def used_operation(key: str, number: int) -> Operation:
    """Return the operation that keeps numbers up to this one from other audiences, or senders.

    Senders' last runs go on to refer to their audiences when nothing else does.
    """
    return (_SAVE_META, (key, number))
