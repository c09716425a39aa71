"""Tells producers what became of their messages: ROUTED, AUDIENCE, STATUS (SEMANTICS 8-11).

Statuses are states, told as ranges: what a receiver settled in one group is one frame for each
sender and state. A sender that connects says from which sequence on it wants to know
(`status_from`): it gets the present states from the log first, and changes as they are stored.
What is told is always durable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.core.audiences import GONE_AUDIENCES_MAX, TOLD_MAX, split_audience
from msgservice.core.backoff import delay_of
from msgservice.core.frames import Frame, Routed, StatusFrame
from msgservice.core.ranges import RangeSet
from msgservice.core.runs import Settled
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX
from msgservice.message import Status
from msgservice.node.directory import Directory
from msgservice.records import NOBODY, Audience, Batch, History, Piece

HISTORY_PAGE = 1000  # pieces asked of the log at once
REASON_MAX = 1000
# Of one frame: with the longest reason and names it fits in 8 KiB, so in any frame that the other
# side takes.
STATUS_RANGES_MAX = 180
FRAMES_MAX = 256  # told at once, about; then the transport is asked whether it has room
RETRY_DELAY_MIN = 1.0  # seconds until a page of the log that could not be read is read again …
RETRY_DELAY_MAX = 60.0  # … doubling up to this

Pending = dict[tuple[str, int, str], RangeSet]  # (receiver, state, reason) -> sequences


class Told(Protocol):
    """A connected sender, as the tracker sees it."""

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""

    @property
    def is_writable(self) -> bool:
        """Whether the transport has room for more."""

    def tell(self, frames: list[Frame]) -> None:
        """Send frames to a subscriber."""

    def fault(self, failure: Failure) -> None:
        """A call of this object raised `failure`: its connection ends, and no other."""

    def room(self) -> Deferred[None]:
        """Fire when the transport has room for more, or the connection has gone."""


class Watch:
    """One connected incarnation that wants states from `status_from` on."""

    __slots__ = (
        "audiences",
        "gone",
        "gone_made",
        "incarnation",
        "is_telling",
        "missed",
        "peer",
        "pending",
        "retry",
        "sender",
        "status_from",
    )

    def __init__(self, peer: Told, sender: str, incarnation: str, status_from: int) -> None:
        self.peer = peer
        self.sender = sender
        self.incarnation = incarnation
        self.status_from = status_from
        self.audiences: set[int] = set()  # told on this connection
        self.gone: dict[tuple[int, ...], Audience] = {}  # of what the log has no more, oldest first
        self.gone_made = 0
        self.pending: Pending = {}
        self.is_telling = False  # its history is on its way
        self.missed: int | None = None  # from this sequence on it is told from the log
        self.retry: tuple[IDelayedCall, Deferred[None]] | None = None  # of a page that failed


class Tracker:
    """The tracker of message statuses, and its subscribers: producers that gave a `status_from`."""

    _logger = Logger()

    def __init__(self, log: ILog, directory: Directory, clock: IReactorTime) -> None:
        self._log = log
        self._directory = directory
        self._clock = clock
        self._watches: dict[tuple[str, str], Watch] = {}
        self._touched: dict[Watch, None] = {}

    def watch(self, peer: Told, sender: str, incarnation: str, status_from: int) -> Watch:
        """A sender connected: tell it the present states, then the changes."""
        watch = Watch(peer, sender, incarnation, status_from)
        self._watches[(sender, incarnation)] = watch
        self._tell_from(watch, status_from)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """The subscription ends: its connection was lost."""
        key = (watch.sender, watch.incarnation)
        if self._watches.get(key) is watch:
            del self._watches[key]
        self._touched.pop(watch, None)
        if watch.retry is not None:
            timer, waiter = watch.retry
            watch.retry = None
            timer.cancel()
            waiter.callback(None)

    def routed(self, watch: Watch, piece: Piece | Batch) -> list[Frame]:
        """Return the ROUTED frames of messages, with new audiences; they go before the ACK."""
        if isinstance(piece, Batch):
            first, last = piece.sequence, piece.sequence + piece.count - 1
            audience, position = piece.audience, piece.first
        else:
            first, last = piece.first, piece.last
            audience, position = piece.audience, piece.position
        if last < watch.status_from:
            return []
        return [*self._named(watch, audience), Routed(first, last, audience.number, position)]

    def _named(self, watch: Watch, audience: Audience) -> list[Frame]:
        if audience.number in watch.audiences:
            return []
        if len(watch.audiences) >= TOLD_MAX:
            watch.audiences.clear()
        watch.audiences.add(audience.number)
        return [*split_audience(audience.number, self._directory.names(audience))]

    # --- what receivers settled

    def settled(self, receiver: str, settled: list[Settled]) -> None:
        """Messages were settled, and that is stored; `flush` sends their statuses."""
        watches = self._watches
        touched = self._touched
        key: tuple[str, str] | None = None
        ranges: RangeSet | None = None
        last_status: Status | None = None
        watch: Watch | None = None
        for one in settled:
            batch: Batch = one.run.source
            if key is None or batch.incarnation != key[1] or batch.sender != key[0]:
                key = (batch.sender, batch.incarnation)
                watch = watches.get(key)
                last_status = None
            if watch is None:
                continue
            offset = batch.sequence - batch.first
            first, last = max(one.first + offset, watch.status_from), one.last + offset
            if last < first:
                continue  # of before what it asks for
            if one.status is not last_status or one.refusal is not None:
                last_status = one.status
                state = (receiver, int(one.status), one.reason[:REASON_MAX])
                ranges = watch.pending.get(state)
                if ranges is None:
                    ranges = watch.pending[state] = RangeSet()
                touched[watch] = None
            assert ranges is not None
            ranges.add(first, last)

    def flush(self) -> None:
        """Send the statuses that `settled` gathered."""
        touched, self._touched = self._touched, {}
        for watch in touched:
            pending, watch.pending = watch.pending, {}
            if watch.peer.gone:
                continue
            try:
                self._tell_changes(watch, pending)
            except Exception:
                watch.peer.fault(Failure())

    def _tell_changes(self, watch: Watch, pending: Pending) -> None:
        """Send changes of states; those that find no room are read from the log later."""
        frames: list[Frame] = []
        missed: list[int] = []
        for (receiver, status, reason), ranges in pending.items():
            if watch.peer.is_writable and len(frames) < FRAMES_MAX:
                frames += _statuses(watch, receiver, status, ranges, reason)
            else:
                assert ranges.first is not None
                missed.append(ranges.first)
        if frames:
            watch.peer.tell(frames)
        if missed:
            self._tell_from(watch, min(missed))

    # --- what was before

    def tell_all_again(self) -> None:
        """A receiver was removed: every sender gets its present states anew."""
        for watch in list(self._watches.values()):
            self._tell_from(watch, watch.status_from)

    def _tell_from(self, watch: Watch, first: int) -> None:
        """Send a subscriber the present states from a sequence on, behind those under way."""
        watch.missed = first if watch.missed is None else min(watch.missed, first)
        if not watch.is_telling:
            watch.is_telling = True
            done = Deferred.fromCoroutine(self._tell_missed(watch))
            done.addErrback(watch.peer.fault)

    async def _tell_missed(self, watch: Watch) -> None:
        try:
            while watch.missed is not None and not watch.peer.gone:
                first, watch.missed = watch.missed, None
                await self._history(watch, first)
        finally:
            watch.is_telling = False

    async def _history(self, watch: Watch, first: int) -> None:
        failures = 0
        while True:
            # One page at a time is in memory, however long the history and slow its reader.
            await watch.peer.room()
            if watch.peer.gone:
                return
            try:
                page: History = await self._log.history(
                    watch.sender, watch.incarnation, first, HISTORY_PAGE
                )
            except Exception:
                if watch.peer.gone:
                    return
                failures += 1
                self._logger.failure("states of {sender}", sender=watch.sender)
                await self._pause(watch, failures)
                continue
            failures = 0
            await self._tell_page(watch, page)
            if page.next is None:
                return
            assert page.next > first, "a page that does not move on"
            first = page.next

    def _pause(self, watch: Watch, failures: int) -> Deferred[None]:
        """Fire when a page that failed is to be read again, or the connection has gone."""
        waiter: Deferred[None] = Deferred()
        delay = delay_of(failures, delay_min=RETRY_DELAY_MIN, delay_max=RETRY_DELAY_MAX)
        timer = self._clock.callLater(delay, self._pause_over, watch)
        watch.retry = (timer, waiter)
        return waiter

    def _pause_over(self, watch: Watch) -> None:
        assert watch.retry is not None
        _, waiter = watch.retry
        watch.retry = None
        waiter.callback(None)

    async def _tell_page(self, watch: Watch, page: History) -> None:
        """Tell one page, with a look at the room in between.

        What is made is sent before anything else is: a ROUTED has its AUDIENCE before it.
        """
        frames: list[Frame] = []
        for make in self._page(watch, page):
            frames += make()
            if len(frames) >= FRAMES_MAX:
                watch.peer.tell(frames)
                frames = []
                await watch.peer.room()
                if watch.peer.gone:
                    return
        if frames and not watch.peer.gone:
            watch.peer.tell(frames)

    def _page(self, watch: Watch, page: History) -> Iterator[Callable[[], list[Frame]]]:
        for piece in page.pieces:
            yield partial(self.routed, watch, piece)
        for first, last, members in _gone_pieces(page):
            yield partial(self._gone_routed, watch, first, last, members)
        for first, last in page.gone:
            # Without it a producer that never heard the ACK would wait for ever (its `send` fires
            # when it knows both): that it is taken is all that can be said.
            yield partial(self.routed, watch, Piece(first, last, NOBODY, 0))
        states: Pending = {}
        for state in page.states:
            row = self._directory.numbered(state.receiver)
            if row is not None:
                key = (row.name, int(state.status), state.reason)
                states.setdefault(key, RangeSet()).add(
                    max(state.first, watch.status_from), state.last
                )
        for (receiver, status, reason), ranges in states.items():
            yield partial(_statuses, watch, receiver, status, ranges, reason)

    def _gone_routed(
        self, watch: Watch, first: int, last: int, members: tuple[int, ...]
    ) -> list[Frame]:
        """ROUTED for messages that the log has no more; nothing is asked of the log for it."""
        audience = watch.gone.get(members)
        if audience is None:
            number = INTEGER_MAX - watch.gone_made % GONE_AUDIENCES_MAX
            watch.gone_made += 1
            if len(watch.gone) >= GONE_AUDIENCES_MAX:
                del watch.gone[next(iter(watch.gone))]
                watch.audiences.discard(number)
            audience = watch.gone[members] = Audience(number, members)
        return self.routed(watch, Piece(first, last, audience, 0))


def _gone_pieces(page: History) -> list[tuple[int, int, tuple[int, ...]]]:
    """Pieces of batches that the log has removed: their audience is who settled them."""
    held = RangeSet((piece.first, piece.last) for piece in page.pieces)
    begin: dict[int, list[int]] = {}  # sequence -> who has a state from here on
    end: dict[int, list[int]] = {}  # ... and who has none from here on
    for state in page.states:
        for first, last in held.missing(state.first, state.last):
            begin.setdefault(first, []).append(state.receiver)
            end.setdefault(last + 1, []).append(state.receiver)
    pieces: list[tuple[int, int, tuple[int, ...]]] = []
    members: Counter[int] = Counter()
    before = 0
    for at in sorted(begin.keys() | end.keys()):
        if members:
            pieces.append((before, at - 1, tuple(sorted(members))))
        members.update(begin.get(at, ()))
        members.subtract(end.get(at, ()))
        members = +members
        before = at
    return pieces


def _statuses(
    watch: Watch, receiver: str, status: int, ranges: RangeSet, reason: str
) -> list[Frame]:
    parts = list(ranges)
    return [
        StatusFrame(watch.incarnation, receiver, status, parts[at : at + STATUS_RANGES_MAX], reason)
        for at in range(0, len(parts), STATUS_RANGES_MAX)
    ]
