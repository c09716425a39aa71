"""Play many seeds over all cores: `python -m tests.simulation.swarm SEEDS [--first N]`.

Progress goes to standard error. Each seed that fails is named as it is found; at the end the first
ones are shrunk, and printed as tests. The last line says how many violations there were; with any,
the status is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from tests.simulation.swarm.plan import draw
from tests.simulation.swarm.playing import Played, play, quiet
from tests.simulation.swarm.shrink import Shrinker, as_test, fails

# Pieces of work that a process does: some worlds that are over stay in memory, for a cause that is
# not found, and go with the process.
CHUNKS = 12
SHRUNK_MAX = 3  # violations of one run that are shrunk, of different signs


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.swarm")
    parser.add_argument("seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    begun, seconds, done = time.monotonic(), 0.0, 0
    failed: list[Played] = []
    with multiprocessing.get_context("spawn").Pool(
        asked.jobs, initializer=quiet, maxtasksperchild=CHUNKS
    ) as pool:
        wanted = range(asked.first, asked.first + asked.seeds)
        for played in pool.imap_unordered(play, wanted, chunksize=4):
            done += 1
            seconds += played.seconds
            if played.sign:
                failed.append(played)
                print(f"seed {played.seed}: {played.what}", flush=True)
            if done % 20 == 0 or done == asked.seeds:
                rate = done / (time.monotonic() - begun)
                print(
                    f"\r{done} of {asked.seeds} seeds, {len(failed)} violations,"
                    f" {seconds / done:.2f} s of a core each, {rate:.1f} a second ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
    print(file=sys.stderr)
    quiet()
    by_sign = {played.sign: played for played in sorted(failed, reverse=True)}
    for played in sorted(by_sign.values())[:SHRUNK_MAX]:
        smallest = Shrinker(draw(played.seed), played.sign).shrink()
        found = fails(smallest)
        if found is not None:
            print(
                f"\n# seed {played.seed}, shrunk: {found}\n{as_test(smallest, found)}", flush=True
            )
    print(f"{asked.seeds} seeds, {len(failed)} violations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
