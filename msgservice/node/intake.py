"""The way in for messages, whichever door they come by: checked for whoever hands them in, stored.

An `Ingress` hands in the TRANSFERs of a connection, and keeps what belongs to that: frames, window
and answers. A `LocalSender` hands in what comes by a door that has no session. Both go this way and
no other: nothing else asks `acceptance`, or gives `commits` a batch.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.core.frames import Promised, Transfer
from msgservice.core.refusal import Refusal
from msgservice.core.subjects import check_name
from msgservice.errors import (
    Ambiguous,
    BadName,
    BadSubject,
    Forbidden,
    LimitReached,
    LogFull,
    LogUnavailable,
    MalformedFrame,
    MsgServiceError,
    NoReceiver,
    PathTooLong,
    Refused,
    TooFewReceivers,
    UnknownReceiver,
)
from msgservice.limits import Limits
from msgservice.message import (
    FLAG_RETAIN,
    UNENCODABLE,
    Action,
    PromiseOption,
    WireMessage,
    encode_messages,
)
from msgservice.node.acceptance import Acceptance
from msgservice.node.commits import Commits, Source
from msgservice.node.directory import BacklogFull
from msgservice.node.retained import RetainedIndex
from msgservice.node.rights import Rights
from msgservice.records import (
    NOBODY,
    Batch,
    Origin,
    Outcome,
    RefusedBatch,
    hash_of,
    scope_of_sender,
    scope_of_user,
)

FULL_DELAY_MS = 1000  # how soon a refused sender asks again


# Why a run is not taken, whatever its sender has handed in before.
NEVER_STORED = (Refused, BadSubject, BadName, LimitReached, LogFull)


class Senders(Protocol):
    """The senders of a node (`connections`)."""

    def pause_senders(self) -> None:
        """Too much is taken in and not committed: read from none of them for now."""


class Sender(NamedTuple):
    """The sender of messages: its name, and its incarnation, with what may be shown of that.

    `scope`: within which its idempotency keys count. `node_log`: of a node, which passes on what
    others have sent, the id of its log; else nothing.
    """

    name: str
    incarnation: str
    hash: str
    scope: str
    node_log: str = ""

    @classmethod
    def of(cls, name: str, incarnation: str, user: str = "", node_log: str = "") -> Sender:
        """Return the sender of this name and incarnation; `user`: as whom it has logged in."""
        scope = scope_of_user(user) if user else scope_of_sender(name)
        return cls(name, incarnation, hash_of(incarnation), scope, node_log)


def _is_final(refusal: Refused | LimitReached | LogFull) -> bool:
    """Whether it is refused also where its key was used before: by who may not use it."""
    return isinstance(refusal, Forbidden)


def refusal_for(error: Exception) -> Refusal:
    """Return what a sender is told of the error that its messages were not taken for.

    It tries again (LATER) where a limit or a disk may have room then.
    """
    later = isinstance(error, LogFull | LimitReached | LogUnavailable)
    action = Action.LATER if later else Action.REFUSED
    if isinstance(error, PathTooLong):
        action = Action.DEAD  # its producer was told long ago that it is accepted
    if isinstance(error, MsgServiceError):
        return Refusal(action, str(error), error.refusal_code, error.about)
    return Refusal(action, str(error))


class Intake:
    """The intake of a node. `check` and `put` are called once for each run, from one turn."""

    def __init__(
        self,
        *,
        acceptance: Acceptance,
        commits: Commits,
        senders: Senders,
        retained: RetainedIndex,
        limits: Limits,
    ) -> None:
        self._retained = retained
        self.decode = acceptance.decode
        self._acceptance = acceptance
        self._commits = commits
        self._senders = senders
        self._limits = limits
        self._submitted: dict[_Submitted, None] = {}  # by `LocalSender`s, and not told yet

    def check(
        self,
        rights: Rights,
        sender: Sender,
        transfer: Transfer,
        messages: Sequence[WireMessage],
        raw: memoryview,
        *,
        known: bool,
    ) -> Batch | Refusal:
        """Return the batch of a run, to be `put` in this turn, or why it is not taken.

        `rights`: those of whoever hands it in. `messages`, `known`: what `decode` has returned.
        `raw`: the bytes of the run. A batch that has a `refusal` is for nobody, or its sender may
        not send it: its group decides, since it is known where it was taken before (SEMANTICS 2).
        """
        try:
            return self.batch(rights, sender, transfer, messages, raw, known=known)
        except NEVER_STORED as error:
            return refusal_for(error)

    def batch(
        self,
        rights: Rights,
        sender: Sender,
        transfer: Transfer,
        messages: Sequence[WireMessage],
        raw: memoryview,
        *,
        known: bool,
        key: str | None = None,
    ) -> Batch:
        """Return the batch of a run as `check` does; raises what is never stored, or not now.

        `key`: of the run as a whole, where none of its messages has one.
        """
        acceptance = self._acceptance
        refusal: Refused | None = None
        try:
            audience = acceptance.audience(
                rights,
                transfer,
                messages,
                raw.nbytes,
                known=known,
                sender=sender.name,
                node_log=sender.node_log,
            )
        except (UnknownReceiver, NoReceiver, Forbidden, TooFewReceivers) as nobody:
            # Who was there when it came over another connection may be gone since: what was
            # stored then, or is being stored, is answered by that (SEMANTICS 2).
            audience, refusal = NOBODY, nobody.with_traceback(None)  # which would hold this frame
        if refusal is None:
            full = acceptance.full(audience, delayed=bool(transfer.delay))
            if full is not None:
                raise BacklogFull(full)
        return acceptance.batch(
            transfer,
            messages,
            raw,
            audience,
            sender=sender.name,
            incarnation=sender.incarnation,
            incarnation_hash=sender.hash,
            scope=sender.scope,
            refusal=refusal,
            key=key,
        )

    def put(self, batch: Batch, source: Source) -> bool:
        """Store a batch with the next group, which tells its source. Returns whether it has room.

        Where not (`uncommitted_bytes`), no sender is read from until there is.
        """
        commits = self._commits
        flags = batch.options.flags
        # One with a delay is on its way from when it is due on (`Acceptance.decide_due`).
        if flags & FLAG_RETAIN and not (batch.due_at or isinstance(batch.refusal, Forbidden)):
            self._retained.coming(batch.subject, batch.size)
        commits.batch(batch, source)
        if commits.uncommitted_bytes <= self._limits.uncommitted_bytes:
            return True
        self._senders.pause_senders()
        return False

    # --- without a session

    def sender(self, name: str, user: str = "") -> LocalSender:
        """Return a sender of this name that has no session. Raises `BadName`.

        `user`: as whom it has logged in; its keys are that one's, whichever door they come by.
        """
        return LocalSender(Sender.of(check_name(name), secrets.token_hex(16), user), self)

    def check_room(self) -> None:
        """Raise `LimitReached` where more is taken in and not committed than is allowed."""
        if self._commits.uncommitted_bytes > self._limits.uncommitted_bytes:
            raise LimitReached("uncommitted_bytes", self._limits.uncommitted_bytes)

    def submit(self, batch: Batch, sender: LocalSender) -> Deferred[Outcome]:
        """Store a batch of a `LocalSender` with the group that starts when this turn is over."""
        submitted = _Submitted(self._submitted, sender)
        if self._commits.is_stopped:
            submitted.fail(Ambiguous("the node has stopped"))
            return submitted.waiter
        self.put(batch, submitted)
        # It may have been checked long ago: for whom it is, is decided now.
        self._acceptance.decide_again((batch,))
        self._commits.kick_soon()
        return submitted.waiter

    def stop(self) -> None:
        """No group is stored any more: who waits for one is told that."""
        for submitted in list(self._submitted):
            submitted.fail(Ambiguous("the node has stopped before it said that this is stored"))


class LocalSender:
    """A sender in this process that has no session: it numbers what it submits, and keeps nothing.

    What is refused is said at once, and never tried again here. So its incarnation is new whenever
    it is made, and a message that its owner hands in twice is two messages.
    """

    def __init__(self, sender: Sender, intake: Intake) -> None:
        self.name = sender.name
        self._sender = sender
        self._intake = intake
        self._next = 1  # sequence
        self._open: dict[int, None] = {}  # sequences of what was submitted and not told, rising

    @property
    def hash(self) -> str:
        """The part of its messages' names that stands for its incarnation."""
        return self._sender.hash

    def check(
        self,
        rights: Rights,
        subject: str,
        messages: Sequence[WireMessage],
        *,
        to: tuple[str, ...] | None = None,
        flags: int = 0,
        promise: PromiseOption | None = None,
    ) -> Batch | Refusal:
        """Return these messages as one batch, which may be submitted once, or why they are refused.

        `to`, `flags`, `promise`: as in a TRANSFER. Nothing is numbered, stored or kept here.
        """
        try:
            return self.batch(rights, subject, messages, to=to, flags=flags, promise=promise)
        except (*NEVER_STORED, MalformedFrame) as error:
            return refusal_for(error)

    def batch(
        self,
        rights: Rights,
        subject: str,
        messages: Sequence[WireMessage],
        *,
        to: tuple[str, ...] | None = None,
        ttl: int | None = None,
        delay: int | None = None,
        flags: int = 0,
        key: str | None = None,
        promise: PromiseOption | None = None,
    ) -> Batch:
        """Return these messages as one batch, which may be submitted once.

        `to`, `ttl`, `delay`, `flags` and `promise`: as in a TRANSFER; `key`: of all of them
        together. Raises what they are refused for: a `Refused`, `BadSubject`, `BadName`,
        `LimitReached`, `LogFull`, or `MalformedFrame`. Nothing is numbered, stored or kept here.
        """
        intake = self._intake
        try:
            raw = encode_messages(list(messages))
        except UNENCODABLE as error:
            raise Refused(f"a message that has no form in a frame: {error}") from None
        transfer = Transfer(0, subject, msgspec.Raw(raw), to=to, ttl=ttl, delay=delay, flags=flags)
        if promise is not None:
            transfer = Promised(**msgspec.structs.asdict(transfer), promise=promise)
        decoded, known = intake.decode(transfer)
        intake.check_room()
        if key is not None and delay:
            raise Refused(
                "a key of several messages together has no delay: while they wait each may be"
                " cancelled alone, and the key would say one thing of all; give each its own"
            )
        if key is not None and promise is not None:
            raise Refused("a key and a promise together are not supported by this version")
        batch = intake.batch(
            rights, self._sender, transfer, decoded, memoryview(raw), known=known, key=key
        )
        if batch.refusal is not None and (batch.key is None or _is_final(batch.refusal)):
            raise batch.refusal  # nothing of it was ever taken before
        return batch

    def submit(self, batch: Batch) -> Deferred[Outcome]:
        """Store a batch that `check` has returned; fires with its outcome when that is on disk.

        Or `batch`. A `RefusedBatch` was not stored: the log had no room, its group failed, its key
        was used for something else, or who receives what has changed meanwhile. Fails with
        `Ambiguous` when the node stops before. Cancelling ends the wait, and takes nothing back.
        """
        assert not batch.sequence, "it was submitted before"
        first = self._next
        self._next += batch.count
        batch.sequence, batch.after = first, first - 1
        batch.floor = next(iter(self._open), first)
        assert batch.origin is not None
        batch.origin = Origin(self.name, first, self._sender.hash, batch.origin.path)
        self._open[first] = None
        return self._intake.submit(batch, self)

    def told(self, batch: Batch) -> None:
        """The outcome of a batch is known: below those that are open, nothing comes any more."""
        del self._open[batch.sequence]


class _Submitted:
    """A batch that was submitted without a session (`commits.Source`)."""

    __slots__ = ("_among", "_outcome", "_sender", "waiter")

    def __init__(self, among: dict[_Submitted, None], sender: LocalSender) -> None:
        self.waiter: Deferred[Outcome] = Deferred()
        self._outcome: Outcome | None = None
        self._sender = sender
        self._among = among
        among[self] = None

    def stored(self, batch: Batch, outcome: Outcome) -> None:
        """See `commits.Source`. It is told with `flush`, when the rest of the node knows it."""
        self._outcome = outcome
        self._sender.told(batch)

    def failed(self, batches: list[Batch], error: LogUnavailable) -> None:
        """See `commits.Source`."""
        (batch,) = batches
        self.stored(batch, RefusedBatch(error))

    def withdraw(self, batch: Batch) -> bool:
        """See `commits.Source`: each batch is answered alone, none waits for one before it."""
        return False

    def flush(self) -> None:
        """See `commits.Source`."""
        assert self._outcome is not None
        if self._leave():
            self.waiter.callback(self._outcome)

    def fault(self, failure: Failure) -> None:
        """See `commits.Source`."""
        if self._leave():
            self.waiter.errback(failure)

    def fail(self, error: Ambiguous) -> None:
        """The outcome will never be known: the batch may be stored."""
        if self._leave():
            self.waiter.errback(Failure(error))

    def _leave(self) -> bool:
        return self._among.pop(self, self) is None
