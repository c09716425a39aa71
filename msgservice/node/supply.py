"""The supply of one receiver's backlog: the stored batches that it is still to be given, in order.

A receiver that keeps up is fed with what was just stored. One that lags gets pages of the tail as
its next window has room, and pages of the log where the tail no longer has its place, until it has
caught up. It never holds more than its windows, nor than its part of what all may hold
(`node.loaded_bytes`), and of a next window that is many small runs some are loaded in the next turn
(`fill`). While others send messages one by one, pages of the log have rests between them. The
states, and what ends each:

              attached   detached   caught up   overfed   asked   page
    AWAY      LAGS       -          -           -         -       -
    LAGS      -          AWAY       FOLLOWS     -         READS   -
    FOLLOWS   -          AWAY       -           LAGS      -       -
    READS     -          LEFT       -           -         -       LAGS, loaded
    LEFT      LATE       -          -           -         -       AWAY, dropped
    LATE      -          LEFT       -           -         -       LAGS, dropped

A receiver that is paused is given nothing; but what its RESUME says it has taken settles as it is
loaded, so for that it is attached too, without a connection, up to there (`UpTo`).

In LEFT and LATE the page on its way is for the connection that has gone: one page at a time is
asked for, however often a receiver comes and goes. What is sent of what was loaded, and when, is
the business of `core.flight` and `node.outlet`.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Set
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.lanes import lane_of
from msgservice.core.runs import Run
from msgservice.interfaces import ILog
from msgservice.limits import BATCH_INDEX_BITS, BATCH_OVERHEAD, INTEGER_MAX
from msgservice.message import passed_on
from msgservice.node.loaded_bytes import RUN_OVERHEAD, LoadedBytes, Share
from msgservice.node.tail import Tail
from msgservice.records import Batch, Origin, hash_of, position_of

# One page of a receiver that lags. The next page is read while this one is on its way.
PAGE_BYTES = 4 * 1024 * 1024
PAGE_MESSAGES = 16_384
# Runs that are loaded in one turn for one receiver, and pieces that runs are cut into for what of
# them is settled or was tried: others wait for that turn.
TURN_RUNS = 1024
# A page of the log is followed by a rest, while others send messages one by one: so many times as
# long as it kept node and receiver busy, and no longer than so many seconds.
REST, REST_MAX = 3.0, 0.02
IDLE = 0.25  # seconds since the page before, of who was not busy all the time: it takes no rest
TURN_LOOKS = 16  # calls of the tail in one turn, where next to nothing of it is for this receiver


class State(enum.Enum):
    """The state of a supply (table of the module)."""

    AWAY = enum.auto()
    LAGS = enum.auto()
    FOLLOWS = enum.auto()
    READS = enum.auto()
    LEFT = enum.auto()
    LATE = enum.auto()


class Event(enum.Enum):
    """The event that ends a state of a supply."""

    ATTACHED = enum.auto()
    DETACHED = enum.auto()
    CAUGHT_UP = enum.auto()  # it has all that is stored
    OVERFED = enum.auto()  # more is fed than two windows hold, or than its part
    ASKED = enum.auto()  # the log is asked for a page
    PAGE = enum.auto()  # it came, or cannot be read


# All other pairs cannot be.
NEXT: Final = {
    (State.AWAY, Event.ATTACHED): State.LAGS,
    (State.LAGS, Event.DETACHED): State.AWAY,
    (State.LAGS, Event.CAUGHT_UP): State.FOLLOWS,
    (State.LAGS, Event.ASKED): State.READS,
    (State.FOLLOWS, Event.DETACHED): State.AWAY,
    (State.FOLLOWS, Event.OVERFED): State.LAGS,
    (State.READS, Event.DETACHED): State.LEFT,
    (State.READS, Event.PAGE): State.LAGS,
    (State.LEFT, Event.ATTACHED): State.LATE,
    (State.LEFT, Event.PAGE): State.AWAY,
    (State.LATE, Event.DETACHED): State.LEFT,
    (State.LATE, Event.PAGE): State.LAGS,
}
FOLLOWS: Final = State.FOLLOWS


class Room(Protocol):
    """The room for more of a backlog: that of a flight, or less (`UpTo`)."""

    @property
    def window_messages(self) -> int:
        """The messages that may be unanswered."""

    @property
    def window_bytes(self) -> int:
        """The bytes of them."""

    @property
    def wants(self) -> bool:
        """Whether more should be loaded."""


class UpTo:
    """The room of a flight, for what lies up to a position, and no more."""

    __slots__ = ("_backlog", "_flight", "_position", "window_bytes", "window_messages")

    def __init__(self, flight: Flight, backlog: Backlog, position: int) -> None:
        self.window_messages, self.window_bytes = flight.window_messages, flight.window_bytes
        self._flight, self._backlog, self._position = flight, backlog, position

    @property
    def wants(self) -> bool:
        """See `Room`."""
        return self._backlog.loaded_to < self._position and self._flight.wants


class PageRest:
    """The rest of a receiver that lags between pages of the log, for others' sake.

    It alone would take all that processors and disk have to give; `is_lone()`: others would notice.
    """

    __slots__ = ("_begun", "_is_lone", "_resting", "_time")

    def __init__(self, time: Time, is_lone: Callable[[], bool]) -> None:
        self._time, self._is_lone = time, is_lone
        self._begun = -math.inf  # when a page was asked for last
        self._resting: IDelayedCall | None = None

    def read(self, page: Callable[[], Deferred[list[Batch]]]) -> Deferred[list[Batch]]:
        """Ask for a page now, or when it has rested; nothing else is asked for until it came."""
        now, seconds = self._time.now(), 0.0
        busy = now - self._begun
        if 0 < busy < IDLE and self._is_lone():
            seconds = min(REST * busy, REST_MAX)
        self._begun = now + seconds
        if not seconds:
            return page()
        waiting: Deferred[list[Batch]] = Deferred()

        def rested() -> None:
            self._resting = None
            try:
                reading = page()
            except Exception:
                waiting.errback()
            else:
                reading.chainDeferred(waiting)

        self._resting = self._time.clock.callLater(seconds, rested)
        return waiting

    def stop(self) -> None:
        """The rest ends, and no page is asked for any more."""
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None


class Supply:
    """The supply of one backlog with the batches of its audiences, from dispatch, tail or log.

    `came` is called when a page of the log came, loaded or dropped: there may be something to send.
    `failed(failure)`: it could not be read. `fault(failure)`: `came` raised that.
    """

    __slots__ = (
        "_audiences",
        "_backlog",
        "_came",
        "_failed",
        "_fault",
        "_fed_bytes",
        "_flight",
        "_log",
        "_page",
        "_page_bytes",
        "_rest",
        "_share",
        "_tail",
        "fed",
        "is_short",
        "passes_on",
        "state",
    )

    def __init__(
        self,
        backlog: Backlog,
        audiences: Set[int],
        *,
        loaded: LoadedBytes,
        tail: Tail,
        log: ILog,
        rest: PageRest,
        came: Callable[[], None],
        failed: Callable[[Failure], None],
        fault: Callable[[Failure], None],
    ) -> None:
        self.state = State.AWAY
        self._backlog = backlog
        self._audiences = audiences
        self._share = Share(loaded)
        self.passes_on = False  # the receiver is a node: see `message.passed_on`
        self.is_short = False  # it held as much as it may at the last look: no more is loaded
        self._tail = tail
        self._log = log
        self._rest = rest
        self._came, self._failed, self._fault = came, failed, fault
        self._flight: Room | None = None  # of the connection, while there is one
        self.fed: deque[Batch] = deque()  # stored, and not loaded: the next window is full
        self._fed_bytes = 0
        self._page: deque[Batch] = deque()  # what is not loaded yet of a page that came
        self._page_bytes = 0  # of that, or as many as the page on its way may have

    @property
    def is_reading(self) -> bool:
        """Whether a page of the log is on its way, and what it brings waits for it."""
        return self.state is State.READS or self.state is State.LATE

    # --- the connection

    def attach(self, flight: Room) -> None:
        """A connection stands: this is its flight."""
        self._happens(Event.ATTACHED)
        self._flight = flight

    def detach(self) -> None:
        """The connection has gone; what it was fed is read again by the next."""
        self._happens(Event.DETACHED)
        self._flight = None
        self._drop_fed()
        self._page.clear()
        self._page_bytes = 0

    def _happens(self, event: Event) -> None:
        self.state = NEXT[self.state, event]

    def _drop_fed(self) -> None:
        self.fed.clear()
        self._fed_bytes = 0

    # --- what is loaded

    def look(self) -> int:
        """Look at what is held; return how many bytes more may be loaded, below 1: none.

        Who follows lags then: what is stored stays in the tail, and in the log after that.
        """
        ready, flying, waiting, behind = self._backlog.tallies
        runs = ready.runs + flying.runs + waiting.runs + behind.runs
        room = self._share.look(
            self._fed_bytes
            + self._page_bytes
            + ready.size
            + flying.size
            + waiting.size
            + behind.size
            + RUN_OVERHEAD * runs
        )
        self.is_short = room <= 0
        if room <= 0 and self.state is FOLLOWS:
            self._be_overfed()
        return room

    @property
    def _room(self) -> int:
        room = self.look()
        # What a RESUME has named settles as it is loaded, and what is left is let go after that.
        return INTEGER_MAX if type(self._flight) is UpTo else room

    def leave(self) -> None:
        """Nothing counts as loaded any more: the receiver is removed, or the node stops."""
        self._rest.stop()
        self._share.look(0)

    def feed(self, batch: Batch) -> None:
        """A batch for this receiver was just stored. Only while it follows."""
        flight, fed = self._flight, self.fed
        assert flight is not None
        if not fed and flight.wants:
            self.load(batch)
            return
        fed.append(batch)
        self._fed_bytes += batch.size + BATCH_OVERHEAD
        if self._fed_bytes > 2 * flight.window_bytes:
            self._be_overfed()

    def _be_overfed(self) -> None:
        self._happens(Event.OVERFED)  # the tail has these, and the log after that
        self._drop_fed()

    def fill(self) -> bool:
        """Load the batches that the next window has room for, as many as one turn takes.

        Returns whether there is room for more that can be loaded when others had their turn.
        """
        state = self.state
        if state is FOLLOWS:
            return bool(self.fed) and self._load_from(self.fed)
        return state is State.LAGS and self._load_pages()

    def _load_from(self, fed: deque[Batch]) -> bool:
        flight, backlog = self._flight, self._backlog
        assert flight is not None
        stop = backlog.pieces + TURN_RUNS
        room = self._room  # what was fed is counted as held: loading it changes little
        while fed and flight.wants and room > 0:
            if backlog.pieces >= stop:
                return True
            batch = fed.popleft()
            self._fed_bytes -= batch.size + BATCH_OVERHEAD
            self.load(batch)
        return False

    def _load_pages(self) -> bool:
        """Load pages of the tail; where it no longer has this place, ask the log for one.

        First what is left of a page of the log, whatever room there is.
        """
        flight, backlog, tail, rest = self._flight, self._backlog, self._tail, self._page
        assert flight is not None
        stop = backlog.pieces + TURN_RUNS
        while rest:
            if backlog.pieces >= stop:
                return True
            batch = rest.popleft()
            self._page_bytes -= batch.size + RUN_OVERHEAD
            self.load(batch)
        for _ in range(TURN_LOOKS):
            if not flight.wants:
                return False
            size = self._room
            if size <= 0:
                return False
            runs = stop - backlog.pieces
            if runs <= 0:
                return True
            page = tail.after(
                backlog.loaded_to,
                self._audiences,
                # A window that contains 0 takes one run: a page of nothing would be read for ever.
                max(1, min(flight.window_bytes, size)),
                max(1, flight.window_messages),
                min(runs, 1 + size // RUN_OVERHEAD),
            )
            if page is None:
                self._read(size)
                return False
            batches, looked = page
            for batch in batches:
                if backlog.pieces >= stop:
                    return True  # the rest is looked for again: it is above what is loaded
                self.load(batch)
            backlog.skip_to(looked)
            if looked >= position_of(tail.next_number) - 1:
                self._happens(Event.CAUGHT_UP)
                return False
        return True

    def load(self, batch: Batch) -> None:
        """Load a batch, or what of it lies above what is loaded."""
        backlog = self._backlog
        first, loaded_to = batch.number << BATCH_INDEX_BITS, backlog.loaded_to  # as `Batch.first`
        if first + batch.count - 1 <= loaded_to:
            return
        options, origin = batch.options, batch.origin
        if self.passes_on:
            options, origin = passed_on(options), _origin_of(batch, self._log.log_id)
        run = Run(  # by position, once a run and receiver: by name 170 ns become 220
            first,
            batch.count,
            batch.subject,
            lane_of(origin, batch.sender, batch.subject) if backlog.ordered else None,
            batch.messages,
            batch.size,
            loaded_to,
            batch,
            options,
            origin,
        )
        run.stored_at = batch.stored_at
        if batch.expires_at is not None:
            run.expires_at = batch.expires_at
        if first <= loaded_to:  # the cursor stands inside this batch
            backlog.offer_rest(run)
        else:
            backlog.offer(run)

    # --- pages of the log

    def _read(self, room: int) -> None:
        self._happens(Event.ASKED)
        size = max(1, min(PAGE_BYTES, room * 2 // 3))  # and as much again, or twice, for the runs
        messages = max(1, PAGE_MESSAGES * size // PAGE_BYTES)
        self._page_bytes = size + RUN_OVERHEAD * messages
        self.look()  # others see that so much may be held soon
        # What has a lower number than this is stored, so that the reader sees it, and has one of
        # these audiences. Behind it there may be another by the time that the page is read.
        end = position_of(self._tail.next_number) - 1
        wanted = tuple(self._audiences), self._backlog.loaded_to, end, size, messages
        reading = self._rest.read(lambda: self._log.read(*wanted))
        reading.addCallbacks(self._page_came, self._page_failed, callbackArgs=(end,))
        reading.addErrback(self._fault)

    def _page_came(self, batches: list[Batch], end: int) -> None:
        is_asked_for = self.state is State.READS
        self._happens(Event.PAGE)
        self._page_bytes = 0
        if is_asked_for:
            self._page_bytes = sum([batch.size + RUN_OVERHEAD for batch in batches])
            self._page.extend(batches)  # loaded by who is told now
            if not batches:
                self._backlog.skip_to(end)
        self._came()

    def _page_failed(self, failure: Failure) -> None:
        self._happens(Event.PAGE)
        self._page_bytes = 0
        self._failed(failure)


def _origin_of(batch: Batch, log_id: str) -> Origin:
    """Return the origin with which a batch is passed on to another node."""
    origin = batch.origin
    if origin is None:  # stored before origins were kept
        origin = Origin(batch.sender, batch.sequence, hash_of(batch.incarnation))
    return origin.passed_on(log_id)
