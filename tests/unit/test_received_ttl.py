"""A handler sees how long its message has: what was left when it came, by its own clock."""

from __future__ import annotations

from typing import Any

from msgservice import Receiver
from tests.kit.nodes import NodeWorld


def world_with() -> tuple[NodeWorld, list[Any]]:
    world = NodeWorld()
    got: list[Any] = []
    receiver = Receiver(world.clock, name="billing", handler=got.append)
    world.node.attach(receiver, subjects=["s.>"])
    world.settle(1)
    return world, got


def test_44_a_message_says_what_is_left_of_its_ttl_and_when_that_is_over() -> None:
    world, got = world_with()
    shop = world.peer("shop")
    shop.transfer(1, "s.a", [b"one", b"two"], ttl=60_000)
    shop.transfer(3, "s.a", [b"three"])
    world.settle(1)
    assert [b"one", b"two", b"three"] == [message.body for message in got]
    now = world.clock.seconds()
    for message in got[:2]:
        assert 59 < message.ttl <= 60
        assert now + 58 < message.expires_at <= now + 60
    assert (None, None) == (got[2].ttl, got[2].expires_at)


def test_44_what_waited_has_less() -> None:
    world, got = world_with()
    shop = world.peer("shop")
    operator = world.peer("operator")
    assert operator.request("$node.receivers.pause", {"name": "billing"})[0]
    sent = world.clock.seconds()
    shop.transfer(1, "s.a", [b"one"], ttl=60_000)
    world.settle(20)
    assert operator.request("$node.receivers.resume", {"name": "billing"})[0]
    for _ in range(10):
        world.settle(2)
    (message,) = got
    assert message.ttl < 40.5
    assert abs(message.expires_at - (sent + 60)) < 0.5
