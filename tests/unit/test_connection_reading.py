"""What is read from a peer, and when it is not: answers that nobody reads, pauses, strangers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import (
    BYE_CLOSING,
    VERSION,
    Ack,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Ping,
    Pong,
    ReceiveOptions,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    Transfer,
)
from msgservice.core.session import State
from msgservice.errors import ProtocolError
from msgservice.limits import RESUME_RANGES_TOTAL_MAX, WINDOW_MESSAGES_MAX, Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import WireMessage, encode_messages
from msgservice.node.gate import Pass
from msgservice.transport.local import LocalChannel
from tests.kit.node_wire import Wire
from tests.kit.nodes import FailingLog, LateLog, NodeWorld, ScriptedPeer

ORDERS = {"subjects": ["orders.>"]}
ONE = msgspec.Raw(encode_messages([WireMessage(b"x")]))


def channel_of(peer: ScriptedPeer) -> LocalChannel:
    channel = peer.connection.channel
    assert isinstance(channel, LocalChannel)
    return channel


def hello(**options: Any) -> Hello:
    return Hello(VERSION, "shop", "i1", HelloOptions(**options))


def opened(world: NodeWorld, kind: type[Wire] = Wire, **options: Any) -> Wire:
    wire = kind(world)
    wire.say(hello(**options))
    world.settle()
    wire.say(ResumeFrame(1, []))
    world.settle()
    assert wire.connection.session.is_open
    return wire


def question(subject: str = "$node.receivers.list") -> Request:
    asked = encode_messages([WireMessage(msgspec.json.encode({"limit": 1}))])
    return Request(1, subject, msgspec.Raw(asked))


def fat_receiver(world: NodeWorld) -> None:
    world.peer("fat", receive={"subjects": [f"{n:03d}" + "x" * 200 for n in range(100)]})


def test_a_peer_that_does_not_read_its_answers_is_not_read_and_loses_none() -> None:
    world = NodeWorld(Limits(answer_bytes=100_000))
    fat_receiver(world)
    shop = world.peer("shop")
    channel_of(shop).pause()
    for _ in range(5):
        for _ in range(200):
            shop.connection.send(question())
        world.settle()
    held = channel_of(shop).incoming_bytes
    assert held < 5 * 1024 * 1024  # what a channel in one process holds, and a last answer
    channel_of(shop).resume()
    for _ in range(20):
        world.settle()
    assert 1000 == len(shop.take(Reply))


def test_one_read_of_many_requests_makes_no_more_answers_than_the_limit() -> None:
    world = NodeWorld(Limits(answer_bytes=100_000))
    fat_receiver(world)
    wire = opened(world)
    wire.is_taken = False
    wire.say(*[question() for _ in range(900)])
    assert not wire.is_reading
    wire.connection.channel_writable(False)
    world.settle()
    assert wire.unsent < 500_000  # the limit, and what was being answered already
    assert 0 < len(wire.take(Reply)) < 25
    wire.is_taken, wire.unsent = True, 0
    wire.connection.channel_writable(True)
    for _ in range(20):
        world.settle()
    assert 900 == len(wire.take(Reply))
    assert wire.is_reading


def test_a_read_of_very_many_frames_leaves_others_their_turn() -> None:
    world = NodeWorld()
    world.peer("other", receive=ORDERS)
    wire = opened(world)
    wire.say(*[Ping(n) for n in range(3500)])
    assert 0 < len(wire.take(Pong)) <= 1000
    assert not wire.is_reading
    wire.say(Ping(9000))  # was on its way
    world.settle()
    assert [*range(3500), 9000] == [pong.token for pong in wire.take(Pong)]
    assert wire.is_reading


def test_requests_of_one_connection_are_answered_so_many_at_once() -> None:
    world = NodeWorld(Limits(answering=3))
    waiting: list[tuple[Request, Any]] = []

    def answer(request: Request, who: Pass) -> Any:
        from twisted.internet.defer import Deferred

        waiting.append((request, Deferred()))
        return waiting[-1][1]

    world.node.parts.admin.answer = answer  # type: ignore[method-assign]  # answers come when the test says
    wire = opened(world)
    wire.say(*[question() for _ in range(7)])
    world.settle()
    assert 3 == len(waiting)
    for n in range(7):
        request, answered = waiting[n]
        answered.callback(Reply([(request.id, True, msgspec.Raw(b"\x01"))]))
        world.settle()
    assert 7 == len(waiting) == len(wire.take(Reply))
    assert wire.is_reading


def test_runs_whose_answers_nobody_reads_are_not_taken_in_and_come_to_no_harm() -> None:
    world = NodeWorld(Limits(answer_bytes=1000))
    wire = opened(world, status_from=1)
    wire.connection.channel_writable(False)
    wire.say(*[Transfer(n, "orders.new", ONE) for n in range(1, 101)])
    world.settle()
    assert [] == wire.take(Ack)
    assert not wire.is_reading
    wire.connection.channel_writable(True)
    world.settle()
    assert [(1, 100)] == wire.take(Ack)[-1].ranges
    assert wire.is_reading


def test_answers_of_a_receiver_are_taken_though_it_is_slow_to_read() -> None:
    world = NodeWorld()
    wire = opened(world, receive=ReceiveOptions(subjects=["orders.>"]))
    shop = world.peer("other")
    shop.transfer(1, "orders.new", [b"one"])
    world.settle()
    (transfer,) = wire.take(Transfer)
    wire.connection.channel_writable(False)
    wire.say(Ack([(transfer.sequence, transfer.sequence)]))
    world.settle()
    assert wire.is_reading
    assert 1 == world.node.parts.dispatch.outlets[1].backlog.cursor >> 16


def test_many_pings_of_a_peer_that_does_not_read_cost_one_pong() -> None:
    world = NodeWorld()
    wire = opened(world)
    wire.connection.channel_writable(False)
    wire.say(*[Ping(n) for n in range(5000)])
    world.settle()
    assert [] == wire.take(Pong)
    wire.connection.channel_writable(True)
    world.settle()
    assert [Pong(4999)] == wire.take(Pong)


@pytest.mark.parametrize("again", [Ping(7), ResumeFrame(1, [], more=True)], ids=["PING", "RESUME"])
def test_32_what_a_stranger_says_before_his_session_is_open_is_bounded_in_all(again: Frame) -> None:
    world = NodeWorld(Limits(unauthenticated_bytes=1000))
    wire = Wire(world)
    wire.say(hello())
    world.settle()
    for _ in range(400):
        wire.say(again)
    assert wire.is_closed
    assert "unauthenticated_bytes = 1000" in wire.connection.error


def test_32_the_ranges_of_a_resume_are_bounded_by_what_a_receiver_may_have_taken() -> None:
    world = NodeWorld(Limits(exceptions=100, window_messages=200, unauthenticated_bytes=4096))
    ranges = [(n, n) for n in range(2, 2 + 2 * 201, 2)]
    wire = Wire(world)
    wire.say(hello(receive=ReceiveOptions(subjects=["orders.>"])))
    world.settle()
    wire.say(ResumeFrame(1, ranges, more=True))
    session = wire.connection.session
    assert session.ranges_max == RESUME_RANGES_TOTAL_MAX + WINDOW_MESSAGES_MAX // 2 + 1
    for n in range(1000, 21_000, 200):  # as one that took them in a larger window
        wire.say(ResumeFrame(1, [(at, at) for at in range(n, n + 200, 2)], more=True))
        assert len(session._ranges) == 201  # no more are held
    assert not wire.is_closed
    session.ranges_max = 10_202
    wire.say(ResumeFrame(1, [(30_000, 30_000)], more=True))
    assert not wire.is_closed
    assert session._ranges[-1] == (30_000, 30_000)
    wire.say(ResumeFrame(1, [(40_000, 40_000)]))
    assert "RESUME of more than 10202 ranges" in wire.connection.error


def test_32_one_that_does_not_receive_has_taken_nothing() -> None:
    world = NodeWorld()
    wire = Wire(world)
    wire.say(hello())
    world.settle()
    wire.say(ResumeFrame(1, [(2, 2)]))
    assert wire.is_closed


def paused_sender() -> tuple[NodeWorld, FailingLog, ScriptedPeer]:
    """A sender that a node on a slow disk has stopped reading from."""
    clock, limits = Clock(), Limits(uncommitted_bytes=100)
    log = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits, log=log, clock=clock)
    shop = world.peer("shop")
    log.hold = True
    shop.transfer(1, "orders.new", [b"x" * 200])
    world.settle()
    far = channel_of(shop).other
    assert far is not None
    assert far._paused
    return world, log, shop


def test_a_sender_that_the_node_itself_pauses_is_not_half_open() -> None:
    world, log, shop = paused_sender()
    for _ in range(10):
        world.settle(60)
    assert shop.lost_because is None
    log.release()
    world.settle()
    assert 1 == len(shop.take(Ack))


def test_what_a_paused_sender_says_is_heard_within_half_a_heartbeat() -> None:
    world, _, shop = paused_sender()
    shop.connection.bye(BYE_CLOSING)
    world.settle(1)
    (peer,) = world.node.parts.connections.peers
    assert peer.connection is not None
    assert not peer.connection.session.bye_received
    world.settle(world.limits.heartbeat / 2)
    assert peer.connection.session.bye_received
    far = channel_of(shop).other
    assert far is not None
    assert far._paused


def test_a_paused_sender_that_is_silent_when_it_is_read_from_is_half_open() -> None:
    world = NodeWorld()
    wire = opened(world)
    wire.connection.pause("uncommitted")
    world.settle(world.limits.heartbeat / 2 + 1)
    assert wire.is_reading
    world.settle(world.limits.heartbeat * world.limits.silence + 1)
    assert "nothing heard" in wire.connection.error


def test_part_of_a_frame_is_a_sign_of_life() -> None:
    world = NodeWorld()
    wire = opened(world)
    for _ in range(20):
        world.settle(30)
        wire.heard_at = world.clock.seconds()
    assert State.OPEN is wire.connection.session.state
    world.settle(60)
    assert "nothing heard" in wire.connection.error


class Narrow(Wire):
    """A wire that has room for 64 KiB, as a socket's channel has."""

    def send(self, frame: bytes) -> None:
        super().send(frame)
        if self.unsent > 64 * 1024:
            self.connection.channel_writable(False)


def test_audiences_that_runs_get_while_they_wait_count_as_answers() -> None:
    """Who is added while a group is stored changes what is owed with the runs behind it."""
    clock = Clock()
    limits = Limits(answer_bytes=100_000)
    failing = FailingLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits, log=failing, clock=clock)
    subjects = [f"all.s{number}" for number in range(50)]
    wire = opened(world, Narrow, status_from=1)
    wire.is_taken = False
    failing.hold = True
    wire.say(Transfer(1, "other", ONE))
    world.settle()
    wire.say(*[Transfer(n + 2, subject, ONE) for n, subject in enumerate(subjects)])
    world.settle()
    for number in range(200):
        # Of each subject another one is left out: as many audiences as subjects.
        patterns = [one for one in subjects if one != f"all.s{number}"]
        Deferred.fromCoroutine(world.node.add_receiver(f"{number:03d}" + "x" * 250, patterns))
    world.settle()
    failing.release()
    world.settle()
    assert wire.unsent < 3 * 100_000
    assert len(acked(wire)) < 10
    wire.is_taken = True
    read_all(world, wire)
    assert set(range(1, 52)) == acked(wire)
    assert 51 == len(wire.take(Routed))
    assert wire.is_reading


def test_audiences_of_runs_that_were_stored_before_count_as_answers() -> None:
    """What comes again is for whom it was for then, whoever is there now."""
    clock = Clock()
    limits = Limits(answer_bytes=100_000)
    late = LateLog(MemoryLog(reactor=clock, limits=limits))
    world = NodeWorld(limits, log=late, clock=clock)
    subjects = [f"all.s{number}" for number in range(50)]
    runs = [Transfer(n + 1, subject, ONE) for n, subject in enumerate(subjects)]
    for number in range(200):
        patterns = [one for one in subjects if one != f"all.s{number}"]
        Deferred.fromCoroutine(world.node.add_receiver(f"{number:03d}" + "x" * 250, patterns))
    world.settle()
    before = opened(world)
    before.say(*runs)
    world.settle()
    assert set(range(1, 51)) == acked(before)
    before.connection.abort()
    for number in range(200):
        name = f"{number:03d}" + "x" * 250
        Deferred.fromCoroutine(world.node.change_receiver(name, patterns=["other"]))
    world.settle()
    late.is_late = True  # else it is told what it asks for before it says anything
    wire = opened(world, Narrow, status_from=1)
    wire.is_taken = False
    wire.say(*runs)
    world.settle()
    assert 50_000 < wire.unsent < 3 * 100_000
    wire.say(Transfer(51, "other", ONE))
    world.settle()
    assert not wire.is_reading
    wire.is_taken = True
    read_all(world, wire)
    assert set(range(1, 52)) == acked(wire)
    assert 51 == len(wire.take(Routed))


def read_all(world: NodeWorld, wire: Wire) -> None:
    """The peer reads what it was sent, again and again."""
    for _ in range(100):
        wire.unsent = 0
        wire.connection.channel_writable(True)
        world.settle()


def acked(wire: Wire) -> set[int]:
    """What was acknowledged so far."""
    return {
        number
        for ack in wire.take(Ack)
        for first, last in ack.ranges
        for number in range(first, last + 1)
    }


def test_new_audiences_of_runs_that_wait_count_as_answers() -> None:
    world = NodeWorld(Limits(answer_bytes=100_000))
    subjects = [f"all.s{number}" for number in range(50)]
    for number in range(200):
        # Of each subject another one is left out: as many audiences as subjects.
        patterns = [one for one in subjects if one != f"all.s{number}"]
        Deferred.fromCoroutine(world.node.add_receiver(f"{number:03d}" + "x" * 250, patterns))
        world.settle()
    wire = opened(world, Narrow, status_from=1)
    wire.is_taken = False
    wire.say(*[Transfer(n + 1, subject, ONE) for n, subject in enumerate(subjects)])
    world.settle()
    assert wire.unsent < 3 * 100_000
    assert not wire.is_reading
    wire.is_taken = True
    wire.unsent = 0
    wire.connection.channel_writable(True)
    world.settle()
    acked = [range(first, last + 1) for ack in wire.take(Ack) for first, last in ack.ranges]
    assert sorted(number for one in acked for number in one) == list(range(1, 51))
    assert wire.is_reading


def test_behind_the_error_that_ends_a_connection_nothing_is_said() -> None:
    """Its user may be gone, and the channel lasts while it has much to write."""
    world = NodeWorld()
    world.peer("billing", receive=ORDERS)
    shop = opened(world, status_from=1)
    shop.say(Transfer(1, "orders.new", ONE))
    shop.connection.fail(ProtocolError("over"))
    world.settle()
    assert shop.is_closed
    assert ErrorFrame is type(shop.sent[-1])
    again = opened(world, status_from=1)
    world.settle()
    assert [(2, [])] == [(frame.floor, frame.ranges) for frame in again.take(ResumeFrame)]


def test_what_waits_in_the_socket_is_heard_before_silence_ends_it() -> None:
    """The process stood still: its timers are late, and so is what it reads."""
    world = NodeWorld()
    wire = opened(world, heartbeat=1000)  # ms
    silence = 1.0 * Limits().silence
    world.clock.rightNow += silence + 1
    # A reactor makes the calls that are due before it reads.
    world.clock.callLater(0, wire.say, Ping(1))
    world.settle()
    assert wire.connection.session.is_open
    assert [1] == [pong.token for pong in wire.take(Pong)]
    world.clock.rightNow += silence + 1
    world.settle()
    assert wire.is_closed
    assert wire.connection.error == f"nothing heard for {silence:g} s"
