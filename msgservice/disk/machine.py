"""The machine beside SQLite, for a log, an outbox and an inbox: plain files, and threads.

`Files` are those functions of the module `os` that change something, and `os` itself is the
default; `Threads` gives the workers and the writer of marks. A simulation gives others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads

from msgservice.disk.mark import Mark, MarkFile, MarkWriter
from msgservice.threads import Worker

T = TypeVar("T")


class Jobs(Protocol):
    """A worker: one thread, and what is to be done on it (`threads.Worker`)."""

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do, and all that it did was told."""

    def submit(self, job: Callable[[], T]) -> Deferred[T]:
        """Run `job` after those before it; fire with its result."""

    def stop(self) -> None:
        """End when all jobs are done."""


class Marks(Protocol):
    """The writer of high-water marks (`disk.mark.MarkWriter`)."""

    @property
    def error(self) -> OSError | None:
        """The error that prevents marks from being written, if any."""

    @property
    def is_full(self) -> bool:
        """Whether there was no room for the newest mark."""

    def submit(self, mark: Mark) -> None:
        """Have this mark written, unless a newer one comes first."""

    def wait(self, mark: Mark) -> None:
        """Return when `mark` or a newer one is synced; raises the `OSError` that prevents it."""

    def stop(self) -> None:
        """Write what is waiting, and close the file."""


class Threads(Protocol):
    """The maker of workers and writers of marks."""

    def worker(self, name: str) -> Jobs:
        """Begin a worker."""

    def marks(self, file: MarkFile, interval: float) -> Marks:
        """Begin a writer of marks into `file`, one every `interval` seconds at most."""


class OwnThreads:
    """`Threads` of this process; what they did is told on the reactor's."""

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor

    def worker(self, name: str) -> Worker:
        """See `Threads`."""
        return Worker(self._reactor, name)

    def marks(self, file: MarkFile, interval: float) -> MarkWriter:
        """See `Threads`."""
        return MarkWriter(file, interval)
