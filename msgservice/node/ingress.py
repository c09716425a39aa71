"""What one connected sender hands in: checked, stored, acknowledged. The only place that ACKs.

A TRANSFER is decoded once, to check it, and then stored as the bytes that came. Everything that
can fail is checked before it is queued; the answer leaves after the commit that holds it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.connection import UNCOMMITTED, Connection
from msgservice.core.frames import Frame, Transfer
from msgservice.core.inbox import Answers
from msgservice.errors import (
    BadName,
    BadSubject,
    FrameTooLarge,
    LimitReached,
    LogFull,
    LogUnavailable,
    MalformedFrame,
    MessageTooLarge,
    NoReceiver,
    NotYetBuilt,
    ProtocolError,
    Refused,
    WindowExceeded,
)
from msgservice.limits import BATCH_INDEX_BITS
from msgservice.message import (
    FLAG_REPLAY,
    FLAG_REQUIRE,
    FLAG_RETAIN,
    FLAG_UNKNOWN_ELEMENT,
    FLAGS_KNOWN,
    Action,
    WireMessage,
    count_of,
    decode_known_messages,
)
from msgservice.node.shared import IngressShared
from msgservice.node.tracker import Watch
from msgservice.records import Audience, Batch, Known, Origin, Outcome, RefusedBatch

FULL_DELAY_MS = 1000  # how soon a refused sender asks again


def hash_of(incarnation: str) -> str:
    """Return what may be shown of an incarnation, which is a secret (SEMANTICS 5)."""
    return hashlib.sha256(incarnation.encode()).hexdigest()[:16]


class Ingress:
    """See the module. One for each connection."""

    _logger = Logger()

    def __init__(
        self,
        node: IngressShared,
        connection: Connection,
        name: str,
        incarnation: str,
        clock: Any,
        answered: Callable[[], None],
        said: int,
    ) -> None:
        self.answers = Answers(said)  # ranges that the node's RESUME has
        self.watch: Watch | None = None
        self.accepted = 0  # messages, on this connection
        self.waiting = 0  # batches taken in and not answered; their messages and bytes:
        self._waiting_messages = 0
        self._waiting_bytes = 0
        self._node = node
        self._connection = connection
        self._name = name
        self._incarnation = incarnation
        self._hash = hash_of(incarnation)
        self._clock = clock
        self._answered = answered  # called when everything taken in was answered
        self._out: list[Frame] = []
        self._flush: IDelayedCall | None = None

    # --- from the sender

    def received(self, transfer: Transfer) -> None:
        """Take a run in, or owe a NACK for it. Raises `MalformedFrame`, `WindowExceeded`."""
        limits = self._node.limits
        count = count_of(transfer.messages)
        if not 0 < count <= limits.batch_messages:  # before they are decoded, which takes long
            raise MalformedFrame(f"{count} messages in a run, 1 to {limits.batch_messages} allowed")
        messages, known = decode_known_messages(transfer.messages)
        raw = memoryview(transfer.messages)
        first, subject = transfer.sequence, transfer.subject
        last = first + count - 1
        if not self.answers.receive(transfer, last, subject):
            return  # its lane is being discarded
        if self.waiting:
            self._check_window(count, raw.nbytes)
        try:
            _check_origin(transfer, known)
            audience = self._audience(transfer, messages, raw.nbytes)
        except (Refused, BadSubject, BadName) as refused:
            self._refuse(first, last, subject, Action.REFUSED, 0, str(refused))
            return
        except LimitReached as limit:
            self._refuse(first, last, subject, Action.LATER, FULL_DELAY_MS, str(limit))
            return
        full = self._node.log_full() or self._node.dispatch.full(audience)
        if full is not None:
            self._refuse(first, last, subject, Action.LATER, FULL_DELAY_MS, full)
            return
        tagged = [m for m in messages if m.id is not None]
        batch = Batch(
            self._name,
            self._incarnation,
            first,
            count,
            subject,
            audience,
            transfer.messages,
            raw.nbytes,
            zlib.crc32(raw),
            first - 1 if transfer.after is None else transfer.after,
            transfer.flags,
            _ids(messages) if tagged else (),
            Origin(self._name, first, self._hash, (self._node.log_id,)),
            floor=transfer.floor,
            addressed=transfer.to is not None,
        )
        commits = self._node.commits
        self.waiting += 1
        self._waiting_messages += count
        self._waiting_bytes += batch.size
        commits.batch(batch, self)
        if commits.uncommitted_bytes > limits.uncommitted_bytes:
            self._node.connections.pause_senders()
            # Also one that receives, which others' messages do not pause.
            self._connection.pause(UNCOMMITTED)

    def _check_window(self, count: int, size: int) -> None:
        """More than HELLO's `window` may not be unanswered, but for a run that is alone.

        What is answered here may not have reached the sender: it counts at least what this does.
        """
        limits = self._node.limits
        messages, size = self._waiting_messages + count, self._waiting_bytes + size
        if messages > limits.window_messages:
            raise WindowExceeded("messages", messages, limits.window_messages)
        if size > limits.window_bytes:
            raise WindowExceeded("bytes", size, limits.window_bytes)

    def _no_longer_waits(self, batch: Batch) -> None:
        self.waiting -= 1
        self._waiting_messages -= batch.count
        self._waiting_bytes -= batch.size

    def _audience(self, transfer: Transfer, messages: Sequence[WireMessage], size: int) -> Audience:
        subject = transfer.subject
        self._node.directory.check(subject)
        if size > self._node.limits.max_batch:
            raise MessageTooLarge(size, self._node.limits.max_batch)
        if transfer.ttl is not None:
            raise NotYetBuilt("ttl")
        if transfer.delay is not None:
            raise NotYetBuilt("delay")
        if transfer.flags & FLAG_RETAIN:
            raise NotYetBuilt("retain")
        if any([m.key is not None for m in messages]):  # noqa: C419 - a list is faster here
            raise NotYetBuilt("idempotency_key")
        directory = self._node.directory
        if transfer.to is not None:
            if len(transfer.to) > self._node.limits.receivers:
                raise Refused(
                    f"'to' has {len(transfer.to)} names, receivers = {self._node.limits.receivers}"
                    " allowed"
                )
            return directory.audience_of(transfer.to, self._name)
        audience = directory.audience(subject)
        if transfer.flags & FLAG_REQUIRE and not audience.members:
            raise NoReceiver(subject)
        return audience

    def _refuse(
        self, first: int, last: int, lane: str, action: Action, delay_ms: int, reason: str
    ) -> None:
        self.answers.refuse(first, last, action, lane, delay_ms, reason)
        self.flush_soon()

    # --- from the log (`commits.Source`)

    def stored(self, batch: Batch, outcome: Outcome) -> None:
        """See `commits.Source`. What is owed leaves with `flush`."""
        self._no_longer_waits(batch)
        first, last = batch.sequence, batch.sequence + batch.count - 1
        if outcome is batch:
            if self.watch is not None:
                self._out += self._node.tracker.routed(self.watch, batch)
            self.answers.take_over(min(batch.after + 1, first), last)
            self.accepted += batch.count
        elif isinstance(outcome, Known):
            if self.watch is not None:
                for piece in outcome.pieces:
                    self._out += self._node.tracker.routed(self.watch, piece)
            self.answers.take_over(first, last)
        else:
            assert isinstance(outcome, RefusedBatch)
            self._refused(batch, outcome.error)

    def _refused(self, batch: Batch, error: Exception) -> None:
        first, last = batch.sequence, batch.sequence + batch.count - 1
        if self.answers.discards(batch.subject, first):
            return  # an earlier one of its lane was refused: the sender takes back from there
        if isinstance(error, ProtocolError):
            self._withdraw(lambda waiting: True)
            self._connection.fail(error)
        elif isinstance(error, LogFull | LimitReached):
            delay = int(error.delay * 1000) if isinstance(error, LogFull) else FULL_DELAY_MS
            self.answers.refuse(first, last, Action.LATER, batch.subject, delay, str(error))
            self._withdraw(lambda waiting: waiting.subject == batch.subject)
        else:
            self.answers.refuse(first, last, Action.REFUSED, batch.subject, 0, str(error))

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
        for batch in self._node.commits.withdraw(self, unwanted):
            self._no_longer_waits(batch)

    # --- to the sender

    def flush_soon(self) -> None:
        """Send what is owed when this turn is over: one ACK for all of it."""
        if self._flush is None:
            self._flush = self._clock.callLater(0, self.flush)

    def flush(self) -> None:
        """Send what is owed now: ROUTED before the ACK that covers it."""
        if self._flush is not None:
            if self._flush.active():
                self._flush.cancel()
            self._flush = None
        self._send_owed(self._connection.send_now)
        if not self.waiting:
            self._answered()

    def send_owed(self) -> None:
        """Queue what is owed before anything that may refer to it, and that leaves now."""
        self._send_owed(self._connection.send_all)

    def _send_owed(self, send: Callable[[list[Frame]], None]) -> None:
        """Send what is owed.

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

    def stop(self) -> None:
        """The connection has gone: nothing is owed any more."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None


def _check_origin(transfer: Transfer, known: bool) -> None:
    """Raise `Refused` for what only a node may say, and for what this node does not know.

    No connection is a node's in this version. A forged origin would put a run into another
    sender's lane, and make a receiver that knows messages by their identity drop the real one.
    What is not known is not stored either: it could ask for something that would not be done.
    """
    if transfer.origin is not None:
        raise Refused("'origin' is taken from nodes only")
    flags = transfer.flags
    if flags & FLAG_REPLAY:
        raise Refused("the flag 'replay' (2) is taken from nodes only")
    if flags & FLAG_UNKNOWN_ELEMENT:
        raise Refused("a TRANSFER with more elements than this node knows")
    if flags & ~FLAGS_KNOWN:
        raise Refused(f"flags {flags & ~FLAGS_KNOWN} are not known to this node")
    if not known:
        raise Refused("a message with more elements than this node knows")


def _ids(messages: Sequence[WireMessage]) -> tuple[tuple[int, str], ...]:
    limit = 1 << BATCH_INDEX_BITS
    assert len(messages) <= limit
    return tuple((i, m.id) for i, m in enumerate(messages) if m.id is not None)
