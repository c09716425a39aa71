"""One receiver's delivery: what is sent on the connection that it has, and what it answers.

What lasts is its backlog, what became of its messages (`node.outlet_progress`) and the supply with
batches (`node.supply`). With a connection comes a flight, and goes with it: without one, nothing is
sent, and what was loaded is let go after a while. So there is one timer: with a connection for the
next time to send, without one for unloading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.connection import Connection
from msgservice.core import features
from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.frames import Ack, Frame, Nack, Transfer
from msgservice.core.ranges import Range
from msgservice.core.reasons import first_line
from msgservice.core.refusal import Refusal, refusal_in
from msgservice.core.runs import Run
from msgservice.core.shared import SharedBacklog
from msgservice.interfaces import ILog
from msgservice.limits import (
    INTEGER_MAX,
    RESUME_RANGES_TOTAL_MAX,
    SENDER_KNOWN_SECONDS,
    WINDOW_MESSAGES_MAX,
    Limits,
)
from msgservice.message import Action, Status
from msgservice.node.commits import FEW_MESSAGES, Commits
from msgservice.node.due import Due
from msgservice.node.loaded_bytes import LoadedBytes
from msgservice.node.outlet_progress import Decreed, Letters, OutletProgress, Promising
from msgservice.node.pace import Pace
from msgservice.node.stored_bytes import QueuedBytes, StoredBytes
from msgservice.node.stretches import Stretch
from msgservice.node.supply import FOLLOWS, TURN_RUNS, PageRest, State, Supply, UpTo
from msgservice.node.tail import Tail
from msgservice.node.tracker import Tracker
from msgservice.receiver_options import STRICT, ReceiverOptions
from msgservice.records import ExceptionRow, ReceiverRow, Resume, position_of
from msgservice.transport.addresses import is_node
from msgservice.waiters import Waiters

NOTES_MAX = 100
# What one receiver is sent in one turn of the reactor; others wait for that turn.
TURN_BYTES = 256 * 1024
# The runs that its answers of one turn are about; of more of them the rest waits for the next.
TURN_ANSWERS = 2048
READ_AGAIN = 1.0  # seconds after a page of the log that could not be read
SHORT_AGAIN = 1.0  # seconds until who has no room, and nothing to be answered, looks for it again
FEW, MANY = 1, 2  # messages in flight, as the commits expect answers about them
# Seconds for which that are many, though most or all of them were answered: more follow, mostly.
MANY_FOR = 0.05
UNLOAD_AFTER = 30.0  # seconds without a connection before what is loaded is let go


class Seat(Protocol):
    """The place of a connection in the delivery to its receiver: where its answers go."""

    @property
    def outlet(self) -> Outlet:
        """The delivery to the receiver."""

    @property
    def takes(self) -> bool:
        """Whether an answer is heard now, and what comes behind it; else in a later turn."""

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight on it."""

    def received(self, frame: Frame) -> None:
        """An ACK or a NACK; `turn_ended` follows. Raises `NeverSent`."""

    def note(self, sequence: int, attempts: int, reason: str) -> None:
        """The receiver tries by itself; for people."""

    def turn_ended(self) -> None:
        """The answers of one read were all taken, or as many as one turn takes."""

    def stored(self) -> Deferred[None]:
        """Fire when all that was answered so far is on disk. Cancelling it ends the wait only."""

    def pump(self) -> None:
        """Send runs, as far as window and rate limit allow."""

    def detach(self, reason: str, *, lost: bool) -> None:
        """The connection has gone; `lost`: without anybody's wish (SEMANTICS 14)."""


class Outlet:
    """The delivery to one receiver. There is one for each receiver that the directory knows."""

    __slots__ = (
        "_acked_to",
        "_answered",
        "_awaited",
        "_commits",
        "_due",
        "_going_on",
        "_has_more",
        "_heard",
        "_is_hearing",
        "_knows_from",
        "_last_nack",
        "_limits",
        "_many_at",
        "_open",
        "_retry_delay",
        "_tail_number",
        "_time",
        "_timer",
        "_timer_due",
        "_tracker",
        "_unread",
        "_waits_since",
        "_was_seated",
        "audiences",
        "backlog",
        "connection",
        "flight",
        "full_since",
        "is_going",
        "is_sealed",
        "last_error",
        "notes",
        "pace",
        "paused_since",
        "progress",
        "row",
        "since",
        "supply",
    )

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
        promises: Promising,
        time: Time,
        limits: Limits,
        retry_delay: Callable[[int, ReceiverOptions], float],
        letters: Letters,
        stored: StoredBytes,
        loaded: LoadedBytes,
        due: Due,
        pace: Pace | None = None,
    ) -> None:
        self.row = row
        self.pace = pace  # None: nothing limits its rate
        self.connection: Connection | None = None
        self.is_going = False  # its removal is not on disk yet
        self.is_sealed = False  # … and was handed over: nothing that is settled now would be stored
        self.since = time.now()  # when it got or lost its connection last
        # When it was paused, and when so much waited that more was refused, or left out, last.
        self.paused_since = self.full_since = self.since
        self._waits_since = self.since  # … and when something began to wait for its next attempt
        self.flight: Flight | None = None  # of the connection
        self.audiences: set[int] = set()  # numbers of those it is in
        self.notes: dict[int, tuple[int, str]] = {}  # NOTE: sequence -> attempts, reason
        self.last_error = ""  # why it has no connection, or gets nothing
        self._last_nack = ""  # matters as long as something waits to be tried again
        self._unread = ""  # why the log could not be read, until it could
        self._commits = commits
        self._tracker = tracker
        self._time = time
        self._due = due
        self._limits = limits
        self._retry_delay = retry_delay
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._has_more = False  # to load or to send, when others had their turn: the timer's
        self._going_on: IDelayedCall | None = None  # with a RESUME, or an answer, of a turn before
        self._answered = 0  # runs that the answers of this turn were about
        self._awaited = 0  # the commits know that answers about none are due, `FEW` or `MANY`
        self._many_at = -math.inf  # when there were `MANY` last
        self._acked_to = 0  # the highest position acknowledged since the start
        self._was_seated = False  # since the start
        self._is_hearing = False  # what a RESUME names is loaded, without a connection
        self._heard: Waiters[None] = Waiters()
        self._knows_from = time.now() + limits.link_delay_max + limits.hello_timeout
        self._tail_number = tail.next_number  # when it was made: at the start, of most
        self.backlog = self._make_backlog(exceptions)
        self._open = self.backlog.open_by_first
        self.progress = OutletProgress(
            self,
            self.backlog,
            [(one.first, one.last) for one in exceptions if one.status is Status.ACKNOWLEDGED],
            QueuedBytes(stored, self.audiences),
            commits=commits,
            tracker=tracker,
            promises=promises,
            time=time,
            letters=letters,
        )
        self.supply = Supply(
            self.backlog,
            self.audiences,
            loaded=loaded,
            tail=tail,
            log=log,
            rest=PageRest(time, lambda: commits.is_lone),
            came=self._page_came,
            failed=self._page_failed,
            fault=self.fault,
        )

    def _make_backlog(self, exceptions: Sequence[ExceptionRow]) -> Backlog:
        row, limits = self.row, self._limits
        backlog = (SharedBacklog if row.options.shared else Backlog)(
            ordered=row.options.order == STRICT,
            cursor=row.cursor,
            retry_delay=lambda attempts: self._retry_delay(attempts, self.row.options),
            max_attempts=row.options.max_attempts or limits.max_attempts,
            max_losses=limits.max_losses,
            outlives_max=row.options.retry_delay_max or limits.retry_delay_max,
            behind_max=limits.exceptions,
            behind_bytes_max=limits.window_bytes,
            keeps_letters=True,
            letters_room=lambda run, refusal: self.progress.letters_room(run, refusal),
        )
        settled, tried = [], {}
        now, wall = self._time.now(), self._time.wall()
        for one in exceptions:
            if one.status.final:
                settled.append((one.first, one.last))
            else:
                longest = row.options.retry_delay_max or limits.retry_delay_max
                pause = min(max(0, one.next_at - wall) / 1000, longest)
                tried[one.first, one.last] = (one.attempts, now + pause, one.reason)
        backlog.restore(settled, tried)
        backlog.stored_before = position_of(self._tail_number) - 1
        return backlog

    # --- getters

    @property
    def name(self) -> str:
        """The receiver's name."""
        return self.row.name

    @property
    def is_node(self) -> bool:
        """Whether the receiver is a node, to which messages are passed on."""
        return is_node(self.row.address)

    @property
    def resume_ranges(self) -> int:
        """The ranges of its RESUME that are kept: what is known, and gaps in what was under way.

        It may have taken more, in a window that was larger when it was sent that: this comes to it
        again, and it drops it.
        """
        limits, row = self._limits, self.row
        known = max(limits.exceptions, len(self.backlog.above))  # the limit may have been higher
        return known + max(limits.window_messages, row.options.window_messages or 0) // 2 + 1

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
        """Whether the receiver follows, and all it was fed is settled and stored."""
        return self._all_answered and self.progress.is_stored

    @property
    def _all_answered(self) -> bool:
        """Whether the receiver follows, and nothing is to be sent or unanswered."""
        supply = self.supply
        return supply.state is FOLLOWS and not supply.fed and not self._open

    @property
    def trouble(self) -> str:
        """Why the receiver does not get what waits for it, for people; empty where it is well."""
        flight = self.flight
        larger = flight.larger if flight is not None else None
        if flight is not None and larger is not None:
            return (
                f"position {larger.first} waits: a message of {larger.size} bytes,"
                f" and the receiver takes {flight.batch_max}"
            )
        waiting = self.backlog.first_waiting
        if waiting is not None and not waiting.attempts and self._has_left:
            waiting = None  # it takes that when it comes again, as all else
        waits = "" if waiting is None else self._last_nack or first_line(waiting.reason)
        if waits and not self.backlog.has_room:
            waits += (
                "; its other lanes wait as well: no more is loaded for it at exceptions ="
                f" {self.backlog.behind_max} or window_bytes = {self.backlog.behind_bytes_max}"
            )
        elif waits and self._waits_for_room:
            waits += (
                "; its other lanes wait as well: no more is loaded for it while others hold what"
                f" is left of loaded_bytes = {self._limits.loaded_bytes}"
            )
        if self.progress.letters_wait:
            return "the log could not store a dead letter yet: its lane waits for that"
        return self._unread or self.last_error or waits

    @property
    def _has_left(self) -> bool:
        """Whether its connection has ended with a goodbye, and it was not failing then."""
        return self._was_seated and self.connection is None and not self.last_error

    @property
    def _waits_for_room(self) -> bool:
        """Whether no more is loaded at `loaded_bytes`, and no answer will change that.

        What it holds itself waits for its next attempt, or for a side that takes larger messages.
        """
        backlog = self.backlog
        return self.supply.is_short and not backlog.in_flight.runs and not backlog.ready.runs

    def in_flight(self, position: int) -> bool:
        """Whether this message was sent and is not answered."""
        return self.backlog.in_flight_at(position)

    @property
    def failing_since(self) -> float | None:
        """When something began to wait for its next attempt; None where nothing does."""
        return None if self.backlog.first_waiting is None else self._waits_since

    def _may_wait(self, failing: Sequence[Run]) -> None:
        """These may have to be tried again: note when, unless something was before they were."""
        if self.backlog.first_waiting is None and not any(r.attempts or r.laters for r in failing):
            self._waits_since = self._time.now()

    @property
    def is_probing(self) -> bool:
        """Whether it gets one message at a time, since the last connections were lost with some."""
        return self.backlog.limit.most == 1

    def is_paused_now(self, reason: str) -> None:
        """Note that the receiver gets nothing from now on, for this reason."""
        self.last_error, self.paused_since = reason, self._time.now()

    def is_full_now(self) -> None:
        """Note that so much waits from now on that more is refused, or the receiver is left out."""
        self.full_since = self._time.now()

    def options_changed(self) -> None:
        """The row has other options from now on."""
        options, limits, backlog = self.row.options, self._limits, self.backlog
        backlog.max_attempts = options.max_attempts or limits.max_attempts
        backlog.limit.outlives_max = options.retry_delay_max or limits.retry_delay_max

    def set_order(self, order: str) -> None:
        """Another order from now on; what is loaded is loaded again. Not while connected."""
        assert self.connection is None
        self._end_hearing()
        self._unload_now()
        self.backlog.ordered = order == STRICT

    # --- the connection

    def attach(self, connection: Connection, resume: Resume, inbox: str | None) -> Seat:
        """A session with this receiver is open; `resume`: what it has taken.

        Returns where its answers go, and what ends with it.
        """
        assert self.connection is None
        self._cancel_timer()
        self._check_memory(resume, inbox)
        self._end_hearing()
        self._was_seated = True
        self.connection = connection
        self.since = self._time.now()
        self.last_error = ""
        self._knows_from = self.since
        self._receive_resume(resume)
        self.flight = self._make_flight(connection)
        self.supply.passes_on = self.is_node
        self.supply.attach(self.flight)
        self.progress.gather()
        self.pump()
        return self

    @property
    def outlet(self) -> Outlet:
        """See `Seat`."""
        return self

    @property
    def workers(self) -> int:
        """The number of its connections that are fed."""
        return 0 if self.connection is None else 1

    def _make_flight(self, connection: Connection) -> Flight:
        return Flight(self.backlog, **self._flight_options(connection))

    def _flight_options(self, connection: Connection) -> dict[str, Any]:
        peer = connection.session.peer_hello
        assert peer is not None
        options, row, limits = peer.options, self.row, self._limits
        return {
            "own_window": (
                row.options.window_messages or limits.window_messages,
                row.options.window_bytes or limits.window_bytes,
            ),
            "window": options.window,
            "batch_max": min(options.max_batch or INTEGER_MAX, limits.max_batch),
            "due": self._due,
            "tells_facts": features.FACTS in connection.session.peer_features,
            "now": self._time.now(),
        }

    def _receive_resume(self, resume: Resume) -> None:
        backlog = self.backlog
        loaded = backlog.entries(0, _highest(resume))
        if loaded and max(loaded, len(resume.ranges)) > TURN_ANSWERS:
            # What is loaded settles at once; what is loaded later, a part in each turn.
            self._unload_now()
        backlog.receive_resume(resume.floor, resume.ranges)

    # --- what a receiver that is paused says to have taken

    def hear(self, connection: Connection, resume: Resume) -> None:
        """A RESUME of a receiver that is paused: what it has taken counts, and nothing is sent.

        What is not loaded settles as it is: that far, and as far as a connection would go on.
        """
        self._end_hearing()
        backlog = self.backlog
        self._knows_from = self._time.now()
        self._receive_resume(resume)
        self._is_hearing = True
        self.supply.attach(UpTo(self._make_flight(connection), backlog, _highest(resume)))
        self._hear_on()

    def _hear_on(self) -> None:
        self._going_on = None
        has_more = self.supply.fill()
        self.progress.gather()
        if has_more:
            self._going_on = self._time.clock.callLater(0, self._hear_on)
        elif not self.supply.is_reading:
            self._heard_all()

    def _heard_all(self) -> None:
        self._end_hearing()
        if self._timer is None:  # nothing was loaded before, or it was to be unloaded meanwhile
            self._unload_now()

    def _end_hearing(self) -> None:
        if self._is_hearing:
            self._is_hearing = False
            self._do_not_go_on()
            self.supply.detach()
            self._heard.fire(None)

    async def all_stored(self) -> None:
        """Return when all that the receiver was heard to have taken or answered is on disk."""
        while self._is_hearing:
            await self._heard.wait()
        await self.progress.all_stored()

    def forgotten(self, resume: Resume, log_id: str) -> list[Range]:
        """Return what a node may have taken, and does not have: positions, rising.

        Its log went back, or is another one (`log_id`): then what lies up to the cursor is looked
        at, as it is at the first connection since the start. A log that is the same, and knows
        nothing of this sender, has forgotten who was away, if that was for long. It may have what
        was stored before something that it has lost, and lies above it: of another lane.
        """
        before, highest = self.row.inbox, _highest(resume)
        if not before:
            return []
        was_long_away = not self._was_seated or (
            self._time.now() - self.since >= SENDER_KNOWN_SECONDS
        )
        if before == log_id and not highest and was_long_away:
            return []
        last, above = self._acked_to, self.backlog.above
        if before != log_id or not self._was_seated:
            last = max(last, self.row.cursor, above.last or 0)
        missing: list[Range] = []
        following = resume.floor
        for low, high in resume.ranges:
            missing.append((following, low - 1))
            following = max(following, high + 1)
        if len(missing) >= self.resume_ranges:
            missing.pop()  # of so many, those before the last were not kept
        missing.append((following, last))
        cursor = self.backlog.cursor
        found: list[Range] = []
        for first, end in missing:
            # What is not settled here is sent as it is.
            end = min(end, last)
            if first <= min(end, cursor):
                found.append((first, min(end, cursor)))
            if max(first, cursor + 1) <= end:
                found += above.within(max(first, cursor + 1), end)
        return found

    def is_empty_anew(self, resume: Resume, log_id: str) -> bool:
        """Whether a node has another log than before, which has nothing of what was sent to it."""
        return bool(self.row.inbox) and self.row.inbox != log_id and not _highest(resume)

    def begins_anew(self) -> None:
        """The node has another incarnation towards it: of that, nothing was acknowledged yet."""
        self._acked_to, self._was_seated = 0, False

    # --- the end of a connection

    def _check_memory(self, resume: Resume, inbox: str | None) -> None:
        """SEMANTICS 6: a stored inbox that has forgotten what it had taken is reported."""
        highest = _highest(resume)
        is_known = inbox is not None and inbox == self.row.inbox
        if is_known and highest < self._acked_to and not self.is_node:
            self._logger.error(
                "receiver {name} has forgotten positions {first} to {last}, which it had"
                " acknowledged: its inbox went back in time; they are not sent again",
                line="receiver-forgot",
                name=self.name,
                first=highest + 1,
                last=self._acked_to,
            )
        if inbox != self.row.inbox:
            self.progress.inbox_is(inbox)

    def detach(self, reason: str, *, lost: bool) -> None:
        """The connection has gone; `lost`: without anybody's wish (SEMANTICS 14)."""
        flight, self.flight = self.flight, None
        self.connection = None
        self.since = self._time.now()
        self.last_error = reason
        self._answered = 0
        self._do_not_go_on()  # what is left of an answer was never heard
        if flight is not None:
            self.supply.detach()
            self._may_wait(self.backlog.runs_in_flight())
            flight.end(self._time.now(), lost=lost)
            if not self._due.is_held:
                self.backlog.expire_all(self._due.now())  # a pass left it to its answer
        if self.pace is not None:
            self.pace.cancel()
        self.progress.gather()
        self._many_at = -math.inf
        self._expect_answers()
        self._cancel_timer()
        # Where room is short, nothing is kept for who may come back soon.
        delay = UNLOAD_AFTER if self.supply.look() > 0 else 0.0
        self._timer = self._time.clock.callLater(delay, self._unload)

    def _unload(self) -> None:
        self._timer = None
        if not self._is_hearing:
            self._unload_now()

    def _unload_now(self) -> None:
        self.backlog.unload()
        self.supply.look()

    def stop(self) -> None:
        """Cancel the timers: none is left behind, and nothing counts as loaded."""
        self.supply.leave()
        self._cancel_timer()
        self._do_not_go_on()

    def _do_not_go_on(self) -> None:
        if self._going_on is not None:
            self._going_on.cancel()
            self._going_on = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._has_more = False

    def fault(self, failure: Failure) -> None:
        """A call of this object raised `failure`: its connection ends, and no other.

        Senders are told anew what they may have missed by it.
        """
        connection = self.connection
        self._end_hearing()
        if connection is not None:
            connection.fault(f"receiver {self.name!r}", failure)
        else:
            self._logger.failure("telling receiver {name} failed", failure, name=self.name)
        self._tracker.tell_all_again()

    # --- what the receiver answers

    @property
    def takes(self) -> bool:
        """Whether an answer is heard now, and what comes behind it; else in a later turn."""
        flight = self.flight
        return flight is None or (flight.rest is None and self._answered < TURN_ANSWERS)

    def received(self, frame: Frame) -> None:
        """An ACK or a NACK; `turn_ended` follows. Raises `NeverSent`."""
        flight, answered = self.flight, self._answered
        assert flight is not None
        if answered or type(frame) is not Ack:
            self._answered = answered + self._hear_answer(flight, frame, answered)
            return
        ranges = frame.ranges  # as `_hear_answer`: of most reads one ACK is all
        self._answered = flight.receive_acks(ranges, TURN_ANSWERS)
        if ranges and ranges[-1][1] > self._acked_to:
            self._acked_to = ranges[-1][1]

    def _hear_answer(self, flight: Flight, frame: Frame, answered: int) -> int:
        """Return how many runs an answer is about, as far as it is heard in this turn."""
        room = TURN_ANSWERS - answered if answered < TURN_ANSWERS else 1
        if type(frame) is Ack:
            ranges = frame.ranges
            heard = flight.receive_acks(ranges, room)
            if ranges and ranges[-1][1] > self._acked_to:  # they rise
                self._acked_to = ranges[-1][1]
            return heard
        assert isinstance(frame, Nack)
        reason = self._last_nack = first_line(frame.reason)
        delay = frame.delay / 1000
        if delay > self._limits.asked_delay_max:
            delay = self._limits.asked_delay_max
            self._last_nack = (
                f"{reason} (asked for {frame.delay / 1000:.0f} s, gets asked_delay_max ="
                f" {delay:g} s)"
            )
        self._may_wait(self.backlog.open_between(frame.first, frame.first))
        now = self._time.now()
        refusal = refusal_in(frame)
        return flight.receive_nack(frame.first, frame.last, refusal, delay, now, room)

    def note(self, sequence: int, attempts: int, reason: str) -> None:
        """The receiver tries by itself (PROTOCOL: NOTE); for people."""
        if len(self.notes) >= NOTES_MAX:
            self.notes.pop(next(iter(self.notes)))
        self.notes[sequence] = (attempts, reason)

    def turn_ended(self) -> None:
        """The answers of one read were all taken, or as many as one turn takes."""
        self._answered = 0
        backlog, flight = self.backlog, self.flight
        if backlog.settled or backlog.failed:
            self.progress.gather()
        if self._awaited:
            self._expect_answers()
        if flight is not None and flight.rest is not None:
            if self._going_on is None:
                self._going_on = self._time.clock.callLater(0, self._answer_on)
            return
        supply = self.supply
        if supply.state is FOLLOWS and not supply.fed and not self._open:  # all is answered
            supply.look()
        else:
            self.pump()

    def stored(self) -> Deferred[None]:
        """See `Seat`."""
        self.progress.gather()
        return self.progress.all_stored()

    def _answer_on(self) -> None:
        self._going_on = None
        connection, flight = self.connection, self.flight
        assert connection is not None
        assert flight is not None
        connection.go_on_with(lambda: flight.go_on(self._time.now(), TURN_ANSWERS))
        if flight.is_answered:
            connection.go_on_soon()

    def _expect_answers(self) -> None:
        """Tell the commits whether answers are due: they may share a group with others."""
        messages, now = self.backlog.in_flight.messages, self._time.now()
        if messages > FEW_MESSAGES:
            self._many_at, awaited = now, MANY
        elif self._awaited == MANY and now - self._many_at < MANY_FOR:
            return
        else:
            awaited = FEW if messages else 0
        if awaited != self._awaited:
            self._awaited = awaited
            self._commits.expect(self.progress, messages)

    # --- what is settled without an answer

    @property
    def may_decree(self) -> bool:
        """Whether what was stored before the start may be settled without an answer (DELIVERY 38).

        Not before the receiver had time to say what it has taken.
        """
        return self._time.now() >= self._knows_from

    def decree(self, stretches: Sequence[Stretch], status: Status, reason: str) -> int:
        """Settle what is open of these without an answer; return how many messages.

        What was handed to a channel is never given up: it is left to its answer. What is stored,
        and when, `progress.all_stored` says.
        """
        if self.is_sealed:
            return 0  # the removal settles it
        backlog, before = self.backlog, len(self.backlog.above)
        decreed: list[Decreed] = []
        messages = backlog.open_messages
        for stretch in stretches:
            for first, last in self._parts(stretch.first, stretch.last):
                said = reason + backlog.doubt(first)
                refusal = Refusal(Action.DEAD, said)
                for low, high in backlog.decree(first, last, status, refusal):
                    count, size = stretch.counted(low, high)
                    if count:
                        cut = stretch.cut(low, high)
                        decreed.append(Decreed(low, high, count, size, cut, status, said))
        messages -= backlog.open_messages
        self.progress.decreed(decreed)
        self.progress.gather()
        if messages or len(backlog.above) != before:
            self.pump()  # a lane may go on
        return messages + sum([one.messages for one in decreed])

    def weigh(self, stretches: Sequence[Stretch]) -> tuple[int, int, int]:
        """Return the messages that `decree` would settle of these, and their bytes.

        And how many that wait it would leave to their answer.
        """
        backlog = self.backlog
        messages = size = waiting = 0
        for stretch in stretches:
            for low, high in backlog.waits(stretch.first, stretch.last, in_flight=True):
                waiting += stretch.counted(low, high)[0]
            for first, last in self._parts(stretch.first, stretch.last):
                for low, high in backlog.waits(first, last, in_flight=False):
                    count, bytes_ = stretch.counted(low, high)
                    messages += count
                    size += bytes_
        return messages, size, waiting - messages

    def _parts(self, first: int, last: int) -> list[Range]:
        """Cut a range where another doubt begins; leave out what may not be decreed yet."""
        backlog = self.backlog
        parts = []
        for at in sorted((backlog.stored_before, max(backlog.landed_to, backlog.stored_before))):
            if first <= at:
                if at > backlog.stored_before or self.may_decree:
                    parts.append((first, min(last, at)))
                first = at + 1
            if first > last:
                return parts
        return [*parts, (first, last)]

    @property
    def is_away(self) -> bool:
        """Whether nothing is loaded, asked for or to be stored: its cursor may be moved."""
        return (
            self.connection is None
            and self.supply.state is State.AWAY
            and self.backlog.idle
            and self.progress.is_stored
        )

    def pass_to(self, position: int) -> None:
        """All up to a position is settled or for others, as the log says: the cursor passes it.

        Of a receiver that is away: nobody else comes by what lies between.
        """
        if self.is_away and position > self.backlog.cursor:
            self.backlog.skip_to(position)
            self.progress.moved()

    # --- what goes out

    def pump(self) -> None:
        """Send runs, as far as window and rate limit allow."""
        connection, flight = self.connection, self.flight
        if connection is None or flight is None or not connection.may_send or self._has_more:
            return
        backlog = self.backlog
        supply = self.supply
        is_fed = supply.state is FOLLOWS and not supply.fed  # all that is stored is loaded
        has_more = not is_fed and supply.fill()
        transfers = (
            flight.take_transfers(self._time.now(), None, TURN_BYTES, TURN_RUNS)
            if self.pace is None
            else self._take_paced(flight, self.pace)
        )
        if transfers:
            connection.send_now(transfers)
            if not self._awaited or backlog.in_flight.messages > FEW_MESSAGES:
                self._expect_answers()
            has_more = has_more or len(transfers) >= TURN_RUNS
            if not is_fed and not has_more and not flight.has_more:
                has_more = supply.fill()
        if has_more or flight.has_more:
            self._pump_in(0.0)  # others have their turn
        self._has_more = has_more  # of bytes, as much again may leave for an answer
        if backlog.settled:
            self.progress.gather()  # loading settles what the receiver's RESUME has taken
        supply.look()
        if supply.is_short and self._waits_for_room:
            self._pump_in(SHORT_AGAIN)
        if backlog.retries or self.pace is not None:
            self._rearm(flight)

    def _take_paced(self, flight: Flight, pace: Pace) -> list[Transfer]:
        ready = self.backlog.ready
        pace.begin(ready.messages, ready.size)
        transfers = flight.take_transfers(self._time.now(), pace.allow, runs_max=TURN_RUNS)
        pace.end()
        return transfers

    def _rearm(self, flight: Flight) -> None:
        # Who waits for room at its rate sends nothing before, retries neither.
        due = self.pace.next_deadline() if self.pace is not None else None
        if due is None:
            due = flight.next_deadline()
        if due is not None:
            self._pump_in(max(0.001, due - self._time.now()))

    def _pump_in(self, seconds: float) -> None:
        due = self._time.now() + seconds
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._time.clock.callLater(seconds, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._has_more = False
        self.pump()

    def _page_came(self) -> None:
        self._unread = ""
        if self._is_hearing:
            self._hear_on()
        else:
            self.pump()

    def _page_failed(self, failure: Failure) -> None:
        self._unread = failure.getErrorMessage()
        self._logger.failure("reading the log for {name}", failure, name=self.name)
        if self._is_hearing:
            self._heard_all()  # the receiver says it again
        if self.connection is not None:
            self._pump_in(READ_AGAIN)


def _highest(resume: Resume) -> int:
    """Return the highest sequence that was taken, or 0."""
    ranges = resume.ranges  # they rise
    return max(resume.floor - 1, ranges[-1][1]) if ranges else resume.floor - 1
