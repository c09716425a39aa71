"""The reactor of `msgservice node`: calls at the end of a turn, and readers without a context."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import LogEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.cli import reactor as module
from msgservice.clock import MonotonicTimers

pytestmark = pytest.mark.skipif(not module.IS_HAD, reason="there is no epoll here")


@pytest.fixture
def reactor() -> Any:
    made = module.NodeReactor()
    yield made
    for descriptor in made.removeAll():
        descriptor.connectionLost(Failure(KeyError()))
    made._poller.close()


@implementer(IReadDescriptor)
class Reader:
    """The reading end of a pipe that has something to be read."""

    def __init__(self, error: Exception | None = None) -> None:
        self._read, write = os.pipe()
        os.write(write, b"x")
        os.close(write)
        self._error = error
        self.read = 0
        self.lost: list[Failure] = []

    def fileno(self) -> int:
        return self._read

    def logPrefix(self) -> str:
        return "reader"

    def doRead(self) -> None:
        self.read += 1
        if self._error is not None:
            raise self._error

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)
        os.close(self._read)


def turn(reactor: Any) -> None:
    """One turn, as the reactor's main loop makes it; it waits for as long as it would."""
    reactor.runUntilCurrent()
    reactor.doIteration(reactor.timeout())


def test_a_call_at_the_end_of_a_turn_is_made_before_anything_is_waited_for(reactor: Any) -> None:
    made: list[str] = []
    reactor.callLater(3600, made.append, "a timer")
    reactor.at_turns_end(lambda: made.append("the end"))

    assert 0.0 == reactor.timeout()
    reactor.runUntilCurrent()

    assert ["the end"] == made
    assert reactor.timeout() > 3000


def test_what_such_a_call_asks_for_is_of_the_next_turn(reactor: Any) -> None:
    made: list[int] = []

    def call() -> None:
        made.append(len(made))
        reactor.at_turns_end(call)

    reactor.at_turns_end(call)
    reactor.runUntilCurrent()
    assert [0] == made

    reactor.runUntilCurrent()
    assert [0, 1] == made


def test_a_call_that_was_cancelled_is_not_made(reactor: Any) -> None:
    made: list[str] = []
    reactor.at_turns_end(lambda: made.append("cancelled")).cancel()
    reactor.at_turns_end(lambda: made.append("made"))

    reactor.runUntilCurrent()

    assert ["made"] == made


def test_a_call_that_fails_keeps_no_other_from_being_made(
    reactor: Any, logged_failures: list[LogEvent]
) -> None:
    made: list[str] = []

    def fail() -> None:
        raise ValueError("a fault of its own")

    reactor.at_turns_end(fail)
    reactor.at_turns_end(lambda: made.append("made"))

    reactor.runUntilCurrent()

    assert ["made"] == made
    logged_failures.clear()  # by Twisted, where something listens to its old log


def test_the_timers_of_a_node_wait_for_no_timer_of_the_reactor_to_be_called_at_once(
    reactor: Any,
) -> None:
    timers = MonotonicTimers(reactor)
    made: list[str] = []
    timers.callLater(0, made.append, "first")
    timers.callLater(0, made.append, "second")
    assert [] == reactor.getDelayedCalls()

    reactor.runUntilCurrent()

    assert ["first", "second"] == made


def test_a_reader_that_fails_is_lost_and_no_other(
    reactor: Any, logged_failures: list[LogEvent]
) -> None:
    wrong, right = Reader(ValueError("a fault of its own")), Reader()
    reactor.addReader(wrong)
    reactor.addReader(right)

    turn(reactor)

    assert ["a fault of its own"] == [str(one.value) for one in wrong.lost]
    assert 1 == right.read
    assert [] == right.lost
    logged_failures.clear()  # by Twisted, where something listens to its old log


def test_a_reader_that_one_before_it_has_ended_is_not_read(reactor: Any) -> None:
    readers: list[Reader] = []

    class Ender(Reader):
        def doRead(self) -> None:
            super().doRead()
            for other in readers:
                if other is not self:
                    reactor.removeReader(other)

    readers += [Ender(), Ender()]
    for one in readers:
        reactor.addReader(one)

    turn(reactor)

    assert 1 == sum(one.read for one in readers)


def test_who_has_a_reactor_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module.INSTALLED, object())
    before = sys.modules[module.INSTALLED]

    module.install()

    assert before is sys.modules[module.INSTALLED]


def test_the_command_runs_on_it(tmp_path: Path) -> None:
    program = """
import os, sys
from msgservice.cli.reactor import NodeReactor

def run(self):
    print(type(self).__name__, flush=True)
    os._exit(0)  # the node has begun, and has threads

NodeReactor.run = run
from msgservice.cli.main import main
sys.argv = ["msgservice", "node", "--data", sys.argv[1], "--listen", "tcp:0:interface=127.0.0.1"]
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "node")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "NodeReactor" in ended.stdout.splitlines(), ended.stderr
