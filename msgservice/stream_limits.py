"""The limits of streams on a port, and why they are what they are.

They stand below the configuration, whose section `[streams]` has them (`STREAMS_KEYS`), and below
the streams themselves (`faces.streams`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from msgservice.arguments import check_limits

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """The limits of a server of streams, or of a `RemoteStream`; seconds, and sizes in bytes."""

    line_bytes: int = 512 * KIB
    """One line, without its end. A longer one ends its connection; what would be sent as one, since
    it grew when it was encoded or is put in this process, is refused. A line is decoded and encoded
    in one go: of the smallest values so many bytes take some 30 ms, in which nobody else is
    served."""
    line_seconds: float = 30.0
    """From a line's first byte to its end, and a second more for each 64 KiB of it; then its
    connection ends. Between lines a connection may be silent for ever."""
    partial_bytes: int = 256 * MIB
    """Lines that are not whole, over all connections; beyond it the connection with the longest
    ends."""
    key_bytes: int = 16 * KIB
    """The key of a stream, in UTF-8. A longer one is refused."""
    listener_bytes: int = 64 * MIB
    """What waits for one connection that does not read fast enough; beyond it its streams are
    closed, with the reason `slow`."""
    streams_bytes: int = 256 * MIB
    """What waits for all connections, where a line for many counts once; beyond it the one that is
    farthest behind is closed first. Also what other threads may have put that is not passed on."""
    header_bytes: int = 64 * MIB
    """Headers that came over the wire, all together, with their keys; more are refused."""
    headers_max: int = 100_000
    """… and how many those may be."""
    connections_max: int = 10_000
    """Connections of a server; one beyond is closed as it is accepted."""
    subscriptions_max: int = 10_000
    """Streams that one connection may listen to; one beyond is answered with `close`."""
    subscription_bytes: int = 256 * MIB
    """The keys that connections listen to, all together, with 256 bytes for each listening; one
    beyond is answered with `close`."""
    write_seconds: float = 60.0
    """How long a connection that is to end may take to read what was written to it."""
    unsent_bytes: int = 16 * MIB
    """What a `RemoteStream` has put and could not write yet; more is refused."""

    def __post_init__(self) -> None:
        check_limits(self)


STREAMS_KEYS = tuple(
    field.name
    for field in fields(StreamLimits)
    if field.name != "unsent_bytes"  # of who dials
)
"""The names of those that a server has."""


def wrong_with_stream(name: str, value: float) -> str | None:
    """Return why a limit of streams cannot have a value; None where it can."""
    one: Any = {name: value}
    try:
        StreamLimits(**one)
    except ValueError as error:
        return str(error).partition(": ")[2]
    return None
