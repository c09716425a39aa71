"""Is each planted bug found, and by its sign? `python -m tests.mutants [NAME ...] [--jobs N]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

from twisted.logger import globalLogBeginner

from tests.machines.kinds import KINDS
from tests.machines.machine import play
from tests.mutants.catalogue import MUTANTS
from tests.mutants.plant import ByMachine, BySwarm, ByTest, DoesNotFit, Mutant, plant
from tests.simulation.swarm.plan import draw
from tests.simulation.swarm.playing import quiet
from tests.simulation.swarm.shrink import fails

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900


def by_machine(mutant: Mutant, catcher: ByMachine) -> str | None:
    """Plant it here, and play seeds until its sign is seen; return what was seen."""
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    plant(mutant)
    kind = KINDS[catcher.machine]
    others: set[str] = set()
    for seed in range(1, catcher.seeds + 1):
        failure = play(kind, seed)
        if failure is not None and failure.sign in catcher.signs:
            return f"machine {catcher.machine}, seed {seed}: {failure.sign}"
        if failure is not None:
            others.add(failure.sign)
    print("other signs:", *sorted(others), sep="\n  ")
    return None


def by_swarm(mutant: Mutant, catcher: BySwarm) -> str | None:
    """Plant it here, and play seeds until its sign is seen; return what was seen."""
    quiet()
    plant(mutant)
    others: set[str] = set()
    plans = (draw(seed) for seed in count())
    wanted = (plan for plan in plans if any(op.kind == catcher.operation for op in plan.ops))
    for plan in islice(wanted, catcher.seeds):
        found = fails(plan)
        if found is not None and found.sign in catcher.signs:
            return f"swarm, seed {plan.seed}: {found.sign}"
        if found is not None:
            others.add(found.sign)
    print("other signs:", *sorted(others), sep="\n  ")
    return None


def look(mutant: Mutant) -> str | None:
    """Run what must find it, in a process of its own; return what it said, or None."""
    catcher = mutant.catcher
    environment = {**os.environ, "MSGSERVICE_MUTANT": mutant.name}
    if isinstance(catcher, ByMachine | BySwarm):
        command = [sys.executable, "-m", "tests.mutants", "--here", mutant.name]
    else:
        command = [sys.executable, "-bb", "-m", "pytest", "-q", "--tb=no", "-rfE", "-x"]
        command += ["-p", "tests.mutants.plugin", *catcher.path.split()]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    if isinstance(catcher, ByMachine | BySwarm):
        found = [
            line for line in ended.stdout.splitlines() if line.startswith(("machine ", "swarm, "))
        ]
        return found[0] if found else None
    for line in ended.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")) and catcher.sign in line:
            return line.split(" - ")[0]
    return None


def told(mutant: Mutant) -> tuple[bool, str]:
    """Look, and say it in a line."""
    began = time.monotonic()
    try:
        found = look(mutant)
    except (DoesNotFit, subprocess.TimeoutExpired) as error:
        return False, f"FAILED   {mutant.name}: {error}"
    seconds = time.monotonic() - began
    if found is None:
        return False, f"MISSED   {mutant.name} ({seconds:.0f} s)"
    return True, f"caught   {mutant.name} by {found} ({seconds:.0f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--here", metavar="NAME", help="plant it in this process")
    asked = parser.parse_args()
    if asked.here:
        mutant = MUTANTS[asked.here]
        catcher = mutant.catcher
        assert not isinstance(catcher, ByTest)
        if isinstance(catcher, ByMachine):
            found = by_machine(mutant, catcher)
        else:
            found = by_swarm(mutant, catcher)
        print(found or "not found")
        return 0 if found else 1
    chosen = [MUTANTS[name] for name in asked.names or MUTANTS]
    caught = 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for is_caught, line in pool.map(told, chosen):
            caught += is_caught
            print(line, flush=True)
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
