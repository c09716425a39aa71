"""Which batches may go, and what else is forgotten: who decides about that (SEMANTICS 11, 21).

What retention noted from one pass to the next is here, with what decides by it: of senders in
`senders.py`, of places that are wanted in `places.py`. None of that is in the log.

A batch may go when every receiver of its audience is past it and the rule (age, bytes) lets it.
First its frame goes; its row stays until every older batch has gone, so that numbers and chain have
no hole from the oldest row on. What was decided is an entry, applied by the store like a group
(`removal.py` says how), and a small one: commits of groups wait for it. Clocks, limits and who is
connected are looked at here and nowhere else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import apsw
import msgspec

from msgservice.core.marks import Key
from msgservice.disk.database import as_json, one, rows, telling_full
from msgservice.errors import LogUnavailable
from msgservice.log.entries import (
    DropBatches,
    DropLetters,
    Forget,
    ForgetKeys,
    ForgetStates,
)
from msgservice.log.places import HEADROOM_DIVISOR, PINNED, Places, settled_to
from msgservice.log.removal import SPAN, states_to_forget
from msgservice.log.senders import DAY, FORGET_MAX, LOOK_AGAIN, Senders
from msgservice.log.staging import DEAD_SIZE
from msgservice.log.state import Totals
from msgservice.log.store import Store
from msgservice.records import number_of, position_of

BATCHES_MAX = 512  # of one call
BYTES_MAX = 16 * 1024 * 1024  # of one call
AUDIENCES_MAX = 256  # looked at in one call, those with the oldest batches first
STATES_MAX = 4096  # (sender, receiver) pairs whose states one call writes
HOUR = 3600 * 1000
FINISHED = ("finished", "finished_id", "former")  # on messages that have left the log
WAYS_MAX = 4  # calls' worth of history that give way for one group
KEYS_MAX = 2048  # idempotency keys of one call
FORGOTTEN_MAX = 512  # rows of each kind on messages that have left the log, of one call: 2 ms
IDS_MAX = 8192  # ids of messages whose rows go in one call, of more than one batch
DEAD_MAX = 512  # dead letters of one call
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


class Retention:
    """The removal of what a log needs no more, on the writer's thread."""

    def __init__(self, store: Store) -> None:
        self.senders = Senders(store)
        self.places = Places(store)
        # Numbers of receivers; filled by the writer, emptied by the reactor's thread.
        self.forgotten: deque[int] = deque()
        # By the age of the log, ms: when retention last forgot what nobody needs; never, at first.
        self.tidied_at: int | None = None
        self._store = store
        # By the age of the log, ms: when it was last counted what is known of messages that have
        # left it; and how much of each table is still to go for that.
        self._counted_at: int | None = None
        self._spare: list[int] | None = None
        self._gave_way_at: int | None = None  # … and last found nothing that could give way
        self._coming = 0  # bytes of the group that history is to give way to now

    @property
    def to_give_way(self) -> int:
        """Bytes of history that must make room for what is to come (SEMANTICS 19)."""
        store = self._store
        maximum = store.limits.max_bytes
        if store.is_disk_full:
            return store.state.used
        return max(0, store.state.taken - maximum + max(maximum // HEADROOM_DIVISOR, self._coming))

    def retain(self, elapsed: int, here: Collection[Key] = (), left: Collection[Key] = ()) -> bool:
        """Remove a small range of what may go; return whether there is more to do.

        See `ILog.retain`. Raises `LogUnavailable` when the disk is too full even for this.
        """
        store = self._store
        if store.failed is not None:
            raise store.failed
        store.pass_time(elapsed)
        self.senders.note(here, left)
        try:
            more = self._retain(here)
        except apsw.FullError:
            more = store.make_room(lambda: self._retain(here))
        more = self._shrink() or more
        store.fullness()
        return more

    def give_way(self, coming: int) -> None:
        """Make room for so many bytes by removing history that nobody waits for (SEMANTICS 19)."""
        store = self._store
        if store.failed is not None or self._gave_way_at == store.age:
            return
        before, self._coming = store.state.taken, coming
        try:
            for _ in range(WAYS_MAX):
                if not self._remove_settled() or not self.to_give_way:
                    break
            for _ in range(WAYS_MAX):
                if not self.to_give_way or not self._remove_dead_letters():
                    break
        except apsw.FullError:
            pass  # the group itself is told so
        finally:
            self._coming = 0
        if store.state.taken == before:
            self._gave_way_at = store.age  # all of it is waited for: asked again with time

    def _retain(self, here: Collection[Key]) -> bool:
        if self._store.is_as_brought_up and not self._is_in_the_way:
            return False
        more = self._remove_settled()
        more = self._forget_keys() or more
        more = self._forget_states() or more
        if self._is_time_to_tidy():
            more = self._make_places() or self._tidy(here) or more
        else:
            more = self.senders.forget_early(here) or more
            self.senders.rest(here)
        return self._remove_dead_letters() or more

    @property
    def _is_in_the_way(self) -> bool:
        """Whether new messages or receivers are refused as long as nothing goes."""
        return self._store.room().full is not None or bool(self.places.wanted)

    def _is_time_to_tidy(self) -> bool:
        """Whether what nothing refers to is searched for now, and history has to give places up.

        Once an hour. Where it stands in the way of new messages or receivers, for want of a place,
        soon, if there is something to be had. Finding out looks at every set: where all is waited
        for the next look is in as long as it has been in vain.
        """
        store, places = self._store, self.places
        if self.tidied_at is None or places.are_begun:
            return True
        since = store.age - self.tidied_at
        wanted = bool(places.wanted)
        full = store.audiences_known >= store.limits.audiences
        if since >= (LOOK_AGAIN if wanted or full else HOUR):
            return True
        if not wanted or since < places.looked_for_after:
            return False
        if self._unused_audiences() or places.begin():
            return True
        places.looked_for_after = 2 * since
        return False

    def _remove_settled(self) -> bool:
        picked, more = self._pick()
        if picked or self._head_is_dropped():
            more = self._remove(picked) or more
        return more

    def _forget_keys(self) -> bool:
        """Forget idempotency keys that are older than they are remembered; more?"""
        store = self._store
        if not store.state.keys:
            return False
        before = store.age - int(store.limits.idempotency_key_seconds * 1000)
        if one(store.db, "select min(at) from idempotency") >= before:
            return False
        store.apply(store.entry(ForgetKeys, before=before, count=KEYS_MAX))
        return store.state.keys > 0

    @property
    def _states_before(self) -> int:
        """The age of the log up to which what became of messages is not kept any more."""
        before = self._store.age - int(self._store.limits.finished_days * DAY)
        return before - before % SPAN

    def _forget_states(self) -> bool:
        """Forget what became of messages that have left the log long ago, or too much of it; more?

        Beyond `finished_rows` the oldest ids and former senders go before their time, and of states
        those that their producers want no more: what these may come back for stays. That looks at
        all of them, and is done once a minute; then in as many calls as it takes.
        """
        store = self._store
        before, spare = self._states_before, self._spare
        if any(
            (at := one(store.db, f"select min(at) from {table}")) is not None and at < before  # noqa: S608 - fixed names
            for table in FINISHED
        ):
            store.apply(self._forgetting(before, FORGOTTEN_MAX, FORGOTTEN_MAX, FORGOTTEN_MAX))
            self._spare = None
            return True
        if spare is None:
            if self._counted_at is not None and store.age - self._counted_at < LOOK_AGAIN:
                return False
            self._counted_at = store.age
            limit = store.limits.finished_rows
            spare = [
                max(0, one(store.db, f"select count(*) from {table}") - limit)  # noqa: S608
                for table in FINISHED
            ]
        now = [min(FORGOTTEN_MAX, count) for count in spare]
        if not any(now):
            self._spare = None
            return False
        entry = self._forgetting(store.age + 1, *now, heard=True)
        gone = len(states_to_forget(store.db, entry)[0])
        store.apply(entry)
        self._spare = [
            count - less for count, less in zip(spare, (gone, now[1], now[2]), strict=True)
        ]
        if not gone:
            self._spare[0] = 0  # the rest may still be come for
        return True

    def _forgetting(
        self, before: int, states: int, ids: int, senders: int, *, heard: bool = False
    ) -> ForgetStates:
        return self._store.entry(
            ForgetStates, before=before, states=states, ids=ids, senders=senders, heard=heard
        )

    def _make_places(self) -> bool:
        """Remove history that has the places of sets that are wanted (SEMANTICS 19); more?

        It is looked for once, and then goes in as many calls as it takes.
        """
        store = self._store
        below, before = self.places.give_way_below(), store.state.oldest
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
        self._remove(picked)
        oldest = store.state.oldest
        return oldest < below and (bool(picked) or oldest > before)

    # --- which -----------------------------------------------------------------------------------

    def _pick(self) -> tuple[list[tuple[int, int, int]], bool]:
        """Return the batches whose frames go now: (number, audience, size), rising; and: more?"""
        store = self._store
        db, limits = store.db, store.limits
        waiting = sorted(
            (total for total in store.state.totals.values() if total.last > total.dropped),
            key=lambda total: total.dropped,
        )
        bounds: list[tuple[int, int, int, int]] = []
        settled: dict[int, int] = {}
        for total in waiting:
            position = settled_to(store.state, total)
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
        horizon = min((last for share, last in shown.values() if share == each), default=PINNED)
        kept = int(one(db, _SETTLED_BYTES, (text,)))
        old_below = store.kept_long_enough
        keep_bytes = min(limits.keep_bytes, kept - self.to_give_way)
        rows_go_below = self._rows_go_below()
        picked: list[tuple[int, int, int]] = []
        size_sum = 0
        for number, audience, count, size in found:
            if position_of(number, count - 1) > settled[audience]:
                continue
            if number > horizon or len(picked) >= BATCHES_MAX or size_sum >= BYTES_MAX:
                return picked, bool(picked)
            if number >= max(old_below, rows_go_below) and kept <= keep_bytes:
                return picked, False
            picked.append((number, audience, size))
            size_sum += size
            kept -= size
        return picked, len(bounds) >= AUDIENCES_MAX or horizon < PINNED

    def _rows_go_below(self) -> int:
        """Return the number of the batch below which all history gives way to `kept_batches`.

        Not at or behind one that is waited for, where rows would stay and nothing be gained: none
        while that is the oldest, which is known at once.
        """
        store = self._store
        state = store.state
        if state.batches_kept < store.limits.kept_batches:
            return 0
        head = one(store.db, "select audience, count from batch where number = ?", (state.oldest,))
        if head is None:
            return 0
        settled = settled_to(state, state.totals[head[0]])
        if position_of(state.oldest, head[1] - 1) > settled:
            return 0
        return self.places.first_waited_for()

    def _head_is_dropped(self) -> bool:
        store = self._store
        row = one(
            store.db,
            "select audience, frame is null from batch where number = ?",
            (store.state.oldest,),
        )
        return bool(row and row[1])

    # --- removing --------------------------------------------------------------------------------

    def _remove(self, picked: list[tuple[int, int, int]]) -> bool:
        """Remove the picked frames, and the oldest rows that have none; may more go?"""
        store = self._store
        oldest, more = self._oldest_without(picked)
        if picked or oldest > store.state.oldest:
            store.apply(store.entry(DropBatches, frames=picked, oldest=oldest))
        return more

    def _oldest_without(self, picked: list[tuple[int, int, int]]) -> tuple[int, bool]:
        """Return up to where no row has a frame without these; and: more?"""
        store = self._store
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
        ids_end = self._ids_end()
        pairs: set[tuple[int, int]] = set()
        states = 0
        for number, audience, sender in found:
            total = state.totals[audience]
            if number > dropped.get(audience, total.dropped):
                return oldest, False
            if number > ids_end and oldest > state.oldest:
                return oldest, True
            if (sender, audience) not in pairs:
                pairs.add((sender, audience))
                states += len(total.audience.members)
                if states > STATES_MAX and oldest > state.oldest:
                    return oldest, True
            oldest = number + 1
        return oldest, len(found) > 2 * BATCHES_MAX

    def _ids_end(self) -> int:
        """Return up to which batch there are so many ids as rows of one call may have."""
        position = one(
            self._store.db,
            "select position from message_id where position >= ? order by position limit 1"
            " offset ?",
            (position_of(self._store.state.oldest), IDS_MAX),
        )
        return PINNED if position is None else max(0, number_of(position) - 1)

    # --- once an hour ----------------------------------------------------------------------------

    def _tidy(self, here: Collection[Key]) -> bool:
        """Forget senders that stayed away, unused audiences, and removed receivers."""
        store = self._store
        more = self.senders.forget_absent(here)
        unused = [total.audience.number for total in self._unused_audiences()[:FORGET_MAX]]
        forgotten = self._unreferred_receivers(set(unused))
        store.apply(store.entry(Forget, audiences=unused, receivers=forgotten))
        self.forgotten.extend(forgotten)
        more = more or FORGET_MAX in (len(unused), len(forgotten))
        if not more:
            self.tidied_at = store.age
            self.places.begin_anew()
        return more

    def _remove_dead_letters(self) -> bool:
        """Remove dead letters of a receiver that was removed, some at a time; more?

        They stay for `keep_seconds`, for people to look at, unless their room is needed.
        """
        store = self._store
        ready = self._spent_letters()
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
        return number in store.state.letters or len(ready) > 1

    def _spent_letters(self) -> list[int]:
        """Return the removed receivers whose dead letters may go now."""
        store = self._store
        receivers = store.state.receivers
        since = store.age - int(store.limits.keep_seconds * 1000)
        needed = self.to_give_way > 0
        return [
            number
            for number in store.state.letters
            if (at := receivers.get(number)) is not None
            and at.removed_at is not None
            and (needed or at.removed_at <= since)
        ]

    def _unused_audiences(self) -> list[Totals]:
        """Return audiences without batches: of removed receivers, and all when there are many.

        All too where a limit below that of all, of one sender for example, has stood in the way.
        """
        store = self._store
        state = store.state
        named: set[int] = set()  # by the senders of what waits until it is due
        if state.waiting.count:
            named = {
                number
                for (number,) in rows(
                    store.db, "select distinct audience from delayed where audience != 0"
                )
            }
        many = len(state.totals) > store.limits.audiences // 2 or bool(self.places.wanted)
        return [
            total
            for total in state.totals.values()
            if total.last <= total.dropped
            and total.last < state.oldest
            and total.audience.number not in named
            and not total.audience.waiting
            and (many or any(self._is_removed(number) for number in total.audience.members))
        ]

    def _unreferred_receivers(self, unused: set[int]) -> list[int]:
        """Return removed receivers that nothing refers to, once audiences are forgotten.

        `unused`: those audiences. The highest number stays, whatever it is: it says which were
        used. So does the newest of a name that has an owner.
        """
        store = self._store
        state = store.state
        removed = {number for number, at in state.receivers.items() if at.removed}
        removed.discard(max(state.receivers, default=0))
        if any(state.rows[number].owner for number in removed):
            newest = {state.rows[number].name: number for number in sorted(state.rows)}
            owned = {number for number in newest.values() if state.rows[number].owner}
            removed -= owned
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
                    " where receiver in (select value from json_each(?))",
                    (numbers,),
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

    def _is_removed(self, number: int) -> bool:
        at = self._store.state.receivers.get(number)
        return at is not None and at.removed

    def _shrink(self) -> bool:
        """Give free pages back to the disk: when there are many, all when it is low; more?"""
        store = self._store
        free = one(store.db, "pragma freelist_count")
        is_full = store.is_disk_full
        spare = free - (0 if is_full else FREE_PAGES_KEPT)
        if spare <= 0:
            return False
        # Pages that move are written to the WAL first, which is to find room on a full disk.
        step = min(spare, VACUUM_PAGES_FULL if is_full else VACUUM_PAGES)

        def vacuum() -> None:
            # Each row that this statement steps through is one page.
            with telling_full(store.db):
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
