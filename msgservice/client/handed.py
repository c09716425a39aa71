"""The run behind receipts: messages that were handed over, and what is known of them.

What the node says comes as ranges and is applied per run and receiver, never per message; one
message is looked at only when somebody asks or waits.

What does not live here: what a program sees (`receipt`), which runs there are (`client.runs`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed

from msgservice.client.receipt import Change, Known, Receipt, Receipts, Wait
from msgservice.core.ranges import Range, RangeSet
from msgservice.errors import Ambiguous, MsgServiceError, NoReceiver, NotDelivered
from msgservice.message import PromiseOption, Status
from msgservice.records import PROMISE

# Asked for each message that comes alone, and by its name a member of an enum is found slowly.
_ACKNOWLEDGED = Status.ACKNOWLEDGED
_WAIT_ACCEPTED, _WAIT_ACKNOWLEDGED, _WAIT_SETTLED, _WAIT_NEWS, _WAIT_PROMISED = (
    Wait.ACCEPTED,
    Wait.ACKNOWLEDGED,
    Wait.SETTLED,
    Wait.NEWS,
    Wait.PROMISED,
)


class Keeper(Protocol):
    """The index of runs by their sequences (`client.runs`)."""

    def hold(self, run: HandedRun) -> None:
        """The run is to be kept: some of it is not answered, or somebody waits for news of it."""

    def let_go(self, run: HandedRun) -> None:
        """The run is to be kept for as long as somebody holds one of its receipts."""

    def drop(self, run: HandedRun) -> None:
        """The run is settled: nothing more is to be told to it."""

    def has_news(self, run: HandedRun) -> None:
        """The run's `tell_news` is to be called when all that came with this is applied."""

    def forget(self, first: int, last: int) -> Deferred[None]:
        """Keep no receipt of these beyond this process; fires when that is on disk."""


class AudienceNames:
    """The audience of some messages, by name."""

    __slots__ = ("members", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.members = frozenset(self.names)


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A piece of a run, as ROUTED said: its audience, and the position of its first message."""

    first: int
    last: int
    position: int  # 0: the log no longer has it
    audience: AudienceNames
    due: int = 0  # wall clock, ms: it waits until then, and all else comes with another piece
    of: str = ""  # of one that waits: as which message it was taken by its key

    @property
    def pairs(self) -> int:
        """The number of pairs of message and receiver; of what waits, of messages."""
        return (self.last - self.first + 1) * (1 if self.due else len(self.audience.names))


_Other = tuple[int, int, Status, str]
"""First and last sequence of a final state other than acknowledged, and its reason."""


_Watcher = tuple[Wait, int, int, str | None]
"""What is waited for: at which first and last sequence, and at which receiver, or None: all."""


class HandedRun:
    """Messages of one subject that travel together, and what is known of them.

    `waiters` are the Deferreds of `send`, one for each message, until they have fired;
    `on_answered`, if set, is called once: when each message was accepted (kept on disk, with
    `outbox=`) or refused.
    """

    __slots__ = (
        "__weakref__",
        "_accepted",
        "_fired",
        "_forgotten",
        "_is_held",
        "_keeper",
        "_lost",
        "_news",
        "_open",
        "_others",
        "_pieces",
        "_promises",
        "_refused",
        "_sent",
        "_settled",
        "_unanswered",
        "_unknown",
        "_verdicts",
        "_watchers",
        "cost",
        "count",
        "first",
        "ids",
        "left",
        "on_answered",
        "promise",
        "subject",
        "waiters",
    )

    def __init__(
        self,
        subject: str,
        count: int,
        waiters: list[Deferred[Receipt]] | None,
        ids: dict[int, str] | None = None,
        *,
        cost: int = 0,
        promise: PromiseOption | None = None,
    ) -> None:
        self.subject = subject
        self.first = 0  # no sequence yet
        self.count = self.left = count
        self.cost = cost  # bytes of room it takes, until none of it is `left` to be answered
        self.waiters = waiters
        self.ids = ids  # index -> the sender's own id, of those that have one
        self.on_answered: Callable[[], None] | None = None
        self._keeper: Keeper | None = None
        self._is_held = False  # by the keeper, which it was told, or has said
        self._pieces: list[Piece] = []
        self._unanswered = count
        self._open = 0  # pairs of message and receiver that were routed and are not final
        # receiver -> sequences whose state is final; None: all of them, the usual case
        self._settled: dict[str, RangeSet | None] = {}
        self.promise = promise  # as it was sent, of each message
        self._promises = 0 if promise is None else count  # that are open
        self._verdicts: list[_Other] | None = None if promise is None else []  # rising
        # Filled only where something is unusual:
        self._accepted: RangeSet | None = None  # acknowledged by the node in parts, or unrouted
        self._fired: RangeSet | None = None
        self._refused: list[tuple[int, int, MsgServiceError]] | None = None
        self._others: dict[str, list[_Other]] | None = None  # rising, and none overlaps another
        self._sent: dict[str, RangeSet] | None = None
        # Of which the node knows no more, though it had said whom they are for: by receiver, and
        # by `PROMISE`, what is not final.
        self._unknown: dict[str, RangeSet] | None = None
        # By the sequence of the one message that is waited for, or 0: a change looks at few.
        self._watchers: dict[int, dict[Deferred[Any], _Watcher]] | None = None
        self._news: list[Range] = []  # of which messages states were marked, and nobody told yet
        self._lost: MsgServiceError | None = None
        self._forgotten: list[tuple[int, int, MsgServiceError]] | None = None  # after their ACK

    # --- getters

    @property
    def last(self) -> int:
        """The last sequence."""
        return self.first + self.count - 1

    @property
    def is_answered(self) -> bool:
        """Whether each message was accepted or refused."""
        return self._unanswered == 0

    @property
    def is_settled(self) -> bool:
        """Whether nothing more can become of any of its messages."""
        is_open = self._unanswered or self._open or self._promises
        return not is_open or self._lost is not None

    @property
    def is_promised(self) -> bool:
        """Whether it was sent with a promise."""
        return self._verdicts is not None

    def verdict_of(self, sequence: int) -> tuple[Status, str] | None:
        """The decision about the promise of this message, and why, or None."""
        return self._verdict(sequence, sequence)

    def kept(self) -> int:
        """The number of messages whose promise was kept."""
        return sum(
            [
                last - first + 1
                for first, last, status, _ in self._verdicts or ()
                if status is _ACKNOWLEDGED
            ]
        )

    def _verdict(self, first: int, last: int) -> tuple[Status, str] | None:
        """The decision about the lowest of these, where there is one about each."""
        found: tuple[Status, str] | None = None
        for low, high, status, reason in self._verdicts or ():
            if low <= first <= high:
                found = found or (status, reason)
                if high >= last:
                    return found
                first = high + 1
        return None

    def error_of(self, sequence: int) -> MsgServiceError | None:
        """Why this message was not accepted, or None."""
        for first, last, error in self._refused or ():
            if first <= sequence <= last:
                return error
        return None

    def first_error(self) -> MsgServiceError | None:
        """Why some of it was not accepted, or None."""
        return self._refused[0][2] if self._refused else None if self.is_answered else self._lost

    def piece_of(self, sequence: int) -> Piece | None:
        """The piece that this message is in, as ROUTED said, or None."""
        for piece in self._pieces:
            if piece.first <= sequence <= piece.last:
                return piece
        return None

    def acknowledged_by(self) -> tuple[str, ...] | None:
        """The whole audience, where each of its receivers has acknowledged all; else None.

        None as well where there is more to say of some of it: `known_of` does.
        """
        if self._unanswered or self._open or self._promises or self._lost is not None:
            return None
        if self._refused or self._others or self._forgotten or self._unknown or self._verdicts:
            return None
        pieces = self._pieces
        if len(pieces) != 1 or pieces[0].last - pieces[0].first + 1 != self.count or pieces[0].due:
            return None
        return pieces[0].audience.names or None

    def known_of(self, sequence: int) -> Known:
        """The changes of one message so far, in an order in which they can come."""
        changes: list[Change] = []
        error: Exception | None = self.error_of(sequence)
        piece = self.piece_of(sequence) if error is None else None
        if piece is not None and not piece.due and self._is_accepted(sequence):
            changes.append(Change(""))
            for name in piece.audience.names:
                if self._is_final(name, sequence, sequence):
                    other = self._other(sequence, sequence, name)
                    status, reason = (_ACKNOWLEDGED, "") if other is None else other
                    changes.append(Change(name, status, reason))
        verdict = self._verdict(sequence, sequence)
        if verdict is not None:
            changes.append(Change(PROMISE, *verdict))
        if error is None:
            settled = self._outcome((_WAIT_SETTLED, sequence, sequence, None))
            if settled is None:
                return Known(changes, False, None)
            error = self._error_behind(sequence, piece)
            if error is None and self._verdicts is not None and verdict is None:
                decided = self._promise_outcome(sequence, sequence)
                if decided is None:
                    return Known(changes, False, None)
                error = decided if isinstance(decided, Exception) else None
        return Known(changes, True, error)

    def _error_behind(self, sequence: int, piece: Piece | None) -> Exception | None:
        """Why no more can be known of a message that is settled; None: all of it is known."""
        for first, last, error in self._forgotten or ():
            if first <= sequence <= last:
                return error
        if (piece is not None and _is_nothing(piece)) or self._is_unknown(sequence):
            return _unknown_error()
        names = piece.audience.names if piece is not None and not piece.due else None
        if names is None or not all(self._is_final(name, sequence, sequence) for name in names):
            return self._lost
        return None

    def statuses_of(self, sequence: int) -> dict[str, Status]:
        """The state of one message at each receiver of its audience, as far as it is known."""
        piece = self.piece_of(sequence) if self.error_of(sequence) is None else None
        names = piece.audience.names if piece is not None else ()
        return {name: self._status(sequence, name) for name in names}

    def counts(self) -> dict[str, dict[Status, int]]:
        """The number of messages in each state, for each receiver."""
        counts: dict[str, dict[Status, int]] = {}
        for piece in self._pieces:
            for name in piece.audience.names:
                of_name = counts.setdefault(name, {})
                for sequence in range(piece.first, piece.last + 1):
                    status = self._status(sequence, name)
                    of_name[status] = of_name.get(status, 0) + 1
        return counts

    def _status(self, sequence: int, name: str) -> Status:
        if self._is_final(name, sequence, sequence):
            other = self._other(sequence, sequence, name)
            return _ACKNOWLEDGED if other is None else other[0]
        if self._sent is not None and name in self._sent and sequence in self._sent[name]:
            return Status.SENT
        return Status.QUEUED

    def _other(self, first: int, last: int, name: str) -> tuple[Status, str] | None:
        """The final state other than acknowledged that is the lowest in this range."""
        others = None if self._others is None else self._others.get(name)
        if others is None:
            return None
        at = bisect_left(others, first, key=_last_of)
        if at == len(others) or others[at][0] > last:
            return None
        return others[at][2:]

    # --- from the world; each may fire Deferreds, so callers finish their own work first

    def numbered(self, first: int, keeper: Keeper) -> None:
        """The run has its sequences now, and is held by its keeper."""
        self.first, self._keeper, self._is_held = first, keeper, True

    def stored(self) -> None:
        """The run is in the producer's own outbox on disk: `send` has done its work."""
        waiters, self.waiters = self.waiters, None
        if waiters is not None:
            for index, waiter in enumerate(waiters):
                waiter.callback(Receipt(self, index))
        self._tell_answered()

    def accepted(self, first: int, last: int) -> None:
        """The node acknowledged messages, which count once ROUTED has come for them too."""
        pieces = self._pieces
        if (
            last - first + 1 == self.count == self._unanswered
            and self._accepted is None
            and len(pieces) == 1
            and pieces[0].last - pieces[0].first == last - first
        ):
            self._unanswered = 0
            # Who begins to wait when told that it is accepted knows that: he is not looked at.
            is_watched = bool(self._watchers)
            waiters, self.waiters = self.waiters, None
            if waiters is not None:
                for index, waiter in enumerate(waiters):
                    waiter.callback(Receipt(self, index))
            if is_watched or self.on_answered is not None:
                self._after_change()
            elif not self._watchers or not self._open:
                self._tell_keeper()
        else:
            if self._accepted is None:
                self._accepted = RangeSet()
            self._accepted.add(first, last)
            self._fire_parts()
            self._after_change([(first, last)])

    def refused(self, first: int, last: int, error: MsgServiceError) -> None:
        """The node did not accept these, and never will."""
        if self._refused is None:
            self._refused = []
        self._refused.append((first, last, error))
        self._fail_unanswered(first, last, error)
        self._after_change([(first, last)])

    def _fail_unanswered(self, first: int, last: int, error: MsgServiceError) -> None:
        if self._fired is None:
            self._fired = RangeSet()
        for low, high in self._fired.missing(first, last):
            self._fired.add(low, high)
            self._unanswered -= high - low + 1
            if self._promises:
                self._promises -= high - low + 1
            if self.waiters is not None:
                for waiter in self.waiters[low - self.first : high - self.first + 1]:
                    waiter.errback(error)

    def routed(self, piece: Piece) -> None:
        """ROUTED came: the audience of messages. It may come again after a reconnect."""
        pieces = self._pieces
        is_whole = piece.first == self.first and piece.last == self.first + self.count - 1
        if not pieces and is_whole and not self._settled and self._accepted is None:
            pieces.append(piece)
            self._open = self.count * (1 if piece.due else len(piece.audience.names))
            return
        waited = any([old.due for old in pieces])  # noqa: C419 - a list is faster here
        if pieces and not piece.position and not piece.audience.names:
            # It knows nothing of them any more, or what it says is of before they were due: what it
            # said before is worth more, but for what waits.
            told = RangeSet((old.first, old.last) for old in pieces if not old.due)
            if not piece.due:
                self._lose_sight(piece.first, piece.last)
            news = [
                replace(piece, first=low, last=high)
                for low, high in told.missing(piece.first, piece.last)
            ]
            if all(one in pieces for one in news):
                return
            for one in news:
                pieces = [p for old in pieces for p in _around(old, one.first, one.last)]
            self._pieces = sorted([*pieces, *news], key=lambda p: p.first)
            self._recount()
        elif not pieces and is_whole:
            pieces.append(piece)
            self._recount()
        elif piece not in pieces:
            rest = [p for old in pieces for p in _around(old, piece.first, piece.last)]
            self._pieces = sorted([*rest, piece], key=lambda p: p.first)
            self._recount()
        if self._accepted is not None:
            self._fire_parts()
        if self._accepted is not None or waited:
            self._after_change([(piece.first, piece.last)])

    def _lose_sight(self, first: int, last: int) -> None:
        """The node knows no more of these than that it took them: what is open there stays so."""
        found: dict[str, list[Range]] = {}
        for piece in self._pieces:
            low, high = max(first, piece.first), min(last, piece.last)
            for name in piece.audience.names if low <= high else ():
                found.setdefault(name, []).extend(self._open_at(name, low, high))
        if self._promises:
            decided = RangeSet((low, high) for low, high, _, _ in self._verdicts or ())
            parts = RangeSet((p.first, p.last) for p in self._pieces if not p.due)
            found[PROMISE] = [
                one for low, high in parts.within(first, last) for one in decided.missing(low, high)
            ]
        unknown = self._unknown or {}
        for name, ranges in found.items():
            known = unknown.get(name) or RangeSet()
            for low, high in [part for one in ranges for part in known.missing(*one)]:
                unknown.setdefault(name, known).add(low, high)
                if name == PROMISE:
                    self._promises -= high - low + 1
        if unknown:
            self._unknown = unknown
            self._recount()
            self._after_change([(max(first, self.first), min(last, self.last))])

    def forget(self, first: int, last: int) -> Deferred[None]:
        """Keep no receipt of these beyond this process; fires when that is on disk."""
        return succeed(None) if self._keeper is None else self._keeper.forget(first, last)

    def is_kept_by(self, keeper: object) -> bool:
        """Whether it is of the client whose runs these are."""
        return self._keeper is keeper

    def marked(self, name: str, status: Status, first: int, last: int, reason: str) -> None:
        """STATUS came: the state of messages at a receiver. Repeats change nothing.

        Whoever waits is told by `tell_news`: once for what came together.
        """
        own_first = self.first
        own_last = own_first + self.count - 1
        if (
            first <= own_first
            and last >= own_last
            and status is _ACKNOWLEDGED
            and name not in self._settled
        ):
            self._settled[name] = None
            pieces = self._pieces
            if len(pieces) != 1 or pieces[0].first > own_first or pieces[0].last < own_last:
                self._open -= self._routed_count(name, own_first, own_last)
            elif name in pieces[0].audience.members:
                self._open -= self.count
            if self._unknown is None:  # as most
                if self._watchers:
                    if self._news:  # its keeper knows
                        if self._news[-1] != (own_first, own_last):
                            self._news.append((own_first, own_last))
                        return
                    self._news.append((own_first, own_last))
                elif self._open:
                    return
                assert self._keeper is not None
                self._keeper.has_news(self)
                return
            news = [(own_first, own_last)]
        else:
            first, last = max(first, own_first), min(last, own_last)
            if status < _ACKNOWLEDGED:
                self._mark_passing(name, status, first, last)
                return
            news = self._make_final(name, first, last)
            if not news:
                return
            for low, high in news:
                self._open -= self._routed_count(name, low, high)
                if status is not _ACKNOWLEDGED:
                    if self._others is None:
                        self._others = {}
                    insort(self._others.setdefault(name, []), (low, high, status, reason))
        if self._unknown is not None:
            for low, high in news:
                self._find(name, low, high)
            self._recount()
        if self._watchers:
            self._news += news
        if self._watchers or self._open == 0:
            assert self._keeper is not None
            self._keeper.has_news(self)

    def decided(self, status: Status, first: int, last: int, reason: str) -> None:
        """STATUS came from `$promise`: promises are decided. Repeats change nothing."""
        if self._verdicts is None:
            return
        first, last = max(first, self.first), min(last, self.last)
        known = RangeSet((low, high) for low, high, _, _ in self._verdicts)
        for low, high in known.missing(first, last):
            insort(self._verdicts, (low, high, status, reason))
            self._promises -= high - low + 1 - self._find(PROMISE, low, high)
            self._news.append((low, high))
        assert self._keeper is not None
        self._keeper.has_news(self)

    def tell_news(self) -> None:
        """Fire the Deferreds that waited for the states just marked."""
        news, self._news = self._news, []
        self._after_change(news)

    def forgotten(self, first: int, last: int, error: MsgServiceError) -> None:
        """The node has lost what it had acknowledged of these: no status of it will come."""
        if self.is_answered:
            self._forget(first, last, error)
        elif self._accepted is not None:
            for low, high in list(self._accepted.within(first, last)):
                self._forget(low, high, error)
        self._after_change([(first, last)])

    def _forget(self, first: int, last: int, error: MsgServiceError) -> None:
        if self._forgotten is None:
            self._forgotten = []
        self._forgotten.append((first, last, error))
        self._pieces = [part for old in self._pieces for part in _around(old, first, last)]
        self._recount()
        if self._unanswered:  # some may be acknowledged, and ROUTED had not come for them
            unheard = RangeSet() if self._fired is None else self._fired
            refused = [(low, high, error) for low, high in unheard.missing(first, last)]
            self._refused = [*(self._refused or ()), *refused]
            self._fail_unanswered(first, last, error)

    def lost(self, error: MsgServiceError) -> None:
        """The run is lost: nothing more will be heard of it, what is unknown stays so."""
        if self._lost is not None:
            return
        self._lost = error
        waiters, self.waiters = self.waiters, None
        if waiters is not None:
            fired = self._fired
            for index, waiter in enumerate(waiters):
                if fired is None or self.first + index not in fired:
                    waiter.errback(error)
        self._after_change()
        self._tell_answered()

    # --- inside

    def _find(self, name: str, first: int, last: int) -> int:
        """The node knows these after all; return of how many it had not."""
        unknown = None if self._unknown is None else self._unknown.get(name)
        if unknown is None:
            return 0
        found = sum([high - low + 1 for low, high in unknown.within(first, last)])
        unknown.remove(first, last)
        return found

    def _is_unknown(self, sequence: int) -> bool:
        """Whether the node knows no more what became of this one somewhere."""
        return self._unknown is not None and any(
            sequence in ranges for ranges in self._unknown.values()
        )

    def _is_lost_sight_of(self, name: str, first: int, last: int) -> bool:
        """Whether some of these are open at a receiver, and the node knows no more of them."""
        unknown = None if self._unknown is None else self._unknown.get(name)
        return unknown is not None and unknown.overlaps(first, last)

    def _open_at(self, name: str, first: int, last: int) -> list[Range]:
        """The parts of these that are not final at a receiver."""
        final = self._settled.get(name, RangeSet())
        return [] if final is None else final.missing(first, last)

    def _is_final(self, name: str, first: int, last: int) -> bool:
        if name not in self._settled:
            return False
        final = self._settled[name]
        return final is None or final.covers(first, last)

    def _make_final(self, name: str, first: int, last: int) -> list[Range]:
        """Note that messages are settled; return those that were not before."""
        final = self._settled.setdefault(name, RangeSet())
        if final is None:
            return []
        news = final.missing(first, last)
        for low, high in news:
            final.add(low, high)
        return news

    def _mark_passing(self, name: str, status: Status, first: int, last: int) -> None:
        if self._sent is None:
            self._sent = {}
        sent = self._sent.setdefault(name, RangeSet())
        if status is Status.SENT:
            sent.add(first, last)
        else:
            sent.remove(first, last)

    def _routed_count(self, name: str, first: int, last: int) -> int:
        pieces = self._pieces
        if len(pieces) == 1 and pieces[0].first <= first and last <= pieces[0].last:
            return last - first + 1 if name in pieces[0].audience.members else 0
        return sum(
            min(last, p.last) - max(first, p.first) + 1
            for p in self._pieces
            if p.first <= last and first <= p.last and name in p.audience.members
        )

    def _recount(self) -> None:
        self._open = sum(piece.pairs for piece in self._pieces)
        for name, final in self._settled.items():
            ranges = [(self.first, self.last)] if final is None else final
            self._open -= sum(self._routed_count(name, low, high) for low, high in ranges)
        for name, unknown in (self._unknown or {}).items():
            self._open -= sum(self._routed_count(name, low, high) for low, high in unknown)

    def _fire_parts(self) -> None:
        """Fire for what is accepted and routed now and was not before."""
        assert self._accepted is not None
        if self._fired is None:
            self._fired = RangeSet()
        news: list[Range] = []
        for piece in self._pieces:
            for low, high in self._accepted.within(piece.first, piece.last):
                news += self._fired.missing(low, high)
        for low, high in news:
            self._fired.add(low, high)
            self._unanswered -= high - low + 1
        waiters = self.waiters
        if waiters is not None:
            for low, high in news:
                for index in range(low - self.first, high - self.first + 1):
                    waiters[index].callback(Receipt(self, index))

    def _tell_answered(self) -> None:
        call, self.on_answered = self.on_answered, None
        if call is not None:
            call()

    def _after_change(self, news: list[Range] | None = None) -> None:
        """Tell who waits for messages that have `news`; None: all have."""
        if self._unanswered == 0 and self.on_answered is not None:
            self._tell_answered()
        if self._watchers:
            done: list[tuple[int, Deferred[Any], object]] = []
            for key in self._concerned(self._watchers, news):
                for deferred, watcher in self._watchers[key].items():
                    outcome = self._outcome(watcher, is_news=True)
                    if outcome is not None:
                        done.append((key, deferred, outcome))
            for key, deferred, _ in done:
                alike = self._watchers[key]
                del alike[deferred]
                if not alike:
                    del self._watchers[key]
            for _, deferred, outcome in done:
                if deferred.called:  # cancelled by one that was told before
                    continue
                if isinstance(outcome, Exception):
                    deferred.errback(outcome)
                else:
                    deferred.callback(None)
        self._tell_keeper()

    def _tell_keeper(self) -> None:
        """How it is kept may be another now."""
        keeper = self._keeper
        if keeper is None:
            return
        if self._lost is not None or not (self._unanswered or self._open or self._promises):
            self._is_held = False
            keeper.drop(self)
        elif self._unanswered or self._watchers:
            if not self._is_held:
                self._is_held = True
                keeper.hold(self)
        elif self._is_held:
            self._is_held = False
            keeper.let_go(self)

    def _concerned(self, keys: Collection[int], news: list[Range] | None) -> list[int]:
        """The keys of watchers to look at: no more than messages have news, and those of many."""
        if news is None:
            return list(keys)
        if len(news) == 1 and (first := news[0][0]) == news[0][1]:  # of one message, as most
            concerned = [0] if 0 in keys else []
            if first in keys:
                concerned.append(first)
            return concerned
        span = 0
        for first, last in news:
            span += last - first
        if span >= len(keys):
            return list(keys)
        found = [0] if 0 in keys else []
        for first, last in news:
            if first != last:
                found += [key for key in range(first, last + 1) if key in keys]
            elif first in keys:
                found.append(first)
        return list(dict.fromkeys(found)) if len(news) > 1 else found

    # --- waiting

    def watch(self, wait: Wait, first: int, last: int, name: str | None = None) -> Deferred[Any]:
        """Return a new Deferred for this wait. Cancelling it ends the wait only."""
        key = first if first == last else 0
        deferred: Deferred[Any] = Deferred(lambda deferred: self._unwatch(key, deferred))
        watcher = (wait, first, last, name)
        outcome = self._outcome(watcher)
        if outcome is not None:
            if isinstance(outcome, Exception):
                deferred.errback(outcome)
            else:
                deferred.callback(None)
            return deferred
        if self._watchers is None:
            self._watchers = {}
        alike = self._watchers.get(key)
        if alike is None:
            self._watchers[key] = {deferred: watcher}
        else:
            alike[deferred] = watcher
        if not self._is_held:
            self._tell_keeper()
        return deferred

    def _unwatch(self, key: int, deferred: Deferred[Any]) -> None:
        self._drop(key, deferred)
        self._tell_keeper()

    def _drop(self, key: int, deferred: Deferred[Any]) -> None:
        watchers = self._watchers or {}
        alike = watchers.get(key, {})
        if alike.pop(deferred, None) is not None and not alike:
            del watchers[key]

    def _outcome(self, watcher: _Watcher, *, is_news: bool = False) -> object:
        """The outcome that fires a watcher's Deferred: an exception fails it; None: not yet.

        `is_news`: something of it has changed just now.
        """
        wait, first, last, name = watcher
        if wait is _WAIT_NEWS:
            return self if is_news else None
        for low, high, error in self._refused or ():
            if low <= last and first <= high:
                return self if wait is _WAIT_SETTLED else error
        if self._unanswered and not self._is_known(first, last):
            return self._end(wait)
        if wait is _WAIT_ACCEPTED:
            return self
        for low, high, error in self._forgotten or ():
            if low <= last and first <= high:
                return self if wait is _WAIT_SETTLED else error
        if wait is _WAIT_PROMISED:
            return self._promise_outcome(first, last)
        is_for_all = wait is _WAIT_ACKNOWLEDGED
        others = self._others if is_for_all else None
        done = True
        settled = self._settled
        for piece in self._pieces:
            low, high = first, last
            if low < piece.first:
                low = piece.first
            if high > piece.last:
                high = piece.last
            if low > high:
                continue
            names = piece.audience.names
            if piece.due:
                done = False
                continue
            if is_for_all:
                if not names:
                    return _unknown_error() if _is_nothing(piece) else NoReceiver(self.subject)
                if name is not None and name not in piece.audience.members:
                    return NotDelivered(name, "not in the audience", None)
            for receiver in names if name is None else (name,):
                if others and (other := self._other(low, high, receiver)) is not None:
                    return NotDelivered(receiver, other[0].name.lower(), other[1] or None)
                if self._unknown is None:
                    if receiver not in settled:
                        done = False
                    elif settled[receiver] is not None:
                        done = done and self._is_final(receiver, low, high)
                    continue
                if is_for_all and self._is_lost_sight_of(receiver, low, high):
                    return _unknown_error()
                for part in self._open_at(receiver, low, high) if done else ():
                    done = self._unknown.get(receiver, RangeSet()).covers(*part)
                    if not done:
                        break
        if done:
            return self
        return None if self._lost is None else self._end(wait)

    def _promise_outcome(self, first: int, last: int) -> object:
        if self._verdict(first, last) is not None:
            return self
        pieces = [piece for piece in self._pieces if piece.first <= last and first <= piece.last]
        if any(map(_is_nothing, pieces)) or self._is_lost_sight_of(PROMISE, first, last):
            return Ambiguous("the node does not know any more what became of its promise")
        return self._lost

    def _end(self, wait: Wait) -> object:
        if self._lost is not None and wait is _WAIT_SETTLED:
            return self
        return self._lost

    def _is_accepted(self, sequence: int) -> bool:
        return not self._unanswered or self._is_known(sequence, sequence)

    def _is_known(self, first: int, last: int) -> bool:
        return self._fired is not None and self._fired.covers(first, last)


def _is_nothing(piece: Piece) -> bool:
    """Whether the node knows no more of these than that it took them."""
    return not piece.position and not piece.due and not piece.audience.names


def _unknown_error() -> Ambiguous:
    return Ambiguous(
        "the node does not know any more what became of it: that is long ago, or it was for nobody"
    )


def _last_of(other: _Other) -> int:
    """Sort key."""
    return other[1]


def _around(piece: Piece, first: int, last: int) -> list[Piece]:
    """The parts of a piece that lie outside `first` to `last`."""
    if piece.last < first or last < piece.first:
        return [piece]
    rest = []
    if piece.first < first:
        rest.append(replace(piece, last=first - 1))
    if piece.last > last:
        position = piece.position and piece.position + last + 1 - piece.first
        rest.append(replace(piece, first=last + 1, position=position))
    return rest


def joined(runs: list[HandedRun]) -> Deferred[Receipts]:
    """Fire when all of these were answered."""
    waiter: Deferred[Receipts] = Deferred()
    receipts = Receipts(runs)
    left = len(runs)

    def answered() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            error = next((e for run in runs if (e := run.first_error()) is not None), None)
            if error is None:
                waiter.callback(receipts)
            else:
                waiter.errback(error)

    for run in runs:
        run.on_answered = answered
    if not runs:
        waiter.callback(receipts)
    return waiter
