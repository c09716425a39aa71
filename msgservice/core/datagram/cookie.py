"""Cookies: proof that a peer receives what is sent to it, without keeping anything for it.

A cookie is its time of issue and a keyed hash over that time, the peer (its address, and its key
where that counts), the session id and the initiator's random bytes (the idea of RFC 9000 §8.1.2 and
of SYN cookies). Called by `core.datagram.handshake`.
"""

from __future__ import annotations

import hashlib
import hmac
from struct import Struct

from msgservice.core.datagram.wire import COOKIE_BYTES

Address = tuple[str, int]
# A peer of an endpoint: its address, and the id of its key where that tells peers apart.
PeerKey = tuple[str, int] | tuple[str, int, int]

_TIME = Struct("!Q")
_MAC_BYTES = COOKIE_BYTES - _TIME.size


class CookieJar:
    """Makes and checks cookies; `secret` is random and lives as long as the process."""

    def __init__(self, secret: bytes, seconds: float) -> None:
        self._secret = secret
        self._milliseconds = int(seconds * 1000)

    def make(self, peer: PeerKey, session: int, random: bytes, now: float) -> bytes:
        """Return the cookie for this peer and session."""
        time = _TIME.pack(int(now * 1000))
        return time + self._mac(time, peer, session, random)

    def check(self, cookie: bytes, peer: PeerKey, session: int, random: bytes, now: float) -> bool:
        """Return whether the cookie was made here for them and is not too old."""
        time = cookie[: _TIME.size]
        age = int(now * 1000) - int.from_bytes(time, "big")
        if not 0 <= age <= self._milliseconds:
            return False
        return hmac.compare_digest(cookie[_TIME.size :], self._mac(time, peer, session, random))

    def _mac(self, time: bytes, peer: PeerKey, session: int, random: bytes) -> bytes:
        host, port, *key = peer
        text = b"%s %d %d %s" % (time, port, session, random) + host.encode()
        text += bytes(key)  # one byte for every peer of an endpoint, or for none
        return hashlib.blake2b(text, key=self._secret, digest_size=_MAC_BYTES).digest()
