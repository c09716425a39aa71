"""msgservice: hand it a message and it is never lost.

The public names; they are imported when they are first used, so that importing this package
installs no reactor and costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msgservice.client import Client
    from msgservice.client_connect import connect
    from msgservice.errors import Reject, Retry
    from msgservice.limits import Limits
    from msgservice.message import Status
    from msgservice.node.assembly import Node
    from msgservice.receipt import Receipt
    from msgservice.receiver import Receiver
    from msgservice.transport.datagram_peer import DatagramPeer
    from msgservice.transport.rates import Rate, RateLimits

__all__ = [
    "Client",
    "DatagramPeer",
    "Limits",
    "Node",
    "Rate",
    "RateLimits",
    "Receipt",
    "Receiver",
    "Reject",
    "Retry",
    "Status",
    "connect",
]

_HOMES = {
    "Client": "msgservice.client",
    "DatagramPeer": "msgservice.transport.datagram_peer",
    "Limits": "msgservice.limits",
    "Node": "msgservice.node.assembly",
    "Rate": "msgservice.transport.rates",
    "RateLimits": "msgservice.transport.rates",
    "Receipt": "msgservice.receipt",
    "Receiver": "msgservice.receiver",
    "Reject": "msgservice.errors",
    "Retry": "msgservice.errors",
    "Status": "msgservice.message",
    "connect": "msgservice.client_connect",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
