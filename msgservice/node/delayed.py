"""The messages of a node that wait until they are due: moved then, or cancelled before.

They wait in the log, and nowhere else. `due.Due` says when the earliest is due; they are moved a
page at a time, with the groups of `commits`, which decide for whom each is. A page has as many of
them that no turn of the reactor is long, whatever is due in the same second (`page_size`): in one
turn those of a page are told to their senders and handed to their receivers, and it is decided for
whom those of the next are.
"""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.errors import LogUnavailable, UnknownMessage
from msgservice.interfaces import ILog
from msgservice.node.commits import Commits
from msgservice.node.due import Due
from msgservice.node.page_size import PageSize
from msgservice.node.seldom import Seldom
from msgservice.node.tracker import Tracker
from msgservice.records import Batch, Cancel, Delayed, Found, Lane

TURN = 0.03  # seconds of a turn of the reactor, about, for the page that is told in it
# Runs of one page: of the first; at least, since each is a group with its sync; and at most.
PAGE_FIRST, PAGE_LEAST, PAGE_MOST = 500, 500, 2000
READ_AGAIN = 1000  # ms after which a page that was read ahead is not used any more
BEGIN = (0, 0)


class _Page(NamedTuple):
    """A page of what is due, and when it was read, ms of `Due`."""

    at: int
    batches: list[Batch]

    @property
    def end(self) -> tuple[int, int]:
        """Behind its last."""
        return self.batches[-1].due_at, self.batches[-1].delayed_id


NOTHING = _Page(0, [])


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
        self._held: set[Lane] = set()  # the lanes of that: nothing overtakes
        self._page_size = PageSize(seconds=TURN, first=PAGE_FIRST, least=PAGE_LEAST, most=PAGE_MOST)
        self._cancelling = 0  # cancels that are not stored yet
        self._was_cut = False  # something was cancelled since a page was read from the first on
        self._before: Deferred[bool] | None = None  # the page that is being stored
        self._following: Deferred[_Page] | None = None  # the page that is read ahead
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
        """Hand over a page, and wait for the one before: it is written while that is told."""
        before, self._before = self._before, None
        following, self._following = self._following, None
        page = NOTHING if following is None else await following
        # That one may have failed while this page was read, and is not followed then.
        if before is not None and (before.called or not self._may_follow(page, now)):
            if not await before:
                return self._fail()
            before = None
        if before is None:
            if self._is_cut:
                # What is left of a run goes before what was behind it: all is looked at anew.
                self._begin_anew()
                page = NOTHING
            if now - page.at > READ_AGAIN or not page.batches:
                page = _Page(now, await self._log.due(now, self._after, self._page_size.now))
            if not page.batches:
                self._begin_anew()
                return False
        moving = Deferred.fromCoroutine(self._hand_over(page))
        # While this page is written the next is read. Nothing comes before it any more: what is
        # accepted from now on is due later than this moment.
        self._following = Deferred.fromCoroutine(self._read(now, page.end))
        if before is not None and not await before:
            await moving  # it was not stored either
            return self._fail()
        self._before = moving
        return True

    @property
    def _is_cut(self) -> bool:
        """Whether what was read may say nothing of a part that is cancelled."""
        return self._was_cut or self._cancelling > 0

    def _may_follow(self, page: _Page, now: int) -> bool:
        """Whether a page is handed over while the one before is not stored yet.

        Not into the same group: a turn of the reactor would be as long as both.
        """
        is_fresh = bool(page.batches) and now - page.at <= READ_AGAIN
        return is_fresh and not self._is_cut and not self._commits.has_due

    async def _read(self, now: int, after: tuple[int, int]) -> _Page:
        try:
            return _Page(now, await self._log.due(now, after, self._page_size.now))
        except Exception:
            return NOTHING  # it is read again, and said then

    async def _hand_over(self, page: _Page) -> bool:
        """Store a page; fires with whether it is, but for what finds no place."""
        batches = page.batches
        going = [one for one in batches if one.lane not in self._held] if self._held else batches
        moved: list[Batch] = []
        if going:
            try:
                moved = await self._commits.due(going, self._held)
            except LogUnavailable:
                return False  # the commits have said so; it is tried again
            self._page_size.took(len(going), self._commits.lasted.told)
        gone = {batch.delayed_id for batch in moved}
        left = [batch for batch in batches if batch.delayed_id not in gone]
        if left:
            self._after = page.end
            self._tell_left(len(left), left[0].subject)
        return True

    def _fail(self) -> bool:
        self._begin_anew()
        return False

    def _begin_anew(self) -> None:
        self._after, self._following, self._was_cut = BEGIN, None, False
        self._held.clear()

    def _tell_left(self, count: int, subject: str) -> None:
        def tell(more: int) -> None:
            self._logger.warn(
                "{count} runs that are due could not be handed on, as the first of {subject}:"
                " there is no place for their receivers, for what is retained, or on the disk; they"
                " are tried again",
                line="due-without-room",
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
        self._cancelling += 1
        try:
            ranges = await self._commits.cancel(wanted)
        finally:
            self._cancelling -= 1
            self._was_cut = True
        if not ranges:
            raise UnknownMessage(f"{found.sender}/{found.sequence}")
        self._tracker.cancelled(wanted, ranges)
        return ranges
