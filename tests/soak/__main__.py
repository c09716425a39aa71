"""`python -m tests.soak [--kills N] [--seed S] [--folder F]`: last line `N kills, 0 lost`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.points import every_point
from tests.soak.soak import soak


def main() -> int:
    """Run it, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {args.seed}, in {folder}", flush=True)
    began = time.monotonic()
    verdict = soak(
        folder, args.kills, args.seed, lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(f"{verdict.promised} messages promised, {time.monotonic() - began:.0f} s")
    for line in verdict.found[:20]:
        print(line)
    points = len(every_point())
    missed = verdict.not_reached if args.kills >= 2 * points else []
    for point in missed:
        print(f"no process came to: {point}")
    print(f"{points - len(verdict.not_reached)} of {points} named points reached")
    print(f"{args.kills} kills, {len(verdict.found)} lost")
    return 1 if verdict.found or missed else 0


if __name__ == "__main__":
    sys.exit(main())
