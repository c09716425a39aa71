"""What one connected sender hands in: checked, stored, acknowledged. The only place that ACKs.

A TRANSFER is decoded once, to check it, and then stored as the bytes that came. Everything that
can fail is checked before it is queued (`acceptance`); the answer leaves after the commit that
holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.connection import UNCOMMITTED, Connection
from msgservice.core.frames import Frame, Transfer
from msgservice.core.inbox import Answers
from msgservice.core.refusal import Refusal
from msgservice.errors import (
    BadName,
    BadSubject,
    FrameTooLarge,
    LimitReached,
    LogFull,
    LogUnavailable,
    MsgServiceError,
    NoReceiver,
    ProtocolError,
    Refused,
    UnknownReceiver,
    WindowExceeded,
)
from msgservice.limits import NAME_BYTES_MAX, Limits
from msgservice.message import Action
from msgservice.node.acceptance import Acceptance
from msgservice.node.commits import Commits
from msgservice.node.tracker import Tracker, Watch
from msgservice.records import NOBODY, Audience, Batch, Known, Outcome, RefusedBatch, hash_of

FULL_DELAY_MS = 1000  # how soon a refused sender asks again


class Senders(Protocol):
    """The senders of a node (`connections`)."""

    def pause_senders(self) -> None:
        """Too much is taken in and not committed: read from none of them for now."""


class Ingress:
    """The ingress of one connection: TRANSFERs are checked, stored, acknowledged.

    `said`: how many ranges the node's RESUME has. `answered` is called when everything that was
    taken in was answered.
    """

    _logger = Logger()

    def __init__(
        self,
        connection: Connection,
        name: str,
        incarnation: str,
        *,
        acceptance: Acceptance,
        commits: Commits,
        tracker: Tracker,
        senders: Senders,
        clock: IReactorTime,
        limits: Limits,
        said: int,
        answered: Callable[[], None],
    ) -> None:
        self.answers = Answers(said, limits.window_messages)
        self.watch: Watch | None = None
        self.accepted = 0  # messages, on this connection
        self.waiting = 0  # batches taken in and not answered; their messages and bytes:
        self._waiting_messages = 0
        self._waiting_bytes = 0
        self._naming: dict[int, int] = {}  # audiences to be told with what waits: bytes, at most
        self._naming_bytes = 0
        self._acceptance = acceptance
        self._commits = commits
        self._tracker = tracker
        self._senders = senders
        self._connection = connection
        self._name = name
        self._incarnation = incarnation
        self._hash = hash_of(incarnation)
        self._clock = clock
        self._limits = limits
        self._answered = answered
        self._out: list[Frame] = []
        self._flush: IDelayedCall | None = None

    # --- from the sender

    def received(self, transfer: Transfer) -> None:
        """Take a run in, or owe a NACK for it. Raises `MalformedFrame`, `WindowExceeded`."""
        acceptance = self._acceptance
        messages, known = acceptance.decode(transfer)
        count = len(messages)
        raw = memoryview(transfer.messages)
        first, subject = transfer.sequence, transfer.subject
        last = first + count - 1
        if not self.answers.receive(transfer, last, subject):
            return  # its lane is being discarded
        if self.waiting:
            self._check_window(count, raw.nbytes)
        refusal: Refused | None = None
        try:
            audience = acceptance.audience(
                transfer, messages, raw.nbytes, known=known, sender=self._name
            )
        except (UnknownReceiver, NoReceiver) as nobody:
            # Who was there when it came over another connection may be gone since: what was
            # stored then, or is being stored, is answered by that (SEMANTICS 2).
            audience, refusal = NOBODY, nobody.with_traceback(None)  # which would hold this frame
        except (Refused, BadSubject, BadName) as refused:
            self._refuse(first, last, subject, Action.REFUSED, 0, refused)
            return
        except LimitReached as limit:
            self._refuse(first, last, subject, Action.LATER, FULL_DELAY_MS, limit)
            return
        full = acceptance.full(audience) if refusal is None else None
        if full is not None:
            # The reason as it is: one that is suspended is no full log.
            refusal_of_full = Refusal(Action.LATER, full, LogFull.refusal_code)
            self.answers.refuse(first, last, refusal_of_full, subject, FULL_DELAY_MS)
            self.flush_soon()
            return
        batch = acceptance.batch(
            transfer,
            messages,
            raw,
            audience,
            sender=self._name,
            incarnation=self._incarnation,
            incarnation_hash=self._hash,
            refusal=refusal,
        )
        commits = self._commits
        self.waiting += 1
        self._waiting_messages += count
        self._waiting_bytes += batch.size
        self._owe_names(audience)
        commits.batch(batch, self)
        if commits.uncommitted_bytes > self._limits.uncommitted_bytes:
            self._senders.pause_senders()
            # Also one that receives, which others' messages do not pause.
            self._connection.pause(UNCOMMITTED)

    @property
    def sender(self) -> tuple[str, str]:
        """The name and the incarnation of the sender."""
        return self._name, self._incarnation

    @property
    def has_room(self) -> bool:
        """Whether what is owed with the runs that wait allows another one (`answer_bytes`)."""
        return self._naming_bytes <= self._limits.answer_bytes

    def _owe_names(self, audience: Audience) -> None:
        watch = self.watch
        number = audience.number
        if watch is not None and number not in watch.audiences and number not in self._naming:
            self._naming[number] = size = len(audience.members) * NAME_BYTES_MAX
            self._naming_bytes += size

    def _names_left(self) -> None:
        """What was told is in the channel now, which counts it."""
        if not self._naming:
            return
        told = self.watch.audiences if self.watch is not None and self.waiting else self._naming
        self._naming = {n: size for n, size in self._naming.items() if n not in told}
        self._naming_bytes = sum(self._naming.values())
        self._connection.go_on_soon()

    def _check_window(self, count: int, size: int) -> None:
        """More than HELLO's `window` may not be unanswered, but for a run that is alone.

        What is answered here may not have reached the sender: it counts at least what this does.
        """
        limits = self._limits
        messages, size = self._waiting_messages + count, self._waiting_bytes + size
        if messages > limits.window_messages:
            raise WindowExceeded("messages", messages, limits.window_messages)
        if size > limits.window_bytes:
            raise WindowExceeded("bytes", size, limits.window_bytes)

    def _no_longer_waits(self, batch: Batch) -> None:
        self.waiting -= 1
        self._waiting_messages -= batch.count
        self._waiting_bytes -= batch.size

    def _refuse(
        self,
        first: int,
        last: int,
        lane: str,
        action: Action,
        delay_ms: int,
        error: MsgServiceError,
    ) -> None:
        self._owe_refusal(first, last, lane, action, delay_ms, error)
        self.flush_soon()

    def _owe_refusal(
        self,
        first: int,
        last: int,
        lane: str,
        action: Action,
        delay_ms: int,
        error: Exception,
    ) -> None:
        code, about = 0, ""
        if isinstance(error, MsgServiceError):
            code, about = error.refusal_code, error.about
        refusal = Refusal(action, str(error), code, about)
        self.answers.refuse(first, last, refusal, lane, delay_ms)

    # --- from the log (`commits.Source`)

    def stored(self, batch: Batch, outcome: Outcome) -> None:
        """See `commits.Source`. What is owed leaves with `flush`."""
        self._no_longer_waits(batch)
        first, last = batch.sequence, batch.sequence + batch.count - 1
        if outcome is batch:
            if self.watch is not None:
                self._out += self._tracker.routed(self.watch, batch)
            self.answers.take_over(min(batch.after + 1, first), last)
            self.accepted += batch.count
        elif isinstance(outcome, Known):
            if self.watch is not None:
                for piece in outcome.pieces:
                    self._out += self._tracker.routed(self.watch, piece)
            if outcome.refused:
                self._taken_in_part(batch, outcome)
            else:
                self.answers.take_over(first, last)
        else:
            assert isinstance(outcome, RefusedBatch)
            self._refused(batch, outcome.error)

    def _taken_in_part(self, batch: Batch, known: Known) -> None:
        """What was taken of a run before stays taken; the rest is refused for good."""
        for piece in known.pieces:
            self.answers.take_over(piece.first, piece.last)
        assert batch.refusal is not None
        for first, last in known.refused:
            if not self.answers.discards(batch.subject, first):
                self._owe_refusal(first, last, batch.subject, Action.REFUSED, 0, batch.refusal)

    def _refused(self, batch: Batch, error: Exception) -> None:
        first, last = batch.sequence, batch.sequence + batch.count - 1
        if self.answers.discards(batch.subject, first):
            return  # an earlier one of its lane was refused: the sender takes back from there
        if isinstance(error, ProtocolError):
            self._withdraw(lambda waiting: True)
            self._connection.fail(error)
        elif isinstance(error, LogFull | LimitReached):
            delay = int(error.delay * 1000) if isinstance(error, LogFull) else FULL_DELAY_MS
            self._owe_refusal(first, last, batch.subject, Action.LATER, delay, error)
            self._withdraw(lambda waiting: waiting.subject == batch.subject)
        else:
            self._owe_refusal(first, last, batch.subject, Action.REFUSED, 0, error)

    def failed(self, batches: list[Batch], error: LogUnavailable) -> None:
        """See `commits.Source`: nothing was stored, the sender keeps it and sends it again."""
        for batch in batches:
            self._no_longer_waits(batch)
        for batch in batches:
            self._refused(batch, LogFull(str(error)))

    def fault(self, failure: Failure) -> None:
        """See `commits.Source`: what was not acknowledged comes again on the next connection."""
        self._connection.fault(f"sender {self._name!r}", failure)

    def _withdraw(self, unwanted: Callable[[Batch], bool]) -> None:
        for batch in self._commits.withdraw(self, unwanted):
            self._no_longer_waits(batch)

    # --- to the sender

    def flush_soon(self) -> None:
        """Acknowledge at the end of this turn: one ACK for all that is owed."""
        if self._flush is None:
            self._flush = self._clock.callLater(0, self.flush)

    def flush(self) -> None:
        """Acknowledge now: ROUTED leaves before the ACK that covers it."""
        if self._flush is not None:
            if self._flush.active():
                self._flush.cancel()
            self._flush = None
        self._send_owed(self._connection.send_now)
        if not self.waiting:
            self._answered()

    def send_owed(self) -> None:
        """Queue owed acknowledgements before frames that may refer to them and leave now."""
        self._send_owed(self._connection.send_all)

    def _send_owed(self, send: Callable[[list[Frame]], None]) -> None:
        """Send owed acknowledgements.

        What no frame can hold ends this connection: the group that it is about is on disk, and
        what was not answered comes again.
        """
        frames, self._out = self._out, []
        frames += self.answers.take_frames()
        if frames and not self._connection.gone:
            try:
                send(frames)
            except FrameTooLarge as error:
                self._connection.fail(error)
        self._names_left()

    def stop(self) -> None:
        """The connection has gone: nothing is owed any more."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
