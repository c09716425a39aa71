"""`DictLog`: a log of plain dicts, which shares nothing with the one over SQLite but `ILog`.

It shows that the contract can be had in another way: states are kept message by message, and sums
are counted when somebody asks. Nothing is bounded and nothing is fast. It has no entries and no
chain; a batch goes as soon as it may, whatever is still there before it. A page of `history` or of
retention has no end.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TypeVar
from zlib import crc32

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.core.copies import REPLAY_OF, copies_of
from msgservice.core.subjects import matches
from msgservice.errors import (
    ContentChanged,
    Forbidden,
    KeyReused,
    LimitReached,
    LogFull,
    LogUnavailable,
    Refused,
)
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX, RUNS_REMEMBERED, SENDER_KNOWN_SECONDS, Limits
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_RETAIN,
    FLAG_RETAIN_ONLY,
    FLAG_RETAINED,
    Status,
    cut_messages,
    decode_messages,
    header_size,
    message_sizes,
)
from msgservice.records import (
    LOST,
    NOBODY,
    NODE,
    NOT_YET,
    OF_ACKNOWLEDGED,
    PROMISED,
    REWIND,
    START,
    Account,
    Appended,
    Audience,
    Batch,
    Cancel,
    Copies,
    DeadLetter,
    Delayed,
    ExceptionRow,
    Expiring,
    Found,
    Group,
    History,
    Known,
    LettersTaken,
    Oldest,
    OpenPromise,
    Origin,
    Outcome,
    PageOutcome,
    Piece,
    Progress,
    Promised,
    PromiseFound,
    ReceiverRow,
    RefusedBatch,
    Replay,
    ReplayPage,
    Resume,
    Retained,
    Room,
    Snapshot,
    StateRange,
    StreamHeader,
    StreamPage,
    Verdict,
    position_of,
)

T = TypeVar("T")
Key = tuple[str, str]
State = tuple[Status, int, str]  # status, attempts, reason

DAY = 24 * 3600 * 1000
SPAN = 6 * 3600 * 1000  # in which states that are forgotten together were written
CROWD = 10  # times `incarnations`: of more that are away, none is kept for an hour
LETTERS_BYTES = 4 * 1024 * 1024  # of one page
LETTER_OVERHEAD = 128
FULL_DELAY = 1.0
PAGE_BYTES = 4 * 1024 * 1024  # of a replay


@dataclass(eq=False)
class Sender:
    """All that is known of one incarnation."""

    floor: int = 1
    above: set[int] = field(default_factory=set)  # taken above the floor
    last: tuple[int, int, int] | None = None
    status_from: int = 1
    seen_at: int = 0
    gone: dict[int, Batch] = field(default_factory=dict)  # runs without messages, by sequence
    # Receiver -> sequence -> what became of it, and the age of the log when its batch went.
    states: dict[int, dict[int, tuple[Status, str, int]]] = field(default_factory=dict)

    def has(self, sequence: int) -> bool:
        return sequence < self.floor or sequence in self.above

    def take(self, first: int, last: int) -> None:
        if first <= self.floor:
            self.floor = max(self.floor, last + 1)
        else:
            self.above.update(range(first, last + 1))
        while self.floor in self.above:
            self.floor += 1
        self.above = {sequence for sequence in self.above if sequence > self.floor}

    def settle_below(self, floor: int) -> None:
        """Nothing below is open, as far as something newer was taken."""
        self.take(1, min(floor - 1, max(self.above, default=self.floor - 1)))

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        wanted = range(max(first, self.floor), last + 1)
        return spans(sequence for sequence in wanted if sequence not in self.above)


@dataclass(eq=False)
class Receiver:
    """All that is known of one receiver, removed or not."""

    row: ReceiverRow
    cursor: int
    inbox: str | None
    removed_at: int | None = None  # age of the log, where it was
    routed: int = 0  # messages of its audiences
    rows: dict[int, ExceptionRow] = field(default_factory=dict)  # by first position
    settled: dict[int, int] = field(default_factory=dict)
    settled_bytes: int = 0
    dead: dict[int, DeadLetter] = field(default_factory=dict)

    @property
    def removed(self) -> bool:
        return self.removed_at is not None

    @property
    def dead_bytes(self) -> int:
        return sum(
            len(letter.message) + len(letter.reason.encode()) + LETTER_OVERHEAD
            for letter in self.dead.values()
        )

    def states(self, batch: Batch) -> list[State]:
        """Return the state of each message of a batch."""
        rows = [r for r in self.rows.values() if r.first <= batch.last and r.last >= batch.first]
        found = []
        for position in range(batch.first, batch.last + 1):
            inside = [row for row in rows if row.first <= position <= row.last]
            if position <= self.cursor:  # what waited below it was settled since
                inside = [row for row in inside if row.status.final]
            if inside:
                row = max(inside, key=lambda row: row.first)
                found.append((row.status, row.attempts, row.reason))
            elif position <= self.cursor:
                found.append((Status.ACKNOWLEDGED, 0, ""))
            else:
                found.append((Status.REMOVED if self.removed else Status.QUEUED, 0, ""))
        return found

    def apply(self, step: Progress) -> None:
        self.cursor = max(self.cursor, step.cursor)
        for row in step.exceptions:
            for first in [first for first in self.rows if row.first <= first <= row.last]:
                del self.rows[first]
            self.rows[row.first] = row
        self.rows = {
            first: row
            for first, row in self.rows.items()
            if row.last > self.cursor or row.status not in (Status.QUEUED, Status.ACKNOWLEDGED)
        }
        for status, count in step.settled.items():
            self.settle(Status(status), count)
        self.settled_bytes += step.settled_bytes
        self.dead.update((letter.position, letter) for letter in step.dead)
        self.inbox = step.inbox or self.inbox

    def settle(self, status: Status, count: int) -> None:
        if count:
            self.settled[int(status)] = self.settled.get(int(status), 0) + count


@dataclass(frozen=True)
class KeyOf:
    """The message that an idempotency key was used for, and the age of the log then."""

    content: bytes
    sender: Key
    sequence: int
    at: int


@dataclass(frozen=True)
class ByKey:
    """What was taken by its key: not stored, for another message that is in the log has the key."""

    crc: int
    ids: tuple[str, ...]
    of: KeyOf


@dataclass(eq=False)
class Content:
    """All that outlives a close: what a disk would have."""

    log_id: str
    next_number: int = 1
    waiting: dict[int, Batch] = field(default_factory=dict)  # until due, by number and place
    accepted_at: dict[int, int] = field(default_factory=dict)
    delayed: int = 0  # the highest number that was given to one
    promises: dict[tuple[Key, int], tuple[int, Promised]] = field(default_factory=dict)  # open
    decided: dict[tuple[Key, int], PromiseFound] = field(default_factory=dict)
    # Of messages that have left the log, or were cancelled before: (id, sender, sequence, age).
    finished_ids: list[tuple[str, Key, int, int]] = field(default_factory=list)  # oldest first
    # The states of those whose sender was forgotten.
    former: list[tuple[Key, dict[int, dict[int, tuple[Status, str, int]]]]] = field(
        default_factory=list
    )
    batches: dict[int, Batch] = field(default_factory=dict)
    stored_at: dict[int, int] = field(default_factory=dict)  # number -> age of the log
    senders: dict[Key, Sender] = field(default_factory=dict)
    receivers: dict[int, Receiver] = field(default_factory=dict)
    audiences: dict[tuple[int, ...], Audience] = field(default_factory=dict)
    audiences_made: int = 0
    routed: dict[int, int] = field(default_factory=dict)  # receiver -> messages, made or not
    age: int = 0
    replays: dict[int, Replay] = field(default_factory=dict)
    retained: dict[str, Retained] = field(default_factory=dict)
    keys: dict[bytes, KeyOf] = field(default_factory=dict)  # by digest
    by_key: dict[tuple[Key, int], ByKey] = field(default_factory=dict)  # by sender and sequence


def spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return rising numbers as ranges."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] + 1 == number:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


OF = -1  # in place of an index: the name of the message as which a run was taken by its key


def name_of(batch: Batch) -> str:
    hashed = sha256(batch.incarnation.encode()).hexdigest()[:16]
    return f"{batch.sender}/{hashed}/{batch.sequence}"


def overlap(batch: Batch, first: int, last: int) -> bool:
    return batch.sequence <= last and batch.sequence + batch.count > first


def cut(batch: Batch, first: int, last: int) -> Batch:
    """Return sequences `first` to `last` of a batch as one of its own."""
    start, stop = first - batch.sequence, last - batch.sequence + 1
    messages = cut_messages(batch.messages, start, stop)
    origin = batch.origin
    if origin is not None:
        origin = msgspec.structs.replace(origin, sequence=origin.sequence + start)
    return msgspec.structs.replace(
        batch,
        sequence=first,
        count=stop - start,
        messages=messages,
        size=len(messages),
        crc=crc32(messages),
        after=first - 1 if start else batch.after,
        ids=tuple((index - start, name) for index, name in batch.ids if start <= index < stop),
        origin=origin,
    )


@implementer(ILog)
class DictLog:
    """A log in plain dicts. `content`: that of one which was closed, a copy of which goes on."""

    durable = False

    def __init__(
        self, *, reactor: IReactorTime, limits: Limits, content: Content | None = None
    ) -> None:
        self._reactor = reactor
        self._limits = limits
        self.content = Content(os.urandom(16).hex()) if content is None else copy.deepcopy(content)
        self._opened = False
        self._elapsed: int | None = None
        self._forgotten: list[int] = []
        self._left: set[Key] = set()
        self._wanted: set[tuple[str, str]] = set()

    @property
    def log_id(self) -> str:
        return self.content.log_id

    def _later(self, job: Callable[[], T]) -> Deferred[T]:
        if not self._opened:
            return fail(LogUnavailable("the log is not open"))
        waiter: Deferred[T] = Deferred()

        def run() -> None:
            try:
                waiter.callback(job())
            except Exception:  # a broken double is told where its caller waits
                waiter.errback(Failure())

        self._reactor.callLater(0, run)
        return waiter

    def open(self) -> Deferred[Snapshot]:
        self._opened = True
        return self._later(self._snapshot)

    def _snapshot(self) -> Snapshot:
        content = self.content
        content.audiences = {key: one for key, one in content.audiences.items() if one.stored}
        rows = []
        exceptions = {}
        for number, at in content.receivers.items():
            rows.append(
                replace(
                    at.row,
                    removed=at.removed,
                    cursor=at.cursor,
                    inbox=at.inbox,
                    settled=dict(at.settled),
                    settled_bytes=at.settled_bytes,
                )
            )
            found = [at.rows[first] for first in sorted(at.rows)]
            found = [row for row in found if row.last >= max(at.cursor, 0)]
            if found and not at.removed:
                exceptions[number] = found
        return Snapshot(
            log_id=content.log_id,
            next_number=content.next_number,
            receivers=rows,
            audiences=list(content.audiences.values()),
            exceptions=exceptions,
            expires=min(
                (b.expires_at for b in content.batches.values() if b.expires_at is not None),
                default=None,
            ),
            replays=list(content.replays.values()),
            retained=[(one.subject, one.size, one.expires_at) for one in content.retained.values()],
            promises=[
                OpenPromise(
                    *key, sequence, sequence, at, promise.need, promise.until, promise.cancels
                )
                for (key, sequence), (at, promise) in content.promises.items()
            ],
        )

    def close(self) -> Deferred[None]:
        self._opened = False
        return succeed(None)

    # --- what is stored ------------------------------------------------------------------------

    def append_now(self, group: Group) -> Appended | None:
        """See `ILog`."""
        return None

    def append(self, group: Group) -> Deferred[Appended]:
        return self._later(lambda: self._append(group))

    def _append(self, group: Group) -> Appended:
        content = self.content
        highest = max(content.receivers, default=0)
        for row in group.receivers:
            at = content.receivers.get(row.number)
            if at is None:
                if row.number <= highest:
                    continue  # it was forgotten
                if row.cursor < 0:
                    row.cursor = position_of(content.next_number) - 1
                content.receivers[row.number] = Receiver(replace(row), row.cursor, row.inbox)
            else:
                at.row = replace(row)
        for replay in group.replays:
            at = content.receivers.get(replay.receiver)
            if at is not None and not at.removed:
                content.replays[replay.receiver] = replay
        group.due_now = group.due_now or group.now
        group.now = max(group.now, max((b.stored_at for b in content.batches.values()), default=0))
        copied = [batch for page in group.pages for batch in page.copies]
        copied += [batch for taken in group.letters for batch in taken.copies]
        coming = sum(batch.size for batch in (*copied, *group.own, *group.batches))
        if coming and self._taken + coming > self._limits.max_bytes:
            self._give_way(coming)
        fresh: list[Batch] = []
        pages = self._move_replays(group.pages)
        self._join(group, fresh)
        for page, outcome in zip(group.pages, pages, strict=True):
            if outcome == "stored":
                self._name_own(page.copies)
                for batch in page.copies:
                    self._take(batch, group.now, None, fresh, room=PAGE_BYTES)
        letters = [self._take_letters(taken, group, fresh) for taken in group.letters]
        full: LogFull | None = None
        for page, outcome in zip(group.pages, pages, strict=True):
            if isinstance(outcome, LogFull) and page.replay.kind == START and page.replay.is_over:
                full = outcome
        self._name_own(group.own)
        # What the node itself stores uses no key.
        own = list(self._take_all(group.own, group.now, fresh, full, keyed=False))
        if own and isinstance(own[-1], RefusedBatch) and isinstance(own[-1].error, LogFull):
            full = own[-1].error
        moved: set[int] = set()
        for batch in group.due:
            if batch.delayed_id in moved:
                continue
            known = content.waiting.get(batch.delayed_id)
            if known is None or known.count != batch.count:
                break  # what is left of it goes first, read anew
            del content.waiting[batch.delayed_id]
            moved.add(batch.delayed_id)
            self._store(batch, group.now)
            fresh.append(batch)
        outcomes = [
            *own,
            *self._take_all(group.batches, group.now, fresh, full, due_now=group.due_now),
        ]
        cancelled = [self._cancel(wanted) for wanted in group.cancel]
        decided = [self._decide(verdict, group.now) for verdict in group.verdicts]
        for batch in fresh:
            if batch.promise is not None:
                need = batch.promise.need or len(batch.audience.members)
                promise = msgspec.structs.replace(batch.promise, need=need)
                for index in range(batch.count):
                    place = (batch.first + index, promise)
                    content.promises[(batch.sender, batch.incarnation), batch.sequence + index] = (
                        place
                    )
        for floor in group.statuses_from:
            sender = content.senders.get((floor.sender, floor.incarnation))
            if sender is not None:
                sender.status_from = max(sender.status_from, floor.status_from)
        for step in group.progress:
            at = content.receivers.get(step.receiver)
            if at is not None and not at.removed:
                at.apply(step)
        for number in group.removed:
            at = content.receivers.get(number)
            if at is not None and not at.removed:
                waiting = sum(not state[0].final for _, state in self._states_at(number))
                at.rows = {first: row for first, row in at.rows.items() if row.status.final}
                at.settle(Status.REMOVED, waiting)
                at.removed_at = self.content.age
                content.replays.pop(number, None)
        count = len(group.own)
        kept = self._retain_messages(fresh)
        own = outcomes[:count]
        rest = outcomes[count:]
        return Appended(rest, fresh, own, pages, letters, cancelled, kept, decided)

    def _decide(self, verdict: Verdict, now: int) -> tuple[tuple[int, int], ...]:
        content, key = self.content, (verdict.sender, verdict.incarnation)
        found = sorted(
            sequence
            for who, sequence in content.promises
            if who == key and verdict.first <= sequence <= verdict.last
        )
        sender = content.senders.get(key)
        for sequence in found:
            _, promise = content.promises.pop((key, sequence))
            content.decided[key, sequence] = PromiseFound(
                promise.need, promise.until, promise.cancels, verdict.status, verdict.reason, now
            )
            if sender is not None:
                state = (verdict.status, verdict.reason, content.age)
                sender.states.setdefault(PROMISED, {})[sequence] = state
        return tuple(spans(found))

    # --- what waits until it is due

    def _delay(self, batch: Batch, now: int) -> None:
        content = self.content
        content.delayed += 1
        number = content.delayed << 16
        audience = batch.audience if batch.addressed else NOBODY
        content.waiting[number] = msgspec.structs.replace(
            batch,
            messages=bytes(memoryview(batch.messages)),
            floor=0,
            delayed_id=number,
            audience=audience,
        )
        content.accepted_at[number] = now
        audience.stored = True

    def _cancel(self, wanted: Cancel) -> tuple[tuple[int, int], ...]:
        content, key = self.content, (wanted.sender, wanted.incarnation)
        found = []
        for batch in self._waiting_of(key):
            first, last = batch.sequence, batch.sequence + batch.count - 1
            low, high = max(first, wanted.first), min(last, wanted.last)
            if low > high:
                continue
            found.append((low, high))
            del content.waiting[batch.delayed_id]
            for begin, end in ((first, low - 1), (high + 1, last)):
                if begin <= end:
                    piece = cut(batch, begin, end)
                    piece.delayed_id += begin - first
                    content.waiting[piece.delayed_id] = piece
                    content.accepted_at[piece.delayed_id] = content.accepted_at[batch.delayed_id]
            sender = content.senders[key]
            content.finished_ids += [
                (name, key, first + index, content.age)
                for index, name in batch.ids
                if low <= first + index <= high
            ]
            states = sender.states.setdefault(NOT_YET, {})
            cancelled = (Status.CANCELLED, wanted.reason, content.age)
            for sequence in range(low, high + 1):
                states[sequence] = cancelled
            for (who, at), taken in list(content.by_key.items()):
                if taken.of.sender == key and low <= taken.of.sequence <= high:
                    content.senders[who].states.setdefault(NOT_YET, {})[at] = cancelled
                    content.finished_ids += [(name, who, at, content.age) for name in taken.ids]
                    del content.by_key[who, at]
        return tuple(found)

    def _waiting_of(self, key: Key) -> list[Batch]:
        found = [b for b in self.content.waiting.values() if (b.sender, b.incarnation) == key]
        return sorted(found, key=lambda batch: batch.sequence)

    def _in_order(self, after: tuple[int, int]) -> list[Batch]:
        found = [b for b in self.content.waiting.values() if (b.due_at, b.delayed_id) > after]
        return sorted(found, key=lambda batch: (batch.due_at, batch.delayed_id))

    def next_due(self) -> int | None:
        return min((batch.due_at for batch in self.content.waiting.values()), default=None)

    def due(self, to: int, after: tuple[int, int], count_max: int) -> Deferred[list[Batch]]:
        def job() -> list[Batch]:
            found = [batch for batch in self._in_order(after) if batch.due_at <= to]
            return [msgspec.structs.replace(batch) for batch in found[:count_max]]

        return self._later(job)

    def delayed(self, after: tuple[int, int], count_max: int) -> Deferred[list[Delayed]]:
        def job() -> list[Delayed]:
            return [
                Delayed(
                    id=batch.delayed_id,
                    due_at=batch.due_at,
                    accepted_at=self.content.accepted_at[batch.delayed_id],
                    sender=batch.sender,
                    incarnation=batch.incarnation,
                    first=batch.sequence,
                    last=batch.sequence + batch.count - 1,
                    subject=batch.subject,
                    size=batch.size,
                    to=batch.audience.members if batch.addressed else None,
                    ids=batch.ids,
                    expires_at=batch.expires_at,
                )
                for batch in self._in_order(after)[:count_max]
            ]

        return self._later(job)

    def find_delayed(
        self, identity: str, senders: Collection[str] | None = None
    ) -> Deferred[Found | None]:
        return self._later(lambda: self._find_delayed(identity, senders))

    def _find_delayed(self, identity: str, senders: Collection[str] | None) -> Found | None:
        for number, batch in sorted(self.content.waiting.items(), reverse=True):
            hashed = sha256(batch.incarnation.encode()).hexdigest()[:16]
            ids = dict(batch.ids)
            for sequence in range(batch.sequence, batch.sequence + batch.count):
                names = [f"{batch.sender}/{hashed}/{sequence}"]
                for ((name, incarnation), at), taken in self.content.by_key.items():
                    if self._original(taken.of) is batch:
                        if senders is None or any(matches(one, batch.sender) for one in senders):
                            names += taken.ids
                        hidden = sha256(incarnation.encode()).hexdigest()[:16]
                        names.append(f"{name}/{hidden}/{at}")
                if senders is None or any(matches(one, batch.sender) for one in senders):
                    names.append(ids.get(sequence - batch.sequence, ""))
                if identity in names:
                    return Found(
                        position=0,
                        sender=batch.sender,
                        incarnation=batch.incarnation,
                        sequence=sequence,
                        subject=batch.subject,
                        size=batch.size,
                        stored_at=self.content.accepted_at[number],
                        states={},
                        due=batch.due_at,
                    )
        return None

    def find_finished(
        self,
        identity: str,
        after: int = 0,
        count_max: int | None = None,
        senders: Collection[str] | None = None,
    ) -> Deferred[Found | None]:
        return self._later(lambda: self._find_finished(identity, after, count_max, senders))

    def _find_finished(
        self, identity: str, after: int, count_max: int | None, senders: Collection[str] | None
    ) -> Found | None:
        content = self.content
        known = [*((key, one.states) for key, one in content.senders.items()), *content.former]
        named: list[tuple[Key, int]] = []
        for key, states in known:
            hashed = sha256(key[1].encode()).hexdigest()[:16]
            named += [
                (key, sequence)
                for sequence in sorted(
                    {one for number, found in states.items() for one in found if number >= NOT_YET}
                )
                if identity == f"{key[0]}/{hashed}/{sequence}"
            ]
        named += [
            (key, sequence)
            for own_id, key, sequence, _ in reversed(content.finished_ids)
            if own_id == identity
            and key in dict(known)
            and (senders is None or any(matches(one, key[0]) for one in senders))
        ]
        for key, sequence in named:
            told = {
                number: (found[sequence][0], 0, found[sequence][1])
                for who, states in known
                for number, found in sorted(states.items())
                if who == key and sequence in found and number > (after or NOT_YET - 1)
            }
            asked = dict([*told.items()][:count_max])
            more = len(asked) < len(told)
            removed = NOT_YET not in asked
            promise = self._promise_of(key, sequence)
            origin = Origin(key[0], sequence, sha256(key[1].encode()).hexdigest()[:16])
            return Found(
                0,
                *key,
                sequence,
                "",
                0,
                0,
                asked,
                more=more,
                removed=removed,
                promise=promise,
                copies=self._copies(origin, asked, 0),
                copied_to=self._copied_to(origin, asked, 0),
            )
        return None

    # --- retained messages

    def _join(self, group: Group, fresh: list[Batch]) -> None:
        for join in group.joins:
            at = self.content.receivers.get(join.receiver)
            if at is None or at.removed:
                continue
            below, replay = join.below, self.content.replays.get(join.receiver)
            if replay is not None and replay.is_open:
                below = min(below, replay.next)
                earlier = [
                    batch.number
                    for batch in self.content.batches.values()
                    if batch.stored_at < replay.since
                ]
                below = max(below, position_of(max(earlier, default=0) + 1) if replay.since else 0)
            first, since = join.asked or (0, 0)
            if join.asked is not None:
                below = 0
            copies = [
                one.copy(join.audience)
                for one in sorted(self.content.retained.values(), key=lambda one: one.position)
                if any(matches(pattern, one.subject) for pattern in join.patterns)
                and not any(matches(pattern, one.subject) for pattern in join.before)
                and not 0 < one.expires_at <= group.due_now
                and (one.position < below or one.position >> 16 not in self.content.batches)
                and one.position >= first
                and one.stored_at >= since
            ]
            self._name_own(copies)
            for batch in copies:
                self._take(batch, group.now, None, fresh, room=1 << 60)

    def _retain_messages(self, fresh: list[Batch]) -> list[tuple[str, int, int]]:
        changed: dict[str, tuple[str, int, int]] = {}
        for batch in fresh:
            is_copy = batch.options.flags & FLAG_REPLAY and batch.sender == NODE
            if batch.options.flags & FLAG_RETAIN and not is_copy:
                body = decode_messages(batch.messages)[-1].body
                kept = Retained.of(batch) if body else None
                self.content.retained.pop(batch.subject, None)
                if kept is not None:
                    self.content.retained[batch.subject] = kept
                size, expires_at = (0, 0) if kept is None else (kept.size, kept.expires_at)
                changed[batch.subject] = (batch.subject, size, expires_at)
        return list(changed.values())

    def retained(self, after: str, count_max: int) -> Deferred[list[Retained]]:
        def page() -> list[Retained]:
            found: list[Retained] = []
            for subject in sorted(self.content.retained):
                is_full = sum(one.size for one in found) >= LETTERS_BYTES
                if subject > after and len(found) < count_max and not is_full:
                    found.append(self.content.retained[subject])
            return found

        return self._later(page)

    def clear_retained(self, subjects: Sequence[str], expired: int = 0) -> Deferred[None]:
        def clear() -> None:
            for subject in subjects:
                kept = self.content.retained.get(subject)
                if kept is not None and (not expired or 0 < kept.expires_at <= expired):
                    del self.content.retained[subject]

        return self._later(clear)

    def _move_replays(self, pages: list[ReplayPage]) -> list[PageOutcome]:
        """Move the rows of the pages that hold and find room; their copies are taken after."""
        outcomes: list[PageOutcome] = []
        used = self._used
        for page in pages:
            known = self.content.replays.get(page.replay.receiver)
            if known is None or known.is_over or known.next != page.after:
                outcomes.append("void")
                continue
            size = sum(batch.size for batch in page.copies)
            if size and used + size > self._limits.max_bytes - self._dead_bytes + PAGE_BYTES:
                outcomes.append(LogFull("no room for a page", delay=FULL_DELAY))
                continue
            used += size
            self.content.replays[page.replay.receiver] = page.replay
            outcomes.append("stored")
        return outcomes

    def _take_letters(self, taken: LettersTaken, group: Group, fresh: list[Batch]) -> PageOutcome:
        receivers = self.content.receivers
        at = receivers.get(taken.receiver)
        if at is None or not set(taken.positions) <= set(at.dead):
            return "void"
        for number in {n for batch in taken.copies for n in batch.audience.members}:
            if number not in receivers or receivers[number].removed or number in group.removed:
                return "void"
        size = sum(batch.size for batch in taken.copies)
        freed = sum(at.dead[position].size for position in taken.positions)
        if size and self._taken + size > self._limits.max_bytes + freed:
            return LogFull("no room for a letter's copy", delay=FULL_DELAY)
        for position in taken.positions:
            del at.dead[position]
        self._name_own(taken.copies)
        for batch in taken.copies:
            self._take(batch, group.now, None, fresh, room=self._limits.max_bytes)
        return "stored"

    # --- replays

    def replay(
        self,
        replay: Replay,
        patterns: Sequence[str] | None,
        bytes_max: int,
        size_max: int,
        count_only: bool = False,
    ) -> Deferred[Copies]:
        def job() -> Copies:
            found = Copies([], replay.end + 1, 0, 0, 0)
            for batch in self.content.batches.values():
                wanted = [
                    index
                    for index in range(batch.count)
                    if replay.next <= batch.first + index <= replay.end
                    and self._is_copied(replay, patterns, batch, index)
                ]
                if not wanted:
                    continue
                if found.messages and found.size + batch.size > bytes_max and not count_only:
                    found.next = batch.first
                    break
                found.messages += len(wanted)
                found.size += batch.size * len(wanted) // batch.count
                if not count_only:
                    expires = replay.kind != REWIND
                    found.copies += copies_of(batch, spans(wanted), size_max, expires=expires)
            return found

        return self._later(job)

    def _is_copied(
        self, replay: Replay, patterns: Sequence[str] | None, batch: Batch, index: int
    ) -> bool:
        is_its = replay.receiver in batch.audience.members
        if batch.stored_at < replay.since:
            return False
        if batch.options.flags & FLAG_RETAIN_ONLY and replay.kind != START:
            return False
        if batch.sender == NODE and batch.options.flags & FLAG_REPLAY:
            if replay.kind != LOST:
                return False
            said = (decode_messages(batch.messages)[index].headers or {}).get(REPLAY_OF)
            original = 0 if said is None else int(said.partition(":")[2])
            of = self.content.batches.get(original >> 16)
            if (
                of is not None
                and replay.first <= original <= replay.end
                and replay.receiver in of.audience.members
                and self._is_acknowledged(replay.receiver, of, original & 0xFFFF)
            ):
                return False
        copies_of_retained = batch.sender == NODE and batch.options.flags & FLAG_RETAINED
        if copies_of_retained and replay.kind not in OF_ACKNOWLEDGED:
            return False
        if replay.kind in OF_ACKNOWLEDGED:
            states = self.content.receivers[replay.receiver].states(batch)
            allowed = patterns is None or batch.addressed or _fits(patterns, batch.subject)
            return is_its and allowed and states[index][0] is Status.ACKNOWLEDGED
        fits = _fits(patterns or (), batch.subject)
        return fits and not is_its and not batch.addressed

    def _is_acknowledged(self, receiver: int, batch: Batch, index: int) -> bool:
        states = self.content.receivers[receiver].states(batch)
        return states[index][0] is Status.ACKNOWLEDGED

    def position_at(self, stored_at: int) -> Deferred[int]:
        def job() -> int:
            numbers = [b.number for b in self.content.batches.values() if b.stored_at >= stored_at]
            return position_of(min(numbers, default=self.content.next_number))

        return self._later(job)

    def of_stream(self, subject: str, after: int | None, bytes_max: int) -> Deferred[StreamPage]:
        def job() -> StreamPage:
            oldest = min(self.content.batches, default=self.content.next_number)
            start = 0 if after is None else after
            found = [
                batch
                for _, batch in sorted(self.content.batches.items())
                if batch.subject == subject and batch.last > start
                if not batch.options.flags & (FLAG_REPLAY | FLAG_RETAINED | FLAG_RETAIN_ONLY)
                if not batch.addressed
            ]
            newest = last = position_of(self.content.next_number) - 1
            page: list[Batch] = []
            for batch in found:
                if page and sum(one.size for one in page) + batch.size > bytes_max:
                    last = position_of(batch.number) - 1
                    break
                page.append(batch)
            is_gap = after is not None and max(after + 1, position_of(1)) < position_of(oldest)
            return StreamPage(page, is_gap, newest, last)

        return self._later(job)

    def stream_header(self, subject: str) -> Deferred[StreamHeader]:
        def job() -> StreamHeader:
            newest = position_of(self.content.next_number) - 1
            return StreamHeader(self.content.retained.get(subject), newest)

        return self._later(job)

    def kept_from(self) -> int:
        return position_of(min(self.content.batches, default=self.content.next_number))

    def _name_own(self, own: list[Batch]) -> None:
        key = (NODE, self.log_id)
        known = self.content.senders.get(key)
        sequence = 1 if known is None else known.floor
        for batch in own:
            batch.sender, batch.incarnation = key
            batch.sequence, batch.after = sequence, sequence - 1
            sequence += batch.count

    def _take_all(
        self,
        batches: list[Batch],
        now: int,
        fresh: list[Batch],
        full: LogFull | None,
        *,
        keyed: bool = True,
        due_now: int = 0,
    ) -> Iterator[Outcome]:
        held: dict[tuple[Key, str], tuple[int, LimitReached]] = {}
        for batch in batches:
            lane = ((batch.sender, batch.incarnation), batch.subject)
            head, limit = held.get(lane, (batch.sequence, None))
            why = full or (limit if batch.sequence > head else None)
            outcome = self._take_by_key(batch, why) if keyed else None
            if outcome is None:
                outcome = self._take(batch, now, why, fresh)
                if keyed and batch.key is not None and outcome is batch:
                    at = self.content.age + max(0, batch.due_at - due_now) * bool(batch.due_at)
                    of = KeyOf(batch.key.content, lane[0], batch.sequence, at)
                    self.content.keys[batch.key.digest] = of
            yield outcome
            if isinstance(outcome, RefusedBatch) and outcome.error is not batch.refusal:
                if isinstance(outcome.error, LogFull):
                    full = outcome.error
                elif isinstance(outcome.error, LimitReached):
                    held[lane] = (min(head, batch.sequence), outcome.error)

    # --- idempotency keys

    def _take_by_key(self, batch: Batch, why: LogFull | LimitReached | None) -> Outcome | None:
        """Decide by its key about a message that was not handed in before; None: nothing does."""
        content, limits = self.content, self._limits
        key, sequence = (batch.sender, batch.incarnation), batch.sequence
        last = sequence + batch.count - 1
        known = content.senders.get(key)
        if batch.key is None or why is not None or (known is not None and known.has(sequence)):
            return None
        if isinstance(batch.refusal, Forbidden | LimitReached | LogFull):
            return None
        of = content.keys.get(batch.key.digest)
        if of is not None and of.content != batch.key.content:
            return RefusedBatch(KeyReused(batch.key.key))
        if of is None and batch.refusal is not None:
            return None
        if len(content.keys) + len(content.by_key) >= limits.idempotency_keys:
            return RefusedBatch(LimitReached("idempotency_keys", limits.idempotency_keys))
        if of is None:
            return None
        sender = content.senders.setdefault(key, Sender(seen_at=content.age))
        sender.settle_below(batch.floor)
        begin = min(batch.after + 1, sequence)
        if self._is_one_hole_too_many(sender, begin, last):
            return RefusedBatch(LimitReached("sender_ranges", limits.sender_ranges))
        sender.take(begin, last)
        sender.seen_at = content.age
        if sender.last is None or sequence > sender.last[1]:
            sender.last = (sequence, last, batch.crc)
        original = self._original(of)
        if original is None:
            self._pass_states(of, content.senders.get(of.sender), sender, sequence)
            return Known(pieces=(Piece(sequence, last, NOBODY, 0),), by_key=True)
        ids = tuple(name for index, name in batch.ids if not index)
        content.by_key[key, sequence] = ByKey(batch.crc, ids, of)
        piece = Piece(sequence, last, original.audience, original.first)
        if not original.number:
            piece = Piece(sequence, last, original.audience, 0, original.due_at, name_of(original))
        return Known(pieces=(piece,), by_key=True)

    def _original(self, of: KeyOf) -> Batch | None:
        """Return the message that a key was used for, while it is in the log."""
        found = [*self._batches_of(of.sender), *self._waiting_of(of.sender)]
        return next((batch for batch in found if batch.sequence == of.sequence), None)

    def _taken_by_key(self, key: Key) -> list[Batch]:
        """Return what a sender handed in and others had stored, as runs of its own."""
        found = []
        for (sender, sequence), taken in self.content.by_key.items():
            batch = self._original(taken.of) if sender == key else None
            if batch is not None:
                found.append(
                    msgspec.structs.replace(
                        batch,
                        sequence=sequence,
                        messages=b"",
                        crc=taken.crc,
                        ids=((OF, name_of(batch)),),
                    )
                )
        return found

    @staticmethod
    def _pass_states(of: KeyOf, known: Sender | None, sender: Sender, sequence: int) -> None:
        """What became of a message that has gone is known to who was taken by its key as well."""
        for number, states in ({} if known is None else known.states).items():
            if of.sequence in states:
                sender.states.setdefault(number, {})[sequence] = states[of.sequence]

    def _take(
        self,
        batch: Batch,
        now: int,
        why: LogFull | LimitReached | None,
        fresh: list[Batch],
        room: int = 0,
    ) -> Outcome:
        content, limits = self.content, self._limits
        key = (batch.sender, batch.incarnation)
        first, last = batch.sequence, batch.sequence + batch.count - 1
        sender = content.senders.get(key)
        left: list[tuple[int, int]] = []  # of what is refused: not taken before
        if batch.refusal is not None:
            left = [(first, last)] if sender is None else sender.missing(first, last)
            if left == [(first, last)] or (left and not isinstance(batch.refusal, Refused)):
                return RefusedBatch(batch.refusal)
        elif sender is None:
            sender = content.senders[key] = Sender(seen_at=content.age)
        assert sender is not None
        if batch.refusal is None:
            sender.seen_at = content.age
            sender.settle_below(batch.floor)
        missing = sender.missing(first, last)
        runs = self._runs(key, first, last)
        is_new = missing == [(first, last)]
        if not is_new and not all(self._agrees(batch, run) for run in runs):
            return RefusedBatch(ContentChanged(first, last))
        if left:
            return self._known(first, last, runs, left)
        pieces = [batch] if is_new else [cut(batch, low, high) for low, high in missing]
        begin = min(batch.after + 1, first)
        if pieces:
            used, used_max = self._used, limits.max_bytes - self._dead_bytes + room
            if why is None and used + sum(piece.size for piece in pieces) > used_max:
                why = LogFull(f"{used} bytes are used, at most {used_max}", delay=FULL_DELAY)
            if why is None and self._is_one_hole_too_many(sender, begin, last):
                why = LimitReached("sender_ranges", limits.sender_ranges)
            if why is not None:
                return RefusedBatch(why)
        for piece in pieces:
            if piece.due_at:
                self._delay(piece, now)
            else:
                self._store(piece, now)
                fresh.append(piece)
            end = piece.sequence + piece.count - 1
            if sender.last is None or end > sender.last[1]:
                sender.last = (piece.sequence, end, piece.crc)
        sender.take(begin, last)
        if batch.refusal is None and pieces:
            sender.settle_below(batch.floor)
        if is_new:
            return batch
        return self._known(first, last, [*runs, *pieces], [], pieces)

    def _known(
        self,
        first: int,
        last: int,
        runs: list[Batch],
        left: list[tuple[int, int]],
        fresh: Sequence[Batch] = (),
    ) -> Known:
        """Return what is known of a run, but for `left`, which is refused."""
        known = [self._piece(run, first, last) for run in runs]
        told = {s for piece in known for s in range(piece.first, piece.last + 1)}
        told.update(s for low, high in left for s in range(low, high + 1))
        holes = spans(s for s in range(first, last + 1) if s not in told)
        known += [Piece(low, high, NOBODY, 0) for low, high in holes]
        known.sort(key=lambda piece: piece.first)
        return Known(pieces=tuple(known), fresh=tuple(fresh), refused=tuple(left))

    def _is_one_hole_too_many(self, sender: Sender, first: int, last: int) -> bool:
        """Whether these sequences would be one range more than a sender may have."""
        return (
            first > sender.floor
            and len(spans(sorted(sender.above))) >= self._limits.sender_ranges
            and not sender.has(first - 1)
            and not sender.has(last + 1)
        )

    def _store(self, batch: Batch, now: int) -> None:
        content = self.content
        batch.number, batch.stored_at = content.next_number, now
        content.next_number += 1
        content.batches[batch.number] = msgspec.structs.replace(
            batch, messages=bytes(memoryview(batch.messages)), floor=0, refusal=None, due_at=0
        )
        batch.audience.stored = True
        for number in batch.audience.members:
            content.routed[number] = content.routed.get(number, 0) + batch.count

    def _runs(self, key: Key, first: int, last: int) -> list[Batch]:
        """Return what is still known of a sender's runs that overlap these sequences, rising."""
        found = [batch for batch in self._batches_of(key) if overlap(batch, first, last)]
        found += [batch for batch in self._waiting_of(key) if overlap(batch, first, last)]
        found += [run for run in self._taken_by_key(key) if overlap(run, first, last)]
        sender = self.content.senders[key]
        found += [run for run in sender.gone.values() if overlap(run, first, last)]
        return sorted(found, key=lambda run: run.sequence)

    def _agrees(self, batch: Batch, run: Batch) -> bool:
        """Whether a batch says what this run did, as far as that is still known."""
        if (batch.subject, batch.addressed) != (run.subject, run.addressed):
            return False
        if batch.addressed and batch.refusal is None:
            ours, theirs = self._names(batch.audience), self._names(run.audience)
            if None not in (ours, theirs) and ours != theirs:
                return False
        first = max(batch.sequence, run.sequence)
        stop = min(batch.sequence + batch.count, run.sequence + run.count)
        here = cut_messages(batch.messages, first - batch.sequence, stop - batch.sequence)
        if run.messages:
            there = cut_messages(run.messages, first - run.sequence, stop - run.sequence)
            return here == there
        return stop - first < run.count or crc32(here) == run.crc

    def _names(self, audience: Audience) -> set[str] | None:
        rows = [self.content.receivers.get(number) for number in audience.members]
        return None if None in rows else {at.row.name for at in rows if at is not None}

    @staticmethod
    def _piece(run: Batch, first: int, last: int) -> Piece:
        low, high = max(first, run.sequence), min(last, run.sequence + run.count - 1)
        if run.due_at and not run.number:
            whom = run.audience if run.addressed else NOBODY
            return Piece(low, high, whom, 0, run.due_at, dict(run.ids).get(OF, ""))
        return Piece(low, high, run.audience, run.first + low - run.sequence)

    # --- what is asked now ---------------------------------------------------------------------

    def audience(self, members: Collection[int]) -> Audience:
        content, most = self.content, self._limits.audiences
        key = tuple(sorted(set(members)))
        if key not in content.audiences:
            if len(content.audiences) >= most:
                for found in [one for one in content.audiences.values() if not one.stored]:
                    if not found.waiting:
                        del content.audiences[found.members]
                        found.is_gone = True
            if len(content.audiences) >= most:
                raise LimitReached("audiences", most)
            content.audiences_made += 1
            content.audiences[key] = Audience(content.audiences_made, key)
        return content.audiences[key]

    def want_room(self, limit: str, sender: str = "") -> None:
        self._wanted.add((limit, sender if limit == "sender_audiences" else ""))

    def take_forgotten(self) -> list[int]:
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def resume(self, sender: str, incarnation: str) -> Deferred[Resume]:
        known = self.content.senders.get((sender, incarnation), Sender())
        return succeed(Resume(known.floor, tuple(spans(sorted(known.above))), known.last))

    def age(self) -> int:
        return self.content.age

    def dead_bytes(self, receiver: int) -> int:
        at = self.content.receivers.get(receiver)
        return 0 if at is None else at.dead_bytes

    def dead_count(self, receiver: int) -> int:
        at = self.content.receivers.get(receiver)
        return 0 if at is None else len(at.dead)

    def room(self) -> Room:
        used, maximum = self._taken, self._limits.max_bytes
        full = f"{used} bytes are used, at most {maximum}" if used >= maximum else None
        return Room(used=used, maximum=maximum, free=0, full=full)

    @property
    def _used(self) -> int:
        content = self.content
        return sum(b.size for b in (*content.batches.values(), *content.waiting.values()))

    @property
    def _dead_bytes(self) -> int:
        return sum(at.dead_bytes for at in self.content.receivers.values())

    @property
    def _taken(self) -> int:
        return self._used + self._dead_bytes

    # --- what is read --------------------------------------------------------------------------

    def _batches_of(self, key: Key) -> list[Batch]:
        return [b for b in self.content.batches.values() if (b.sender, b.incarnation) == key]

    def _states_at(self, receiver: int) -> Iterator[tuple[int, State]]:
        """Yield the size and the state of every message in the log that a receiver is to get."""
        at = self.content.receivers[receiver]
        for batch in self.content.batches.values():
            if receiver in batch.audience.members:
                sizes = message_sizes(batch.messages)
                sizes[0] += header_size(batch.messages)
                yield from zip(sizes, at.states(batch), strict=True)

    def read(
        self, audiences: Collection[int], after: int, to: int, bytes_max: int, messages_max: int
    ) -> Deferred[list[Batch]]:
        return self._later(lambda: self._page(audiences, after, to, bytes_max, messages_max))

    def _page(
        self, audiences: Collection[int], after: int, to: int, bytes_max: int, messages_max: int
    ) -> list[Batch]:
        page: list[Batch] = []
        for batch in self.content.batches.values():
            if batch.audience.number not in audiences or batch.last <= after or batch.first > to:
                continue
            bytes_max -= batch.size
            messages_max -= batch.count
            if page and (bytes_max < 0 or messages_max < 0):
                break
            page.append(msgspec.structs.replace(batch, ids=()))
        return page

    def history(
        self,
        sender: str,
        incarnation: str,
        first: int,
        pieces_max: int,
        receivers: Collection[int] | None = None,
    ) -> Deferred[History]:
        def job() -> History:
            page = self._history((sender, incarnation), first, pieces_max)
            if receivers is None:
                return page
            states = tuple(state for state in page.states if state.receiver in receivers)
            return History((), states, page.next)

        return self._later(job)

    def _history(self, key: Key, first: int, pieces_max: int) -> History:
        known = self.content.senders.get(key)
        if known is None:
            return History((), (), None)
        by_key = self._taken_by_key(key)
        live = [*self._batches_of(key), *self._waiting_of(key), *by_key]
        live = [b for b in live if b.sequence + b.count > first]
        live.sort(key=lambda batch: batch.sequence)
        pieces = [self._piece(b, first, b.sequence + b.count - 1) for b in live[:pieces_max]]
        end = pieces[-1].last if len(live) > pieces_max else None
        states = {
            (receiver, sequence): (status, reason)
            for receiver, found in known.states.items()
            for sequence, (status, reason, _at) in found.items()
            if first <= sequence and (end is None or sequence <= end)
        }
        told = {sequence for _, sequence in states}
        for batch in live[:pieces_max]:
            told.update(range(batch.sequence, batch.sequence + batch.count))
            for number in batch.audience.members if batch.number else ():
                at = self.content.receivers.get(number)
                for index, state in enumerate([] if at is None else at.states(batch)):
                    if state[0].final and batch.sequence + index >= first:
                        states[number, batch.sequence + index] = (state[0], state[2])
        gone: list[tuple[int, int]] = []
        for low, high in [(1, known.floor - 1), *spans(sorted(known.above))]:
            low, high = max(low, first), high if end is None else min(high, end)
            for sequence in sorted(s for s in told if low <= s <= high):
                if low < sequence:
                    gone.append((low, sequence - 1))
                low = sequence + 1
            if low <= high:
                gone.append((low, high))
        return History(
            pieces=tuple(pieces),
            states=tuple(self._joined(states)),
            next=None if end is None else end + 1,
            gone=tuple(gone),
            by_key=tuple(run.sequence for run in live[:pieces_max] if run in by_key),
        )

    @staticmethod
    def _joined(states: dict[tuple[int, int], tuple[Status, str]]) -> list[StateRange]:
        found: list[StateRange] = []
        for (receiver, sequence), (status, reason) in sorted(states.items()):
            before = found[-1] if found else None
            new = StateRange(receiver, status, sequence, sequence, reason)
            if before == StateRange(
                receiver, status, before.first if before else 0, sequence - 1, reason
            ):
                found[-1] = StateRange(receiver, status, found[-1].first, sequence, reason)
            else:
                found.append(new)
        return sorted(found, key=lambda row: (row.first, row.receiver))

    def incarnation(self, sender: str, hash_: str) -> Deferred[str | None]:
        def job() -> str | None:
            for name, incarnation in self.content.senders:
                hashed = sha256(incarnation.encode()).hexdigest()[:16]
                if (name, hashed) == (sender, hash_):
                    return incarnation
            return None

        return self._later(job)

    def heads(self, numbers: Collection[int]) -> Deferred[dict[int, tuple[int, int]]]:
        def job() -> dict[int, tuple[int, int]]:
            batches = self.content.batches
            return {n: (batches[n].count, batches[n].size) for n in numbers if n in batches}

        return self._later(job)

    def of_key(self, digest: bytes) -> Deferred[str | None]:
        def job() -> str | None:
            of = self.content.keys.get(digest)
            if of is None:
                return None
            name, incarnation = of.sender
            return f"{name}/{sha256(incarnation.encode()).hexdigest()[:16]}/{of.sequence}"

        return self._later(job)

    def find(
        self,
        identity: str,
        after: int = 0,
        count_max: int | None = None,
        senders: Collection[str] | None = None,
    ) -> Deferred[Found | None]:
        def job() -> Found | None:
            found = self._find(identity, after, count_max, senders)
            at = None if found else self._passed_on(identity)
            return found if at is None else self._find(f"log:{at}", after, count_max, senders)

        return self._later(job)

    def _passed_on(self, identity: str) -> int | None:
        """Return where a message is that another node has passed on, by its first sender."""
        known = [*self.content.senders, *(key for key, _ in self.content.former)]
        if any(
            identity.startswith(f"{name}/{sha256(inc.encode()).hexdigest()[:16]}/")
            for name, inc in known
        ):
            return None
        for batch in reversed(self.content.batches.values()):
            if batch.origin is None or batch.sender == NODE:
                continue
            for index in range(batch.count):
                of = batch.origin.behind(index)
                if identity == f"{of.sender}/{of.incarnation}/{of.sequence}":
                    return batch.first + index
        return None

    def _find(
        self, identity: str, after: int, count_max: int | None, senders: Collection[str] | None
    ) -> Found | None:
        for batch in reversed(self.content.batches.values()):
            hashed = sha256(batch.incarnation.encode()).hexdigest()[:16]
            ids = dict(batch.ids)
            for index in range(batch.count):
                position, sequence = batch.first + index, batch.sequence + index
                names = [f"log:{position}", f"{batch.sender}/{hashed}/{sequence}"]
                if senders is None or any(matches(one, batch.sender) for one in senders):
                    names += [ids[index]] if index in ids else []
                    names += [name for taken in self._who_has_taken(batch) for name in taken[1].ids]
                if identity not in names:
                    continue
                members = [number for number in batch.audience.members if number > after]
                asked = members if count_max is None else members[:count_max]
                states = {}
                for number in asked:
                    at = self.content.receivers.get(number)
                    queued = (Status.QUEUED, 0, "")
                    states[number] = queued if at is None else at.states(batch)[index]
                origin = batch.origin or Origin(batch.sender, batch.sequence, hashed)
                return Found(
                    position=position,
                    sender=batch.sender,
                    incarnation=batch.incarnation,
                    sequence=sequence,
                    subject=batch.subject,
                    size=batch.size,
                    stored_at=batch.stored_at,
                    states=states,
                    copies=self._copies(origin.behind(index), states, batch.number),
                    copied_to=self._copied_to(origin.behind(index), states, position),
                    more=len(asked) < len(members),
                    promise=self._promise_of((batch.sender, batch.incarnation), sequence),
                )
        return None

    def _copied_to(
        self, of: Origin, states: dict[int, tuple[Status, int, str]], position: int
    ) -> dict[int, tuple[int, int]]:
        number = position >> 16
        dead = [one for one, state in states.items() if state[0] is Status.DEAD]
        letters = {one: self.content.receivers[one].dead for one in dead}
        every = dict.fromkeys(self.content.receivers, (Status.REMOVED, 0, ""))
        copies = self._copies(of, every, number)
        newest = max(copies.items(), key=lambda item: item[1], default=None)
        own = self._copies(of, states, number)
        gone = [
            one for one in dead if one not in own and not (position and position in letters[one])
        ]
        return {} if newest is None else dict.fromkeys(gone, newest)

    def _copies(
        self, of: Origin, states: dict[int, tuple[Status, int, str]], above: int
    ) -> dict[int, int]:
        found: dict[int, int] = {}
        for batch in self.content.batches.values():
            origin, members = batch.origin, batch.audience.members
            if batch.number <= above or origin is None or len(members) != 1:
                continue
            index = of.sequence - origin.sequence
            is_of = (of.sender, of.incarnation) == (origin.sender, origin.incarnation)
            is_copy = batch.options.flags & FLAG_REPLAY and is_of and 0 <= index < batch.count
            if is_copy and members[0] in states and states[members[0]][0].final:
                found[members[0]] = batch.first + index
        return found

    def _promise_of(self, key: Key, sequence: int) -> PromiseFound | None:
        content = self.content
        if (key, sequence) in content.promises:
            _, promise = content.promises[key, sequence]
            return PromiseFound(promise.need, promise.until, promise.cancels)
        known = [*((who, one.states) for who, one in content.senders.items()), *content.former]
        kept = any(who == key and sequence in states.get(PROMISED, {}) for who, states in known)
        return content.decided[key, sequence] if kept else None

    def _who_has_taken(self, batch: Batch) -> list[tuple[tuple[Key, int], ByKey]]:
        """Return what was taken, by its key, as this message."""
        key = (batch.sender, batch.incarnation)
        return [
            (who, taken)
            for who, taken in self.content.by_key.items()
            if (taken.of.sender, taken.of.sequence) == (key, batch.sequence)
        ]

    def dead_letters(self, receiver: int, after: int, count_max: int) -> Deferred[list[DeadLetter]]:
        return self._later(lambda: self._letters(receiver, after, count_max))

    def _letters(self, receiver: int, after: int, count_max: int) -> list[DeadLetter]:
        at = self.content.receivers.get(receiver)
        page: list[DeadLetter] = []
        for position in sorted({} if at is None else at.dead):
            assert at is not None
            is_full = sum(len(letter.message) for letter in page) >= LETTERS_BYTES
            if position > after and len(page) < count_max and not is_full:
                page.append(at.dead[position])
        return page

    def expiring(self, after: tuple[int, int], now: int, count_max: int) -> Deferred[Expiring]:
        return self._later(lambda: self._expiring(after, now, count_max))

    def _expiring(self, after: tuple[int, int], now: int, count_max: int) -> Expiring:
        held = self.content.batches
        places = sorted(
            (batch.expires_at, batch.number)
            for batch in held.values()
            if batch.expires_at is not None and (batch.expires_at, batch.number) > after
        )
        page = [place for place in places if place[0] <= now][:count_max]
        found = [held[number] for number in sorted(number for _, number in page)]
        spans: dict[Key, tuple[int, int]] = {}
        for batch in found:
            key = batch.sender, batch.incarnation
            last = batch.sequence + batch.count - 1
            low, high = spans.get(key, (batch.sequence, last))
            spans[key] = min(low, batch.sequence), max(high, last)
        others = [
            (batch.number, batch.audience.number)
            for batch in held.values()
            if found and found[0].number < batch.number < found[-1].number and batch not in found
        ]
        return Expiring(
            batches=tuple((b.number, b.audience.number, b.count, b.size) for b in found),
            between=tuple(others),
            senders=tuple((*key, *span) for key, span in spans.items()),
            at=page[-1] if page else (max(after[0], now), INTEGER_MAX),
            next=min((at for at, _ in places[len(page) :]), default=None),
        )

    def accounts(self, receivers: Sequence[int] | None = None) -> Deferred[list[Account]]:
        return self._later(lambda: self._accounts(receivers))

    def _accounts(self, receivers: Sequence[int] | None = None) -> list[Account]:
        content = self.content
        accounts = []
        for number in sorted(content.receivers if receivers is None else receivers):
            at = content.receivers.get(number)
            if at is None or at.removed:
                continue
            waiting = [size for size, state in self._states_at(number) if not state[0].final]
            accounts.append(
                Account(
                    receiver=number,
                    routed=content.routed.get(number, 0),
                    queued=len(waiting),
                    settled=dict(at.settled),
                    queued_bytes=sum(waiting),
                    oldest=self._oldest_at(number),
                )
            )
        return accounts

    def _oldest_at(self, receiver: int) -> Oldest | None:
        at = self.content.receivers[receiver]
        for batch in self.content.batches.values():
            if receiver in batch.audience.members:
                for index, state in enumerate(at.states(batch)):
                    if not state[0].final:
                        return Oldest(batch.first + index, batch.subject, batch.stored_at)
        return None

    def audit(self) -> Deferred[list[str]]:
        return self._later(self._audit)

    def _audit(self) -> list[str]:
        wrong = [
            f"receiver {one.receiver}: {one.routed} routed, {one.queued} queued,"
            f" {sum(one.settled.values())} settled"
            for one in self._accounts()
            if one.unaccounted
        ]
        for batch in self.content.batches.values():
            sender = self.content.senders.get((batch.sender, batch.incarnation))
            last = batch.sequence + batch.count - 1
            if sender is None or sender.missing(batch.sequence, last):
                wrong.append(f"batch {batch.number} is stored, but not marked as taken")
        return wrong

    # --- what goes -----------------------------------------------------------------------------

    def retain(
        self, elapsed: int, here: Collection[Key] = (), left: Collection[Key] = ()
    ) -> Deferred[bool]:
        return self._later(lambda: self._retain(elapsed, set(here), set(left)))

    def _retain(self, elapsed: int, here: set[Key], left: set[Key]) -> bool:
        content = self.content
        if self._elapsed is not None:
            content.age += max(0, elapsed - self._elapsed)
        self._elapsed = elapsed
        for number in content.batches:
            content.stored_at.setdefault(number, content.age)
        for key in here & set(content.senders):
            content.senders[key].seen_at = content.age
        self._left = (self._left | left) & set(content.senders) - here
        self._drop_history()
        self._drop_below(self._gives_way_below())
        self._drop_letters()
        self._forget_senders(here)
        self._forget_states()
        self._forget_keys()
        self._forget_audiences()
        self._forget_receivers()
        self._wanted.clear()
        return False

    def _is_settled(self, batch: Batch) -> bool:
        ats = [self.content.receivers.get(number) for number in batch.audience.members]
        for replay in self.content.replays.values():
            may_copy = (
                replay.kind not in OF_ACKNOWLEDGED or replay.receiver in batch.audience.members
            )
            if may_copy and not replay.is_over and replay.next <= batch.last:
                return False
        return all(at is not None and (at.removed or at.cursor >= batch.last) for at in ats)

    def _to_give_way(self, coming: int = 0) -> int:
        maximum = self._limits.max_bytes
        return max(0, self._taken - maximum + max(maximum // 8, coming))

    def _drop_history(self) -> None:
        content, limits = self.content, self._limits
        settled = [batch for batch in content.batches.values() if self._is_settled(batch)]
        kept = sum(batch.size for batch in settled)
        keep_bytes = min(limits.keep_bytes, kept - self._to_give_way())
        for batch in settled:
            young = content.age - content.stored_at[batch.number] < limits.keep_seconds * 1000
            if young and kept <= keep_bytes:
                break
            self._drop(batch)
            kept -= batch.size

    def _give_way(self, coming: int) -> None:
        """Drop history that nobody waits for, and then letters, as far as is needed."""
        for batch in list(self.content.batches.values()):
            if self._to_give_way(coming) and self._is_settled(batch):
                self._drop(batch)
        self._drop_letters(coming)

    def _drop(self, batch: Batch) -> None:
        content = self.content
        sender = content.senders[batch.sender, batch.incarnation]
        for number in batch.audience.members:
            states = sender.states.setdefault(number, {})
            for index, (status, _, reason) in enumerate(content.receivers[number].states(batch)):
                states[batch.sequence + index] = (status, reason, content.age)
        promises = sender.states.get(PROMISED, {})
        for sequence in range(batch.sequence, batch.sequence + batch.count):
            if sequence in promises:
                promises[sequence] = (*promises[sequence][:2], content.age)
        key = (batch.sender, batch.incarnation)
        named = [(name, batch.sequence + index) for index, name in batch.ids]
        for _, taken in self._who_has_taken(batch):
            named += [(name, batch.sequence) for name in taken.ids]
        content.finished_ids += [(name, key, at, content.age) for name, at in named]
        sender.gone[batch.sequence] = msgspec.structs.replace(batch, messages=b"")
        for (who, sequence), taken in self._who_has_taken(batch):
            other = content.senders.get(who)
            if other is not None:
                self._pass_states(taken.of, sender, other, sequence)
                other.gone[sequence] = msgspec.structs.replace(
                    batch, sequence=sequence, messages=b"", crc=taken.crc, ids=()
                )
            del content.by_key[who, sequence]
        for sequence in sorted(sender.gone)[:-RUNS_REMEMBERED]:
            del sender.gone[sequence]
        del content.batches[batch.number]
        content.stored_at.pop(batch.number, None)
        oldest = position_of(min(content.batches, default=content.next_number))
        for at in content.receivers.values():
            at.rows = {first: row for first, row in at.rows.items() if row.last >= oldest}

    def _gives_way_below(self) -> int:
        """Return the number below which history gives way to sets that want a place."""
        limits = self._limits
        values = {
            "audiences": limits.audiences,
            "to_audiences": limits.to_audiences_max,
            "sender_audiences": limits.sender_audiences,
        }
        waited_for = min(
            (b.number for b in self.content.batches.values() if not self._is_settled(b)),
            default=self.content.next_number,
        )
        below = 0
        for limit, sender in self._wanted:
            if limit not in values:
                continue
            last = {
                batch.audience.number: batch.number
                for batch in self.content.batches.values()
                if not batch.audience.waiting
                and (limit == "audiences" or batch.audience.asked_by is not None)
                and (limit != "sender_audiences" or batch.audience.asked_by == sender)
            }
            share = max(1, values[limit] // 8, min(values[limit] // 2, 16))
            for number in sorted(last.values())[:share]:
                below = max(below, number + 1 if number < waited_for else 0)
        return below

    def _drop_below(self, below: int) -> None:
        for batch in list(self.content.batches.values()):
            if batch.number < below:
                self._drop(batch)

    def _drop_letters(self, coming: int = 0) -> None:
        content = self.content
        for at in content.receivers.values():
            if at.removed_at is not None:
                old = content.age - at.removed_at >= self._limits.keep_seconds * 1000
                if old or self._to_give_way(coming):
                    at.dead.clear()

    def _forget_senders(self, here: set[Key]) -> None:
        content, limits = self.content, self._limits
        there = [*content.batches.values(), *content.waiting.values()]
        stored = {(batch.sender, batch.incarnation) for batch in there}
        away = {key: one for key, one in content.senders.items() if key not in here}
        for key, sender in list(away.items()):
            if key not in stored and content.age - sender.seen_at > limits.sender_days * DAY:
                self._forget_sender(key)
                del away[key]
        known_for = SENDER_KNOWN_SECONDS * 1000 if len(away) <= CROWD * limits.incarnations else 0
        ready = [
            key
            for key, sender in away.items()
            if key not in stored
            and (key in self._left or content.age - sender.seen_at >= known_for)
        ]
        ready.sort(key=lambda key: (key not in self._left, away[key].seen_at))
        for key in ready[: max(0, len(away) - limits.incarnations)]:
            self._forget_sender(key)

    def _forget_sender(self, key: Key) -> None:
        states = self.content.senders.pop(key).states
        if any(states.values()):
            self.content.former.append((key, states))

    def _forget_keys(self) -> None:
        content = self.content
        before = content.age - int(self._limits.idempotency_key_seconds * 1000)
        content.keys = {digest: of for digest, of in content.keys.items() if of.at >= before}
        content.by_key = {
            who: taken for who, taken in content.by_key.items() if who[0] in content.senders
        }

    def _forget_states(self) -> None:
        content = self.content
        oldest = (content.age - self._limits.finished_days * DAY) // SPAN * SPAN

        def kept(
            states: dict[int, dict[int, tuple[Status, str, int]]],
        ) -> dict[int, dict[int, tuple[Status, str, int]]]:
            return {
                number: {sequence: row for sequence, row in found.items() if row[2] >= oldest}
                for number, found in states.items()
            }

        for batch in content.batches.values():  # of what is in the log no promise is forgotten
            promises = content.senders[batch.sender, batch.incarnation].states.get(PROMISED, {})
            for at in range(batch.sequence, batch.sequence + batch.count):
                if at in promises and promises[at][2] < oldest:
                    promises[at] = (*promises[at][:2], content.age)
        for sender in content.senders.values():
            sender.states = kept(sender.states)
        former = [(key, kept(states)) for key, states in content.former]
        content.former = [one for one in former if any(one[1].values())]
        content.finished_ids = [one for one in content.finished_ids if one[3] >= oldest]

    def _forget_audiences(self) -> None:
        there = [*self.content.batches.values(), *self.content.waiting.values()]
        used = {batch.audience.number for batch in there}
        for audience in self.content.audiences.values():
            audience.stored = audience.number in used

    def _forget_receivers(self) -> None:
        content = self.content
        named = {
            number
            for audience in content.audiences.values()
            if audience.stored or audience.waiting
            for number in audience.members
        }
        all_states = [sender.states for sender in content.senders.values()]
        all_states += [states for _, states in content.former]
        named.update(number for states in all_states for number, found in states.items() if found)
        highest = max(content.receivers, default=0)
        newest = {at.row.name: number for number, at in sorted(content.receivers.items())}
        for number, at in list(content.receivers.items()):
            owned = at.row.owner and newest[at.row.name] == number
            if at.removed and not at.dead and number not in named | {highest} and not owned:
                del content.receivers[number]
                self._forgotten.append(number)


def _fits(patterns: Sequence[str], subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in patterns)
