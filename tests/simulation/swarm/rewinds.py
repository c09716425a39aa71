"""Rewinds in a swarm (DELIVERY 47): an operator has sent again what a receiver acknowledged.

Of each rewind: what its receiver was heard to have acknowledged before comes as copies, once and in
the order of the log; nothing else does, and nothing oftener than it was rewound. What receivers
begin with, and what suspended ones were left out of, is played in `tests/simulation/replays.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice import administration as asked
from msgservice.records import position_of
from tests.simulation.swarm.checkers import count_of
from tests.simulation.swarm.family import Family
from tests.simulation.swarm.letters import REPLAY

if TYPE_CHECKING:
    from tests.simulation.swarm.checkers import Check
    from tests.simulation.swarm.world import World

LAST_SECONDS = 120.0  # until what is being sent again in the end has come
STORED_WITHIN = 10.0  # seconds from an answer until it is on disk, where the disk works


@dataclass
class Rewind:
    """A rewind of a receiver, from a position on, and how it went.

    `oldest`: the position that the log began with. History gives way to rows that are kept, and to
    sets of receivers without a place.
    """

    who: str
    at: float
    first: int
    oldest: int
    done_at: float = math.inf  # it is on disk
    is_refused: bool = False  # another one runs, say


class Rewinds(Family):
    """See the module."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.rewinds: list[Rewind] = []

    def do_rewind(self, who: str, share: float) -> None:
        """Have sent again what a receiver acknowledged of the last `share` of what came to it."""
        if self.world.row_of(who) is None:
            return
        came = sorted(self._came(who))
        first = came[int(len(came) * (1 - share))] if share < 1 and came else 0
        oldest = position_of(count_of(self.world, "select coalesce(min(number), 0) from batch"))
        rewind = Rewind(who, self.world.now, first, oldest)
        self.rewinds.append(rewind)
        rewound = self.world.node.service.parts.operations.rewind(asked.Rewind(who, first=first))

        def done(result: object) -> None:
            if isinstance(result, Failure):
                rewind.is_refused = True
                self.world.admin_failed(result)
            else:
                rewind.done_at = self.world.now

        Deferred.fromCoroutine(rewound).addBoth(done)

    def _came(self, who: str) -> dict[int, bytes]:
        """What came to a receiver but for what was sent again, by position.

        Its log never goes back here. What it had as retained it has acknowledged as any other.
        """
        came: dict[int, bytes] = {}
        for (name, _), delivered in self.witness.delivered.items():
            if name == who:
                came |= delivered.all()
        for (name, _), places in self.witness.copies.items():
            if name == who:
                for (_, position), (flags, _) in places.items():
                    if flags & REPLAY:
                        came.pop(position, None)
        return came

    def copies_besides(self, name: str) -> int:
        """See `Family`."""
        return sum(one.who == name for one in self.rewinds if not one.is_refused)

    def waiting_besides(self, name: str) -> int:
        """See `Family`."""
        times = self.copies_besides(name)
        return times * sum(len(body) + 200 for body in self._came(name).values()) if times else 0

    # --- what must be so

    def finish(self, check: Check) -> None:
        """See `Family`. What is being sent again comes to its end."""
        world = self.world
        if not self.rewinds or world.is_blocked:
            return
        if not world.run_until(lambda: not self._running(), LAST_SECONDS):
            check.fail("a rewind does not end", f"{self._running()}")
        world.run(10.0)

    def _running(self) -> list[str]:
        parts = self.world.node.service.parts
        names = {one.who for one in self.rewinds}
        return [
            name
            for name in sorted(names)
            if (row := self.world.row_of(name)) is not None and parts.replayer.runs(row.number)
        ]

    def check(self, check: Check) -> None:
        """See `Family`."""
        for name in {one.who for one in self.rewinds}:
            self._check_of(check, name)

    def _copies(self, name: str) -> list[tuple[int, int]]:
        """Return (position of the copy, of what) of all replays that came, rising."""
        return sorted(
            (position, int(of.removeprefix("log:")))
            for (who, _), places in self.witness.copies.items()
            if who == name
            for (_, position), (flags, of) in places.items()
            if flags & REPLAY and of.startswith("log:")
        )

    def _check_of(self, check: Check, name: str) -> None:
        world = self.world
        rewinds = [one for one in self.rewinds if one.who == name and not one.is_refused]
        letters = sum(family.letters_again(name) for family in world.families)
        copies = self._copies(name)
        came = self._came(name)
        counted = Counter(of for _, of in copies)
        for of, count in counted.items():
            if count > letters + sum(one.first <= of for one in rewinds):
                check.fail("rewound too often", f"{name}: {of}, {count} times: {rewinds}")
            if of not in came and not letters:
                check.fail("rewound, and never had", f"{name}: {of}: {rewinds}")
        if len(rewinds) == 1 and not letters:
            for (_, first), (_, second) in pairwise(copies):
                if first >= second:
                    check.fail("rewound out of order", f"{name}: {second} behind {first}")
        if self._is_kept(name):
            for one in rewinds:
                self._check_whole(check, one, came, counted)

    def _is_kept(self, name: str) -> bool:
        """Whether all that a receiver acknowledged is in the log, and its own until the end."""
        world, limits = self.world, self.world.limits
        kept = limits.keep_seconds >= 3600 and limits.keep_bytes > 10**6 < limits.max_bytes
        return kept and not (
            world.removed[name]
            or name in world.blocked
            or world.accounts is not None  # what its user may not receive then is left out
            or any(op.kind in ("disk", "sync", "suspend", "intrude") for op in world.plan.ops)
        )

    def _check_whole(
        self, check: Check, rewind: Rewind, came: dict[int, bytes], counted: Counter[int]
    ) -> None:
        heard: dict[tuple[str, int], float] = self.witness.position_answered_at
        before = rewind.at
        for at in self.world.node.died_at:
            if at <= rewind.at:  # what it had not stored by then it hears again
                before = min(before, at - STORED_WITHIN)
        for position, body in came.items():
            who: Any = (rewind.who, body)
            if (
                position >= max(rewind.first, rewind.oldest)
                and rewind.done_at < math.inf
                and heard.get((rewind.who, position), math.inf) < before - 1.0
                and who not in self.witness.rejected
                and not self.witness.tries[who]
                and not counted[position]
            ):
                check.fail("a rewind is not whole", f"{rewind}: {position}, {body[:40]!r}")
