"""Which transport serves an address: by the scheme it begins with.

Ours come first. A third party adds one by a module in its own `twisted/plugins` folder, whose
value provides `msgservice.interfaces.ITransport` and `twisted.plugin.IPlugin`. A scheme that
neither knows, but that is a Twisted endpoint plugin's, is a byte stream like TCP.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import getPlugins

from msgservice.errors import BadAddress
from msgservice.interfaces import ITransport
from msgservice.records import Reread
from msgservice.transport.addresses import parse_address
from msgservice.transport.pb.transport import PbTransport
from msgservice.transport.tcp.profiles import TlsProfiles
from msgservice.transport.tcp.transport import TcpTransport
from msgservice.transport.udp.transport import UdpTransport

_HOST_AND_PORT = re.compile(r"[\w.-]+:[0-9]{1,5}")


class Transports:
    """The transports of one node or client, by scheme.

    Each has its own `TcpTransport`, so that limits on connections hold for a node, not for all
    nodes of a process. `register` before the first address of that scheme is used. `rng` (floats
    from 0 to 1) spreads attempts and retransmissions of many. `tls`: the profiles of TLS, for what
    addresses leave out.
    """

    def __init__(
        self,
        more: Iterable[ITransport] = (),
        *,
        rng: Callable[[], float] = random.random,
        tls: TlsProfiles | None = None,
    ) -> None:
        self.tcp = TcpTransport(rng=rng, tls=tls)
        self._by_scheme: dict[str, ITransport] = {}
        self._plugins_known = False
        self.register(self.tcp)
        self.register(UdpTransport(rng=rng))
        self.register(PbTransport(rng=rng, tls=tls, count=self.tcp.accepted))
        for transport in more:
            self.register(transport)

    @property
    def schemes(self) -> Sequence[str]:
        """The schemes known by now, sorted, without those of Twisted's endpoints alone."""
        return sorted(name for name, one in self._by_scheme.items() if name in one.schemes)

    def register(self, transport: ITransport) -> None:
        """Let `transport` serve its schemes, whoever served them before."""
        for scheme in transport.schemes:
            self._by_scheme[scheme] = transport

    def reload(self) -> list[Reread]:
        """Let each transport read its files anew (`ITransport.reload`)."""
        return [read for one in dict.fromkeys(self._by_scheme.values()) for read in one.reload()]

    def find(self, address: str) -> ITransport:
        """Return the transport that serves this address; `BadAddress` where none does."""
        scheme = parse_address(address).scheme
        if scheme not in self._by_scheme and not self._plugins_known:
            # Looking imports every plugin there is: only when nothing else knows the scheme.
            self._plugins_known = True
            self._find_plugins()
        transport = self._by_scheme.get(scheme)
        if transport is None:
            known = ", ".join(self.schemes)
            hint = f"; did you mean 'tcp:{address}'?" if _HOST_AND_PORT.fullmatch(address) else ""
            raise BadAddress(address, f"unknown scheme {scheme!r} (known: {known}){hint}")
        return transport

    def _find_plugins(self) -> None:
        for transport in getPlugins(ITransport):
            for scheme in transport.schemes:
                self._by_scheme.setdefault(scheme, transport)
        for interface in (
            IStreamClientEndpointStringParserWithReactor,
            IStreamServerEndpointStringParser,
        ):
            parsers: Iterable[Any] = getPlugins(interface)
            for parser in parsers:
                self._by_scheme.setdefault(parser.prefix.lower(), self.tcp)
