"""SEMANTICS 3, 6: a log put back from an older copy, and another order, for receivers of each kind.

The real node and the real receiver on one clock: attached over a transport, embedded in the node's
process, and dialled by the node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from msgservice import Limits, Reject, Retry
from msgservice.receiver.receiver import Receiver
from msgservice.testing.network import CALM, FaultyWorld
from msgservice.testing.transport import FaultyTransport
from msgservice.transport.registry import Transports
from tests.kit.nodes import NodeWorld
from tests.kit.receiver_world import results_of

WAYS = ["attached", "embedded", "dialled"]


class Reached:
    """A node on a log that can be put back, and a receiver that lives on meanwhile."""

    def __init__(self, way: str, handle: Callable[[Any], Any], **more: Any) -> None:
        self.way = way
        network = FaultyWorld(0, faults=CALM)
        self.transport = FaultyTransport(network)
        self.world = NodeWorld(
            Limits(max_attempts=1), clock=network.clock, transports=[self.transport]
        )
        self.producers = 0
        self.receiver = Receiver(
            network.clock,
            name="billing",
            handler=handle,
            transports=Transports([self.transport]),
            **more,
        )
        self.reach()
        self.settle()

    def reach(self) -> None:
        world, receiver = self.world, self.receiver
        if self.way == "embedded":
            world.node.attach(receiver, ["a.>"])
        elif self.way == "attached":
            self.listen()
            receiver.attach("faulty:node", subjects=["a.>"])
        else:
            opened = results_of(receiver.listen("faulty:billing", insecure=True))
            self.settle()
            assert opened == [receiver.ways[0]]
            added = world.node.add_receiver("billing", ["a.>"], address="faulty:billing")
            Deferred.fromCoroutine(added)

    def listen(self) -> None:
        make_user = self.world.node.parts.connections.make_user
        self.transport.listen(self.world.clock, "faulty:node", make_user, self.world.limits)

    def settle(self) -> None:
        """Longer than any delay of a dialler."""
        self.world.settle(2 * self.world.limits.link_delay_max)

    def stop(self) -> None:
        self.world.node.stopService()
        if self.way == "embedded":
            self.receiver.ways[-1].stop()
        self.transport.listening.pop("node", None)
        self.settle()

    def start(self) -> None:
        self.world.start()
        if self.way == "attached":
            self.listen()
        elif self.way == "embedded" and self.receiver.running:
            self.world.node.attach(self.receiver, ["a.>"])
        self.settle()

    def start_receiver(self) -> None:
        if self.way == "embedded":
            self.world.node.attach(self.receiver, ["a.>"])
        else:
            self.receiver.startService()
        self.settle()

    def copy(self) -> bytes:
        """The log as it is, of a node that was stopped for it."""
        self.stop()
        copied = self.world.log._store.db.serialize("main")
        self.start()
        return bytes(copied)

    def put_back(self, copied: bytes) -> None:
        """Stop the node, and put the older log in the place of its own."""
        self.stop()
        self.world.log._store.db.deserialize("main", copied)

    def send(self, *bodies: bytes) -> None:
        """Send these from a new producer, each in a batch of its own."""
        self.producers += 1
        shop = self.world.peer(f"shop{self.producers}")
        for sequence, body in enumerate(bodies, 1):
            shop.transfer(sequence, "a.b", [body])
            self.world.settle(1)
        shop.connection.abort()
        self.settle()

    @property
    def queued(self) -> list[int]:
        asked = results_of(
            Deferred.fromCoroutine(self.world.node.parts.receivers.account("billing"))
        )
        self.world.settle()
        return [account.queued for account in asked]


@pytest.mark.parametrize("grown", [False, True], ids=["ahead", "grown"])
@pytest.mark.parametrize("way", WAYS)
def test_6_a_receiver_that_has_taken_more_than_a_restored_log_holds_gets_all_that_is_new(
    way: str, grown: bool
) -> None:
    seen: list[bytes] = []
    reached = Reached(way, lambda message: seen.append(message.body))
    reached.send(b"a1")
    copied = reached.copy()
    reached.send(b"a2", b"a3")
    assert seen == [b"a1", b"a2", b"a3"]
    reached.put_back(copied)
    new = [b"b%d" % n for n in range(5)]
    if grown:  # before the receiver is there again
        stopped = results_of(reached.receiver.stop())
        reached.settle()
        assert stopped == [None]
        reached.start()
        reached.send(*new)
        assert seen == [b"a1", b"a2", b"a3"]
        reached.start_receiver()
    else:
        reached.start()
        reached.send(*new)
    assert seen == [b"a1", b"a2", b"a3", *new]
    assert reached.queued == [0]
    (row,) = reached.world.node.parts.directory
    assert row.epoch != ""  # for at these positions there was something else


@pytest.mark.parametrize("outcome", [Reject("no"), Retry(0.0)], ids=["rejected", "given up"])
@pytest.mark.parametrize("way", WAYS)
def test_6_positions_of_what_a_receiver_refused_are_not_taken_when_a_restored_log_reuses_them(
    way: str, outcome: Exception
) -> None:
    seen: list[bytes] = []

    def handle(message: Any) -> None:
        if message.body.startswith(b"bad"):
            raise outcome
        seen.append(message.body)

    reached = Reached(way, handle)
    reached.send(b"a1")
    copied = reached.copy()
    reached.send(b"bad1", b"bad2", b"bad3")
    assert reached.queued == [0]
    reached.put_back(copied)
    reached.start()
    new = [b"b%d" % n for n in range(5)]
    reached.send(*new)
    assert seen == [b"a1", *new]
    assert reached.queued == [0]


@pytest.mark.parametrize("ends", ["late", "in between", "rejected"])
@pytest.mark.parametrize("order", ["strict", "none"])
@pytest.mark.parametrize("way", WAYS)
def test_6_positions_of_what_is_being_handled_are_not_taken_when_a_restored_log_reuses_them(
    way: str, order: str, ends: str
) -> None:
    """What runs was a run of two; what has its positions now came one by one, so no run repeats."""
    seen: list[bytes] = []
    running: list[Deferred[None]] = []

    def handle(message: Any) -> Deferred[None] | None:
        seen.append(message.body)
        if not message.body.startswith(b"a2"):
            return None
        running.append(Deferred())
        return running[-1]

    reached = Reached(way, handle, order=order)
    if way == "dialled":
        Deferred.fromCoroutine(reached.world.node.change_receiver("billing", order=order))
        reached.settle()
    reached.send(b"a1")
    copied = reached.copy()
    shop = reached.world.peer("shop")
    shop.transfer(1, "a.b", [b"a2", b"a2 too"])
    reached.settle()
    begun = len(running)
    assert begun == (1 if order == "strict" else 2)
    reached.put_back(copied)
    reached.start()
    reached.settle()  # refused once, it has come again
    if ends == "in between":
        for handler in running:
            handler.callback(None)
    new = [b"b%d" % n for n in range(5)]
    reached.send(*new)
    if ends != "in between":
        for handler in running:
            handler.callback(None) if ends == "late" else handler.errback(Reject("no"))
        reached.settle()
    assert seen == [b"a1", b"a2", b"a2 too"][: 1 + begun] + new
    assert reached.queued == [0]


@pytest.mark.parametrize(("before", "after"), [("none", "strict"), ("strict", "none")])
def test_3_an_operator_changes_the_order_while_a_handler_runs(before: str, after: str) -> None:
    """Of one that the node dials; the others say their order themselves."""
    begun: list[bytes] = []
    ends: list[Deferred[None]] = []

    def handle(message: Any) -> Deferred[None]:
        begun.append(message.body)
        ends.append(Deferred())
        return ends[-1]

    reached = Reached("dialled", handle, concurrency=3)
    node = reached.world.node
    Deferred.fromCoroutine(node.change_receiver("billing", order=before))
    reached.settle()
    reached.send(b"1", b"2")
    at_once = [b"1"] if before == "strict" else [b"1", b"2"]
    assert begun == at_once
    Deferred.fromCoroutine(node.change_receiver("billing", order=after))
    reached.settle()
    reached.send(b"3")
    assert begun == at_once
    for end in ends[:]:
        end.callback(None)
    reached.settle()
    assert begun == [b"1", b"2", b"3"]
    for end in ends[len(at_once) :]:
        end.callback(None)
    reached.settle()
    assert reached.queued == [0]
    stopped = results_of(reached.receiver.stop())
    reached.settle()
    assert stopped == [None]
