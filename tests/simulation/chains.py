"""Chains of nodes in virtual time: each with a producer and a receiver, passing on to others.

    chain = Chain(seed, {"edge": ["centre"], "centre": []})
    chain.play(messages=100)

Nodes are killed between any two events and come back with their logs; links fail in every way that
`FaultyWorld` knows. Producers and receivers live all the time, so that what is handled twice is a
fault: each receiver gets a message as often as there are ways to its node that pass none twice.

A node's log may be put back to an earlier state, under the id that it had (a snapshot of its
machine) or another one (a copy that was restored). Then nothing that others have handed in is lost,
and what comes more often than that has the same identity (`check_put_back`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import apsw
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.errors import Expired
from msgservice.log.memory import MemoryLog
from msgservice.log.sqlite import SqliteLog
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver
from msgservice.records import Account, ReceiverRow
from msgservice.recount import recount
from msgservice.testing.network import CALM, Faults, FaultyWorld
from msgservice.testing.transport import FaultyTransport, Process
from msgservice.transport.registry import Transports
from tests.kit.inline import by_seed
from tests.kit.limits import Limits
from tests.kit.simdisk import SimDisk, SimThreads

LIMITS = Limits(link_delay_max=3.0, retry_delay_max=3.0, max_attempts=1000)
SUBJECTS = ("lane.1", "lane.2", "lane.3")
DISK_DELAY = 0.003
DRAIN_SECONDS = 3600.0
FOR_EVER = 1e6  # seconds: a message with such a ttl does not expire


class NodeOfChain:
    """A node, its log, and in processes of their own a receiver of everything and a producer."""

    def __init__(self, chain: Chain, name: str, next_nodes: Sequence[str]) -> None:
        self.name = name
        self.next_nodes = next_nodes
        self.handled: list[bytes] = []
        self.paths: dict[bytes, list[tuple[str, ...]]] = {}
        self.identities: dict[bytes, str] = {}
        self.replayed = 0
        self.comings = 0
        self.sent: dict[bytes, Receipt] = {}
        self.kills = 0
        self._chain = chain
        self._store: Any = None
        self.limits = chain.limits.get(name, LIMITS)
        self.disk = chain.disks.get(name)
        self.begin()

    def begin(self, put_back: apsw.Connection | None = None, log_id: str = "") -> None:
        """Start the node on the log that is there, or on one that is `put_back`."""
        chain, world = self._chain, self._chain.world
        process = self.process = Process(world, self.name)
        clock: Any = process.clock
        log: Any
        if self.disk is not None:
            if self._store is not None:
                self.disk = self.disk.killed()
            log = SqliteLog(
                self.disk.folder / "data",
                reactor=clock,
                limits=self.limits,
                entropy=world.random.randbytes,
                vfs=self.disk.vfs,
                files=self.disk.files,
                threads=SimThreads(clock, lambda: DISK_DELAY),
                inline=by_seed(world.seed),
            )
        else:
            log = MemoryLog(
                reactor=clock,
                limits=self.limits,
                delay=DISK_DELAY,
                entropy=world.random.randbytes,
                inline=by_seed(world.seed),
            )
        self.log = log
        if put_back is not None:
            log._store.connect()
            _copy(put_back, log._store.db)
            if log_id:
                said = "update meta set value = ? where key = 'log_id'"
                log._store.db.execute(said, (log_id,))
            log._made = True
        elif self._store is not None and self.disk is None:
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
            limits=self.limits,
            rng=world.random.random,
            failed=chain.failures.append,
        )
        service.transports = Transports([FaultyTransport(world, process)])
        service.startService()

    def end(self) -> None:
        """End the node as kill -9 does; it is back with `begin`."""
        self.kills += 1
        self.process.kill()

    def kill(self) -> None:
        """End the node as kill -9 does; it comes back."""
        self.end()
        self._chain.world.clock.callLater(self._chain.world.between((0.01, 4.0)), self.begin)

    def snapshot(self) -> apsw.Connection:
        """Return a copy of the log as it is now."""
        copied = apsw.Connection(":memory:")
        _copy(self._store.db, copied)
        return copied

    def put_back(self, snapshot: apsw.Connection, *, log_id: str = "") -> None:
        """End the node as kill -9 does; it comes back with an earlier log, maybe of a new id."""
        self.kills += 1
        self.process.kill()
        world = self._chain.world
        world.clock.callLater(world.between((0.01, 4.0)), self.begin, snapshot, log_id)

    def attach(self) -> None:
        """Let the node's receiver and producer dial it."""
        self.come()
        world = self._chain.world
        clock: Any = world.clock
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

    def come(self) -> None:
        """Let a process of the node's receiver come: the first, or another one."""
        world = self._chain.world
        clock: Any = world.clock
        self.comings += 1
        self.receiver = Receiver(
            clock,
            name=f"at-{self.name}",
            handler=self._handle,
            limits=LIMITS,
            transports=Transports([FaultyTransport(world)]),
            incarnation=f"at-{self.name}-{self.comings}",
        )
        self.receiver.attach(f"faulty:{self.name}", subjects=[">"])

    def leave(self) -> None:
        """Let the process of the node's receiver end."""
        self.receiver.stop().addErrback(self._chain.failures.append)

    def _handle(self, message: Any) -> None:
        body = bytes(message.body)
        self.handled.append(body)
        assert message.origin is not None
        assert message.identity == self.identities.setdefault(body, message.identity)
        self.replayed += message.replay
        self.paths.setdefault(body, []).append(message.origin.path)

    def send(self, subject: str, body: bytes, ttl: float | None = None) -> None:
        """Hand a message over; what it was told is noted."""
        sent: Deferred[Receipt] = self.client.send(subject, body, ttl=ttl)
        sent.addCallback(lambda receipt: self.sent.__setitem__(body, receipt))
        sent.addErrback(self._not_sent, body)

    def _not_sent(self, failure: Failure, body: bytes) -> None:
        if failure.check(Expired) and body in self._chain.may_expire:
            self._chain.expired += 1  # before the node had it
        else:
            self._chain.failures.append(failure)


def _copy(source: apsw.Connection, to: apsw.Connection) -> None:
    with to.backup("main", source, "main") as copying:
        copying.step(-1)


class Chain:
    """See the module."""

    def __init__(
        self,
        seed: int,
        links: Mapping[str, Sequence[str]],
        *,
        faults: Faults | None = CALM,
        limits: Mapping[str, Limits] = MappingProxyType({}),
        disks: Mapping[str, SimDisk] = MappingProxyType({}),
    ) -> None:
        self.limits, self.disks = limits, disks  # of nodes that have their own
        self.world = FaultyWorld(seed, faults=CALM, limits=LIMITS)
        self.links = links
        self.failures: list[Any] = []
        self.sent = 0
        self.expired = 0
        self.may_expire: set[bytes] = set()
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

    def play(self, messages: int, *, kills: bool = False, ttl: tuple[float, ...] = ()) -> None:
        """Send from every node, under faults; then let everything arrive, and check it.

        `ttl`: seconds, of which some messages have one.
        """
        if kills:
            self.kill_some()
        self.send_some(messages, sorted(self.nodes), ttl=ttl)
        self.world.run(20)
        self.settle()
        self.check()

    def send_some(
        self,
        messages: int,
        names: Sequence[str],
        *,
        ttl: tuple[float, ...] = (),
        size: int = 0,
    ) -> None:
        """Send so many messages from these nodes, within some time; `size`: bytes more of each."""
        random = self.world.random
        for _ in range(messages):
            self.sent += 1
            name = random.choice(names)
            subject = random.choice(SUBJECTS)
            body = f"{subject} {name} {self.sent}{' ' * bool(size)}{'x' * size}".encode()
            seconds = random.choice((None, *ttl))
            if seconds is not None and seconds < FOR_EVER:
                self.may_expire.add(body)
            self.nodes[name].send(subject, body, seconds)
            if random.random() < 0.3:
                self.world.run(random.uniform(0, 1.0))

    def settle(self) -> None:
        """Let everything work from now on, and all arrive."""
        self.is_healed = True
        self.world.heal()
        self.drain(self.sent)

    def drain(self, messages: int) -> None:
        """Wait until nothing waits anywhere."""
        end = self.world.clock.seconds() + DRAIN_SECONDS
        while True:
            accounts = self.accounts()  # a second passes
            told = self.expired + sum(len(node.sent) for node in self.nodes.values())
            is_sent = told >= messages
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
                    count, ways = counted.pop(body, 0), self.ways(start, end)
                    is_right = count <= ways if body in self.may_expire else count == ways
                    assert is_right, (start, end, body)
            assert not counted, counted
            for paths in node.paths.values():
                assert len(paths) == len(set(paths)), paths  # each way brought it once
            self._check_order(node)
        for node in self.nodes.values():
            assert not node.service.parts.acceptance.looped
            assert recount(node.log._store.db.execute).discrepancies == []

    def check_put_back(self, name: str) -> None:
        """A node's log was put back: whatever others have sent has come everywhere, once or more.

        More than once only where it was put back, or behind it.
        """
        assert not self.failures, self.failures
        for end, node in self.nodes.items():
            counted = Counter(node.handled)
            for start, other in self.nodes.items():
                for body in other.sent:
                    count, ways = counted.pop(body, 0), self.ways(start, end)
                    assert count >= min(ways, 1), (start, end, body)
                    if not self.ways(name, end):
                        assert count == ways, (start, end, body)
            assert not counted, counted

    def _check_order(self, node: NodeOfChain) -> None:
        seen: set[bytes] = set()
        lanes: dict[tuple[bytes, bytes], list[int]] = {}
        for body in node.handled:
            if body not in seen:  # the first of each way: later copies come by longer ones
                seen.add(body)
                subject, name, number, *_ = body.split(b" ")
                lanes.setdefault((subject, name), []).append(int(number))
        ways = Counter(len(paths) for paths in node.paths.values())
        for lane in lanes.values():
            assert lane == sorted(lane) or max(ways) > 1, lane
