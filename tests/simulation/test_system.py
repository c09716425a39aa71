"""The whole service in virtual time: clients, a node that crashes, receivers, and bad links.

Client, node and receiver are the real ones; only the network is a `FaultyWorld`, the log is in
memory, and time is a `Clock`. One seed is one history. When the faults end, everything must
drain: every send accepted, every receipt acknowledged, every message handled once and every
lane in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice import Limits, Receiver, Retry, Status
from msgservice.client import Client
from msgservice.connection import Connection
from msgservice.errors import ProtocolError
from msgservice.interfaces import IChannel, IChannelUser, IConnector
from msgservice.log.memory import MemoryLog
from msgservice.node.node import NodeService
from msgservice.node.peer import Peer
from tests.faulty import CALM, FaultyPair, FaultyWorld

LIMITS = Limits(retry_delay_min=0.2, retry_delay_max=2.0, max_attempts=1000)
SUBJECTS = ("orders.a", "orders.b", "other.c")
DRAIN_SECONDS = 3600


class MortalClock:
    """A clock whose calls die with the process that made them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[IDelayedCall] = []
        self.seconds = clock.seconds
        self.dead = False

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any) -> IDelayedCall:
        made: IDelayedCall = self._clock.callLater(delay, call, *args)
        self._calls = [call for call in self._calls if call.active()]
        self._calls.append(made)
        return made

    def die(self) -> None:
        self.dead = True
        for call in self._calls:
            if call.active():
                call.cancel()


@implementer(IChannelUser)
class MortalUser:
    """Passes everything on, until its process has died: links it had may still end later."""

    def __init__(self, user: Connection, clock: MortalClock) -> None:
        self._user = user
        self._clock = clock

    def channel_opened(self, channel: IChannel) -> None:
        if not self._clock.dead:
            self._user.channel_opened(channel)

    def frames_received(self, frames: list[bytes]) -> None:
        if not self._clock.dead:
            self._user.frames_received(frames)

    def channel_failed(self, error: ProtocolError) -> None:
        if not self._clock.dead:
            self._user.channel_failed(error)

    def channel_writable(self, writable: bool) -> None:
        if not self._clock.dead:
            self._user.channel_writable(writable)

    def channel_lost(self, reason: str) -> None:
        if not self._clock.dead:
            self._user.channel_lost(reason)


@implementer(IConnector)
class PairConnector(Service):
    """What a client or receiver takes for its connector: a link that dials again by itself."""

    address = "simulated"
    channel = None
    attempts = failures = 0
    last_error: str | None = None
    next_attempt_in: float | None = None

    def __init__(self, system: System, make_user: Callable[[], IChannelUser]) -> None:
        self._system = system
        self._make_user = make_user
        self._pair: FaultyPair | None = None

    def poke(self) -> None:
        pass

    def startService(self) -> None:
        super().startService()
        self._pair = self._system.world.keep_connected(self._make_user, self._system.node_user)
        self._system.pairs.append(self._pair)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._pair is not None:
            self._pair.stop()
        return succeed(None)


class System:
    def __init__(self, seed: int, *, order: str) -> None:
        self.world = FaultyWorld(seed, limits=LIMITS)
        self.log = MemoryLog(reactor=self.world.clock, limits=LIMITS)
        self.pairs: list[FaultyPair] = []
        self.receipts: list[Any] = []
        self.failures: list[Any] = []
        self.sent = 0
        self.handled: dict[str, list[tuple[str, str, int]]] = {}
        self.start_node()
        self.receivers = [
            self.receiver(name, patterns, order)
            for name, patterns in (("a", ["orders.>"]), ("b", ["orders.a", "other.*"]))
        ]
        self.clients = [self.client(f"shop{n}") for n in range(2)]

    # --- the node

    def start_node(self) -> None:
        self.clock = MortalClock(self.world.clock)
        self.node = NodeService(
            self.clock,
            log=self.log,
            limits=LIMITS,
            rng=self.world.random.random,
            failed=self.failures.append,
        )
        self.node.startService()

    def node_user(self) -> IChannelUser:
        connection = Connection(
            Peer(self.node), clock=self.clock, now=self.world.clock.seconds, limits=LIMITS
        )
        return MortalUser(connection, self.clock)

    def crash_node(self) -> None:
        """As kill -9: nothing is told to anybody, and nothing runs on."""
        for pair in self.pairs:
            pair.crash_right()
        self.clock.die()
        self.log.close()
        self.start_node()

    # --- the others

    def receiver(self, name: str, patterns: list[str], order: str) -> Receiver:
        handled = self.handled[name] = []

        def handle(message: Any) -> None:
            if self.world.faults is not CALM and self.world.happens(0.02):
                raise Retry(0.3)
            handled.append((message.sender, message.subject, int(message.body)))

        made = Receiver(self.world.clock, name=name, handler=handle, order=order, limits=LIMITS)
        made.attach_through(
            lambda make_user: PairConnector(self, make_user),
            address="simulated",
            subjects=patterns,
        )
        return made

    def client(self, name: str) -> Client:
        count = iter(range(1000))
        made = Client(
            reactor=self.world.clock,
            name=name,
            connector_factory=lambda make_user: PairConnector(self, make_user),
            limits=LIMITS,
            new_incarnation=lambda: f"{name}-{next(count)}",
        )
        made.start()
        return made

    def send_some(self) -> None:
        client = self.world.random.choice(self.clients)
        for _ in range(self.world.random.randint(1, 8)):
            self.sent += 1
            subject = self.world.random.choice(SUBJECTS)
            sending = client.send(subject, str(self.sent).encode())
            sending.addCallbacks(self.receipts.append, self.failures.append)


def known(system: System) -> bool:
    return len(list(system.node.directory)) == 2 if hasattr(system.node, "directory") else False


@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("seed", range(40))
def test_everything_sent_is_handled_once_in_order_and_told(seed: int, order: str) -> None:
    system = System(seed, order=order)
    world = system.world
    world.run_until(lambda: known(system), seconds_max=DRAIN_SECONDS)
    for _ in range(60):
        system.send_some()
        world.run(world.random.uniform(0.0, 1.0))
        if world.happens(0.06):
            system.crash_node()
    world.heal()
    world.run_until(lambda: len(system.receipts) == system.sent, seconds_max=DRAIN_SECONDS)
    assert [] == system.failures
    world.run_until(
        lambda: all(
            all(status is Status.ACKNOWLEDGED for status in receipt.statuses.values())
            for receipt in system.receipts
        ),
        seconds_max=DRAIN_SECONDS,
    )
    for receipt in system.receipts:
        assert receipt.statuses
    for name, subjects in (("a", SUBJECTS[:2]), ("b", (SUBJECTS[0], SUBJECTS[2]))):
        handled = system.handled[name]
        assert len(handled) == len(set(handled)), "handled twice"
        assert {subject for _, subject, _ in handled} <= set(subjects)
        if order == "strict":
            for lane in {(sender, subject) for sender, subject, _ in handled}:
                numbers = [n for sender, subject, n in handled if (sender, subject) == lane]
                assert sorted(numbers) == numbers
    expected = sum(1 for receipt in system.receipts if "a" in receipt.statuses)
    assert expected == len(system.handled["a"])
    accounts: list[Any] = []
    system.log.accounts().addCallback(accounts.extend)
    world.run(1)
    assert accounts
    assert all(account.unaccounted == 0 and account.queued == 0 for account in accounts)
