"""The messages of a node that wait until they are due: moved then, or cancelled before.

They wait in the log, and nowhere else. `due.Due` says when the earliest is due; they are moved a
page at a time, with the groups of `commits`, which decide for whom each is. A page is small enough
that no turn of the reactor is long, whatever is due in the same second.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.errors import LogUnavailable, UnknownMessage
from msgservice.interfaces import ILog
from msgservice.node.commits import Commits
from msgservice.node.due import Due
from msgservice.node.seldom import Seldom
from msgservice.node.tracker import Tracker
from msgservice.records import Batch, Cancel, Delayed, Found

PAGE = 500  # runs of one group: what is known of each is looked up, and handed on, in one turn
READ_AGAIN = 1000  # ms after which a page that was read ahead is not used any more
BEGIN = (0, 0)
NOTHING_READ: tuple[int, list[Batch]] = (0, [])


class DelayedMessages:
    """The messages that wait until they are due, as `due.Source`."""

    _logger = Logger()

    def __init__(
        self, *, log: ILog, commits: Commits, tracker: Tracker, due: Due, seldom: Seldom
    ) -> None:
        self._log = log
        self._commits = commits
        self._tracker = tracker
        self._due = due
        self._seldom = seldom
        self._after = BEGIN  # behind what found no place, in this pass
        self._held: set[tuple[str, str, str]] = set()  # the lanes of that: nothing overtakes
        self._was_cut = False  # something was cancelled since the last page was moved
        self._following = NOTHING_READ  # the page that was read ahead, and when
        self._looked_at: int | None = None  # the earliest that `due` knows of

    # --- due.Source

    def earliest(self) -> int | None:
        """See `due.Source`."""
        self._looked_at = self._log.next_due()
        return self._looked_at

    def act(self, now: int) -> Deferred[bool]:
        """See `due.Source`: move one page."""
        return Deferred.fromCoroutine(self._move(now))

    async def _move(self, now: int) -> bool:
        (read_at, page), self._following = self._following, NOTHING_READ
        if not page or now - read_at > READ_AGAIN:
            page = await self._log.due(now, self._after, PAGE)
        if not page:
            self._begin_anew()
            return False
        going = [batch for batch in page if batch.lane not in self._held] if self._held else page
        moving = self._commits.due(going) if going else succeed([])
        end = (page[-1].due_at, page[-1].delayed_id)
        # While this page is written the next is read. Nothing comes before it any more: what is
        # accepted from now on is due later than this moment.
        reading = maybeDeferred(self._log.due, now, end, PAGE).addErrback(self._not_read)
        try:
            moved = await moving
        except LogUnavailable:
            return False  # the commits have said so; they are tried again
        if self._was_cut:
            # What is left of a run goes before what was behind it: all is looked at from the first.
            self._was_cut = False
            await reading
            self._begin_anew()
            return True
        gone = {batch.delayed_id for batch in moved}
        left = [batch for batch in page if batch.delayed_id not in gone]
        if left:
            self._after = end
            self._held.update(batch.lane for batch in left)
            self._tell_left(len(left), left[0].subject)
        self._following = (now, await reading)
        return True

    def _begin_anew(self) -> None:
        self._after, self._following = BEGIN, NOTHING_READ
        self._held.clear()

    def _not_read(self, _: Failure) -> list[Batch]:
        return []  # it is read again, and said then

    def _tell_left(self, count: int, subject: str) -> None:
        def tell(more: int) -> None:
            self._logger.warn(
                "{count} runs that are due could not be handed on, as the first of {subject}:"
                " there is no place for their receivers, or for what is retained; they are tried"
                " again",
                count=count,
                subject=subject,
            )

        self._seldom.say("due", tell)

    def stored(self) -> None:
        """A group was stored: something may be due earlier than what was known of."""
        earliest = self._log.next_due()
        if earliest is not None and earliest != self._looked_at:
            self._due.look()

    # --- operations

    async def page(self, after: tuple[int, int], count: int) -> list[Delayed]:
        """Return the next runs that wait, in the order in which they are due."""
        found: list[Delayed] = await self._log.delayed(after, count)
        return found

    async def cancel(self, found: Found, count: int, reason: str) -> tuple[tuple[int, int], ...]:
        """Cancel this message, and `count` - 1 behind it; return what of these still waited.

        Raises `UnknownMessage` where none of them did.
        """
        last = found.sequence + count - 1
        wanted = Cancel(found.sender, found.incarnation, found.sequence, last, reason)
        # What was read before says of no run that a part of it is cancelled.
        ranges = await self._commits.cancel(wanted)
        self._was_cut = True
        if not ranges:
            raise UnknownMessage(f"{found.sender}/{found.sequence}")
        self._tracker.cancelled(wanted, ranges)
        return ranges
