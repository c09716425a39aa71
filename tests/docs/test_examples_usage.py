"""Examples that need arguments say so, in a line, where there are none or others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

WRONG = [
    ("asyncio_orders",),
    ("blocking_web", "tcp:127.0.0.1:7410"),
    ("blocking_web", "tcp:127.0.0.1:7410", "port"),
    ("pb_client",),
    ("pb_client", "7411", "user"),
    ("pb_peer",),
    ("pb_peer", "call", "7500"),
    ("sessions_central", "two"),
    ("sessions_remote",),
    ("sessions_remote", "7430"),
    ("streams_progress",),
    ("streams_progress", "serve"),
    ("streams_progress", "look", "7412"),
    ("salvage",),
    ("chassis_bridge",),
    ("demo_roles",),
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_an_example_without_its_arguments_prints_its_usage(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{words[0]}", *words[1:]],
        cwd=CHECKOUT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert b"usage: " in done.stderr
    assert b"Traceback" not in done.stderr
