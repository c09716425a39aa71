"""Which batches of a group are new: the sender's dedupe, inside the log (SEMANTICS 1, 2, 4).

`take_batches` gives each new batch its number, its place in its audience's count and its link of
the chain, and appends its row to a flat list of SQL parameters. The usual batch, the next of its
sender, costs a dozen simple operations (bench/log.py); everything else is in `_take_known`.
Nothing here touches SQLite: which older runs there are, and what they held, is asked through
`Stored`; `repeats.py` has what of it was asked for already.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from zlib import crc32

import msgspec

from msgservice.core.marks import Key, SenderState
from msgservice.core.ranges import RangeSet
from msgservice.errors import (
    ContentChanged,
    Forbidden,
    KeyReused,
    LimitReached,
    LogFull,
    Refused,
)
from msgservice.log.repeats import Repeats, Stored, TakenRun
from msgservice.log.state import Alias, Keyed, KeyRow, Staged, State
from msgservice.message import FLAG_REPLAY, FLAG_RETAIN, MessageParts
from msgservice.records import (
    NOBODY,
    NODE,
    Audience,
    Batch,
    KeyUse,
    Known,
    Outcome,
    Piece,
    RefusedBatch,
    identity_of,
    position_of,
)

COLUMNS = 17  # of a row of the table batch
# What a row's `flags` hold beside those of the frame: whether the sender had named the receivers.
# Neither is set in rows of before that was kept.
NAMED, MATCHED = 1 << 30, 1 << 31
FRAME_FLAGS = NAMED - 1


def mark_of(subject: str, named: bool | None) -> int:
    """Return the mark kept of a run when its row is deleted, beside its CRC: 1 to 2^30.

    `named`: whether its sender named the receivers; None where that was not kept.
    """
    crc = crc32(subject.encode())
    if named is not None:
        crc = crc32(b"\0to" if named else b"\0", crc)
    return (crc & 0x3FFF_FFFF) + 1


def named_of(flags: int) -> bool | None:
    """Return whether the sender of a row named the receivers; None where that was not kept."""
    return bool(flags & NAMED) if flags & (NAMED | MATCHED) else None


_link = struct.Struct("<QQQQQQQIIII").pack


def chain_of(
    previous: int,
    number: int,
    audience: int,
    sender: int,
    sequence: int,
    size: int,
    stored_at: int,
    after: int,
    count: int,
    flags: int,
    crc: int,
    words: int,
) -> int:
    """Return the chain value of a batch: it covers this row and, through `previous`, all before.

    `words`: crc32 of the subject's UTF-8, run on over the encoded origin if there is one, and over
    the time when it expires (`words_until`).
    """
    return crc32(
        _link(number, audience, sender, sequence, size, stored_at, after, count, flags, crc, words),
        previous,
    )


def words_until(words: int, expires_at: int) -> int:
    """Return `words` of a batch that expires at this time."""
    return crc32(expires_at.to_bytes(8, "little"), words)


encode_origin = msgspec.msgpack.Encoder().encode


def take_batches(
    staged: Staged,
    batches: list[Batch],
    now: int,
    *,
    used_max: int,
    full: LogFull | None,
    ranges_max: int,
    stored: Stored,
    keys_max: int = 0,
    due: bool = False,
) -> tuple[list[Outcome], list[object]]:
    """Return the outcomes, and the new rows as one flat list of parameters.

    `due`: they were accepted before and waited since, so all of them are stored.

    `full`: why nothing new may be stored, or None. A batch that is refused for it refuses every
    later one of the group that would have to be stored, and one that is refused for its sender's
    ranges, or for `keys_max`, those of its lane: so that no lane gets out of order.
    """
    outcomes: list[Outcome] = []
    rows: list[object] = []
    repeats = Repeats(batches, stored)
    key: Key | None = None
    audience: Audience | None = None
    subject: str | None = None
    number, chain, used = staged.number, staged.chain, staged.used
    link, fresh, age = _link, staged.fresh, staged.age
    # Lanes that wait for room among their sender's ranges: from which sequence on, and why.
    held: dict[tuple[Key, str], tuple[int, LimitReached]] = {}
    keyed = staged.keyed
    for batch in batches:
        if keyed is not None and batch.key is not None:
            taken = _take_by_key(staged, keyed, batch, full, held, keys_max, ranges_max)
            if taken is not None:
                outcomes.append(taken)
                continue
        if batch.refusal is not None:
            outcomes.append(_take_refused(staged, batch, batch.refusal, repeats))
            continue
        if key is None or batch.sender != key[0] or batch.incarnation != key[1]:
            key = (batch.sender, batch.incarnation)
            sender = staged.sender(key)
        sequence, count, size = batch.sequence, batch.count, batch.size
        new: Sequence[Batch]
        if batch.floor > sender.floor:
            _settle_below(staged, sender, batch.floor)
        why: LogFull | LimitReached | None = full
        if held and why is None:
            head, limit = held.get((key, batch.subject), (sequence, None))
            why = limit if sequence > head else None
        if due:
            if sender.seen_at < age:  # as its row says where it is replayed
                sender.seen_at = age
            outcomes.append(batch)
            new = (batch,)
        elif sender.ranges is None and batch.after < sender.floor <= sequence and why is full:
            if full is None and used + size > used_max:
                full = _no_room(used, size, used_max)
            if full is not None:
                outcomes.append(RefusedBatch(full))
                continue
            last = sequence + count - 1
            sender.floor = last + 1
            sender.last = (sequence, last, batch.crc)
            if sender.seen_at < age:  # retention may have noted a later one
                sender.seen_at = age
            outcomes.append(batch)
            new = (batch,)
        else:
            outcome = _take_known(staged, sender, batch, used, used_max, why, ranges_max, repeats)
            outcomes.append(outcome)
            if outcome is batch:
                new = (batch,)
            elif isinstance(outcome, Known):
                new = outcome.fresh
            else:
                assert isinstance(outcome, RefusedBatch)
                if isinstance(outcome.error, LogFull):
                    full = outcome.error
                elif isinstance(outcome.error, LimitReached):
                    lane = (key, batch.subject)
                    head, _ = held.get(lane, (sequence, None))
                    held[lane] = (min(head, sequence), outcome.error)
                continue
            if new:
                if sender.seen_at < age:
                    sender.seen_at = age
                if batch.floor > sender.floor:
                    _settle_below(staged, sender, batch.floor)
        for item in new:
            if item.due_at and not due:
                staged.delay(item)
                used_max -= item.size
                if item.addressed:
                    staged.total(item.audience)
                if item.key is not None and keyed is not None:
                    whom = item.audience if item.addressed else NOBODY
                    _use_key(staged, keyed, item.key, sender.id, item, whom)
                continue
            if item.audience is not audience:
                audience = item.audience
                total = staged.total(audience)
            size, count = item.size, item.count
            if item.subject != subject:
                subject = item.subject
                subject_crc = crc32(subject.encode())
            words, origin = subject_crc, None
            if item.origin is not None:
                origin = encode_origin(item.origin)
                words = crc32(origin, words)
            expires_at = item.expires_at
            if expires_at is not None:
                words = words_until(words, expires_at)
            after, crc = item.after, item.crc
            flags = item.options.flags | (NAMED if item.addressed else MATCHED)
            if flags & FLAG_RETAIN and not (flags & FLAG_REPLAY and item.sender == NODE):
                staged.retained[subject] = item
            chain = crc32(
                link(
                    number,
                    audience.number,
                    sender.id,
                    item.sequence,
                    size,
                    now,
                    after,
                    count,
                    flags,
                    crc,
                    words,
                ),
                chain,
            )
            rows += (
                number,
                audience.number,
                sender.id,
                item.sequence,
                count,
                size,
                subject,
                total.messages,
                total.bytes,
                now,
                after,
                flags,
                crc,
                chain,
                origin,
                item.messages,
                expires_at,
            )
            if keyed is not None and item.key is not None:
                _use_key(staged, keyed, item.key, sender.id, item, audience, position_of(number))
            total.messages += count
            total.bytes += size
            total.last = number
            used += size
            item.number = number
            item.stored_at = now
            fresh.append(item)
            number += 1
    staged.number, staged.chain, staged.used = number, chain, used
    for position, outcome in enumerate(outcomes):
        if type(outcome) is Known and not outcome.by_key:
            batch = batches[position]
            outcomes[position] = _with_positions(outcome, batch)
    return outcomes, rows


def _take_by_key(
    staged: Staged,
    keyed: Keyed,
    batch: Batch,
    full: LogFull | None,
    held: dict[tuple[Key, str], tuple[int, LimitReached]],
    keys_max: int,
    ranges_max: int,
) -> Outcome | None:
    """Decide by its key about a run that has one; None where that decides nothing.

    That is of what its sender has handed in before, and of a key that was not used before. What it
    is to wait for, in its lane or for room, it waits for with any key. It is one message, but of a
    sender that never hands in a run again.
    """
    assert batch.key is not None
    key, sequence = (batch.sender, batch.incarnation), batch.sequence
    last = sequence + batch.count - 1
    before = staged.senders.get(key) or staged.state.sender(key)
    if before is not None and not before.missing(sequence, sequence):
        again = keyed.aliases.get((before.id, sequence))
        if again is None:
            return None
        if again.crc != batch.crc:
            return RefusedBatch(ContentChanged(sequence, last))
        return _known_by_key(sequence, last, again.of)
    head, limit = held.get((key, batch.subject), (sequence, None))
    if full is not None or (limit is not None and sequence > head):
        return None
    if isinstance(batch.refusal, Forbidden | LimitReached | LogFull):
        return None
    of = keyed.known.get(batch.key.digest)
    if of is not None and of.content != batch.key.content:
        return RefusedBatch(KeyReused(batch.key.key))
    if batch.refusal is not None and of is None:
        return None
    if staged.keys + staged.aliases >= keys_max:
        error = LimitReached("idempotency_keys", keys_max)
        held[(key, batch.subject)] = (min(head, sequence), error)
        return RefusedBatch(error)
    if of is None:
        return None
    sender = staged.sender(key)
    # Before its ranges are counted: a floor may leave fewer of them.
    if batch.floor > sender.floor:
        _settle_below(staged, sender, batch.floor)
    begin = min(batch.after + 1, sequence)
    if _has_no_range(sender, begin, last, ranges_max):
        # Decided here: whatever goes on from here without an answer may be stored.
        error = LimitReached("sender_ranges", ranges_max)
        held[(key, batch.subject)] = (min(head, sequence), error)
        return RefusedBatch(error)
    sender.take(begin, last)
    if sender.last is None or sequence > sender.last[1]:
        sender.last = (sequence, last, batch.crc)
    sender.seen_at = max(sender.seen_at, staged.age)
    keyed.senders[sender.id] = sender
    ids = tuple(name for index, name in batch.ids if not index)
    keyed.aliases[sender.id, sequence] = Alias(sender.id, sequence, batch.crc, ids, of)
    staged.aliases += 1
    return _known_by_key(sequence, last, of)


def _known_by_key(first: int, last: int, of: KeyRow) -> Known:
    piece = Piece(first, last, of.audience, of.position, of.due, of.identity)
    return Known(pieces=(piece,), by_key=True)


def _use_key(
    staged: Staged,
    keyed: Keyed,
    use: KeyUse,
    sender: int,
    batch: Batch,
    audience: Audience,
    position: int = 0,
) -> None:
    """Note what a key is used for: a message that is stored now, or waits until it is due."""
    due = 0 if position else batch.due_at
    identity = identity_of(batch.sender, batch.incarnation, batch.sequence) if due else ""
    of = KeyRow(use.content, sender, batch.sequence, audience, position, due, identity)
    keyed.known[use.digest] = of
    keyed.fresh.append((use, of))
    staged.keys += 1


def _has_no_range(sender: SenderState, first: int, last: int, ranges_max: int) -> bool:
    """Whether these sequences would be one range more than are kept of a sender."""
    return (
        sender.ranges is not None
        and len(sender.ranges) >= ranges_max
        and bool(sender.missing(first - 1, first - 1))
        and bool(sender.missing(last + 1, last + 1))
    )


def _settle_below(staged: Staged, sender: SenderState, floor: int) -> None:
    """All below `floor` is settled for the sender: what was refused leaves no hole.

    Not above all that was taken of it, which RESUME names: an older outbox that was put back gives
    what was refused there to other messages, and these are no repeats (SEMANTICS 6).
    """
    floor = min(floor, sender.highest + 1)
    if floor > sender.floor:
        sender.settle_below(floor)
        staged.settled[sender.id] = sender


def name_own(staged: Staged, own: list[Batch]) -> None:
    """Give the node's own batches the next sequences of its sender: so none is a duplicate.

    Its incarnation is the log's id, so that a copy of the log goes on with its own.
    """
    key = (NODE, staged.state.log_id)
    known = staged.senders.get(key) or staged.state.sender(key)
    sequence = 1 if known is None else known.floor
    for batch in own:
        batch.sender, batch.incarnation = key
        batch.sequence, batch.after = sequence, sequence - 1
        sequence += batch.count


def forget_numbers(staged: Staged) -> None:
    """Undo what `take_batches` wrote into the batches of a group that was not committed."""
    for batch in staged.fresh:
        batch.number = batch.stored_at = 0


def _no_room(used: int, size: int, used_max: int) -> LogFull:
    """The refusal says what dead letters leave of the room: only people may delete these."""
    return LogFull(
        f"{used} bytes are used of the {used_max} that dead letters leave of max_bytes,"
        f" {size} more are too many"
    )


def _take_refused(
    staged: Staged, batch: Batch, refusal: Refused | LimitReached | LogFull, repeats: Repeats
) -> Outcome:
    """Decide about a batch whose audience is empty now: it may have had one when it came first.

    So may a part of it, as a run that was sent before more was added to it: that stays taken.
    """
    key = (batch.sender, batch.incarnation)
    if key not in staged.senders and staged.state.sender(key) is None:
        return RefusedBatch(refusal)
    sender = staged.sender(key)
    first, last = batch.sequence, batch.sequence + batch.count - 1
    left = sender.missing(first, last)
    # What is to be tried again comes as a whole; what was taken of it is known then.
    if left == [(first, last)] or (left and not isinstance(refusal, Refused)):
        return RefusedBatch(refusal)
    runs = _runs_of(staged, sender, batch, repeats)
    if not _agrees(staged.state, batch, runs, repeats):
        return RefusedBatch(ContentChanged(first, last))
    if not left:
        sender.take(min(batch.after + 1, first), last)
    return Known(pieces=_pieces(first, last, runs), refused=tuple(left))


def _take_known(
    staged: Staged,
    sender: SenderState,
    batch: Batch,
    used: int,
    used_max: int,
    full: LogFull | LimitReached | None,
    ranges_max: int,
    repeats: Repeats,
) -> Outcome:
    """Decide about a batch that is not simply the next of its sender."""
    first, last = batch.sequence, batch.sequence + batch.count - 1
    missing = sender.missing(first, last)
    if missing == [(first, last)]:
        outcome: Outcome = batch
        size = batch.size
        pieces: tuple[Batch, ...] = (batch,)
    else:
        runs = _runs_of(staged, sender, batch, repeats)
        if not _agrees(staged.state, batch, runs, repeats):
            return RefusedBatch(ContentChanged(first, last))
        parts = MessageParts(batch.messages)
        pieces = tuple(_cut(batch, parts, low, high) for low, high in missing)
        size = sum(piece.size for piece in pieces)
        outcome = Known(pieces=_pieces(first, last, runs), fresh=pieces)
    if missing:
        if full is None and used + size > used_max:
            full = _no_room(used, size, used_max)
        if full is not None:
            return RefusedBatch(full)
        begin = min(batch.after + 1, first)
        if _has_no_range(sender, begin, last, ranges_max):
            return RefusedBatch(LimitReached("sender_ranges", ranges_max))
        for piece in pieces:
            end = piece.sequence + piece.count - 1
            if sender.last is None or end > sender.last[1]:
                sender.last = (piece.sequence, end, piece.crc)
    sender.take(min(batch.after + 1, first), last)
    return outcome


def _runs_of(staged: Staged, sender: SenderState, batch: Batch, repeats: Repeats) -> list[TakenRun]:
    """Return the runs, of before and of this group, that a batch overlaps, as far as known."""
    first, last = batch.sequence, batch.sequence + batch.count - 1
    return [
        *repeats.stored_between(sender.id, first, last),
        *(
            TakenRun(
                -delayed if (delayed := staged.delayed.get(b, 0)) else b.number,
                b.sequence,
                b.count,
                b.crc,
                b.audience,
                b.messages,
                mark_of(b.subject, b.addressed),
                b.due_at if delayed else 0,
            )
            for b in staged.fresh_between(sender.key, first, last)
        ),
    ]


def _agrees(state: State, batch: Batch, runs: Sequence[TakenRun], repeats: Repeats) -> bool:
    """Whether a batch says what these runs did, as far as that is still known."""
    parts: MessageParts | None = None  # of the batch; for many runs, found once
    for run in runs:
        if run.mark not in (
            None,
            mark_of(batch.subject, batch.addressed),
            mark_of(batch.subject, None),
        ):
            return False
        start = run.sequence - batch.sequence
        if start == 0 and run.count == batch.count:
            same = run.crc == batch.crc
        elif start >= 0 and start + run.count <= batch.count:
            if parts is None:
                parts = MessageParts(batch.messages)
            same = run.crc in parts.crcs(start, start + run.count)
        else:
            same = repeats.agree(batch, run)
        if not (same and _same_names(state, batch, run)):
            return False
    return True


def _same_names(state: State, batch: Batch, run: TakenRun) -> bool:
    """Whether the names in a batch's `to` are the names of the audience that the run had.

    Who was removed and added again has another number and the same name.
    """
    if not batch.addressed or run.audience is NOBODY or run.audience is batch.audience:
        return True
    if batch.refusal is not None:
        return True  # one of those it names is not there any more
    rows = state.rows
    members = (*batch.audience.members, *run.audience.members)
    if any(number not in rows for number in members):
        return True  # it was forgotten since
    return {rows[number].name for number in batch.audience.members} == {
        rows[number].name for number in run.audience.members
    }


def _cut(batch: Batch, parts: MessageParts, first: int, last: int) -> Batch:
    """Return sequences `first` to `last` of a batch, which are among `parts`, as one of its own."""
    start, stop = first - batch.sequence, last - batch.sequence + 1
    messages = parts.run(start, stop)
    ids = batch.ids  # rising
    named = ids[bisect_left(ids, (start,)) : bisect_left(ids, (stop,))]
    return msgspec.structs.replace(
        batch,
        sequence=first,
        count=stop - start,
        messages=messages,
        size=len(messages),
        crc=crc32(messages),
        after=batch.after if start == 0 else first - 1,
        ids=tuple((index - start, name) for index, name in named),
        origin=batch.origin and batch.origin.behind(start),
    )


def _pieces(first: int, last: int, runs: Sequence[TakenRun]) -> tuple[Piece, ...]:
    """Return what `runs` say of `first` to `last`; position 0 where nothing is known any more."""
    pieces = []
    for run in runs:
        low = max(first, run.sequence)
        high = min(last, run.sequence + run.count - 1)
        if low <= high:
            position = 0 if run.due else position_of(run.number, low - run.sequence)
            pieces.append(Piece(low, high, run.audience, position, run.due, run.of))
    return tuple(pieces)


def _with_positions(known: Known, batch: Batch) -> Known:
    """Return `known` with its fresh batches among the pieces, and the holes named."""
    pieces = list(known.pieces)
    for fresh in known.fresh:
        end = fresh.sequence + fresh.count - 1
        pieces.append(Piece(fresh.sequence, end, fresh.audience, fresh.first, fresh.due_at))
    pieces.sort(key=_first_of)
    first, last = batch.sequence, batch.sequence + batch.count - 1
    if not known.refused:
        return Known(pieces=fill_holes(pieces, first, last), fresh=known.fresh)
    whole: list[Piece] = []
    for low, high in RangeSet(known.refused).missing(first, last):
        begin = bisect_left(pieces, low, key=_first_of)
        whole += fill_holes(pieces[begin : bisect_right(pieces, high, key=_first_of)], low, high)
    return Known(pieces=tuple(whole), refused=known.refused)


def _first_of(piece: Piece) -> int:
    return piece.first


def fill_holes(pieces: Sequence[Piece], first: int, last: int) -> tuple[Piece, ...]:
    """Return `pieces` with what they leave out of `first` to `last`, as unknown ones."""
    whole: list[Piece] = []
    for piece in pieces:
        if first < piece.first:
            whole.append(Piece(first, piece.first - 1, NOBODY, 0))
        whole.append(piece)
        first = piece.last + 1
    if first <= last:
        whole.append(Piece(first, last, NOBODY, 0))
    return tuple(whole)
