"""Which batches may go, and what else is forgotten: who decides about that (SEMANTICS 11, 21).

A batch may go when every receiver of its audience is past it and the rule (age, bytes) lets it.
First its frame goes; its row stays until every older batch has gone, so that numbers and chain have
no hole from the oldest row on. What was decided is an entry, applied by the store like a group
(`removal.py` says how), and a small one: commits of groups wait for it. Clocks, limits and who is
connected are looked at here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import apsw
import msgspec

from msgservice.core.marks import Key, SenderState
from msgservice.disk.database import as_json, full_is_told, one, rows
from msgservice.errors import LogUnavailable
from msgservice.limits import PLACES_SECONDS, SENDER_KNOWN_SECONDS
from msgservice.log import places
from msgservice.log.entries import DropBatches, DropLetters, Forget, ForgetSenders
from msgservice.log.staging import DEAD_SIZE
from msgservice.log.state import Totals
from msgservice.log.store import Store
from msgservice.records import number_of, position_of

BATCHES_MAX = 512  # of one call
BYTES_MAX = 16 * 1024 * 1024  # of one call
AUDIENCES_MAX = 256  # looked at in one call, those with the oldest batches first
STATES_MAX = 4096  # (sender, receiver) pairs whose states one call writes
DAY = 24 * 3600 * 1000
FINISHED_DAYS = 7
HOUR = 3600 * 1000
LOOK_AGAIN = 60 * 1000  # ms between two looks for what may be forgotten before its time, at most
CROWD = 10  # times `incarnations`
WAYS_MAX = 4  # calls' worth of history that give way for one group
DEAD_MAX = 512  # dead letters of one call
FORGET_MAX = 1000  # senders and audiences of one call
FREE_PAGES_KEPT = 16 * 1024  # 64 MiB stay in the file for the next backlog
VACUUM_PAGES = 2048  # given back to the disk in one call
VACUUM_PAGES_FULL = 256  # … of a full disk

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

# The oldest rows.
_OLDEST = """
select json_group_array(json_array(number, audience, sender)) from (
    select number, audience, sender from batch where number between ?1 and ?2 order by number)
"""

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
    if store.failed is not None or store.gave_way_at == store.age:
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
        store.gave_way_at = store.age  # all of it is waited for: asked again with time


def _retain(store: Store, here: Collection[Key]) -> bool:
    more = _remove_settled(store)
    state = store.state
    if _is_time_to_tidy(store):
        more = _make_places(store) or _tidy(store, here) or more
    elif len(state.senders) - len(here) > store.limits.incarnations:
        more = _forget_early(store, here) or more
    return _remove_dead_letters(store) or more


def _is_time_to_tidy(store: Store) -> bool:
    """Whether what nothing refers to is searched for now, and history has to give places up.

    Once an hour. Where it stands in the way of new messages or receivers, for want of a place,
    soon, if there is something to be had. Finding out looks at every set: where all is waited for
    the next look is in as long as it has been in vain.
    """
    if store.tidied_at is None or store.gives_way_below is not None:
        return True  # it was begun
    since = store.age - store.tidied_at
    wanted = bool(store.places_wanted)
    full = store.audiences_known >= store.limits.audiences
    if since >= (LOOK_AGAIN if wanted or full else HOUR):
        return True
    if not wanted or since < store.places_looked_for:
        return False
    if _unused_audiences(store):
        return True
    below = places.gives_way_below(store)
    if below > store.state.oldest:
        store.gives_way_below = below
        return True
    store.places_looked_for = 2 * since
    return False


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
    oldest = store.state.oldest
    return oldest < below and (bool(picked) or oldest > before)


def _note_presence(store: Store, here: Collection[Key], left: Collection[Key]) -> None:
    """Senders are away from when they were last here, however quiet they were."""
    senders, heard, age = store.state.senders, store.heard, store.age
    store.left.update(key for key in left if key in senders)  # not who sent nothing
    store.left.difference_update(here)
    for key in here:
        if key in senders:
            heard[key] = age


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


def _remove(store: Store, picked: list[tuple[int, int, int]]) -> bool:
    """Remove the picked frames, and the oldest rows that have none; return whether more may go."""
    oldest, more = _oldest_without(store, picked)
    if picked or oldest > store.state.oldest:
        store.apply(store.entry(DropBatches, frames=picked, oldest=oldest))
    return more


def _oldest_without(store: Store, picked: list[tuple[int, int, int]]) -> tuple[int, bool]:
    """Return up to where no row has a frame without these; and: more?"""
    state = store.state
    dropped = {audience: number for number, audience, _size in picked}  # the highest: they rise
    found = _decode(
        one(
            store.db,
            _OLDEST,
            (state.oldest, min(state.next_number - 1, state.oldest + 2 * BATCHES_MAX)),
        )
    )
    oldest = state.oldest
    pairs: set[tuple[int, int]] = set()
    states = 0
    for number, audience, sender in found:
        total = state.totals[audience]
        if number > dropped.get(audience, total.dropped):
            return oldest, False
        if (sender, audience) not in pairs:
            pairs.add((sender, audience))
            states += len(total.audience.members)
            if states > STATES_MAX and oldest > state.oldest:
                return oldest, True
        oldest = number + 1
    return oldest, len(found) > 2 * BATCHES_MAX


# --- once an hour ---------------------------------------------------------------------------------


def _tidy(store: Store, here: Collection[Key]) -> bool:
    """Forget senders that stayed away, states that nobody came for, and unused audiences."""
    state = store.state
    away = store.age - int(store.limits.sender_days * DAY)
    present = set(here)
    gone = [s for s in state.senders.values() if s.key not in present and _seen(store, s) < away]
    more = _forget(store, gone)
    state = store.state
    unused = [total.audience.number for total in _unused_audiences(store)[:FORGET_MAX]]
    states_before = store.age - FINISHED_DAYS * DAY
    forgotten = _unreferred_receivers(store, set(unused), states_before)
    heard = {key: age for key, age in store.heard.items() if key in state.senders}
    store.apply(
        store.entry(
            Forget,
            states_before=states_before,
            audiences=unused,
            receivers=forgotten,
            seen=[(state.senders[key].id, age) for key, age in heard.items()],
        )
    )
    store.heard.clear()
    store.forgotten.extend(forgotten)
    more = more or FORGET_MAX in (len(unused), len(forgotten))
    if not more:
        store.tidied_at = store.age
        store.places_looked_for = PLACES_SECONDS * 1000
        store.gives_way_below = None
        store.places_wanted = frozenset()  # who still finds none says so again
    return more


def _seen(store: Store, sender: SenderState) -> int:
    """Return the age of the log when a sender was last here, or last sent something."""
    return max(sender.seen_at, store.heard.get(sender.key, 0))


def _forget_early(store: Store, here: Collection[Key]) -> bool:
    """Forget senders before their time, where more are away than are to be remembered.

    Those first that said goodbye when all was answered; then, oldest first, those that have been
    away for an hour, and beyond ten times the limit any that are away. One that was cut off a
    moment ago comes back, and what it sends again then must be known.
    """
    state, limit = store.state, store.limits.incarnations
    if store.looked_at is not None and store.age - store.looked_at < LOOK_AGAIN:
        return False
    present = set(here)
    away = [sender for sender in state.senders.values() if sender.key not in present]
    known = SENDER_KNOWN_SECONDS * 1000 if len(away) <= CROWD * limit else 0
    long_ago = store.age - known
    gone = [s for s in away if s.key in store.left or _seen(store, s) <= long_ago]
    gone.sort(key=lambda sender: (sender.key not in store.left, _seen(store, sender)))
    before = len(state.senders)
    more = _forget(store, gone, len(away) - limit)
    if len(store.state.senders) == before:
        store.looked_at = store.age
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
    keys = store.resumed.let_go([state.senders_by_id[number].key for (number,) in found])
    ids = [state.senders[key].id for key in keys]
    if not ids:
        return False  # all of them came back
    store.apply(store.entry(ForgetSenders, senders=ids))
    store.left.difference_update(keys)
    for key in keys:
        store.heard.pop(key, None)
    return len(found) == FORGET_MAX


def _remove_dead_letters(store: Store) -> bool:
    """Remove dead letters of a receiver that was removed, some at a time; more?

    They stay for `keep_seconds`, for people to look at, unless their room is needed.
    """
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
    store.apply(store.entry(DropLetters, receiver=number, last=last))
    left = number in store.state.dead_bytes
    if not left:
        store.removed_seen_at.pop(number, None)
    return left or len(ready) > 1


def _spent_letters(store: Store) -> list[int]:
    """Return the removed receivers whose dead letters may go now."""
    seen, age = store.removed_seen_at, store.age
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


def _unreferred_receivers(store: Store, unused: set[int], states_before: int) -> list[int]:
    """Return removed receivers that nothing refers to, once audiences and states are forgotten.

    `unused`: those audiences; `states_before`: the age up to which states are. The highest number
    stays, whatever it is: it says which were used.
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
                (numbers, states_before),
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
    is_full = store.is_disk_full
    spare = free - (0 if is_full else FREE_PAGES_KEPT)
    if spare <= 0:
        return False
    # Pages that move are written to the WAL first, which is to find room on a full disk.
    step = min(spare, VACUUM_PAGES_FULL if is_full else VACUUM_PAGES)

    def vacuum() -> None:
        # Each row that this statement steps through is one page.
        with full_is_told(store.db):
            rows(store.db, f"pragma incremental_vacuum({step})")

    try:
        vacuum()
    except apsw.FullError:
        if step < VACUUM_PAGES_FULL:
            return False  # not worth the reserve: tried again with the next call
        try:
            store.make_room(vacuum)
        except LogUnavailable:
            return False
    store.wrote(step * 64)
    if is_full:
        store.checkpoint(truncate=True)  # the file shrinks with it, and not before
    return bool(spare > step)
