"""How many seeds the simulations run: few in `make test`, as many as wanted by hand.

SIMULATION_SEEDS=1000 pytest -q tests/simulation/test_system.py      # 0 to 999
SIMULATION_SEEDS=56-56 pytest -q tests/simulation/test_system.py     # the one that failed
"""

from __future__ import annotations

import os


def seeds(count: int) -> range:
    """Return the seeds 0 to `count - 1`, unless `SIMULATION_SEEDS` says others."""
    wanted = os.environ.get("SIMULATION_SEEDS", "")
    if not wanted:
        return range(count)
    first, dash, last = wanted.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))
