"""A session of tests ends: where its reactor has stopped, and where a test waits for ever."""

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


WAITING = """\
import time
from pytest_twisted import async_yield_fixture, ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

late = Deferred()

@ensureDeferred
async def test_of_a_deferred():
    await deferToThread(int)
    await late

@ensureDeferred
async def test_of_a_loop():
    while True:
        await deferLater(reactor, 0.001)

@async_yield_fixture
async def never():
    yield
    await Deferred()

def test_of_a_fixture(never):
    pass

class Swallows:
    def __del__(self):
        while True:
            time.sleep(0.01)

def test_of_a_finaliser():
    Swallows()
    while True:
        time.sleep(0.01)

@ensureDeferred
async def test_after():
    late.callback(None)
    await deferLater(reactor, 0.01)
"""
PROCESSES = pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "a worker"])


@PROCESSES
def test_a_stopped_reactor_ends_the_session_with_one_message(
    workers: tuple[str, ...], tmp_path: Path
) -> None:
    ended = _session(TESTS, *workers, folder=tmp_path)
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0
    assert said.count("the reactor was stopped") == 1, said
    assert "twisted reactor has stopped" not in said
    assert "1 failed, 1 passed" in said


@PROCESSES
def test_a_test_that_waits_in_the_reactor_fails_when_its_time_is_over(
    workers: tuple[str, ...], tmp_path: Path
) -> None:
    # A busy machine needs a second for what a worker sets up, before a test waits.
    ended = _session(WAITING, "--timeout=2", *workers, folder=tmp_path)
    assert "3 failed, 2 passed, 1 warning, 1 error" in ended.stdout, ended.stdout + ended.stderr


def _session(source: str, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    tests = folder / "test_session.py"
    tests.write_text(source)
    given = ["-p", "no:cacheprovider", "-p", "tests.conftest", "--tb=line", *options]
    return subprocess.run(
        [sys.executable, "-bb", "-m", "pytest", *given, tests],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
