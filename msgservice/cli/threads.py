"""Calls that wait for people and pipes, in threads that never hold up the end of the process."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

T = TypeVar("T")


def in_daemon_thread(reactor: IReactorFromThreads, function: Callable[[], T]) -> Deferred[T]:
    """Fire with what `function` returns or raises.

    The reactor's own pool is waited for at the end of the process, and a read of a terminal can
    last for ever; so each call gets a daemon thread. Cancelling stops the wait, not the call.
    """
    waiter: Deferred[T] = Deferred()

    def fire(result: T | Failure) -> None:
        if not waiter.called:  # else it was cancelled
            waiter.callback(result)  # a Failure goes down the errback side

    def work() -> None:
        try:
            result: T | Failure = function()
        except BaseException:
            result = Failure()
        reactor.callFromThread(fire, result)

    Thread(target=work, daemon=True).start()
    return waiter
