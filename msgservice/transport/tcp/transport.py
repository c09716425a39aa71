"""The transport of frames over TCP, TLS and Unix sockets: `ITransport`, assembled."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IListeningPort, IReactorTime
from zope.interface import implementer

from msgservice.clock import timed
from msgservice.errors import BadAddress
from msgservice.interfaces import IChannelUser, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.transport.dialling import Connector
from msgservice.transport.tcp.channel import FrameProtocol
from msgservice.transport.tcp.endpoints import client_endpoint, server_endpoint
from msgservice.transport.tcp.listening import ChannelFactory, ConnectionCount, listen_on
from msgservice.transport.tcp.pacing import Turn


@implementer(ITransport)
class TcpTransport:
    """Byte streams. `limits.connections` counts what one of these accepted, on all its ports.

    `rng` (floats from 0 to 1) spreads the attempts of many that dial the same node.
    """

    schemes = ("tcp", "tls", "ssl", "unix")

    def __init__(self, *, rng: Callable[[], float]) -> None:
        self._rng = rng
        self.accepted = ConnectionCount()

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
            endpoint=client_endpoint(reactor, address),
            make_channel=lambda owner: FrameProtocol(
                reactor=reactor, make_user=make_user, limits=limits, owner=owner, turn=turn
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
        reactor = timed(reactor)
        try:
            endpoint = server_endpoint(reactor, address)
        except BadAddress as error:
            return fail(error)
        factory = ChannelFactory(
            reactor=reactor, make_user=make_user, limits=limits, count=self.accepted
        )
        return listen_on(endpoint, address, factory)
