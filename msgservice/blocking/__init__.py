"""msgservice for programs that block: the client and the receiver, whose calls wait.

    with msgservice.blocking.connect("tcp:127.0.0.1:7410", name="shop") as client:
        receipt = client.send("orders.new", {"id": 17})

Everything is Twisted's underneath, on a reactor in a thread of its own (`blocking.thread`), one for
each process. docs/blocking.md has the rest.
"""

from __future__ import annotations

from msgservice.blocking.client import Client, Responder, connect
from msgservice.blocking.receipts import Receipt, Receipts
from msgservice.blocking.receiver import Attachment, Listening, Receiver
from msgservice.receiver.deliveries import Delivery

__all__ = [
    "Attachment",
    "Client",
    "Delivery",
    "Listening",
    "Receipt",
    "Receipts",
    "Receiver",
    "Responder",
    "connect",
]
