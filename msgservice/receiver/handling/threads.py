"""Handlers that block: on threads of their own, never the reactor's (it resolves names there).

A lane with order has one thread at a time, which handles message after message of its work for
`SLICE_SECONDS` before it reports; so what is done is acknowledged, and a lane that waits gets its
turn. Without order each message is a unit of its own, on any thread that is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from msgservice.errors import GENERATORS, has_not_run
from msgservice.receiver.handling.engine import (
    PENDING,
    SLICE_SECONDS,
    Handler,
    Handling,
)
from msgservice.receiver.handling.work import HandlerCall, Lane, Work
from msgservice.threads import DaemonPool, begin_daemon


class HandlerThreads:
    """The threads of one receiver, at most `count`; they are started when there is work."""

    def __init__(self, count: int, name: str, reactor: IReactorFromThreads) -> None:
        self.reactor = reactor
        self._count, self._name = count, name
        self._pool: DaemonPool | None = None

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call this on a thread; whatever it returns is dropped, so it does not raise."""
        self._running().callInThread(function, *arguments)

    def result_of(self, handler: Handler, unit: Any) -> Deferred[Any]:
        """Call a handler on a thread; fires with its result on the reactor's.

        Cancelling ends the wait; the handler goes on.
        """
        return deferToThreadPool(self.reactor, self._running(), _call_checked, handler, unit)

    def stop(self) -> None:
        """Let the threads go; one whose handler does not end is left to itself."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if pool.working:  # perhaps with what was cancelled, of which nobody else knows
            begin_daemon("msgservice pool", pool.stop)  # it waits for all of them
        else:
            pool.stop()

    def _running(self) -> DaemonPool:
        if self._pool is None:
            self._pool = DaemonPool(1, self._count, f"receiver {self._name}")
            self._pool.start()
        return self._pool


class ThreadedHandling(Handling):
    """A `Handling` whose handler runs on one of `threads` threads."""

    def __init__(self, handler: Handler, *, threads: int, batch: bool, **more: Any) -> None:
        super().__init__(handler, batch=batch, **more, concurrency=threads)
        self._threads = HandlerThreads(threads, self._name, more["clock"])
        self._step = self._step_thread

    def stop_threads(self) -> None:
        """See `Handling`."""
        self._threads.stop()

    def _step_thread(self, lane: Lane, work: Work) -> bool:
        first = work.at
        stop = work.stop if lane.key is not None or self._batch else first + 1
        messages = work.messages[first:stop]
        call = HandlerCall(lane, work, first, stop)
        until = self._now() + SLICE_SECONDS
        self._threads.call(self._in_thread, call, messages, until)
        return self._started(call)

    def _in_thread(self, call: HandlerCall, messages: list[Any], until: float) -> None:
        if self._batch:
            done, failure = _handle_all(self._handler, messages)
        else:
            done, failure = self._handle_each(call.lane, messages, until)
        self._threads.reactor.callFromThread(self._back, call, done, failure)

    def _handle_each(
        self, lane: Lane, messages: list[Any], until: float
    ) -> tuple[int, Failure | None]:
        handler, now = self._handler, self._now
        done = 0
        try:
            for message in messages:
                _check(handler(message))
                done += 1
                if self.is_stopping or lane.is_over or now() >= until:
                    break
        except BaseException:  # whatever it is, it is the handler's, and the thread goes on
            return done, Failure()
        return done, None

    def _back(self, call: HandlerCall, done: int, failure: Failure | None) -> None:
        try:
            self._ended(call, done, failure, call.stop - call.first if self._batch else 1)
        except Exception:  # the reactor would only log it
            self._end_failed(call)


def _handle_all(handler: Callable[[Any], Any], messages: list[Any]) -> tuple[int, Failure | None]:
    try:
        _check(handler(messages))
    except BaseException:  # see `_handle_each`
        return 0, Failure()
    return len(messages), None


def _call_checked(handler: Handler, unit: Any) -> Any:
    result = handler(unit)
    _check(result)
    return result


def _check(result: Any) -> None:
    if isinstance(result, GENERATORS):
        raise has_not_run(result)
    if isinstance(result, PENDING):
        kind = type(result).__name__
        if not hasattr(result, "addBoth"):
            result.close()
        raise TypeError(
            f"a handler on a thread returned a {kind}: use threads=0 for such a handler"
        )
