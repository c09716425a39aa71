"""A producer, a node and two receivers, all real but for disk and network, under rough weather.

SEMANTICS 1-5 and 14, as their users see them: nothing that was accepted is lost, nobody handles
anything twice, lanes keep their order, every receipt comes to its end.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.client import Client
from msgservice.client_connect import connect
from msgservice.errors import Reject, Retry
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from msgservice.node.node import NodeService
from msgservice.receiver import Receiver
from msgservice.records import ReceiverRow
from msgservice.transport.registry import Transports
from tests.faulty import CALM, Faults, FaultyWorld
from tests.faulty_transport import FaultyTransport, Process

LIMITS = Limits(link_delay_max=3.0)
MESSAGES = 300
SEEDS = range(20)
WEATHERS = {
    "rough": Faults(),
    "storm": Faults(cut=0.12, hold=0.05, half_open=20.0),
}


class System:
    """`attached` dials the node, `dialled` is dialled by it."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.world = FaultyWorld(seed, faults=faults, limits=LIMITS)
        clock = self.world.clock
        self.transports = Transports([FaultyTransport(self.world)])
        self.failures: list[Exception] = []
        self.handled: dict[str, list[bytes]] = {"attached": [], "dialled": []}
        self.rejected: dict[str, set[bytes]] = {"attached": set(), "dialled": set()}
        self.handlers_fail = False
        self.kills = 0
        self.log: MemoryLog | None = None
        self.start_node()
        self.receivers = [self.receiver(name) for name in self.handled]
        self.receivers[0].attach("faulty:node", subjects=[">"])
        self.receivers[1].listen("faulty:dialled", insecure=True)
        self.connecting = connect(
            clock,
            "faulty:node",
            name="shop",
            limits=LIMITS,
            transports=self.transports,
            new_incarnation=lambda: self.world.random.randbytes(8).hex(),
        )

    def start_node(self) -> None:
        """Start a node on the log; after a kill, on what that had committed."""
        self.process = Process(self.world, "the node")
        log = MemoryLog(
            reactor=self.process.clock,
            limits=LIMITS,
            delay=0.003,
            entropy=self.world.random.randbytes,
        )
        if self.log is not None:
            # The disk outlives the process; what the old one had not begun is never written.
            log._store.db, log._made = self.log._store.db, self.log._made
        self.log = log
        self.node = NodeService(
            self.process.clock,
            log=log,
            listen=["faulty:node"],
            receivers=[
                ReceiverRow(number=0, name="dialled", address="faulty:dialled", patterns=(">",)),
            ],
            limits=LIMITS,
            rng=self.world.random.random,
            failed=self.failures.append,
        )
        self.node.transports = Transports([FaultyTransport(self.world, self.process)])
        self.node.startService()

    def perhaps_kill_node(self) -> None:
        """Now and then, between any two events; it is back within some seconds."""
        world = self.world
        if self.kills and self.process.clock.alive:
            self.kills -= 1
            self.process.kill()
            world.clock.callLater(world.between((0.01, 3.0)), self.start_node)
        if self.kills:
            world.clock.callLater(world.between((1.0, 30.0)), self.perhaps_kill_node)

    def receiver(self, name: str) -> Receiver:
        async def handle(message: Any) -> None:
            pause: Deferred[None] = Deferred()
            self.world.clock.callLater(self.world.between((0.0, 0.2)), pause.callback, None)
            await pause
            if self.handlers_fail:
                self.perhaps_fail(name, message.body)
            self.handled[name].append(message.body)

        return Receiver(
            self.world.clock,
            name=name,
            handler=handle,
            limits=LIMITS,
            transports=self.transports,
            incarnation=f"{name}-1",
        )

    def perhaps_fail(self, name: str, body: bytes) -> None:
        chance = self.world.random.random()
        if chance < 0.05:
            raise Retry(self.world.random.choice([None, 0.0, 1.0]))
        if chance < 0.08:
            raise RuntimeError("a fault of the handler")
        if chance < 0.10:
            self.rejected[name].add(body)
            raise Reject("not this one")

    def knows_both(self) -> bool:
        """Whether the audience of what is sent now is both receivers."""
        node = self.node
        return node.running_now and all(node.directory.get(name) for name in self.handled)

    def wait(self, waited: Deferred[Any], seconds_max: float) -> Any:
        self.world.run_until(lambda: waited.called, seconds_max=seconds_max)
        results: list[Any] = []
        waited.addBoth(results.append)
        return results[0]

    def send_all(self, client: Client) -> list[Deferred[Any]]:
        """Send from three subjects in bursts, while time passes."""
        sent = []
        random = self.world.random
        for number in range(MESSAGES):
            subject = f"lane.{random.randint(1, 3)}"
            sent.append(client.send(subject, f"{subject} {number}".encode()))
            if random.random() < 0.3:
                self.world.run(random.uniform(0, 1.0))
        return sent


def lanes(bodies: list[bytes]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for body in bodies:
        subject, number = body.split()
        found.setdefault(subject, []).append(int(number))
    return found


def play(system: System) -> list[Any]:
    """Send everything under faults, heal, wait; return the receipts, all settled."""
    world = system.world
    world.run_until(system.knows_both, seconds_max=300)
    client = system.wait(system.connecting, 300)
    world.run(1)  # what the node knows is on its disk, too
    system.perhaps_kill_node()
    sent = system.send_all(client)
    world.run(30)
    world.heal()
    system.kills = 0
    system.handlers_fail = False
    receipts = [system.wait(one, 300) for one in sent]
    for receipt in receipts:
        system.wait(receipt.settled(), 1200)
    assert system.failures == []
    return receipts


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_semantics_1_to_5_under_a_network_that_fails(seed: int, weather: str) -> None:
    system = System(seed, WEATHERS[weather])
    for receipt in play(system):
        assert receipt.statuses == dict.fromkeys(system.handled, Status.ACKNOWLEDGED)
    for name, bodies in system.handled.items():
        assert MESSAGES == len(set(bodies)), name
        assert MESSAGES == len(bodies), f"{name} handled some twice"
        for numbers in lanes(bodies).values():
            assert sorted(numbers) == numbers, f"{name} got a lane out of order"


@pytest.mark.parametrize("weather", ["calm", *WEATHERS])
@pytest.mark.parametrize("seed", SEEDS)
def test_semantics_2_and_6_with_a_node_that_is_killed(seed: int, weather: str) -> None:
    system = System(seed, WEATHERS.get(weather, CALM))
    system.kills = 5
    for receipt in play(system):
        assert receipt.statuses == dict.fromkeys(system.handled, Status.ACKNOWLEDGED)
    for name, bodies in system.handled.items():
        assert MESSAGES == len(set(bodies)), name
        assert MESSAGES == len(bodies), f"{name} handled some twice"
        for numbers in lanes(bodies).values():
            assert sorted(numbers) == numbers, f"{name} got a lane out of order"


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_semantics_3_and_14_with_handlers_that_fail_too(
    seed: int, weather: str, logged_failures: list[LogEvent]
) -> None:
    system = System(seed, WEATHERS[weather])
    system.handlers_fail = True
    receipts = play(system)
    logged_failures.clear()
    for name, bodies in system.handled.items():
        acknowledged = sum(r.statuses[name] is Status.ACKNOWLEDGED for r in receipts)
        dead = sum(r.statuses[name] is Status.DEAD for r in receipts)
        assert (acknowledged, dead) == (len(bodies), len(system.rejected[name])), name
        assert MESSAGES == acknowledged + dead
        assert len(set(bodies)) == len(bodies), f"{name} handled some twice"
        assert not set(bodies) & system.rejected[name], f"{name} handled what it had rejected"
        for numbers in lanes(bodies).values():
            assert sorted(numbers) == numbers, f"{name} got a lane out of order"
