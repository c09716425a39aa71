"""Twisted's reactor on the event loop of asyncio that runs, and Deferreds as futures of it.

`reactor()` is the reactor of the running loop. Where no reactor is installed ours is, so that what
asks Twisted for one gets this; where ours is installed on a loop that has been closed since, the
next loop's takes its place (each `asyncio.run` has a loop of its own). Somebody else's is refused:
a program has one loop, and nothing of that reactor would ever run.

The reactor ends with its loop: asyncio closes the asynchronous generators of a loop at its end
(`loop.shutdown_asyncgens`, which `asyncio.run` calls), and one of them is ours.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, TypeVar, cast

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.main import installReactor
from twisted.python.failure import Failure

from msgservice.clock import Reactor
from msgservice.errors import ForeignReactor
from msgservice.threads import DaemonThreads

T = TypeVar("T")
INSTALLED = "twisted.internet.reactor"


class LoopReactor(DaemonThreads, AsyncioSelectorReactor):
    """A reactor on a loop that somebody else runs, stops and closes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.loop = loop
        self._life = self._until_the_loop_ends()

    def begin(self) -> None:
        """Run, for as long as the loop does."""
        self.startRunning(installSignalHandlers=False)
        first = self._life.__anext__()
        try:
            first.send(None)  # to where it waits: the loop knows of it from then on
        except StopIteration:
            return
        raise AssertionError("it waits for nothing else")

    def crash(self) -> None:
        """Stop, but not the loop: it is not ours to stop."""
        super(AsyncioSelectorReactor, self).crash()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self.running:
                await self._end()

    async def _end(self) -> None:
        """Let whoever waits for the shutdown close what is open; then leave nothing in the loop."""
        ended = self.loop.create_future()
        self.addSystemEventTrigger("after", "shutdown", ended.set_result, None)
        self.stop()
        await ended
        for reader in list(self._internalReaders):
            self._internalReaders.discard(reader)
            self.removeReader(reader)
            reader.connectionLost(Failure(CancelledError()))
        _reactors.pop(id(self.loop), None)


_reactors: dict[int, LoopReactor] = {}  # by the id of their loops, which they keep


def reactor() -> Reactor:
    """Return Twisted's reactor on the event loop that runs.

    Raises `ForeignReactor` where another reactor is installed in this process, and `RuntimeError`
    where no event loop runs.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "no event loop runs here: msgservice.aio is for coroutines that asyncio runs"
            " (asyncio.run); msgservice.blocking is for programs without one"
        ) from None
    made = _reactors.get(id(loop))
    if made is not None and made.running:
        return cast("Reactor", made)
    for known, other in list(_reactors.items()):
        if other.loop.is_closed():
            del _reactors[known]
    installed: Any = sys.modules.get(INSTALLED)
    if _is_on(installed, loop):
        if not installed.running:
            installed.startRunning(installSignalHandlers=False)
        return cast("Reactor", installed)
    if not (installed is None or isinstance(installed, LoopReactor)):
        raise ForeignReactor(type(installed).__name__)
    made = _reactors[id(loop)] = LoopReactor(loop)
    if installed is None or installed.loop.is_closed() or not installed.running:
        sys.modules.pop(INSTALLED, None)
        installReactor(made)
    made.begin()
    return cast("Reactor", made)


def _is_on(installed: Any, loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a program has installed Twisted's own reactor on this loop."""
    is_own = isinstance(installed, LoopReactor) or not isinstance(installed, AsyncioSelectorReactor)
    return not is_own and installed._asyncioEventloop is loop  # noqa: SLF001 - no other way to tell


def future_of(
    deferred: Deferred[Any],
    loop: asyncio.AbstractEventLoop,
    convert: Callable[[Any], T],
    unwanted: Callable[[Any], object] = lambda _: None,
) -> asyncio.Future[T]:
    """Return a future of what a Deferred gives, converted; cancelling it cancels the Deferred.

    That is a turn of the loop later: `unwanted` has what the Deferred gives until then.
    """
    future: asyncio.Future[T] = loop.create_future()
    deferred.addCallbacks(_fulfil, _fail, (future, convert, unwanted), errbackArgs=(future,))
    if not future.done():
        future.add_done_callback(partial(_cancelled, deferred))
    return future


def _fulfil(
    result: Any,
    future: asyncio.Future[T],
    convert: Callable[[Any], T],
    unwanted: Callable[[Any], object],
) -> None:
    if future.done():
        unwanted(result)
    else:
        future.set_result(convert(result))


def _fail(failure: Failure, future: asyncio.Future[Any]) -> None:
    if not future.done():
        assert failure.value is not None
        future.set_exception(failure.value)


def _cancelled(deferred: Deferred[Any], future: asyncio.Future[Any]) -> None:
    if future.cancelled():
        deferred.cancel()


def awaited(deferred: Deferred[T]) -> asyncio.Future[T]:
    """Return a future of what a Deferred gives, for coroutines that asyncio runs.

    For what this package has no call for: those of an embedded `Node`, say. Cancelling it cancels
    the Deferred, and ends whatever that ends.
    """
    return future_of(deferred, asyncio.get_running_loop(), _same)


def _same(result: T) -> T:
    return result


def deferred_of(future: asyncio.Future[T]) -> Deferred[T]:
    """Return a Deferred of what a future gives; cancelling it cancels the future."""

    def cancel(_: Deferred[T]) -> None:
        future.cancel()

    deferred: Deferred[T] = Deferred(cancel)

    def done(ended: asyncio.Future[T]) -> None:
        error = CancelledError() if ended.cancelled() else ended.exception()
        if deferred.called:
            return  # it was cancelled
        if error is None:
            deferred.callback(ended.result())
        else:
            deferred.errback(error)

    future.add_done_callback(done)
    return deferred
