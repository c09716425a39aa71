"""The offline audit: a second reader of the file of a log, which recounts it (DELIVERY 58).

It shares nothing with the node but the description of the tables in docs/log.md: no counter, no
query, no constant, no import. What the log's own code gets wrong on both ways, writing and reading,
shows here. It reads alone, through any connection, and takes nothing for granted but that SQLite
can be read. Who holds the folder meanwhile is the caller's affair.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

SHIFT = 16  # a position is number << 16 | index
PLACE_MASK = (1 << SHIFT) - 1
ACKNOWLEDGED = 3
FINAL = {3: "acknowledged", 4: "expired", 5: "dead", 6: "cancelled", 7: "removed"}
LAST = 2**63 - 1
COUNTS = ("acknowledged_count", "expired_count", "dead_count", "cancelled_count", "removed_count")
ENTRIES = -1  # the row of `progress` that counts entries
MARK = struct.Struct("<8s32sQQII")  # magic, log id, number, commits, chain, crc of all before
MARK_PLACES = (0, 4096)
FOUND_MAX = 100
# What reading fails with where a row has what none can have.
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)

Execute = Callable[..., Iterable[tuple[Any, ...]]]  # of an SQL text and its parameters
Ranges = list[tuple[int, int]]


@dataclass(slots=True)
class ReceiverCount:
    """One receiver's account, in messages: recounted, but for `settled`, which the log keeps."""

    name: str
    routed: int
    open: int
    settled: dict[str, int]

    @property
    def unaccounted(self) -> int:
        """Messages of which the log cannot say where they are: must be 0."""
        return self.routed - self.open - sum(self.settled.values())


@dataclass(slots=True)
class Recount:
    """The result of an offline audit: what was counted, and sentences on what does not add up.

    `unaccounted`: messages, over all receivers, above or below 0 alike. `lost_rows`: dead letters,
    states and ids more or less than the log has counted.
    """

    log_id: str = ""
    batches: int = 0
    messages: int = 0
    waiting: int = 0
    receivers: list[ReceiverCount] = field(default_factory=list)
    discrepancies: list[str] = field(default_factory=list)
    lost_rows: int = 0

    @property
    def unaccounted(self) -> int:
        """Messages that are in no account, of all receivers together: must be 0.

        And rows that are missing, of those that say one thing of one message (`lost_rows`).
        """
        return sum(abs(one.unaccounted) for one in self.receivers) + self.lost_rows

    def say(self, sentence: str) -> None:
        """Note what does not add up, as long as there are few."""
        if len(self.discrepancies) < FOUND_MAX:
            self.discrepancies.append(sentence)


class _Rows:
    """The batches of one audience, rising: their numbers, and the messages up to each."""

    __slots__ = ("numbers", "upto")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.upto = [0]

    def add(self, number: int, count: int) -> None:
        """Note the next batch."""
        self.numbers.append(number)
        self.upto.append(self.upto[-1] + count)

    def between(self, first: int, last: int) -> int:
        """Return how many messages have positions from `first` to `last`."""
        return self._below(last + 1) - self._below(first) if last >= first else 0

    def _below(self, position: int) -> int:
        at = bisect_left(self.numbers, position >> SHIFT)
        if at == len(self.numbers) or self.numbers[at] != position >> SHIFT:
            return self.upto[at]
        inside = min(position & PLACE_MASK, self.upto[at + 1] - self.upto[at])
        return self.upto[at] + inside

    def inside(self, ranges: Ranges, least: int = 0) -> int:
        """Return how many messages are in these ranges, which rise and are apart, from `least` on.

        By the ranges or by the batches, whichever are fewer.
        """
        begin = bisect_left(self.numbers, least >> SHIFT)
        if len(ranges) <= len(self.numbers) - begin:
            return sum([self.between(max(low, least), high) for low, high in ranges])
        total = 0
        for at in range(begin, len(self.numbers)):
            first = self.numbers[at] << SHIFT
            last = first + self.upto[at + 1] - self.upto[at] - 1
            if last >= least:
                total += _overlap(ranges, max(first, least), last)
        return total


def recount(execute: Execute, mark: bytes | None = None) -> Recount:
    """Return what a log holds by its rows, and all that does not add up.

    `execute`: of a connection in which nothing changes meanwhile. `mark`: the bytes of `log.mark`;
    None where there is none to compare with. Its memory grows with the rows of batches, by some
    100 bytes each.
    """
    found = Recount()
    head = _one(execute, "select saved, chain, used, oldest, oldest_chain from head")
    log_id = _one(execute, "select value from meta where key = 'log_id'")
    if head is None or log_id is None:
        found.say("its head or its id is missing")
        return found
    found.log_id = log_id[0]
    _look_at_pages(execute, found)
    batches = _Batches(execute, found, *head)
    for of, look in (
        ("batches", batches.follow),
        ("mark", lambda: _compare_mark(execute, found, batches, mark)),
        ("receivers", lambda: _count_receivers(execute, found, batches)),
        ("senders", lambda: _compare_senders(execute, found, batches)),
        ("delayed rows", lambda: _count_delayed(execute, found)),
        ("rows beside the batches", lambda: _find_strays(execute, found, batches)),
        ("counted rows", lambda: _compare_tallies(execute, found)),
    ):
        try:
            look()
        except UNREADABLE as error:  # the others are looked at all the same
            found.say(f"its {of} have values that no row has: {error}")
    return found


def _one(execute: Execute, text: str, *parameters: object) -> tuple[Any, ...] | None:
    return next(iter(execute(text, parameters)), None)


def _look_at_pages(execute: Execute, found: Recount) -> None:
    for (sentence,) in execute("pragma integrity_check(20)"):
        if sentence != "ok":
            found.say(f"SQLite: {sentence}")


class _Batches:
    """The rows of the table `batch`, from the oldest one kept, followed link by link."""

    def __init__(
        self,
        execute: Execute,
        found: Recount,
        saved: int,
        saved_chain: int,
        used: int,
        oldest: int,
        oldest_chain: int,
    ) -> None:
        self._execute, self._found = execute, found
        self.saved, self._saved_chain, self._used = saved, saved_chain, used
        self.oldest, self._chain = oldest, oldest_chain
        self.last = oldest - 1
        self.counts: dict[int, int] = {}  # messages, by number
        self.chains: dict[int, int] = {}
        self.of: dict[int, _Rows] = defaultdict(_Rows)  # by audience
        self.totals: dict[int, tuple[int, int]] = {}  # audience -> messages, bytes, to its last

    def follow(self) -> None:
        """Look at each row in turn: its number, its link, its messages, its place."""
        at_save, kept_bytes = dict[int, tuple[int, int, int]](), 0
        for row in self._execute(
            "select number, audience, sender, sequence, count, size, subject, before_messages,"
            " before_bytes, stored_at, after, flags, crc, chain, origin, frame, expires_at"
            " from batch order by number"
        ):
            number, audience, count, size, frame = row[0], row[1], row[4], row[5], row[15]
            if number != self.last + 1:
                self._found.say(f"batches {self.last + 1} to {number - 1} are missing")
            self._link(row)
            before = self.totals.get(audience, (row[7], row[8]))
            if before != (row[7], row[8]):
                self._found.say(
                    f"batch {number}: by the rows before it its audience {audience} had"
                    f" {before[0]:,} messages and {before[1]:,} bytes, by its own {row[7]:,} and"
                    f" {row[8]:,}"
                )
            self.totals[audience] = (row[7] + count, row[8] + size)
            if number <= self.saved:
                at_save[audience] = (row[7] + count, row[8] + size, number)
                kept_bytes += 0 if frame is None else len(frame)
            self.of[audience].add(number, count)
            self.counts[number] = count
            self.last = number
            self._found.batches += 1
            self._found.messages += count
        self.last = max(self.last, self.saved if not self.counts else 0)
        if self.last < self.saved:
            self._found.say(f"batches {self.last + 1} to {self.saved} are missing: they were saved")
        if self.chains.get(self.saved, self._saved_chain) != self._saved_chain:
            self._found.say(f"the head has another chain of batch {self.saved} than its row")
        if kept_bytes != self._used:
            self._found.say(
                f"the head says {self._used:,} bytes of messages up to batch {self.saved},"
                f" there are {kept_bytes:,}"
            )
        self._compare_audiences(at_save)

    def _link(self, row: tuple[Any, ...]) -> None:
        """Compare one row's sums: of its messages, and of the row with the chain so far."""
        number, audience, sender, sequence, count, size, subject, _, _, stored_at = row[:10]
        after, flags, crc, chain, origin, frame, expires_at = row[10:]
        try:
            words = crc32(subject.encode())
            if origin is not None:
                words = crc32(origin, words)
            if expires_at is not None:
                words = crc32(struct.pack("<Q", expires_at), words)
            fields = (number, audience, sender, sequence, size, stored_at, after)
            link = struct.pack("<7Q4I", *fields, count, flags, crc, words)
        except (struct.error, TypeError, AttributeError):
            self._found.say(f"batch {number}: its row has values that no row has")
            self._chain = chain
            return
        if crc32(link, self._chain) != chain:
            self._found.say(f"batch {number}: its row is not the one that was stored")
        self.chains[number] = self._chain = chain
        if frame is not None:
            if len(frame) != size or crc32(frame) != crc:
                self._found.say(f"batch {number}: its messages are not those that were stored")
            elif _length_of(frame) != count:
                self._found.say(
                    f"batch {number}: {_length_of(frame)} messages are there, its row says {count}"
                )

    def _compare_audiences(self, at_save: dict[int, tuple[int, int, int]]) -> None:
        """Compare the totals that are kept with the sums by the rows up to the save."""
        known = set()
        for number, messages, size, last in self._execute(
            "select number, messages, bytes, last from audience"
        ):
            known.add(number)
            counted = at_save.get(number)
            if counted is None:
                self.totals.setdefault(number, (messages, size))
            elif counted != (messages, size, last):
                self._found.say(
                    f"audience {number}: its row says {messages:,} messages, {size:,} bytes up to"
                    f" batch {last}, the batches {counted[0]:,}, {counted[1]:,} up to {counted[2]}"
                )
        for number in sorted(self.of.keys() - known):
            self._found.say(f"audience {number} has batches and no row")


def _length_of(frame: bytes) -> int | None:
    """Return how many elements a msgpack array has, or None where it is none."""
    if not frame:
        return None
    kind = frame[0]
    if kind & 0xF0 == 0x90:
        return kind & 0x0F
    if kind == 0xDC and len(frame) >= 3:
        return int.from_bytes(frame[1:3], "big")
    if kind == 0xDD and len(frame) >= 5:
        return int.from_bytes(frame[1:5], "big")
    return None


def _compare_mark(execute: Execute, found: Recount, batches: _Batches, mark: bytes | None) -> None:
    if mark is None:
        return
    entries = _one(execute, "select cursor from progress where receiver = ?", ENTRIES)
    best: tuple[int, int, int] | None = None
    for place in MARK_PLACES:
        part = mark[place : place + MARK.size]
        if len(part) < MARK.size:
            continue
        magic, log_id, number, commits, chain, crc = MARK.unpack(part)
        if magic != b"msgsmark" or crc32(part[:-4]) != crc:
            continue
        if log_id.rstrip(b"\0").decode(errors="replace") != found.log_id:
            found.say("the mark belongs to another log")
            continue
        if best is None or (number, commits) > best[:2]:
            best = (number, commits, chain)
    if best is None:
        if batches.counts or entries:
            found.say("the mark has no valid record")
        return
    number, commits, chain = best
    if number > batches.last:
        found.say(f"batches {batches.last + 1} to {number} are missing: the mark knows them")
    if batches.chains.get(number, chain) != chain:
        found.say(f"batch {number} is not the one that the mark knows")
    if commits > (entries[0] if entries else 0):
        found.say(f"the mark knows {commits:,} entries, {entries[0] if entries else 0:,} are there")


_NAMES = "select number, name from receiver"


def _count_receivers(execute: Execute, found: Recount, batches: _Batches) -> None:
    members: dict[int, list[int]] = defaultdict(list)
    for number, text in execute("select number, members from audience"):
        try:
            for receiver in json.loads(text):
                members[receiver].append(number)
        except UNREADABLE as error:
            found.say(f"audience {number}: its members cannot be read: {error}")
    names: dict[int, str] = dict(execute(_NAMES))
    above = _exceptions(execute, found, batches)
    counted = set()
    for receiver, cursor, removed, collected, *counts in execute(
        f"select receiver, cursor, removed, collected, {', '.join(COUNTS)} from progress"  # noqa: S608
        " where receiver != ? order by receiver",
        (ENTRIES,),
    ):
        counted.add(receiver)
        if removed:
            continue
        name = names.get(receiver)
        if name is None:
            found.say(f"receiver {receiver} has its progress and no row")
            continue
        if cursor >> SHIFT > batches.last + 1:
            found.say(f"receiver {name} is at {cursor}, behind the newest batch {batches.last}")
        routed, left = collected, 0
        final = above.get(receiver, {})
        settled_ranges = _merged(one for ranges in final.values() for one in ranges)
        special = dict.fromkeys(FINAL, 0)
        for audience in members.get(receiver, ()):
            routed += batches.totals.get(audience, (0, 0))[0]
            rows = batches.of.get(audience)
            if rows is None:
                continue
            left += rows.between(cursor + 1, LAST) - rows.inside(settled_ranges, cursor + 1)
            for status, ranges in final.items():
                special[status] += rows.inside(ranges)
        settled = dict(zip(FINAL.values(), counts, strict=True))
        one = ReceiverCount(
            name, routed, left, {key: value for key, value in settled.items() if value}
        )
        found.receivers.append(one)
        if one.unaccounted:
            found.say(
                f"receiver {name}: {routed:,} messages were for it, {left:,} wait and"
                f" {sum(counts):,} are settled: {one.unaccounted:,} unaccounted for"
            )
        for status, word in FINAL.items():
            if special[status] > settled[word]:
                found.say(
                    f"receiver {name}: {special[status]:,} messages are {word} by their rows,"
                    f" {settled[word]:,} were counted"
                )
    for receiver in sorted(names.keys() - counted):
        found.say(f"receiver {names[receiver]} has no progress")


def _exceptions(
    execute: Execute, found: Recount, batches: _Batches
) -> dict[int, dict[int, Ranges]]:
    """Return the final ranges of each receiver by status; say which rows cannot be.

    Of removed ones nothing: one row says of all behind their cursor, whatever comes, that it is.
    """
    of: dict[int, dict[int, Ranges]] = {}
    ends: dict[int, int] = {}
    for receiver, first, last, status in execute(
        "select receiver, first, last, status from exception where receiver not in"
        " (select receiver from progress where removed) order by receiver, first"
    ):
        if first > last or last >> SHIFT > batches.last or status not in (1, *FINAL):
            found.say(f"receiver {receiver}: its state of {first} to {last}, {status}, cannot be")
            continue
        if status not in FINAL:
            continue
        if first <= ends.get(receiver, -1):
            found.say(f"receiver {receiver}: two final states of message {first}")
        ends[receiver] = max(last, ends.get(receiver, -1))
        of.setdefault(receiver, {}).setdefault(status, []).append((first, last))
    return of


def _merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    merged: Ranges = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _overlap(ranges: Sequence[tuple[int, int]], first: int, last: int) -> int:
    """Return how much of `first` to `last` is in these ranges, which rise and are apart."""
    total = 0
    at = max(0, bisect_right(ranges, first, key=lambda one: one[0]) - 1)
    for low, high in ranges[at:]:
        if low > last:
            break
        total += max(0, min(high, last) - max(low, first) + 1)
    return total


def _compare_senders(execute: Execute, found: Recount, batches: _Batches) -> None:
    """Say which messages are there twice, and which are not among what their sender sent."""
    taken: dict[int, tuple[int, bytes]] = {}
    names: dict[int, str] = {}
    for number, name, floor, ranges in execute("select id, name, floor, ranges from sender"):
        taken[number], names[number] = (floor, ranges), name
    sender, end, above = None, -1, Ranges()
    floor = 0
    for by, sequence, count, number in execute(
        "select sender, sequence, count, number from ("
        " select sender, sequence, count, number from batch"
        " union all select sender, sequence, count, -1 from run"
        " union all select sender, sequence, count, -2 from delayed) order by sender, sequence"
    ):
        if by != sender:
            sender, end = by, -1
            if by in taken:
                floor = taken[by][0]
                try:
                    above = _decoded(taken[by][1])
                except UNREADABLE as error:
                    found.say(f"sender {names[by]}: its ranges cannot be read: {error}")
                    del taken[by]
            elif number != -1:
                found.say(f"sender {by} has messages and no row")
        last = sequence + count - 1
        if sequence <= end:
            found.say(
                f"sender {names.get(by, by)}: its messages {sequence} to {min(end, last)} are there"
                " twice"
            )
        end = max(end, last)
        if by not in taken or not 0 < number <= batches.saved or last < floor:
            continue
        if _overlap(above, max(sequence, floor), last) < last - max(sequence, floor) + 1:
            found.say(
                f"sender {names[by]}: its messages {sequence} to {last} are there, and not among"
                " those that it is known to have sent"
            )


def _decoded(blob: bytes) -> Ranges:
    """Return the ranges of a sender's row: a msgpack array of pairs of integers."""
    at = 0

    def header() -> int:
        nonlocal at
        length = _length_of(blob[at:])
        if length is None:
            raise ValueError("no array")
        at += 5 if blob[at] == 0xDD else 3 if blob[at] == 0xDC else 1
        return length

    def integer() -> int:
        nonlocal at
        kind = blob[at]
        size = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(kind, 0)
        value = int.from_bytes(blob[at + 1 : at + 1 + size], "big") if size else kind
        at += 1 + size
        return value

    if not blob:
        return []
    ranges: Ranges = []
    for _ in range(header()):
        header()
        first = integer()
        ranges.append((first, integer()))
    if at != len(blob):
        raise ValueError("more than its ranges")
    return ranges


def _count_delayed(execute: Execute, found: Recount) -> None:
    """Compare what waits until it is due with its head."""
    rows = size = sums = 0
    for number, count, length, crc, row_crc, frame in execute(
        "select id, count, size, crc, row_crc, frame from delayed"
    ):
        rows, size, sums = rows + 1, size + length, sums + row_crc
        found.waiting += count
        if len(frame) != length or crc32(frame) != crc or _length_of(frame) != count:
            found.say(f"delayed row {number}: its messages are not those that were stored")
    head = _one(execute, "select delayed_count, delayed_size, delayed_crcs from head")
    if head is not None and head != (rows, size, sums):
        found.say(
            f"{rows:,} delayed rows of {size:,} bytes are there, the head says {head[0]:,} of"
            f" {head[1]:,}" + ("" if head[:2] != (rows, size) else ", and other sums of them")
        )


def _compare_tallies(execute: Execute, found: Recount) -> None:
    """Say of which tables rows are missing, or others than those that were written."""
    low = 0xFFFFFFFF
    sums: dict[str, Callable[..., int]] = {
        "select position, receiver, length(message) from dead": lambda position, receiver, length: (
            (position & low) * 31 + receiver + length
        ),
        "select first, last, receiver, status, attempts from exception": (
            lambda first, last, receiver, status, attempts: (
                ((first * 31 + last * 7) & low) + receiver + status * 3 + attempts
            )
        ),
        "select position, length(id) from message_id": lambda position, length: (
            (position & low) * 31 + length
        ),
    }
    for text, sum_of in sums.items():
        name = text.rsplit(maxsplit=1)[1]
        rows = total = 0
        for values in execute(text):
            rows, total = rows + 1, total + sum_of(*values)
        kept = _one(execute, "select rows, sums from tally where name = ?", name)
        if kept is None:
            found.say(f"nothing says how many rows {name} has")
        elif kept[0] != rows:
            found.lost_rows += abs(kept[0] - rows)
            found.say(f"{name} has {rows:,} rows, and {kept[0]:,} were written")
        elif kept[1] != total:
            found.lost_rows += 1
            found.say(f"{name} has other rows than those that were written")


def _find_strays(execute: Execute, found: Recount, batches: _Batches) -> None:
    """Say which rows beside the batches speak of what is not there, or say two things of one."""
    for name, position in execute("select id, position from message_id"):
        if position & 0xFFFF >= batches.counts.get(position >> SHIFT, 0):
            found.say(f"id {name!r} is of the message {position}, which is not there")
    for receiver, position in execute("select receiver, position from dead"):
        if position >> SHIFT > batches.last:
            found.say(f"receiver {receiver}: dead letter {position} is behind the newest batch")
    for subject, position in execute("select subject, position from retained"):
        if position >> SHIFT > batches.last:
            found.say(f"{subject}: what is retained, {position}, is behind the newest batch")
    used = _one(execute, "select value from meta where key = 'senders_used'") or (0,)
    newest = _one(execute, "select max(id) from sender") or (None,)
    given = max(used[0], newest[0] or 0)
    for sender, name in execute("select sender, min(name) from finished_id group by sender"):
        if not 0 < sender <= given:
            found.say(f"id {name!r} is of a message of sender {sender}, whom there never was")
    for (sender,) in execute("select distinct sender from finished"):
        if not 0 < sender <= given:
            found.say(f"states are kept of sender {sender}, whom there never was")
    for sender, name, known in execute(
        "select f.sender, f.name, s.id from former as f left join sender as s on s.id = f.sender"
    ):
        if known is not None or not 0 < sender <= given:
            found.say(f"sender {name} is kept as forgotten, and is not: number {sender}")
    key, end = None, -1
    for sender, receiver, first, last, status in execute(
        "select sender, receiver, first, last, status from finished"
        " order by sender, receiver, first"
    ):
        if (sender, receiver) != key:
            key, end = (sender, receiver), -1
        if first <= end or last < first or status not in FINAL:
            found.say(f"sender {sender}: two states, or none, of {first} at receiver {receiver}")
        end = max(end, last)
