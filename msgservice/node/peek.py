"""The next messages of a receiver, looked at and not taken: nothing of their state changes.

What is asked and answered is in `administration`; nothing here keeps a state.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from msgservice.errors import UnknownMessage
from msgservice.interfaces import ILog
from msgservice.message import MessageParts, Status
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.tail import Tail
from msgservice.records import Batch, position_of

READ_BYTES = 1024 * 1024  # of one read of the log; one batch at least
# Messages that one call looks at, and batches that one read has: where most are settled, few of
# them are told, and the next call goes on.
LOOKED_MAX = 4096


class Peeked(msgspec.Struct, frozen=True):
    """A message that waits for a receiver. `message`: a run of this one."""

    position: int
    batch: Batch
    message: bytes
    status: Status
    attempts: int
    reason: str  # why the last attempt failed

    @property
    def sequence(self) -> int:
        """The sequence of its sender."""
        return self.batch.sequence + self.position - self.batch.first


class Peek:
    """The looks at what waits for the receivers of one node."""

    def __init__(self, *, log: ILog, directory: Directory, dispatch: Dispatch, tail: Tail) -> None:
        self._log = log
        self._directory = directory
        self._dispatch = dispatch
        self._tail = tail

    async def next(self, name: str, after: int, count: int) -> tuple[list[Peeked], int | None]:
        """Return up to `count` messages that wait for a receiver, behind a position; and the next.

        That is where the next page begins, None behind the last; a page may have none, where many
        behind it are settled already. Raises `UnknownReceiver`.
        """
        row = self._directory.named(name)
        backlog = self._dispatch.outlets[row.number].backlog
        begin, end = max(after, backlog.cursor), position_of(self._tail.next_number) - 1
        batches = await self._read(row.number, begin, end, LOOKED_MAX)
        found: list[Peeked] = []
        looked = 0
        for batch in batches:
            parts = MessageParts(batch.messages)
            for position in range(max(batch.first, begin + 1), batch.last + 1):
                begin, looked = position, looked + 1
                # Asked anew for each: it may have been settled while the log was read.
                if position > backlog.cursor and position not in backlog.above:
                    found.append(self._peeked(row.number, batch, parts, position))
                if len(found) >= count or looked >= LOOKED_MAX:
                    return found, begin
        return found, begin if batches else None

    async def one(self, name: str, position: int) -> Peeked:
        """Return what waits at a position. Raises `UnknownReceiver`, `UnknownMessage`."""
        row = self._directory.named(name)
        backlog = self._dispatch.outlets[row.number].backlog
        for batch in await self._read(row.number, position - 1, position, 1):
            waits = position > backlog.cursor and position not in backlog.above
            if waits and batch.first <= position <= batch.last:
                return self._peeked(row.number, batch, MessageParts(batch.messages), position)
        raise UnknownMessage(f"log:{position}")

    async def _read(self, number: int, after: int, to: int, count: int) -> Collection[Batch]:
        audiences = tuple(self._dispatch.outlets[number].audiences)
        batches: Collection[Batch] = await self._log.read(audiences, after, to, READ_BYTES, count)
        if number not in self._dispatch.outlets:
            return ()  # it was removed meanwhile: nothing waits for it
        return batches

    def _peeked(self, number: int, batch: Batch, parts: MessageParts, position: int) -> Peeked:
        at = position - batch.first
        status = self._dispatch.status_of(number, position, Status.QUEUED)
        for run in self._dispatch.outlets[number].backlog.open_between(position, position):
            if run.first <= position <= run.last:
                attempts, reason = run.attempts, run.reason
                break
        else:
            attempts, reason = 0, ""
        return Peeked(position, batch, parts.alone(at, at + 1)[0], status, attempts, reason)
