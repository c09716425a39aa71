"""A reactor of one function for code that answers with `callFromThread`: `ThreadCalls`.

Not a mock: it is the one method of IReactorFromThreads, with a queue that `wait` empties on the
test's own thread.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, Queue
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure
from zope.interface import implementer

T = TypeVar("T")


@implementer(IReactorFromThreads)
class ThreadCalls:
    """Runs what threads hand in, while somebody waits."""

    def __init__(self) -> None:
        self._calls: Queue[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = Queue()

    def callFromThread(
        self,
        callable: Callable[..., Any],  # noqa: A002 - the name that the interface has
        *args: object,
        **kwargs: object,
    ) -> None:
        self._calls.put((callable, args, kwargs))

    def callInThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:  # noqa: A002
        raise NotImplementedError

    def getThreadPool(self) -> Any:
        raise NotImplementedError

    def suggestThreadPoolSize(self, size: int) -> None:
        raise NotImplementedError

    def wait(self, waiter: Deferred[T], timeout: float = 60.0) -> T:
        """Return what `waiter` fires with, or raise what it fails with."""
        results: list[T | Failure] = []
        waiter.addBoth(results.append)
        while not results:
            try:
                call, args, kwargs = self._calls.get(timeout=timeout)
            except Empty:
                raise TimeoutError(f"no result within {timeout:g} s") from None
            call(*args, **kwargs)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result
