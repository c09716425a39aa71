"""Which callback answers which name; no Twisted here, both faces use it.

A program may have as many registries as it likes; `DEFAULT` is the one of the process, the one
that the original has. A later registration replaces an earlier one.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from msgservice.arguments import check_kind, check_methods
from msgservice.errors import check_runs

Callback = Callable[..., Any]
F = TypeVar("F", bound=Callback)


class CallbackRegistry:
    """Callbacks by name. `fallback` is asked for names that are not here."""

    def __init__(self, fallback: "CallbackRegistry | None" = None) -> None:
        self.messages: dict[str, Callback] = {}
        self.requests: dict[str, Callback] = {}
        self._fallback = fallback

    def message_callback(self, action: str) -> Callable[[F], F]:
        """Decorate what runs for an action: `f(connection, *args, **kwargs)`."""
        return functools.partial(_register, self.messages, action)

    def request_callback(self, requested_value: str) -> Callable[[F], F]:
        """Decorate what answers a request: `f(connection, *args, **kwargs)` returns the value."""
        return functools.partial(_register, self.requests, requested_value)

    def message(self, action: str) -> Callback | None:
        """Return the callback of an action."""
        if action in self.messages or self._fallback is None:
            return self.messages.get(action)
        return self._fallback.message(action)

    def request(self, requested_value: str) -> Callback | None:
        """Return the callback of a request."""
        if requested_value in self.requests or self._fallback is None:
            return self.requests.get(requested_value)
        return self._fallback.request(requested_value)


def _register(callbacks: dict[str, Callback], name: str, function: F) -> F:
    check_kind(str, "text is needed", name=name)
    check_methods("a function is needed", ("__call__",), callback=function)
    check_runs(function, "callback")

    @functools.wraps(function)
    def passed_through(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    callbacks[name] = function
    return passed_through  # type: ignore[return-value]  # same signature, by functools.wraps


DEFAULT = CallbackRegistry()
