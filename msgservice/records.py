"""Records that go into a log and come out of it: plain values, shared by `ILog` and the node.

A position is `number << 16 | index`. A *group* is what one transaction holds: everything that
arrived while the last one ran. Nothing here knows how it is stored. `Reread` and
`Tried` come out of a transport instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple
from zlib import crc32

import msgspec

from msgservice.errors import LimitReached, LogFull, MsgServiceError, Refused
from msgservice.limits import BATCH_INDEX_BITS, INTEGER_MAX
from msgservice.message import (
    FLAG_RETAINED,
    PLAIN,
    MessageParts,
    RunOptions,
    Status,
    decode_messages,
    options_of,
)
from msgservice.receiver_options import DEFAULTS, ReceiverOptions


def identity_of(sender: str, incarnation: str, sequence: int) -> str:
    """Return how a message is named for people, SENDER/HASH/SEQUENCE (SEMANTICS 7)."""
    return f"{sender}/{hash_of(incarnation)}/{sequence}"


def position_of(number: int, index: int = 0) -> int:
    """Return the position of message `index` of batch `number`."""
    return number << BATCH_INDEX_BITS | index


def number_of(position: int) -> int:
    """Return the batch number of a position."""
    return position >> BATCH_INDEX_BITS


def index_of(position: int) -> int:
    """Return the index of a position in its batch."""
    return position & (1 << BATCH_INDEX_BITS) - 1


def hash_of(incarnation: str) -> str:
    """Return what may be shown of an incarnation, which is a secret (SEMANTICS 5)."""
    return hashlib.sha256(incarnation.encode()).hexdigest()[:16]


@dataclass(slots=True, eq=False)
class Audience:
    """An interned set of receiver numbers; equal sets are the same object within one log."""

    number: int
    members: tuple[int, ...]  # receiver numbers, rising
    stored: bool = False  # the log refers to it: from its first batch until it is forgotten
    waiting: int = 0  # batches that have it and whose group has not ended (`node.commits`)
    is_gone: bool = False  # forgotten by its log, which gives the set another number now
    asked_by: str | None = None  # the sender whose `to` made it; outlives a restart as it does


NOBODY = Audience(0, ())  # of a run so old that its audience is not known any more


# What an origin says is kept beside each message of its run, and counted nowhere: so it is bounded
# where it is decoded.
INCARNATION_HASH_CHARS = 16
PATH_MAX = 16  # logs that a message passed
LogId = Annotated[str, msgspec.Meta(max_length=64)]


class Origin(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The origin of a message, where it entered the first node: PROTOCOL `origin`."""

    sender: str
    sequence: Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)]
    incarnation: Annotated[str, msgspec.Meta(max_length=INCARNATION_HASH_CHARS)]  # hashed
    path: Annotated[tuple[LogId, ...], msgspec.Meta(max_length=PATH_MAX)] = ()

    def behind(self, count: int) -> Origin:
        """Return the origin of what lies so many messages behind its own."""
        if not count:
            return self
        return Origin(self.sender, self.sequence + count, self.incarnation, self.path)

    def passed_on(self, log_id: str) -> Origin:
        """Return the origin as a node with this log passes it on: its own log ends the path.

        It does already, unless the log was another one when it was stored: a copy has a new id.
        """
        if self.path[-1:] == (log_id,):
            return self
        path = (*self.path[: PATH_MAX - 1], log_id)
        return Origin(self.sender, self.sequence, self.incarnation, path)


NODE = "$node"  # the sender of what a node itself stores
# The reserved receiver at which what was cancelled before it was due has its state, and its number:
# who would have received it was not decided.
DELAYED = "$delayed"
NOT_YET = 0


# The reserved receiver at which a promise has its outcome (DELIVERY 55), and its number, that of no
# receiver: kept, it is `acknowledged` there.
PROMISE = "$promise"
PROMISED = -1


class Promised(msgspec.Struct, frozen=True, gc=False):
    """The promise that a run came with: of each message so many receivers acknowledge in time."""

    need: int  # receivers; 0: all of its audience
    until: int  # ms of the node's clock (`node.due`)
    cancels: bool = False  # where it is broken, what is surely not sent yet is cancelled


def scope_of_user(user: str) -> str:
    """Return the scope of the idempotency keys of all senders that log in as a user."""
    return f"user {user}"


def scope_of_sender(name: str) -> str:
    """Return the scope of the idempotency keys of a sender that logs in as nobody."""
    return f"sender {name}"


def digest_of_key(scope: str, key: str) -> bytes:
    """Return what a log knows an idempotency key of this scope by."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (scope, key):
        part = text.encode()
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


class KeyUse(msgspec.Struct, frozen=True, gc=False):
    """The idempotency key that a message came with (DELIVERY 45), and what it was used for."""

    digest: bytes  # of its scope and of the key: 16 bytes
    content: bytes  # of subject, `to`, bodies and content-types: 16 bytes
    key: str  # for people


Lane = tuple[str, str, str]
"""A lane in a log: sender, incarnation, subject."""


class Batch(msgspec.Struct, gc=False, eq=False):
    """A run as the log keeps it. Only `number` and `stored_at` are set later: by the log, once.

    Of what the node itself stores also sender, incarnation and sequence (`Group.own`).

    The sender's sequences `sequence … sequence + count - 1` have the positions
    `number << 16 … number << 16 | count - 1`.
    """

    sender: str
    incarnation: str
    sequence: int
    count: int
    subject: str
    audience: Audience
    messages: bytes | memoryview | msgspec.Raw  # one msgpack array, as it arrived
    size: int  # bytes of `messages`
    crc: int  # zlib.crc32 of `messages`
    after: int  # nothing of the sender's between `after` and `sequence` is open for this node
    options: RunOptions = PLAIN
    ids: tuple[tuple[int, str], ...] = ()  # (index, id) of the messages that have an id
    origin: Origin | None = None
    number: int = 0  # 0 until stored
    stored_at: int = 0  # wall clock, ms
    floor: int = 0  # every sequence of the sender's below it is settled; not stored with the batch
    addressed: bool = False  # its audience is who the sender named
    # There is nobody for it now, no place for who there is, or one of them is too far behind: known
    # as far as it was taken before, else refused with this, not stored.
    refusal: Refused | LimitReached | LogFull | None = None
    # Of a run of one message; of more, where its sender never hands in a run again.
    key: KeyUse | None = None
    # Wall clock, ms: until then it waits, without a number. 0: it does not.
    due_at: int = 0
    delayed_id: int = 0  # of one in `Group.due`: which of those that wait it is (`ILog.due`)
    expires_at: int | None = None  # ms of the node's clock (`node.due`); None: never
    promise: Promised | None = None

    @property
    def first(self) -> int:
        """The position of its first message."""
        return self.number << BATCH_INDEX_BITS

    @property
    def last(self) -> int:
        """The position of its last message."""
        return (self.number << BATCH_INDEX_BITS) + self.count - 1

    @property
    def lane(self) -> Lane:
        """The lane: what its sender sends to its subject keeps its order."""
        return self.sender, self.incarnation, self.subject


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A part of a sender's run: its audience, and its position in the log (what ROUTED says)."""

    first: int
    last: int
    audience: Audience
    position: int
    due: int = 0  # wall clock, ms: until then it waits, without a position; 0: it does not
    # Of what was taken by its key and waits: the message as which it was, SENDER/HASH/SEQUENCE.
    of: str = ""


class Known(msgspec.Struct, frozen=True):
    """Outcome of a run that was taken before, wholly or in part (SEMANTICS 4).

    `pieces` cover the whole run, old and new; `fresh` are its parts that were stored just now.
    `refused`: its parts that were not taken before and are refused with the batch's `refusal`;
    what is left of the run is in `pieces`, and nothing is fresh. `by_key`: it was taken just now
    as what its idempotency key had been used for, and that is its piece.
    """

    pieces: tuple[Piece, ...]
    fresh: tuple[Batch, ...] = ()
    refused: tuple[tuple[int, int], ...] = ()
    by_key: bool = False


class RefusedBatch(msgspec.Struct, frozen=True):
    """Outcome of a run that was not stored; nothing of it was."""

    # LogFull, LimitReached, ContentChanged, KeyReused, or the batch's own refusal
    error: MsgServiceError


PageOutcome = Literal["stored", "void"] | LogFull
"""Of one page of a replay, or of letters: stored with all of its copies, void, or without room."""

Outcome = Batch | Known | RefusedBatch
"""Of one batch of a group: itself (stored whole, now with its number), or one of the others."""


class Appended(msgspec.Struct, frozen=True):
    """The outcome of a group: that of each batch, and all that was stored."""

    outcomes: list[Outcome]  # of `Group.batches`, in order
    stored: list[Batch]  # rising: own, whole and in parts
    own: list[Outcome] = []  # of `Group.own`, in order: itself, or refused
    pages: list[PageOutcome] = []  # of `Group.pages`, in order
    letters: list[PageOutcome] = []  # of `Group.letters`, in order
    # Of each of `Group.cancel`, what was cancelled: ranges of sequences, rising.
    cancelled: list[tuple[tuple[int, int], ...]] = []
    # Of subjects of which another message, or none, is retained now: the bytes of that, or 0, and
    # when it expires, or 0.
    retained: list[tuple[str, int, int]] = []
    # Of each of `Group.verdicts`, what was open of it until then: ranges of sequences, rising.
    decided: list[tuple[tuple[int, int], ...]] = []


@dataclass(slots=True, kw_only=True)
class ReceiverRow:
    """A receiver as the log keeps it. A name that is added again is a new number."""

    # Who it is.
    number: int
    name: str
    address: str | None = None  # endpoint to dial; None: it attaches
    patterns: tuple[str, ...] = ()
    configured: bool = False  # by the operator: an attach may only repeat it (SEMANTICS 27)
    owner: str = ""  # the user whose its name is, of the newest row of a name; or nobody's
    options: ReceiverOptions = DEFAULTS
    # What became of it.
    suspended: bool = False  # left out of new audiences until it has caught up
    # Positions that it was left out of while it was suspended: none where `left_first` is 0;
    # `left_last` is 0 as long as it still is.
    left_first: int = 0
    left_last: int = 0
    created_at: int = 0  # wall clock, ms
    away_since: int | None = None  # age of the log when it went; None: it is here, or not counted
    # Kept for its number and name while batches refer to it, and for its owner (`ILog.retain`).
    removed: bool = False
    cursor: int = 0  # every position of its audiences up to here is final
    inbox: str | None = None  # id of the stored inbox that it named last (SEMANTICS 6)
    epoch: str = ""  # ends the node's incarnation towards it; another when the log went back
    settled: dict[int, int] = field(
        default_factory=dict
    )  # Status -> messages, counted when settled
    settled_bytes: int = 0


class ExceptionRow(msgspec.Struct, frozen=True, gc=False):
    """Positions of one receiver that are not what its cursor says (SEMANTICS 11, 20).

    Above the cursor: acknowledged already, or waiting for a retry (QUEUED). Below and above it:
    final with another state than acknowledged.
    """

    receiver: int
    first: int
    last: int
    status: Status
    attempts: int = 0
    next_at: int = 0  # wall clock, ms; of a waiting one
    reason: str = ""


DEAD_OVERHEAD = 128  # bytes that a dead letter counts beside its message and its reason


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A message that will not be delivered to one receiver, with its own copy (SEMANTICS 12)."""

    receiver: int
    position: int
    sender: str
    incarnation: str
    sequence: int
    subject: str
    message: bytes  # a run of this one
    reason: str
    attempts: int
    at: int  # wall clock, ms
    flags: int = 0  # those of the frame that it came in
    origin: Origin | None = None  # its own: where it entered the first node, unless that is here
    code: int = 0  # of the error that is its reason, where that had one (`Refusal.code`)

    @property
    def identity(self) -> str:
        """The identity of its message, `SENDER/HASH/SEQUENCE`, as its receiver has had it."""
        of = self.origin or Origin(self.sender, self.sequence, hash_of(self.incarnation))
        return f"{of.sender}/{of.incarnation}/{of.sequence}"

    @property
    def size(self) -> int:
        """The bytes that it takes, as `dead_bytes` counts them."""
        return len(self.message) + len(self.reason.encode()) + DEAD_OVERHEAD


RETAINED_OVERHEAD = 128  # bytes that a retained message counts beside itself


class Retained(msgspec.Struct, frozen=True, gc=False):
    """A retained message: the last of its subject that was to be, as a copy (DELIVERY 48)."""

    subject: str
    position: int  # of the original
    stored_at: int  # wall clock, ms
    origin: Origin
    message: bytes  # a run of this one
    expires_at: int = 0  # as of its batch; 0: never

    @property
    def size(self) -> int:
        """The bytes that it takes, as `retained_bytes` counts them."""
        return len(self.message) + len(self.subject.encode()) + RETAINED_OVERHEAD

    def copy(self, audience: Audience) -> Batch:
        """Return a copy for who has joined, which gets sender and sequence from the log."""
        return Batch(
            sender="",
            incarnation="",
            sequence=0,
            count=1,
            subject=self.subject,
            audience=audience,
            messages=self.message,
            size=len(self.message),
            crc=crc32(self.message),
            after=0,
            options=options_of(FLAG_RETAINED),
            origin=self.origin,
            expires_at=self.expires_at or None,
        )

    @classmethod
    def of(cls, batch: Batch) -> Retained | None:
        """Return what is retained of a stored batch: its last message; None where that clears."""
        message = batch.messages
        if batch.count > 1:
            message = MessageParts(message).run(batch.count - 1, batch.count)
        (last,) = decode_messages(message)
        if not last.body:
            return None
        origin = batch.origin or Origin(batch.sender, batch.sequence, hash_of(batch.incarnation))
        return cls(
            batch.subject,
            batch.last,
            batch.stored_at,
            origin.behind(batch.count - 1),
            bytes(message),
            batch.expires_at or 0,
        )


class Join(msgspec.Struct):
    """A receiver that gets the retained messages of its subjects first, as copies.

    `audience`: it alone. `before`: patterns of which it had the messages already. `below`: what is
    at a position below this one; the rest it gets as the history that it begins with, but for what
    the log does not have any more. `asked`: of one that is made with a history, the position and
    the time, ms (0: any), from which on it wants it: it gets what of that the log has no more.
    """

    receiver: int
    audience: Audience
    patterns: tuple[str, ...]
    before: tuple[str, ...] = ()
    below: int = INTEGER_MAX
    asked: tuple[int, int] | None = None


class Progress(msgspec.Struct, kw_only=True):
    """The progress of one receiver: what it has settled since the last group.

    Each row of `exceptions` replaces all rows of the receiver that begin inside it. Rows at or
    below the new cursor that say ACKNOWLEDGED or QUEUED go. `settled` counts messages.
    """

    receiver: int
    cursor: int
    exceptions: list[ExceptionRow] = msgspec.field(default_factory=list)
    settled: dict[int, int] = msgspec.field(default_factory=dict)  # Status -> messages
    settled_bytes: int = 0
    dead: list[DeadLetter] = msgspec.field(default_factory=list)
    inbox: str | None = None  # set when the receiver named its stored inbox


@dataclass(slots=True, kw_only=True)
class StatusFrom:
    """A sender wants no states below `status_from` any more (SEMANTICS 11)."""

    sender: str
    incarnation: str
    status_from: int


REWIND, START, LEFT_OUT, LOST = "rewind", "start", "suspended", "lost"  # the kinds of a replay
OF_ACKNOWLEDGED = (REWIND, LOST)  # those that copy what their receiver has acknowledged


class Replay(msgspec.Struct, frozen=True):
    """A replay to one receiver: the row that says how far it is (DELIVERY 47).

    What is copied, of the positions from `next` to `end`: of a `rewind` what the receiver has
    acknowledged, of `start` and `suspended` what matches its subjects and was for others; no copies
    of this node's, and of these two nothing that its sender had addressed. Of `lost`, what a node
    has acknowledged and does not have any more, until it expires; copies too, unless their
    originals are copied. It is over where `next` is above `end`, and stays then
    until the next one begins.
    """

    receiver: int
    kind: str
    first: int  # where it began
    next: int
    end: int  # INTEGER_MAX: as far as the log will go
    copied: int = 0  # messages
    skipped: int = 0  # messages that retention has taken before they could be copied
    since: int = 0  # wall clock, ms: what was stored before that is passed over

    @property
    def is_over(self) -> bool:
        """Whether nothing more is copied."""
        return self.next > self.end

    @property
    def is_open(self) -> bool:
        """Whether its receiver is in no audience yet, until its last page (`start`)."""
        return self.kind == START and not self.is_over


class ReplayPage(msgspec.Struct):
    """A page of a replay: it holds as long as the replay goes on at `after`, else it is void.

    `replay`: the row that goes with it. All of `copies` are stored with it, or none.
    """

    after: int
    replay: Replay
    copies: list[Batch] = []

    @property
    def is_membership(self) -> bool:
        """Whether its receiver is a member of audiences from the group on that stores it."""
        return self.replay.kind == START and self.replay.is_over


class Copies(msgspec.Struct):
    """The next copies for a replay: they cover all from its `next` up to before this `next`."""

    copies: list[Batch]  # without their audience, number and sender
    next: int
    messages: int  # in `copies`; or that would be, where only their number is asked for
    size: int  # bytes of these
    skipped: int


class StreamPage(msgspec.Struct, frozen=True):
    """A page of what was sent to one subject of streams, in the order of its positions.

    `is_gap`: something between where it was to begin and its end may be missing, it is not kept any
    more. `newest`: the last position that the log had given then. `last`: what was put up to there
    is in this page, or was before it; there may be more behind it unless it is `newest`. A batch
    whose sender was forgotten has no name of one.
    """

    batches: list[Batch]
    is_gap: bool
    newest: int
    last: int


class StreamHeader(msgspec.Struct, frozen=True):
    """The header of a subject of streams: what is retained of it, if anything is.

    `newest`: the last position that the log had given then; all above it has come since.
    """

    retained: Retained | None
    newest: int


class LettersTaken(msgspec.Struct):
    """Dead letters of a receiver that go: dropped, or sent again as these copies (DELIVERY 46).

    All of it, or nothing: it is void where one of them is not there, or who is to get the copies
    is removed; and where these find no room, the letters stay.
    """

    receiver: int
    positions: list[int]
    copies: list[Batch] = []


class Cancel(msgspec.Struct, frozen=True):
    """Sequences of a sender that are not to be delivered, as far as they still wait."""

    sender: str
    incarnation: str
    first: int
    last: int
    reason: str = ""


class OpenPromise(msgspec.Struct, frozen=True, gc=False):
    """A promise that is not decided yet, of a sender's sequences `first` to `last`."""

    sender: str
    incarnation: str
    first: int
    last: int
    position: int  # of the first
    need: int
    until: int
    cancels: bool


class PromiseFound(msgspec.Struct, frozen=True, gc=False):
    """The promise of one message, as a log has it. `until`, `decided_at`: wall clock, ms."""

    need: int
    until: int
    cancels: bool
    status: Status | None = None  # what was decided; None: it is open
    reason: str = ""
    decided_at: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """A decision about the promises of a sender's sequences, as far as these are open."""

    sender: str
    incarnation: str
    first: int
    last: int
    status: Status  # at `PROMISE`
    reason: str = ""


class Group(msgspec.Struct):
    """The contents of one transaction. Applied in the order of the fields."""

    now: int = 0  # wall clock, ms
    # The clock of what falls due (`node.due`), ms: `ttl` and `delay` end by it. 0: the wall clock.
    due_now: int = 0
    # Made or changed, cursor not touched in a row that exists; a new row starts at its `cursor`,
    # or, where that is -1, just before the first batch of this group.
    receivers: list[ReceiverRow] = msgspec.field(default_factory=list)
    # Of these: who gets copies of retained messages, before all that is stored.
    joins: list[Join] = msgspec.field(default_factory=list)
    # What the node itself stores: no duplicates are looked for, since the log gives each the next
    # sequence of its sender `$node`; whose message it was before is its `origin`. Part of
    # what `ILog` promises; copies have ways of their own (`joins`, `pages`, `letters`).
    own: list[Batch] = msgspec.field(default_factory=list)
    # Replays that begin, or end before their time: the row as it is from now on.
    replays: list[Replay] = msgspec.field(default_factory=list)
    # Pages of replays: their copies are the node's own too, and come before `own`.
    pages: list[ReplayPage] = msgspec.field(default_factory=list)
    # Dead letters that go; the copies that are stored for them come behind those of pages.
    letters: list[LettersTaken] = msgspec.field(default_factory=list)
    batches: list[Batch] = msgspec.field(default_factory=list)
    progress: list[Progress] = msgspec.field(default_factory=list)
    statuses_from: list[StatusFrom] = msgspec.field(default_factory=list)
    # Receiver numbers. Behind what they settled: what this group stores for them is removed too.
    removed: list[int] = msgspec.field(default_factory=list)

    # Of those that wait, which are due, as `ILog.due` gave them, with their audience: moved to the
    # end of the log, between `own` and `batches`, whatever room there is. They were accepted, so
    # they keep sender and sequence, and are no duplicates. One that was cancelled is passed by, and
    # has no number then.
    due: list[Batch] = msgspec.field(default_factory=list)
    # Behind them. What waits of these is not delivered, and has the state CANCELLED at `DELAYED`.
    cancel: list[Cancel] = msgspec.field(default_factory=list)
    # What is decided about promises of before: their outcome is a state at `PROMISE`.
    verdicts: list[Verdict] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.batches or self.progress or self.is_more)

    @property
    def is_more(self) -> bool:
        """Whether it has anything but batches and progress."""
        return bool(
            self.receivers
            or self.joins
            or self.removed
            or self.statuses_from
            or self.own
            or self.due
            or self.cancel
            or self.verdicts
            or self.replays
            or self.pages
            or self.letters
        )


class Resume(msgspec.Struct, frozen=True):
    """The marks that a log has of one incarnation: PROTOCOL `RESUME`.

    All below `floor` and all in `ranges` is taken. `last`: `(first, last, crc)` of the newest run,
    up to the newest of it that was taken.
    """

    floor: int = 1
    ranges: tuple[tuple[int, int], ...] = ()
    last: tuple[int, int, int] | None = None


class Rejected(NamedTuple):
    """Sequences of a sender that a receiver's handler said are never to come again, and why."""

    first: int
    last: int
    reason: str


class StateRange(msgspec.Struct, frozen=True, gc=False):
    """Of one sender's sequences `first` to `last`: the final state at one receiver."""

    receiver: int
    status: Status
    first: int
    last: int
    reason: str = ""


class History(msgspec.Struct, frozen=True):
    """One page of what a log knows of a sender's sequences, rising.

    `pieces`: what is still in the log. `by_key`: the sequences of those of them that were taken by
    their idempotency keys: the messages there are those of others. `states`: final states only.
    `gone`: what was taken and left neither the one nor the other: nobody was to receive it, or it
    is too long ago. `next`: where the next page begins, or None.
    """

    pieces: tuple[Piece, ...]
    states: tuple[StateRange, ...]
    next: int | None
    gone: tuple[tuple[int, int], ...] = ()
    by_key: tuple[int, ...] = ()


class Tried(NamedTuple):
    """The answer of an endpoint to a test. `reason`: why a message would not have been taken."""

    code: int | None  # None: there was none
    is_taken: bool
    reason: str
    seconds: float


class Found(msgspec.Struct, frozen=True):
    """One message that a command asked for, and its state at each receiver of its audience."""

    position: int
    sender: str
    incarnation: str
    sequence: int
    subject: str
    size: int  # of its batch, bytes
    stored_at: int
    states: dict[int, tuple[Status, int, str]]  # receiver number -> (status, attempts, reason)
    more: bool = False  # there are receivers with higher numbers
    due: int = 0  # wall clock, ms: it waits until then, and has no position; 0: it does not
    count: int = 1  # messages of its batch
    removed: bool = False  # it has left the log: it has no position, and only its states are known
    promise: PromiseFound | None = None  # that it came with
    # Receiver number -> the position of the newest copy that was made of it for that one: it was
    # sent again, by a rewind or as a dead letter. Of few receivers, and of no old copy.
    copies: dict[int, int] = {}
    # … and the receiver and position of the newest copy at all, where it is dead at that one, has
    # no copy there, and is no dead letter any more: it was sent again to another.
    copied_to: dict[int, tuple[int, int]] = {}


class Delayed(msgspec.Struct, frozen=True):
    """A run that waits until it is due: what people are shown of it."""

    id: int  # rises in the order of acceptance; of what is due at once, the lower goes first
    due_at: int  # wall clock, ms
    accepted_at: int
    sender: str
    incarnation: str
    first: int
    last: int
    subject: str
    size: int
    to: tuple[int, ...] | None  # receiver numbers, where its sender named them
    ids: tuple[tuple[int, str], ...] = ()  # (index, id) of the messages that have an id
    expires_at: int | None = None  # ms of the node's clock; None: never


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """The contents of a log when it is opened, for the parts of the node."""

    log_id: str
    next_number: int
    receivers: list[ReceiverRow]
    audiences: list[Audience]
    exceptions: dict[int, list[ExceptionRow]]  # receiver number -> rows, rising, that touch
    # or follow the cursor
    notices: Sequence[str] = ()  # what recovery had to say
    expires: int | None = None  # when the first batch expires, or None
    wall: int = 0  # the wall clock when it was written last, ms; 0: it does not say
    replays: Sequence[Replay] = ()
    retained: Sequence[tuple[str, int, int]] = ()  # subject, bytes, when it expires (0: never)
    promises: Sequence[OpenPromise] = ()  # that are open


@dataclass(slots=True, kw_only=True)
class Room:
    """The used and free room of a log."""

    used: int  # bytes of batches not yet removed
    maximum: int
    free: int  # bytes free on the filesystem
    full: str | None  # why nothing is accepted now, or None


class Expiring(msgspec.Struct, frozen=True):
    """One page of batches that expire by some time, rising by number, and what is beside them.

    `batches`: number, audience, messages, bytes. `between`: number and audience of all others
    between these; None where there are too many. `senders`: name, incarnation, and the lowest and
    highest sequence in here. `at`: the place of the last of these, (time, number): the next page
    begins behind it. `next`: when the first that is not in here expires, or None.
    """

    batches: tuple[tuple[int, int, int, int], ...]
    between: tuple[tuple[int, int], ...] | None
    senders: tuple[tuple[str, str, int, int], ...]
    at: tuple[int, int]
    next: int | None


class Oldest(msgspec.Struct, frozen=True):
    """The oldest message that waits for one receiver: the one that its cursor stands before."""

    position: int
    subject: str
    at: int  # wall clock, ms: when it was stored


@dataclass(slots=True, kw_only=True)
class Account:
    """The audit's line for one receiver (SEMANTICS 23)."""

    receiver: int
    routed: int
    queued: int
    settled: dict[int, int]
    queued_bytes: int = 0
    oldest: Oldest | None = None  # of what is queued
    # Of batches that are settled in part: number, messages settled, and the bytes of these that
    # `queued_bytes` is without.
    split: Sequence[tuple[int, int, int]] = field(default=(), compare=False)

    @property
    def unaccounted(self) -> int:
        """Messages of which nobody can say where they are: must be 0."""
        return self.routed - self.queued - sum(self.settled.values())


USERS = "users"  # among the addresses of what was read anew: those of the configuration


class Reread(msgspec.Struct, frozen=True):
    """An address whose files were read anew, keys or certificates, while it is in use.

    Or the users, where there is a configuration that says them.
    """

    address: str
    changed: bool  # since the start, or the last time that somebody asked; and in use now
    problem: str | None  # why they cannot be used: those before go on
