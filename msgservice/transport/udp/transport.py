"""The bearer of frames over acknowledged UDP: `ITransport` for addresses that begin with `udp:`.

`udp.addresses` says what they look like, `udp.bearer` how sessions are channels, `udp.endpoint`
how one is dialled. The hop above knows what was not acknowledged and sends it over whatever
connection comes next, which is why the same sequence may be tried over TCP and over UDP.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from msgservice.clock import timed
from msgservice.errors import BadAddress, CannotListen
from msgservice.interfaces import IChannelUser, IConnector, ITransport
from msgservice.limits import Limits
from msgservice.records import Reread
from msgservice.transport.addresses import LOOPBACK, Address, beyond_loopback, parse_address
from msgservice.transport.dialling import Connector
from msgservice.transport.owners import Nobody
from msgservice.transport.probing import check_port_free
from msgservice.transport.udp.addresses import check_dial, check_listen, is_insecure, read_shared
from msgservice.transport.udp.bearer import Bearer, UdpChannel, udp_address
from msgservice.transport.udp.endpoint import UdpEndpoint


@implementer(IListeningPort)
class UdpPort:
    """A listener that is open, on a taken-apart address; `stopped` is told of its end."""

    _log = Logger()

    def __init__(
        self, address: Address, bearer: Bearer, stopped: Callable[[UdpPort], object]
    ) -> None:
        self._address = address
        self._bearer = bearer
        self._stopped = stopped

    def startListening(self) -> None:
        """Do nothing: the port was opened by `UdpTransport.listen`."""

    def stopListening(self) -> Deferred[None]:
        """End all channels, and close the socket."""
        self._stopped(self)
        self._bearer.close()
        return succeed(None)

    def getHost(self) -> IAddress:
        """Return where it listens."""
        return udp_address(self._bearer.address)

    def reread(self) -> Reread | None:
        """Read the keys anew; None without any. The sessions of those that are gone end.

        A file that cannot be used changes nothing.
        """
        text, before = self._address.text, self._bearer.keys
        if before is None:
            return None
        try:
            keys = read_shared(self._address)
        except BadAddress as error:
            self._log.error(
                "keys cannot be read, those before go on: {error}",
                line="key-not-read",
                error=str(error),
            )
            return Reread(text, False, str(error))
        assert keys is not None
        if keys == before:
            return Reread(text, False, None)
        ended = self._bearer.change_keys(keys)
        self._log.info(
            "keys of {address} were read anew, which ended {ended} session(s)",
            line="keys-read",
            address=text,
            ended=ended,
        )
        return Reread(text, True, None)


class _Listener:
    """The accepter of what comes to a listener, which keeps no account of it."""

    def __init__(self, make_user: Callable[[], IChannelUser], limits: Limits) -> None:
        self._make_user = make_user
        self._limits = limits

    def buildProtocol(self, address: IAddress) -> IProtocol | None:
        return UdpChannel(self._make_user, self._limits, Nobody())

    def opened(self, protocol: IProtocol) -> None:
        """See `Accepter`."""

    def lost(self) -> None:
        """See `Accepter`."""


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
        self._ports: dict[UdpPort, None] = {}  # that are open

    def check_dial(self, address: str) -> None:
        """See `ITransport`."""
        check_dial(address)

    def check_listen(self, address: str) -> str | None:
        """See `ITransport`: with a key nobody else is heard, so whoever is may be anywhere."""
        parsed = check_listen(address)
        keyed = "key" in parsed.options or "keys" in parsed.options
        return None if keyed else beyond_loopback(parsed)

    def check_free(self, address: str) -> None:
        """See `ITransport`."""
        check_port_free(parse_address(address), socket.SOCK_DGRAM)

    def connector(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
    ) -> IConnector:
        """See `ITransport`."""
        reactor = timed(reactor)
        return Connector(
            reactor=reactor,
            address=address,
            endpoint=UdpEndpoint(reactor, address, limits, rng=self._rng, entropy=self._entropy),
            make_channel=lambda owner: UdpChannel(make_user, limits, owner),
            limits=limits,
            rng=self._rng,
            silence="no answer (nobody is there, or has this key)",
        )

    def listen(
        self,
        reactor: IReactorTime,
        address: str,
        make_user: Callable[[], IChannelUser],
        limits: Limits,
    ) -> Deferred[IListeningPort]:
        """See `ITransport`."""
        try:
            parsed = check_listen(address)
            port = parsed.port(parsed.one_part("PORT"), port_min=0)
            bearer = Bearer(
                reactor,
                _Listener(make_user, limits),
                limits=limits,
                keys=read_shared(parsed),
                insecure=is_insecure(parsed),
                rng=self._rng,
                entropy=self._entropy,
            )
            bearer.listen(port, parsed.options.get("interface", LOOPBACK))
        except (BadAddress, CannotListen) as error:
            return fail(error)
        opened = UdpPort(parsed, bearer, lambda port: self._ports.pop(port, None))
        self._ports[opened] = None
        return succeed(opened)

    def reload(self) -> list[Reread]:
        """See `ITransport`. What is dialled reads its key for each attempt, unasked."""
        return [read for port in list(self._ports) if (read := port.reread()) is not None]
