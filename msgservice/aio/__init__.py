"""msgservice for asyncio: the client and the receiver, whose waits are futures of the event loop.

    client = await msgservice.aio.connect("tcp:127.0.0.1:7410", name="shop")
    receipt = await client.send("orders.new", {"id": 17})

Everything is Twisted's underneath, on a reactor that runs on the loop (`aio.loop`); docs/asyncio.md
has the rest. `reactor` and `awaited` are for what has no call here: an embedded `Node`, say.
"""

from __future__ import annotations

from msgservice.aio.client import Client, Connecting, Responder, connect
from msgservice.aio.loop import awaited, reactor
from msgservice.aio.receipts import Receipt, Receipts
from msgservice.aio.receiver import Receiver
from msgservice.receiver.deliveries import Delivery

__all__ = [
    "Client",
    "Connecting",
    "Delivery",
    "Receipt",
    "Receipts",
    "Receiver",
    "Responder",
    "awaited",
    "connect",
    "reactor",
]
