"""The dead letters of the receivers: said in the log, and the limit at which a receiver is paused.

That a message is dead is decided in `core.backlog`; the letters are made in `outlet_progress`, and
kept by the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger

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
        pause: Callable[[ReceiverRow, str], None],
    ) -> None:
        self._log = log
        self._limits = limits
        self._seldom = seldom
        self._pause = pause

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
                reason=" ".join(last.reason.split())[:REASON_SHOWN],
            )

        count = sum(one.last - one.first + 1 for one in letters)
        self._seldom.say(("dead letters", row.number), tell, count)
        reason = self.full(row)
        if reason is not None:
            self._pause(row, reason)

    def full(self, row: ReceiverRow) -> str | None:
        """Return why this receiver is to get nothing more until there are fewer, or None."""
        size, limit = self._log.dead_bytes(row.number), self._limits.dead_bytes_max
        if size < limit:
            return None
        return f"paused: its dead letters take {size} bytes, dead_bytes = {limit}"
