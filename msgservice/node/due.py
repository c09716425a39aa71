"""`Due`: the one clock of a node for what falls due: expires, is to be sent later, is given up.

Who has something that falls due is a `Source`, and registers here: there is one timer for all of
them, and each acts on one page at a time, so that no turn of the reactor is long. What is done
then goes through the commits, as everything else.

The clock is the wall clock as it was at the start, and goes on by what has passed since then: it
never goes back, whatever is done to the wall clock meanwhile (DELIVERY 39). What it was when the
log was written last is in the log's head: a start that finds itself far ahead of that cannot know
which of them was wrong, so it says so, and does nothing for a while that cannot be undone.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time, milliseconds_of
from msgservice.errors import LogUnavailable

DAY = 24 * 3600 * 1000  # ms
AHEAD_MAX = DAY  # ms that a start may find itself ahead of when the log was written last
BEHIND_MAX = 60 * 1000  # ms that it may find itself behind that without saying so
HELD_FOR = 60.0  # seconds without anything falling due, after a start that is further ahead
AGAIN = 1.0  # seconds until a source is asked again that left what is due, or failed


class Source(Protocol):
    """The source of what falls due: it knows when, and what is done then. Times are ms of `Due`."""

    def earliest(self) -> int | None:
        """The time when the earliest of it falls due, or None."""

    def act(self, now: int) -> Deferred[bool]:
        """Act on one page of what is due at `now`; fire with whether there is more of that.

        Not called again before that. A failure is logged, and the page tried again.
        """


class Due:
    """The clock and the timer for all `Source`s of a node.

    `seen`: the wall clock when the log was written last, ms; 0 where it does not say.
    """

    _logger = Logger()

    def __init__(self, time: Time, seen: int = 0) -> None:
        self._time = time
        self._began, self._wall = time.now(), time.wall()
        self._seen = seen
        self._sources: dict[Source, float] = {}  # and when each may be asked again, monotonic
        self._acting: set[Source] = set()
        self._held_until = self._began
        self._timer: IDelayedCall | None = None
        self._timer_due = 0.0
        self._is_running = False

    def now(self) -> int:
        """The time, in ms since the epoch; it never goes back."""
        return self._wall + milliseconds_of(self._time.now() - self._began)

    @property
    def is_held(self) -> bool:
        """Whether nothing falls due yet: the clock may be wrong, and people are told so."""
        return self._time.now() < self._held_until

    def register(self, source: Source) -> None:
        """Ask a source too, from now on."""
        self._sources[source] = self._began
        self.look()

    def start(self) -> None:
        """Begin: what is due is acted on, or in a while where the clock may be wrong."""
        self._is_running = True
        ahead = self._wall - self._seen
        if self._seen and ahead > AHEAD_MAX:
            self._held_until = self._time.now() + HELD_FOR
            self._logger.critical(
                "the clock is {days} days ahead of when the log was last written: if it is wrong,"
                " stop this node within {seconds} seconds and set it right; then what is due by it"
                " expires, or is sent",
                line="clock-ahead",
                days=round(ahead / DAY, 1),
                seconds=round(HELD_FOR),
            )
        elif self._seen and -ahead > BEHIND_MAX:
            self._logger.warn(
                "the clock is {seconds} seconds behind what it was when the log was last written:"
                " what was sent with a time by the clock of then falls due so much later",
                line="clock-behind",
                seconds=-ahead // 1000,
            )
        self.look()

    def stop(self) -> None:
        """Leave no timer; nothing is acted on any more but what is under way."""
        self._is_running = False
        self._cancel()

    def look(self) -> None:
        """Look when the earliest is due: something may be due before what was known of."""
        if not self._is_running:
            return
        at: float | None = None
        for source, again in self._sources.items():
            if source in self._acting:
                continue
            earliest = source.earliest()
            if earliest is not None:
                due = max(self._began + (earliest - self._wall) / 1000, again, self._held_until)
                at = due if at is None else min(at, due)
        if at is not None:
            self._arm(at)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            if self._timer_due <= at:
                return
            self._cancel()
        self._timer_due = at
        self._timer = self._time.clock.callLater(max(0.0, at - self._time.now()), self._fire)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        at, now = self._time.now(), self.now()
        for source, again in list(self._sources.items()):
            if source in self._acting or again > at or self.is_held:
                continue
            earliest = source.earliest()
            if earliest is not None and earliest <= now:
                self._acting.add(source)
                acted = maybeDeferred(source.act, now)
                acted.addErrback(self._failed)
                acted.addCallback(self._acted, source, now)
        self.look()

    def _failed(self, failure: Failure) -> bool:
        if not self._is_running and failure.check(LogUnavailable):
            return False  # the node has stopped meanwhile, and its log with it
        self._logger.failure("what is due is tried again", failure)
        return False

    def _acted(self, more: bool, source: Source, now: int) -> None:
        self._acting.discard(source)
        earliest = source.earliest()
        # What is left where there is no more waits for something else, or has failed.
        is_left = not more and earliest is not None and earliest <= now
        self._sources[source] = self._time.now() + (AGAIN if is_left else 0.0)
        self.look()
