"""A stream of bytes, split into the messages of the callback protocol.

Called by `faces.callbacks.protocol.peer` and by the plain face's `MessageManager`; knows nothing of
what messages mean. JSON contents are gathered whole (at most `json_bytes_max`), raw ones are passed
on as they come: a file is never held in memory. Any split of the input gives the same parts, apart
from where `Data` is cut. Linear in the bytes fed, whatever their cut.
"""

from typing import Final

import msgspec

from msgservice.errors import FrameTooLarge, MalformedFrame, ProtocolError
from msgservice.faces.callbacks.protocol.wire import HEADER_BYTES_MAX, Header, parse_header

# One telemetry record is about 1 KiB; 16 MiB leaves room for whole configurations and is what a
# peer can make us hold. Files are streamed and do not count.
JSON_BYTES_MAX: Final = 16 * 1024 * 1024
FILE_BYTES_MAX: Final = 1024**4  # the disk is the limit before this is; a number, so that it is one


class Whole(msgspec.Struct, frozen=True, gc=False):
    """A message with JSON content, complete."""

    header: Header
    content: bytes


class Start(msgspec.Struct, frozen=True, gc=False):
    """A message with raw content begins; `Data` follows, then `End`."""

    header: Header


class Data(msgspec.Struct, frozen=True, gc=False):
    """The next bytes of a raw content."""

    data: memoryview


class End(msgspec.Struct, frozen=True, gc=False):
    """The raw content is complete."""


class Broken(msgspec.Struct, frozen=True, gc=False):
    """The stream broke the protocol; nothing follows, whatever is fed."""

    error: ProtocolError


Part = Whole | Start | Data | End | Broken


class MessageReader:
    """Bytes in, parts of messages out."""

    def __init__(
        self,
        *,
        header_bytes_max: int = HEADER_BYTES_MAX,
        json_bytes_max: int = JSON_BYTES_MAX,
        file_bytes_max: int = FILE_BYTES_MAX,
    ) -> None:
        self._header_bytes_max = header_bytes_max
        self._json_bytes_max = json_bytes_max
        self._file_bytes_max = file_bytes_max
        self.reset()

    def reset(self) -> None:
        """Forget a half message: a new stream begins."""
        # bytearray, not bytes: concatenating bytes is quadratic in the number of reads.
        self._buffer = bytearray()
        self._need = 2
        self._header: Header | None = None
        self._raw_left: int | None = None
        self._broken = False

    def break_off(self) -> None:
        """Ignore whatever else comes: the connection is being dropped."""
        self._broken = True

    @property
    def is_between_messages(self) -> bool:
        """Whether the last byte fed was the last of a message."""
        return not self._buffer and self._header is None and self._raw_left is None

    @property
    def is_in_raw(self) -> bool:
        """Whether a raw content has begun and not ended."""
        return self._raw_left is not None

    def feed(self, data: bytes) -> list[Part]:
        """Return the parts that `data` completes, in order; `Broken` can only be the last."""
        if self._broken:
            return []
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        parts: list[Part] = []
        try:
            rest = self._split(data, parts)
        except ProtocolError as error:
            self._broken = True
            parts.append(Broken(error))
        else:
            if rest < len(data):
                self._buffer += memoryview(data)[rest:]
        return parts

    def _split(self, data: bytes, parts: list[Part]) -> int:
        """Append complete parts; return how many bytes of `data` they used."""
        at, end = 0, len(data)
        while True:
            if self._raw_left is not None:
                at = self._pass_on(data, at, parts)
                if self._raw_left is not None:
                    return at
            header = self._header
            if header is None:
                if end - at < 2:
                    self._need = 2
                    return at
                size = data[at] << 8 | data[at + 1]
                self._check_header_size(size)
                if end - at < 2 + size:
                    self._need = 2 + size
                    return at
                header = parse_header(data[at + 2 : at + 2 + size])
                self._check_content_size(header)
                at += 2 + size
                if not header.is_json:
                    parts.append(Start(header))
                    self._raw_left = header.content_length
                    continue
            length = header.content_length
            if end - at < length:
                self._header, self._need = header, length
                return at
            self._header = None
            parts.append(Whole(header, data[at : at + length]))
            at += length

    def _pass_on(self, data: bytes, at: int, parts: list[Part]) -> int:
        assert self._raw_left is not None
        taken = min(self._raw_left, len(data) - at)
        if taken:
            parts.append(Data(memoryview(data)[at : at + taken]))
            self._raw_left -= taken
        if not self._raw_left:
            parts.append(End())
            self._raw_left = None
        return at + taken

    def _check_header_size(self, size: int) -> None:
        if size == 0:
            raise MalformedFrame("header of 0 bytes, at least 1 needed")
        if size > self._header_bytes_max:
            raise FrameTooLarge(size, self._header_bytes_max)

    def _check_content_size(self, header: Header) -> None:
        limit = self._json_bytes_max if header.is_json else self._file_bytes_max
        if header.content_length > limit:
            raise FrameTooLarge(header.content_length, limit)
