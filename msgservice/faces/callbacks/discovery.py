"""Datagrams by which a server makes itself known, and hears of an older one.

The datagram itself is in `faces.callbacks.net`. Nothing here is authenticated: whoever can send to
the port can send a client elsewhere. Both services listen on loopback unless told otherwise.
"""

from collections.abc import Callable
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IReactorTime, IReactorUDP
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import timed
from msgservice.errors import ProtocolError
from msgservice.faces.callbacks.net import ServerAddress, parse_server_ip
from msgservice.waiters import Waiters

DISCOVERY_PORT = 8181
BROADCAST = "255.255.255.255"
PERIOD_SECONDS = 3.0


class ServerWatch(Service):
    """Hears announcements on a UDP port; `heard` is called with each `ServerAddress`.

    `interface` is what to listen on: "" for broadcasts.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        heard: Callable[[ServerAddress], Any] | None = None,
        *,
        port: int = DISCOVERY_PORT,
        interface: str = "127.0.0.1",
    ) -> None:
        self._reactor = timed(reactor)
        self._listeners = [heard] if heard is not None else []
        self._port, self._interface = port, interface
        self._listening: Any = None
        self._waiting: Waiters[ServerAddress | None] = Waiters()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listening.getHost().port) if self._listening else self._port

    def add_listener(self, heard: Callable[[ServerAddress], Any]) -> None:
        """Call `heard` with every announcement from now on."""
        self._listeners.append(heard)

    def startService(self) -> None:
        """Listen."""
        super().startService()
        # 65535, since Twisted would cut a longer datagram at 8192 bytes without a word.
        self._listening = cast("IReactorUDP", self._reactor).listenUDP(
            self._port, _Listener(self._receive), interface=self._interface, maxPacketSize=65_535
        )

    def stopService(self) -> Any:
        """Stop listening; who waits for an address gets None."""
        super().stopService()
        self._waiting.fire(None)
        listening, self._listening = self._listening, None
        return maybeDeferred(listening.stopListening) if listening is not None else None

    def next_address(self, seconds_max: float) -> "Deferred[ServerAddress | None]":
        """Return the next announcement, None if there is none in that time."""
        heard = self._waiting.wait()
        heard.addTimeout(seconds_max, self._reactor)
        return heard.addErrback(_nothing_heard)

    def _receive(self, datagram: bytes, address: Any) -> None:
        try:
            server = parse_server_ip(datagram)
        except ProtocolError as error:
            self._log.warn("datagram from {peer}: {reason}", peer=address, reason=str(error))
            return
        self._waiting.fire(server)
        for heard in self._listeners:
            heard(server)


def _nothing_heard(failure: Failure) -> None:
    failure.trap(TookTooLong)


class ServerBeacon(Service):
    """Announces a server every `period` seconds, the first time after one period.

    Args:
        own: what to announce.
        destination: where to; a broadcast address by default.
        watch: also hear others on it, and when one of them is older, stop and call `on_older`
            with its address. The original's servers do so with `on_older` that shuts them down.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        own: ServerAddress,
        *,
        destination: tuple[str, int] = (BROADCAST, DISCOVERY_PORT),
        period: float = PERIOD_SECONDS,
        watch: "ServerWatch | None" = None,
        on_older: Callable[[ServerAddress], Any] | None = None,
    ) -> None:
        self._reactor = timed(reactor)
        self.own = own
        self._destination = destination
        self._period = period
        self._on_older = on_older
        self._sender = _Listener(lambda datagram, address: None)
        self._port: Any = None
        self._loop = LoopingCall(self._send)
        self._loop.clock = self._reactor
        if watch is not None:
            watch.add_listener(self.hear)

    def startService(self) -> None:
        """Begin to announce."""
        super().startService()
        self._port = cast("IReactorUDP", self._reactor).listenUDP(
            0, self._sender, interface="", maxPacketSize=8192
        )
        self._port.setBroadcastAllowed(True)
        d = self._loop.start(self._period, now=False)
        d.addErrback(lambda f: self._log.failure("announcement", f))

    def stopService(self) -> Any:
        """Stop announcing."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()
        port, self._port = self._port, None
        return maybeDeferred(port.stopListening) if port is not None else None

    def hear(self, other: ServerAddress) -> None:
        """Give way to an older server."""
        if other.server_id == self.own.server_id or not other.is_older_than(self.own):
            return
        self._log.warn(
            "giving way to the older server {server} at {host}:{port}",
            server=other.server_id,
            host=other.host,
            port=other.port,
        )
        d = maybeDeferred(self.stopService)
        if (on_older := self._on_older) is not None:
            d.addCallback(lambda _: on_older(other))
        d.addErrback(lambda f: self._log.failure("giving way", f))

    def _send(self) -> None:
        # A LoopingCall ends for ever with an error, and a network can be away for a while.
        try:
            self._sender.transport.write(self.own.datagram(), self._destination)
        except OSError as error:
            self._log.warn("announcement not sent: {reason}", reason=str(error))


class _Listener(DatagramProtocol):
    transport: Any

    def __init__(self, received: Callable[[bytes, Any], None]) -> None:
        self._received = received

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self._received(datagram, addr)
