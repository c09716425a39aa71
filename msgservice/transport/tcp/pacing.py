"""Time on a connection: one write for each reactor turn, and who makes no progress."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from msgservice.errors import DeadlinePassed
from msgservice.limits import Limits

# What is half here and grows by less than this within `frame_timeout` makes no progress.
PROGRESS_BYTES = 64 * 1024


class Flushes(Protocol):
    """A channel that has something to write at the end of a turn."""

    def flush(self) -> None:
        """Write the queued frames. May not raise."""


class Turn:
    """One `callLater(0)` for all channels that have something to write in a reactor turn."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: list[Flushes] = []

    def add(self, channel: Flushes) -> None:
        """Let `channel` flush at the end of this turn."""
        if not self._waiting:
            self._clock.callLater(0, self._end)
        self._waiting.append(channel)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for channel in waiting:
            channel.flush()


class Watch:
    """Whether something makes progress: its mark changes within `timeout` seconds."""

    __slots__ = ("_mark", "_since", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._mark: object = None
        self._since = 0.0

    def stalled(self, mark: object, now: float) -> bool:
        """Note the mark (None: nothing to watch); return whether it is too old."""
        if mark is None or mark != self._mark:
            self._mark, self._since = mark, now
            return False
        return now - self._since >= self.timeout


class Progress:
    """The progress of a peer: with what it has half said, `what`, and in reading what was written.

    `interval`: how often it is looked at, in seconds.
    """

    __slots__ = ("_half", "_unread", "_what", "interval")

    def __init__(self, limits: Limits, what: str) -> None:
        self._what = what
        self._half = Watch(limits.frame_timeout)
        self._unread = Watch(limits.write_timeout)
        self.interval = min(limits.frame_timeout, limits.write_timeout) / 10

    def ended(self, half: object, unread: object, now: float) -> tuple[DeadlinePassed, bool] | None:
        """Return why the connection ends, and whether it can only be aborted; None: it goes on.

        Nothing can be said to a peer that does not read.
        """
        if self._half.stalled(half, now):
            return DeadlinePassed(f"the rest of a {self._what}", self._half.timeout), False
        if self._unread.stalled(unread, now):
            return DeadlinePassed("reading what was sent", self._unread.timeout), True
        return None
