"""One receiver's delivery: its backlog, the flight that it has while connected, its batches' way.

An outlet is *following* while it is fed by what was just stored; one that lags pages from the
tail, or from the log, until it has caught up. It never holds more than its windows.

What became of the messages, and how the log is told, lives in `node.outlet_progress`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from msgservice.clock import Time
from msgservice.connection import Connection
from msgservice.core.backlog import Backlog
from msgservice.core.backoff import delay_of
from msgservice.core.flight import Flight
from msgservice.core.frames import Ack, Frame, Nack, Transfer
from msgservice.core.lanes import lane_of
from msgservice.core.runs import Run
from msgservice.interfaces import ILog
from msgservice.limits import (
    BATCH_OVERHEAD,
    INTEGER_MAX,
    RESUME_RANGES_TOTAL_MAX,
    WINDOW_MESSAGES_MAX,
    Limits,
    Rate,
)
from msgservice.message import Action, Status
from msgservice.node.commits import Commits
from msgservice.node.outlet_progress import OutletProgress
from msgservice.node.pace import Pace, RateLimits
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.records import Batch, ExceptionRow, ReceiverRow, Resume

NOTES_MAX = 100
# What one receiver is sent in one turn of the reactor; others wait for that turn.
TURN_BYTES = 256 * 1024
# One page of a receiver that lags. The next page is read while this one is on its way.
PAGE_BYTES = 4 * 1024 * 1024
PAGE_MESSAGES = 16_384
UNLOAD_AFTER = 30.0  # seconds without a connection before what is loaded is let go


class Outlet(OutletProgress):
    """The delivery to one receiver. There is one for each receiver that the directory knows."""

    _logger = Logger()

    def __init__(
        self,
        row: ReceiverRow,
        exceptions: Sequence[ExceptionRow],
        *,
        log: ILog,
        tail: Tail,
        commits: Commits,
        tracker: Tracker,
        time: Time,
        limits: Limits,
        retry_delay: Callable[[int], float],
        dead_stored: Callable[[OutletProgress], None],
        pace: Pace | None = None,
    ) -> None:
        super().__init__(row, commits=commits, tracker=tracker, time=time, dead_stored=dead_stored)
        self.pace = pace  # None: nothing limits its rate
        self.connection: Connection | None = None
        self.following = False
        self.audiences: set[int] = set()  # numbers of those it is in
        self.notes: dict[int, tuple[int, str]] = {}  # NOTE: sequence -> attempts, reason
        self._log = log
        self._tail = tail
        self._limits = limits
        self._retry_delay = retry_delay
        self._fed: deque[Batch] = deque()
        self._fed_bytes = 0
        self._reading = False
        self._busy = False  # something is in flight
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._pumping: IDelayedCall | None = None
        self._unload: IDelayedCall | None = None
        self._acked_to = 0  # the highest position acknowledged since the start
        self.backlog = self._make_backlog(exceptions)
        self.flight: Flight | None = None  # of the connection

    def _make_backlog(self, exceptions: Sequence[ExceptionRow]) -> Backlog:
        row, limits = self.row, self._limits
        backlog = Backlog(
            ordered=row.order == "strict",
            cursor=row.cursor,
            retry_delay=self._retry_delay,
            max_attempts=limits.max_attempts,
            behind_max=limits.exceptions,
            behind_bytes_max=limits.window_bytes,
        )
        settled, tried = [], {}
        now, wall = self._time.now(), self._time.wall()
        for one in exceptions:
            if one.status.final:
                settled.append((one.first, one.last))
                if one.status is Status.ACKNOWLEDGED:
                    self._acked.add(one.first, one.last)
            else:
                pause = min(max(0, one.next_at - wall) / 1000, limits.retry_delay_max)
                tried[one.first, one.last] = (one.attempts, now + pause)
        backlog.restore(settled, tried)
        return backlog

    # --- getters

    @property
    def resume_ranges(self) -> int:
        """The ranges of its RESUME that are kept: what is known, and gaps in what was under way.

        It may have taken more, in a window that was larger when it was sent that: this comes to it
        again, and it drops it.
        """
        limits, row = self._limits, self.row
        known = max(limits.exceptions, len(self.backlog.above))  # the limit may have been higher
        return known + max(limits.window_messages, row.window_messages or 0) // 2 + 1

    @property
    def resume_ranges_max(self) -> int:
        """The ranges of its RESUME that it may have in the largest window of all."""
        known = max(RESUME_RANGES_TOTAL_MAX, len(self.backlog.above))
        return known + WINDOW_MESSAGES_MAX // 2 + 1

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self.backlog.in_flight.messages

    @property
    def caught_up(self) -> bool:
        """Whether it is following, and all it was fed is settled and on its way to the log."""
        return self._all_answered and not self._new and not self._storing

    @property
    def _all_answered(self) -> bool:
        """Whether it is following, and nothing is to be sent or unanswered."""
        return self.following and not self._fed and self.backlog.idle

    def in_flight(self, position: int) -> bool:
        """Whether this message was sent and is not answered."""
        return self.backlog.in_flight_at(position)

    def set_order(self, order: str) -> None:
        """Another order from now on; what is loaded is loaded again. Not while connected."""
        assert self.connection is None
        self.backlog.unload()
        self.backlog.ordered = order == "strict"

    # --- the connection

    def attach(self, connection: Connection, resume: Resume, inbox: str | None) -> None:
        """A session with this receiver is open; `resume`: what it has taken."""
        assert self.connection is None
        if self._unload is not None:
            self._unload.cancel()
            self._unload = None
        self._check_memory(resume, inbox)
        self.connection = connection
        peer = connection.session.peer
        assert peer is not None
        options, row, limits = peer.options, self.row, self._limits
        self.backlog.receive_resume(resume.floor, resume.ranges)
        self.flight = Flight(
            self.backlog,
            own_window=(
                row.window_messages or limits.window_messages,
                row.window_bytes or limits.window_bytes,
            ),
            window=options.window,
            batch_max=min(options.max_batch or INTEGER_MAX, limits.max_batch),
        )
        self.following = False
        self._drain()
        self.pump()

    def hear(self, resume: Resume) -> None:
        """A RESUME of a receiver that is paused: what it has taken counts, and nothing is sent."""
        self.backlog.receive_resume(resume.floor, resume.ranges)
        self._drain()

    def _check_memory(self, resume: Resume, inbox: str | None) -> None:
        """SEMANTICS 6: a stored inbox that has forgotten what it had taken is reported."""
        highest = max([resume.floor - 1, *(last for _, last in resume.ranges)])
        if inbox is not None and inbox == self.row.inbox and highest < self._acked_to:
            self._logger.error(
                "receiver {name} has forgotten positions {first} to {last}, which it had"
                " acknowledged: its inbox went back in time; they are not sent again",
                name=self.name,
                first=highest + 1,
                last=self._acked_to,
            )
        if inbox != self.row.inbox:
            self.row.inbox = inbox
            self._inbox_changed = True
            self._commits.progress(self)

    def detach(self, reason: str, *, lost: bool) -> None:
        """The connection has gone; `lost`: without anybody's wish (SEMANTICS 14)."""
        flight, self.flight = self.flight, None
        self.connection = None
        self.following = False
        self._fed.clear()
        self._fed_bytes = 0
        self.last_error = reason
        if flight is not None:
            flight.end(self._time.now(), lost=lost)
        if self.pace is not None:
            self.pace.cancel()
        self._drain()
        self._note_busy()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unload is None:
            self._unload = self._time.clock.callLater(UNLOAD_AFTER, self._unload_now)

    def _unload_now(self) -> None:
        self._unload = None
        if self.connection is None:
            self.backlog.unload()

    def stop(self) -> None:
        """Cancel the timer: none is left behind."""
        for timer in (self._timer, self._unload, self._pumping):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._unload = self._pumping = None

    # --- what the receiver answers

    def received(self, frame: Frame) -> None:
        """An ACK or a NACK; `turn_ended` follows. Raises `NeverSent`."""
        flight = self.flight
        assert flight is not None
        if isinstance(frame, Ack):
            flight.receive_acks(frame.ranges)
            for _, last in frame.ranges:
                self._acked_to = max(self._acked_to, last)
        else:
            assert isinstance(frame, Nack)
            self.last_error = frame.reason
            delay = frame.delay / 1000
            if delay > self._limits.asked_delay_max:
                delay = self._limits.asked_delay_max
                self.last_error = (
                    f"{frame.reason} (asked for {frame.delay / 1000:.0f} s, gets asked_delay_max ="
                    f" {delay:g} s)"
                )
            flight.receive_nack(
                frame.first,
                frame.last,
                Action(frame.action),
                delay,
                frame.reason,
                self._time.now(),
            )

    def note(self, sequence: int, attempts: int, reason: str) -> None:
        """The receiver tries by itself (PROTOCOL: NOTE); for people."""
        if len(self.notes) >= NOTES_MAX:
            self.notes.pop(next(iter(self.notes)))
        self.notes[sequence] = (attempts, reason)

    def turn_ended(self) -> None:
        """The answers of one read were all taken."""
        self._drain()
        if not self._all_answered:
            self.pump()
        self._note_busy()

    def _note_busy(self) -> None:
        busy = self.backlog.in_flight.messages > 0
        if busy is not self._busy:
            self._busy = busy
            self._commits.expect(self, busy)

    # --- what goes out

    def feed(self, batch: Batch) -> None:
        """A batch for this receiver was just stored. Only while following; `pump` later."""
        flight = self.flight
        assert flight is not None
        if not self._fed and flight.wants:
            self._offer(batch)
            return
        self._fed.append(batch)
        self._fed_bytes += batch.size + BATCH_OVERHEAD
        if self._fed_bytes > 2 * flight.window_bytes:
            # It lags: the tail has these, and the log after that.
            self.following = False
            self._fed.clear()
            self._fed_bytes = 0

    def pump(self) -> None:
        """Send runs, as far as window and rate limit allow."""
        connection, flight = self.connection, self.flight
        if connection is None or flight is None or not connection.is_open:
            return
        backlog = self.backlog
        in_flight = backlog.in_flight
        self._fill(flight)
        before = in_flight.size
        transfers = (
            flight.take_transfers(self._time.now(), None, TURN_BYTES)
            if self.pace is None
            else self._take_paced(flight, self.pace)
        )
        larger = flight.larger
        if larger is not None:
            self.last_error = (
                f"position {larger.first} waits: a message of {larger.size} bytes,"
                f" and the receiver takes {flight.batch_max}"
            )
        if transfers:
            connection.send_now(transfers)
            if in_flight.size - before >= TURN_BYTES:
                self._pump_later()
            else:
                self._fill(flight)
        if backlog.has_settled:
            self._drain()  # loading settles what the receiver's RESUME has taken
        self._note_busy()
        self._rearm(flight)

    def _pump_later(self) -> None:
        if self._pumping is None:
            self._pumping = self._time.clock.callLater(0, self._pump_again)

    def _pump_again(self) -> None:
        self._pumping = None
        self.pump()

    def _take_paced(self, flight: Flight, pace: Pace) -> list[Transfer]:
        ready = self.backlog.ready
        pace.begin(ready.messages, ready.size)
        transfers = flight.take_transfers(self._time.now(), pace.allow)
        pace.end()
        return transfers

    def _fill(self, flight: Flight) -> None:
        """Load the batches that the next window has room for."""
        backlog, fed = self.backlog, self._fed
        if self.following and not fed:
            return
        while fed and flight.wants:
            batch = fed.popleft()
            self._fed_bytes -= batch.size + BATCH_OVERHEAD
            self._offer(batch)
        if self.following or fed:
            return
        tail = self._tail
        while flight.wants:
            page = tail.after(
                backlog.loaded_to,
                self.audiences,
                # A window that contains 0 takes one run: a page of nothing would be read for ever.
                max(1, flight.window_bytes),
                max(1, flight.window_messages),
            )
            if page is None:
                self._read()
                return
            batches, looked = page
            for batch in batches:
                self._offer(batch)
            backlog.skip_to(looked)
            if looked >= (tail.next_number << 16) - 1:
                self.following = True
                return

    def _offer(self, batch: Batch) -> None:
        backlog = self.backlog
        first, last = batch.first, batch.last
        if last <= backlog.loaded_to:
            return
        run = Run(
            first,
            batch.count,
            batch.subject,
            lane_of(batch.origin, batch.sender, batch.subject) if backlog.ordered else None,
            batch.messages,
            batch.size,
            backlog.loaded_to,
            batch,
            None,
            batch.flags,
            batch.origin,
        )
        if first <= backlog.loaded_to:  # the cursor stands inside this batch
            backlog.offer_rest(run)
        else:
            backlog.offer(run)

    def _read(self) -> None:
        """Page from the log what the tail no longer has."""
        if self._reading:
            return
        self._reading = True
        loaded_to = self.backlog.loaded_to
        # What has a lower number than this is stored, so that the reader sees it, and has one of
        # these audiences. Behind it there may be another by the time that the page is read.
        end = (self._tail.next_number << 16) - 1
        reading = self._log.read(tuple(self.audiences), loaded_to, end, PAGE_BYTES, PAGE_MESSAGES)
        asked = (self.connection, loaded_to, end)
        reading.addCallback(self._have_read, asked).addErrback(self._read_failed)

    def _have_read(self, batches: list[Batch], asked: tuple[Connection | None, int, int]) -> None:
        self._reading = False
        connection, loaded_to, end = asked
        if self.connection is not connection or self.backlog.loaded_to != loaded_to:
            self.pump()
            return
        for batch in batches:
            self._offer(batch)
        if not batches:
            self.backlog.skip_to(end)
        self.pump()

    def _read_failed(self, failure: Any) -> None:
        self._reading = False
        self.last_error = failure.getErrorMessage()
        self._logger.failure("reading the log for {name}", failure, name=self.name)
        self._rearm_at(self._time.now() + 1.0)

    def _rearm(self, flight: Flight) -> None:
        # Who waits for room at its rate sends nothing before, retries neither.
        due = self.pace.next_deadline() if self.pace is not None else None
        if due is None:
            due = flight.next_deadline()
        if due is not None:
            self._rearm_at(due)

    def _rearm_at(self, due: float) -> None:
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._time.clock.callLater(max(0.001, due - self._time.now()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.pump()


class Outlets:
    """Makes the outlets of a node. `rates`: what each may get, by its name; `total`: all of them.

    `dead_stored(outlet)` is called when new dead letters of one are on disk.
    """

    def __init__(
        self,
        *,
        log: ILog,
        tail: Tail,
        commits: Commits,
        tracker: Tracker,
        time: Time,
        limits: Limits,
        rates: Mapping[str, Rate],
        total: RateLimits,
        rng: Callable[[], float],
        dead_stored: Callable[[OutletProgress], None],
    ) -> None:
        self.rates = dict(rates)
        self._log = log
        self._tail = tail
        self._commits = commits
        self._tracker = tracker
        self._time = time
        self._limits = limits
        self._total = total
        self._rng = rng
        self._dead_stored = dead_stored

    def make(self, row: ReceiverRow, exceptions: Sequence[ExceptionRow] = ()) -> Outlet:
        """Return the outlet of a receiver. `exceptions`: what the log has beside its cursor."""
        return Outlet(
            row,
            exceptions,
            log=self._log,
            tail=self._tail,
            commits=self._commits,
            tracker=self._tracker,
            time=self._time,
            limits=self._limits,
            retry_delay=self._retry_delay,
            dead_stored=self._dead_stored,
            pace=self._total.pace(self.rates.get(row.name)),
        )

    def _retry_delay(self, attempts: int) -> float:
        return delay_of(
            attempts,
            delay_min=self._limits.retry_delay_min,
            delay_max=self._limits.retry_delay_max,
            # Half of it is certain: a failed handler is not called again at once.
            jitter=0.5 + self._rng() / 2,
        )
