"""The copies that were made of one message: where they are, for who asks what became of it.

A copy has the origin of its original, and is of the set of its receiver alone, so nothing has to be
written for this: the newest copies of a receiver are looked through, and only so many. A dead
letter that was sent to another receiver is looked for among the newest of all.
"""

from __future__ import annotations

from typing import NamedTuple

import apsw
from msgspec.structs import replace

from msgservice.disk.database import one, rows
from msgservice.log.queries import audience_of, decode_origin
from msgservice.log.state import State
from msgservice.message import FLAG_REPLAY, Status
from msgservice.records import NODE, Found, Origin, hash_of, number_of, position_of

LOOKED_AT = 10_000  # batches of sets of one, for one answer: some 20 ms
RECEIVERS_MAX = 1000  # of one answer

# Newest first. Who sent it is looked for in what is kept of its origin as it stands there.
_COPIES = f"""
select b.number, b.count, b.origin from (
    select number from batch where audience = ?1 and number > ?2 order by number desc limit ?4
) as a cross join batch as b on b.number = a.number
where b.flags & {FLAG_REPLAY} and instr(b.origin, ?3)
"""  # noqa: S608 - fixed names
# … of all receivers.
_ALL_COPIES = f"""
select b.number, b.count, b.origin, b.audience from (
    select number from batch where sender = ?1 order by sequence desc limit ?4
) as a cross join batch as b on b.number = a.number
where b.number > ?2 and b.flags & {FLAG_REPLAY} and instr(b.origin, ?3)
"""  # noqa: S608 - fixed names
_COUNT = """
select count(*) from (select 1 from batch where audience = ? and number > ? limit ?)
"""


class _Identity(NamedTuple):
    """The identity of a message, which its copies have too."""

    sender: str
    hashed: str
    sequence: int

    def is_in(self, origin: Origin, count: int) -> bool:
        """Whether a run of so many messages with this origin has a copy of it."""
        return (origin.sender, origin.incarnation) == (
            self.sender,
            self.hashed,
        ) and origin.sequence <= self.sequence < origin.sequence + count


def with_copies(db: apsw.Connection, state: State, found: Found) -> Found:
    """Return a message with its newest copy at each receiver, where it has one."""
    wanted = [number for number, (status, _, _) in found.states.items() if status.final]
    alone = _sets_of_one(state, set(wanted[:RECEIVERS_MAX]))
    dead = [number for number in wanted[:RECEIVERS_MAX] if _is_gone(db, number, found)]
    if not (alone or dead):
        return found
    identity, copies, left = _identity_of(db, found), {}, LOOKED_AT
    above = number_of(found.position)
    for receiver, audience in alone.items():
        position = _newest(db, audience, above, identity, left)
        if position is not None:
            copies[receiver] = position
        left -= one(db, _COUNT, (audience, above, left))
        if left <= 0:
            break
    dead = [number for number in dead if number not in copies]
    newest = _newest_of_all(db, state, above, identity) if dead else None
    copied_to = {} if newest is None else dict.fromkeys(dead, newest)
    return replace(found, copies=copies, copied_to=copied_to) if copies or copied_to else found


def _is_gone(db: apsw.Connection, receiver: int, found: Found) -> bool:
    """Whether a message is dead at a receiver, and is no dead letter of it any more."""
    if found.states[receiver][0] is not Status.DEAD:
        return False
    if not found.position:
        return True  # its letter, if that is there, is found by a position that is not known
    where = (receiver, found.position)
    return not rows(db, "select 1 from dead where receiver = ? and position = ?", where)


def _sets_of_one(state: State, receivers: set[int]) -> dict[int, int]:
    """Return the numbers of the audiences of these receivers alone."""
    found = {}
    for number, total in list(state.totals.items()):
        members = total.audience.members
        if len(members) == 1 and members[0] in receivers:
            found[members[0]] = number
    return found


def _identity_of(db: apsw.Connection, found: Found) -> _Identity:
    """Return the identity with which it entered the first node."""
    own = _Identity(found.sender, hash_of(found.incarnation), found.sequence)
    if not found.position:
        return own
    blob = one(db, "select origin from batch where number = ?", (number_of(found.position),))
    if blob is None:
        return own
    origin = decode_origin(blob).behind(found.position - position_of(number_of(found.position)))
    return _Identity(origin.sender, origin.incarnation, origin.sequence)


def _newest_of_all(
    db: apsw.Connection, state: State, above: int, of: _Identity
) -> tuple[int, int] | None:
    """Return the receiver and the position of the newest copy, among the newest of all copies."""
    for (node,) in rows(db, "select id from sender where name = ? order by id desc", (NODE,)):
        values = (node, above, of.sender.encode(), LOOKED_AT)
        for number, count, blob, audience in rows(db, _ALL_COPIES, values):
            origin = decode_origin(blob)
            members = audience_of(db, state, audience).members
            if of.is_in(origin, count) and len(members) == 1:
                return members[0], position_of(number, of.sequence - origin.sequence)
    return None


def _newest(
    db: apsw.Connection, audience: int, above: int, of: _Identity, count_max: int
) -> int | None:
    values = (audience, above, of.sender.encode(), count_max)
    for number, count, blob in rows(db, _COPIES, values):
        origin = decode_origin(blob)
        if of.is_in(origin, count):
            return position_of(number, of.sequence - origin.sequence)
    return None
