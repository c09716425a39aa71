"""The driver under a `Connection`: its wires, the events of the core, timers, pauses.

It drives `faces.callbacks.protocol.peer`, hands actions and requests to `callbacks.dispatch`, and
files to `callbacks.incoming` and `callbacks.outgoing`. What the application says, who of it waits
and what it is told is with `faces.callbacks.connection`.

Invariants: events are handled in order, and none while a file is being put in its place; at most
one wire at a time; an answer goes to the connection that asked.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.errors import Ambiguous, LimitReached, MsgServiceError
from msgservice.faces.callbacks.arrival import RunInThread
from msgservice.faces.callbacks.dispatch import Dispatcher
from msgservice.faces.callbacks.files import FileRoot
from msgservice.faces.callbacks.incoming import Incoming
from msgservice.faces.callbacks.outgoing import Outgoing
from msgservice.faces.callbacks.protocol import events
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.protocol.sending import FilePiece
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.stream import WRITE_BYTES_MAX, CallbackProtocol
from msgservice.waiters import Waiters

# With more than this to send, reading from the peer slows down: it asks faster than it reads.
SLOW_DOWN_BYTES = 1024 * 1024
# It does not stop: two peers that wait for each other to read would wait for ever.
SLOW_DOWN_SECONDS = 1.0
BULK_BYTES = 1024 * 1024


class Driver:
    """The driver of a callback core: wires, events, timers.

    Args:
        connection: what callbacks get as their first argument.
        opened, lost: called when there is a wire, and when there is none any more.
        received: called with the path of a file that was pushed and is in its place.
    """

    _log = Logger()

    def __init__(
        self,
        connection: object,
        registry: CallbackRegistry,
        core: CallbackPeer,
        reactor: IReactorTime,
        *,
        files: FileRoot | None,
        run_in_thread: RunInThread | None,
        opened: Callable[[], None],
        lost: Callable[[], None],
        received: Callable[[str], None],
    ) -> None:
        self.wire: CallbackProtocol | None = None
        self.peer_address: IAddress | None = None
        self._opened, self._lost = opened, lost
        self._core = core
        self._reactor = reactor
        self.outgoing = Outgoing(
            core=core,
            root=files,
            run_in_thread=run_in_thread or self._defer_to_thread,
            changed=self.flush,
        )
        self.incoming = Incoming(
            core=core,
            root=files,
            run_in_thread=run_in_thread or self._defer_to_thread,
            changed=self.flush,
            received=received,
            full=self._disk_is_slow,
            later=reactor.callLater,
            settled=self._look_whether_settled,
        )
        self.dispatch = Dispatcher(connection, registry, core, self)
        self._settle_waiters: Waiters[None] = Waiters()
        self._generation = 0  # of wires: an answer goes to the one that asked
        # An event waits while a file is being put in its place: what follows may be about it.
        self._events: deque[tuple[int, events.Event]] = deque()
        self._handlers = self._handlers_of_events()
        self._handled_on = 0  # generation of the event that is being handled
        self._is_handling = False
        self._is_holding = False
        self._is_disk_slow = False
        self._is_finishing = False
        self._slow_down: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None

    @property
    def generation(self) -> int:
        """Which of its wires it has now, counted from 1; 0: none."""
        return self._generation if self.wire is not None else 0

    def abort(self) -> None:
        """End the wire that there is, at once."""
        if self.wire is not None:
            self.wire.abort()

    def finish(self) -> None:
        """End the wire when all is sent, and every later one."""
        self._is_finishing = True
        self.flush()
        self._finish_if_drained()

    def _finish_if_drained(self) -> None:
        if self.wire is not None and self._core.is_drained:
            self.wire.finish()

    def end(self, error: MsgServiceError) -> None:
        """The last wire has ended: nothing will come, and nothing will be sent."""
        self._is_finishing = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.incoming.close()
        self.outgoing.close(error)
        for pending in self._core.pending:
            self._core.forget(pending)
            self.dispatch.fail_request(pending.token, error)

    # --- from the wire

    def wire_opened(self, wire: CallbackProtocol) -> None:
        """A connection begins; an earlier one that is not known to be dead makes way."""
        if self.wire is not None:
            earlier = self.wire
            self.wire_lost(Failure(Ambiguous("replaced by a newer connection")))
            earlier.detach()
        self.wire = wire
        self._generation += 1
        self.peer_address = cast("Any", wire.transport).getPeer()
        self._take(self._core.connected(self._reactor.seconds()))
        self._opened()
        self.flush()

    def wire_received(self, data: bytes) -> None:
        """Bytes came."""
        self._take(self._core.receive_data(data, self._reactor.seconds()))
        self.flush()
        if (
            self._core.queued_bytes > SLOW_DOWN_BYTES or self.dispatch.is_busy
        ) and self._slow_down is None:
            self._slow_down = self._reactor.callLater(SLOW_DOWN_SECONDS, self._speed_up)
            self._steer_reading()

    def wire_lost(self, reason: Failure) -> None:
        """The connection ended."""
        self.wire = None
        self._speed_up()
        self.incoming.disconnected()
        self.outgoing.disconnected()
        self._take(self._core.disconnected())
        self._rearm()
        self._lost()

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
            return self.outgoing.read(piece)
        except (OSError, MsgServiceError) as error:
            if self.outgoing.give_up(piece.source, error):
                self.abort()  # the header promised more bytes than there are
            return b""

    def wire_sent(self, count: int) -> None:
        """Bytes were written: so many are out."""
        for source in self._core.sent(count):
            self.outgoing.sent(source)
        if self._core.queued_bytes <= SLOW_DOWN_BYTES // 2 and not self.dispatch.is_busy:
            self._speed_up()
        if self._is_finishing:
            self._finish_if_drained()

    # --- events

    def _take(self, happened: list[events.Event]) -> None:
        """Handle events in order, after those that wait already."""
        for event in happened:
            self._events.append((self._generation, event))
        if not self._is_handling:
            self._handle_waiting()

    def _handle_waiting(self) -> None:
        self._is_handling = True
        try:
            while self._events and not self._is_holding:
                self._handled_on, event = self._events.popleft()
                self._handlers[type(event)](event)
        finally:
            self._is_handling = False
        self._rearm()

    def _handle_file_requested(self, event: events.FileRequested) -> None:
        if self._handled_on != self.generation:
            return
        try:
            self.outgoing.requested(event)
        except LimitReached as error:
            self._log.warn("dropping {peer}: {reason}", peer=self.peer_address, reason=str(error))
            self.abort()
        except OSError as error:
            self.dispatch.refuse_request(event, "file-refused", error.strerror or str(error))
        except (MsgServiceError, TypeError, ValueError) as error:
            self.dispatch.refuse_request(event, "file-refused", str(error))

    def _handle_file_pushed(self, event: events.FilePushed) -> None:
        self.incoming.pushed(event)
        if self.wire is not None and event.size - event.offset > BULK_BYTES:
            self.wire.read_in_bulk(True)

    def _handle_file_answered(self, event: events.FileAnswered) -> None:
        self.incoming.answered(event)
        if self.wire is not None and event.size - event.offset > BULK_BYTES:
            self.wire.read_in_bulk(True)

    def _handle_file_ended(self, event: events.FileEnded) -> None:
        if self.wire is not None:
            self.wire.read_in_bulk(False)
        d = self.incoming.ended(event)
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
        if not self._is_holding and self.incoming.is_settled:
            self._settle_waiters.fire(None)

    def _handle_error(self, event: events.ErrorReceived) -> None:
        if not self.outgoing.refused(event.about.get("transfer"), event.reason):
            self._log.warn(
                "{peer} says of {about}: {kind}: {reason}",
                peer=self.peer_address,
                about=str(event.about.get("action", event.about.get("filepath")))[:64],
                kind=event.kind[:64],
                reason=event.reason[:500],
            )

    def _handle_ignored(self, event: events.Ignored) -> None:
        self._log.warn(
            "ignored from {peer}: {reason}: {subject}",
            peer=self.peer_address,
            reason=event.reason,
            subject=event.subject,
        )

    def _handle_messages_unsent(self, event: events.MessagesUnsent) -> None:
        self._log.warn(
            "{count} messages were not sent before the connection to {peer} ended",
            count=event.count,
            peer=self.peer_address,
        )

    def _handle_failed(self, event: events.Failed) -> None:
        if self._handled_on == self._generation:
            self._log.warn(
                "dropping {peer}: {reason}", peer=self.peer_address, reason=str(event.error)
            )
            self.abort()

    def _handlers_of_events(self) -> dict[type[events.Event], Callable[[Any], None]]:
        dispatch, incoming, outgoing = self.dispatch, self.incoming, self.outgoing
        return {
            events.ActionReceived: dispatch.action,
            events.RequestReceived: lambda event: dispatch.request(event, self._handled_on),
            events.ResponseReceived: dispatch.response,
            events.RequestRefused: dispatch.refused,
            events.RequestTimedOut: dispatch.timed_out,
            events.RequestLost: dispatch.lost,
            events.FileRequested: self._handle_file_requested,
            events.FileEnded: self._handle_file_ended,
            events.FilePushed: self._handle_file_pushed,
            events.FileAnswered: self._handle_file_answered,
            events.FileData: incoming.data,
            events.FileInterrupted: lambda event: incoming.interrupted(),
            events.FileConfirmed: lambda event: outgoing.confirmed(event.transfer),
            events.FileUnsent: lambda event: outgoing.unsent(event.source),
            events.OffsetAsked: incoming.offset_asked,
            events.OffsetOffered: outgoing.offset_offered,
            events.ErrorReceived: self._handle_error,
            events.Ignored: self._handle_ignored,
            events.MessagesUnsent: self._handle_messages_unsent,
            events.PeerAnnounced: lambda event: None,
            events.Failed: self._handle_failed,
        }

    # --- machinery

    def flush(self) -> None:
        """Send what there is; while events are handled, after them."""
        if self.wire is not None and not self._is_handling:
            self.wire.flush()
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
        if self.wire is None:
            return
        if self._is_holding or self._is_disk_slow or self._slow_down is not None:
            self.wire.pause_reading()
        else:
            self.wire.resume_reading()

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
