"""Answers of `$node.*` in pages: as many rows, or as much of a message, as fit in any frame.

What the rows are is the business of `node.admin`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from msgservice.administration import PAGE_ROWS
from msgservice.limits import Limits

PAGE_BYTES = 256 * 1024  # of one answer's rows as JSON, but for one that is longer alone
STEP = 100  # rows made at once, before it is seen whether they fit

_to_json = msgspec.json.Encoder().encode


def message_part(limits: Limits) -> int:
    """The bytes of a message that one answer has, in base64 and with what is said of it."""
    return _room(limits) * 3 // 4


def _room(limits: Limits) -> int:
    return min(PAGE_BYTES, limits.max_batch // 2)


class Page:
    """Takes rows, each under its name, until one no longer fits.

    The bytes are at most half of `max_batch`, so that escapes and what is around them fit too.
    """

    def __init__(self, asked: int, limits: Limits) -> None:
        self.rows: dict[str, Any] = {}  # encoded already
        self.full = False
        self.rows_max = min(max(1, asked), PAGE_ROWS)
        self._room = _room(limits)

    @property
    def step(self) -> int:
        """The number of rows to make before the next look."""
        return min(STEP, self.rows_max - len(self.rows))

    @property
    def takes(self) -> bool:
        """Whether it may take another row."""
        return not self.full and len(self.rows) < self.rows_max

    def add(self, name: str, row: object) -> bool:
        """Take a row; return whether it was taken."""
        raw = _to_json(row)
        self._room -= len(raw) + len(_to_json(name)) + 2
        if self.rows and self._room < 0:
            self.full = True
            return False
        self.rows[name] = msgspec.Raw(raw)
        return True
