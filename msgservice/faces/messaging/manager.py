"""The callback protocol under the names of its documentation, on a plain `selectors` loop.

A program written for the original runs with only its import changed: no Twisted is imported here,
and nothing of ours is said to the peer. `ConnectionManager` drives `faces.callbacks.protocol.peer`,
one socket event at a time; everything may be called from any thread. The parser and the small
classes are in `faces.messaging.parts`, the wake-up socket in `faces.messaging.notifier`.
"""

import logging
import random
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, assert_never

from msgservice.errors import MsgServiceError, ProtocolError
from msgservice.faces.callbacks.files import FileRoot, IncomingFile, OutgoingFile
from msgservice.faces.callbacks.protocol import events
from msgservice.faces.callbacks.protocol.peer import IDS, CallbackPeer
from msgservice.faces.callbacks.protocol.sending import FilePiece
from msgservice.faces.callbacks.registry import DEFAULT, Callback
from msgservice.faces.messaging.notifier import NotifierSock
from msgservice.faces.messaging.parts import (
    BadMessage,
    MessageManager,
    PendingRequest,
)

# The standard library's, since this module may not need Twisted.
logger = logging.getLogger(__name__)

READ_ONLY = selectors.EVENT_READ
READ_AND_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE
OUTPUT_BYTES = 65_536
CLOSE_SECONDS_MAX = 5.0  # a peer that takes nothing is not waited for any longer


def message_callback(action_string: str) -> Callable[[Callback], Callback]:
    """Decorate what runs for an action: `f(connection, *args, **kwargs)`. Process-wide."""
    return DEFAULT.message_callback(action_string)


def request_callback(string_command: str) -> Callable[[Callback], Callback]:
    """Decorate what answers a request: `f(connection, *args, **kwargs)`. Process-wide."""
    return DEFAULT.request_callback(string_command)


class ConnectionManager:
    """One side of a connection, driven by the events of a selector.

    `buffer_size` is how many bytes are read and sent per event. `resume_queue` keeps what is not
    sent for the next `connect`, `resend_requests` sends unanswered requests again.

    `files` is the folder that the peer's paths are confined to, the working directory by default;
    set it on the class or on a connection.
    """

    messages_callbacks = DEFAULT.messages
    requests_callbacks = DEFAULT.requests
    files = FileRoot(sync=False)  # a sync would stop the loop

    def __init__(self, whoami: str = "computer") -> None:
        self.whoami = whoami
        self.selector: selectors.BaseSelector | None = None
        self.socket: socket.socket | None = None
        self.addr: Any = None
        self.buffer_size = 1024
        self.resume_queue = False
        self.resend_requests = True
        self._core = CallbackPeer(
            byteorder=sys.byteorder,
            first_id=random.randrange(IDS),
            allow_nan=True,
            whole_messages=True,
        )
        # Around the core, the output and the selector's mask; never while a callback runs.
        self._lock = threading.RLock()
        self._output = memoryview(b"")
        self._loop_thread: int | None = None
        self._close_by: float | None = None
        self._is_broken = False
        self._incoming: IncomingFile | None = None
        self._asked: PendingRequest | None = None  # for the file that is being received

    # --- the connection

    def connect(self, client_selector: selectors.BaseSelector, client_socket: socket.socket,
                client_addr: Any) -> None:  # fmt: skip
        """Use a connected socket that is registered in the selector already."""
        with self._lock:
            if self.socket is not None and self.socket is not client_socket:
                self._close()
            self.selector, self.socket, self.addr = client_selector, client_socket, client_addr
            self.socket.setblocking(False)
            self._loop_thread = threading.get_ident()
            self._close_by = None
            self._is_broken = False
            self._output = memoryview(b"")
            self._tell_core_settings()
            happened = self._core.connected(time.monotonic())
            self._set_mask()
        self._handle(happened)

    def close(self) -> None:
        """Have the loop send what is queued, then close, at its next events."""
        with self._lock:
            if self.socket is None:
                return
            if self._close_by is None:
                self._close_by = time.monotonic() + CLOSE_SECONDS_MAX
            self._set_mask()

    def process_events(self, mask: int) -> None:
        """Do what the selector says can be done.

        Raises:
            RuntimeError: the peer has closed the connection.
            BadMessage: the peer broke the protocol; a ValueError.
            OSError: the socket failed. After any of these the owner closes.
        """
        self._loop_thread = threading.get_ident()
        try:
            if mask & selectors.EVENT_READ and not self._is_broken:
                self.read()
            if mask & selectors.EVENT_WRITE and not self._is_broken:
                self.write()
            if self.socket is not None and not self._is_broken:
                self._handle(self._locked(lambda: self._core.receive_time(time.monotonic())))
        except (OSError, RuntimeError, ValueError):
            self._is_broken = True
            raise
        finally:
            with self._lock:
                if self._close_by is not None and (
                    self._is_broken
                    or (self._core.is_drained and not self._output)
                    or time.monotonic() >= self._close_by
                ):
                    self._close()

    def read(self) -> None:
        """Receive once, at most `buffer_size` bytes, and handle what is complete with them."""
        if self.socket is None:
            return
        try:
            data = self.socket.recv(self.buffer_size)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            raise RuntimeError(f"connection to {self.addr} closed by the peer")
        self._handle(self._locked(lambda: self._core.receive_data(data, time.monotonic())))

    def write(self) -> None:
        """Send once, at most `buffer_size` bytes."""
        with self._lock:
            if self.socket is None:
                return
            if not self._output:
                self._output = memoryview(self._next_output())
            if self._output:
                try:
                    sent = self.socket.send(self._output[: self.buffer_size])
                except (BlockingIOError, InterruptedError):
                    return
                self._output = self._output[sent:]
                for file in self._core.sent(sent):
                    file.close()
            # In one breath with looking: a message that another thread adds comes before, and is
            # seen, or after, and sets the mask again.
            self._set_mask()

    def _next_output(self) -> bytes:
        while pieces := self._core.take_output(OUTPUT_BYTES, now=time.monotonic()):
            data = b"".join(
                piece if isinstance(piece, bytes) else self._read_piece(piece) for piece in pieces
            )
            if data:
                return data
        return b""

    def _read_piece(self, piece: FilePiece) -> bytes:
        file: OutgoingFile = piece.source
        try:
            data = file.read(piece.offset, piece.length, hashed=False)
        except (OSError, MsgServiceError) as error:
            self._core.abandon_file(file)
            file.close()
            raise RuntimeError(f"file {file.path} cannot be sent on: {error}") from error
        if piece.last:
            self._core.finish_file(file, "")
        return data

    def _set_mask(self) -> None:
        """Ask for write events while there is something to write, or a close to do."""
        if self.socket is None or self.selector is None:
            return
        wants = bool(self._output) or not self._core.is_drained or self._close_by is not None
        self.selector.modify(self.socket, READ_AND_WRITE if wants else READ_ONLY, data=self)
        if threading.get_ident() != self._loop_thread:
            NotifierSock().notify()  # some selectors do not see a change while they wait

    def _close(self) -> None:
        sock, self.socket = self.socket, None
        if sock is None:
            return
        if self.selector is not None:
            try:
                self.selector.unregister(sock)
            except (KeyError, ValueError) as error:
                logger.debug("socket of %s was not registered: %s", self.addr, error)
        sock.close()
        self._close_by = None
        self._output = memoryview(b"")
        self._tell_core_settings()
        self._handle(self._core.disconnected())

    def _tell_core_settings(self) -> None:
        self._core.resume_queue = self.resume_queue
        self._core.resend_requests = self.resend_requests

    def _locked(self, do: Callable[[], list[events.Event]]) -> list[events.Event]:
        with self._lock:
            return do()

    # --- sending

    def send_message(
        self, action: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Have the peer run the callback of `action`."""
        with self._lock:
            self._core.send_message(action, args, kwargs)
            self._set_mask()

    def send_file(self, filepath: str | PathLike[str], dest_filepath: str) -> None:
        """Send a file; one that cannot be read is only logged."""
        try:
            file = self.files.open_local_to_send(filepath)
        except (OSError, MsgServiceError) as error:
            logger.warning("file %s not sent: %s", filepath, error)
            return
        with self._lock:
            try:
                self._core.send_file(str(dest_filepath), file, file.size)
            except BaseException:
                file.close()
                raise
            self._set_mask()

    def get_response(
        self,
        requested_value: str,
        callback: Callback | None,
        request_args: Sequence[Any] = (),
        request_kwargs: Mapping[str, Any] | None = None,
        callback_args: Sequence[Any] = (),
        callback_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Ask; `callback(connection, value, *callback_args, **callback_kwargs)` gets the answer."""
        token = PendingRequest(
            requested_value=requested_value,
            callback=callback,
            callback_args=callback_args,
            callback_kwargs=callback_kwargs or {},
        )
        with self._lock:
            pending = self._core.request(requested_value, request_args, request_kwargs, token=token)
            token.request_id = pending.request_id
            self._set_mask()

    def get_file(
        self,
        client_filepath: str,
        filepath: str | PathLike[str] | None = None,
        callback: Callback | None = None,
        callback_args: Sequence[Any] = (),
        callback_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Ask for a file; without `filepath` it goes to its base name under `files`.

        Then `callback(connection, True, *callback_args, filepath=filepath, **callback_kwargs)`;
        False instead of True when it could not be written.
        """
        token = PendingRequest(
            requested_value="filetransfer",
            callback=callback,
            callback_args=callback_args,
            callback_kwargs={"filepath": filepath, **(callback_kwargs or {})},
            path=self.files.local_path(filepath, client_filepath),
        )
        with self._lock:
            token.request_id = self._core.request_file(client_filepath, token=token).request_id
            self._set_mask()

    # --- receiving

    def process_received(self, message: MessageManager) -> None:
        """Handle a complete message with JSON content. Files do not come here: they are streamed.

        Raises:
            BadMessage: it is none of the protocol's.
        """
        header, content = message.parts()
        self._handle(self._locked(lambda: self._core.receive_message(header, content)))

    def _handle(self, happened: list[events.Event]) -> None:
        for event in happened:
            self._handle_one(event)
        with self._lock:
            if self.socket is not None and not self._core.is_drained:
                self._set_mask()

    def _handle_one(self, event: events.Event) -> None:
        match event:
            case events.MessageReceived(header, content):
                try:
                    message = MessageManager.of(header, content)
                except ProtocolError as error:
                    raise BadMessage(str(error)) from error
                self.process_received(message)
            case events.ActionReceived(action, args, kwargs):
                self._run(DEFAULT.message(action), f"action {action[:64]!r}", args, kwargs)
            case events.RequestReceived():
                self._answer(event)
            case events.ResponseReceived(request, value):
                self._give(request.token, value)
            case events.FileRequested():
                self._answer_with_file(event)
            case events.FilePushed(filepath, size):
                self._asked = None
                self._open(lambda: self.files.open_to_receive(filepath, size), filepath)
            case events.FileAnswered(request, size):
                token = self._asked = request.token
                self._open(
                    lambda: self.files.open_local_to_receive(token.path, size, checked=False),
                    str(token.path),
                )
            case events.FileData(data):
                self._write_file(data)
            case events.FileEnded():
                self._finish_file()
            case events.FileInterrupted():
                self._drop_incoming()
                self._asked = None  # the request itself is sent again
            case events.FileUnsent(file):
                logger.warning("file %s was not sent whole", file.path)
                file.close()
            case events.MessagesUnsent(count):
                logger.warning("%s messages to %s were not sent", count, self.addr)
            case events.RequestLost(request):
                logger.warning("no answer will come to request %s", request.requested_value)
            case events.Ignored(reason, subject):
                logger.warning("ignored from %s: %s: %s", self.addr, reason, subject)
            case events.Failed(error):
                raise BadMessage(str(error)) from error
            case (
                events.RequestRefused()
                | events.RequestTimedOut()
                | events.FileConfirmed()
                | events.OffsetAsked()
                | events.OffsetOffered()
                | events.ErrorReceived()
                | events.PeerAnnounced()
            ):
                raise AssertionError(event)  # only who announces himself, or says a time, gets it
            case _:
                assert_never(event)

    def _run(
        self, callback: Callback | None, what: str, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[bool, Any]:
        """Call a callback; return whether it returned, and what."""
        if callback is None:
            logger.warning("no callback for %s", what)
            return False, None
        try:
            return True, callback(self, *args, **kwargs)
        except Exception:
            logger.exception("callback of %s", what)
            return False, None

    def _answer(self, event: events.RequestReceived) -> None:
        name = event.requested_value
        returned, value = self._run(
            DEFAULT.request(name), f"request {name[:64]!r}", event.args, event.kwargs
        )
        if not returned:
            return  # nothing is sent back: that is how the peers know it
        try:
            with self._lock:
                self._core.respond(name, event.request_id, value)
        except (TypeError, ValueError, ProtocolError) as error:
            logger.error("request %s: the result cannot be written: %s", name[:64], error)

    def _answer_with_file(self, event: events.FileRequested) -> None:
        try:
            file = self.files.open_to_send(event.filepath)
        except (OSError, MsgServiceError) as error:
            logger.warning("file asked for by %s: %s", self.addr, error)
            return
        with self._lock:
            self._core.respond_file(event.request_id, file, file.size)

    def _give(self, token: PendingRequest, value: Any) -> None:
        if token.callback is not None:
            self._run(
                token.callback,
                f"answer to {token.requested_value[:64]!r}",
                [value, *token.callback_args],
                dict(token.callback_kwargs),
            )

    # --- the file that is being received

    def _open(self, open_file: Callable[[], IncomingFile], filepath: str) -> None:
        try:
            self._incoming = open_file()
        except (OSError, MsgServiceError) as error:
            logger.warning("file %s from %s: %s", filepath[:256], self.addr, error)

    def _write_file(self, data: memoryview) -> None:
        if self._incoming is None:
            return
        try:
            self._incoming.write(data)
        except OSError as error:
            logger.warning("file %s: %s", self._incoming.path, error)
            self._drop_incoming()

    def _finish_file(self) -> None:
        is_there = False
        if self._incoming is not None:
            try:
                self._incoming.finish(None)
                is_there = True
            except (OSError, MsgServiceError) as error:
                logger.warning("file %s: %s", self._incoming.path, error)
            self._drop_incoming()
        token, self._asked = self._asked, None
        if token is not None:
            self._give(token, is_there)

    def _drop_incoming(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.abandon()
