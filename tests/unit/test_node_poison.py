"""A message that its receiver's process dies of: how many connections until it is dead (51).

And what a receiver may have of its own for that, and what a handler sees of it.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from msgservice import Receiver, Retry
from msgservice.core.frames import Delivery, Transfer
from msgservice.limits import Limits
from msgservice.message import Action, Status, WireMessage, encode_messages
from tests.kit.nodes import NodeWorld, ScriptedPeer, state_of

RECEIVE = {"subjects": ["orders.>"]}
LANES = [f"orders.lane{n}" for n in range(9)]


class Dies(ScriptedPeer):
    """Handles a few in each turn, and its process dies of one: what it had besides is lost."""

    handled = 0

    def turn_ended(self, connection: Any) -> None:
        for transfer in self.take(Transfer):
            if b"poison" in bytes(transfer.messages):
                self.connection.abort()
                return
            self.handled += 1
            self.world.clock.callLater(0.05, self._answer, transfer)

    def _answer(self, transfer: Transfer) -> None:
        if self.lost_because is None:
            self.ack(transfer)


def lives(world: NodeWorld, shop: ScriptedPeer, sequence: int, window: int) -> tuple[int, int]:
    """Let process after process come and die; return how many, and what the others handled."""
    dead: list[object] = []
    handled = life = 0
    while not dead and life < 40:
        life += 1
        peer = world.peer(
            "billing",
            incarnation=f"r{life}",
            receive=RECEIVE,
            kind=Dies,
            window=(window, 1 << 24),
        )
        for _ in range(60):
            if peer.lost_because is not None or dead:
                break
            for lane in LANES:  # they never cease: flights are full
                for _ in range(3):
                    shop.transfer(sequence, lane, [b"fine"])
                    sequence += 1
            world.clock.advance(0.06)
            world.settle()
            dead += [one for one in shop.statuses() if one[1] == Status.DEAD]
        handled += peer.handled if isinstance(peer, Dies) else 0
    assert dead, f"{life} connections, and it still lives"
    return life, handled


@pytest.mark.parametrize("max_attempts", [10, 3])
def test_51_a_message_that_kills_is_dead_after_20_connections_and_nine_lanes_go_on(
    max_attempts: int,
) -> None:
    limits, window = Limits(retry_delay_max=2.0, replacements=1000), 64
    world = NodeWorld(limits)
    shop = world.peer("shop", status_from=1)
    said, _ = shop.request(
        "$node.receivers.add",
        {"name": "billing", "subjects": ["orders.>"], "max_attempts": max_attempts},
    )
    assert said
    sequence = 1
    for n in range(2 * window):
        if n == window // 2:
            shop.transfer(sequence, "orders.bad", [b"poison"])
            sequence += 1
        shop.transfer(sequence, LANES[n % 9], [b"fine"])
        sequence += 1
    world.settle(1)
    connections, handled = lives(world, shop, sequence, window)
    assert connections <= 6 + max_attempts
    assert handled > 2 * window


def test_51_by_default_it_is_dead_after_13_connections_of_the_largest_window() -> None:
    """And between its attempts all others go on."""
    limits = Limits(replacements=1000, heartbeat=3600.0)  # peers of a test say nothing unasked
    world = NodeWorld(limits)
    shop = world.peer("shop", status_from=1)
    added = {"name": "billing", "subjects": ["orders.>"]}
    assert shop.request("$node.receivers.add", added)[0]
    window, sequence = limits.window_messages, 1
    for n in range(2 * window // 1000):
        if n == window // 2000:
            shop.transfer(sequence, "orders.bad", [b"poison"])
            sequence += 1
        shop.transfer(sequence, LANES[n % 9], [b"fine"] * 1000)
        sequence += 1000
        world.settle()
    connections, handled, alone = 0, [], 0
    number = world.node.parts.directory.named("billing").number
    while not world.log.dead_count(number):
        connections += 1
        assert connections < 60, "it still lives"
        peer = world.peer(
            "billing",
            incarnation=f"r{connections}",
            receive=RECEIVE,
            kind=Dies,
            window=(window, limits.window_bytes),
        )
        assert isinstance(peer, Dies)
        turns = 0
        while peer.lost_because is None and not world.log.dead_count(number):
            turns += 1
            for lane in LANES:
                shop.transfer(sequence, lane, [b"fine"])
                sequence += 1
            world.clock.advance(0.06 if turns < 30 else 2.0)
            world.settle()
        backlog = world.node.parts.dispatch.outlets[number].backlog
        alone += backlog.limit.most == 1
        handled.append(peer.handled)
    quarters = window.bit_length() // 2
    assert (connections - alone, alone) <= (quarters, limits.max_losses + 1)
    assert connections <= quarters + limits.max_losses <= 13
    # Between its attempts all others go on: what was sent in each pause was handled in it.
    assert sum(handled) > 1000


def test_51_who_gets_one_message_at_a_time_is_probing() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    peer = world.peer("billing", receive=RECEIVE)
    assert "up" == state_of(world, "billing").health
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    peer.connection.abort()
    world.settle()
    assert "away" == state_of(world, "billing").health
    peer = world.peer("billing", incarnation="r2", receive=RECEIVE)
    assert "probing" == state_of(world, "billing").health
    for transfer in peer.take(Transfer):
        peer.ack(transfer)
    world.settle()
    shop.transfer(2, "orders.new", [b"two"])
    world.settle()
    assert "up" == state_of(world, "billing").health


@pytest.mark.usefixtures("operators_limits")
def test_51_attempts_and_delays_are_of_the_receiver_that_has_its_own() -> None:
    world = NodeWorld(Limits(retry_delay_min=1.0, retry_delay_max=4.0, max_attempts=20))
    shop = world.peer("shop", status_from=1)
    for name, own in (("billing", {"max_attempts": 2, "retry_delay_min": 3}), ("audit", {})):
        assert shop.request("$node.receivers.add", {"name": name, "subjects": ["orders.>"], **own})[
            0
        ]
    peers = [world.peer(name, receive=RECEIVE) for name in ("billing", "audit")]
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    for peer in peers:
        (transfer,) = peer.take(Transfer)
        peer.nack(transfer.sequence, transfer.sequence, int(Action.RETRY), 0, "no")
    world.settle(2.0)
    billing, audit = peers
    assert [] == billing.take(Transfer)
    (transfer,) = audit.take(Transfer)
    audit.nack(transfer.sequence, transfer.sequence, int(Action.RETRY), 0, "no")
    world.settle(2.0)
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, int(Action.RETRY), 0, "no")
    world.settle(0.1)
    assert [(1, 1)] == shop.statuses().get(("billing", Status.DEAD))
    # Changed at run time, it holds at once: the third attempt of the other is its last.
    assert shop.request("$node.receivers.change", {"name": "audit", "max_attempts": 3})[0]
    world.settle(4.0)
    (transfer,) = audit.take(Transfer)
    audit.nack(transfer.sequence, transfer.sequence, int(Action.RETRY), 0, "no")
    world.settle(0.1)
    assert ("audit", Status.DEAD) in shop.statuses()
    said, error = shop.request("$node.receivers.change", {"name": "audit", "retry_delay_min": 5})
    assert not said, error
    assert "retry_delay" in str(error)


def test_51_a_handler_sees_how_many_attempts_have_failed_and_when_it_was_stored() -> None:
    world = NodeWorld(Limits(retry_delay_min=1.0, retry_delay_max=1.0))
    got: list[Any] = []

    def handler(message: Any) -> None:
        got.append(message)
        if message.body == b"bad" and message.attempts < 2:
            raise Retry

    receiver = Receiver(world.clock, name="billing", handler=handler)
    world.node.attach(receiver, subjects=["orders.>"])
    world.settle(1)
    stored = world.clock.seconds()
    world.peer("shop").transfer(1, "orders.new", [b"fine", b"bad", b"last"])
    for _ in range(20):
        world.settle(0.5)
    told = [(message.body, message.attempts) for message in got]
    assert [(b"fine", 0), (b"bad", 0), (b"bad", 1), (b"bad", 2), (b"last", 0)] == told
    for message in got:
        assert message.stored_at is not None
        assert abs(message.stored_at - stored) < 0.5


def test_51_only_who_names_the_feature_is_told_of_attempts() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    old = world.peer("billing", receive=RECEIVE)
    new = world.peer("audit", receive=RECEIVE, features=["facts"])
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    assert [Transfer] == [type(frame) for frame in old.frames if isinstance(frame, Transfer)]
    (frame,) = [frame for frame in new.frames if isinstance(frame, Transfer)]
    assert isinstance(frame, Delivery)
    assert 0 == frame.attempts
    assert frame.stored_at > 0


def test_51_a_node_takes_no_message_with_what_nodes_tell() -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    messages = msgspec.Raw(encode_messages([WireMessage(b"one")]))
    shop.connection.send(Delivery(1, "orders.new", messages, stored_at=5))
    world.settle()
    assert shop.lost_because is not None
