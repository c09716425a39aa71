"""Promises: whether so many receivers acknowledge each message of a run in time (DELIVERY 55).

A run that came with a promise is followed from its group on. Counted is what is stored: whatever
receivers settle is heard from their progress (`outlet_progress`), and after a start read from the
log. As soon as enough have acknowledged a message its promise is kept; where too few can any more,
or the time is over, it is broken. That is one entry of the log, behind all that it is about, and
then told; what is acknowledged later changes nothing.

Where a broken promise `cancels`, what is surely not sent yet is settled as cancelled first, as an
undo does it: so who is told that it is broken has the whole account. After a crash in between it is
decided anew, by what is stored.

Of runs without a promise nothing is kept here, and nothing asked.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.core.ranges import Range, RangeSet
from msgservice.core.runs import Settled
from msgservice.errors import LogUnavailable
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.node.commits import Commits
from msgservice.node.due import Due
from msgservice.node.outlet import Outlet
from msgservice.node.purge import Settling
from msgservice.node.stretches import Head, Stretch
from msgservice.records import (
    NOT_YET,
    Batch,
    History,
    OpenPromise,
    Verdict,
    index_of,
    number_of,
    position_of,
)

PAGE: Final = 200  # promises of one page: read from the log, or broken
SLICE: Final = 0.01  # seconds of a turn in which promises are broken
LATE: Final = "the time of its promise was over"
IN_VAIN: Final = "too few of its receivers can acknowledge it any more"
CANCELLED: Final = "its promise was broken"
NUMBERS_MIN: Final = 1024  # entries before the list of numbers is made anew


class Outlets(Protocol):
    """The outlets of a node, by the numbers of their receivers (`dispatch`)."""

    @property
    def outlets(self) -> Mapping[int, Outlet]:
        """Those of receivers that are there."""


class Teller(Protocol):
    """The one who tells producers what became of their messages (`tracker`)."""

    def decided(self, verdict: Verdict, ranges: Sequence[Range], firsts: Iterable[int]) -> None:
        """Promises are decided; `firsts`: the positions of their batches."""

    def tell_from(self, sender: str, incarnation: str, first: int, last: int) -> None:
        """States of these messages have changed in the log."""


class _Open:
    """The promise of one batch, as far as it is not decided; in sequences of its sender."""

    __slots__ = (
        "acked",
        "all_acked",
        "all_is_news",
        "all_lost",
        "batch_size",
        "cancels",
        "first",
        "incarnation",
        "is_known",
        "last",
        "left",
        "lost",
        "members",
        "need",
        "news",
        "number",
        "sender",
        "until",
    )

    def __init__(
        self,
        sender: str,
        incarnation: str,
        first: int,
        last: int,
        *,
        number: int,
        need: int,
        until: int,
        cancels: bool,
        members: Sequence[int] = (),
        size: int = 0,
    ) -> None:
        self.sender, self.incarnation = sender, incarnation
        self.first, self.last = first, last  # of the batch, as far as it is known to be
        self.number = number
        self.need, self.until, self.cancels = need, until, cancels
        self.members = members
        self.batch_size = size
        self.is_known = bool(members)  # else the log is read first
        self.left = RangeSet([(first, last)])  # not decided, and in no group that does
        self.news: RangeSet | None = None  # of which something is known since …
        self.all_is_news = False  # … and of all of it
        # Receivers at which all of the batch is settled, and those at which a part is.
        self.all_acked: set[int] = set()
        self.all_lost: set[int] = set()
        self.acked: dict[int, RangeSet] = {}
        self.lost: dict[int, RangeSet] = {}

    def settle(self, receiver: int, first: int, last: int, *, is_acked: bool) -> None:
        """These are final at a receiver, and that is stored; what was known before stays so."""
        first, last = max(first, self.first), min(last, self.last)
        if first > last or receiver in self.all_acked or receiver in self.all_lost:
            return
        whole, parts = (self.all_acked, self.acked) if is_acked else (self.all_lost, self.lost)
        if first == self.first and last == self.last:
            if not is_acked and receiver in self.acked:
                self._lose(receiver, first, last)
            else:
                whole.add(receiver)
                if parts:
                    parts.pop(receiver, None)
                self.all_is_news = True
                return
        elif is_acked:
            parts.setdefault(receiver, RangeSet()).add(first, last)
        else:
            self._lose(receiver, first, last)
        self.has_news(first, last)

    def settle_all(self, receiver: int, *, is_acked: bool) -> None:
        """All of the batch is final at a receiver, and that is stored: the usual case."""
        if self.acked or self.lost:
            self.settle(receiver, self.first, self.last, is_acked=is_acked)
        elif receiver not in self.all_acked and receiver not in self.all_lost:
            (self.all_acked if is_acked else self.all_lost).add(receiver)
            self.all_is_news = True

    def has_news(self, first: int, last: int) -> None:
        """Something is known of these that `found` is to look at."""
        if self.news is None:
            self.news = RangeSet()
        self.news.add(first, last)

    def _lose(self, receiver: int, first: int, last: int) -> None:
        acked = self.acked.get(receiver)
        lost = self.lost.setdefault(receiver, RangeSet())
        for low, high in [(first, last)] if acked is None else acked.missing(first, last):
            lost.add(low, high)

    def found(self) -> list[tuple[int, int, Status]]:
        """Return what can be decided of what has news, rising."""
        if not self.acked and not self.lost:  # the usual case: what is settled is so as a whole
            self.news, self.all_is_news = None, False
            if len(self.all_acked) >= self.need:
                whole = Status.ACKNOWLEDGED
            elif len(self.members) - len(self.all_lost) < self.need:
                whole = Status.DEAD
            else:
                return []
            return [(first, last, whole) for first, last in self.left]
        news: Iterable[Range] = self.news or ()
        if self.all_is_news:
            news = ((self.first, self.last),)
        self.news, self.all_is_news = None, False
        decided: list[tuple[int, int, Status]] = []
        for first, last in news:
            for low, high in self.left.within(first, last):
                for begin, end in self._even(low, high):
                    status = self._status(begin, end)
                    if status is None:
                        continue
                    if decided and decided[-1][1] + 1 == begin and decided[-1][2] is status:
                        begin = decided.pop()[0]
                    decided.append((begin, end, status))
        return decided

    def _even(self, first: int, last: int) -> list[Range]:
        """Cut a range where what receivers have settled of it begins or ends."""
        parts = [*self.acked.values(), *self.lost.values()]
        cuts = {first}
        for part in parts:
            for low, high in part.within(first, last):
                cuts.add(low)
                cuts.add(high + 1)
        cuts.discard(last + 1)
        begins = sorted(cuts)
        return list(zip(begins, [*(at - 1 for at in begins[1:]), last], strict=True))

    def _status(self, first: int, last: int) -> Status | None:
        acked = len(self.all_acked) + sum(
            [part.covers(first, last) for part in self.acked.values()]
        )
        if acked >= self.need:
            return Status.ACKNOWLEDGED
        lost = len(self.all_lost) + sum([part.covers(first, last) for part in self.lost.values()])
        return Status.DEAD if len(self.members) - lost < self.need else None


class _Part(NamedTuple):
    """A part of a batch about whose promise there is something to say; sequences."""

    first: int
    last: int
    one: _Open


class Promises:
    """The open promises of one node, as `due.Source`.

    `open`: messages whose promise is not decided. `kept`, `broken`: messages, since the start.

    `settling` moves on the cursors of who is away, where something was cancelled.
    """

    _logger = Logger()

    def __init__(
        self,
        *,
        log: ILog,
        commits: Commits,
        tracker: Teller,
        outlets: Outlets,
        settling: Settling,
        due: Due,
        time: Time,
        limits: Limits,
    ) -> None:
        self.open = self.kept = self.broken = 0
        self._log, self._commits, self._tracker = log, commits, tracker
        self._outlets, self._settling = outlets, settling
        self._due, self._time = due, time
        self._grace = int((limits.link_delay_max + limits.hello_timeout) * 1000)
        self._open: dict[int, _Open] = {}  # by number of the batch
        self._numbers: list[int] = []  # of these, rising; and of some that have gone
        self._unknown: dict[_Open, None] = {}  # of which the log is read first
        self._touched: dict[_Open, None] = {}
        # What is decided in this turn and in no group: sender, incarnation, whether it cancels,
        # status, reason -> of which messages. What follows each other there is one verdict.
        self._deciding: dict[tuple[str, str, bool, Status, str], list[_Part]] = {}
        self._again: dict[_Open, None] = {}  # whose verdict was not stored
        self._removed: dict[int, list[int]] = {}  # receivers -> batches to be looked at for it
        self._times: dict[int, dict[_Open, None]] = {}  # when -> which are over then
        self._rising: list[int] = []  # a heap of these times, and of some that have gone
        due.register(self)

    @property
    def count(self) -> int:
        """The number of runs with an open promise."""
        return len(self._open)

    # --- what is open

    def load(self, promises: Sequence[OpenPromise]) -> None:
        """Follow what the log has; it is read what became of each before it is decided."""
        if not promises:
            return
        # Receivers have time to say what they have taken (DELIVERY 38).
        not_before = self._due.now() + self._grace
        by_number: dict[int, list[OpenPromise]] = {}
        for one in promises:
            by_number.setdefault(number_of(one.position), []).append(one)
        for number in sorted(by_number):
            parts = sorted(by_number[number], key=_first_of)
            one = parts[0]
            found = _Open(
                one.sender,
                one.incarnation,
                one.first - index_of(one.position),
                parts[-1].last,
                number=number,
                need=one.need,
                until=max(one.until, not_before),
                cancels=one.cancels,
            )
            found.left = RangeSet((part.first, part.last) for part in parts)
            self._add(found, sum([part.last - part.first + 1 for part in parts]))
            self._unknown[found] = None
        self._due.look()

    def stored(self, batches: Sequence[Batch]) -> None:
        """Batches were stored: those with a promise are followed, before they are sent."""
        earliest: int | None = None
        has_some = False
        for batch in batches:
            promise = batch.promise
            if promise is None:
                continue
            if not has_some:
                has_some, earliest = True, self._next()
            members = batch.audience.members
            self._add(
                _Open(
                    batch.sender,
                    batch.incarnation,
                    batch.sequence,
                    batch.sequence + batch.count - 1,
                    number=batch.number,
                    need=promise.need or len(members),
                    until=promise.until,
                    cancels=promise.cancels,
                    members=members,
                    size=batch.size,
                ),
                batch.count,
            )
        if has_some and self._next() != earliest:
            self._due.look()

    def _add(self, one: _Open, messages: int) -> None:
        self.open += messages
        self._open[one.number] = one
        self._numbers.append(one.number)
        self._put(one)

    def _put(self, one: _Open) -> None:
        """The end of its time is looked out for."""
        alike = self._times.get(one.until)
        if alike is None:
            alike = self._times[one.until] = {}
            heapq.heappush(self._rising, one.until)
        alike[one] = None

    def _next(self) -> int | None:
        """When the first of them is over."""
        rising = self._rising
        while rising and rising[0] not in self._times:
            heapq.heappop(rising)
        return rising[0] if rising else None

    def _remove(self, one: _Open) -> None:
        """All of it is decided."""
        del self._open[one.number]
        self._unknown.pop(one, None)
        self._leave(one)
        if len(self._numbers) > NUMBERS_MIN + 2 * len(self._open):
            self._numbers = sorted(self._open)

    def _leave(self, one: _Open) -> None:
        """The end of its time does not matter any more."""
        alike = self._times.get(one.until)
        if alike is not None and alike.pop(one, one) is None and not alike:
            del self._times[one.until]

    # --- what receivers settle

    def settled(self, receiver: int, settled: Sequence[Settled]) -> None:
        """Messages were settled at a receiver, and that is stored."""
        open_, touched = self._open, self._touched
        if not open_:
            return
        for one in settled:
            batch: Batch = one.run.source
            found = open_.get(batch.number)
            if found is None:
                continue
            touched[found] = None
            is_acked = one.status is Status.ACKNOWLEDGED
            if one.last - one.first + 1 == batch.count:
                found.settle_all(receiver, is_acked=is_acked)
            else:
                behind = batch.sequence - batch.first
                found.settle(receiver, one.first + behind, one.last + behind, is_acked=is_acked)

    def decreed(self, receiver: int, ranges: Sequence[Range]) -> None:
        """Ranges of positions were settled at a receiver without an answer, and that is stored."""
        if not self._open:
            return
        for first, last in ranges:
            at = bisect_left(self._numbers, number_of(first))
            while at < len(self._numbers) and self._numbers[at] <= number_of(last):
                found = self._open.get(self._numbers[at])
                at += 1
                if found is None or not found.is_known or receiver not in found.members:
                    continue
                begin = position_of(found.number)
                low, high = max(first, begin), min(last, begin + found.last - found.first)
                if low <= high:
                    behind = found.first - begin
                    found.settle(receiver, low + behind, high + behind, is_acked=False)
                    self._touched[found] = None

    def receiver_removed(self, receiver: int) -> None:
        """A receiver was removed, and that is stored: it acknowledges nothing more."""
        if self._open:
            self._removed[receiver] = list(self._open)
            self._due.look()

    def _lose_some(self) -> None:
        """Take note of some of the batches that a removed receiver has not acknowledged."""
        begun = self._time.now()
        receiver, numbers = next(iter(self._removed.items()))
        while numbers and self._time.now() - begun < SLICE:
            for number in numbers[-PAGE:]:
                one = self._open.get(number)
                if one is not None and one.is_known and receiver in one.members:
                    one.settle(receiver, one.first, one.last, is_acked=False)
                    self._judge(one)
            del numbers[-PAGE:]
        if not numbers:
            del self._removed[receiver]
        self._store()

    def flush(self) -> None:
        """A group was told of: what it decides is in the next."""
        if self._touched:
            touched, self._touched = self._touched, {}
            for one in touched:
                if one.is_known:
                    self._judge(one)
        if self._deciding:
            self._store()

    def _judge(self, one: _Open) -> None:
        for first, last, status in one.found():
            if status is Status.ACKNOWLEDGED:
                self._decide(one, first, last, status, "")
            elif not one.cancels:
                self._decide(one, first, last, status, IN_VAIN)
            else:
                self._cancel_later(one, [(first, last)])

    def _failed(self, failure: Failure, parts: Sequence[_Part]) -> None:
        """A verdict that was not stored is decided anew."""
        if not failure.check(LogUnavailable):
            self._logger.failure("a promise is decided later", failure)
        for first, last, one in parts:
            one.left.add(first, last)
            one.has_news(first, last)
            self._again[one] = None
            self._put(one)
        self._due.look()

    def _decide(self, one: _Open, first: int, last: int, status: Status, reason: str) -> None:
        """Decide in the next group, with all that is decided until `_store`."""
        one.left.remove(first, last)
        alike = (one.sender, one.incarnation, one.cancels, status, reason)
        self._deciding.setdefault(alike, []).append(_Part(first, last, one))

    def _store(self) -> None:
        """Have what was decided stored: one verdict of all that are alike and follow each other."""
        deciding, self._deciding = self._deciding, {}
        for (sender, incarnation, cancels, status, reason), parts in deciding.items():
            parts.sort(key=_first_of)
            begin = 0
            for end in range(1, len(parts) + 1):
                if end < len(parts) and parts[end].first == parts[end - 1].last + 1:
                    continue
                some, begin = parts[begin:end], end
                verdict = Verdict(sender, incarnation, some[0].first, some[-1].last, status, reason)
                done = self._commits.decide(verdict)
                done.addCallback(self._decided, some, verdict, cancels=cancels)
                done.addErrback(self._failed, some)

    def _decided(
        self,
        ranges: tuple[Range, ...],
        parts: Sequence[_Part],
        verdict: Verdict,
        *,
        cancels: bool,
    ) -> None:
        """The verdict is stored: it is told, and holds."""
        self.open -= verdict.last - verdict.first + 1
        messages = sum([last - first + 1 for first, last in ranges])
        if verdict.status is Status.ACKNOWLEDGED:
            self.kept += messages
        else:
            self.broken += messages
        for part in parts:
            self._close(part.one)
        if cancels and verdict.status is not Status.ACKNOWLEDGED:
            # With what was cancelled, before it.
            self._tracker.tell_from(
                verdict.sender, verdict.incarnation, verdict.first, verdict.last
            )
        elif ranges:
            firsts = (position_of(part.one.number) for part in parts)
            self._tracker.decided(verdict, ranges, firsts)

    def _close(self, one: _Open) -> None:
        if one.left:
            return
        if self._open.get(one.number) is one:
            self._remove(one)
        else:
            self._leave(one)

    # --- due.Source

    def earliest(self) -> int | None:
        """See `due.Source`."""
        if self._unknown or self._again or self._removed:
            return 0
        return self._next()

    def act(self, now: int) -> Deferred[bool]:
        """See `due.Source`."""
        return Deferred.fromCoroutine(self._act(now))

    async def _act(self, now: int) -> bool:
        if self._unknown:
            for one in list(self._unknown)[:PAGE]:
                await self._read(one)
            self._store()
            return True
        if self._removed:
            self._lose_some()
            return True
        again, self._again = self._again, {}
        for one in again:
            self._judge(one)
        self._store()
        await self._break_late(now)
        earliest = self._next()
        return earliest is not None and earliest <= now

    async def _break_late(self, now: int) -> None:
        """Break the next of those whose time is over."""
        begun = self._time.now()
        breaking: list[tuple[_Open, list[Range]]] = []
        cancelled: dict[Outlet, None] = {}
        try:
            while len(breaking) < PAGE and self._time.now() - begun < SLICE:
                until = self._next()
                if until is None or until > now:
                    break
                one = next(iter(self._times[until]))
                self._leave(one)
                ranges = list(one.left)
                if not ranges:
                    continue  # all of it is decided, and on its way to the disk
                breaking.append((one, ranges))
                for first, last in ranges:
                    one.left.remove(first, last)
                if one.cancels:
                    cancelled.update(dict.fromkeys(self._cancel(one, ranges)))
            for outlet in cancelled:
                await outlet.progress.all_stored()
        except Exception:
            parts = [_Part(*each, one) for one, ranges in breaking for each in ranges]
            self._failed(Failure(), parts)
            return
        for one, ranges in breaking:
            for first, last in ranges:
                self._decide(one, first, last, Status.EXPIRED, LATE)
        self._store()

    # --- what a broken promise cancels

    def _cancel(self, one: _Open, ranges: Sequence[Range]) -> list[Outlet]:
        """Cancel what is surely not sent yet of these; return where, to be stored.

        What was handed to a channel, and what a connection before may have brought, is left to its
        answer.
        """
        begin = position_of(one.number)
        span = {(one.sender, one.incarnation): (ranges[0][0], ranges[-1][1])}
        head = Head(one.number, 0, one.last - one.first + 1, one.batch_size)
        cancelled: list[Outlet] = []
        for receiver in one.members:
            outlet = self._outlets.outlets.get(receiver)
            if outlet is None:
                continue
            backlog = outlet.backlog
            sure = max(begin, backlog.stored_before + 1, backlog.landed_to + 1)
            stretches = []
            for first, last in ranges:
                low, high = max(sure, begin + first - one.first), begin + last - one.first
                if low <= high:
                    stretches.append(Stretch([head], low, high))
            if stretches and outlet.decree(stretches, Status.CANCELLED, CANCELLED):
                cancelled.append(outlet)
                self._settling.settled(outlet, span)
        return cancelled

    def _cancel_later(self, one: _Open, ranges: list[Range]) -> None:
        """Cancel what is left of what cannot be kept any more, and decide that it is broken."""
        for first, last in ranges:
            one.left.remove(first, last)

        async def cancel() -> None:
            for outlet in self._cancel(one, ranges):
                await outlet.progress.all_stored()
            for first, last in ranges:
                self._decide(one, first, last, Status.DEAD, IN_VAIN)
            self._store()

        done = Deferred.fromCoroutine(cancel())
        done.addErrback(self._failed, [_Part(*each, one) for each in ranges])

    # --- what was before the start

    async def _read(self, one: _Open) -> None:
        """Read what became of a batch so far: its receivers, and what each has settled."""
        first: int | None = one.first
        members = dict.fromkeys(one.members)
        settled: list[tuple[int, int, int, bool]] = []
        while first is not None and first <= one.last:
            page: History = await self._log.history(
                one.sender, one.incarnation, first, one.last - first + 1
            )
            for piece in page.pieces:
                if piece.first <= one.last:
                    members.update(dict.fromkeys(piece.audience.members))
            for state in page.states:
                if state.receiver > NOT_YET and state.first <= one.last:
                    members[state.receiver] = None
                    is_acked = state.status is Status.ACKNOWLEDGED
                    settled.append((state.receiver, state.first, state.last, is_acked))
            first = page.next
        one.members = tuple(sorted(members))
        for receiver, low, high, is_acked in settled:
            one.settle(receiver, low, high, is_acked=is_acked)
        one.is_known = True
        self._unknown.pop(one, None)
        one.has_news(one.first, one.last)
        self._judge(one)


def _first_of(one: OpenPromise | _Part) -> int:
    return one.first
