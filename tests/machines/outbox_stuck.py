"""The outbox where lanes get stuck: what the seeds of `OutboxMachine` come to once in thousands."""

from __future__ import annotations

import random
from typing import ClassVar

from tests.machines.outbox import OutboxMachine


class AgainMachine(OutboxMachine):
    """A lane's head fails again and again, from any place in it; nobody goes away."""

    OPERATIONS: ClassVar[dict[str, int]] = {
        "append": 30,
        "offer": 30,
        "pump": 30,
        "arrive": 60,
        "take_part": 5,
        "retry": 40,
        "later": 10,
        "deliver": 60,
        "pass_time": 40,
        "connect": 2,
    }
    ALWAYS = frozenset(OPERATIONS)

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.ordered = True
        self.window = (1000, 100_000)
        self.max_attempts = 0
        self.behind_max = 10_000
        self.outbox = self._new(0)


class AwayMachine(OutboxMachine):
    """Little may be final above the cursor, and the peer is away when it is as much as that."""

    OPERATIONS: ClassVar[dict[str, int]] = {
        "append": 40,
        "offer": 20,
        "connect": 30,
        "pump": 20,
        "arrive": 40,
        "take": 40,
        "retry": 10,
        "deliver": 40,
        "commit": 20,
        "cut": 5,
        "unload": 20,
        "restart": 2,
    }
    ALWAYS = frozenset(OPERATIONS)

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.window = (1000, 100_000)
        self.max_attempts = 0
        self.behind_max = 2
        self.outbox = self._new(0)
