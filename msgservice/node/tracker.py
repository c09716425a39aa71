"""The tracker: tells producers what became of their messages, in values (SEMANTICS 8-11).

Statuses are states, told as ranges: what a receiver settled in one group is one value for each
sender and state. A sender that connects says from which sequence on it wants to know
(`status_from`): it gets the present states from the log first, and changes as they are stored.
What is told is always durable. The frames that say it are made by who is told (`status_frames`).

What is read from the log is told in slices of the reactor's turns, and is little at a time, however
many producers are told their histories at once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.core.backoff import delay_of
from msgservice.core.ranges import Range, RangeSet
from msgservice.core.reasons import REASON_KEPT_MAX
from msgservice.core.runs import Settled
from msgservice.interfaces import ILog
from msgservice.limits import BATCH_INDEX_BITS, INTEGER_MAX
from msgservice.message import Status
from msgservice.node.directory import Directory
from msgservice.node.slices import Slices
from msgservice.records import (
    DELAYED,
    NOBODY,
    NOT_YET,
    PROMISE,
    PROMISED,
    Batch,
    Cancel,
    History,
    Piece,
    Verdict,
)

HISTORY_PAGE = 1000  # pieces asked of the log at once
WAITING = 0  # in place of a position: of what waits until it is due
REMOVED_PAGE = 8192  # … where nothing but the states at removed receivers is told of them
PAGES = 16  # of all producers, that are read or wait for their turn
SLICE = 0.01  # seconds of a turn in which pages are asked for and told
KEYED_OVER = 1000  # positions that nobody waits for any more are kept in their list, about
RETRY_DELAY_MIN = 1.0  # seconds until a page of the log that could not be read is read again …
RETRY_DELAY_MAX = 60.0  # … doubling up to this

_RESERVED = {NOT_YET: DELAYED, PROMISED: PROMISE}  # names of what is no receiver

Pending = dict[tuple[str, Status, str], RangeSet]  # (receiver, state, reason) -> sequences


class States(msgspec.Struct, frozen=True, gc=False):
    """The state of a sender's sequences in `ranges` at one receiver."""

    receiver: str
    status: Status
    ranges: tuple[Range, ...]
    reason: str


class GonePiece(NamedTuple):
    """A piece that the log has removed: its audience is the receivers that settled it."""

    first: int
    last: int
    members: tuple[int, ...]


News = Piece | GonePiece | States


class Told(Protocol):
    """A connected sender, as the tracker sees it."""

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""

    @property
    def is_writable(self) -> bool:
        """Whether the transport has room for more."""

    def tell(self, news: Iterator[News]) -> bool:
        """Send news in their order, as many as go at once; return whether these are all."""

    def fault(self, failure: Failure) -> None:
        """A call of this object raised `failure`: its connection ends, and no other."""

    def room(self) -> Deferred[None]:
        """Fire when the transport has room for more, or the connection has gone."""


class Watch:
    """One connected incarnation that wants states from `status_from` on."""

    __slots__ = (
        "by_key",
        "incarnation",
        "is_telling",
        "missed",
        "pending",
        "removed",
        "retry",
        "sender",
        "status_from",
        "told",
        "waits",
    )

    def __init__(self, told: Told, sender: str, incarnation: str, status_from: int) -> None:
        self.told = told
        self.sender = sender
        self.incarnation = incarnation
        self.status_from = status_from
        self.pending: Pending = {}
        # What it handed in and was taken by its key, as far as that is open: by sequence, where the
        # message that is stored lies, and the receivers whose state there is not final.
        self.by_key: dict[int, tuple[int, set[str]]] = {}
        # … and of these, what waits until it is due: by sequence, until when.
        self.waits: dict[int, int] = {}
        self.is_telling = False  # its history is on its way
        # Of these sequences, the first and the last, it is told from the log.
        self.missed: tuple[int, int] | None = None
        self.removed: list[int] = []  # receivers whose states it is told from the log
        self.retry: tuple[IDelayedCall, Deferred[None]] | None = None  # of a page that failed


class Tracker:
    """The tracker of message statuses, and its subscribers: producers that gave a `status_from`."""

    _logger = Logger()

    def __init__(
        self, log: ILog, directory: Directory, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        self._log = log
        self._directory = directory
        self._clock = clock
        self._slices = Slices(clock, now, SLICE)
        self._pages = DeferredSemaphore(PAGES)
        self._watches: dict[tuple[str, str], Watch] = {}
        self._touched: dict[Watch, None] = {}
        # Position of a message -> who else handed it in, by its key, with their sequences.
        self._by_key: dict[int, dict[Watch, set[int]]] = {}
        self._keyed: list[int] = []  # these positions, rising; some of them may be over
        # When a message is due -> who else handed it in, by its key, with their sequences.
        self._waits: dict[int, dict[Watch, set[int]]] = {}
        # First position of a batch -> who wants to know when anything of it was settled.
        self._followers: dict[int, dict[Callable[[], None], None]] = {}

    # --- who looks at single messages

    def follow(self, first: int, told: Callable[[], None]) -> None:
        """Call `told` whenever something of a batch was settled, by its first position.

        Also where that may be so. `WAITING`: of all that waits until it is due. It must not raise.
        """
        self._followers.setdefault(first, {})[told] = None

    def unfollow(self, first: int, told: Callable[[], None]) -> None:
        """Call it no more."""
        followers = self._followers.get(first)
        if followers is not None:
            followers.pop(told, None)
            if not followers:
                del self._followers[first]

    def _tell_followers(self, first: int) -> None:
        for told in list(self._followers.get(first, ())):
            told()

    def _tell_all_followers(self) -> None:
        for first in list(self._followers):
            self._tell_followers(first)

    # --- producers

    def watch(self, told: Told, sender: str, incarnation: str, status_from: int) -> Watch:
        """A sender connected: tell it the present states, then the changes."""
        watch = Watch(told, sender, incarnation, status_from)
        self._watches[(sender, incarnation)] = watch
        self._tell_from(watch, status_from)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """The subscription ends: its connection was lost."""
        key = (watch.sender, watch.incarnation)
        if self._watches.get(key) is watch:
            del self._watches[key]
        self._touched.pop(watch, None)
        for sequence in list(watch.by_key):
            self._close_by_key(watch, sequence)
        for sequence in list(watch.waits):
            self._waits_no_more(watch, sequence)
        if watch.retry is not None:
            timer, waiter = watch.retry
            watch.retry = None
            timer.cancel()
            waiter.callback(None)

    # --- what was taken by its key

    def by_key(self, watch: Watch, piece: Piece) -> None:
        """A message of a subscriber was taken by its key: it is told what becomes of the other's.

        What became of that before is in the log.
        """
        if piece.last >= watch.status_from:
            if piece.due:
                self._wait_by_key(watch, piece)
            else:
                self._open_by_key(watch, piece, ())
            self._tell_from(watch, piece.first)

    def _wait_by_key(self, watch: Watch, piece: Piece) -> None:
        """The other's message waits until it is due: then it is read what became of it."""
        self._waits_no_more(watch, piece.first)
        watch.waits[piece.first] = piece.due
        self._waits.setdefault(piece.due, {}).setdefault(watch, set()).add(piece.first)

    def _waits_no_more(self, watch: Watch, sequence: int) -> None:
        due = watch.waits.pop(sequence, None)
        if due is None:
            return
        watches = self._waits[due]
        watches[watch].discard(sequence)
        if not watches[watch]:
            del watches[watch]
            if not watches:
                del self._waits[due]

    def _due_by_key(self, due: int) -> None:
        """Read anew what others had stored for these, which do not wait until then any more."""
        for watch, sequences in self._waits.pop(due, {}).items():
            for sequence in sequences:
                del watch.waits[sequence]
            self._tell_from(watch, min(sequences))

    def _open_by_key(self, watch: Watch, piece: Piece, final: Collection[str]) -> bool:
        """Tell its changes from now on; False where they are told already, or none will come."""
        if piece.first in watch.by_key:
            return False
        names = set(self._directory.names(piece.audience)).difference(final)
        if not names:
            return False
        watch.by_key[piece.first] = (piece.position, names)
        watches = self._by_key.get(piece.position)
        if watches is None:
            watches = self._by_key[piece.position] = {}
            at = bisect_left(self._keyed, piece.position)
            if self._keyed[at : at + 1] != [piece.position]:
                self._keyed.insert(at, piece.position)
        watches.setdefault(watch, set()).add(piece.first)
        return True

    def _final_by_key(self, watch: Watch, sequence: int, receiver: str) -> None:
        _, names = watch.by_key[sequence]
        names.discard(receiver)
        if not names:
            self._close_by_key(watch, sequence)

    def _close_by_key(self, watch: Watch, sequence: int) -> None:
        position, _ = watch.by_key.pop(sequence)
        watches = self._by_key[position]
        watches[watch].discard(sequence)
        if not watches[watch]:
            del watches[watch]
            if not watches:
                del self._by_key[position]
                if len(self._keyed) > KEYED_OVER + 2 * len(self._by_key):
                    self._keyed = sorted(self._by_key)

    def _settled_by_key(self, position: int, state: tuple[str, Status, str]) -> None:
        receiver = state[0]
        for watch, sequences in list(self._by_key[position].items()):
            for sequence in list(sequences):
                if receiver in watch.by_key[sequence][1]:
                    watch.pending.setdefault(state, RangeSet()).add(sequence, sequence)
                    self._touched[watch] = None
                    self._final_by_key(watch, sequence, receiver)

    # --- what receivers settled

    def settled(self, receiver: str, settled: list[Settled]) -> None:
        """Messages were settled, and that is stored; `flush` sends their statuses."""
        watches = self._watches
        touched, by_key, followers = self._touched, self._by_key, self._followers
        key: tuple[str, str] | None = None
        ranges: RangeSet | None = None
        last_status: Status | None = None
        watch: Watch | None = None
        for one in settled:
            batch: Batch = one.run.source
            begin = batch.number << BATCH_INDEX_BITS  # as `Batch.first`
            if by_key and begin in by_key:
                state = (receiver, one.status, one.reason[:REASON_KEPT_MAX])
                self._settled_by_key(begin, state)
            if followers and begin in followers:
                self._tell_followers(begin)
            if key is None or batch.incarnation != key[1] or batch.sender != key[0]:
                key = (batch.sender, batch.incarnation)
                watch = watches.get(key)
                last_status = None
            if watch is None:
                continue
            offset = batch.sequence - begin
            first, last = one.first + offset, one.last + offset
            if first < watch.status_from:
                first = watch.status_from
                if last < first:
                    continue  # of before what it asks for
            if one.status is not last_status or one.refusal is not None:
                last_status = one.status
                reason = "" if one.refusal is None else one.reason[:REASON_KEPT_MAX]
                state = (receiver, one.status, reason)
                ranges = watch.pending.get(state)
                if ranges is None:
                    ranges = watch.pending[state] = RangeSet()
                touched[watch] = None
            assert ranges is not None
            if ranges.firsts:
                ranges.add(first, last)
            else:
                ranges.firsts.append(first)
                ranges.lasts.append(last)

    def decreed(self, receiver: str, ranges: Iterable[Range], status: Status, reason: str) -> None:
        """Ranges of positions were settled without an answer, and that is stored.

        Who else handed these in by their keys is told by `flush`. Who sent them is told from the
        log, later and for all of it together (`tell_from`).
        """
        if not self._by_key:
            return
        state = (receiver, status, reason[:REASON_KEPT_MAX])
        for first, last in ranges:
            low, high = bisect_left(self._keyed, first), bisect_right(self._keyed, last)
            for position in self._keyed[low:high]:
                if position in self._by_key:
                    self._settled_by_key(position, state)

    def flush(self) -> None:
        """Send the statuses that `settled` and `decreed` gathered."""
        touched, self._touched = self._touched, {}
        for watch in touched:
            pending, watch.pending = watch.pending, {}
            if watch.told.is_gone:
                continue
            try:
                self._tell_changes(watch, pending)
            except Exception:
                watch.told.fault(Failure())

    def _tell_changes(self, watch: Watch, pending: Pending) -> None:
        """Send changes of states; those that find no room are read from the log later."""
        news = _states(pending)
        if watch.told.is_writable and watch.told.tell(news):
            return
        missed = min((one.ranges[0][0] for one in news), default=None)
        if missed is not None:
            self._tell_from(watch, missed)

    # --- what waits until it is due

    def routed(self, batches: Sequence[Batch]) -> None:
        """Runs that had waited are stored: their senders are told where, and for whom."""
        self._tell_followers(WAITING)
        news: dict[Watch, list[Piece]] = {}
        key: tuple[str, str] | None = None
        pieces: list[Piece] | None = None
        for batch in batches:
            if key is None or batch.incarnation != key[1] or batch.sender != key[0]:
                key = (batch.sender, batch.incarnation)
                watch = self._watches.get(key)
                pieces = None if watch is None else news.setdefault(watch, [])
            if pieces is not None:
                last = batch.sequence + batch.count - 1
                pieces.append(Piece(batch.sequence, last, batch.audience, batch.first))
        if self._waits:
            for due in dict.fromkeys([batch.due_at for batch in batches]):
                self._due_by_key(due)
        for watch, pieces in news.items():
            audiences = {one.audience for one in pieces}
            if any(self._is_gone(number) for one in audiences for number in one.members):
                self._tell_from(
                    watch, min(one.first for one in pieces)
                )  # and what became of it there
            else:
                self._tell_news_of(watch, pieces)

    def _is_gone(self, number: int) -> bool:
        row = self._directory.numbered(number)
        return row is None or row.removed

    def cancelled(self, wanted: Cancel, ranges: Sequence[Range]) -> None:
        """These do not wait any more: their sender is told that nobody will get them."""
        for due in list(self._waits):  # whoever handed one in by its key is told from the log
            self._due_by_key(due)
        self._tell_followers(WAITING)
        watch = self._watches.get((wanted.sender, wanted.incarnation))
        if watch is None:
            return
        news: list[News] = [GonePiece(first, last, (NOT_YET,)) for first, last in ranges]
        told = tuple((first, last) for first, last in ranges if last >= watch.status_from)
        if told:
            state = States(DELAYED, Status.CANCELLED, told, wanted.reason[:REASON_KEPT_MAX])
            self._tell_news_of(watch, [*news, state])

    def decided(self, verdict: Verdict, ranges: Sequence[Range], firsts: Iterable[int]) -> None:
        """Promises are decided; `firsts`: the positions of their batches."""
        if self._followers:
            for first in firsts:
                self._tell_followers(first)
        watch = self._watches.get((verdict.sender, verdict.incarnation))
        if watch is None:
            return
        told = tuple((first, last) for first, last in ranges if last >= watch.status_from)
        if told:
            reason = verdict.reason[:REASON_KEPT_MAX]
            self._tell_news_of(watch, [States(PROMISE, verdict.status, told, reason)])

    def _tell_news_of(self, watch: Watch, news: Sequence[News]) -> None:
        """Tell a sender now, or from the log: behind a page that says what was before."""
        if watch.told.is_gone:
            return
        left = iter(news)
        try:
            while not watch.is_telling and watch.told.is_writable:
                if watch.told.tell(left):
                    return
            firsts = [one.ranges[0][0] if isinstance(one, States) else one.first for one in news]
            self._tell_from(watch, min(firsts))
        except Exception:
            watch.told.fault(Failure())

    # --- what was before

    def tell_all_again(self) -> None:
        """Senders may have missed anything: each gets its present states anew."""
        self._tell_all_followers()
        for watch in list(self._watches.values()):
            self._tell_from(watch, watch.status_from)

    def tell_from(self, sender: str, incarnation: str, first: int, last: int = INTEGER_MAX) -> None:
        """States of one sender's messages have changed in the log, of these sequences."""
        self._tell_all_followers()
        watch = self._watches.get((sender, incarnation))
        if watch is not None and last >= watch.status_from:
            self._tell_from(watch, max(first, watch.status_from), last)

    def tell_again(self, sender: str, incarnation: str, first: int, last: int) -> None:
        """A sender asks for the present states of these, which it was told before."""
        watch = self._watches.get((sender, incarnation))
        if watch is not None and last >= watch.status_from:
            self._tell_from(watch, max(first, watch.status_from), last)

    def receiver_removed(self, number: int) -> None:
        """A receiver was removed: every sender gets its states there, and nothing else, anew."""
        self._tell_all_followers()
        for watch in list(self._watches.values()):
            watch.removed.append(number)
            self._tell(watch)

    def _tell_from(self, watch: Watch, first: int, last: int = INTEGER_MAX) -> None:
        """Send a subscriber the present states of these sequences, behind those under way."""
        _miss(watch, first, last)
        self._tell(watch)

    def _tell(self, watch: Watch) -> None:
        if not watch.is_telling:
            watch.is_telling = True
            done = self._slices.run(lambda: Deferred.fromCoroutine(self._tell_missed(watch)))
            done.addErrback(self._failed, watch)

    def _failed(self, failure: Failure, watch: Watch) -> None:
        if not failure.check(CancelledError):  # the node stops
            watch.told.fault(failure)

    def stop(self) -> None:
        """Tell nothing any more that is not under way: the connections are gone."""
        self._slices.stop()

    async def _tell_missed(self, watch: Watch) -> None:
        try:
            while not watch.told.is_gone:
                if watch.missed is not None:
                    (first, last), watch.missed = watch.missed, None
                    await self._history(watch, first, last)
                elif watch.removed:
                    removed, watch.removed = watch.removed, []
                    await self._history(watch, watch.status_from, INTEGER_MAX, removed)
                else:
                    return
        finally:
            watch.is_telling = False

    async def _history(
        self, watch: Watch, first: int, last: int, removed: Collection[int] | None = None
    ) -> None:
        failures = 0
        while True:
            # One page at a time is in memory, however long the history and slow its reader; and
            # of all readers not very many, for each page waits for its turn.
            await watch.told.room()
            await self._pages.acquire()
            is_all, following, failure = True, None, None
            try:
                if watch.told.is_gone:
                    return
                missed = watch.missed
                if removed is None and missed and first <= missed[0] and missed[1] <= last:
                    watch.missed = None  # this page, and those behind it, are read after that
                count = HISTORY_PAGE if removed is None else REMOVED_PAGE
                page: History = await self._log.history(
                    watch.sender,
                    watch.incarnation,
                    first,
                    min(count, last - first + 1),  # a piece has one sequence at least
                    removed,
                )
                following = page.next
                news = self._news(watch, page) if removed is None else self._states(watch, page)
            except Exception:
                failure = Failure()
            else:
                is_all = await self._slices.run(partial(watch.told.tell, news))
            finally:
                self._pages.release()
            if failure is not None:
                if watch.told.is_gone:
                    return
                failures += 1
                self._logger.failure("states of {sender}", failure, sender=watch.sender)
                await self._pause(watch, failures)
                continue
            failures = 0
            if not is_all:
                await self._tell_rest(watch, news)
            if following is None or following > last:
                return
            assert following > first, "a page that does not move on"
            first = following

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

    async def _tell_rest(self, watch: Watch, news: Iterator[News]) -> None:
        """Tell the rest of a page, with a look at the room in between."""
        while True:
            await watch.told.room()
            if watch.told.is_gone or await self._slices.run(partial(watch.told.tell, news)):
                return

    def _news(self, watch: Watch, page: History) -> Iterator[News]:
        if page.by_key:
            self._read_by_key(watch, page)
        yield from page.pieces
        yield from _gone_pieces(page)
        for first, last in page.gone:
            # Without it a producer that never heard the ACK would wait for ever (its `send` fires
            # when it knows both): that it is taken is all that can be said.
            yield Piece(first, last, NOBODY, 0)
        yield from self._states(watch, page)

    def _read_by_key(self, watch: Watch, page: History) -> None:
        """Follow what a page says was taken by its key; what changed since it was read is read."""
        final: dict[int, set[str]] = {sequence: set() for sequence in page.by_key}
        for state in page.states:
            row = self._directory.numbered(state.receiver)
            if row is not None and state.first == state.last and state.first in final:
                final[state.first].add(row.name)
        for state in page.states:
            row = self._directory.numbered(state.receiver)
            if row is not None and state.first < state.last:
                for sequence in page.by_key:
                    if state.first <= sequence <= state.last:
                        final[sequence].add(row.name)
        for piece in page.pieces:
            names = final.get(piece.first)
            if names is not None and piece.due:
                if watch.waits.get(piece.first) != piece.due:
                    self._wait_by_key(watch, piece)
                    _miss(watch, piece.first, piece.last)
                continue
            if names is not None and self._open_by_key(watch, piece, names):
                _miss(watch, piece.first, piece.last)
        for sequence, names in final.items():
            for name in names:
                if sequence in watch.by_key:
                    self._final_by_key(watch, sequence, name)

    def _states(self, watch: Watch, page: History) -> Iterator[News]:
        states: Pending = {}
        for state in page.states:
            row = self._directory.numbered(state.receiver)
            name = _RESERVED.get(state.receiver) or (None if row is None else row.name)
            if name is not None:
                states.setdefault((name, state.status, state.reason), RangeSet()).add(
                    max(state.first, watch.status_from), state.last
                )
        # A promise behind what it is about: who is told of it knows all of that.
        decided = {key: states.pop(key) for key in list(states) if key[0] == PROMISE}
        yield from _states(states)
        yield from _states(decided)


def _miss(watch: Watch, first: int, last: int) -> None:
    """Have a subscriber told of these sequences from the log, with what it misses already."""
    low, high = watch.missed or (first, last)
    watch.missed = (min(low, first), max(high, last))


def _gone_pieces(page: History) -> Iterator[GonePiece]:
    """The pieces of a page that the log has removed, each as long as its receivers are the same."""
    held = RangeSet((piece.first, piece.last) for piece in page.pieces)
    spans: dict[int, RangeSet] = {}  # by receiver: what has a state there, whichever
    for state in page.states:
        if state.receiver == PROMISED:
            continue  # which nobody is
        for first, last in held.missing(state.first, state.last):
            spans.setdefault(state.receiver, RangeSet()).add(first, last)
    begin: dict[int, list[int]] = {}  # sequence -> who has a state from here on
    end: dict[int, list[int]] = {}  # ... and who has none from here on
    for receiver, ranges in spans.items():
        for first, last in ranges:
            begin.setdefault(first, []).append(receiver)
            end.setdefault(last + 1, []).append(receiver)
    members: list[int] = []  # rising
    before = 0
    for at in sorted(begin.keys() | end.keys()):
        if members:
            yield GonePiece(before, at - 1, tuple(members))
        for receiver in end.get(at, ()):
            del members[bisect_left(members, receiver)]
        for receiver in begin.get(at, ()):
            insort(members, receiver)
        before = at


def _states(states: Pending) -> Iterator[States]:
    return iter(
        [
            States(receiver, status, tuple(zip(ranges.firsts, ranges.lasts, strict=True)), reason)
            for (receiver, status, reason), ranges in states.items()
        ]
    )
