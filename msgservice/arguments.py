"""Arguments that programs give, checked at the door: which one is wrong, and what is needed.

What has checks of its own is elsewhere: texts, names and subjects (`core.subjects`), limits of
nodes (`limits`), reactors (`clock`). Nothing here is called for each message.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from math import inf
from reprlib import Repr
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
PORT_MAX = 65_535
_repr = Repr()
_repr.maxstring = _repr.maxother = 60


def wrong(name: str, value: object, needed: str) -> TypeError:
    """Return the error for an argument of another type; `needed` is a sentence."""
    return TypeError(f"{name} = {_repr.repr(value)}: {needed}")


def check_kind(kind: type | tuple[type, ...], needed: str, **values: object) -> None:
    """Raise `TypeError` for values that are of another type; None is of none."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise wrong(name, value, needed)


def check_flags(**flags: object) -> None:
    """Raise `TypeError` for what is neither True nor False: a text that says no would be true."""
    check_kind(bool, "True or False is needed", **flags)


def check_functions(**functions: object) -> None:
    """Raise `TypeError` where what a program gives to be called cannot be; None is fine."""
    for name, function in functions.items():
        if not (function is None or callable(function)):
            raise wrong(name, function, "a function is needed")


def check_methods(needed: str, methods: tuple[str, ...], **values: object) -> None:
    """Raise `TypeError` for values that lack one of these methods."""
    for name, value in values.items():
        if not all(callable(getattr(value, method, None)) for method in methods):
            raise wrong(name, value, needed)


def check_counts(minimum: int, **values: object) -> None:
    """Raise `TypeError` for what is no integer, and `ValueError` for one below a minimum."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong(name, value, "an integer is needed")
        if value < minimum:
            raise ValueError(f"{name} = {value}: {minimum} or more are needed")


def check_seconds(**values: object) -> None:
    """Raise `TypeError` for what is no number, `ValueError` for one not finite or not above 0."""
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise wrong(name, value, "a number is needed")
        if not 0 < value < inf:
            raise ValueError(f"{name} = {value}: a finite number above 0 is needed")


def reactor_first(call: str, instead: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return the decorator of what takes a reactor first, and says so to who leaves it out.

    `call`: as it is meant; `instead`: what needs none. A method has it behind `self`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        at = int(function.__qualname__.endswith(".__init__"))

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            if "reactor" not in kwargs and (
                len(args) <= at or isinstance(args[at], str | os.PathLike)
            ):
                raise TypeError(
                    f"the reactor is missing: {call}, with that of `from twisted.internet import"
                    f" reactor`{instead}"
                )
            return function(*args, **kwargs)

        return checked

    return decorate


def check_port(port: object, minimum: int = 1) -> None:
    """Raise `TypeError` for what is no integer, and `ValueError` for what is no port of TCP."""
    check_counts(minimum, port=port)
    if not isinstance(port, int) or port > PORT_MAX:
        raise ValueError(f"port = {port}: {minimum} to {PORT_MAX} are needed")


def check_limits(limits: Any) -> None:
    """Check a frozen dataclass of limits: each is a number above 0, of things at least 1."""
    for field in fields(limits):
        value = getattr(limits, field.name)
        check_seconds(**{field.name: value})
        if field.type in (int, "int") and value < 1:
            raise ValueError(f"{field.name} = {value}: 1 or more are needed")
