"""The connected-server chassis: one component with mailboxes for each connection.

`SimpleServer(protocol=Echo, port=1601).run()` is a server; `protocol` is called for each connection
and returns the handler, a component (`msgservice.faces.axon`) whose `inbox` gets the bytes from
the socket and whose `outbox` takes those for it. `ServerCore` gives the handler the addresses too.

The server is a component itself: its `control` takes `serverShutdown`, and the methods that handle
what happens can be overridden. What happens on one connection is in `chassis.connection`; the
server as a Twisted factory or service is in `chassis.factory` and `chassis.service`.
"""

from __future__ import annotations

import socket
from typing import Any, ClassVar, Self, cast

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IReactorCore,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.errors import CannotListen
from msgservice.faces.axon.AdaptiveCommsComponent import AdaptiveCommsComponent
from msgservice.faces.axon.Component import component, process_of
from msgservice.faces.axon.Ipc import (
    newCSA,
    serverShutdown,
    shutdownCSA,
    shutdownMicroprocess,
)
from msgservice.faces.axon.scheduler import Scheduler, scheduler_for
from msgservice.faces.chassis.connection import Connection
from msgservice.faces.chassis.endpoint import TCPServer
from msgservice.faces.chassis.factory import ChassisFactory
from msgservice.faces.chassis.limits import ChassisLimits
from msgservice.waiters import Waiters

PORT = 1601


class ServerCore(AdaptiveCommsComponent):
    """A server whose `protocol` is called with `peer, peerport, localip, localport` (keywords).

    Keywords, each of which may be a class attribute instead:

    * `protocol`: returns the handler of a connection. Needed.
    * `port`: where to listen, 1601 by default; 0 lets the kernel choose. See `address`.
    * `interface`: the address to listen on; all of IPv4 by default, as the original does.
    * `socketOptions`: a tuple (level, option, value) for the listening socket.
    * `TCPS`: the class that listens, `TCPServer` by default.
    * `endpoint`: instead of the last four: an `IStreamServerEndpoint`, or a string that describes
      one (`"unix:/run/echo.sock"`, `"ssl:1601:privateKey=key.pem:certKey=cert.pem"`).
    * `limits`: `ChassisLimits`.

    Any other keyword must be an attribute of the class, and is set.
    """

    Inboxes: ClassVar[Any] = {
        "_socketactivity": "newCSA and shutdownCSA: connections that begin and end",
        "control": "serverShutdown ends the server",
        "inbox": "not used",
    }
    Outboxes: ClassVar[Any] = {
        "_serversignal": "serverShutdown, when the server stops listening",
        "outbox": "not used",
        "signal": "not used",
    }

    protocol: Any = None
    port: int = PORT
    interface: str = ""
    socketOptions: tuple[int, int, int] | None = None
    TCPS: Any = TCPServer
    endpoint: IStreamServerEndpoint | str | None = None
    limits: ChassisLimits = ChassisLimits()

    _log = Logger()

    def __init__(self, **argd: Any) -> None:
        for name in argd:
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no keyword {name!r}")
        super().__init__(**argd)
        if self.protocol is None:
            raise TypeError(f"{type(self).__name__} needs protocol=")
        if not callable(self.protocol):
            raise TypeError(f"protocol={self.protocol!r} cannot be called")
        self.connections: set[Connection] = set()
        # Handlers that are alive although their connection is closed.
        self._outliving: set[component] = set()
        self.failure: Failure | None = None
        self._listening: Deferred[IListeningPort] | None = None
        self._port: IListeningPort | None = None
        self._stopping = False
        self._closing_port = False
        self._refusing = False
        self._deadline: IDelayedCall | None = None
        self._waiting_for_address: Waiters[IAddress] = Waiters()
        self._waiting_for_end: Waiters[None] = Waiters()
        self._trigger: object = None
        self.listens = True

    # --- Getters ----------------------------------------------------------------------------------

    @property
    def address(self) -> IAddress | None:
        """The address that the server listens at, with the kernel's port. None if it does not."""
        return self._port.getHost() if self._port is not None else None

    @property
    def started(self) -> bool:
        """Whether the server was activated, be it stopped by now."""
        return self._process.started

    def when_listening(self) -> Deferred[IAddress]:
        """Return where the server listens, as soon as it does. Fails with `CannotListen`.

        Cancelling it ends the wait and nothing else.
        """
        if self.failure is not None:
            return fail(self.failure)
        if self._process.stopped:
            return fail(CannotListen(self._describe(), "the server was stopped"))
        if self._port is not None:
            return succeed(self._port.getHost())
        return self._waiting_for_address.wait()

    # --- Life -------------------------------------------------------------------------------------

    def activate(
        self, Scheduler: Scheduler | None = None, Tracker: object = None, mainmethod: str = "main"
    ) -> Self:
        """Start listening, and return self. See `component.activate`."""
        if self._process.started:
            return self
        super().activate(Scheduler, Tracker, mainmethod)
        self._process.watch(self._ended)
        if IReactorCore.providedBy(self._reactor):
            # The reactor waits for what this returns: everything is delivered before it ends.
            self._trigger = IReactorCore(self._reactor).addSystemEventTrigger(
                "before", "shutdown", self._reactor_stops
            )
        return self

    @property
    def _reactor(self) -> IReactorTime:
        return self._process.scheduler.clock

    def main(self) -> Any:
        """Listen, then handle what happens, until everything is closed."""
        if self.listens:
            self.initialiseServerSocket()
        while True:
            if self.failure is not None:
                self.failure.raiseException()
            for message in self.Inbox("_socketactivity"):
                self._handle(message)
            for message in self.Inbox("control"):
                if isinstance(message, shutdownMicroprocess):
                    self.stop()
            if not self._is_open():
                return
            self.pause()
            yield 1

    def initialiseServerSocket(self) -> None:
        """Start listening, on what the constructor was told. May be overridden."""
        endpoint = self.endpoint
        if endpoint is None:
            endpoint = self.TCPS(
                self._reactor,
                self.port,
                interface=self.interface,
                socketOptions=self.socketOptions,
            )
        elif isinstance(endpoint, str):
            endpoint = serverFromString(self._reactor, endpoint)
        self.listen(cast("IStreamServerEndpoint", endpoint))

    def listen(self, endpoint: IStreamServerEndpoint) -> None:
        """Accept connections from `endpoint`; a failure ends the server with `CannotListen`."""
        self._listening = endpoint.listen(ChassisFactory(self, self._reactor))
        self._listening.addCallbacks(self._listens, self._cannot_listen)

    def serve(self, reactor: IReactorTime) -> None:
        """Serve what a factory accepts, without a listener of its own; no-op if it is active."""
        if not self._process.started:
            self.listens = False
            self.activate(scheduler_for(reactor))

    def stop(self) -> Deferred[None]:
        """Stop listening and close every connection; fires when all are closed.

        Every handler gets its inbound data, then `socketShutdown`, and what it sends is delivered;
        `limits.stop_deadline` seconds later what remains is dropped. Safe at any time, and twice.
        Cancelling what it returns ends the wait and nothing else.
        """
        if not self._process.started:
            self._process.stop()
            self._fail_address(CannotListen(self._describe(), "the server was stopped"))
        if self._process.stopped:
            return succeed(None)
        waiter = self._waiting_for_end.wait()
        if not self._stopping:
            self._stopping = True
            self._process.scheduler.enter(self._stop)
        return waiter

    # --- What happens to connections; may be overridden -------------------------------------------

    def handleNewConnection(self, newCSAMessage: newCSA) -> None:
        """Make a handler for the connection `newCSAMessage.object`, wire and activate it."""
        connection: Connection = newCSAMessage.object
        handler = self.mkProtocolHandler(**connection.addresses())
        if isinstance(handler, component) and "serversignal" in handler.outboxes:
            handler.outboxes["serversignal"].link_to(self.inboxes["control"])
        connection.attach(handler)

    def handleClosedCSA(self, shutdownCSAMessage: shutdownCSA) -> None:
        """Forget the connection `shutdownCSAMessage.object`, which is closed."""
        connection: Connection = shutdownCSAMessage.object
        self.connections.discard(connection)

    def mkProtocolHandler(self, **sock_info: Any) -> Any:
        """Return the handler of a new connection, not activated."""
        return self.protocol(**sock_info)

    # --- From the factory and the connections -----------------------------------------------------

    def accepts(self) -> bool:
        """Return whether one more connection may be made; logs when it may no longer."""
        if self._stopping or self._process.stopped:
            return False
        refuse = len(self.connections) >= self.limits.connections_max
        if refuse and not self._refusing:
            self._log.warn(
                "{server} has {connections} connections (connections_max): more are refused",
                server=self.name,
                connections=len(self.connections),
            )
        self._refusing = refuse
        return not refuse

    def connection_made(self, connection: Connection) -> None:
        """Note a connection that was accepted."""
        self.connections.add(connection)
        self._deliver(newCSA(self, connection, connection.socket), "_socketactivity")

    def connection_lost(self, connection: Connection) -> None:
        """Note a connection that is closed."""
        self._deliver(shutdownCSA(self, connection), "_socketactivity")

    # --- Within -----------------------------------------------------------------------------------

    def _handle(self, message: object) -> None:
        if isinstance(message, newCSA):
            connection: Connection = message.object
            try:
                self.handleNewConnection(message)
            except Exception:
                self._log.failure("no handler for {peer}", peer=connection.addresses())
                connection.close()
            if self._stopping:
                connection.stop()
        elif isinstance(message, shutdownCSA):
            self.handleClosedCSA(message)
            self.connections.discard(message.object)
            handler = message.object.handler
            if handler is not None and not process_of(handler).stopped:
                self._outliving.add(handler)
                process_of(handler).watch(lambda _: self._outlived(handler))

    def _outlived(self, handler: component) -> None:
        self._outliving.discard(handler)
        if self._stopping:
            self.unpause()

    def _reactor_stops(self) -> Deferred[None]:
        self._trigger = None
        return self.stop()

    def _is_open(self) -> bool:
        return bool(
            not self._stopping or self.connections or self._outliving or self._port is not None
        )

    def _describe(self) -> str:
        if self.endpoint is not None:
            return str(self.endpoint)
        return f"tcp:{self.port}" + (f":interface={self.interface}" if self.interface else "")

    def _listens(self, port: IListeningPort) -> None:
        self._listening = None
        self._port = port
        if self._stopping:
            self._close_port()
        self._waiting_for_address.fire(port.getHost())

    def _cannot_listen(self, failure: Failure) -> None:
        self._listening = None
        if not (self._stopping and failure.check(CancelledError)):
            error = CannotListen(self._describe(), failure.getErrorMessage())
            error.__cause__ = failure.value
            self.failure = Failure(error)
        self.unpause()

    def _stop(self) -> None:
        deadline = self.limits.stop_deadline
        self._deadline = self._process.scheduler.clock.callLater(deadline, self._overdue)
        self.send(serverShutdown(self), "_serversignal")
        if self._listening is not None:
            self._listening.cancel()
        self._close_port()
        for connection in list(self.connections):
            connection.stop()
        self.unpause()

    def _close_port(self) -> None:
        if self._port is not None and not self._closing_port:
            self._closing_port = True
            closed = maybeDeferred(self._port.stopListening)
            closed.addErrback(lambda f: self._log.failure("{server} port", f, server=self.name))
            closed.addBoth(self._port_closed)

    def _port_closed(self, _: object) -> None:
        self._port = None
        self.unpause()

    def _overdue(self) -> None:
        self._deadline = None
        self._log.warn(
            "{server} was to stop in {seconds} s and has {connections} connections: aborted",
            server=self.name,
            seconds=self.limits.stop_deadline,
            connections=len(self.connections),
        )
        for connection in list(self.connections):
            connection.abort()
            if connection.handler is not None:
                connection.handler.stop()
        for handler in list(self._outliving):
            handler.stop()
        self.unpause()

    def _ended(self, failure: Failure | None) -> bool:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._trigger is not None:
            IReactorCore(self._reactor).removeSystemEventTrigger(self._trigger)
            self._trigger = None
        self._close_port()
        for connection in list(self.connections):
            connection.abort()
        self.failure = failure
        told = self._fail_address(
            failure
            if failure is not None
            else CannotListen(self._describe(), "the server was stopped")
        )
        self._waiting_for_end.fire(None)
        return told

    def _fail_address(self, error: BaseException | Failure) -> bool:
        told = bool(self._waiting_for_address)
        self._waiting_for_address.fail(error)
        return told


class SimpleServer(ServerCore):
    """A server whose `protocol` is called without arguments."""

    def mkProtocolHandler(self, **sock_info: Any) -> Any:
        """Return the handler of a new connection, not activated."""
        return self.protocol()


class FastRestartServer(ServerCore):
    """A server that can listen at once after it was restarted; ours all can."""

    socketOptions = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


MoreComplexServer = ServerCore
