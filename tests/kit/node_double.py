"""A node for the client's tests: real sessions, real inboxes, a log that is a list.

It speaks through `connection.Connection`, so what the client meets is the protocol and not a
script; a test says what the node shall do (`answering`, `refusal`, `audience`), and tells states.
Channels are pipes on a `Clock` (`MemoryConnector`), or real ones (`NodeDouble.make_user`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from zope.interface import implementer

from msgservice.administration import RETELL
from msgservice.clock import monotonic_of
from msgservice.connection import Connection
from msgservice.core import refusal as refusals
from msgservice.core.frames import (
    VERSION,
    AudienceFrame,
    Frame,
    Hello,
    HelloOptions,
    Reply,
    Request,
    Routed,
    StatusFrame,
    Transfer,
)
from msgservice.core.inbox import Inbox
from msgservice.credentials import THIS_PROCESS
from msgservice.errors import FrameTooLarge, NoResponder, NotAuthenticated
from msgservice.identity.principal import Principal
from msgservice.interfaces import IChannel, IChannelUser, IConnector
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import Action, Status, WireMessage, decode_messages
from msgservice.node.replies import message as answer_message
from msgservice.node.replies import refusal
from msgservice.records import Resume
from tests.kit.logins import LoginGate

Refusal = tuple[Action, int, str] | tuple[Action, int, str, int, str]  # … code, about


@implementer(IChannel)
class Pipe:
    """One end of a connection inside the process; what is sent arrives in the next turn."""

    credentials = THIS_PROCESS
    unsent = 0
    heard_at = 0.0

    def __init__(self, clock: Any, peer: str, frame_bytes: int) -> None:
        self.peer_address = peer
        self.user: IChannelUser | None = None
        self.other: Pipe | None = None
        self.is_down = False
        self.is_established = self.is_identified = False
        self._clock = clock
        self._frame_bytes = frame_bytes
        self._queue: list[bytes] = []
        self._due: IDelayedCall | None = None

    def send(self, frame: bytes) -> None:
        if len(frame) > self._frame_bytes:
            raise FrameTooLarge(len(frame), self._frame_bytes)
        if not self.is_down:
            self._queue.append(frame)
            if self._due is None:
                self._due = self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        self._due = None
        frames, self._queue = self._queue, []
        other = self.other
        if other is not None and not other.is_down and other.user is not None and frames:
            other.user.frames_received(frames)

    def send_now(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.send(frame)

    def push(self) -> None:
        pass

    def identified(self) -> None:
        self.is_identified = True

    def established(self) -> None:
        self.is_established = True

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        if not self.is_down:
            self._clock.callLater(0, self.cut)

    def abort(self) -> None:
        self.cut()

    def cut(self, reason: str = "connection lost") -> None:
        """The connection has gone, with what was under way; both ends hear of it next turn."""
        for end in (self, self.other):
            if end is not None and not end.is_down:
                end.is_down = True
                if end._due is not None:
                    end._due.cancel()
                assert end.user is not None
                self._clock.callLater(0, end.user.channel_lost, reason)


@implementer(IConnector)
class MemoryConnector(Service):
    """Dials a `NodeDouble`, again half a second after each failure."""

    address = "memory"

    def __init__(self, node: NodeDouble, make_user: Callable[[], IChannelUser]) -> None:
        self.channel: Pipe | None = None
        self.attempts = self.failures = 0
        self.last_error: str | None = None
        self._node = node
        self._make_user = make_user
        self._wait: IDelayedCall | None = None
        self._stopping: Deferred[None] | None = None

    @property
    def next_attempt_in(self) -> float | None:
        if self._wait is None or not self._wait.active():
            return None
        left: float = self._wait.getTime() - self._node.clock.seconds()
        return left

    def startService(self) -> None:
        super().startService()
        self._wait = self._node.clock.callLater(0, self._dial)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._wait is not None and self._wait.active():
            self._wait.cancel()
        if self.channel is None or self.channel.is_down:
            return succeed(None)
        self._stopping = Deferred()
        self.channel.close()
        return self._stopping

    def poke(self) -> None:
        pass

    def _dial(self) -> None:
        self.attempts += 1
        if not self._node.is_up:
            self._failed("connection refused")
            return
        pipe = Pipe(self._node.clock, "node", self._node.limits.frame_bytes)
        far = Pipe(self._node.clock, "client", self._node.limits.frame_bytes)
        pipe.other, far.other = far, pipe
        far.user = self._node.make_user()
        self.channel = pipe
        pipe.user = _Watched(self._make_user(), self)
        far.user.channel_opened(far)
        pipe.user.channel_opened(pipe)

    def _failed(self, reason: str) -> None:
        self.channel = None
        self.failures += 1
        self.last_error = reason
        if self._stopping is not None:
            self._stopping.callback(None)
        elif self.running:
            self._wait = self._node.clock.callLater(0.5, self._dial)


@implementer(IChannelUser)
class _Watched:
    """Passes all on, and tells the connector of the end."""

    def __init__(self, user: IChannelUser, connector: MemoryConnector) -> None:
        self._user, self._connector = user, connector
        self.channel_opened = user.channel_opened
        self.frames_received = user.frames_received
        self.channel_failed = user.channel_failed
        self.channel_writable = user.channel_writable
        self._lost = user.channel_lost

    def channel_lost(self, reason: str) -> None:
        self._lost(reason)
        self._connector._failed(getattr(self._user, "refusal", None) or reason)  # as `Connector`


class Stored:
    """What the double took: one message."""

    def __init__(
        self, incarnation: str, sequence: int, transfer: Transfer, message: WireMessage
    ) -> None:
        self.incarnation, self.sequence = incarnation, sequence
        self.subject, self.to, self.flags = transfer.subject, transfer.to, transfer.flags
        self.message = message
        self.body = message.body


class NodeDouble:
    """See the module. The `connection.Owner` of all its connections."""

    def __init__(self, clock: Any, limits: Limits | None = None) -> None:
        self.clock = clock
        self.limits = limits or Limits()
        self.log_id = "log-1"
        self.max_batch: int | None = None
        self.window: tuple[int, int] | None = None
        self.is_up = True
        self.answering = True  # else transfers are taken, and acknowledged later
        self.refusal: Callable[[Transfer], Refusal | None] = lambda transfer: None
        self.audience: Callable[[Transfer], tuple[str, ...]] = lambda transfer: ("r1", "r2")
        self.on_request: Callable[[Connection, Request], None] = lambda connection, request: None
        self.connections: list[Connection] = []
        self.hellos: list[Hello] = []
        self.features: list[str] | None = None
        self.byes: list[int] = []  # their codes
        self.transfers: list[Transfer] = []
        self.stored: list[Stored] = []
        self.requests: list[Request] = []
        self.inboxes: dict[str, Inbox] = {}
        self.routed: dict[str, list[Routed]] = {}  # by incarnation
        self.states: dict[str, list[StatusFrame]] = {}
        self._audiences: dict[tuple[str, ...], int] = {}
        self.name = "node"
        self.gate: LoginGate | None = None  # then it asks for a login
        self.logged_in: dict[Connection, Principal] = {}
        self.knows_retell = True
        self.fails_retell: list[msgspec.Raw] = []  # answers that are no: they go first
        self._told: set[int] = set()
        self._unsaid: dict[Connection, list[Routed]] = {}  # goes before the ACK
        self._number = 0
        self._now = monotonic_of(clock)

    # --- what a test does

    def make_user(self) -> Connection:
        return Connection(self, clock=self.clock, now=self._now, limits=self.limits)

    @property
    def connection(self) -> Connection:
        """The newest that still stands."""
        return self.connections[-1]

    def bodies(self, subject: str | None = None) -> list[bytes]:
        return [s.body for s in self.stored if subject in (None, s.subject)]

    def cut(self) -> None:
        """Lose all connections."""
        for connection in list(self.connections):
            connection.abort()

    def answer(self) -> None:
        """Send the answers that are due."""
        self.answering = True
        for connection in self.connections:
            self.turn_ended(connection)

    def say(self, name: str, status: Status, *ranges: tuple[int, int], reason: str = "") -> None:
        """Tell states of the newest incarnation, and remember them."""
        incarnation = self.hellos[-1].incarnation
        frame = StatusFrame(incarnation, name, int(status), list(ranges), reason)
        self.states.setdefault(incarnation, []).append(frame)
        for connection in self.connections:
            connection.send(frame)

    def goes_on(self, before: NodeDouble) -> None:
        """Be the node that `before` was, and know what it had taken and told."""
        self.inboxes, self.routed = before.inboxes, before.routed
        self.states, self._audiences = before.states, before._audiences
        self._number = before._number

    def forget(self) -> None:
        """Come back from a backup that has nothing."""
        self.log_id = "log-2"
        self.forget_incarnations()

    def forget_incarnations(self) -> None:
        """Forget all senders, as a node does with those that have been away for long."""
        self.inboxes.clear()
        self.routed.clear()

    # --- connection.Owner

    def channel_up(self, connection: Connection) -> None:
        self.connections.append(connection)
        if self.gate is not None:
            self.gate.watch(connection, lambda who: self.logged_in.update({connection: who}))

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self.hellos.append(hello)
        if self.gate is not None and connection not in self.logged_in:
            raise NotAuthenticated("this node asks for a login")
        options = HelloOptions(max_batch=self.max_batch, window=self.window, features=self.features)
        connection.hello(Hello(VERSION, self.name, self.log_id, options))
        inbox = self.inboxes.setdefault(hello.incarnation, Inbox())
        inbox.reconnect()
        connection.resume(inbox.resume())

    def opened(self, connection: Connection, resume: Resume) -> None:
        self._told.clear()
        self._tell_states(connection, self._hello(connection).options.status_from or 1)

    def _tell_states(self, connection: Connection, first: int, last: int = INTEGER_MAX) -> None:
        incarnation = self._hello(connection).incarnation
        for frame in self.routed.get(incarnation, ()):
            if frame.last >= first and frame.first <= last:
                self._tell_audience(connection, frame.audience)
                connection.send(frame)
        for state in self.states.get(incarnation, ()):
            ranges = [(max(low, first), min(high, last)) for low, high in state.ranges]
            wanted = [(low, high) for low, high in ranges if low <= high]
            if wanted:
                connection.send(msgspec.structs.replace(state, ranges=wanted))

    def _retell(self, connection: Connection, request: Request) -> None:
        (asked,) = decode_messages(request.messages)
        said = msgspec.json.decode(asked.body)
        first = int(said["id"].rsplit("/", 1)[1])
        if self.fails_retell:
            connection.send(Reply([(request.id, False, self.fails_retell.pop(0))]))
        elif self.knows_retell:
            status_from = self._hello(connection).options.status_from or 1
            self._tell_states(connection, max(first, status_from), first + said["count"] - 1)
            connection.send(Reply([(request.id, True, answer_message(b"{}"))]))
        else:
            no = refusal("nobody answers", NoResponder.refusal_code)
            connection.send(Reply([(request.id, False, no)]))

    def received(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Request):
            self.requests.append(frame)
            if frame.subject == RETELL.right:
                self._retell(connection, frame)
            else:
                self.on_request(connection, frame)
            return
        assert isinstance(frame, Transfer), frame
        self.transfers.append(frame)
        incarnation = self._hello(connection).incarnation
        inbox = self.inboxes[incarnation]
        messages = decode_messages(frame.messages)
        arrival = inbox.receive_transfer(frame, len(messages))
        if arrival is None:
            return
        refusal = self.refusal(frame)
        for first, last in arrival.parts:
            if refusal is not None:
                action, delay_ms, *said = refusal
                inbox.refused(arrival, first, last, refusals.Refusal(action, *said), delay_ms)
                continue
            for sequence in range(first, last + 1):
                message = messages[sequence - frame.sequence]
                self.stored.append(Stored(incarnation, sequence, frame, message))
            self._route(connection, frame, first, last)
            inbox.taken(arrival, first, last)

    def _route(self, connection: Connection, transfer: Transfer, first: int, last: int) -> None:
        names = self.audience(transfer)
        number = self._audiences.setdefault(names, len(self._audiences) + 1)
        self._number += 1
        routed = Routed(first, last, number, self._number << 16)
        self.routed.setdefault(self._hello(connection).incarnation, []).append(routed)
        self._unsaid.setdefault(connection, []).append(routed)

    def _tell_audience(self, connection: Connection, number: int) -> None:
        if number not in self._told:
            self._told.add(number)
            names = next(names for names, n in self._audiences.items() if n == number)
            connection.send(AudienceFrame(number, list(names)))

    def turn_ended(self, connection: Connection) -> None:
        if self.answering and connection.session.peer_hello is not None:
            inbox = self.inboxes[self._hello(connection).incarnation]
            for routed in self._unsaid.pop(connection, ()):
                self._tell_audience(connection, routed.audience)
                connection.send(routed)
            connection.send_all(list(inbox.answers.take_frames()))

    def writable(self, connection: Connection) -> None:
        pass

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        self.byes.append(code)

    def lost(self, connection: Connection, reason: str) -> None:
        self._unsaid.pop(connection, None)
        if connection in self.connections:
            self.connections.remove(connection)

    def _hello(self, connection: Connection) -> Hello:
        assert connection.session.peer_hello is not None
        return connection.session.peer_hello
