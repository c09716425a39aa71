"""Listening for peers of the callback protocol, and staying connected to one.

`CallbackServer` makes a `Connection` for every peer that connects; `CallbackClient` keeps one
`Connection` connected, and asks the network where the server is when it cannot be reached. What is
said on a connection is in `faces.callbacks.connection`, the datagrams are in
`faces.callbacks.discovery`.
"""

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import (
    HostnameEndpoint,
    clientFromString,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from msgservice.arguments import (
    check_counts,
    check_flags,
    check_functions,
    check_kind,
    check_methods,
    check_port,
    check_seconds,
    wrong,
)
from msgservice.clock import timed
from msgservice.errors import CannotListen
from msgservice.faces.callbacks.connection import Connection
from msgservice.faces.callbacks.discovery import ServerWatch
from msgservice.faces.callbacks.dispatch import awaited
from msgservice.faces.callbacks.net import ServerAddress
from msgservice.faces.callbacks.stream import CallbackProtocol
from msgservice.faces.listening import ListeningService

PORT = 25_000
CREATES = "clientConnectionForTLS"  # what options of `optionsForClientTLS` have
SETTLE_SECONDS_MAX = 10.0
CONNECTIONS_MAX = 1_000  # each costs a socket and about 10 KiB


class CallbackServer(ListeningService):
    """Listens; `connections` are those that are up now.

    Args:
        reactor: clock, threads, and what the endpoint needs.
        endpoint: where to listen, a Twisted endpoint or its description.
        tls: a context factory (`twisted.internet.ssl.CertificateOptions`) for TLS.
        connections_max: further ones are dropped at once.
        one_per_host: a new connection from the same host replaces the older, as the original
            does; then reinstalled machines do not linger, and there is one behind every router.
        on_connected, on_disconnected: called with the connection.
        options: for every `Connection`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        endpoint: str | IStreamServerEndpoint = f"tcp:{PORT}:interface=127.0.0.1",
        *,
        tls: Any = None,
        connections_max: int = CONNECTIONS_MAX,
        one_per_host: bool = False,
        on_connected: Callable[[Connection], Any] | None = None,
        on_disconnected: Callable[[Connection], Any] | None = None,
        **options: Any,
    ) -> None:
        if not (isinstance(endpoint, str) or IStreamServerEndpoint.providedBy(endpoint)):
            raise wrong("endpoint", endpoint, "an endpoint or its description is needed")
        if tls is not None:
            check_methods("CertificateOptions are needed", ("getContext",), tls=tls)
        check_counts(1, connections_max=connections_max)
        check_flags(one_per_host=one_per_host)
        check_functions(on_connected=on_connected, on_disconnected=on_disconnected)
        self._reactor = timed(reactor)
        self._description = str(endpoint)
        self._endpoint: IStreamServerEndpoint = (
            serverFromString(reactor, endpoint) if isinstance(endpoint, str) else endpoint
        )
        self._tls = tls
        self._connections_max = connections_max
        self._one_per_host = one_per_host
        self._on_connected, self._on_disconnected = on_connected, on_disconnected
        self._options = options
        self._port: IListeningPort | None = None
        self.connections: set[Connection] = set()

    @property
    def address(self) -> IAddress | None:
        """The address that the server listens at, None before it does."""
        return None if self._port is None else self._port.getHost()

    def listen(self) -> "Deferred[IAddress]":
        """Listen; the Deferred fires with the address, or fails with CannotListen."""
        Service.startService(self)
        factory: IProtocolFactory = _ServerFactory(self._build)
        if self._tls is not None:
            factory = TLSMemoryBIOFactory(self._tls, False, factory)
        d: Deferred[Any] = self._endpoint.listen(factory)
        d.addCallbacks(self._listening, self._not_listening)
        return d

    def _begin(self) -> "Deferred[IAddress]":
        return self.listen()

    def _listening(self, port: IListeningPort) -> IAddress:
        self._port = port
        return port.getHost()

    def _not_listening(self, failure: Failure) -> Any:
        raise CannotListen(self._description, failure.getErrorMessage()) from failure.value

    def _build(self) -> CallbackProtocol:
        connection = Connection(
            self._reactor,
            on_connected=self._connected,
            on_disconnected=self._disconnected,
            **self._options,
        )
        return connection.protocol()

    def _connected(self, connection: Connection) -> Any:
        if len(self.connections) >= self._connections_max:
            self._log.warn(
                "dropping {peer}: limit connections_max = {limit} reached",
                peer=connection.peer_address,
                limit=self._connections_max,
            )
            connection.abort()
            return None
        host = _host(connection)
        if self._one_per_host and host is not None:
            for other in [other for other in self.connections if _host(other) == host]:
                other.abort()
        self.connections.add(connection)
        return self._on_connected(connection) if self._on_connected is not None else None

    def _disconnected(self, connection: Connection) -> Any:
        connection.close()  # this connection never comes back: what waits for it has to know
        if connection not in self.connections:
            return None
        self.connections.remove(connection)
        return self._on_disconnected(connection) if self._on_disconnected is not None else None

    def stopService(self) -> "Deferred[Any]":
        """Stop listening, then close every connection."""
        super().stopService()
        port, self._port = self._port, None
        d = maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)
        d.addCallback(lambda _: gatherResults([c.close() for c in list(self.connections)]))
        return d


class CallbackClient(Service):
    """Keeps `connection` connected: connects, and connects again when it is lost.

    Args:
        reactor: clock, threads, sockets.
        host, port: where the server is; replaced by what is heard from it.
        endpoint: instead of them, a Twisted endpoint or its description.
        tls: client options (`twisted.internet.ssl.optionsForClientTLS`) for TLS.
        connect_seconds_max: for one attempt to connect.
        pause_seconds: between attempts.
        watch: hears where the server is, after `failures_max` attempts in a row.
        heard_seconds_max, hearings_max: how long to listen then, and how many times.
        on_server: called with the `ServerAddress` that was heard, to remember it.
        options: for the `Connection`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        host: str = "127.0.0.1",
        port: int = PORT,
        *,
        endpoint: str | IStreamClientEndpoint | None = None,
        tls: Any = None,
        connect_seconds_max: float = 2.0,
        pause_seconds: float = 2.0,
        watch: ServerWatch | None = None,
        failures_max: int = 3,
        heard_seconds_max: float = 4.0,
        hearings_max: int = 4,
        on_server: Callable[[ServerAddress], Any] | None = None,
        **options: Any,
    ) -> None:
        check_kind(str, "the name or address of a host is needed", host=host)
        check_port(port)
        if not (
            endpoint is None
            or isinstance(endpoint, str)
            or IStreamClientEndpoint.providedBy(endpoint)
        ):
            raise wrong("endpoint", endpoint, "an endpoint or its description is needed")
        if not (tls is None or hasattr(tls, "getContext") or hasattr(tls, CREATES)):
            raise wrong("tls", tls, "options of a client's TLS are needed")
        check_seconds(
            connect_seconds_max=connect_seconds_max,
            pause_seconds=pause_seconds,
            heard_seconds_max=heard_seconds_max,
        )
        check_counts(1, failures_max=failures_max, hearings_max=hearings_max)
        if watch is not None:
            check_methods("a ServerWatch is needed", ("next_address",), watch=watch)
        check_functions(on_server=on_server)
        self._reactor = timed(reactor)
        self.host, self.port = host, port
        self._endpoint = (
            clientFromString(reactor, endpoint) if isinstance(endpoint, str) else endpoint
        )
        self._tls = tls
        self._connect_seconds_max = connect_seconds_max
        self._pause_seconds = pause_seconds
        self._watch = watch
        self._failures_max = failures_max
        self._heard_seconds_max = heard_seconds_max
        self._hearings_max = hearings_max
        self._on_server = on_server
        self.connection = Connection(self._reactor, **options)
        self._run: Deferred[None] | None = None

    def startService(self) -> None:
        """Connect, and stay connected."""
        if self.running:
            return
        super().startService()
        self._run = Deferred.fromCoroutine(self._stay_connected())
        self._run.addErrback(lambda f: f.trap(CancelledError))
        self._run.addErrback(lambda f: self._log.failure("callback client", f))

    def stopService(self) -> "Deferred[None]":
        """Close the connection, for good."""
        super().stopService()
        d = self.connection.close()
        run, self._run = self._run, None
        if run is not None:
            d.addCallback(lambda _: run.cancel())
        return d

    async def _stay_connected(self) -> None:
        failures = 0
        while self.running:
            wire = await self._connect()
            if wire is not None:
                await wire.lost
                await self._settle()
            if wire is not None and wire.was_open:
                failures = 0
            else:
                failures += 1
            if not self.running:
                return
            if self._watch is not None and failures >= self._failures_max:
                failures = 0
                if await self._hear(self._watch):
                    continue
            await deferLater(self._reactor, self._pause_seconds)

    async def _settle(self) -> None:
        settled = self.connection.when_settled()
        settled.addTimeout(SETTLE_SECONDS_MAX, self._reactor)
        # A disk that hangs: what is on it has to come again.
        settled.addErrback(lambda f: f.trap(DeferredTimeout))
        await settled

    async def _connect(self) -> CallbackProtocol | None:
        endpoint: Any = self._endpoint
        if endpoint is None:
            endpoint = HostnameEndpoint(
                self._reactor,
                self.host,
                self.port,
                timeout=self._connect_seconds_max,
            )
        if self._tls is not None:
            endpoint = wrapClientTLS(self._tls, endpoint)
        wire = self.connection.protocol()
        attempt: Deferred[Protocol] = endpoint.connect(_OnceFactory(wire))
        attempt.addTimeout(self._connect_seconds_max, self._reactor)
        try:
            await attempt
        except CancelledError:
            raise
        except Exception as error:
            if not self.running:
                return None  # it was called off, which Twisted tells in more than one way
            self._log.info(
                "no connection to {host}:{port}: {reason}",
                host=self.host,
                port=self.port,
                reason=str(error),
            )
            return None
        return wire

    async def _hear(self, watch: ServerWatch) -> bool:
        """Take the address that a server announces; return whether there was one."""
        for _ in range(self._hearings_max):
            address = await watch.next_address(self._heard_seconds_max)
            if address is not None:
                self.host, self.port = address.host, address.port
                if self._on_server is not None:
                    await maybeDeferred(awaited, self._on_server, address)
                return True
        return False


class _ServerFactory(Factory):
    noisy = False

    def __init__(self, build: Callable[[], CallbackProtocol]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> CallbackProtocol:
        return self._build()


class _OnceFactory(Factory):
    noisy = False

    def __init__(self, wire: CallbackProtocol) -> None:
        self._wire = wire

    def buildProtocol(self, addr: IAddress | None) -> CallbackProtocol:
        return self._wire


def _host(connection: Connection) -> str | None:
    return getattr(connection.peer_address, "host", None)
