"""Who comes to a node, goes, and is turned away stands in its log, however often: few lines."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, formatEvent

from msgservice.core.frames import BYE_SETTLED, Ack
from msgservice.identity.users import User
from msgservice.limits import Limits
from msgservice.node.gate import LISTENER
from msgservice.node.seldom import PERIOD, THINGS_MAX
from tests.kit.channels import Recorder, connect_locally
from tests.kit.nodes import NodeWorld
from tests.kit.passes import HERE, users_of

ALL = {"subjects": [">"]}


def lines(logged: list[LogEvent], words: str) -> list[tuple[LogLevel, str]]:
    found = [(event["log_level"], formatEvent(event)) for event in logged]
    return [(level, text) for level, text in found if words in text]


def test_a_sender_and_a_receiver_that_come_and_go_are_said(logged: list[LogEvent]) -> None:
    world = NodeWorld()
    shop, billing = world.peer("shop"), world.peer("billing", receive=ALL)
    assert lines(logged, "has come") == [
        (LogLevel.info, "sender shop has come, from this process (shop)"),
        (LogLevel.info, "receiver billing has come, from this process (billing)"),
    ]
    shop.connection.bye(BYE_SETTLED)
    billing.connection.abort()
    world.settle(1)
    assert lines(logged, "has gone") == [
        (LogLevel.info, "sender shop at this process (shop) has gone: goodbye"),
        (
            LogLevel.info,
            "receiver billing at this process (billing) has gone: aborted by the other side",
        ),
    ]


@pytest.mark.parametrize("change", ["pause", "remove"])
def test_what_the_node_ends_itself_is_said_with_its_reason(
    change: str, logged: list[LogEvent]
) -> None:
    world = NodeWorld()
    world.peer("billing", receive=ALL)
    node = world.node
    asked = (
        node.pause_receiver("billing", True)
        if change == "pause"
        else node.remove_receiver("billing")
    )
    Deferred.fromCoroutine(asked)
    world.settle(1)
    ((_, line),) = lines(logged, "billing at this process (billing) has gone")
    assert line.endswith(f": {change}d")


def test_who_is_not_let_in_is_said_with_name_and_reason(logged: list[LogEvent]) -> None:
    world = NodeWorld()
    world.peer("billing", receive={"order": "odd"})
    ((level, line),) = lines(logged, "was not let in")
    assert level is LogLevel.warn
    assert "'billing' from this process (billing) was not let in: " in line
    assert "odd" in line


def test_who_says_what_may_not_be_said_is_warned_of_once_and_by_name(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld()
    shop = world.peer("shop")
    shop.connection.send(Ack([(1, 1)]))
    world.settle(1)
    (line,) = [text for level, text in lines(logged, "sender shop") if level is LogLevel.warn]
    assert "sender shop at this process (shop) has gone: " in line


def test_who_says_no_hello_is_said_by_its_address(logged: list[LogEvent]) -> None:
    world = NodeWorld()
    for number in range(5):
        far = world.node.parts.connections.make_user()
        near = Recorder()
        connect_locally(near, far, clock=world.clock, limits=world.limits, name=f"door-{number}")
        world.settle()
        assert near.channel is not None
        near.channel.abort()
        world.settle()
    ((level, line),) = lines(logged, "said who they are")
    assert level is LogLevel.info
    assert line.startswith("1 connection(s) ended before they said who they are, the last from")
    world.settle(PERIOD)
    assert lines(logged, "4 connection(s) ended before")


@pytest.mark.parametrize("name", ["flood", "flood-{}"])
def test_a_flood_of_connections_writes_few_lines(name: str, logged: list[LogEvent]) -> None:
    world = NodeWorld(Limits(incarnations=10))
    for number in range(300):
        world.peer(name.format(number)).connection.abort()
        world.peer(name.format(number), receive={"order": "odd"})
    node_logs = [event for event in logged if "visits" in event.get("log_namespace", "")]
    assert len(node_logs) <= THINGS_MAX
    if name == "flood":
        assert len(node_logs) == 3
        world.settle(PERIOD)
        ((_, came),) = lines(logged, "has come 2")
        assert came == "sender flood has come 299 times, the last from this process (flood)"
        assert lines(logged, "was not let in 299 times")
    else:
        world.settle(PERIOD)
        assert lines(logged, "more such lines were left out")


def test_who_is_nobody_keeps_no_line_about_users_out_of_the_log(logged: list[LogEvent]) -> None:
    world = NodeWorld()
    world.node.reload_users(users_of(User(name="shop")))
    for number in range(2 * THINGS_MAX):
        world.peer(f"made-up-{number}", door=LISTENER, shown=HERE)
    shop = world.node.client("shop", principal="shop")
    world.settle()
    assert lines(logged, "sender shop has come, from this process")
    shop.close()
    world.settle()
    assert lines(logged, "sender shop at this process (shop) has gone")


def test_a_node_that_stops_does_not_say_that_everybody_goes(logged: list[LogEvent]) -> None:
    world = NodeWorld()
    for number in range(20):
        world.peer(f"shop-{number}")
    world.node.stopService()
    world.settle(world.limits.stop_timeout + 1)
    assert lines(logged, "has gone") == []
    assert not world.node.parts.connections._visits._here
