"""The next copies of a replay: which messages, read in pages, and as the copies that they become.

A rewind, and what was lost, follow the sets of their receiver by their index; the other kinds look
at every row of their range, and at its subject. A page is what one read transaction looks at
(`queries.py`). How far a replay is, is in `staging`; when its next page is asked for, in
`node.replayer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import apsw
import msgspec

from msgservice.core.copies import Range, copies_of, replayed_of
from msgservice.core.subjects import matches
from msgservice.disk.database import as_json, one
from msgservice.limits import INTEGER_MAX
from msgservice.log.accounts import is_member
from msgservice.log.dedupe import NAMED
from msgservice.log.history import PassedOn, exceptions_of, of_local_sender
from msgservice.log.queries import audience_of, batches_of, senders_of
from msgservice.log.state import State
from msgservice.message import FLAG_REPLAY, FLAG_RETAIN_ONLY, FLAG_RETAINED, Status, decode_messages
from msgservice.records import (
    LOST,
    NODE,
    OF_ACKNOWLEDGED,
    REWIND,
    START,
    Batch,
    Copies,
    ExceptionRow,
    Replay,
    index_of,
    number_of,
    position_of,
)

PAGE_ROWS = 4096  # looked at in one page, for copies
# … and in the first step of SQLite of that, the following ones, each more than the one before, and
# at most: of runs of 200 messages a small page has five, of single messages it has thousands.
FEW_ROWS, MORE_ROWS, MANY_ROWS = 16, 4, 1024
COUNT_ROWS = 16_384  # … where only their number is asked for
NUMBERS_MAX = INTEGER_MAX >> 16

_OF_SETS = """
select json_group_array(json_array(number, audience, count, size, kept, flags, subject, sender))
from (
    select b.number, b.audience, b.count, b.size, b.frame is not null as kept, b.flags, b.subject,
        b.sender
    from json_each(?1) as a cross join batch as b
    where b.number in (
        select c.number from batch as c
        where c.audience = a.value and c.number between ?2 and ?3 order by c.number limit ?4))
"""

_ALL = """
select json_group_array(json_array(number, audience, count, size, kept, flags, subject, sender))
from (
    select number, audience, count, size, frame is not null as kept, flags, subject, sender
    from batch where number between ?1 and ?2 order by number limit ?3)
"""

_SINCE = """
select number, stored_at from batch where number >= ? order by number limit 1
"""


class _Row(NamedTuple):
    number: int
    audience: int
    messages: int
    size: int
    kept: int  # whether its messages are there
    flags: int
    subject: str
    sender: int


_decode_rows = msgspec.json.Decoder(list[_Row]).decode


class _Page(NamedTuple):
    """The rows that one page looks at, rising, and the number behind the last of them."""

    rows: list[_Row]
    next: int


def copies(
    db: apsw.Connection,
    state: State,
    replay: Replay,
    patterns: Sequence[str] | None,
    bytes_max: int,
    size_max: int,
    count_only: bool = False,
) -> Copies:
    """Return the next copies of a replay, of about `bytes_max` bytes; see `ILog.replay`."""
    low, high = number_of(replay.next), min(number_of(replay.end), NUMBERS_MAX)
    if replay.since:
        low = max(low, number_of(position_at(db, state, replay.since)))
    left = COUNT_ROWS if count_only else PAGE_ROWS
    of: Callable[[_Row], Sequence[Range]]
    copied = FLAG_REPLAY  # by this node: the original is here, or was
    if replay.kind == LOST:
        copied = 0
    elif replay.kind != REWIND:
        of = _Matching(db, state, replay.receiver, _Subjects(patterns or ())).of
        # For whom a copy of what is retained was, has it; who has history has the original.
        copied |= FLAG_RETAINED
    # What is only retained is for who joins, and was for the next nodes, which retained it then.
    never = 0 if replay.kind == START else FLAG_RETAIN_ONLY
    allowed = None if patterns is None else _Subjects(patterns)
    picked: dict[int, list[Range]] = {}
    size = messages = skipped = 0
    end, is_full, few = low, False, FEW_ROWS
    while end <= high and left > 0 and not is_full:
        # Few at first: most are copied, and a page is full of them soon.
        rows_max = COUNT_ROWS if count_only else min(few, left)
        few = min(MORE_ROWS * few, MANY_ROWS)
        if replay.kind in OF_ACKNOWLEDGED:
            page = _of_sets(db, state, replay.receiver, end, high, rows_max)
            of = _Acknowledged(db, replay.receiver, page.rows, allowed).of
        else:
            page = _all(db, end, high, rows_max)
        left -= max(rows_max, len(page.rows))
        end = page.next
        own = _own_of(db, state, [row.sender for row in page.rows if row.flags & copied])
        for row in page.rows:
            if row.flags & never or (row.flags & copied and row.sender in own):
                continue
            ranges = _within(replay, row, of(row))
            count = sum([last - first + 1 for first, last in ranges])
            if not count:
                continue
            if not row.kept:
                skipped += count
                continue
            if picked and size + row.size > bytes_max and not count_only:
                end, is_full = row.number, True
                break
            picked[row.number] = ranges
            size += row.size * count // row.messages
            messages += count
    # Behind all that there is it begins where more will be, unless that is behind its end.
    following = position_of(end) if end <= high else replay.end + 1
    if count_only:
        return Copies([], following, messages, size, skipped)
    found: list[int] = []
    made: list[Batch] = []
    repeated = 0
    copied_before = _CopiedBefore(db, state, replay)
    for batch in batches_of(db, state, [*picked]):
        found.append(batch.number)
        ranges = picked.pop(batch.number)
        if replay.kind == LOST and batch.sender == NODE and batch.options.flags & FLAG_REPLAY:
            before = sum([last - first + 1 for first, last in ranges])
            ranges = copied_before.without(batch, ranges)
            repeated += before - sum([last - first + 1 for first, last in ranges])
        made += copies_of(batch, ranges, size_max, expires=replay.kind != REWIND)
    lost = sum([last - first + 1 for ranges in picked.values() for first, last in ranges])
    return Copies(
        made,
        following,
        messages - lost - repeated,
        sum([one.size for one in made]),
        skipped + lost,
    )


def _own_of(db: apsw.Connection, state: State, senders: Sequence[int]) -> set[int]:
    """Return which of these senders are the node itself, under the id of this log or of another."""
    if not senders:
        return set()
    return {
        number for number, (name, _) in senders_of(db, state, {*senders}).items() if name == NODE
    }


class _CopiedBefore:
    """The copies that a replay of what was lost passes over: those whose originals it copies too.

    Without that each loss would double what the next one sends.
    """

    def __init__(self, db: apsw.Connection, state: State, replay: Replay) -> None:
        self._db, self._state, self._replay = db, state, replay
        self._known: dict[int, Sequence[Range]] = {}  # by batch, what of it is copied

    def without(self, batch: Batch, ranges: Sequence[Range]) -> list[Range]:
        """Return what of a batch of copies is to be copied."""
        marked = bytearray(batch.count)
        messages = decode_messages(batch.messages)
        for first, last in ranges:
            for index in range(first, last + 1):
                original = replayed_of(messages[index])
                if original is None:
                    original = self._original_of(batch, index)
                marked[index] = original is None or not self._has(original)
        return _spans(marked)

    def _original_of(self, batch: Batch, index: int) -> int | None:
        """Return the original of a copy that was too large to say it: what has its origin."""
        if batch.origin is None:
            return None
        of = batch.origin.behind(index)
        wanted = (of.sender, of.incarnation, of.sequence)
        here = of_local_sender(self._db, self._state, *wanted)
        if here is not None:
            return here
        passed_on = PassedOn(*wanted, below=batch.number)
        passed_on.step(self._db)  # of others, the newest are looked at
        return passed_on.position

    def _has(self, position: int) -> bool:
        if not self._replay.first <= position <= self._replay.end:
            return False
        number, index = number_of(position), index_of(position)
        found = self._known.get(number)
        if found is None:
            found = self._known[number] = self._acknowledged(number)
        return any(first <= index <= last for first, last in found)

    def _acknowledged(self, number: int) -> Sequence[Range]:
        receiver = self._replay.receiver
        rows = [
            row
            for row in _decode_rows(one(self._db, _ALL, (number, number, 1)))
            if row.kept and is_member(_members(self._db, self._state, row.audience), receiver)
        ]
        return _Acknowledged(self._db, receiver, rows, None).of(rows[0]) if rows else ()


def _members(db: apsw.Connection, state: State, audience: int) -> Sequence[int]:
    return audience_of(db, state, audience).members


def position_at(db: apsw.Connection, state: State, stored_at: int) -> int:
    """Return the position of the first message that was stored at this time or later.

    Behind the last one where there is none. Times of rows rise, so it is looked for by halves.
    """
    low, high = state.oldest, state.next_number
    while low < high:
        middle = (low + high) // 2
        found = one(db, _SINCE, (middle,))
        if found is None or found[1] >= stored_at:
            high = middle
        else:
            low = found[0] + 1
    return position_of(low)


def _of_sets(
    db: apsw.Connection, state: State, receiver: int, low: int, high: int, rows_max: int
) -> _Page:
    sets = [
        number
        for number, total in state.totals.items()
        if total.last >= low and is_member(total.audience.members, receiver)
    ]
    if not sets:
        return _Page([], high + 1)
    each = max(2, -(-rows_max // len(sets)))
    found = sorted(_decode_rows(one(db, _OF_SETS, (as_json(sets), low, high, each))))
    # Of a set whose share was cut there may be more below those of others.
    shown: dict[int, int] = {}
    last: dict[int, int] = {}
    for row in found:
        shown[row.audience] = shown.get(row.audience, 0) + 1
        last[row.audience] = row.number
    horizon = min((last[number] for number, share in shown.items() if share == each), default=high)
    return _Page([row for row in found if row.number <= horizon], horizon + 1)


def _all(db: apsw.Connection, low: int, high: int, rows_max: int) -> _Page:
    found = _decode_rows(one(db, _ALL, (low, high, rows_max)))
    return _Page(found, found[-1].number + 1 if len(found) == rows_max else high + 1)


def _within(replay: Replay, row: _Row, ranges: Sequence[Range]) -> list[Range]:
    """Return what of these ranges lies between the ends of a replay."""
    low = replay.next - position_of(row.number)
    high = replay.end - position_of(row.number)
    if low <= 0 and high >= row.messages - 1:
        return [*ranges]
    return [
        (max(first, low), min(last, high))
        for first, last in ranges
        if last >= low and first <= high
    ]


class _Subjects:
    """The subjects that match any of some patterns."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = patterns
        self._known: dict[str, bool] = {}

    def has(self, subject: str) -> bool:
        known = self._known.get(subject)
        if known is None:
            known = any(matches(pattern, subject) for pattern in self._patterns)
            self._known[subject] = known
        return known


class _Matching:
    """The messages that match subjects, were for all who match, and not for this receiver."""

    def __init__(
        self, db: apsw.Connection, state: State, receiver: int, subjects: _Subjects
    ) -> None:
        self._db, self._state, self._receiver = db, state, receiver
        self._subjects = subjects
        self._sets: dict[int, bool] = {}

    def of(self, row: _Row) -> Sequence[Range]:
        if row.flags & NAMED:
            return ()
        if not self._subjects.has(row.subject) or self._had(row.audience):
            return ()
        return ((0, row.messages - 1),)

    def _had(self, audience: int) -> bool:
        had = self._sets.get(audience)
        if had is None:
            members = _members(self._db, self._state, audience)
            had = self._sets[audience] = is_member(members, self._receiver)
        return had


class _Acknowledged:
    """The messages that a receiver has acknowledged: those of `allowed` subjects (None: of all),
    and what a sender addressed to it.
    """

    def __init__(
        self,
        db: apsw.Connection,
        receiver: int,
        rows: Sequence[_Row],
        allowed: _Subjects | None,
    ) -> None:
        self._allowed = allowed
        cursor = one(db, "select cursor from progress where receiver = ?", (receiver,))
        self._cursor: int = -1 if cursor is None else cursor
        self._rows: list[ExceptionRow] = []
        if rows:
            first, last = position_of(rows[0].number), position_of(rows[-1].number + 1)
            self._rows = exceptions_of(db, receiver, first, last)
        self._at = 0  # none before this one reaches what is still asked for
        self._reach: list[ExceptionRow] = []

    def of(self, row: _Row) -> Sequence[Range]:
        """Asked for rising rows."""
        first = position_of(row.number)
        last = first + row.messages - 1
        while self._at < len(self._rows) and self._rows[self._at].first <= last:
            self._reach.append(self._rows[self._at])
            self._at += 1
        self._reach = [one for one in self._reach if one.last >= first]
        allowed = self._allowed
        if not (allowed is None or row.flags & NAMED or allowed.has(row.subject)):
            return ()
        settled = min(max(self._cursor - first + 1, 0), row.messages)
        if not self._reach:
            return ((0, settled - 1),) if settled else ()
        acknowledged = bytearray(row.messages)
        acknowledged[:settled] = b"\1" * settled
        for one_of in self._reach:  # the one that begins last holds
            low, high = max(one_of.first - first, 0), min(one_of.last - first, row.messages - 1)
            if not one_of.status.final:
                low = max(low, settled)  # what waited below the cursor was settled since
            if low <= high:
                is_so = one_of.status is Status.ACKNOWLEDGED
                acknowledged[low : high + 1] = bytes([is_so]) * (high - low + 1)
        return _spans(acknowledged)


def _spans(marked: bytearray) -> list[Range]:
    found = []
    at = marked.find(1)
    while at >= 0:
        end = marked.find(0, at)
        end = len(marked) if end < 0 else end
        found.append((at, end - 1))
        at = marked.find(1, end)
    return found
