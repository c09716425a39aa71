"""Our own producer never sends beyond the window, whatever becomes of node, network and disk.

The node names another small window after each restart, connections break at any moment, and the
log refuses groups, so that lanes are taken back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.client import Client
from msgservice.errors import LogUnavailable, WindowExceeded
from msgservice.message import Status
from msgservice.node.ingress import Ingress
from msgservice.records import Group
from tests.faulty import CALM, Faults
from tests.simulation.test_network import LIMITS, MESSAGES, System, lanes, play

WEATHERS = {"calm": CALM, "rough": Faults(), "storm": Faults(cut=0.12, hold=0.05, half_open=20.0)}


class RefusingLog:
    """A log that cannot store one group in ten, and takes its time with the others."""

    def __init__(self, system: WindowSystem, log: Any) -> None:
        self._system, self._log = system, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, group: Group) -> Deferred[Any]:
        world, clock = self._system.world, self._system.process.clock
        later: Deferred[Any] = Deferred()
        if self._system.refuses and world.random.random() < 0.1:
            error = Failure(LogUnavailable("not now"))
            clock.callLater(world.between((0.0, 0.1)), later.errback, error)
        else:
            pause = world.between((0.0, 0.1))
            clock.callLater(pause, lambda: self._log.append(group).chainDeferred(later))
        return later


class WindowSystem(System):
    """A node with small windows, others after each restart."""

    refuses = False

    def start_node(self) -> None:
        super().start_node()
        random = self.world.random
        # The log is not open yet: nothing has been made from these.
        self.node.limits = replace(
            LIMITS,
            window_messages=random.choice([2, 3, 5, 20]),
            window_bytes=random.choice([40, 100, 1000]),
        )
        self.node.log = RefusingLog(self, self.node.log)  # type: ignore[assignment]  # an `ILog`

    def send_all(self, client: Client) -> list[Deferred[Any]]:
        self.refuses = True  # both receivers are on disk
        return super().send_all(client)


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
@pytest.mark.parametrize("seed", range(10))
def test_semantics_2_a_producer_keeps_to_the_window_of_each_connection(
    seed: int, weather: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    system = WindowSystem(seed, WEATHERS[weather])
    system.kills = 5
    receipts = play(system)
    assert seen.passed == []
    assert [row.epoch for row in system.node.directory] == ["", ""]  # SEMANTICS 6: nobody lied
    assert seen.shared > 5
    for receipt in receipts:
        assert receipt.statuses == dict.fromkeys(system.handled, Status.ACKNOWLEDGED)
    for bodies in system.handled.values():
        assert (len(bodies), len(set(bodies))) == (MESSAGES, MESSAGES)
        for numbers in lanes(bodies).values():
            assert sorted(numbers) == numbers
