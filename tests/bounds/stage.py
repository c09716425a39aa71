"""A node, a client or a receiver on a clock that runs turn by turn, and what each turn costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import apsw
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.connection import Connection
from msgservice.core.frames import VERSION, Hello, HelloOptions, Transfer, encode_frame
from msgservice.limits import Limits
from msgservice.log.memory import MemoryLog
from msgservice.message import WireMessage, encode_messages
from msgservice.records import Appended, Group
from tests.bounds.meter import Meter, TooMuchWork, unmetered
from tests.kit.channels import Recorder
from tests.kit.node_double import Pipe
from tests.kit.nodes import NodeWorld, ScriptedPeer

T = TypeVar("T")
PROGRESS_STEPS = 1000  # between two looks at SQLite's work


class TurnClock(Clock):
    """A clock whose turns are a real reactor's: what is called for now comes in the next."""

    def turn(self, meter: Meter | None = None) -> bool:
        """Run what is due, and nothing that it brings up; False if there was nothing."""
        self._sortCalls()
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in due:
            if call in self.calls:
                self.calls.remove(call)
                call.called = 1
                if meter is None:
                    call.func(*call.args, **call.kw)
                else:
                    with meter.turn(getattr(call.func, "__qualname__", repr(call.func))):
                        call.func(*call.args, **call.kw)
        return bool(due)


class MeteredLog(MemoryLog):
    """A log whose jobs are a thread's: what they cost is counted for themselves.

    So is what SQLite does for a group that is written in the turn that asks.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.meter: Meter | None = None
        self.steps = 0
        self.steps_worst = 0
        self.steps_all = 0

    def _later(self, job: Callable[[], T]) -> Deferred[T]:
        waiter: Deferred[T] = Deferred()

        def run() -> None:
            with unmetered():
                try:
                    result = self._metered(job)
                except Exception:
                    failure = Failure()
                    result = failure  # type: ignore[assignment]  # told below, outside
            if isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(result)

        self._reactor.callLater(self._delay, run)
        return waiter

    def append_now(self, group: Group) -> Appended | None:
        """See `ILog.append_now`."""
        append_now = super().append_now
        return self._stepped(lambda: append_now(group))

    def _metered(self, job: Callable[[], T]) -> T:
        meter = self.meter
        if meter is None:
            return job()
        with meter.turn("a job of the log"):
            return self._stepped(job)

    def _stepped(self, job: Callable[[], T]) -> T:
        if self.meter is None:
            return job()
        db: apsw.Connection = self._store.db
        self.steps = 0

        def progress() -> bool:
            self.steps += PROGRESS_STEPS
            return False

        db.set_progress_handler(progress, PROGRESS_STEPS)
        try:
            return job()
        finally:
            db.set_progress_handler(None)
            self.steps_worst = max(self.steps_worst, self.steps)
            self.steps_all += self.steps


class NodeStage(NodeWorld):
    """A node; `meter` counts its reactor's turns, `log_meter` those of its writer.

    `inline`: whether groups may be written in the turn that asks; None: as the switch says.
    """

    clock: TurnClock

    def __init__(
        self, limits: Limits | None = None, *, inline: Literal["on", "off"] | None = None
    ) -> None:
        clock = TurnClock()
        limits = limits or Limits()
        self.metered = MeteredLog(reactor=clock, limits=limits, inline=inline)
        self.numbers = itertools.count(1)
        super().__init__(limits, log=self.metered, clock=clock)

    def far(self, peer: ScriptedPeer) -> Connection:
        """The node's end of a peer's connection."""
        found = next(
            one.connection
            for one in self.node.parts.connections.peers
            if one.name == peer.hello.name and one.connection is not None
        )
        assert found is not None
        return found

    def bare(self) -> Connection:
        """A connection of the node to which nothing was said yet."""
        near = Pipe(self.clock, "node", self.limits.frame_bytes)
        pipe = Pipe(self.clock, "peer", self.limits.frame_bytes)
        near.other, pipe.other = pipe, near
        near.user = Recorder()
        connection = Connection(
            self.node.parts.connections.make_peer(None),
            clock=self.clock,
            now=self.clock.seconds,
            limits=self.limits,
        )
        pipe.user = connection
        connection.channel_opened(pipe)
        return connection

    def feed(
        self, connection: Connection, frames: Sequence[bytes], meter: Meter, log_meter: Meter
    ) -> None:
        """Hand it these as one read, and let all happen that follows, turn by turn."""
        self.metered.meter = log_meter
        try:
            with meter.turn("the read"):
                connection.frames_received(list(frames))
            for _ in range(5000):
                if not self.clock.turn(meter):
                    self.clock.rightNow += 0.002
                    if not self.clock.turn(meter):
                        break
        except TooMuchWork:
            pass
        finally:
            self.metered.meter = None

    def fill(self, count: int, *, batch: int = 1, lanes: int = 1) -> None:
        """Let a producer hand in so many messages, `batch` in a run, on so many subjects."""
        shop = self.peer(f"shop{next(self.numbers)}")
        messages = msgspec.Raw(encode_messages([WireMessage(b"x")] * batch))
        for number in range(count // batch):
            first = 1 + number * batch
            shop.connection.send(Transfer(first, f"orders.{number % lanes}", messages))
            if first % 8192 < batch:
                self.settle()
        self.settle()


def hello(name: str = "peer", **options: Any) -> bytes:
    return encode_frame(Hello(VERSION, name, "i1", HelloOptions(**options)))
