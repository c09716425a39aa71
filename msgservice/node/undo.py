"""Undo: what is surely not sent yet of some messages is cancelled, and the account of the rest.

For each message and each receiver of its audience there is one outcome, so that they add up: what
waits is settled as `cancelled` in an entry of the log (`Outlet.decree`), what was handed to a
channel is left to its answer, and what is final stays so. What waits until it is due is cancelled
whole (`delayed`). A page of a sender's messages is read at once, and settled receiver by receiver,
as many in a turn of the reactor as there is time for. Nothing here keeps a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec
from twisted.logger import Logger

from msgservice.core.ranges import Range, RangeSet
from msgservice.errors import UnknownMessage
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX
from msgservice.message import Status
from msgservice.node.delayed import DelayedMessages
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.outlet import Outlet
from msgservice.node.purge import Settling
from msgservice.node.slices import Slices
from msgservice.node.stretches import Head, Stretch
from msgservice.records import DELAYED, NOT_YET, PROMISED, History, Piece, identity_of, number_of

PIECES: Final = 64  # runs of one page
SECONDS: Final = 0.01  # of a turn of the reactor; then others have theirs
IN_FLIGHT: Final = "in_flight"
CANCELLED: Final = "cancelled"
REMOVED: Final = "removed"
BEFORE: Final = "cancelled_before"  # by somebody else, or an undo before

Key = tuple[str, str]  # name and incarnation of a sender
Heads = dict[int, tuple[int, int]]  # number of a batch -> its messages and bytes


class Undone(msgspec.Struct, frozen=True, kw_only=True):
    """The account of an undo, of the messages of one page.

    `receivers`: name -> outcome -> messages: `cancelled`, `in_flight`, `cancelled_before`, or the
    word of the final status that it had. `next`: the sequence that the next page begins with.
    """

    messages: int
    receivers: dict[str, dict[str, int]]
    next: int | None


class _Open(NamedTuple):
    """A part of a piece that is not final at a receiver, by what the log says: sequences."""

    piece: Piece
    first: int
    last: int


class _Work:
    """The work of one page, as far as it is done."""

    def __init__(self) -> None:
        self.told: dict[int, Counter[str]] = {}  # by number of the receiver
        self.touched: dict[Outlet, Range] = {}  # what is to be stored there, and of which sequences
        # Of whom some was settled by others meanwhile: what was open, and is cancelled now.
        self.again: dict[int, tuple[list[_Open], int]] = {}

    def tell(self, number: int, outcome: str, messages: int) -> None:
        """Count messages that have this outcome at a receiver."""
        if messages:
            self.told.setdefault(number, Counter())[outcome] += messages


class Undo:
    """The undoing of one node."""

    _logger = Logger()

    def __init__(
        self,
        *,
        log: ILog,
        directory: Directory,
        dispatch: Dispatch,
        delayed: DelayedMessages,
        settling: Settling,
        slices: Slices,
        removal: Callable[[int], Awaitable[object] | None],
    ) -> None:
        """`removal`: the end of that of a receiver, by its number, while one is under way."""
        self._log, self._directory, self._dispatch = log, directory, dispatch
        self._removal = removal
        self._delayed, self._settling, self._slices = delayed, settling, slices

    def stop(self) -> None:
        """Keep no timer; what is not undone by now is not, and its account is not given."""
        self._slices.stop()

    async def page(self, key: Key, first: int, count: int, reason: str) -> Undone:
        """Undo a sender's messages, `count` from a sequence on; on disk when it returns.

        What is not in the log, and of which it knows no state either, is not in the account.
        """
        end = min(first + count - 1, INTEGER_MAX)
        known = await self._log.history(*key, first, PIECES)
        following, cancelled = known.next, RangeSet()
        if any(piece.due for piece in known.pieces):
            cancelled = await self._cancel(key, known.pieces, end, reason)
            # What is cancelled is a state now, and what was due meanwhile a batch. A page has room
            # for more pieces then: of these, what waits is not cancelled.
            known = await self._log.history(*key, first, PIECES)
            following = min([n for n in (following, known.next) if n is not None], default=None)
        last = end if following is None else min(end, following - 1)
        pieces = [piece for piece in known.pieces if piece.first <= last and not piece.due]
        final = _final(known, first, last)
        work, of = _Work(), RangeSet()
        for piece in pieces:
            of.add(piece.first, min(piece.last, last))
        for number, states in final.items():
            for low, high, status in states:
                of.add(low, high)
                if number == NOT_YET and status is Status.CANCELLED:
                    ours = sum(to - at + 1 for at, to in cancelled.within(low, high))
                    work.tell(number, CANCELLED, ours)
                    work.tell(number, BEFORE, high - low + 1 - ours)
                else:
                    work.tell(number, _word(status), high - low + 1)
        heads = await self._log.heads({number_of(one.position) for one in pieces})
        for number, parts in _open(pieces, final, last).items():
            await self._removed(number)
            at = partial(self._at, number, parts, heads, reason, work)
            await self._slices.run(at)
        await self._store(key, known, work)
        await self._complete(key, first, work)
        if of:
            self._logger.info(
                "{messages} messages of {sender} were undone: {said}",
                line="undone",
                messages=of.count,
                sender=key[0],
                said=reason,
            )
        told: dict[str, Counter[str]] = {}
        for number, outcomes in work.told.items():  # of one that was removed, another has its name
            told.setdefault(self._name(number), Counter()).update(outcomes)
        return Undone(
            messages=of.count,
            receivers={name: dict(outcomes) for name, outcomes in told.items()},
            next=following if following is not None and following <= end else None,
        )

    async def _removed(self, number: int) -> None:
        """Wait for the end of a removal of a receiver, if one is under way.

        It may fail, and the receiver stays: what became of its messages there is known only then.
        """
        removal = self._removal(number)
        if removal is not None:
            try:
                await removal
            except Exception:
                self._logger.info(
                    "receiver {name} is not removed",
                    line="receiver-not-removed",
                    name=self._name(number),
                )

    async def _cancel(self, key: Key, pieces: Sequence[Piece], end: int, reason: str) -> RangeSet:
        """Cancel what of these waits until it is due; return which sequences are."""
        cancelled = RangeSet()
        for piece in pieces:
            if not piece.due or piece.first > end:
                continue
            found = await self._log.find_delayed(identity_of(*key, piece.first), None)
            if found is None or not found.due:
                continue  # it was due meanwhile, or somebody else has cancelled it
            try:
                count = min(piece.last, end) - piece.first + 1
                ranges = await self._delayed.cancel(found, count, reason)
            except UnknownMessage:
                continue
            shift = piece.first - found.sequence  # of what was taken by its key: another's
            for low, high in ranges:
                cancelled.add(low + shift, high + shift)
        return cancelled

    def _at(self, number: int, parts: list[_Open], heads: Heads, reason: str, work: _Work) -> None:
        """Undo what is open at one receiver."""
        outlet = self._dispatch.outlets.get(number)
        if outlet is None or outlet.is_going:
            work.again[number] = (parts, 0)
            return
        # Up to here a connection before this one may have brought it.
        sure = max(outlet.backlog.stored_before, outlet.backlog.landed_to)
        all_of_it: list[Stretch] = []
        not_sent: list[Stretch] = []
        messages = 0
        for piece, first, last in parts:
            messages += last - first + 1
            batch = number_of(piece.position)
            if batch not in heads:
                continue  # it has gone since
            head = [Head(batch, piece.audience.number, *heads[batch])]
            low, high = (piece.position + at - piece.first for at in (first, last))
            all_of_it.append(Stretch(head, low, high))
            if high > sure:
                not_sent.append(Stretch(head, max(low, sure + 1), high))
        settles, _, leaves = outlet.weigh(all_of_it)
        waiting = settles + leaves
        cancelled = outlet.weigh(not_sent)[0] if not_sent else 0
        if cancelled:
            outlet.decree(not_sent, Status.CANCELLED, reason)
        if cancelled or waiting < messages:
            work.touched[outlet] = (parts[0].first, parts[-1].last)
        if waiting < messages:
            work.again[number] = (parts, cancelled)
            return
        work.tell(number, CANCELLED, cancelled)
        work.tell(number, IN_FLIGHT, waiting - cancelled)

    async def _store(self, key: Key, known: History, work: _Work) -> None:
        """Return when all that was settled is on disk, and whoever has sent it will be told."""
        if not work.touched:
            return
        for outlet in work.touched:
            await outlet.progress.all_stored()
        for outlet, span in work.touched.items():
            self._settling.settled(outlet, {key: span})
        taken = set(known.by_key)
        for piece in known.pieces:
            if piece.first in taken and piece.position:  # the message is another sender's
                found = await self._log.find(f"log:{piece.position}", 0, 0)
                if found is not None:
                    span = (found.sequence, found.sequence + piece.last - piece.first)
                    for outlet in work.touched:
                        self._settling.settled(outlet, {(found.sender, found.incarnation): span})

    async def _complete(self, key: Key, first: int, work: _Work) -> None:
        """Count what was settled by others while this was decided: that is stored by now."""
        if not work.again:
            return
        for number in work.again:
            await self._removed(number)
        now = await self._log.history(*key, first, PIECES)
        for number, (parts, cancelled) in work.again.items():
            left = -cancelled
            found: Counter[str] = Counter()
            for _, low, high in parts:
                left += high - low + 1
                for row in now.states:
                    if row.receiver == number and row.first <= high and row.last >= low:
                        found[_word(row.status)] += min(high, row.last) - max(low, row.first) + 1
            found[BEFORE] -= min(cancelled, found[BEFORE])
            outlet = self._dispatch.outlets.get(number)
            is_gone = outlet is None or outlet.is_going
            work.tell(number, CANCELLED, cancelled)
            for outcome, messages in found.items():
                work.tell(number, outcome, messages)
            work.tell(number, REMOVED if is_gone else IN_FLIGHT, left - found.total())

    def _name(self, number: int) -> str:
        if number == NOT_YET:
            return DELAYED
        row = self._directory.numbered(number)
        return row.name if row is not None else f"#{number}"


def _word(status: Status) -> str:
    """Return the outcome where a status was final before."""
    return BEFORE if status is Status.CANCELLED else status.name.lower()


def _final(known: History, first: int, last: int) -> dict[int, list[tuple[int, int, Status]]]:
    """Return what is final of these sequences, each once, by receiver."""
    found: dict[int, list[tuple[int, int, Status]]] = {}
    seen: dict[int, RangeSet] = {}
    for row in known.states:
        low, high = max(first, row.first), min(last, row.last)
        if low > high or row.receiver == PROMISED:  # that is no receiver of its
            continue
        of_one = seen.setdefault(row.receiver, RangeSet())
        for begin, end in list(of_one.missing(low, high)):
            found.setdefault(row.receiver, []).append((begin, end, row.status))
        of_one.add(low, high)
    return found


def _open(
    pieces: Sequence[Piece], final: dict[int, list[tuple[int, int, Status]]], last: int
) -> dict[int, list[_Open]]:
    """Return what of these pieces is not final, by receiver, rising."""
    settled = {
        number: RangeSet((low, high) for low, high, _ in states) for number, states in final.items()
    }
    found: dict[int, list[_Open]] = {}
    for piece in pieces:
        end = min(piece.last, last)
        for number in piece.audience.members:
            known = settled.get(number)
            ranges = [(piece.first, end)] if known is None else known.missing(piece.first, end)
            if ranges:
                parts = found.setdefault(number, [])
                parts += [_Open(piece, low, high) for low, high in ranges]
    return found
