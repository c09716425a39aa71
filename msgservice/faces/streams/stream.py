"""A `MessageStream`: messages by key, to whoever listens now; with a header for who comes late.

It is in this process alone, and any thread may use it. It keeps no history: a message that nobody
listens for is gone. Who serves it on a port (`server`) follows it as a `Feed`.

Everything happens under one re-entrant lock. What a listener puts while it is given a message is
given to all when that one has been: so each has all messages of a key in the same order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from typing import Any, Protocol

from twisted.logger import Logger

from msgservice.arguments import check_methods


class Queue(Protocol):
    """A queue: whatever takes messages, such as `queue.Queue`, `DeferredQueue` or a `Monitor`."""

    def put(self, message: Any, /) -> object:
        """Take a message."""


def check_queue(queue: object) -> None:
    """Raise `TypeError` for what takes no messages: it would be told so by the log, each time."""
    check_methods("something with put() is needed", ("put",), queue=queue)


class Feed(Protocol):
    """The follower of a whole stream, told of all that happens to it, in its order.

    Each call is made under the lock, from the thread of whoever does it.
    """

    def prepare(self, key: Hashable, message: Any) -> Any:
        """Return what `put` is to be given, or raise where the message cannot be passed on.

        Nobody gets it then, and who puts it has the error.
        """

    def check_header(self, key: Hashable, message: Any) -> None:
        """Raise where this header cannot be passed on."""

    def header_set(self, key: Hashable) -> None:
        """Tell that the header of this key is another, or none."""

    def put(self, key: Hashable, prepared: Any) -> None:
        """Pass on what `prepare` has returned."""

    def ended(self, key: Hashable) -> None:
        """Tell that the stream of this key has ended."""


class _Listening:
    """One registration of a queue."""

    __slots__ = ("is_over", "queue")

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.is_over = False  # hung up; a key that is deleted ends none


class MessageStream:
    """Streams of messages, each with a key: any hashable, and a string where it is served.

    `stream[key]` is the header, None without one; `stream[key] = header` tells those who listen
    nothing, only who comes later gets it first. `del stream[key]` forgets the header and who
    listens, without a word to their queues; an unknown key is fine.

    `lock` is held while queues are called.
    """

    _log = Logger()

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._headers: dict[Hashable, Any] = {}
        self._listening: dict[Hashable, list[_Listening]] = {}
        self._feeds: list[Feed] = []
        # Messages that were put and not given yet, with who listened then.
        self._due: deque[tuple[Hashable, Any, tuple[_Listening, ...]]] = deque()
        self._is_giving = False

    def __getitem__(self, key: Hashable) -> Any:
        """Return the header of a key, or None; never raises."""
        try:
            return self._headers.get(key)
        except TypeError:  # not hashable: nothing has it
            return None

    def __setitem__(self, key: Hashable, header: Any) -> None:
        """Set the header; None is none. Raises what a server says that cannot send it."""
        with self.lock:
            if header is None:
                self._clear(key)
                return
            for feed in self._feeds:
                feed.check_header(key, header)
            self._headers[key] = header
            for feed in self._feeds:
                feed.header_set(key)

    def _clear(self, key: Hashable) -> None:
        if self._headers.pop(key, None) is not None:
            for feed in self._feeds:
                feed.header_set(key)

    def __delitem__(self, key: Hashable) -> None:
        """Forget the header of a key and who listens; those at a server are told `close`."""
        with self.lock:
            self._clear(key)
            self.close(key)

    def close(self, key: Hashable) -> None:
        """End the stream of a key for all who listen now, as `del` does; the header stays."""
        with self.lock:
            self._listening.pop(key, None)
            for feed in tuple(self._feeds):
                feed.ended(key)

    def keys(self) -> list[Hashable]:
        """Return the keys that have a header or a listener in this process."""
        with self.lock:
            return list({**self._headers, **self._listening})

    def put(self, key: Hashable, message: Any) -> None:
        """Give a message to everybody who listens now, in the order in which they came.

        A queue that raises is logged, and hurts nobody. Where it is served and cannot be sent,
        nobody gets it, and that is raised (`BadValue`, `LimitReached`).
        """
        with self.lock:
            prepared = [(feed, feed.prepare(key, message)) for feed in self._feeds]
            for feed, one in prepared:
                feed.put(key, one)
            self._due.append((key, message, tuple(self._listening.get(key, ()))))
            self._give()

    def _give(self) -> None:
        if self._is_giving:
            return  # it is given when the one that is being given has been
        self._is_giving = True
        try:
            while self._due:
                key, message, listening = self._due.popleft()
                for one in listening:
                    if one.is_over:
                        continue
                    try:
                        one.queue.put(message)
                    except Exception:
                        self._log.failure("a listener of {key!r} failed", key=key)
        finally:
            self._is_giving = False

    def listen(self, key: Hashable, queue: Queue) -> None:
        """Give a queue the header, if there is one, and then every message that is put.

        A queue may listen twice, and then gets each twice. What it raises for the header is
        raised, and it does not listen. Raises `TypeError` for what is no queue.
        """
        check_queue(queue)
        with self.lock:
            header = self._headers.get(key)
            one = _Listening(queue)
            self._listening.setdefault(key, []).append(one)
            if header is None:
                return
            # It listens already: what it puts while it is given the header comes behind that.
            was_giving, self._is_giving = self._is_giving, True
            try:
                queue.put(header)
            except BaseException:
                self._end(key, one)
                raise
            finally:
                self._is_giving = was_giving
                self._give()

    def hangup(self, key: Hashable | None, queue: Queue) -> None:
        """End one listening of a queue; with None for the key all of its, on every stream.

        One that is unknown is ignored.
        """
        with self.lock:
            for each in [key] if key is not None else list(self._listening):
                self._hang_up(each, queue, is_all=key is None)

    def _hang_up(self, key: Hashable, queue: Queue, *, is_all: bool) -> None:
        found = [one for one in self._listening.get(key, ()) if one.queue is queue]
        for one in found[: None if is_all else 1]:
            self._end(key, one)

    def _end(self, key: Hashable, one: _Listening) -> None:
        one.is_over = True
        listening = self._listening.get(key, [])
        if one in listening:
            listening.remove(one)
        if not listening:
            self._listening.pop(key, None)

    def follow(self, feed: Feed) -> None:
        """Tell a feed of all that happens from now on."""
        with self.lock:
            self._feeds.append(feed)

    def unfollow(self, feed: Feed) -> None:
        """Tell a feed nothing more."""
        with self.lock:
            if feed in self._feeds:
                self._feeds.remove(feed)


message_stream = MessageStream()
"""The stream of this process, as programs of the original have it."""
