"""Whether a port could be listened at now: asked before a daemon leaves its terminal.

What it says is true at that moment only. The listener itself is opened by its transport, and fails
with the same error.
"""

from __future__ import annotations

import errno
import socket

from msgservice.errors import CannotListen
from msgservice.transport.addresses import LOOPBACK, Address, ip_of

ANY = "0.0.0.0"  # noqa: S104  # as a listener with `interface=`; it is bound for a moment only


# What would help, by the number of an error of the system.
_HELP = {
    errno.EADDRINUSE: "stop what listens there, or listen somewhere else",
    errno.EADDRNOTAVAIL: "this machine has no such interface",
    errno.EACCES: "ports below 1024 need a right of their own (CAP_NET_BIND_SERVICE)",
}


def told_of(error: OSError) -> str:
    """Return why an address cannot be listened on, for people, and what would help."""
    reason = error.strerror or str(error)
    help_ = _HELP.get(error.errno or 0)
    return reason if help_ is None else f"{reason}: {help_}"


def check_port_free(address: Address, kind: socket.SocketKind) -> None:
    """Raise `CannotListen` where another program has the port of a listener.

    Passes for what cannot be asked: port 0, an interface that is a name.
    """
    host = address.options.get("interface", LOOPBACK) or ANY
    ip = ip_of(host)
    port = address.port(address.one_part("PORT"), port_min=0)
    if ip is None or not port:
        return
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, kind) as probe:
        if kind is socket.SOCK_STREAM:  # as for a listener: ended connections do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ip.version == 6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotListen(address.text, told_of(error)) from None
