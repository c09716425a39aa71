"""The meaning of a peer's message: parts of messages in, events out.

Called by `faces.callbacks.protocol.peer` with what `faces.callbacks.protocol.reader` split off. It
decides about every combination of message type and content; whatever the peer may not send is
`Failed`, whatever means nothing here is `Ignored`.
"""

from typing import Any

from msgservice.errors import MalformedFrame, ProtocolError
from msgservice.faces.callbacks.protocol.events import (
    ActionReceived,
    ErrorReceived,
    Event,
    Failed,
    FileAnswered,
    FileConfirmed,
    FileData,
    FileEnded,
    FilePushed,
    FileRequested,
    Ignored,
    OffsetAsked,
    OffsetOffered,
    PeerAnnounced,
    Pending,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
)
from msgservice.faces.callbacks.protocol.extension import Extension
from msgservice.faces.callbacks.protocol.reader import Data, End, Part, Start, Whole
from msgservice.faces.callbacks.protocol.wire import (
    FILE_ACTION,
    ActionContent,
    Header,
    RequestContent,
    ResponseContent,
    decode_content,
)


class Receiving:
    """The message that is being received, as far as it matters; `pending` is the peer's own."""

    def __init__(
        self, pending: dict[str, Pending], extension: Extension, *, allow_nan: bool
    ) -> None:
        self._pending = pending
        self._extension = extension
        self._allow_nan = allow_nan
        self.answering: Pending | None = None  # whose file is being received
        self._in_file = False
        self._checked = False
        self._trailer_due = False

    def disconnected(self) -> bool:
        """Forget a half file; return whether there was one."""
        was_in_file = self._in_file
        self.answering = None
        self._in_file = self._checked = self._trailer_due = False
        return was_in_file

    def receive_part(self, part: Part, events: list[Event]) -> bool:
        """Append what `part` means; return False when it ended in `Failed`."""
        try:
            if type(part) is Whole:
                self._receive_whole(part.header, part.content, events)
            elif type(part) is Data:
                if self._in_file:
                    events.append(FileData(part.data))
            elif type(part) is Start:
                self._receive_start(part.header, events)
            elif type(part) is End and self._in_file:
                if self._checked:
                    self._trailer_due = True
                else:
                    self._end_file(None, events)
        except ProtocolError as error:
            events.append(Failed(error))
            return False
        return True

    # --- JSON contents

    def _receive_whole(self, header: Header, content: bytes, events: list[Event]) -> None:
        kind = header.message_type
        if self._trailer_due and kind != "checksum":
            raise MalformedFrame(f"{str(kind)[:64]!r} where the checksum of a file was due")
        if kind == "response":
            self._receive_response(header, content, events)
        elif kind == "request":
            self._receive_request(header, content, events)
        elif kind == "message":
            self._receive_action(header, content, events)
        else:
            self._receive_other(header, content, events)
            return
        if self._extension.is_undecided:
            self._extension.heard(hello=False)

    def _receive_action(self, header: Header, content: bytes, events: list[Event]) -> None:
        if not isinstance(header.action, str):
            raise MalformedFrame("message without the name of an action")
        decoded = self._decode(header, content, ActionContent) or ActionContent()
        events.append(ActionReceived(header.action, *_arguments(decoded)))

    def _receive_request(self, header: Header, content: bytes, events: list[Event]) -> None:
        decoded = self._decode(header, content, RequestContent)
        if decoded is None:
            events.append(Ignored("request that names nothing", "null"))
            return
        if not isinstance(decoded.requested_value, str):
            raise MalformedFrame("requested_value is not a string")
        args, kwargs = _arguments(decoded)
        if decoded.requested_value != FILE_ACTION:
            events.append(
                RequestReceived(decoded.requested_value, decoded.request_id, args, kwargs)
            )
            return
        filepath = kwargs.get("filepath")
        offset, sha256 = header.offset, header.checksum
        if not (self._extension.is_ours and _is_natural(offset) and isinstance(sha256, str)):
            offset, sha256 = 0, ""
        events.append(
            FileRequested(
                decoded.request_id, filepath if isinstance(filepath, str) else None, offset, sha256
            )
        )

    def _receive_response(self, header: Header, content: bytes, events: list[Event]) -> None:
        request = self._request_of(header)
        # Read before the request is given up: an answer that cannot be read leaves it pending.
        decoded = self._decode(header, content, ResponseContent)
        if request is None or request.filepath is not None:
            events.append(_unexpected(header))
            return
        del self._pending[request.request_id]
        events.append(ResponseReceived(request, None if decoded is None else decoded.value))

    def _decode(self, header: Header, content: bytes, shape: Any) -> Any:
        return decode_content(content, header.content_encoding, shape, allow_nan=self._allow_nan)

    def _request_of(self, header: Header) -> Pending | None:
        request_id = header.request_id
        if type(request_id) is int and request_id >= 0:
            request_id = f"{request_id:04d}"  # the original's documentation calls it a number
        if not isinstance(request_id, str):
            return None
        request = self._pending.get(request_id)
        # Name before removal: with a wrong name the request stays, its answer may yet come.
        if request is None or request.requested_value != header.requested_value:
            return None
        return request

    # --- raw contents

    def _receive_start(self, header: Header, events: list[Event]) -> None:
        if self._trailer_due:
            raise MalformedFrame("a file where the checksum of another was due")
        if self._extension.is_undecided:
            self._extension.heard(hello=False)
        ours = self._extension.is_ours
        offset = header.offset if ours and _is_natural(header.offset) else 0
        checked = ours and header.checksum == "sha256"
        size = offset + header.content_length
        if header.message_type == "message" and header.action == FILE_ACTION:
            if not isinstance(header.filepath, str):
                raise MalformedFrame("file without a filepath")
            transfer = header.transfer if ours and isinstance(header.transfer, str) else None
            events.append(FilePushed(header.filepath, size, offset, transfer, checked))
        elif header.message_type == "response":
            request = self._request_of(header)
            if request is None or request.filepath is None:
                events.append(_unexpected(header))
                return
            self.answering = request
            events.append(FileAnswered(request, size, offset, checked))
        elif header.message_type == "request":
            raise MalformedFrame("request with raw content")
        else:
            events.append(Ignored("raw content", _name(header.action or header.message_type)))
            return
        self._in_file, self._checked = True, checked

    def _end_file(self, sha256: str | None, events: list[Event]) -> None:
        if self.answering is not None:
            self._pending.pop(self.answering.request_id, None)
        self.disconnected()
        events.append(FileEnded(sha256))

    # --- the extension

    def _receive_other(self, header: Header, content: bytes, events: list[Event]) -> None:
        kind = header.message_type
        is_extension = _is_natural(header.extension) and header.extension > 0
        if self._extension.heard(hello=is_extension and kind == "hello"):
            events.append(PeerAnnounced())
            return
        receive = {
            "error": self._receive_error,
            "checksum": self._receive_checksum,
            "resume": self._receive_resume,
            "offset": self._receive_offset,
            "received": self._receive_received,
        }.get(kind if isinstance(kind, str) else "")
        if receive is None or not is_extension or not self._extension.is_ours:
            if kind != "hello":
                events.append(Ignored("unknown message-type", _name(kind)))
            return
        decoded = decode_content(content, header.content_encoding, dict)
        receive(decoded if decoded is not None else {}, events)

    def _receive_error(self, content: dict[str, Any], events: list[Event]) -> None:
        kind, reason = str(content.get("error")), str(content.get("reason"))
        request_id = content.get("request_id")
        request = self._pending.get(request_id) if isinstance(request_id, str) else None
        if request is not None and request.requested_value == content.get("requested_value"):
            del self._pending[request.request_id]
            events.append(RequestRefused(request, kind, reason))
        else:
            events.append(ErrorReceived(kind, reason, content))

    def _receive_checksum(self, content: dict[str, Any], events: list[Event]) -> None:
        if not self._trailer_due:
            raise MalformedFrame("checksum without a file")
        self._end_file(_text(content, "sha256"), events)

    def _receive_resume(self, content: dict[str, Any], events: list[Event]) -> None:
        transfer, filepath = _text(content, "transfer"), _text(content, "filepath")
        events.append(OffsetAsked(transfer, filepath, _natural(content, "size")))

    def _receive_offset(self, content: dict[str, Any], events: list[Event]) -> None:
        source = self._extension.offered(content.get("transfer"))
        offset, sha256 = _natural(content, "offset"), _text(content, "sha256")
        if source is not None:
            events.append(OffsetOffered(source, offset, sha256))

    def _receive_received(self, content: dict[str, Any], events: list[Event]) -> None:
        events.append(FileConfirmed(_text(content, "transfer")))


def _arguments(content: ActionContent | RequestContent) -> tuple[list[Any], dict[str, Any]]:
    """Return args and kwargs; `null` and missing are empty, as the original's resends need."""
    args = [] if content.args is None else content.args
    kwargs = {} if content.kwargs is None else content.kwargs
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        wrong = "args is not a list" if not isinstance(args, list) else "kwargs is not an object"
        raise MalformedFrame(wrong)
    return args, kwargs


def _is_natural(value: object) -> bool:
    return type(value) is int and value >= 0


def _natural(content: dict[str, Any], key: str) -> int:
    value = content.get(key)
    if type(value) is not int or value < 0:
        raise MalformedFrame(f"{key} is not a natural number")
    return value


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str):
        raise MalformedFrame(f"{key} is not a string")
    return value


def _unexpected(header: Header) -> Ignored:
    return Ignored(
        "response nobody asked for", f"{_name(header.requested_value)} {_name(header.request_id)}"
    )


def _name(value: object) -> str:
    return str(value)[:64]
