"""Frames over a byte stream: one connection, TCP, TLS or Unix socket, either end.

    transport -> dataReceived -> core.framing -> IChannelUser.frames_received, all of one delivery
    IChannel.send -> queue -> end of the turn -> one writeSequence -> transport

Writes of one reactor turn leave together: at the end of the delivery that caused them, else in a
`callLater(0)` that all channels of a factory share; or with the next `send_now`. With TLS, what one
read of the socket brought is one delivery as well (`tcp.records`). The transport
gets at most `PIECE_BYTES` more than it asked for, the rest waits here, so that a reader's pace can
be watched: the channel fails when the peer reads nothing for `limits.write_timeout`, or leaves a
frame unfinished for `limits.frame_timeout`.

    state       what it means                                   goes on with
    OPENING     TLS is still shaking hands; no user yet         done -> OPEN
    OPEN        frames travel                                   close() -> CLOSING
    CLOSING     what is queued leaves, nothing is received      all is written -> LINGERING
    LINGERING   the peer may read it, then closes               lost -> LOST
    ABORTED     nothing leaves, nothing is received             lost -> LOST
    LOST        the user knows

All but LOST go to ABORTED by abort(), or when they take too long.

The wire is that of Twisted's `Int32StringReceiver`, which this is, but for what it does with the
bytes: the original copies all that it holds for each delivery, so a large frame that arrives in
pieces costs the square of its size; it goes on buffering behind a frame that is too long; and it
does not check what is sent.

Who is dialled or listened to is the business of `transport.dialling` and
`transport.tcp.listening`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.clock import monotonic_of
from msgservice.core.framing import PREFIX_BYTES, FrameSplitter, pack_prefix
from msgservice.credentials import NOBODY
from msgservice.errors import DeadlinePassed, FrameTooLarge, ProtocolError
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.transport.addresses import describe
from msgservice.transport.owners import ChannelOwner
from msgservice.transport.tcp.pacing import PROGRESS_BYTES, Progress, Turn
from msgservice.transport.tcp.records import decrypted, read_ahead
from msgservice.transport.tcp.shown import credentials_of
from msgservice.transport.tcp.sockets import (
    ended_by_certificate,
    reason_of,
    shorten,
    tune,
    unwritten,
    writer_of,
)

# Handed to the transport at once. Its own mark is 64 KiB, so it asks for more as soon as the
# kernel has taken one of these; smaller ones cost more turns, larger ones make progress coarser.
PIECE_BYTES = 256 * 1024
# Queued here beyond what the transport holds; the user is told to stop above it.
QUEUE_BYTES = 256 * 1024


class ChannelState(enum.Enum):
    """The state of a channel, from opening to lost (table of the module)."""

    OPENING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    LINGERING = enum.auto()
    ABORTED = enum.auto()
    LOST = enum.auto()


_OPEN = ChannelState.OPEN  # asked for each read and write: the name of an enum is looked up slowly


@implementer(IPushProducer)
class _Gate:
    """The producer registered with the transport, which calls it as its buffer fills and empties.

    Not the protocol itself: there, `pauseProducing` means what is read.
    """

    def __init__(self, channel: FrameProtocol) -> None:
        self._channel = channel

    def pauseProducing(self) -> None:
        self._channel.transport_full()

    def resumeProducing(self) -> None:
        self._channel.transport_drained()

    def stopProducing(self) -> None:
        """`connectionLost` follows."""


@implementer(IChannel, IHandshakeListener)
class FrameProtocol(Int32StringReceiver):
    """The channel of one connection. `make_user` is called once it stands, TLS included.

    `is_dialled`: this end has dialled, so that with TLS the other one is the server.
    """

    _logger = Logger()

    transport: Any
    peer_address = "unknown"
    credentials = NOBODY
    is_by_certificate = False  # it ended so: see `refusals`

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        owner: ChannelOwner,
        turn: Turn,
        is_dialled: bool = False,
    ) -> None:
        self.MAX_LENGTH = limits.frame_bytes
        # Until it is known who the peer is, `length_limit` is less.
        self._splitter = FrameSplitter(min(limits.frame_bytes, limits.unauthenticated_bytes))
        self.state = ChannelState.OPENING
        self.heard_at = 0.0
        self._reactor = reactor
        self._now = monotonic_of(reactor)
        self._make_user = make_user
        self._user: IChannelUser | None = None
        self._limits = limits
        self._owner = owner
        self._turn = turn
        self._is_dialled = is_dialled
        self._in_turn = False  # the queue is looked at when the call that runs now is done
        self._scheduled = False  # … or when this reactor turn is
        self._known = False
        self._error: ProtocolError | None = None
        self._is_tls = False
        self._broken: Failure | None = None  # why TLS will end, if it is known
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes
        self._offset = 0  # of the first in the queue, what is written already
        self._full = False
        self._drained_count = 0
        self._told_writable = True
        self._write: Callable[[Iterable[bytes]], None]  # of the transport, once there is one
        self._progress = Progress(limits, "frame")
        self._watching: IDelayedCall | None = None
        self._deadline: IDelayedCall | None = None  # of the handshake, then of closing

    # --- IChannel

    @property
    def refusal(self) -> str | None:
        """Why the connection ended, where that does not pass by itself (`IChannelUser`)."""
        return getattr(self._user, "refusal", None)

    @property
    def has_opened(self) -> bool:
        """Whether frames ever travelled: TLS, if any, let the peer in."""
        return self._user is not None

    @property
    def unsent(self) -> int:
        """See `IChannel`; without what the transport holds, which asks for more when it is out."""
        return self._queued

    def send(self, frame: bytes) -> None:
        """See `IChannel`; dropped once the channel is closed."""
        size = len(frame)
        if size > self.MAX_LENGTH:
            raise FrameTooLarge(size, self.MAX_LENGTH)
        if self.state is _OPEN:
            self._queue += (pack_prefix(size), frame)
            self._queued += size + PREFIX_BYTES
        if not self._in_turn and not self._scheduled:
            self._schedule()

    def send_now(self, frames: Sequence[bytes]) -> None:
        """See `IChannel`; dropped once the channel is closed."""
        size_max, is_open = self.MAX_LENGTH, self.state is _OPEN
        if is_open and self._told_writable and not (self._queue or self._full or self._in_turn):
            pieces: list[bytes] = []
            room = PIECE_BYTES
            for frame in frames:
                size = len(frame)
                room -= size + PREFIX_BYTES
                if size > size_max or room < 0:
                    break
                pieces += (pack_prefix(size), frame)
            else:  # nothing waits, and they leave at once: as most
                self._in_turn = True
                try:
                    self._write(pieces)
                finally:
                    self._in_turn = False
                if self._full:
                    self._end_turn()
                return
        try:
            for frame in frames:
                size = len(frame)
                if size > size_max:
                    raise FrameTooLarge(size, size_max)
                if is_open:
                    self._queue += (pack_prefix(size), frame)
                    self._queued += size + PREFIX_BYTES
        finally:
            if not self._in_turn:
                self._end_turn()

    def push(self) -> None:
        """See `IChannel`."""
        if self._in_turn:
            while self._queue and not self._full:
                self._write_piece()
        else:
            self._end_turn()

    def identified(self) -> None:
        """See `IChannel`."""
        self._owner.channel_identified(self)

    def established(self) -> None:
        """See `IChannel`."""
        if not self._known:
            self._known = True
            self._splitter.limit = self.length_limit
            self._owner.channel_established(self)

    def pause(self) -> None:
        """See `IChannel`. What is decrypted already may still come."""
        if self.state is ChannelState.OPEN:
            self.pauseProducing()

    def resume(self) -> None:
        """See `IChannel`."""
        if self.state is ChannelState.OPEN:
            self.resumeProducing()
            self._watch()

    def close(self) -> None:
        """See `IChannel`; aborted after `limits.close_timeout`."""
        if self.state is ChannelState.OPENING:
            self.abort()
        elif self.state is ChannelState.OPEN:
            self.state = ChannelState.CLOSING
            self._stop_watching()
            self._deadline = self._reactor.callLater(self._limits.close_timeout, self._too_slow)
            self._schedule()

    def abort(self) -> None:
        """See `IChannel`."""
        if self.state in (ChannelState.ABORTED, ChannelState.LOST):
            return
        self.state = ChannelState.ABORTED
        self._stop_watching()
        self._stop_deadline()
        self._queue.clear()
        self._queued = 0
        self.transport.abortConnection()

    # --- Twisted's

    def connectionMade(self) -> None:  # noqa: D102
        self._is_tls = tls = isinstance(self.transport, TLSMemoryBIOProtocol)
        address = self.transport.getPeer()
        self.peer_address = describe(address, "tls" if tls else "tcp")
        self._write = writer_of(self.transport)
        shorten(self.transport, self)
        tune(self.transport, self._limits)
        if tls:
            self._deadline = self._reactor.callLater(self._limits.hello_timeout, self._too_slow)
        else:
            self._open()

    def handshakeCompleted(self) -> None:  # noqa: D102
        # Called even where the peer's certificate was just refused; and again at renegotiations.
        if self.state is ChannelState.OPENING and not self.transport.disconnecting:
            self._stop_deadline()
            self._open()

    @property
    def length_limit(self) -> int:
        """The size of a frame that may be received now, in bytes."""
        if self._known:
            return self.MAX_LENGTH
        return min(self.MAX_LENGTH, self._limits.unauthenticated_bytes)

    def dataReceived(self, data: bytes) -> None:  # noqa: D102
        if self.state is _OPEN and self._error is None:
            self.heard_at = self._now()
            if self._is_tls:
                data, self._broken = decrypted(self.transport, data)
                if self._known:
                    read_ahead(self.transport, len(data))
            splitter = self._splitter
            try:
                frames = splitter.feed(data)
            except FrameTooLarge as error:
                self._too_large(error)
            else:
                if frames:
                    assert self._user is not None
                    self._call(self._user.frames_received, frames)
            if splitter.held and self._watching is None:
                self._watch()

    def _received(self, frames: list[bytes]) -> None:
        if frames:
            assert self._user is not None
            self._call(self._user.frames_received, frames)

    def _too_large(self, error: FrameTooLarge) -> None:
        """Pass on what came before that frame, which may have raised the limit for it."""
        splitter = self._splitter
        self._received(splitter.take_complete())
        while error.size <= self.length_limit:
            splitter.limit = self.length_limit
            try:
                self._received(splitter.go_on())
            except FrameTooLarge as again:
                error = again
                self._received(splitter.take_complete())
            else:
                return
        self._fail(FrameTooLarge(error.size, self.length_limit))

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: D102
        if self.state is ChannelState.LOST:
            return
        self.state = ChannelState.LOST
        self._stop_watching()
        self._stop_deadline()
        self._queue.clear()
        self._queued = 0
        ended = self._broken or reason
        text = str(self._error) if self._error is not None else reason_of(ended, self.transport)
        is_mute = not (self._splitter.completed or self._splitter.partial or self._error)
        if is_mute and self._is_dialled and not self._is_tls and ended.check(ConnectionDone):
            # A node would have said why, but OpenSSL has no word for who speaks no TLS.
            text += ", without a word: it may want tls: in its address, or be no node"
        self.is_by_certificate = self._error is None and ended_by_certificate(ended, self.transport)
        if self._user is not None:
            self._call(self._user.channel_lost, text)
        self._owner.channel_gone(self, text)

    # --- the transport's buffer

    def transport_full(self) -> None:
        """The transport holds more than it wants; may be called from inside our own write."""
        self._full = True
        if not self._in_turn:
            self._end_turn()

    def transport_drained(self) -> None:
        """The kernel has taken all that the transport held."""
        self._full = False
        self._drained_count += 1
        if not self._in_turn:
            self._end_turn()

    def flush(self) -> None:
        """Write the frames that were queued in this turn."""
        self._scheduled = False
        if not self._in_turn:
            self._end_turn()

    # --- inside

    def _schedule(self) -> None:
        if not self._in_turn and not self._scheduled:
            self._scheduled = True
            self._turn.add(self)

    def _open(self) -> None:
        self.credentials = credentials_of(self.transport, is_dialled=self._is_dialled)
        self.state = ChannelState.OPEN
        self.transport.registerProducer(_Gate(self), True)
        try:
            self._user = self._make_user()
        except Exception:
            self._logger.failure("no user for the connection with {peer}", peer=self.peer_address)
            self.abort()
            return
        self._call(self._user.channel_opened, self)

    def _call(self, function: Callable[[Any], None], argument: Any) -> None:
        """Call the user, then write what it sent; its faults end this connection only."""
        outermost, self._in_turn = not self._in_turn, True
        try:
            function(argument)
        except Exception:
            self._logger.failure("connection with {peer} failed", peer=self.peer_address)
            self.abort()
        finally:
            if outermost:
                self._in_turn = False
        if outermost and (self._queue or self._full or self.state is not _OPEN):
            self._end_turn()

    def _end_turn(self) -> None:
        self._in_turn = True
        try:
            while self._queue and not self._full:
                if self._queued > PIECE_BYTES or self._offset:
                    self._write_piece()
                    continue
                pieces, self._queue = self._queue, deque()
                self._queued = 0
                self._write(pieces)
            writable = self._queued <= (0 if not self._told_writable else QUEUE_BYTES)
        finally:
            self._in_turn = False
        if self.state is _OPEN:
            if self._full and self._watching is None:
                self._watch()
            if writable is not self._told_writable:
                self._told_writable = writable
                assert self._user is not None
                self._call(self._user.channel_writable, writable)
        elif self.state is ChannelState.CLOSING and not self._queue:
            self._finish()

    def _write_piece(self) -> None:
        room = PIECE_BYTES
        cut: list[bytes] = []
        while self._queue and room:
            first = self._queue[0]
            rest = len(first) - self._offset
            if rest > room:
                cut.append(first[self._offset : self._offset + room])
                self._offset += room
                rest = room
            else:
                cut.append(first[self._offset :] if self._offset else first)
                self._offset = 0
                self._queue.popleft()
            room -= rest
            self._queued -= rest
        self._write(cut)

    def _finish(self) -> None:
        """Close, now that everything is with the transport. The deadline still runs."""
        self.state = ChannelState.LINGERING
        transport = self.transport
        # A transport with a producer does not close (`loseConnection` waits for it). Nor does one
        # that is paused: it would not see that the peer closes, and with TLS not hear that it does.
        transport.unregisterProducer()
        self.paused = False
        transport.resumeProducing()
        if isinstance(transport, FileDescriptor):
            # Half-close and go on reading: closing a socket that holds unread bytes resets the
            # connection, and the peer would lose what it has not read yet of our last frames.
            transport.loseWriteConnection()
        else:
            transport.loseConnection()

    def _fail(self, error: ProtocolError, *, abort: bool = False) -> None:
        if self._error is not None or self.state is not ChannelState.OPEN:
            return
        self._error = error
        assert self._user is not None
        self._call(self._user.channel_failed, error)
        if abort:
            self.abort()
        else:
            self.close()

    def _watch(self) -> None:
        """Look whether the peer makes progress, and again in a while if there is need."""
        self._stop_watching()
        if self.state is not ChannelState.OPEN:
            return
        now = self._now()
        splitter = self._splitter
        half = None
        if splitter.partial and not self.paused:
            half = (splitter.completed, splitter.partial // PROGRESS_BYTES)
        unread = (self._drained_count, unwritten(self.transport)) if self._full else None
        if (ended := self._progress.ended(half, unread, now)) is not None:
            error, abort = ended
            self._fail(error, abort=abort)
        elif half is not None or unread is not None:
            self._watching = self._reactor.callLater(self._progress.interval, self._look_again)

    def _look_again(self) -> None:
        self._watching = None
        self._watch()

    def _too_slow(self) -> None:
        self._deadline = None
        if self.state is ChannelState.OPENING:
            self._error = DeadlinePassed("TLS handshake", self._limits.hello_timeout)
        self.abort()

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
