"""Holds what a receiver says to have taken against what the log has (SEMANTICS 6).

A log that went back in time, restored from an older copy, has forgotten what the receiver took
last, and gives those positions to other messages; the receiver would drop these as repeated, and
the node would count them as acknowledged. Where that can be seen, nothing is sent before the node
has another incarnation. What follows from it is done in `peer` and `receivers`.
"""

from __future__ import annotations

from zlib import crc32

from msgservice.errors import ProtocolError
from msgservice.interfaces import ILog
from msgservice.message import cut_messages
from msgservice.node.outlet import Outlet
from msgservice.records import Resume, number_of, position_of


async def went_back(
    log: ILog, next_number: int, outlet: Outlet, resume: Resume
) -> ProtocolError | None:
    """Return the error that ends a receiver's connection for its RESUME, or None.

    `next_number`: one past the log's newest batch. The log is read only where the receiver has
    taken what it was not heard to answer.
    """
    highest = max([resume.floor - 1, *(last for _, last in resume.ranges)])
    own = position_of(next_number) - 1
    if highest > own:
        return ProtocolError(
            f"{outlet.name!r} has seen sequence {highest}, this log's highest is {own}"
        )
    if resume.last is None or resume.last[1] <= outlet.backlog.cursor:
        return None
    first, last, crc = resume.last
    # Not settled here, so retention has left it: what is not found was never sent.
    found = await log.read(tuple(outlet.audiences), first - 1, own, 1, 1)
    if found and found[0].number == number_of(first) and last <= found[0].last:
        batch = found[0]
        if (first, last) == (batch.first, batch.last):
            own_crc = batch.crc
        else:
            own_crc = crc32(
                cut_messages(batch.messages, first - batch.first, last - batch.first + 1)
            )
        if own_crc == crc:
            return None
    return ProtocolError(
        f"{outlet.name!r} has taken sequences {first} to {last} with other content than this log's"
    )
