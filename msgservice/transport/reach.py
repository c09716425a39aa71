"""The reach of a node: which addresses it may be made to dial (SSRF).

Whoever can name an address could otherwise have the node speak to what only the node can reach:
itself, its neighbours, the metadata of its cloud. So only public addresses are dialled, and the
networks that the operator allows: of webhooks always, of other receivers where users give their
addresses. What is checked is the address of the socket that is connected: a name whose answer
changes (DNS rebinding) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from twisted.internet.address import IPv4Address as FoundIPv4
from twisted.internet.address import IPv6Address as FoundIPv6
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorTime,
    IResolutionReceiver,
)
from zope.interface import alsoProvides, implementer

from msgservice.clock import AroundReactor
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


class NotReachable(Exception):
    """An address is none that this node may be made to dial; `key` would allow it."""

    def __init__(self, host: str, key: str) -> None:
        super().__init__(f"{host} is no address that this node may dial, unless {key} has it")
        self.key = key


class Reach:
    """The addresses that may be dialled: public ones, and those in `allowed`.

    `key`: of the configuration, that says these, for people.
    """

    def __init__(self, allowed: Sequence[Network] = (), key: str = "networks of [webhook]") -> None:
        self._allowed = tuple(allowed)
        self._key = key

    def check(self, host: str) -> None:
        """Raise `NotReachable` unless this IP address may be dialled."""
        if not self.allows(host):
            raise NotReachable(host, self._key)

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


class ReachingReactor(AroundReactor):
    """A reactor by which endpoints dial only what may be dialled.

    What is asked is each address of a socket, when it is connected: a name's are known by then, and
    none can be another afterwards. `applies`: whether it is asked now.
    """

    def __init__(
        self, reactor: IReactorTime, reach: Reach, applies: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(reactor)
        alsoProvides(self, IReactorPluggableNameResolver)  # where the other does it at all
        self._reach, self._applies = reach, applies

    def check(self, host: str) -> None:
        """Raise `NotReachable` for an address that may not be dialled."""
        if self._applies():
            self._reach.check(host)

    def connectTCP(self, host: str, *arguments: Any, **more: Any) -> Any:
        """See `IReactorTCP`; raises `NotReachable`."""
        self.check(host)
        return self._reactor.connectTCP(host, *arguments, **more)


def check_reach(reactor: object, host: str) -> None:
    """Raise `NotReachable` where `reactor` is one by which this address may not be dialled.

    For what opens its sockets itself.
    """
    if isinstance(reactor, ReachingReactor):
        reactor.check(host)


@implementer(IResolutionReceiver)
class _Found:
    """The receiver of what a name leads to."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.done: Deferred[list[str]] = Deferred()  # Twisted's own lookups cannot be called off

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See `IResolutionReceiver`."""

    def addressResolved(self, address: IAddress) -> None:
        """See `IResolutionReceiver`."""
        if isinstance(address, FoundIPv4 | FoundIPv6):
            self.addresses.append(address.host)

    def resolutionComplete(self) -> None:
        """See `IResolutionReceiver`."""
        if not self.done.called:
            self.done.callback(self.addresses)


def addresses_of(reactor: IReactorTime, host: str) -> Deferred[list[str]]:
    """Fire with the IP addresses that a host has now: it is one, or a name that leads to some.

    With none where it cannot be looked up. May be cancelled.
    """
    try:
        return succeed([str(ip_address(host))])
    except ValueError:
        pass
    if not IReactorPluggableNameResolver.providedBy(reactor):  # a test's clock knows no names
        return succeed([])
    found, looking_up = _Found(), reactor
    looking_up.nameResolver.resolveHostName(found, host)
    return found.done
