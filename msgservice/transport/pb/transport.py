"""The transport of frames over Perspective Broker: `ITransport` for `pb:` and, with TLS, `pbs:`.

What stands behind the scheme is as behind `tcp:` and `tls:` (`tcp.endpoints`). `limits.connections`
counts these with those of TCP.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from msgservice.clock import timed
from msgservice.errors import BadAddress
from msgservice.interfaces import IChannelUser, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.records import Reread
from msgservice.transport.addresses import beyond_loopback, parse_address
from msgservice.transport.dialling import Connector
from msgservice.transport.owners import Owned
from msgservice.transport.pb.channel import PbChannel, Root
from msgservice.transport.probing import check_port_free
from msgservice.transport.tcp.endpoints import client_endpoint, server_endpoint
from msgservice.transport.tcp.listening import (
    ConnectionCount,
    MakeChannel,
    listen_at,
)
from msgservice.transport.tcp.pacing import Turn
from msgservice.transport.tcp.profiles import TlsProfiles
from msgservice.transport.tcp.tls import Tls
from msgservice.transport.tcp.transport import Unused, nobody

_BELOW: Final = {"pb": "tcp", "pbs": "tls"}


@implementer(ITransport)
class PbTransport:
    """Perspective Broker. `count`: what is accepted, with that of another transport.

    `rng` (floats from 0 to 1) spreads the attempts of many that dial the same node. `tls`: for what
    addresses with TLS leave out.
    """

    schemes = ("pb", "pbs")

    def __init__(
        self,
        *,
        rng: Callable[[], float],
        tls: TlsProfiles | None = None,
        count: ConnectionCount | None = None,
    ) -> None:
        self._rng = rng
        self._tls = Tls(tls)
        self.accepted = ConnectionCount() if count is None else count

    def check_dial(self, address: str) -> None:
        """See `ITransport`."""
        _client(Unused(), address, Tls(self._tls.profiles))

    def check_listen(self, address: str) -> str | None:
        """See `ITransport`."""
        _server(Unused(), address, Tls(self._tls.profiles))
        return beyond_loopback(parse_address(address))

    def check_free(self, address: str) -> None:
        """See `ITransport`."""
        check_port_free(parse_address(address), socket.SOCK_STREAM)

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
        connector: IConnector = self.connector_with(
            reactor,
            address,
            lambda owner: PbChannel(
                reactor=reactor,
                make_user=make_user,
                limits=limits,
                owner=owner,
                turn=turn,
                is_dialled=True,
            ),
            limits,
        )
        return connector

    def connector_with(
        self,
        reactor: IReactorTime,
        address: str,
        make_channel: Callable[[Connector], Owned],
        limits: Limits,
    ) -> Connector:
        """Return a connector whose connections are what `make_channel` makes."""
        return Connector(
            reactor=reactor,
            address=address,
            endpoint=_client(reactor, address, self._tls),
            make_channel=make_channel,
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
        return self.listen_with(reactor, address, make_user, limits, make_root=Root)

    def listen_with(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
        *,
        make_root: Callable[[PbChannel], Root],
    ) -> Deferred[IListeningPort]:
        """Listen as `listen` does; `make_root` makes what each connection finds here."""
        make_channel = partial(PbChannel, make_root=make_root)
        return self._listen(reactor, address, make_channel, limits, make_user)

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
            lambda reactor: _server(reactor, address, self._tls),
            reactor,
            address,
            make_channel=make_channel,
            make_user=make_user,
            limits=limits,
            count=self.accepted,
        )

    def reload(self) -> list[Reread]:
        """See `ITransport`."""
        return self._tls.reload()


def _client(reactor: Any, address: str, tls: Tls) -> IStreamClientEndpoint:
    return client_endpoint(reactor, address, tls, scheme=_below(address))


def _server(reactor: Any, address: str, tls: Tls) -> IStreamServerEndpoint:
    return server_endpoint(reactor, address, tls, scheme=_below(address))


def _below(address: str) -> str:
    below = _BELOW.get(parse_address(address).scheme)
    if below is None:
        raise BadAddress(address, "expected pb:... or pbs:..., as in pb:127.0.0.1:7411")
    return below
