"""A file that is being received by a Twisted connection: written in a thread, in order.

The reactor goes on receiving while the disk works; `full` tells it when to read no more. Every
write is of all that came meanwhile, so a small file costs one visit to the thread.
"""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from msgservice.faces.callbacks.files import IncomingFile
from msgservice.waiters import Waiters

RunInThread = Callable[..., "Deferred[Any]"]
# What may wait for the disk; a thread's visit costs about 0.1 ms, so it is worth some.
WAITING_BYTES_MAX = 1024 * 1024
WRITE_BYTES_MIN = 256 * 1024


class Arrival:
    """A file being received. After the first error nothing more is written, and `settled` fails.

    `failed` is called with that error, once.
    """

    def __init__(
        self,
        file: IncomingFile,
        *,
        run_in_thread: RunInThread,
        full: Callable[[bool], None],
        failed: Callable[["Arrival", BaseException], None],
    ) -> None:
        self.file = file
        self.received = file.position  # bytes, of which some may still wait for the disk
        self._run_in_thread = run_in_thread
        self._full = full
        self._fail = failed
        self._is_full = False
        self._waiting: list[memoryview] = []
        self._waiting_bytes = 0
        self._is_writing = False
        self._error: BaseException | None = None
        self._settling: Waiters[None] = Waiters()

    def write(self, data: memoryview) -> None:
        """Append, now or later."""
        if self._error is not None:
            return
        self.received += len(data)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if not self._is_writing and self._waiting_bytes >= WRITE_BYTES_MIN:
            self._write()
        self._tell_full()

    def settled(self, *, write: bool = True) -> "Deferred[None]":
        """Return a Deferred that fires when what came is written and no thread is busy.

        Without `write`, what still waits is forgotten.
        """
        if not write:
            self._forget()
        d = self._settling.wait()
        self._go_on()
        return d

    def finish(self, sha256: str | None) -> "Deferred[None]":
        """Put the file in its place; fails as `IncomingFile.finish`."""
        if not self._is_writing and self._error is None:
            # The whole of a small file in one visit.
            data, self._waiting = self._waiting, []
            self._forget()
            return self._run_in_thread(_write_and_finish, self.file, data, sha256)
        d: Deferred[Any] = self.settled()
        d.addCallback(lambda _: self._run_in_thread(self.file.finish, sha256))
        return d

    def abandon(self, *, keep: bool = False) -> None:
        """Close the file when the thread is done with it."""
        d = self.settled(write=keep)
        d.addErrback(lambda _: None)  # it is being given up anyway
        d.addCallback(lambda _: self.file.abandon(keep=keep))

    def _write(self) -> None:
        data, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        self._is_writing = True
        d = self._run_in_thread(_write_all, self.file, data)
        d.addCallbacks(lambda _: None, self._failed)
        d.addCallback(self._written)

    def _failed(self, failure: Any) -> None:
        self._error = failure.value
        self._is_writing = False
        self._forget()
        self._fail(self, failure.value)

    def _written(self, _: object) -> None:
        self._is_writing = False
        self._go_on()
        self._tell_full()

    def _go_on(self) -> None:
        if self._is_writing:
            return
        if self._error is None and (
            self._waiting_bytes >= WRITE_BYTES_MIN or (self._settling and self._waiting)
        ):
            self._write()
            return
        if self._error is None:
            self._settling.fire(None)
        else:
            self._settling.fail(self._error)

    def _forget(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
        self._tell_full()

    def _tell_full(self) -> None:
        is_full = self._is_writing and self._waiting_bytes > WAITING_BYTES_MAX
        if is_full != self._is_full:
            self._is_full = is_full
            self._full(is_full)


def _write_all(file: IncomingFile, data: list[memoryview]) -> None:
    for piece in data:
        file.write(piece)


def _write_and_finish(file: IncomingFile, data: list[memoryview], sha256: str | None) -> None:
    _write_all(file, data)
    file.finish(sha256)
