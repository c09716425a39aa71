"""The saga of `examples/saga.py`, as it is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def test_55_the_saga_books_all_or_gives_back() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.saga"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    first, second, *rest = done.stdout.splitlines()
    assert {"hotel books trip 1", "airline books trip 1"} == {first, second}
    assert [
        "trip 1 is booked",
        "hotel books trip 2",
        "trip 2 is not booked: the time of its promise was over",
        "hotel gives back trip 2",
    ] == rest
