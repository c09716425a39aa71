"""Promises with processes that are killed: a producer before the node has it, and receivers.

The node that dies at each named point is in `test_named_points`.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from tests.integration.command import Command
from tests.integration.daemon import running
from tests.kit.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("promise_child.py")


def promise_of(command: Command, own_id: str) -> Any:
    return command.data("status", own_id)["promise"]


def test_55_a_promise_outlives_its_producer_and_receivers_that_are_killed(tmp_path: Path) -> None:
    port = free_port()
    command = Command(f"tcp:127.0.0.1:{port}", tmp_path)
    child = (sys.executable, CHILD, "send", command.node, tmp_path / "desk.outbox", "trip-7")
    with running(*child, cwd=ROOT) as desk:
        desk.wait_for("kept")
        desk.send(signal.SIGKILL)
        desk.ended()
    node = ("twist", "--log-format=text", "msgservice", "--listen", f"tcp:{port}")
    with running(*node, cwd=tmp_path) as daemon:
        daemon.ports()
        for name in ("hotel", "airline"):
            assert command("receivers", "add", name, "trips.>").code == 0
        with running(*child, cwd=ROOT) as desk:
            desk.wait_for("taken")
            promise = promise_of(command, "trip-7")
            assert ("open", 2, "cancel") == (
                promise["outcome"],
                promise["need"],
                promise["otherwise"],
            )
            desk.send(signal.SIGKILL)
            desk.ended()
        # A receiver that dies has not acknowledged what it had; one that comes again does.
        holding = (sys.executable, CHILD, "hold", command.node, "hotel")
        with running(*holding, cwd=ROOT) as hotel:
            hotel.wait_for("has 7")
            hotel.send(signal.SIGKILL)
            hotel.ended()
        assert "open" == promise_of(command, "trip-7")["outcome"]
        for name in ("hotel", "airline"):
            assert command("listen", name, "--count", "1").out == "7\n"
        # Who listens has sent its answer when it ends; the node counts it when that is on disk.
        while (promise := promise_of(command, "trip-7"))["outcome"] == "open":
            pass
        assert ("kept", 2) == (promise["outcome"], promise["acknowledged"])
    with running(*node, cwd=tmp_path) as daemon:
        daemon.ports()
        assert promise == promise_of(command, "trip-7")
