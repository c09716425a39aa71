"""Rejections by a receiver's handlers: kept beside the marks, so that no crash brings them back.

A rejected message has no mark (`receiver.inbox.marks`): its sender is told that it is dead, and may
not have heard it. What is kept here is the answer, until the sender's floor has passed the message
(SEMANTICS 1, 25).

Part of `receiver.inbox.file`, whose transactions write it and whose commits make it count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import apsw

from msgservice.core.inbox import REJECTED_MAX
from msgservice.core.marks import Key
from msgservice.disk.database import CRC_MASK, row_crc, rows
from msgservice.records import Rejected

# Apart from the first tables, for files that are older than it. An older program leaves it alone.
TABLE = """
create table if not exists msgservice_rejected(
    sender text not null,
    incarnation text not null,
    first integer not null,
    last integer not null,
    reason text not null,
    primary key (sender, incarnation, first)
) without rowid;
"""
_SAVE = "insert or replace into msgservice_rejected values (?, ?, ?, ?, ?) /* msgservice */"
_FORGET = (
    "delete from msgservice_rejected where sender = ? and incarnation = ? and first = ?"
    " /* msgservice */"
)

ByFirst = dict[int, Rejected]


class SavedRejections:
    """The changes of one transaction: written in it, and adopted when it is committed."""

    __slots__ = ("_db", "_known", "changed", "total")

    def __init__(self, db: apsw.Connection, known: Mapping[Key, ByFirst], total: int) -> None:
        self.changed: dict[Key, ByFirst] = {}
        self.total = total
        self._db = db
        self._known = known

    def put(self, key: Key, rejected: Rejected) -> None:
        """Write a rejection, in the place of an earlier one of the same message."""
        if key not in self.changed:
            self.changed[key] = dict(self._known.get(key, {}))
        by_first = self.changed[key]
        replaced = by_first.get(rejected.first)
        if replaced is not None:
            self._count(-row_crc(*key, *replaced))
        self._count(row_crc(*key, *rejected))
        by_first[rejected.first] = rejected
        self._db.execute(_SAVE, (*key, *rejected))

    def forget_below(self, key: Key, floor: int) -> None:
        """Forget what the sender's floor has passed, and the oldest of too many."""
        found = self.changed.get(key) or self._known.get(key)
        if not found:
            return
        oldest = next(iter(found.values()))  # they come in rising order, nearly always
        if oldest.last >= floor and len(found) <= REJECTED_MAX:
            return
        left = {first: one for first, one in found.items() if one.last >= floor}
        for first in [*left][: max(0, len(left) - REJECTED_MAX)]:
            del left[first]
        for first in found.keys() - left.keys():
            self._db.execute(_FORGET, (*key, first))
            self._count(-row_crc(*key, *found[first]))
        self.changed[key] = left

    def _count(self, crc: int) -> None:
        self.total = (self.total + crc) & CRC_MASK


class Rejections:
    """The committed state, at most `REJECTED_MAX` entries for each incarnation."""

    def __init__(self) -> None:
        self._known: dict[Key, ByFirst] = {}
        self.total = 0  # of the CRCs of all rows

    def load(self, db: apsw.Connection) -> None:
        """Make the table if it is not there; take over what is in it."""
        db.execute(TABLE)
        for sender, incarnation, first, last, reason in rows(
            db, "select * from msgservice_rejected order by sender, incarnation, first"
        ):
            known = self._known.setdefault((sender, incarnation), {})
            known[first] = Rejected(first, last, reason)
            crc = row_crc(sender, incarnation, first, last, reason)
            self.total = (self.total + crc) & CRC_MASK

    def of(self, key: Key) -> tuple[Rejected, ...]:
        """Return what was rejected of an incarnation."""
        return tuple(self._known.get(key, {}).values())

    def save(
        self,
        db: apsw.Connection,
        fresh: Sequence[tuple[Key, Rejected]],
        settled: Mapping[Key, int],
    ) -> SavedRejections:
        """Write new rejections in the running transaction; forget those that the floors passed.

        Returns what is to be adopted when the transaction is committed.
        """
        saved = SavedRejections(db, self._known, self.total)
        for key, rejected in fresh:
            saved.put(key, rejected)
        for key, floor in settled.items():
            saved.forget_below(key, floor)
        return saved

    def adopt(self, saved: SavedRejections) -> None:
        """Changes that `save` returned are committed."""
        self._known.update(saved.changed)
        self.total = saved.total
