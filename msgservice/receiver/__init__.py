"""The receiving side: `Receiver`, its ways to a node, its stored inbox, its handlers."""

from __future__ import annotations

from msgservice.receiver.receiver import Receiver

__all__ = ["Receiver"]
