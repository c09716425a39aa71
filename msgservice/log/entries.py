"""Entries: every change of a log is one of these, and applying one is a pure function.

Whoever decides (`Store.decide` about groups, `retention` about what goes) looks at the world:
clocks, the disk, limits, who is connected. What was found is written into an entry. `Store.apply`
sees the state of the log and the entry, and nothing else: two logs that apply the same entries have
the same rows and the same chain value, and a log whose process was killed goes on with the next.

An entry says its place: what the log counts before it. So one that a log has already is known as
such, and one that would leave a gap is refused. Entries that move neither count (a group of which
nothing was new) do the same when they are applied twice as once.

What is not an entry changes nothing that the log says, only where it is written: saves (totals and
marks of senders, which the rows since the last save repeat), folding in the WAL, the high-water
mark, the sums of pages, pages given back to the disk. The first rows of a new log and migrations
come before all entries.
"""

from __future__ import annotations

import msgspec

from msgservice.limits import INTEGER_MAX
from msgservice.records import (
    Batch,
    Cancel,
    Join,
    LettersTaken,
    Progress,
    ReceiverRow,
    Replay,
    ReplayPage,
    StatusFrom,
    Verdict,
)


class Age(msgspec.Struct, frozen=True, gc=False):
    """The age that a log has reached; of entries decided before it has moved on, the same."""

    age: int  # ms that it was open so far
    ages: list[tuple[int, int]]  # see `State.ages`
    wall: int = 0  # the wall clock at about that age, ms; 0 where that is not known


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The place of an entry in its log, and how old that is by then."""

    number: int  # the next batch's before it
    commits: int  # how many entries that were more than batches there were before it
    age: Age | None = None  # None: not moved since the entry before


class Append(Entry, frozen=True, kw_only=True):
    """A group (`records.Group`), and what was decided about all of it."""

    now: int  # wall clock, ms; it never goes back, so it may be far ahead for ever
    due_now: int  # the clock of what falls due, ms
    batches: list[Batch]  # what is stored of these gets its number here, once
    progress: list[Progress]
    full: str | None  # why nothing new may be stored
    used_max: int  # bytes of batches that may be stored with all of these
    ranges_max: int  # of one sender, above its floor
    keys_max: int = INTEGER_MAX  # idempotency keys, and messages that were taken by one
    is_more: bool = True  # whether there may be something of what follows
    receivers: list[ReceiverRow] = []  # as they were when the group began
    own: list[Batch] = []  # of the node itself
    statuses_from: list[StatusFrom] = []
    removed: list[int] = []
    replays: list[Replay] = []
    pages: list[ReplayPage] = []
    # Why no page may be stored, and the bytes that there may be with them: a page more than for
    # others, since what it copies goes only when it has gone on.
    pages_full: str | None = None
    pages_used_max: int = 0
    joins: list[Join] = []
    letters: list[LettersTaken] = []
    due: list[Batch] = []  # that go to the end of the log
    cancel: list[Cancel] = []
    verdicts: list[Verdict] = []


class DropBatches(Entry, frozen=True, kw_only=True):
    """Settled batches lose their frames, and the oldest rows go."""

    frames: list[tuple[int, int, int]]  # (number, audience, size), rising
    oldest: int  # rows below go: what became of their messages is written down


class DropLetters(Entry, frozen=True, kw_only=True):
    """Dead letters go: of one receiver, up to a position."""

    receiver: int
    last: int


class ForgetSenders(Entry, frozen=True, kw_only=True):
    """Incarnations of which no message is in the log are forgotten."""

    senders: list[int]  # ids


class Forget(Entry, frozen=True, kw_only=True):
    """Unused audiences and removed receivers are forgotten."""

    audiences: list[int]
    receivers: list[int]
    seen: list[tuple[int, int]] = []  # sender's id, age when it was last here


class ForgetStates(Entry, frozen=True, kw_only=True):
    """States, ids and senders of the oldest messages that have left the log are forgotten."""

    before: int  # age of the log when they left
    states: int  # rows of them, at most
    ids: int
    senders: int  # that are known by their states alone
    heard: bool = False  # of states, only those that their producers want no more


class ForgetKeys(Entry, frozen=True, kw_only=True):
    """The oldest idempotency keys are forgotten."""

    before: int  # age of the log when they came
    count: int  # at most


class ClearRetained(Entry, frozen=True, kw_only=True):
    """Retained messages are no longer."""

    subjects: list[str]
    expired: int = 0  # those alone that expire at this time or before; 0: all


class GrowOlder(Entry, frozen=True, kw_only=True):
    """Nothing but time has passed."""
