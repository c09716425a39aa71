"""The operations of a node that can be asked for: names, what is asked and answered, and rights.

The one place that says it: `$node.*` (`node.admin`) is made from it, the command line asks by it,
and the table of docs/protocol.md is compared with it. How an operation is carried out is the
business of `node.operations`.

A field of an answer is never taken away, and new ones are added at the end (an option of a receiver
behind its options): programs read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from msgservice.limits import INTEGER_MAX, Rate
from msgservice.receiver_options import ADDED, OPTIONS
from msgservice.records import Oldest, Reread, Room

PAGE_ROWS = 1000  # of one answer, at most

# Every integer that is asked with: an answer says which field has another.
Number = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


# --- what is asked


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of an operation."""


class Nothing(Asked):
    """No arguments."""


class Name(Asked):
    """The name of a receiver: asked with, and answered where there is nothing else to say."""

    name: str


_ADDRESS = ("address", str | None, None)
AddReceiver = msgspec.defstruct(
    "AddReceiver",
    [
        ("name", str),
        ("subjects", list[str]),
        _ADDRESS,
        *((option.name, option.asked, option.default) for option in ADDED),
    ],
    bases=(Asked,),
    module=__name__,
)
ChangeReceiver = msgspec.defstruct(
    "ChangeReceiver",
    [
        ("name", str),
        ("subjects", list[str] | None, None),
        _ADDRESS,
        *((option.name, option.asked | None, None) for option in OPTIONS if option.about.changed),
    ],
    bases=(Asked,),
    module=__name__,
)


class RemoveReceiver(Asked):
    """The receiver to be removed. `confirm`: how many messages may go with it."""

    name: str
    confirm: Number | None = None


class PurgeReceiver(Asked):
    """The receiver for which nothing shall wait, of a subject or pattern if it says one.

    `after`: a position, behind which the next page begins. `end`: the position up to which it goes;
    None: the newest. `dry_run`: only say what would be settled.
    """

    name: str
    subject: str | None = None
    after: Number = 0
    end: Number | None = None
    dry_run: bool = False


class OwnReceiver(Asked):
    """The name of a receiver, which may be removed, and whose it shall be; empty: nobody's."""

    name: str
    user: str


class Rewind(Asked):
    """The receiver that is sent messages again, and from where to where.

    `first`, `end`: a position, `log:POSITION`, `@` and a time, or the id of a message; `first` also
    "first"; no `end`: up to the newest. `suspended`, in place of both: what it was left out of.
    """

    name: str
    first: str | Number = "first"
    end: str | Number | None = None
    suspended: bool = False


class ListReceivers(Asked):
    """The page of receivers behind a name; with a `name` of its own, that receiver alone."""

    after: str = ""
    limit: Number = PAGE_ROWS
    name: str | None = None


class AskStatus(Asked):
    """The message whose status is asked, and the page of it behind the number of a receiver."""

    id: str
    after: Number = 0
    limit: Number = PAGE_ROWS


class ListDead(Asked):
    """The page of a receiver's dead letters behind a position: those that fit all that is given.

    `of`: one, by position, `log:POSITION`, `SENDER/HASH/SEQUENCE` or its sender's id. `subject`: a
    pattern. `reason`: a part of it. `code`: of the error that is the reason. `since`, `until`: when
    it became one, wall clock, ms.
    """

    receiver: str
    after: Number = 0
    limit: Number = 100
    of: str | None = None
    subject: str | None = None
    reason: str | None = None
    code: Number | None = None
    since: Number = 0
    until: Number = INTEGER_MAX


class DropDead(Asked):
    """The dead letters that are to go, of the next behind a position (`ListDead`)."""

    receiver: str
    after: Number = 0
    of: str | None = None
    subject: str | None = None
    reason: str | None = None
    code: Number | None = None
    since: Number = 0
    until: Number = INTEGER_MAX
    dry_run: bool = False


class RequeueDead(DropDead):
    """The dead letters that are to be sent again; `to`: to another receiver than theirs."""

    to: str | None = None


class ListRetained(Asked):
    """The page of retained messages behind a subject."""

    after: str = ""
    limit: Number = 100


class GetRetained(Asked):
    """The subject whose retained message is asked for, and from which byte on."""

    subject: str
    offset: Number = 0


class ClearRetained(Asked):
    """The subjects of which no message is to be retained any more, 1,000 at most."""

    subjects: Annotated[tuple[str, ...], msgspec.Meta(max_length=1000)]


class GetDead(Asked):
    """The dead letter that is asked for, and from which byte on."""

    receiver: str
    position: Number
    offset: Number = 0


class PeekAsked(Asked):
    """The receiver whose next messages are looked at, and behind which position."""

    receiver: str
    after: Number = 0
    limit: Number = 10


class PeekGet(Asked):
    """The message that is looked at, and from which byte on."""

    receiver: str
    position: Number
    offset: Number = 0


class ListDelayed(Asked):
    """The page of what waits behind (`due`, `id`) of a run, in the order in which they are due."""

    after: tuple[Number, Number] = (0, 0)
    limit: Number = PAGE_ROWS


class CancelDelayed(Asked):
    """The message that is not to be sent, and how many of its sender's: it and those sent next."""

    id: str
    count: Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)] = 1
    reason: str = ""


class AskRetell(Asked):
    """The first of the messages of a sender that is to be told of them, and how many they are."""

    id: str
    count: Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)] = 1


class AskUndo(Asked):
    """The message that is to be undone, and how many of its sender's: it and those sent next.

    By its `id`, or by the idempotency `key` that it was sent with: within the keys of who asks, or,
    for who may undo everybody's, of the user or sender of that name.
    """

    id: str = ""
    count: Annotated[int, msgspec.Meta(ge=1, le=INTEGER_MAX)] = 1
    reason: str = ""
    key: str = ""
    sender: str = ""


class AskObserved(Asked):
    """The page of what is observed of the receivers behind a name."""

    after: str = ""
    limit: Number = PAGE_ROWS


# --- what is answered


class LetterCounts(msgspec.Struct, frozen=True):
    """Dead letters of all receivers since the node started: new, sent again, dropped."""

    new: int
    requeued: int
    dropped: int


class PromiseCounts(msgspec.Struct, frozen=True):
    """Promises of messages: open now, and kept and broken since the node started."""

    open: int
    kept: int
    broken: int


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The requests between peers of a node; answers that were dropped since its start.

    `late`: when nobody waited for them any more, or a second time; `stray`: from who was not asked.
    `given_up`: requests that who asked has given up, or has gone, before they were answered.
    """

    responders: int
    pending: int
    late: int
    stray: int
    given_up: int = 0  # of a node of before it counted them


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The node as a whole: who it is, and how full its log."""

    name: str
    log_id: str
    version: str
    listeners: Sequence[str]  # for people
    connections: int
    room: Room
    looped: int = 0  # messages that came back over a chain of nodes, since the start
    loaded_bytes: int = 0  # for all receivers together: sent and not answered, or to be sent
    dead_letters: LetterCounts | None = None
    requests: RequestCounts | None = None  # of peers, to each other
    promises: PromiseCounts = PromiseCounts(0, 0, 0)


class Place(msgspec.Struct, frozen=True):
    """The place of one message: in the log, and its subject."""

    position: int
    subject: str


_OptionsTold = msgspec.defstruct(
    "_OptionsTold",
    [
        (option.name, option.kind if option.default is not None else option.kind | None)
        for option in ADDED
    ],
    frozen=True,
    kw_only=True,
    module=__name__,
)


class Replaying(msgspec.Struct, frozen=True, kw_only=True):
    """The replay to a receiver: the one that runs, or the last one.

    `next`: what is copied next; `copied`, `skipped`: messages. Of one that is only counted,
    `copied` is how many would be, as far as `next`.
    """

    kind: str  # rewind, start, suspended
    first: int  # where it began: not before what is kept
    next: int
    end: int
    copied: int
    skipped: int  # that retention had taken before they could be copied
    over: bool
    waits: str = ""  # why it does not go on
    kept_from: int = 0  # what lies before has gone, and is not counted


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """The messages that a receiver was left out of while it was suspended, and that are kept."""

    first: int
    end: int
    messages: int
    counted: bool  # all of them; else there are more


class ReplayTold(msgspec.Struct, frozen=True, kw_only=True):
    """The replay of a receiver; None where it has had none."""

    name: str
    replay: Replaying | None


class ReceiverState(
    _OptionsTold,  # type: ignore[misc, valid-type]  # its fields are known once OPTIONS are
    msgspec.Struct,
    frozen=True,
    kw_only=True,
):
    """The state of one receiver, and first those of its options that can be said in a request.

    Of these, `backlog_bytes`, `away_max` and `max_attempts` are the limits in force, and one that
    is being removed is `paused`.
    """

    name: str
    address: str | None
    subjects: Sequence[str]
    suspended: bool
    rate: Rate | None
    refuses: bool  # so much waits for it that messages for it are refused
    connected: bool
    since_s: float  # that it has been so; not longer than this process of the node
    cursor: int
    attempts: int  # the most of what waits to be tried again
    waits: Place | None  # the first of what waits to be tried again
    last_error: str
    next_try_s: float | None  # until it is dialled, or something is tried again
    oldest_s: float | None  # that the oldest of what is queued has waited
    dead: int  # dead letters that it has; and the bytes that they take
    dead_bytes: int
    queued: int  # messages; and their bytes
    queued_bytes: int
    oldest: Oldest | None
    routed: int
    unaccounted: int
    settled: dict[str, int]  # messages by their final status
    owner: str  # the user whose it is; empty: nobody's
    replay: Replaying | None = None
    left_out: LeftOut | None = None
    away_s: float | None = None  # that it is away, where `away_max` counts it; over restarts too
    stays: str = ""  # why it is there though that was too long
    workers: int = 0  # connections that share its messages, or one
    health: str = ""  # up, away, probing, failing, paused, suspended or full
    health_s: float | None = None  # that it has had it, as `since_s`; None: not known
    needs: str = ""  # what would help, where trying again alone does not
    dead_s: float | None = None  # that it has had dead letters, as `since_s`; None: it has none


class ReceiverPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of receivers, by name. `next`: the name behind which the next begins."""

    receivers: list[ReceiverState]
    next: str | None


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver, and whether it is paused now."""

    name: str
    paused: bool


class Resumed(Paused, frozen=True, kw_only=True):
    """A receiver that was resumed. `full`: why the next dead letter would pause it again."""

    full: str | None


class Owned(msgspec.Struct, frozen=True, kw_only=True):
    """The name of a receiver, and whose it is now."""

    name: str
    user: str


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """The messages and dead letters that would go with a receiver, or went with it."""

    queued: int | msgspec.UnsetType = msgspec.UNSET  # before it is confirmed
    removed: int | msgspec.UnsetType = msgspec.UNSET  # behind that
    dead: int
    configured: bool | msgspec.UnsetType = msgspec.UNSET  # true: the next start makes it anew


class PurgeTold(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of a page that were cancelled, or would be, and their bytes.

    `in_flight`: what is left to its answer. `end`: up to which position; `next`: behind which to go
    on, or None.
    """

    count: int
    size: int
    in_flight: int
    end: int
    next: int | None


class StatusTold(msgspec.Struct, frozen=True):
    """The status of a message at one receiver."""

    status: str
    attempts: int
    reason: str
    copy: int | None = None  # the position of its newest copy: it was sent again
    copy_to: str | None = None  # … to another receiver


class PromiseTold(msgspec.Struct, frozen=True, kw_only=True):
    """The promise that a message came with, and what became of it. Times: wall clock, ms.

    `outcome`: `open`, `kept` or `broken`, and then `reason` says why. `acknowledged`: how many
    receivers have acknowledged it by now. `otherwise`: what is done where it is broken.
    """

    need: int
    until: int
    otherwise: str
    acknowledged: int
    outcome: str
    reason: str = ""
    decided_at: int | None = None


class StatusPage(msgspec.Struct, frozen=True, kw_only=True):
    """A message, and a page of its statuses by the names of receivers.

    `promise`: that it came with; in the first page.
    """

    position: int
    sender: str
    sequence: int
    subject: str
    stored_at: int  # wall clock, ms
    receivers: dict[str, StatusTold]
    next: int | None
    due: int | None = None  # wall clock, ms: it waits until then, and has no position yet
    removed: bool = False  # from the log: it has no position, and only its states are kept
    promise: PromiseTold | None = None


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """The cause of where one message is, at one receiver, and what would help.

    `kind`: its status where that is final, or one of those in docs/cli.md. `sentence`: what
    there is to say, for people. `command`: of the command line, which would help or says more;
    empty where there is none. Times are of the wall clock, ms.
    """

    receiver: str  # empty: nobody's
    status: str  # empty: it is not for this receiver
    kind: str
    sentence: str
    help: str = ""
    command: str = ""
    attempts: int = 0
    reason: str = ""
    since: int | None = None  # that the receiver is away, in this process of the node
    next_try_at: int | None = None
    behind: Place | None = None  # the message that is in its way
    node: str = ""  # of a chain: which one says so, NEXT or NEXT/FURTHER; empty: who is asked
    copy: int | None = None  # the position of its newest copy: it was sent again
    copy_to: str | None = None  # … to another receiver


class WhyPage(msgspec.Struct, frozen=True, kw_only=True):
    """A message, and a page of the causes of where it is. `promise`: as in `StatusPage`."""

    position: int
    sender: str
    sequence: int
    subject: str
    stored_at: int  # wall clock, ms
    causes: list[Cause]
    next: int | None
    due: int | None = None  # wall clock, ms: it waits until then, and has no position yet
    removed: bool = False  # from the log: it has no position, and only its states are kept
    promise: PromiseTold | None = None


class ReceiverWhy(msgspec.Struct, frozen=True, kw_only=True):
    """The health of a receiver in one sentence, and its troubles, the worst first."""

    name: str
    health: str
    sentence: str
    since: int  # wall clock, ms: when it was connected, or was lost
    troubles: Sequence[Trouble]
    health_since: int | None = None  # wall clock, ms: that it has this health; None: not known


class UndoTold(msgspec.Struct, frozen=True, kw_only=True):
    """The account of an undo: one outcome for each message at each receiver of its audience.

    `receivers`: name -> outcome -> messages. Outcomes: `cancelled`, `in_flight` (left to its
    answer), `cancelled_before`, or the word of the final status that it had. `next`: the message to
    go on with, or None; and `left` is the count to say with it.
    """

    sender: str  # of the first one
    subject: str
    messages: int
    receivers: dict[str, dict[str, int]]
    next: str | None = None
    left: int = 0


def undone_too(told: UndoTold, more: UndoTold) -> UndoTold:
    """Return the account of two pages of one undo."""
    receivers = {name: dict(outcomes) for name, outcomes in told.receivers.items()}
    for name, outcomes in more.receivers.items():
        at = receivers.setdefault(name, {})
        for outcome, messages in outcomes.items():
            at[outcome] = at.get(outcome, 0) + messages
    return UndoTold(
        sender=told.sender,
        subject=told.subject,
        messages=told.messages + more.messages,
        receivers=receivers,
    )


class DelayedTold(msgspec.Struct, frozen=True, kw_only=True):
    """A run that waits until it is due."""

    id: int
    due: int  # wall clock, ms
    sender: str  # of its first message
    messages: int
    subject: str
    message_id: str | None  # of its first message, if its sender gave one
    to: list[str] | None  # receivers, where its sender named them
    size: int  # bytes
    accepted_at: int  # wall clock, ms
    expires: int | None = None  # by the node's clock, ms; None: never


class DelayedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of what waits. `next`: what the next page is asked behind."""

    delayed: list[DelayedTold]
    next: tuple[int, int] | None


class CancelledTold(msgspec.Struct, frozen=True, kw_only=True):
    """The messages that will not be sent."""

    sender: str  # of the first that was asked for
    subject: str
    cancelled: int


class LetterTold(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter, without its message."""

    position: int
    sender: str
    sequence: int
    subject: str
    id: str | None
    size: int  # bytes of its message
    reason: str
    attempts: int
    at: int  # wall clock, ms
    code: int = 0  # of the error that is the reason, where it had one


class LetterPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of dead letters. `next`: the position behind which the next begins."""

    dead: list[LetterTold]
    next: int | None


class LetterPart(LetterTold, frozen=True, kw_only=True):
    """A dead letter with a part of its message. `next`: where the part that follows begins."""

    message: bytes
    next: int | None


class LettersTouched(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters that were touched, or would be. `next`: the position behind which to go on.

    `newest`: when the newest of them became one, wall clock, ms, or 0.
    """

    count: int
    size: int
    newest: int
    next: int | None


class PeekTold(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits for a receiver."""

    position: int
    sender: str
    sequence: int
    subject: str
    id: str | None
    size: int  # bytes of its message
    stored_at: int  # wall clock, ms
    status: str  # queued, or sent
    attempts: int  # that failed, as far as it is loaded
    reason: str  # why the last one did


class PeekPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of messages that wait. `next`: the position behind which the next begins."""

    messages: list[PeekTold]
    next: int | None


class PeekPart(PeekTold, frozen=True, kw_only=True):
    """A message that waits, with a part of it. `next`: where the part that follows begins."""

    message: bytes
    next: int | None


class RetainedTold(msgspec.Struct, frozen=True, kw_only=True):
    """A retained message, without itself."""

    subject: str
    position: int  # of the original
    sender: str
    size: int  # bytes
    stored_at: int  # wall clock, ms


class RetainedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of retained messages. `next`: the subject behind which the next begins."""

    retained: list[RetainedTold]
    next: str | None


class RetainedPart(RetainedTold, frozen=True, kw_only=True):
    """A retained message, or a part of it. `next`: where the part that follows begins."""

    message: bytes
    next: int | None


class RetainedCleared(msgspec.Struct, frozen=True):
    """The number of messages that are retained no longer."""

    cleared: int


class Reloaded(msgspec.Struct, frozen=True):
    """The addresses in use whose files were read, and what came of each."""

    files: list[Reread]


class Discrepancies(msgspec.Struct, frozen=True):
    """The sentences of an audit: what does not add up."""

    discrepancies: list[str]


class Whoami(msgspec.Struct, frozen=True, kw_only=True):
    """The user that asks, what shows it, and what it may do. No user: nobody is asked here."""

    user: str | None
    how: str
    names: Sequence[str]  # patterns that its senders and receivers may be called
    send: Sequence[str]  # patterns of its rules
    to: Sequence[str]
    receive: Sequence[str]
    request: Sequence[str]


class Tested(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a test of a webhook. `code`: of HTTP; None: there was no answer.

    `reason`: why a message would not have been taken, for people; empty: it would have been.
    """

    name: str
    taken: bool
    code: int | None
    reason: str
    seconds: float


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """The trouble of a receiver, or of the node itself: why, and what would help.

    `command`: of the command line, which would help or says more; empty where there is none.
    `is_severe`: messages are refused or stand still; else it goes on, or somebody wanted it so.
    """

    kind: str  # away, failing, paused, suspended, full, dead_letters, log_full, clock
    sentence: str
    help: str
    command: str = ""
    since: int | None = None  # wall clock, ms; None: not known
    is_severe: bool = True


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver as it was when it was looked at last. Times are those of the wall clock, ms."""

    name: str
    at: int  # when it was looked at
    health: str  # up, away, probing, failing, paused, suspended or full
    since: int  # when it was connected, or was lost; not before this process of the node
    connected: bool
    address: str | None
    subjects: Sequence[str]
    queued: int  # messages; and their bytes, of how many at most
    queued_bytes: int
    backlog_bytes: int
    oldest: Oldest | None  # of what is queued
    rate: float  # messages settled a second, between the last two looks
    settled: dict[str, int]  # messages by their final status
    dead: int  # dead letters that it has; and the bytes that they take
    dead_bytes: int
    attempts: int  # the most of what waits to be tried again
    last_error: str
    next_try_at: int | None
    unaccounted: int
    replay: Replaying | None
    troubles: Sequence[Trouble]  # the worst first
    shared: bool = False  # among several connections ...
    workers: int = 0  # ... so many now
    health_since: int | None = None  # not before this process of the node; None: not known


class ObservedNode(msgspec.Struct, frozen=True, kw_only=True):
    """The node as it was when it was looked at last. Times are those of the wall clock, ms."""

    name: str
    version: str
    log_id: str
    listeners: Sequence[str]
    at: int
    started_at: int
    connections: int
    receivers: int
    room: Room
    loaded_bytes: int
    looped: int
    dead_letters: LetterCounts | None
    promises: PromiseCounts
    stored: int  # messages since the start; and their bytes
    stored_bytes: int
    stored_rate: float  # messages a second, between the last two looks
    settled_rate: float  # messages at receivers a second
    refused: int  # runs that the log had no room for, since the start
    troubles: Sequence[Trouble]


class ObservedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of what is observed, by name. `next`: the name behind which the next begins."""

    node: ObservedNode
    receivers: list[Observed]
    next: str | None


# --- the operations

A = TypeVar("A", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Operation(Generic[A, R]):
    """An operation: its name, the structs that are asked and answered, and what it does.

    `changes`: something of the node, so that who asks for it has a line in the log. `own`: whoever
    lacks the right may ask it too, about itself and what its own senders have sent.
    """

    name: str
    asks: type[A]
    answers: type[R]
    sentence: str
    changes: bool = False
    own: bool = False

    @property
    def right(self) -> str:
        """The subject that it is asked on, which a rule names to allow it."""
        return f"$node.{self.name}"


INFO = Operation("info", Nothing, NodeInfo, "Says who the node is, and how full its log.")
OBSERVE = Operation(
    "observe", AskObserved, ObservedPage, "Says how the node and its receivers are, trouble first."
)
RECEIVERS_LIST = Operation(
    "receivers.list", ListReceivers, ReceiverPage, "Lists the receivers and what waits for them."
)
RECEIVERS_ADD = Operation("receivers.add", AddReceiver, Name, "Adds a receiver.", changes=True)
RECEIVERS_CHANGE = Operation(
    "receivers.change", ChangeReceiver, Name, "Changes what is given of a receiver.", changes=True
)
RECEIVERS_PAUSE = Operation(
    "receivers.pause", Name, Paused, "Sends nothing to a receiver.", changes=True
)
RECEIVERS_RESUME = Operation(
    "receivers.resume", Name, Resumed, "Sends to a receiver again.", changes=True
)
RECEIVERS_REMOVE = Operation(
    "receivers.remove",
    RemoveReceiver,
    Removal,
    "Says what goes with a receiver, or removes it.",
    changes=True,
)
RECEIVERS_PURGE = Operation(
    "receivers.purge",
    PurgeReceiver,
    PurgeTold,
    "Cancels what waits for a receiver.",
    changes=True,
)
RECEIVERS_OWN = Operation(
    "receivers.own", OwnReceiver, Owned, "Gives a receiver's name to a user.", changes=True
)
RECEIVERS_TEST = Operation(
    "receivers.test",
    Name,
    Tested,
    "Posts a test to the web address of a receiver, stored nowhere, and says what came back.",
    changes=True,
)
RECEIVERS_REWIND = Operation(
    "receivers.rewind",
    Rewind,
    ReplayTold,
    "Sends a receiver again what it has acknowledged, or what it was left out of.",
    changes=True,
)
RECEIVERS_REWIND_COUNT = Operation(
    "receivers.rewind_count", Rewind, ReplayTold, "Says how many messages a rewind would copy."
)
RECEIVERS_REWIND_CANCEL = Operation(
    "receivers.rewind_cancel",
    Name,
    ReplayTold,
    "Ends the replay of a receiver before its time; what was copied stays.",
    changes=True,
)
RECEIVERS_REPLAY = Operation(
    "receivers.replay", Name, ReplayTold, "Says how far the replay of a receiver is."
)
STATUS = Operation(
    "status",
    AskStatus,
    StatusPage,
    "Says what became of a message at each receiver.",
    own=True,
)
WHY = Operation(
    "why",
    AskStatus,
    WhyPage,
    "Says why a message is where it is, and what would help.",
    own=True,
)
RECEIVERS_WHY = Operation(
    "receivers.why", Name, ReceiverWhy, "Says how a receiver is, why, and what would help."
)
DEAD_LIST = Operation("dead.list", ListDead, LetterPage, "Lists the dead letters of a receiver.")
DEAD_GET = Operation("dead.get", GetDead, LetterPart, "Shows a dead letter with its message.")
DEAD_REQUEUE = Operation(
    "dead.requeue",
    RequeueDead,
    LettersTouched,
    "Sends dead letters of a receiver again.",
    changes=True,
)
DEAD_DROP = Operation(
    "dead.drop", DropDead, LettersTouched, "Drops dead letters of a receiver.", changes=True
)
PEEK = Operation(
    "peek", PeekAsked, PeekPage, "Says which messages are next for a receiver, and takes none."
)
PEEK_GET = Operation("peek.get", PeekGet, PeekPart, "Shows a message that waits for a receiver.")
RETAINED_LIST = Operation(
    "retained.list", ListRetained, RetainedPage, "Lists what is retained, by subject."
)
RETAINED_GET = Operation(
    "retained.get", GetRetained, RetainedPart, "Shows the retained message of a subject."
)
RETAINED_CLEAR = Operation(
    "retained.clear",
    ClearRetained,
    RetainedCleared,
    "Retains no message of these subjects any more.",
    changes=True,
)
DELAYED_LIST = Operation(
    "delayed.list",
    ListDelayed,
    DelayedPage,
    "Lists what waits until it is due.",
    own=True,
)
DELAYED_CANCEL = Operation(
    "delayed.cancel",
    CancelDelayed,
    CancelledTold,
    "Cancels messages that wait until they are due.",
    changes=True,
    own=True,
)
RETELL = Operation(
    "retell",
    AskRetell,
    Nothing,
    "Tells the sender of messages what became of them once more, if it is connected.",
    own=True,
)
UNDO = Operation(
    "undo",
    AskUndo,
    UndoTold,
    "Cancels what is not sent yet of messages, and says what became of the rest.",
    changes=True,
    own=True,
)
RELOAD = Operation(
    "reload",
    Nothing,
    Reloaded,
    "Reads certificates, keys and users anew, and says which cannot be used.",
    changes=True,
)
AUDIT = Operation("audit", Nothing, Discrepancies, "Says what does not add up in the log.")
WHOAMI = Operation("whoami", Nothing, Whoami, "Says who asks, and what it may do.", own=True)

OPERATIONS: tuple[Operation[Any, Any], ...] = (
    INFO,
    OBSERVE,
    RECEIVERS_LIST,
    RECEIVERS_ADD,
    RECEIVERS_CHANGE,
    RECEIVERS_PAUSE,
    RECEIVERS_RESUME,
    RECEIVERS_REMOVE,
    RECEIVERS_PURGE,
    RECEIVERS_OWN,
    RECEIVERS_TEST,
    RECEIVERS_REWIND,
    RECEIVERS_REWIND_COUNT,
    RECEIVERS_REWIND_CANCEL,
    RECEIVERS_REPLAY,
    STATUS,
    WHY,
    RECEIVERS_WHY,
    DEAD_LIST,
    DEAD_GET,
    DEAD_REQUEUE,
    DEAD_DROP,
    PEEK,
    PEEK_GET,
    RETAINED_LIST,
    RETAINED_GET,
    RETAINED_CLEAR,
    DELAYED_LIST,
    DELAYED_CANCEL,
    RETELL,
    UNDO,
    RELOAD,
    AUDIT,
    WHOAMI,
)
