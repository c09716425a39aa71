"""Files that a Twisted `Connection` sends: those it pushes, and those the peer asks for.

Called by `faces.callbacks.driver` with the events of the core that are about them. A piece is
read when the transport has room for it; the hash of what the peer already has is taken in a thread.
A file that fails is given up with a log line; the connection lives on, unless half of it is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.errors import PathRefused, TransferFailed
from msgservice.faces.callbacks.arrival import RunInThread
from msgservice.faces.callbacks.files import FileRoot, OutgoingFile
from msgservice.faces.callbacks.protocol.events import FileRequested, OffsetOffered
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.protocol.sending import FilePiece

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSent:
    """The outcome of a pushed file: `confirmed` if the receiver said that it has it in place."""

    path: str
    size: int
    confirmed: bool


class Sending:
    """A file on its way out, pushed (`done` is its Deferred) or asked for."""

    def __init__(
        self,
        file: OutgoingFile,
        *,
        transfer: str | None = None,
        progress: Progress | None = None,
        done: "Deferred[FileSent] | None" = None,
    ) -> None:
        self.file, self.transfer, self.progress = file, transfer, progress
        self._done = done

    def succeed(self, *, confirmed: bool) -> None:
        """The file is with the peer, or at least out of our hands."""
        self.file.close()
        done, self._done = self._done, None
        if done is not None:
            done.callback(FileSent(path=self.file.path, size=self.file.size, confirmed=confirmed))

    def fail(self, error: BaseException) -> None:
        """The file did not arrive; it stays open until the core lets go of it."""
        done, self._done = self._done, None
        if done is not None:
            done.errback(Failure(error))


class Outgoing:
    """File uploads of a connection. `changed` is called when there may be something to send."""

    _log = Logger()

    def __init__(
        self,
        *,
        core: CallbackPeer,
        root: FileRoot | None,
        run_in_thread: RunInThread,
        changed: Callable[[], None],
    ) -> None:
        self._core = core
        self._root = root
        self._local = root or FileRoot()
        self._run_in_thread = run_in_thread
        self._changed = changed
        self._connection = 0  # which, so that a thread does not answer for an earlier one
        self._sending: list[Sending] = []
        self._unconfirmed: dict[str, Sending] = {}

    def push(
        self, filepath: str | PathLike[str], destination: str, progress: Progress | None
    ) -> "Deferred[FileSent]":
        """Queue a file. Raises OSError, PathRefused, LimitReached, FrameTooLarge."""
        file = self._local.open_local_to_send(filepath)
        done: Deferred[FileSent] = Deferred()
        sending = Sending(file, transfer=file.transfer(destination), progress=progress, done=done)
        try:
            self._core.send_file(destination, sending, file.size, transfer=sending.transfer)
        except BaseException:
            file.close()
            raise
        self._sending.append(sending)
        return done

    def read(self, piece: FilePiece) -> bytes:
        """Return a piece. Raises OSError, TransferFailed when it cannot be read."""
        sending: Sending = piece.source
        data = sending.file.read(piece.offset, piece.length, hashed=piece.checked)
        self._tell(sending, piece.offset + piece.length)
        if piece.last:
            self._core.finish_file(sending, sending.file.sha256)
        return data

    def give_up(self, sending: Sending, error: Exception) -> bool:
        """Stop sending a file that cannot be read; return whether the connection must end."""
        self._log.warn(
            "file {path} cannot be sent: {reason}", path=sending.file.path, reason=str(error)
        )
        must_end = self._core.abandon_file(sending)
        self._drop(sending, error)
        return must_end

    def sent(self, sending: Sending) -> None:
        """Take note that a file is out of our hands."""
        if sending.transfer is not None and self._core.extension.is_ours:
            self._unconfirmed[sending.transfer] = sending
            return
        self._forget(sending)
        sending.succeed(confirmed=False)

    def confirmed(self, transfer: str) -> None:
        """Take note that a file is in its place."""
        sending = self._unconfirmed.pop(transfer, None)
        if sending is not None:
            self._forget(sending)
            sending.succeed(confirmed=True)

    def unsent(self, sending: Sending) -> None:
        """Take note that a file will not be sent."""
        self._drop(
            sending, TransferFailed(sending.file.path, "the connection ended before it was sent")
        )

    def refused(self, transfer: object, reason: str) -> bool:
        """Take note that the peer does not take a file; return whether it is one of ours."""
        for sending in self._sending:
            if sending.transfer is None or sending.transfer != transfer:
                continue
            error = TransferFailed(sending.file.path, reason)
            waits = self._unconfirmed.pop(sending.transfer, None) is not None
            sending.transfer = None
            if self._core.begun_file(sending) and not waits:
                sending.fail(error)  # what is on its way cannot be stopped
            else:
                self._core.abandon_file(sending)
                self._drop(sending, error)
            return True
        return False

    def offset_offered(self, event: OffsetOffered) -> None:
        """Go on with a file where the peer has it, if it is the same file so far."""
        sending: Sending = event.source
        if event.offset == 0 or event.offset > sending.file.size:
            self._core.start_file(sending, 0)
            return
        connection = self._connection

        def start(hashed: Any) -> None:
            if connection != self._connection:
                return
            same = hashed is not None and hashed.hexdigest() == event.sha256
            if same:
                sending.file.go_on(event.offset, hashed)
            self._core.start_file(sending, event.offset if same else 0)
            self._changed()

        d = self._run_in_thread(sending.file.hash_of, event.offset)
        d.addCallback(start)
        d.addErrback(lambda f: self._log.failure("hash of {path}", f, path=sending.file.path))

    def requested(self, event: FileRequested) -> None:
        """Answer a request for a file. Raises OSError, PathRefused, LimitReached."""
        if self._root is None:
            raise PathRefused(event.filepath or "", "this side has no folder for files")
        file = self._root.open_to_send(event.filepath)
        if event.offset == 0 or event.offset > file.size:
            self._respond(event, file, 0)
            return
        connection = self._connection

        def respond(hashed: Any) -> None:
            if connection != self._connection:
                file.close()
                return
            same = hashed is not None and hashed.hexdigest() == event.sha256
            if same:
                file.go_on(event.offset, hashed)
            self._respond(event, file, event.offset if same else 0)
            self._changed()

        d = self._run_in_thread(file.hash_of, event.offset)
        d.addCallback(respond)
        d.addErrback(lambda f: self._log.failure("hash of {path}", f, path=file.path))

    def _respond(self, event: FileRequested, file: OutgoingFile, offset: int) -> None:
        sending = Sending(file)
        try:
            self._core.respond_file(event.request_id, sending, file.size, offset=offset)
        except BaseException:
            file.close()
            raise
        self._sending.append(sending)

    def disconnected(self) -> None:
        """The connection has ended, and with it what threads do for it."""
        self._connection += 1
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for sending in unconfirmed.values():
            reason = "the connection ended before the receiver confirmed it"
            self._drop(sending, TransferFailed(sending.file.path, reason))

    def close(self, error: Exception) -> None:
        """Give up everything."""
        for sending in list(self._sending):
            self._core.abandon_file(sending)
            self._drop(sending, error)

    def _drop(self, sending: Sending, error: Exception) -> None:
        self._forget(sending)
        sending.file.close()
        sending.fail(error)

    def _forget(self, sending: Sending) -> None:
        if sending in self._sending:
            self._sending.remove(sending)

    def _tell(self, sending: Sending, done: int) -> None:
        """Call the progress function; one that raises is not called again."""
        if sending.progress is None:
            return
        try:
            sending.progress(done, sending.file.size)
        except BaseException:
            self._log.failure("progress function")
            sending.progress = None
