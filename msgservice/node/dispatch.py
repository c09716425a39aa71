"""Brings what was stored to the receivers that are connected, and judges who is too far behind.

A batch costs one list operation for each *live* receiver of its audience; receivers that are away
cost nothing here, however many they are. A judgement looks at each receiver once, and adds up
what was stored for its sets only where all that was stored could have brought it to its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.node.outlet import Outlet
from msgservice.node.seldom import Seldom
from msgservice.node.stored_bytes import StoredBytes
from msgservice.node.supply import FOLLOWS
from msgservice.node.tail import Tail
from msgservice.records import Account, Audience, Batch, ReceiverRow

JUDGE_EVERY = 0.1  # seconds between two judgements of the backlogs (SEMANTICS 18)
# Sets of receivers, over all receivers, that one judgement adds up; who is left is judged next.
JUDGED_SETS = 16_384


class Presence(Protocol):
    """The one who counts how long receivers are away (`away`)."""

    def came(self, row: ReceiverRow) -> None:
        """A receiver has its connection."""

    def went(self, row: ReceiverRow) -> None:
        """The connection of a receiver has gone."""


class Dispatch:
    """The dispatcher of stored batches to connected outlets, and the judge of backlogs.

    `set_suspended` leaves a receiver out of audiences, or takes it in again.
    """

    _logger = Logger()

    def __init__(
        self,
        tail: Tail,
        stored_bytes: StoredBytes,
        limits: Limits,
        clock: IReactorTime,
        set_suspended: Callable[[ReceiverRow, bool], None],
        seldom: Seldom,
        presence: Presence,
    ) -> None:
        self.outlets: dict[int, Outlet] = {}  # by receiver number
        self.messages = 0  # that were stored since the start
        self._tail = tail
        self._stored_bytes = stored_bytes
        self._limits = limits
        self._clock = clock
        self._set_suspended = set_suspended
        self._seldom = seldom
        self._presence = presence
        self._live: dict[int, dict[Outlet, None]] = {}  # by audience number
        self._audiences: dict[int, Audience] = {}
        self._late: list[int] = []  # numbers of receivers that the last judgement did not come to
        self._full: set[int] = set()  # numbers of receivers
        self._full_audiences: dict[int, str] = {}  # audience number -> why
        self._judging: IDelayedCall | None = None

    def __iter__(self) -> Iterator[Outlet]:
        return iter(list(self.outlets.values()))

    # --- who is there

    def add(self, outlet: Outlet) -> None:
        """Add a receiver that the directory knows."""
        self.outlets[outlet.row.number] = outlet

    def remove(self, outlet: Outlet) -> None:
        """Remove a receiver from dispatch; it was disconnected before."""
        outlet.stop()
        self.outlets.pop(outlet.row.number, None)
        self._full.discard(outlet.row.number)
        self._mark_audiences()

    def audience_made(self, audience: Audience) -> None:
        """The audience is used for the first time: its live receivers are fed from now on."""
        self._audiences[audience.number] = audience
        live: dict[Outlet, None] = {}
        self._live[audience.number] = live
        self._stored_bytes.by_set[audience.number] = 0
        for number in audience.members:
            outlet = self.outlets.get(number)
            if outlet is not None:
                outlet.audiences.add(audience.number)
                if outlet.connection is not None:
                    live[outlet] = None
                if number in self._full:
                    limit = self.backlog_bytes_max(outlet.row)
                    self._full_audiences[audience.number] = _why_full(outlet, limit)

    def audience_unmade(self, audience: Audience) -> None:
        """The audience is unused: no batch in the log has it, and none that waits to be stored."""
        number = audience.number
        size = self._stored_bytes.by_set.pop(number, 0)
        for member in audience.members:
            outlet = self.outlets.get(member)
            if outlet is not None:
                outlet.progress.queued.leave(size)
                outlet.audiences.discard(number)
        self._audiences.pop(number, None)
        self._live.pop(number, None)
        self._full_audiences.pop(number, None)

    def connected(self, outlet: Outlet) -> None:
        """The outlet's connection is open: stored batches are fed to it from now on."""
        self._presence.came(outlet.row)
        for number in outlet.audiences:
            self._live[number][outlet] = None

    def disconnected(self, outlet: Outlet) -> None:
        """The outlet's connection was lost: it is fed nothing more."""
        self._presence.went(outlet.row)
        for number in outlet.audiences:
            self._live[number].pop(outlet, None)

    def audience(self, number: int) -> Audience | None:
        """The audience of this number, or None where it is of no batch any more."""
        return self._audiences.get(number)

    # --- what was stored

    def stored(self, batches: list[Batch]) -> None:
        """Batches that were committed, in the order of their positions, go to the tail and on.

        Outlets that are following get them directly; those that lag read them later.
        """
        tail, live, sizes = self._tail, self._live, self._stored_bytes.by_set
        touched: dict[Outlet, None] = {}
        total, messages = self._stored_bytes.total, self.messages
        for batch in batches:
            tail.append(batch)
            number = batch.audience.number
            sizes[number] += batch.size
            total += batch.size
            messages += batch.count
            for outlet in live[number]:
                if outlet.supply.state is FOLLOWS:
                    outlet.supply.feed(batch)
                touched[outlet] = None
        self._stored_bytes.total, self.messages = total, messages
        for outlet in touched:
            try:
                outlet.pump()
            except Exception:
                outlet.fault(Failure())
        if batches and self._judging is None:
            self._judging = self._clock.callLater(JUDGE_EVERY, self._judge)

    # --- who is too far behind

    def full(self, audience: Audience) -> str | None:
        """Return why this audience is refused: a receiver of it is too far behind. Or None."""
        return self._full_audiences.get(audience.number) if self._full_audiences else None

    def refuses(self, number: int) -> bool:
        """Whether messages for this receiver are refused, since too much waits for it already."""
        outlet = self.outlets.get(number)
        return outlet is not None and number in self._full and not outlet.row.suspended

    @property
    def refusing(self) -> int:
        """The number of such receivers."""
        return sum(map(self.refuses, self._full))

    def backlog_bytes_max(self, row: ReceiverRow) -> int:
        """The backlog that this receiver may have, in bytes."""
        return row.options.backlog_bytes or self._limits.backlog_bytes_max

    def begin(self, accounts: Iterable[Account]) -> None:
        """Begin with the backlogs that the log's accounts say: all that was stored up to now.

        Copies of what is retained, for who has more subjects by the configuration, were counted
        when they were stored, too.
        """
        for account in accounts:
            progress = self.outlets[account.receiver].progress
            queued = progress.queued
            queued.add(account.queued_bytes - queued.look())
            progress.split.begin(account.split)
        self.judge(starting=True)

    def judge(self, *, starting: bool = False) -> None:
        """Judge the backlogs: mark receivers that are too far behind; repeated while there are any.

        `starting`: who was suspended before the node stopped, and still is, is told of again.
        """
        full, changed = set(), False
        order: Iterable[int] = self.outlets
        if self._late:
            order = dict.fromkeys([*(n for n in self._late if n in self.outlets), *self.outlets])
            self._late = []
        default, room, total = self._limits.backlog_bytes_max, JUDGED_SETS, self._stored_bytes.total
        for number in order:
            outlet = self.outlets[number]
            row, queued = outlet.row, outlet.progress.queued
            limit = row.options.backlog_bytes or default
            if (queued.beyond_total + total) * 2 < limit and not row.suspended:
                continue
            may_suspend = row.options.on_full == "suspend"
            stays = limit if row.suspended and may_suspend else 2 * limit  # of twice what waits
            is_caught_up = outlet.caught_up
            if queued.at_most * 2 >= stays > queued.at_least * 2 or is_caught_up:
                if room <= 0:
                    self._late.append(number)
                    if number in self._full:
                        full.add(number)
                    continue
                room -= len(outlet.audiences)
                waiting = queued.look()
                if is_caught_up:
                    # At start it may have been more: of very many split batches all was counted.
                    queued.add(-waiting)
            waiting = queued.at_least
            at_limit = waiting >= limit
            suspend = may_suspend and (at_limit or (row.suspended and waiting * 2 >= limit))
            if suspend or at_limit:
                full.add(number)
            if suspend != row.suspended or (suspend and starting):
                changed = True
                self._suspend(outlet, suspend, limit)
        if changed or full != self._full:
            before, self._full = self._full, full
            for number in before ^ full:
                if number in full:
                    self.outlets[number].is_full_now()
                self._say_full(self.outlets[number])
            self._mark_audiences()
        if (full or self._late) and self._judging is None:
            self._judging = self._clock.callLater(JUDGE_EVERY, self._judge)

    def _judge(self) -> None:
        self._judging = None
        self.judge()

    def _suspend(self, outlet: Outlet, suspended: bool, limit: int) -> None:
        self._set_suspended(outlet.row, suspended)
        if suspended:
            self._logger.warn(
                "receiver {name} is suspended: {queued} bytes wait for it, its limit is {limit};"
                " what is sent from now on is not for it, until less than half of that waits",
                line="receiver-suspended",
                name=outlet.name,
                queued=outlet.progress.queued.look(),
                limit=limit,
            )
        else:
            self._logger.warn(
                "receiver {name} is no longer suspended: {queued} bytes wait for it, its limit is"
                " {limit}; what is sent from now on is for it again",
                line="receiver-not-suspended",
                name=outlet.name,
                queued=outlet.progress.queued.look(),
                limit=limit,
            )

    def _say_full(self, outlet: Outlet) -> None:
        """Say that a receiver's messages are refused, or are taken again; of many times, how it is.

        One that is or was suspended is told of by that.
        """
        number = outlet.row.number
        begins = number in self._full

        def tell(count: int) -> None:
            if number not in self.outlets or self.refuses(number) is not begins:
                return  # the other line says how it is
            self._logger.warn(
                "messages for receiver {name} are refused, their senders keep them: {queued} bytes"
                " wait for it, its limit is {limit}"
                if begins
                else "messages for receiver {name} are taken again: {queued} bytes wait for it,"
                " its limit is {limit}",
                line="receiver-full" if begins else "receiver-not-full",
                name=outlet.name,
                queued=outlet.progress.queued.look(),
                limit=self.backlog_bytes_max(outlet.row),
            )

        if not outlet.row.suspended and outlet.row.options.on_full != "suspend":
            self._seldom.say(("full", number, begins), tell)

    def _mark_audiences(self) -> None:
        self._full_audiences = {}
        for number in self._full:
            outlet = self.outlets.get(number)
            if outlet is not None:
                why = _why_full(outlet, self.backlog_bytes_max(outlet.row))
                self._full_audiences.update(dict.fromkeys(outlet.audiences, why))

    # --- for people

    def status_of(self, number: int, position: int, stored: Status) -> Status:
        """The status to show: `sent` is a view of `queued` (SEMANTICS 10)."""
        outlet = self.outlets.get(number)
        if stored is Status.QUEUED and outlet is not None and outlet.in_flight(position):
            return Status.SENT
        return stored

    def stop(self) -> None:
        """Cancel the timer: none is left behind."""
        if self._judging is not None:
            self._judging.cancel()
            self._judging = None
        for outlet in self.outlets.values():
            outlet.stop()


def _why_full(outlet: Outlet, limit: int) -> str:
    if outlet.row.suspended:
        return f"receiver {outlet.name!r} is suspended until it has caught up"
    waiting = outlet.progress.queued.look()
    return (
        f"log full: the backlog of receiver {outlet.name!r}: {waiting} bytes wait for it, its limit"
        f" is {limit}"
    )
