"""What takes room, what gives way, and that refusals for want of room are said (SEMANTICS 19)."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from msgservice.connection import Connection
from msgservice.core.frames import (
    BYE_CLOSING,
    BYE_REPLACED,
    BYE_SETTLED,
    Ack,
    Hello,
    Nack,
    Transfer,
)
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import Action
from msgservice.node.upkeep import REFUSED_FOR, SAY_AGAIN
from msgservice.records import Resume
from tests.kit.nodes import FailingLog, NodeWorld, ScriptedPeer, state_of

ALL = {"subjects": [">"]}


def said(logged: list[LogEvent], words: str) -> list[str]:
    return [text for event in logged if words in (text := formatEvent(event))]


def test_19_history_that_nobody_waits_for_gives_way(logged: list[LogEvent]) -> None:
    world = NodeWorld(Limits(max_bytes=1_000_000, keep_seconds=3600))
    world.peer("billing", receive=ALL, answering=True)
    shop = world.peer("shop")
    for number in range(1, 41):
        shop.transfer(number, "a", [bytes(100_000)])
        world.settle(0.3)
    assert shop.take(Nack) == []
    assert said(logged, "refused") == []


def test_19_refusals_are_said_once_in_a_while_and_that_they_are_over(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld(Limits(max_bytes=1_000_000, backlog_bytes=900_000))
    world.peer("billing", receive=ALL)
    billing = world.peer("archive", receive=ALL)
    shop = world.peer("shop")
    operator = world.peer("operator")

    def full() -> str | None:
        ok, info = operator.request("$node.info", {})
        assert ok
        why: str | None = info["room"]["full"]
        return why

    for number in range(1, 10):
        shop.transfer(number, "a", [bytes(99_000)])
        world.settle()
    assert full() is None  # there is room for some
    for _ in range(int(SAY_AGAIN) - 10):
        if shop.take(Nack):
            shop.connection.abort()
            shop = world.peer("shop")
        shop.transfer(10, "b", [bytes(150_000)])
        world.settle(1)
    assert len(said(logged, "messages are refused, their senders keep them: log full")) == 1
    assert (full() or "").startswith("log full")
    assert billing.take(Transfer)
    for receiver in ("billing", "archive"):
        Deferred.fromCoroutine(world.node.remove_receiver(receiver))
    world.settle(REFUSED_FOR + 3)
    assert len(said(logged, "messages are taken again")) == 1
    assert full() is None


def test_18_a_receiver_that_is_refused_messages_is_said_once_in_a_while(
    logged: list[LogEvent],
) -> None:
    world = NodeWorld(Limits(backlog_bytes=50_000))
    world.peer("billing", receive=ALL)
    shop = world.peer("shop")
    for number in range(1, 7):
        shop.transfer(number, "a", [bytes(10_000)])
        world.settle(0.3)
    (line,) = said(logged, "messages for receiver billing are refused, their senders keep them")
    assert "its limit is 50000" in line


def rejecting(world: NodeWorld, billing: ScriptedPeer, numbers: range) -> None:
    shop = world.peer("shop", incarnation=f"from-{numbers.start}")
    for number in numbers:
        shop.transfer(number, "a", [bytes(10_000)])
        world.settle()
        for transfer in billing.take(Transfer):
            billing.nack(transfer.sequence, transfer.sequence, Action.DEAD, 0, "no")
        world.settle(0.1)
    shop.connection.abort()
    world.settle(3)


def test_46_a_receiver_is_paused_at_its_limit_of_dead_letters(logged: list[LogEvent]) -> None:
    world = NodeWorld(Limits(dead_bytes=50_000, keep_seconds=0.0, keep_bytes=0))
    other = world.peer("other", receive=ALL, answering=True)
    billing = world.peer("billing", receive=ALL)
    rejecting(world, billing, range(1, 9))
    assert 50_000 < world.log.dead_bytes(2) < 61_000
    assert billing.bye is not None
    reason = billing.bye[1]
    assert reason.startswith("paused: its dead letters take 5")
    assert reason.endswith("dead_bytes = 50000")
    assert state_of(world, "billing").last_error == reason
    assert len(said(logged, "receiver billing is paused")) == 1
    assert other.lost_because is None
    world.node.stopService()
    world.settle(1)
    world.start()
    state = state_of(world, "billing")
    assert (state.paused, state.last_error) == (True, reason)
    Deferred.fromCoroutine(world.node.remove_receiver("billing"))
    world.settle(5)
    assert world.log.room().used == 0


def test_46_dead_letters_are_room_that_is_taken() -> None:
    world = NodeWorld(Limits(max_bytes=100_000, dead_bytes=90_000, keep_seconds=0.0, keep_bytes=0))
    billing = world.peer("billing", receive=ALL)
    rejecting(world, billing, range(1, 9))
    assert 50_000 < world.log.room().used < 52_000  # some were refused, with their copies' room
    shop = world.peer("shop")
    shop.transfer(1, "a", [bytes(60_000)])
    world.settle()
    assert shop.take(Ack) == []
    (nack,) = shop.take(Nack)
    assert nack.action == Action.LATER


def test_46_a_quarter_of_the_log_unless_said_otherwise() -> None:
    assert Limits(max_bytes=1000).dead_bytes_max == 250
    with pytest.raises(ValueError, match="dead_bytes"):
        Limits(dead_bytes=-1)


def test_5_a_producer_that_ended_its_incarnation_is_forgotten_first() -> None:
    world = NodeWorld(Limits(keep_seconds=0.0, keep_bytes=0, incarnations=3))
    for number in range(10):
        shop = world.peer("cron", incarnation=f"i{number}")
        shop.transfer(1, "nobody.waits", [b"tick"])
        world.settle()
        if number >= 2:
            shop.connection.bye(BYE_SETTLED, "done")
        else:
            shop.connection.abort()  # it may come back with what was not answered
        world.settle(2)
    world.settle(5)
    known = [n for n in range(10) if world.resume("cron", f"i{n}").floor == 2]
    assert len(known) == 3
    assert known[:2] == [0, 1]


def take_all(world: NodeWorld, incarnation: str, body: bytes) -> ScriptedPeer:
    """One more of a producer's incarnations comes, and what it sends is taken."""
    shop = world.peer("cron", incarnation=incarnation)
    shop.transfer(1, "nobody.waits", [body])
    world.settle()
    return shop


def crowd(world: NodeWorld) -> None:
    """More come and end than are remembered, and are forgotten."""
    for number in range(8):
        take_all(world, f"crowd{number}", b"tick").connection.bye(BYE_SETTLED)
        world.settle(2)
    world.settle(90)


@pytest.mark.parametrize("code", [BYE_CLOSING, BYE_REPLACED, 99])
def test_5_a_goodbye_whose_last_answer_may_be_lost_ends_no_incarnation(code: int) -> None:
    """It says BYE and has not heard the ACK: what it sends when it comes back must be known."""
    world = NodeWorld(Limits(keep_seconds=0.0, keep_bytes=0, incarnations=3))
    take_all(world, "mine", b"once").connection.bye(code)
    world.settle()
    crowd(world)
    assert world.resume("cron", "mine").floor == 2
    before = world.node.parts.tail.next_number
    shop = take_all(world, "mine", b"once")
    assert shop.take(Ack) == [Ack([(1, 1)])]
    assert world.node.parts.tail.next_number == before


def test_5_an_incarnation_that_ended_and_came_back_all_the_same_is_not_ended() -> None:
    world = NodeWorld(Limits(keep_seconds=0.0, keep_bytes=0, incarnations=3))
    take_all(world, "mine", b"once").connection.bye(BYE_SETTLED)
    world.settle()
    shop = world.peer("cron", incarnation="mine")  # sooner than retention looks
    shop.transfer(2, "nobody.waits", [b"more"])
    world.settle()
    shop.connection.abort()
    crowd(world)
    assert world.resume("cron", "mine").floor == 3


def forgetful() -> NodeWorld:
    """A node whose next pass of retention forgets incarnation `mine`, which said goodbye."""
    limits = Limits(keep_seconds=0.0, keep_bytes=0, incarnations=1)
    clock = Clock()
    log = MemoryLog(reactor=clock, limits=limits)
    world = NodeWorld(limits, log=log, clock=clock)
    world.settle(2)
    for incarnation in ("mine", "other", "another"):
        take_all(world, incarnation, b"once").connection.bye(BYE_SETTLED)
        world.settle()
    return world


def test_5_who_comes_back_while_retention_waits_for_the_writer_is_not_forgotten() -> None:
    """Who is here was looked at before: between that and the writer's turn it has its RESUME."""
    world = forgetful()
    here, left = world.node.parts.connections.take_presence()
    assert ("cron", "mine") in left
    world.log._delay = 0.5  # seconds until the writer's turn
    world.log.retain(3000, here, left)
    shop = world.peer("cron", incarnation="mine")
    assert shop.node_resume is not None
    assert shop.node_resume.floor == 2
    world.log._delay = 0.0
    world.clock.advance(0.5)
    shop.transfer(2, "nobody.waits", [b"more"])
    world.settle()
    assert world.resume("cron", "mine") == Resume(3, (), world.resume("cron", "mine").last)


class SlowToOpen(ScriptedPeer):
    """A peer that was told a RESUME and does not tell its own."""

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self.node_hello = hello


def test_5_who_was_told_its_resume_is_here_before_it_tells_its_own() -> None:
    world = forgetful()
    shop = world.peer("cron", incarnation="mine", kind=SlowToOpen)
    assert shop.node_hello is not None
    world.settle(4)  # some passes of retention
    shop.connection.resume(Resume())
    shop.transfer(2, "nobody.waits", [b"more"])
    world.settle()
    assert world.resume("cron", "mine").floor == 3


def test_5_of_whom_something_waits_for_its_group_is_here() -> None:
    """Its connection has gone, the disk is slow: what it sent is stored with its marks."""
    limits = Limits(keep_seconds=0.0, keep_bytes=0, incarnations=1)
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits, log=log, clock=clock)
    shop = take_all(world, "mine", b"once")
    log.hold = True
    shop.transfer(2, "nobody.waits", [b"more"])
    world.settle()
    shop.connection.abort()
    world.settle()
    connections = world.node.parts.connections
    connections.take_presence()
    assert connections.take_presence() == ([("cron", "mine")], [])
    log.release()
    world.settle()
    assert connections.take_presence() == ([], [])


def test_5_what_is_repeated_behind_an_end_is_refused_or_known() -> None:
    world = NodeWorld()
    shop = take_all(world, "mine", b"once")
    before = world.node.parts.tail.next_number
    shop.connection.bye(BYE_SETTLED)
    shop.transfer(1, "nobody.waits", [b"once"])  # on the same connection
    world.settle()
    assert shop.lost_because is not None
    again = take_all(world, "mine", b"once")  # who heard the incarnation, on another
    assert again.take(Ack) == [Ack([(1, 1)])]
    assert world.node.parts.tail.next_number == before


def test_24_goodbyes_of_those_who_sent_nothing_are_not_remembered() -> None:
    """A tool that asks each second is another incarnation each time."""
    world = NodeWorld()
    for number in range(20):
        tool = world.peer("tool", incarnation=f"i{number}")
        tool.connection.bye(0, "done")
        world.settle(1.2)
    assert not world.log._retention.senders._left


def test_subjects_that_are_remembered_are_bounded_over_all_connections() -> None:
    world = NodeWorld(Limits(subjects=50))
    shops = [world.peer(f"shop{n}") for n in range(3)]
    for shop in shops:
        for sequence in range(1, 201):
            shop.transfer(sequence, f"{shop.hello.name}.{sequence}", [b"x"])
        world.settle()
    assert len(world.node.parts.directory._checked) <= 50
    for peer in world.node.parts.connections.peers:
        assert peer.ingress is not None
        held = [value for value in vars(peer.ingress).values() if isinstance(value, dict | set)]
        assert all(not one for one in held), held
