"""Plays of random steps against a model, from a seed: deterministic, and shrunk when one fails.

A machine is a system under test beside a plain model of it. What it is made of and which steps
may come is drawn from the seed; each step has randomness of its own, so that others can be taken
out without changing it. A machine judges by what crosses the borders of what it tests, and by
counters that it derives anew.

    failure = play(OutboxMachine, 17)      # None, or what was wrong
    print(shrunk(failure))                 # a test of a few lines
    replay(OutboxMachine, 17, [("offer", 5), ("cut", 1)])
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Step = tuple[str, int]  # the name of an operation, and the seed of its randomness

SHRINK_PLAYS = 600  # replays that making a failure smaller may cost


class Violation(AssertionError):
    """A rule does not hold. `sign`: which; the same for all that break it in the same way."""

    def __init__(self, sign: str, *details: object) -> None:
        super().__init__(sign, *details)
        self.sign = sign


def require(holds: object, sign: str, *details: object) -> None:
    """Raise `Violation` unless it holds."""
    if not holds:
        raise Violation(sign, *details)


class Machine:
    """See the module. A subclass has a method `do_NAME(rng)` for each operation.

    `OPERATIONS`: name -> how often it comes, compared with the others. `ALWAYS` are those that a
    seed cannot turn off.
    """

    OPERATIONS: ClassVar[dict[str, int]] = {}
    ALWAYS: ClassVar[frozenset[str]] = frozenset()
    STEPS = 120

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def step(self, name: str, rng: random.Random) -> None:
        """Do one operation, and look whether all rules still hold."""
        operation: Callable[[random.Random], None] = getattr(self, f"do_{name}")
        operation(rng)
        self.check(name)

    def check(self, after: str) -> None:
        """Compare with the model."""

    def finish(self) -> None:
        """Everybody is well and answers: all must come to its end."""

    def close(self) -> None:
        """Let go of what was opened."""


@dataclass(frozen=True)
class Failure:
    """A play that broke a rule."""

    kind: type[Machine]
    seed: int
    steps: tuple[Step, ...]
    sign: str
    told: str

    def __str__(self) -> str:
        return f"{self.kind.__name__} seed {self.seed}: {self.sign}\n{self.told}"


def steps_of(kind: type[Machine], seed: int, count: int | None = None) -> tuple[Step, ...]:
    """The steps of a seed: a random subset of the operations is turned on, as a swarm does."""
    rng = random.Random(f"steps {seed}")
    names = [
        name
        for name in kind.OPERATIONS
        if name in kind.ALWAYS or rng.random() < rng.choice((0.6, 1))
    ]
    weights = [kind.OPERATIONS[name] * rng.choice((1, 1, 3)) for name in names]
    length = rng.randint(10, kind.STEPS) if count is None else count
    return tuple((name, rng.randrange(1 << 32)) for name in rng.choices(names, weights, k=length))


def play(kind: type[Machine], seed: int, steps: Sequence[Step] | None = None) -> Failure | None:
    """Play the steps of a seed, or these in its world; return what failed, or None."""
    chosen = steps_of(kind, seed) if steps is None else tuple(steps)
    machine = None
    at = "setting up"
    try:
        machine = kind(random.Random(f"world {seed}"))
        for number, (name, draw) in enumerate(chosen):
            at = f"step {number}, {name}"
            machine.step(name, random.Random(draw))
        at = "the end"
        machine.finish()
    except Exception as error:
        return Failure(kind, seed, chosen, sign_of(error), f"at {at}: {_told(error)}")
    finally:
        if machine is not None:
            machine.close()
    return None


def replay(kind: type[Machine], seed: int, steps: Iterable[Step]) -> None:
    """Play these steps in the world of a seed; raise what they break."""
    machine = kind(random.Random(f"world {seed}"))
    try:
        for name, draw in steps:
            machine.step(name, random.Random(draw))
        machine.finish()
    finally:
        machine.close()


def sign_of(error: Exception) -> str:
    """Return what failures of the same kind have in common."""
    if isinstance(error, Violation):
        return error.sign
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if "msgservice/" in frame.filename or "/tests/" in frame.filename
    ]
    return f"{type(error).__name__} in {(ours or frames)[-1].name}"


def _told(error: Exception) -> str:
    lines = traceback.format_exception(error)
    return "".join(lines[-3:]).strip()


def shrink(failure: Failure, plays: int = SHRINK_PLAYS) -> Failure:
    """Take out of a failing play what it does not need to fail in the same way."""
    best = failure
    size = max(1, len(best.steps) // 2)
    while size and plays > 0:
        at, found = 0, False
        while at < len(best.steps) and plays > 0:
            steps = best.steps[:at] + best.steps[at + size :]
            plays -= 1
            again = play(best.kind, best.seed, steps)
            if again is not None and again.sign == failure.sign:
                best, found = again, True
            else:
                at += size
        if not found or size > 1:
            size //= 2
    return best


def as_test(failure: Failure) -> str:
    """Return the failure as a test of a few lines."""
    kind = failure.kind
    told = failure.told.splitlines()[-1][:140]
    steps = "".join(f"        ({name!r}, {draw}),\n" for name, draw in failure.steps)
    return (
        f"def test_seed_{failure.seed}() -> None:\n"
        f"    # {failure.sign}: {told}\n"
        f"    replay({kind.__name__}, {failure.seed}, [\n{steps}    ])\n"
    )


def search(kind: type[Machine], seeds: Iterable[int], **_: Any) -> dict[str, Failure]:
    """Play seeds; return the first failure of each sign."""
    found: dict[str, Failure] = {}
    for seed in seeds:
        failure = play(kind, seed)
        if failure is not None:
            found.setdefault(failure.sign, failure)
    return found
