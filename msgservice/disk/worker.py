"""Threads that own something that only one thread may touch, and answer on the reactor's.

A `Worker` runs jobs one after the other, in the order given. It is no pool: the writing connection
of a log belongs to one worker and its reading connection to another, so a slow page never holds up
a commit, and neither waits for the DNS lookups in the reactor's own pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

T = TypeVar("T")
Job = tuple[Callable[[], Any], "Deferred[Any]"]


class Worker:
    """One thread and its queue of jobs.

    The thread is a daemon: a process that is told to end, ends; what was committed stays so.
    """

    def __init__(self, reactor: IReactorFromThreads, name: str) -> None:
        self._reactor = reactor
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Deferred[T]:
        """Run `job` after those before it; fire with its result on the reactor's thread.

        Cancelling stops the wait, not the job.
        """
        waiter: Deferred[T] = Deferred()
        self._jobs.put((job, waiter))
        return waiter

    def stop(self) -> None:
        """End the thread when all jobs are done; returns at once."""
        self._jobs.put(None)

    def _run(self) -> None:
        call = self._reactor.callFromThread
        while (entry := self._jobs.get()) is not None:
            job, waiter = entry
            try:
                result = job()
            except BaseException:
                call(waiter.errback, Failure())
            else:
                call(waiter.callback, result)
            del entry, job, waiter
