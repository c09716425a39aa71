"""Files that a Twisted `Connection` receives: those pushed to it, and those it asked for.

Called by `faces.callbacks.driver` with the events of the core that are about them. At most one
is being received; it is written in a thread (`faces.callbacks.arrival`), and `full` says when to
read no more from the peer. A file that fails is given up with a log line and, between our own
peers, an `error`; what else comes of it is ignored, and the connection lives on.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.errors import MsgServiceError, PathRefused, TransferFailed
from msgservice.faces.callbacks.arrival import Arrival, RunInThread
from msgservice.faces.callbacks.files import FileRoot, IncomingFile
from msgservice.faces.callbacks.outgoing import Progress
from msgservice.faces.callbacks.protocol.events import (
    FileAnswered,
    FileData,
    FileEnded,
    FilePushed,
    OffsetAsked,
    Pending,
)
from msgservice.faces.callbacks.protocol.peer import CallbackPeer

# How long, and how often, to wait for an earlier connection to let go of a file.
LOCKED_SECONDS = 0.1
LOCKED_TRIES = 50


class Fetching:
    """A file that was asked for; the token of its request."""

    def __init__(
        self, *, remote: str, path: Path, progress: Progress | None, done: "Deferred[Path]"
    ) -> None:
        self.remote, self.path, self.progress = remote, path, progress
        self.part: IncomingFile | None = None  # what an earlier connection brought
        self._done: Deferred[Path] | None = done

    def succeed(self) -> None:
        """The file is in its place."""
        done, self._done = self._done, None
        if done is not None:
            done.callback(self.path)

    def fail(self, error: BaseException) -> None:
        """The file will not come."""
        if self.part is not None:
            self.part.abandon()
            self.part = None
        done, self._done = self._done, None
        if done is not None:
            done.errback(Failure(error))


class Incoming:
    """File downloads of a connection. `changed` is called when there may be something to send."""

    _log = Logger()

    def __init__(
        self,
        *,
        core: CallbackPeer,
        root: FileRoot | None,
        run_in_thread: RunInThread,
        changed: Callable[[], None],
        received: Callable[[str], None],
        full: Callable[[bool], None],
        later: Callable[..., object],
        settled: Callable[[], None],
    ) -> None:
        self._later = later
        self._settled = settled
        self._settling = 0  # parts that a thread still works on
        self._core = core
        self._root = root
        self._local = root or FileRoot()
        self._run_in_thread = run_in_thread
        self._changed = changed
        self._received = received
        self._full = full
        self._connection = 0  # which, so that a thread does not answer for an earlier one
        self._arrival: Arrival | None = None
        self._fetching: tuple[Pending, Fetching] | None = None  # None: it is pushed
        self._confirm: str | None = None  # the name of its transfer
        self._progress: Progress | None = None
        self._offered: IncomingFile | None = None

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
            if self._fetching is not None and self._fetching[0] is requests[0]:
                self._abandon()
            fetching.fail(CancelledError())

        done: Deferred[Path] = Deferred(cancel)
        fetching = Fetching(remote=remote, path=path, progress=progress, done=done)
        requests.append(self._core.request_file(remote, token=fetching, timeout=timeout, now=now))
        return done

    @property
    def is_settled(self) -> bool:
        """Whether what came of interrupted files is on the disk."""
        return not self._settling

    # --- events

    def offset_asked(self, event: OffsetAsked, tries: int = LOCKED_TRIES) -> None:
        """Say how much of a file is here."""
        try:
            if self._root is None:
                raise PathRefused(event.filepath, "this side has no folder for files")
            file = self._root.open_to_receive(
                event.filepath, event.size, transfer=event.transfer, checked=True
            )
        except (OSError, PathRefused) as error:
            self._refuse_push(event.filepath, event.transfer, error)
            return
        connection = self._connection
        if file.transfer is None and tries > 0:
            # The connection that broke off may not know it yet, and still has the file open.
            file.abandon()
            self._later(LOCKED_SECONDS, self._ask_again, event, connection, tries - 1)
            return

        def offer(_: object) -> None:
            if connection != self._connection:
                file.abandon(keep=True)
                return
            self._drop_offered()
            self._offered = file
            self._core.extension.send(
                "offset",
                {
                    "transfer": event.transfer,
                    "offset": file.position,
                    "sha256": file.sha256,
                },
            )
            self._changed()

        def fail(failure: Failure) -> None:
            file.abandon()
            self._log.failure("what is here of {path}", failure, path=event.filepath)

        d = self._run_in_thread(file.recall)
        d.addCallbacks(offer, fail)

    def _ask_again(self, event: OffsetAsked, connection: int, tries: int) -> None:
        if connection == self._connection:
            self.offset_asked(event, tries)

    def pushed(self, event: FilePushed) -> None:
        """Open the place for a file that follows."""
        self._fetching, self._progress, self._confirm = None, None, event.transfer
        offered, self._offered = self._offered, None
        file: IncomingFile | None = None
        try:
            if offered is not None and offered.transfer == event.transfer is not None:
                file = offered
            else:
                if offered is not None:
                    offered.abandon(keep=True)
                if self._root is None:
                    raise PathRefused(event.filepath, "this side has no folder for files")
                file = self._root.open_to_receive(
                    event.filepath, event.size, transfer=event.transfer, checked=event.checked
                )
            self._arrive(file, event.size, event.offset)
        except (OSError, MsgServiceError) as error:
            if file is not None:
                file.abandon()
            self._refuse_push(event.filepath, event.transfer, error)

    def answered(self, event: FileAnswered) -> None:
        """Open the place for a file that was asked for."""
        token: Fetching = event.request.token
        self._fetching = event.request, token
        self._progress = token.progress
        file, token.part = token.part, None
        try:
            if file is None:
                file = self._local.open_local_to_receive(
                    token.path, event.size, checked=event.checked
                )
            self._arrive(file, event.size, event.offset)
        except (OSError, MsgServiceError) as error:
            if file is not None:
                file.abandon()
            self._fail_fetch(error)

    def _arrive(self, file: IncomingFile, size: int, offset: int) -> None:
        file.size = size
        if not file.restart_at(offset):
            raise TransferFailed(file.path, f"offset {offset} of what comes is not here")
        self._arrival = Arrival(
            file, run_in_thread=self._run_in_thread, full=self._full, failed=self._write_failed
        )

    def data(self, event: FileData) -> None:
        """Take the next bytes of the file."""
        arrival = self._arrival
        if arrival is None:
            return
        arrival.write(event.data)
        if self._progress is not None:
            self._tell(arrival.received, arrival.file.size)

    def _write_failed(self, arrival: Arrival, error: BaseException) -> None:
        if arrival is self._arrival:  # a full disk, mostly
            self._fail(error)

    def ended(self, event: FileEnded) -> "Deferred[None] | None":
        """Put the file in its place; nothing else may be received before the Deferred fires."""
        arrival = self._arrival
        if arrival is None:
            self._fetching = None
            return None
        file, fetching, confirm = arrival.file, self._fetching, self._confirm

        def done(_: object) -> None:
            if arrival is self._arrival:
                self._arrival = self._fetching = None
            if fetching is not None:
                fetching[1].succeed()
                return
            if confirm is not None:
                self._core.extension.send("received", {"transfer": confirm})
            self._received(file.path)

        def failed(failure: Failure) -> None:
            failure.trap(OSError, MsgServiceError)
            assert failure.value is not None
            if arrival is self._arrival:
                self._fail(failure.value)

        d: Deferred[Any] = arrival.finish(event.sha256)
        d.addCallbacks(done, failed)
        d.addErrback(lambda f: self._log.failure("file {path}", f, path=file.path))
        return d

    def interrupted(self) -> None:
        """Close what was being received; keep it if a later connection may go on with it."""
        arrival, self._arrival = self._arrival, None
        fetching, self._fetching = self._fetching, None
        if arrival is None:
            return
        if fetching is None or not arrival.file.is_checked:
            arrival.abandon(keep=fetching is None)
            return
        request, token = fetching
        file = arrival.file

        def remember(_: object) -> None:
            is_again = self._fetching is not None and self._fetching[0] is request
            if is_again or request not in self._core.pending:
                file.abandon()
                return
            token.part = file
            self._core.have_part(request, file.position, file.sha256)

        def settle(_: object) -> None:
            self._settling -= 1
            self._settled()

        self._settling += 1
        d = arrival.settled()
        d.addCallbacks(remember, lambda _: file.abandon())
        d.addErrback(lambda f: self._log.failure("part of {path}", f, path=file.path))
        d.addBoth(settle)

    def disconnected(self) -> None:
        """The connection has ended, and with it what threads do for it."""
        self._connection += 1
        self._drop_offered()

    def close(self) -> None:
        """Give up everything."""
        self._abandon()

    # --- ends

    def _abandon(self) -> None:
        arrival, self._arrival = self._arrival, None
        self._fetching = None
        if arrival is not None:
            arrival.abandon(keep=self._confirm is not None)

    def _drop_offered(self) -> None:
        if self._offered is not None:
            self._offered.abandon(keep=True)
            self._offered = None

    def _fail(self, error: BaseException) -> None:
        arrival, self._arrival = self._arrival, None
        assert arrival is not None
        arrival.abandon()
        if self._fetching is not None:
            self._fail_fetch(error)
        else:
            self._refuse_push(arrival.file.path, self._confirm, error)

    def _fail_fetch(self, error: BaseException) -> None:
        fetching, self._fetching = self._fetching, None
        assert fetching is not None
        request, token = fetching
        self._core.forget(request)
        self._log.warn("file {path} asked for: {reason}", path=token.remote, reason=str(error))
        token.fail(
            error
            if isinstance(error, MsgServiceError)
            else TransferFailed(token.remote, str(error))
        )

    def _refuse_push(self, filepath: str, transfer: str | None, error: BaseException) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._log.warn("pushed file {path}: {reason}", path=filepath[:256], reason=reason)
        self._core.refuse(
            "file-refused", reason, {"filepath": filepath[:1000], "transfer": transfer}
        )

    def _tell(self, done: int, total: int) -> None:
        """Call the progress function; one that raises is not called again."""
        assert self._progress is not None
        try:
            self._progress(done, total)
        except BaseException:
            self._log.failure("progress function")
            self._progress = None
