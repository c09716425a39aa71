"""Work units: what a call costs, counted and not timed.

A unit is a line of Python that is run (each turn of a comprehension is one), and what a few
methods of lists and queues do in C that grows with their length. SQLite's work is counted in
steps of its virtual machine. The same input costs the same units on every machine and under
every load.

`LIMIT` is what 50 ms are where 20,000 such lines take a millisecond: two shared cores ran 12,000 to
25,000 while others used them too.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinMethodType, FrameType
from typing import Any

UNITS_PER_MS = 20_000
LIMIT = 50 * UNITS_PER_MS
# Of these the work in C grows with what they are methods of; so much of it is a unit.
LONG_METHODS = frozenset({"insert", "remove", "index", "sort", "copy", "count", "extendleft"})
ENTRIES_PER_UNIT = 64  # of 8 bytes, moved at some 10 GB/s
STEPS_PER_MS = 10_000  # of SQLite's virtual machine, on a slow machine


class TooMuchWork(BaseException):
    """A turn went beyond its limit; it is ended here, or a fault would take minutes."""


class Meter:
    """Counts units. `worst`: of the most expensive turn so far, and what it was."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.units = 0
        self.total = 0
        self.turns = 0
        self.worst = (0, "")
        self.over: str | None = None

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """Count what is done inside as one turn of the reactor."""
        self.units = 0
        kept = sys.gettrace(), sys.getprofile()
        sys.setprofile(self._called)
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(kept[0])
            sys.setprofile(kept[1])
            self.turns += 1
            self.total += self.units
            self.worst = max(self.worst, (self.units, what))

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        self.units += 1
        if self.units > self.limit and self.over is None:
            self.over = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
            raise TooMuchWork(self.over)
        return self._trace

    def _called(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call" and isinstance(arg, BuiltinMethodType):
            owner = arg.__self__
            if isinstance(owner, list | deque | bytearray):
                name = arg.__name__
                if name in LONG_METHODS:
                    self.units += len(owner) // ENTRIES_PER_UNIT


@contextmanager
def unmetered() -> Iterator[None]:
    """What is done inside is another thread's in the real service."""
    trace, profile = sys.gettrace(), sys.getprofile()
    sys.settrace(None)
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(profile)
        sys.settrace(trace)
