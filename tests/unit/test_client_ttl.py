"""`ttl` of a client's messages: what it says to the node, and what expires before it can."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.client.outbox_file import OutboxFile
from msgservice.clock import SteadyClock
from msgservice.core.features import OF_NODES
from msgservice.core.runs import producer_run
from msgservice.errors import BadValue, Expired, NotSupported
from msgservice.message import RunOptions, encode_bodies
from tests.kit.clients import ClientWorld
from tests.kit.threads import ThreadCalls


def outcome(sent: Deferred[Any]) -> list[Any]:
    found: list[Any] = []
    sent.addBoth(found.append)
    return found


def failed(found: list[Any], kind: type[Exception]) -> str:
    (failure,) = found
    assert isinstance(failure, Failure)
    failure.trap(kind)
    return failure.getErrorMessage()


def offline() -> ClientWorld:
    world = ClientWorld(start=False)
    world.node.features = list(OF_NODES)
    return world


def online() -> ClientWorld:
    world = offline()
    world.start()
    return world


def transfers(world: ClientWorld) -> list[Any]:
    return world.node.transfers


@pytest.mark.parametrize(
    "ttl", [-1, -0.001, 366 * 86_400 + 1, math.nan, math.inf, -math.inf, 1e300, True, "30", b"1"]
)
def test_a_ttl_that_cannot_be_is_refused_with_the_limit_named(ttl: Any) -> None:
    world = online()
    for sent in (
        world.client.send("s", b"1", ttl=ttl),
        world.client.send_many("s", [b"1"], ttl=ttl),
    ):
        said = failed(outcome(sent), BadValue)
        assert said.startswith("ttl ")
        if isinstance(ttl, float | int) and ttl is not True:
            assert "366 days" in said
    assert world.client.unanswered == 0


def test_messages_of_one_ttl_and_one_turn_are_one_run_and_others_are_not() -> None:
    world = online()
    for body, ttl in ((b"1", 5), (b"2", 5.0), (b"3", None), (b"4", 7)):
        world.client.send("s", body, ttl=ttl)
    world.settle()
    world.client.send("s", b"5", ttl=7)
    world.settle()
    told = [(t.sequence, t.ttl) for t in transfers(world)]
    assert told == [(1, 5000), (3, None), (4, 7000), (5, 7000)]


def test_what_waits_for_the_node_says_what_is_left_and_expires_unsent() -> None:
    world = offline()
    long = outcome(world.client.send("s", b"long", ttl=60))
    short = outcome(world.client.send("s", b"short", ttl=10))
    many = outcome(world.client.send_many("s", [b"a", b"b"], ttl=10))
    world.settle()
    world.clock.advance(9.999)
    assert short == many == []
    world.clock.advance(0.3)
    failed(short, Expired)
    failed(many, Expired)
    assert long == []
    assert world.client.unanswered == 1
    world.start()
    (sent,) = transfers(world)
    assert (sent.sequence, sent.ttl) == (1, 49_701)
    assert len(long) == 1
    assert not world.clock.getDelayedCalls() or world.client.connected


def test_what_was_sent_and_not_answered_is_the_nodes_to_judge() -> None:
    world = online()
    world.node.answering = False
    sent = outcome(world.client.send("s", b"1", ttl=10))
    world.settle()
    assert [10_000] == [t.ttl for t in transfers(world)]
    world.node.is_up = False
    world.node.cut()
    world.node.forget_incarnations()  # it had not come there
    world.advance(12)
    world.node.is_up = True
    world.advance(35)
    world.settle()
    assert [] == sent
    assert [10_000, 0] == [t.ttl for t in transfers(world)]


def test_44_what_has_a_delay_as_well_shares_no_run_with_what_has_none() -> None:
    world = online()
    times: list[tuple[bytes, int | None, int | None]] = [
        (b"1", 5, 2),
        (b"2", 5, None),
        (b"3", 5, 2),
        (b"4", 5, 2),
        (b"5", None, 2),
    ]
    for body, ttl, delay in times:
        world.client.send("s", body, ttl=ttl, delay=delay)
    world.settle()
    told = [(t.sequence, t.ttl, t.delay) for t in transfers(world)]
    assert told == [(1, 5000, 2000), (2, 5000, None), (3, 5000, 2000), (5, None, 2000)]


def test_44_of_both_what_is_left_is_said_and_what_expires_first_is_never_sent() -> None:
    world = offline()
    kept = outcome(world.client.send("s", b"1", ttl=60, delay=20))
    many = outcome(world.client.send_many("s", [b"2"], ttl=60, delay=50))
    gone = outcome(world.client.send("s", b"3", ttl=8, delay=5))
    world.settle()
    world.clock.advance(30)
    failed(gone, Expired)
    assert kept == many == []
    world.start()
    world.settle()
    told = [(t.sequence, t.ttl, t.delay) for t in transfers(world)]
    passed = 60_000 - told[0][1]
    assert 30_000 <= passed < 31_000
    assert told == [(1, 60_000 - passed, 0), (2, 60_000 - passed, 50_000 - passed)]


def test_44_a_ttl_that_is_over_before_the_delay_is_refused() -> None:
    world = online()
    for ttl in (0, 1, 2):
        for sent in (
            world.client.send("s", b"1", ttl=ttl, delay=2),
            world.client.send_many("s", [b"1"], ttl=ttl, delay=2),
        ):
            assert "delay of 2 s" in failed(outcome(sent), BadValue)
    assert world.client.unanswered == 0
    assert world.client.send("s", b"1", ttl=1, delay=0)


def test_a_node_that_does_not_offer_it_is_sent_nothing() -> None:
    world = ClientWorld()  # of before there were features
    assert "'ttl'" in failed(outcome(world.client.send("s", b"1", ttl=1)), NotSupported)
    assert [] == transfers(world)


def test_the_outbox_file_keeps_when_it_was_handed_over(tmp_path: Path) -> None:
    threads = ThreadCalls()
    bodies = encode_bodies([b"1"])
    run = producer_run(1, 1, "s", bodies, RunOptions(ttl=5000))
    run.expires_at = 12_000
    file = OutboxFile(tmp_path / "outbox.db", reactor=threads)
    threads.wait(file.open())
    threads.wait(file.append([run, producer_run(2, 1, "s", bodies)]))
    threads.wait(file.close())
    again = OutboxFile(tmp_path / "outbox.db", reactor=threads)
    one, two = threads.wait(again.open()).runs
    threads.wait(again.close())
    assert (one.options.ttl, one.expires_at) == (5000, 12_000)
    assert (two.options.ttl, two.expires_at) == (None, None)


def test_the_steady_clock_does_not_go_back() -> None:
    world = offline()
    clock = SteadyClock(world.clock)
    before = clock.now()
    world.clock.advance(1.5)
    assert clock.now() == before + 1500
