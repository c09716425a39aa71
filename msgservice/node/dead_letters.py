"""The dead letters of the receivers: said in the log, and the limits at which a receiver is paused.

What they take is counted here from when a message is dead, before it is stored. That it is dead is
decided in `core.backlog`; the letters are made in `outlet_progress`, and kept by the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from msgservice.core.reasons import first_line
from msgservice.core.runs import Settled
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.node.seldom import Seldom
from msgservice.records import ReceiverRow

REASON_SHOWN = 200  # characters of a reason in the log: one line


class DeadLetters:
    """The dead letters of all receivers. `pause(row, reason)`: a receiver gets nothing more."""

    _logger = Logger()

    def __init__(
        self,
        *,
        log: ILog,
        limits: Limits,
        seldom: Seldom,
        clock: IReactorTime,
        pause: Callable[[ReceiverRow, str], None],
    ) -> None:
        self._log = log
        self._limits = limits
        self._seldom = seldom
        self._clock = clock
        self._pause = pause
        self._pausing: dict[int, IDelayedCall] = {}  # by receiver number
        # What they take, stored or not, of receivers that are not removed; and all of them.
        self._bytes: dict[int, int] = {}  # by receiver number
        self._total = 0
        self._since: dict[int, float] = {}  # when it had its first of those that it has, here
        # How many there were since the start: new ones, sent again, and dropped by somebody.
        self.new = self.requeued = self.dropped = 0

    def load(self, row: ReceiverRow) -> None:
        """Count what a receiver has in the log when the node starts."""
        self.due(row, self._log.dead_bytes(row.number))

    def due(self, row: ReceiverRow, size: int) -> None:
        """See `Letters`."""
        before = self._bytes.get(row.number, 0)
        if size and not before:
            self._since[row.number] = self._clock.seconds()
        self._bytes[row.number] = before + size
        self._total += size

    def since(self, row: ReceiverRow) -> float | None:
        """When a receiver had the first letter of those that it has, in seconds of the clock.

        Not before this process of the node; None where it has none.
        """
        return self._since.get(row.number) if self._bytes.get(row.number) else None

    def forget(self, row: ReceiverRow) -> None:
        """A receiver was removed: its letters give way where their room is needed."""
        self._total -= self._bytes.pop(row.number, 0)
        self._since.pop(row.number, None)

    def gone(self, row: ReceiverRow, size: int, count: int, *, again: bool) -> None:
        """Dead letters of a receiver are gone from the log: sent again, or dropped."""
        if again:
            self.requeued += count
        else:
            self.dropped += count
        if row.number in self._bytes:
            self._bytes[row.number] -= size
            self._total -= size

    def stored(self, row: ReceiverRow, letters: Sequence[Settled]) -> None:
        """New dead letters of a receiver are on disk: say so; it is paused at their limit."""
        last = letters[-1]

        def tell(count: int) -> None:
            self._logger.warn(
                "receiver {name} has {count} new dead letter(s), the last is position {position}"
                " after {attempts} failed attempt(s): {reason}",
                line="dead-letters",
                name=row.name,
                count=count,
                position=last.last,
                attempts=last.run.attempts,
                reason=first_line(last.reason)[:REASON_SHOWN],
            )

        count = sum(one.last - one.first + 1 for one in letters)
        self.new += count
        self._seldom.say(("dead letters", row.number), tell, count)
        self._judge(row)

    def room(self, row: ReceiverRow) -> int:
        """See `Letters`."""
        own = self._limits.dead_bytes_max - self._bytes.get(row.number, 0)
        return min(own, self._limits.dead_bytes_total_max - self._total)

    def lacking(self, row: ReceiverRow) -> None:
        """See `Letters`."""
        if row.number not in self._pausing:
            self._pausing[row.number] = self._clock.callLater(0, self._lacks, row)

    def _lacks(self, row: ReceiverRow) -> None:
        del self._pausing[row.number]
        self._judge(row)

    def _judge(self, row: ReceiverRow) -> None:
        if self._bytes.get(row.number, 0) > self._log.dead_bytes(row.number):
            return  # some are about to be stored: when they are
        full = self.full(row)
        if full is not None:
            self._pause(row, f"paused: {full}")

    def full(self, row: ReceiverRow) -> str | None:
        """Return why no message of this receiver becomes a dead letter now, or None."""
        size, limit = self._bytes.get(row.number, 0), self._limits.dead_bytes_max
        if size >= limit:
            return f"its dead letters take {size} bytes, dead_bytes = {limit}"
        size, limit = self._total, self._limits.dead_bytes_total_max
        if size >= limit:
            return f"dead letters of all receivers take {size} bytes, dead_bytes_total = {limit}"
        return None

    def stop(self) -> None:
        """Pause nobody any more: no timer is left behind."""
        pausing, self._pausing = self._pausing, {}
        for call in pausing.values():
            call.cancel()
