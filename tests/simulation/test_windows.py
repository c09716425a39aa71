"""Our own producer never sends beyond the window, whatever becomes of node, network and disk.

The node names another small window after each restart, connections break at any moment, and the
log refuses groups, so that lanes are taken back.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.errors import LogUnavailable, WindowExceeded
from msgservice.node.ingress import Ingress
from msgservice.records import Group
from msgservice.testing.network import CALM, Faults
from tests.simulation.system import LIMITS, PRODUCERS, NodeParty, System

MESSAGES = 200
WEATHERS = {"calm": CALM, "rough": Faults(), "storm": Faults(cut=0.12, hold=0.05, half_open=20.0)}


class RefusingLog:
    """A log that cannot store one group in ten, and takes its time with the others."""

    def __init__(self, node: WindowNode, log: Any) -> None:
        self._node, self._log = node, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, group: Group) -> Deferred[Any]:
        world, clock = self._node.world, self._node.process.clock
        later: Deferred[Any] = Deferred()
        if self._node.refuses and world.random.random() < 0.1:
            error = Failure(LogUnavailable("not now"))
            clock.callLater(world.between((0.0, 0.1)), later.errback, error)
        else:
            pause = world.between((0.0, 0.1))
            clock.callLater(pause, lambda: self._log.append(group).chainDeferred(later))
        return later


class WindowNode(NodeParty):
    """A node with small windows, others after each restart."""

    refuses = False

    def begin(self) -> None:
        super().begin()
        random = self.world.random
        # The log is not open yet: nothing has been made from these.
        self.service.limits = replace(
            LIMITS,
            window_messages=random.choice([2, 3, 5, 20]),
            window_bytes=random.choice([40, 100, 1000]),
        )
        self.service.log = RefusingLog(self, self.service.log)  # type: ignore[assignment]  # an `ILog`


class WindowSystem(System):
    def make_node(self) -> NodeParty:
        return WindowNode(self, "node")

    def send_all(self, count: int) -> None:
        assert isinstance(self.node, WindowNode)
        self.node.refuses = True  # all receivers are on disk
        random = self.world.random
        for number in range(count):
            self.producers[random.choice(PRODUCERS)].send(number)
            if random.random() < 0.1:
                self.world.run(random.uniform(0, 1.0))


class Seen:
    """What the window's check has seen: runs beside others, and those beyond it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared = 0
        self.passed: list[WindowExceeded] = []
        check = Ingress._check_window

        def look(ingress: Ingress, count: int, size: int) -> None:
            try:
                check(ingress, count, size)
            except WindowExceeded as error:
                self.passed.append(error)
                raise
            self.shared += 1

        monkeypatch.setattr(Ingress, "_check_window", look)


@pytest.mark.parametrize("weather", WEATHERS)
def test_semantics_2_a_producer_keeps_to_the_window_of_each_connection(
    weather: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = Seen(monkeypatch)
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        system = WindowSystem(seed, folder, faults=WEATHERS[weather], mortal=["node"], stops=0.0)
        system.play(MESSAGES)
        assert seen.passed == [], f"seed {seed}"
    assert seen.shared > 20  # runs that were checked beside others, over all seeds
