"""A real node whose wall clock is a year ahead at a start, and right at the next (DELIVERY 39).

What waits until it is due, what has a lifetime, what is retained, keys, history, and who is away:
nothing is lost, repeated, or finished that is not over, be the node killed at any of these times.
The node's process has another clock (`clock_child`); programs, commands and files are real.
"""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import Command
from tests.integration.daemon import Daemon
from tests.kit.logs import recounted
from tests.kit.ports import free_port

ROOT = Path(__file__).parents[2]
YEAR = 366 * 24 * 3600  # seconds
pytestmark = pytest.mark.timeout(240)


class World:
    """A node that is killed and starts with another clock, and the commands that ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.msgs = Command(f"tcp:127.0.0.1:{self.port}", folder)

    @contextmanager
    def node(self, ahead: int, held: str = "") -> Iterator[Daemon]:
        """A node with a clock so many seconds ahead; it is killed at the end."""
        words = (str(self.folder / "node"), str(self.port), str(ahead), *([held] if held else []))
        child = Daemon(sys.executable, "-m", "tests.integration.clock_child", *words, cwd=ROOT)
        try:
            child.wait_for("^ready$")
            yield child
            child.send(signal.SIGKILL)
            assert child.ended() == -signal.SIGKILL
        finally:
            child.close()
        assert recounted(self.folder / "node") == []

    def send(self, *words: str) -> Any:
        return self.msgs.data("send", *words)

    def states(self, one: str) -> dict[str, str]:
        found = self.msgs.data("status", one)["receivers"]
        return {name: state["status"] for name, state in found.items()}

    def got(self, name: str, count: int) -> list[str]:
        """What a receiver is sent next, once the node has its answers."""
        before = self.acknowledged(name)
        lines = self.msgs("listen", name, "--count", str(count)).out.splitlines()
        while self.acknowledged(name) < before + count:
            pass
        return lines

    def acknowledged(self, name: str) -> int:
        count: int = self.msgs.receiver(name)["settled"].get("acknowledged", 0)
        return count

    def first_life(self) -> dict[str, Any]:
        """Send all that time may do something to; return what was told of it."""
        msgs = self.msgs
        assert msgs("receivers", "add", "here", "a.>").code == 0
        assert msgs("receivers", "add", "away", "a.>", "--away-max", "100000").code == 0
        told = {
            "history": self.send("a.history", "history", "--key", "k-1"),
            "later": self.send("a.later", "later", "--delay", "1h", "--id", "later"),
            "key later": self.send("a.key", "key later", "--delay", "1h", "--key", "k-2"),
            "lives": self.send("a.lives", "lives", "--ttl", "2h", "--id", "lives"),
            "kept": self.send("a.kept", "kept", "--ttl", "2h", "--retain-only"),
        }
        assert self.got("here", 2) == ["history", "lives"]
        while not self.is_clock_noted():  # by what is written once the log has grown older
            assert msgs("receivers", "pause", "here").code == 0
            assert msgs("receivers", "resume", "here").code == 0
        return told

    def is_clock_noted(self) -> bool:
        """Whether the log says what the wall clock was: not in the first seconds of its life."""
        with closing(sqlite3.connect(self.folder / "node" / "log.db")) as db:
            return db.execute("select 1 from meta where key = 'wall'").fetchone() is not None

    def is_known(self, told: dict[str, Any]) -> None:
        """The keys are: who says them again has said nothing new."""
        again = self.send("a.history", "history", "--key", "k-1")
        assert again["position"] == told["history"]["position"]
        assert self.msgs("send", "a.key", "other", "--key", "k-2").code == 1

    def delayed(self) -> dict[str, int]:
        found = self.msgs.data("delayed", "list")["delayed"]
        return {one["subject"]: one["due"] for one in found}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_39_a_clock_a_year_ahead_at_a_start_and_back_loses_repeats_and_finishes_nothing(
    world: World,
) -> None:
    msgs = world.msgs
    with world.node(0):
        told = world.first_life()
        dues = world.delayed()
        assert dues.keys() == {"a.later", "a.key"}
    with world.node(YEAR) as node:
        assert "the clock is 366.0 days ahead of when the log was last written" in node.said
        # All of it is over by this clock, and nothing is done that cannot be undone.
        world.is_known(told)
        assert world.delayed() == dues
        assert world.states("lives") == {"here": "acknowledged", "away": "queued"}
        assert [one["subject"] for one in msgs.data("retained", "list")["retained"]] == ["a.kept"]
        assert msgs.receiver("away")["queued"] == 2
        # What is sent now is handed on as ever.
        sent = world.send("a.now", "now", "--ttl", "1h", "--id", "now")
        assert sent["position"] > told["lives"]["position"]
        assert world.got("here", 1) == ["now"]
        would = msgs.data("rewind", "here", "--dry-run")["would"]
        assert would["count"] == 3, "no history has gone"
    with world.node(0):
        world.is_known(told)
        assert world.delayed() == dues
        assert world.got("away", 3) == ["history", "lives", "now"]
        assert world.states("lives") == {"here": "acknowledged", "away": "acknowledged"}
        assert world.states("now") == {"here": "acknowledged", "away": "acknowledged"}
        assert msgs.data("rewind", "here", "--dry-run")["would"]["count"] == 3
        assert msgs("audit").code == 0


def test_39_what_a_clock_a_year_ahead_has_finished_stays_so_and_is_done_once(world: World) -> None:
    """Nobody has set it right in time: all is by that clock, and not again by the next one."""
    msgs = world.msgs
    with world.node(0):
        told = world.first_life()
    with world.node(YEAR, held="1.5"):
        assert world.got("here", 2) == ["later", "key later"]
        assert world.delayed() == {}
        while world.states("lives")["away"] == "queued":
            pass  # who was here before the start has time to come back
        assert world.states("lives") == {"here": "acknowledged", "away": "expired"}
        while msgs.data("retained", "list")["retained"]:
            pass
        world.is_known(told)
        new = world.send("a.new", "new", "--delay", "2", "--id", "new")
    with world.node(0):
        world.is_known(told)
        assert world.states("lives") == {"here": "acknowledged", "away": "expired"}
        # By its clock that is due in a year: it waits, is told so, and may be cancelled.
        assert world.delayed() == {"a.new": new["due"]}
        assert msgs("delayed", "cancel", "new").code == 0
        assert world.got("away", 3) == ["history", "later", "key later"]
        row = msgs.receiver("here")
        assert (row["queued"], row["settled"]["acknowledged"]) == (0, 4)
        assert msgs("audit").code == 0
