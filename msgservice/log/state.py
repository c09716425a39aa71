"""The state of a log in memory, as it was committed, and the copy that an entry works on.

`State` is what the last commit left. An entry works on a `Staged`, which copies what it touches;
when the commit has succeeded, `State.adopt` swaps the copies in, otherwise they are dropped. So an
entry that fails leaves dedupe, counters and numbers as they were. Objects in `State` are never
changed in place (only replaced), so the reactor's thread may read them while the writer works.

Senders that are away are asleep (`Asleep`): their marks are in the table alone, and come back into
memory with whatever asks for them. How many are awake is decided in `senders.py`.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import msgspec

from msgservice.core.marks import Key, SenderState
from msgservice.limits import BATCH_INDEX_BITS
from msgservice.message import Status
from msgservice.records import Audience, Batch, KeyUse, ReceiverRow, Replay

BUCKETS = 256  # of the hashes of senders that are asleep

SETTLED = (Status.ACKNOWLEDGED, Status.EXPIRED, Status.DEAD, Status.CANCELLED, Status.REMOVED)
PLACES = {int(status): place for place, status in enumerate(SETTLED)}


@dataclass(frozen=True, slots=True)
class Waiting:
    """The runs that wait until they are due, all together."""

    count: int = 0
    size: int = 0  # bytes of their messages
    crcs: int = 0  # sum of the CRCs of their rows
    last: int = 0  # the highest number that was given to one
    next_due: int | None = None  # wall clock, ms


class Totals(msgspec.Struct, eq=False):
    """The totals of one audience so far."""

    audience: Audience
    messages: int = 0
    bytes: int = 0
    last: int = 0  # number of its last batch
    dropped: int = 0  # none of its batches up to here has a frame

    def copy(self) -> Totals:
        """Return a copy whose change leaves this one alone."""
        return Totals(self.audience, self.messages, self.bytes, self.last, self.dropped)


def _none_settled() -> list[int]:
    return [0] * len(SETTLED)


class ReceiverProgress(msgspec.Struct, eq=False):
    """The progress of one receiver: its cursor, and what it has settled."""

    number: int
    cursor: int
    removed_at: int | None = None  # age of the log, where it was
    settled: list[int] = msgspec.field(default_factory=_none_settled)
    bytes: int = 0
    collected: int = 0
    inbox: str | None = None
    # The last position of the stored exceptions: once the cursor has passed it, their rows go.
    open_to: int = 0

    def copy(self) -> ReceiverProgress:
        """Return a copy whose change leaves this one alone."""
        return ReceiverProgress(
            self.number,
            self.cursor,
            self.removed_at,
            self.settled.copy(),
            self.bytes,
            self.collected,
            self.inbox,
            self.open_to,
        )

    @property
    def removed(self) -> bool:
        """Whether the receiver was removed."""
        return self.removed_at is not None

    def settle(self, status: int, messages: int) -> None:
        """Count messages that reached a final state."""
        self.settled[PLACES[status]] += messages

    @property
    def settled_by_status(self) -> dict[int, int]:
        """Return Status -> messages, without the zeros."""
        return {
            int(status): count for status, count in zip(SETTLED, self.settled, strict=True) if count
        }


class Asleep:
    """The senders whose marks are in the table alone: eight bytes of memory for each.

    That a key is in it may be wrong, as two may have one hash: the table says so then. That it is
    not is true.
    """

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets = [array("q") for _ in range(BUCKETS)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        number = hash(key)
        return number in self._buckets[number % BUCKETS]

    def add(self, key: Key) -> None:
        """The marks of a sender are in the table, and memory lets go of them."""
        number = hash(key)
        self._buckets[number % BUCKETS].append(number)
        self._count += 1

    def remove(self, key: Key) -> None:
        """A sender that was added is in memory again, or forgotten."""
        number = hash(key)
        self._buckets[number % BUCKETS].remove(number)
        self._count -= 1


@dataclass(frozen=True, slots=True)
class Letters:
    """The dead letters that a receiver has: how many, and the bytes that they take."""

    count: int = 0
    size: int = 0


NO_LETTERS = Letters()


@dataclass(slots=True)
class State:
    """The committed state of a log."""

    log_id: str = ""
    next_number: int = 1
    chain: int = 0
    used: int = 0
    commits: int = 0
    audiences_used: int = 0  # numbers up to here were given to audiences that are stored no more
    saved: int = 0  # what is in the tables of senders and audiences; later batches are replayed
    oldest: int = 1
    oldest_chain: int = 0
    next_sender: int = 1
    senders: dict[Key, SenderState] = field(default_factory=dict)  # that are awake
    asleep: Asleep = field(default_factory=Asleep)
    # Returns the marks that the table has of a sender; for the writer's thread.
    saved_sender: Callable[[Key], SenderState | None] = lambda key: None
    senders_by_id: dict[int, SenderState] = field(default_factory=dict)
    totals: dict[int, Totals] = field(default_factory=dict)  # audience number -> Totals
    receivers: dict[int, ReceiverProgress] = field(default_factory=dict)
    rows: dict[int, ReceiverRow] = field(default_factory=dict)
    replays: dict[int, Replay] = field(default_factory=dict)  # by receiver number
    keys: int = 0  # idempotency keys
    aliases: int = 0  # messages that were taken by one
    stored_at: int = 0  # of the newest row that is kept: no later one says an earlier time
    waiting: Waiting = Waiting()
    letters: dict[int, Letters] = field(default_factory=dict)  # by receiver number
    dead_total: int = 0  # of all receivers: asked for with every run that comes in
    # How long the log was open so far, ms, by a clock that never jumps, when its last entry was
    # decided: ages are measured by it.
    age: int = 0
    # (age, number of the batch that came next), rising: how old what is kept is.
    ages: list[tuple[int, int]] = field(default_factory=list)
    wall: int = 0  # the wall clock when its last entry was decided, about; 0: not known
    dirty_senders: set[Key] = field(default_factory=set)
    dirty_totals: set[int] = field(default_factory=set)

    @property
    def batches_kept(self) -> int:
        """The number of batches whose rows are kept: from the oldest on, none is left out."""
        return self.next_number - self.oldest

    @property
    def taken(self) -> int:
        """Bytes of batches not yet removed, of those that wait, and of dead letters."""
        return self.used + self.waiting.size + self.dead_total

    def sender(self, key: Key) -> SenderState | None:
        """Return the marks of a sender that the log knows, awake or not; on the writer's thread."""
        known = self.senders.get(key)
        if known is None and key in self.asleep:
            known = self.saved_sender(key)
        return known

    def wake(self, key: Key) -> bool:
        """Have the marks of a sender in memory; return whether the log knows it."""
        known = self.sender(key)
        if known is None:
            return False
        if key not in self.senders:
            # Never in neither, for who looks on the reactor's thread.
            self.senders[key] = self.senders_by_id[known.id] = known
            self.asleep.remove(key)
        return True

    def put_to_sleep(self, key: Key) -> None:
        """Let go of the marks of a sender, all of which are saved."""
        self.asleep.add(key)
        del self.senders_by_id[self.senders.pop(key).id]

    def set_letters(self, by_receiver: dict[int, Letters]) -> None:
        """Take what there is of receivers' dead letters; not changed in place from then on."""
        self.letters = by_receiver
        self.dead_total = sum(letters.size for letters in by_receiver.values())

    def adopt(self, staged: Staged) -> None:
        """Make what an entry did the committed state."""
        self.next_number = staged.number
        self.chain = staged.chain
        self.used = staged.used
        self.commits = staged.commits
        self.keys, self.aliases = staged.keys, staged.aliases
        self.waiting = staged.waiting
        if staged.senders:
            self.next_sender = staged.next_sender
            for key, sender in staged.senders.items():
                self.senders[key] = sender
                self.senders_by_id[sender.id] = sender
            for key in staged.woken:
                self.asleep.remove(key)
            self.dirty_senders.update(staged.senders)
        if staged.totals:
            self.totals.update(staged.totals)
            self.dirty_totals.update(staged.totals)
        if staged.receivers:
            self.receivers.update(staged.receivers)
        if staged.rows:
            self.rows.update(staged.rows)
        if staged.replays:
            replays = self.replays | staged.replays
            self.replays = {number: one for number, one in replays.items() if one is not None}
        if staged.fresh:
            self.stored_at = staged.fresh[-1].stored_at
        if staged.letters:
            # Never changed in place: `ILog.room` looks at it on the reactor's thread.
            letters = self.letters | staged.letters
            self.set_letters({number: those for number, those in letters.items() if those.count})
        if staged.new_audiences:
            for total in staged.new_audiences:
                total.audience.stored = True
        self.age, self.ages, self.wall = staged.age, staged.ages, staged.wall
        if staged.gone is not None:
            self._let_go(staged, staged.gone)

    def _let_go(self, staged: Staged, gone: Gone) -> None:
        self.oldest, self.oldest_chain = gone.oldest, gone.oldest_chain
        self.audiences_used = gone.audiences_used
        if self.oldest == self.next_number:
            self.stored_at = 0  # no row is left
        self.totals.update(gone.totals)
        for number, key in gone.senders:
            if self.senders.pop(key, None) is None:
                self.asleep.remove(key)
            else:
                del self.senders_by_id[number]
                self.dirty_senders.discard(key)
        for number in gone.audiences:
            total = self.totals.pop(number)
            total.audience.stored = False  # so that its next batch writes it again
            self.dirty_totals.discard(number)
        for number in gone.receivers:
            del self.receivers[number]
            del self.rows[number]


class Gone:
    """The rows and values that one entry takes away, beside the copies in its `Staged`."""

    __slots__ = (
        "audiences",
        "audiences_used",
        "oldest",
        "oldest_chain",
        "receivers",
        "senders",
        "totals",
    )

    def __init__(self, state: State) -> None:
        self.oldest = state.oldest
        self.oldest_chain = state.oldest_chain
        self.audiences_used = state.audiences_used
        self.totals: dict[int, Totals] = {}  # whose batches lost frames
        self.senders: list[tuple[int, Key]] = []
        self.audiences: list[int] = []
        self.receivers: list[int] = []


class Keyed:
    """The idempotency keys of one group: what of them is known, and what it makes of them.

    `known`: by digest, of before and of this group.
    """

    __slots__ = ("aliases", "fresh", "known", "senders")

    def __init__(self, known: dict[bytes, KeyRow]) -> None:
        self.known = known
        self.fresh: list[tuple[KeyUse, KeyRow]] = []
        self.aliases: dict[tuple[int, int], Alias] = {}  # by sender and sequence
        self.senders: dict[int, SenderState] = {}  # of the aliases


class KeyRow(msgspec.Struct, frozen=True):
    """A key that was used: for which content, and whose message that was."""

    content: bytes
    sender: int
    sequence: int
    audience: Audience  # NOBODY, at 0: its batch has gone, or has no place yet
    position: int
    due: int = 0  # wall clock, ms: it waits until then; 0: it does not
    identity: str = ""  # SENDER/HASH/SEQUENCE, of one that waits


class Alias(msgspec.Struct, frozen=True):
    """A message that was taken by its key: the one that is stored says what becomes of it."""

    sender: int
    sequence: int
    crc: int
    ids: tuple[str, ...]
    of: KeyRow


def _sequence_of(batch: Batch) -> int:
    return batch.sequence


class Staged:
    """Copies of what one entry touches."""

    __slots__ = (
        "_delayed_known",
        "_fresh_known",
        "_fresh_of",
        "age",
        "ages",
        "aliases",
        "cancelled",
        "chain",
        "commits",
        "decided",
        "delayed",
        "fresh",
        "gone",
        "keyed",
        "keys",
        "letters",
        "new_audiences",
        "new_senders",
        "next_sender",
        "number",
        "receivers",
        "replays",
        "retained",
        "retained_sizes",
        "rows",
        "senders",
        "settled",
        "state",
        "totals",
        "used",
        "waiting",
        "wall",
        "woken",
        "written",
    )

    def __init__(self, state: State) -> None:
        self.state = state
        self.number = state.next_number
        self.chain = state.chain
        self.used = state.used
        self.commits = state.commits
        self.next_sender = state.next_sender
        self.senders: dict[Key, SenderState] = {}
        self.woken: list[Key] = []  # of these, who was asleep
        self.totals: dict[int, Totals] = {}
        self.receivers: dict[int, ReceiverProgress] = {}
        self.rows: dict[int, ReceiverRow] = {}
        self.replays: dict[int, Replay | None] = {}
        self.letters: dict[int, Letters] = {}
        self.new_senders: list[SenderState] = []
        self.new_audiences: list[Totals] = []
        self.fresh: list[Batch] = []  # what this group stores, rising
        self.delayed: dict[Batch, int] = {}  # what it accepts that is due later -> its number
        self.waiting = state.waiting
        self.cancelled: list[tuple[tuple[int, int], ...]] = []
        self.decided: list[tuple[tuple[int, int], ...]] = []
        # Of each sender what of it was looked for already, by sequence; how much was sorted in.
        self._fresh_of: dict[Key, list[Batch]] = {}
        self._fresh_known = self._delayed_known = 0
        self.settled: dict[int, SenderState] = {}  # whose own floor was above what was taken
        self.age = state.age
        self.ages = state.ages
        self.wall = state.wall
        self.gone: Gone | None = None
        self.keys, self.aliases = state.keys, state.aliases
        # By subject: the last batch that is to be retained; and what that has made of it, in bytes.
        self.retained: dict[str, Batch] = {}
        self.retained_sizes: list[tuple[str, int, int]] = []
        self.keyed: Keyed | None = None  # None: none of the group has a key
        self.written = 0  # bytes, about

    def sender(self, key: Key) -> SenderState:
        """Return this group's copy of a sender's state, made if new."""
        staged = self.senders.get(key)
        if staged is None:
            committed = self.state.senders.get(key)
            if committed is None and (committed := self.state.sender(key)) is not None:
                self.woken.append(key)
            if committed is None:
                staged = SenderState(self.next_sender, key, self.age)
                self.next_sender += 1
                self.new_senders.append(staged)
            else:
                staged = committed.copy()
            self.senders[key] = staged
        return staged

    def fresh_between(self, key: Key, first: int, last: int) -> list[Batch]:
        """Return what this group takes of a sender between these sequences, rising.

        What came since the last call is sorted in: each batch once, and none where none is asked.
        """
        delayed = islice(self.delayed, self._delayed_known, None)
        for batch in chain(self.fresh[self._fresh_known :], delayed):
            known = self._fresh_of.setdefault((batch.sender, batch.incarnation), [])
            insort(known, batch, key=_sequence_of)
        self._fresh_known, self._delayed_known = len(self.fresh), len(self.delayed)
        known = self._fresh_of.get(key, [])
        begin = bisect_right(known, first, key=_sequence_of)
        if begin and known[begin - 1].sequence + known[begin - 1].count > first:
            begin -= 1  # no two of them overlap
        return known[begin : bisect_right(known, last, begin, key=_sequence_of)]

    def add_letters(self, receiver: int, count: int, size: int) -> None:
        """Count dead letters of a receiver that come; that go, where these are below 0."""
        known = self.letters.get(receiver) or self.state.letters.get(receiver, NO_LETTERS)
        self.letters[receiver] = Letters(known.count + count, known.size + size)

    def delay(self, batch: Batch) -> None:
        """Give a run that is due later its number; its row is staged with the group."""
        before = self.waiting
        number = before.last + 1
        self.delayed[batch] = number << BATCH_INDEX_BITS
        self.waiting = replace(
            before, count=before.count + 1, size=before.size + batch.size, last=number
        )

    def total(self, audience: Audience) -> Totals:
        """Return this group's copy of an audience's totals."""
        staged = self.totals.get(audience.number)
        if staged is None:
            committed = self.state.totals.get(audience.number)
            if committed is None or not audience.stored:
                staged = Totals(audience)
                self.new_audiences.append(staged)
            else:
                staged = committed.copy()
            self.totals[audience.number] = staged
        return staged

    def receiver(self, number: int) -> ReceiverProgress | None:
        """Return this group's copy of a receiver's state, or None."""
        staged = self.receivers.get(number)
        if staged is None:
            committed = self.state.receivers.get(number)
            if committed is None:
                return None
            staged = self.receivers[number] = committed.copy()
        return staged
