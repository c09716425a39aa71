"""Receivers of the configuration against what the log already knows (SEMANTICS 27)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.limits import WINDOW_BYTES_MAX, WINDOW_MESSAGES_MAX, Limits
from msgservice.log.memory import MemoryLog
from msgservice.node.node import Node
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import ReceiverRow
from tests.kit.nodes import NodeWorld


def restart(world: NodeWorld, *rows: ReceiverRow) -> None:
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    world.node = Node(
        world.clock,
        world.log,
        limits=world.limits,
        receivers=rows,
        rng=lambda: 1.0,
        failed=world.failures.append,
    )
    world.node.startService()
    world.settle()
    assert [] == world.failures


def row(**fields: object) -> ReceiverRow:
    made = ReceiverRow(number=0, name="billing", patterns=("orders.>",))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_what_the_file_says_is_made_and_then_kept() -> None:
    world = NodeWorld()
    restart(world, row())
    number = world.node.parts.directory.named("billing").number
    restart(world, row(patterns=("orders.new",)))
    found = world.node.parts.directory.named("billing")
    assert (number, ("orders.new",), True) == (found.number, found.patterns, found.configured)


def test_an_address_that_the_file_no_longer_has_is_not_dialled() -> None:
    world = NodeWorld()
    restart(world, row(address="unix:/nowhere/at/all", options=ReceiverOptions(paused=True)))
    restart(world, row())
    assert world.node.parts.directory.named("billing").address is None
    assert {} == world.node.parts.connections.links


def test_a_receiver_that_the_file_no_longer_has_stays_and_may_change_itself() -> None:
    world = NodeWorld()
    restart(world, row())
    restart(world)
    assert world.peer("billing", receive={"subjects": ["other.>"]}).lost_because is None
    assert ("other.>",) == world.node.parts.directory.named("billing").patterns


def test_paused_at_run_time_stays_paused() -> None:
    world = NodeWorld()
    restart(world, row())
    shop = world.peer("shop")
    assert shop.request("$node.receivers.pause", {"name": "billing"})[0]
    restart(world, row())
    assert world.node.parts.directory.named("billing").options.paused


def test_a_window_beyond_its_bound_is_refused_by_the_node_too() -> None:
    world = NodeWorld()
    for options in (
        ReceiverOptions(window_messages=WINDOW_MESSAGES_MAX + 1),
        ReceiverOptions(window_bytes=WINDOW_BYTES_MAX + 1),
        ReceiverOptions(window_messages=0),
    ):
        told: list[object] = []
        adding = world.node.add_receiver("billing", ["orders.>"], options)
        Deferred.fromCoroutine(adding).addBoth(told.append)
        (refused,) = told
        assert isinstance(refused, Failure)
        assert isinstance(refused.value, ValueError)
        assert " must be from 1 to" in str(refused.value)
    assert world.node.parts.directory.get("billing") is None


INCOMPLETE = ["tcp:localhost", "tcp:localhost:port", "udp:127.0.0.1", "unix:", "carrier-pigeon:1"]


@pytest.mark.parametrize("address", INCOMPLETE)
def test_an_address_that_cannot_be_dialled_is_refused_before_it_is_stored(address: str) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    asked = {"name": "billing", "subjects": ["orders.>"], "address": address}
    done, reason = shop.request("$node.receivers.add", asked)
    assert not done
    assert address in str(reason)
    assert shop.request("$node.receivers.add", asked | {"address": None})[0]
    assert not shop.request("$node.receivers.change", {"name": "billing", "address": address})[0]
    restart(world)
    assert world.node.parts.directory.named("billing").address is None


def test_an_address_in_the_log_that_cannot_be_dialled_stops_nobody_else() -> None:
    world = NodeWorld()
    restart(world, row(options=ReceiverOptions(paused=True)), row(name="other"))
    stored = world.node.parts.directory.named("billing")
    stored.address, stored.options = "tcp:localhost", ReceiverOptions()
    world.node.parts.receivers._store(stored)
    world.settle()
    restart(world)
    assert world.node.is_running
    outlet = world.node.parts.dispatch.outlets[world.node.parts.directory.named("billing").number]
    assert "tcp:localhost" in outlet.last_error
    assert world.peer("other", receive={"subjects": ["orders.>"]}).lost_because is None


def test_the_connections_of_a_node_draw_from_its_own_randomness() -> None:
    drawn: list[str] = []

    def rng() -> float:
        drawn.append("once")
        return 1.0

    clock = Clock()
    log = MemoryLog(reactor=clock, limits=Limits())
    node = Node(clock, log, rng=rng, failed=lambda error: None)
    for address in ("tcp:127.0.0.1:1", "udp:127.0.0.1:1"):
        before = len(drawn)
        transport: Any = node.transports.find(address)
        transport.connector(clock, address, None, node.limits)._backoff.failed(0.0)
        assert len(drawn) > before, address
