"""The safe codec: msgpack, with the types that both sides have registered. It runs no code.

A payload is an array: `[0, session, number, content]`, the content as msgpack of its own, or
`[1, fields]` for a control message.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from zope.interface import implementer

from msgservice.codecs import MsgpackCodec
from msgservice.faces.sessions.content.codec import ISessionCodec
from msgservice.faces.sessions.envelope import (
    Control,
    Item,
    Message,
    check_numbering,
    control_of,
    fields_of,
)
from msgservice.faces.sessions.errors import BadPayload

MESSAGE, CONTROL = 0, 1
_EXTENSION = 1  # the type of msgpack's extensions that carries a registered type
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
    """Return the item of a payload, its content by `decode`. Raises `BadPayload`."""
    try:
        match _unpack(payload):
            case [0, None, None, bytes(body)]:
                return Message(decode(body))
            case [0, session, number, bytes(body)]:
                session, number = check_numbering(session, number)
                return Message(decode(body), session, number)
            case [1, dict(fields)]:
                control = control_of(fields)
                if control is not None:
                    return control
    except BadPayload:
        raise
    except (ValueError, MemoryError, RecursionError, msgspec.MsgspecError) as error:
        raise _bad(error) from None
    raise BadPayload("neither a message nor a control message")


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
        raises for what is none. A class that msgpack has a form for keeps that.
        """
        self._by_class[cls] = (name, to_plain)
        self._by_name[name] = from_plain

    def prepare(self, content: Any) -> bytes:
        """See `ISessionCodec`."""
        return self._content.encode(content)

    def message(self, prepared: bytes, session: str | None, number: int | None) -> bytes:
        """See `ISessionCodec`."""
        return frame_message(prepared, session, number)

    def control(self, item: Control) -> bytes:
        """See `ISessionCodec`."""
        return frame_control(item)

    def decode(self, payload: bytes) -> Item:
        """See `ISessionCodec`."""
        return unframe(payload, self._decode_content)

    # --- inside

    def _decode_content(self, body: bytes) -> Any:
        try:
            return self._content.decode(body)
        except ValueError as error:  # what it was made of says more
            raise _bad(error.__context__ or error) from None

    def _encode(self, content: Any) -> msgspec.msgpack.Ext:
        for cls in type(content).__mro__:
            known = self._by_class.get(cls)
            if known is not None:
                name, to_plain = known
                return msgspec.msgpack.Ext(
                    _EXTENSION, _pack((name, self._content.encode(to_plain(content))))
                )
        raise TypeError(f"{type(content).__name__} is no type of this codec: register it")

    def _decode(self, code: int, data: memoryview) -> Any:
        match _unpack(data) if code == _EXTENSION else None:
            case [str(name), bytes(body)]:
                from_plain = self._by_name.get(name)
                if from_plain is None:
                    raise BadPayload("a type that is not registered here")
                plain = self._decode_content(body)
                try:
                    return from_plain(plain)
                except BaseException as error:
                    raise BadPayload(f"no instance of {name}: {type(error).__name__}") from None
        raise BadPayload("an extension of msgpack that is not known here")


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
