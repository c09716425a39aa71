"""Files of one Twisted `Connection`: those being sent, and the one being received.

Called by `faces.callbacks` with the events of the core that are about files. Reading and writing
happens here, a piece at a time; what takes long (a sync, the hash of what an earlier connection
left) runs in a thread. A file that fails is given up with a log line and, between our own peers,
an `error`; the connection lives on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.core.callbacks import CallbackPeer
from msgservice.core.callbacks_events import (
    FileAnswered,
    FileData,
    FileEnded,
    FilePushed,
    FileRequested,
    OffsetAsked,
    OffsetOffered,
    Pending,
)
from msgservice.core.callbacks_sending import FilePiece
from msgservice.errors import MsgServiceError, PathRefused, TransferFailed
from msgservice.faces.callbacks_files import FileRoot, IncomingFile, OutgoingFile

Progress = Callable[[int, int], object]
T = TypeVar("T")
RunInThread = Callable[..., "Deferred[Any]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSent:
    """What became of a pushed file: `confirmed` if the receiver said that it has it in place."""

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


class Fetching:
    """A file that was asked for; the token of its request."""

    def __init__(
        self, *, remote: str, path: Path, progress: Progress | None, done: "Deferred[Path]"
    ) -> None:
        self.remote, self.path, self.progress = remote, path, progress
        self.incoming: IncomingFile | None = None  # what an earlier connection brought
        self._done: Deferred[Path] | None = done

    def succeed(self) -> None:
        """The file is in its place."""
        done, self._done = self._done, None
        if done is not None:
            done.callback(self.path)

    def fail(self, error: BaseException) -> None:
        """The file will not come."""
        if self.incoming is not None:
            self.incoming.abandon()
            self.incoming = None
        done, self._done = self._done, None
        if done is not None:
            done.errback(Failure(error))


class Transfers:
    """See the module. `changed` is called when there may be something to send."""

    _log = Logger()

    def __init__(
        self,
        *,
        core: CallbackPeer,
        root: FileRoot | None,
        run_in_thread: RunInThread,
        changed: Callable[[], None],
        received: Callable[[str], None],
    ) -> None:
        self._core = core
        self._root = root
        self._local = root or FileRoot()
        self._run_in_thread = run_in_thread
        self._changed = changed
        self._received = received
        self._connection = 0  # which, so that a thread does not answer for an earlier one
        self._sending: list[Sending] = []
        self._unconfirmed: dict[str, Sending] = {}
        self._incoming: IncomingFile | None = None
        self._fetching: tuple[Pending, Fetching] | None = None
        self._offered: IncomingFile | None = None
        self._progress: Progress | None = None
        self._confirm: str | None = None  # what to call the pushed file when it is in its place

    # --- from the application

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

    def fetch(
        self,
        remote: str,
        filepath: str | PathLike[str] | None,
        *,
        timeout: float | None,
        progress: Progress | None,
        now: float,
    ) -> "Deferred[Path]":
        """Queue the request for a file. Raises PathRefused, LimitReached, FrameTooLarge."""
        path = self._local.local_path(filepath, remote)
        requests: list[Pending] = []

        def cancel(_: "Deferred[Path]") -> None:
            self._core.forget(requests[0])
            self._stop_receiving(requests[0])

        done: Deferred[Path] = Deferred(cancel)
        fetching = Fetching(remote=remote, path=path, progress=progress, done=done)
        requests.append(self._core.request_file(remote, token=fetching, timeout=timeout, now=now))
        return done

    # --- sending

    def read(self, piece: FilePiece) -> bytes:
        """Return a piece. Raises OSError, TransferFailed when it cannot be read."""
        sending: Sending = piece.source
        data = sending.file.read(piece.offset, piece.length, hashed=piece.checked)
        self._tell(sending, piece.offset + piece.length, sending.file.size)
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
            if sending.transfer is not None and sending.transfer == transfer:
                sending.fail(TransferFailed(sending.file.path, reason))
                if sending.transfer in self._unconfirmed:
                    del self._unconfirmed[sending.transfer]
                    self._drop(sending, TransferFailed(sending.file.path, reason))
                elif not self._core.begun_file(sending):
                    self._core.abandon_file(sending)
                    self._drop(sending, TransferFailed(sending.file.path, reason))
                sending.transfer = None  # one that is on its way cannot be stopped
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

    def _drop(self, sending: Sending, error: Exception) -> None:
        self._forget(sending)
        sending.file.close()
        sending.fail(error)

    def _forget(self, sending: Sending) -> None:
        if sending in self._sending:
            self._sending.remove(sending)

    # --- receiving

    def offset_asked(self, event: OffsetAsked) -> None:
        """Say how much of a file is here."""
        try:
            if self._root is None:
                raise PathRefused(event.filepath, "this side has no folder for files")
            incoming = self._root.open_to_receive(
                event.filepath, event.size, transfer=event.transfer, checked=True
            )
        except (OSError, PathRefused) as error:
            self._refuse_push(event.filepath, event.transfer, error)
            return
        connection = self._connection

        def offer(_: object) -> None:
            if connection != self._connection:
                incoming.abandon(keep=True)
                return
            self._drop_offered()
            self._offered = incoming
            self._core.extension.send(
                "offset",
                {
                    "transfer": event.transfer,
                    "offset": incoming.position,
                    "sha256": incoming.sha256,
                },
            )
            self._changed()

        def fail(failure: Failure) -> None:
            incoming.abandon()
            self._log.failure("what is here of {path}", failure, path=event.filepath)

        d = self._run_in_thread(incoming.recall)
        d.addCallbacks(offer, fail)

    def pushed(self, event: FilePushed) -> None:
        """Open the place for a file that follows."""
        self._progress, self._confirm = None, event.transfer
        offered, self._offered = self._offered, None
        try:
            if offered is not None and offered.transfer == event.transfer is not None:
                incoming = offered
            else:
                if offered is not None:
                    offered.abandon(keep=True)
                if self._root is None:
                    raise PathRefused(event.filepath, "this side has no folder for files")
                incoming = self._root.open_to_receive(
                    event.filepath, event.size, transfer=event.transfer, checked=event.checked
                )
            self._incoming = incoming
            incoming.size = event.size
            if not incoming.restart_at(event.offset):
                raise TransferFailed(event.filepath, f"offset {event.offset} was not offered")
        except (OSError, MsgServiceError) as error:
            self._refuse_push(event.filepath, event.transfer, error)

    def answered(self, event: FileAnswered) -> None:
        """Open the place for a file that was asked for."""
        fetching: Fetching = event.request.token
        self._fetching = event.request, fetching
        self._progress = fetching.progress
        try:
            incoming, fetching.incoming = fetching.incoming, None
            if incoming is None:
                incoming = self._local.open_local_to_receive(
                    fetching.path, event.size, checked=event.checked
                )
            self._incoming = incoming
            incoming.size = event.size
            if not incoming.restart_at(event.offset):
                raise TransferFailed(fetching.remote, f"offset {event.offset} was not asked for")
        except (OSError, MsgServiceError) as error:
            self._fail_incoming(error)

    def data(self, event: FileData) -> None:
        """Write the next bytes of the file."""
        incoming = self._incoming
        if incoming is None:
            return
        try:
            incoming.write(event.data)
        except OSError as error:  # a full disk, mostly
            self._fail_incoming(error)
            return
        if self._progress is not None:
            self._tell(self, incoming.position, incoming.size)

    def ended(self, event: FileEnded) -> "Deferred[None] | None":
        """Put the file in its place; nothing else may be received before the Deferred fires."""
        incoming, self._incoming = self._incoming, None
        fetching, self._fetching = self._fetching, None
        confirm = self._confirm
        if incoming is None:
            return None

        def done(_: object) -> None:
            if fetching is not None:
                fetching[1].succeed()
                return
            if confirm is not None:
                self._core.extension.send("received", {"transfer": confirm})
            self._received(incoming.path)

        def failed(failure: Failure) -> None:
            failure.trap(OSError, MsgServiceError)
            assert failure.value is not None
            self._incoming, self._fetching = incoming, fetching
            self._fail_incoming(failure.value)

        run = self._run_in_thread if self._local.sync else maybeDeferred
        d: Deferred[Any] = run(incoming.finish, event.sha256)
        d.addCallbacks(done, failed)
        d.addErrback(lambda f: self._log.failure("file {path}", f, path=incoming.path))
        return d

    def interrupted(self) -> None:
        """Close what was being received; keep it if a later connection may go on with it."""
        incoming, self._incoming = self._incoming, None
        fetching, self._fetching = self._fetching, None
        if incoming is None:
            return
        if fetching is None:
            incoming.abandon(keep=True)
            return
        request, token = fetching
        if incoming.is_checked and request in self._core.pending:
            token.incoming = incoming
            self._core.have_part(request, incoming.position, incoming.sha256)
        else:
            incoming.abandon()

    def disconnected(self) -> None:
        """The connection has ended, and with it what threads do for it."""
        self._connection += 1
        self._drop_offered()
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for sending in unconfirmed.values():
            reason = "the connection ended before the receiver confirmed it"
            self._drop(sending, TransferFailed(sending.file.path, reason))

    def close(self, error: Exception) -> None:
        """Give up everything."""
        self.interrupted()
        for sending in list(self._sending):
            self._core.abandon_file(sending)
            self._drop(sending, error)

    def _drop_offered(self) -> None:
        if self._offered is not None:
            self._offered.abandon(keep=True)
            self._offered = None

    def _stop_receiving(self, request: Pending) -> None:
        if self._fetching is not None and self._fetching[0] is request:
            self._fetching = None
            if self._incoming is not None:
                self._incoming.abandon()
                self._incoming = None

    def _fail_incoming(self, error: BaseException) -> None:
        incoming, self._incoming = self._incoming, None
        fetching, self._fetching = self._fetching, None
        if incoming is not None:
            incoming.abandon()
        if fetching is not None:
            request, token = fetching
            self._core.forget(request)
            self._log.warn("file {path} asked for: {reason}", path=token.remote, reason=str(error))
            token.fail(
                error
                if isinstance(error, MsgServiceError)
                else TransferFailed(token.remote, str(error))
            )
        elif incoming is not None:
            self._refuse_push(incoming.path, self._confirm, error)

    def _refuse_push(self, filepath: str, transfer: str | None, error: BaseException) -> None:
        if self._incoming is not None:
            self._incoming.abandon()
            self._incoming = None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._log.warn("pushed file {path}: {reason}", path=filepath[:256], reason=reason)
        self._core.refuse(
            "file-refused", reason, {"filepath": filepath[:1000], "transfer": transfer}
        )

    def _tell(self, holder: Any, done: int, total: int) -> None:
        """Call the progress function that `holder` has; one that raises is not called again."""
        progress = holder.progress if isinstance(holder, Sending) else self._progress
        if progress is None:
            return
        try:
            progress(done, total)
        except Exception:  # noqa: BLE001 - it is the application's; the transfer goes on
            self._log.failure("progress function")
            if isinstance(holder, Sending):
                holder.progress = None
            else:
                self._progress = None
