"""Timers by a monotonic clock, in a reactor whose own clock jumps (rule 17)."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IReactorTime
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import ClientFactory, DatagramProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import AccumulatingProtocol
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from msgservice.clock import TICK, MonotonicTimers, Ticks, TimedReactor, monotonic_of, timed

HOUR = 3600.0


class TestTicks(Ticks):
    """Ticks that the test's time makes."""

    __test__ = False

    def start(self) -> None:
        self._is_read = True

    def stop(self) -> None:
        self._is_read = False

    def pass_one(self) -> None:
        if self._is_read:
            self._tick()

    @property
    def are_on(self) -> bool:
        return self._is_read


class Reactor(Clock):
    """A reactor of Twisted's kind: it waits by a clock that somebody sets."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = 1e9
        self.monotonic = 5.0
        self.ticks: TestTicks
        self.timers = MonotonicTimers(
            self, monotonic=lambda: self.monotonic, make_ticks=self._make_ticks
        )

    def _make_ticks(self, reactor: Any, tick: Callable[[], None]) -> Ticks:
        self.ticks = TestTicks(reactor, tick)
        return self.ticks

    def pass_seconds(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            for _ in range(10):
                self.monotonic += TICK / 10
                self.advance(TICK / 10)
            self.ticks.pass_one()

    def jump(self, seconds: float) -> None:
        """Set the wall clock, and nothing else."""
        self.rightNow += seconds


def later(reactor: Reactor, delay: float, into: list[float]) -> Any:
    began = reactor.monotonic
    return reactor.timers.callLater(delay, lambda: into.append(round(reactor.monotonic - began, 3)))


def test_the_timers_are_those_of_a_reactor() -> None:
    assert verifyObject(IReactorTime, Reactor().timers)


def test_calls_are_made_in_their_order_and_in_time() -> None:
    reactor, made = Reactor(), list[float]()
    for delay in (3.0, 1.0, 2.0, 0.0):
        later(reactor, delay, made)
    reactor.pass_seconds(5)
    assert [0.05, 1.0, 2.0, 3.0] == pytest.approx(made, abs=0.06)


@pytest.mark.parametrize("delay", [0.0, 0.2, 10.0])
def test_17_a_clock_that_goes_back_an_hour_delays_nothing_by_more_than_a_tick(
    delay: float,
) -> None:
    reactor, made = Reactor(), list[float]()
    later(reactor, delay, made)
    reactor.jump(-HOUR)
    reactor.pass_seconds(12)
    assert 1 == len(made)
    assert delay <= made[0] <= delay + TICK + 0.06


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_17_after_a_jump_all_is_in_time_again(jump: float) -> None:
    reactor, made = Reactor(), list[float]()
    later(reactor, 100.0, made)
    later(reactor, 0.0, made)
    reactor.jump(jump)
    reactor.pass_seconds(TICK)
    made.clear()
    later(reactor, 0.0, made)
    later(reactor, 5.0, made)
    reactor.pass_seconds(10)
    assert [0.05, 5.0] == pytest.approx(made, abs=0.06)


@pytest.mark.parametrize("delay", [0.0, 0.2, 10.0])
def test_17_a_clock_set_forward_and_back_within_a_tick_delays_nothing_by_more_than_two(
    delay: float,
) -> None:
    reactor, made = Reactor(), list[float]()
    later(reactor, 100.0, [])
    reactor.pass_seconds(TICK)
    reactor.jump(HOUR)
    later(reactor, delay, made)
    reactor.jump(-HOUR)
    reactor.pass_seconds(12)
    assert 1 == len(made)
    assert delay <= made[0] <= delay + 2 * TICK + 0.06


def test_17_a_clock_that_goes_forward_hastens_nothing() -> None:
    reactor, made = Reactor(), list[float]()
    later(reactor, 10.0, made)
    reactor.jump(HOUR)
    reactor.pass_seconds(9)
    assert [] == made
    reactor.pass_seconds(2)
    assert [10.0] == pytest.approx(made, abs=0.06)


@pytest.mark.parametrize("jump", [20.0, HOUR])
def test_17_of_two_calls_of_the_reactor_the_later_comes_first_where_its_clock_goes_forward(
    jump: float,
) -> None:
    """It was asked for before the jump, and the one that is due sooner after it."""
    reactor, came = Reactor(), list[float]()
    later(reactor, 10.0, came)
    reactor.jump(jump)
    later(reactor, 5.0, came)
    reactor.pass_seconds(4.0)
    assert came == []
    reactor.pass_seconds(8.0)
    assert came == pytest.approx([5.0, 10.0], abs=TICK)
    assert reactor.getDelayedCalls() == []


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_17_what_is_asked_for_between_a_jump_and_its_tick_is_in_time(jump: float) -> None:
    reactor, made = Reactor(), list[float]()
    later(reactor, 100.0, made)
    reactor.jump(jump)
    later(reactor, 1.0, made)
    reactor.pass_seconds(2)
    assert [1.0] == pytest.approx(made, abs=TICK + 0.06)
    reactor.pass_seconds(100)
    assert [1.0, 100.0] == pytest.approx(made, abs=TICK + 0.06)


def test_a_call_that_one_call_asks_for_is_not_made_inside_it() -> None:
    reactor, made = Reactor(), list[str]()

    def first() -> None:
        reactor.timers.callLater(0, lambda: made.append("second"))
        made.append("first")

    reactor.timers.callLater(0, first)
    assert [] == made
    reactor.advance(0)
    assert ["first", "second"] == made


def test_a_call_that_is_put_off_or_hastened_is_made_when_it_was_last_said() -> None:
    reactor, made = Reactor(), list[float]()
    off, sooner, soon = (later(reactor, delay, made) for delay in (2.0, 9.0, 0.0))
    off.reset(4.0)
    sooner.reset(1.0)
    soon.reset(3.0)
    reactor.pass_seconds(5)
    assert [1.0, 3.0, 4.0] == pytest.approx(made, abs=0.06)


@pytest.mark.parametrize("delay", [0.0, 7.0])
def test_nothing_is_left_in_the_reactor_when_nothing_waits(delay: float) -> None:
    reactor, made = Reactor(), list[float]()
    call = later(reactor, delay, made)
    assert [call] == reactor.timers.getDelayedCalls()
    assert reactor.ticks.are_on
    call.cancel()
    assert [] == reactor.getDelayedCalls() == reactor.timers.getDelayedCalls()
    assert not reactor.ticks.are_on
    later(reactor, delay, made)
    reactor.pass_seconds(8)
    assert 1 == len(made)
    assert [] == reactor.getDelayedCalls()
    assert not reactor.ticks.are_on


def test_calls_that_were_cancelled_are_not_kept() -> None:
    reactor, made = Reactor(), list[float]()
    for n in range(10_000):
        later(reactor, 100.0 + n, made).cancel()
        if n == 0:
            later(reactor, 1.0, made)
    assert len(reactor.timers._heap) < 200
    reactor.pass_seconds(2)
    assert [1.0] == pytest.approx(made, abs=0.06)


QUARTERS = st.integers(0, 40).map(lambda n: n / 4)  # seconds, exact in any sum
ASKED = st.one_of(
    st.tuples(st.just("call"), QUARTERS, st.just(0)),
    st.tuples(st.just("reset"), QUARTERS, st.integers(0, 9)),
    st.tuples(st.just("delay"), QUARTERS, st.integers(0, 9)),
    st.tuples(st.just("cancel"), QUARTERS, st.integers(0, 9)),
    st.tuples(st.just("pass"), QUARTERS, st.just(0)),
)


@given(st.lists(ASKED, max_size=60))
def test_whatever_is_asked_of_them_they_call_as_a_clock_does(
    asked: list[tuple[str, float, int]],
) -> None:
    reactor, clock = Reactor(), Clock()
    made, wanted = list[int](), list[int]()
    calls: list[tuple[Any, Any]] = []
    for what, seconds, number in [*asked, ("pass", 1000.0, 0)]:
        if what == "call":
            at = len(calls)
            ours = reactor.timers.callLater(seconds, made.append, at)
            calls.append((ours, clock.callLater(seconds, wanted.append, at)))
        elif what == "pass":
            reactor.monotonic += seconds
            reactor.advance(seconds)
            clock.advance(seconds)
            assert sorted(wanted) == sorted(made)
        elif calls:
            for call in calls[number % len(calls)]:
                if call.active():
                    getattr(call, what)(*(() if what == "cancel" else (seconds,)))
        waiting = [ours for ours, _ in calls if ours.active()]
        assert len(waiting) == len(reactor.timers.getDelayedCalls()) == len(clock.calls)
    assert [] == reactor.getDelayedCalls()


def test_to_hasten_a_call_looks_at_few_of_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor, made = Reactor(), list[float]()
    for n in range(5000):
        later(reactor, 100.0 + n, [])
    compared = 0
    less = DelayedCall.__lt__

    def counted(one: DelayedCall, other: DelayedCall) -> bool:
        nonlocal compared
        compared += 1
        return less(one, other)

    monkeypatch.setattr(DelayedCall, "__lt__", counted)
    for _ in range(100):
        later(reactor, 1.0, made).reset(0.5)
    assert compared <= 100 * 20
    reactor.pass_seconds(1)
    assert 100 == len(made)


def test_a_delay_that_has_passed_already_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="in the past"):
        Reactor().timers.callLater(-1.0, lambda: None)


def test_a_clock_of_a_test_is_the_only_time_there_is() -> None:
    clock = Clock()
    assert clock is timed(clock)
    assert clock.seconds == monotonic_of(clock)


def test_a_call_that_takes_back_the_last_of_its_turn_fails_nothing() -> None:
    reactor, made = Reactor(), list[str]()

    def first() -> None:
        second.cancel()  # nothing is waited for now
        reactor.timers.callLater(0, lambda: made.append("third"))
        made.append("first")

    reactor.timers.callLater(0, first)
    second = reactor.timers.callLater(0, lambda: made.append("second"))
    reactor.advance(0)
    assert ["first", "third"] == made


def test_17_a_tick_that_makes_such_a_call_goes_on_ticking() -> None:
    reactor, made = Reactor(), list[float]()
    reactor.timers.callLater(0, lambda: second.cancel())
    second = reactor.timers.callLater(0, lambda: made.append(-1.0))
    reactor.jump(-HOUR)
    reactor.monotonic += TICK
    reactor.ticks.pass_one()  # it notices the jump, and makes both calls itself
    later(reactor, 1.0, made)
    reactor.jump(-HOUR)
    reactor.pass_seconds(3)
    assert [1.0] == pytest.approx(made, abs=TICK + 0.06)


class Networked(Reactor):
    """Such a reactor that makes Twisted's own ports and connectors; no descriptor ever speaks."""

    connectTCP = PosixReactorBase.connectTCP
    connectUNIX = PosixReactorBase.connectUNIX
    listenTCP = PosixReactorBase.listenTCP
    listenUNIX = PosixReactorBase.listenUNIX
    listenUDP = PosixReactorBase.listenUDP

    def __init__(self) -> None:
        super().__init__()
        self.timed: Any = TimedReactor(self, self.timers)

    def addReader(self, reader: object) -> None: ...

    removeReader = addWriter = removeWriter = addReader


class Noting(ClientFactory):
    """Protocols and failures, as they come."""

    def __init__(self) -> None:
        self.failed: list[type[BaseException] | None] = []
        self.made: list[Any] = []

    def buildProtocol(self, addr: object) -> Any:
        self.made.append(AccumulatingProtocol())
        return self.made[-1]

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self.failed.append(reason.type)


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_17_a_dial_without_an_answer_times_out_whatever_the_clock_does(jump: float) -> None:
    reactor, factory = Networked(), Noting()
    with socket.create_server(("127.0.0.1", 0)) as unheard:
        reactor.timed.connectTCP(*unheard.getsockname(), factory, timeout=10)
        reactor.pass_seconds(1)
        reactor.jump(jump)
        reactor.pass_seconds(8)
        assert [] == factory.failed
        reactor.pass_seconds(2)
        assert [error.TimeoutError] == factory.failed


def test_17_a_dial_begins_though_the_clock_goes_back_in_that_turn(tmp_path: Path) -> None:
    reactor, factory = Networked(), Noting()
    reactor.timed.connectUNIX(str(tmp_path / "nobody"), factory)
    reactor.jump(-HOUR)
    reactor.pass_seconds(1)
    assert [error.ConnectError] == factory.failed


@pytest.mark.parametrize("kind", ["tcp", "unix", "udp"])
def test_17_a_port_closes_though_the_clock_goes_back_in_that_turn(
    kind: str, tmp_path: Path
) -> None:
    reactor = Networked()
    listen = {
        "tcp": lambda: reactor.timed.listenTCP(0, Noting(), interface="127.0.0.1"),
        "unix": lambda: reactor.timed.listenUNIX(str(tmp_path / "here"), Noting()),
        "udp": lambda: reactor.timed.listenUDP(0, DatagramProtocol(), "127.0.0.1"),
    }[kind]
    closed = listen().stopListening()
    reactor.jump(-HOUR)
    reactor.pass_seconds(1)
    assert closed.called


def test_17_a_connection_is_aborted_though_the_clock_goes_back_in_that_turn() -> None:
    reactor, factory = Networked(), Noting()
    port = reactor.timed.listenTCP(0, factory, interface="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port.getHost().port)):
        port.doRead()
        (protocol,) = factory.made
        protocol.transport.abortConnection()
        reactor.jump(-HOUR)
        reactor.pass_seconds(1)
        assert protocol.closed
    port.stopListening()
    reactor.pass_seconds(1)
