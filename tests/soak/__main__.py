"""`python -m tests.soak [--kills N] [--seed S] [--folder F]`: last line `N kills, 0 lost`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

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
    promised, found = soak(
        folder, args.kills, args.seed, lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(f"{promised} messages promised, {time.monotonic() - began:.0f} s")
    for line in found[:20]:
        print(line)
    print(f"{args.kills} kills, {len(found)} lost" if found else f"{args.kills} kills, 0 lost")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
