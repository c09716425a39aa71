"""A receiver and nodes on one virtual clock: real sessions, backlogs and frames, no sockets.

Whatever is sent travels when the clock moves; `Wire.cut` loses what is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Queue
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.connection import Connection
from msgservice.core.backlog import Backlog
from msgservice.core.flight import Flight
from msgservice.core.frames import (
    VERSION,
    Ack,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    ReceiveOptions,
    Reply,
    decode_frame,
)
from msgservice.core.refusal import refusal_in
from msgservice.core.runs import Run, Settled
from msgservice.credentials import THIS_PROCESS
from msgservice.errors import FrameTooLarge, MalformedFrame, ProtocolError
from msgservice.identity.principal import Principal
from msgservice.interfaces import IChannel, IChannelUser
from msgservice.limits import Limits
from msgservice.message import Status, WireMessage, encode_messages, options_of
from msgservice.receiver.receiver import Receiver
from msgservice.records import Origin, Resume
from tests.kit.logins import LoginGate

Body = bytes | WireMessage


@implementer(IChannel)
class FakeChannel:
    """One end of a wire."""

    credentials = THIS_PROCESS
    unsent = 0
    heard_at = 0.0

    def __init__(self, clock: Clock, peer: str, limits: Limits) -> None:
        self.peer_address = peer
        self.is_established = False
        self.is_paused = False
        self.is_gone = False
        self.sent: list[Frame] = []  # everything, decoded, for tests to look at
        self.turns: list[list[bytes]] = []  # under way to the other end
        self.user: IChannelUser | None = None
        self.other: FakeChannel = self
        self._clock = clock
        self._limits = limits
        self._queue: list[bytes] = []

    def send(self, frame: bytes) -> None:
        if len(frame) > self._limits.frame_bytes:
            raise FrameTooLarge(len(frame), self._limits.frame_bytes)
        if self.is_gone:
            return
        with suppress(MalformedFrame):  # what a test sends may be wrong on purpose
            self.sent.append(decode_frame(frame))
        if not self._queue:
            self._clock.callLater(0, self._leave)
        self._queue.append(frame)

    def _leave(self) -> None:
        frames, self._queue = self._queue, []
        if frames:
            self.other.turns.append(frames)
            self.other.deliver()

    def deliver(self) -> None:
        while self.turns and not self.is_paused and not self.is_gone:
            assert self.user is not None
            self.user.frames_received(self.turns.pop(0))

    def send_now(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.send(frame)

    def push(self) -> None:
        """See `IChannel`."""

    def identified(self) -> None:
        """See `IChannel`."""

    def established(self) -> None:
        self.is_established = True

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self.deliver()

    def close(self) -> None:
        self._clock.callLater(0, self._leave)
        self._clock.callLater(0, self._lose, "closed")

    def abort(self) -> None:
        self._lose("aborted")

    def _lose(self, reason: str) -> None:
        for end in (self, self.other):
            if not end.is_gone:
                end.is_gone = True
                self._clock.callLater(0, end.tell_lost, reason)

    def tell_lost(self, reason: str) -> None:
        assert self.user is not None
        self.user.channel_lost(reason)


class ThreadedClock(Clock):
    """A clock whose threads may call back; `World.until` lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_from_threads: Queue[tuple[Callable[..., Any], Any, Any]] = Queue()

    def callFromThread(self, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> None:  # noqa: A002  # Twisted's
        self.calls_from_threads.put((callable, args, kwargs))


class Wire:
    """A connection: `near` is the receiver's end, `far` the node's."""

    def __init__(self, clock: Clock, near: IChannelUser, far: IChannelUser, limits: Limits) -> None:
        self.near = FakeChannel(clock, "node", limits)
        self.far = FakeChannel(clock, "receiver", limits)
        self.near.other, self.far.other = self.far, self.near
        self.near.user, self.far.user = near, far
        near.channel_opened(self.near)
        far.channel_opened(self.far)

    def cut(self) -> None:
        """Lose the connection and what is under way."""
        self.near.turns.clear()
        self.far.turns.clear()
        self.near.abort()


class Node:
    """What a node is to one receiver: a backlog, and a session and a flight for each connection."""

    def __init__(
        self,
        clock: Clock,
        *,
        name: str = "node",
        incarnation: str = "log.1",
        order: str = "strict",
        window: tuple[int, int] = (1000, 1 << 20),
        max_attempts: int = 0,
    ) -> None:
        self.clock = clock
        self.name, self.incarnation, self.order = name, incarnation, order
        self.limits = Limits()
        self.window = window
        self.backlog = Backlog(
            ordered=order == "strict",
            cursor=0,
            retry_delay=lambda attempts: 2.0 ** (attempts - 1),
            max_attempts=max_attempts,
        )
        self.connection: Connection | None = None
        self.flight: Flight | None = None  # of the connection
        self.hellos: list[Hello] = []
        self.resumes: list[Resume] = []
        self.answers: list[Ack | Nack] = []
        self.replies: list[Reply] = []
        self.byes: list[tuple[int, str]] = []
        self.settled: list[Settled] = []
        self.says_receive = True
        self.says_goodbye = True  # when the receiver has
        self.knows = True  # False: it does not look at answers, for tests that send frames by hand
        self.losses: list[str] = []
        self.gate: LoginGate | None = None  # by which others log in
        self.logged_in: list[Principal] = []
        self._timer: Any = None

    # --- for tests

    def offer(
        self,
        bodies: Sequence[Body],
        subject: str = "a",
        *,
        sequence: int | None = None,
        after: int | None = None,
        origin: Origin | None = None,
        flags: int = 0,
        lane: str | None = None,
    ) -> int:
        """Give a run to the backlog; return its first sequence."""
        first = self.backlog.loaded_to + 1 if sequence is None else sequence
        if after is None:
            after = first - 1
        messages = encode_messages(
            [b if isinstance(b, WireMessage) else WireMessage(b) for b in bodies]
        )
        if lane is None and self.order == "strict":
            lane = subject
        self.backlog.offer(
            Run(
                first,
                len(bodies),
                subject,
                lane,
                messages,
                len(messages),
                after,
                origin=origin,
                options=options_of(flags),
            )
        )
        self.pump()
        return first

    @property
    def acknowledged(self) -> list[tuple[int, int]]:
        """What was acknowledged, as ranges, rising."""
        return sorted((s.first, s.last) for s in self.settled if s.status is Status.ACKNOWLEDGED)

    @property
    def nacks(self) -> list[Nack]:
        return [a for a in self.answers if isinstance(a, Nack)]

    def make_user(self) -> Connection:
        return Connection(self, clock=self.clock, now=self.clock.seconds, limits=self.limits)

    def pump(self) -> None:
        """Send what may be sent, and come again when a retry is due."""
        connection, flight = self.connection, self.flight
        if connection is not None and connection.may_send:
            assert flight is not None
            connection.send_all([*flight.take_transfers(self.clock.seconds())])
        self.settled += self.backlog.take_settled()
        due = None if flight is None else flight.next_deadline()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if due is not None:
            self._timer = self.clock.callLater(max(0.0, due - self.clock.seconds()), self.pump)

    # --- Owner

    def channel_up(self, connection: Connection) -> None:
        if self.gate is not None:
            self.gate.watch(connection, self.logged_in.append)

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self.hellos.append(hello)
        receive = ReceiveOptions(order=self.order) if self.says_receive else None
        options = HelloOptions(receive=receive)
        connection.hello(Hello(VERSION, self.name, self.incarnation, options))
        connection.resume(Resume())

    def opened(self, connection: Connection, resume: Resume) -> None:
        older, self.connection = self.connection, connection
        if older is not None:
            self._end()
            older.bye(1, "replaced")
            older.close()
        self.resumes.append(resume)
        assert connection.session.peer_hello is not None
        self.backlog.receive_resume(resume.floor, resume.ranges)
        self.flight = Flight(
            self.backlog,
            own_window=self.window,
            window=connection.session.peer_hello.options.window,
            batch_max=1 << 20,
        )
        self.pump()

    def _end(self) -> None:
        flight, self.flight = self.flight, None
        assert flight is not None
        flight.end(self.clock.seconds(), lost=True)

    def received(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Ack):
            self.answers.append(frame)
            if self.knows:
                assert self.flight is not None
                self.flight.receive_acks(frame.ranges)
        elif isinstance(frame, Nack):
            self.answers.append(frame)
            assert self.flight is not None
            self.flight.receive_nack(
                frame.first,
                frame.last,
                refusal_in(frame),
                frame.delay / 1000,
                self.clock.seconds(),
            )
        else:
            assert isinstance(frame, Reply)
            self.replies.append(frame)

    def turn_ended(self, connection: Connection) -> None:
        self.pump()

    def writable(self, connection: Connection) -> None:
        self.pump()

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        self.byes.append((code, reason))
        if self.says_goodbye:
            connection.bye(0, "goodbye")

    def lost(self, connection: Connection, reason: str) -> None:
        self.losses.append(reason)
        if self.connection is connection:
            self.connection = None
            self._end()
            self.settled += self.backlog.take_settled()


class Dialler(Service):
    """Dials a node in this world, and again a second after a loss."""

    last_error: str | None = None

    def __init__(self, world: World, node: Node, make_user: Callable[[], IChannelUser]) -> None:
        self.wire: Wire | None = None
        self.dialled = 0
        self._world = world
        self._node = node
        self._make_user = make_user

    def startService(self) -> None:
        Service.startService(self)
        self._dial()

    def stopService(self) -> None:
        Service.stopService(self)
        if self.wire is not None and not self.wire.near.is_gone:
            self.wire.near.close()

    def _dial(self) -> None:
        if not self.running or (self.wire is not None and not self.wire.near.is_gone):
            return
        self.dialled += 1
        near = self._make_user()
        self.wire = Wire(self._world.clock, near, self._node.make_user(), self._world.limits)
        self._watch(self.wire)

    def _watch(self, wire: Wire) -> None:
        tell = wire.near.tell_lost

        def tell_and_dial(reason: str) -> None:
            tell(reason)
            self._world.clock.callLater(1, self._dial)

        wire.near.tell_lost = tell_and_dial  # type: ignore[method-assign]  # a test's ear


class World:
    """One receiver, its nodes, and what its handler was given."""

    def __init__(
        self,
        handler: Callable[..., Any] | None = None,
        *,
        node: Node | None = None,
        attach: bool = True,
        limits: Limits | None = None,
        **more: Any,
    ) -> None:
        self.clock = node.clock if node is not None else ThreadedClock()
        self.limits = limits if limits is not None else Limits()
        self.handled: list[bytes] = []
        self.node = Node(self.clock, order=more.get("order", "strict")) if node is None else node
        self.receiver = Receiver(
            self.clock,
            name="r",
            handler=self.handle if handler is None else handler,
            limits=self.limits,
            **more,
        )
        self.diallers: list[Dialler] = []
        if attach:
            self.attachment = self.attach(self.node)
            self.run()

    def handle(self, message: Any) -> None:
        self.handled.append(message.body)

    def attach(self, node: Node, **more: Any) -> Any:
        def dial(make_user: Callable[[], IChannelUser]) -> Dialler:
            self.diallers.append(Dialler(self, node, make_user))
            return self.diallers[-1]

        return self.receiver.attach_through(dial, address=f"world:{node.name}", **more)

    @property
    def wire(self) -> Wire:
        wire = self.diallers[0].wire
        assert wire is not None
        return wire

    def run(self, seconds: float = 0.0) -> None:
        """Let time pass; what is due at once happens, and what follows from it."""
        self.clock.advance(0)
        for _ in range(200):
            if not any(
                call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()
            ):
                break
            self.clock.advance(0)
        else:
            raise AssertionError("the world does not come to rest")
        while seconds > 1e-9:
            step = min(0.5, seconds)
            self.clock.advance(step)
            self.run()
            seconds -= step

    def until(self, condition: Callable[[], object]) -> None:
        """Let threads call back, until `condition()` is true; at most 20 s between two calls."""
        assert isinstance(self.clock, ThreadedClock)
        self.run()
        while not condition():
            function, args, kwargs = self.clock.calls_from_threads.get(timeout=60)
            function(*args, **kwargs)
            self.run()

    def stop(self) -> None:
        """Stop the receiver, and wait for it."""
        stopped = results_of(self.receiver.stop())
        self.until(lambda: stopped)
        assert stopped == [None]

    def reconnect(self) -> None:
        """Lose the connection, and have the next."""
        self.wire.cut()
        self.run(2)

    def change_order(self, order: str) -> Node:
        """An operator changes the order: the node ends the connection, and reads its log anew.

        Its backlog is empty then: what was not answered is to be offered again.
        """
        node = self.node
        node.order, node.backlog = order, Node(self.clock, order=order).backlog
        self.reconnect()
        return node

    def fails(self, error: ProtocolError) -> bool:
        return any(str(error) in loss for loss in self.node.losses)


def results_of(deferred: Deferred[Any]) -> list[Any]:
    """Return a list that holds the Deferred's result once there is one."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results
