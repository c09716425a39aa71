"""The packing of datagrams: what is owed leaves, whatever else turns out to be needless."""

from __future__ import annotations

from msgservice.core.datagram.session import Session
from msgservice.core.datagram.wire import REPLY_OK
from tests.simulation.datagram_paths import World


def opened() -> tuple[World, Session]:
    """A session in which one message came, and was handled."""
    world = World()
    near, far = world.host(1), world.host(2)
    near.send(far.address, b"first")
    assert world.run(2.0, until=lambda: bool(near.settled))
    world.run(2.0)
    session = far.endpoint.peers[near.address].session
    assert session is not None
    return world, session


def test_an_acknowledgement_leaves_though_the_replies_beside_it_have_arrived() -> None:
    world, session = opened()
    receiving = session.receiving
    receiving.reply(2, REPLY_OK, b"again", 0)
    receiving.receive_reply_arrival(receiving.replies[2])
    number = receiving.largest
    for later in (1, 2):
        receiving.receive_number(number + later, world.now, eliciting=True, urgent=True)

    assert 1 == len(session.take_datagrams(world.now))
    assert [] == session.take_datagrams(world.now)
