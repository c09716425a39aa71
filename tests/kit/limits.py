"""Limits far below what an operator may set: importing this module lifts the bounds of `Limits`.

Little is much for a test: a log that is full after some kilobytes, a timeout of a hundredth of a
second. Only that a value is above 0 and not too large is still seen to. `conftest.py` imports this
for all tests, and what runs without pytest for itself; `for_operators` has the bounds back, for who
tests them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from msgservice import limits
from msgservice.limits import Limits

__all__ = ["Limits", "for_operators", "lift"]

_LOWEST = dict(limits.LOWEST)
_ORDERED, _PARTS = list(limits.ORDERED), list(limits.PARTS)


def lift() -> None:
    """Lift the bounds."""
    limits.LOWEST.clear()
    limits.LOWEST["max_batch"] = _LOWEST["max_batch"]
    limits.ORDERED.clear()
    limits.PARTS.clear()


@contextmanager
def for_operators() -> Iterator[None]:
    """Have the bounds as operators have them."""
    limits.LOWEST.update(_LOWEST)
    limits.ORDERED.extend(_ORDERED)
    limits.PARTS.extend(_PARTS)
    try:
        yield
    finally:
        lift()


lift()
