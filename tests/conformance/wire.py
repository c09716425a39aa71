"""Frames over a blocking socket, from docs/protocol.md alone: nothing of msgservice is imported.

What is wrong with a peer is raised as `Wrong`, with a sentence for who writes that peer.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import msgspec

HELLO, TRANSFER, ACK, NACK = 1, 2, 3, 4
REQUEST, REPLY, PING, PONG = 7, 8, 9, 10
AUTH, BYE, ERROR, AUDIENCE, NOTE, RESUME = 11, 12, 13, 14, 15, 16
ROUTED = 6
NAMES = {
    HELLO: "HELLO", TRANSFER: "TRANSFER", ACK: "ACK", NACK: "NACK", 5: "STATUS", ROUTED: "ROUTED",
    REQUEST: "REQUEST", REPLY: "REPLY", PING: "PING", PONG: "PONG", AUTH: "AUTH", BYE: "BYE",
    ERROR: "ERROR", AUDIENCE: "AUDIENCE", NOTE: "NOTE", RESUME: "RESUME",
}  # fmt: skip
FRAME_MAX = 1024 * 1024 + 8192
INTEGER_MAX = 2**53 - 1
QUIET = 0.3  # seconds in which a peer that must not speak would have spoken


class Wrong(Exception):
    """The peer did what it may not do, or did not do what it must."""


class Gone(Exception):
    """The peer closed the connection."""


class Silent(Exception):
    """Nothing came in time."""


def name_of(frame: list[Any]) -> str:
    """The kind of a frame in words."""
    return NAMES.get(frame[0], f"kind {frame[0]!r}")


class Wire:
    """One connection."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._socket = connection
        self._buffer = b""
        self.timeout = timeout

    def send(self, *frames: list[Any], each_byte: bool = False) -> None:
        """Send frames, together or a byte at a time. To one who has gone nothing is sent."""
        encoded = [msgspec.msgpack.encode(frame) for frame in frames]
        data = b"".join(len(one).to_bytes(4, "big") + one for one in encoded)
        try:
            if each_byte:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for byte in data:
                    self._socket.sendall(bytes([byte]))
            else:
                self._socket.sendall(data)
        except OSError:
            pass  # `read` finds out

    def read(self, timeout: float | None = None) -> list[Any]:
        """Return the next frame."""
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            size = int.from_bytes(self._buffer[:4], "big")
            if len(self._buffer) >= 4 and size > FRAME_MAX:
                raise Wrong(f"a frame of {size} bytes, more than max_batch + 8,192")
            if len(self._buffer) >= 4 + size:
                data, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
                return self._decode(data)
            left = until - time.monotonic()
            if left <= 0:
                raise Silent
            self._socket.settimeout(left)
            try:
                more = self._socket.recv(65536)
            except TimeoutError:
                raise Silent from None
            except OSError:
                raise Gone from None
            if not more:
                raise Gone
            self._buffer += more

    @staticmethod
    def _decode(data: bytes) -> list[Any]:
        try:
            frame = msgspec.msgpack.decode(data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Wrong(f"a frame is no msgpack: {error}") from None
        if not isinstance(frame, list) or not frame or frame[0] not in NAMES:
            raise Wrong(f"a frame is no array that begins with a known kind: {frame!r:.100}")
        return frame

    def next(self, *kinds: int, timeout: float | None = None) -> list[Any]:
        """Return the next frame of these kinds; PINGs are answered on the way."""
        while True:
            frame = self.read(timeout)
            if frame[0] in kinds:
                return frame
            if frame[0] == PING:
                self.send([PONG, *frame[1:2]])
            elif frame[0] == ERROR:
                raise Wrong(f"said ERROR {frame[1:]!r:.200} to what is right")
            elif frame[0] not in (NOTE, PONG):
                wanted = " or ".join(NAMES[kind] for kind in kinds)
                raise Wrong(f"{name_of(frame)} came where {wanted} was expected")

    def stays_quiet(self, before: str) -> None:
        """Nothing but a PING may come now."""
        try:
            frame = self.next(PONG, timeout=QUIET)
        except Silent:
            return
        raise Wrong(f"{name_of(frame)} came before {before}")

    def ends(self, after: str) -> list[Any] | None:
        """The peer must end the connection: return its ERROR, or None where it just closed."""
        said = None
        try:
            while True:
                frame = self.read()
                said = frame if frame[0] == ERROR else said
        except Gone:
            return said
        except Silent:
            raise Wrong(f"the connection goes on after {after}") from None

    def close(self) -> None:
        """End it."""
        self._socket.close()


# --- what a frame must look like ----------------------------------------------------------------


def integer(value: object, what: str, least: int = 0, most: int = INTEGER_MAX) -> int:
    """The value, if it is an integer of the protocol."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Wrong(f"{what} is {value!r:.60}, no integer from {least} to {most}")
    return value


def name(value: object, what: str) -> str:
    """The value, if it is a name."""
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= 255:
        raise Wrong(f"{what} is {value!r:.60}, no string of 1 to 255 bytes")
    if "/" in value or any(c.isspace() or not c.isprintable() for c in value):
        raise Wrong(f"{what} {value!r} has white space, control characters or '/'")
    return value


def subject(value: object) -> str:
    """The value, if it is a subject."""
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= 255:
        raise Wrong(f"the subject is {value!r:.60}, no string of 1 to 255 bytes")
    for token in value.split("."):
        if not token or any(c.isspace() or not c.isprintable() or c in "*>" for c in token):
            raise Wrong(f"the subject {value!r} has a token that may not be")
    return value


def ranges(value: object, what: str) -> list[tuple[int, int]]:
    """The value, if it is an array of ranges that rise."""
    if not isinstance(value, list):
        raise Wrong(f"the ranges of {what} are {value!r:.60}, no array")
    found = []
    above = 0
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Wrong(f"{what} has {pair!r:.60} for a range")
        first, last = (integer(end, f"the end of a range of {what}", 1) for end in pair)
        if not above < first <= last:
            raise Wrong(f"{what} has the range [{first}, {last}] behind {above}")
        above = last
        found.append((first, last))
    return found


def element(frame: list[Any], at: int, default: Any) -> Any:
    """An element that may be left out or nil."""
    return default if at >= len(frame) or frame[at] is None else frame[at]
