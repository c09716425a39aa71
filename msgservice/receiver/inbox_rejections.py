"""What a receiver's handlers rejected: kept beside the marks, so that no crash brings it back.

A rejected message has no mark: its sender is told that it is dead, and may not have heard it. What
is kept here is the answer, until the sender's floor has passed the message (SEMANTICS 1, 25).

Part of `receiver.inbox_file`, whose transactions write it and whose commits make it count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import apsw
import msgspec

from msgservice.core.inbox import REJECTED_MAX
from msgservice.core.marks import Key, SenderState
from msgservice.disk.database import rows
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
CRC_MASK = 0xFFFFFFFF


def row_crc(*row: object) -> int:
    """Return the CRC of a row; those of a table add up to what the head keeps of it."""
    return crc32(msgspec.msgpack.encode(row))


class Fresh(NamedTuple):
    """A rejection of the transaction that runs."""

    key: Key
    rejected: Rejected


class Saved(NamedTuple):
    """Changes that are adopted when the transaction is committed."""

    changed: dict[Key, ByFirst]
    total: int


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
            self._add(row_crc(sender, incarnation, first, last, reason))

    def _add(self, crc: int) -> None:
        self.total = (self.total + crc) & CRC_MASK

    def of(self, key: Key) -> tuple[Rejected, ...]:
        """Return what was rejected of an incarnation."""
        return tuple(self._known.get(key, {}).values())

    def save(
        self, db: apsw.Connection, fresh: Sequence[Fresh], marks: Mapping[Key, SenderState]
    ) -> Saved:
        """Write new rejections in the running transaction; forget those that the floors passed.

        Returns what is to be adopted when the transaction is committed.
        """
        changed: dict[Key, ByFirst] = {}
        total = self.total
        for key, rejected in fresh:
            if key not in changed:
                changed[key] = dict(self._known.get(key, {}))
            replaced = changed[key].get(rejected.first)
            if replaced is not None:
                total -= row_crc(*key, *replaced)
            total += row_crc(*key, *rejected)
            changed[key][rejected.first] = rejected
            db.execute(_SAVE, (*key, *rejected))
        for key, mark in marks.items():
            found = changed.get(key) or self._known.get(key)
            if not found:
                continue
            oldest = next(iter(found.values()))  # they come in rising order, nearly always
            if oldest.last >= mark.floor and len(found) <= REJECTED_MAX:
                continue
            left = {first: one for first, one in found.items() if one.last >= mark.floor}
            for first in [*left][: max(0, len(left) - REJECTED_MAX)]:
                del left[first]
            for first in found.keys() - left.keys():
                db.execute(_FORGET, (*key, first))
                total -= row_crc(*key, *found[first])
            changed[key] = left
        return Saved(changed, total & CRC_MASK)

    def adopt(self, saved: Saved) -> None:
        """Changes that `save` returned are committed."""
        self._known.update(saved.changed)
        self.total = saved.total
