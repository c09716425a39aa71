"""Undo: what is surely not sent yet of some messages is cancelled, and the account of the rest.

For each message and each receiver of its audience there is one outcome, so that they add up: what
waits is settled as `cancelled` in an entry of the log (`Outlet.decree`), what was handed to a
channel is left to its answer, and what is final stays so. What waits until it is due is cancelled
whole (`delayed`). Nothing here keeps a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec
from twisted.logger import Logger

from msgservice.errors import UnknownMessage
from msgservice.interfaces import ILog
from msgservice.message import Status
from msgservice.node.delayed import DelayedMessages
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.outlet import Outlet
from msgservice.node.purge import Settling
from msgservice.node.stretches import Head, Stretch
from msgservice.records import DELAYED, NOT_YET, Found, hash_of, number_of

MESSAGES: Final = 64  # of one page
IN_FLIGHT: Final = "in_flight"
CANCELLED: Final = "cancelled"
BEFORE: Final = "cancelled_before"  # by somebody else, or an undo before


Span = tuple[int, int]  # of sequences
Outcomes = dict[int, str]  # by number of the receiver; NOT_YET: it waits until it is due


class Undone(msgspec.Struct, frozen=True, kw_only=True):
    """The account of an undo, of the messages of one page.

    `receivers`: name -> outcome -> messages: `cancelled`, `in_flight`, `cancelled_before`, or the
    word of the final status that it had. `next`: the sequence that the next page begins with.
    """

    messages: int
    receivers: dict[str, dict[str, int]]
    next: int | None


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
    ) -> None:
        self._log, self._directory, self._dispatch = log, directory, dispatch
        self._delayed, self._settling = delayed, settling

    async def page(self, first: Found, count: int, reason: str) -> Undone:
        """Undo a message and those that its sender sent next; on disk when it returns.

        `count`: of all of them. One that is not in the log is not in the account either.
        """
        here = min(count, MESSAGES)
        undone: list[tuple[Found, Outcomes]] = []
        touched: dict[Outlet, Span] = {}
        for sequence in range(first.sequence, first.sequence + here):
            found = first if sequence == first.sequence else await self._found(first, sequence)
            if found is not None:
                undone.append(await self._one(found, reason, touched))
        for outlet in touched:
            await outlet.progress.all_stored()
        for outlet, span in touched.items():
            self._settling.settled(outlet, {(first.sender, first.incarnation): span})
        told: dict[str, Counter[str]] = {}
        for found, outcomes in undone:
            await self._complete(found, outcomes)
            for number, outcome in outcomes.items():
                told.setdefault(self._name(number), Counter())[outcome] += 1
        done = len(undone)
        if done:
            self._logger.info(
                "{messages} messages of {sender} were undone: {said}",
                messages=done,
                sender=first.sender,
                said=reason,
            )
        return Undone(
            messages=done,
            receivers={name: dict(outcomes) for name, outcomes in told.items()},
            next=first.sequence + here if here < count else None,
        )

    async def _found(self, first: Found, sequence: int) -> Found | None:
        identity = f"{first.sender}/{hash_of(first.incarnation)}/{sequence}"
        found: Found | None = await self._log.find(identity, 0, None)
        return found or await self._log.find_delayed(identity, None)

    async def _one(
        self, found: Found, reason: str, touched: dict[Outlet, Span]
    ) -> tuple[Found, Outcomes]:
        """Undo one message; return it, and the outcome at each receiver, empty where not known yet.

        `touched`: where something is to be stored, and of which sequences; it is added to.
        """
        if found.due:
            with suppress(UnknownMessage):  # it was due meanwhile
                await self._delayed.cancel(found, 1, reason)
                return found, {NOT_YET: CANCELLED}
            found = await self._found(found, found.sequence) or found
        if not found.position:  # by somebody else, before
            return found, {NOT_YET: BEFORE}
        outcomes: Outcomes = {}
        for number, (status, _, _) in found.states.items():
            outlet = self._dispatch.outlets.get(number)
            if status.final or outlet is None:
                outcomes[number] = _word(status)
                continue
            outcomes[number] = outcome = self._at(outlet, found, reason)
            if outcome != IN_FLIGHT:
                first, _ = touched.get(outlet, (found.sequence, 0))
                touched[outlet] = (first, found.sequence)
        return found, outcomes

    async def _complete(self, found: Found, outcomes: Outcomes) -> None:
        """Note what was settled by others while this was decided: that is stored by now."""
        if "" not in outcomes.values():
            return
        now = await self._found(found, found.sequence)
        for number, outcome in outcomes.items():
            if not outcome:
                status = now.states[number][0] if now is not None else Status.ACKNOWLEDGED
                outcomes[number] = _word(status) if status.final else IN_FLIGHT

    def _at(self, outlet: Outlet, found: Found, reason: str) -> str:
        """Undo a message at one receiver; return what came of it, or nothing: it is settled."""
        alone = _alone(found)
        waiting, _, in_flight = outlet.weigh(alone)
        if in_flight or (waiting and outlet.backlog.doubt(found.position)):
            return IN_FLIGHT  # a connection before may have brought it
        if not waiting:
            return ""
        outlet.decree(alone, Status.CANCELLED, reason)
        return CANCELLED

    def _name(self, number: int) -> str:
        if number == NOT_YET:
            return DELAYED
        row = self._directory.numbered(number)
        return row.name if row is not None else f"#{number}"


def _word(status: Status) -> str:
    """Return the outcome where a status was final before."""
    return BEFORE if status is Status.CANCELLED else status.name.lower()


def _alone(found: Found) -> Sequence[Stretch]:
    """Return the stretch of one message of its batch."""
    head = Head(number_of(found.position), 0, found.count, found.size)
    return [Stretch([head], found.position, found.position)]
