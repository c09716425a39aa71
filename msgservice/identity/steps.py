"""Steps of a login: the answers of both exchanges, for whoever has the connection and the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from msgservice.errors import NotAuthenticated
from msgservice.identity.principal import Principal

# Bytes of one AUTH at most. The longest that is right is a first message with a name of 255 bytes,
# each of which may be escaped as three, and two nonces.
AUTH_BYTES_MAX = 2048


@dataclass(frozen=True, slots=True)
class Say:
    """Bytes for the other side, as an AUTH frame; the exchange goes on."""

    data: bytes = field(repr=False)  # may be a token


@dataclass(frozen=True, slots=True)
class Compute:
    """Work of some ten milliseconds, for a thread; its result goes to the exchange's `resume`."""

    work: Callable[[], str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The peer is this user: `data` is said as a last AUTH, and what it asks for is judged."""

    principal: Principal
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Deny:
    """The login failed: `error` is for the peer, after `delay` seconds, and the connection's end.

    `why` and `user`, as far as the peer said one, are for this side's own log, which says more.
    """

    error: NotAuthenticated
    delay: float
    why: str
    user: str = ""


@dataclass(frozen=True, slots=True)
class Proven:
    """The other side has shown that it knows the user, or has taken the token: the client is in."""
