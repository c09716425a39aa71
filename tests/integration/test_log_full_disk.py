"""A disk that is really full: a small filesystem of its own (RELIABILITY I17)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgservice.errors import LogFull, LogUnavailable
from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.records import Batch, Progress, RefusedBatch
from tests.kit.logs import NOW, Driver, make_batch

SIZE = 6 * 1024 * 1024
RESERVE = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if made.returncode:
        pytest.skip("this user may not mount a filesystem")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_19_fill_and_free_loses_nothing_and_accepts_again(disk: Path) -> None:
    limits = Limits(reserve_bytes=RESERVE, keep_seconds=0, keep_bytes=0)
    log = Driver("sqlite", disk / "data", limits).open()
    log.receivers(1)
    sequence, stored = 1, 0
    for cycle in range(5):
        audience = log.log.audience([1])
        accepted: list[Batch] = []
        while True:
            batch = make_batch(audience, sequence, [os.urandom(20_000)])
            (outcome,) = log.append(batch)
            if isinstance(outcome, RefusedBatch):
                assert isinstance(outcome.error, LogFull)
                break
            accepted.append(batch)
            sequence += 1
        assert accepted, f"nothing was accepted in cycle {cycle}"
        assert log.log.room().full is not None
        stored += len(accepted)
        # All that was accepted is there, and what becomes of it still fits.
        after = log.snapshot.receivers[0].cursor if log.snapshot.receivers else -1
        found = 0
        while page := log.read([audience], max(after, accepted[0].first - 1)):
            found += len(page)
            after = page[-1].last
        assert found == len(accepted)
        settled = {int(Status.ACKNOWLEDGED): len(accepted)}
        step = Progress(receiver=1, cursor=accepted[-1].last, settled=settled)
        assert log.append(progress=[step]) == []
        for _ in range(200):
            more = log.wait(log.log.retain(NOW + 1))
            log.append(progress=[Progress(receiver=1, cursor=accepted[-1].last)])
            if not more and log.log.room().full is None:
                break
        assert log.log.room().full is None, "not accepted again"
        assert log.unaccounted() == [0]
        if cycle == 2:
            log.reopen()
    assert log.wait(log.log.audit()) == []
    log.close()
    assert stored > 50


def fill(path: Path) -> None:
    """Write a file until the disk has no room for a byte of it."""
    with path.open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def test_19_what_is_settled_is_given_back_to_a_disk_without_a_free_byte(disk: Path) -> None:
    limits = Limits(reserve_bytes=RESERVE, keep_seconds=0, keep_bytes=0)
    log = Driver("sqlite", disk / "data", limits).open()
    log.receivers(1)
    audience = log.log.audience([1])
    accepted: list[Batch] = []
    while True:
        batch = make_batch(audience, len(accepted) + 1, [os.urandom(20_000)])
        (outcome,) = log.append(batch)
        if isinstance(outcome, RefusedBatch):
            break
        accepted.append(batch)
    fill(disk / "hog")
    half = accepted[len(accepted) // 2]
    step = Progress(
        receiver=1, cursor=half.last, settled={int(Status.ACKNOWLEDGED): len(accepted) // 2 + 1}
    )
    assert log.append(progress=[step]) == []
    for n in range(100):
        more = log.wait(log.log.retain(NOW + n))
        if not more and log.log.room().full is None:
            break
    assert log.log.room().full is None, "half of it was settled, and nothing is accepted"
    (outcome,) = log.append(make_batch(audience, len(accepted) + 1))
    assert isinstance(outcome, Batch)
    assert log.unaccounted() == [0]
    assert log.wait(log.log.audit()) == []
    log.close()


def test_19_somebody_else_fills_the_disk(disk: Path) -> None:
    limits = Limits(reserve_bytes=RESERVE, keep_seconds=0, keep_bytes=0)
    log = Driver("sqlite", disk / "data", limits).open()
    log.receivers(1)
    audience = log.log.audience([1])
    batch = make_batch(audience, 1)
    log.append(batch)
    hog = disk / "hog"
    fill(hog)
    (outcome,) = log.append(
        make_batch(audience, 2),
        progress=[
            Progress(receiver=1, cursor=batch.last, settled={int(Status.ACKNOWLEDGED): batch.count})
        ],
    )
    assert isinstance(outcome, RefusedBatch)
    assert log.unaccounted() == [0]
    for _ in range(400):  # more states than the free pages of the WAL can hold
        try:
            log.append(progress=[Progress(receiver=1, cursor=batch.last)])
        except LogUnavailable:
            pytest.fail("the reserve did not help")
    hog.unlink()
    (outcome,) = log.append(make_batch(audience, 2))
    assert isinstance(outcome, Batch)
    log.reopen()
    assert log.snapshot.receivers[0].cursor == batch.last
    log.close()
