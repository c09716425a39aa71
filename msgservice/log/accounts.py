"""The accounts of receivers, counted from the rows of the log alone (SEMANTICS 23).

What was routed to a receiver, what of it waits, and how many bytes that is. A page takes the
accounts of many receivers at once, in few steps of SQLite (`queries.py` says why few). Its cost
grows with the sets that they are in, and with their exceptions where these lie close together.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import apsw
import msgspec

from msgservice.disk.database import as_json, one
from msgservice.log.queries import audience_of
from msgservice.log.state import SETTLED, State
from msgservice.message import Status, header_size, message_sizes
from msgservice.records import Account, Oldest, index_of, number_of, position_of

# Of one page: receivers, the sets that they are in, and the ranges that are final at them.
PAGE_RECEIVERS = 256
PAGE_MEMBERSHIPS = 16_384
PAGE_RANGES = 16_384
SPLIT_MAX = 64  # batches looked into for what of them is settled, in one account
# Numbers between the ends of a range are looked at one by one, up to so many for each set that a
# receiver is in; beyond that, what each set had before and behind them is looked up.
SCANNED_EACH = 8

Range = tuple[int, int]  # positions, or numbers: first and last

_PROGRESS = """
select json_group_array(json_array(receiver, cursor, removed, collected, acknowledged_count,
    expired_count, dead_count, cancelled_count, removed_count))
from json_each(?1) as a cross join progress on receiver = a.value
"""

# Those of a receiver one behind the other, in the order of the receivers.
_FINAL = """
select json_group_array(json_array(receiver, first, last)) from (
    select e.receiver, e.first, e.last from json_each(?1) as a cross join exception as e
    where e.receiver = a.value ->> 0 and e.last > a.value ->> 1 and e.status >= ?2
        and e.last >= e.first
    limit ?3)
"""

_TOTALS = """
select json_group_array(json_array(a.value,
    coalesce(b.number, s.last, 0), coalesce(b.before_messages + b.count, s.messages, 0),
    coalesce(b.before_bytes + b.size, s.bytes, 0)))
from json_each(?1) as a
left join batch as b on b.number = (
    select number from batch where audience = a.value order by number desc limit 1)
left join audience as s on s.number = a.value
"""

_HEADS = """
select json_group_array(json_array(a.value ->> 0, a.value ->> 1, b.number, b.count,
    b.before_messages, b.before_bytes, b.size))
from json_each(?1) as a cross join batch as b
where b.number = (select c.number from batch as c
    where c.audience = a.value ->> 0 and c.number >= a.value ->> 1 order by c.number limit 1)
"""

_ROWS = """
select json_group_array(json_array(b.number, b.audience, b.count, b.size))
from json_each(?1) as a cross join batch as b where b.number = a.value
"""

# Of all sets: that one is among those asked for costs less to find out here than there.
_SCANNED = """
select json_group_array(json_array(audience, messages, bytes)) from (
    select b.audience, sum(b.count) as messages, sum(b.size) as bytes
    from json_each(?1) as a cross join batch as b
    where b.number between a.value ->> 0 and a.value ->> 1 group by b.audience)
"""

_NEXT = """
select b.number from json_each(?1) as a cross join batch as b
where b.number = (
    select c.number from batch as c
    where c.audience = a.value and c.number >= ?2 and (c.number > ?2 or c.count > ?3)
    order by c.number limit 1)
order by b.number limit 1
"""

_NAMED = """
select json_group_array(json_array(b.number, b.subject, b.stored_at))
from json_each(?1) as a cross join batch as b where b.number = a.value
"""

_numbers = msgspec.json.Decoder(list[int]).decode
_threes = msgspec.json.Decoder(list[tuple[int, int, int]]).decode
_fours = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode
_heads = msgspec.json.Decoder(list[tuple[int, int, int, int, int, int, int]]).decode
_progress = msgspec.json.Decoder(list[tuple[int, int, int, int, int, int, int, int, int]]).decode
_named = msgspec.json.Decoder(list[tuple[int, str, int]]).decode


class _Total(NamedTuple):
    """All that a set of receivers has had, and the number of its last batch."""

    last: int
    messages: int
    bytes: int


class _Head(NamedTuple):
    """The first batch of a set from a number on, and what the set had before it."""

    number: int
    messages: int
    before_messages: int
    before_bytes: int
    size: int


class _Waiting(NamedTuple):
    """The messages that wait for a receiver, and their bytes; and where the oldest may be.

    `split`: what of batches is settled in part, as `Account` says it.
    """

    messages: int
    bytes: int
    oldest: int | None
    split: list[tuple[int, int, int]]


class _Asked(NamedTuple):
    """A receiver whose messages are counted: those of its audiences from a position on."""

    start: int  # above its cursor
    audiences: Sequence[int]
    final: Sequence[Range]  # what of it is final: rising, and from `start` on


class Page:
    """One state of the tables, and what was looked up of it for the receivers of a page."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._totals: dict[int, _Total] = {}  # by audience
        self._heads: dict[tuple[int, int], _Head] = {}  # by audience and number
        # By number: audience, messages, bytes of a batch in which a range begins or ends.
        self._ends: dict[int, tuple[int, int, int]] = {}

    def look_up(
        self, cursors: Sequence[tuple[int, Sequence[int], Sequence[Range]]]
    ) -> list[_Asked]:
        """Look up what is asked of receivers: cursor, audiences, and what is final above it."""
        db = self._db
        # What counts may begin in the batch behind: there a range is cut that begins before it.
        begins = [number_of(cursor + 1) for cursor, _, _ in cursors]
        ends = {*begins, *(number + 1 for number in begins)}
        for _, _, final in cursors:
            ends.update([number_of(first) for first, _ in final])
            ends.update([number_of(last) for _, last in final])
        for number, audience, count, size in _fours(one(db, _ROWS, (as_json(list(ends)),))):
            self._ends[number] = (audience, count, size)
        sets = {audience for _, audiences, _ in cursors for audience in audiences}
        for audience, last, messages, size in _fours(one(db, _TOTALS, (as_json(list(sets)),))):
            self._totals[audience] = _Total(last, messages, size)
        asked: list[_Asked] = []
        heads: dict[tuple[int, int], None] = {}
        for cursor, audiences, final in cursors:
            start = self._start_above(cursor)
            number = number_of(start)
            for audience in audiences:
                if self._totals[audience].last >= number:
                    heads[audience, number] = None
            ranges = [(max(first, start), last) for first, last in final if last >= start]
            asked.append(_Asked(start, audiences, ranges))
        self._heads = self._heads_of(list(heads))
        return asked

    def _start_above(self, cursor: int) -> int:
        """Return the first position above a cursor that may be one of a message."""
        start = cursor + 1
        row = self._ends.get(number_of(start))
        if row is not None and index_of(start) >= row[1]:
            return position_of(number_of(start) + 1)
        return start

    def _heads_of(self, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], _Head]:
        found = _heads(one(self._db, _HEADS, (as_json(wanted),)))
        return {(audience, number): _Head(*head) for audience, number, *head in found}

    def routed(self, audiences: Iterable[int]) -> int:
        """Return how many messages these audiences have had."""
        totals = self._totals
        return sum([totals[audience].messages for audience in audiences])

    def waiting(self, asked: _Asked, split_max: int = 0) -> _Waiting:
        """Return what waits for a receiver: exact, but for the bytes of very many split batches.

        All that its audiences had, less what lies before its start, less what is final behind it.
        A batch's header counts with its first message. Of more than `split_max` batches that are
        settled in part, those beyond count whole.
        """
        start, audiences, final = asked
        number = number_of(start)
        messages = size = 0
        settled: dict[int, list[Range]] = {}  # indexes, by number of the batch
        oldest: int | None = None
        for audience in audiences:
            head = self._heads.get((audience, number))
            if head is None:
                continue  # all of it lies before
            total = self._totals[audience]
            messages += total.messages - head.before_messages
            size += total.bytes - head.before_bytes
            first = position_of(head.number)
            if first < start:
                messages -= start - first
                settled[number] = [(0, index_of(start) - 1)]
                first = start
            oldest = first if oldest is None else min(oldest, first)
        sets, spans = set(audiences), []
        for first, last in final:
            begin, end = number_of(first), number_of(last)
            for at in (begin,) if begin == end else (begin, end):
                row = self._ends.get(at)
                if row is None or row[0] not in sets:
                    continue
                low = index_of(first) if at == begin else 0
                high = min(index_of(last), row[1] - 1) if at == end else row[1] - 1
                if low <= high:
                    messages -= high - low + 1
                    settled.setdefault(at, []).append((low, high))
            if end - begin > 1:
                spans.append((begin + 1, end - 1))
        for found in self._inside(spans, audiences):
            messages -= found[0]
            size -= found[1]
        split: list[tuple[int, int, int]] = []
        size -= self._settled_bytes(settled, split_max, split)
        return _Waiting(messages, size, oldest if messages else None, split)

    def _inside(self, spans: list[Range], audiences: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Return what messages and bytes of these audiences have numbers in these spans."""
        short_max = SCANNED_EACH * len(audiences)
        short = [span for span in spans if span[1] - span[0] < short_max]
        if short:
            sets = set(audiences)
            for audience, messages, size in _threes(one(self._db, _SCANNED, (as_json(short),))):
                if audience in sets:
                    yield messages, size
        long = [span for span in spans if span[1] - span[0] >= short_max]
        at_once = max(1, PAGE_MEMBERSHIPS // max(1, len(audiences)))
        for at in range(0, len(long), at_once):
            signs = [
                pair for low, high in long[at : at + at_once] for pair in ((low, -1), (high + 1, 1))
            ]
            heads = self._heads_of(
                [(audience, number) for number, _ in signs for audience in audiences]
            )
            for number, sign in signs:
                for audience in audiences:
                    head = heads.get((audience, number))
                    if head is None:
                        _, messages, size = self._totals[audience]
                    else:
                        messages, size = head.before_messages, head.before_bytes
                    yield sign * messages, sign * size

    def _settled_bytes(
        self, settled: dict[int, list[Range]], split_max: int, split: list[tuple[int, int, int]]
    ) -> int:
        """Return the bytes of the settled parts of these batches; what is split goes into that."""
        size_sum = 0
        for number in sorted(settled):
            _, count, size = self._ends[number]
            parts = settled[number]
            messages = sum([last - first + 1 for first, last in parts])
            if messages >= count:
                size_sum += size
                continue
            of_it = 0
            if split_max:
                split_max -= 1
                frame = one(self._db, "select frame from batch where number = ?", (number,))
                if frame is None:
                    continue
                sizes = message_sizes(frame)
                for first, last in parts:
                    of_it += sum(sizes[first : last + 1])
                    of_it += 0 if first else header_size(frame)
                size_sum += of_it
            split.append((number, messages, of_it))
        return size_sum

    def oldest(self, asked: _Asked, first: int) -> int | None:
        """Return the position of the first message that is not final, at or behind `first`.

        `first`: of the receiver's first message from its start on. What follows a cursor is hardly
        ever final, so the log is hardly ever asked.
        """
        final = asked.final
        audiences = as_json(list(asked.audiences))
        while True:
            at = bisect_right(final, first, key=_first_of) - 1
            if at < 0 or final[at][1] < first:
                return first
            behind = final[at][1] + 1
            number = one(self._db, _NEXT, (audiences, number_of(behind), index_of(behind)))
            if number is None:
                return None
            first = max(behind, position_of(number))


_first_of = itemgetter(0)


def queued_of(
    db: apsw.Connection, cursor: int, audiences: Sequence[int], final: Sequence[Range]
) -> int:
    """Return how many messages of a receiver's audiences are not final, from the log alone.

    `final`: its final exceptions above its cursor, rising.
    """
    page = Page(db)
    (asked,) = page.look_up([(cursor, audiences, final)])
    return page.waiting(asked).messages


class Accounts:
    """The accounts of receivers, page by page. `step` until it says False, then `found`."""

    def __init__(self, state: State, receivers: Sequence[int] | None) -> None:
        self._state = state
        known = state.receivers
        self._order = sorted(known) if receivers is None else list(receivers)
        self._sets: dict[int, list[int]] = {number: [] for number in self._order}  # by receiver
        self._known: set[int] = set()  # sets that were looked at for that
        # Those at one place beside each other: what lies before it is looked up once.
        self._left = sorted(
            self._sets, key=lambda number: known[number].cursor if number in known else -1
        )
        self._found: dict[int, Account] = {}

    @property
    def found(self) -> list[Account]:
        """The accounts of those receivers that were not removed, in the order that was asked."""
        found = self._found
        return [found[number] for number in self._order if number in found]

    def step(self, db: apsw.Connection) -> bool:
        """Take the accounts of one page, in one read transaction; return whether there is more."""
        if not self._left:
            return False
        self._look_at_sets(db)
        numbers: list[int] = []
        memberships = 0
        for number in self._left[:PAGE_RECEIVERS]:
            memberships += len(self._sets[number])
            if numbers and memberships > PAGE_MEMBERSHIPS:
                break
            numbers.append(number)
        rows_of = {row[0]: row for row in _progress(one(db, _PROGRESS, (as_json(numbers),)))}
        live = [number for number in numbers if number in rows_of and not rows_of[number][2]]
        final = _final_of(db, [(number, rows_of[number][1]) for number in live])
        done = numbers
        if len(final) < len(live):  # those behind are for the next page
            done = numbers[: numbers.index(live[len(final)])]
        self._left = self._left[len(done) :]
        self._take(db, [(rows_of[number], final[number]) for number in final])
        return bool(self._left)

    def _look_at_sets(self, db: apsw.Connection) -> None:
        """Look at the sets that were stored since the page before, if any: who is in them."""
        known, of = self._known, self._sets
        for audience in _numbers(one(db, "select json_group_array(number) from audience")):
            if audience in known:
                continue
            known.add(audience)
            members = audience_of(db, self._state, audience).members
            if len(of) * 16 < len(members):
                for number in of:
                    if is_member(members, number):
                        of[number].append(audience)
            else:
                for number in members:
                    sets = of.get(number)
                    if sets is not None:
                        sets.append(audience)

    def _take(self, db: apsw.Connection, receivers: list[tuple[Any, list[Range]]]) -> None:
        page = Page(db)
        found = page.look_up([(row[1], self._sets[row[0]], final) for row, final in receivers])
        taken: list[tuple[Any, _Asked, _Waiting, int | None]] = []
        for (row, _final), asked in zip(receivers, found, strict=True):
            waiting = page.waiting(asked, SPLIT_MAX)
            first = waiting.oldest
            oldest = None if first is None else page.oldest(asked, first)
            taken.append((row, asked, waiting, oldest))
        batches = {number_of(oldest) for _, _, _, oldest in taken if oldest is not None}
        named = {
            number: (subject, at)
            for number, subject, at in _named(one(db, _NAMED, (as_json(list(batches)),)))
        }
        for row, asked, waiting, oldest in taken:
            number, _cursor, _removed, collected, *settled = row
            self._found[number] = Account(
                receiver=number,
                routed=page.routed(asked.audiences) + collected,
                queued=waiting.messages,
                settled={
                    int(status): count
                    for status, count in zip(SETTLED, settled, strict=True)
                    if count
                },
                queued_bytes=waiting.bytes,
                split=waiting.split,
                oldest=None if oldest is None else Oldest(oldest, *named[number_of(oldest)]),
            )


def _final_of(db: apsw.Connection, cursors: list[tuple[int, int]]) -> dict[int, list[Range]]:
    """Return what is final above these receivers' cursors, rising: of the first, and of more.

    `cursors`: receiver and cursor.
    """
    if not cursors:
        return {}
    final = int(Status.ACKNOWLEDGED)
    found = _threes(one(db, _FINAL, (as_json(cursors), final, PAGE_RANGES)))
    whole = [number for number, _ in cursors]
    if len(found) == PAGE_RANGES:
        # Of the last one there may be more.
        whole = whole[: whole.index(found[-1][0])]
        if not whole:
            whole = [cursors[0][0]]
            found = _threes(one(db, _FINAL, (as_json(cursors[:1]), final, -1)))
    ranges: dict[int, list[Range]] = {number: [] for number in whole}
    for number, first, last in found:
        if number in ranges:
            ranges[number].append((first, last))
    for of_one in ranges.values():
        of_one.sort()
    return ranges


def is_member(members: Sequence[int], number: int) -> bool:
    """Whether a receiver is among the members of an audience, which rise."""
    at = bisect_left(members, number)
    return at < len(members) and members[at] == number
