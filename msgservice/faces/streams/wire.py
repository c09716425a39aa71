"""The lines of streams: bytes to commands and back. No input and no output.

One JSON object a line: `action`, `stream`, `message`, and `from` of who wants tokens. A newline
ends it, and a carriage return before that is none of it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from msgservice.core.subjects import exact
from msgservice.errors import BadValue
from msgservice.faces.streams.content import StreamCodec

LISTEN, HEADER, PUT, HANGUP, DELETE, CLOSE, LIST = (
    "listen",
    "header",
    "put",
    "hangup",
    "delete",
    "close",
    "list",
)
ACTIONS = frozenset((LISTEN, HEADER, PUT, HANGUP, DELETE, CLOSE, LIST))
_FOR_ALL = frozenset((HANGUP, CLOSE))  # actions whose stream may be null

TTL_SECONDS_MAX = 366 * 24 * 3600

# Reasons of a `close` that is no end of the stream.
GAP, SLOW, REFUSED = "gap", "slow", "refused"


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()


class Command(NamedTuple):
    """A command: `message` and `token` are `ABSENT` where its line has none.

    `after`: of `list`, the key behind which it goes on; None from the first. `ttl`: of `header`, in
    how many seconds it is none any more; None: never.
    """

    action: str
    stream: str | None
    message: Any = ABSENT
    token: Any = ABSENT
    after: str | None = None
    ttl: float | None = None


class LineSplitter:
    """The lines in a stream of bytes, in time that grows with the bytes, however they arrive."""

    def __init__(self, line_bytes: int) -> None:
        self._line_bytes = line_bytes
        self._partial = bytearray()
        self.is_too_long = False

    @property
    def partial(self) -> int:
        """Bytes of a line that has no end yet."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that these bytes end, without their ends; blank ones are left out.

        `is_too_long` is set by one beyond the limit; that and what follows is not returned.
        """
        if self.is_too_long:
            return []
        first, *rest = data.split(b"\n")
        found: list[bytes] = []
        if rest:
            lines = [bytes(self._partial) + first if self._partial else first, *rest[:-1]]
            self._partial = bytearray(rest[-1])
            for line in lines:
                whole = line.removesuffix(b"\r")
                if len(whole) > self._line_bytes:
                    self.is_too_long = True
                    break
                if whole and not whole.isspace():
                    found.append(whole)
        else:
            self._partial += first
        # A carriage return may still be its end.
        if len(self._partial) > self._line_bytes + self._partial.endswith(b"\r"):
            self.is_too_long = True
        if self.is_too_long:
            self._partial = bytearray()
        return found


def command_of(value: Any) -> Command:
    """Return the command that a decoded line says. Raises `BadValue`, which says what is wrong."""
    if not isinstance(value, dict):
        raise BadValue("line", "must be an object")
    action, stream = value.get("action"), value.get("stream", ABSENT)
    if not (isinstance(action, str) and action in ACTIONS):
        raise BadValue("action", f"must be one of {', '.join(sorted(ACTIONS))}")
    if action == LIST:
        after = value.get("after")
        if not (after is None or isinstance(after, str)):
            raise BadValue("after", "must be a string or null")
        one = None if stream is ABSENT else stream
        if not (one is None or isinstance(one, str)):
            raise BadValue("stream", f"must be a string or null with {action}")
        return Command(action, one, after=after)
    if stream is ABSENT and action == CLOSE:
        stream = None
    if stream is None and action in _FOR_ALL:
        return Command(action, None)
    if not isinstance(stream, str):
        allowed = "a string or null" if action in _FOR_ALL else "a string"
        raise BadValue("stream", f"must be {allowed} with {action}")
    message = value.get("message", ABSENT)
    if message is ABSENT and action == PUT:
        raise BadValue("message", "is missing")
    token = value.get("from", ABSENT)
    if not (token is ABSENT or token is None or isinstance(token, str)):
        raise BadValue("from", "must be a string or null")
    return Command(action, stream, message, token, ttl=_ttl_of(value) if action == HEADER else None)


def _ttl_of(value: dict[str, Any]) -> float | None:
    ttl = value.get("ttl")
    if ttl is None:
        return None
    is_number = isinstance(ttl, int | float) and not isinstance(ttl, bool)
    if not (is_number and 0 < ttl <= TTL_SECONDS_MAX):
        raise BadValue("ttl", f"must be a number of seconds above 0, at most {TTL_SECONDS_MAX}")
    return float(ttl)


def check_key(key: str, key_bytes: int) -> str:
    """Return a key that may travel. Raises `BadValue`, and `TypeError` for what is no text."""
    key = exact(key, "stream")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise BadValue("stream", "has half a character") from None
    if size > key_bytes:
        raise BadValue("stream", f"has {size} bytes, more than key_bytes = {key_bytes}")
    return key


def line_of(codec: StreamCodec, action: str, stream: str | None, **more: Any) -> bytes:
    """Return a line with its end. Raises `BadValue` where the codec cannot encode it."""
    return encode(codec, {"action": action, "stream": stream, **more}) + b"\n"


def encode(codec: StreamCodec, value: Any) -> bytes:
    """Return a value as one line without its end. Raises `BadValue`."""
    try:
        data = codec.encode(value)
        if isinstance(data, str):
            data = data.encode()
    except BadValue:
        raise
    except Exception as error:
        raise BadValue("message", f"cannot be encoded: {error}") from error
    if not isinstance(data, bytes):
        raise BadValue("message", f"was encoded to a {type(data).__name__}, not to text")
    if b"\n" in data or b"\r" in data:
        raise BadValue("message", "was encoded to more than one line")
    if not data or data.isspace():
        raise BadValue("message", "was encoded to a blank line, which is nothing")
    return data


def decode(codec: StreamCodec, line: bytes) -> Any:
    """Return the value of a line. Raises `BadValue` where it is malformed."""
    try:
        return codec.decode(line)
    except BadValue:
        raise
    except Exception as error:
        raise BadValue("line", f"is malformed: {error}") from error
