"""Asks after messages that arrived and are not handled: when one is due, and what each asked after.

Part of the sending half of a session. Asking is for messages alone: packets that are lost are
`core.datagram.flight`'s, and are asked after by sending them again.
"""

from __future__ import annotations

from msgservice.core.datagram import wire

# Asking after messages that arrived and are not handled: 2 s, doubling to 60 s (PROTOCOL §UDP).
ASK_MIN = 2.0
ASK_MAX = 60.0
# Asks that are remembered, to count those for each message: more `retries` than that are not told
# apart.
ASKED_MAX = 256


class Asks:
    """Asks of one session: wanted, due, and gone out."""

    __slots__ = ("_at", "_in_a_row", "asked", "count", "wanted")

    def __init__(self) -> None:
        self.wanted = False
        self.count = 0
        self.asked: list[int] = []  # for each ask: all nonces below this were asked after
        self._at: float | None = None
        self._in_a_row = 0

    def want(self) -> None:
        """Let an ask leave with the next datagrams."""
        self.wanted = True

    def progress(self) -> None:
        """Take note that messages were settled: the next ask is not soon."""
        self._in_a_row = 0
        self._at = None

    def receive_time(self, now: float) -> None:
        """Want an ask, if one is due."""
        if self._at is not None and now >= self._at:
            self.wanted = True
            self._at = None

    def next_deadline(self, now: float) -> float:
        """Return when to ask after what is open, while nothing is in flight."""
        if self._at is None:
            self._at = now + min(ASK_MIN * 2 ** min(self._in_a_row, 8), ASK_MAX)
        return self._at

    def rest(self) -> None:
        """Take note that nothing is to be asked after, or that packets under way do so."""
        self._at = None

    def take(self, floor: int, next_nonce: int) -> bytes:
        """Return the ASK block for the nonces from `floor` on, all below `next_nonce`."""
        self.wanted = False
        self.count += 1
        self._in_a_row += 1
        self.asked = [end for end in self.asked[1 - ASKED_MAX :] if end > floor]
        self.asked.append(next_nonce)
        return wire.ASK_BLOCK.pack(wire.ASK, floor)
