"""Play model machines: `python -m tests.machines [NAME ...] [--seeds FIRST-LAST] [--jobs N]`."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from twisted.logger import globalLogBeginner

from tests.machines.kinds import KINDS
from tests.machines.machine import Failure, as_test, play, shrink

CHUNK = 25


def _be_quiet() -> None:
    """What is logged is looked at by the machines; nothing is printed."""
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)


def _play(name: str, first: int, last: int) -> list[Failure]:
    found = (play(KINDS[name], seed) for seed in range(first, last + 1))
    return [failure for failure in found if failure is not None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.machines")
    parser.add_argument("names", nargs="*", default=[], help=", ".join(KINDS))
    parser.add_argument("--seeds", default="1-200", help="FIRST-LAST")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--no-shrink", action="store_true")
    asked = parser.parse_args()
    first, last = (int(part) for part in asked.seeds.split("-"))
    violations = 0
    _be_quiet()
    with ProcessPoolExecutor(asked.jobs, initializer=_be_quiet) as pool:
        for name in asked.names or KINDS:
            began = time.monotonic()
            chunks = range(first, last + 1, CHUNK)
            ends = [min(at + CHUNK - 1, last) for at in chunks]
            found: dict[str, list[Failure]] = {}
            for failures in pool.map(_play, [name] * len(ends), chunks, ends):
                for failure in failures:
                    found.setdefault(failure.sign, []).append(failure)
            violations += sum(len(failures) for failures in found.values())
            for sign, failures in found.items():
                seeds = [failure.seed for failure in failures]
                print(f"\n{name}: {sign}: {len(seeds)} seeds, first {min(seeds)}")
                smallest = min(failures, key=lambda one: len(one.steps))
                print(as_test(smallest if asked.no_shrink else shrink(smallest)))
            seeds_per = (last - first + 1) / max(0.001, time.monotonic() - began)
            print(f"{name}: {last - first + 1} seeds, {seeds_per:.0f} a second", flush=True)
    print(f"{last - first + 1} seeds of each machine, {violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
