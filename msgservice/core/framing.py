"""Length-prefixed frames: bytes in, whole frames out, in time linear in the bytes.

The wire is that of Twisted's `Int32StringReceiver`: four bytes of length, big-endian, then so many
bytes. Stands between a byte stream (`transport.tcp.transport`) and `core.frames`; knows nothing of
either, nor of deadlines: `partial` and `completed` are what the transport needs to keep those.

Invariant: what is held is the beginning of at most one frame, and never more than its prefix
plus its announced length, which is at most `limit`; after a refusal, one delivery.
"""

from __future__ import annotations

from struct import Struct
from typing import NoReturn

from msgservice.errors import FrameTooLarge

PREFIX_BYTES = 4
LENGTH_MAX = 2**32 - 1

_prefix = Struct("!I")
_pack = _prefix.pack
_unpack_from = _prefix.unpack_from


pack_prefix = _pack  # of a length that is known to be within a limit


def encode_prefix(length: int) -> bytes:
    """Return the four bytes that go before a frame of `length` bytes.

    Raises `FrameTooLarge` for a length that four bytes cannot say.
    """
    if length > LENGTH_MAX:
        raise FrameTooLarge(length, LENGTH_MAX)
    return _pack(length)


class FrameSplitter:
    """Cuts a byte stream into frames of at most `size_max` bytes each.

    `limit` may be changed at any time: it is compared with each prefix when that is read, so a
    frame whose prefix was let in goes on to its end. `completed` counts the frames given.

    A prefix above the limit ends it: `feed` raises `FrameTooLarge`, then and ever after, and takes
    nothing more. The frames that were whole before that prefix, in the same `feed`, are given
    once by `take_complete()`, and what came behind it is `refused`. Should one of them be a reason
    to raise the limit, `go_on()` looks at the refused prefix, and at what came with it, once more.
    """

    __slots__ = ("_before_error", "_error", "_needed", "_refused", "completed", "held", "limit")

    def __init__(self, size_max: int) -> None:
        self.limit = size_max
        self.completed = 0
        # bytearray, not a list of chunks: a peer that sends single bytes would make us hold one
        # object for each; nor bytes, whose growth is quadratic (bench/framing.py).
        self.held = bytearray()  # not to be changed by others
        self._needed = PREFIX_BYTES  # bytes that must be held before anything can be cut
        self._error: FrameTooLarge | None = None
        self._before_error: list[bytes] = []
        self._refused = b""  # what came from the refused prefix on, in the feed that raised

    @property
    def partial(self) -> int:
        """Bytes held of a frame that is not whole yet, its prefix included."""
        return len(self.held)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes, in order.

        Raises `FrameTooLarge` as soon as a prefix says so; see `take_complete`.
        """
        if self._error is not None:
            self._refused = b""
            raise FrameTooLarge(self._error.size, self._error.size_max)
        at = 0
        end = len(data)
        limit = self.limit
        held = self.held
        frames: list[bytes] = []
        if held:
            at = self._complete_held(data, frames)
            if at < 0:
                return frames
        elif end >= PREFIX_BYTES:  # a frame that comes alone, as most do where little is sent
            (length,) = _unpack_from(data)
            if length == end - PREFIX_BYTES and length <= limit:
                self.completed += 1
                return [data[PREFIX_BYTES:]]
        # What is left begins at a prefix, and most of the time nothing was held at all: cut it
        # from `data` itself, so that a small frame is copied once.
        append = frames.append
        unpack_from = _unpack_from
        while (start := at + PREFIX_BYTES) <= end:
            (length,) = unpack_from(data, at)
            if length > limit:
                self._fail(FrameTooLarge(length, limit), frames, data[at:])
            if (stop := start + length) > end:
                self._needed = PREFIX_BYTES + length
                break
            append(data[start:stop])
            at = stop
        else:
            self._needed = PREFIX_BYTES
        if at < end:
            held += memoryview(data)[at:]
        self.completed += len(frames)
        return frames

    def take_complete(self) -> list[bytes]:
        """Return, once, the frames that were whole before the prefix that made `feed` raise."""
        frames, self._before_error = self._before_error, []
        return frames

    @property
    def refused(self) -> bytes:
        """The bytes behind the refused prefix, as far as the `feed` that raised was given them."""
        return self._refused[PREFIX_BYTES:]

    def go_on(self) -> list[bytes]:
        """Return what `feed` would have returned after `take_complete`, had `limit` been as now.

        Raises `FrameTooLarge` again if that is still too low. Only directly after the raise: any
        `feed` in between makes the refusal final.
        """
        if self._error is None:
            return []
        data, self._refused, error = self._refused, b"", self._error
        if not data:
            raise FrameTooLarge(error.size, error.size_max)
        self._error = None
        return self.feed(data)

    def _complete_held(self, data: bytes, frames: list[bytes]) -> int:
        """Finish the frame that is held; return where in `data` the next begins, or -1 if short.

        At most one frame is added to `frames`.
        """
        held = self.held
        at = 0
        if len(held) < PREFIX_BYTES:
            at = min(PREFIX_BYTES - len(held), len(data))
            held += data[:at]
            if len(held) < PREFIX_BYTES:
                return -1
            (length,) = _unpack_from(held)
            if length > self.limit:
                self._fail(FrameTooLarge(length, self.limit), frames, bytes(held) + data[at:])
            self._needed = PREFIX_BYTES + length
        stop = at + self._needed - len(held)
        if stop > len(data):
            held += memoryview(data)[at:] if at else data
            return -1
        held += memoryview(data)[at:stop]
        with memoryview(held) as view:
            frames.append(bytes(view[PREFIX_BYTES:]))
        held.clear()
        self._needed = PREFIX_BYTES
        return stop

    def _fail(self, error: FrameTooLarge, frames: list[bytes], refused: bytes) -> NoReturn:
        self._refused = refused
        self.held.clear()
        self._needed = PREFIX_BYTES
        self.completed += len(frames)
        self._before_error = frames
        self._error = error
        raise error
