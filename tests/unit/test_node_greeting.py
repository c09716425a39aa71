"""What a peer says while the node's HELLO waits for what is being stored (PROTOCOL: the course)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from msgservice.core.frames import (
    VERSION,
    Ack,
    AudienceFrame,
    Auth,
    Bye,
    Cancel,
    ErrorFrame,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    Note,
    Ping,
    Pong,
    ReceiveOptions,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    Transfer,
)
from msgservice.core.session import State
from msgservice.errors import ContentChanged, UnexpectedFrame
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import encode_bodies
from msgservice.node.gate import ARRIVALS_SECONDS
from msgservice.node.greeting import Greeter
from msgservice.records import Resume
from tests.kit.node_wire import Wire
from tests.kit.nodes import FailingLog, NodeWorld

ONE = msgspec.Raw(encode_bodies([b"x"]))


class Greeted:
    """A node that has read the HELLO of a new receiver, or of a producer, and not answered it."""

    def __init__(self, *, receives: bool) -> None:
        clock = Clock()
        self.log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
        self.world = NodeWorld(log=self.log, clock=clock)
        self.log.hold = True
        self.world.peer("other", receive={"subjects": ["other.>"]})  # for which a producer waits
        self.wire = Wire(self.world)
        receive = ReceiveOptions(subjects=["orders.>"]) if receives else None
        self.hello = Hello(VERSION, "shop", "i1", HelloOptions(status_from=1, receive=receive))

    def go_on(self) -> None:
        self.log.release()
        self.world.settle()


class Turns(Clock):
    """A clock on which what is to be called at once is called in the next turn, as reactors do."""

    def turn(self) -> None:
        """Call what is due now; else what is due first."""
        first = min(call.getTime() for call in self.calls)
        self.rightNow = max(self.rightNow, first)
        for call in [call for call in self.calls if call.getTime() <= self.rightNow]:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


class Arriving:
    """A node to which many come in one turn, of whom four have time in it, and their wires."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
        self.clock = Turns()
        self.log = FailingLog(MemoryLog(reactor=self.clock, limits=Limits()))
        self.world = NodeWorld(log=self.log, clock=self.clock)
        self.wires = [Wire(self.world) for _ in range(10)]
        self.done = 0
        does = getattr(Greeter, what)

        def do(greeter: Greeter, *args: Any) -> Any:
            self.done += 1
            self.clock.rightNow += ARRIVALS_SECONDS / 3.5
            return does(greeter, *args)

        monkeypatch.setattr(Greeter, what, do)

    def say_hello(self) -> None:
        for number, wire in enumerate(self.wires):
            wire.say(Hello(VERSION, f"n{number}", "i1", HelloOptions()))

    def by_turns(self) -> list[int]:
        """Let turns pass until nobody waits; return how many were done in each in which some were.

        The first are those of now.
        """
        counted = [self.done]
        while self.done < len(self.wires):
            self.clock.turn()
            counted.append(self.done - sum(counted))
        return [count for count in counted if count]


def test_answers_that_the_log_gives_together_have_a_slice_of_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arriving = Arriving(monkeypatch, "_answer")
    asked: list[Deferred[Resume]] = []

    def resume(name: str, incarnation: str) -> Deferred[Resume]:
        asked.append(Deferred())
        return asked[-1]

    monkeypatch.setattr(arriving.log, "resume", resume)
    arriving.say_hello()
    while len(asked) < 10:
        arriving.clock.turn()
    for answer in asked:
        answer.callback(Resume(1, ()))
    assert [4, 4, 2] == arriving.by_turns()


@pytest.mark.parametrize("what", ["greeted", "_resume"])
def test_who_comes_with_very_many_has_a_slice_of_each_turn(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arriving = Arriving(monkeypatch, what)
    arriving.say_hello()
    assert 4 == max(arriving.by_turns())
    arriving.world.settle()
    assert [1] * 10 == [len(wire.take(Hello)) for wire in arriving.wires]


def test_resumes_that_come_together_have_a_slice_of_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arriving = Arriving(monkeypatch, "opened")
    arriving.say_hello()
    arriving.world.settle()
    for wire in arriving.wires:
        wire.say(ResumeFrame(1, []))
    assert [4, 4, 2] == arriving.by_turns()
    assert all(wire.connection.session.state is State.OPEN for wire in arriving.wires)


def test_who_waits_for_its_turn_is_read_once_more_and_not_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arriving = Arriving(monkeypatch, "greeted")
    arriving.say_hello()
    last = arriving.wires[-1]
    assert last.is_reading
    last.say(ResumeFrame(1, []))
    assert not last.is_reading
    arriving.by_turns()
    arriving.world.settle()
    (error,) = last.take(ErrorFrame)
    assert "ResumeFrame frame while greeted" == error.reason


def test_who_goes_while_it_waits_for_its_turn_is_not_greeted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arriving = Arriving(monkeypatch, "greeted")
    arriving.say_hello()
    arriving.wires[-1].connection.channel_lost("gone")
    arriving.world.settle()
    assert 9 == arriving.done
    assert [1] * 9 + [0] == [len(wire.take(Hello)) for wire in arriving.wires]


UNEXPECTED: list[Frame] = [
    Hello(VERSION, "shop", "i1"),
    Transfer(1, "a", ONE),
    Ack([(1, 1)]),
    Nack(1, 1, 1),
    StatusFrame("i1", "r", 3, [(1, 1)]),
    Routed(1, 1, 1, 1),
    Request(1, "$node.info", ONE),
    Reply([]),
    AudienceFrame(1, ["r"]),
    Note(1, 1),
    Cancel([(1, 1)]),
    ResumeFrame(1, []),
    ResumeFrame(1, [], None, True),
]


@pytest.mark.parametrize("receives", [True, False])
@pytest.mark.parametrize("frame", UNEXPECTED, ids=lambda frame: type(frame).__name__)
def test_what_may_not_come_yet_is_error_6(frame: Frame, receives: bool) -> None:
    greeted = Greeted(receives=receives)
    greeted.wire.say(greeted.hello, frame)
    greeted.world.settle()
    (error,) = greeted.wire.take(ErrorFrame)
    assert UnexpectedFrame.wire_code == error.code
    assert f"{type(frame).__name__} frame while greeted" == error.reason
    assert greeted.wire.is_closed
    greeted.go_on()
    assert [] == greeted.wire.take(Hello)


@pytest.mark.parametrize("receives", [True, False])
def test_who_is_let_in_is_no_stranger_while_the_answer_waits_for_the_disk(receives: bool) -> None:
    greeted = Greeted(receives=receives)
    greeted.wire.say(greeted.hello)
    greeted.world.settle()
    assert greeted.wire.is_identified
    assert [] == greeted.wire.take(Hello)
    knocks = Wire(greeted.world)
    knocks.say(Hello(VERSION, "no name", "i1"))
    assert not knocks.is_identified


@pytest.mark.parametrize("receives", [True, False])
def test_a_login_comes_before_hello_or_not_at_all(receives: bool) -> None:
    greeted = Greeted(receives=receives)
    greeted.wire.say(greeted.hello, Auth(b""))
    assert UnexpectedFrame.wire_code == greeted.wire.take(ErrorFrame)[0].code


@pytest.mark.parametrize("receives", [True, False])
@pytest.mark.parametrize("frame", [Bye(), ErrorFrame(1)], ids=["Bye", "ErrorFrame"])
def test_who_leaves_then_is_let_go(frame: Frame, receives: bool) -> None:
    greeted = Greeted(receives=receives)
    greeted.wire.say(greeted.hello, frame)
    greeted.go_on()
    assert greeted.wire.is_closed
    assert [] == greeted.wire.take(ErrorFrame)


@pytest.mark.parametrize("receives", [True, False])
def test_of_who_has_gone_then_nothing_is_kept(receives: bool) -> None:
    """A disk that hangs keeps neither his HELLO nor his connection, however many come and go."""
    greeted = Greeted(receives=receives)
    greeted.wire.say(greeted.hello)
    kept = weakref.ref(greeted.wire.connection)
    greeted.wire.connection.channel_lost("gone")
    del greeted.wire
    gc.collect()
    assert kept() is None
    greeted.go_on()


@pytest.mark.parametrize("receives", [True, False])
def test_a_sign_of_life_is_answered_then_and_the_resume_taken_in_its_time(receives: bool) -> None:
    greeted = Greeted(receives=receives)
    greeted.wire.say(greeted.hello, Ping(7), Pong(7))
    assert [Pong(7)] == greeted.wire.sent
    greeted.go_on()
    assert 1 == len(greeted.wire.take(Hello))
    greeted.wire.say(ResumeFrame(1, []))
    greeted.world.settle()
    assert greeted.wire.connection.session.is_open


@pytest.mark.parametrize("orders", [("strict", "none"), ("none", "strict")])
@pytest.mark.parametrize("changes_back", [False, True])
def test_one_whose_order_another_changes_meanwhile_is_fed_in_its_own_or_not_at_all(
    orders: tuple[str, str], changes_back: bool
) -> None:
    """It comes again, and asks again; it is never told what another has asked for."""
    clock = Clock()
    log = FailingLog(MemoryLog(reactor=clock, limits=Limits()))
    world = NodeWorld(log=log, clock=clock)
    log.hold = True
    wires = [Wire(world), Wire(world)]
    for wire, order in zip(wires, orders, strict=True):
        receive = ReceiveOptions(subjects=["orders.>"], order=order)
        wire.say(Hello(VERSION, "billing", f"asks-{order}", HelloOptions(receive=receive)))
        world.settle()
    log.release()
    world.settle()
    for wire, order in zip(wires, orders, strict=True):
        (hello,) = wire.take(Hello)
        assert hello.options.receive is not None
        assert hello.options.receive.order == order
    if changes_back:
        Deferred.fromCoroutine(world.node.change_receiver("billing", order=orders[0]))
        world.settle()
    for wire in wires:
        wire.say(ResumeFrame(1, []))
    world.settle()
    fed = 0 if changes_back else 1
    assert not wires[fed].is_closed
    assert wires[1 - fed].is_closed
    world.peer("shop").transfer(1, "orders.new", [b"one"])
    world.settle()
    assert 1 == len(wires[fed].take(Transfer))


def test_what_is_said_of_an_epoch_that_is_over_counts_for_nothing_while_paused() -> None:
    world = NodeWorld()
    asks = {"subjects": ["orders.>"]}
    seated = world.peer("billing", incarnation="i1", receive=asks, inbox="box")
    world.peer("shop").transfer(1, "orders.new", [b"one"])
    world.settle()
    wire = Wire(world)
    receive = ReceiveOptions(subjects=["orders.>"])
    wire.say(Hello(VERSION, "billing", "i1", HelloOptions(receive=receive, inbox="box")))
    world.settle()
    seated.connection.send(ErrorFrame(ContentChanged.wire_code, "other content"))
    world.settle()
    Deferred.fromCoroutine(world.node.pause_receiver("billing", True))
    world.settle()
    position = 1 << 16
    wire.say(ResumeFrame(1, [(position, position)]))
    world.settle()
    Deferred.fromCoroutine(world.node.pause_receiver("billing", False))
    world.settle()
    again = world.peer("billing", incarnation="i2", receive=asks, inbox="box")
    world.settle()
    assert [position] == [frame.sequence for frame in again.take(Transfer)]
