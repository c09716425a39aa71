"""What a log holds in memory of its committed state, and the copy that a group works on.

`State` is what the last commit left. A group works on a `Staged`, which copies what it touches;
when the commit has succeeded, `State.adopt` swaps the copies in, otherwise they are dropped. So a
group that fails leaves dedupe, counters and numbers as they were. Objects in `State` are never
changed in place (only replaced), so the reactor's thread may read them while the writer works.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from msgservice.core.marks import Key, SenderState
from msgservice.message import Status
from msgservice.records import Audience, Batch, ReceiverRow

SETTLED = (Status.ACKNOWLEDGED, Status.EXPIRED, Status.DEAD, Status.CANCELLED, Status.REMOVED)


def hash_of(incarnation: str) -> str:
    """Return the part of an incarnation that may be shown (SEMANTICS 5)."""
    return hashlib.sha256(incarnation.encode()).hexdigest()[:16]


class Totals:
    """The totals of one audience so far."""

    __slots__ = ("audience", "bytes", "dropped", "last", "messages")

    def __init__(
        self, audience: Audience, messages: int = 0, size: int = 0, last: int = 0, dropped: int = 0
    ) -> None:
        self.audience = audience
        self.messages = messages
        self.bytes = size
        self.last = last  # number of its last batch
        self.dropped = dropped  # none of its batches up to here has a frame

    def copy(self) -> Totals:
        """Return a copy whose change leaves this one alone."""
        return Totals(self.audience, self.messages, self.bytes, self.last, self.dropped)


class ReceiverState:
    """The progress of one receiver: its cursor, and what it has settled."""

    __slots__ = ("bytes", "collected", "cursor", "inbox", "number", "open_to", "removed", "settled")

    def __init__(self, number: int, cursor: int) -> None:
        self.number = number
        self.cursor = cursor
        self.removed = False
        self.settled = [0] * len(SETTLED)
        self.bytes = 0
        self.collected = 0
        self.inbox: str | None = None
        # The last position of the stored exceptions: once the cursor has passed it, their rows go.
        self.open_to = 0

    def copy(self) -> ReceiverState:
        """Return a copy whose change leaves this one alone."""
        new = ReceiverState(self.number, self.cursor)
        new.removed = self.removed
        new.settled = self.settled.copy()
        new.bytes = self.bytes
        new.collected = self.collected
        new.inbox = self.inbox
        new.open_to = self.open_to
        return new

    def settle(self, status: int, messages: int) -> None:
        """Count messages that reached a final state."""
        self.settled[SETTLED.index(Status(status))] += messages

    @property
    def settled_by_status(self) -> dict[int, int]:
        """Return Status -> messages, without the zeros."""
        return {
            int(status): count for status, count in zip(SETTLED, self.settled, strict=True) if count
        }


@dataclass(slots=True)
class State:
    """The committed state of a log."""

    log_id: str = ""
    next_number: int = 1
    chain: int = 0
    used: int = 0
    commits: int = 0
    audiences_used: int = 0  # numbers up to here were given to audiences that are stored no more
    saved: int = 0  # what is in the tables of senders and audiences; later batches are replayed
    oldest: int = 1
    oldest_chain: int = 0
    next_sender: int = 1
    senders: dict[Key, SenderState] = field(default_factory=dict)
    senders_by_id: dict[int, SenderState] = field(default_factory=dict)
    totals: dict[int, Totals] = field(default_factory=dict)  # audience number -> Totals
    receivers: dict[int, ReceiverState] = field(default_factory=dict)
    rows: dict[int, ReceiverRow] = field(default_factory=dict)
    dead_bytes: dict[int, int] = field(default_factory=dict)  # by receiver number
    # How long the log was open so far, ms, by a clock that never jumps: ages are measured by it.
    age: int = 0
    # (age, number of the batch that came next), rising: how old what is kept is.
    ages: list[tuple[int, int]] = field(default_factory=list)
    dirty_senders: set[Key] = field(default_factory=set)
    dirty_totals: set[int] = field(default_factory=set)

    @property
    def taken(self) -> int:
        """Bytes of batches not yet removed and of dead letters."""
        return self.used + sum(self.dead_bytes.values())

    def adopt(self, staged: Staged) -> None:
        """Make what a group did the committed state."""
        self.next_number = staged.number
        self.chain = staged.chain
        self.used = staged.used
        self.commits = staged.commits
        self.next_sender = staged.next_sender
        for key, sender in staged.senders.items():
            self.senders[key] = sender
            self.senders_by_id[sender.id] = sender
        self.dirty_senders.update(staged.senders)
        self.totals.update(staged.totals)
        self.dirty_totals.update(staged.totals)
        self.receivers.update(staged.receivers)
        self.rows.update(staged.rows)
        if staged.dead_bytes:
            # Never changed in place: `ILog.room` looks at it on the reactor's thread.
            self.dead_bytes = self.dead_bytes | staged.dead_bytes
        for total in staged.new_audiences:
            total.audience.stored = True


class Staged:
    """Copies of what one group touches."""

    __slots__ = (
        "chain",
        "commits",
        "dead_bytes",
        "fresh",
        "new_audiences",
        "new_senders",
        "next_sender",
        "number",
        "receivers",
        "rows",
        "senders",
        "state",
        "totals",
        "used",
    )

    def __init__(self, state: State) -> None:
        self.state = state
        self.number = state.next_number
        self.chain = state.chain
        self.used = state.used
        self.commits = state.commits
        self.next_sender = state.next_sender
        self.senders: dict[Key, SenderState] = {}
        self.totals: dict[int, Totals] = {}
        self.receivers: dict[int, ReceiverState] = {}
        self.rows: dict[int, ReceiverRow] = {}
        self.dead_bytes: dict[int, int] = {}
        self.new_senders: list[SenderState] = []
        self.new_audiences: list[Totals] = []
        self.fresh: list[Batch] = []  # what this group stores, rising

    def sender(self, key: Key) -> SenderState:
        """Return this group's copy of a sender's state, made if new."""
        staged = self.senders.get(key)
        if staged is None:
            committed = self.state.senders.get(key)
            if committed is None:
                staged = SenderState(self.next_sender, key, self.state.age)
                self.next_sender += 1
                self.new_senders.append(staged)
            else:
                staged = committed.copy()
                staged.seen_at = self.state.age
            self.senders[key] = staged
        return staged

    def total(self, audience: Audience) -> Totals:
        """Return this group's copy of an audience's totals."""
        staged = self.totals.get(audience.number)
        if staged is None:
            committed = self.state.totals.get(audience.number)
            if committed is None or not audience.stored:
                staged = Totals(audience)
                self.new_audiences.append(staged)
            else:
                staged = committed.copy()
            self.totals[audience.number] = staged
        return staged

    def receiver(self, number: int) -> ReceiverState | None:
        """Return this group's copy of a receiver's state, or None."""
        staged = self.receivers.get(number)
        if staged is None:
            committed = self.state.receivers.get(number)
            if committed is None:
                return None
            staged = self.receivers[number] = committed.copy()
        return staged
