"""The way out to one connection: what its transport has no room for waits here, shared by all.

Lines for many are one `Chunk` of bytes, whoever they wait for. A connection that does not read is
not written to: its transport never holds more than what made it full.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


class Chunk:
    """A chunk of whole lines. `waiting`: at so many connections."""

    __slots__ = ("data", "waiting")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.waiting = 0


class OutboundUser(Protocol):
    """The owner of many ways out, who knows what waits in all of them."""

    def now(self) -> float:
        """Return seconds of a clock that never jumps."""

    def held(self, size: int) -> None:
        """Count so many bytes more that wait somewhere; fewer, if negative."""

    def too_slow(self, outbound: Outbound) -> None:
        """Decide about one for which too much waits."""

    def writable(self, outbound: Outbound) -> None:
        """Take note that nothing waits any more for one that was full."""


@implementer(IPushProducer)
class Outbound:
    """The way out of one connection, its owner's. `waiting_bytes`: what waits for room."""

    def __init__(self, transport: Any, user: OutboundUser, bytes_max: int, owner: Any) -> None:
        self.owner = owner
        self._transport = transport
        self._user = user
        self._bytes_max = bytes_max
        self._waiting: deque[tuple[Chunk, float]] = deque()  # with the time since when
        self.waiting_bytes = 0
        self.is_full = False
        self.is_over = False
        transport.registerProducer(self, True)

    def write(self, chunk: Chunk) -> None:
        """Write a chunk, now or when there is room."""
        if self.is_over:
            return
        if not self.is_full:
            self._transport.write(chunk.data)
            return
        self._waiting.append((chunk, self._user.now()))
        size = len(chunk.data)
        self.waiting_bytes += size
        chunk.waiting += 1
        if chunk.waiting == 1:
            self._user.held(size)
        if self.waiting_bytes > self._bytes_max:
            self._user.too_slow(self)

    @property
    def waiting_seconds(self) -> float:
        """Seconds since when the first of what waits does; 0 where nothing does."""
        return self._user.now() - self._waiting[0][1] if self._waiting else 0.0

    def drop(self) -> None:
        """Drop what waits: its connection ends."""
        while self._waiting:
            self._taken(self._waiting.popleft()[0])

    def end(self, last: bytes = b"") -> None:
        """Close the connection when what was written has left, with `last` behind it.

        What waits here is written too: `drop` it before, if it is not to be.
        """
        if self.is_over:
            return
        self.is_over = True
        while self._waiting:
            chunk, _ = self._waiting.popleft()
            self._taken(chunk)
            self._transport.write(chunk.data)
        if last:
            self._transport.write(last)
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def lost(self) -> None:
        """Take note that the connection has ended."""
        self.is_over = True
        self.drop()

    def _taken(self, chunk: Chunk) -> None:
        self.waiting_bytes -= len(chunk.data)
        chunk.waiting -= 1
        if not chunk.waiting:
            self._user.held(-len(chunk.data))

    # --- IPushProducer: the transport's buffer fills and empties

    def pauseProducing(self) -> None:
        """Write no more: the transport is full."""
        self.is_full = True

    def resumeProducing(self) -> None:
        """Write on."""
        self.is_full = False
        while self._waiting and not self.is_full:
            chunk, _ = self._waiting.popleft()
            self._taken(chunk)
            self._transport.write(chunk.data)
        if not self.is_full:
            self._user.writable(self)

    def stopProducing(self) -> None:
        """Drop what waits: the connection is lost."""
        self.lost()
