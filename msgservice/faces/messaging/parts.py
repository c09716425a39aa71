"""The small classes of the protocol's documentation: one message, and records with names.

No socket and no Twisted here. `ConnectionManager` streams files past `MessageManager`; on its own
a `MessageManager` holds the content of a file in memory, as the original does.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from msgservice.errors import ProtocolError
from msgservice.faces.callbacks.protocol.wire import (
    FILE_ACTION,
    Encoder,
    Header,
    decode_json,
    parse_header,
)

_ENCODER = Encoder(sys.byteorder, allow_nan=True)


class BadMessage(ValueError):
    """The peer sent what is no message of the protocol; its connection has to end."""


class Namespace:
    """Names and values, by attribute and by item."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.__dict__[key] = value

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __contains__(self, key: str) -> bool:
        return key in self.__dict__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Namespace) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in self.__dict__.items())
        return f"{type(self).__name__}({inner})"


class PendingRequest(Namespace):
    """A request that waits for its answer."""


class MessageManager:
    """One message on its way in, and encoders for those on their way out.

    Append to `income_raw`, call `process_message`; `jsonheader` and `content` are None until they
    are complete. What follows the message stays in `income_raw`.
    """

    def __init__(self) -> None:
        self.income_raw = b""
        self.jsonheader: dict[str, Any] | None = None
        self.content: Any = None
        self.is_complete = False  # since a complete content can be None, JSON's null
        self._header: Header | None = None
        self._raw: bytes | None = None

    def process_message(self) -> None:
        """Take what is complete from `income_raw`; after the message nothing more is taken.

        Raises:
            BadMessage: a ValueError: no JSON, a required key is missing, an impossible length.
        """
        try:
            if self._header is None:
                self._take_header()
            if self._header is not None and not self.is_complete:
                self._take_content(self._header)
        except ProtocolError as error:
            raise BadMessage(str(error)) from error

    def _take_header(self) -> None:
        size = int.from_bytes(self.income_raw[:2], "big")
        if len(self.income_raw) < 2 or len(self.income_raw) < 2 + size:
            return
        text = self.income_raw[2 : 2 + size]
        self._header = parse_header(text)
        self.jsonheader = json.loads(text)
        self.income_raw = self.income_raw[2 + size :]

    def _take_content(self, header: Header) -> None:
        length = header.content_length
        if len(self.income_raw) >= length:
            content, self.income_raw = self.income_raw[:length], self.income_raw[length:]
            self._set_content(header, content)

    def _set_content(self, header: Header, content: bytes) -> None:
        self._raw = content
        self.content = (
            decode_json(content, header.content_encoding, allow_nan=True)
            if header.is_json
            else content
        )
        self.is_complete = True

    @classmethod
    def of(cls, header: Header, content: bytes) -> "MessageManager":
        """Return a complete message. Raises ProtocolError when its content cannot be read."""
        message = cls()
        message._header = header
        message.jsonheader = {
            key: value for key, value in msgspec.to_builtins(header).items() if value is not None
        }
        message._set_content(header, content)
        return message

    def parts(self) -> tuple[Header, bytes]:
        """Return the header and the bytes of the content.

        Raises:
            BadMessage: it is not complete, or its content is not JSON.
        """
        header, content = self._header, self._raw
        if header is None or content is None:
            # Filled in by hand, as the original allows.
            try:
                header = msgspec.convert(self.jsonheader, Header)
            except msgspec.ValidationError as error:
                raise BadMessage(f"header: {error}") from error
            content = json.dumps(self.content).encode(str(header.content_encoding))
        if not header.is_json:
            raise BadMessage("a message with raw content is streamed, not processed")
        return header, content

    # --- one encoder for each kind of message

    @staticmethod
    def create_message(
        action: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return an action message."""
        return _ENCODER.action(action, args, kwargs)

    @staticmethod
    def create_file_message(dest_filepath: str, content: bytes) -> bytes:
        """Return a pushed file."""
        return _ENCODER.file_push(dest_filepath, len(content)) + content

    @staticmethod
    def create_request(
        requested_value: str,
        request_id: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Return a request."""
        return _ENCODER.request(requested_value, request_id, args, kwargs)

    @staticmethod
    def create_file_request(filepath: str, request_id: str) -> bytes:
        """Return a request for a file."""
        return _ENCODER.request(FILE_ACTION, request_id, (), {"filepath": filepath})

    @staticmethod
    def create_response(requested_value: str, request_id: Any, value: Any) -> bytes:
        """Return an answer."""
        return _ENCODER.response(requested_value, request_id, value)

    @staticmethod
    def create_file_response(request_id: Any, content: bytes) -> bytes:
        """Return a file that was asked for."""
        return _ENCODER.file_response(request_id, len(content)) + content
