"""msgservice: hand it a message and it is never lost.

The public names; they are imported when they are first used, so that importing this package
installs no reactor and costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msgservice.administration import Cause
    from msgservice.client.client import Client
    from msgservice.client.connect import connect
    from msgservice.client.promise import Promise, PromiseCounts, PromiseOutcome
    from msgservice.client.receipt import Receipt
    from msgservice.errors import Reject, Retry
    from msgservice.limits import Limits, Rate
    from msgservice.message import Status
    from msgservice.node.node import Node
    from msgservice.pb import PbPeer
    from msgservice.receiver.receiver import Receiver
    from msgservice.transport.pb.codec import JellyCodec
    from msgservice.transport.udp.peer import DatagramPeer

__all__ = [
    "Cause",
    "Client",
    "DatagramPeer",
    "JellyCodec",
    "Limits",
    "Node",
    "PbPeer",
    "Promise",
    "PromiseCounts",
    "PromiseOutcome",
    "Rate",
    "Receipt",
    "Receiver",
    "Reject",
    "Retry",
    "Status",
    "connect",
]

_HOMES = {
    "Cause": "msgservice.administration",
    "Client": "msgservice.client.client",
    "DatagramPeer": "msgservice.transport.udp.peer",
    "JellyCodec": "msgservice.transport.pb.codec",
    "Limits": "msgservice.limits",
    "Node": "msgservice.node.node",
    "PbPeer": "msgservice.pb",
    "Promise": "msgservice.client.promise",
    "PromiseCounts": "msgservice.client.promise",
    "PromiseOutcome": "msgservice.client.promise",
    "Rate": "msgservice.limits",
    "Receipt": "msgservice.client.receipt",
    "Receiver": "msgservice.receiver.receiver",
    "Reject": "msgservice.errors",
    "Retry": "msgservice.errors",
    "Status": "msgservice.message",
    "connect": "msgservice.client.connect",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """The public names, for whoever completes or asks: none of them is here before it is used."""
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any", "annotations"})
