"""Chains of nodes in virtual time: each with a producer and a receiver, passing on to others.

    chain = Chain(seed, {"edge": ["centre"], "centre": []})
    chain.play(messages=100)

Nodes are killed between any two events and come back with their logs; links fail in every way that
`FaultyWorld` knows. Producers and receivers live all the time, so that what is handled twice is a
fault: each receiver gets a message as often as there are ways to its node that pass none twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.log.memory import MemoryLog
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver
from msgservice.records import Account, ReceiverRow
from msgservice.transport.registry import Transports
from tests.kit.faulty import CALM, Faults, FaultyWorld
from tests.kit.faulty_transport import FaultyTransport, Process
from tests.kit.limits import Limits

LIMITS = Limits(link_delay_max=3.0, retry_delay_max=3.0, max_attempts=1000)
SUBJECTS = ("lane.1", "lane.2", "lane.3")
DISK_DELAY = 0.003
DRAIN_SECONDS = 3600.0


class NodeOfChain:
    """A node, its log, and in processes of their own a receiver of everything and a producer."""

    def __init__(self, chain: Chain, name: str, next_nodes: Sequence[str]) -> None:
        self.name = name
        self.next_nodes = next_nodes
        self.handled: list[bytes] = []
        self.paths: dict[bytes, list[tuple[str, ...]]] = {}
        self.sent: dict[bytes, Receipt] = {}
        self.kills = 0
        self._chain = chain
        self._store: Any = None
        self.begin()

    def begin(self) -> None:
        """Start the node on the log that is there."""
        chain, world = self._chain, self._chain.world
        process = self.process = Process(world, self.name)
        clock: Any = process.clock
        log = self.log = MemoryLog(
            reactor=clock, limits=LIMITS, delay=DISK_DELAY, entropy=world.random.randbytes
        )
        if self._store is not None:
            log._store.db, log._made = self._store.db, True
        self._store = log._store
        service = self.service = Node(
            clock,
            log,
            name=self.name,
            listen=[f"faulty:{self.name}"],
            receivers=[
                ReceiverRow(number=0, name=far, address=f"node:faulty:{far}", patterns=(">",))
                for far in self.next_nodes
            ],
            limits=LIMITS,
            rng=world.random.random,
            failed=chain.failures.append,
        )
        service.transports = Transports([FaultyTransport(world, process)])
        service.startService()

    def kill(self) -> None:
        """End the node as kill -9 does; it comes back."""
        self.kills += 1
        self.process.kill()
        self._chain.world.clock.callLater(self._chain.world.between((0.01, 4.0)), self.begin)

    def attach(self) -> None:
        """Let the node's receiver and producer dial it."""
        world = self._chain.world
        clock: Any = world.clock

        def handle(message: Any) -> None:
            body = bytes(message.body)
            self.handled.append(body)
            assert message.origin is not None
            self.paths.setdefault(body, []).append(message.origin.path)

        receiver = Receiver(
            clock,
            name=f"at-{self.name}",
            handler=handle,
            limits=LIMITS,
            transports=Transports([FaultyTransport(world)]),
            incarnation=f"at-{self.name}",
        )
        receiver.attach(f"faulty:{self.name}", subjects=[">"])
        transports = Transports([FaultyTransport(world)])
        address = f"faulty:{self.name}"
        self.client = Client(
            reactor=clock,
            name=f"by-{self.name}",
            connector_factory=lambda make_user: transports.find(address).connector(
                clock, address, make_user, LIMITS
            ),
            limits=LIMITS,
            new_incarnation=lambda: world.random.randbytes(8).hex(),
        )
        self.client.start()

    def send(self, subject: str, body: bytes) -> None:
        """Hand a message over; what it was told is noted."""
        sent: Deferred[Receipt] = self.client.send(subject, body)
        sent.addCallback(lambda receipt: self.sent.__setitem__(body, receipt))
        sent.addErrback(self._chain.failures.append)


class Chain:
    """See the module."""

    def __init__(
        self, seed: int, links: Mapping[str, Sequence[str]], *, faults: Faults | None = CALM
    ) -> None:
        self.world = FaultyWorld(seed, faults=CALM, limits=LIMITS)
        self.links = links
        self.failures: list[Any] = []
        self.is_healed = False
        self.nodes = {name: NodeOfChain(self, name, far) for name, far in links.items()}
        for node in self.nodes.values():
            node.attach()
        self.world.run_until(self._is_joined, seconds_max=600)
        self.world.run(1)
        if faults is not None:
            self.world.faults = faults

    def _is_joined(self) -> bool:
        nodes = self.nodes.values()
        if not all(node.service.is_running for node in nodes):
            return False
        return all(
            node.service.parts.directory.get(f"at-{node.name}")
            and all(outlet.connection is not None for outlet in node.service.parts.dispatch)
            for node in nodes
        )

    # --- what happens

    def kill_some(self) -> None:
        """Kill a node every now and then, until it is healed."""
        self.world.clock.callLater(self.world.between((0.5, 8.0)), self._kill_one)

    def _kill_one(self) -> None:
        if self.is_healed:
            return
        node = self.nodes[self.world.random.choice(sorted(self.nodes))]
        if node.process.clock.alive:
            node.kill()
        self.kill_some()

    def play(self, messages: int, *, kills: bool = False) -> None:
        """Send from every node, under faults; then let everything arrive, and check it."""
        random = self.world.random
        if kills:
            self.kill_some()
        for number in range(messages):
            name = random.choice(sorted(self.nodes))
            subject = random.choice(SUBJECTS)
            self.nodes[name].send(subject, f"{subject} {name} {number}".encode())
            if random.random() < 0.3:
                self.world.run(random.uniform(0, 1.0))
        self.world.run(20)
        self.is_healed = True
        self.world.heal()
        self.drain(messages)
        self.check()

    def drain(self, messages: int) -> None:
        """Wait until nothing waits anywhere."""
        end = self.world.clock.seconds() + DRAIN_SECONDS
        while True:
            accounts = self.accounts()  # a second passes
            is_sent = sum(len(node.sent) for node in self.nodes.values()) >= messages
            is_whole = len(accounts) == sum(len(far) + 1 for far in self.links.values())
            if is_sent and is_whole and not any(account.queued for account in accounts):
                break
            assert self.world.clock.seconds() < end, "\n".join(self.world.story[-20:])
            assert not self.failures, self.failures
        self.world.run(5)

    def accounts(self) -> list[Account]:
        """Return what the logs say of each receiver, a second later."""
        accounts: list[Account] = []
        for node in self.nodes.values():
            if node.process.clock.alive and node.service.is_running:
                node.log.accounts().addCallback(accounts.extend)
        self.world.run(1)
        return accounts

    # --- what must be so at the end

    def ways(self, start: str, end: str, been: tuple[str, ...] = ()) -> int:
        """Return how many ways there are from one node to another that pass none twice."""
        if start == end:
            return 1
        return sum(
            self.ways(far, end, (*been, start)) for far in self.links[start] if far not in been
        )

    def check(self) -> None:
        """Each receiver got each message once for each way, in the order of its lane."""
        assert not self.failures, self.failures
        for end, node in self.nodes.items():
            counted = Counter(node.handled)
            for start, other in self.nodes.items():
                for body in other.sent:
                    assert counted.pop(body, 0) == self.ways(start, end), (start, end, body)
            assert not counted, counted
            for paths in node.paths.values():
                assert len(paths) == len(set(paths)), paths  # each way brought it once
            self._check_order(node)
        for node in self.nodes.values():
            assert not node.service.parts.acceptance.looped

    def _check_order(self, node: NodeOfChain) -> None:
        seen: set[bytes] = set()
        lanes: dict[tuple[bytes, bytes], list[int]] = {}
        for body in node.handled:
            if body not in seen:  # the first of each way: later copies come by longer ones
                seen.add(body)
                subject, name, number = body.split(b" ")
                lanes.setdefault((subject, name), []).append(int(number))
        ways = Counter(len(paths) for paths in node.paths.values())
        for lane in lanes.values():
            assert lane == sorted(lane) or max(ways) > 1, lane
