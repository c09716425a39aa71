"""Waiters of a `DatagramPeer`: the one Deferred of a run, and the view of all that is open."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.core.datagram.cookie import Address
from msgservice.core.datagram.peers import Waiting
from msgservice.errors import (
    HandlerFailed,
)


class WaitingRun:
    """The one Deferred of a run of messages."""

    __slots__ = ("deferred", "failed", "first", "remaining", "replies")

    def __init__(self, count: int) -> None:
        self.first = 0
        self.remaining = count
        self.replies: list[bytes | HandlerFailed] = [b""] * count
        self.failed: HandlerFailed | None = None
        self.deferred: Deferred[list[bytes]] = Deferred()

    def settle(self) -> None:
        """Take note that one message was settled."""
        self.remaining -= 1
        if self.remaining:
            return
        if self.failed is not None:
            self.deferred.errback(HandlerFailed(self.failed.reason, self.replies))
        else:
            self.deferred.callback(cast("list[bytes]", self.replies))

    def errback(self, failure: Failure) -> None:
        """Fail as a whole: no answer came for at least one message."""
        if self.remaining > 0:
            self.remaining = -1
            self.deferred.errback(failure)


class SendQueue(Mapping[Hashable, Waiting]):
    """Messages that wait to be settled, keyed by `mangle(address, nonce)`; a view, always of this
    moment."""

    def __init__(
        self,
        mangle: Callable[[Address, int], Hashable],
        waiting: Callable[[], Iterator[Waiting]],
    ) -> None:
        self._mangle = mangle
        self._waiting = waiting

    def _items(self) -> Iterator[tuple[Hashable, Waiting]]:
        mangle = self._mangle
        for waiting in self._waiting():
            yield mangle(waiting.address, waiting.nonce), waiting

    def __iter__(self) -> Iterator[Hashable]:
        return (key for key, _ in self._items())

    def __len__(self) -> int:
        return sum(1 for _ in self._waiting())

    def __getitem__(self, key: Hashable) -> Waiting:
        for found, waiting in self._items():
            if found == key:
                return waiting
        raise KeyError(key)
