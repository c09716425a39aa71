"""Dead letters are seen: in the node's log, in the list of receivers, and each by itself."""

from __future__ import annotations

from twisted.logger import LogEvent, LogLevel, formatEvent

from msgservice import Limits
from msgservice.core.frames import Transfer
from msgservice.message import Action
from msgservice.node.seldom import PERIOD
from tests.kit.nodes import NodeWorld, ScriptedPeer

ALL = {"subjects": [">"]}


def said(logged: list[LogEvent], words: str) -> list[str]:
    return [
        text
        for event in logged
        if event["log_level"] is LogLevel.warn and words in (text := formatEvent(event))
    ]


def rejects(world: NodeWorld, billing: ScriptedPeer, reason: str) -> None:
    for transfer in billing.take(Transfer):
        billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, 0, reason)
        world.settle()


def test_the_log_says_when_a_receiver_begins_to_get_dead_letters_and_then_counts(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld()
    billing, shop = world.peer("billing", receive=ALL), world.peer("shop")
    for number in range(1, 21):
        shop.transfer(number, "a", [b"x"])
        world.settle()
        rejects(world, billing, f"no customer {number}")
    (line,) = said(logged, "dead letter")
    assert "receiver billing has 1 new dead letter(s)" in line
    assert line.endswith("no customer 1")
    world.settle(PERIOD)
    _, line = said(logged, "dead letter")
    assert "receiver billing has 19 new dead letter(s)" in line
    assert line.endswith("no customer 20")


def test_a_message_that_its_receiver_died_of_is_in_the_log_with_its_reason(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld(Limits(max_attempts=3, retry_delay_min=0.1, retry_delay_max=0.1))
    shop = world.peer("shop")
    world.peer("billing", receive=ALL)
    shop.transfer(1, "a", [b"poison"])
    world.settle()
    for number in range(10):
        if said(logged, "dead letter"):
            break
        billing = world.peer("billing", incarnation=f"r{number}", receive=ALL)
        world.settle(1)
        billing.connection.abort()
        world.settle(1)
    (line,) = said(logged, "dead letter")
    assert "after 3 failed attempt(s): connection lost while it was handled" in line
