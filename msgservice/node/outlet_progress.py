"""Progress of one receiver's messages, gathered until a group of the log takes it.

What was settled or waits for another try since the last group, as rows; when it is stored, the
tracker is told. What is sent, and what the receiver answers, is the business of `node.outlet`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from msgservice.clock import Time
from msgservice.core.backlog import Backlog
from msgservice.core.ranges import Range, RangeSet
from msgservice.core.reasons import REASON_KEPT_MAX
from msgservice.core.refusal import Refusal
from msgservice.core.runs import FINAL, Run, Settled, cut_run, parts_of, size_alone
from msgservice.message import (
    ACKNOWLEDGED,
    DEAD,
    MessageParts,
    Status,
    array_header,
    header_size,
)
from msgservice.node.commits import Commits
from msgservice.node.stored_bytes import Part, QueuedBytes, SplitBytes
from msgservice.node.tracker import Tracker
from msgservice.records import DEAD_OVERHEAD, Batch, DeadLetter, ExceptionRow, Progress, ReceiverRow

# Dead letters of one receiver in one group: each is a value, so this bounds what a turn makes.
DEAD_LETTERS_MAX = 2048
# Runs of one receiver in one group that are settled, and as many that failed: each is told of.
RUNS_MAX = 8192


class Delivering(Protocol):
    """The delivery whose progress it is: an outlet."""

    row: ReceiverRow

    def pump(self) -> None:
        """Send what may be sent now."""

    def fault(self, failure: Failure) -> None:
        """A call of the progress raised `failure`: the receiver's connection ends, and no other."""


class Letters(Protocol):
    """The dead letters of a node's receivers (`dead_letters`)."""

    def room(self, row: ReceiverRow) -> int:
        """The bytes that more dead letters of a receiver may take."""

    def due(self, row: ReceiverRow, size: int) -> None:
        """Dead letters of a receiver take so many bytes more: they are about to be stored."""

    def lacking(self, row: ReceiverRow) -> None:
        """A message is not dead for want of room: its receiver is paused in a turn of its own."""

    def stored(self, row: ReceiverRow, letters: Sequence[Settled]) -> None:
        """New dead letters of a receiver are on disk."""


class Promising(Protocol):
    """The promises that messages came with (`promises`)."""

    def settled(self, receiver: int, settled: Sequence[Settled]) -> None:
        """Messages were settled at a receiver, and that is stored."""

    def decreed(self, receiver: int, ranges: Sequence[Range]) -> None:
        """Ranges of positions were settled without an answer, and that is stored."""


class Decreed(NamedTuple):
    """A range of a receiver that was settled without an answer, and without being loaded.

    `cut`: the batches of which it has a part alone.
    """

    first: int
    last: int
    messages: int
    size: int  # bytes; those of the parts are what they are taken to be
    cut: Sequence[Part]
    status: Status
    reason: str


class OutletProgress:
    """Delivery progress of one receiver, as `commits.Progressing`: settled messages and retries.

    `acked`: the acknowledged ranges above the cursor, as the log has them. `queued`: the bytes that
    wait, for the backlog limit; `split`: what of batches is settled of which something waits.
    """

    def __init__(
        self,
        outlet: Delivering,
        backlog: Backlog,
        acked: Sequence[Range],
        queued: QueuedBytes,
        *,
        commits: Commits,
        tracker: Tracker,
        promises: Promising,
        time: Time,
        letters: Letters,
    ) -> None:
        self.queued, self.split = queued, SplitBytes()
        self.letters_wait = False  # the log could not store a dead letter: its lane waits for that
        self._outlet = outlet
        self._row = outlet.row
        self._backlog = backlog
        self._commits = commits
        self._tracker = tracker
        self._promises = promises
        self._time = time
        self._letters = letters
        self._new: list[Settled] = []  # settled, in no group yet
        self._failed: list[Run] = []  # to be tried again, in no group yet
        self._decreed: list[Decreed] = []  # in no group yet
        self._inbox_changed = False
        self._storing: deque[_Taken] = deque()  # in groups under way, oldest first
        self._moments: list[_Moment] = []  # what those wait for who want to know it stored
        self._acked = RangeSet(acked)  # acknowledged above the cursor

    @property
    def is_stored(self) -> bool:
        """Whether everything that was settled is in the log."""
        return not self._new and not self._decreed and not self._storing

    # --- gathering

    def gather(self) -> None:
        """Take what the backlog has settled, and which attempts failed: the next group has it."""
        backlog = self._backlog
        if backlog.settled or backlog.failed:
            if self._new:
                self._new += backlog.take_settled()
            else:
                self._new = backlog.take_settled()
            if backlog.failed:
                self._failed += backlog.take_failed()
            self._commits.progress(self)

    def decreed(self, ranges: Sequence[Decreed]) -> None:
        """Ranges were settled without an answer, and are not loaded: the next group has them."""
        if ranges:
            self._decreed += ranges
            self._commits.progress(self)

    def moved(self) -> None:
        """The cursor has moved, and nothing was settled for that: the next group has it."""
        self._commits.progress(self)

    def inbox_is(self, inbox: str | None) -> None:
        """The receiver has another stored inbox than it had, or none: the next group has it."""
        self._row.inbox = inbox
        self._inbox_changed = True
        self._commits.progress(self)

    def letters_room(self, run: Run, refusal: Refusal) -> int:
        """The number of its messages that have room as dead letters, and one beyond (`Backlog`)."""
        room = self._letters.room(self._row)
        size, count = letters_size(run, refusal.reason), run.count
        if size > room:  # hardly ever: its messages are looked at one by one
            parts, size, count = parts_of(run), 0, 0
            each = DEAD_OVERHEAD + len(refusal.reason.encode())
            while count < run.count and size < room:
                at = run.part + count
                size += parts.size_alone(at, at + 1) + each
                count += 1
        self._letters.due(self._row, size)
        if count < run.count:
            self._letters.lacking(self._row)
        return count

    # --- for a group

    def take_progress(self, letters: int) -> Progress:
        """See `Progressing`.

        What was answered may be more than a group takes: then the cursor stays below
        the rest, which is part of the next group, and of no row before.
        """
        cursor = self._backlog.cursor
        new = self._new
        if not new or (len(new) == 1 and new[0].status is not DEAD):
            settled, self._new = new, []
        else:
            settled = self._portion(letters)
            if self._new:
                cursor = min(cursor, min([one.first for one in self._new]) - 1)
        failed: list[Run] = []
        if self._failed:
            failed, self._failed = self._failed[:RUNS_MAX], self._failed[RUNS_MAX:]
        counts: dict[int, int] = {}
        size, parts = 0, []
        rows: list[ExceptionRow] = []
        dead: list[DeadLetter] = []
        acked = self._acked
        above: list[int] = []
        number = self._row.number
        for one in settled:
            run, first, last, status = one.run, one.first, one.last, one.status
            counts[status] = counts.get(status, 0) + last - first + 1
            if run.encoded is run.source.messages:
                size += run.source.size
            else:
                part = _part_of(run)
                settled_size = self.split.settle(part)
                size += settled_size
                parts.append((part, settled_size))
            if status is ACKNOWLEDGED:
                if last > cursor:
                    acked.add(run.after + 1 if first == run.first else first, last)
                    above.append(last)
                continue
            reason = one.reason[:REASON_KEPT_MAX]
            rows.append(ExceptionRow(number, first, last, status, run.attempts, 0, reason))
            if status is DEAD:
                dead += self._dead_letters(one)
        decreed, self._decreed = self._decreed, []
        for range_ in decreed:
            counts[range_.status] = counts.get(range_.status, 0) + range_.messages
            size += range_.size
            for part in range_.cut:
                settled_size = self.split.settle(part)
                size += settled_size - part.size
                parts.append((part, settled_size))
            reason = range_.reason[:REASON_KEPT_MAX]
            rows.append(
                ExceptionRow(number, range_.first, range_.last, range_.status, 0, 0, reason)
            )
        if acked.firsts:
            acked.remove_below(cursor + 1)
        if failed or above:
            rows = [*self._failed_rows(failed, cursor), *self._acked_rows(above), *rows]
        taken = _Taken(settled, failed, decreed, self._inbox_changed, cursor, size, parts)
        inbox = self._row.inbox if self._inbox_changed else None
        self._inbox_changed = False
        self.queued.add(-size)
        self._row.cursor = cursor
        self._storing.append(taken)
        return Progress(
            receiver=number,
            cursor=cursor,
            exceptions=rows,
            settled=counts,
            settled_bytes=size,
            dead=dead,
            inbox=inbox,
        )

    def _portion(self, letters: int) -> list[Settled]:
        """Take out of what is new as much as one group takes: all, hardly ever less.

        The one with which those reach `letters` bytes is the last; of a run all count alike.
        """
        new, rest, room = self._new, [], DEAD_LETTERS_MAX
        if len(new) > RUNS_MAX:
            new, rest = new[:RUNS_MAX], new[RUNS_MAX:]
        for at, one in enumerate(new):
            if one.status is DEAD:
                count = one.last - one.first + 1
                size = letters_size(one.run, one.reason)
                fitting = count if size <= letters else max(0, -(-letters * count // size))
                if min(fitting, room) < count:
                    taken, left = _cut_settled(one, min(fitting, room))
                    self._new = [left, *new[at + 1 :], *rest]
                    return [*new[:at], *taken]
                room -= count
                letters -= size
        self._new = rest
        return new

    def _acked_rows(self, positions: list[int]) -> list[ExceptionRow]:
        """The whole ranges that these are part of now; each replaces what it has grown over."""
        found = {self._acked.range_of(position) for position in positions}
        return [
            ExceptionRow(self._row.number, *one, ACKNOWLEDGED) for one in found if one is not None
        ]

    def _failed_rows(self, failed: list[Run], cursor: int) -> list[ExceptionRow]:
        """Attempts and times of messages that wait for another try survive a restart."""
        now, wall = self._time.now(), self._time.wall()
        rows = {}
        for run in failed:
            # It may have been loaded anew since, and answered.
            if run.state != FINAL and run.first > cursor and run.first not in self._acked:
                pause = run.due - now
                next_at = wall + (int(pause * 1000) if 0 < pause < math.inf else 0)
                rows[run.first] = ExceptionRow(
                    self._row.number,
                    run.first,
                    run.last,
                    Status.QUEUED,
                    run.attempts,
                    next_at,
                    run.reason,
                )
        return list(rows.values())

    def _dead_letters(self, one: Settled) -> list[DeadLetter]:
        run = one.run
        batch: Batch = run.source
        parts, start = run.parts, run.part + one.first - run.first
        if parts is None:
            parts = MessageParts(batch.messages)
        receiver, wall = self._row.number, self._time.wall()
        reason, attempts = one.reason, run.attempts
        sender, incarnation, subject = batch.sender, batch.incarnation, batch.subject
        begin = batch.first
        behind = batch.sequence - begin
        messages = parts.alone(start, start + one.last - one.first + 1)
        origin, flags, code = (
            batch.origin,
            batch.options.flags,
            0 if one.refusal is None else one.refusal.code,
        )
        return [
            DeadLetter(
                receiver=receiver,
                position=position,
                sender=sender,
                incarnation=incarnation,
                sequence=position + behind,
                subject=subject,
                message=message,
                reason=reason,
                attempts=attempts,
                at=wall,
                flags=flags,
                origin=origin and origin.behind(position - begin),
                code=code,
            )
            for position, message in enumerate(messages, one.first)
        ]

    def progress_stored(self) -> None:
        """See `Progressing`."""
        taken = self._storing.popleft()
        if taken.cursor > self._backlog.committed:
            self._backlog.committed = taken.cursor
        if self._new or self._failed or self._decreed:
            self._commits.progress(self)
        try:
            settled = taken.settled
            if len(settled) == 1 and settled[0].status is not DEAD:
                self._tracker.settled(self._row.name, settled)
                self._promises.settled(self._row.number, settled)
            elif settled:
                self._told_stored(settled)
            if taken.decreed:
                number, name = self._row.number, self._row.name
                for one in taken.decreed:
                    self._tracker.decreed(name, [(one.first, one.last)], one.status, one.reason)
                self._promises.decreed(number, [(one.first, one.last) for one in taken.decreed])
        finally:
            if self._moments:
                self._moments_pass(taken)

    def _told_stored(self, settled: list[Settled]) -> None:
        letters: list[Settled] = []
        for one in settled:
            if one.status is DEAD:
                letters.append(one)  # noqa: PERF401 - speed, where there is none
        if letters:  # first of all: no fault may keep their lanes
            self._backlog.letters_stored(letters)
            self.letters_wait = False
        self._tracker.settled(self._row.name, settled)
        self._promises.settled(self._row.number, settled)
        if letters:
            self._letters.stored(self._row, letters)
            self._outlet.pump()

    def all_stored(self) -> Deferred[None]:
        """Fire when all that was settled so far is on disk, in however many groups.

        What is settled after that is not waited for: of a busy receiver there always is something.
        Cancelling it ends this wait only.
        """
        settled = _messages_of(self._new) + sum(
            [_messages_of(one.settled) for one in self._storing]
        )
        return self._stored(settled)

    def decreed_stored(self) -> Deferred[None]:
        """Fire when what was settled without being loaded (`decreed`) so far is on disk."""
        return self._stored(0)

    def _stored(self, settled: int) -> Deferred[None]:
        decreed = len(self._decreed) + sum([len(one.decreed) for one in self._storing])
        if not settled and not decreed:
            return succeed(None)
        moment = _Moment(settled, decreed, Deferred(self._wait_ends))
        self._moments.append(moment)
        return moment.waiter

    def _wait_ends(self, waiter: Deferred[None]) -> None:
        self._moments = [one for one in self._moments if one.waiter is not waiter]

    def _moments_pass(self, taken: _Taken) -> None:
        """Both go into groups in the order in which they came, and so do these that fail."""
        messages, decreed = _messages_of(taken.settled), len(taken.decreed)
        for moment in self._moments:
            moment.settled -= messages
            moment.decreed -= decreed
        over = [one for one in self._moments if one.settled <= 0 and one.decreed <= 0]
        self._moments = [one for one in self._moments if one.settled > 0 or one.decreed > 0]
        for one in over:
            if not one.waiter.called:  # cancelled by one that was told before
                one.waiter.callback(None)

    def progress_failed(self) -> None:
        """See `Progressing`."""
        taken = self._storing.popleft()
        if any(one.status is DEAD for one in taken.settled):
            self.letters_wait = True
        self._new = taken.settled + self._new
        self._failed = taken.failed + self._failed
        self._decreed = taken.decreed + self._decreed
        self._inbox_changed = self._inbox_changed or taken.inbox_changed
        self.queued.add(taken.size)
        for part, size in taken.parts:
            self.split.take_back(part, size)

    def fault(self, failure: Failure) -> None:
        """See `Progressing`."""
        self._outlet.fault(failure)


class _Taken(msgspec.Struct, gc=False):
    """The progress of one receiver in the group under way, and the cursor after it.

    `size`: the bytes that it settles, and `parts`: of which parts of batches, with what each is of
    these.
    """

    settled: list[Settled]
    failed: list[Run]
    decreed: list[Decreed]
    inbox_changed: bool
    cursor: int
    size: int
    parts: list[tuple[Part, int]]


@dataclass(slots=True)
class _Moment:
    """The messages that were settled by some moment, and the ranges decreed, as far as not stored.

    A run may be cut, so its messages count.
    """

    settled: int
    decreed: int
    waiter: Deferred[None]


def _messages_of(settled: Sequence[Settled]) -> int:
    return sum([one.last - one.first + 1 for one in settled])


def letters_size(run: Run, reason: str) -> int:
    """Return the bytes that a run takes as dead letters, one of each of its messages."""
    return size_alone(run) + run.count * (DEAD_OVERHEAD + len(reason.encode()))


def _cut_settled(one: Settled, count: int) -> tuple[list[Settled], Settled]:
    """Return the first `count` messages of it, none or one value, and the rest."""
    if not count:
        return [], one
    at = one.first + count
    pieces = (cut_run(one.run, one.first, at - 1), cut_run(one.run, at, one.last))
    for piece in pieces:
        piece.state = FINAL
    taken, left = (Settled(run, run.first, run.last, one.status, one.refusal) for run in pieces)
    return [taken], left


def _part_of(run: Run) -> Part:
    """Return the part of its batch that a cut run is: those of all its parts add up to it.

    A part that travelled alone had an array header of its own, which the batch has once.
    """
    batch: Batch = run.source
    size = run.size - len(array_header(run.count))
    if run.first == batch.first:
        size += header_size(batch.messages)
    return Part(batch.number, run.count, size, batch.count, batch.size)
