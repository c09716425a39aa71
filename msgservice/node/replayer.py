"""The replays of a node: what is sent again on purpose is copied, page by page, for one receiver.

A page is asked of the log while less than `WAITING_BYTES` wait for its receiver, and is stored with
the row that says how far the replay is. So a replay goes as fast as its receiver, what it takes of
the log is little at a time, and nothing has to be timed: after each group it is looked whose
backlog has room now. A page takes no longer than it may (`page_size`). While anybody sends, whose
messages wait for the group of a page, that is `LIVE_SECONDS`, and the next one goes when twice that
has passed, in which others had the log for themselves. At most `PAGES` pages are read and
stored at once, for all receivers together, and as many more are read ahead, while those before are
being stored.

The last page of a `start` and the membership of its receiver are one entry, and nothing may be
stored between what that page has and that entry: for this one page no group is started.

What is copied is decided by the log (`ILog.replay`), and how rows and copies are stored. Who may
ask for a replay, and from where to where, is in `operations` and `receivers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.errors import BadValue, LimitReached, LogFull, LogUnavailable, ReplayRuns
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.node.commits import Commits
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch
from msgservice.node.page_size import PageSize
from msgservice.node.tail import Tail
from msgservice.records import (
    LEFT_OUT,
    LOST,
    OF_ACKNOWLEDGED,
    Audience,
    Copies,
    PageOutcome,
    ReceiverRow,
    Replay,
    ReplayPage,
    position_of,
)
from msgservice.waiters import Waiters

WAITING_BYTES = 4 * 1024 * 1024  # for its receiver: while less waits, a page is copied
PAGE_BYTES = 1024 * 1024  # of a page, at most
LIVE_PAGE_BYTES = 128 * 1024  # … where others' messages wait while it is written
PAGE_BYTES_LEAST = 64 * 1024  # … however long one takes: each is a group with its sync
# For which a page may be written, and told of, about: where nobody waits for that, and where others
# do.
SECONDS, LIVE_SECONDS = 0.2, 0.005
REST = 2.0  # of the time that a page took, for others, before the next one goes
PAGES = 4  # read and stored at once; and read ahead
# Of the limit of a receiver's backlog, how much may wait at most for another page.
BACKLOG_SHARE = 4
HELD_BYTES_MAX = 64 * 1024 * 1024  # of a last page, for which everybody waits
AGAIN = 1.0  # seconds after a page that found no room, or could not be read
COUNT_PAGES = 16  # of what a receiver was left out of, that are looked at for one answer


# Of what may be copied now, by subject (`ILog.replay`).
_Patterns = Sequence[str] | None


def _both(one: Replay, lost: Replay) -> Replay:
    """Return one replay that copies what two would have copied still, of a node that lost some."""
    return Replay(
        one.receiver,
        LOST,
        min(one.first, lost.first),
        min(one.next, lost.next),
        max(one.end, lost.end),
        one.copied,
        one.skipped,
    )


def left_out_of_nothing(name: str) -> BadValue:
    """Return what a rewind of what a receiver was left out of is refused with."""
    return BadValue(
        "suspended",
        "asks for what a receiver was left out of while it was suspended:"
        f" receiver {name!r} was left out of nothing",
    )


class _Ahead(NamedTuple):
    """A page that is read while the one before is being stored."""

    next: int  # of the replay that it continues
    end: int  # what it was read up to
    patterns: _Patterns
    reading: Deferred[Copies]


class _Running:
    """One replay that runs: its row as it is stored, and what is under way for it."""

    def __init__(self, row: ReceiverRow, replay: Replay) -> None:
        self.row = row
        self.replay = replay
        self.is_busy = False  # a page is read, or is being stored
        # Behind the page that was handed to the commits last, of an open one that has more.
        self.handed = replay.next if replay.is_open else INTEGER_MAX
        self.is_last = False  # an open one has read all that there was: the last page is due
        self.holds = False
        self.held_bytes = WAITING_BYTES
        self.ahead: _Ahead | None = None
        self.waits = ""  # why it does not go on, for people
        self.is_called_off = self.is_ending = False
        self.over: Waiters[None] = Waiters()
        self.also: Replay | None = None  # what a node has lost: copied too, or before the rest
        self.widened: Waiters[None] = Waiters()
        self.place: Audience | None = None  # of its copies, held until it is over

    def hold_place(self, audience: Audience) -> None:
        """Keep the set of its receiver alone, also while nothing else has it.

        A replay keeps history from giving way to sets without a place: without one itself it would
        wait for that for ever, and so would they.
        """
        audience.waiting += 1
        self.place = audience

    def let_go_of_place(self) -> None:
        """The replay is over."""
        if self.place is not None:
            self.place.waiting -= 1
            self.place = None


class Replayer:
    """The replayer of a node: at most one replay runs for each receiver.

    `leave_out(row, first, last)`: a replay of what a receiver was left out of is called off, these
    positions are left out again. `has_had(row, position)`: a receiver that starts has had all
    before this position. `store(row, replay)` stores what these have changed, in one group.
    `may_receive(row)`: the patterns of all that its user may receive now; None: whatever it is.
    """

    _logger = Logger()

    def __init__(
        self,
        *,
        log: ILog,
        tail: Tail,
        commits: Commits,
        directory: Directory,
        dispatch: Dispatch,
        leave_out: Callable[[ReceiverRow, int, int], None],
        has_had: Callable[[ReceiverRow, int], None],
        store: Callable[[ReceiverRow, Replay | None], Deferred[None]],
        may_receive: Callable[[ReceiverRow], Sequence[str] | None],
        limits: Limits,
        time: Time,
    ) -> None:
        self._log = log
        self._tail = tail
        self._commits = commits
        self._directory = directory
        self._dispatch = dispatch
        self._leave_out, self._has_had, self._store = leave_out, has_had, store
        self._may_receive = may_receive
        self._limits = limits
        self._time = time
        self._running: dict[int, _Running] = {}  # by receiver number
        self._over: dict[int, Replay] = {}  # the last one of each other receiver
        self._counted: dict[int, Replay] = {}  # of what receivers were left out of
        self._pages = 0  # that are read or stored
        self._page_size = PageSize(
            seconds=SECONDS, first=PAGE_BYTES, least=PAGE_BYTES_LEAST, most=PAGE_BYTES
        )
        self._rests_until = 0.0  # others have the log for themselves until then
        self._rest: IDelayedCall | None = None
        self._aheads = 0  # that are read ahead
        self._holder: _Running | None = None
        self._again: IDelayedCall | None = None
        self._is_started = False
        self._is_stopped = False

    # --- getters

    def of(self, number: int) -> tuple[Replay, str] | None:
        """Return the replay of a receiver, or the last one that it had, and why it waits."""
        running = self._running.get(number)
        if running is not None:
            return running.replay, running.waits
        over = self._over.get(number)
        return None if over is None else (over, "")

    def runs(self, number: int) -> bool:
        """Whether a replay runs for a receiver."""
        return number in self._running

    def history_from(self, row: ReceiverRow) -> int:
        """The position from which on a receiver gets what was stored as history, by its subjects.

        That is, by those that it has when a page is handed to the commits. Behind all there is
        where no page comes any more.
        """
        running = self._running.get(row.number)
        return INTEGER_MAX if running is None or running.is_called_off else running.handed

    # --- beginning and ending

    def load(self, replays: Iterable[Replay]) -> None:
        """Go on with those that the log has, once `start` is called."""
        for replay in replays:
            row = self._directory.numbered(replay.receiver)
            if row is None or row.removed:
                continue
            if replay.is_over:
                self._over[replay.receiver] = replay
                continue
            running = self._running[replay.receiver] = _Running(row, replay)
            self._hold_place(running)
            if replay.is_open:
                self._directory.set_starting(row, True)

    def _hold_place(self, running: _Running) -> None:
        with suppress(LimitReached):  # it is looked for again with its first page
            running.hold_place(self._directory.audience_alone(running.row))

    def start(self) -> None:
        """Copy from now on."""
        self._is_started = True
        self.look()

    def stop(self) -> None:
        """Copy nothing any more; what is being stored is."""
        self._is_stopped = True
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        for running in self._running.values():
            running.let_go_of_place()
            self._drop_ahead(running)
            if not running.is_ending:  # else it is over when that is stored
                self._tell_stopped(running)
        self._let_go()

    def _tell_stopped(self, running: _Running) -> None:
        """Whoever waits for what the next group would have brought hears that none comes."""
        error = LogUnavailable("the node stops")
        running.over.fail(error)
        running.widened.fail(error)

    def begin(
        self,
        row: ReceiverRow,
        replay: Replay,
        store: Callable[[], Deferred[None]] | None = None,
        *,
        place: Audience | None = None,
    ) -> Deferred[None]:
        """Begin a replay; fire when that is stored. Raises `ReplayRuns` where one runs already.

        An open one (`start`) leaves its receiver out of audiences from now on. `store`: stores its
        row, with something more; None: it alone is stored. `place`: the set of its copies, if that
        is known.
        """
        if row.number in self._running:
            raise ReplayRuns(row.name)
        running = self._running[row.number] = _Running(row, replay)
        if place is not None:
            running.hold_place(place)
        self._over.pop(row.number, None)
        if replay.is_open:
            self._directory.set_starting(row, True)
        running.is_busy = True
        stored = self._commits.replay(replay) if store is None else store()
        stored.addCallback(self._begun, running)
        return stored

    def _begun(self, _: None, running: _Running) -> None:
        running.is_busy = False
        replay = running.replay
        self._logger.info(
            "replay to receiver {name} begins: {kind} from position {first}",
            line="replay-begins",
            name=running.row.name,
            kind=replay.kind,
            first=replay.first,
        )

    async def widen(self, row: ReceiverRow, lost: Replay) -> None:
        """Copy what a node has lost; with what is still to be copied for it, if a replay runs.

        Returns once that is stored. Its history (`start`) begins anew: that is all that it had.
        What it was left out of is left out again, for another time. Raises `LimitReached` where
        there is no place for the set of it alone.
        """
        running = self._running.get(row.number)
        if running is None:
            await self.begin(row, lost, place=self._directory.audience_alone(row))
            return
        also = running.also
        running.also = lost if also is None else _both(also, lost)
        waiter = running.widened.wait()
        if self._is_stopped:
            self._tell_stopped(running)
        elif not running.is_busy:
            self._widen(running)
        await waiter

    def _widen(self, running: _Running) -> None:
        row, replay, lost = running.row, running.replay, running.also
        assert lost is not None
        running.also = None
        running.is_busy, running.is_last = True, False
        self._drop_ahead(running)
        self._let_go_if(running)
        if replay.is_open:
            wide = msgspec.structs.replace(replay, next=min(replay.next, replay.first))
            running.handed = wide.next
        elif replay.kind == LEFT_OUT:
            self._leave_out(row, replay.next, replay.end)
            wide = lost
        else:
            wide = _both(replay, lost)
        stored = self._store(row, wide)
        stored.addCallback(lambda _: self._has_widened(running, wide))
        stored.addErrback(lambda failure: self._logger.failure("widening a replay", failure))

    def _has_widened(self, running: _Running, wide: Replay) -> None:
        running.replay, running.is_busy = wide, False
        running.widened.fire(None)

    async def call_off(self, number: int) -> Replay | None:
        """End a replay before its time, once what is under way for it is stored.

        What was copied stays. A receiver that starts is in audiences from then on, and has not had
        the rest of its history. Returns how far it came; None where none runs. Raises
        `LogUnavailable` where the node stops before that: it goes on with the next start.
        """
        running = self._running.get(number)
        if running is None:
            return None
        if self._is_stopped and not running.is_ending:
            raise LogUnavailable("the node stops")
        running.is_called_off = True
        waiter = running.over.wait()
        if not running.is_busy:
            self._end(running)
        await waiter
        return self._over.get(number, running.replay)

    def _end(self, running: _Running) -> None:
        replay, row = running.replay, running.row
        running.is_busy = running.is_ending = True
        self._drop_ahead(running)
        ended = msgspec.structs.replace(replay, end=replay.next - 1)
        if replay.is_open:
            self._directory.set_starting(row, False)
            self._has_had(row, replay.next)
        if replay.kind == LEFT_OUT:
            self._leave_out(row, replay.next, replay.end)
        stored = self._store(row, ended)
        stored.addCallback(lambda _: self._is_over(running, ended))
        stored.addErrback(self._not_ended, running)

    def _not_ended(self, failure: Failure, running: _Running) -> None:
        running.is_ending = False
        if failure.check(LogUnavailable) and self._is_stopped:
            self._tell_stopped(running)
        else:
            self._logger.failure("ending a replay", failure)
            running.over.fail(failure)

    def _is_over(self, running: _Running, replay: Replay) -> None:
        number = running.row.number
        running.replay = replay
        running.let_go_of_place()
        if self._running.get(number) is running:
            del self._running[number]
            self._over[number] = replay
            if running.also is not None:
                self.begin(running.row, running.also).addCallback(running.widened.fire)
                self._hold_place(self._running[number])
        self._logger.info(
            "replay to receiver {name} {ends} at position {next}: {copied} messages copied,"
            " {skipped} were not kept any more",
            line="replay-ends",
            name=running.row.name,
            ends="was called off" if running.is_called_off else "is over",
            next=replay.next,
            copied=replay.copied,
            skipped=replay.skipped,
        )
        running.over.fire(None)

    def forget(self, number: int) -> None:
        """The receiver is removed, and its replay with it."""
        self._over.pop(number, None)
        self._counted.pop(number, None)
        running = self._running.pop(number, None)
        if running is not None:
            running.let_go_of_place()
            self._drop_ahead(running)
            if self._holder is running:
                self._let_go()
            running.over.fire(None)
            running.widened.fire(None)

    # --- page by page

    def look(self) -> None:
        """A group was stored: go on with those whose receivers have room now."""
        if self._running and self._is_started:
            for running in list(self._running.values()):
                if not running.is_busy and not running.waits:
                    try:
                        self._go_on(running)
                    except Exception:  # commits go on whatever is wrong with a replay
                        self._logger.failure("replay to receiver {name}", name=running.row.name)
                        self._wait(running, "a fault of the node's: see its log")

    def _room_for(self, row: ReceiverRow) -> int:
        return max(1, min(WAITING_BYTES, self._dispatch.backlog_bytes_max(row) // BACKLOG_SHARE))

    def _page_bytes(self, room: int) -> int:
        if self._commits.is_live:
            return min(LIVE_PAGE_BYTES, self._page_size.within(LIVE_SECONDS), room)
        return min(self._page_size.now, room)

    def _rests(self) -> bool:
        """Whether others, who wait for groups as well, have the log for themselves just now."""
        left = self._rests_until - self._time.now()
        if left <= 0 or not self._commits.is_live:
            return False
        if self._rest is None:
            self._rest = self._time.clock.callLater(left, self._has_rested)
        return True

    def _has_rested(self) -> None:
        self._rest = None
        self.look()

    def _has_room(self, row: ReceiverRow, size: int) -> bool:
        outlet = self._dispatch.outlets.get(row.number)
        if outlet is None:
            return False
        queued = outlet.progress.queued
        if queued.at_most < size:
            return True
        return queued.at_least < size and queued.look() < size

    def _go_on(self, running: _Running) -> None:
        row, replay = running.row, running.replay
        if (
            running.is_busy
            or self._is_stopped
            or not self._is_started
            or self._running.get(row.number) is not running
        ):
            return
        if running.is_called_off:
            self._end(running)
            return
        if running.also is not None:
            self._widen(running)
            return
        room = self._room_for(row)
        if self._pages >= PAGES or not self._has_room(row, room) or self._rests():
            return  # looked at again after the next group
        if running.is_last:
            if self._holder is None:
                self._hold(running)
            return
        end = min(replay.end, position_of(self._tail.next_number) - 1)
        if replay.next > end:
            running.is_last = True
            self._go_on(running)
            return
        ahead = running.ahead
        if ahead is not None and ahead.next == replay.next:
            running.ahead = None
            self._aheads -= 1
            self._take(running, ahead.reading, ahead.end, ahead.patterns)
        else:
            self._drop_ahead(running)
            self._read(running, end, self._page_bytes(room))

    def _read(self, running: _Running, end: int, size: int) -> None:
        patterns = self._patterns(running.row, running.replay)
        reading = self._ask(running.replay, patterns, end, size)
        self._take(running, reading, end, patterns)

    def _take(
        self, running: _Running, reading: Deferred[Copies], end: int, patterns: _Patterns
    ) -> None:
        running.is_busy = True
        self._pages += 1
        reading.addCallback(self._came, running, end, patterns)
        reading.addErrback(self._stuck, running)

    def _patterns(self, row: ReceiverRow, replay: Replay) -> _Patterns:
        """Return the subjects of which a replay copies messages now: they and users may change.

        A rewind repeats what it had, whatever its subjects are now, but nothing that its user may
        not receive.
        """
        if replay.kind in OF_ACKNOWLEDGED:
            return self._may_receive(row)
        return self._directory.matching(row)

    def _ask(self, replay: Replay, patterns: _Patterns, end: int, size: int) -> Deferred[Copies]:
        asked: Deferred[Copies] = self._log.replay(
            msgspec.structs.replace(replay, end=end),
            patterns,
            size,
            self._limits.max_batch,
        )
        return asked

    def _read_ahead(self, running: _Running, moved: Replay) -> None:
        """Read the page behind one that is being stored: it may be stored when that is."""
        end = min(moved.end, position_of(self._tail.next_number) - 1)
        if self._aheads < PAGES and not running.is_last and moved.next <= end:
            self._aheads += 1
            size = self._page_bytes(self._room_for(running.row))
            patterns = self._patterns(running.row, moved)
            reading = self._ask(moved, patterns, end, size)
            running.ahead = _Ahead(moved.next, end, patterns, reading)

    def _drop_ahead(self, running: _Running) -> None:
        ahead, running.ahead = running.ahead, None
        if ahead is not None:
            self._aheads -= 1
            ahead.reading.addErrback(lambda _: None)  # whatever came of it

    def _came(self, copies: Copies, running: _Running, end: int, patterns: _Patterns) -> None:
        replay, row = running.replay, running.row
        if self._running.get(row.number) is not running or self._is_stopped:
            self._done(running)
            self.look()  # another's page may be read in its place, and no group may come to say so
            return
        if running.is_called_off or running.also is not None:
            self._done(running)
            self._go_on(running)
            return
        if patterns != self._patterns(row, replay):
            # It was read long ago, maybe: rights have changed, or subjects. It is read anew.
            self._done(running)
            self._go_on(running)
            return
        moved = msgspec.structs.replace(
            replay,
            next=copies.next,
            copied=replay.copied + copies.messages,
            skipped=replay.skipped + copies.skipped,
        )
        is_all = copies.next > end
        if replay.is_open and replay.end > end:
            if running.holds and is_all:
                moved = msgspec.structs.replace(moved, end=copies.next - 1)
            elif running.holds:
                running.held_bytes = min(2 * running.held_bytes, HELD_BYTES_MAX)
                running.is_last = False
            else:
                running.is_last = is_all
        if copies.copies:
            audience = self._directory.audience_alone(row)
            for batch in copies.copies:
                batch.audience = audience
        if replay.is_open and moved.is_over:
            # From the group on that has this page: nothing was stored since it was read.
            self._directory.set_starting(row, False)
            self._has_had(row, moved.next)
            self._store(row, None)  # with this page: no group is started before
        running.handed = moved.next if moved.is_open else INTEGER_MAX
        storing = self._commits.page(ReplayPage(replay.next, moved, copies.copies))
        self._let_go_if(running)
        storing.addCallback(self._took, sum([batch.size for batch in copies.copies]))
        storing.addCallback(self._stored, running, moved)
        storing.addErrback(lambda failure: self._logger.failure("after a page", failure))
        self._read_ahead(running, moved)

    def _took(self, outcome: PageOutcome, size: int) -> PageOutcome:
        """The group of a page was stored: note how long that took, and let others go first."""
        seconds = sum(self._commits.lasted)
        self._page_size.took(size, seconds)
        self._rests_until = self._time.now() + REST * seconds
        return outcome

    def _stored(self, outcome: PageOutcome, running: _Running, moved: Replay) -> None:
        self._done(running)
        if self._running.get(running.row.number) is not running:
            return
        if outcome == "stored":
            running.replay = moved
            if moved.is_over:
                self._is_over(running, moved)
                return
        elif isinstance(outcome, LogFull):
            if running.replay.is_open:
                running.handed = running.replay.next
                if moved.is_over:
                    self._directory.set_starting(running.row, True)
            self._wait(running, str(outcome))
        else:
            self._logger.error(
                "a page for receiver {name} was void",
                line="replay-page-void",
                name=running.row.name,
            )
            self._wait(running, "a page was void")

    def _stuck(self, failure: Failure, running: _Running) -> None:
        """The page could not be read, or there is no place for its audience."""
        self._done(running)
        if not failure.check(LimitReached):
            self._logger.failure("replay to receiver {name}", failure, name=running.row.name)
        self._wait(running, failure.getErrorMessage())

    def _done(self, running: _Running) -> None:
        running.is_busy = False
        self._pages -= 1
        self._let_go_if(running)

    def _wait(self, running: _Running, why: str) -> None:
        running.waits = why
        if self._again is None and not self._is_stopped:
            self._again = self._time.clock.callLater(AGAIN, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        for running in self._running.values():
            running.waits = ""
        self.look()

    # --- the last page of a start

    def _hold(self, running: _Running) -> None:
        """Have no group started until the last page is read, and stored with the next."""
        self._holder = running
        running.holds = running.is_busy = True
        self._commits.hold().addCallback(self._is_quiet, running)

    def _is_quiet(self, _: None, running: _Running) -> None:
        running.is_busy = False
        if self._holder is not running:
            return
        end = position_of(self._tail.next_number) - 1
        if running.is_called_off:
            self._let_go()
            self._end(running)
        elif running.replay.next > end:
            running.is_busy = True
            self._pages += 1
            copies = Copies([], running.replay.next, 0, 0, 0)
            self._came(copies, running, end, self._patterns(running.row, running.replay))
        else:
            self._read(running, end, running.held_bytes)

    def _let_go_if(self, running: _Running) -> None:
        if self._holder is running:
            self._let_go()

    def _let_go(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.holds = False
            self._commits.go_on()

    # --- counting

    async def count(self, row: ReceiverRow, replay: Replay, pages_max: int = INTEGER_MAX) -> Replay:
        """Return a replay as it would be when it is over, without copying anything.

        At most so many pages are looked at: where it is not over then, `copied` is a part of all.
        """
        while not replay.is_over and pages_max > 0:
            pages_max -= 1
            found: Copies = await self._log.replay(
                replay, self._patterns(row, replay), PAGE_BYTES, self._limits.max_batch, True
            )
            replay = msgspec.structs.replace(
                replay,
                next=found.next,
                copied=replay.copied + found.messages,
                skipped=replay.skipped + found.skipped,
            )
        return replay

    def left_out_of(self, row: ReceiverRow) -> tuple[int, int] | None:
        """Return the positions that a receiver was left out of while it was suspended, or None.

        While it still is, they end with the newest.
        """
        first, last = row.left_first, row.left_last
        if not first:
            return None
        if not last:
            last = position_of(self._tail.next_number) - 1
        return (first, last) if first <= last else None

    async def count_left_out(self, row: ReceiverRow) -> Replay | None:
        """Return how many messages that were (`copied`), as far as they are counted yet.

        What was counted before is not looked at again.
        """
        span = self.left_out_of(row)
        if span is None:
            self._counted.pop(row.number, None)
            return None
        first, last = span
        known = self._counted.get(row.number)
        if known is None or known.first != first:
            known = Replay(row.number, LEFT_OUT, first, first, last)
        known = msgspec.structs.replace(known, end=max(last, known.next - 1))
        counted = self._counted[row.number] = await self.count(row, known, COUNT_PAGES)
        return counted
