"""The callback protocol on the wire: headers, contents, and one encoder per kind of message.

A message is a 2-byte big-endian header length, a JSON header, and a content of `content-length`
bytes. Pure functions from values to bytes and back; the order of messages, requests that wait for
answers and queues are in `faces.callbacks.protocol.peer`, the splitting of a stream in
`faces.callbacks.protocol.reader`.

JSON is written as Python's `json.dumps(ensure_ascii=False)` writes it, because the captured
messages of the original are compared byte for byte; any JSON is read.
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from json import JSONEncoder
from typing import Any, Final

import msgspec

from msgservice.errors import FrameTooLarge, MalformedFrame

HEADER_BYTES_MAX: Final = 65_535  # the protoheader is an unsigned 16-bit number
FILE_ACTION: Final = "filetransfer"
# What a peer of ours says of itself, in a header key that others ignore.
EXTENSION_VERSION: Final = 1

# The codecs that JSON may come in. A fixed list, since some of Python's text codecs (punycode,
# idna) take quadratic time, and the peer chooses.
ENCODINGS: Final = frozenset(
    codecs.lookup(name).name
    for name in (
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"),
        *("utf-32", "utf-32-le", "utf-32-be", "ascii", "latin-1", "cp1250", "cp1251", "cp1252"),
        *("iso8859-15", "koi8-r"),
    )
)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """A checked header. The five required keys, those of each kind, and our extension's.

    Types that nobody depends on are `Any`: a peer may write what it likes there.
    """

    byteorder: Any
    content_type: Any = msgspec.field(name="content-type")
    content_encoding: Any = msgspec.field(name="content-encoding")
    content_length: int = msgspec.field(name="content-length")
    message_type: Any = msgspec.field(name="message-type")
    action: Any = None
    filepath: Any = None
    requested_value: Any = None
    request_id: Any = None
    extension: Any = msgspec.field(name="x-msgservice", default=None)
    transfer: Any = msgspec.field(name="x-transfer", default=None)
    offset: Any = msgspec.field(name="x-offset", default=None)
    checksum: Any = msgspec.field(name="x-checksum", default=None)

    @property
    def is_json(self) -> bool:
        """Whether the content is JSON; everything else is raw bytes."""
        return bool(self.content_type == "json")


class RequestContent(msgspec.Struct, frozen=True):
    """The content of a request, before its types are checked."""

    requested_value: Any
    request_id: Any
    args: Any = None
    kwargs: Any = None


class ActionContent(msgspec.Struct, frozen=True):
    """The content of an action, before its types are checked."""

    args: Any = None
    kwargs: Any = None


class ResponseContent(msgspec.Struct, frozen=True):
    """The content of an answer."""

    value: Any


_decode_header = msgspec.json.Decoder(Header).decode


def parse_header(data: bytes) -> Header:
    """Return the checked header.

    Raises:
        MalformedFrame: not a UTF-8 JSON object, a required key is missing, or a length that is
            no natural number.
    """
    try:
        header = _decode_header(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The fast decoder is stricter than the original's (NaN, lone surrogates, huge numbers).
        header = _parse_header_leniently(data)
    if header.content_length < 0:
        raise MalformedFrame(f"header: content-length is {header.content_length}, below 0")
    return header


def _parse_header_leniently(data: bytes) -> Header:
    try:
        return msgspec.convert(json.loads(data.decode()), Header)
    except msgspec.ValidationError as invalid:
        raise MalformedFrame(f"header: {invalid}") from None
    except (ValueError, RecursionError) as unreadable:
        raise MalformedFrame(f"header of {len(data)} bytes is not JSON: {unreadable}") from None


# --- Contents -----------------------------------------------------------------------------------

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {
    shape: msgspec.json.Decoder(shape)
    for shape in (RequestContent, ActionContent, ResponseContent, dict)
}


def decode_content(content: bytes, encoding: object, shape: Any, *, allow_nan: bool = False) -> Any:
    """Return JSON content as `shape`, one of the structs above, or None for a literal `null`.

    `allow_nan` lets `NaN`, `Infinity` and `-Infinity` pass, as Python's own `json` does.

    Raises:
        MalformedFrame: no JSON in that encoding, an encoding not in `ENCODINGS`, another shape.
    """
    if encoding == "utf-8":
        try:
            return _decoders[shape].decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # slower, but it also knows `null`, NaN, and says what is wrong in Python's words
    value = _decode_any(content, encoding, allow_nan=allow_nan)
    if value is None:
        return None
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as invalid:
        raise MalformedFrame(f"content: {invalid}") from None


def decode_json(content: bytes, encoding: object, *, allow_nan: bool = False) -> Any:
    """Return JSON content of any shape; errors as `decode_content`."""
    return _decode_any(content, encoding, allow_nan=allow_nan)


def _decode_any(content: bytes, encoding: object, *, allow_nan: bool) -> Any:
    try:
        if not isinstance(encoding, str) or codecs.lookup(encoding).name not in ENCODINGS:
            raise LookupError
    except (LookupError, ValueError):
        raise MalformedFrame(f"unknown content-encoding {str(encoding)[:64]!r}") from None
    try:
        return json.loads(
            content.decode(encoding), parse_constant=float if allow_nan else _refuse_constant
        )
    except (ValueError, RecursionError) as unreadable:
        raise MalformedFrame(
            f"content of {len(content)} bytes is not JSON in {encoding}: {str(unreadable)[:200]}"
        ) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_STRICT = JSONEncoder(ensure_ascii=False, allow_nan=False)
_NAN_ALLOWED = JSONEncoder(ensure_ascii=False, allow_nan=True)


def encode_json(value: object, *, allow_nan: bool = False) -> str:
    """Return JSON text as the original writes it: separators `", "` and `": "`, raw UTF-8.

    Raises:
        TypeError, ValueError: JSON cannot hold the value (NaN too, unless `allow_nan`).
    """
    if value == [] or value == () or value == {}:
        return "{}" if isinstance(value, dict) else "[]"
    try:
        return (_NAN_ALLOWED if allow_nan else _STRICT).encode(value)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


# --- Whole messages -----------------------------------------------------------------------------


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str):  # which ends the connection at the other side
        raise TypeError(f"{what} is named by text, not by {name!r}")


class Encoder:
    """One method for each kind of message; each returns the message's bytes.

    `byteorder` is what the header says of this machine (`"little"`, `"big"`); nobody uses it.
    Every method raises `FrameTooLarge` when the header would not fit, and TypeError or ValueError
    when JSON cannot hold an argument.
    """

    def __init__(
        self,
        byteorder: str,
        *,
        allow_nan: bool = False,
        header_bytes_max: int = HEADER_BYTES_MAX,
    ) -> None:
        # Byte for byte what json.dumps would give, with the one number left open: a third of
        # the time of a request is saved (bench/callbacks.py).
        self._prefix = f'{{"byteorder": {encode_json(byteorder)}, "content-type": '
        self._json_prefix = f'{self._prefix}"json", "content-encoding": "utf-8", "content-length": '
        self._binary_prefix = (
            f'{self._prefix}"binary", "content-encoding": "utf-8", "content-length": '
        )
        self._allow_nan = allow_nan
        self._header_bytes_max = header_bytes_max

    def _json(self, value: object) -> str:
        return encode_json(value, allow_nan=self._allow_nan)

    def _message(self, kind: str, extra: str, content: str) -> bytes:
        body = content.encode()
        header = f'{self._json_prefix}{len(body)}, "message-type": "{kind}"{extra}}}'.encode()
        return self._framed(header) + body

    def _file_header(self, kind: str, size: int, extra: str) -> bytes:
        return self._framed(
            f'{self._binary_prefix}{size}, "message-type": "{kind}"{extra}}}'.encode()
        )

    def _framed(self, header: bytes) -> bytes:
        if len(header) > self._header_bytes_max:
            raise FrameTooLarge(len(header), self._header_bytes_max)
        return len(header).to_bytes(2, "big") + header

    def _extra(self, keys: Mapping[str, object]) -> str:
        return "".join(f", {self._json(key)}: {self._json(value)}" for key, value in keys.items())

    def action(
        self, action: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> bytes:
        """Return an action message. `TypeError` where its name is no text."""
        _check_name(action, "an action")
        return self._message(
            "message",
            f', "action": {self._json(action)}',
            f'{{"args": {self._json(list(args))}, "kwargs": {self._json(dict(kwargs or {}))}}}',
        )

    def request(
        self,
        requested_value: str,
        request_id: str,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> bytes:
        """Return a request; name and id travel in the content. `TypeError` as for an action."""
        _check_name(requested_value, "a requested value")
        return self._message(
            "request",
            self._extra(extra) if extra else "",
            f'{{"requested_value": {self._json(requested_value)}, "request_id": '
            f'{self._json(request_id)}, "args": {self._json(list(args))}, "kwargs": '
            f"{self._json(dict(kwargs or {}))}}}",
        )

    def response(self, requested_value: object, request_id: object, value: object) -> bytes:
        """Return an answer; name and id travel in the header."""
        return self._message(
            "response",
            f', "requested_value": {self._json(requested_value)}, "request_id": '
            f"{self._json(request_id)}",
            f'{{"value": {self._json(value)}}}',
        )

    def file_push(
        self, filepath: str, size: int, extra: Mapping[str, object] | None = None
    ) -> bytes:
        """Return what goes before the `size` bytes of a pushed file."""
        return self._file_header(
            "message",
            size,
            f', "action": "{FILE_ACTION}", "filepath": {self._json(filepath)}'
            + self._extra(extra or {}),
        )

    def file_response(
        self, request_id: object, size: int, extra: Mapping[str, object] | None = None
    ) -> bytes:
        """Return what goes before the `size` bytes of a file that was asked for."""
        return self._file_header(
            "response",
            size,
            f', "requested_value": "{FILE_ACTION}", "request_id": {self._json(request_id)}'
            + self._extra(extra or {}),
        )

    def extension(self, kind: str, content: Mapping[str, object]) -> bytes:
        """Return a message of a type of ours, which peers of others ignore.

        The content is never `null`: the original's parser would wait for ever.
        """
        return self._message(
            kind, f', "x-msgservice": {EXTENSION_VERSION}', self._json(dict(content))
        )
