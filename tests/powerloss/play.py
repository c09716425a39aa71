"""One cut point: a history, the power failing in its midst, and what is found afterwards.

The operation of the disk in which the power fails is drawn with the seed; so is whether it fails
again while what is left is opened.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from random import Random

from tests.kit.simdisk import SimDisk
from tests.powerloss.histories import KINDS, History, Stopped

STEPS_MAX = 60
OPERATIONS_MAX = 900  # about what so many steps take
RECOVERY_OPERATIONS = 40
CUTS = 3  # in a history, so that what was recovered is gone on with


def play(kind: str, seed: int, folder: Path | None = None) -> int:
    """Play a seed; return how often the power failed. `AssertionError`: something was lost."""
    place = folder or Path(tempfile.mkdtemp(prefix="powerloss-"))
    try:
        return _play(kind, seed, place)
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def _play(kind: str, seed: int, folder: Path) -> int:
    random = Random(f"{kind} {seed}")
    history = KINDS[kind](random)
    disk = SimDisk(folder, random)
    cuts = 0
    disks = [disk]
    try:
        while True:
            within = OPERATIONS_MAX if cuts == 0 or random.random() < 0.7 else RECOVERY_OPERATIONS
            disk.cut_at = random.randint(1, within) if cuts < CUTS else None
            try:
                history.begin(disk)
                for _ in range(STEPS_MAX):
                    history.step()
            except Stopped:
                cuts += 1
                disk = disk.restart()
                disks.append(disk)
                continue
            if cuts >= CUTS:
                return cuts
            # The history came to its end before the power failed: it fails now.
            cuts += 1
            disk = disk.restart()
            disks.append(disk)
    finally:
        for one in disks:
            one.crash()


def found_by(kind: str, seed: int) -> str | None:
    """Return what was found wrong with a seed, or None."""
    try:
        play(kind, seed)
    except Exception as error:  # whatever a recovery raises is a finding
        return f"{type(error).__name__}: {error}"
    return None


__all__ = ["CUTS", "KINDS", "History", "found_by", "play"]
