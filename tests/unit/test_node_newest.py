"""SEMANTICS 5: the newest connection wins, and the newest is the one that was made last.

Found by the simulation of the network (tests/simulation): the end of an old connection's handshake
reached the node after the sender had given it up and opened another, which the node then sent away.
"""

from __future__ import annotations

from typing import Any

import pytest

from msgservice.connection import Connection
from msgservice.core.frames import VERSION, Ack, Hello, HelloOptions, ReceiveOptions
from msgservice.records import Resume
from tests.kit.channels import connect_locally
from tests.kit.nodes import NodeWorld, ScriptedPeer


class LatePeer(ScriptedPeer):
    """Opens its session when told to only."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self.node_hello = hello

    def open_late(self) -> None:
        self.connection.resume(self.resume)
        self.world.settle()


def connect_late(world: NodeWorld, name: str, receive: dict[str, Any] | None) -> LatePeer:
    options = HelloOptions(receive=None if receive is None else ReceiveOptions(**receive))
    peer = LatePeer(world, Hello(VERSION, name, "i1", options), Resume())
    far = Connection(
        world.node.parts.connections.make_peer(None),
        clock=world.clock,
        now=world.clock.seconds,
        limits=world.limits,
    )
    connect_locally(peer.connection, far, clock=world.clock, limits=world.limits, name=name)
    world.settle()
    return peer


@pytest.mark.parametrize("receive", [None, {"subjects": [">"]}], ids=["sender", "receiver"])
def test_semantics_5_an_old_connection_that_opens_late_does_not_replace_a_newer(
    receive: dict[str, Any] | None,
) -> None:
    world = NodeWorld()
    old = connect_late(world, "shop", receive)
    new = world.peer("shop", receive=receive)
    old.open_late()
    assert new.bye is None
    assert new.lost_because is None
    assert old.bye is not None
    world.settle(2.0)
    assert old.lost_because is not None
    sender = new if receive is None else world.peer("other")
    sender.transfer(1, "orders", [b"one"])
    world.settle()
    assert new.bodies() == ([] if receive is None else [b"one"])
    assert [(1, 1)] == [ranges for ack in sender.take(Ack) for ranges in ack.ranges]
