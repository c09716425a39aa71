"""The upkeep of a node: retention, and saying that messages are refused for want of room.

Both once a second, while the node runs. What may go is decided by the log. And once an hour a look
at the certificates in use, which expire whether or not anybody connects.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.errors import LogFailed, LogUnavailable
from msgservice.interfaces import ILog
from msgservice.node.commits import Commits
from msgservice.node.connections import Connections
from msgservice.node.directory import Directory
from msgservice.node.dispatch import Dispatch

RETAIN_EVERY = 1.0  # seconds between two passes of retention
SAY_AGAIN = 60.0  # seconds between two warnings that messages are refused
LOOK_EVERY = 3600.0  # seconds between two looks at certificates
REFUSED_FOR = 5.0  # seconds without a refusal, until it is said that they are taken again


class Upkeep:
    """The passes of retention. `fatal` is called with the error when the log cannot go on.

    `tell_expiring`: warns of certificates in use that expire soon, unless it just did.
    """

    _logger = Logger()

    def __init__(
        self,
        log: ILog,
        *,
        commits: Commits,
        connections: Connections,
        directory: Directory,
        dispatch: Dispatch,
        tell_expiring: Callable[[], None],
        time: Time,
        fatal: Callable[[LogFailed], None],
    ) -> None:
        self._log = log
        self._commits = commits
        self._connections = connections
        self._directory = directory
        self._dispatch = dispatch
        self._time = time
        self._fatal = fatal
        self._tell_expiring = tell_expiring
        self._looked_at: float | None = None
        self._running = False
        self._due: IDelayedCall | None = None
        self._refusing = False  # for want of room, and said so
        self._refused_because: str | None = None
        self.refusals = 0  # runs, since the start
        self._refused_at = self._said_at = 0.0

    def start(self) -> None:
        """Begin; the first pass is due in a second."""
        self._running = True
        self._due = self._time.clock.callLater(RETAIN_EVERY, self._retain)

    def stop(self) -> None:
        """Start no pass any more."""
        self._running = False
        if self._due is not None:
            self._due.cancel()
            self._due = None

    @property
    def refused(self) -> str | None:
        """Why messages are refused for want of room, from the first on until they are taken again.

        A log that has room for some may have none for a large run, and be refusing that all along.
        """
        return self._refused_because if self._refusing else None

    def _retain(self) -> None:
        self._due = None
        now = self._time.now()
        if self._looked_at is None or now >= self._looked_at + LOOK_EVERY:
            self._looked_at = now
            try:
                self._tell_expiring()
            except Exception:  # retention goes on whatever is wrong with files of certificates
                self._logger.failure("looking at certificates in use")
        here, left = self._connections.take_presence()
        self._say_refusals()
        self._log.retain(int(self._time.now() * 1000), here, left).addCallbacks(
            self._retained, self._retain_failed
        ).addErrback(self._fault)

    def _say_refusals(self) -> None:
        """Say that messages are refused for want of room, once in a while, and when that ends."""
        reason, count = self._commits.take_refusals()
        reason = self._log.room().full or reason
        if reason is None:
            if self._refusing and self._time.now() - self._refused_at >= REFUSED_FOR:
                self._refusing = False
                # Of each of these there is a line of its own, when it begins and when it ends.
                refusing = self._dispatch.refusing
                self._logger.warn(
                    "messages are taken again: there is room in the log"
                    if not refusing
                    else "messages are taken again: there is room in the log; but not those for"
                    " {refusing} receiver(s) for which too much waits",
                    line="log-not-full",
                    refusing=refusing,
                )
            return
        self._refused_because = reason
        self.refusals += count
        self._refused_at = self._time.now()
        if self._refusing and self._time.now() - self._said_at < SAY_AGAIN:
            return
        self._logger.warn(
            "messages are refused, their senders keep them: {reason} ({count} times so far)",
            line="log-full",
            reason=reason,
            count=self.refusals,
        )
        self._refusing, self._said_at = True, self._time.now()

    def _retained(self, more: bool) -> None:
        if self._running:
            self._directory.collect()
            self._due = self._time.clock.callLater(0.01 if more else RETAIN_EVERY, self._retain)

    def _fault(self, failure: Failure) -> None:
        """A fault of our own behind a pass; without the next one the log would only fill up."""
        self._logger.failure("after retention", failure)
        if self._running and self._due is None:
            self._due = self._time.clock.callLater(RETAIN_EVERY, self._retain)

    def _retain_failed(self, failure: Failure) -> None:
        if isinstance(failure.value, LogFailed):
            if not self._commits.is_stopped:
                self._commits.stop()
                self._fatal(failure.value)
            return
        if not isinstance(failure.value, LogUnavailable):  # of which `_say_refusals` tells
            self._logger.failure("retention", failure)
        self._retained(False)
