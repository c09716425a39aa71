"""How nodes reach a receiver: it dials one (`Attachment`), or is dialled (`Listening`).

Each connection has a `NodeConnection` behind it, which says HELLO, tells the node what was taken
of it already, and passes its runs on to the handlers. What a receiver is, and how it stops, is
the business of `receiver`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.application.service import IService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from zope.interface import implementer

from msgservice.connection import STOPPING, Connection
from msgservice.core.frames import (
    BYE_REMOVED,
    BYE_REPLACED,
    VERSION,
    Frame,
    Hello,
    ReceiveOptions,
    Reply,
    Request,
    Transfer,
)
from msgservice.errors import MalformedFrame, NameMismatch, UnexpectedFrame
from msgservice.handling.work import Sender
from msgservice.interfaces import IChannelUser
from msgservice.message import BareMessage, decode_messages
from msgservice.received import RunFacts, decode_received
from msgservice.records import Resume

if TYPE_CHECKING:
    from msgservice.receiver import Receiver

REPLACED = "a newer connection has this receiver's name"
REMOVED = "the receiver was removed from the node"
QUIET_TURNS = 3  # turns without a run before what was discarded is asked for: two PINGs, usually
Dial = Callable[[Callable[[], IChannelUser]], IService]


class Way(ABC):
    """One way to the receiver. `node`: the name that the node gave last, or None."""

    _logger = Logger()

    def __init__(self, receiver: Receiver, address: str, receive: ReceiveOptions) -> None:
        self.address = address
        self.node: str | None = None
        self.ended = ""  # why the last connection did
        self.receiver = receiver
        self.receive = receive
        self.connections: set[NodeConnection] = set()

    @property
    def connected(self) -> bool:
        """Whether messages can arrive now."""
        return any(link.is_open for link in self.connections)

    @property
    def error(self) -> str:
        """Why there is no connection, for people; empty while there is one, or none was tried."""
        return "" if self.connected else self.ended

    def __repr__(self) -> str:
        state = "connected" if self.connected else self.error or "not connected"
        return f"<{type(self).__name__} of {self.receiver.name}, {self.address}: {state}>"

    def make_user(self) -> IChannelUser:
        """Return what stands behind a new channel."""
        receiver = self.receiver
        owner = NodeConnection(self)
        return Connection(
            owner,
            clock=receiver.reactor,
            now=receiver.now,
            limits=receiver.limits,
            takes=owner.takes,
        )

    @abstractmethod
    def stop(self) -> Deferred[None]:
        """Close what there is; fire when that is done."""

    def stop_taking(self) -> None:
        """Read no more from the connections that stand, and make no new ones."""
        for link in self.connections:
            link.connection.pause(STOPPING)

    def say_bye(self) -> None:
        """All that is to be answered was."""
        for link in list(self.connections):
            link.connection.bye()

    def sent_away(self, reason: str, *, replaced: bool) -> None:
        """The node wants no connection of this receiver any more."""
        self.ended = reason


class Attachment(Way):
    """A node that the receiver dials, again and again, and what became of it.

    `is_over`: it does not come back by itself; `start` dials again. Because a newer connection
    took the receiver's name (`is_replaced`), or the receiver was removed from the node: then it
    would be made again.
    """

    def __init__(
        self, receiver: Receiver, address: str, receive: ReceiveOptions, dial: Dial
    ) -> None:
        super().__init__(receiver, address, receive)
        self.is_over = False
        self.is_replaced = False
        self._connector = dial(self.make_user)

    @property
    def error(self) -> str:
        """See `Way`."""
        if self.connected:
            return ""
        return self.ended or getattr(self._connector, "last_error", None) or ""

    def start(self) -> None:
        """Dial, and keep dialling."""
        self.is_over = self.is_replaced = False
        if not self._connector.running:
            self._connector.startService()

    def stop(self) -> Deferred[None]:
        """Close the connection and stop dialling; fire when it has gone.

        Handlers that run go on; what they were given will not be sent again to this process.
        """
        if not self._connector.running:
            return succeed(None)
        stopped = self._connector.stopService()
        return succeed(None) if stopped is None else stopped

    def stop_taking(self) -> None:
        """See `Way`."""
        super().stop_taking()
        if not self.connections:
            _end(self.stop(), self._logger)

    def sent_away(self, reason: str, *, replaced: bool) -> None:
        """See `Way`."""
        super().sent_away(reason, replaced=replaced)
        self.is_over = True
        self.is_replaced = replaced
        _end(self.stop(), self._logger)


@implementer(IListeningPort)
class Listening(Way):
    """A port on which nodes dial the receiver; an `IListeningPort`."""

    def __init__(self, receiver: Receiver, address: str, receive: ReceiveOptions) -> None:
        super().__init__(receiver, address, receive)
        self._port: IListeningPort | None = None

    def start(self) -> Deferred[Listening]:
        """Open the port; fire with itself. Fails with `CannotListen`, `BadAddress`."""
        transport = self.receiver.transports.find(self.address)
        receiver = self.receiver
        opening: Deferred[IListeningPort] = transport.listen(
            receiver.reactor, self.address, self.make_user, receiver.limits
        )

        def opened(port: IListeningPort) -> Listening:
            self._port = port
            return self

        return opening.addCallback(opened)

    def getHost(self) -> Any:
        """Return the address of the port."""
        assert self._port is not None
        return self._port.getHost()

    def startListening(self) -> None:
        """Listen again after `stopListening`."""
        assert self._port is not None
        self._port.startListening()

    def stopListening(self) -> Deferred[None]:
        """Accept no more connections; those that stand go on."""
        port, self._port = self._port, None
        stopped = None if port is None else port.stopListening()
        return succeed(None) if stopped is None else stopped

    def stop_taking(self) -> None:
        """See `Way`."""
        super().stop_taking()
        _end(self.stopListening(), self._logger)

    def stop(self) -> Deferred[None]:
        """Close the port and its connections; fire when the port is closed."""
        for link in list(self.connections):
            link.connection.close()
        return self.stopListening()


class NodeConnection:
    """What stands behind one connection to a node: see `connection.Owner`."""

    connection: Connection

    def __init__(self, way: Way) -> None:
        self.way = way
        self.is_open = False
        self.gone: Deferred[None] = Deferred()
        self._receiver = way.receiver
        self._handling = way.receiver.handling
        self._sender: Sender | None = None
        self._quiet = 0  # turns since the last run

    def channel_up(self, connection: Connection) -> None:
        """Say who we are, and what we want."""
        self.connection = connection
        self.way.connections.add(self)
        receiver = self._receiver
        options = receiver.hello_options(self.way.receive)
        connection.hello(Hello(VERSION, receiver.name, receiver.incarnation, options))

    def greeted(self, connection: Connection, hello: Hello) -> None:
        """Tell the node what was taken of it: here its older connection ends, if there is one."""
        receive = hello.options.receive
        if receive is None:
            raise NameMismatch(f"{hello.name!r} does not send to receivers")
        order = receive.order or self._receiver.order
        if order not in ("strict", "none"):
            raise MalformedFrame(f"HELLO: order {order!r}")
        sender = self._receiver.sender(hello.name, hello.incarnation)
        sender.inbox.ordered = order == "strict"
        older = sender.connection
        if older is not None and older is not connection:
            older.owner.replaced_by_newer()  # type: ignore[attr-defined]  # all owners here are ours
        self._handling.reconnected(sender)
        sender.connection = connection
        self._sender = sender
        connection.resume(sender.inbox.marks.resume())

    def replaced_by_newer(self) -> None:
        """A newer connection to the same node stands; what is answered here counts no more."""
        self.connection.bye(BYE_REPLACED, REPLACED)
        self.connection.close()
        self.way.sent_away(REPLACED, replaced=True)

    def opened(self, connection: Connection, resume: Resume) -> None:
        """Messages may come. What the node has taken of ours is nothing: we send none."""
        assert self._sender is not None
        self.is_open = True
        self.way.node = self._sender.name
        self.way.ended = ""

    def takes(self, frame: Frame) -> bool:
        """Whether a frame is looked at now; one that is answered needs room for the answer.

        What was taken is acknowledged in ranges, so runs are handled however slowly the node reads.
        But what was rejected is refused again each time that it comes.
        """
        kind = type(frame)
        if kind is Request:
            return self.connection.has_room
        if kind is Transfer and self._sender is not None:
            owed = self._sender.inbox.answers.refused_bytes
            return owed <= self._receiver.limits.answer_bytes or self.connection.is_writable
        return True

    def received(self, connection: Connection, frame: Frame) -> None:
        """Take a run."""
        if type(frame) is Transfer:
            sender = self._sender
            assert sender is not None
            self._quiet = 0
            if self._handling.is_stopping or sender.connection is not connection:
                return  # unanswered: it comes again
            raw = frame.messages
            facts = RunFacts(
                frame.sequence,
                frame.subject,
                sender.name,
                frame.origin,
                frame.flags,
                self._receiver.decode,
            )
            messages = decode_received(raw, facts)
            count = len(messages)
            if not 0 < count <= self._receiver.limits.batch_messages:
                most = self._receiver.limits.batch_messages
                raise MalformedFrame(f"TRANSFER of {count} messages, from 1 to {most} are allowed")
            arrival = sender.inbox.receive_transfer(frame, count)
            if arrival is not None:
                self._handling.take(sender, arrival, messages, len(memoryview(raw)))
        elif type(frame) is Request:
            connection.send(_refusal(frame))
        else:
            raise UnexpectedFrame(type(frame).__name__, "a receiver listens")

    def turn_ended(self, connection: Connection) -> None:
        """The answers of this turn leave.

        A node that has nothing to send says PING: after some of these without a run, nothing that
        was discarded is on its way any more.
        """
        if self._sender is not None:
            self._quiet += 1
            if self._quiet >= QUIET_TURNS and self._sender.connection is connection:
                self._sender.inbox.ask_for_discarded()
            self._handling.turn_ended(self._sender)

    def writable(self, connection: Connection) -> None:
        """Answers that waited leave."""
        if self._sender is not None and self._sender.connection is connection:
            self._sender.flush()

    def peer_leaves(self, connection: Connection, code: int, reason: str) -> None:
        """Close when all is answered; `turn_ended` follows, and looks for the first time."""
        self.way.ended = f"the node says: {reason or 'closing'}"
        if code in (BYE_REPLACED, BYE_REMOVED):
            why = REPLACED if code == BYE_REPLACED else REMOVED
            self._receiver.logger.warn(
                "receiver {receiver} at {peer} does not come back by itself: {why}",
                receiver=self._receiver.name,
                peer=connection.peer,
                why=why,
            )
            connection.close()
            self.way.sent_away(why, replaced=code == BYE_REPLACED)
        elif self._sender is not None:
            self._sender.is_leaving = True
        else:
            connection.close()

    def lost(self, connection: Connection, reason: str) -> None:
        """What was not answered comes again on the next connection."""
        self.is_open = False
        self.way.connections.discard(self)
        if not self.way.ended:
            self.way.ended = reason
        sender = self._sender
        if sender is not None and sender.connection is connection:
            sender.connection = None
        self._handling.lost()
        self.gone.callback(None)


def _refusal(request: Request) -> Reply:
    """Return the answer to requests; a receiver of this version has no handler for them."""
    no = msgspec.Raw(msgspec.msgpack.encode(BareMessage(b"requests are not supported")))
    count = len(decode_messages(request.messages))
    return Reply([(request.id + i, False, no) for i in range(count)])


def _end(deferred: Deferred[None], logger: Logger) -> None:
    deferred.addErrback(lambda failure: logger.failure("closing a connection", failure))
