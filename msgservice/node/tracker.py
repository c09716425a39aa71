"""Tells producers what became of their messages: ROUTED, AUDIENCE, STATUS (SEMANTICS 8-11).

Statuses are states, told as ranges: what a receiver settled in one group is one frame for each
sender and state. A sender that connects says from which sequence on it wants to know
(`status_from`): it gets the present states from the log first, and changes as they are stored.
What is told is always durable.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.core.audiences import split_audience
from msgservice.core.frames import Frame, Routed, StatusFrame
from msgservice.core.ranges import RangeSet
from msgservice.core.runs import Settled
from msgservice.interfaces import ILog
from msgservice.message import Status
from msgservice.node.directory import Directory
from msgservice.records import Audience, Batch, History, Piece

HISTORY_PAGE = 1000  # pieces asked of the log at once
REASON_MAX = 1000
# Of one frame: with the longest reason and names it fits in 8 KiB, so in any frame that the other
# side takes.
STATUS_RANGES_MAX = 180


class Told(Protocol):
    """A connected sender, as the tracker sees it."""

    @property
    def gone(self) -> bool:
        """Whether the connection has ended."""

    def tell(self, frames: list[Frame]) -> None:
        """Send these."""

    def room(self) -> Deferred[None]:
        """Fire when the transport has room for more, or the connection has gone."""


class Watch:
    """One connected incarnation that wants states from `status_from` on."""

    __slots__ = (
        "audiences",
        "incarnation",
        "is_stale",
        "is_told",
        "peer",
        "pending",
        "sender",
        "status_from",
    )

    def __init__(self, peer: Told, sender: str, incarnation: str, status_from: int) -> None:
        self.peer = peer
        self.sender = sender
        self.incarnation = incarnation
        self.status_from = status_from
        self.audiences: set[int] = set()  # told on this connection
        self.pending: dict[tuple[str, int, str], RangeSet] = {}
        self.is_told = False  # its history is on its way
        self.is_stale = False  # and is told once more after that


class Tracker:
    """See the module."""

    _logger = Logger()

    def __init__(self, log: ILog, directory: Directory) -> None:
        self._log = log
        self._directory = directory
        self._watches: dict[tuple[str, str], Watch] = {}
        self._touched: dict[Watch, None] = {}

    def watch(self, peer: Told, sender: str, incarnation: str, status_from: int) -> Watch:
        """A sender connected: tell it the present states, then the changes."""
        watch = Watch(peer, sender, incarnation, status_from)
        self._watches[(sender, incarnation)] = watch
        self._tell_history(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Its connection has gone."""
        key = (watch.sender, watch.incarnation)
        if self._watches.get(key) is watch:
            del self._watches[key]
        self._touched.pop(watch, None)

    def routed(self, watch: Watch, piece: Piece | Batch) -> list[Frame]:
        """The frames that say who these messages are for; they go before the ACK."""
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
        watch.audiences.add(audience.number)
        return [*split_audience(audience.number, self._directory.names(audience))]

    # --- what receivers settled

    def settled(self, receiver: str, settled: list[Settled]) -> None:
        """These are final and stored; `flush` sends it."""
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
            if one.status is not last_status or one.reason:
                last_status = one.status
                state = (receiver, int(one.status), one.reason[:REASON_MAX])
                ranges = watch.pending.get(state)
                if ranges is None:
                    ranges = watch.pending[state] = RangeSet()
                touched[watch] = None
            offset = batch.sequence - batch.first
            assert ranges is not None
            ranges.add(max(one.first + offset, watch.status_from), one.last + offset)

    def flush(self) -> None:
        """Send what `settled` gathered."""
        touched, self._touched = self._touched, {}
        for watch in touched:
            pending, watch.pending = watch.pending, {}
            if watch.peer.gone:
                continue
            frames: list[Frame] = []
            for (receiver, status, reason), ranges in pending.items():
                frames += _statuses(watch, receiver, status, ranges, reason)
            watch.peer.tell(frames)

    # --- what was before

    def tell_all_again(self) -> None:
        """A receiver was removed: every sender gets its present states anew."""
        for watch in list(self._watches.values()):
            self._tell_history(watch)

    def _tell_history(self, watch: Watch) -> None:
        if watch.is_told:
            watch.is_stale = True
            return
        watch.is_told = True
        done = Deferred.fromCoroutine(self._history(watch))
        done.addErrback(
            lambda f: self._logger.failure("states of {sender}", f, sender=watch.sender)
        )
        done.addCallback(lambda _: self._history_told(watch))

    def _history_told(self, watch: Watch) -> None:
        watch.is_told = False
        if watch.is_stale and not watch.peer.gone:
            watch.is_stale = False
            self._tell_history(watch)

    async def _history(self, watch: Watch) -> None:
        first: int | None = watch.status_from
        while first is not None and not watch.peer.gone:
            page: History = await self._log.history(
                watch.sender, watch.incarnation, first, HISTORY_PAGE
            )
            # One page at a time is in memory, however long the history and slow its reader.
            await watch.peer.room()
            if watch.peer.gone:
                return
            watch.peer.tell(self._page(watch, page))
            assert page.next is None or page.next > first, "a page that does not move on"
            first = page.next

    def _page(self, watch: Watch, page: History) -> list[Frame]:
        frames: list[Frame] = []
        for piece in [*page.pieces, *self._gone_pieces(page)]:
            frames += self.routed(watch, piece)
        states: dict[tuple[str, int, str], RangeSet] = {}
        for state in page.states:
            row = self._directory.numbered(state.receiver)
            if row is not None:
                key = (row.name, int(state.status), state.reason)
                states.setdefault(key, RangeSet()).add(
                    max(state.first, watch.status_from), state.last
                )
        for (receiver, status, reason), ranges in states.items():
            frames += _statuses(watch, receiver, status, ranges, reason)
        return frames

    def _gone_pieces(self, page: History) -> list[Piece]:
        """Sequences whose batches the log has let go: their audience is who settled them."""
        held = RangeSet((piece.first, piece.last) for piece in page.pieces)
        begin: dict[int, list[int]] = {}  # sequence -> who has a state from here on
        end: dict[int, list[int]] = {}  # ... and who has none from here on
        for state in page.states:
            for first, last in held.missing(state.first, state.last):
                begin.setdefault(first, []).append(state.receiver)
                end.setdefault(last + 1, []).append(state.receiver)
        pieces: list[Piece] = []
        members: Counter[int] = Counter()
        before = 0
        for at in sorted(begin.keys() | end.keys()):
            if members:
                pieces.append(Piece(before, at - 1, self._log.audience(tuple(members)), 0))
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
