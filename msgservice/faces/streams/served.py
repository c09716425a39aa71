"""Streams behind a port, as a server knows them: those of this process (`live`), or of a node.

Interfaces alone: what a connection and its server offer to whom they serve, and what they ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred

from msgservice.faces.streams.content import StreamCodec
from msgservice.faces.streams.outbound import Chunk
from msgservice.faces.streams.wire import Command
from msgservice.stream_limits import StreamLimits


class StreamState(NamedTuple):
    """A stream that somebody listens to. `behind`: so many of them have not been sent all of it.

    `lag`: for so many seconds the one that is farthest behind has not.
    """

    key: str
    listeners: int
    behind: int
    lag: float


class ListenerState(NamedTuple):
    """A listener of a stream, its `lag` as of that. `waiting`: bytes for its connection."""

    peer: str
    waiting: int
    lag: float


def state_of(key: str, listeners: Sequence[ListenerState]) -> StreamState:
    """Return the state of a stream by those who listen to it."""
    lags = [one.lag for one in listeners if one.lag > 0]
    return StreamState(key, len(listeners), len(lags), max(lags, default=0.0))


class Listener(Protocol):
    """A connection. `keys`: of the streams that it listens to; only those who serve change it."""

    keys: dict[str, None]
    peer: str
    is_over: bool

    @property
    def is_full(self) -> bool:
        """Whether what is written now would wait."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for it to read."""

    @property
    def waiting_seconds(self) -> float:
        """Seconds since when the first of these does."""

    def write(self, chunk: Chunk) -> None:
        """Write lines, now or when there is room."""

    def finish(self, last: bytes = b"") -> None:
        """Close the connection in an orderly way, once what was written has left."""


class Host(Protocol):
    """A server: what its streams need of it."""

    reactor: Any
    codec: StreamCodec
    limits: StreamLimits

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for its connections; what waits for many counts once."""

    def listens(self, key: str) -> None:
        """Count one listening to a key. Raises `LimitReached`."""

    def hangs_up(self, key: str) -> None:
        """Count one listening less."""

    def now(self) -> float:
        """Return seconds of a clock that never jumps."""

    def tell_streams(self, listener: Any, key: str | None, after: str | None) -> Deferred[None]:
        """Write a listener who listens to a key, or a page of the streams behind one.

        Fires when more may be done.
        """


class Served(Protocol):
    """The streams behind a port. `work`: writes to listeners so far, which end a turn's work."""

    work: int

    def serve(self, host: Host) -> None:
        """Take note of the server; called once, before anything else."""

    def begin(self) -> None:
        """Begin: the port is open."""

    def end(self) -> Deferred[None] | None:
        """End: nothing is put any more; fires when what was put is done with."""

    def take(self, listener: Any, command: Command) -> Deferred[None] | None:
        """Do what a line says; until it fires, no more lines of this connection are taken.

        Raises `BadValue` or `LimitReached` where it is refused.
        """

    def lost(self, listener: Any) -> None:
        """Forget all that a connection listens to."""

    def writable(self, listener: Any) -> None:
        """Go on with a connection that has room again."""

    def keys(self, after: str | None = None) -> Iterator[str]:
        """Yield the keys behind one, or all, that somebody listens to, in their order.

        In one go: nothing may happen to them meanwhile.
        """

    def listeners_of(self, key: str) -> list[ListenerState]:
        """Return who listens to a stream, with what waits for each."""

    def flush(self) -> None:
        """Write what was gathered for listeners."""
