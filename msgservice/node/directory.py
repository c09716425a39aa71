"""The directory of receivers: their patterns, and the audience of each message.

The directory is what the log has stored of it, held in memory. A name that is removed and added
again is a new number; numbers are never used again. Changes take effect for batches that are
stored with a group that starts afterwards (SEMANTICS 8); `version` says that there was one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import nsmallest

from twisted.logger import Logger

from msgservice.core.subjects import (
    SubjectMatcher,
    check_name,
    check_pattern,
    check_subject,
    count_tokens,
    is_reserved,
)
from msgservice.errors import BadSubject, LimitReached, LogFull, Refused, UnknownReceiver
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.records import Audience, ReceiverRow
from msgservice.transport.addresses import is_node


class BacklogFull(LogFull):
    """A receiver of the audience takes nothing now: the reason as it is, which names it."""

    def __str__(self) -> str:
        return self.reason


def _all_of_them(row: ReceiverRow) -> Sequence[str]:
    return row.patterns


class Directory:
    """The registry of receivers and their subscriptions, which resolves a subject to its audience.

    `made(audience)` is called for each audience the first time it is used, `unmade(audience)` when
    nothing is left that has it. `receivable(row)` says which of its patterns a receiver may receive
    now: the others are its, and match nothing (`judge`).
    """

    _logger = Logger()

    def __init__(
        self,
        log: ILog,
        limits: Limits,
        made: Callable[[Audience], None],
        unmade: Callable[[Audience], None],
        receivable: Callable[[ReceiverRow], Sequence[str]] = _all_of_them,
    ) -> None:
        self._log = log
        self._limits = limits
        self._made = made
        self._unmade = unmade
        self._receivable = receivable
        self.version = 0  # grows with every change of who receives what
        self._by_name: dict[str, ReceiverRow] = {}
        self._by_number: dict[int, ReceiverRow] = {}
        self._matcher: SubjectMatcher[int] = SubjectMatcher()
        self._narrowed: dict[int, tuple[str, ...]] = {}  # number -> what counts, where not all does
        self._next_number = 1
        self._checked: dict[str, None] = {}  # subjects
        self._by_subject: dict[str, Audience] = {}
        self._by_names: dict[tuple[str, ...], Audience] = {}
        self._names_held = 0  # in the keys of that
        self._by_path: dict[tuple[int, frozenset[int]], Audience] = {}
        self._nodes: set[int] = set()  # numbers of receivers that are nodes, by their address
        self._next_nodes: dict[int, str] = {}  # number of a receiver that is a node -> its log id
        self._known: dict[int, Audience] = {}
        self._asked_by: dict[int, str] = {}  # audience that `to` has made -> its sender
        self._asked: Counter[str] = Counter()  # sender -> how many of them
        self._looked = False  # for room among the sets that `to` makes, since the node did
        self._told_full = False  # that an audience was refused, since there was room
        self._suspended: set[int] = set()  # numbers that are left out of patterns' audiences
        self._starting: set[int] = set()  # numbers that are in no audience until their last page
        self._addressable: set[int] = set()  # numbers that have a name and are not retired
        self._owned: dict[str, int] = {}  # name that nobody has, and somebody owns -> its newest

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

    def was_removed(self, name: str, number: int) -> bool:
        """Whether the receiver of this name and number was removed, and no other has its name.

        A number that was not given yet, or to another name, is of a log that was put back since.
        """
        if name in self._by_name or not 0 < number < self._next_number:
            return False
        row = self._by_number.get(number)  # forgotten, when nothing refers to it any more
        return row is None or (row.removed and row.name == name)

    def newest(self, name: str) -> ReceiverRow | None:
        """The receiver of this name, or the last that had it if that says whose it is; or None."""
        row = self._by_name.get(name)
        return row if row is not None else self._by_number.get(self._owned.get(name, -1))

    def owner_of(self, name: str) -> str | None:
        """The user whose the name of a receiver is, empty: nobody's; None where there is none."""
        row = self.newest(name)
        return None if row is None else row.owner

    def own(self, row: ReceiverRow, user: str) -> None:
        """Give the newest receiver of a name to a user, empty: to nobody."""
        row.owner = user
        if row.removed and not user:
            self._owned.pop(row.name, None)
        self._judge((row,))

    def withheld(self, row: ReceiverRow) -> tuple[str, ...]:
        """Return the patterns of a receiver that match nothing, since it may not receive them."""
        narrowed = self._narrowed.get(row.number)
        if narrowed is None:
            return ()
        return tuple([pattern for pattern in row.patterns if pattern not in narrowed])

    def is_retired(self, row: ReceiverRow) -> bool:
        """Whether a receiver is in no audience any more, though it still has its name."""
        return row.number not in self._addressable

    def names_after(self, name: str, count_max: int) -> list[str]:
        """The first `count_max` names of receivers behind this one, rising."""
        return nsmallest(count_max, (one for one in self._by_name if one > name))

    def names(self, audience: Audience) -> list[str]:
        """The names behind an audience."""
        rows = (self._by_number.get(number) for number in audience.members)
        return [row.name for row in rows if row is not None]

    # --- audiences

    def check(self, subject: str) -> None:
        """Raise `BadSubject` or `Refused` unless messages may be sent to the subject.

        What was found well-formed is remembered once for all senders: for each connection it would
        be megabytes that one peer can have as often as it may connect.
        """
        if subject not in self._checked:
            check_subject(subject)
            if is_reserved(subject):
                raise Refused(f"subject {subject!r} is the node's own")
            if len(self._checked) >= self._limits.subjects:
                self._checked.clear()
            self._checked[subject] = None

    def next_node(self, row: ReceiverRow, log_id: str) -> None:
        """A receiver is a node, with this log: it gets nothing that has been there."""
        if self._next_nodes.get(row.number) != log_id:
            self._next_nodes[row.number] = log_id
            self._changed()

    def addressed(self, row: ReceiverRow) -> None:
        """A receiver is there, at this address: a node's, or none."""
        (self._nodes.add if is_node(row.address) else self._nodes.discard)(row.number)

    def has_been_at(self, row: ReceiverRow, path: Sequence[str]) -> bool:
        """Whether a receiver is a node whose log `path` names: it takes that for nobody."""
        return self._next_nodes.get(row.number) in path

    def is_next_node(self, row: ReceiverRow) -> bool:
        """Whether a receiver is a node, by its address."""
        return row.number in self._nodes

    def no_next_node(self, row: ReceiverRow) -> None:
        """A receiver is a node no longer: it gets all that matches, wherever that has been."""
        if self._next_nodes.pop(row.number, None) is not None:
            self._changed()

    def audience(self, subject: str, path: Sequence[str] = ()) -> Audience:
        """The audience of a subject now, without who is suspended (SEMANTICS 18), or starts (47).

        Nor with the nodes that `path` names, the logs that a run has passed (SEMANTICS 29). The
        subject must be well-formed.
        """
        if path and self._next_nodes:
            been = [number for number, log_id in self._next_nodes.items() if log_id in path]
            if been:
                return self._without(self.audience(subject), frozenset(been))
        found = self._by_subject.get(subject)
        if found is None or found.is_gone:
            found = self._intern(self._matcher.match(subject) - self._suspended - self._starting)
            if len(self._by_subject) >= self._limits.subjects:
                self._by_subject.clear()  # a cache: what is used comes back
            self._by_subject[subject] = found
        return found

    def next_nodes(self, subject: str, path: Sequence[str] = ()) -> Audience:
        """The audience of a subject that is only retained: nodes, which retain it too."""
        if not self._nodes:
            return self.nobody()
        return self._intern(self._nodes.intersection(self.audience(subject, path).members))

    def nobody(self) -> Audience:
        """Return the audience without receivers."""
        return self._intern(())

    def _without(self, audience: Audience, numbers: frozenset[int]) -> Audience:
        if numbers.isdisjoint(audience.members):
            return audience
        key = audience.number, numbers
        found = self._by_path.get(key)
        if found is None or found.is_gone:
            found = self._intern(set(audience.members) - numbers)
            if len(self._by_path) >= self._limits.subjects:
                self._by_path.clear()
            self._by_path[key] = found
        return found

    def audience_of(self, names: Sequence[str], sender: str = "") -> Audience:
        """Return the audience of these receivers, suspended or not; `sender` asks for it.

        `UnknownReceiver` names the first unknown one; `BacklogFull` one that has to have its
        history first. `LimitReached`: one sender may have only so
        many sets, and all together leave room for those that patterns make.
        """
        key = tuple(names)
        found = self._by_names.get(key)
        if found is None or found.is_gone:
            found = self._intern((self._addressed(name) for name in key), sender)
            # Each entry holds its names: they are what takes memory, not the entries.
            self._names_held += len(key)
            if self._names_held > self._limits.subjects:
                self._by_names.clear()
                self._names_held = len(key)
            self._by_names[key] = found
        return found

    def alone(self, row: ReceiverRow) -> Audience:
        """Return the audience of one receiver, suspended or not. Raises `LimitReached`."""
        return self._intern((row.number,))

    def audience_again(self, audience: Audience, sender: str) -> Audience:
        """Return the audience of the names behind one that `to` has made, as they are now.

        Raises as `audience_of`. Nothing is done for each name where all of them are who they were.
        """
        members = audience.members
        if self._addressable.issuperset(members) and self._starting.isdisjoint(members):
            return audience
        names = self.names(audience)
        if len(names) < len(audience.members):  # even its number is forgotten
            raise UnknownReceiver("a receiver that was removed")
        return self.audience_of(names, sender)

    def _addressed(self, name: str) -> int:
        row = self.named(name)
        if self.is_retired(row):
            raise UnknownReceiver(name)
        if row.number in self._starting:
            raise BacklogFull(f"receiver {name!r} has not had all of its history yet")
        return row.number

    def audience_alone(self, row: ReceiverRow) -> Audience:
        """Return the audience of one receiver, for copies. Raises `LimitReached`."""
        return self._intern([row.number])

    def matching(self, row: ReceiverRow) -> tuple[str, ...]:
        """Return the patterns of a receiver that count: without what it may not receive."""
        return self._counting(row)

    def set_starting(self, row: ReceiverRow, starting: bool) -> None:
        """Leave a receiver out of all audiences, or take it in: its history is copied first."""
        if starting:
            self._starting.add(row.number)
        else:
            self._starting.discard(row.number)
        self._changed()

    def _intern(self, numbers: Iterable[int], sender: str | None = None) -> Audience:
        members = tuple(sorted(set(numbers)))
        if len(self._known) >= 2 * self._limits.audiences:
            self.collect()  # what the log has forgotten meanwhile
        try:
            audience = self._log.audience(members)
            if audience.number not in self._known:
                if not audience.stored:
                    if sender is not None:
                        self._check_asked(sender)
                    audience.asked_by = sender
                self._count_asked(audience)
                self._known[audience.number] = audience
                self._made(audience)
        except LimitReached as limit:
            self._log.want_room(limit.limit, sender or "")
            if not self._told_full:
                self._told_full = True
                self._logger.warn(
                    "no new set of receivers is taken, the last from {sender}: {error}; messages"
                    " for one wait with their senders",
                    line="audience-refused",
                    sender="a subject" if sender is None else f"'to' of {sender!r}",
                    error=str(limit),
                )
            raise
        return audience

    def _count_asked(self, audience: Audience) -> None:
        if audience.asked_by is not None:
            self._asked_by[audience.number] = audience.asked_by
            self._asked[audience.asked_by] += 1

    def _check_asked(self, sender: str) -> None:
        limits = self._limits
        if self._asked[sender] >= limits.sender_audiences:
            self._make_room()
            if self._asked[sender] >= limits.sender_audiences:
                raise LimitReached("sender_audiences", limits.sender_audiences)
        if len(self._asked_by) >= limits.to_audiences_max:
            self._make_room()
            if len(self._asked_by) >= limits.to_audiences_max:
                raise LimitReached("to_audiences", limits.to_audiences_max)

    def _make_room(self) -> None:
        """Collect, unless that was done since the node last did: one frame costs no look at all."""
        if not self._looked:
            self.collect()
            self._looked = True

    def collect(self) -> None:
        """Let go of the audiences that nothing has any more, and of forgotten receivers."""
        self._looked = False
        unused = [one for one in self._known.values() if not one.stored and not one.waiting]
        for audience in unused:
            del self._known[audience.number]
            sender = self._asked_by.pop(audience.number, None)
            if sender is not None:
                self._asked[sender] -= 1
                if not self._asked[sender]:
                    del self._asked[sender]
            self._unmade(audience)
        if unused:
            self._forget()
            self._told_full = False
        for number in self._log.take_forgotten():
            self._by_number.pop(number, None)

    # --- changes, in memory; the caller stores the row

    def load(self, rows: Iterable[ReceiverRow], audiences: Iterable[Audience]) -> None:
        """Take over what the log has. Who was suspended is judged anew (`Dispatch.judge`)."""
        for row in rows:
            self._next_number = max(self._next_number, row.number + 1)
            self._by_number[row.number] = row
            if not row.removed:
                self._by_name[row.name] = row
                self._addressable.add(row.number)
                self.addressed(row)
                self._enter(row)
                if is_node(row.address) and row.inbox:
                    self._next_nodes[row.number] = row.inbox
        for row in sorted(self._by_number.values(), key=lambda row: row.number):
            self._note_owner(row)
        for audience in audiences:
            self._known[audience.number] = audience
            self._count_asked(audience)
            self._made(audience)

    def _note_owner(self, row: ReceiverRow) -> None:
        """Know the owner of a removed receiver's name, unless a newer one has the name."""
        self._owned.pop(row.name, None)
        if row.removed and row.owner and row.name not in self._by_name:
            self._owned[row.name] = row.number

    def new_row(
        self, name: str, patterns: Sequence[str], *, configured: bool = False
    ) -> ReceiverRow:
        """Return a row for a name that is not there yet; `add` makes it count.

        `configured`: the configuration has it, which bounds how often that happens: a node that
        could not make it would not start.
        """
        name = check_name(name)
        patterns = self._checked_patterns(patterns, ())
        if len(self._by_name) >= self._limits.receivers:
            raise LimitReached("receivers", self._limits.receivers)
        removed = len(self._by_number) - len(self._by_name)
        if removed >= self._limits.removed_receivers and not configured:
            self._log.want_room("removed_receivers")
            raise LimitReached("removed_receivers", self._limits.removed_receivers)
        row = ReceiverRow(
            number=self._next_number,
            name=name,
            patterns=patterns,
            cursor=-1,
            owner=self.owner_of(name) or "",
        )
        self._next_number += 1
        return row

    def add(self, row: ReceiverRow) -> None:
        """From now on it is part of audiences."""
        self._by_name[row.name] = row
        self._by_number[row.number] = row
        self._addressable.add(row.number)
        self._owned.pop(row.name, None)
        self.addressed(row)
        self._enter(row)
        self._changed()

    def set_patterns(self, row: ReceiverRow, patterns: Sequence[str]) -> None:
        """Change the subscription of a receiver from now on."""
        patterns = self._checked_patterns(patterns, self._counting(row))
        self._leave(row)
        row.patterns = patterns
        self._enter(row)
        self._changed()

    def judge(self) -> None:
        """Ask anew which patterns receivers may receive: the rules of users have changed."""
        self._judge(self)

    def _judge(self, rows: Iterable[ReceiverRow]) -> None:
        others = [
            row
            for row in rows
            if row.number in self._addressable
            and tuple(self._receivable(row)) != self._counting(row)
        ]
        for row in others:
            self._leave(row)
            self._enter(row)
        if others:
            self._changed()

    def _counting(self, row: ReceiverRow) -> tuple[str, ...]:
        return self._narrowed.get(row.number, row.patterns)

    def _enter(self, row: ReceiverRow) -> None:
        patterns = tuple(self._receivable(row))
        if patterns != row.patterns:
            self._narrowed[row.number] = patterns
        for pattern in patterns:
            self._matcher.add(pattern, row.number)

    def _leave(self, row: ReceiverRow) -> None:
        for pattern in self._counting(row):
            self._matcher.remove(pattern, row.number)
        self._narrowed.pop(row.number, None)

    def set_suspended(self, row: ReceiverRow, suspended: bool) -> None:
        """Suspend a receiver: leave it out of new audiences of subjects, or take it in again."""
        row.suspended = suspended
        if suspended:
            self._suspended.add(row.number)
        else:
            self._suspended.discard(row.number)
        self._changed()

    def retire(self, row: ReceiverRow) -> None:
        """The receiver is part of no audience from now on. Its name is taken until `remove`."""
        try:
            self._leave(row)
            self._addressable.discard(row.number)
            self._changed()
        except Exception:
            self.reinstate(row)
            raise

    def reinstate(self, row: ReceiverRow) -> None:
        """The receiver is not removed after all: it is part of audiences as before."""
        self._addressable.add(row.number)
        self._enter(row)
        self._changed()

    def remove(self, row: ReceiverRow) -> None:
        """The receiver, which is retired, is removed: its name is free."""
        assert self.is_retired(row)
        self._suspended.discard(row.number)
        self._starting.discard(row.number)
        self._next_nodes.pop(row.number, None)
        self._nodes.discard(row.number)
        row.removed = True
        del self._by_name[row.name]
        self._note_owner(row)

    def _changed(self) -> None:
        self.version += 1
        self._forget()

    def _forget(self) -> None:
        self._by_subject.clear()
        self._by_names.clear()
        self._names_held = 0
        self._by_path.clear()

    def _checked_patterns(self, patterns: Sequence[str], before: Sequence[str]) -> tuple[str, ...]:
        limits = self._limits
        if len(patterns) > limits.patterns:
            raise LimitReached("patterns", limits.patterns)
        more = sum(map(count_tokens, patterns)) - sum(map(count_tokens, before))
        if more > 0 and self._matcher.tokens + more > limits.pattern_tokens:
            raise LimitReached("pattern_tokens", limits.pattern_tokens)
        for pattern, times in Counter(patterns).items():
            if times > 1:
                raise BadSubject(pattern, "it is given twice")
        return tuple([check_pattern(pattern) for pattern in patterns])
