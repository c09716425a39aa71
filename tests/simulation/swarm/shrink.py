"""A failing plan, made as small as it goes and still fails for the same reason; and a test of it.

Faults go first, then operations, then messages, then limits and options that do not matter. The
same reason is the same `Violation.sign`. What is left is printed as a pytest of a few lines.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.simulation.swarm.plan import Op, Part, Plan
from tests.simulation.swarm.witness import Violation
from tests.simulation.swarm.world import World

TRIES_MAX = 400
MESSAGES = ("send", "backlog")


def fails(plan: Plan) -> Violation | None:
    """Play a plan in a folder of its own; return what was found first, or None."""
    with tempfile.TemporaryDirectory(prefix="swarm-") as folder:
        try:
            World(plan, Path(folder)).play()
        except Violation as found:
            return found
    return None


class Shrinker:
    """See the module. `check` plays a plan; for tests of the shrinker itself it may be another."""

    def __init__(
        self,
        plan: Plan,
        sign: str,
        *,
        check: Callable[[Plan], Violation | None] = fails,
        tries_max: int = TRIES_MAX,
    ) -> None:
        self.plan = plan
        self.tries = 0
        self._sign = sign
        self._check = check
        self._tries_max = tries_max

    def shrink(self) -> Plan:
        """Return the smallest that was found."""
        before = None
        while before != self.plan and self.tries < self._tries_max:
            before = self.plan
            self._try(replace(self.plan, weather={}))
            self._drop("weather")
            for kind in sorted({op.kind for op in self.plan.ops} - set(MESSAGES)):
                self._try_ops([op for op in self.plan.ops if op.kind != kind])
            self._cut_ops(lambda op: op.kind not in MESSAGES)
            self._cut_ops(lambda op: op.kind in MESSAGES)
            self._fewer_messages()
            self._drop("world")
            self._drop("limits")
            self._smaller_cast()
        return self.plan

    def _try(self, plan: Plan) -> bool:
        if plan == self.plan or self.tries >= self._tries_max:
            return False
        self.tries += 1
        try:
            found = self._check(plan)
        except Exception:
            return False  # it cannot be played any more
        if found is None or found.sign != self._sign:
            return False
        self.plan = plan
        return True

    def _try_ops(self, ops: Sequence[Op]) -> bool:
        return self._try(replace(self.plan, ops=tuple(ops)))

    def _cut_ops(self, which: Callable[[Op], bool]) -> None:
        """Leave out as many as can be: halves, then quarters, then each."""
        size = max(1, sum(map(which, self.plan.ops)))
        while size:
            at = 0
            while True:
                some = [op for op in self.plan.ops if which(op)][at : at + size]
                if not some:
                    break
                gone = set(map(id, some))
                if not self._try_ops([op for op in self.plan.ops if id(op) not in gone]):
                    at += size
            size //= 2

    def _fewer_messages(self) -> None:
        for index in range(len(self.plan.ops)):
            for op in _smaller(self.plan.ops[index]):
                ops = list(self.plan.ops)
                ops[index] = op
                if self._try_ops(ops):
                    break

    def _drop(self, name: str) -> None:
        for key in list(getattr(self.plan, name)):
            rest = {k: v for k, v in getattr(self.plan, name).items() if k != key}
            changed: dict[str, Any] = {name: rest}
            self._try(replace(self.plan, **changed))

    def _smaller_cast(self) -> None:
        for part in self.plan.cast:
            rest = tuple(one for one in self.plan.cast if one is not part)
            ops = tuple(op for op in self.plan.ops if op.who != part.name)
            if self._try(replace(self.plan, cast=rest, ops=ops)):
                continue
            for key in part.options:
                if key != "patterns":
                    options = {k: v for k, v in part.options.items() if k != key}
                    smaller = Part(part.kind, part.name, options)
                    cast = tuple(smaller if one is part else one for one in self.plan.cast)
                    if self._try(replace(self.plan, cast=cast)):
                        part = smaller  # what is left of it


def _smaller(op: Op) -> Iterator[Op]:
    if op.kind == "send":
        subject, count, size, to, require = op.args
        yield op._replace(args=(subject, 1, 0, None, False))
        yield op._replace(args=(subject, 1, size, to, require))
        yield op._replace(args=(subject, max(1, count // 2), size, to, require))
    elif op.kind == "backlog":
        subject, count = op.args
        for fewer in (1, count // 4, count // 2):
            yield op._replace(args=(subject, max(1, fewer)))


def as_test(plan: Plan, found: Violation) -> str:
    """Return a pytest that fails while the fault is there."""
    lines = [
        "from tests.simulation.swarm.plan import Op, Part, Plan",
        "from tests.simulation.swarm.shrink import fails",
        "",
        "",
        f"def test_seed_{plan.seed}() -> None:  # {found.sign}",
        "    plan = Plan(",
        f"        seed={plan.seed},",
        f"        limits={plan.limits!r},",
        f"        weather={plan.weather!r},",
        "        cast=(",
        *[f"            {part!r}," for part in plan.cast],
        "        ),",
        "        ops=(",
        *[f"            {op!r}," for op in plan.ops],
        "        ),",
        f"        world={plan.world!r},",
        "    )",
        "    assert fails(plan) is None",
    ]
    return "\n".join(lines) + "\n"
