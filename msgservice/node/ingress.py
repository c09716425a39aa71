"""The messages that one connected sender hands in: checked, stored, and acknowledged here alone.

A TRANSFER is decoded once, to check it, and then stored as the bytes that came. Everything that
can fail is checked before it is queued (`intake`); the answer leaves after the commit that holds
it.

Whom messages are for may take far more bytes to say than they have themselves: of a group, no more
names are said at once than `answer_bytes` allows, and none while the sender does not read. What is
stored and not told so far waits, without its messages, and counts as unanswered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.connection import UNCOMMITTED, Connection
from msgservice.core.frames import Frame, Transfer
from msgservice.core.inbox import Answers
from msgservice.core.lanes import lane_of
from msgservice.core.refusal import Refusal
from msgservice.errors import (
    FrameTooLarge,
    LimitReached,
    LogFull,
    LogUnavailable,
    MsgServiceError,
    ProtocolError,
    WindowExceeded,
)
from msgservice.limits import NAME_BYTES_MAX, Limits
from msgservice.message import Action
from msgservice.node.intake import FULL_DELAY_MS, Intake, Sender, refusal_for
from msgservice.node.rights import Rights
from msgservice.node.status_frames import StatusFrames
from msgservice.records import NOBODY, Audience, Batch, Known, Origin, Outcome, Piece, RefusedBatch


@dataclass(slots=True)
class Untold:
    """A run that is stored, and what is still to be said of it before its ACK.

    `begin`: from where on the ACK is. `pieces`: that no ROUTED has told, rising. `refused`, with
    `refusal`: what is not taken of it.
    """

    begin: int
    last: int
    count: int
    size: int
    lane: Hashable
    pieces: Sequence[Piece]
    refused: Sequence[tuple[int, int]] = ()
    refusal: MsgServiceError | None = None
    taken: Sequence[Piece] = ()  # where not all of it is


class Ingress:
    """The ingress of one connection: TRANSFERs are checked, stored, acknowledged.

    `said`: how many ranges the node's RESUME has. `answered` is called when everything that was
    taken in was answered; `by_key` when a message was taken by its idempotency key.
    """

    _logger = Logger()

    def __init__(
        self,
        connection: Connection,
        sender: Sender,
        *,
        rights: Rights,
        intake: Intake,
        clock: IReactorTime,
        limits: Limits,
        said: int,
        answered: Callable[[], None],
        by_key: Callable[[Piece], None],
    ) -> None:
        self.answers = Answers(said, limits.window_messages)
        self.status_frames: StatusFrames | None = None  # None: the sender wants to know no states
        self.accepted = 0  # messages, on this connection
        self.waiting = 0  # batches taken in and not answered; their messages and bytes:
        self._waiting_messages = 0
        self._waiting_bytes = 0
        self._naming: dict[int, int] = {}  # audiences to be told with what waits: bytes, at most
        self._naming_bytes = 0
        self._untold: deque[Untold] = deque()
        self._is_contradicted = False  # a run came again with other content: nothing more is taken
        self._named_bytes = 0  # of names, at most, that leave with the next flush
        self._intake = intake
        self._connection = connection
        self._sender = sender
        self._rights = rights
        self._clock = clock
        self._limits = limits
        self._answered = answered
        self._by_key = by_key
        self._out: list[Frame] = []
        self._flush: IDelayedCall | None = None

    # --- from the sender

    def received(self, transfer: Transfer) -> None:
        """Take a run in, or owe a NACK for it. Raises `MalformedFrame`, `WindowExceeded`."""
        intake = self._intake
        messages, known = intake.decode(transfer)
        count = len(messages)
        raw = memoryview(transfer.messages)
        first = transfer.sequence
        lane: Hashable = transfer.subject
        if self._sender.node_log:
            lane = self._lane(transfer.origin, transfer.subject)
        last = first + count - 1
        if not self.answers.receive(transfer, last, lane):
            return  # its lane is being discarded
        if self.waiting:
            self._check_window(count, raw.nbytes)
        batch = intake.check(self._rights, self._sender, transfer, messages, raw, known=known)
        if isinstance(batch, Refusal):
            delay = FULL_DELAY_MS if batch.action == Action.LATER else 0
            self.answers.refuse(first, last, batch, lane, delay)
            self.flush_soon()
            return
        self.waiting += 1
        self._waiting_messages += count
        self._waiting_bytes += batch.size
        if self.status_frames is not None:
            self._owe_names(batch.audience)
        if not intake.put(batch, self):
            # Also one that receives, which others' messages do not pause.
            self._connection.pause(UNCOMMITTED)

    def _lane(self, origin: Origin | None, subject: str) -> Hashable:
        """Return the lane of a run, as its sender has it: a producer has no other's."""
        return lane_of(origin, "", subject) if self._sender.node_log else subject

    @property
    def sender(self) -> tuple[str, str]:
        """The name and the incarnation of the sender."""
        return self._sender.name, self._sender.incarnation

    @property
    def has_room(self) -> bool:
        """Whether what is owed with the runs that wait allows another one (`answer_bytes`)."""
        return not self._untold and self._naming_bytes <= self._limits.answer_bytes

    def _owe_names(self, audience: Audience) -> None:
        frames, number = self.status_frames, audience.number
        if frames is not None and number not in frames.named and number not in self._naming:
            self._naming[number] = size = len(audience.members) * NAME_BYTES_MAX
            self._naming_bytes += size

    def _names_left(self) -> None:
        """The names that were told are in the channel now, which counts them."""
        frames = self.status_frames
        told = frames.named if frames is not None and self.waiting else self._naming
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

    def _no_longer_waits(self, count: int, size: int) -> None:
        self.waiting -= 1
        self._waiting_messages -= count
        self._waiting_bytes -= size

    def _owe_refusal(
        self,
        first: int,
        last: int,
        lane: Hashable,
        delay_ms: int,
        error: Exception,
    ) -> None:
        self.answers.refuse(first, last, refusal_for(error), lane, delay_ms)

    # --- from the log (`commits.Source`)

    def stored(self, batch: Batch, outcome: Outcome) -> None:
        """See `commits.Source`. What is owed leaves with `flush`."""
        count, size = batch.count, batch.size
        first, last = batch.sequence, batch.sequence + count - 1
        frames = self.status_frames
        if outcome is batch:
            self.accepted += count
            begin = min(batch.after + 1, first)
            if frames is not None:
                audience = NOBODY if batch.due_at else batch.audience
                if audience.number not in frames.named and not self._names(audience):
                    piece = Piece(first, last, audience, batch.first, batch.due_at)
                    lane = self._lane(batch.origin, batch.subject)
                    self._untold.append(Untold(begin, last, count, size, lane, (piece,)))
                    return
                self._out += frames.routed(batch)
            self._no_longer_waits(count, size)
            self.answers.take_over(begin, last)
        elif isinstance(outcome, Known):
            pieces = () if frames is None else outcome.pieces
            if outcome.by_key and not (outcome.pieces[0].position or outcome.pieces[0].due):
                pieces = ()  # it has gone, or was cancelled: the log says what became of it
            lane = self._lane(batch.origin, batch.subject)
            run = Untold(first, last, count, size, lane, pieces)
            if outcome.refused:
                assert batch.refusal is not None
                run.refused, run.refusal, run.taken = outcome.refused, batch.refusal, outcome.pieces
            if not self._tell(run):
                self._untold.append(run)
            if outcome.by_key and frames is not None:
                self._by_key(outcome.pieces[0])
        else:
            assert isinstance(outcome, RefusedBatch)
            self._no_longer_waits(count, size)
            self._refused(batch, outcome.error)

    def _names(self, audience: Audience) -> bool:
        """Whether the names of an audience, which were not told, may leave now: then they count."""
        if self._connection.is_gone:
            return True  # nobody hears it, and it is not owed for ever
        if self._named_bytes > self._limits.answer_bytes or not self._connection.is_writable:
            return False
        self._named_bytes += len(audience.members) * NAME_BYTES_MAX
        return True

    def _tell(self, run: Untold) -> bool:
        """Owe what a stored run is answered with; False, with its pieces left, where that waits.

        What was taken of it before stays taken; the rest of it is refused for good.
        """
        frames = self.status_frames
        for number, piece in enumerate(run.pieces):
            assert frames is not None
            audience = piece.audience
            if audience.number not in frames.named and not self._names(audience):
                run.pieces = run.pieces[number:]
                return False
            self._out += frames.routed(piece)
        self._no_longer_waits(run.count, run.size)
        if run.refusal is None:
            self.answers.take_over(run.begin, run.last)
            return True
        for piece in run.taken:
            self.answers.take_over(piece.first, piece.last)
        for first, last in run.refused:
            if not self.answers.discards(run.lane, first):
                self._owe_refusal(first, last, run.lane, 0, run.refusal)
        return True

    def writable(self) -> None:
        """The sender reads again: what waited for that is told."""
        if self._untold:
            self.flush()

    def _refused(self, batch: Batch, error: Exception) -> None:
        first, last = batch.sequence, batch.sequence + batch.count - 1
        lane = self._lane(batch.origin, batch.subject)
        if self.answers.discards(lane, first):
            return  # an earlier one of its lane was refused: the sender takes back from there
        if isinstance(error, ProtocolError):
            self._is_contradicted = True
            self._connection.fail(error)
        elif isinstance(error, LogFull | LimitReached):
            delay = int(error.delay * 1000) if isinstance(error, LogFull) else FULL_DELAY_MS
            self._owe_refusal(first, last, lane, delay, error)
        else:
            self._owe_refusal(first, last, lane, 0, error)

    def failed(self, batches: list[Batch], error: LogUnavailable) -> None:
        """See `commits.Source`: nothing was stored, the sender keeps it and sends it again."""
        for batch in batches:
            self._no_longer_waits(batch.count, batch.size)
        for batch in batches:
            self._refused(batch, LogFull(str(error)))

    def withdraw(self, batch: Batch) -> bool:
        """See `commits.Source`: the sender takes back what is behind the refused run of a lane."""
        lane = self._lane(batch.origin, batch.subject)
        if not (self._is_contradicted or self.answers.discards(lane, batch.sequence)):
            return False
        self._no_longer_waits(batch.count, batch.size)
        return True

    def fault(self, failure: Failure) -> None:
        """See `commits.Source`: what was not acknowledged comes again on the next connection."""
        self._connection.fault(f"sender {self._sender.name!r}", failure)

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
        if self._untold:
            self._tell_more()
        self._send_owed(self._connection.send_now)
        if self._untold and self._connection.is_writable:
            self.flush_soon()  # what leaves in one turn is bounded, however much room there is
        if not self.waiting:
            self._answered()

    @property
    def owes(self) -> bool:
        """Whether an acknowledgement is owed that could leave now."""
        return bool(self._out or self.answers.owes)

    def send_owed(self) -> None:
        """Queue owed acknowledgements before frames that may refer to them and leave now."""
        self._send_owed(self._connection.send_all)

    def _tell_more(self) -> None:
        untold = self._untold
        while untold and self._tell(untold[0]):
            untold.popleft()
            if not untold:
                self._connection.go_on_soon()

    def _send_owed(self, send: Callable[[list[Frame]], None]) -> None:
        """Send owed acknowledgements.

        What no frame can hold ends this connection: the group that it is about is on disk, and
        what was not answered comes again.
        """
        frames, self._out = self._out, []
        self._named_bytes = 0
        frames += self.answers.take_frames()
        if frames and not self._connection.is_gone:
            try:
                send(frames)
            except FrameTooLarge as error:
                self._connection.fail(error)
        if self._naming:
            self._names_left()

    def stop(self) -> None:
        """The connection has gone: nothing is owed any more."""
        for run in self._untold:
            self._no_longer_waits(run.count, run.size)
        self._untold.clear()
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
