"""What became of one receiver's messages, gathered until a group of the log takes it.

The half of an outlet that looks towards the log: what was settled or waits for another try since
the last group, as rows; when it is stored, the tracker is told. What is sent, and what the receiver
answers, is the business of `node.outlet`.
"""

from __future__ import annotations

from collections import deque

from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.connection import Connection
from msgservice.core.outbox import Outbox
from msgservice.core.ranges import RangeSet
from msgservice.core.runs import Settled
from msgservice.message import Status, cut_messages, header_size
from msgservice.node.shared import DeliveryShared
from msgservice.records import Batch, DeadLetter, ExceptionRow, Progress, ReceiverRow


class OutletProgress:
    """See the module; it is `commits.Progressing`."""

    _logger = Logger()

    connection: Connection | None
    outbox: Outbox

    def __init__(self, node: DeliveryShared, row: ReceiverRow) -> None:
        self.row = row
        # For the backlog limit: at start as the log's account says, then counted.
        self.queued_bytes = 0
        self.last_error = ""
        self._node = node
        self._new: list[Settled] = []  # settled, in no group yet
        # In groups under way, oldest first: what was settled, and the cursor after it.
        self._storing: deque[tuple[list[Settled], int]] = deque()
        self._rows: dict[int, ExceptionRow] = {}  # by first position: to be stored
        self._taken: tuple[dict[int, ExceptionRow], bool] = ({}, False)
        self._inbox_changed = False
        self._noted: dict[int, int] = {}  # first -> attempts, of waiting ones that are stored
        self._acked = RangeSet()  # acknowledged above the cursor

    @property
    def name(self) -> str:
        """The receiver's name."""
        return self.row.name

    # --- gathering

    def _drain(self) -> None:
        settled = self.outbox.take_settled()
        self._note_waiting()
        if not settled:
            if self._rows:
                self._node.commits.progress(self)
            return
        cursor = self.outbox.cursor
        self._new += settled
        acked = self._acked
        for one in settled:
            if one.status is not Status.ACKNOWLEDGED:
                self._rows[one.first] = ExceptionRow(
                    self.row.number,
                    one.first,
                    one.last,
                    one.status,
                    one.run.attempts,
                    0,
                    one.reason[:1000],
                )
            elif one.last > cursor:
                acked.add(one.run.after + 1 if one.first == one.run.first else one.first, one.last)
                self._note_acked(one.last)
        if acked:
            acked.remove_below(cursor + 1)
        self._node.commits.progress(self)

    def _note_acked(self, position: int) -> None:
        """Store the whole range that this is part of now: it replaces what it has grown over."""
        found = self._acked.range_of(position)
        assert found is not None
        low, high = found
        rows = self._rows
        for old in [n for n in rows if low <= n <= high]:
            if rows[old].status in (Status.ACKNOWLEDGED, Status.QUEUED):
                del rows[old]
        rows[low] = ExceptionRow(self.row.number, low, high, Status.ACKNOWLEDGED)

    def _note_waiting(self) -> None:
        """Attempts and times of messages that wait for another try survive a restart."""
        waiting = self.outbox.waiting
        if not waiting:
            if self._noted:
                self._noted = {}
            return
        now, wall = self._node.now(), self._node.wall()
        noted = {}
        for run in waiting:
            if not run.attempts:
                continue
            noted[run.first] = run.attempts
            if self._noted.get(run.first) != run.attempts:
                next_at = wall + int(max(0.0, run.due - now) * 1000)
                self._rows[run.first] = ExceptionRow(
                    self.row.number,
                    run.first,
                    run.last,
                    Status.QUEUED,
                    run.attempts,
                    next_at,
                    self.last_error[:1000],
                )
        self._noted = noted

    # --- for a group

    def take_progress(self) -> Progress:
        """See `Progressing`."""
        settled, self._new = self._new, []
        rows, self._rows = self._rows, {}
        counts: dict[int, int] = {}
        size = 0
        dead: list[DeadLetter] = []
        for one in settled:
            count = one.last - one.first + 1
            counts[one.status] = counts.get(one.status, 0) + count
            size += _size_of(one)
            if one.status is Status.DEAD:
                dead += self._dead_letters(one)
        self._taken = (rows, self._inbox_changed)
        inbox = self.row.inbox if self._inbox_changed else None
        self._inbox_changed = False
        self.queued_bytes -= size
        self.row.cursor = cursor = self.outbox.cursor
        self._storing.append((settled, cursor))
        return Progress(
            receiver=self.row.number,
            cursor=cursor,
            exceptions=sorted(rows.values(), key=_acknowledged_first),
            settled=counts,
            settled_bytes=size,
            dead=dead,
            inbox=inbox,
        )

    def _dead_letters(self, one: Settled) -> list[DeadLetter]:
        batch: Batch = one.run.source
        letters = []
        for position in range(one.first, one.last + 1):
            index = position - batch.first
            letters.append(
                DeadLetter(
                    self.row.number,
                    position,
                    batch.sender,
                    batch.incarnation,
                    batch.sequence + index,
                    batch.subject,
                    cut_messages(batch.messages, index, index + 1),
                    one.reason,
                    one.run.attempts,
                    self._node.wall(),
                )
            )
        return letters

    def progress_stored(self) -> None:
        """See `Progressing`."""
        settled, cursor = self._storing.popleft()
        self.outbox.committed = max(self.outbox.committed, cursor)
        if settled:
            self._node.tracker.settled(self.name, settled)
            if any([one.status is Status.DEAD for one in settled]):  # noqa: C419 - faster
                self._node.check_dead_letters(self)

    def progress_failed(self) -> None:
        """See `Progressing`."""
        settled, _ = self._storing.popleft()
        self._new = settled + self._new
        rows, inbox_changed = self._taken
        # What was answered meanwhile is no longer waiting: its row would hide the answer.
        rows = {n: row for n, row in rows.items() if row.status.final or n not in self._acked}
        self._rows = rows | self._rows
        self._inbox_changed = self._inbox_changed or inbox_changed
        self.queued_bytes += sum(_size_of(one) for one in settled)

    def fault(self, failure: Failure) -> None:
        """See `Progressing`. Senders are told anew what they may have missed by it."""
        connection = self.connection
        if connection is not None:
            connection.fault(f"receiver {self.name!r}", failure)
        else:
            self._logger.failure("telling receiver {name} failed", failure, name=self.name)
        self._node.tracker.tell_all_again()


def _size_of(settled: Settled) -> int:
    """Return the bytes of its batch that these messages are: those of all its parts add up to it.

    A part that travelled alone had an array header of its own, which the batch has once.
    """
    run = settled.run
    batch: Batch = run.source
    if run.messages is batch.messages:
        return batch.size
    size = run.size - header_size(run.messages)
    return size + header_size(batch.messages) if run.first == batch.first else size


def _acknowledged_first(row: ExceptionRow) -> bool:
    # A grown range of acknowledged ones replaces all that begins inside it; what is final
    # otherwise is written after it.
    return row.status is not Status.ACKNOWLEDGED
