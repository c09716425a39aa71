"""Socket options, the own address, and the datagram by which a server makes itself known.

No Twisted here: both faces use it. Sending and hearing the datagrams is in
`faces.callbacks.discovery`.
"""

import math
import socket
import sys
from dataclasses import dataclass
from typing import Any

from msgservice.errors import MalformedFrame
from msgservice.faces.callbacks.protocol.events import ActionReceived
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.protocol.wire import Encoder

SERVER_IP = "server_ip"
MACOS_TCP_KEEPALIVE = 0x10  # not in the socket module before Python 3.10, and only on a Mac


def get_ip_address() -> str:
    """Return the address that this machine has towards the world, "localhost" if none.

    Nothing is sent: a UDP socket that is connected only picks its route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("8.8.8.8", 80))
            return str(probe.getsockname()[0])
    except OSError:
        return "localhost"


def set_keepalive(
    sock: Any, after_idle_sec: int = 1, interval_sec: int = 3, max_fails: int = 5
) -> None:
    """Have the system probe an idle connection, and drop it after `max_fails` lost probes.

    Takes anything that has `setsockopt` (`ioctl` on Windows), a Twisted transport's handle too.

    Raises:
        NotImplementedError: on a platform other than Linux, Windows and macOS.
    """
    platform: str = sys.platform
    if platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, after_idle_sec)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_sec)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max_fails)
    elif platform == "win32":
        option = getattr(socket, "SIO_KEEPALIVE_VALS", 0x98000004)
        sock.ioctl(option, (1, after_idle_sec * 1000, interval_sec * 1000))
    elif platform == "darwin":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, MACOS_TCP_KEEPALIVE, interval_sec)
    else:
        raise NotImplementedError(f"keepalive options on platform {platform!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """The address of a server, its identity, and since when (seconds since 1970)."""

    host: str
    port: int
    server_id: str
    start_time: float

    def is_older_than(self, other: "ServerAddress") -> bool:
        """Return whether `other` has to give way; of two born together, the smaller id stays."""
        return (self.start_time, self.server_id) < (other.start_time, other.server_id)

    def datagram(self) -> bytes:
        """Return one whole action message, as the original broadcasts it."""
        return Encoder(sys.byteorder).action(
            SERVER_IP,
            (),
            {
                "host": self.host,
                "port": str(self.port),
                "id": self.server_id,
                "start_time": str(self.start_time),
            },
        )


def parse_server_ip(datagram: bytes) -> ServerAddress:
    """Return what a datagram announces. Raises MalformedFrame when it is no such thing."""
    peer = CallbackPeer(byteorder=sys.byteorder)
    match peer.receive_data(datagram):
        case [ActionReceived(action="server_ip", args=[], kwargs=kwargs)]:
            pass
        case _:
            raise MalformedFrame("datagram is not one server_ip message")
    try:
        host, server_id = kwargs["host"], kwargs["id"]
        port, start_time = int(kwargs["port"]), float(kwargs["start_time"])
    except (KeyError, TypeError, ValueError, OverflowError) as wrong:
        raise MalformedFrame(f"server_ip: {wrong!r}") from None
    if not isinstance(host, str) or not host or not isinstance(server_id, str):
        raise MalformedFrame("server_ip: host and id are strings")
    if not 0 < port < 65_536 or not math.isfinite(start_time):
        raise MalformedFrame(f"server_ip: port {port}, start_time {start_time}")
    return ServerAddress(host=host, port=port, server_id=server_id, start_time=start_time)
