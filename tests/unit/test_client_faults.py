"""A client and a node with a connection that fails at any moment: SEMANTICS 1, 3, 4, 10, 11.

One seed is one history. After the faults every `send` has fired once, the node has each message
once and each subject in order, every receipt is settled, and nothing is held any more.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.client.receipt import Receipt
from msgservice.core.frames import Transfer
from msgservice.errors import Refused
from msgservice.limits import Limits
from msgservice.message import Action, Status
from tests.kit.clients import ClientWorld
from tests.kit.node_double import Refusal

SUBJECTS = ["a", "b", "c"]


class Story:
    """One history."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        limits = Limits(max_batch=4096, window_messages=self.rng.choice([5, 40, 1000]))
        self.world = ClientWorld(limits=limits, start=self.rng.random() < 0.8)
        self.world.node.refusal = self.refusal
        self.faults = True
        self.number = 0
        self.expected: dict[str, list[bytes]] = {subject: [] for subject in SUBJECTS}
        self.fired: dict[bytes, list[object]] = {}
        self.settled: dict[bytes, dict[str, Status]] = {}
        if not self.world.client.connected:
            self.world.client.start()

    def refusal(self, transfer: Transfer) -> Refusal | None:
        if transfer.flags:
            return Action.REFUSED, 0, "no receiver for it"
        if self.faults and self.rng.random() < 0.1:
            return self.rng.choice([Action.LATER, Action.RETRY]), self.rng.choice([0, 500]), "full"
        return None

    def body(self) -> bytes:
        self.number += 1
        return b"%d" % self.number + b"." * self.rng.choice([0, 0, 300])

    def send(self) -> None:
        subject, require = self.rng.choice(SUBJECTS), self.rng.random() < 0.1
        bodies = [self.body() for _ in range(self.rng.choice([1, 1, 2, 30]))]
        if not require:
            self.expected[subject] += bodies
        if self.rng.random() < 0.3:
            many = self.world.client.send_many(subject, bodies, require=require)
            self.watch(b"-".join(bodies), many)
            return
        for body in bodies:
            options: dict[str, Any] = {"require": require}
            if self.rng.random() < 0.2:
                options["headers"] = {"x": "y"}
            one = self.world.client.send(subject, body, **options)
            self.watch(body, one)
            if not require and self.rng.random() < 0.5:
                self.watch_settled(body, one)

    def watch(self, key: bytes, deferred: Deferred[Any]) -> None:
        fired: list[object] = []
        self.fired[key] = fired

        def note(result: Any) -> Any:
            fired.append(result)
            if isinstance(result, Failure):
                result.trap(Refused)
                return None
            return result

        deferred.addBoth(note)

    def watch_settled(self, body: bytes, deferred: Deferred[Receipt]) -> None:
        self.settled[body] = {}

        def note(receipt: Receipt) -> None:
            receipt.settled().addCallback(self.settled[body].update)

        deferred.addCallback(note)

    def step(self) -> None:
        chance = self.rng.random()
        world, node = self.world, self.world.node
        if chance < 0.4:
            self.send()
        elif chance < 0.6:
            world.clock.advance(0)
        elif chance < 0.7:
            world.settle()
        elif chance < 0.75:
            node.cut()
        elif chance < 0.8:
            node.is_up = not node.is_up
        elif chance < 0.85:
            node.answering = not node.answering
            if node.answering:
                node.answer()
        elif chance < 0.9 and node.connections and node.stored:
            last = node.stored[-1].sequence
            name = self.rng.choice(["r1", "r2"])
            node.say(name, Status.ACKNOWLEDGED, (1, self.rng.randint(1, last)))
        else:
            world.clock.advance(self.rng.choice([0.05, 0.3, 1.0]))

    def run(self) -> None:
        for _ in range(150):
            self.step()
        self.faults = False
        world, node = self.world, self.world.node
        node.is_up = True
        for _ in range(40):
            node.answer()
            world.advance(5.0)
            if not world.client.unanswered:
                break
        world.say_acknowledged(1, world.client.sequence + 1)


@pytest.mark.parametrize("seed", range(80))
def test_every_send_fires_once_and_every_message_is_there_once_and_in_order(seed: int) -> None:
    story = Story(seed)
    story.run()
    world = story.world
    assert [] == [key for key, fired in story.fired.items() if len(fired) != 1]
    for subject, bodies in story.expected.items():
        assert bodies == world.node.bodies(subject)
    both = {"r1": Status.ACKNOWLEDGED, "r2": Status.ACKNOWLEDGED}
    assert [] == [body for body, states in story.settled.items() if states != both]
    flow = world.client._flow
    assert (0, flow._held) == (flow.unanswered, (flow.room_messages, flow.room_bytes))
    assert 0 == len(world.client._hop.runs)
    assert world.client._hop.backlog.idle
    assert 1 == len({hello.incarnation for hello in world.node.hellos})
