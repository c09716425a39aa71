"""The log's proof that it still holds all that it acknowledged (SEMANTICS 21, 22).

SQLite drops a damaged tail of its WAL without a word. So a file of its own, the high-water mark,
names the newest batch that is known to be committed, with its chain value; it is synced by its own
thread while the next group commits. `check_mark` compares it with what SQLite found. The chain
itself (every batch's CRC goes into the next one's) is followed in `replay` and `check_chain`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast
from zlib import crc32

import apsw

from msgservice.disk.database import one
from msgservice.disk.mark import MARK_GONE, MARK_NAME, Mark
from msgservice.errors import LogDamaged
from msgservice.log.dedupe import chain_of, words_until
from msgservice.log.state import State


def check_mark(mark: Mark | None, state: State, db: apsw.Connection) -> None:
    """Raise `LogDamaged` where the log holds less than, or other than, the mark says."""
    last = state.next_number - 1
    if mark is None:
        if last or state.commits:
            raise LogDamaged(MARK_GONE.format(name=MARK_NAME), state.oldest, last)
        return
    if mark.log_id != state.log_id:
        raise LogDamaged("the high-water mark belongs to another log", state.oldest, last)
    if mark.number > last:
        raise LogDamaged("its newest batches are missing", last + 1, mark.number)
    if mark.commits > state.commits:
        lost = mark.commits - state.commits
        raise LogDamaged(
            f"the last {lost} changes of receivers, or of what is kept, are missing",
            last + 1,
            last + 1,
        )
    if mark.number >= state.oldest:
        chain = one(db, "select chain from batch where number = ?", (mark.number,))
        if chain != mark.chain:
            raise LogDamaged("a batch is not the one that was stored", mark.number, mark.number)


_CHAINED = (
    "select number, audience, sender, sequence, size, count, crc, chain, frame, after,"
    " before_messages, before_bytes, subject, stored_at, flags, origin, expires_at"
    " from batch where number between ? and ? order by number"
)


class ChainedRow(NamedTuple):
    """A row of the table batch, checked."""

    number: int
    audience: int
    sender: int
    sequence: int
    size: int
    messages: int
    crc: int
    chain: int
    frame: bytes | None
    after: int
    before_messages: int
    before_bytes: int
    subject: str
    stored_at: int
    flags: int
    origin: bytes | None
    expires_at: int | None


def chained_rows(db: apsw.Connection, first: int, last: int, chain: int) -> Iterator[ChainedRow]:
    """Yield the rows `first` to `last`, following the chain through them.

    `chain`: of the batch before `first`. Raises `LogDamaged` for a gap, a row that was changed, or
    a frame that was.
    """
    expected = first
    for values in db.execute(_CHAINED, (first, last)):
        row = ChainedRow(*cast("tuple[Any, ...]", values))
        number = row.number
        if number != expected:
            raise LogDamaged("batches are missing", expected, number - 1)
        try:
            words = crc32(row.subject.encode())
            if row.origin is not None:
                words = crc32(row.origin, words)
            if row.expires_at is not None:
                words = words_until(words, row.expires_at)
            chain = chain_of(
                chain,
                number,
                row.audience,
                row.sender,
                row.sequence,
                row.size,
                row.stored_at,
                row.after,
                row.messages,
                row.flags,
                row.crc,
                words,
            )
        except (struct.error, TypeError, AttributeError, OverflowError):  # wrong types even
            raise LogDamaged("a batch's row was changed", number, number) from None
        if chain != row.chain:
            raise LogDamaged("a batch's row was changed", number, number)
        frame = row.frame
        if frame is not None and (len(frame) != row.size or crc32(frame) != row.crc):
            raise LogDamaged("a batch's messages were changed", number, number)
        expected += 1
        yield row
    if expected <= last:
        raise LogDamaged("batches are missing", expected, last)


def replay(
    db: apsw.Connection, state: State, last: int, ages: Sequence[tuple[int, int]] = ()
) -> None:
    """Bring `state` from batch `state.saved` to batch `last`, checking all between.

    `ages`: (batch, the age of the log from that on), rising; older logs have none.
    """
    age, at = state.age, 0
    for row in chained_rows(db, state.saved + 1, last, state.chain):
        known, total = state.senders_by_id.get(row.sender), state.totals.get(row.audience)
        if known is None or total is None or row.frame is None:
            raise LogDamaged(
                "a batch's sender, audience or messages are missing", row.number, row.number
            )
        if (row.before_messages, row.before_bytes) != (total.messages, total.bytes):
            raise LogDamaged("a batch's place in its audience is wrong", row.number, row.number)
        stop = row.sequence + row.messages - 1
        known.take(min(row.after + 1, row.sequence), stop)
        if known.last is None or stop > known.last[1]:
            known.last = (row.sequence, stop, row.crc)
        while at < len(ages) and ages[at][0] <= row.number:
            age = ages[at][1]
            at += 1
        known.seen_at = max(known.seen_at, age)
        total.messages += row.messages
        total.bytes += row.size
        total.last = row.number
        state.used += row.size
        state.dirty_senders.add(known.key)
        state.dirty_totals.add(row.audience)
        state.chain = row.chain
    state.next_number = last + 1
