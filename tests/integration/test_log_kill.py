"""kill -9 of a process that appends, again and again on one log (RELIABILITY I1, I2, I14)."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from msgservice.message import decode_messages
from msgservice.records import Batch
from tests.kit.log_child import LIMITS
from tests.kit.logs import Driver, recounted

ROOT = Path(__file__).resolve().parents[2]
KILLS = 12


def run_until(folder: Path, lines_max: int) -> tuple[int, int]:
    """Run the child, kill it after so many lines; return the last it was told."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.log_child", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    told = {"stored": 0, "settled": 0}
    try:
        for count, line in enumerate(child.stdout, 1):
            what, number = line.split()
            told[what] = int(number)
            if count >= lines_max:
                break
        else:
            pytest.fail(child.stderr.read())
    finally:
        child.kill()
        # What it said between the last line read and its death counts as told.
        rest, _ = child.communicate()
    for line in rest.splitlines():
        what, _, number = line.partition(" ")
        if number.isdigit() and line in rest.splitlines(keepends=False)[:-1]:
            told[what] = int(number)
    return told["stored"], told["settled"]


def test_what_was_told_is_there_after_every_kill(tmp_path: Path) -> None:
    rng = random.Random(1)
    folder = tmp_path / "data"
    bodies: dict[int, bytes] = {}
    stored = settled = 0
    for _ in range(KILLS):
        new_stored, new_settled = run_until(folder, rng.randrange(5, 80))
        stored, settled = max(stored, new_stored), max(settled, new_settled)
        log = Driver("sqlite", folder, LIMITS).open()
        assert log.resume("shop", "i1").floor > stored
        (row,) = log.snapshot.receivers
        assert row.cursor >= settled
        assert log.unaccounted() == [0]
        assert log.wait(log.log.audit()) == []
        assert recounted(log.folder) == []
        after = row.cursor
        seen: list[int] = []
        while page := log.read([log.log.audience([1])], after):
            for batch in page:
                for index, message in enumerate(decode_messages(batch.messages)):
                    if batch.first + index > row.cursor:
                        seen.append(batch.sequence + index)
                        bodies[batch.sequence + index] = message.body
            after = page[-1].last
        # All that is not settled is there, in order, without a hole, up to what was told at least.
        history = log.wait(log.log.history("shop", "i1", 1, 1_000_000))
        final = max((state.last for state in history.states), default=0)
        assert seen == list(range(final + 1, log.resume("shop", "i1").floor))
        log.close()
    assert stored > 100
    assert all(body == b"%d" % sequence for sequence, body in bodies.items())


def test_a_log_opens_on_the_real_reactor_and_answers(tmp_path: Path) -> None:
    """The child above does so too; here the outcome of its own check is seen."""
    stored, _ = run_until(tmp_path, 3)
    assert stored > 0
    assert isinstance(Batch.__struct_fields__, tuple)
