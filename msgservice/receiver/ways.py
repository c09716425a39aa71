"""How nodes reach a receiver: it dials one (`Attachment`), or is dialled (`Listening`).

Each connection has a `node_connection.NodeConnection` behind it. What a receiver is, and how it
stops, is the business of `receiver.receiver`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from msgspec.structs import replace
from twisted.application.service import IService
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from zope.interface import implementer

from msgservice.connection import STOPPING, Connection, Prover
from msgservice.core.frames import ReceiveOptions
from msgservice.interfaces import IChannelUser, ITransport
from msgservice.receiver.handling.work import NodeIncarnation
from msgservice.receiver.node_connection import NodeConnection
from msgservice.receiver.reception import Reception
from msgservice.waiters import Waiters

Dial = Callable[[Callable[[], IChannelUser]], IService]


class FindsTransport(Protocol):
    """The registry of transports, as far as it is asked here."""

    def find(self, address: str) -> ITransport:
        """Return the transport that serves this address."""


class Way(ABC):
    """One way to the receiver. `node`: the name that the node gave last, or None.

    `prover`: the login at the nodes that it leads to. None where they dial: whoever can do that is
    no node by it, and hears no login.
    """

    _logger = Logger()

    def __init__(
        self,
        reception: Reception,
        address: str,
        receive: ReceiveOptions,
        prover: Prover | None = None,
    ) -> None:
        self._prover = prover
        self.address = address
        self.node: str | None = None
        self._ended = ""  # why the last connection did
        self.reception = reception
        self.receive = receive
        self.connections: set[NodeConnection] = set()

    @property
    def connected(self) -> bool:
        """Whether messages can arrive now."""
        return any(each.takes_messages for each in self.connections)

    @property
    def error(self) -> str:
        """Why there is no connection, for people; empty while there is one, or none was tried."""
        return "" if self.connected else self._ended

    def __repr__(self) -> str:
        state = "connected" if self.connected else self.error or "not connected"
        return f"<{type(self).__name__} of {self.reception.name}, {self.address}: {state}>"

    def make_user(self) -> IChannelUser:
        """Return the user of a new channel: a connection to a node."""
        here = self.reception
        owner = NodeConnection(self)
        return Connection(
            owner,
            clock=here.reactor,
            now=here.now,
            limits=here.limits,
            takes=owner.takes,
            prover=self._prover,
        )

    def opened(self, node: str, incarnation: str) -> None:
        """Messages can arrive from a node that is this incarnation to the receiver."""
        self.node = node
        self._ended = ""
        self.reception.openings.fire(None)

    def came(self, connection: NodeConnection) -> None:
        """A connection of this way stands."""
        self.connections.add(connection)

    def gone(self, connection: NodeConnection, reason: str) -> None:
        """A connection of this way has gone, for this reason if no other was said."""
        self.connections.discard(connection)
        self._ended = self._ended or reason

    def says(self, reason: str) -> None:
        """The reason why no messages can arrive, for people."""
        self._ended = reason

    @abstractmethod
    def stop(self) -> Deferred[None]:
        """Close the connections; fire when they have ended."""

    def stop_taking(self) -> None:
        """Read no more from the connections that stand, and make no new ones."""
        for one in self.connections:
            one.connection.pause(STOPPING)

    def say_bye(self) -> Deferred[None]:
        """Say BYE: all that is to be answered was. Fires when the nodes know that (`say_bye`)."""
        heard = [one.say_bye() for one in list(self.connections)]
        return gatherResults(heard).addCallback(lambda _: None)

    def sent_away(self, reason: str, *, replaced: bool) -> None:
        """The node wants no connection of this receiver any more."""
        self._ended = reason

    def node_lost(self, node: NodeIncarnation, *, sent_away: bool) -> bool:
        """The connection to a node that was heard has gone, whichever way it had come.

        `sent_away`: the node wants none; else one that stood by for that takes over. Returns
        whether connections of this way are begun anew.
        """
        begins = [one.begin_anew(node) for one in list(self.connections)]  # each of them
        return any(begins)

    @abstractmethod
    def stand_in(self, node: NodeIncarnation) -> None:
        """The node preferred a connection of ours that is only being begun anew."""

    @abstractmethod
    def may_come_again(self) -> None:
        """The node said goodbye, and lets it come back."""


class Attachment(Way):
    """A node that the receiver dials, again and again, and what became of it.

    `is_over`: it does not come back by itself; `start` dials again. Because a newer connection
    took the receiver's name (`is_replaced`), or the receiver was removed from the node: then it
    would be made again. Where the newer one is this receiver's own, by another address of the node,
    this one stands by: it dials again when that one has ended, or does not come. Until `start` it
    says what it knows the node as, so that it is not made again where it was removed while it was
    away.
    """

    def __init__(
        self,
        reception: Reception,
        address: str,
        receive: ReceiveOptions,
        dial: Dial,
        prover: Prover | None = None,
    ) -> None:
        super().__init__(reception, address, receive, prover)
        self.is_over = False
        self.is_replaced = False
        self._connector = dial(self.make_user)
        self._was_started = False
        self._standing_in: IDelayedCall | None = None

    @property
    def error(self) -> str:
        """See `Way`."""
        if self.connected:
            return ""
        return self._ended or getattr(self._connector, "last_error", None) or ""

    def start(self) -> None:
        """Dial, and keep dialling; where a connection is still closing, behind it."""
        self.is_over = self.is_replaced = False
        self._stand_in_no_more()
        self._was_started = True
        if not self._connector.running:
            self.receive = replace(self.receive, known=None)
            self._connector.startService()

    def opened(self, node: str, incarnation: str) -> None:
        """See `Way`."""
        super().opened(node, incarnation)
        self.receive = replace(self.receive, known=incarnation)

    def stop(self) -> Deferred[None]:
        """Close the connection and stop dialling; fire when it has gone.

        Handlers that run go on; what they were given will not be sent again to this process.
        """
        self._stand_in_no_more()
        if not self._was_started:
            return succeed(None)
        stopped = self._connector.stopService()
        return succeed(None) if stopped is None else stopped

    def stop_taking(self) -> None:
        """See `Way`."""
        super().stop_taking()
        if not self.connections:
            _end(self.stop(), self._logger)

    def may_come_again(self) -> None:
        """See `Way`: whatever had failed before, the node was there."""
        poke = getattr(self._connector, "poke", None)  # not every service that dials has it
        if poke is not None:
            poke()

    def sent_away(self, reason: str, *, replaced: bool) -> None:
        """See `Way`."""
        super().sent_away(reason, replaced=replaced)
        self.is_over = True
        self.is_replaced = replaced
        _end(self.stop(), self._logger)

    def node_lost(self, node: NodeIncarnation, *, sent_away: bool) -> bool:
        """See `Way`."""
        begins = super().node_lost(node, sent_away=sent_away)
        if self.is_replaced and not sent_away and self.node in (None, node.name):
            self.start()
        return begins

    def stand_in(self, node: NodeIncarnation) -> None:
        """See `Way`: where that one is not there in a while, this one dials again."""

        def look() -> None:
            self._standing_in = None
            if self.is_replaced and node.connection is None:
                self.start()

        here = self.reception
        self._stand_in_no_more()
        self._standing_in = here.reactor.callLater(here.limits.link_delay_max, look)

    def _stand_in_no_more(self) -> None:
        standing_in, self._standing_in = self._standing_in, None
        if standing_in is not None:
            standing_in.cancel()


@implementer(IListeningPort)
class Listening(Way):
    """A port on which nodes dial the receiver; an `IListeningPort`."""

    def __init__(
        self,
        reception: Reception,
        transports: FindsTransport,
        address: str,
        receive: ReceiveOptions,
    ) -> None:
        super().__init__(reception, address, receive)
        self._transports = transports
        self._port: IListeningPort | None = None
        self._is_stopped = False
        self._is_closing = False  # Twisted closes a port in a later turn
        self._closed: Waiters[None] = Waiters()

    def start(self) -> Deferred[Listening]:
        """Open the port; fire with itself. Fails with `CannotListen`, `BadAddress`."""
        transport = self._transports.find(self.address)
        here = self.reception
        opening: Deferred[IListeningPort] = transport.listen(
            here.reactor, self.address, self.make_user, here.limits
        )

        def opened(port: IListeningPort) -> Listening:
            self._port = port
            self._is_stopped = False
            return self

        return opening.addCallback(opened)

    def stand_in(self, node: NodeIncarnation) -> None:
        """See `Way`: it is the node that dials."""

    def getHost(self) -> Any:
        """Return the address of the port."""
        assert self._port is not None
        return self._port.getHost()

    def startListening(self) -> None:
        """Listen again after `stopListening`."""
        assert self._port is not None
        if self._is_stopped:
            self._port.startListening()
            self._is_stopped = False

    def stopListening(self) -> Deferred[None]:
        """Accept no more connections; those that stand go on. Fires when the port is closed."""
        if self._port is not None and not self._is_stopped:
            self._is_stopped = True
            closing = self._port.stopListening()
            if closing is not None:
                self._is_closing = True
                return closing.addBoth(self._has_closed)
        return self._closed.wait() if self._is_closing else succeed(None)

    def _has_closed(self, result: Any) -> Any:
        self._is_closing = False
        self._closed.fire(None)  # a failure is told to who closed it
        return result

    def may_come_again(self) -> None:
        """See `Way`: here it is the node that comes."""

    def stop_taking(self) -> None:
        """See `Way`."""
        super().stop_taking()
        _end(self.stopListening(), self._logger)

    def stop(self) -> Deferred[None]:
        """Close the port and its connections; fire when the port is closed."""
        for one in list(self.connections):
            one.connection.close()
        return self.stopListening()


def _end(deferred: Deferred[None], logger: Logger) -> None:
    deferred.addErrback(lambda failure: logger.failure("closing a connection", failure))
