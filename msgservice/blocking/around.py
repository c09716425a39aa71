"""Objects of programs that block around those of Twisted: the same calls, which wait.

`blocks(Method)` is the method of an object around, with the types and the documentation of the one
inside: where that returns a Deferred, this returns what the Deferred gives, or raises it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, Generic, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

from msgservice.blocking.thread import ReactorThread

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
W = TypeVar("W")  # the class of Twisted's world


class Around(Generic[W]):
    """An object for all threads of a process, around one of Twisted's. `twisted`: that one.

    `timeout`: seconds that each call waits at most; None: without end.
    """

    def __init__(self, twisted: W, thread: ReactorThread, timeout: float | None = None) -> None:
        self.twisted = twisted
        self.thread = thread
        self.timeout = timeout


def blocks(
    method: Callable[Concatenate[W, P], Deferred[T]],
) -> Callable[Concatenate[Around[W], P], T]:
    """Return a method that calls this one of the object inside, and waits for its Deferred."""
    return blocks_for(method, lambda _, result: result)


def blocks_for(
    method: Callable[Concatenate[W, P], Deferred[T]], convert: Callable[[Around[W], T], U]
) -> Callable[Concatenate[Around[W], P], U]:
    """Return such a method, of which `convert` makes what is returned."""

    @wraps(method)
    def call(self: Around[W], /, *args: P.args, **kwargs: P.kwargs) -> U:
        twisted = self.twisted
        waited: T = self.thread.wait(lambda: method(twisted, *args, **kwargs), self.timeout)
        return convert(self, waited)

    return call


def calls(
    method: Callable[Concatenate[W, P], T],
) -> Callable[Concatenate[Around[W], P], T]:
    """Return a method that calls this one of the object inside, which does not wait."""
    return calls_for(method, lambda _, result: result)


def calls_for(
    method: Callable[Concatenate[W, P], T], convert: Callable[[Around[W], T], U]
) -> Callable[Concatenate[Around[W], P], U]:
    """Return such a method, of which `convert` makes what is returned."""

    @wraps(method)
    def call(self: Around[W], /, *args: P.args, **kwargs: P.kwargs) -> U:
        twisted = self.twisted
        called: T = self.thread.call(lambda: method(twisted, *args, **kwargs))
        return convert(self, called)

    return call
