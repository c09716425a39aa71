"""The subjects of which a message is retained, in memory: how many, how large, who is to have any.

The messages are in the log, which copies them for who joins (`records.Join`). Here is only what is
asked before that: whether one more may be retained, and what a receiver that joins would get. What
is on its way to the log counts, so that a receiver that joins meanwhile misses nothing.

One that has expired is nobody's any more: `ExpiredRetained` has the log let go of it, a page at a
time, so that it counts for no limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from msgservice.core.subjects import SubjectMatcher
from msgservice.errors import LimitReached, LogUnavailable
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.node.due import Due

# Whatever is put is in the group under way when that was begun, or in the next: when two have
# ended, the log has said what became of it.
GROUPS = 2
PAGE = 1000  # subjects whose messages have expired, of which the log lets go at once
SPARE = 1024  # times that hold no more, at most, and as many more as there are that do

# Of a subject: the bytes of what is retained, 0: nothing is; and when it expires, 0: never.
Kept = tuple[str, int, int]


class RetainedIndex:
    """The index of a node's retained messages: their subjects, the bytes and the end of each."""

    _logger = Logger()

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._expires: dict[str, int] = {}  # of those that do
        self._times: list[tuple[int, str]] = []  # a heap of the same, and of what was so once
        # Subject -> the groups that had ended when it was put, and its bytes.
        self._coming: dict[str, tuple[int, int]] = {}
        self._more = 0  # bytes that these take beyond what is retained of their subjects
        self._groups = 0

    def load(self, kept: Iterable[Kept]) -> None:
        """Take what the log has when it is opened."""
        for one in kept:
            self._keep(*one)
        limits = self._limits
        if len(self._sizes) > limits.retained or self._bytes > limits.retained_bytes:
            self._logger.warn(
                "{count} messages of {size} bytes are retained, more than retained = {limit} and"
                " retained_bytes = {bytes_limit} allow: they stay, and until there are fewer no"
                " other subject has one, and none takes the place of a smaller one",
                line="retained-beyond-limits",
                count=len(self._sizes),
                size=self._bytes,
                limit=limits.retained,
                bytes_limit=limits.retained_bytes,
            )

    def _more_of(self, subject: str) -> int:
        """Return the bytes that what is on its way takes beyond what is retained of its subject."""
        coming = self._coming.get(subject)
        return 0 if coming is None else max(0, coming[1] - self._sizes.get(subject, 0))

    def _keep(self, subject: str, size: int, expires_at: int) -> None:
        self._more -= self._more_of(subject)
        self._bytes += size - self._sizes.pop(subject, 0)
        self._expires.pop(subject, None)
        if size:
            self._sizes[subject] = size
        self._more += self._more_of(subject)
        if not size:
            return
        if expires_at:
            self._expires[subject] = expires_at
            heappush(self._times, (expires_at, subject))
            if len(self._times) > 2 * len(self._expires) + SPARE:
                self._times = [(at, name) for name, at in self._expires.items()]
                heapify(self._times)

    def __contains__(self, subject: str) -> bool:
        return subject in self._sizes

    def has(self, subject: str) -> bool:
        """Whether a message of this subject is retained, or is on its way to the log."""
        return subject in self._sizes or subject in self._coming

    def check_room(self, subject: str, size: int) -> None:
        """Raise `LimitReached` unless a message of so many bytes may be retained."""
        limits, known = self._limits, self._sizes.get(subject)
        if known is None and subject not in self._coming:
            others = len(self._sizes) + len(self._coming)
            if others >= limits.retained:  # then those that count twice are looked for
                others -= sum(one in self._sizes for one in self._coming)
            if others >= limits.retained:
                raise LimitReached("retained", limits.retained)
        # The limit may have been higher: what makes it less is taken.
        others = self._bytes + self._more - (known or 0) - self._more_of(subject)
        if others + size > limits.retained_bytes and size > (known or 0):
            raise LimitReached("retained_bytes", limits.retained_bytes)

    def coming(self, subject: str, size: int) -> None:
        """A message that is to be retained, of so many bytes, is on its way to the log."""
        self._more -= self._more_of(subject)
        self._coming.pop(subject, None)  # it goes to the end: they leave in the order they came in
        self._coming[subject] = (self._groups, size)
        self._more += self._more_of(subject)

    def stored(self, kept: Sequence[Kept]) -> None:
        """A group has ended, and the log says what is retained since."""
        self._groups += 1
        for one in kept:
            self._keep(*one)
        while self._coming:
            subject = next(iter(self._coming))
            if self._coming[subject][0] > self._groups - GROUPS:
                break
            self._more -= self._more_of(subject)
            del self._coming[subject]

    def all_stored(self) -> None:
        """Nothing is on its way: no group is under way, and none is to be."""
        self._coming.clear()
        self._more = 0

    def cleared(self, subjects: Iterable[str]) -> None:
        """These are retained no longer."""
        for subject in subjects:
            self._keep(subject, 0, 0)

    def expires_first(self) -> int | None:
        """The time when the first of these expires, or None."""
        times = self._times
        while times and self._expires.get(times[0][1]) != times[0][0]:
            heappop(times)
        return times[0][0] if times else None

    def expired(self, now: int, count_max: int) -> list[str]:
        """Return the subjects of which the message has expired, the first ones first."""
        found: dict[str, None] = {}
        while len(found) < count_max:
            first = self.expires_first()
            if first is None or first > now:
                break
            found[heappop(self._times)[1]] = None
        for subject in found:  # they are so until the log has let go of them
            heappush(self._times, (self._expires[subject], subject))
        return [*found]

    def clear_expired(self, subjects: Iterable[str], now: int) -> None:
        """The log has let go of these, as far as they had expired by then."""
        self.cleared([one for one in subjects if 0 < self._expires.get(one, 0) <= now])

    def is_for(self, patterns: Sequence[str], before: Sequence[str] = (), *, check: bool) -> bool:
        """Whether who has these subjects from now on, and had not before, is to have any.

        `check`: raise `LimitReached` where there are more than it may get at first.
        """
        if not (self._sizes or self._coming):
            return False
        wanted: SubjectMatcher[bool] = SubjectMatcher()
        for pattern in patterns:
            wanted.add(pattern, True)
        for pattern in before:
            wanted.add(pattern, False)
        limits = self._limits
        count = size = 0
        for subject, one in self._sizes.items():
            if wanted.match(subject) != {True}:
                continue
            if not check:
                return True
            count += 1
            size += one
            if count > limits.retained_at_join:
                raise LimitReached("retained_at_join", limits.retained_at_join)
            if size > limits.retained_at_join_bytes:
                raise LimitReached("retained_at_join_bytes", limits.retained_at_join_bytes)
        return count > 0 or any(wanted.match(subject) == {True} for subject in self._coming)


class ExpiredRetained:
    """The retained messages that expire, as a `due.Source`."""

    def __init__(self, log: ILog, index: RetainedIndex, due: Due) -> None:
        self._log = log
        self._index = index
        self._due = due
        self._looked_at: int | None = None  # the earliest that `due` knows of

    def stored(self) -> None:
        """A group was stored: something may expire earlier than what was known of."""
        earliest = self._index.expires_first()
        if earliest is not None and earliest != self._looked_at:
            self._due.look()

    def earliest(self) -> int | None:
        """See `due.Source`."""
        self._looked_at = self._index.expires_first()
        return self._looked_at

    def act(self, now: int) -> Deferred[bool]:
        """See `due.Source`."""
        return Deferred.fromCoroutine(self._act(now))

    async def _act(self, now: int) -> bool:
        subjects = self._index.expired(now, PAGE)
        try:
            await self._log.clear_retained(subjects, now)
        except LogUnavailable:
            return False  # tried again, as long as the disk has no room
        self._index.clear_expired(subjects, now)
        return True
