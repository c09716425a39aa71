"""History of messages: states of a sender's sequences, one message by name, dead letters.

Functions over one connection, used on the reader's thread; each reads for one page.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

import apsw
import msgspec

from msgservice.core.marks import Key, SenderState
from msgservice.core.ranges import RangeSet
from msgservice.core.subjects import matches
from msgservice.disk.database import as_json, one, rows
from msgservice.limits import BATCH_INDEX_BITS, INTEGER_MAX
from msgservice.log.accounts import is_member
from msgservice.log.promises import promise_of
from msgservice.log.queries import audience_of, decode_origin, runs_of, saved_sender, sender_of
from msgservice.log.state import State
from msgservice.message import Status
from msgservice.records import (
    NOBODY,
    NODE,
    Audience,
    DeadLetter,
    ExceptionRow,
    Found,
    History,
    Piece,
    StateRange,
    index_of,
    number_of,
    position_of,
)

FINISHED_PAGE = 8192  # of one page: ranges that outlived their batches, about
DEAD_PAGE_BYTES = 4 * 1024 * 1024  # of one page of dead letters, and what the last is longer
MEMBERS_MAX = 65_536  # of one page: receivers, over all its batches
PASSED_ON_ROWS = 10_000  # that are looked at in one page, for a message that was passed on
SAME_ID_MAX = 10_000  # messages with one id among which a sender's is looked for: some 20 ms

_decode_pairs = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_pieces = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode
_decode_heads = msgspec.json.Decoder(list[tuple[int, int, int]]).decode
_decode_delayed = msgspec.json.Decoder(list[tuple[int, int, int, int, int, str]]).decode
_decode_origins = msgspec.json.Decoder(list[tuple[int, int, str]]).decode
_decode_newest = msgspec.json.Decoder(list[tuple[int, str]]).decode
_decode_finished = msgspec.json.Decoder(list[tuple[int, int, int, int, str]]).decode

# The receivers of a sender's rows, each found by the index: there may be many rows of each.
_RECEIVERS = """
with recursive found(receiver) as (
    select min(receiver) from finished where sender = ?1
    union all
    select (select min(f.receiver) from finished as f
        where f.sender = ?1 and f.receiver > found.receiver)
    from found where found.receiver is not null)
select receiver from found where receiver is not null
"""

# Of each (receiver, from where): the row that holds that sequence or the next, and those behind.
_FINISHED = """
select json_group_array(json_array(receiver, status, first, last, reason)) from (
    select f.receiver, f.status, f.first, f.last, f.reason
    from json_each(?1) as a cross join finished as f
    where f.sender = ?2 and f.receiver = a.value ->> 0 and f.first in (
        select c.first from finished as c
        where c.sender = ?2 and c.receiver = a.value ->> 0 and c.first <= ?3
            and c.first >= coalesce((select max(b.first) from finished as b
                where b.sender = ?2 and b.receiver = a.value ->> 0 and b.first <= a.value ->> 1),
                0)
        order by c.first limit ?4))
"""

# A sender's rows from one of its sequences on: sequence, count, number, audience.
_OWN = """
select json_group_array(json_array(sequence, count, number, audience)) from (
    select sequence, count, number, audience from batch where sender = ?1 and sequence >=
        coalesce((select max(sequence) from batch where sender = ?1 and sequence <= ?2), 0)
        and sequence + count > ?2 order by sequence limit ?3)
"""

# What was taken by its key, as far as the message that is stored has its row.
_BY_KEY = """
select json_group_array(json_array(sequence, 1, number, audience)) from (
    select a.sequence, b.number, b.audience from alias as a
    cross join batch as b on b.sender = a.of_sender and b.sequence = a.of_sequence
    where a.sender = ?1 and a.sequence >= ?2 order by a.sequence limit ?3)
"""

# … or waits until it is due.
_BY_KEY_DELAYED = """
select json_group_array(json_array(sequence, 1, 0, audience, due_at, identity)) from (
    select a.sequence, d.audience, d.due_at,
        s.name || '/' || s.hash || '/' || d.sequence as identity
    from alias as a
    cross join delayed as d on d.sender = a.of_sender and d.sequence = a.of_sequence
    cross join sender as s on s.id = d.sender
    where a.sender = ?1 and a.sequence >= ?2 order by a.sequence limit ?3)
"""

# Those that wait until they are due: number and audience 0, or that which their sender named.
_OWN_DELAYED = """
select json_group_array(json_array(sequence, count, 0, audience, due_at, '')) from (
    select sequence, count, audience, due_at from delayed where sender = ?1 and sequence >=
        coalesce((select max(sequence) from delayed where sender = ?1 and sequence <= ?2), 0)
        and sequence + count > ?2 order by sequence limit ?3)
"""

# Of the messages that have an id: the newest of each sender's name, among so many.
_NEWEST_WITH_ID = """
select json_group_array(json_array(position, name)) from (
    select max(position) as position, name from (
        select m.position, s.name from message_id as m
        cross join batch as b on b.number = m.position >> ?2
        cross join sender as s on s.id = b.sender
        where m.id = ?1 order by m.position desc limit ?3)
    group by name)
"""

# Messages of others that a node has passed on, by who sent them there: the newest first, so many.
_PASSED_ON = f"""
select json_group_array(json_array(number, count, hex(origin))) from (
    select b.number, b.count, b.origin from (
        select number from batch where number < ?1 order by number desc limit ?4
    ) as a cross join batch as b on b.number = a.number
    where b.origin is not null and instr(b.origin, ?2) and instr(b.origin, ?3)
        and b.sender not in (select id from sender where name = '{NODE}'))
"""  # noqa: S608 - fixed names
_LOWEST = """
select min(number) from (select number from batch where number < ? order by number desc limit ?)
"""

# Of what was taken by its key while that waited, by an id of who handed it in: the message that is
# stored.
_OF_ALIAS_WITH_ID = """
select json_group_array(json_array(position, name)) from (
    select b.number << ?2 as position, s.name from finished_id as f
    cross join alias as a on a.sender = f.sender and a.sequence = f.sequence
    cross join batch as b on b.sender = a.of_sender and b.sequence = a.of_sequence
    cross join sender as s on s.id = b.sender
    where f.name = ?1 order by f.at desc limit ?3)
"""

_HEADS = """
select json_group_array(json_array(b.number, b.count, b.size))
from json_each(?1) as a cross join batch as b on b.number = a.value
"""

Segment = tuple[int, int, Status, int, str]  # first, last, status, attempts, reason


def receivers_of(db: apsw.Connection, sender: int) -> list[int]:
    """Receivers of the states of a sender's messages that have left the log, rising."""
    return [receiver for (receiver,) in rows(db, _RECEIVERS, (sender,))]


def segments(
    first: int, last: int, cursor: int, exceptions: Sequence[ExceptionRow]
) -> list[Segment]:
    """Return the states of positions `first` to `last` at one receiver, rising.

    `exceptions`: rising; where two overlap, the one that begins later says more. What waits for its
    next attempt does so above the cursor only: its row stays whole while any of it does.
    """
    parts: list[Segment] = []
    at = first  # what lies below is told
    open_rows: list[ExceptionRow] = []  # that hold `at` or what is behind it; the last says most

    def fill(end: int) -> None:
        """Tell what lies from `at` to `end`: no row begins in between."""
        nonlocal at
        while at <= end:
            while open_rows and open_rows[-1].last < at:
                open_rows.pop()
            if open_rows:
                row = open_rows[-1]
                stop = min(end, row.last)
                if at <= cursor and not row.status.final:
                    stop = min(stop, cursor)
                    parts.append((at, stop, Status.ACKNOWLEDGED, 0, ""))
                else:
                    parts.append((at, stop, row.status, row.attempts, row.reason))
            elif at <= cursor:
                stop = min(end, cursor)
                parts.append((at, stop, Status.ACKNOWLEDGED, 0, ""))
            else:
                stop = end
                parts.append((at, stop, Status.QUEUED, 0, ""))
            at = stop + 1

    for row in exceptions:
        if row.first > last:
            break
        if row.last >= first:
            fill(row.first - 1)
            open_rows.append(row)
    fill(last)
    return parts


def exceptions_of(db: apsw.Connection, receiver: int, first: int, last: int) -> list[ExceptionRow]:
    """Return a receiver's exceptions that overlap these positions, rising."""
    found = rows(
        db,
        "select receiver, first, last, status, attempts, next_at, reason from exception"
        " where receiver = ? and first <= ? and last >= ? and last >= first order by first",
        (receiver, last, first),
    )
    return [
        ExceptionRow(number, low, high, Status(status), attempts, next_at, reason)
        for number, low, high, status, attempts, next_at, reason in found
    ]


class _Exceptions:
    """A receiver's exceptions, asked for the pieces of one page."""

    def __init__(self, found: list[ExceptionRow]) -> None:
        self._rows = found
        self._firsts = [row.first for row in found]
        # How far any of the rows up to each reaches: rising, where the ends themselves may not be.
        self._reach = list(accumulate((row.last for row in found), max))

    def between(self, first: int, last: int) -> list[ExceptionRow]:
        """Return the exceptions that may overlap these positions, rising, and few others."""
        begin = bisect_left(self._reach, first)
        return self._rows[begin : bisect_right(self._firsts, last)]


def cursors(db: apsw.Connection) -> dict[int, int]:
    """Return receiver number -> cursor."""
    text = one(db, "select json_group_array(json_array(receiver, cursor)) from progress")
    return dict(_decode_pairs(text))


def history(
    db: apsw.Connection, state: State, sender: str, incarnation: str, first: int, pieces_max: int
) -> History:
    """Return one page of what is known of a sender's sequences from `first` on.

    It ends where it has enough, be it of batches, of their receivers, or of what became of those
    that retention has removed; `next` says where it goes on.
    """
    known = _known_sender(db, state, (sender, incarnation))
    if known is None:
        return History(pieces=(), states=(), next=None)
    pieces, end, by_key = _pieces(db, state, known.id, first, pieces_max)
    receivers = receivers_of(db, known.id)
    finished, end = _finished(db, known.id, receivers, first, end)
    if end is not None:
        pieces = [
            msgspec.structs.replace(piece, last=min(piece.last, end))
            for piece in pieces
            if piece.first <= end
        ]
    states = [*_states_of_pieces(db, pieces), *finished]
    states.sort(key=lambda row: (row.first, row.receiver))
    return History(
        pieces=tuple(pieces),
        states=tuple(states),
        next=None if end is None else end + 1,
        gone=_gone(known, first, INTEGER_MAX if end is None else end, pieces, states),
        by_key=tuple(at for at in by_key if end is None or at <= end),
    )


def _known_sender(db: apsw.Connection, state: State, key: Key) -> SenderState | None:
    """Return the marks of a sender, on the reader's thread, before its first look at the tables.

    So what is taken by them is in what the tables are seen to hold.
    """
    known = state.senders.get(key)
    if known is None and key in state.asleep:
        known = saved_sender(db, key)
    return known or state.senders.get(key)  # it woke up between the two looks


def history_of_removed(
    db: apsw.Connection,
    state: State,
    key: Key,
    first: int,
    pieces_max: int,
    receivers: Collection[int],
) -> History:
    """Return one page of the states that a sender's messages have at receivers that were removed.

    Nothing that was stored since is for these, so the state has all sets that they are in.
    """
    known = _known_sender(db, state, key)
    if known is None:
        return History(pieces=(), states=(), next=None)
    gone = sorted(set(receivers))
    sets = {
        number: Audience(number, members)
        for number, total in list(state.totals.items())
        if (members := tuple(n for n in gone if is_member(total.audience.members, n)))
    }
    pieces: list[Piece] = []
    end: int | None = None
    if sets:
        found, _ = _own(db, state, known.id, first, pieces_max + 1)
        if len(found) > pieces_max:
            end = found.pop()[0] - 1
        for sequence, count, number, audience in found:
            whom = sets.get(audience)
            if whom is not None:
                low = max(first, sequence)
                position = position_of(number, low - sequence)
                pieces.append(Piece(low, sequence + count - 1, whom, position))
    finished, end = _finished(db, known.id, gone, first, end)
    if end is not None:
        pieces = [
            Piece(piece.first, min(piece.last, end), piece.audience, piece.position)
            for piece in pieces
            if piece.first <= end
        ]
    states = [*_states_of_pieces(db, pieces), *finished]
    states.sort(key=lambda row: (row.first, row.receiver))
    return History(pieces=(), states=tuple(states), next=None if end is None else end + 1)


def _gone(
    known: SenderState,
    first: int,
    end: int,
    pieces: Sequence[Piece],
    states: Sequence[StateRange],
) -> tuple[tuple[int, int], ...]:
    """Return what was taken of `first` to `end` and is in neither: nothing else is known of it."""
    told = RangeSet((piece.first, piece.last) for piece in pieces)
    for row in states:
        told.add(row.first, row.last)
    gone: list[tuple[int, int]] = []
    for low, high in [(1, known.floor - 1), *(known.ranges or ())]:
        low, high = max(low, first), min(high, end)
        if low <= high:
            gone += told.missing(low, high)
    return tuple(gone)


def _own(
    db: apsw.Connection, state: State, sender: int, first: int, count: int
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """Return the next rows of a sender, rising, and which of these are of others, by its keys."""
    found = _decode_pieces(one(db, _OWN, (sender, first, count)))
    if not state.aliases:
        return found, []
    by_key = _decode_pieces(one(db, _BY_KEY, (sender, first, count)))
    found = sorted([*found, *by_key])[:count]
    return found, [row[0] for row in by_key]


def _pieces(
    db: apsw.Connection, state: State, sender: int, first: int, pieces_max: int
) -> tuple[list[Piece], int | None, list[int]]:
    """Return the pieces still in the log from `first` on, rising, and the last sequence, if cut.

    And the sequences of what was taken by its key, of these and maybe more.
    """
    own, by_key = _own(db, state, sender, first, pieces_max + 1)
    found = [(*row, 0, "") for row in own]
    if one(db, "select delayed_count from head"):
        found += _decode_delayed(one(db, _OWN_DELAYED, (sender, first, pieces_max + 1)))
        if state.aliases:
            waits = _decode_delayed(one(db, _BY_KEY_DELAYED, (sender, first, pieces_max + 1)))
            by_key += [row[0] for row in waits]
            found += waits
        found.sort()
        del found[pieces_max + 1 :]
    pieces: list[Piece] = []
    members = 0
    for sequence, count, number, audience, due, of in found:
        whom = audience_of(db, state, audience) if audience else NOBODY
        members += len(whom.members)
        if len(pieces) == pieces_max or (pieces and members > MEMBERS_MAX):
            return pieces, pieces[-1].last, by_key
        low = max(first, sequence)
        position = 0 if due else position_of(number, low - sequence)
        pieces.append(Piece(low, sequence + count - 1, whom, position, due, of))
    return pieces, None, by_key


def _finished(
    db: apsw.Connection, sender: int, receivers: Sequence[int], first: int, end: int | None
) -> tuple[list[StateRange], int | None]:
    """Return the states of removed batches from `first` to `end`, and how far they are complete.

    Every receiver is asked for an equal share; what some leave goes to those that have more.
    """
    top = INTEGER_MAX if end is None else end
    waiting = [(receiver, first) for receiver in receivers]
    found: list[tuple[int, int, int, int, str]] = []
    room = FINISHED_PAGE
    while waiting:
        share = max(2, room // len(waiting))
        by_receiver: dict[int, list[tuple[int, int, int, int, str]]] = {}
        for row in _decode_finished(one(db, _FINISHED, (as_json(waiting), sender, top, share + 1))):
            by_receiver.setdefault(row[0], []).append(row)
        waiting = []
        for receiver, of_one in by_receiver.items():
            of_one.sort(key=lambda row: row[2])
            if len(of_one) > share:
                waiting.append((receiver, of_one.pop()[2]))
            found += of_one
            room -= len(of_one)
        if waiting and room < 2 * len(waiting):
            top = end = min(begin for _, begin in waiting) - 1
            break
    return [
        StateRange(receiver, Status(status), max(low, first), min(high, top), reason)
        for receiver, status, low, high, reason in found
        if low <= top and high >= first
    ], end


def _states_of_pieces(db: apsw.Connection, pieces: Sequence[Piece]) -> list[StateRange]:
    """Return the final states of batches that are still in the log, adjacent ones joined."""
    pieces = [piece for piece in pieces if not piece.due]
    if not pieces:
        return []
    low = min(piece.position for piece in pieces)
    high = max(piece.position + piece.last - piece.first for piece in pieces)
    at = cursors(db)
    exceptions: dict[int, _Exceptions] = {}
    open_ranges: dict[int, StateRange] = {}  # receiver -> the one that may still grow
    done: list[StateRange] = []
    for piece in pieces:
        last = piece.position + piece.last - piece.first
        for receiver in piece.audience.members:
            if receiver not in exceptions:
                exceptions[receiver] = _Exceptions(exceptions_of(db, receiver, low, high))
            for start, stop, status, _attempts, reason in segments(
                piece.position,
                last,
                at.get(receiver, -1),
                exceptions[receiver].between(piece.position, last),
            ):
                if not status.final:
                    continue
                first = piece.first + start - piece.position
                new = StateRange(receiver, status, first, first + stop - start, reason)
                before = open_ranges.get(receiver)
                if (
                    before is not None
                    and before.last + 1 == new.first
                    and (before.status, before.reason) == (new.status, new.reason)
                ):
                    new = StateRange(receiver, status, before.first, new.last, reason)
                elif before is not None:
                    done.append(before)
                open_ranges[receiver] = new
    return done + list(open_ranges.values())


def find(
    db: apsw.Connection,
    state: State,
    identity: str,
    after: int = 0,
    count_max: int | None = None,
    senders: Collection[str] | None = None,
) -> Found | None:
    """Return one message by `log:POSITION`, `SENDER/HASH/SEQUENCE`, or its sender's id.

    With the states of `count_max` receivers whose numbers are above `after`, rising. `senders`:
    patterns of names, and of the messages with an id only those of such senders are looked at.
    """
    position = _position_of_identity(db, state, identity, senders)
    if position is None:
        return None
    row = one(
        db,
        "select sender, sequence, subject, size, stored_at, audience, count from batch"
        " where number = ?",
        (number_of(position),),
    )
    index = index_of(position)
    if row is None or index >= row[6]:
        return None
    sender, sequence, subject, size, stored_at, audience, count = row
    key = sender_of(db, state, sender)
    if key is None:
        return None
    name, incarnation = key
    at = cursors(db)
    states = {}
    members = audience_of(db, state, audience).members
    begin = bisect_right(members, after)
    end = len(members) if count_max is None else begin + count_max
    for receiver in members[begin:end]:
        exceptions = exceptions_of(db, receiver, position, position)
        ((_, _, status, attempts, reason),) = segments(
            position, position, at.get(receiver, -1), exceptions
        )
        states[receiver] = (status, attempts, reason)
    return Found(
        position=position,
        sender=name,
        incarnation=incarnation,
        sequence=sequence + index,
        subject=subject,
        size=size,
        stored_at=stored_at,
        states=states,
        more=end < len(members),
        count=count,
        promise=promise_of(db, sender, sequence + index),
    )


def _position_of_identity(
    db: apsw.Connection, state: State, identity: str, senders: Collection[str] | None
) -> int | None:
    kind, _, rest = identity.partition(":")
    if kind == "log" and rest.isascii() and rest.isdigit():
        return int(rest) if len(rest) < 20 and int(rest) < 2**63 else None
    parts = split_identity(identity)
    if parts is not None:
        position = of_local_sender(db, state, *parts)
        if position is not None:
            return position
    if senders is None:
        named: int | None = one(
            db,
            "select position from message_id where id = ? order by position desc limit 1",
            (identity,),
        )
        if named is not None:
            return named
    # Anybody may give the id that another has given: that hides nobody's message from himself.
    wanted = (identity, BATCH_INDEX_BITS, SAME_ID_MAX)
    newest = [] if senders is None else _decode_newest(one(db, _NEWEST_WITH_ID, wanted))
    if state.aliases:
        newest += _decode_newest(one(db, _OF_ALIAS_WITH_ID, wanted))
    if senders is None:
        return max([at for at, _ in newest], default=None)
    return max(
        [at for at, name in newest if any(matches(pattern, name) for pattern in senders)],
        default=None,
    )


def of_local_sender(
    db: apsw.Connection, state: State, name: str, hashed: str, sequence: int
) -> int | None:
    """Return the position of a message of a sender of this node's, or None."""
    called = rows(db, "select id from sender where name = ? and hash = ?", (name, hashed))
    for (sender,) in called:
        runs = runs_of(db, state, sender, sequence, sequence)
        if runs:
            return position_of(runs[0].number, sequence - runs[0].sequence)
    return None


def split_identity(identity: str) -> tuple[str, str, int] | None:
    """Return sender, hash and sequence of `SENDER/HASH/SEQUENCE`; None where it is none."""
    parts = identity.rsplit("/", 2)
    if len(parts) == 3 and parts[2].isascii() and parts[2].isdigit() and len(parts[2]) < 17:
        return parts[0], parts[1], int(parts[2])
    return None


class PassedOn:
    """The search for a message that another node has passed on, by the identity it has had there.

    A log has no index of these: the newest rows are looked at, a page at a time.
    """

    def __init__(self, sender: str, hashed: str, sequence: int, below: int = INTEGER_MAX) -> None:
        self.position: int | None = None
        self._sender, self._hash, self._sequence = sender, hashed, sequence
        self._below = below

    def step(self, db: apsw.Connection) -> bool:
        """Look at a page; return whether there is more to look at."""
        wanted = (self._sender.encode(), self._hash.encode())
        text = one(db, _PASSED_ON, (self._below, *wanted, PASSED_ON_ROWS))
        for number, count, origin in sorted(_decode_origins(text), reverse=True):
            of = decode_origin(bytes.fromhex(origin))
            index = self._sequence - of.sequence
            if (of.sender, of.incarnation) == (self._sender, self._hash) and 0 <= index < count:
                self.position = position_of(number, index)
                return False
        lowest = one(db, _LOWEST, (self._below, PASSED_ON_ROWS))
        self._below = lowest or 0
        return lowest is not None


def is_passed_on(db: apsw.Connection, identity: str) -> PassedOn | None:
    """Return the search for a message whose sender was never here; None where it was."""
    parts = split_identity(identity)
    if parts is None:
        return None
    known = rows(
        db,
        "select 1 from sender where name = ?1 and hash = ?2"
        " union all select 1 from former where name = ?1 and hash = ?2",
        parts[:2],
    )
    return None if known else PassedOn(*parts)


def incarnation(db: apsw.Connection, sender: str, hash_: str) -> str | None:
    """Return the incarnation of a sender by its hash, or None."""
    found: str | None = one(
        db, "select incarnation from sender where name = ? and hash = ?", (sender, hash_)
    )
    return found


def heads(db: apsw.Connection, numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the messages and bytes of these batches, as far as they have their row."""
    found = _decode_heads(one(db, _HEADS, (as_json(numbers),)))
    return {number: (count, size) for number, count, size in found}


def of_key(db: apsw.Connection, digest: bytes) -> str | None:
    """Return the message that was stored by an idempotency key, as SENDER/HASH/SEQUENCE."""
    for name, hash_, sequence in rows(
        db,
        "select s.name, s.hash, k.sequence from idempotency as k"
        " cross join sender as s on s.id = k.sender where k.digest = ?",
        (digest,),
    ):
        return f"{name}/{hash_}/{sequence}"
    return None


def dead_letters(
    db: apsw.Connection, receiver: int, after: int, count_max: int
) -> list[DeadLetter]:
    """Return a receiver's dead letters above a position, rising: as many as a page holds."""
    found = db.execute(
        "select receiver, position, sender, incarnation, sequence, subject, message, reason,"
        " attempts, at, flags, origin, code from dead"
        " where receiver = ? and position > ? order by position limit ?",
        (receiver, after, count_max),
    )
    letters: list[DeadLetter] = []
    size = 0
    for row in found:
        values: list[Any] = [*row]
        if row[11] is not None:
            values[11] = decode_origin(row[11])
        letters.append(DeadLetter(*values))
        size += len(letters[-1].message)
        if size >= DEAD_PAGE_BYTES:
            found.close()
            break
    return letters
