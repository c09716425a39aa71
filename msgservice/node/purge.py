"""Purges: what waits for one receiver is settled as `cancelled`, a page at a time.

What is open of a page is settled by the receiver's outlet (`decree`), in one entry of the log where
its group has room for it; what was handed to a channel is left to its answer. Producers are told,
and cursors moved on, as with what expires (`expiry`). Nothing here keeps a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from twisted.logger import Logger

from msgservice.core.subjects import check_pattern, matches
from msgservice.errors import UnknownReceiver
from msgservice.interfaces import ILog
from msgservice.message import Status
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.outlet import Outlet
from msgservice.node.stretches import Head, Stretch
from msgservice.node.tail import Tail
from msgservice.records import Batch, number_of, position_of

READ_BYTES: Final = 1024 * 1024  # of a page; one batch at least
MESSAGES: Final = 256  # of a page: what one turn of the reactor settles, and one entry stores
REASON: Final = "purged"  # of each message that is settled so


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """The messages that a purge has settled, or would; `size`: their bytes.

    `in_flight`: messages that it leaves to their answer. `end`: the position up to which it goes.
    `next`: the position behind which to go on, or None.
    """

    count: int
    size: int
    in_flight: int
    end: int
    next: int | None


class Settling(Protocol):
    """The one who tells of what was settled without an answer (`expiry`)."""

    def settled(self, outlet: Outlet, senders: dict[tuple[str, str], tuple[int, int]]) -> None:
        """Messages of these senders, from a sequence to another, were settled at a receiver."""


class Purge:
    """The purges of one node."""

    _logger = Logger()

    def __init__(
        self,
        *,
        log: ILog,
        directory: Directory,
        dispatch: Dispatch,
        tail: Tail,
        settling: Settling,
    ) -> None:
        self._log, self._tail = log, tail
        self._directory, self._dispatch = directory, dispatch
        self._settling = settling

    async def all(
        self, receiver: str, subject: str | None = None, *, dry_run: bool = False
    ) -> Purged:
        """Settle as `cancelled` what waits for a receiver now, of a subject or pattern, on disk.

        `dry_run`: only say what that would be. Raises `UnknownReceiver`, `BadSubject`; what was
        settled before a receiver went is settled.
        """
        count = size = in_flight = 0
        after: int | None = 0
        end: int | None = None
        while after is not None:
            page = await self.page(receiver, after, subject=subject, end=end, dry_run=dry_run)
            after, end = page.next, page.end
            count, size = count + page.count, size + page.size
            in_flight += page.in_flight
        assert end is not None
        return Purged(count=count, size=size, in_flight=in_flight, end=end, next=None)

    async def page(
        self,
        receiver: str,
        after: int = 0,
        *,
        subject: str | None = None,
        end: int | None = None,
        dry_run: bool = False,
    ) -> Purged:
        """Settle what waits in the next page behind a position; on disk when it returns.

        `end`: a position, and nothing that lies behind it is touched; None: the newest. A batch of
        which a part lies behind `after` is meant whole. Raises as `all`.
        """
        if subject is not None:
            check_pattern(subject)
        outlet = self._outlet(receiver)
        newest = position_of(self._tail.next_number) - 1
        end = newest if end is None else min(end, newest)
        begin = max(after, outlet.backlog.cursor)
        batches: Sequence[Batch] = ()
        if begin < end:
            audiences = tuple(outlet.audiences)
            batches = await self._log.read(audiences, begin, end, READ_BYTES, MESSAGES)
            if self._outlet(receiver) is not outlet:
                raise UnknownReceiver(receiver)  # another has its name now
        stretches = _stretches(batches, subject, end)
        count, size, in_flight = outlet.weigh(stretches)
        more = bool(batches) and batches[-1].number < number_of(end)
        following = batches[-1].last if more else None
        if not dry_run and count:
            outlet.decree(stretches, Status.CANCELLED, REASON)
            senders: dict[tuple[str, str], tuple[int, int]] = {}
            for batch in batches:
                if subject is None or matches(subject, batch.subject):
                    key = (batch.sender, batch.incarnation)
                    first, last = batch.sequence, batch.sequence + batch.count - 1
                    low, high = senders.get(key, (first, last))
                    senders[key] = (min(first, low), max(last, high))
            await outlet.progress.all_stored()
            self._settling.settled(outlet, senders)
            self._logger.info(
                "{count} messages for receiver {name} were purged",
                line="purged",
                count=count,
                name=receiver,
            )
        return Purged(count=count, size=size, in_flight=in_flight, end=end, next=following)

    def _outlet(self, receiver: str) -> Outlet:
        row = self._directory.named(receiver)
        outlet = self._dispatch.outlets.get(row.number)
        if outlet is None or self._directory.is_retired(row):
            raise UnknownReceiver(receiver)
        return outlet


def _stretches(batches: Sequence[Batch], subject: str | None, end: int) -> list[Stretch]:
    """Return what is meant of all batches that follow each other for a receiver."""
    found: list[list[Head]] = [[]]
    for batch in batches:
        if subject is not None and not matches(subject, batch.subject):
            if found[-1]:
                found.append([])
            continue
        messages = min(batch.count, end - batch.first + 1)
        size = batch.size * messages // batch.count
        found[-1].append(Head(batch.number, batch.audience.number, messages, size))
    return [Stretch(heads) for heads in found if heads]
