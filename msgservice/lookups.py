"""Resolving of names: each in a thread of its own, which nobody else waits for, and no end either.

Twisted looks up in the reactor's own pool, of ten threads, addresses too, which need none. So ten
names for which no name server answers keep everybody else from dialling for minutes, and a process
that ends waits for all that were asked for. Here a name is looked up once for all who ask for it
meanwhile, and an address at once.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Literal

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorFromThreads,
    IResolutionReceiver,
)
from zope.interface import implementer

from msgservice.threads import in_daemon_thread

LOOKUPS_MAX = 100  # names at once, each in a thread; more of them wait in line
_FAMILIES = {IPv4Address: socket.AF_INET, IPv6Address: socket.AF_INET6}
_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}

Found = Sequence[tuple[Any, ...]]  # families and addresses of sockets, as `getaddrinfo` has them
Asked = tuple[str, int, int]  # name, family, kind of socket
Waiter = tuple[IResolutionReceiver, int]  # and the port that its addresses are to have


@implementer(IHostResolution)
class Resolution:
    """A lookup that is under way."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """A lookup cannot be called off, as Twisted's cannot: what comes of it is not asked for."""


@implementer(IHostnameResolver)
class Lookups:
    """The lookups of one process, as Twisted's endpoints ask for them."""

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._asked: dict[Asked, list[Waiter]] = {}  # under way, and in line
        self._line: deque[Asked] = deque()
        self._count = 0  # threads

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See `IHostnameResolver`; what cannot be looked up has no address."""
        resolution = Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        families = {_FAMILIES[one] for one in addressTypes or _FAMILIES}
        family = families.pop() if len(families) == 1 else socket.AF_UNSPEC
        asked = (hostName, int(family), int(_KINDS[transportSemantics]))
        waiter = (resolutionReceiver, portNumber)
        found = _without_looking(hostName, family)
        if found is not None:
            _tell(waiter, asked, found)
        elif asked in self._asked:
            self._asked[asked].append(waiter)
        else:
            self._asked[asked] = [waiter]
            self._line.append(asked)
            self._go_on()
        return resolution

    def _go_on(self) -> None:
        while self._line and self._count < LOOKUPS_MAX:
            asked = self._line.popleft()
            self._count += 1
            looking_up = maybeDeferred(
                in_daemon_thread, self._reactor, lambda at=asked: _look_up(at)
            )
            looking_up.addErrback(lambda _: [])  # no thread, say
            looking_up.addCallback(self._found, asked)

    def _found(self, found: Found, asked: Asked) -> None:
        self._count -= 1
        for waiter in self._asked.pop(asked):
            _tell(waiter, asked, found)
        self._go_on()


def _without_looking(host: str, family: int) -> Found | None:
    """Return what an IP address is, and None for a name, or an address with a zone."""
    try:
        ip = ip_address(host)
    except ValueError:
        return None
    if "%" in host:
        return None
    own = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    return [(own, (host,))] if family in (own, socket.AF_UNSPEC) else []


def _look_up(asked: Asked) -> Found:
    host, family, kind = asked
    try:
        found = socket.getaddrinfo(host, 0, family, kind)
    except (OSError, ValueError):  # a name that there is not, or that cannot be
        return []
    return [(one[0], one[4]) for one in found]


def _tell(waiter: Waiter, asked: Asked, found: Found) -> None:
    receiver, port = waiter
    kind: Literal["TCP", "UDP"] = "TCP" if asked[2] == socket.SOCK_STREAM else "UDP"
    for family, at in found:
        if family == socket.AF_INET:
            receiver.addressResolved(IPv4Address(kind, at[0], port))
        elif family == socket.AF_INET6:
            receiver.addressResolved(IPv6Address(kind, at[0], port, *at[2:]))
    receiver.resolutionComplete()
