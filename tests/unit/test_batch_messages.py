"""Sides whose `batch_messages` differ: what one makes, the other takes."""

from __future__ import annotations

from msgservice.client.client import Client
from msgservice.limits import BATCH_MESSAGES_MAX, Limits
from msgservice.message import MessageParts, encode_bodies
from msgservice.receiver.received import ReceivedMessage
from msgservice.receiver.receiver import Receiver
from tests.kit.nodes import NodeWorld

COUNT = 500


def test_a_node_takes_longer_runs_than_it_would_make() -> None:
    world = NodeWorld(Limits(batch_messages=10))
    stored: list[object] = []
    client = Client(
        reactor=world.clock,
        name="shop",
        connector_factory=lambda make_user: world.node.connector(make_user, "shop"),
        limits=Limits(),
        new_incarnation=lambda: "i1",
    )
    client.start()
    world.settle(1)

    for number in range(COUNT):
        client.send("a", b"%d" % number).addBoth(stored.append)
    world.settle(1)

    assert len(stored) == COUNT
    assert client._connector.attempts == 1


def test_a_receiver_takes_longer_runs_than_it_would_make() -> None:
    world = NodeWorld(Limits())
    handled: list[bytes] = []

    def handle(message: ReceivedMessage) -> None:
        handled.append(message.body)

    receiver = Receiver(
        reactor=world.clock, name="r", handler=handle, limits=Limits(batch_messages=10)
    )
    receiver.startService()
    attachment = receiver.attach_through(
        lambda make_user: world.node.connector(make_user, "r"), address="node", subjects=["a"]
    )
    world.settle(1)
    shop = world.peer("shop")

    shop.transfer(1, "a", [b"%d" % number for number in range(COUNT)])
    world.settle(1)

    assert handled == [b"%d" % number for number in range(COUNT)]
    assert attachment.connected
    assert attachment.error == ""


def test_no_side_makes_longer_runs_than_all_take() -> None:
    assert Limits().batch_messages == BATCH_MESSAGES_MAX


def test_messages_alone_are_as_large_as_their_runs_of_one() -> None:
    parts = MessageParts(encode_bodies([b"", b"ab", bytes(300), bytes(70_000)] * 5))
    for start in range(20):
        for stop in range(start, 21):
            alone = sum(parts.size(at, at + 1) for at in range(start, stop))
            assert alone == parts.size_alone(start, stop)
