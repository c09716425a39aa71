"""Limits of acknowledged UDP, each with its unit and its reason; one frozen value, handed down."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Above this a UDP datagram over IPv4 does not exist.
DATAGRAM_BYTES_MAX = 65_507


# What a small message costs in memory: of a stranger one is taken for so many bytes of its window.
MESSAGE_COST = 256
# What a remembered reply costs in memory besides its bytes.
REPLY_COST = 256
# These may be 0, which means that there is none.
OPTIONAL = ("keepalive", "unauthenticated_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramLimits:
    """The limits of an endpoint. Counts, bytes, seconds."""

    # 1,200 bytes cross every path that carries QUIC (RFC 9000 §14).
    datagram_bytes: int = 1200
    # The largest message and the largest reply; larger is refused at the caller.
    message_bytes: int = 1024 * 1024
    # Taken from one peer and not yet handled, pieces of large messages among it.
    window_messages: int = 16_384
    window_bytes: int = 4 * 1024 * 1024
    # The same before `Endpoint.establish`, for owners who say when they know who speaks: the window
    # in bytes, the largest message, and MESSAGE_COST times the messages. 0: no such bound.
    unauthenticated_bytes: int = 0
    # Replies that one peer has not acknowledged, each with REPLY_COST besides: while there are
    # more, its messages wait unhandled, and it is granted no more.
    reply_bytes: int = 8 * 1024 * 1024
    # Sent to one peer and not yet acknowledged; the socket's buffer must hold it on the other side.
    congestion_bytes: int = 4 * 1024 * 1024
    # Waiting for one peer before a send is refused with `LimitReached`.
    queue_messages: int = 1_000_000
    queue_bytes: int = 256 * 1024 * 1024
    # Addresses with state; beyond it, newcomers are not answered.
    peers: int = 10_000
    # A session that was silent so long, with nothing open, is forgotten. Longer than any sender
    # with default patience retries, as its marks are what keeps a repeat from being handled twice.
    idle_timeout: float = 600.0
    # A PING when nothing was heard for so long; 0: none.
    keepalive: float = 0.0
    # An address shows within this time that it receives what is sent to it.
    cookie_seconds: float = 30.0
    # Hellos of strangers, and packets of no session, that are looked into in a second, to tell what
    # was made by who has the key from what was not: cheap, so that a flood must be large to hide a
    # peer. More are dropped unread.
    strangers_per_second: int = 20_000
    # Answered in a second: hellos without a cookie, likewise hellos with a right one, resets. What
    # a flood may cost that was made by who has the key, or where there is none.
    handshakes_per_second: int = 2000
    resets_per_second: int = 200

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the field."""
        if not 512 <= self.datagram_bytes <= DATAGRAM_BYTES_MAX:
            raise ValueError(f"datagram_bytes must be from 512 to {DATAGRAM_BYTES_MAX}")
        if not 1 <= self.message_bytes < 2**32:
            raise ValueError("message_bytes must be from 1 to 4294967295")
        for name in self.__slots__:
            value = getattr(self, name)
            if name in OPTIONAL and value < 0:
                raise ValueError(f"{name} must not be below 0")
            if name not in OPTIONAL and not value > 0:
                raise ValueError(f"{name} must be above 0")

    @property
    def at_first(self) -> DatagramLimits:
        """The limits of a session before it is established."""
        size = self.unauthenticated_bytes
        if not size:
            return self
        return replace(
            self,
            message_bytes=min(size, self.message_bytes),
            window_bytes=min(size, self.window_bytes),
            window_messages=max(1, min(size // MESSAGE_COST, self.window_messages)),
        )
