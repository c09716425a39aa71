"""The marks of a stored inbox: what was taken of each sender, in a row each, with a sum over them.

Part of `receiver.inbox.file`, whose transactions write it and whose commits make it count. What was
rejected has no mark: `receiver.inbox.rejections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import apsw
import msgspec

from msgservice.core.marks import Key, SenderState, encode_ranges
from msgservice.disk.database import CRC_MASK, row_crc, rows

_SAVE = "insert or replace into msgservice_mark values (?, ?, ?, ?, ?) /* msgservice */"


class SavedMarks(NamedTuple):
    """The marks of one transaction, adopted when it is committed."""

    marks: Mapping[Key, SenderState]
    crcs: dict[Key, int]
    total: int


class StoredMarks:
    """The committed marks of all senders."""

    def __init__(self) -> None:
        self._known: dict[Key, SenderState] = {}
        self._crcs: dict[Key, int] = {}  # of their rows
        self.total = 0  # of these

    def load(self, db: apsw.Connection) -> None:
        """Take over what is in the table."""
        for sender, incarnation, floor, ranges, last in rows(
            db, "select sender, incarnation, floor, ranges, last from msgservice_mark"
        ):
            mark = SenderState(0, (sender, incarnation), 0)
            for low, high in msgspec.msgpack.decode(ranges, type=list[tuple[int, int]]):
                mark.take(low, high)
            mark.floor = max(mark.floor, floor)
            mark.last = (
                None if last is None else msgspec.msgpack.decode(last, type=tuple[int, int, int])
            )
            self._known[mark.key] = mark
            self._crcs[mark.key] = row_crc(sender, incarnation, floor, ranges, last)
        self.total = sum(self._crcs.values()) & CRC_MASK

    def of(self, key: Key) -> SenderState | None:
        """Return the marks of an incarnation, which are not to be changed; None: nothing taken."""
        return self._known.get(key)

    def save(self, db: apsw.Connection, marks: Mapping[Key, SenderState]) -> SavedMarks:
        """Write marks in the running transaction; return what is to be adopted at its commit."""
        crcs: dict[Key, int] = {}
        total = self.total
        for key, mark in marks.items():
            last = None if mark.last is None else msgspec.msgpack.encode(mark.last)
            row = (*key, mark.floor, encode_ranges(mark), last)
            db.execute(_SAVE, row)
            crcs[key] = row_crc(*row)
            total += crcs[key] - self._crcs.get(key, 0)
        return SavedMarks(marks, crcs, total & CRC_MASK)

    def adopt(self, saved: SavedMarks) -> None:
        """Marks that `save` returned are committed."""
        self._known.update(saved.marks)
        self._crcs.update(saved.crcs)
        self.total = saved.total
