"""A model of the log in plain dicts, and random histories of groups that both must agree on.

The model knows what was stored, for whom, and what each receiver has settled; nothing of SQLite,
cursors or ranges. `LogHistory` draws a group, hands it to the log, and, when the log has told its
outcome, to the model. `check` compares everything that a log can be asked with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from msgservice.core.ranges import RangeSet
from msgservice.errors import ContentChanged
from msgservice.limits import INTEGER_MAX
from msgservice.log.base import StoreLog
from msgservice.message import Status, cut_messages, decode_messages
from msgservice.records import (
    Batch,
    DeadLetter,
    ExceptionRow,
    Group,
    Known,
    Outcome,
    Progress,
    ReceiverRow,
    RefusedBatch,
    Snapshot,
    position_of,
)
from msgservice.recount import recount
from tests.kit.logs import NOW, append, make_batch

T = TypeVar("T")
Key = tuple[str, str]
Wait = Callable[[Deferred[Any]], Any]
SENDERS: tuple[Key, ...] = (("shop", "i1"), ("shop", "i2"), ("web", "i1"))
SUBJECTS = ("lane.1", "lane.2")
READ_ALL = 1 << 30


@dataclass(slots=True)
class Stored:
    """A batch that is in the log, or was."""

    number: int
    key: Key
    sequence: int
    bodies: list[bytes]
    subject: str
    members: frozenset[int]


@dataclass(slots=True)
class Receiver:
    """A receiver: what became of its messages, by position; what is in neither is open."""

    number: int
    final: dict[int, Status] = field(default_factory=dict)
    letters: set[int] = field(default_factory=set)
    removed: bool = False


@dataclass
class LogModel:
    """What was told to be in the log."""

    batches: list[Stored] = field(default_factory=list)
    taken: dict[Key, dict[int, Stored]] = field(default_factory=dict)
    receivers: dict[int, Receiver] = field(default_factory=dict)

    def next_sequence(self, key: Key) -> int:
        """Return the sequence above all that was taken."""
        return max(self.taken.get(key, {}), default=0) + 1

    def positions(self, receiver: int) -> dict[int, Stored]:
        """Return all that was routed to a receiver, rising."""
        return {
            position_of(batch.number, index): batch
            for batch in self.batches
            if receiver in batch.members
            for index in range(len(batch.bodies))
        }

    def open_of(self, receiver: int) -> list[int]:
        """Return the positions that a receiver has still to settle, rising."""
        final = self.receivers[receiver].final
        return [position for position in self.positions(receiver) if position not in final]

    def store(self, batch: Batch) -> None:
        """Take over a batch that was stored."""
        stored = Stored(
            batch.number,
            (batch.sender, batch.incarnation),
            batch.sequence,
            [message.body for message in decode_messages(batch.messages)],
            batch.subject,
            frozenset(batch.audience.members),
        )
        self.batches.append(stored)
        taken = self.taken.setdefault(stored.key, {})
        for sequence in range(batch.sequence, batch.sequence + batch.count):
            assert sequence not in taken, f"{stored.key} {sequence} was stored twice"
            taken[sequence] = stored

    def settle(self, receiver: int, states: dict[int, Status]) -> None:
        """Take over what a receiver has settled."""
        known = self.receivers[receiver]
        if not known.removed:
            known.final.update(states)
            known.letters.update(p for p, status in states.items() if status is Status.DEAD)

    def remove(self, receiver: int) -> None:
        """Take over the removal of a receiver."""
        for position in self.open_of(receiver):
            self.receivers[receiver].final[position] = Status.REMOVED
        self.receivers[receiver].removed = True
        self.receivers[receiver].letters.clear()


@dataclass
class Drawn:
    """A group, and what the model has to take over when it is told."""

    group: Group
    made: list[int] = field(default_factory=list)
    settled: dict[int, dict[int, Status]] = field(default_factory=dict)
    changed: list[Batch] = field(default_factory=list)  # content other than was taken


class LogHistory:
    """Random groups for one log; `wait` drives a Deferred of it to its result."""

    def __init__(self, random: Random, wait: Wait) -> None:
        self.random = random
        self.wait = wait
        self.model = LogModel()
        self.pending: Drawn | None = None  # handed in, not told
        self.elapsed = 0
        self._next_receiver = 1

    # --- drawing

    def draw(self, log: StoreLog) -> Drawn:
        """Return a group that the log must take."""
        random, model = self.random, self.model
        drawn = Drawn(Group(now=NOW + self.elapsed))
        group = drawn.group
        alive = [r.number for r in model.receivers.values() if not r.removed]
        if len(alive) < 2 or random.random() < 0.1:
            drawn.made.append(self._next_receiver)
            group.receivers.append(
                ReceiverRow(
                    number=self._next_receiver,
                    name=f"r{self._next_receiver}",
                    patterns=(">",),
                    cursor=-1,
                )
            )
            self._next_receiver += 1
            alive += drawn.made
        sequences: dict[Key, int] = {}
        for _ in range(random.choice([0, 1, 1, 2, 5])):
            group.batches.append(self._new_batch(log, alive, sequences))
        if model.batches and random.random() < 0.2:
            self._add_again(log, drawn)
        for number in alive:
            if number not in drawn.made and random.random() < 0.5:
                self._add_progress(drawn, number)
        if len(alive) > 2 and random.random() < 0.15:
            group.removed.append(random.choice([n for n in alive if n not in drawn.made]))
        return drawn

    def _new_batch(self, log: StoreLog, alive: list[int], sequences: dict[Key, int]) -> Batch:
        random = self.random
        key = random.choice(SENDERS)
        sequence = sequences.get(key) or self.model.next_sequence(key)
        bodies = [
            b"%d." % (sequence + i) + b"x" * random.choice([0, 5, 50, 500, 5000])
            for i in range(random.choice([1, 1, 2, 7]))
        ]
        sequences[key] = sequence + len(bodies)
        members = [n for n in alive if random.random() < 0.8]
        return make_batch(
            log.audience(members),
            sequence,
            bodies,
            sender=key[0],
            incarnation=key[1],
            subject=random.choice(SUBJECTS),
        )

    def _add_again(self, log: StoreLog, drawn: Drawn) -> None:
        """Hand in once more what was taken, now and then with other content."""
        random = self.random
        old = random.choice(self.model.batches[-20:])
        bodies = list(old.bodies)
        batch = make_batch(
            log.audience(old.members),
            old.sequence,
            bodies,
            sender=old.key[0],
            incarnation=old.key[1],
            subject=old.subject,
        )
        if random.random() < 0.2:
            bodies[0] += b"changed"
            batch = make_batch(
                log.audience(old.members),
                old.sequence,
                bodies,
                sender=old.key[0],
                incarnation=old.key[1],
                subject=old.subject,
            )
            drawn.changed.append(batch)
        drawn.group.batches.append(batch)

    def _add_progress(self, drawn: Drawn, number: int) -> None:
        random, model = self.random, self.model
        open_positions = model.open_of(number)
        if not open_positions:
            return
        routed = model.positions(number)
        luck = random.choice([0.3, 0.9, 1.0])
        states = {
            position: Status.DEAD if random.random() < 0.1 else Status.ACKNOWLEDGED
            for position in open_positions
            if random.random() < luck
        }
        left = [position for position in open_positions if position not in states]
        cursor = left[0] - 1 if left else max(routed)
        rows = [
            ExceptionRow(number, position, position, status, 0, 0, "" if status != 4 else "why")
            for position, status in states.items()
            if status is not Status.ACKNOWLEDGED or position > cursor
        ]
        counts: dict[int, int] = {}
        for status in states.values():
            counts[int(status)] = counts.get(int(status), 0) + 1
        drawn.settled[number] = states
        drawn.group.progress.append(
            Progress(
                receiver=number,
                cursor=cursor,
                # As the node does: acknowledged ones first.
                exceptions=sorted(rows, key=lambda row: row.status is not Status.ACKNOWLEDGED),
                settled=counts,
                dead=[
                    self._letter(number, position, routed[position])
                    for position, status in states.items()
                    if status is Status.DEAD
                ],
            )
        )

    def _letter(self, number: int, position: int, batch: Stored) -> DeadLetter:
        index = position - position_of(batch.number, 0)
        whole = make_batch(log_audience(batch.members), batch.sequence, batch.bodies)
        return DeadLetter(
            number,
            position,
            batch.key[0],
            batch.key[1],
            batch.sequence + index,
            batch.subject,
            bytes(cut_messages(whole.messages, index, index + 1)),
            "why",
            1,
            NOW,
        )

    # --- doing

    def step(self, log: StoreLog) -> None:
        """Do one thing with the log, and have the model follow when it is told."""
        if self.random.random() < 0.25:
            self.elapsed += self.random.choice([0, 1000, 60_000])
            self.wait(log.retain(self.elapsed))
            return
        self.pending = self.draw(log)
        if not self.pending.group:
            self.pending = None
            return
        appended = self.wait(append(log, self.pending.group))
        self.told(self.pending, appended.outcomes)
        self.pending = None

    def told(self, drawn: Drawn, outcomes: list[Outcome]) -> None:
        """Take over a group whose outcomes were told, or were found after a power failure."""
        model, group = self.model, drawn.group
        for number in drawn.made:
            model.receivers[number] = Receiver(number)
        assert len(outcomes) == len(group.batches)
        for batch, outcome in zip(group.batches, outcomes, strict=True):
            if outcome is batch:
                model.store(batch)
            elif any(batch is one for one in drawn.changed):
                assert isinstance(outcome, RefusedBatch), outcome
                assert isinstance(outcome.error, ContentChanged), outcome
            else:
                assert isinstance(outcome, Known), outcome
                assert outcome.fresh == ()
                self._check_known(batch, outcome)
        for number, states in drawn.settled.items():
            model.settle(number, states)
        for number in group.removed:
            model.remove(number)

    def _check_known(self, batch: Batch, known: Known) -> None:
        taken = self.model.taken[batch.sender, batch.incarnation]
        for piece in known.pieces:
            for sequence in range(piece.first, piece.last + 1):
                stored = taken[sequence]
                index = sequence - stored.sequence
                assert piece.position in (
                    0,
                    position_of(stored.number, index) - (sequence - piece.first),
                )

    def resolve(self, snapshot: Snapshot) -> None:
        """After a power failure: was the group that was under way stored? Either is right."""
        drawn, self.pending = self.pending, None
        if drawn is None:
            return
        last = snapshot.next_number - 1
        highest = max((batch.number for batch in self.model.batches), default=0)
        fresh = [batch for batch in drawn.group.batches if self._is_fresh(batch)]
        if fresh:
            stored = last > highest
        elif drawn.made:
            stored = any(row.number in drawn.made for row in snapshot.receivers)
        elif drawn.group.removed:
            stored = any(
                row.number in drawn.group.removed and row.removed for row in snapshot.receivers
            )
        else:
            stored = self._is_settled(snapshot, drawn)
        if stored:
            outcomes: list[Outcome] = []
            for batch in drawn.group.batches:
                if any(batch is one for one in fresh):
                    highest += 1
                    batch.number = highest
                    outcomes.append(batch)
                elif any(batch is one for one in drawn.changed):
                    error = ContentChanged(batch.sequence, batch.sequence + batch.count - 1)
                    outcomes.append(RefusedBatch(error))
                else:
                    outcomes.append(Known(()))
            self.told(drawn, outcomes)
        assert last == max((batch.number for batch in self.model.batches), default=0)

    def _is_fresh(self, batch: Batch) -> bool:
        taken = self.model.taken.get((batch.sender, batch.incarnation), {})
        return batch.sequence not in taken

    def _is_settled(self, snapshot: Snapshot, drawn: Drawn) -> bool:
        """Whether the cursors and rows are those after the group."""
        cursors = {row.number: row.cursor for row in snapshot.receivers}
        for step in drawn.group.progress:
            rows = {(row.first, row.status) for row in snapshot.exceptions.get(step.receiver, [])}
            above = [row for row in step.exceptions if row.first > step.cursor]
            if cursors[step.receiver] < step.cursor:
                return False
            if any((row.first, row.status) not in rows for row in above):
                return False
        return True


def log_audience(members: Iterable[int]) -> Any:
    """Return a set of receivers that stands for an audience where the log is not asked."""
    from msgservice.records import Audience

    return Audience(0, tuple(members))


def check(log: StoreLog, snapshot: Snapshot | None, model: LogModel, wait: Wait) -> None:
    """Raise `AssertionError` where the log does not hold what the model does."""
    model = deepcopy(model)
    for key, taken in model.taken.items():
        resume = wait(log.resume(*key))
        have = RangeSet([(1, resume.floor - 1)] if resume.floor > 1 else [])
        for low, high in resume.ranges:
            have.add(low, high)
        wanted: RangeSet = RangeSet()
        for sequence in taken:
            wanted.add(sequence, sequence)
        assert list(have) == list(wanted), (key, "is said to have been taken otherwise")
    _check_batches(log, model, wait)
    _check_states(log, model, wait)
    if snapshot is not None:
        _check_snapshot(snapshot, model)
    accounts = {account.receiver: account for account in wait(log.accounts())}
    for receiver in model.receivers.values():
        if receiver.removed:
            continue
        account = accounts[receiver.number]
        assert account.unaccounted == 0, account
        assert account.queued == len(model.open_of(receiver.number)), account
        counted = {status: count for status, count in account.settled.items() if count}
        expected: dict[int, int] = {}
        for status in receiver.final.values():
            expected[int(status)] = expected.get(int(status), 0) + 1
        assert counted == expected, account
    assert wait(log.audit()) == []
    found = recount(log._store.db.execute).discrepancies
    assert found == [], found


def _check_batches(log: StoreLog, model: LogModel, wait: Wait) -> None:
    """What somebody has still to get is there; what is there, is as it was stored."""
    audiences = {batch.members for batch in model.batches}
    found: dict[int, Batch] = {}
    numbers = [log.audience(members).number for members in audiences]
    after = -1
    while page := wait(log.read(numbers, after, INTEGER_MAX, READ_ALL, 1000)):
        found.update((batch.number, batch) for batch in page)
        after = page[-1].last
    for stored in model.batches:
        first = position_of(stored.number, 0)
        is_open = any(
            first + index not in model.receivers[member].final
            for member in stored.members
            for index in range(len(stored.bodies))
        )
        batch = found.pop(stored.number, None)
        if batch is None:
            assert not is_open, f"batch {stored.number} is lost"
            continue
        bodies = [message.body for message in decode_messages(batch.messages)]
        assert (stored.key, stored.sequence, stored.subject, stored.bodies) == (
            (batch.sender, batch.incarnation),
            batch.sequence,
            batch.subject,
            bodies,
        ), f"batch {stored.number} is another"
        assert stored.members == set(batch.audience.members)
    assert not found, "batches that nobody sent"


def _check_states(log: StoreLog, model: LogModel, wait: Wait) -> None:
    """Each sender can still learn what became of each of its messages."""
    for key, taken in model.taken.items():
        states: dict[tuple[int, int], Status] = {}
        first: int | None = 1
        while first is not None:
            page = wait(log.history(*key, first, 50))
            for one in page.states:
                for sequence in range(one.first, one.last + 1):
                    known = states.setdefault((one.receiver, sequence), one.status)
                    assert known is one.status, (key, sequence, known, one)
            first = page.next
        wanted = {
            (member, sequence): status
            for sequence, stored in taken.items()
            for member in stored.members
            if (
                status := model.receivers[member].final.get(
                    position_of(stored.number, sequence - stored.sequence)
                )
            )
            is not None
        }
        assert states == wanted, (key, set(states.items()) ^ set(wanted.items()))
    for receiver in model.receivers.values():
        if receiver.removed:
            continue  # they go with it, a page at a time
        letters = {
            letter.position for letter in wait(log.dead_letters(receiver.number, -1, READ_ALL))
        }
        assert letters == receiver.letters, ("dead letters", receiver.number)


def _check_snapshot(snapshot: Snapshot, model: LogModel) -> None:
    rows = {row.number: row for row in snapshot.receivers}
    for receiver in model.receivers.values():
        if receiver.removed:
            assert receiver.number not in rows or rows[receiver.number].removed
            continue
        cursor = rows[receiver.number].cursor
        final = {p for p in receiver.final if p > cursor}
        said = {
            position
            for row in snapshot.exceptions.get(receiver.number, [])
            if row.status.final
            for position in range(max(row.first, cursor + 1), row.last + 1)
        }
        said &= set(model.positions(receiver.number))
        assert final == said, ("final states", receiver.number, final ^ said)
        below = [p for p in model.open_of(receiver.number) if p <= cursor]
        assert not below, f"the cursor of {receiver.number} passed what is open: {below}"
