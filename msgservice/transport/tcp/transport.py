"""The transport of frames over TCP, TLS and Unix sockets: `ITransport`, assembled."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorPluggableNameResolver,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.task import Clock
from zope.interface import implementer

from msgservice.clock import timed
from msgservice.errors import CannotListen
from msgservice.interfaces import IChannelUser, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.records import Reread
from msgservice.transport.addresses import beyond_loopback, parse_address
from msgservice.transport.dialling import Connector
from msgservice.transport.probing import check_port_free
from msgservice.transport.tcp.channel import FrameProtocol
from msgservice.transport.tcp.endpoints import (
    check_socket,
    client_endpoint,
    is_listened_at,
    server_endpoint,
)
from msgservice.transport.tcp.listening import (
    ConnectionCount,
    MakeChannel,
    listen_at,
)
from msgservice.transport.tcp.pacing import Turn
from msgservice.transport.tcp.profiles import TlsProfiles
from msgservice.transport.tcp.tls import Tls


@implementer(IReactorPluggableNameResolver)
class Unused(Clock):
    """A reactor for an endpoint that is only made: nothing is done with it."""

    nameResolver: Any = None

    def installNameResolver(self, resolver: Any) -> Any:
        """See `IReactorPluggableNameResolver`."""
        return resolver


@implementer(ITransport)
class TcpTransport:
    """Byte streams. `limits.connections` counts what one of these accepted, on all its ports.

    `rng` (floats from 0 to 1) spreads the attempts of many that dial the same node. `tls`: for what
    addresses with TLS leave out.
    """

    schemes = ("tcp", "tls", "ssl", "unix")  # and those of Twisted's endpoint plugins

    def __init__(self, *, rng: Callable[[], float], tls: TlsProfiles | None = None) -> None:
        self._rng = rng
        self._tls = Tls(tls)
        self.accepted = ConnectionCount()

    def check_dial(self, address: str) -> None:
        """See `ITransport`."""
        client_endpoint(Unused(), address, Tls(self._tls.profiles))

    def check_listen(self, address: str) -> str | None:
        """See `ITransport`."""
        server_endpoint(Unused(), address, Tls(self._tls.profiles))
        parsed = parse_address(address)
        if parsed.scheme == "unix":
            check_socket(parsed)
            return None
        if parsed.scheme in self.schemes:
            return beyond_loopback(parsed)
        return f"whether {parsed.scheme}: is beyond loopback cannot be told"

    def check_free(self, address: str) -> None:
        """See `ITransport`."""
        parsed = parse_address(address)
        if parsed.scheme == "unix":
            if is_listened_at(Path(parsed.parts[0])):
                raise CannotListen(address, "another program listens there")
        elif parsed.scheme in self.schemes:
            check_port_free(parsed, socket.SOCK_STREAM)

    def connector(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
    ) -> IConnector:
        """See `ITransport`."""
        reactor = timed(reactor)
        turn = Turn(reactor)
        return Connector(
            reactor=reactor,
            address=address,
            endpoint=client_endpoint(reactor, address, self._tls),
            make_channel=lambda owner: FrameProtocol(
                reactor=reactor,
                make_user=make_user,
                limits=limits,
                owner=owner,
                turn=turn,
                is_dialled=True,
            ),
            limits=limits,
            rng=self._rng,
        )

    def listen(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
    ) -> Deferred[IListeningPort]:
        """See `ITransport`."""
        return self._listen(reactor, address, FrameProtocol, limits, make_user)

    def listen_for(
        self, reactor: IReactorTime, address: str, make_channel: MakeChannel, limits: Limits
    ) -> Deferred[IListeningPort]:
        """Listen for connections that are what `make_channel` makes, and have no user."""
        return self._listen(reactor, address, make_channel, limits, nobody)

    def _listen(
        self,
        reactor: IReactorTime,
        address: str,
        make_channel: MakeChannel,
        limits: Limits,
        make_user: Callable[[], IChannelUser],
    ) -> Deferred[IListeningPort]:
        return listen_at(
            lambda reactor: server_endpoint(reactor, address, self._tls),
            reactor,
            address,
            make_channel=make_channel,
            make_user=make_user,
            limits=limits,
            count=self.accepted,
        )

    def endpoint(self, reactor: IReactorTime, address: str) -> IStreamServerEndpoint:
        """Return what listens at an address, for what speaks another protocol there.

        Its files of TLS are read anew with those of this transport. Raises `BadAddress`.
        """
        return server_endpoint(timed(reactor), address, self._tls)

    def asks_certificates(self, address: str) -> bool:
        """Return whether who dials a listener's address must show a certificate."""
        parsed = parse_address(address)
        if parsed.scheme not in ("tls", "ssl"):
            return False
        return self._tls.profiles.files(parsed, listening=True).roots is not None

    def reload(self) -> list[Reread]:
        """See `ITransport`."""
        return self._tls.reload()

    def tell_expiring(self) -> None:
        """Warn of certificates in use that expire soon, each once a day."""
        self._tls.tell_expiring()


def nobody() -> IChannelUser:
    """Stand for the user of connections that have none."""
    raise AssertionError("a connection without a channel has no user")
