"""`Expiry`: what becomes of stored messages whose ttl is over, at receivers that did not get them.

A batch expires whole, at a time by the node's clock (`due`). What is about to be sent is judged
there (`core.flight`); here is the rest, mostly of receivers that are away: a pass over the log in
the order of these times, a page at a time. Each receiver's outlet settles what is still open of a
page; what it has handed to a channel is left to its answer.

When a pass is over, or another has settled messages so (`purge`), the producers that are connected
are told from the log, and the cursors of who is away pass what is settled: so that a receiver which
never comes again does not keep in the log what nobody is to get.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from twisted.internet.defer import Deferred

from msgservice.clock import Time
from msgservice.core.runs import EXPIRED_REASON
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.node.due import Due
from msgservice.node.outlet import UNLOAD_AFTER, Outlet
from msgservice.node.stretches import Head, Stretch
from msgservice.node.tail import Tail
from msgservice.records import Audience, Batch, Expiring, position_of

PAGE: Final = 256  # batches
SLICE: Final = 0.01  # seconds of one turn of the reactor
TOLD_WITHIN: Final = 0.5  # seconds until producers are told what others have settled
LOOK_AGAIN: Final = UNLOAD_AFTER + 1  # seconds until what is loaded of who is away was let go

# (sender, incarnation) -> the lowest and the highest sequence of what was settled
Spans = dict[tuple[str, str], tuple[int, int]]


class Outlets(Protocol):
    """The outlets of a node, and the sets of receivers that batches are for (`dispatch`)."""

    outlets: dict[int, Outlet]

    def audience(self, number: int) -> Audience | None:
        """The audience of this number, or None where no batch has it."""


class Teller(Protocol):
    """The one who tells producers the states of their messages (`tracker`)."""

    def tell_from(self, sender: str, incarnation: str, first: int, last: int) -> None:
        """Tell a producer, if it is there, the states of its messages of these sequences."""


class Expiry:
    """The source of what expires. `first`: when the first batch in the log does, or None."""

    def __init__(
        self,
        log: ILog,
        *,
        due: Due,
        tail: Tail,
        outlets: Outlets,
        tracker: Teller,
        time: Time,
        limits: Limits,
        first: int | None,
    ) -> None:
        self._log, self._tail = log, tail
        self._due, self._time = due, time
        self._outlets, self._tracker = outlets, tracker
        # What was stored before the start is looked at again when all receivers had time to say
        # what of it they have: before that, outlets leave it out (DELIVERY 38).
        grace = int((limits.link_delay_max + limits.hello_timeout) * 1000)
        self._again_at = None if first is None else due.now() + grace
        self._passed = (0, 0)  # all up to this place was looked at
        self._next = first  # when the first behind it expires
        self._came: int | None = None  # the earliest that was stored while a page is looked at
        self._away: dict[Outlet, None] = {}  # whose cursor may have something to pass
        self._look_at: int | None = None  # when these are looked at again
        self._decreed: dict[Outlet, None] = {}  # who may have what this pass settled to store
        self._untold: Spans = {}
        due.register(self)

    def stored(self, batches: Sequence[Batch]) -> None:
        """Batches were stored: of those that expire, it is known when the first does."""
        first: int | None = None
        for batch in batches:
            if batch.expires_at is not None and (first is None or batch.expires_at < first):
                first = batch.expires_at
        if first is None:
            return
        self._came = first if self._came is None else min(self._came, first)
        self._passed = min(self._passed, (first, 0))
        if self._next is None or first < self._next:
            self._next = first
            self._due.look()

    def settled(self, outlet: Outlet, senders: Spans) -> None:
        """Messages of these were settled at a receiver by another, and that is on disk.

        Their senders are told within `TOLD_WITHIN`, for what comes by then together.
        """
        self._tell_later(senders)
        if outlet.connection is None:
            self._away[outlet] = None
        self._look_in(TOLD_WITHIN)
        self._due.look()

    def _tell_later(self, senders: Spans) -> None:
        for key, (first, last) in senders.items():
            low, high = self._untold.get(key, (first, last))
            self._untold[key] = (min(first, low), max(last, high))

    def _look_in(self, seconds: float) -> None:
        at = self._due.now() + int(seconds * 1000)
        self._look_at = at if self._look_at is None else min(at, self._look_at)

    # --- due.Source

    def earliest(self) -> int | None:
        """See `due.Source`."""
        times = (self._next, self._look_at, self._again_at)
        return min([at for at in times if at is not None], default=None)

    def act(self, now: int) -> Deferred[bool]:
        """See `due.Source`."""
        return Deferred.fromCoroutine(self._act(now))

    async def _act(self, now: int) -> bool:
        # What was to be done is forgotten when it is: where the log fails it is tried again.
        self._came = None
        again_at = self._again_at
        is_again = again_at is not None and again_at <= now
        page = await self._log.expiring((0, 0) if is_again else self._passed, now, PAGE)
        if page.batches:
            await self._decree(page)
        if is_again:
            self._again_at = None
        self._passed, self._next = page.at, page.next
        if self._came is not None:
            self._passed = min(self._passed, (self._came, 0))
            self._next = self._came if self._next is None else min(self._next, self._came)
        if self._next is not None and self._next <= now:
            return True
        self._look_at = None
        try:
            await self._end_pass()
        except BaseException:
            self._look_in(0)
            raise
        return False

    async def _decree(self, page: Expiring) -> None:
        self._tell_later({(name, of): (low, high) for name, of, low, high in page.senders})
        stretches = _Stretches(page)
        numbers: dict[int, None] = {}
        for number in stretches.expiring:
            audience = self._outlets.audience(number)
            if audience is not None:
                numbers.update(dict.fromkeys(audience.members))
        until = self._time.now() + SLICE
        for number in numbers:
            outlet = self._outlets.outlets.get(number)
            if outlet is None:
                continue  # it was removed
            outlet.decree(stretches.of(outlet.audiences), Status.EXPIRED, EXPIRED_REASON)
            self._decreed[outlet] = None
            if outlet.connection is None:
                self._away[outlet] = None
            if self._time.now() >= until:
                await self._turn()
                until = self._time.now() + SLICE

    def _turn(self) -> Deferred[None]:
        """Fire in another turn of the reactor: others have theirs."""
        turn: Deferred[None] = Deferred()
        self._time.clock.callLater(0, turn.callback, None)
        return turn

    # --- when a pass is over

    async def _end_pass(self) -> None:
        outlets = self._outlets.outlets
        # Of what was loaded the tracker hears from each receiver's progress. The rest is told from
        # the log: not before it is there, whether a receiver is away or connected.
        while self._decreed:
            outlet = next(reversed(self._decreed))
            if outlets.get(outlet.row.number) is outlet:
                await outlet.progress.decreed_stored()
            self._decreed.pop(outlet, None)
        untold, self._untold = self._untold, {}
        until = self._time.now() + SLICE
        for (sender, incarnation), (first, last) in untold.items():
            self._tracker.tell_from(sender, incarnation, first, last)
            if self._time.now() >= until:
                await self._turn()
                until = self._time.now() + SLICE
        away, self._away = self._away, {}
        looked_at: dict[int, Outlet] = {}
        for outlet in away:
            if outlets.get(outlet.row.number) is not outlet or outlet.connection is not None:
                continue  # it is gone, or gets what follows
            if outlet.is_away:
                looked_at[outlet.row.number] = outlet
            else:
                self._away[outlet] = None
        if self._away:
            self._look_in(LOOK_AGAIN)
        if looked_at:
            end = position_of(self._tail.next_number) - 1
            try:
                accounts = await self._log.accounts(list(looked_at))
            except BaseException:
                self._away.update(dict.fromkeys(looked_at.values()))
                raise
            for account in accounts:
                oldest, outlet = account.oldest, looked_at[account.receiver]
                if outlets.get(account.receiver) is outlet:
                    # Where nothing waits for it, all that was stored before it was asked is behind.
                    outlet.pass_to(end if oldest is None else oldest.position - 1)
                if self._time.now() >= until:
                    await self._turn()
                    until = self._time.now() + SLICE


class _Stretches:
    """The stretches of a page of batches that expire, by the sets that a receiver is in."""

    def __init__(self, page: Expiring) -> None:
        heads = [Head(*batch) for batch in page.batches]
        self.expiring = dict.fromkeys([head.audience for head in heads])
        others = page.between or ()
        self._rising: list[tuple[int, int, Head | None]] = sorted(
            [
                *((head.number, head.audience, head) for head in heads),
                *((number, audience, None) for number, audience in others),
            ],
            key=lambda one: one[0],
        )
        self._audiences = {audience for _, audience, _ in self._rising}
        self._knows_others = page.between is not None
        self._found: dict[frozenset[int], list[Stretch]] = {}

    def of(self, audiences: set[int]) -> list[Stretch]:
        """Return the stretches for who is in these sets."""
        key = frozenset(self._audiences.intersection(audiences))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._of(key)
        return found

    def _of(self, audiences: frozenset[int]) -> list[Stretch]:
        found: list[list[Head]] = []
        goes_on = False
        for number, audience, head in self._rising:
            if audience not in audiences:
                continue
            if head is None:
                goes_on = False
                continue
            if goes_on and (self._knows_others or found[-1][-1].number + 1 == number):
                found[-1].append(head)
            else:
                found.append([head])
            goes_on = True
        return [Stretch(heads) for heads in found]
