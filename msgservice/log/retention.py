"""Which batches may go, and what must be written before they do (SEMANTICS 11, 21).

A batch may go when every receiver of its audience is past it and the rule (age, bytes) lets it.
First its frame goes; its row stays until every older batch has gone, so that numbers and chain have
no hole from the oldest row on. Before a row goes, what became of its messages is written into
`finished`, and its CRC into `run` for the sender's dedupe. Everything of one call is one
transaction of the writer, and a small one: commits of groups wait for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import apsw
import msgspec

from msgservice.core.marks import Key, SenderState
from msgservice.disk.database import as_json, full_is_told, insert_steps, one, rows
from msgservice.limits import RUNS_REMEMBERED, SENDER_KNOWN_SECONDS
from msgservice.log import history, places
from msgservice.log.dedupe import mark_of, named_of
from msgservice.log.staging import (
    ASKED,
    DEAD_SIZE,
    Operation,
    age_operations,
    used_audiences_operation,
)
from msgservice.log.state import ReceiverState, Totals
from msgservice.log.store import Store
from msgservice.message import Status
from msgservice.records import ExceptionRow, number_of, position_of

BATCHES_MAX = 512  # of one call
BYTES_MAX = 16 * 1024 * 1024  # of one call
AUDIENCES_MAX = 256  # looked at in one call, those with the oldest batches first
STATES_MAX = 4096  # (sender, receiver) pairs whose states one call writes
DAY = 24 * 3600 * 1000
FINISHED_DAYS = 7
HOUR = 3600 * 1000
LOOK_AGAIN = 60 * 1000  # ms between two looks for what may be forgotten before its time
CROWD = 10  # times `incarnations`
WAYS_MAX = 4  # calls' worth of history that give way for one group
DEAD_MAX = 512  # dead letters of one call
FORGET_MAX = 1000  # senders and audiences of one call
FREE_PAGES_KEPT = 16 * 1024  # 64 MiB stay in the file for the next backlog
VACUUM_PAGES = 2048  # given back to the disk in one call

_CANDIDATES = """
select json_group_array(json_array(number, audience, count, size)) from (
    select b.number, b.audience, b.count, b.size
    from json_each(?1) as a cross join batch as b
    where b.number in (
        select c.number from batch as c
        where c.audience = json_extract(a.value, '$[0]')
            and c.number > json_extract(a.value, '$[1]')
            and c.number <= json_extract(a.value, '$[2]')
        order by c.number limit ?2)
)
"""

# Bytes of an audience between its first frame and the first batch that is still wanted.
_SETTLED_BYTES = """
select total(coalesce(
        (select before_bytes from batch where audience = json_extract(a.value, '$[0]')
            and number > json_extract(a.value, '$[2]') order by number limit 1),
        json_extract(a.value, '$[3]'))
    - coalesce(
        (select before_bytes from batch where audience = json_extract(a.value, '$[0]')
            and number > json_extract(a.value, '$[1]') order by number limit 1),
        json_extract(a.value, '$[3]')))
from json_each(?1) as a
"""

# History that gives way: all batches of a range that have their frames.
_IN_THE_WAY = """
select json_group_array(json_array(number, audience, size)) from (
    select number, audience, size from batch
    where number between ?1 and ?2 and frame is not null order by number limit ?3)
"""

_HEAD = """
select json_group_array(json_array(number, audience, sender, sequence, count, crc, chain)) from (
    select number, audience, sender, sequence, count, crc, chain from batch
    where number between ?1 and ?2 order by number)
"""

_SUBJECTS = """
select json_group_array(json_array(number, subject, flags)) from batch
where number between ?1 and ?2
"""

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

Range = tuple[int, int, int, str]  # first and last sequence, state, reason

_decode_subjects = msgspec.json.Decoder(list[tuple[int, str, int]]).decode
_decode = msgspec.json.Decoder(list[list[int]]).decode


def retain(
    store: Store, elapsed: int, here: Collection[Key] = (), left: Collection[Key] = ()
) -> bool:
    """Remove a small range of what may go; return whether there is more to do.

    See `ILog.retain`. Raises `LogUnavailable` when the disk is too full even for this.
    """
    if store.failed is not None:
        raise store.failed
    store.pass_time(elapsed)
    _note_presence(store, here, left)
    try:
        more = _retain(store, here)
    except apsw.FullError:
        more = store.make_room(lambda: _retain(store, here))
    more = _shrink(store) or more
    store.fullness()
    return more


def give_way(store: Store, coming: int) -> None:
    """Make room for so many bytes by removing history that nobody waits for (SEMANTICS 19)."""
    if store.failed is not None or store.gave_way_at == store.state.age:
        return
    before, store.coming = store.state.taken, coming
    try:
        for _ in range(WAYS_MAX):
            if not _remove_settled(store) or not store.to_give_way:
                break
        for _ in range(WAYS_MAX):
            if not store.to_give_way or not _remove_dead_letters(store):
                break
    except apsw.FullError:
        pass  # the group itself is told so
    finally:
        store.coming = 0
    if store.state.taken == before:
        store.gave_way_at = store.state.age  # all of it is waited for: asked again with time


def _retain(store: Store, here: Collection[Key]) -> bool:
    more = _remove_settled(store)
    state = store.state
    if store.tidied_at is None or state.age - store.tidied_at >= _tidy_every(store):
        more = _make_places(store) or _tidy(store, here) or more
    elif len(state.senders) - len(here) > store.limits.incarnations:
        more = _forget_early(store, here) or more
    return _remove_dead_letters(store) or more


def _tidy_every(store: Store) -> int:
    """The interval between two searches for what nothing refers to, in ms.

    Where it stands in the way of new messages or receivers, for want of a place, not long.
    """
    full = store.audiences_known >= store.limits.audiences
    return LOOK_AGAIN if full or store.places_wanted else HOUR


def _remove_settled(store: Store) -> bool:
    picked, more = _pick(store)
    if picked or _head_is_dropped(store):
        more = _remove(store, picked) or more
    return more


def _make_places(store: Store) -> bool:
    """Remove history that has the places of sets that are wanted (SEMANTICS 19); more?

    It is looked for once, and then goes in as many calls as it takes.
    """
    state = store.state
    if store.gives_way_below is None:
        store.gives_way_below = places.gives_way_below(store) if store.places_wanted else 0
    below, before = store.gives_way_below, state.oldest
    if before >= below:
        return False
    picked: list[tuple[int, int, int]] = []
    size_sum = 0
    for number, audience, size in _decode(
        one(store.db, _IN_THE_WAY, (before, below - 1, BATCHES_MAX))
    ):
        picked.append((number, audience, size))
        size_sum += size
        if size_sum >= BYTES_MAX:
            break
    _remove(store, picked)
    return state.oldest < below and (bool(picked) or state.oldest > before)


def _note_presence(store: Store, here: Collection[Key], left: Collection[Key]) -> None:
    """Senders are away from when they were last here, however quiet they were."""
    state = store.state
    store.left.update(key for key in left if key in state.senders)  # not who sent nothing
    store.left.difference_update(here)
    for key in here:
        sender = state.senders.get(key)
        if sender is not None:
            # In place: nobody but this thread looks at it.
            sender.seen_at = state.age


# --- which ----------------------------------------------------------------------------------------


def _pick(store: Store) -> tuple[list[tuple[int, int, int]], bool]:
    """Return the batches whose frames go now, as (number, audience, size), rising; and: more?"""
    db, limits = store.db, store.limits
    waiting = sorted(
        (total for total in store.state.totals.values() if total.last > total.dropped),
        key=lambda total: total.dropped,
    )
    bounds: list[tuple[int, int, int, int]] = []
    settled: dict[int, int] = {}
    for total in waiting:
        position = places.settled_to(store, total)
        if position < 0:
            continue
        last = min(number_of(position), total.last)
        if last == number_of(position):
            count = one(db, "select count from batch where number = ?", (last,))
            if count is not None and position_of(last, count - 1) > position:
                last -= 1
        if last > total.dropped:
            number = total.audience.number
            bounds.append((number, total.dropped, last, total.bytes))
            settled[number] = position
            if len(bounds) >= AUDIENCES_MAX:
                break
    if not bounds:
        return [], False
    text = as_json(bounds)
    each = max(2, BATCHES_MAX // len(bounds))
    found = sorted(_decode(one(db, _CANDIDATES, (text, each))))
    shown: dict[int, list[int]] = {}
    for number, audience, *_ in found:
        entry = shown.setdefault(audience, [0, 0])
        entry[0] += 1
        entry[1] = max(entry[1], number)
    horizon = min((last for share, last in shown.values() if share == each), default=places.PINNED)
    kept = int(one(db, _SETTLED_BYTES, (text,)))
    old_below = store.kept_long_enough
    keep_bytes = min(limits.keep_bytes, kept - store.to_give_way)
    picked: list[tuple[int, int, int]] = []
    size_sum = 0
    for number, audience, count, size in found:
        if position_of(number, count - 1) > settled[audience]:
            continue
        if number > horizon or len(picked) >= BATCHES_MAX or size_sum >= BYTES_MAX:
            return picked, bool(picked)
        if number >= old_below and kept <= keep_bytes:
            return picked, False
        picked.append((number, audience, size))
        size_sum += size
        kept -= size
    return picked, len(bounds) >= AUDIENCES_MAX or horizon < places.PINNED


def _head_is_dropped(store: Store) -> bool:
    row = one(
        store.db,
        "select audience, frame is null from batch where number = ?",
        (store.state.oldest,),
    )
    return bool(row and row[1])


# --- removing -------------------------------------------------------------------------------------


def _remove(store: Store, picked: Sequence[tuple[int, int, int]]) -> bool:
    """Remove the picked frames, and the oldest rows that have none; return whether more may go."""
    state = store.state
    if picked and picked[-1][0] > state.saved:
        store.save()
        if picked[-1][0] > state.saved:
            raise apsw.FullError("save")
    numbers = {number for number, _, _ in picked}
    totals: dict[int, Totals] = {}
    for number, audience, _ in picked:
        if audience not in totals:
            totals[audience] = state.totals[audience].copy()
        totals[audience].dropped = max(totals[audience].dropped, number)
    used = state.used - sum(size for _, _, size in picked)
    head, more = _head(store, totals)
    operations: list[Operation] = []
    oldest, chain = state.oldest, state.oldest_chain
    if head:
        oldest, chain = head[-1][0] + 1, head[-1][6]
        operations += _finish(store, head)
        operations += _remember_runs(store, head)
        operations += [
            ("delete from batch where number < ?", (oldest,)),
            ("delete from message_id where position < ?", (position_of(oldest),)),
        ]
    rest = sorted(number for number in numbers if number >= oldest)
    if rest:
        operations.append(
            (
                "update batch set frame = null where number in (select value from json_each(?))",
                (as_json(rest),),
            )
        )
    operations += [
        (
            _SAVE_DROPPED,
            (as_json([(audience, total.dropped) for audience, total in totals.items()]),),
        ),
        (
            "update head set used = used - ?, oldest = ?, oldest_chain = ?",
            (state.used - used, oldest, chain),
        ),
    ]
    store.transact(operations)
    state.totals.update(totals)
    state.used, state.oldest, state.oldest_chain = used, oldest, chain
    store.wrote(len(picked) * 64 + len(head) * 64 + 16 * 4096)
    return more


def _head(store: Store, totals: dict[int, Totals]) -> tuple[list[list[int]], bool]:
    """Return the oldest rows, as far as none has a frame after this call; and: more?"""
    state = store.state
    found = _decode(
        one(store.db, _HEAD, (state.oldest, min(state.saved, state.oldest + 2 * BATCHES_MAX)))
    )
    head: list[list[int]] = []
    pairs: set[tuple[int, int]] = set()
    states = 0
    for row in found:
        number, audience, sender = row[:3]
        total = totals.get(audience) or state.totals[audience]
        if number > total.dropped:
            return head, False
        if (sender, audience) not in pairs:
            pairs.add((sender, audience))
            states += len(total.audience.members)
            if states > STATES_MAX and head:
                return head, True
        head.append(row)
    return head, len(found) > 2 * BATCHES_MAX


def _finish(store: Store, head: Sequence[list[int]]) -> list[Operation]:
    """Write what became of these rows' messages at each receiver, as ranges of sequences."""
    db, state = store.db, store.state
    low, high = position_of(head[0][0]), position_of(head[-1][0], 0xFFFF)
    exceptions: dict[int, list[ExceptionRow]] = {}
    ranges: dict[tuple[int, int], list[Range]] = {}
    for sender, audience, run in _joined(head):
        known = state.senders_by_id.get(sender)
        wanted_from = 1 if known is None else known.status_from
        wanted = [row for row in run if row[3] + row[4] > wanted_from]
        for receiver in state.totals[audience].audience.members:
            if receiver not in exceptions:
                exceptions[receiver] = history.exceptions_of(db, receiver, low, high)
            if not wanted:
                continue
            found = ranges.setdefault((sender, receiver), [])
            if not exceptions[receiver]:
                end = wanted[-1][3] + wanted[-1][4] - 1
                _extend(found, wanted[0][3], end, Status.ACKNOWLEDGED, "")
                continue
            for number, _audience, _sender, sequence, count, _crc, _chain in wanted:
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
                "select first, last, status, reason from finished where sender = ?"
                " and receiver = ? and first <= ? order by first desc limit 1",
                (sender, receiver, begin),
            )
            if before and (before[1] + 1, *before[2:]) == (begin, state_number, reason):
                begin = before[0]
            written += (sender, receiver, begin, end, state_number, reason, state.age)
    gone = [
        (receiver, row.first)
        for receiver, overlapping in exceptions.items()
        for row in overlapping
        if row.last <= high
    ]
    return [
        *insert_steps("or replace into finished", 7, written),
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


def _remember_runs(store: Store, head: Sequence[list[int]]) -> list[Operation]:
    """Keep what tells each sender's last runs from others, whose rows go (SEMANTICS 4).

    That is the CRC of the messages, and above it a mark of the rest.
    """
    newest: dict[int, list[tuple[int, int, int, int, int, int]]] = {}
    subjects = _decode_subjects(one(store.db, _SUBJECTS, (head[0][0], head[-1][0])))
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


# --- once an hour ---------------------------------------------------------------------------------


def _tidy(store: Store, here: Collection[Key]) -> bool:
    """Forget senders that stayed away, states that nobody came for, and unused audiences."""
    state = store.state
    state.dirty_senders.update(key for key in here if key in state.senders)
    store.save()
    away = state.age - int(store.limits.sender_days * DAY)
    present = set(here)
    gone = [s for s in state.senders.values() if s.seen_at < away and s.key not in present]
    more = _forget(store, gone)
    unused = _unused_audiences(store)[:FORGET_MAX]
    operations: list[Operation] = [
        ("delete from finished where at < ?", (state.age - FINISHED_DAYS * DAY,)),
        *age_operations(state),
    ]
    collected: dict[int, ReceiverState] = {}
    used = max([total.audience.number for total in unused], default=0)
    if used > state.audiences_used:
        operations.append(used_audiences_operation(used))
    for total in unused:
        operations.append(("delete from audience where number = ?", (total.audience.number,)))
        operations.append(("delete from meta where key = ?", (f"{ASKED}{total.audience.number}",)))
        for number in total.audience.members:
            at = state.receivers.get(number)
            if at is not None:
                at = collected.setdefault(number, at.copy())
                at.collected += total.messages
    operations.append(
        (
            _SAVE_COLLECTED,
            (as_json([(number, at.collected) for number, at in collected.items()]),),
        )
    )
    forgotten = _unreferred_receivers(store, {total.audience.number for total in unused})
    numbers = (as_json(forgotten),)
    operations += [
        (f"delete from {table} where {column} in (select value from json_each(?))", numbers)  # noqa: S608 - fixed names
        for table, column in (
            ("exception", "receiver"),
            ("progress", "receiver"),
            ("receiver", "number"),
        )
        if forgotten
    ]
    store.transact(operations)
    state.receivers.update(collected)
    state.audiences_used = max(state.audiences_used, used)
    for number in forgotten:
        del state.receivers[number]
        del state.rows[number]
    store.forgotten.extend(forgotten)
    for total in unused:
        total.audience.stored = False  # so that its next batch writes it again
        del state.totals[total.audience.number]
        state.dirty_totals.discard(total.audience.number)
    more = more or FORGET_MAX in (len(unused), len(forgotten))
    if not more:
        store.tidied_at = state.age
        store.gives_way_below = None
        store.places_wanted = frozenset()  # who still finds none says so again
    return more


def _forget_early(store: Store, here: Collection[Key]) -> bool:
    """Forget senders before their time, where more are away than are to be remembered.

    Those first that said goodbye when all was answered; then, oldest first, those that have been
    away for an hour, and beyond ten times the limit any that are away. One that was cut off a
    moment ago comes back, and what it sends again then must be known.
    """
    state, limit = store.state, store.limits.incarnations
    if store.looked_at is not None and state.age - store.looked_at < LOOK_AGAIN:
        return False
    present = set(here)
    away = [sender for sender in state.senders.values() if sender.key not in present]
    known = SENDER_KNOWN_SECONDS * 1000 if len(away) <= CROWD * limit else 0
    long_ago = state.age - known
    gone = [s for s in away if s.key in store.left or s.seen_at <= long_ago]
    gone.sort(key=lambda sender: (sender.key not in store.left, sender.seen_at))
    before = len(state.senders)
    more = _forget(store, gone, len(away) - limit)
    if len(state.senders) == before:
        store.looked_at = state.age
    return more


def _forget(store: Store, gone: Sequence[SenderState], count: int = FORGET_MAX) -> bool:
    """Forget `count` of these, in their order, of whose messages none is in the log; more?"""
    state = store.state
    found = rows(
        store.db,
        "select value from json_each(?) where not exists"
        " (select 1 from batch where sender = value) limit ?",
        (as_json([sender.id for sender in gone]), min(count, FORGET_MAX)),
    )
    if not found:
        return False
    ids = (as_json([number for (number,) in found]),)
    store.transact(
        [
            ("delete from finished where sender in (select value from json_each(?))", ids),
            ("delete from run where sender in (select value from json_each(?))", ids),
            ("delete from sender where id in (select value from json_each(?))", ids),
        ]
    )
    for (number,) in found:
        sender = state.senders_by_id.pop(number)
        del state.senders[sender.key]
        state.dirty_senders.discard(sender.key)
        store.left.discard(sender.key)
    return len(found) == FORGET_MAX


def _remove_dead_letters(store: Store) -> bool:
    """Remove dead letters of a receiver that was removed, some at a time; more?

    They stay for `keep_seconds`, for people to look at, unless their room is needed.
    """
    state = store.state
    ready = _spent_letters(store)
    if not ready:
        return False
    number = ready[0]
    found = rows(
        store.db,
        f"select position, {DEAD_SIZE} from dead"  # noqa: S608 - fixed text
        " where receiver = ? order by position limit ?",
        (number, DEAD_MAX),
    )
    size, last = 0, -1
    for position, length in found:
        last = position
        size += length
        if size >= BYTES_MAX:
            break
    store.transact([("delete from dead where receiver = ? and position <= ?", (number, last))])
    left = one(
        store.db,
        "select exists(select 1 from dead where receiver = ? and position > ?)",
        (number, last),
    )
    dead_bytes = state.dead_bytes | {number: state.dead_bytes[number] - size}
    if not left:
        del dead_bytes[number]
        store.removed_seen_at.pop(number, None)
    state.dead_bytes = dead_bytes
    store.wrote(size)
    return bool(left) or len(ready) > 1


def _spent_letters(store: Store) -> list[int]:
    """Return the removed receivers whose dead letters may go now."""
    seen, age = store.removed_seen_at, store.state.age
    removed = [number for number in store.state.dead_bytes if _is_removed(store, number)]
    since = age - int(store.limits.keep_seconds * 1000)
    needed = store.to_give_way > 0
    return [number for number in removed if seen.setdefault(number, age) <= since or needed]


def _unused_audiences(store: Store) -> list[Totals]:
    """Return audiences without batches: those of removed receivers, and all when there are many.

    All too where a limit below that of all, of one sender for example, has stood in the way.
    """
    state = store.state
    many = len(state.totals) > store.limits.audiences // 2 or bool(store.places_wanted)
    return [
        total
        for total in state.totals.values()
        if total.last <= total.dropped
        and total.last < state.oldest
        and not total.audience.waiting
        and (many or any(_is_removed(store, number) for number in total.audience.members))
    ]


def _unreferred_receivers(store: Store, unused: set[int]) -> list[int]:
    """Return removed receivers that nothing refers to, once these audiences are forgotten.

    The highest number stays, whatever it is: it says which were used.
    """
    state = store.state
    removed = {number for number, at in state.receivers.items() if at.removed}
    removed.discard(max(state.receivers, default=0))
    for number, total in state.totals.items():
        if not removed:
            return []
        if number not in unused:
            removed.difference_update(total.audience.members)
    picked = sorted(removed)[:FORGET_MAX]
    if picked:
        numbers = as_json(picked)
        kept = [
            *rows(
                store.db,
                "select distinct receiver from finished"
                " where receiver in (select value from json_each(?)) and at >= ?",
                (numbers, state.age - FINISHED_DAYS * DAY),
            ),
            *rows(
                store.db,
                "select distinct receiver from dead"
                " where receiver in (select value from json_each(?))",
                (numbers,),
            ),
        ]
        removed.difference_update(number for (number,) in kept)
    return [number for number in picked if number in removed]


def _is_removed(store: Store, number: int) -> bool:
    at = store.state.receivers.get(number)
    return at is not None and at.removed


def _shrink(store: Store) -> bool:
    """Give free pages back to the disk: when there are many, and all when the disk is low; more?"""
    free = one(store.db, "pragma freelist_count")
    spare = free - (0 if store.is_disk_full else FREE_PAGES_KEPT)
    if spare <= 0:
        return False
    try:
        # Each row that this statement steps through is one page.
        with full_is_told(store.db):
            rows(store.db, f"pragma incremental_vacuum({min(spare, VACUUM_PAGES)})")
    except apsw.FullError:
        return False  # tried again with the next call
    store.wrote(min(spare, VACUUM_PAGES) * 64)
    if store.is_disk_full:
        store.checkpoint(truncate=True)  # the file shrinks with it, and not before
    return bool(spare > VACUUM_PAGES)
