"""Group commit: what arrives in one turn, or while one transaction runs, goes into the next.

The only caller of `ILog.append` and `append_now`. Batches, progress of receivers, changes of the
directory are gathered here; one group is under way at a time. What it brought is told to those who
asked, in order: the directory's changes, the batches, the progress. Of a group that the log has
written at once all is told before the next starts, and that is in a later turn: others have theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.core.ranges import Range
from msgservice.errors import LimitReached, LogError, LogFailed, LogFull, LogUnavailable
from msgservice.interfaces import ILog
from msgservice.limits import BATCH_OVERHEAD
from msgservice.node.seldom import Seldom
from msgservice.records import (
    Appended,
    Batch,
    Cancel,
    Group,
    Join,
    Lane,
    LettersTaken,
    Outcome,
    PageOutcome,
    Progress,
    ReceiverRow,
    RefusedBatch,
    Replay,
    ReplayPage,
    StatusFrom,
    Verdict,
)
from msgservice.waiters import Waiters

GATHER = 0.001  # seconds that progress waits for that of others
# In flight to a receiver for which others wait so: of more, some are answered all the time, and
# whoever waited for that would each time. Its own progress waits then, as answers that come with it
# share its group.
FEW_MESSAGES = 256
FEW_BYTES = 64 * 1024  # that are not on disk, while messages come alone
# Bytes of dead letters in one group, about: each has a copy of its message.
GROUP_LETTERS = 4 * 1024 * 1024
RETRY_DELAY = 1.0  # seconds after a group that failed, before the next
# Senders of which it waits to be stored from where on they want states. Of more, those that came
# first say it again on their next connection: until then the log keeps more than is wanted.
STATUSES_FROM_MAX = 1000
SLOW = 1.0  # seconds that a group takes until it is on disk, from which on a line says so
LIVE_FOR = 1.0  # seconds for which batches count as coming, after a group that had some


class Source(Protocol):
    """The source of a batch, which wants its outcome."""

    def stored(self, batch: Batch, outcome: Outcome) -> None:
        """The group that held the batch is on disk."""

    def failed(self, batches: list[Batch], error: LogUnavailable) -> None:
        """The commit failed: none of these batches was stored."""

    def withdraw(self, batch: Batch) -> bool:
        """Whether a batch that waits is void, behind one that was refused: it is not stored.

        Asked once about each that waits, when all of a group are told of which some were refused.
        """

    def flush(self) -> None:
        """The outcomes of a group were all told: acknowledgements owed for it may leave."""

    def fault(self, failure: Failure) -> None:
        """A call of this object raised `failure`: its connection ends, and no other."""


class Progressing(Protocol):
    """The owner of delivery progress that is to be stored."""

    def take_progress(self, letters: int) -> Progress:
        """Return the progress since the last call; it goes into the group that starts now.

        Its dead letters take about `letters` bytes at most: where there is more it is asked for
        again, for the next group.
        """

    def progress_stored(self) -> None:
        """The commit that holds the progress that was taken last is synced."""

    def progress_failed(self) -> None:
        """The commit failed: progress that was taken last must be in what is taken next."""

    def fault(self, failure: Failure) -> None:
        """A call of this object raised `failure`: its connection ends, and no other."""


class Audiences(Protocol):
    """The audiences of batches (`acceptance`), which are decided again when receivers change."""

    @property
    def version(self) -> int:
        """Another one than before: who receives what has changed."""

    def decide_again(self, batches: Sequence[Batch]) -> None:
        """Decide anew for whom these batches are."""

    def decide_due(self, batches: Sequence[Batch], held: set[Lane]) -> list[Batch]:
        """Decide for whom these are, which have waited until they are due; return those that go.

        Nothing goes of the lanes in `held`, and what does not go adds its own.
        """


class Retaining(Protocol):
    """The index of retained messages (`retained`)."""

    def stored(self, kept: Sequence[tuple[str, int, int]], /) -> None:
        """A group has ended, and the log says what is retained since."""

    def all_stored(self) -> None:
        """No group is under way, and none is to be."""


class Lasted(NamedTuple):
    """The time that a group takes, seconds: until it is on disk, and until all have been told."""

    written: float
    told: float


class _UnderWay(msgspec.Struct):
    """A group that the log writes, with all who are told what became of it."""

    group: Group
    sources: list[Source]  # of its batches
    waiters: Waiters[None] | None  # for its changes of the directory
    taken: list[Deferred[PageOutcome]]  # of its dead letters that go
    moving: list[Deferred[list[Batch]]]  # of what is due
    cancelling: list[Deferred[tuple[Range, ...]]]  # of each that is cancelled
    deciding: list[Deferred[tuple[Range, ...]]]  # of each verdict
    progressing: list[Progressing]  # of its progress
    pages: list[Deferred[PageOutcome]]  # who waits for each of its pages


class Commits:
    """The queue of group commits: what is gathered here becomes the next transaction of the log.

    `after_group(batches)` is called once per group with what was stored: dispatch. Before that
    `routed(batches)` with those that had waited until they were due: nobody else tells senders.
    `letters_told`: the batches that tell of the dead letters of a progress; it never raises.
    `due_now`: the time of what falls due (`due.Due.now`).
    """

    __slots__ = (
        "_after_group",
        "_audiences",
        "_awaited",
        "_batches_at",
        "_batches_few",
        "_began",
        "_cancelling",
        "_decided",
        "_deciding",
        "_due",
        "_due_now",
        "_ended_at",
        "_fatal",
        "_gather_at",
        "_gathering",
        "_held",
        "_held_lanes",
        "_idle",
        "_kept_back",
        "_letters_told",
        "_log",
        "_moving",
        "_next",
        "_pages",
        "_places",
        "_progressing",
        "_quiet",
        "_refused",
        "_refused_because",
        "_retained",
        "_routed",
        "_running",
        "_seldom",
        "_sources",
        "_statuses_from",
        "_stopped",
        "_streaming",
        "_taken",
        "_time",
        "_waiters",
        "_written",
        "uncommitted_bytes",
    )

    _logger = Logger()

    def __init__(
        self,
        log: ILog,
        *,
        audiences: Audiences,
        retained: Retaining,
        time: Time,
        after_group: Callable[[list[Batch]], None],
        routed: Callable[[list[Batch]], None],
        fatal: Callable[[LogFailed], None],
        letters_told: Callable[[Progress], list[Batch]],
        due_now: Callable[[], int],
        seldom: Seldom,
    ) -> None:
        self.uncommitted_bytes = 0
        self._refused = 0  # runs that the log had no room for, since they were taken
        self._refused_because: str | None = None
        self._log = log
        self._audiences = audiences
        self._retained = retained
        self._decided = audiences.version  # when the next group began to gather
        self._time = time
        self._due_now = due_now
        self._seldom = seldom
        self._after_group = after_group
        self._routed = routed
        self._fatal = fatal
        self._next = Group()
        self._places: dict[int, int] = {}  # receiver number -> place of its row in the next group
        self._statuses_from: dict[tuple[str, str], StatusFrom] = {}  # of the next group
        self._sources: list[Source] = []
        self._waiters: Waiters[None] = Waiters()
        self._taken: list[Deferred[PageOutcome]] = []
        self._letters_told = letters_told
        self._moving: list[Deferred[list[Batch]]] = []
        self._cancelling: list[Deferred[tuple[Range, ...]]] = []
        self._deciding: list[Deferred[tuple[Range, ...]]] = []
        self._progressing: dict[Progressing, None] = {}
        self._awaited: dict[Progressing, None] = {}  # few messages are in flight to these
        self._streaming: dict[Progressing, None] = {}  # very many are
        self._batches_at = -LIVE_FOR  # when a group began that had some
        self._batches_few = False  # … of `FEW_BYTES`, at most
        self._pages: list[Deferred[PageOutcome]] = []  # of those of the next group
        self._running = False
        self._began = 0.0  # when the group under way was started; then, that which is being told
        self._ended_at = self._written = 0.0  # … when it came back, and how long it was written
        self._kept_back = False  # none is started before `go_on`
        self._quiet: Waiters[None] = Waiters()
        # None is started: until all know what became of a group, and after one that failed, until
        # `RETRY_DELAY` is over.
        self._held = False
        self._held_lanes: set[Lane] = set()  # of what is due
        self._stopped = False
        self._due: IDelayedCall | None = None
        self._gather_at: float | None = None  # when progress has waited for that of others
        # It is left alone where the group starts before: to set it anew for each would cost more.
        self._gathering: IDelayedCall | None = None
        self._idle: Waiters[None] = Waiters()

    @property
    def is_live(self) -> bool:
        """Whether somebody sends, and waits for the groups of all others."""
        return self._time.now() - self._batches_at < LIVE_FOR

    @property
    def is_lone(self) -> bool:
        """Whether somebody sends a little at a time, for whom each millisecond is one.

        Where very much is sent at once it is not: who catches up with that must not be slower.
        """
        return self._batches_few and self.is_live

    @property
    def is_stopped(self) -> bool:
        """Whether no group is started any more."""
        return self._stopped

    @property
    def lasted(self) -> Lasted:
        """The time that the group has taken of which somebody is told just now."""
        return Lasted(self._written, self._time.now() - self._ended_at)

    # --- what goes in

    def batch(self, batch: Batch, source: Source) -> None:
        """Store a batch with the next group; `kick` when the turn is over."""
        batch.audience.waiting += 1
        self._next.batches.append(batch)
        self._sources.append(source)
        self.uncommitted_bytes += batch.size + BATCH_OVERHEAD

    def progress(self, outlet: Progressing) -> None:
        """Progress is waiting: its owner is asked for it when the next group starts.

        While other receivers still have a few messages to answer, their answers may share that
        group: it waits for them a little, since a group each would be a sync each. So does that of
        a receiver to which very many are in flight, whatever others have; nobody waits for it.
        """
        self._progressing[outlet] = None
        if not (self._awaited or outlet in self._streaming):
            self.kick_soon()
        elif self._gather_at is None:
            self.kick_soon(GATHER)

    def expect(self, outlet: Progressing, messages: int) -> None:
        """Expect progress soon: so many messages are in flight to this receiver, or none."""
        if messages > FEW_MESSAGES:
            self._streaming[outlet] = None
        else:
            self._streaming.pop(outlet, None)
        if 0 < messages <= FEW_MESSAGES:
            self._awaited[outlet] = None
        elif outlet in self._awaited:
            del self._awaited[outlet]
            if not self._awaited and self._gather_at is not None:
                self.kick_soon()

    @property
    def _may_gather(self) -> bool:
        """Whether the progress that waits may wait for that of others."""
        if self._awaited:
            return True
        streaming = self._streaming
        return bool(streaming) and all(outlet in streaming for outlet in self._progressing)

    def receiver(
        self, row: ReceiverRow, replay: Replay | None = None, join: Join | None = None
    ) -> Deferred[None]:
        """Store a receiver that was made or changed: of each the row that came last, however many.

        A disk that is slow would have to write all of them otherwise. `replay`: stored with it.
        `join`: what is retained is copied for it then.
        """
        self._receiver(row)
        if replay is not None:
            self._next.replays.append(replay)
        if join is not None:
            join.audience.waiting += 1
            self._next.joins.append(join)
        return self._waiter()

    def _receiver(self, row: ReceiverRow) -> None:
        rows = self._next.receivers
        place = self._places.setdefault(row.number, len(rows))
        rows[place : place + 1] = [row]

    def removal(self, number: int) -> Deferred[None]:
        """Store that a receiver was removed."""
        self._next.removed.append(number)
        return self._waiter()

    def replay(self, replay: Replay) -> Deferred[None]:
        """Store that a replay begins, or ends before its time."""
        self._next.replays.append(replay)
        return self._waiter()

    def page(self, page: ReplayPage) -> Deferred[PageOutcome]:
        """Store a page of a replay with the next group; fire with what became of it."""
        for batch in page.copies:
            batch.audience.waiting += 1
        self._next.pages.append(page)
        waiter: Deferred[PageOutcome] = Deferred()
        self._pages.append(waiter)
        self.kick()
        return waiter

    def hold(self) -> Deferred[None]:
        """Fire when no group is under way; none is started from now on, until `go_on`.

        All that is stored by then was told. Who holds it is short: everybody waits.
        """
        self._kept_back = True
        waiter = self._quiet.wait()
        self.kick_soon()
        return waiter

    def go_on(self) -> None:
        """Start groups again, with what was gathered meanwhile."""
        self._kept_back = False
        self.kick_soon()

    def letters(self, taken: LettersTaken) -> Deferred[PageOutcome]:
        """Take dead letters out, and store their copies; fire with what became of that.

        Fails with `LogUnavailable` where none of it was stored.
        """
        if self._stopped:
            return fail(LogUnavailable("the node stops"))
        for batch in taken.copies:
            batch.audience.waiting += 1
        self._next.letters.append(taken)
        waiter: Deferred[PageOutcome] = Deferred()
        self._taken.append(waiter)
        self.kick_soon()
        return waiter

    @property
    def has_due(self) -> bool:
        """Whether what was handed to `due` waits for its group."""
        return bool(self._next.due)

    def due(self, batches: Sequence[Batch], held: set[Lane]) -> Deferred[list[Batch]]:
        """Store runs that have waited and are due; fires with those that were.

        For whom each is, is decided when the group starts: see `Audiences.decide_due`. Fails with
        `LogUnavailable`, also where a group that had others before these was not stored.
        """
        self._next.due += batches
        self._held_lanes = held
        waiter: Deferred[list[Batch]] = Deferred()
        self._moving.append(waiter)
        self.kick_soon()
        return waiter

    def cancel(self, wanted: Cancel) -> Deferred[tuple[Range, ...]]:
        """Take back what still waits of these; fires with the sequences that did.

        Fails with `LogUnavailable`.
        """
        self._next.cancel.append(wanted)
        waiter: Deferred[tuple[Range, ...]] = Deferred()
        self._cancelling.append(waiter)
        self.kick_soon()
        return waiter

    def decide(self, verdict: Verdict) -> Deferred[tuple[Range, ...]]:
        """Store what is decided about promises; fires with the sequences of which one was open.

        Fails with `LogUnavailable`.
        """
        self._next.verdicts.append(verdict)
        waiter: Deferred[tuple[Range, ...]] = Deferred()
        self._deciding.append(waiter)
        self.kick_soon()
        return waiter

    def status_from(self, wanted: StatusFrom) -> None:
        """Store from where on a sender wants states: of each sender the highest that waits."""
        self._status_from(wanted)
        self.kick_soon(GATHER)

    def _status_from(self, wanted: StatusFrom) -> None:
        waits, key = self._statuses_from, (wanted.sender, wanted.incarnation)
        waiting = waits.get(key)
        if waiting is None or waiting.status_from < wanted.status_from:
            waits[key] = wanted
        if len(waits) > STATUSES_FROM_MAX:
            del waits[next(iter(waits))]

    def _waiter(self) -> Deferred[None]:
        waiter = self._waiters.wait()
        self.kick()
        return waiter

    # --- the loop

    def kick(self) -> None:
        """Start a group now, unless one runs: then the next starts when that ends."""
        if not self._running and not self._held:
            self._start_or_hold()

    def _start_or_hold(self, *, now: bool = False) -> None:
        if self._kept_back and not self._stopped:
            self._quiet.fire(None)
        else:
            self._start(now=now)

    def kick_soon(self, delay: float = 0.0) -> None:
        """Start a group when this turn is over, so that more can join it."""
        if self._running or self._held:
            return
        if not delay:
            if self._due is None:
                self._due = self._time.clock.callLater(0, self._kick_due)
        elif self._gather_at is None:
            self._gather_at = self._time.now() + delay
            if self._gathering is None:
                self._gathering = self._time.clock.callLater(delay, self._gathered)

    def _gathered(self) -> None:
        self._gathering, at = None, self._gather_at
        if at is None or self._running or self._held:
            return
        left = at - self._time.now()
        if left > 0:
            self._gathering = self._time.clock.callLater(left, self._gathered)
        else:
            self._start_or_hold(now=True)

    def _kick_due(self) -> None:
        self._due = None
        self._held = False
        if not self._running:
            self._start_or_hold(now=True)

    def _start(self, *, now: bool = False) -> None:
        """Start the next group, if there is one.

        `now`: nobody is still to be told of the one before, nor waits for this to return, so that
        the log may write it before it does.
        """
        self._gather_at = None
        if self._due is not None:
            self._due.cancel()
            self._due = None
        group = self._next
        if self._statuses_from:
            group.statuses_from = list(self._statuses_from.values())
            self._statuses_from = {}
        if self._stopped or not (self._progressing or group):
            self._start_none()
            return
        version = self._audiences.version
        if version != self._decided:
            self._decided = version
            # A membership begins and ends with a group: what waited since before the change is for
            # those who are there now.
            self._audiences.decide_again(group.batches)
        if group.due:
            group.due = self._audiences.decide_due(group.due, self._held_lanes)
        progressing, self._progressing = [*self._progressing], {}
        letters = GROUP_LETTERS
        for outlet in progressing:
            progress = outlet.take_progress(letters)
            group.progress.append(progress)
            if progress.dead:
                letters -= sum(letter.size for letter in progress.dead)
                # Told in the group that has them: none is told twice, and none of these is missed.
                group.own += self._letters_told(progress)
        for batch in group.own:
            batch.audience.waiting += 1
        waiters = self._waiters.take() if self._waiters.waiting else None
        under_way = _UnderWay(
            group,
            self._sources,
            waiters,
            self._taken,
            self._moving,
            self._cancelling,
            self._deciding,
            progressing,
            self._pages,
        )
        self._next, self._sources, self._places, self._taken = Group(), [], {}, []
        self._moving, self._cancelling, self._deciding, self._pages = [], [], [], []
        self._running = True
        self._began = self._time.now()
        group.now, group.due_now = self._time.wall(), self._due_now()
        if group.batches:
            self._batches_at = self._began
            self._batches_few = self.uncommitted_bytes <= FEW_BYTES
        if now:
            result: Appended | Failure | None
            try:
                result = self._log.append_now(group)
            except Exception:
                result = Failure()  # whatever it is, `_ended` ends what it must
            if result is not None:
                self._ended(result, under_way, in_this_turn=True)
                return
        self._log.append(group).addBoth(self._ended, under_way)

    def _start_none(self) -> None:
        """There is no next group, or none is wanted: who waits for that is told."""
        if not self._running:
            self._retained.all_stored()
        if self._idle.waiting:
            self._idle.fire(None)

    def _ended(
        self, result: Appended | Failure, under_way: _UnderWay, *, in_this_turn: bool = False
    ) -> None:
        self._running, self._held = False, True
        self._ended_at = self._time.now()
        self._written = self._ended_at - self._began
        if self._written >= SLOW:
            self._tell_slow(self._written)
        try:
            if isinstance(result, Failure):
                self._failed(result, under_way)
            else:
                self._stored(result, under_way, may_start=not in_this_turn)
                self._held = self._due is not None  # the next group has failed meanwhile
                if in_this_turn and not self._held:
                    self._go_on_soon()
                else:
                    self._go_on()
        except Exception:
            # A fault of ours, not of the disk: going on could acknowledge what is not stored.
            failure = Failure()
            self._logger.failure("the commit loop failed", failure)
            self._stopped = True
            self._idle.fire(None)
            self._fatal(LogFailed(failure.getErrorMessage()))

    def _tell_slow(self, seconds: float) -> None:
        """A line says that the disk was slow: all that was handed in meanwhile has waited."""

        def tell(count: int) -> None:
            self._logger.warn(
                "{count} groups took a second or more to be stored, the last one {seconds} s: the"
                " disk is slow",
                line="commit-slow",
                count=count,
                seconds=round(seconds, 1),
            )

        self._seldom.say("commit-slow", tell)

    def _go_on(self) -> None:
        """Start the next group, if there is one and it was not started before."""
        if self._running or self._held:
            return
        if self._progressing and not self._next and self._may_gather:
            self.kick_soon(GATHER)
        else:
            self._start_or_hold(now=True)

    def _go_on_soon(self) -> None:
        """Start the next group in a later turn, if there is one."""
        if self._next:
            self.kick_soon()
        elif self._progressing:
            self.kick_soon(GATHER if self._may_gather else 0.0)
        elif self._kept_back and not self._stopped:
            self._quiet.fire(None)
        elif self._statuses_from:
            self._start()
        else:
            self._start_none()

    def _stored(self, appended: Appended, under_way: _UnderWay, *, may_start: bool) -> None:
        group, sources, pages = under_way.group, under_way.sources, under_way.pages
        if group.own or group.letters:
            self._let_go(group)
        if group.due:
            # What the log had no room for waits on, and what is due behind it in its lane: that may
            # be in the next group.
            self._held_lanes.update(batch.lane for batch in group.due if not batch.number)
        # The next group starts before this one is told about: the disk does not wait for us.
        # But where a batch was refused, what waits behind it in its lane must be withdrawn first:
        # whoever is told before may ask for something more, and that starts nothing (`_held`).
        outcomes, refused = appended.outcomes, False
        for outcome in outcomes:
            if type(outcome) is RefusedBatch:
                refused = True
                break
        # Nor where a page has one: what follows it may be for who is no member yet.
        if may_start and not refused and not pages and self._next and not self._kept_back:
            self._start()
        is_more = group.is_more
        if is_more:
            for join in group.joins:
                join.audience.waiting -= 1
        self._retained.stored(appended.retained)
        if under_way.waiters is not None:
            under_way.waiters.fire(None)
        if pages:
            self._pages_stored(group, pages, appended)
        batches = group.batches
        size = 0
        for batch, source, outcome in zip(batches, sources, outcomes, strict=True):
            size += batch.size
            batch.audience.waiting -= 1
            if type(outcome) is RefusedBatch and isinstance(outcome.error, LogFull | LimitReached):
                self._refused += 1
                self._refused_because = str(outcome.error)
            try:
                source.stored(batch, outcome)
            except Exception:
                source.fault(Failure())
        if batches:
            self.uncommitted_bytes -= size + BATCH_OVERHEAD * len(batches)
        if refused:
            self._withdraw()
        for outlet in under_way.progressing:
            try:
                outlet.progress_stored()
            except Exception:
                outlet.fault(Failure())
        moved: list[Batch] = []
        if group.due:
            moved = [batch for batch in group.due if batch.number]
            for batch in group.due:
                batch.audience.waiting -= 1
            if moved:
                self._routed(moved)
        self._after_group(appended.stored)
        # Whoever handed over what is due is told of a group without any, too: there may be no place
        # for all of it.
        for waiting in under_way.moving:
            waiting.callback(moved)
        if is_more:
            for waiter, became in zip(under_way.taken, appended.letters, strict=True):
                waiter.callback(became)
            for wanted, ranges in zip(under_way.cancelling, appended.cancelled, strict=True):
                wanted.callback(ranges)
            for decided, ranges in zip(under_way.deciding, appended.decided, strict=True):
                decided.callback(ranges)
        for source in dict.fromkeys(sources) if len(sources) > 1 else sources:
            try:
                source.flush()
            except Exception:
                source.fault(Failure())

    def _pages_stored(
        self, group: Group, waiters: list[Deferred[PageOutcome]], appended: Appended
    ) -> None:
        for page, waiter, outcome in zip(group.pages, waiters, appended.pages, strict=True):
            for batch in page.copies:
                batch.audience.waiting -= 1
            waiter.callback(outcome)

    def _failed(self, failure: Failure, under_way: _UnderWay) -> None:
        group, sources, moving = under_way.group, under_way.sources, under_way.moving
        self._let_go(group)
        failure.trap(LogUnavailable, LogFailed)
        error = failure.value
        for outlet in under_way.progressing:
            outlet.progress_failed()
            self._progressing[outlet] = None
        if not isinstance(error, LogUnavailable):
            assert isinstance(error, LogFailed)
            self._stopped = True
            self._idle.fire(None)
            self._fatal(error)
            self._give_up(under_way.taken, error)
            return
        self._logger.error(
            "a group was not stored: {error}", line="commit-failed", error=str(error)
        )
        for batch in group.due:
            batch.audience.waiting -= 1
        by_source: dict[int, tuple[Source, list[Batch]]] = {}
        for batch, source in zip(group.batches, sources, strict=True):
            by_source.setdefault(id(source), (source, []))[1].append(batch)
            batch.audience.waiting -= 1
            self.uncommitted_bytes -= batch.size + BATCH_OVERHEAD
        for source, batches in by_source.values():
            try:
                source.failed(batches, error)
            except Exception:
                source.fault(Failure())
        self._withdraw()
        for source, _ in by_source.values():
            try:
                source.flush()
            except Exception:
                source.fault(Failure())
        # Changes of the directory are still wanted: they go into the next group.
        newer, self._next.receivers, self._places = self._next.receivers, [], {}
        for row in (*group.receivers, *newer):
            self._receiver(row)
        self._retained.stored(())
        self._next.joins = group.joins + self._next.joins
        self._next.removed = group.removed + self._next.removed
        self._next.replays = group.replays + self._next.replays
        self._next.pages = group.pages + self._next.pages
        self._pages = under_way.pages + self._pages
        for wanted in group.statuses_from:
            self._status_from(wanted)
        if under_way.waiters is not None:
            self._waiters.put_back(under_way.waiters)
        self._after_group([])
        self._give_up(under_way.taken, error)
        if group.due:
            # What was due behind it would overtake it.
            moving, self._moving = moving + self._moving, []
            self._next.due = []
        for unheard in moving:
            unheard.errback(Failure(error))
        for unsaid in (*under_way.cancelling, *under_way.deciding):
            unsaid.errback(Failure(error))
        # Whoever asks for a group meanwhile waits as well: a disk that fails is left alone.
        self._due = self._time.clock.callLater(RETRY_DELAY, self._kick_due)

    def _let_go(self, group: Group) -> None:
        """Let the audiences of what a group stored for the node itself be forgotten again."""
        for batch in group.own:
            batch.audience.waiting -= 1
        for taken in group.letters:
            for batch in taken.copies:
                batch.audience.waiting -= 1

    def _give_up(self, taken: list[Deferred[PageOutcome]], error: LogError) -> None:
        for waiter in taken:
            waiter.errback(error)

    def _withdraw(self) -> None:
        """Take what is void out of the next group: one walk over it, however much was refused."""
        waiting = zip(self._next.batches, self._sources, strict=True)
        self._next.batches, self._sources = [], []
        for batch, source in waiting:
            try:
                is_void = source.withdraw(batch)
            except Exception:
                source.fault(Failure())
                is_void = False
            if is_void:
                batch.audience.waiting -= 1
                self.uncommitted_bytes -= batch.size + BATCH_OVERHEAD
            else:
                self._next.batches.append(batch)
                self._sources.append(source)

    def take_refusals(self) -> tuple[str | None, int]:
        """Return why the log refused runs since the last call, or None, and how many."""
        reason, count = self._refused_because, self._refused
        self._refused_because, self._refused = None, 0
        return reason, count

    # --- stopping

    def idle(self) -> Deferred[None]:
        """Fire when nothing is under way and nothing waits."""
        waiter = self._idle.wait()
        self.kick()
        return waiter

    def stop(self) -> None:
        """Start no group any more: the log is about to close."""
        self._stopped = True
        taken, self._taken = self._taken, []
        self._give_up(taken, LogUnavailable("the node stops"))
        for timer in (self._due, self._gathering):
            if timer is not None:
                timer.cancel()
        self._due = self._gathering = self._gather_at = None
