"""A node on a memory log and a `Clock`, and peers that say exactly what a test tells them to.

world = NodeWorld()
shop = world.peer("shop", status_from=1)
billing = world.peer("billing", receive={"subjects": ["orders.>"]})
shop.transfer(1, "orders.new", [b"one"])
world.settle()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from msgservice.administration import ReceiverState
from msgservice.connection import Connection
from msgservice.core.frames import (
    VERSION,
    Ack,
    Frame,
    Hello,
    HelloOptions,
    Nack,
    ReceiveOptions,
    Reply,
    Request,
    StatusFrame,
    Transfer,
)
from msgservice.credentials import THIS_PROCESS, Credentials
from msgservice.errors import LogError, LogUnavailable
from msgservice.identity.users import Users
from msgservice.interfaces import ILog, ITransport
from msgservice.limits import Limits, Rate
from msgservice.log.memory import MemoryLog
from msgservice.message import WireMessage, decode_messages, encode_messages
from msgservice.node.gate import OWN, Door
from msgservice.node.node import Node
from msgservice.records import Group, History, ReceiverRow, Resume
from msgservice.transport.reach import networks_of
from tests.kit.channels import connect_locally

T = TypeVar("T")


class ScriptedPeer:
    """A client of the node (`connection.Owner`) that answers nothing by itself."""

    def __init__(self, world: NodeWorld, hello: Hello, resume: Resume) -> None:
        self.world = world
        self.hello = hello
        self.resume = resume
        self.frames: list[Frame] = []
        self.node_hello: Hello | None = None
        self.node_resume: Resume | None = None
        self.bye: tuple[int, str] | None = None
        self.lost_because: str | None = None
        self.answering = False  # ACK every transfer at the end of the turn
        self.connection = Connection(
            self, clock=world.clock, now=world.clock.seconds, limits=world.limits
        )

    # --- connection.Owner

    def channel_up(self, connection: Connection) -> None:
        connection.hello(self.hello)

    def greeted(self, connection: Connection, hello: Hello) -> None:
        self.node_hello = hello
        connection.resume(self.resume)

    def opened(self, connection: Connection, resume: Resume) -> None:
        self.node_resume = resume

    def received(self, connection: Connection, frame: Frame) -> None:
        self.frames.append(frame)

    def turn_ended(self, connection: Connection) -> None:
        if self.answering:
            for transfer in self.take(Transfer):
                self.ack(transfer)

    def writable(self, connection: Connection) -> None:
        pass

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        self.bye = (code, reason)

    def lost(self, connection: Connection, reason: str) -> None:
        self.lost_because = reason

    # --- what a test says

    def transfer(self, sequence: int, subject: str, bodies: list[bytes], **fields: Any) -> None:
        messages = encode_messages([WireMessage(body) for body in bodies])
        self.connection.send(Transfer(sequence, subject, msgspec.Raw(messages), **fields))

    def ack(self, transfer: Transfer) -> None:
        last = transfer.sequence + len(decode_messages(transfer.messages)) - 1
        after = transfer.sequence - 1 if transfer.after is None else transfer.after
        self.connection.send(Ack([(after + 1, last)]))

    def nack(self, first: int, last: int, action: int, delay: int = 0, reason: str = "") -> None:
        self.connection.send(Nack(first, last, action, delay, reason))

    def request(self, subject: str, arguments: dict[str, Any]) -> tuple[bool, Any]:
        self.ask(subject, arguments)
        return self.answer()

    def ask(self, subject: str, arguments: dict[str, Any]) -> None:
        message = WireMessage(msgspec.json.encode(arguments))
        self.connection.send(Request(1, subject, msgspec.Raw(encode_messages([message]))))
        self.world.settle()

    def answer(self) -> tuple[bool, Any]:
        """What became of what was asked last."""
        (reply,) = self.take(Reply)
        _, ok, raw = reply.replies[0]
        body = msgspec.msgpack.decode(raw, type=WireMessage).body
        return ok, msgspec.json.decode(body) if ok else body.decode()

    # --- what a test looks at

    def take(self, kind: type[T]) -> list[T]:
        """The frames of this kind that came, taken out."""
        found: list[T] = [frame for frame in self.frames if isinstance(frame, kind)]
        self.frames = [frame for frame in self.frames if not isinstance(frame, kind)]
        return found

    def bodies(self) -> list[bytes]:
        """The bodies of all transfers that came, taken out."""
        return [
            message.body
            for transfer in self.take(Transfer)
            for message in decode_messages(transfer.messages)
        ]

    def statuses(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """(receiver, state) -> ranges, of all that came, taken out."""
        found: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for frame in self.take(StatusFrame):
            found.setdefault((frame.receiver, frame.state), []).extend(frame.ranges)
        return found


class FailingLog:
    """A log whose next group fails with `error`, or is held back until `release`."""

    def __init__(self, log: ILog) -> None:
        self._log = log
        self.fail_next = self.fail_always = False
        self.error: LogError = LogUnavailable("the disk says no")
        self.hold = False
        self._held: list[tuple[Group, Deferred[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append_now(self, group: Group) -> None:
        """What becomes of a group is decided in `append`."""

    def append(self, group: Group) -> Deferred[Any]:
        if self.fail_next or self.fail_always:
            self.fail_next = False
            return fail(self.error)
        if self.hold:
            waiter: Deferred[Any] = Deferred()
            self._held.append((group, waiter))
            return waiter
        appended: Deferred[Any] = self._log.append(group)
        return appended

    def refuse(self) -> None:
        """Fail what was held back."""
        self.hold = False
        held, self._held = self._held, []
        for _, waiter in held:
            waiter.errback(self.error)

    def release(self) -> None:
        self.hold = False
        held, self._held = self._held, []
        for group, waiter in held:
            self._log.append(group).chainDeferred(waiter)


class LateLog:
    """A log whose reader is late while `is_late`: what was asked is read when `go_on` says so."""

    def __init__(self, log: ILog) -> None:
        self._log = log
        self.is_late = False
        self._asked: list[tuple[str, tuple[Any, ...], Deferred[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, *arguments: Any) -> Deferred[Any]:
        return self._ask("read", arguments)

    def history(self, *arguments: Any) -> Deferred[Any]:
        return self._ask("history", arguments)

    def replay(self, *arguments: Any) -> Deferred[Any]:
        return self._ask("replay", arguments)

    def _ask(self, name: str, arguments: tuple[Any, ...]) -> Deferred[Any]:
        if not self.is_late:
            answer: Deferred[Any] = getattr(self._log, name)(*arguments)
            return answer
        waiter: Deferred[Any] = Deferred()
        self._asked.append((name, arguments, waiter))
        return waiter

    def go_on(self) -> None:
        """Read what was asked meanwhile, in its order, from what the log has now."""
        self.is_late = False
        asked, self._asked = self._asked, []
        for name, arguments, waiter in asked:
            getattr(self._log, name)(*arguments).chainDeferred(waiter)


class CountingLog:
    """A log that counts the pieces of all histories that it is asked for."""

    def __init__(self, log: ILog) -> None:
        self._log = log
        self.pieces = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def history(self, *asked: Any) -> Deferred[History]:
        page: Deferred[History] = self._log.history(*asked)
        return page.addCallback(self._count)

    def _count(self, page: History) -> History:
        self.pieces += len(page.pieces)
        return page


class NodeWorld:
    """See the module."""

    def __init__(
        self,
        limits: Limits | None = None,
        log: Any = None,
        clock: Clock | None = None,
        rate: Rate | None = None,
        rates: dict[str, Rate] | None = None,
        transports: Sequence[ITransport] = (),
        users: Users | None = None,
        insecure: bool = False,
        configured: Sequence[ReceiverRow] = (),
    ) -> None:
        self.users, self.insecure, self.configured = users, insecure, configured
        self.transports = transports
        self.rate, self.rates = rate, rates
        self.clock = Clock() if clock is None else clock
        self.limits = Limits() if limits is None else limits
        self.log = MemoryLog(reactor=self.clock, limits=self.limits) if log is None else log
        self.failures: list[Exception] = []
        self.start()

    def start(self) -> None:
        """Start a node on the log that is there."""
        self.node = Node(
            self.clock,
            self.log,
            limits=self.limits,
            rate=self.rate,
            rates=self.rates,
            users=self.users,
            insecure=self.insecure,
            networks=networks_of(["127.0.0.0/8"]),  # which users of a test may give
            receivers=self.configured,
            rng=lambda: 1.0,
            failed=self.failures.append,
        )
        for transport in self.transports:
            self.node.transports.register(transport)
        self.node.startService()
        self.settle()

    def resume(self, sender: str, incarnation: str) -> Resume:
        """What the log has taken of an incarnation."""
        found: list[Resume] = []
        self.log.resume(sender, incarnation).addCallback(found.append)
        self.clock.advance(0)
        (resume,) = found
        return resume

    def peer(
        self,
        name: str,
        *,
        incarnation: str = "i1",
        status_from: int | None = None,
        receive: dict[str, Any] | None = None,
        resume: Resume | None = None,
        answering: bool = False,
        kind: type[ScriptedPeer] = ScriptedPeer,
        door: Door = OWN,
        shown: Credentials = THIS_PROCESS,
        **options: Any,
    ) -> ScriptedPeer:
        """Connect a peer by this door and let the session open. `shown`: what the node sees."""
        hello = Hello(
            VERSION,
            name,
            incarnation,
            HelloOptions(
                status_from=status_from,
                receive=None if receive is None else ReceiveOptions(**receive),
                **options,
            ),
        )
        peer = kind(self, hello, resume or Resume())
        peer.answering = answering
        far = self.node.parts.connections.make_user(door)
        connect_locally(
            peer.connection, far, clock=self.clock, limits=self.limits, name=name, shown=shown
        )
        self.settle()
        return peer

    def settle(self, seconds: float = 0.0) -> None:
        """Let everything happen that happens by itself, and some time pass."""
        for _ in range(50):
            self.clock.advance(0)
        self.clock.advance(0.002)  # progress waits for that of others (`commits.GATHER`)
        for _ in range(50):
            self.clock.advance(0)
        if seconds:
            for _ in range(20):
                self.clock.advance(seconds / 20)
            for _ in range(50):
                self.clock.advance(0)


def state_of(world: NodeWorld, name: str) -> ReceiverState:
    """Return the state of a receiver, as an operator is told."""
    told: list[tuple[list[ReceiverState], bool]] = []
    asked = Deferred.fromCoroutine(world.node.parts.operations.receivers("", 1000))
    asked.addCallback(told.append)
    world.settle()
    ((states, _),) = told
    return next(state for state in states if state.name == name)
