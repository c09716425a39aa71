"""A double of whatever a part works with: says what a test tells it to, and notes what it hears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Double:
    """A collaborator. Each keyword is an attribute, or, where it is a function, a method.

    Any other name is a method that returns None. `calls` has what was called, in order: the name
    and the positional arguments.
    """

    def __init__(self, **attributes: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._attributes = attributes

    def __getattr__(self, name: str) -> Any:
        found = self._attributes.get(name, _nothing)
        return self._noted(name, found) if callable(found) else found

    def _noted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args))
            return function(*args, **kwargs)

        return call

    def told(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of this name."""
        return [args for called, args in self.calls if called == name]


def double(**attributes: Any) -> Any:
    """Return a `Double` that any type check lets pass as what it stands for."""
    return Double(**attributes)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
