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


class DeepMachine(OutboxMachine):
    """Lanes of a hundred small runs, of which heads fail, and die, again and again."""

    OPERATIONS: ClassVar[dict[str, int]] = {
        "append": 60,
        "offer": 30,
        "connect": 10,
        "pump_part": 30,
        "pump": 5,
        "arrive": 60,
        "take": 40,
        "take_part": 5,
        "take_many": 10,
        "retry": 25,
        "later": 10,
        "reject": 25,
        "deliver": 80,
        "commit": 25,
        "pass_time": 40,
        "cut": 2,
        "unload": 2,
    }
    ALWAYS = frozenset(OPERATIONS)
    LOG_MAX = 250

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.ordered = True
        self.window = (rng.choice([20, 1000]), 100_000)
        self.max_attempts = rng.choice([0, 2])
        self.behind_max = rng.choice([50, 10_000])
        self.keeps_letters = True
        self.outbox = self._new(0)
        for _ in range(80):
            self.do_append(rng)
