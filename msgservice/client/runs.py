"""The runs that a client handed over, found by sequence: what ROUTED and STATUS are applied to.

A run is kept while its messages are not all answered, or somebody waits for its news; beyond
that only as long as somebody holds one of its receipts. So what a client remembers follows what
its program remembers, not what receivers that are away have left undone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING
from weakref import ref

from twisted.internet.defer import Deferred, succeed

from msgservice.client.handed import AudienceNames, HandedRun, Piece
from msgservice.client.receipt import Receipt
from msgservice.errors import MalformedFrame, MsgServiceError
from msgservice.limits import INTEGER_MAX
from msgservice.message import Status
from msgservice.records import PROMISE

if TYPE_CHECKING:
    from msgservice.client.disk import DiskOutbox

SWEEP_MIN = 1024  # entries below which no sweep is worth its time


class HandedRuns:
    """The index of handed-over runs by sequence. It is the `receipt.Keeper` of these runs.

    `disk`: the outbox, where it is a file; it is told what is heard of its open receipts too.
    """

    def __init__(self, disk: DiskOutbox | None = None) -> None:
        self._disk = disk
        self._firsts: list[int] = []  # rising; may hold some that have gone
        self._held: dict[int, HandedRun] = {}
        self._faint: dict[int, ref[HandedRun]] = {}  # answered, and nobody waits
        self._sweep_at = SWEEP_MIN
        self._audiences: dict[int, AudienceNames] = {}
        self.news: dict[HandedRun, None] = {}  # who waits for these is not told yet

    def __len__(self) -> int:
        """The number of runs that are kept."""
        return len(self._held) + sum(1 for faint in self._faint.values() if faint() is not None)

    # --- getters

    def lowest(self) -> int | None:
        """The first sequence of the oldest run that is kept, or None: PROTOCOL `status_from`."""
        self._sweep()
        return self._firsts[0] if self._firsts else None

    def between(self, first: int, last: int) -> list[HandedRun]:
        """The runs kept that overlap `first` to `last`, rising."""
        exact = self._get(first)
        if exact is not None and first + exact.count > last:  # as of most that is told
            return [exact]
        firsts = self._firsts
        low = max(bisect_right(firsts, first) - 1, 0)
        high = bisect_right(firsts, last, low)
        found = []
        for number in firsts[low:high]:
            run = self._get(number)
            if run is not None and run.last >= first:
                found.append(run)
        return found

    def _get(self, first: int) -> HandedRun | None:
        run = self._held.get(first)
        if run is None and (faint := self._faint.get(first)) is not None:
            run = faint()
        return run

    # --- verbs

    def add(self, run: HandedRun, first: int) -> None:
        """Keep a run; it gets its sequences here. Runs rise."""
        firsts = self._firsts
        assert not firsts or first > firsts[-1], first
        run.numbered(first, self)
        firsts.append(first)
        self._held[first] = run
        if len(firsts) >= self._sweep_at:
            self._sweep()

    def receipts(self, after: int, limit: int) -> list[Receipt]:
        """The receipts of what is kept beyond `after`, rising: of messages that are not settled."""
        found: list[Receipt] = []
        for run in self.between(after + 1, INTEGER_MAX):
            for sequence in range(max(run.first, after + 1), run.last + 1):
                if len(found) == limit:
                    return found
                if not run.known_of(sequence).is_over:
                    found.append(Receipt(run, sequence - run.first))
        return found

    def find(self, first: int) -> HandedRun | None:
        """Return the run that begins at `first`, if it is kept or somebody holds its receipts."""
        return self._get(first)

    def take_up(self, run: HandedRun, first: int) -> None:
        """Keep a run of an earlier process, or one that was dropped; none begins there now."""
        run.numbered(first, self)
        at = bisect_left(self._firsts, first)
        if at == len(self._firsts) or self._firsts[at] != first:
            self._firsts.insert(at, first)
        self._faint.pop(first, None)
        self._held[first] = run

    def forget(self, first: int, last: int) -> Deferred[None]:
        """See `handed.Keeper`."""
        return succeed(None) if self._disk is None else self._disk.forget(first, last)

    def hold(self, run: HandedRun) -> None:
        """See `handed.Keeper`."""
        first = run.first
        self._held[first] = run
        if first in self._faint:
            del self._faint[first]

    def let_go(self, run: HandedRun) -> None:
        """See `handed.Keeper`."""
        first = run.first
        if first in self._held:
            del self._held[first]
            self._faint[first] = ref(run)

    def drop(self, run: HandedRun) -> None:
        """See `handed.Keeper`."""
        first = run.first
        self._held.pop(first, None)
        if first in self._faint:
            del self._faint[first]

    def has_news(self, run: HandedRun) -> None:
        """See `handed.Keeper`."""
        self.news[run] = None

    def tell_news(self) -> None:
        """Notify the waiters: all statuses that came together were applied."""
        news = self.news
        for run in list(news):
            del news[run]
            run.tell_news()

    def lose(self, first: int, last: int, error: MsgServiceError, *, answered: bool) -> None:
        """Runs are lost: nothing more will be heard of them; `answered`: of answered ones only.

        What was answered of a run may be a part of it: the rest goes on.
        """
        if answered and self._disk is not None:
            self._disk.lose(first, last, error)
        for run in self.between(first, last):
            if not answered or (run.is_answered and first <= run.first and run.last <= last):
                run.lost(error)
            else:
                run.forgotten(max(first, run.first), min(last, run.last), error)

    def lose_all(self, error: MsgServiceError) -> None:
        """All runs are lost: nothing more will be heard of any."""
        if self._firsts:
            self.lose(self._firsts[0], 2**62, error, answered=False)

    def _sweep(self) -> None:
        """Forget those that have gone. Its cost is paid by the entries added since the last."""
        self._faint = {n: faint for n, faint in self._faint.items() if faint() is not None}
        held, faint = self._held, self._faint
        self._firsts = [n for n in self._firsts if n in held or n in faint]
        self._sweep_at = max(SWEEP_MIN, 2 * len(self._firsts))

    # --- from the world

    def connected(self) -> None:
        """A new connection: audiences are told anew."""
        self._audiences.clear()

    def receive_audience(self, number: int, receivers: list[str], audiences_max: int) -> None:
        """The node names an audience."""
        self._audiences.pop(number, None)
        if len(self._audiences) >= audiences_max:
            # The node names again what it names no more often than this.
            del self._audiences[next(iter(self._audiences))]
        self._audiences[number] = AudienceNames(receivers)

    def receive_routed(
        self, first: int, last: int, audience: int, position: int, due: int = 0, of: str = ""
    ) -> None:
        """ROUTED came: the audience of sequences, or until when they wait, and as which message."""
        named = self._audiences.get(audience)
        if named is None or last < first:
            raise MalformedFrame(f"ROUTED {first} to {last} with unknown audience {audience}")
        exact = self._held.get(first)
        if exact is not None and exact.count == last - first + 1:  # as most
            exact.routed(Piece(first, last, position, named, due, of))
        else:
            for run in self.between(first, last):
                low, high = max(first, run.first), min(last, run.last)
                run.routed(Piece(low, high, position and position + low - first, named, due, of))
        if self._disk is not None:
            is_known, is_due = position != 0, due == 0
            self._disk.receipts.routed(first, last, named.names, is_known=is_known, is_due=is_due)

    def receive_status(
        self, receiver: str, status: Status, ranges: list[tuple[int, int]], reason: str
    ) -> None:
        """STATUS came: the state of sequences at a receiver, or what became of their promises."""
        receipts = None if self._disk is None else self._disk.receipts
        if receiver == PROMISE:
            for first, last in ranges:
                if receipts is not None:
                    receipts.decided(first, last)
                for run in self.between(first, last):
                    run.decided(status, first, last, reason)
            return
        held = self._held
        for first, last in ranges:
            if receipts is not None and status.final:
                receipts.final(receiver, first, last)
            exact = held.get(first)
            if exact is not None and first + exact.count > last:  # as most, see `between`
                exact.marked(receiver, status, first, last, reason)
                continue
            for run in self.between(first, last):
                run.marked(receiver, status, first, last, reason)
