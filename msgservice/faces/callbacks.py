"""The callback protocol on Twisted: a `Connection`, on which both sides act, ask and send files.

A `Connection` outlives what it runs on: the client of `faces.callbacks_service` gives it one
TCP connection after the other. It drives `core.callbacks`, calls the application's callbacks, and
leaves files to `faces.callbacks_incoming` and `faces.callbacks_outgoing`. Methods with the names
of the protocol's documentation take callbacks and may be called from any thread; `request`,
`push_file` and `fetch_file` return Deferreds, in the reactor's thread.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

from msgservice.core.callbacks import IDS, CallbackPeer
from msgservice.core.callbacks_events import (
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
from msgservice.core.callbacks_sending import FilePiece
from msgservice.errors import (
    Ambiguous,
    ClientClosed,
    LimitReached,
    MsgServiceError,
    Refused,
)
from msgservice.faces.callbacks_arrival import RunInThread
from msgservice.faces.callbacks_dispatch import Call, Dispatcher, awaited
from msgservice.faces.callbacks_files import FileRoot
from msgservice.faces.callbacks_incoming import Incoming
from msgservice.faces.callbacks_outgoing import FileSent, Outgoing, Progress
from msgservice.faces.callbacks_protocol import WRITE_BYTES_MAX, CallbackProtocol
from msgservice.faces.callbacks_registry import DEFAULT, CallbackRegistry

# With more than this to send, reading from the peer slows down: it asks faster than it reads.
SLOW_DOWN_BYTES = 1024 * 1024
# It does not stop: two peers that wait for each other to read would wait for ever.
SLOW_DOWN_SECONDS = 1.0
BULK_BYTES = 1024 * 1024

__all__ = ["Connection", "FileSent"]


class Connection:
    """One side; the other side is a `Connection` too, or a program that never heard of us.

    Args:
        reactor: clock and threads.
        registry: the callbacks, by default those of the process.
        files: the folder that the peer's files are confined to; None: no files for the peer.
        limits: see docs/callbacks.md.
        resume_queue, resend_requests: what a lost connection leaves for the next.
        announce: say hello to peers of ours, for errors, checksums and resumed files.
        allow_nan: write and accept NaN and infinities, as the original does.
        run_in_thread: like `twisted.internet.threads.deferToThread`.
        on_connected, on_disconnected, on_file: called with the connection, and with the path of
            a file that was pushed and is in its place.
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
        on_connected: "Callable[[Connection], Any] | None" = None,
        on_disconnected: "Callable[[Connection], Any] | None" = None,
        on_file: "Callable[[Connection, str], Any] | None" = None,
    ) -> None:
        self._reactor = reactor
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
            later=reactor.callLater,
        )
        self._dispatch = Dispatcher(self, self._core)
        self._wire: CallbackProtocol | None = None
        self._generation = 0  # of connections: an answer goes to the one that asked
        # An event waits while a file is being put in its place: what follows may be about it.
        self._events: deque[tuple[int, Event]] = deque()
        self._is_handling = False
        self._is_holding = False
        self._is_disk_slow = False
        self._slow_down: IDelayedCall | None = None
        self._timer: IDelayedCall | None = None
        self._closed: list[Deferred[None]] | None = None
        self._close_timer: IDelayedCall | None = None
        self._connect_waiters: list[Deferred[Connection]] = []
        self.peer_address: IAddress | None = None

    # --- getters

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._wire is not None

    @property
    def peer_is_ours(self) -> bool:
        """Whether the peer announced itself, so that errors come back and files resume."""
        return self._core.extension.is_ours

    @property
    def queued_bytes(self) -> int:
        """Bytes of memory that wait to be sent."""
        return self._core.queued_bytes

    @property
    def pending_count(self) -> int:
        """How many requests wait for their answers."""
        return len(self._core.pending)

    @property
    def generation(self) -> int:
        """Which of its connections it has now, counted from 1; 0: none."""
        return self._generation if self._wire is not None else 0

    def protocol(self) -> CallbackProtocol:
        """Return a protocol for the next connection of this object."""
        return CallbackProtocol(self)

    # --- the documentation's verbs: callbacks, any thread

    def send_message(
        self, action: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> None:
        """Have the peer run the callback of `action`; nothing comes back.

        Raises:
            Refused: there is no connection, and `resume_queue` is off.
            ClientClosed: after `close`.
            LimitReached: `queue_bytes_max`.
            TypeError, ValueError, FrameTooLarge: the arguments cannot be written as JSON.
        """
        if self._is_elsewhere():
            self._core.encoder.action(action, args, kwargs)  # errors belong to the caller
            self._call_in_reactor(self.send_message, action, args, kwargs)
            return
        self._check_can_keep()
        self._core.send_message(action, args, kwargs)
        self.flush()

    def get_response(
        self,
        requested_value: str,
        callback: Callable[..., Any] | None,
        request_args: Sequence[object] = (),
        request_kwargs: Mapping[str, object] | None = None,
        callback_args: Sequence[object] = (),
        callback_kwargs: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Ask; `callback(connection, value, *callback_args, **callback_kwargs)` gets the answer.

        Without an answer, or with an error, the callback is not called; it is logged. Raises as
        `send_message`, and LimitReached for `pending_max`; it may be called while away.
        """
        if self._is_elsewhere():
            self._core.encoder.request(requested_value, "0000", request_args, request_kwargs)
            self._call_in_reactor(
                self.get_response,
                *(requested_value, callback, request_args, request_kwargs),
                *(callback_args, callback_kwargs),
                timeout=timeout,
            )
            return
        self._check_open()
        self._core.request(
            requested_value,
            request_args,
            request_kwargs,
            token=Call(callback, callback_args, callback_kwargs),
            timeout=timeout,
            now=self._reactor.seconds(),
        )
        self.flush()

    def send_file(self, filepath: str | PathLike[str], dest_filepath: str) -> None:
        """Send a file; one that cannot be read or sent is only logged."""
        if self._is_elsewhere():
            self._call_in_reactor(self.send_file, filepath, dest_filepath)
            return
        self.push_file(filepath, dest_filepath).addErrback(self._log_transfer, "sent")

    def get_file(
        self,
        client_filepath: str,
        filepath: str | PathLike[str] | None = None,
        callback: Callable[..., Any] | None = None,
        callback_args: Sequence[object] = (),
        callback_kwargs: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Ask for a file; without `filepath` it goes to its base name under the root of files.

        Then `callback(connection, True, *callback_args, filepath=filepath, **callback_kwargs)`;
        False instead of True when the file could not be had or written.
        """
        if self._is_elsewhere():
            self._call_in_reactor(
                self.get_file,
                *(client_filepath, filepath, callback, callback_args, callback_kwargs),
                timeout=timeout,
            )
            return
        call = Call(callback, callback_args, {"filepath": filepath, **(callback_kwargs or {})})
        d = self.fetch_file(client_filepath, filepath, timeout=timeout)
        d.addErrback(self._log_transfer, "asked for")
        d.addCallback(lambda path: self._dispatch.run_callback(call, path is not None))

    # --- Deferreds, in the reactor's thread

    def request(
        self,
        requested_value: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> "Deferred[Any]":
        """Ask; the Deferred fires with the answer. Cancelling it stops the waiting only.

        Fails with:
            RequestFailed: a peer of ours says why. Peers of others say nothing.
            RequestTimeout: no answer within `timeout` seconds.
            Ambiguous: the connection ended and `resend_requests` is off.
            ClientClosed: `close` was called.

        Raises as `get_response`.
        """
        self._check_open()
        d: Deferred[Any] = Deferred(lambda _: self._core.forget(pending))
        pending = self._core.request(
            requested_value, args, kwargs, token=d, timeout=timeout, now=self._reactor.seconds()
        )
        self.flush()
        return d

    def push_file(
        self,
        filepath: str | PathLike[str],
        destination: str,
        *,
        progress: Progress | None = None,
    ) -> "Deferred[FileSent]":
        """Send a file to where the peer's root has `destination`.

        A peer of ours confirms it (`FileSent.confirmed`) once it is in its place with the right
        checksum; with others, the Deferred fires when the last byte is handed over. `progress` is
        called with (bytes done, bytes in all). A connection that breaks off resumes the file if
        `resume_queue` is on. Cancelling stops the waiting only.

        Fails with:
            OSError, PathRefused: it cannot be read here.
            TransferFailed: it was refused, changed while it was read, or did not arrive.
            Refused, ClientClosed, LimitReached, FrameTooLarge: as `send_message`.
        """
        try:
            self._check_can_keep()
            d = self._outgoing.push(filepath, destination, progress)
        except (OSError, MsgServiceError, ValueError) as error:
            return fail(error)
        self.flush()
        return d

    def fetch_file(
        self,
        remote: str,
        filepath: str | PathLike[str] | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> "Deferred[Path]":
        """Ask for a file; the Deferred fires with where it is, complete.

        `timeout` is how long the peer may take to begin. A connection that breaks off resumes the
        file if `resend_requests` is on. Cancelling gives the file up.

        Fails with:
            PathRefused: without `filepath`, `remote` has no base name.
            TransferFailed: it could not be written, or its checksum differs.
            RequestFailed, RequestTimeout, Ambiguous, ClientClosed, LimitReached: as `request`.
        """
        try:
            self._check_open()
            d = self._incoming.fetch(
                remote,
                filepath,
                timeout=timeout,
                progress=progress,
                now=self._reactor.seconds(),
            )
        except (MsgServiceError, ValueError) as error:
            return fail(error)
        self.flush()
        return d

    def when_connected(self) -> "Deferred[Connection]":
        """Return a Deferred that fires with this object when it is connected.

        Fails with ClientClosed if that will not be. Cancelling ends the wait only.
        """
        if self._closed is not None:
            return fail(ClientClosed("the connection was closed"))
        d: Deferred[Connection] = Deferred(self._cancel_waiter)
        if self._wire is not None:
            d.callback(self)
        else:
            self._connect_waiters.append(d)
        return d

    def _cancel_waiter(self, d: "Deferred[Connection]") -> None:
        self._connect_waiters.remove(d)

    def close(self) -> "Deferred[None]":
        """Send what is queued, then end; the Deferred fires when the connection is gone.

        A peer that does not take it within `close_seconds_max` is cut off. Requests without an
        answer fail with ClientClosed. Safe to call twice.
        """
        d: Deferred[None] = Deferred()
        if self._closed is None:
            self._closed = []
            self._close_timer = self._reactor.callLater(self.limits.close_seconds_max, self.abort)
        self._closed.append(d)
        if self._wire is None:
            self._end()
        else:
            self.flush()
            self._finish_if_drained()
        return d

    def abort(self) -> None:
        """End the connection that there is, at once; a client connects again."""
        if self._wire is not None:
            self._wire.abort()

    def _finish_if_drained(self) -> None:
        if self._closed is not None and self._wire is not None and self._core.is_drained:
            self._wire.finish()

    def _end(self) -> None:
        """Nothing will come and nothing will be sent."""
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
        connecting, self._connect_waiters = self._connect_waiters, []
        for unconnected in connecting:
            unconnected.errback(error)
        waiting, self._closed = self._closed or [], []
        for d in waiting:
            d.callback(None)

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
        waiting, self._connect_waiters = self._connect_waiters, []
        for d in waiting:
            d.callback(self)
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
        """So many bytes are out."""
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

    _HANDLERS: dict[type[Event], Callable[["Connection", Any, int], None]] = {
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

    def _check_open(self) -> None:
        if self._closed is not None:
            raise ClientClosed("the connection was closed")

    def _check_can_keep(self) -> None:
        self._check_open()
        if self._wire is None and not self._core.resume_queue:
            raise Refused("not connected, and resume_queue is off")

    def _is_elsewhere(self) -> bool:
        return threadable.ioThread not in (None, threadable.getThreadID())

    def _call_in_reactor(self, verb: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        def call() -> None:
            try:
                verb(*args, **kwargs)
            except MsgServiceError as error:
                self._log.warn("from another thread: {reason}", reason=str(error))

        IReactorFromThreads(self._reactor).callFromThread(call)

    def _defer_to_thread(self, function: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        reactor = cast("Any", self._reactor)
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *args)

    def _tell(self, hook: Callable[..., Any] | None, *args: object) -> None:
        if hook is not None:
            d = maybeDeferred(awaited, hook, self, *args)
            d.addErrback(lambda f: self._log.failure("hook of a connection", f))

    def _log_transfer(self, failure: Failure, what: str) -> None:
        self._log.warn("file not {what}: {reason}", what=what, reason=failure.getErrorMessage())
