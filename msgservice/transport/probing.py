"""Whether a port could be listened at now: asked before a daemon leaves its terminal.

What it says is true at that moment only. The listener itself is opened by its transport, and fails
with the same error.
"""

from __future__ import annotations

import socket

from msgservice.errors import CannotListen
from msgservice.transport.addresses import LOOPBACK, Address, ip_of

ANY = "0.0.0.0"  # noqa: S104  # as a listener with `interface=`; it is bound for a moment only


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
            raise CannotListen(address.text, error.strerror or str(error)) from None
