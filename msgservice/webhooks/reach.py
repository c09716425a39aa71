"""The reach of a node: which addresses it may be made to dial (SSRF).

Whoever can name a URL could otherwise have the node speak to what only the node can reach: itself,
its neighbours, the metadata of its cloud. So only public addresses are dialled, and the networks
that the operator allows. A name is looked up once and what was checked is what is dialled: an
answer that changes between the two (DNS rebinding) changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from twisted.internet.address import IPv4Address as Here4
from twisted.internet.address import IPv6Address as Here6
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorTime,
    IResolutionReceiver,
)
from zope.interface import implementer

from msgservice.errors import BadValue

Network = IPv4Network | IPv6Network
# Ways of writing an IPv4 address as one of IPv6, by which a gateway would reach it all the same:
# NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056), and what was once "IPv4-compatible" (RFC 4291).
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))
_COMPATIBLE = ip_network("::/96")
_TRANSLATED = ip_network("::ffff:0:0:0/96")  # RFC 2765
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # before an IPv4 address at the end (RFC 5214, 6.1)
# What no list of private addresses has, or not that of every version of Python.
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's services of a virtual machine, its metadata among them
        "192.0.0.0/24",  # of protocols (RFC 6890); metadata at 192.0.0.192 in Oracle's cloud
        "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
        "fec0::/10",  # of a site, once (RFC 3879)
        "3fff::/20",  # examples (RFC 9637)
        "5f00::/16",  # segments of an operator's own routing (RFC 9602)
        "100::/16",  # discarded, and not for others (RFC 6666, RFC 9780)
    )
)


def networks_of(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return networks, `10.0.0.0/8` or `fd00::/8`; `BadValue` for what is none."""
    found = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError as error:
            raise BadValue("networks", f"{text!r} is no network: {error}") from None
    return tuple(found)


def _inside(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that stands in one of IPv6, or None."""
    if not isinstance(ip, IPv6Address):
        return None
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip.teredo is not None:
        return ip.teredo[1]
    embeds = any(ip in network for network in (*_NAT64, _COMPATIBLE, _TRANSLATED))
    if embeds or (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


class Reach:
    """The addresses that may be dialled: public ones, and those in `allowed`."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def allows(self, host: str) -> bool:
        """Whether this IP address may be dialled; an address of IPv6 with a zone may not."""
        try:
            ip = ip_address(host)
        except ValueError:
            return False
        if any(ip in network for network in self._allowed if network.version == ip.version):
            return True
        inside = _inside(ip)
        if inside is not None:
            return self.allows(str(inside))
        if ip.version == 6 and getattr(ip, "scope_id", None) is not None:
            return False
        if any(ip in network for network in _NOT_PUBLIC if network.version == ip.version):
            return False
        return ip.is_global and not ip.is_multicast


@implementer(IResolutionReceiver)
class _Checked:
    """The receiver of a resolution, which passes on what may be dialled."""

    def __init__(self, receiver: IResolutionReceiver, reach: Reach, refused: list[str]) -> None:
        self._receiver, self._reach, self._refused = receiver, reach, refused

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See `IResolutionReceiver`."""
        self._receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        """See `IResolutionReceiver`."""
        host = address.host if isinstance(address, Here4 | Here6) else ""
        if self._reach.allows(host):
            self._receiver.addressResolved(address)
        else:
            self._refused.append(host)

    def resolutionComplete(self) -> None:
        """See `IResolutionReceiver`."""
        self._receiver.resolutionComplete()


@implementer(IHostnameResolver)
class _Resolver:
    """A resolver of names that tells no address which may not be dialled."""

    def __init__(self, resolver: IHostnameResolver, reach: Reach, refused: list[str]) -> None:
        self._resolver, self._reach, self._refused = resolver, reach, refused

    def resolveHostName(
        self, resolutionReceiver: IResolutionReceiver, *arguments: Any, **more: Any
    ) -> IHostResolution:
        """See `IHostnameResolver`."""
        checked = _Checked(resolutionReceiver, self._reach, self._refused)
        found: IHostResolution = self._resolver.resolveHostName(checked, *arguments, **more)
        return found


@implementer(IReactorPluggableNameResolver)
class ReachingReactor:
    """A reactor by which endpoints dial only what may be dialled. `refused`: what may not."""

    def __init__(self, reactor: IReactorTime, reach: Reach) -> None:
        self.refused: list[str] = []
        self._reactor: Any = reactor
        self._reach = reach

    @property
    def nameResolver(self) -> IHostnameResolver:
        """The reactor's resolver, checked."""
        return _Resolver(self._reactor.nameResolver, self._reach, self.refused)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `IReactorPluggableNameResolver`: it is the reactor's own that is installed."""
        before: IHostnameResolver = self._reactor.installNameResolver(resolver)
        return before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
