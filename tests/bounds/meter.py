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
Trace = Callable[..., Any]
# Of these the work in C grows with what they are methods of; so much of it is a unit.
LONG = (list, deque, bytearray)
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
        kept = sys.gettrace(), sys.getprofile()
        trace, called, counted = self._counters()
        sys.setprofile(called)
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(kept[0])
            sys.setprofile(kept[1])
            self.units = counted()
            self.turns += 1
            self.total += self.units
            self.worst = max(self.worst, (self.units, what))

    def _counters(self) -> tuple[Trace, Callable[..., None], Callable[[], int]]:
        """Return what counts lines and calls, and what tells how many they were.

        Functions, and a variable that they share: they are called for every line that is run, and
        attributes of this object would make each of them dearer by a half.
        """
        units, limit = 0, self.limit

        def trace(frame: FrameType, event: str, arg: Any) -> Trace:
            nonlocal units
            units += 1
            if units > limit and self.over is None:
                self.over = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise TooMuchWork(self.over)
            return trace

        def called(frame: FrameType, event: str, arg: Any) -> None:
            nonlocal units
            if (
                event == "c_call"
                and isinstance(arg, BuiltinMethodType)
                and isinstance(arg.__self__, LONG)
                and arg.__name__ in LONG_METHODS
            ):
                units += len(arg.__self__) // ENTRIES_PER_UNIT

        return trace, called, lambda: units


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
