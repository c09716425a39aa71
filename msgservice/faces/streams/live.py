"""The streams of this process behind a port: a `MessageStream`, and who listens to it over lines.

    a line ─► MessageStream ─► (as its feed) lines of a key ─► a chunk of them for all who listen

What is put is encoded once. The lines of one key that come in one turn of the reactor are one
chunk, which all who listen are written: before anything else about that key happens, a join or an
end, its chunk is made. So who listens gets the header, then all that was put after it, and nothing
twice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from msgservice.errors import BadValue, LimitReached
from msgservice.faces.streams.keys import SortedKeys
from msgservice.faces.streams.outbound import Chunk
from msgservice.faces.streams.served import Host, Listener, ListenerState
from msgservice.faces.streams.stream import MessageStream
from msgservice.faces.streams.wire import (
    ABSENT,
    CLOSE,
    DELETE,
    GAP,
    HANGUP,
    HEADER,
    LIST,
    LISTEN,
    PUT,
    Command,
    check_key,
    line_of,
)
from msgservice.stream_limits import KIB

CHUNK_BYTES = 64 * KIB  # lines that are gathered before they are written
LAG_MIN = 0.001  # seconds; of what waits since just now


def lag_of(listener: Listener) -> float:
    """Return the seconds for which something waits for a listener; above 0 where something does."""
    return max(listener.waiting_seconds, LAG_MIN) if listener.waiting_bytes else 0.0


class LiveStreams:
    """A `MessageStream` behind a port (`Served`, and a `Feed` of the stream)."""

    _log = Logger()

    def __init__(self, stream: MessageStream) -> None:
        self._stream = stream
        self._host: Host
        self._subscribers: dict[str, dict[Listener, None]] = {}
        self._keys = SortedKeys()  # of these
        self._ungathered: dict[str, list[bytes]] = {}  # lines of keys, until they are a chunk
        self._ungathered_bytes = 0
        self._is_due: IDelayedCall | None = None
        self._thread = 0
        self._from_threads: deque[tuple[str, bytes | None]] = deque()
        self._from_threads_bytes = 0
        self._headers: dict[str, int] = {}  # of those that came over the wire, their bytes
        self._header_bytes = 0
        # Of headers with a ttl: when they are none any more, and what they are until then.
        self._ends: dict[str, tuple[float, Any]] = {}
        self._timers: dict[str, IDelayedCall] = {}  # of these
        self.work = 0

    # --- for the server

    def serve(self, host: Host) -> None:
        """See `Served`."""
        self._host = host

    def begin(self) -> None:
        """See `Served`. Headers whose time came while nobody served them go now."""
        self._thread = threading.get_ident()  # the reactor's, whoever has made it
        self._stream.follow(self)
        for key in tuple(self._ends):
            self._end_later(key, 0)

    def end(self) -> None:
        """See `Served`."""
        with self._stream.lock:
            self._stream.unfollow(self)
            self._take_from_threads()
        self.flush()
        if self._is_due is not None:
            self._is_due.cancel()
            self._is_due = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def keys(self, after: str | None = None) -> Iterator[str]:
        """See `Served`."""
        return self._keys.behind(after)

    def listeners_of(self, key: str) -> list[ListenerState]:
        """See `Served`."""
        return [
            ListenerState(one.peer, one.waiting_bytes, lag_of(one))
            for one in self._subscribers.get(key, ())
        ]

    def lost(self, listener: Listener) -> None:
        """See `Served`."""
        self._hang_up_all(listener)

    def writable(self, listener: Listener) -> None:
        """See `Served`: what waits for it is its connection's."""

    def take(self, listener: Listener, command: Command) -> Deferred[None] | None:
        """See `Served`."""
        action, key = command.action, command.stream
        if action == LIST:
            return self._host.tell_streams(listener, key, command.after)
        if key is None:
            if action == CLOSE:
                self._flush_of(listener)
                self._hang_up_all(listener)
                listener.finish()
            else:
                self._flush_of(listener)
                self._hang_up_all(listener)
        elif action == PUT:
            self._stream.put(key, command.message)
        elif action == LISTEN:
            self._listen(listener, key, command)
        elif action == HANGUP:
            self._flush_key(key)
            self._hang_up(listener, key)
        elif action == HEADER:
            message = None if command.message is ABSENT else command.message
            self._set_header(key, message, command.ttl)
        elif action == DELETE:
            del self._stream[key]
        else:
            self._stream.close(key)
        return None

    def _listen(self, listener: Listener, key: str, command: Command) -> None:
        if key in listener.keys:
            return
        if command.token is not ABSENT and command.token is not None:
            # Nothing is kept here that one could go on from.
            listener.write(Chunk(line_of(self._host.codec, CLOSE, key, reason=GAP)))
            return
        limits = self._host.limits
        if len(listener.keys) >= limits.subscriptions_max:
            raise LimitReached("subscriptions_max", limits.subscriptions_max)
        with self._stream.lock:  # between the header and the first that is put there is nothing
            self._take_from_threads()
            self._flush_key(key)
            header = self._stream[key]
            line = None if header is None else self._line(key, header)
            self._host.listens(key)
            subscribers = self._subscribers.get(key)
            if subscribers is None:
                subscribers = self._subscribers[key] = {}
                self._keys.add(key)
            subscribers[listener] = None
            listener.keys[key] = None
        if line is not None:
            listener.write(Chunk(line))

    def _set_header(self, key: str, header: Any, ttl: float | None) -> None:
        if header is None:
            self._stream[key] = None
            return
        size = len(self._line(key, header))
        with self._stream.lock:
            before = self._headers.get(key)
            if before is None and len(self._headers) >= self._host.limits.headers_max:
                raise LimitReached("headers_max", self._host.limits.headers_max)
            if self._header_bytes + size - (before or 0) > self._host.limits.header_bytes:
                raise LimitReached("header_bytes", self._host.limits.header_bytes)
            self._stream[key] = header
            self._headers[key] = size
            self._header_bytes += size
            if ttl is not None:
                self._ends[key] = self._host.now() + ttl, header
                self._end_later(key, ttl)

    def _end_later(self, key: str, seconds: float) -> None:
        timer = self._timers.get(key)
        if timer is None:
            self._timers[key] = self._host.reactor.callLater(seconds, self._end_header, key)
        else:
            timer.reset(seconds)

    def _end_header(self, key: str) -> None:
        del self._timers[key]
        with self._stream.lock:
            found = self._ends.get(key)
            if found is None:
                return  # a thread has just replaced it
            end, header = found
            left = end - self._host.now()
            if self._stream[key] is not header:  # it was replaced while nobody served it
                self.header_set(key)
            elif left > 0:
                self._end_later(key, left)
            else:
                self._stream[key] = None

    def _end_never(self, key: str) -> None:
        """Let go of the timer of a header that has gone: it may be one of a year."""
        with self._stream.lock:
            if key not in self._ends and key in self._timers:
                self._timers.pop(key).cancel()

    def _hang_up(self, listener: Listener, key: str) -> None:
        if key not in listener.keys:
            return
        del listener.keys[key]
        self._host.hangs_up(key)
        subscribers = self._subscribers[key]
        del subscribers[listener]
        if not subscribers:
            del self._subscribers[key]
            self._keys.remove(key)

    def _hang_up_all(self, listener: Listener) -> None:
        for key in tuple(listener.keys):
            self._hang_up(listener, key)

    # --- the feed of the stream, in any thread and under its lock

    def prepare(self, key: Hashable, message: Any) -> bytes | None:
        """See `Feed`."""
        if not isinstance(key, str):
            return None  # no line can name it
        line = self._line(key, message)
        if (
            threading.get_ident() != self._thread
            and self._from_threads_bytes + len(line) > self._host.limits.streams_bytes
        ):
            raise LimitReached("streams_bytes", self._host.limits.streams_bytes)
        return line

    def check_header(self, key: Hashable, message: Any) -> None:
        """See `Feed`."""
        if isinstance(key, str):
            self._line(key, message)

    def _line(self, key: str, message: Any) -> bytes:
        """Return the line of a `put`. Raises `BadValue` or `LimitReached` where there is none."""
        limits = self._host.limits
        line = line_of(self._host.codec, PUT, check_key(key, limits.key_bytes), message=message)
        if len(line) - 1 > limits.line_bytes:  # who listens would leave for it, again and again
            raise LimitReached("line_bytes", limits.line_bytes)
        return line

    def header_set(self, key: Hashable) -> None:
        """See `Feed`. It is none from the wire any more."""
        if isinstance(key, str):
            self._header_bytes -= self._headers.pop(key, 0)
            if self._ends.pop(key, None) is None:
                return
            if threading.get_ident() == self._thread:
                self._end_never(key)
            else:
                self._host.reactor.callFromThread(self._end_never, key)

    def put(self, key: Hashable, prepared: bytes | None) -> None:
        """See `Feed`."""
        if prepared is not None:
            assert isinstance(key, str)
            self._happened(key, prepared)

    def ended(self, key: Hashable) -> None:
        """See `Feed`."""
        if isinstance(key, str):
            self._happened(key, None)

    def _happened(self, key: str, line: bytes | None) -> None:
        if threading.get_ident() != self._thread:
            if not self._from_threads:
                self._host.reactor.callFromThread(self._go_on_with_threads)
            self._from_threads.append((key, line))
            self._from_threads_bytes += len(line or b"")
            return
        self._take_from_threads()
        self._pass_on(key, line)

    def _go_on_with_threads(self) -> None:
        with self._stream.lock:
            self._take_from_threads()
        self.flush()

    def _take_from_threads(self) -> None:
        while self._from_threads:
            key, line = self._from_threads.popleft()
            self._from_threads_bytes -= len(line or b"")
            self._pass_on(key, line)

    # --- to who listens, in the reactor

    def _pass_on(self, key: str, line: bytes | None) -> None:
        if line is None:
            self._end(key)
            return
        if key not in self._subscribers:
            return
        lines = self._ungathered.get(key)
        if lines is None:
            lines = self._ungathered[key] = []
            self.work += len(self._subscribers[key])
        lines.append(line)
        self._ungathered_bytes += len(line)
        if self._ungathered_bytes > CHUNK_BYTES:
            self.flush()
        elif self._is_due is None:
            self._is_due = self._host.reactor.callLater(0, self._flush_due)

    def _end(self, key: str) -> None:
        self._flush_key(key)
        subscribers = tuple(self._subscribers.get(key, ()))
        self.work += len(subscribers)
        if not subscribers:
            return
        try:
            chunk = Chunk(line_of(self._host.codec, CLOSE, key))
        except BadValue:  # of a codec that has no word for it: the connections end instead
            self._log.failure("the end of {key!r} cannot be told", key=key)
            chunk = None
        for listener in subscribers:
            self._hang_up(listener, key)
            if chunk is None:
                listener.finish()
            else:
                listener.write(chunk)

    def _flush_due(self) -> None:
        self._is_due = None
        self.flush()

    def flush(self) -> None:
        """Write the lines of all keys."""
        for key in tuple(self._ungathered):
            self._flush_key(key)

    def _flush_of(self, listener: Listener) -> None:
        for key in tuple(listener.keys):
            self._flush_key(key)

    def _flush_key(self, key: str) -> None:
        lines = self._ungathered.pop(key, None)
        if lines is None:
            return
        chunk = Chunk(b"".join(lines))
        self._ungathered_bytes -= len(chunk.data)
        for listener in tuple(self._subscribers.get(key, ())):
            listener.write(chunk)
