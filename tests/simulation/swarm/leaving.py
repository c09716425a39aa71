"""Receivers that are away for too long in a swarm (`away_max`, DELIVERY 49), and removed for it.

Nobody is removed who was here in that time; who is away for longer, while the node runs, is. What
waited for it is told as removed, and who comes back then is another receiver.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from tests.simulation.swarm.family import Family

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.world import World

LOOK = 0.25  # seconds
STEP = 2.0  # by which the age of a log moves, and what passes until it is looked at
LATE = 20.0  # behind its time: a look, and what a start leaves to who comes back


@dataclass
class Leaver:
    """A receiver with an `away_max`, as it is looked at."""

    name: str
    away_max: int
    number: int  # of its row
    since: float  # it has this limit
    here_at: float  # when it was seen with a connection last
    counted_from: float  # neither it nor anything else ended its time away since


class Leaving(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.leavers: dict[str, Leaver] = {}
        self.removals = 0

    def do_leave(self, who: str, away_max: int, seconds: float) -> None:
        """Give a receiver this limit, and kill it; it comes back after a while."""
        world = self.world
        row = world.row_of(who)
        if row is None or row.configured:
            return
        now = world.now
        changing = world.node.service.change_receiver
        world._admin(lambda: changing(who, away_max=away_max))
        if not self.leavers:
            world.net.clock.callLater(LOOK, self._look)
        known = self.leavers.get(who)
        # One that is away already is so since it was here, whatever its limit was then.
        is_here = self._is_here(who)
        here_at = now if is_here else -inf if known is None else known.here_at
        self.leavers[who] = Leaver(who, away_max, row.number, now, here_at, now)
        world.do_kill(who, seconds)

    def _is_here(self, who: str) -> bool:
        """Whether a receiver has an open session: one that was cut off before was not here."""
        return any(tap.peer == who and tap.has_resumed for tap in self.world.node.taps)

    def _look(self) -> None:
        world = self.world
        world.net.clock.callLater(LOOK, self._look)
        if not (world.node.is_up and world.node.service.is_running):
            for one in self.leavers.values():
                one.counted_from = world.now
            return
        for one in list(self.leavers.values()):
            row = world.row_of(one.name)
            if row is None or row.number != one.number:
                del self.leavers[one.name]
                if not any(at >= world.now - STEP for at in world.removed[one.name]):
                    self._removed(one)
                continue
            is_here = self._is_here(one.name)
            if is_here:
                one.here_at = world.now
            letters = world.node.log.dead_bytes(row.number)
            if is_here or row.options.paused or row.options.away_max != one.away_max or letters:
                one.counted_from = world.now
            elif world.now - one.counted_from > one.away_max + LATE:
                world.witness.note("away for too long, and there", f"{one}")

    def _removed(self, one: Leaver) -> None:
        world = self.world
        self.removals += 1
        world.removed[one.name].append(world.now)
        world.patterns[one.name].is_certain = False
        world._removed(one.name)
        earliest = max(one.since, one.here_at + one.away_max) - STEP
        if world.now < earliest:
            world.witness.note("removed before its time", f"{one}")

    def check(self, check: Check) -> None:
        """See `Family`: it was looked at all the time."""
