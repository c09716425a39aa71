"""The packing of datagrams: what is owed leaves, whatever else turns out to be needless."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("ranges", [0, 1, 48, 49, 200])
def test_a_session_that_is_closed_tells_all_that_was_handled_and_then_the_end(ranges: int) -> None:
    world = World(1)
    a, b = world.host(1), world.host(2)
    b.delay_handling = 1000.0
    messages = 2 * ranges + 2
    for number in range(messages):
        a.send(b.address, b"%d" % number)
    world.run(1)
    session = b.endpoint.peers[a.address].session
    assert session is not None
    assert not a.settled
    for nonce in range(1, 2 * ranges, 2):
        b.endpoint.handle(session, nonce, nonce, 1)
    b.endpoint.close(a.address, world.now)
    ((_, datagrams),) = b.endpoint.take_datagrams(world.now)
    old = a.endpoint.peers[b.address].session
    for datagram in datagrams:
        assert a.endpoint.peers[b.address].session is old, "told before the last datagram"
        a.endpoint.receive_datagrams(datagram, 0, b.address, world.now)

    effects = a.endpoint.take_effects()
    assert [b"%d" % number for number in range(0, 2 * ranges, 2)] == effects.settled
    assert [("lost", old)] == effects.events
