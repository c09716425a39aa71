"""A backlog that several connections of one receiver share, and the flight of each. Sans-IO.

No order is kept. Each message is in one flight at a time: what a flight has of the backlog, and how
much of that, is its own, and an answer counts only for what is in flight where it came. So one
connection's late answer to what another has settled, or is being asked, is dropped; and what one
had when it went is ready for the others.

Which of the flights gets the next run is the business of the owner (`node.shared_outlet`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight, Rest
from msgservice.core.frames import Transfer
from msgservice.core.ranges import Range
from msgservice.core.refusal import Refusal
from msgservice.core.runs import FLIGHT, WAITING, Run, Tally
from msgservice.errors import NeverSent
from msgservice.limits import INTEGER_MAX
from msgservice.message import Action


class SharedBacklog(Backlog):
    """The backlog of a receiver with several connections. `carriers`: by the first of each run that
    is in flight, where. `changed`: the flights of which something came or went since the owner
    took that.
    """

    __slots__ = ("carriers", "changed")

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.carriers: dict[int, SharedFlight] = {}
        self.changed: dict[SharedFlight, None] = {}

    @property
    def larger_runs(self) -> list[Run]:
        """The runs that wait for a side that takes them, since one took no run as large."""
        by_first = self._open.by_first
        held = [by_first[first] for first in dict.fromkeys(self._held) if first in by_first]
        return [run for run in held if run.state == WAITING and run.due == math.inf]

    def hand_out(self, run: Run) -> None:
        """One of `larger_runs` is ready: a side that takes it is here."""
        self._held.remove(run.first)
        self._land(run)

    def receive_resume(self, floor: int, ranges: Sequence[Range]) -> None:
        """See `Backlog`; what the RESUMEs of others have named goes on to settle when it comes."""
        before = self._resumed
        super().receive_resume(floor, ranges)
        for first, last in before:
            self._resumed.add(first, last)
        self._resumed.remove_below(self.loaded_to + 1)

    def fly_in(self, run: Run, flight: SharedFlight) -> None:
        """A run that was sent is in this flight."""
        self.carriers[run.first] = flight
        flight.firsts.add(run.first)
        flight.carried.count(1, run.count, run.size)
        self.changed[flight] = None

    def land(self, flight: SharedFlight) -> list[Run]:
        """A flight is over: its unanswered runs are ready again, rising; return them."""
        by_first = self._open.by_first
        unanswered = [by_first[first] for first in sorted(flight.firsts)]
        for run in unanswered:
            self._land(run)
        if unanswered:
            self.landed_to = max(self.landed_to, unanswered[-1].last)
        return unanswered

    # --- what is in flight is counted where it is

    def _leave(self, run: Run) -> None:
        if run.state == FLIGHT:
            flight = self.carriers.pop(run.first)
            flight.firsts.remove(run.first)
            flight.carried.count(-1, -run.count, -run.size)
            self.changed[flight] = None
        super()._leave(run)

    def _shrunk(self, run: Run, messages: int, size: int) -> None:
        if run.state == FLIGHT:
            flight = self.carriers[run.first]
            flight.carried.count(0, -messages, -size)
            self.changed[flight] = None
        super()._shrunk(run, messages, size)

    def _place_rest(self, run: Run, rest: Run) -> None:
        if run.state == FLIGHT:
            self.fly_in(rest, self.carriers[run.first])
        super()._place_rest(run, rest)


class SharedFlight(Flight):
    """The flight of one connection among several. `carried`: what is in it; `firsts`: of which
    runs.
    """

    __slots__ = ("_highest", "_shared", "carried", "firsts", "share")

    def __init__(self, backlog: SharedBacklog, **how: Any) -> None:
        self._shared = backlog
        self.carried = Tally()
        self.firsts: set[int] = set()
        self._highest = 0  # of what was sent here
        self.share = INTEGER_MAX  # messages of one run that may leave at once, for the others' sake
        super().__init__(backlog, **how)

    def _begin(self) -> Tally:
        return self.carried

    @property
    def free(self) -> int:
        """The number of messages that it has room for: of a window of nothing, one alone."""
        flying = self.carried.messages
        return max(self.window_messages - flying, 0 if flying else 1)

    def takes(self, run: Run) -> bool:
        """Whether the other side takes a run as large as this."""
        return run.size <= self.batch_max - run.options.excess_bytes

    # --- what the other side answers

    def receive_acks(self, ranges: Sequence[Range], runs_max: int = INTEGER_MAX) -> int:
        """See `Flight`; what is not in flight here is passed over."""
        self._check_sent(ranges)
        mine = self._carried_of(ranges)
        return super().receive_acks(mine, runs_max) if mine else 0

    def receive_nack(
        self,
        first: int,
        last: int,
        refusal: Refusal,
        delay: float,
        now: float,
        runs_max: int = INTEGER_MAX,
    ) -> int:
        """See `Flight`; what is not in flight here is passed over."""
        self._check_sent([(first, last)])
        if refusal.action in (Action.RETRY, Action.LATER):
            self._nacks += 1
        mine = self._carried_of([(first, last)])
        if not mine:
            return 0
        self.rest = Rest(deque(mine), refusal, delay)
        return self.go_on(now, runs_max)

    def _check_sent(self, ranges: Sequence[Range]) -> None:
        for first, last in ranges:
            if last > self._highest:
                raise NeverSent(first, last)

    def _carried_of(self, ranges: Sequence[Range]) -> list[Range]:
        carriers, between = self._shared.carriers, self._shared.open_between
        return [
            (max(first, run.first), min(last, run.last))
            for first, last in ranges
            for run in between(first, last)
            if carriers.get(run.first) is self
        ]

    def _land_all(self, now: float) -> list[Run]:
        return self._shared.land(self)

    # --- to the world

    def _room(self, run: Run) -> int:
        carried, limit, count = self.carried, self._limit, run.count
        flying = carried.messages
        if limit.suspects and (alone := self._alone(run, flying)) is not None:
            return alone
        if limit.most is not None:
            count = min(count, limit.most - flying)
        count = min(count, self.share, self.free)
        if count <= 0:
            return 0
        if flying and carried.size + run.size * count // run.count > self.window_bytes:
            return 0
        return count

    def _send(self, run: Run, transfers: list[Transfer], now: float) -> None:
        super()._send(run, transfers, now)
        self._was_sent(run, transfers)

    def _was_sent(self, run: Run, transfers: list[Transfer]) -> None:
        self._sent.remove_below(run.last + 1)
        self._highest = max(self._highest, run.last)
        self._shared.fly_in(run, self)
        if transfers[-1].after is not None:  # what lies between is open at others
            transfers[-1] = msgspec.structs.replace(transfers[-1], after=None)
