"""Audiences with more names than one frame takes are told in parts (PROTOCOL: AUDIENCE)."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from msgservice import Limits
from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.core.frames import (
    Ack,
    AudienceFrame,
    Routed,
    StatusFrame,
    Transfer,
    encode_frame,
)
from msgservice.limits import FRAME_OVERHEAD
from msgservice.node.status_frames import StatusFrames
from msgservice.transport.local import local_connector
from tests.kit.nodes import NodeWorld

SMALL = Limits(max_batch=4096)


def add_receivers(world: NodeWorld, names: list[str]) -> None:
    for name in names:
        Deferred.fromCoroutine(world.node.add_receiver(name, ["orders.>"]))
    world.settle()


def test_8_an_audience_of_more_than_a_frame_is_told_in_parts() -> None:
    world = NodeWorld(SMALL)
    names = [f"{n:03}-{'x' * 200}" for n in range(100)]
    add_receivers(world, names)
    shop, other = world.peer("shop", status_from=1), world.peer("other", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert world.failures == []
    frames = shop.take(AudienceFrame)
    assert len(frames) > 2
    assert {frame.audience for frame in frames} == {shop.take(Routed)[0].audience}
    assert [frame.more for frame in frames] == [True] * (len(frames) - 1) + [False]
    assert [name for frame in frames for name in frame.receivers] == names
    assert max(len(encode_frame(frame)) for frame in frames) <= FRAME_OVERHEAD
    assert shop.take(Ack) == [Ack([(1, 1)])]
    other.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert other.take(Ack) == [Ack([(1, 1)])]


def test_8_tens_of_thousands_of_receivers_of_one_subject_are_all_in_the_receipt() -> None:
    world = NodeWorld(Limits(receivers=20_000))
    names = [f"receiver-{n:05}-of-the-whole-house" for n in range(15_000)]
    add_receivers(world, names)
    client = world.node.client("shop")
    sent = client.send("orders.new", b"one")
    told: list[Receipt] = []
    sent.addCallback(told.append)
    world.settle()
    (receipt,) = told
    assert sorted(receipt.receivers) == names
    assert world.failures == []
    client.close()
    world.settle(1)


@pytest.mark.parametrize("limits", [Limits(audiences=1), Limits(receivers=1)])
def test_8_what_a_node_tells_is_known_whatever_the_limits_of_the_producer(limits: Limits) -> None:
    world = NodeWorld()
    names = [f"r{n}" for n in range(12)]
    add_receivers(world, names)
    client = Client(
        reactor=world.clock,
        name="shop",
        limits=limits,
        new_incarnation=lambda: "i",
        connector_factory=lambda make_user: local_connector(
            make_user,
            lambda: world.node.parts.connections.make_user(),
            world.node.when_ready,
            world.clock,
            world.limits,
            "shop",
        ),
    )
    client.start()
    world.settle(1)
    told: list[Receipt] = []
    for to in (*([name] for name in names), names, names[:1]):  # the first again, as the last
        client.send("orders.new", b"one", to=to).addCallback(told.append)
        world.settle()
    assert [len(receipt.receivers) for receipt in told] == [1] * 12 + [12, 1]
    assert client.why().attempts == 0
    client.close()
    world.settle(1)


def test_8_a_sender_that_comes_back_is_told_large_audiences_again() -> None:
    world = NodeWorld(SMALL)
    names = [f"{n:03}-{'x' * 200}" for n in range(100)]
    add_receivers(world, names)
    shop = world.peer("shop", status_from=1)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    shop.connection.abort()
    world.settle()
    shop = world.peer("shop", status_from=1)
    assert [name for frame in shop.take(AudienceFrame) for name in frame.receivers] == names
    assert len(shop.take(Routed)) == 1


@pytest.mark.parametrize("of", ["routed", "status"])
def test_a_frame_too_large_for_one_sender_ends_its_connection_alone(
    of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node told of it inside its commit loop, and took that for a fault of the log."""
    world = NodeWorld(SMALL)
    billing = world.peer("billing", receive={"subjects": ["orders.>"]})
    shop, other = world.peer("shop", status_from=1), world.peer("other")
    huge = [StatusFrame("i1", "billing", 3, [(n, n) for n in range(9000)])]
    if of == "routed":
        monkeypatch.setattr(StatusFrames, "routed", lambda *_: huge)
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    if of == "status":
        monkeypatch.setattr(StatusFrames, "take", lambda *_: (huge, True))
        billing.ack(billing.take(Transfer)[0])
        world.settle()
    assert world.failures == []
    assert shop.lost_because is not None
    assert "bytes, at most" in shop.lost_because
    other.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert other.take(Ack) == [Ack([(1, 1)])]
