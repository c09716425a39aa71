"""What counts as a message's attempt at a node: its receiver's answers, and lost connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from msgservice.core.frames import (
    BYE_PAUSED,
    BYE_REPLACED,
    VERSION,
    Ack,
    Hello,
    HelloOptions,
    Nack,
    ReceiveOptions,
    Transfer,
)
from msgservice.interfaces import ITransport
from msgservice.limits import Limits
from msgservice.message import Status
from msgservice.node.outlet import Outlet
from msgservice.records import Resume
from msgservice.transport.local import local_connector
from tests.kit.nodes import NodeWorld, ScriptedPeer, state_of

ORDERS = {"subjects": ["orders.>"]}


class Probed:
    """A node whose receiver has lost its connection with one message in flight.

    What it is given next is alone, so that one more loss is the message's attempt.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.world = NodeWorld(limits or Limits(retry_delay_max=1.0))
        self.shop = self.world.peer("shop", status_from=1)
        self.receiver = self.world.peer("billing", receive=ORDERS)
        self.shop.transfer(1, "orders.new", [b"one"])
        self.world.settle()
        self.receiver.connection.abort()
        self.world.settle()
        assert self.outlet.backlog.limit.most == 1
        self.receiver = self.come("r1")

    @property
    def outlet(self) -> Outlet:
        (outlet,) = self.world.node.parts.dispatch
        return outlet

    def come(self, incarnation: str, **receive: Any) -> ScriptedPeer:
        peer = self.world.peer("billing", incarnation=incarnation, receive=ORDERS | receive)
        assert peer.bodies() == [b"one"]
        return peer

    def attempts(self) -> int:
        said, answer = self.shop.request("$node.status", {"id": self.identity()})
        assert said, answer
        attempts: int = answer["receivers"]["billing"]["attempts"]
        return attempts

    def identity(self) -> str:
        (outlet,) = self.world.node.parts.dispatch
        return f"log:{outlet.backlog.cursor + 1}"


def _pause(probed: Probed) -> None:
    assert probed.shop.request("$node.receivers.pause", {"name": "billing"})[0]
    assert probed.receiver.bye is not None
    assert probed.receiver.bye[0] == BYE_PAUSED


def _the_same_process_dials_again(probed: Probed) -> None:
    old, probed.receiver = probed.receiver, probed.come("r1")
    assert old.bye is not None
    assert old.bye[0] == BYE_REPLACED


def _another_takes_its_place_after_a_goodbye(probed: Probed) -> None:
    probed.receiver.connection.bye()
    probed.world.settle()
    probed.receiver = probed.come("r2")


def _a_newcomer_wants_another_order(probed: Probed) -> None:
    probed.receiver = probed.come("r2", order="none")


def _the_order_is_changed(probed: Probed) -> None:
    asked = {"name": "billing", "order": "none"}
    assert probed.shop.request("$node.receivers.change", asked)[0]
    assert probed.receiver.bye is not None


def _it_says_goodbye_and_goes(probed: Probed) -> None:
    probed.receiver.connection.bye()
    probed.world.settle()
    probed.receiver.connection.abort()


def _the_node_stops(probed: Probed) -> None:
    world = probed.world
    world.node.stopService()
    world.settle(2 * world.limits.stop_timeout + 2)
    world.start()
    probed.shop = world.peer("shop", status_from=1)


ON_PURPOSE: list[Callable[[Probed], None]] = [
    _pause,
    _the_same_process_dials_again,
    _another_takes_its_place_after_a_goodbye,
    _a_newcomer_wants_another_order,
    _the_order_is_changed,
    _it_says_goodbye_and_goes,
    _the_node_stops,
]


@pytest.mark.parametrize("ends", ON_PURPOSE, ids=[one.__name__[1:] for one in ON_PURPOSE])
def test_14_a_connection_that_ends_on_purpose_is_nobodys_attempt(
    ends: Callable[[Probed], None],
) -> None:
    probed = Probed()
    ends(probed)
    probed.world.settle()
    assert probed.attempts() == 0


@pytest.mark.parametrize("ends", [_pause, _the_order_is_changed, _it_says_goodbye_and_goes])
def test_14_a_connection_that_ends_on_purpose_does_not_make_flights_smaller(
    ends: Callable[[Any], None],
) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    flown: Any = type("Flown", (), {"world": world, "shop": shop})()
    flown.receiver = world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"%d" % n for n in range(8)])
    world.settle()
    ends(flown)
    world.settle()
    shop.request("$node.receivers.resume", {"name": "billing"})
    again = world.peer("billing", receive=ORDERS)
    assert len(again.bodies()) == 8


def test_14_a_connection_that_is_lost_is_an_attempt_of_what_was_alone() -> None:
    probed = Probed()
    probed.receiver.connection.abort()
    probed.world.settle()
    assert probed.attempts() == 1


class Victim(ScriptedPeer):
    """Acknowledges what it is given, up to the message that it dies of."""

    died = False

    def turn_ended(self, connection: Any) -> None:
        for transfer in self.take(Transfer):
            self.died = self.died or b"poison" in bytes(transfer.messages)
            if not self.died:
                self.ack(transfer)


@pytest.mark.parametrize("other_lanes", [0, 3])
def test_14_a_message_that_processes_die_of_unseen_is_found(other_lanes: int) -> None:
    """Where no close travels, all that shows is that another process comes in its place."""
    limits = Limits(max_attempts=3, retry_delay_max=0.1, retry_delay_min=0.1, replacements=100)
    world = NodeWorld(limits)
    shop = world.peer("shop", status_from=1)
    world.peer("billing", incarnation="r0", receive=ORDERS)
    shop.transfer(1, "orders.new", [b"poison"])
    for n in range(other_lanes):
        shop.transfer(2 + n, f"orders.{n}", [b"fine"])
    world.settle()
    for life in range(1, 12):
        world.peer("billing", incarnation=f"r{life}", receive=ORDERS, kind=Victim)
        world.settle(0.5)
    told = shop.statuses()
    assert told.pop(("billing", Status.DEAD)) == [(1, 1)]
    assert sum(last - first + 1 for ranges in told.values() for first, last in ranges) == (
        other_lanes
    )


@implementer(ITransport)
class Here:
    """Dials a receiver that is a `ScriptedPeer` of the test's."""

    schemes = ("here",)

    def __init__(self, world: NodeWorld, kind: type[ScriptedPeer] = ScriptedPeer) -> None:
        self.world = world
        self.kind = kind
        self.peers: list[ScriptedPeer] = []

    def connector(self, reactor: Any, address: str, make_user: Any, limits: Limits) -> Any:
        return local_connector(
            make_user, self._make_far, lambda: succeed(None), reactor, limits, address
        )

    def _make_far(self) -> Any:
        options = HelloOptions(receive=ReceiveOptions(subjects=["orders.>"]))
        peer = self.kind(self.world, Hello(VERSION, "billing", "r1", options), Resume())
        self.peers.append(peer)
        return peer.connection

    def listen(self, reactor: Any, address: str, make_user: Any, limits: Limits) -> Any:
        raise NotImplementedError


def _another_address(world: NodeWorld) -> None:
    receivers = world.node.parts.receivers
    changed = receivers.change("billing", address="here:b")
    Deferred.fromCoroutine(changed)


def _no_longer(world: NodeWorld) -> None:
    world.node.stopService()
    world.settle(2 * world.limits.stop_timeout + 2)


@pytest.mark.parametrize("ends", [_another_address, _no_longer])
def test_14_a_receiver_that_is_dialled_no_more_is_nobodys_attempt(
    ends: Callable[[NodeWorld], None],
) -> None:
    world = NodeWorld(Limits(stop_timeout=1.0))
    here = Here(world)
    world.node.transports.register(here)
    shop = world.peer("shop")
    assert shop.request(
        "$node.receivers.add", {"name": "billing", "subjects": ["orders.>"], "address": "here:a"}
    )[0]
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    here.peers[-1].connection.abort()
    world.settle(2 * world.limits.link_delay_min)
    (outlet,) = world.node.parts.dispatch
    assert outlet.backlog.limit.most == 1
    assert here.peers[-1].bodies() == [b"one"]
    ends(world)
    world.settle()
    assert here.peers[-1 if ends is _no_longer else -2].lost_because is not None
    assert [] == [run.attempts for run in outlet.backlog._open if run.attempts]


def test_14_a_dialled_receiver_that_goes_by_itself_is_an_attempt() -> None:
    world = NodeWorld(Limits(retry_delay_max=1.0))
    here = Here(world)
    world.node.transports.register(here)
    shop = world.peer("shop")
    asked = {"name": "billing", "subjects": ["orders.>"], "address": "here:a"}
    assert shop.request("$node.receivers.add", asked)[0]
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    for _ in range(2):
        here.peers[-1].connection.abort()
        world.settle(2 * world.limits.link_delay_min)
    (outlet,) = world.node.parts.dispatch
    assert [1] == [run.attempts for run in outlet.backlog._open]


@pytest.mark.parametrize("is_dialled", [False, True])
def test_a_receiver_that_is_paused_says_why_also_when_its_connection_has_ended(
    is_dialled: bool,
) -> None:
    world = NodeWorld(Limits(stop_timeout=1.0))
    here = Here(world)
    world.node.transports.register(here)
    shop = world.peer("shop")
    if is_dialled:
        asked = {"name": "billing", "subjects": ["orders.>"], "address": "here:a"}
        assert shop.request("$node.receivers.add", asked)[0]
        receiver = here.peers[-1]
    else:
        receiver = world.peer("billing", receive=ORDERS)
    world.settle()
    receivers = world.node.parts.receivers
    Deferred.fromCoroutine(receivers.pause("billing", True, "paused: too many dead letters"))
    world.settle(2 * world.limits.stop_timeout + 2)
    assert receiver.lost_because is not None
    assert "paused: too many dead letters" == state_of(world, "billing").last_error


def test_14_attempts_of_a_run_outlive_a_restart_where_its_first_part_was_acknowledged() -> None:
    """Above the cursor, where what is acknowledged has a row of its own: an older one is open."""
    world = NodeWorld(Limits(retry_delay_max=1.0))
    shop, receiver = world.peer("shop"), world.peer("billing", receive=ORDERS)
    shop.transfer(1, "orders.older", [b"older"])
    shop.transfer(2, "orders.new", [b"2", b"3", b"4", b"5"])
    world.settle()
    _, run = receiver.take(Transfer)
    first, last = run.sequence, run.sequence + 3
    for _ in range(2):
        receiver.connection.send(Nack(first, last, 1, 0, "not now"))
        world.settle(3)
    receiver.connection.send(Ack([(first, first + 1)]))
    world.settle()
    receiver.connection.send(Ack([(first + 2, first + 2)]))
    world.settle()
    found: list[Any] = []
    world.log.find(f"log:{last}").addCallback(found.append)
    world.settle()
    assert [state[:2] for state in found[0].states.values()] == [(Status.QUEUED, 2)]
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.start()
    (outlet,) = world.node.parts.dispatch
    receiver = world.peer("billing", receive=ORDERS)
    world.settle(3)
    assert sorted(receiver.bodies()) == [b"5", b"older"]
    assert outlet.backlog._open.by_first[last].attempts == 2
