"""`python -m tests.powerloss [--points N]`: the last line is `N cut points, 0 lost, 0 silent`."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle

from tests.powerloss.play import CUTS, KINDS, found_by

# Most of what can go wrong is in the log.
SHARE = ("log", "log", "outbox", "inbox")


def look(task: tuple[str, int]) -> tuple[str, int, str | None]:
    """Play one seed in a process of the pool."""
    # What a dead disk raises while something else is raised is no news.
    sys.unraisablehook = lambda unraisable: None
    kind, seed = task
    return kind, seed, found_by(kind, seed)


def main() -> int:
    """Play as many as asked; say what was found, and how to see it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS))
    args = parser.parse_args()
    seeds = -(-args.points // CUTS)
    kinds = cycle([args.kind] if args.kind else SHARE)
    tasks = [(next(kinds), args.first + n) for n in range(seeds)]
    lost = silent = 0
    with ProcessPoolExecutor() as pool:
        for done, (kind, seed, found) in enumerate(pool.map(look, tasks, chunksize=4), 1):
            if found is not None:
                reported = found.startswith(("LogDamaged", "DataFolderUnusable"))
                lost += 1
                silent += not reported
                print(f"{kind} {seed}: {found}", flush=True)
            if done % 100 == 0:
                print(f"{done * CUTS} of {seeds * CUTS}", file=sys.stderr, flush=True)
    print(f"{seeds * CUTS} cut points, {lost} lost, {silent} silent")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
