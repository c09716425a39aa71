"""`python -m tests.damage [--damages N]`: the last line is `N damages, 0 silent`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle

from tests.damage.damages import DAMAGES, Finding, play

SHARE = ("log", "log", "outbox", "inbox")  # most of what can be damaged is in the log


def look(task: tuple[str, int]) -> tuple[str, int, list[Finding]]:
    """Play one seed in a process of the pool."""
    kind, seed = task
    return kind, seed, play(kind, seed)


def main() -> int:
    """Damage as many places as asked; say what was found, and how to see it again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(set(SHARE)))
    parser.add_argument("--table", action="store_true", help="what became of each file and kind")
    args = parser.parse_args()
    kinds = cycle([args.kind] if args.kind else SHARE)
    seeds = -(-args.damages // DAMAGES)
    tasks = [(next(kinds), args.first + number) for number in range(seeds)]
    verdicts: Counter[str] = Counter()
    table: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor() as pool:
        for kind, seed, findings in pool.map(look, tasks):
            for finding in findings:
                verdicts[finding.verdict] += 1
                table[finding.place.split(":")[0], finding.verdict] += 1
                if finding.verdict in ("silent", "raw"):
                    print(f"{finding.verdict}: {kind} {seed}: {finding.place}: {finding.why}")
    if args.table:
        for (place, verdict), count in sorted(table.items()):
            print(f"{place:24} {verdict:12} {count}")
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    print(f"{sum(verdicts.values())} damages, {verdicts['silent']} silent")
    return 1 if verdicts["silent"] or verdicts["raw"] else 0


if __name__ == "__main__":
    sys.exit(main())
