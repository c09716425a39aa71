"""Objects of asyncio around those of Twisted: the same calls, whose Deferreds are futures.

`waits(Method)` is the method of an object around, with the types and the documentation of the one
inside. A call begins at once, as it does there, and not when it is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

from msgservice.aio.loop import future_of

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
W = TypeVar("W")  # the class of Twisted's world


class Around(Generic[W]):
    """An object on one event loop, around one of Twisted's. `twisted`: that one."""

    def __init__(self, twisted: W) -> None:
        self.twisted = twisted
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()

    def _of_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop; `RuntimeError` on another thread, where nothing would wake it."""
        # Asking for the running loop takes ten times as long: it asks the kernel for the process.
        if get_ident() != self._thread:
            raise self._is_elsewhere()
        return self._loop

    def _is_elsewhere(self) -> RuntimeError:
        return RuntimeError(
            f"this {type(self).__name__} belongs to the event loop of another thread: make one on"
            " each, or call it by asyncio.run_coroutine_threadsafe"
        )


def waits(
    method: Callable[Concatenate[W, P], Deferred[T]],
) -> Callable[Concatenate[Around[W], P], asyncio.Future[T]]:
    """Return a method that calls this one of the object inside, as a future."""
    return waits_for(method, lambda _, result: result)


def waits_for(
    method: Callable[Concatenate[W, P], Deferred[T]], convert: Callable[[Around[W], T], U]
) -> Callable[Concatenate[Around[W], P], asyncio.Future[U]]:
    """Return such a method, of which `convert` makes what is returned."""

    @wraps(method)
    def call(self: Around[W], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[U]:
        loop = self._of_loop()
        return future_of(
            method(self.twisted, *args, **kwargs), loop, lambda result: convert(self, result)
        )

    return call


def calls(
    method: Callable[Concatenate[W, P], T],
) -> Callable[Concatenate[Around[W], P], T]:
    """Return a method that calls this one of the object inside, which does not wait."""

    @wraps(method)
    def call(self: Around[W], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._of_loop()
        return method(self.twisted, *args, **kwargs)

    return call


Handler = Callable[..., Any]
