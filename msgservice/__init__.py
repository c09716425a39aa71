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
    from msgservice.receiver.received import ReceivedMessage as Message
    from msgservice.receiver.receiver import Receiver
    from msgservice.transport.pb.codec import JellyCodec
    from msgservice.transport.udp.peer import DatagramPeer

__all__ = [
    "Cause",
    "Client",
    "DatagramPeer",
    "JellyCodec",
    "Limits",
    "Message",
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

# Public name -> its module, and its name there where that is another.
_HOMES = {
    "Cause": "msgservice.administration",
    "Client": "msgservice.client.client",
    "DatagramPeer": "msgservice.transport.udp.peer",
    "JellyCodec": "msgservice.transport.pb.codec",
    "Limits": "msgservice.limits",
    "Message": "msgservice.receiver.received:ReceivedMessage",
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


if not TYPE_CHECKING:  # for a type checker each name that is not above is wrong

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        home = _HOMES.get(name)
        if home is None:
            raise _unknown(name)
        module, _, other = home.partition(":")
        return getattr(import_module(module), other or name)


def _unknown(name: str) -> ImportError | AttributeError:
    """The error of a name that is not public, with the one that was meant where it is like one."""
    import sys
    from difflib import get_close_matches
    from importlib.util import find_spec

    like = get_close_matches(name, __all__, n=1)
    meant = f"; did you mean {like[0]!r}?" if like else ""
    # `from msgservice import Recever`: of an AttributeError the import makes one of its own, which
    # before Python 3.12 says no more than that. Who asks is seen by the caller alone, and `hasattr`
    # in any other place must go on meaning False.
    asks = sys._getframe(2).f_code  # noqa: SLF001
    if (asks.co_name, asks.co_filename) == (
        "_handle_fromlist",
        "<frozen importlib._bootstrap>",
    ) and find_spec(f"{__name__}.{name}") is None:
        return ImportError(
            f"cannot import name {name!r} from {__name__!r}{meant}", name=__name__, path=__file__
        )
    return AttributeError(f"module {__name__!r} has no attribute {name!r}{meant}", name=name)


def __dir__() -> list[str]:
    """The public names, for whoever completes or asks: none of them is here before it is used."""
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING", "Any", "annotations"})
