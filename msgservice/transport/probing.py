"""Whether a listener could be opened now: asked before a daemon leaves its terminal.

What it says is true at that moment only. The listener itself is opened by its transport, and fails
with the same error.
"""

from __future__ import annotations

import socket
from pathlib import Path

from msgservice.errors import CannotListen
from msgservice.transport.addresses import LOOPBACK, Address, ip_of, parse_address
from msgservice.transport.tcp.endpoints import is_listened_at

ANY = "0.0.0.0"  # noqa: S104  # as a listener with `interface=`; it is bound for a moment only


def check_free(text: str) -> None:
    """An address of a listener is free: raises `CannotListen` where another program has it.

    Passes for what cannot be asked: port 0, an interface that is a name, a scheme of others.
    """
    address = parse_address(text)
    if address.scheme == "unix":
        if is_listened_at(Path(address.parts[0])):
            raise CannotListen(text, "another program listens there")
    elif address.scheme in ("tcp", "tls", "ssl", "udp"):
        _bind(address)


def _bind(address: Address) -> None:
    host = address.options.get("interface", LOOPBACK) or ANY
    ip = ip_of(host)
    port = address.port(address.one_part("PORT"), port_min=0)
    if ip is None or not port:
        return
    is_stream = address.scheme != "udp"
    with socket.socket(
        socket.AF_INET if ip.version == 4 else socket.AF_INET6,
        socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM,
    ) as probe:
        if is_stream:  # as for a listener: connections that have just ended do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ip.version == 6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotListen(address.text, error.strerror or str(error)) from None
