"""Work, in units that do not depend on the machine: lines of Python in one turn, steps of SQLite.

Lines cost ten times more while they are counted, so the meter runs only where hostile frames may be
in the works (`on`). A turn beyond its limit is noted once, and not counted any further.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import apsw

# About twice what 4,096 NACKs in one read take, the most of what is linear: some 50 ms each.
LINES_MAX = 2_500_000
STEPS_MAX = 4_000_000  # of SQLite's machine in one job of the log
STEPS_EACH = 10_000


class Meter:
    """See the module. `found(what)` is told of a turn that took too much."""

    def __init__(self, found: Callable[[str], None]) -> None:
        self.on = False
        self.lines_max = self.steps_max = 0  # the most that was seen
        self._found = found
        self._is_inside = False

    def run(self, call: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Call, and count the lines that it takes."""
        if not self.on or self._is_inside:
            return call(*args, **kw)
        count = 0
        where = ""

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal count, where
            count += 1
            if count > LINES_MAX:
                if not where:
                    where = _place_of(frame)
                    sys.settrace(None)
                return None
            return local

        self._is_inside = True
        before = sys.gettrace()
        sys.settrace(local)
        try:
            return call(*args, **kw)
        finally:
            sys.settrace(before)
            self._is_inside = False
            self.lines_max = max(self.lines_max, count)
            if where:
                self._found(f"more than {LINES_MAX} lines in one turn, in {where}")

    def job(self, db: Any, call: Callable[[], Any]) -> Any:
        """Run a job of the log: what a thread does elsewhere. Its steps count, not its lines."""
        if not self.on or db is None:
            return call()
        tracing = sys.gettrace()
        sys.settrace(None)
        steps = 0

        def step() -> bool:
            nonlocal steps
            steps += STEPS_EACH
            return False

        db.set_progress_handler(step, STEPS_EACH)
        try:
            return call()
        finally:
            with suppress(apsw.ConnectionClosedError):  # a job reopens it after a failed sync
                db.set_progress_handler(None)
            sys.settrace(tracing)
            self.steps_max = max(self.steps_max, steps)
            if steps > STEPS_MAX:
                self._found(f"{steps} steps of SQLite in one job of the log")


def _place_of(frame: FrameType | None) -> str:
    """Return where in the product this is."""
    while frame is not None:
        code = frame.f_code
        if "/msgservice/" in code.co_filename:
            return f"{code.co_filename.rpartition('/msgservice/')[2]} {code.co_name}"
        frame = frame.f_back
    return "?"
