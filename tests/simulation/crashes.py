"""Processes that die: of a message, or for reasons of their own, one after the other (51).

A play has a node, one receiver with one process or several workers, and lanes of which some are
slow. What it decides by its seed: how long a process lives by itself, which messages kill, and how
long after they are begun. Time is virtual; nothing else fails. What must be so: a message that
kills is dead after at most 20 connections, where the receiver dies of nothing else; and no other
message is dead, however long a receiver goes on dying for reasons of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from msgservice.core.frames import Ack, Transfer
from msgservice.limits import Limits
from msgservice.message import Status, decode_messages
from tests.kit.nodes import NodeWorld, ScriptedPeer

CONNECTIONS_MAX = 20  # until a message that kills is dead
PLAYED = 300.0  # seconds for which processes die by themselves, where they do
HEALED = 4 * 3600.0  # … and after which all that is left must be through


class Process(ScriptedPeer):
    """A process of the receiver: handles the messages of each lane one after the other."""

    play: Crashes

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.free_at: dict[str, float] = {}  # by lane
        self.calls: list[IDelayedCall] = []

    def turn_ended(self, connection: Any) -> None:
        """See `Owner`: what came is handled in its time."""
        play, clock = self.play, self.world.clock
        for transfer in self.take(Transfer):
            for n, message in enumerate(decode_messages(transfer.messages)):
                now, lane = clock.seconds(), transfer.subject
                begun = max(now, self.free_at.get(lane, 0.0))
                kills = play.kills.get(message.body)
                if kills is not None:
                    self.calls.append(clock.callLater(begun + kills - now, self.die))
                    return  # nothing behind it comes to its turn
                done = self.free_at[lane] = begun + play.seconds[lane]
                self.calls.append(clock.callLater(done - now, self.done, transfer.sequence + n))

    def done(self, sequence: int) -> None:
        """A handler has ended."""
        self.connection.send(Ack([(sequence, sequence)]))

    def die(self) -> None:
        """The process is gone, without a word."""
        self.connection.abort()

    def lost(self, connection: Any, reason: str) -> None:
        """See `Owner`."""
        super().lost(connection, reason)
        for call in self.calls:
            if call.active():
                call.cancel()
        self.play.ended(self)


@dataclass
class Crashes:
    """A play of one seed; `run` raises `AssertionError` where a rule is broken."""

    seed: int
    kills: dict[bytes, float] = field(default_factory=dict)  # body -> seconds until it does
    seconds: dict[str, float] = field(default_factory=dict)  # lane -> seconds for each message
    connections: int = 0
    own_deaths: int = 0
    dead: set[int] = field(default_factory=set)
    handled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = rng = random.Random(self.seed)
        self.is_shared = rng.random() < 0.3
        self.workers = rng.randint(2, 4) if self.is_shared else 1
        self.window = rng.choice([1, 8, 64, 1024])
        self.lives = rng.choice([None, None, "any", "any", "alike"])  # how long, by themselves
        self.life = rng.uniform(2.0, 10.0)
        lanes = [f"orders.lane{n}" for n in range(rng.randint(1, 9))]
        self.seconds = {lane: rng.choice([0.0, 0.02]) for lane in lanes}
        if self.lives is not None:
            for lane in rng.sample(lanes, min(2, len(lanes))):
                self.seconds[lane] = rng.uniform(0.3, 0.95) * self.life
        poisons = rng.randint(0, 1) if self.lives is None else 0
        self.bodies: list[tuple[str, bytes]] = []
        for lane in lanes:
            count = rng.choice([5, 40] if self.seconds[lane] > 0.1 else [5, 50])
            self.bodies += [(lane, b"%s %d" % (lane.encode(), n)) for n in range(count)]
        rng.shuffle(self.bodies)
        for _ in range(poisons):
            at = rng.randrange(len(self.bodies) + 1)
            self.bodies.insert(at, (rng.choice(["orders.bad", lanes[0]]), b"it kills"))
            self.kills[b"it kills"] = rng.choice([0.0, 0.05, rng.uniform(1, 10)])
        self.seconds["orders.bad"] = 0.0
        self.is_healed = False
        self.pool: list[Process] = []
        self.world = NodeWorld(
            Limits(max_attempts=1000, replacements=100_000, heartbeat=100_000.0, silence=100.0)
        )

    def run(self) -> Crashes:
        """Play it."""
        world, order = (
            self.world,
            "none" if self.is_shared else self.random.choice(["strict", "none"]),
        )
        shop = world.peer("shop", status_from=1)
        said = shop.request(
            "$node.receivers.add",
            {"name": "billing", "subjects": ["orders.>"], "order": order, "shared": self.is_shared},
        )
        assert said[0], said
        self.order = order
        for sequence, (lane, body) in enumerate(self.bodies, start=1):
            shop.transfer(sequence, lane, [body])
        world.settle()
        self.shop = shop
        for _ in range(self.workers):
            self.comes()
        self.pass_until(PLAYED)
        self.is_healed = True
        self.pass_until(HEALED)
        killers = {n for n, (_, body) in enumerate(self.bodies, start=1) if body in self.kills}
        assert self.dead == killers, f"dead: {self.dead - killers}, alive: {killers - self.dead}"
        assert len(self.dead | self.handled) == len(self.bodies), "some are left"
        if self.kills:
            assert self.connections - self.workers <= CONNECTIONS_MAX, self.connections
        return self

    def comes(self) -> None:
        """A process begins, and will end by itself where they do."""
        self.connections += 1
        receive: dict[str, Any] = {"subjects": ["orders.>"], "order": self.order}
        if self.is_shared:
            receive["shared"] = True
        process = self.world.peer(
            "billing",
            incarnation=f"life{self.connections}",
            receive=receive,
            kind=type("Process", (Process,), {"play": self}),
            window=(self.window, 1 << 24),
        )
        assert isinstance(process, Process)
        self.pool.append(process)
        if self.lives is not None and not self.is_healed:
            life = self.life * (self.random.uniform(0.98, 1.02) if self.lives == "alike" else 1)
            if self.lives == "any":
                life = self.random.expovariate(1 / self.life)
            process.calls.append(self.world.clock.callLater(life, self.dies, process))

    def dies(self, process: Process) -> None:
        """A process ends for a reason of its own."""
        if not self.is_healed:
            self.own_deaths += 1
            process.die()

    def ended(self, process: Process) -> None:
        """The connection of a process was lost; another comes in its place."""
        self.pool = [one for one in self.pool if one is not process]
        self.world.clock.callLater(self.random.uniform(0.1, 1.0), self.comes)

    @property
    def is_through(self) -> bool:
        """Whether every message is final."""
        for (name, state), ranges in self.shop.statuses().items():
            assert name == "billing"
            found = {n for first, last in ranges for n in range(first, last + 1)}
            if state == Status.DEAD:
                self.dead |= found
            elif state == Status.ACKNOWLEDGED:
                self.handled |= found
        return len(self.dead | self.handled) == len(self.bodies)

    def pass_until(self, end: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        clock = self.world.clock
        while not self.is_through and clock.calls:
            at = clock.calls[0].getTime()
            if at > end:
                return
            clock.advance(max(0.0, at - clock.seconds()))
