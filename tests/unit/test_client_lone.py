"""A message that comes alone: what is left out for it is left out only where nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from msgservice.client.receipt import Receipt
from msgservice.errors import BadSubject, ClientClosed, LimitReached, MessageTooLarge
from msgservice.limits import MAX_BATCH_MIN, MESSAGE_OVERHEAD, Limits
from msgservice.message import FLAG_REQUIRE
from tests.kit.clients import ClientWorld, error_of, now

LIMITS = Limits(max_batch=8192)


class Text(str):
    """A text of another type than `str`."""


def known(world: ClientWorld) -> ClientWorld:
    """A client that has sent on the subject before, so that nothing of it is looked at again."""
    now(world.settled(world.client.send("orders.new", b"first")))
    return world


def test_what_is_sent_by_who_is_told_leaves_behind_that_without_a_timer() -> None:
    world = known(ClientWorld())
    receipt = now(world.settled(world.client.send("orders.new", b"second")))
    sent: list[Deferred[Receipt]] = []
    timers: list[object] = []

    def send_more(_: None) -> None:
        before = world.clock.getDelayedCalls()
        sent.extend([world.client.send("orders.new", body) for body in (b"third", b"fourth")])
        timers.extend(call for call in world.clock.getDelayedCalls() if call not in before)
        assert world.client.sequence == 2  # they are gathered until all of the turn were told

    receipt.acknowledged().addCallback(send_more)
    world.say_acknowledged(2)
    third, fourth = map(now, sent)
    assert third.run is fourth.run
    assert not timers


def test_what_is_sent_by_who_is_told_leaves_though_telling_fails(
    logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = known(ClientWorld())
    receipt = now(world.settled(world.client.send("orders.new", b"second")))
    runs = world.client._hop.runs
    sent: list[Deferred[Receipt]] = []

    def fail() -> None:
        sent.append(world.client.send("orders.new", b"third"))
        monkeypatch.undo()
        raise RuntimeError("a fault of ours")

    waiting = receipt.acknowledged()
    monkeypatch.setattr(runs, "tell_news", fail)
    world.say_acknowledged(2)
    assert now(world.advance(5.0).settled(sent[0])).sequence == 3
    assert len(logged_failures) == 1
    logged_failures.clear()
    assert now(waiting) is None
    assert now(world.settled(world.client.send("orders.new", b"fourth"))).sequence == 4


def test_news_of_a_run_are_told_though_those_of_another_failed(
    logged_failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ClientWorld()
    first = now(world.settled(world.client.send("orders.new", b"1")))
    second = now(world.settled(world.client.send("orders.old", b"2")))
    waiting = [first.acknowledged(), second.acknowledged()]
    run: Any = first.run

    def fail(_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(type(run), "tell_news", fail)
    world.say_acknowledged(1, 2)
    world.advance(5.0)
    assert now(waiting[1]) is None
    assert len(logged_failures) == 1
    logged_failures.clear()


@pytest.mark.parametrize("more", [0, 1])
def test_the_first_message_of_a_run_is_as_large_as_any(more: int) -> None:
    world = known(ClientWorld(limits=LIMITS))
    sending = world.client.send("orders.new", bytes(8192 - MESSAGE_OVERHEAD + more))
    if more:
        assert error_of(sending, MessageTooLarge)
    else:
        assert now(world.settled(sending)).sequence == 2


def test_a_node_that_takes_less_is_heard() -> None:
    world = ClientWorld(start=False)
    world.node.max_batch = MAX_BATCH_MIN
    world.start()
    known(world)
    assert error_of(world.client.send("orders.new", bytes(MAX_BATCH_MIN)), MessageTooLarge)


@pytest.mark.parametrize("held", [(1, 10_000), (10, 30)])
def test_the_first_message_of_a_run_takes_room_as_any(held: tuple[int, int]) -> None:
    world = known(ClientWorld(held=held))
    sending = world.client.send("orders.new", b"x" * 20)
    assert error_of(world.client.send("orders.new", b"x" * 20), LimitReached)
    world.settle()
    assert world.client.room == held
    assert now(sending).sequence == 2


def test_the_first_message_of_a_run_is_refused_when_the_client_is_closed() -> None:
    world = known(ClientWorld())
    world.client.close()
    assert error_of(world.client.send("orders.new", b"x"), ClientClosed)


@pytest.mark.parametrize(
    ("subject", "is_one"), [(Text("orders.new"), True), (b"orders.new", False), ("$node.x", False)]
)
def test_what_is_no_plain_subject_is_looked_at(subject: Any, *, is_one: bool) -> None:
    world = known(ClientWorld())
    sending = world.client.send(subject, b"x")
    if is_one:
        assert type(now(world.settled(sending)).run.subject) is str
    else:
        error_of(sending, BadSubject if isinstance(subject, str) else TypeError)


def test_the_default_of_a_client_is_that_of_its_first_message_too() -> None:
    world = ClientWorld(require=True)
    for body in (b"1", b"2", b""):
        now(world.settled(world.client.send("orders.new", body)))
    assert [transfer.flags for transfer in world.node.transfers] == [FLAG_REQUIRE] * 3


@pytest.mark.parametrize("body", [b"", b"x"])
@pytest.mark.parametrize(
    ("limits", "options"), [(Limits(batch_messages=1), {}), (LIMITS, {"window": (1, 8192)})]
)
def test_where_runs_have_one_message_the_first_of_a_turn_has_no_other(
    body: bytes, limits: Limits, options: dict[str, Any]
) -> None:
    world = known(ClientWorld(limits=limits, **options))
    sent = [world.client.send("orders.new", body) for _ in range(3)]
    assert [now(world.settled(one)).run.count for one in sent] == [1] * 3
