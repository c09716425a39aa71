"""Threads of our own, which answer on the reactor's and never hold up the end of the process.

A `Worker` runs jobs one after the other, in the order given, for what only one thread may touch. It
is no pool: the writing connection
of a log belongs to one worker and its reading connection to another, so a slow page never holds up
a commit, and neither waits for the DNS lookups in the reactor's own pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")
Job = tuple[Callable[[], Any], "Deferred[Any]"]


def begin_daemon(name: str, run: Callable[[], object]) -> threading.Thread:
    """Start a thread; a process that is told to end, ends, whatever the thread is doing."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


class DaemonPool(ThreadPool):
    """A thread pool that does not keep the process alive: a call that never ends must not."""

    threadFactory = partial(threading.Thread, daemon=True)  # type: ignore[assignment]  # is called


class DaemonThreads(ReactorBase):
    """A reactor whose own pool, which resolves names, does not keep the process alive either.

    For reactors that nobody stops at the end: Twisted's pool is waited for until somebody does.
    """

    def _initThreadPool(self) -> None:
        super()._initThreadPool()
        assert self.threadpool is not None
        # Twisted calls it with the arguments of a thread.
        self.threadpool.threadFactory = DaemonPool.threadFactory  # type: ignore[assignment]


class Worker:
    """One thread and its queue of jobs. At the end of the process what was committed stays so."""

    def __init__(self, reactor: IReactorFromThreads, name: str) -> None:
        self._reactor = reactor
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._untold = 0  # jobs, of which the reactor's thread alone keeps account
        begin_daemon(name, self._run)

    def submit(self, job: Callable[[], T]) -> Deferred[T]:
        """Run `job` after those before it; fire with its result on the reactor's thread.

        Cancelling stops the wait, not the job.
        """
        waiter: Deferred[T] = Deferred()
        self._untold += 1
        self._jobs.put((job, waiter))
        return waiter

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do, and all that it did was told."""
        return not self._untold

    def _tell(self, tell: Callable[[Any], None], result: object) -> None:
        self._untold -= 1
        tell(result)

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
                call(self._tell, waiter.errback, Failure())
            else:
                call(self._tell, waiter.callback, result)
            del entry, job, waiter


def in_daemon_thread(reactor: IReactorFromThreads, function: Callable[[], T]) -> Deferred[T]:
    """Call a function that waits for people or pipes; fire with what it returns or raises.

    The reactor's own pool is waited for at the end of the process, and a read of a terminal can
    last for ever; so each call gets a thread. Cancelling stops the wait, not the call.
    """
    worker = Worker(reactor, "msgservice call")
    waiter = worker.submit(function)
    worker.stop()
    return waiter
