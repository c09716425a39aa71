"""What an operator is told of a receiver that does not get on: since when, what, whom it holds."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent

from msgservice import Limits
from msgservice.administration import Place
from msgservice.core.frames import Transfer
from msgservice.message import Action
from msgservice.node.seldom import PERIOD
from msgservice.node.upkeep import REFUSED_FOR
from msgservice.receiver_options import ReceiverOptions
from tests.kit.nodes import NodeWorld, state_of

ALL = {"subjects": [">"]}


def lines(logged: list[LogEvent], words: str) -> list[str]:
    return [text for event in logged if words in (text := formatEvent(event))]


def test_a_receiver_is_shown_with_how_long_it_has_been_connected_or_away() -> None:
    world = NodeWorld()
    billing = world.peer("billing", receive=ALL)
    world.settle(5)
    state = state_of(world, "billing")
    assert (state.connected, round(state.since_s)) == (True, 5)
    billing.connection.abort()
    world.settle(70)
    state = state_of(world, "billing")
    assert (state.connected, round(state.since_s)) == (False, 70)


def test_the_oldest_message_that_waits_is_shown_with_how_long_it_has() -> None:
    world = NodeWorld()
    world.peer("billing", receive=ALL).connection.abort()
    shop = world.peer("shop")
    assert state_of(world, "billing").oldest_s is None
    shop.transfer(1, "orders.eu", [b"one"])
    world.settle(20)
    shop.transfer(2, "orders.us", [b"two"])
    world.settle(10)
    state = state_of(world, "billing")
    assert state.oldest is not None
    assert state.oldest.subject == "orders.eu"
    assert state.oldest.position == state.cursor + 1
    assert state.oldest_s == pytest.approx(30, abs=1)
    _, told = shop.request("$node.receivers.list", {})
    assert told["receivers"][0]["oldest"]["subject"] == "orders.eu"


def test_the_message_that_is_tried_again_is_named() -> None:
    world = NodeWorld(Limits(retry_delay_min=500.0, retry_delay_max=500.0))
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    shop.transfer(1, "a", [b"well"])
    shop.transfer(2, "b", [b"stuck"])
    world.settle()
    assert state_of(world, "billing").waits is None
    well, stuck = billing.take(Transfer)
    billing.ack(well)
    billing.nack(stuck.sequence, stuck.sequence, Action.RETRY, 0, "the bank is closed")
    world.settle()
    state = state_of(world, "billing")
    assert state.waits == Place(stuck.sequence, "b")
    assert state.last_error == "the bank is closed"


def test_18_a_receiver_that_holds_producers_up_is_shown_and_said_when_it_begins_and_ends(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld(Limits(backlog_bytes=50_000))
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    for number in range(1, 7):
        shop.transfer(number, "a", [bytes(10_000)])
        world.settle(0.3)
    assert state_of(world, "billing").refuses
    assert len(lines(logged, "messages for receiver billing are refused")) == 1
    assert lines(logged, "taken again") == []
    for transfer in billing.take(Transfer):
        billing.ack(transfer)
    world.settle(1)
    assert not state_of(world, "billing").refuses
    (line,) = lines(logged, "messages for receiver billing are taken again")
    assert "its limit is 50000" in line


def test_18_one_at_the_edge_of_its_limit_writes_few_lines_and_the_last_is_true(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld(Limits(backlog_bytes=15_000))
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    for number in range(1, 21, 2):
        shop.transfer(number, "a", [bytes(10_000)])
        shop.transfer(number + 1, "a", [bytes(10_000)])
        world.settle(0.3)
        if number < 19:
            for transfer in billing.take(Transfer):
                billing.ack(transfer)
            world.settle(0.3)
    assert len(lines(logged, "messages for receiver billing")) == 2
    world.settle(PERIOD + 1)
    said = lines(logged, "messages for receiver billing")
    assert len(said) == 3
    assert "are refused" in said[-1]
    assert state_of(world, "billing").refuses


def test_19_that_there_is_room_is_not_said_of_a_receiver_that_is_refused_still(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld(Limits(max_bytes=300_000, backlog_bytes=100_000, keep_seconds=0.0))
    world.peer("slow", receive={"subjects": ["slow"]})
    options = ReceiverOptions(backlog_bytes=10**6)
    Deferred.fromCoroutine(world.node.add_receiver("other", ["other"], options))
    world.settle()
    shop = world.peer("shop")
    for number, subject in enumerate(["slow"] * 10 + ["other"] * 18 + ["nobody"], 1):
        shop.transfer(number, subject, [bytes(10_400)])
        world.settle(0.3)
    shop.connection.abort()
    world.settle(2)
    assert lines(logged, "messages are refused, their senders keep them")
    Deferred.fromCoroutine(world.node.remove_receiver("other"))
    world.settle(REFUSED_FOR + 5)
    (line,) = lines(logged, "there is room")
    assert "but not those for 1 receiver(s)" in line
    assert lines(logged, "messages for receiver slow are taken again") == []
