"""One seed in a process of a pool, and what became of it.

A module of its own: a process that is spawned looks functions up by the name of their module, and
`__main__` of a package is not one that it can find.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from twisted.logger import globalLogBeginner

from tests.simulation.swarm.plan import draw
from tests.simulation.swarm.witness import Violation
from tests.simulation.swarm.world import World


class Played(NamedTuple):
    """What became of a seed."""

    seed: int
    sign: str  # empty: nothing was found
    what: str
    digest: str
    seconds: float


def play(seed: int) -> Played:
    """Play one seed."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory(prefix="swarm-", dir=_memory()) as folder:
        world = World(draw(seed), Path(folder))
        sign = what = ""
        try:
            world.play()
        except Violation as found:
            sign, what = found.sign, str(found)
        except Exception as error:
            sign, what = "the simulation itself fails", f"{type(error).__name__}: {error}"
        digest = world.witness.digest
    return Played(seed, sign, what, digest, time.process_time() - begun)


def _memory() -> str | None:
    """Files live for a second: in memory, where there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def quiet() -> None:
    """Log nothing: what a run logs is looked at by the run itself."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
