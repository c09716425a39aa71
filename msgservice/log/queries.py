"""Queries of a log: pages of batches, and the runs of a sender. Accounts are in `accounts.py`.

Functions over one connection, used on the reader's thread (and by the writer for what it must know
inside a transaction). Each reads for one page, at most about 50 ms, so the WAL stays small.

A page is fetched with one step of SQLite: rows are folded into one JSON text and one blob. apsw
releases the GIL at every step and must win it back, which costs up to the interpreter's switch
interval while the reactor is busy (bench/log.py: 1,200 rows/s step by step, 300,000 folded).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from zlib import crc32

import apsw
import msgspec

from msgservice.core.marks import Key, SenderState
from msgservice.core.subjects import SubjectMatcher
from msgservice.disk.damage import told_as_damage
from msgservice.disk.database import CRC_MASK, as_json, one, rows
from msgservice.errors import LogDamaged
from msgservice.limits import BATCH_INDEX_BITS, INTEGER_MAX
from msgservice.log.dedupe import FRAME_FLAGS, NAMED, mark_of, named_of
from msgservice.log.repeats import TakenRun
from msgservice.log.state import KeyRow, State
from msgservice.message import FLAG_REPLAY, FLAG_RETAIN_ONLY, FLAG_RETAINED, options_of
from msgservice.records import (
    NOBODY,
    Audience,
    Batch,
    Expiring,
    Origin,
    Retained,
    StreamHeader,
    StreamPage,
    number_of,
    position_of,
)

PAGE_BYTES = 4 * 1024 * 1024  # one read transaction (SEMANTICS 19)
PAGE_ROWS = 4096
# Batches that are looked at first, to see which of them are in a page; each time that they are too
# few, so many times as many. Of runs of 200 messages a page has 20, of which it takes no 4096.
FEW_ROWS, MORE_ROWS = 32, 8
_CRC_PIECE = 5 * 1024

_decode_json = msgspec.json.Decoder(list[list[int]]).decode
_decode_rows = msgspec.json.Decoder(
    list[tuple[int, int, int, int, int, int, str, int, int, int, int, str | None, int | None]]
).decode
_decode_senders = msgspec.json.Decoder(list[tuple[int, str, str]]).decode
_decode_members = msgspec.json.Decoder(list[int]).decode
decode_origin = msgspec.msgpack.Decoder(Origin).decode

_HEADS = """
select json_group_array(json_array(number, audience, count, size)) from (
    select b.number, b.audience, b.count, b.size from json_each(?1) as a cross join batch as b
    where b.number in (
        select c.number from batch as c
        where c.audience = a.value and c.number between ?2 and ?3 order by c.number limit ?4)
)
"""

_PAGE = """
select json_group_array(json_array(number, audience, sender, sequence, count, size, subject,
        stored_at, after, flags, crc, origin, expires_at)),
    cast(group_concat(frame, '') as blob)
from (
    select number, audience, sender, sequence, count, size, subject, stored_at, after, flags, crc,
        hex(origin) as origin, expires_at, frame
    from json_each(?1) as a cross join batch as b
    where b.number = a.value and b.frame is not null)
"""


# The bounds are said again so that SQLite takes the index that has these subjects alone.
_OF_STREAM = """
select json_group_array(json_array(number, count, size, kept, flags)) from (
    select number, count, size, frame is not null as kept, flags
    from batch indexed by batch_stream
    where subject = ?1 and subject >= 'streams.' and subject < 'streams/'
        and number >= ?2 order by number limit ?3)
"""

# Copies, what was for nobody, and what its sender addressed to others was not put into the stream.
_NOT_PUT = FLAG_REPLAY | FLAG_RETAINED | FLAG_RETAIN_ONLY | NAMED

_FIRST_OF_STREAM = """
select number from batch indexed by batch_stream
where subject = ? and subject >= 'streams.' and subject < 'streams/' and frame is not null
order by number limit 1
"""


def read(
    db: apsw.Connection,
    state: State,
    audiences: Collection[int],
    after: int,
    to: int,
    bytes_max: int,
    messages_max: int,
) -> list[Batch]:
    """Return the next batches of these audiences that end above `after`, and begin up to `to`.

    Each audience is followed by the index (audience, number); what belongs to others is never
    looked at (SEMANTICS 24).
    """
    if not audiences:
        return []
    numbers = _numbers(
        db, state, audiences, after, to, min(bytes_max, PAGE_BYTES), min(messages_max, PAGE_ROWS)
    )
    return batches_of(db, state, numbers)


def of_stream(
    db: apsw.Connection, state: State, subject: str, after: int | None, bytes_max: int
) -> StreamPage:
    """Return the next batches of a subject of streams behind a position; see `ILog.of_stream`."""
    newest = _newest(db, state)
    if after is None:
        first = one(db, _FIRST_OF_STREAM, (subject,))
        after = position_of(newest + 1 if first is None else first) - 1
        is_gap = False
    else:
        # Of the rows that have gone nobody knows whose they were, nor how long the last one was.
        after = max(after, position_of(1) - 1)  # no batch has the number 0
        is_gap = after + 1 < position_of(state.oldest)
    found = _decode_json(one(db, _OF_STREAM, (subject, number_of(after), PAGE_ROWS)))
    looked_at = newest if len(found) < PAGE_ROWS else found[-1][0]
    numbers: list[int] = []
    size_sum = 0
    for number, count, size, kept, flags in found:
        if position_of(number, count - 1) <= after or flags & _NOT_PUT:
            continue
        size_sum += size
        is_over = bool(numbers) and size_sum > min(bytes_max, PAGE_BYTES)
        if is_over or not kept:
            is_gap = is_gap or not (is_over or kept)
            looked_at = number - 1
            break
        numbers.append(number)
    return StreamPage(
        batches_of(db, state, numbers, is_anybodys=True),
        is_gap,
        position_of(newest + 1) - 1,
        position_of(looked_at + 1) - 1,
    )


def stream_header(db: apsw.Connection, state: State, subject: str) -> StreamHeader:
    """Return what is retained of a subject, and how far the log is; see `ILog.stream_header`."""
    found = [_retained_from(row) for row in rows(db, _RETAINED, (as_json([subject]),))]
    return StreamHeader(found[0] if found else None, position_of(_newest(db, state) + 1) - 1)


def _newest(db: apsw.Connection, state: State) -> int:
    """Return the number of the newest batch."""
    newest: int = one(db, "select coalesce(max(number), 0) from batch")
    return max(newest, state.oldest - 1)


def _numbers(
    db: apsw.Connection,
    state: State,
    audiences: Collection[int],
    after: int,
    to: int,
    bytes_max: int,
    messages_max: int,
) -> list[int]:
    """Return the numbers of the next page, rising: at least one if there is any."""
    totals = state.totals
    # What has no frame any more is not looked at again.
    dropped = min((totals[a].dropped for a in audiences if a in totals), default=0)
    low = max(number_of(after), dropped + 1)
    most = max(2, -(-messages_max // len(audiences)))
    each = min(most, max(2, FEW_ROWS // len(audiences)))
    while True:
        heads = _decode_json(one(db, _HEADS, (as_json(list(audiences)), low, number_of(to), each)))
        numbers, is_all = _page_of(heads, each, after, bytes_max, messages_max)
        if is_all or each >= most:
            return numbers
        each = min(most, MORE_ROWS * each)


def _page_of(
    heads: list[list[int]], each: int, after: int, bytes_max: int, messages_max: int
) -> tuple[list[int], bool]:
    """Return the numbers of a page, and whether more heads than these could not add to it.

    There are up to `each` of an audience.
    """
    # An audience whose share was cut may have more batches below those of the others.
    shown: dict[int, list[int]] = {}
    for number, audience, _count, _size in heads:
        entry = shown.setdefault(audience, [0, 0])
        entry[0] += 1
        entry[1] = number
    horizon = min((last for share, last in shown.values() if share == each), default=None)
    numbers: list[int] = []
    size_sum = messages = 0
    for number, _audience, count, size in sorted(heads):
        if position_of(number, count - 1) <= after:
            continue
        if horizon is not None and number > horizon:
            return numbers, False
        size_sum += size
        messages += count
        if numbers and (size_sum > bytes_max or messages > messages_max):
            return numbers, True
        numbers.append(number)
    return numbers, horizon is None


def batches_of(
    db: apsw.Connection, state: State, numbers: Sequence[int], *, is_anybodys: bool = False
) -> list[Batch]:
    """Return batches by number, in this order; those without a frame are left out.

    So are those whose sender was forgotten since all was settled, unless they are `is_anybodys`:
    then they are here, without a name of one.
    """
    if not numbers:
        return []
    text, frames = one(db, _PAGE, (as_json(numbers),))
    batches = []
    at = 0
    view = memoryview(frames or b"")
    found = _decode_rows(text)
    keys = senders_of(db, state, {row[2] for row in found})
    for row in found:
        number, audience, sender, sequence, count, size = row[:6]
        subject, stored_at, after, flags, crc, origin, expires_at = row[6:]
        key = keys.get(sender)
        messages = bytes(view[at : at + size])
        at += size
        if checksum(messages) != crc:
            raise LogDamaged("a batch's messages were changed", number, number)
        if key is None and not is_anybodys:
            continue  # all of its messages are settled, and it was forgotten since
        name, incarnation = key or ("", "")
        batches.append(
            Batch(
                sender=name,
                incarnation=incarnation,
                sequence=sequence,
                count=count,
                subject=subject,
                audience=audience_of(db, state, audience),
                messages=messages,
                size=size,
                crc=crc,
                after=after,
                options=options_of(flags & FRAME_FLAGS),
                origin=decode_origin(bytes.fromhex(origin)) if origin else None,
                number=number,
                stored_at=stored_at,
                addressed=bool(flags & NAMED),
                expires_at=expires_at,
            )
        )
    return batches


# From a place on in the order of (time, number).
_EXPIRING = """
select json_group_array(json_array(expires_at, number, audience, sender, sequence, count, size))
from (
    select expires_at, number, audience, sender, sequence, count, size from batch
    where expires_at is not null and (expires_at, number) > (?1, ?2) and expires_at <= ?3
    order by expires_at, number limit ?4)
"""
_OTHERS = """
select json_group_array(json_array(number, audience)) from (
    select number, audience from batch where number between ?1 and ?2 order by number)
"""
BETWEEN_EACH = 8  # batches that are looked at between two that expire, on average at most


def expiring(
    db: apsw.Connection, state: State, after: tuple[int, int], now: int, count_max: int
) -> Expiring:
    """Return a page of the batches that expire up to `now`; see `ILog.expiring`."""
    found = _decode_json(one(db, _EXPIRING, (*after, now, count_max)))
    at = (found[-1][0], found[-1][1]) if found else (max(after[0], now), INTEGER_MAX)
    following = one(
        db,
        "select min(expires_at) from batch where expires_at is not null"
        " and (expires_at, number) > (?, ?)",
        at,
    )
    found.sort(key=_number_of)
    spans: dict[int, tuple[int, int]] = {}
    for _, _, _, sender, sequence, count, _ in found:
        last = sequence + count - 1
        low, high = spans.get(sender, (sequence, last))
        spans[sender] = (min(low, sequence), max(high, last))
    keys = senders_of(db, state, spans)
    between: tuple[tuple[int, int], ...] | None = ()
    if found:
        low, high = found[0][1], found[-1][1]
        between = None
        if high - low < BETWEEN_EACH * len(found):
            held = {row[1] for row in found}
            others = _decode_json(one(db, _OTHERS, (low, high)))
            between = tuple([(row[0], row[1]) for row in others if row[0] not in held])
    return Expiring(
        batches=tuple([(row[1], row[2], row[5], row[6]) for row in found]),
        between=between,
        senders=tuple([(*keys[sender], *span) for sender, span in spans.items() if sender in keys]),
        at=at,
        next=following,
    )


def _number_of(row: Sequence[int]) -> int:
    return row[1]


def checksum(data: bytes) -> int:
    """Return `zlib.crc32` of `data`, without giving up the GIL.

    zlib gives it up above 5 KiB, and winning it back from a busy reactor takes longer than this.
    """
    if len(data) <= _CRC_PIECE:
        return crc32(data)
    value, view = 0, memoryview(data)
    for at in range(0, len(data), _CRC_PIECE):
        value = crc32(view[at : at + _CRC_PIECE], value)
    return value


def audience_of(db: apsw.Connection, state: State, number: int) -> Audience:
    """Return an audience by its number; `NOBODY` where it is not known any more.

    A reader may see the tables of another moment than the state: of a commit that is not adopted
    yet, or of before one by which it was forgotten. What a row refers to is in the tables then.
    """
    total = state.totals.get(number)
    if total is not None:
        return total.audience
    text = one(db, "select members from audience where number = ?", (number,))
    return NOBODY if text is None else Audience(number, tuple(_decode_members(text)))


def sender_of(db: apsw.Connection, state: State, number: int) -> Key | None:
    """Return a sender by its number, from the tables where the state is of another moment."""
    known = state.senders_by_id.get(number)
    if known is not None:
        return known.key
    row: Key | None = one(db, "select name, incarnation from sender where id = ?", (number,))
    return row


_SENDERS = """
select json_group_array(json_array(id, name, incarnation)) from sender
where id in (select value from json_each(?))
"""


def senders_of(db: apsw.Connection, state: State, numbers: Collection[int]) -> dict[int, Key]:
    """Return number -> sender, in one step for those that the state does not have."""
    known = state.senders_by_id
    keys: dict[int, Key] = {}
    for number in numbers:
        sender = known.get(number)
        if sender is not None:
            keys[number] = sender.key
    missing = [number for number in numbers if number not in keys]
    if missing:
        text = one(db, _SENDERS, (as_json(missing),))
        keys.update((number, (name, other)) for number, name, other in _decode_senders(text))
    return keys


SENDER = "id, name, incarnation, floor, ranges, last, status_from, seen_at"


def saved_sender(db: apsw.Connection, key: Key) -> SenderState | None:
    """Return the marks that the table has of a sender: all, where it is asleep."""
    with told_as_damage(0):
        found = rows(db, f"select {SENDER} from sender where name = ? and incarnation = ?", key)  # noqa: S608 - fixed names
        return sender_from(found[0]) if found else None


def sender_from(row: tuple[Any, ...]) -> SenderState:
    """Return the marks that a row of the table has, in the order of `SENDER`."""
    number, name, incarnation, floor, ranges, last, status_from, seen_at = row
    sender = SenderState(number, (name, incarnation), seen_at)
    for first, end in msgspec.msgpack.decode(ranges):
        sender.take(first, end)
    sender.settle_below(floor)
    sender.last = None if last is None else tuple(msgspec.msgpack.decode(last))
    sender.status_from = status_from
    return sender


def runs_of(
    db: apsw.Connection, state: State, sender: int, first: int, last: int
) -> list[TakenRun]:
    """Return what is still known of a sender's runs that overlap these sequences, rising."""
    found = []
    for table, columns in (("batch", "subject, flags"), ("run", "null, 0")):
        overlapping = rows(
            db,
            f"select number, sequence, count, crc, audience, {columns} from {table}"  # noqa: S608
            " where sender = ?1 and sequence <= ?3 and sequence + count > ?2"
            " and sequence >= coalesce((select max(sequence) from "
            f"{table} where sender = ?1 and sequence <= ?2), 0)",  # fixed names, no input
            (sender, first, last),
        )
        for number, sequence, count, crc, audience, text, flags in overlapping:
            # Of a row that has gone, its mark stands above its CRC.
            mark = crc >> 32 or None if text is None else mark_of(text, named_of(flags))
            whom = audience_of(db, state, audience)
            found.append(TakenRun(number, sequence, count, crc & CRC_MASK, whom, None, mark))
    by_key = rows(db, _ALIASES, (sender, first, last))
    for number, sequence, crc, audience, text, flags, due, of in by_key:
        whom = audience_of(db, state, audience) if audience else NOBODY
        mark = None if number is None else mark_of(text, named_of(flags))
        found.append(TakenRun(number or 0, sequence, 1, crc, whom, None, mark, due, of))
    found.sort(key=lambda run: run.sequence)
    return found


# What a sender handed in and was taken by its key, with the row of the message that is stored, or
# waits until it is due: its number is below 0 then.
_ALIASES = """
select coalesce(b.number, -d.id), a.sequence, a.crc, coalesce(b.audience, d.audience),
    coalesce(b.subject, d.subject), coalesce(b.flags, d.flags), coalesce(d.due_at, 0),
    coalesce(s.name || '/' || s.hash || '/' || d.sequence, '')
from alias as a left join batch as b on b.sender = a.of_sender and b.sequence = a.of_sequence
left join delayed as d on b.number is null
    and d.sender = a.of_sender and d.sequence = a.of_sequence
left join sender as s on s.id = d.sender
where a.sender = ?1 and a.sequence between ?2 and ?3
"""

_KEYS = """
select json_group_array(json_array(
    hex(k.digest), hex(k.content), k.sender, k.sequence, b.number,
    coalesce(b.audience, d.audience), coalesce(d.due_at, 0),
    coalesce(s.name || '/' || s.hash || '/' || d.sequence, '')))
from json_each(?1) as a cross join idempotency as k on k.digest = unhex(a.value)
left join batch as b on b.sender = k.sender and b.sequence = k.sequence
left join delayed as d on b.number is null and d.sender = k.sender and d.sequence = k.sequence
left join sender as s on s.id = d.sender
"""

_decode_keys = msgspec.json.Decoder(
    list[tuple[str, str, int, int, int | None, int | None, int, str]]
).decode


def keys_of(db: apsw.Connection, state: State, digests: Sequence[bytes]) -> dict[bytes, KeyRow]:
    """Return what is known of these idempotency keys, in one step."""
    found: dict[bytes, KeyRow] = {}
    text = one(db, _KEYS, (as_json([digest.hex() for digest in digests]),))
    for digest, content, sender, sequence, number, audience, due, identity in _decode_keys(text):
        whom = audience_of(db, state, audience) if audience else NOBODY
        position = 0 if number is None else position_of(number)
        found[bytes.fromhex(digest)] = KeyRow(
            bytes.fromhex(content), sender, sequence, whom, position, due, identity
        )
    return found


_RETAINED = """
select subject, position, stored_at, origin, message, expires_at from retained
where subject in (select value from json_each(?))
"""
# Many in one row: every step of a statement may have to wait for a busy reactor.
_KEPT = """
select json_group_array(a.value) from json_each(?1) as a cross join batch as b
where b.number = a.value >> ?2 and b.frame is not null
"""
_RETAINED_PAGE = """
select subject, position, stored_at, origin, message, expires_at from retained
where subject > ? order by subject limit ?
"""


def retained(db: apsw.Connection, after: str, count_max: int) -> list[Retained]:
    """Return the retained messages of the subjects behind one, rising: as many as a page holds."""
    found: list[Retained] = []
    size = 0
    for row in rows(db, _RETAINED_PAGE, (after, count_max)):
        found.append(_retained_from(row))
        size += found[-1].size
        if size >= PAGE_BYTES:
            break
    return found


def retained_for(
    db: apsw.Connection, patterns: Sequence[str], before: Sequence[str]
) -> list[Retained]:
    """Return the retained messages of subjects that match, but for those that did before."""
    wanted: SubjectMatcher[bool] = SubjectMatcher()
    for pattern in patterns:
        wanted.add(pattern, True)
    for pattern in before:
        wanted.add(pattern, False)
    names = [
        subject
        for (subject,) in rows(db, "select subject from retained")
        if wanted.match(subject) == {True}
    ]
    if not names:
        return []
    return [_retained_from(row) for row in rows(db, _RETAINED, (as_json(names),))]


def kept_of(db: apsw.Connection, positions: Sequence[int]) -> set[int]:
    """Return those of these positions whose messages the log still has."""
    if not positions:
        return set()
    return set(_decode_members(one(db, _KEPT, (as_json([*positions]), BATCH_INDEX_BITS))))


def _retained_from(row: tuple[Any, ...]) -> Retained:
    subject, position, stored_at, origin, message, expires_at = row
    return Retained(subject, position, stored_at, decode_origin(origin), message, expires_at)
