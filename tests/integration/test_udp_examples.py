"""The examples of acknowledged UDP run, and say what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from examples.udp_old_names import OldNames
from tests.unit.datagram_net import Address, Net

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("module", "lines"),
    [
        (
            "examples.udp_rpc",
            [
                "twice 21 is 42",
                "several at once: 0 2 4 6 8",
                "a run of 10000 ends with 19998",
                "the handler's own error: ValueError: invalid literal for int() with base 10: b'x'",
            ],
        ),
        ("examples.udp_old_names", ["hello, world"]),
    ],
)
def test_an_example_runs(module: str, lines: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert lines == done.stdout.splitlines(), done.stderr
    assert 0 == done.returncode


class Recorder(OldNames):
    sendTimeout = 1.0

    def handleMessage(self, data: bytes, address: Address) -> bytes:
        return data.upper()

    failures: list[Address]

    def nodeFailure(self, address: Address) -> None:
        self.failures.append(address)


def test_A8_the_old_names_are_called_and_call() -> None:
    net = Net()
    a, _ = net.add(Recorder, 1), net.add(Recorder, 2)
    a.failures = []
    d: Deferred[bytes] = a.sendMessage(b"shout", ("127.0.0.1", 2))
    assert ["127.0.0.1:2:1"] == list(a.send_queue)
    net.run(1)
    seen: list[bytes] = []
    d.addCallback(seen.append)
    assert [b"SHOUT"] == seen

    a.sendMessage(b"x", ("127.0.0.1", 3)).addErrback(lambda failure: None)
    net.run(20)
    assert [("127.0.0.1", 3)] == a.failures
