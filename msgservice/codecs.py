"""Content to body and back: bytes, text, JSON, msgpack, and room for others.

`headers["content-type"]` says which codec made a body; a body without one is bytes. Used at the
two ends only, by clients and receivers: a node never looks inside a body. How large a body may
be is not decided here (`Limits.body_bytes`), how deeply it may be nested is: both ways by the
same rule, so that nothing can be sent which the other end then refuses to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from zope.interface import implementer

from msgservice.interfaces import ICodec
from msgservice.message import Headers

CONTENT_TYPE = "content-type"
# Deep enough for anything that people write; far below where the interpreter gives up, so that
# what was decoded can also be printed, compared and encoded again.
DEPTH_MAX = 100


@implementer(ICodec)
class BytesCodec:
    """Bytes as they are."""

    content_type = "application/octet-stream"

    def encode(self, content: Any) -> bytes:
        """Return `content`: bytes, a bytearray or a memoryview."""
        if not isinstance(content, bytes | bytearray | memoryview):
            raise TypeError(f"{type(content).__name__} is not bytes")
        return bytes(content)

    def decode(self, body: bytes) -> bytes:
        """Return `body`."""
        return body


@implementer(ICodec)
class TextCodec:
    """Text as UTF-8."""

    content_type = "text/plain; charset=utf-8"

    def encode(self, content: Any) -> bytes:
        """Return the UTF-8 of a str; `TypeError` for anything else, and for lone surrogates."""
        if not isinstance(content, str):
            raise TypeError(f"{type(content).__name__} is not text")
        try:
            return content.encode()
        except UnicodeEncodeError as error:
            raise TypeError(f"text is no UTF-8: {error.reason} at {error.start}") from None

    def decode(self, body: bytes) -> str:
        """Return the text; `ValueError` where `body` is not UTF-8."""
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"body is no UTF-8: {error.reason} at {error.start}") from None


class _Structured:
    """The common half of the JSON and msgpack codecs: errors, and the limit on depth."""

    content_type: str
    _what: str
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes], Any]
    _look: Callable[[bytes], Any]  # `_decode`, but that nothing of the program's is made
    # All bytes but those that can begin a list or a map: as many of these as remain, so deep
    # may the content be at most. That settles it for small bodies at the speed of C.
    _harmless: bytes

    def __init__(self, *, depth_max: int = DEPTH_MAX) -> None:
        self._depth_max = depth_max

    def encode(self, content: Any) -> bytes:
        """Return the bytes of `content`; `TypeError` where it has no such form."""
        try:
            body = self._encode(content)
        except RecursionError:
            raise TypeError(
                f"content is nested more than {self._depth_max} deep, or contains itself"
            ) from None
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise TypeError(
                f"{type(content).__name__} cannot be sent as {self._what}: {error}; bytes are sent"
                " as they are"
            ) from None
        if self._may_be_deep(body) and _deeper_than(self._depth_max, self._look(body)):
            raise TypeError(f"content is nested more than {self._depth_max} deep")
        return body

    def decode(self, body: bytes) -> Any:
        """Return the content; `ValueError` where `body` is malformed or too deep."""
        try:
            content = self._decode(body)
        except RecursionError:
            raise ValueError(f"body is nested more than {self._depth_max} deep") from None
        except (ValueError, msgspec.MsgspecError) as error:
            raise ValueError(f"body is no {self._what}: {error}") from None
        if self._may_be_deep(body) and _deeper_than(self._depth_max, content):
            raise ValueError(f"body is nested more than {self._depth_max} deep")
        return content

    def _may_be_deep(self, body: bytes) -> bool:
        return (
            len(body) > self._depth_max
            and len(body.translate(None, self._harmless)) > self._depth_max
        )


@implementer(ICodec)
class JsonCodec(_Structured):
    """JSON (RFC 8259) through msgspec: also dataclasses, datetimes, UUIDs, decimals, enums.

    What JSON has no form for comes out as its nearest: tuples and sets as lists, keys as text,
    bytes as base64 text. NaN and infinities have none and are refused.
    """

    content_type = "application/json"
    _what = "JSON"
    _encode = staticmethod(msgspec.json.Encoder().encode)
    _decode = _look = staticmethod(msgspec.json.Decoder().decode)
    _harmless = bytes(byte for byte in range(256) if byte not in b"[{")

    def encode(self, content: Any) -> bytes:
        """Return the JSON of `content`; `TypeError` where it has none."""
        body = super().encode(content)
        # msgspec writes `null` for a NaN, so only such a body needs the closer look.
        if b"null" in body and _has_nonfinite(msgspec.to_builtins(content)):
            raise TypeError(f"{type(content).__name__} cannot be sent as JSON: NaN or infinity")
        return body


@implementer(ICodec)
class MsgpackCodec(_Structured):
    """msgpack through msgspec. Carries bytes, and NaN, as they are; integers of 64 bits at most.

    `enc_hook`, `ext_hook`: msgspec's, for types that msgpack does not have.
    """

    content_type = "application/msgpack"
    _what = "msgpack"
    _look = staticmethod(msgspec.msgpack.Decoder().decode)
    # fixmap and fixarray, then array 16 and 32, map 16 and 32 of the msgpack specification.
    _harmless = bytes(
        byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF)
    )

    def __init__(
        self,
        *,
        depth_max: int = DEPTH_MAX,
        enc_hook: Callable[[Any], Any] | None = None,
        ext_hook: Callable[[int, memoryview], Any] | None = None,
    ) -> None:
        super().__init__(depth_max=depth_max)
        self._encode = msgspec.msgpack.Encoder(enc_hook=enc_hook).encode
        self._decode = msgspec.msgpack.Decoder(ext_hook=ext_hook).decode


def _deeper_than(depth_max: int, content: Any) -> bool:
    level = [content]
    for _ in range(depth_max):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
        if not below:
            return False
        level = [item for item in below if isinstance(item, dict | list | tuple)]
    return bool(level)


def _has_nonfinite(content: Any) -> bool:
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, dict):
            pending += item.keys()
            pending += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            pending += item
    return False


def choose_content_type(content: Any) -> str | None:
    """Return the content type for content that comes without; None: bytes as they are."""
    if isinstance(content, bytes | bytearray | memoryview):
        return None
    if isinstance(content, str):
        return TextCodec.content_type
    return JsonCodec.content_type


class Codecs:
    """Codecs by content type, and which of them content gets that comes without one.

    `choose(content)` returns a content type, or None for bytes as they are; replace it to send,
    say, msgpack instead of JSON. A codec that is registered replaces one of the same type.
    """

    def __init__(
        self,
        codecs: Iterable[ICodec] | None = None,
        *,
        choose: Callable[[Any], str | None] = choose_content_type,
    ) -> None:
        self._choose = choose
        self._by_type: dict[str, ICodec] = {}
        if codecs is None:
            codecs = (BytesCodec(), TextCodec(), JsonCodec(), MsgpackCodec())
        for codec in codecs:
            self.register(codec)

    def register(self, codec: ICodec) -> None:
        """Use `codec` for its content type from now on."""
        self._by_type[_media_type(codec.content_type)] = codec

    def encode_content(
        self, content: Any, headers: Headers | None = None
    ) -> tuple[bytes, Headers | None]:
        """Return the body, and the headers with the content type that it has now.

        Bytes are a body already: they go as they are, under whatever content type the caller
        named. Anything else is encoded by the codec of the content type that the caller named,
        or by the chosen one. Raises `TypeError` where it cannot be, or no codec is known.
        """
        named = content_type_of(headers)
        if isinstance(content, bytes | bytearray | memoryview) and (
            named is not None or self._choose(content) is None
        ):
            return bytes(content), headers
        content_type = named if named is not None else self._choose(content)
        if content_type is None:
            raise TypeError(f"no content type for {type(content).__name__}")
        codec = self._by_type.get(_media_type(content_type))
        if codec is None:
            raise TypeError(
                f"no codec for content type {content_type!r}: register one, or send bytes"
            )
        body = codec.encode(content)
        if named is None:
            headers = {**(headers or {}), CONTENT_TYPE: content_type}
        return body, headers

    def decode_content(self, body: bytes, headers: Headers | None = None) -> Any:
        """Return the content of `body`; bytes where it has no content type or one unknown here.

        Raises `ValueError` where the body is not what its content type says.
        """
        content_type = content_type_of(headers)
        if content_type is None:
            return body
        codec = self._by_type.get(_media_type(content_type))
        if codec is None:
            return body
        _check_charset(content_type)
        return codec.decode(body)


def content_type_of(headers: Headers | None) -> str | None:
    """The content type that headers name, in whichever case, or None."""
    if not headers:
        return None
    found = headers.get(CONTENT_TYPE)
    if found is None:
        found = next((v for name, v in headers.items() if name.lower() == CONTENT_TYPE), None)
    return found


def _media_type(content_type: str) -> str:
    """Return `type/subtype` without parameters, in lower case (RFC 9110, 8.3.1)."""
    return content_type.partition(";")[0].strip().lower()


def _check_charset(content_type: str) -> None:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip('"').lower()
        if name.strip().lower() == "charset" and charset not in ("utf-8", "utf8", "us-ascii"):
            raise ValueError(f"charset {charset!r} is not supported, only utf-8")


_standard = Codecs()  # never changed: programs that want other codecs make their own
encode_content = _standard.encode_content
decode_content = _standard.decode_content
