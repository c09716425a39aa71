"""The dead letters of the receivers: said in the log, and the limit at which a receiver is paused.

That a message is dead is decided in `core.backlog`; the letters are made in `outlet_progress`, and
kept by the log.
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

    def stored(self, row: ReceiverRow, letters: Sequence[Settled]) -> None:
        """New dead letters of a receiver are on disk: say so; it is paused at their limit."""
        last = letters[-1]

        def tell(count: int) -> None:
            self._logger.warn(
                "receiver {name} has {count} new dead letter(s), the last is position {position}"
                " after {attempts} failed attempt(s): {reason}",
                name=row.name,
                count=count,
                position=last.last,
                attempts=last.run.attempts,
                reason=first_line(last.reason)[:REASON_SHOWN],
            )

        count = sum(one.last - one.first + 1 for one in letters)
        self._seldom.say(("dead letters", row.number), tell, count)
        self._judge(row)

    def room(self, row: ReceiverRow) -> int:
        """See `Letters`."""
        return self._limits.dead_bytes_max - self._log.dead_bytes(row.number)

    def lacking(self, row: ReceiverRow) -> None:
        """See `Letters`."""
        if row.number not in self._pausing:
            self._pausing[row.number] = self._clock.callLater(0, self._lacks, row)

    def _lacks(self, row: ReceiverRow) -> None:
        del self._pausing[row.number]
        self._judge(row)  # else what takes its room is about to be stored

    def _judge(self, row: ReceiverRow) -> None:
        full = self.full(row)
        if full is not None:
            self._pause(row, f"paused: {full}")

    def full(self, row: ReceiverRow) -> str | None:
        """Return why no message of this receiver becomes a dead letter now, or None."""
        size, limit = self._log.dead_bytes(row.number), self._limits.dead_bytes_max
        if size < limit:
            return None
        return f"its dead letters take {size} bytes, dead_bytes = {limit}"

    def stop(self) -> None:
        """Pause nobody any more: no timer is left behind."""
        pausing, self._pausing = self._pausing, {}
        for call in pausing.values():
            call.cancel()
