"""The sampler of a node, and the troubles that it tells of."""

from __future__ import annotations

import shlex
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.administration import Observed, ObservedNode, ReceiverState, Trouble
from msgservice.cli.main import COMMANDS
from msgservice.core.frames import Transfer
from msgservice.limits import Limits
from msgservice.message import Action
from msgservice.node import observe
from msgservice.node.observe import EVERY, FRESH, KEEP, PAGE, Seen
from msgservice.node.troubles import HEALTHS, troubles_of
from tests.kit.nodes import NodeWorld

ORDERS = {"subjects": ["orders.>"]}


class Watching:
    def __init__(self) -> None:
        self.nodes: list[ObservedNode] = []
        self.changed: list[Observed] = []
        self.gone: list[str] = []

    def observed(self, node: ObservedNode, changed: list[Observed], gone: list[str]) -> None:
        self.nodes.append(node)
        self.changed += changed
        self.gone += gone

    def take(self) -> list[str]:
        names = [one.name for one in self.changed]
        self.changed = []
        return names


class World(NodeWorld):
    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.shop = self.peer("shop")
        self._sequence = 0

    @property
    def observer(self) -> observe.Observer:
        return self.node.parts.observer

    def send(self, count: int = 1, subject: str = "orders.new") -> None:
        self.shop.transfer(self._sequence + 1, subject, [b"x" * 10] * count)
        self._sequence += count
        self.settle()

    def look(self) -> Seen:
        told: list[Seen] = []
        self.observer.look().addCallback(told.append)
        self.settle()
        (seen,) = told
        return seen

    def one(self, name: str = "billing") -> Observed:
        self.clock.advance(FRESH + 0.1)
        self.settle()
        return self.look().receivers[name]

    def trouble(self, name: str = "billing") -> Trouble:
        (trouble,) = self.one(name).troubles
        return trouble


def test_nothing_is_looked_at_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    operations, rounds = world.node.parts.operations, [0]
    real = operations.receivers

    def counted(*arguments: Any, **more: Any) -> Any:
        rounds[0] += 1
        return real(*arguments, **more)

    monkeypatch.setattr(operations, "receivers", counted)
    world.settle(seconds=3 * KEEP)
    assert [0] == rounds
    world.look()
    world.settle(seconds=KEEP + EVERY)
    assert KEEP / 2 < rounds[0] < KEEP + 3
    before = rounds[0]
    world.settle(seconds=KEEP)
    assert [before] == rounds


def test_who_asks_gets_all_receivers_as_they_are() -> None:
    world = World()
    names = [f"billing-{number:03}" for number in range(2 * PAGE + 1)]
    for name in names:
        world.peer(name, receive=ORDERS)
    world.send(3)
    seen = world.look()
    assert names == sorted(seen.receivers)
    assert {3} == {one.queued for one in seen.receivers.values()}
    assert {"up"} == {one.health for one in seen.receivers.values()}
    assert {()} == {tuple(one.troubles) for one in seen.receivers.values()}
    assert (3, len(names)) == (seen.node.stored, seen.node.receivers)
    assert seen.node.stored_bytes > 30


def test_what_is_fresh_is_not_looked_at_again() -> None:
    world = World()
    world.peer("billing", receive=ORDERS)
    first = world.look()
    world.send()
    assert world.look().receivers["billing"] == first.receivers["billing"]
    assert world.one().queued == 1


def test_pages_of_the_operation_leave_nothing_out_and_repeat_nothing() -> None:
    world = World()
    names = [f"billing-{number}" for number in range(7)]
    for name in names:
        world.peer(name, receive=ORDERS)
    operator = world.peer("operator")
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        ok, page = operator.request("$node.observe", {"after": after, "limit": 3})
        assert ok, page
        assert page["node"]["receivers"] == len(names)
        found += [row["name"] for row in page["receivers"]]
        after = page["next"]
    assert names == found


def test_a_watcher_is_told_of_what_changes_and_of_nothing_else() -> None:
    world, watching = World(), Watching()
    billing = world.peer("billing", receive=ORDERS, answering=True)
    world.peer("audit", receive={"subjects": ["other"]})
    world.observer.watch(watching)
    world.settle()
    assert ["audit", "billing"] == sorted(watching.take())
    world.settle(seconds=3 * EVERY)
    assert [] == watching.take()
    world.send(5)
    world.settle(seconds=EVERY + 0.1)
    (told,) = watching.changed
    assert ("billing", 5, {"acknowledged": 5}) == (
        told.name,
        told.settled["acknowledged"],
        told.settled,
    )
    assert told.rate > 0
    watching.take()
    world.settle(seconds=EVERY + 0.1)
    (calm,) = watching.changed  # the rate is what has changed
    assert (0.0, "up") == (calm.rate, calm.health)
    watching.take()
    billing.connection.abort()
    world.settle(seconds=EVERY + 0.1)
    (left,) = watching.changed
    assert (False, "away") == (left.connected, left.health)


def test_a_receiver_that_is_removed_is_gone() -> None:
    world, watching = World(), Watching()
    world.peer("billing", receive=ORDERS)
    world.observer.watch(watching)
    world.settle()
    operator = world.peer("operator")
    ok, _ = operator.request("$node.receivers.remove", {"name": "billing", "confirm": 0})
    assert ok
    world.settle(seconds=2 * EVERY)
    assert ["billing"] == watching.gone
    assert {} == world.look().receivers


def test_a_watcher_that_raises_ends_alone(logged_failures: list[LogEvent]) -> None:
    class Broken(Watching):
        def observed(self, node: Any, changed: Any, gone: Any) -> None:
            raise ValueError("broken")

    world, watching = World(), Watching()
    world.peer("billing", receive=ORDERS)
    world.observer.watch(Broken())
    world.observer.watch(watching)
    world.settle(seconds=2 * EVERY)
    assert ["billing"] == watching.take()
    assert ["broken"] == [event["log_failure"].getErrorMessage() for event in logged_failures]
    logged_failures.clear()


def test_rounds_have_so_many_receivers_a_second_at_most() -> None:
    world = World(limits=Limits(observed_a_second=PAGE))
    for number in range(3 * PAGE):
        world.peer(f"billing-{number:03}", receive=ORDERS)
    watching = Watching()
    world.observer.watch(watching)
    world.settle()
    assert PAGE == len(watching.take())
    world.settle(seconds=1.1)
    assert PAGE == len(watching.take())
    world.look()  # somebody waits: the rest follows at once
    world.settle(seconds=1.1)
    assert PAGE == len(watching.take())


def test_a_stopped_node_leaves_no_timer_and_lets_nobody_wait() -> None:
    world = World(limits=Limits(observed_a_second=PAGE))
    for number in range(3 * PAGE):
        world.peer(f"billing-{number:03}", receive=ORDERS)
    world.observer.watch(Watching())
    world.settle()
    told: list[Seen] = []
    world.observer.look().addCallback(told.append)
    world.observer.stop()
    world.settle()
    assert PAGE == len(told[0].receivers)
    world.observer.look().addCallback(told.append)
    assert told[0] == told[1]
    assert not [call for call in world.clock.getDelayedCalls() if "Observer" in str(call)]


def test_a_round_that_fails_is_logged_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, logged_failures: list[LogEvent]
) -> None:
    world, watching = World(), Watching()
    world.peer("billing", receive=ORDERS)
    operations = world.node.parts.operations
    real = operations.receivers

    def broken(*_: Any, **__: Any) -> Deferred[Any]:
        raise ValueError("the log says no")

    monkeypatch.setattr(operations, "receivers", broken)
    world.observer.watch(watching)
    world.settle(seconds=EVERY)
    assert {"the log says no"} == {e["log_failure"].getErrorMessage() for e in logged_failures}
    logged_failures.clear()
    monkeypatch.setattr(operations, "receivers", real)
    world.settle(seconds=2 * EVERY)
    assert ["billing"] == watching.take()


# --- troubles


def test_the_trouble_of_one_that_is_away_says_since_when_and_what_waits() -> None:
    world = World()
    billing = world.peer("billing", receive=ORDERS)
    world.settle(seconds=5.0)
    billing.connection.abort()
    world.settle()
    left = world.clock.seconds()
    assert () == tuple(world.one().troubles)  # nothing waits for it
    world.send(2)
    trouble = world.trouble()
    assert trouble.kind == "away"
    assert trouble.since is not None
    assert abs(trouble.since - left * 1000) < 100
    assert "2 messages wait" in trouble.sentence
    assert trouble.is_severe


def test_the_trouble_of_one_that_was_paused_is_resumed_by_its_command() -> None:
    world = World()
    world.peer("billing", receive=ORDERS)
    operator = world.peer("operator")
    assert operator.request("$node.receivers.pause", {"name": "billing"})[0]
    trouble = world.trouble()
    assert ("paused", False) == (trouble.kind, trouble.is_severe)
    assert ["msgservice", "receivers", "resume", "billing"] == shlex.split(trouble.command)
    world.send()
    assert world.trouble().is_severe


def test_the_trouble_of_a_handler_that_fails_names_the_message_and_why() -> None:
    world = World()
    billing = world.peer("billing", receive=ORDERS)
    world.send()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, Action.RETRY, delay=60_000, reason="no bank")
    world.settle()
    one = world.one()
    (trouble,) = one.troubles
    assert ("failing", "failing") == (one.health, trouble.kind)
    assert "no bank" in trouble.sentence
    assert "orders.new" in trouble.sentence
    assert one.next_try_at is not None


def test_troubles_say_since_when_they_are() -> None:
    world = World(limits=Limits(backlog_bytes=10_000))
    billing = world.peer("billing", receive=ORDERS)
    world.send()
    (transfer,) = billing.take(Transfer)
    world.settle(20.0)
    began = wall_of(world)
    for _ in range(3):  # since the first time that it failed, not the last
        billing.nack(transfer.sequence, transfer.sequence, Action.RETRY, 10_000, reason="no bank")
        world.settle(1.0)
        assert ("failing", True) == since_of(world, began)
        world.settle(10.0)
        (transfer,) = billing.take(Transfer)
    billing.ack(transfer)
    world.settle(1.0)
    assert "up" == world.one().health
    world.shop.request("$node.receivers.pause", {"name": "billing"})
    world.settle()
    began = wall_of(world)
    world.send()
    world.settle(30.0)
    assert ("paused", True) == since_of(world, began)
    world.shop.request("$node.receivers.resume", {"name": "billing"})
    world.settle(10.0)
    began = wall_of(world)
    world.send(1_000)
    world.settle(1.0)
    assert ("full", True) == since_of(world, began)


def wall_of(world: World) -> int:
    return world.node.parts.observer._time.wall()


def since_of(world: World, began: int) -> tuple[str, bool]:
    """The health of the receiver, and whether it and its trouble are since `began`."""
    one = world.one()
    trouble = one.troubles[0]
    assert (one.health, one.health_since) == (trouble.kind, trouble.since)
    assert one.health_since is not None
    return one.health, abs(one.health_since - began) <= 1_100


def test_a_webhook_that_is_unwell_has_no_trouble_with_a_message() -> None:
    world = World()
    address = "https://shop.example/hook"
    (row,) = listed(world)
    unwell = msgspec.structs.replace(
        row, address=address, connected=True, last_error="the endpoint says 503", queued=3
    )
    (trouble,) = troubles_of(unwell, 0)
    assert "hook takes nothing: the endpoint says 503. 3 messages wait for it." == trouble.sentence
    assert address in trouble.help
    (trouble,) = troubles_of(msgspec.structs.replace(unwell, attempts=2), 0)
    assert "does not get on with a message, 2 attempts so far" in trouble.sentence


def listed(world: World) -> list[ReceiverState]:
    world.peer("hook", receive=ORDERS)
    ok, told = world.peer("asker").request("$node.receivers.list", {})
    assert ok
    return msgspec.convert(told["receivers"], list[ReceiverState])


def test_the_trouble_of_dead_letters_says_how_many() -> None:
    world = World()
    billing = world.peer("billing", receive=ORDERS)
    world.send()
    (transfer,) = billing.take(Transfer)
    world.settle(20.0)
    began = wall_of(world)
    billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, reason="no such bank")
    world.settle()
    one = world.one()
    (trouble,) = one.troubles
    assert ("up", "dead_letters", False) == (one.health, trouble.kind, trouble.is_severe)
    assert one.dead_bytes > 0
    assert trouble.since is not None
    assert abs(trouble.since - began) <= 1_100
    world.settle(30.0)
    world.send()
    (transfer,) = billing.take(Transfer)
    billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, reason="no such bank")
    world.settle()
    assert trouble.since == world.trouble().since  # of the first that it has
    world.shop.request("$node.dead.drop", {"receiver": "billing"})
    world.settle()
    assert () == tuple(world.one().troubles)


@pytest.mark.parametrize("on_full", ["refuse", "suspend"])
def test_the_trouble_of_one_that_is_too_far_behind(on_full: str) -> None:
    world = World(limits=Limits(backlog_bytes=10_000))
    row = {"name": "billing", "on_full": on_full, **ORDERS}
    assert world.shop.request("$node.receivers.add", row)[0]
    world.peer("billing", receive=ORDERS)
    world.send(1_000)
    world.settle(seconds=1.0)
    one = world.one()
    trouble = one.troubles[0]
    expected = "suspended" if on_full == "suspend" else "full"
    assert (expected, expected) == (one.health, trouble.kind)
    assert "10,000" in trouble.sentence


def test_the_commands_of_troubles_are_those_of_the_command_line() -> None:
    world = World(limits=Limits(backlog_bytes=10_000))
    billing = world.peer("billing", receive=ORDERS)
    world.send(1_000)
    world.settle(seconds=1.0)
    billing.connection.abort()
    world.settle()
    told = world.one().troubles
    assert ["full", "away"] == [trouble.kind for trouble in told]
    for trouble in told:
        words = shlex.split(trouble.command)
        assert ("msgservice", True) == (words[0], words[1] in COMMANDS)
    assert world.one().health in HEALTHS


def test_the_trouble_of_a_full_log_is_the_nodes() -> None:
    world = World(limits=Limits(max_bytes=20_000, backlog_bytes=20_000))
    world.peer("billing", receive=ORDERS)
    for _ in range(10):
        world.send(300)
    world.settle(seconds=2.0)
    node = world.look().node
    assert ["log_full"] == [trouble.kind for trouble in node.troubles]
    assert node.refused > 0
