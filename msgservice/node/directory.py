"""Who receives what: receivers, their patterns, and the audience of each message.

The directory is what the log has stored of it, held in memory. A name that is removed and added
again is a new number; numbers are never used again. Changes take effect for batches that are
taken in afterwards (SEMANTICS 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nsmallest

from msgservice.core.subjects import SubjectMatcher, check_name, check_pattern
from msgservice.errors import LimitReached, UnknownReceiver
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.records import Audience, ReceiverRow


class Directory:
    """See the module. `made(audience)` is called for each audience the first time it is used."""

    def __init__(self, log: ILog, limits: Limits, made: Callable[[Audience], None]) -> None:
        self._log = log
        self._limits = limits
        self._made = made
        self._by_name: dict[str, ReceiverRow] = {}
        self._by_number: dict[int, ReceiverRow] = {}
        self._matcher: SubjectMatcher[int] = SubjectMatcher()
        self._next_number = 1
        self._by_subject: dict[str, Audience] = {}
        self._by_names: dict[tuple[str, ...], Audience] = {}
        self._names_held = 0  # in the keys of that
        self._known: set[int] = set()
        self._suspended: set[int] = set()  # numbers that are left out of patterns' audiences

    # --- getters

    def __iter__(self) -> Iterator[ReceiverRow]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> ReceiverRow | None:
        """The receiver of this name, or None."""
        return self._by_name.get(name)

    def named(self, name: str) -> ReceiverRow:
        """The receiver of this name; `UnknownReceiver` if there is none."""
        row = self._by_name.get(name)
        if row is None:
            raise UnknownReceiver(name)
        return row

    def numbered(self, number: int) -> ReceiverRow | None:
        """The receiver of this number, removed ones too, or None."""
        return self._by_number.get(number)

    def names_after(self, name: str, count_max: int) -> list[str]:
        """The first `count_max` names of receivers behind this one, rising."""
        return nsmallest(count_max, (one for one in self._by_name if one > name))

    def names(self, audience: Audience) -> list[str]:
        """The names behind an audience."""
        rows = (self._by_number.get(number) for number in audience.members)
        return [row.name for row in rows if row is not None]

    # --- audiences

    def audience(self, subject: str) -> Audience:
        """The audience of a subject now, without who is suspended (SEMANTICS 18).

        The subject must be well-formed.
        """
        found = self._by_subject.get(subject)
        if found is None:
            found = self._intern(self._matcher.match(subject) - self._suspended)
            if len(self._by_subject) >= self._limits.subjects:
                self._by_subject.clear()  # a cache: what is used comes back
            self._by_subject[subject] = found
        return found

    def audience_of(self, names: Sequence[str]) -> Audience:
        """The audience that consists of these, suspended or not.

        `UnknownReceiver` names the first unknown one.
        """
        key = tuple(names)
        found = self._by_names.get(key)
        if found is None:
            found = self._intern(self.named(name).number for name in key)
            # Each entry holds its names: they are what takes memory, not the entries.
            self._names_held += len(key)
            if self._names_held > self._limits.subjects:
                self._by_names.clear()
                self._names_held = len(key)
            self._by_names[key] = found
        return found

    def _intern(self, numbers: Iterable[int]) -> Audience:
        audience = self._log.audience(tuple(sorted(set(numbers))))
        if audience.number not in self._known:
            self._known.add(audience.number)
            self._made(audience)
        return audience

    # --- changes, in memory; the caller stores the row

    def load(self, rows: Iterable[ReceiverRow], audiences: Iterable[Audience]) -> None:
        """Take over what the log has. Who was suspended is judged anew (`Dispatch.judge`)."""
        for row in rows:
            self._next_number = max(self._next_number, row.number + 1)
            self._by_number[row.number] = row
            if not row.removed:
                self._by_name[row.name] = row
                for pattern in row.patterns:
                    self._matcher.add(pattern, row.number)
        for audience in audiences:
            self._known.add(audience.number)
            self._made(audience)

    def new_row(self, name: str, patterns: Sequence[str]) -> ReceiverRow:
        """Return a row for a name that is not there yet; `add` makes it count."""
        check_name(name)
        self._check_patterns(patterns)
        if len(self._by_name) >= self._limits.receivers:
            raise LimitReached("receivers", self._limits.receivers)
        row = ReceiverRow(number=self._next_number, name=name, patterns=tuple(patterns), cursor=-1)
        self._next_number += 1
        return row

    def add(self, row: ReceiverRow) -> None:
        """From now on it is part of audiences."""
        self._by_name[row.name] = row
        self._by_number[row.number] = row
        for pattern in row.patterns:
            self._matcher.add(pattern, row.number)
        self._forget()

    def set_patterns(self, row: ReceiverRow, patterns: Sequence[str]) -> None:
        """Change what it receives from now on."""
        self._check_patterns(patterns)
        for pattern in row.patterns:
            self._matcher.remove(pattern, row.number)
        row.patterns = tuple(patterns)
        for pattern in row.patterns:
            self._matcher.add(pattern, row.number)
        self._forget()

    def set_suspended(self, row: ReceiverRow, suspended: bool) -> None:
        """Leave it out of the audiences of subjects from now on, or take it in again."""
        row.suspended = suspended
        if suspended:
            self._suspended.add(row.number)
        else:
            self._suspended.discard(row.number)
        self._by_subject.clear()

    def remove(self, row: ReceiverRow) -> None:
        """It is part of no audience from now on."""
        for pattern in row.patterns:
            self._matcher.remove(pattern, row.number)
        row.removed = True
        self._suspended.discard(row.number)
        del self._by_name[row.name]
        self._forget()

    def _forget(self) -> None:
        self._by_subject.clear()
        self._by_names.clear()
        self._names_held = 0

    def _check_patterns(self, patterns: Sequence[str]) -> None:
        if len(patterns) > self._limits.patterns:
            raise LimitReached("patterns", self._limits.patterns)
        if len(set(patterns)) != len(patterns):
            raise ValueError("a pattern is given twice")
        for pattern in patterns:
            check_pattern(pattern)
