"""When a group is written on the reactor's thread, and when on the writer's: a rule, and no input.

Handing a group to another thread and back costs a lone message more than writing it does. So a
small group is written where it was gathered, as long as the disk is quick: everything else the
reactor has to do waits for it. A disk that is not is noticed after one commit (`STALLED`) or two
(`QUICK`); then all goes to the thread for a while, and is tried again. Who asks has seen to it that
the thread has nothing to do: the connection has one owner at a time.
"""

from __future__ import annotations

import math
import os
from typing import Literal

from msgservice.errors import BadValue
from msgservice.limits import Limits
from msgservice.records import Group

InlineCommits = Literal["auto", "on", "off"]
KNOWN: tuple[InlineCommits, ...] = ("auto", "on", "off")
VARIABLE = "MSGSERVICE_INLINE_COMMITS"

INLINE_BYTES = 64 * 1024  # of the batches of a group
INLINE_BATCHES = 64
INLINE_PROGRESS = 64  # receivers
INLINE_ROWS = 256  # exceptions of theirs
# Seconds of a commit. Of the last `RECENT` that were written so, one may take longer than `QUICK`:
# their 99th percentile is below it.
QUICK = 0.02
RECENT = 100
STALLED = 0.1  # one alone shows that the disk is not quick
# The seconds for which all goes to the thread then: so many times as long as the slow one took. So
# a disk that stays slow costs the reactor's thread a fiftieth of its time, and one commit that was
# slow because others kept the processors busy costs a second or two of the quick way, no more.
PAUSE_FACTOR = 50
PAUSE_MIN, PAUSE_MAX = 1.0, 60.0
# The seconds that a disk may stand still on the reactor's thread before a peer that hears nothing
# meanwhile takes this side for gone: with heartbeats that leave less no commit is written there.
MARGIN = 5.0


def inline_commits(said: str) -> InlineCommits:
    """Return what was said in `VARIABLE`; raises `BadValue`."""
    for known in KNOWN:
        if said == known:
            return known
    raise BadValue(VARIABLE, f"is auto, on or off, not {said!r}")


def inline_of_environment() -> InlineCommits:
    """Return what the environment says in `VARIABLE`, `auto` where that is nothing.

    Raises `BadValue`.
    """
    return inline_commits(os.environ.get(VARIABLE) or "auto")


class Inline:
    """The rule of one log. Times are seconds of one monotonic clock."""

    __slots__ = ("_count", "_how", "_slow_at", "_until")

    def __init__(self, how: InlineCommits, limits: Limits) -> None:
        if how == "auto" and limits.heartbeat * (limits.silence - 1) < MARGIN:
            how = "off"
        self._how = how
        self._count = 0  # commits that were written so
        self._slow_at = -RECENT  # which of them was slow last
        self._until = -math.inf  # when the last pause ends

    def takes(self, group: Group, size: int, now: float) -> bool:
        """Whether a group, whose batches have so many bytes, is written on the reactor's thread."""
        if self._how == "off" or size > INLINE_BYTES or not is_small(group):
            return False
        return self._how == "on" or now >= self._until

    def took(self, seconds: float, now: float) -> None:
        """Note how long a group took that was written so, until now."""
        self._count += 1
        if seconds <= QUICK:
            return
        again = self._count - self._slow_at < RECENT
        self._slow_at = self._count
        if again or seconds > STALLED:
            self._until = now + min(max(PAUSE_FACTOR * seconds, PAUSE_MIN), PAUSE_MAX)


def is_small(group: Group) -> bool:
    """Whether a group has nothing but some batches, and some progress without dead letters."""
    if (
        len(group.batches) > INLINE_BATCHES
        or len(group.progress) > INLINE_PROGRESS
        or group.is_more
    ):
        return False
    rows = 0
    for progress in group.progress:
        if progress.exceptions:
            rows += len(progress.exceptions)
        if progress.dead:
            return False
    return rows <= INLINE_ROWS
