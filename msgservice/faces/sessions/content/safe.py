"""The safe codec: msgpack, with the types that both sides have registered. It runs no code.

A payload is an array: `[0, session, number, content]`, the content as msgpack of its own, or
`[1, fields]` for a control message.
"""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from zope.interface import implementer

from msgservice.codecs import MsgpackCodec
from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.content.restricted import NUMBER_BYTES, NUMBERS_MAX
from msgservice.faces.sessions.envelope import (
    Control,
    Item,
    Message,
    check_numbering,
    control_of,
    fields_of,
)
from msgservice.faces.sessions.errors import BadControl, BadPayload

MESSAGE, CONTROL = 0, 1
_NUMBERED = b"\x94\x00"  # an array of four, the first of which is `MESSAGE`
_EXTENSION = 1  # the type of msgpack's extensions that carries a registered type
# Keys that collide: below so many bytes, or so many pairs, they cost no more than others.
_SMALL_BYTES = 32 * 1024
_SMALL_MAP = 64
# Bytes within registered types, counted as often as they are within one: each is read anew there.
# So many in one content, and for each byte of it:
WITHIN_MAX = 1024 * 1024
WITHIN_PER_BYTE = 16
# For so many numbers an array counts as a key, and more if it is long (`NUMBER_BYTES`): it takes
# longer to compare, up to where it differs.
_ARRAY_NUMBERS = 3
_large_map = re.compile(rb"\xde(?:\0[\x41-\xff]|[^\0].)|\xdf", re.DOTALL).search
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(list[Any]).decode


@dataclass(frozen=True, slots=True)
class RemoteError:
    """An exception of the other side: the name of its class, its text and its traceback."""

    kind: str
    text: str
    traceback: str


def frame_message(prepared: bytes, session: str | None, number: int | None) -> bytes:
    """Return the payload of content that is bytes already."""
    return _pack((MESSAGE, session, number, prepared))


def frame_control(item: Control) -> bytes:
    """Return the payload of a control message."""
    return _pack((CONTROL, fields_of(item)))


def unframe(payload: bytes, decode: Callable[[bytes], Any]) -> Item:
    """Return the item of a payload, its content by `decode`. See `ISessionCodec.decode`."""
    _check_keys(payload)
    try:
        match _unpack(payload):
            case [0, None, None, bytes(body)]:
                return Message(decode(body))
            case [0, session, number, bytes(body)]:
                session, number = check_numbering(session, number)
                try:
                    return Message(decode(body), session, number)
                except BaseException as error:  # it makes and compares what is the program's
                    return Message(None, session, number, failure=str(_bad(error)))
            case [1, dict(fields)]:
                control = control_of(fields)
                if control is None:
                    raise BadControl("type", "it is not known")
                return control
    except BadPayload:
        raise
    except (ValueError, MemoryError, RecursionError, msgspec.MsgspecError) as error:
        raise _bad(error) from None
    raise BadPayload("neither a message nor a control message")


def numbering_of(head: bytes) -> tuple[str, int] | None:
    """Return the session and number that a payload begins with. See `ISessionCodec.numbering`."""
    if head[:2] != _NUMBERED:
        return None
    try:
        end = _end_of_scalar(head, _end_of_scalar(head, 2))
        return check_numbering(*_unpack(b"\x92" + head[2:end]))
    except (IndexError, TypeError, ValueError, msgspec.MsgspecError):
        return None


class _Within:
    """The work that a content is: bytes within registered types, and keys that collide."""

    def __init__(self, collisions: int) -> None:
        self.bytes = 0
        self.collisions = collisions

    def add(self, body: bytes) -> None:
        """Count what one of them is made of. Raises `BadPayload` as `_check_keys` does."""
        self.bytes += len(body)
        self.collisions = _check_keys(body, self.collisions, is_within=True)

    def check(self, size: int) -> None:
        """Raise `BadPayload` where that is too much for a content of so many bytes."""
        if self.bytes > WITHIN_MAX + WITHIN_PER_BYTE * size:
            raise BadPayload("registered types are nested too deep for its size")


class _Now(threading.local):
    """The content that a thread encodes and decodes: payloads are decoded on several."""

    encoded: _Within | None = None
    decoded: tuple[_Within, int] | None = None  # with the size of it


@implementer(ISessionCodec)
class SafeCodec:
    """msgpack: None, booleans, integers of 64 bits, floats, text, bytes, lists, dicts, datetimes.

    Tuples and sets come out as lists, dataclasses as dicts, UUIDs and decimals as text, exceptions
    as `RemoteError`; other types are registered.
    """

    name = "safe"
    trusts = False

    def __init__(self) -> None:
        self._by_class: dict[type, tuple[str, Callable[[Any], Any]]] = {}
        self._by_name: dict[str, Callable[[Any], Any]] = {}
        self._now = _Now()
        self._content = MsgpackCodec(enc_hook=self._encode, ext_hook=self._decode)
        self.register(BaseException, "error", _of_error, _error_of)

    def register(
        self,
        cls: type,
        name: str,
        to_plain: Callable[[Any], Any],
        from_plain: Callable[[Any], Any],
    ) -> None:
        """Let instances of a class, and of those below it, be content, on both sides alike.

        `to_plain` returns what the codec knows; `from_plain` makes an instance of what came, and
        raises for what is none. A class that msgpack has a form for keeps that. Raises
        `ValueError` for a name that another class has.
        """
        if name in self._by_name and self._by_class.get(cls, ("",))[0] != name:
            raise ValueError(f"{name!r} is the name of another class")
        self._by_class[cls] = (name, to_plain)
        self._by_name[name] = from_plain

    def prepare(self, content: Any) -> bytes:
        """See `ISessionCodec`."""
        outer, self._now.encoded = self._now.encoded, (within := _Within(0))
        try:
            prepared = self._content.encode(content)
            within.check(len(prepared))
            _check_keys(prepared, within.collisions)
        except BadPayload as error:
            raise TypeError(f"{type(content).__name__} cannot be sent: {error}") from None
        finally:
            self._now.encoded = outer
        return prepared

    def message(self, prepared: bytes, session: str | None, number: int | None) -> bytes:
        """See `ISessionCodec`."""
        return frame_message(prepared, session, number)

    def control(self, item: Control) -> bytes:
        """See `ISessionCodec`."""
        return frame_control(item)

    def numbering(self, head: bytes) -> tuple[str, int] | None:
        """See `ISessionCodec`."""
        return numbering_of(head)

    def decode(self, payload: bytes) -> Item:
        """See `ISessionCodec`."""
        return unframe(payload, self._decode_content)

    # --- inside

    def _decode_content(self, body: bytes) -> Any:
        within = _Within(_check_keys(body))
        outer, self._now.decoded = self._now.decoded, (within, len(body))
        try:
            return self._plain(body)
        finally:
            self._now.decoded = outer

    def _plain(self, body: bytes) -> Any:
        try:
            return self._content.decode(body)
        except ValueError as error:  # what it was made of says more
            raise _bad(error.__context__ or error) from None

    def _encode(self, content: Any) -> msgspec.msgpack.Ext:
        for cls in type(content).__mro__:
            known = self._by_class.get(cls)
            if known is not None:
                name, to_plain = known
                body = self._content.encode(to_plain(content))
                if self._now.encoded is not None:
                    self._now.encoded.add(body)
                return msgspec.msgpack.Ext(_EXTENSION, _pack((name, body)))
        raise TypeError(f"{type(content).__name__} is no type of this codec: register it")

    def _decode(self, code: int, data: memoryview) -> Any:
        match _unpack(data) if code == _EXTENSION else None:
            case [str(name), bytes(body)]:
                from_plain = self._by_name.get(name)
                if from_plain is None:
                    raise BadPayload("a type that is not registered here")
                if self._now.decoded is not None:
                    within, size = self._now.decoded
                    within.add(body)
                    within.check(size)
                plain = self._plain(body)
                try:
                    return from_plain(plain)
                except BaseException as error:
                    raise BadPayload(f"no instance of {name}: {type(error).__name__}") from None
        raise BadPayload("an extension of msgpack that is not known here")


def _check_keys(body: bytes, collisions: int = 0, *, is_within: bool = False) -> int:
    """Refuse maps with so many keys that are no text that they would take too long to compare.

    Numbers, and arrays of them, hash as whoever chose them wishes (`restricted.NUMBERS_MAX`). What
    is no msgpack is left to the decoder. Return `collisions`, of what belongs to it, and its own.
    A small one is not looked at, unless it `is_within` another, which may have any number of them.
    """
    if (len(body) <= _SMALL_BYTES and not is_within) or _large_map(body) is None:
        return collisions
    sizes = _SIZES
    at = numbers = 0
    left, is_map = 1, False  # of what is being read: items that are to come
    outer: list[tuple[int, bool, int, int]] = []
    try:
        while True:
            while not left:
                if numbers > _SMALL_MAP:
                    collisions += numbers**2
                    if collisions > NUMBERS_MAX**2:
                        raise BadPayload(f"more than {NUMBERS_MAX} numbers as keys")
                if not outer:
                    return collisions
                left, is_map, numbers, key_at = outer.pop()
                if key_at < at:
                    numbers += (at - key_at) // NUMBER_BYTES
            byte = body[at]
            key_at = sys.maxsize
            if is_map and not left & 1 and byte not in _TEXTS:
                numbers += _ARRAY_NUMBERS if byte in _ARRAYS else 1
                key_at = at
            left -= 1
            size = sizes[byte]
            at += 1
            if size >= 0:
                at += size
                continue
            head, unit, beside = _LENGTHS[byte]
            count = int.from_bytes(body[at : at + head]) if head else byte & 0x0F
            at += head
            if unit:
                outer.append((left, is_map, numbers, key_at))
                left, is_map, numbers = count * unit, unit == 2, 0
            else:
                at += count + beside
    except IndexError:
        return collisions


# By the first byte: how many follow it; or -1, and of how many its length is made, how many items
# each one of that stands for (0: bytes), and what else follows.
_SIZES = [-1] * 256
_LENGTHS: dict[int, tuple[int, int, int]] = {
    **dict.fromkeys(range(0x80, 0x90), (0, 2, 0)),
    **dict.fromkeys(range(0x90, 0xA0), (0, 1, 0)),
    **{0xC4 + n: (1 << n, 0, 0) for n in range(3)},
    **{0xC7 + n: (1 << n, 0, 1) for n in range(3)},
    **{0xD9 + n: (1 << n, 0, 0) for n in range(3)},
    **{0xDC + n: (2 << n, 1, 0) for n in range(2)},
    **{0xDE + n: (2 << n, 2, 0) for n in range(2)},
}
for _byte in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC1, 0xC2, 0xC3):
    _SIZES[_byte] = 0
for _byte in range(0xA0, 0xC0):
    _SIZES[_byte] = _byte & 0x1F
for _byte, _size in zip(
    range(0xCA, 0xD9), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17), strict=True
):
    _SIZES[_byte] = _size
_ARRAYS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
_TEXTS = frozenset((*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB))


def _end_of_scalar(body: bytes, at: int) -> int:
    """Return where a text, bytes or number ends. Raises `IndexError` where it is not all there."""
    size = _SIZES[body[at]]
    if size < 0:
        head, _, beside = _LENGTHS[body[at]]
        body[at + head]
        size = head + beside + int.from_bytes(body[at + 1 : at + 1 + head])
    return at + 1 + size


def _bad(error: BaseException) -> BadPayload:
    if isinstance(error, BadPayload):
        return error
    if isinstance(error, msgspec.MsgspecError):  # says what is wrong, and at which byte
        return BadPayload(f"no msgpack: {error}")
    if isinstance(error, UnicodeDecodeError):
        return BadPayload("no msgpack: text that is no UTF-8")
    if isinstance(error, RecursionError):
        return BadPayload("nested too deep")
    return BadPayload(f"no msgpack: {type(error).__name__}")


def _error_of(parts: Any) -> RemoteError:
    match parts:
        case [str(kind), str(text), str(trace)]:
            return RemoteError(kind, text, trace)
    raise ValueError("three texts are needed")


def _of_error(error: BaseException) -> list[str]:
    try:
        text = str(error)
    except BaseException:
        text = ""
    lines = [type(error).__name__, text, "".join(traceback.format_exception(error))]
    return [line.encode(errors="backslashreplace").decode() for line in lines]
