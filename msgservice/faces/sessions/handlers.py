"""Handlers of messages: one at a time in each lane, in order; on the reactor or on threads.

A lane is whatever a side keeps in order: one remote, one connection. How much may wait in it, the
`listener` bounds by reading no further.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from threading import Thread, current_thread
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from msgservice.arguments import check_counts
from msgservice.clock import timed
from msgservice.errors import GENERATORS, check_runs, has_not_run
from msgservice.faces.sessions.limits import SessionLimits
from msgservice.waiters import Failed, Waiters, failure_of

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


class Job:
    """A message that waits for its turn, or for its handler; without one, for those before it."""

    __slots__ = ("_done", "_ended", "failure", "message")

    def __init__(self, message: SessionMessage | None, failure: str | None = None) -> None:
        self.message, self.failure = message, failure
        self._done: Done | None = None
        self._ended: tuple[str | None] | None = None

    def then(self, done: Done) -> None:
        """Call `done` when its handler has ended, with why that failed or None."""
        if self._ended is not None:
            done(*self._ended)
        else:
            self._done = done

    def end(self, failure: str | None) -> None:
        """Take note that its handler has ended."""
        if self._done is not None:
            self._done(failure)
        else:
            self._ended = (failure,)


Outcome = Job | str | None  # of a handler: not known yet, or why it failed


class _Daemon(Thread):
    """A thread that does not hold up the end of the process, whatever it does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, daemon=True)


class _Pool(ThreadPool):
    threadFactory = _Daemon


class _NotBegun(Exception):
    """A handler that there was no thread for before the stop."""


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
        check_counts(0, threads=threads)
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
        # Those where a handler runs, and what waits behind that; None: nothing.
        self._lanes: dict[Hashable, deque[Job] | None] = {}
        self._running = 0
        self._is_stopped = False
        self._idle: Waiters[None] = Waiters()
        self._pool: ThreadPool | None = None
        self._threads = threads

    def submit(self, lane: Hashable, message: SessionMessage) -> Outcome:
        """Handle a message behind those of its lane.

        Return None where its handler has ended, or why that failed; else the job that it is now.
        """
        lanes = self._lanes
        function = self._function
        if lane in lanes or self._is_stopped or self._threads:
            return self._wait(lane, message)
        if function is None:
            return None
        # Most end at once, and nothing waits behind them.
        lanes[lane] = None
        self._running += 1
        failure: str | None = None
        try:
            result = function(message)
        except BaseException:  # SystemExit and the like too, or its lane would stand for ever
            failure = self._reason(Failure())
        else:
            if result is not None:
                outcome = self._outcome(result)
                if isinstance(outcome, Deferred):
                    job = Job(message)
                    outcome.addBoth(self._over, lane, job)
                    return job
                failure = outcome
        self._running -= 1
        if lanes[lane] is not None or self._is_stopped:  # while the handler ran
            self._reactor.callLater(0, self._run, lane)  # when this one's end is known
        else:
            del lanes[lane]
        return failure

    def fail(self, lane: Hashable, failure: str, peer: tuple[str, int]) -> Outcome:
        """Let a message that could not be read fail in its turn; return as `submit` does."""
        self._log.warn(
            "a message from {host}:{port} cannot be read: {why}",
            host=peer[0],
            port=peer[1],
            why=failure,
        )
        failure = f"BadPayload: {failure}"[:REASON_MAX]
        return self._wait(lane, None, failure) if lane in self._lanes else failure

    def after(self, lane: Hashable, done: Done) -> None:
        """Call `done` when all that a lane has have ended."""
        if lane in self._lanes:
            self._wait(lane, None).then(done)
        else:
            done(None)

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

    def _wait(
        self, lane: Hashable, message: SessionMessage | None, failure: str | None = None
    ) -> Job:
        job = Job(message, failure)
        is_free = lane not in self._lanes
        jobs = self._lanes.get(lane)
        if jobs is None:
            jobs = self._lanes[lane] = deque()
        jobs.append(job)
        if is_free:
            self._run(lane)
        return job

    def _run(self, lane: Hashable) -> None:
        """Handle what a lane has, until one is not done at once."""
        jobs = self._lanes[lane]
        while jobs and not self._is_stopped:
            job = jobs.popleft()
            failure = job.failure
            if job.message is not None and self._function is not None:
                self._running += 1
                outcome = self._call(self._function, job.message)
                if outcome is not None and not isinstance(outcome, str):
                    outcome.addBoth(self._over, lane, job)
                    return
                self._running -= 1
                failure = outcome
            job.end(failure)
        if not jobs:
            del self._lanes[lane]
        if not self._running:
            self._idle.fire(None)

    def _call(
        self, function: Callable[[SessionMessage], object], message: SessionMessage
    ) -> Deferred[Any] | str | None:
        """Return what is waited for; where it has ended already why it failed, or None."""
        try:
            if self._threads:
                pool = self._threadpool()
                return deferToThreadPool(self._untimed, pool, self._on_thread, function, message)
            result = function(message)
        except BaseException:  # as in `submit`
            return self._reason(Failure())
        return self._outcome(result) if result is not None else None

    def _outcome(self, result: object) -> Deferred[Any] | str | None:
        """Return what is waited for of what a handler returned, else why that failed, or None."""
        try:
            if isinstance(result, GENERATORS):
                raise has_not_run(result)
            if isinstance(result, Coroutine):
                result = Deferred.fromCoroutine(result)
        except BaseException:  # of a coroutine, before it first waits
            return self._reason(Failure())
        if not isinstance(result, Deferred):
            return None
        # One that has fired is no wait: a long lane of those would call each from within the last.
        ended: list[Failure | None] = []

        def end(outcome: object) -> object:
            failure = failure_of(outcome)
            ended.append(failure)
            # The same Deferred may be the outcome of other messages, and those have failed too.
            return Failed(failure) if failure is not None else outcome

        result.addBoth(end)
        if not ended:
            return result
        return self._reason(ended[0]) if ended[0] is not None else None

    def _over(self, result: object, lane: Hashable, job: Job) -> Failed | None:
        self._running -= 1
        failure = failure_of(result)
        if failure is None or failure.check(_NotBegun) is None:  # of that one there is no answer
            job.end(self._reason(failure) if failure is not None else None)
        self._run(lane)
        if self._is_stopped:  # it may have taken longer than the stop
            self._stop_pool()
        return Failed(failure) if failure is not None else None

    def _on_thread(
        self, function: Callable[[SessionMessage], object], message: SessionMessage
    ) -> None:
        """Run a handler as soon as there is a thread for it, unless a stop has come before."""
        if self._is_stopped:
            raise _NotBegun
        _block(function, message)

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
        if self._running:
            return
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()


def check_thread() -> None:
    """Raise `RuntimeError` on a thread where handlers run: a side belongs to its reactor's."""
    if isinstance(current_thread(), _Daemon):
        raise RuntimeError(
            "this is a thread of handlers: a side is used on its reactor's; on others through "
            "reactor.callFromThread, or twisted.internet.threads.blockingCallFromThread"
        )


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
