"""`Away`: how long receivers are away, and the removal of those that are away for too long.

Off unless somebody says so: `away_max` of a receiver, or of the node's limits for all that have
none of their own (DELIVERY 49). What the configuration has is never removed, nor who is here, who
is paused, since then it is somebody else's doing, and who has dead letters: somebody is to look at
these first. The rest is `Receivers.remove`, and whoever sent what waited is told so.

Time away is counted by the age of the log, while the node runs: a node that stood still for a month
removes nobody for that. Since when somebody is away is in its row of the log. So the restart of a
node ends no time away; and after a start nobody is removed before it had time to come back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.errors import MsgServiceError
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.node.due import Due
from msgservice.records import ReceiverRow

PAGE: Final = 16  # receivers that are removed at once
LOOK_AGAIN: Final = 60_000  # ms until one that stays all the same is looked at again
STEP: Final = 1000  # ms by which the age of a log moves
WRITE_EVERY: Final = 600_000  # ms of time away that a crash may lose while nothing else is stored
LETTERS: Final = "it has dead letters"


class Away:
    """The receivers that are away, and since when (`due.Source`).

    `here()`: the numbers of those that have a connection, fed or not yet. `store(row)`: write its
    row; `remove(row, is_away)`: remove it, unless it came meanwhile, and return how many messages
    waited, or None.
    """

    _logger = Logger()

    def __init__(
        self,
        log: ILog,
        *,
        due: Due,
        limits: Limits,
        here: Callable[[], set[int]],
        store: Callable[[ReceiverRow], object],
        remove: Callable[[ReceiverRow, Callable[[], bool]], Awaitable[int | None]],
    ) -> None:
        self._log, self._due, self._limits = log, due, limits
        self._here, self._store, self._remove = here, store, remove
        self._fed: set[int] = set()  # numbers of those that have a connection
        self._counted: dict[int, ReceiverRow] = {}  # those that are away, and may be for too long
        self._unstored: dict[int, ReceiverRow] = {}  # whose row says something else in the log
        self._stays: dict[int, tuple[int, str]] = {}  # number -> until which age, and why
        self._next: int | None = None  # the age at which the first is to be looked at
        self._written_at = log.age()
        # Whoever was here before the start has as long to come back.
        grace = int((limits.link_delay_max + limits.hello_timeout) * 1000)
        self._begins_at = due.now() + grace
        due.register(self)

    # --- what is known

    def limit(self, row: ReceiverRow) -> int:
        """Return how long a receiver may be away, in ms of the log's age; 0: for ever."""
        if row.configured or row.removed:
            return 0
        return int((row.options.away_max or self._limits.away_max) * 1000)

    def since(self, row: ReceiverRow) -> float | None:
        """Return how many seconds a receiver has been away; None: it is here, or nobody counts."""
        if row.number not in self._counted or row.away_since is None:
            return None
        return max(0, self._log.age() - row.away_since) / 1000

    def stays(self, row: ReceiverRow) -> str:
        """Return why a receiver that was away for too long is there all the same, or nothing."""
        return self._stays.get(row.number, (0, ""))[1]

    # --- what happens

    def load(self, row: ReceiverRow) -> None:
        """Go on with a receiver that the log knows: nobody is here when a node starts."""
        known = row.away_since
        # After a crash the log may be younger than it was.
        row.away_since = None if known is None else min(known, self._log.age())
        if self.judge(row):
            self._unstored[row.number] = row

    def came(self, row: ReceiverRow) -> None:
        """A receiver has its connection."""
        self._fed.add(row.number)
        self._look_at(row)

    def went(self, row: ReceiverRow) -> None:
        """The connection of a receiver has gone."""
        self._fed.discard(row.number)
        self._look_at(row)

    def forget(self, row: ReceiverRow) -> None:
        """A receiver was removed."""
        self._fed.discard(row.number)
        self._no_longer(row)

    def _look_at(self, row: ReceiverRow) -> None:
        if self.judge(row):
            self._store(row)

    def judge(self, row: ReceiverRow) -> bool:
        """Judge whether a receiver is away; return whether its row is to say something else now.

        Called when it comes or goes, and before its row is stored for another reason.
        """
        is_said_otherwise = self._unstored.pop(row.number, None) is not None
        before, limit = row.away_since, self.limit(row)
        if not limit or row.options.paused or row.number in self._fed:
            row.away_since = None
            self._no_longer(row)
            return is_said_otherwise or before is not None
        if row.away_since is None:
            row.away_since = self._log.age()
        self._counted[row.number] = row
        at = max(row.away_since + limit, self._stays.get(row.number, (0, ""))[0])
        if self._next is None or at < self._next:
            self._next = at
            self._due.look()
        return is_said_otherwise or before != row.away_since

    def _no_longer(self, row: ReceiverRow) -> None:
        for noted in (self._counted, self._unstored, self._stays):
            noted.pop(row.number, None)
        if not self._counted:
            self._next = None  # so that the next one is waited for anew

    # --- due.Source

    def earliest(self) -> int | None:
        """See `due.Source`."""
        if self._unstored:
            return self._begins_at
        if self._next is None or not self._counted:
            return None
        age = self._log.age()
        at = min(self._next, self._written_at + WRITE_EVERY)
        # The age moves in steps: a look before the next one would find the same.
        return max(self._begins_at, self._due.now() + (max(at - age, STEP) if at > age else 0))

    def act(self, now: int) -> Deferred[bool]:
        """See `due.Source`."""
        return Deferred.fromCoroutine(self._act())

    async def _act(self) -> bool:
        self._write()
        age = self._log.age()
        over = [row for row in self._counted.values() if self._looked_at(row) <= age]
        for row in over[:PAGE]:
            if row.number in self._counted:  # else it came while another was removed
                await self._over(row)
        self._next = min([self._looked_at(row) for row in self._counted.values()], default=None)
        return len(over) > PAGE

    def _looked_at(self, row: ReceiverRow) -> int:
        """Return the age at which this one is looked at."""
        assert row.away_since is not None
        return max(row.away_since + self.limit(row), self._stays.get(row.number, (0, ""))[0])

    def _write(self) -> None:
        """Have the log say how old it is, and since when whoever did not come back is away."""
        age = self._log.age()
        unstored, self._unstored = self._unstored, {}
        if not unstored and age - self._written_at >= WRITE_EVERY:
            unstored = dict(list(self._counted.items())[:1])
        if unstored:
            self._written_at = age
        for row in unstored.values():
            self._store(row)

    async def _over(self, row: ReceiverRow) -> None:
        """Remove a receiver that is away for too long, unless it is to stay."""
        age, known = self._log.age(), self.stays(row)
        if row.number in self._here():
            self._stays[row.number] = (age + STEP, known)  # its session opens, or ends
            return
        if self._log.dead_bytes(row.number):
            self._stays[row.number] = (age + LOOK_AGAIN, LETTERS)
            if known != LETTERS:
                self._logger.warn(
                    "receiver {name} is away for longer than its away_max of {seconds} s, and"
                    " stays: {why}; drop them or send them again, then it is removed",
                    line="away-stays",
                    name=row.name,
                    seconds=self.limit(row) // 1000,
                    why=LETTERS,
                )
            return
        self._stays[row.number] = (age + LOOK_AGAIN, "")  # unless it is removed now
        seconds = self.limit(row) // 1000
        number = row.number

        def is_away() -> bool:
            return (
                number in self._counted
                and number not in self._here()
                and not self._log.dead_bytes(number)
            )

        try:
            queued = await self._remove(row, is_away)
        except MsgServiceError as error:
            self._logger.warn(
                "receiver {name}, away for too long, is not removed: {error}",
                line="away-not-removed",
                name=row.name,
                error=str(error),
            )
            return
        if queued is not None:
            self._logger.warn(
                "receiver {name} was away for longer than its away_max of {seconds} s: it is"
                " removed, and {count} message(s) that waited for it are not delivered",
                line="away-removed",
                name=row.name,
                seconds=seconds,
                count=queued,
            )
