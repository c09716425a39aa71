"""kill -9 of a node at named points of what commands ask for: keys, and who is away for too long.

As `test_named_points`, where programs ask. A command either lives through that, and its node comes
back, or is killed as well, and given again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import PATIENCE
from tests.kit.logs import recounted
from tests.kit.nest import Forked
from tests.kit.ports import free_port

ROOT = Path(__file__).parents[2]
POINTS = ("before commit", "after commit", "told")
pytestmark = pytest.mark.timeout(240)


class World:
    """A node that dies where it is told to, and commands that ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.msgservice = Command(f"tcp:127.0.0.1:{self.port}", folder)
        self._process: subprocess.Popen[bytes] | None = None

    def lives(self, point: str, kind: str) -> None:
        """Start the node, which dies at the point, unless that is "never"."""
        command = [sys.executable, "-m", "tests.integration.points_child"]
        self._process = Forked(
            [*command, str(self.folder / "node"), str(self.port), point, kind],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def died(self) -> None:
        """Wait until the node has come to its point."""
        assert self._process is not None
        assert self._process.wait(PATIENCE) == -signal.SIGKILL
        self._closed()

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Begin a command that waits for a node as long as it takes."""
        environment = {"MSGSERVICE_NODE": self.msgservice.node, "XDG_CONFIG_HOME": str(self.folder)}
        return Forked(
            ["msgservice", *words, "--timeout", str(PATIENCE)],
            cwd=self.folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def is_whole(self) -> None:
        assert self.msgservice("audit").code == 0
        rows = self.msgservice.data("receivers", "list")["receivers"]
        assert {0} == {row["unaccounted"] for row in rows}
        self.dies()

    def dies(self) -> None:
        """Kill it now."""
        assert self._process is not None
        self._process.kill()
        self.died()
        assert recounted(self.folder / "node") == []

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._closed()

    def _closed(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    try:
        yield world
    finally:
        world.close()


@pytest.mark.parametrize("ends", ["lives", "is-killed"])
@pytest.mark.parametrize("point", POINTS)
def test_45_a_key_is_one_message_wherever_the_node_of_its_command_dies(
    world: World, point: str, ends: str
) -> None:
    msgs = world.msgservice
    positions: dict[str, set[int | None]] = {"now": set(), "later": set()}
    for name, more in (("now", ()), ("later", ("--delay", "1"))):
        words = ("send", f"s.{name}", "paid", "--key", name, "--json", *more)
        world.lives(point, "key")
        if name == "now":
            assert msgs("receivers", "add", "billing", "s.>").code == 0
        with world.begin(*words) as command:
            world.died()
            if ends == "is-killed":
                command.kill()  # nobody knows what became of what it has asked for
            world.lives("never", "key")
            out, err = command.communicate(timeout=PATIENCE)
        if command.returncode == 0:  # one that was to be killed may have had its answer by then
            positions[name].add(json.loads(out)["position"])
        else:
            assert (command.returncode, ends) == (-signal.SIGKILL, "is-killed"), err
        again = msgs(*words)
        assert again.code == 0, again
        positions[name].add(again.data["position"])
        other = msgs("send", f"s.{name}", "owed", "--key", name)
        assert (other.code, f"'{name}'" in other.err) == (1, True), other
        world.dies()
    world.lives("never", "key")
    lines = msgs("listen", "billing", "--count", "2", "--json").out.splitlines()
    got = [(one["subject"], one["text"]) for one in map(json.loads, lines)]
    assert sorted(got) == [("s.later", "paid"), ("s.now", "paid")]
    for name, known in positions.items():
        again = msgs("send", f"s.{name}", "paid", "--key", name, "--json")
        assert known <= {again.data["position"], None}, "None: it was not due yet"
        assert again.data["position"] is not None
    assert None not in positions["now"]
    while msgs.receiver("billing")["settled"].get("acknowledged", 0) < 2:
        pass  # its answers are on their way to the log when it has ended
    row = msgs.receiver("billing")
    assert (row["queued"], row["settled"]["acknowledged"]) == (0, 2)
    world.is_whole()


@pytest.mark.parametrize("point", POINTS)
def test_49_who_is_away_for_too_long_is_removed_once_wherever_the_node_dies(
    world: World, point: str
) -> None:
    msgs = world.msgservice
    world.lives(point, "remove")
    assert msgs("receivers", "add", "gone", "s.>", "--away-max", "100000").code == 0
    assert msgs("receivers", "add", "stays", "s.>").code == 0
    assert msgs("send", "s.a", "text", "--id", "before").code == 0
    # It may be over before this is answered.
    with world.begin("receivers", "change", "gone", "--away-max", "1") as command:
        world.died()
        command.kill()
    world.lives("never", "remove")
    while [row["name"] for row in msgs.data("receivers", "list")["receivers"]] != ["stays"]:
        pass  # it has as long to come back as anybody after a start
    states = msgs.data("status", "before")["receivers"]
    assert {name: state["status"] for name, state in states.items()} == {
        "gone": "removed",
        "stays": "queued",
    }
    again = msgs("send", "s.a", "text", "--to", "gone")
    assert (again.code, "unknown receiver" in again.err) == (1, True)
    # Its name is free, and who has it now has nothing of what was for it.
    assert msgs("receivers", "add", "gone", "s.>").code == 0
    assert msgs("send", "s.a", "after", "--id", "after").code == 0
    for name, count in (("gone", 1), ("stays", 2)):
        got = msgs("listen", name, "--count", str(count)).out.splitlines()
        assert got == ["text", "after"][-count:]
    for name, count in (("gone", 1), ("stays", 2)):
        while msgs.receiver(name)["settled"].get("acknowledged", 0) < count:
            pass
    states = msgs.data("status", "before")["receivers"]
    assert states["gone"]["status"] == "removed", "a final state stays"
    world.is_whole()
