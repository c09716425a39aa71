"""Messages that have left the log, as people ask for one: by its names, with its states.

A batch's row goes when all of it is settled and the rule of retention lets it. What became of its
messages stays in `finished`, as ranges of their sender's sequences, and by which ids they are found
in `finished_id`, for `finished_days`. Both are written in `removal.py`, and for what is cancelled
before it was due in `delayed.py`; which of them go, `retention.py` decides.

Functions over one connection, used on the reader's thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import apsw

from msgservice.core.marks import Key
from msgservice.core.subjects import matches
from msgservice.disk.database import one, rows
from msgservice.log.delayed import LOOKED_AT
from msgservice.log.history import split_identity
from msgservice.log.promises import promise_of
from msgservice.log.queries import sender_of
from msgservice.log.state import State
from msgservice.message import Status
from msgservice.records import NOT_YET, Found

# The states of one message: of each receiver the row that begins there or before, by the index.
_STATES = """
with recursive found(receiver) as (
    select min(receiver) from finished where sender = ?1 and receiver > ?2
    union all
    select (select min(f.receiver) from finished as f
        where f.sender = ?1 and f.receiver > found.receiver)
    from found where found.receiver is not null)
select found.receiver, f.status, f.reason
from found cross join finished as f
where f.sender = ?1 and f.receiver = found.receiver and f.last >= ?3 and f.first = (
    select max(g.first) from finished as g
    where g.sender = ?1 and g.receiver = found.receiver and g.first <= ?3)
order by found.receiver limit ?4
"""


def find(
    db: apsw.Connection,
    state: State,
    identity: str,
    after: int = 0,
    count_max: int | None = None,
    senders: Collection[str] | None = None,
) -> Found | None:
    """Return a message that has left the log by `SENDER/HASH/SEQUENCE`, or by its sender's id.

    With the states of `count_max` receivers whose numbers are above `after`, rising. `senders`:
    patterns of names, and of the messages with an id the one of those that left last.
    """
    for number, key, sequence in _named(db, identity):
        found = _found(db, number, key, sequence, after, count_max)
        if found.states or found.more or (after and _is_known(db, number, sequence)):
            return found
    for number, sequence in rows(
        db,
        "select sender, sequence from finished_id where name = ? order by at desc limit ?",
        (identity, LOOKED_AT),
    ):
        known = _key_of(db, state, number)
        if known is None:
            continue
        if senders is None or any(matches(pattern, known[0]) for pattern in senders):
            return _found(db, number, known, sequence, after, count_max)
    return None


def _named(db: apsw.Connection, identity: str) -> Iterator[tuple[int, Key, int]]:
    """Yield the senders that such a name may mean, with their numbers, and the sequence."""
    parts = split_identity(identity)
    if parts is not None:
        for number, name, incarnation in rows(
            db,
            "select id, name, incarnation from sender where name = ?1 and hash = ?2"
            " union all select sender, name, incarnation from former where name = ?1 and hash = ?2",
            parts[:2],
        ):
            yield number, (name, incarnation), parts[2]


def _key_of(db: apsw.Connection, state: State, number: int) -> Key | None:
    known = sender_of(db, state, number)
    if known is None:
        known = one(db, "select name, incarnation from former where sender = ?", (number,))
    return known


def _is_known(db: apsw.Connection, sender: int, sequence: int) -> bool:
    return bool(rows(db, _STATES, (sender, NOT_YET - 1, sequence, 1)))


def _found(
    db: apsw.Connection, sender: int, key: Key, sequence: int, after: int, count_max: int | None
) -> Found:
    # What was cancelled before it was due has its state at the receiver that is none.
    above = after or NOT_YET - 1
    limit = -1 if count_max is None else count_max + 1
    found = [*rows(db, _STATES, (sender, above, sequence, limit))]
    more = count_max is not None and len(found) > count_max
    states = {
        receiver: (Status(status), 0, reason)
        for receiver, status, reason in (found[:-1] if more else found)
    }
    return Found(
        position=0,
        sender=key[0],
        incarnation=key[1],
        sequence=sequence,
        subject="",
        size=0,
        stored_at=0,
        states=states,
        more=more,
        removed=NOT_YET not in states,
        promise=promise_of(db, sender, sequence),
    )
