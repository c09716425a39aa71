"""What a `Connection` does by itself: its wires, the events of the core, timers, pauses.

The base of `faces.callbacks.connection.Connection`, which adds what the application says. It drives
`faces.callbacks.protocol.peer`, hands actions and requests to `callbacks.dispatch`, and files to
`callbacks.incoming` and `callbacks.outgoing`.

Invariants: events are handled in order, and none while a file is being put in its place; at most
one wire at a time; an answer goes to the connection that asked.
"""

import random
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import timed
from msgservice.errors import (
    Ambiguous,
    ClientClosed,
    LimitReached,
    MsgServiceError,
)
from msgservice.faces.callbacks.arrival import RunInThread
from msgservice.faces.callbacks.dispatch import Dispatcher, awaited
from msgservice.faces.callbacks.files import FileRoot
from msgservice.faces.callbacks.incoming import Incoming
from msgservice.faces.callbacks.outgoing import Outgoing
from msgservice.faces.callbacks.protocol.events import (
    ActionReceived,
    CallbackLimits,
    ErrorReceived,
    Event,
    Failed,
    FileAnswered,
    FileConfirmed,
    FileData,
    FileEnded,
    FileInterrupted,
    FilePushed,
    FileRequested,
    FileUnsent,
    Ignored,
    MessagesUnsent,
    OffsetAsked,
    OffsetOffered,
    PeerAnnounced,
    RequestLost,
    RequestReceived,
    RequestRefused,
    RequestTimedOut,
    ResponseReceived,
)
from msgservice.faces.callbacks.protocol.peer import IDS, CallbackPeer
from msgservice.faces.callbacks.protocol.sending import FilePiece
from msgservice.faces.callbacks.registry import DEFAULT, CallbackRegistry
from msgservice.faces.callbacks.stream import WRITE_BYTES_MAX, CallbackProtocol
from msgservice.waiters import Waiters

# With more than this to send, reading from the peer slows down: it asks faster than it reads.
SLOW_DOWN_BYTES = 1024 * 1024
# It does not stop: two peers that wait for each other to read would wait for ever.
SLOW_DOWN_SECONDS = 1.0
BULK_BYTES = 1024 * 1024


class Driver:
    """The driver of a callback core: wires, events, timers.

    The arguments are those of `Connection`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        registry: CallbackRegistry = DEFAULT,
        files: FileRoot | None = None,
        limits: CallbackLimits | None = None,
        resume_queue: bool = False,
        resend_requests: bool = True,
        announce: bool = True,
        allow_nan: bool = False,
        first_id: int | None = None,
        run_in_thread: RunInThread | None = None,
        on_connected: Callable[[Any], Any] | None = None,
        on_disconnected: Callable[[Any], Any] | None = None,
        on_file: Callable[[Any, str], Any] | None = None,
    ) -> None:
        self._reactor = timed(reactor)
        self.registry = registry
        self.limits = limits or CallbackLimits()
        self._core = CallbackPeer(
            byteorder=sys.byteorder,
            first_id=random.randrange(IDS) if first_id is None else first_id,
            resume_queue=resume_queue,
            resend_requests=resend_requests,
            announce=announce,
            allow_nan=allow_nan,
            limits=self.limits,
        )
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._on_file = on_file
        self._outgoing = Outgoing(
            core=self._core,
            root=files,
            run_in_thread=run_in_thread or self._defer_to_thread,
            changed=self.flush,
        )
        self._incoming = Incoming(
            core=self._core,
            root=files,
            run_in_thread=run_in_thread or self._defer_to_thread,
            changed=self.flush,
            received=lambda path: self._tell(self._on_file, path),
            full=self._disk_is_slow,
            later=self._reactor.callLater,
            settled=self._look_whether_settled,
        )
        self._dispatch = Dispatcher(self, self._core)
        self._settle_waiters: Waiters[None] = Waiters()
        self._wire: CallbackProtocol | None = None
        self._generation = 0  # of connections: an answer goes to the one that asked
        # An event waits while a file is being put in its place: what follows may be about it.
        self._events: deque[tuple[int, Event]] = deque()
        self._is_handling = False
        self._is_holding = False
        self._is_disk_slow = False
        self._slow_down: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._closed: Waiters[None] | None = None
        self._close_timer: IDelayedCall | None = None
        self._connect_waiters: Waiters[Any] = Waiters()
        self.peer_address: IAddress | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._wire is not None

    @property
    def generation(self) -> int:
        """Which of its connections it has now, counted from 1; 0: none."""
        return self._generation if self._wire is not None else 0

    def protocol(self) -> CallbackProtocol:
        """Return a protocol for the next connection of this object."""
        return CallbackProtocol(self)

    def abort(self) -> None:
        """End the connection that there is, at once; a client connects again."""
        if self._wire is not None:
            self._wire.abort()

    def _finish_if_drained(self) -> None:
        if self._closed is not None and self._wire is not None and self._core.is_drained:
            self._wire.finish()

    def _end(self) -> None:
        """The connection has ended: nothing will come, and nothing will be sent."""
        if self._close_timer is not None and self._close_timer.active():
            self._close_timer.cancel()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        error = ClientClosed("the connection was closed")
        self._incoming.close()
        self._outgoing.close(error)
        for pending in self._core.pending:
            self._core.forget(pending)
            self._dispatch.fail_request(pending.token, error)
        self._connect_waiters.fail(error)
        if self._closed is None:
            self._closed = Waiters()
        self._closed.fire(None)

    # --- from the wire

    def wire_opened(self, wire: CallbackProtocol) -> None:
        """A connection begins; an earlier one that is not known to be dead makes way."""
        if self._wire is not None:
            earlier = self._wire
            self.wire_lost(Failure(Ambiguous("replaced by a newer connection")))
            earlier.detach()
        self._wire = wire
        self._generation += 1
        self.peer_address = cast("Any", wire.transport).getPeer()
        self._take(self._core.connected(self._reactor.seconds()))
        self._tell(self._on_connected)
        self._connect_waiters.fire(self)
        self.flush()

    def wire_received(self, data: bytes) -> None:
        """Bytes came."""
        self._take(self._core.receive_data(data, self._reactor.seconds()))
        self.flush()
        if (
            self._core.queued_bytes > SLOW_DOWN_BYTES or self._dispatch.is_busy
        ) and self._slow_down is None:
            self._slow_down = self._reactor.callLater(SLOW_DOWN_SECONDS, self._speed_up)
            self._steer_reading()

    def wire_lost(self, reason: Failure) -> None:
        """The connection ended."""
        self._wire = None
        self._speed_up()
        self._incoming.disconnected()
        self._outgoing.disconnected()
        self._take(self._core.disconnected())
        self._rearm()
        self._tell(self._on_disconnected)
        if self._closed is not None:
            self._end()

    def wire_failed(self, reason: Failure) -> None:
        """The TLS handshake failed."""
        self._log.warn("no connection: {reason}", reason=reason.getErrorMessage())

    def wire_output(self) -> bytes:
        """Return what to send next."""
        # One message at a time if an interrupted one is to be told from one that was sent.
        messages_max = 1 if self._core.resume_queue else 1_000_000
        pieces = self._core.take_output(
            WRITE_BYTES_MAX, messages_max=messages_max, now=self._reactor.seconds()
        )
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            return pieces[0]
        data = [piece if isinstance(piece, bytes) else self._read(piece) for piece in pieces]
        # An empty file has a piece without bytes, its end comes next.
        return b"".join(data) or (self.wire_output() if pieces else b"")

    def _read(self, piece: FilePiece) -> bytes:
        try:
            return self._outgoing.read(piece)
        except (OSError, MsgServiceError) as error:
            if self._outgoing.give_up(piece.source, error):
                self.abort()  # the header promised more bytes than there are
            return b""

    def wire_sent(self, count: int) -> None:
        """Bytes were written: so many are out."""
        for source in self._core.sent(count):
            self._outgoing.sent(source)
        if self._core.queued_bytes <= SLOW_DOWN_BYTES // 2 and not self._dispatch.is_busy:
            self._speed_up()
        if self._closed is not None:
            self._finish_if_drained()

    # --- events

    def _take(self, events: list[Event]) -> None:
        """Handle events in order, after those that wait already."""
        for event in events:
            self._events.append((self._generation, event))
        if not self._is_handling:
            self._handle_waiting()

    def _handle_waiting(self) -> None:
        self._is_handling = True
        try:
            while self._events and not self._is_holding:
                generation, event = self._events.popleft()
                self._HANDLERS[type(event)](self, event, generation)
        finally:
            self._is_handling = False
        self._rearm()

    def _handle_file_requested(self, event: FileRequested, generation: int) -> None:
        if generation != self.generation:
            return
        try:
            self._outgoing.requested(event)
        except LimitReached as error:
            self._log.warn("dropping {peer}: {reason}", peer=self.peer_address, reason=str(error))
            self.abort()
        except OSError as error:
            self._dispatch.refuse_request(event, "file-refused", error.strerror or str(error))
        except (MsgServiceError, TypeError, ValueError) as error:
            self._dispatch.refuse_request(event, "file-refused", str(error))

    def _handle_file_pushed(self, event: FilePushed, generation: int) -> None:
        self._incoming.pushed(event)
        if self._wire is not None and event.size - event.offset > BULK_BYTES:
            self._wire.read_in_bulk(True)

    def _handle_file_answered(self, event: FileAnswered, generation: int) -> None:
        self._incoming.answered(event)
        if self._wire is not None and event.size - event.offset > BULK_BYTES:
            self._wire.read_in_bulk(True)

    def _handle_file_ended(self, event: FileEnded, generation: int) -> None:
        if self._wire is not None:
            self._wire.read_in_bulk(False)
        d = self._incoming.ended(event)
        if d is None or d.called:
            return
        self._is_holding = True
        self._steer_reading()
        d.addBoth(self._let_go)

    def _let_go(self, _: object) -> None:
        self._is_holding = False
        self._handle_waiting()
        self._steer_reading()
        self.flush()
        self._look_whether_settled()

    def when_settled(self) -> "Deferred[None]":
        """Return a Deferred that fires when no thread works on what an ended connection left.

        A request for a file that broke off is to be sent again with what is here of it.
        """
        d = self._settle_waiters.wait()
        self._look_whether_settled()
        return d

    def _look_whether_settled(self) -> None:
        if not self._is_holding and self._incoming.is_settled:
            self._settle_waiters.fire(None)

    def _handle_error(self, event: ErrorReceived, generation: int) -> None:
        if not self._outgoing.refused(event.about.get("transfer"), event.reason):
            self._log.warn(
                "{peer} says of {about}: {kind}: {reason}",
                peer=self.peer_address,
                about=str(event.about.get("action", event.about.get("filepath")))[:64],
                kind=event.kind[:64],
                reason=event.reason[:500],
            )

    def _handle_ignored(self, event: Ignored, generation: int) -> None:
        self._log.warn(
            "ignored from {peer}: {reason}: {subject}",
            peer=self.peer_address,
            reason=event.reason,
            subject=event.subject,
        )

    def _handle_messages_unsent(self, event: MessagesUnsent, generation: int) -> None:
        self._log.warn(
            "{count} messages were not sent before the connection to {peer} ended",
            count=event.count,
            peer=self.peer_address,
        )

    def _handle_failed(self, event: Failed, generation: int) -> None:
        if generation == self._generation:
            self._log.warn(
                "dropping {peer}: {reason}", peer=self.peer_address, reason=str(event.error)
            )
            self.abort()

    _HANDLERS: dict[type[Event], Callable[["Driver", Any, int], None]] = {
        ActionReceived: lambda self, event, generation: self._dispatch.action(event),
        RequestReceived: lambda self, event, generation: self._dispatch.request(event, generation),
        ResponseReceived: lambda self, event, generation: self._dispatch.response(event),
        RequestRefused: lambda self, event, generation: self._dispatch.refused(event),
        RequestTimedOut: lambda self, event, generation: self._dispatch.timed_out(event),
        RequestLost: lambda self, event, generation: self._dispatch.lost(event),
        FileRequested: _handle_file_requested,
        FileEnded: _handle_file_ended,
        FilePushed: _handle_file_pushed,
        FileAnswered: _handle_file_answered,
        FileData: lambda self, event, _: self._incoming.data(event),
        FileInterrupted: lambda self, event, _: self._incoming.interrupted(),
        FileConfirmed: lambda self, event, _: self._outgoing.confirmed(event.transfer),
        FileUnsent: lambda self, event, _: self._outgoing.unsent(event.source),
        OffsetAsked: lambda self, event, _: self._incoming.offset_asked(event),
        OffsetOffered: lambda self, event, _: self._outgoing.offset_offered(event),
        ErrorReceived: _handle_error,
        Ignored: _handle_ignored,
        MessagesUnsent: _handle_messages_unsent,
        PeerAnnounced: lambda self, event, _: None,
        Failed: _handle_failed,
    }

    # --- machinery

    def flush(self) -> None:
        """Send what there is; while events are handled, after them."""
        if self._wire is not None and not self._is_handling:
            self._wire.flush()
        self._rearm()

    def _speed_up(self) -> None:
        if self._slow_down is not None:
            if self._slow_down.active():
                self._slow_down.cancel()
            self._slow_down = None
            self._steer_reading()

    def _disk_is_slow(self, slow: bool) -> None:
        self._is_disk_slow = slow
        self._steer_reading()

    def _steer_reading(self) -> None:
        if self._wire is None:
            return
        if self._is_holding or self._is_disk_slow or self._slow_down is not None:
            self._wire.pause_reading()
        else:
            self._wire.resume_reading()

    def _rearm(self) -> None:
        deadline = self._core.next_deadline()
        if deadline is None:
            return  # a timer that is set may fire for nothing: cheaper than cancelling each time
        if self._timer is not None and self._timer.active():
            if self._timer.getTime() <= deadline:
                return
            self._timer.cancel()
        delay = max(0.0, deadline - self._reactor.seconds())
        self._timer = self._reactor.callLater(delay, self._time_passed)

    def _time_passed(self) -> None:
        self._take(self._core.receive_time(self._reactor.seconds()))
        self.flush()

    def _defer_to_thread(self, function: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        reactor = cast("Any", self._reactor)
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)

    def _tell(self, hook: Callable[..., Any] | None, *args: object) -> None:
        if hook is not None:
            d = maybeDeferred(awaited, hook, self, *args)
            d.addErrback(lambda f: self._log.failure("hook of a connection", f))
