"""The limits of a connected-server chassis, and why they are what they are."""

from __future__ import annotations

from dataclasses import dataclass

from msgservice.faces.axon.mailbox import BOX_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class ChassisLimits:
    """The limits of a server; times in seconds, and None for a wait without end."""

    connections_max: int = 10_000
    """Connections beyond this are closed as soon as they are accepted."""
    inbox_bytes_max: int = BOX_BYTES_MAX
    """A connection whose handler has this much unread is not read from."""
    outbox_bytes_max: int = BOX_BYTES_MAX
    """A handler that has this much unwritten is not resumed."""
    write_deadline: float | None = 120.0
    """How long the peer may take nothing of what is to be written; then it is aborted. At least
    this long, and at most twice."""
    half_close_deadline: float | None = 60.0
    """After the peer has ended its side: how long the handler may send nothing, before a close."""
    linger_deadline: float = 2.0
    """After all is written: how long to wait for the peer to end its side."""
    stop_deadline: float = 10.0
    """How long the server's stop waits for connections and handlers before it ends them."""

    def __post_init__(self) -> None:
        for name in ("connections_max", "inbox_bytes_max", "outbox_bytes_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        for name in ("write_deadline", "half_close_deadline", "linger_deadline", "stop_deadline"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: seconds cannot be negative")
