"""A session of tests whose reactor has stopped ends, and says so once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """\
import os, signal
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

@ensureDeferred
async def test_before():
    pass

@ensureDeferred
async def test_terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    await Deferred()

@ensureDeferred
async def test_after():
    pass

def test_without_a_reactor():
    pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "a worker"])
def test_a_stopped_reactor_ends_the_session_with_one_message(
    workers: tuple[str, ...], tmp_path: Path
) -> None:
    tests = tmp_path / "test_terminated.py"
    tests.write_text(TESTS)
    options = ["-p", "no:cacheprovider", "-p", "tests.conftest", "--tb=line", *workers]
    ended = subprocess.run(
        [sys.executable, "-bb", "-m", "pytest", *options, tests],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0
    assert said.count("the reactor was stopped") == 1, said
    assert "twisted reactor has stopped" not in said
    assert "1 failed, 1 passed" in said
