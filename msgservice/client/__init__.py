"""The producer's side: `Client`, `connect`, `Receipt`."""

from __future__ import annotations

from msgservice.client.client import Client, Why
from msgservice.client.connect import connect
from msgservice.client.receipt import Receipt, Receipts

__all__ = ["Client", "Receipt", "Receipts", "Why", "connect"]
