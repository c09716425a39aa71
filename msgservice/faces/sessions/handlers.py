"""Handlers of messages: one at a time in each lane, in order; on the reactor or on threads.

A lane is whatever a side keeps in order: one remote, one connection. How much may wait in it, the
`listener` bounds by reading no further.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from threading import Thread
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from msgservice.clock import timed
from msgservice.errors import GENERATORS, check_runs, has_not_run
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.waiters import Waiters

REASON_MAX = 200  # characters of a failure, as the other side hears it


class SessionMessage(msgspec.Struct, frozen=True):
    """A message as a handler gets it.

    `key`: of the remote that sent it, its id or the address of its server; None where nobody has
    said hello on that connection. `peer`: the other end of the connection. `session`, `number`:
    None from a side that numbers nothing. `record`: the log record that carried it, as a mapping.
    """

    content: Any
    key: str | tuple[str, int] | None
    peer: tuple[str, int]
    session: str | None = None
    number: int | None = None
    record: Mapping[str, Any] | None = None


Done = Callable[[str | None], None]
Job = tuple[SessionMessage | None, Done]


class _Daemon(Thread):
    """A thread that does not hold up the end of the process, whatever it does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, daemon=True)


class _Pool(ThreadPool):
    threadFactory = _Daemon


class Handlers:
    """Runs one function for all messages of a side.

    Args:
        function: the handler; None: nothing is done with messages.
        threads: so many threads of its own, where it may block; 0: the reactor's thread.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        function: Callable[[SessionMessage], object] | None,
        *,
        threads: int = 0,
        limits: SessionLimits,
    ) -> None:
        if threads < 0:
            raise ValueError(f"threads = {threads}: 0 or more are needed")
        if function is not None:
            if not callable(function):
                raise TypeError(f"a handler must be callable, not {type(function).__name__}")
            check_runs(function)
            for called in (function, type(function).__call__):
                if threads and inspect.iscoroutinefunction(called):
                    raise TypeError("a coroutine function cannot run on threads")
        self._untimed: Any = reactor
        self._reactor = timed(reactor)
        self._function = function
        self._limits = limits
        self._lanes: dict[Hashable, deque[Job]] = {}  # those that have something
        self._running = 0
        self._is_stopped = False
        self._idle: Waiters[None] = Waiters()
        self._pool: ThreadPool | None = None
        self._threads = threads

    def submit(self, lane: Hashable, message: SessionMessage | None, done: Done) -> None:
        """Handle a message behind those of its lane, then call `done(failure or None)`.

        Without a message nothing is called: `done` says that all before it have ended.
        """
        jobs = self._lanes.get(lane)
        if jobs is not None:
            jobs.append((message, done))
            return
        jobs = self._lanes[lane] = deque()
        if self._threads or message is None or self._function is None or self._is_stopped:
            jobs.append((message, done))
            self._run(lane)
            return
        # Most end at once, and nothing waits behind them.
        self._running += 1
        waited, failure = self._call(self._function, message)
        if waited is not None:
            jobs.append((message, done))
            waited.addBoth(self._over, lane, done)
            return
        self._running -= 1
        done(failure)
        self._run(lane)

    def stop(self) -> Deferred[None]:
        """Begin nothing more; fires when those that run have ended, or `stop_seconds` are over."""
        self._is_stopped = True
        ended: Deferred[None] = Deferred()
        timer: IDelayedCall | None = None

        def fire(_: object = None) -> None:
            if timer is not None and timer.active():
                timer.cancel()
            if not ended.called:
                self._stop_pool()
                ended.callback(None)

        if self._running:
            timer = self._reactor.callLater(self._limits.stop_seconds, fire)
            self._idle.wait().addCallback(fire)
        else:
            fire()
        return ended

    # --- inside

    def _run(self, lane: Hashable) -> None:
        """Handle what a lane has, until one is not done at once."""
        jobs = self._lanes[lane]
        function = self._function
        while jobs and not self._is_stopped:
            message, done = jobs[0]
            failure = None
            if message is not None and function is not None:
                self._running += 1
                waited, failure = self._call(function, message)
                if waited is not None:
                    waited.addBoth(self._over, lane, done)
                    return
                self._running -= 1
            jobs.popleft()
            done(failure)
        if not jobs:
            self._lanes.pop(lane, None)
        if not self._running:
            self._idle.fire(None)

    def _call(
        self, function: Callable[[SessionMessage], object], message: SessionMessage
    ) -> tuple[Deferred[Any] | None, str | None]:
        """Return what is waited for; where it has ended already None, and why it failed."""
        try:
            if self._threads:
                pool = self._threadpool()
                return deferToThreadPool(self._untimed, pool, _block, function, message), None
            result = function(message)
            if result is None:
                return None, None
            if isinstance(result, GENERATORS):
                raise has_not_run(result)
            if isinstance(result, Coroutine):
                result = Deferred.fromCoroutine(result)
        except BaseException:  # SystemExit and the like too, or its lane would stand for ever
            return None, self._reason(Failure())
        if not isinstance(result, Deferred):
            return None, None
        # One that has fired is no wait: a long lane of those would call each from within the last.
        ended: list[Any] = []
        result.addBoth(ended.append)
        if not ended:
            return result.addCallback(lambda _: ended.pop()), None
        return None, self._reason(ended[0]) if isinstance(ended[0], Failure) else None

    def _over(self, result: object, lane: Hashable, done: Done) -> None:
        self._running -= 1
        jobs = self._lanes[lane]
        jobs.popleft()
        done(self._reason(result) if isinstance(result, Failure) else None)
        self._run(lane)

    def _reason(self, failure: Failure) -> str:
        self._log.failure("a handler failed", failure)
        kind = type(failure.value).__name__
        try:
            text = str(failure.value)
        except BaseException:  # it is foreign code, too
            text = ""
        reason = f"{kind}: {text}" if text else kind
        return reason.encode(errors="backslashreplace").decode()[:REASON_MAX]  # it is sent

    def _threadpool(self) -> ThreadPool:
        if self._pool is None:
            self._pool = _Pool(1, self._threads, "sessions")
            self._pool.start()
        return self._pool

    def _stop_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and not self._running:
            pool.stop()


def _block(function: Callable[[SessionMessage], object], message: SessionMessage) -> None:
    """Run a handler on its thread; what it returns must not be waited for: it never would be."""
    result = function(message)
    if isinstance(result, GENERATORS):
        raise has_not_run(result)
    if isinstance(result, Awaitable):
        if isinstance(result, Coroutine):
            result.close()
        kind = type(result).__name__
        raise TypeError(f"a handler on a thread returned a {kind}: nothing there waits for it")
