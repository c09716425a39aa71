"""The subjects of which a message is retained, in memory: how many, how large, who is to have any.

The messages are in the log, which copies them for who joins (`records.Join`). Here is only what is
asked before that: whether one more may be retained, and what a receiver that joins would get. What
is on its way to the log counts, so that a receiver that joins meanwhile misses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgservice.core.subjects import SubjectMatcher
from msgservice.errors import LimitReached
from msgservice.limits import Limits

# Whatever is put is in the group under way when that was begun, or in the next: when two have
# ended, the log has said what became of it.
GROUPS = 2


class RetainedIndex:
    """The index of a node's retained messages: their subjects, and the bytes of each."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._coming: dict[str, int] = {}  # subject -> the groups that had ended when it was put
        self._groups = 0

    def load(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Take what the log has when it is opened."""
        self._sizes = dict(sizes)
        self._bytes = sum(self._sizes.values())

    def __contains__(self, subject: str) -> bool:
        return subject in self._sizes

    def has(self, subject: str) -> bool:
        """Whether a message of this subject is retained, or is on its way to the log."""
        return subject in self._sizes or subject in self._coming

    def check_room(self, subject: str, size: int) -> None:
        """Raise `LimitReached` unless a message of so many bytes may be retained."""
        limits, known = self._limits, self._sizes.get(subject)
        others = len(self._sizes) + len(self._coming)  # some twice, for a moment
        if known is None and subject not in self._coming and others >= limits.retained:
            raise LimitReached("retained", limits.retained)
        if self._bytes - (known or 0) + size > limits.retained_bytes:
            raise LimitReached("retained_bytes", limits.retained_bytes)

    def coming(self, subject: str) -> None:
        """A message that is to be retained is on its way to the log."""
        self._coming.pop(subject, None)  # it goes to the end: they leave in the order they came in
        self._coming[subject] = self._groups

    def stored(self, sizes: Sequence[tuple[str, int]]) -> None:
        """A group has ended, and the log says what is retained since."""
        self._groups += 1
        for subject, size in sizes:
            self._bytes += size - self._sizes.pop(subject, 0)
            if size:
                self._sizes[subject] = size
        while self._coming:
            subject = next(iter(self._coming))
            if self._coming[subject] > self._groups - GROUPS:
                break
            del self._coming[subject]

    def cleared(self, subjects: Iterable[str]) -> None:
        """These are retained no longer."""
        for subject in subjects:
            self._bytes -= self._sizes.pop(subject, 0)

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
