"""The bearer of frames over acknowledged UDP: `ITransport` for addresses that begin with `udp:`.

`udp.addresses` says what they look like, `udp.bearer` how sessions are channels, `udp.connector`
who dials. The hop above knows what was not acknowledged and sends it over whatever connection comes
next, which is why the same sequence may be tried over TCP and over UDP.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from zope.interface import implementer

from msgservice.errors import BadAddress, CannotListen
from msgservice.interfaces import IChannelUser, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.transport.addresses import (
    LOOPBACK,
)
from msgservice.transport.udp.addresses import check_listen, is_insecure, read_key
from msgservice.transport.udp.bearer import Bearer
from msgservice.transport.udp.connector import UdpConnector


@implementer(IListeningPort)
class UdpPort:
    """A listener that is open."""

    def __init__(self, bearer: Bearer) -> None:
        self._bearer = bearer

    def startListening(self) -> None:
        """Do nothing: the port was opened by `UdpTransport.listen`."""

    def stopListening(self) -> Deferred[None]:
        """End all channels, and close the socket."""
        self._bearer.close()
        return succeed(None)

    def getHost(self) -> IAddress:
        """Return where it listens."""
        host, port = self._bearer.address
        kind = IPv6Address if ":" in host else IPv4Address
        return kind("UDP", host, port)


@implementer(ITransport)
class UdpTransport:
    """Acknowledged UDP. Each connector has a socket of its own.

    `rng` returns floats from 0 to 1, for delays; `entropy(n)` n random bytes, for ids and secrets.
    """

    schemes = ("udp",)

    def __init__(
        self,
        *,
        rng: Callable[[], float],
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._rng = rng
        self._entropy = entropy

    def connector(
        self, reactor: Any, address: str, make_user: Callable[[], IChannelUser], limits: Limits
    ) -> IConnector:
        """See `ITransport`."""
        return UdpConnector(
            reactor=reactor,
            address=address,
            make_user=make_user,
            limits=limits,
            rng=self._rng,
            entropy=self._entropy,
        )

    def listen(
        self, reactor: Any, address: str, make_user: Callable[[], IChannelUser], limits: Limits
    ) -> Deferred[IListeningPort]:
        """See `ITransport`."""
        try:
            parsed = check_listen(address)
            port = parsed.port(parsed.one_part("PORT"), port_min=0)
            bearer = Bearer(
                reactor,
                make_user=make_user,
                limits=limits,
                key=read_key(parsed),
                insecure=is_insecure(parsed),
                established=lambda channel: None,
                gone=lambda channel, reason: None,
                rng=self._rng,
                entropy=self._entropy,
            )
            bearer.listen(port, parsed.options.get("interface", LOOPBACK))
        except (BadAddress, CannotListen) as error:
            return fail(error)
        return succeed(UdpPort(bearer))
