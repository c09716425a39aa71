"""Events of `faces.callbacks.protocol.peer.CallbackPeer`, and the limits that it keeps.

Values only. A face dispatches on the type of the event; an event that it does not know is a bug.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from msgservice.arguments import check_limits
from msgservice.errors import ProtocolError
from msgservice.faces.callbacks.protocol.reader import FILE_BYTES_MAX, JSON_BYTES_MAX
from msgservice.faces.callbacks.protocol.wire import HEADER_BYTES_MAX, Header

PENDING_MAX: Final = 10_000  # ids are four decimal digits


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackLimits:
    """Every limit of one connection, in bytes and seconds; docs/callbacks.md has the table."""

    header_bytes_max: int = HEADER_BYTES_MAX
    json_bytes_max: int = JSON_BYTES_MAX
    file_bytes_max: int = FILE_BYTES_MAX
    pending_max: int = PENDING_MAX
    # One largest message per direction must fit, with as much again behind it.
    queue_bytes_max: int = 2 * JSON_BYTES_MAX
    # For a header and its JSON content, and for every 64 KiB of a file: a slower peer is stuck.
    message_seconds_max: float = 60.0
    # Between our own peers: how long an interrupted file waits to hear what arrived of it.
    resume_seconds_max: float = 10.0
    # Queued bytes with which a peer that does not read its answers is dropped.
    answer_bytes_max: int = 8 * JSON_BYTES_MAX
    # Requests of one peer whose callbacks have not finished; beyond it, reading slows down, and
    # at ten times as many further ones are refused.
    running_max: int = 1_000
    # How long close() waits for the peer to take what is queued.
    close_seconds_max: float = 5.0

    def __post_init__(self) -> None:
        check_limits(self)
        for name, most in (("header_bytes_max", HEADER_BYTES_MAX), ("pending_max", PENDING_MAX)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}, the protocol allows {most}")


class Pending:
    """A request of ours that waits for its answer; `token` is the face's."""

    __slots__ = ("data", "deadline", "filepath", "request_id", "requested_value", "token")

    def __init__(self, *, request_id: str, requested_value: str, data: bytes, token: Any) -> None:
        self.request_id = request_id
        self.requested_value = requested_value
        self.data = data  # as sent: a resend has the same id and the original arguments
        self.token = token
        self.filepath: str | None = None  # of the file asked for, if it is one
        self.deadline: float | None = None


class ActionReceived(msgspec.Struct, frozen=True):
    """The peer names an action; nothing is answered."""

    action: str
    args: list[Any]
    kwargs: dict[str, Any]


class RequestReceived(msgspec.Struct, frozen=True):
    """The peer asks; answer with `respond` or `refuse`, under the same id."""

    requested_value: str
    request_id: Any
    args: list[Any]
    kwargs: dict[str, Any]


class FileRequested(msgspec.Struct, frozen=True):
    """The peer asks for a file. `filepath` None: it named none.

    A peer of ours that has the first `offset` bytes says so, with their SHA-256 in hex.
    """

    request_id: Any
    filepath: str | None
    offset: int
    sha256: str


class ResponseReceived(msgspec.Struct, frozen=True):
    """The answer to a request."""

    request: Pending
    value: Any


class RequestRefused(msgspec.Struct, frozen=True):
    """A peer of ours says that the request will not be answered."""

    request: Pending
    kind: str
    reason: str


class RequestTimedOut(msgspec.Struct, frozen=True):
    """No answer in the time given; a later one is ignored."""

    request: Pending
    seconds: float


class RequestLost(msgspec.Struct, frozen=True):
    """The connection ended, and this request is not sent again; it may have been carried out."""

    request: Pending


class FilePushed(msgspec.Struct, frozen=True):
    """A file follows: `FileData`, then `FileEnded`. It begins at `offset` of `size` bytes.

    `transfer` and `checked` come from peers of ours: the name of the transfer, and whether
    `FileEnded` has a checksum.
    """

    filepath: str
    size: int
    offset: int
    transfer: str | None
    checked: bool


class FileAnswered(msgspec.Struct, frozen=True):
    """The file that was asked for follows, from `offset` of `size` bytes."""

    request: Pending
    size: int
    offset: int
    checked: bool


class FileData(msgspec.Struct, frozen=True):
    """The next bytes of the file."""

    data: memoryview


class FileEnded(msgspec.Struct, frozen=True):
    """The file is complete; `sha256` (hex) is what the sender read, None if it did not say."""

    sha256: str | None


class FileInterrupted(msgspec.Struct, frozen=True):
    """The connection ended within the file."""


class FileConfirmed(msgspec.Struct, frozen=True):
    """A peer of ours has the pushed file in its place."""

    transfer: str


class FileUnsent(msgspec.Struct, frozen=True):
    """The connection ended before this file was sent whole, and it is not sent again."""

    source: Any


class MessagesUnsent(msgspec.Struct, frozen=True):
    """The connection ended before so many messages were sent, and they are not sent again."""

    count: int


class OffsetAsked(msgspec.Struct, frozen=True):
    """A peer of ours asks how much of a transfer is here; answer with `offer_offset`."""

    transfer: str
    filepath: str
    size: int


class OffsetOffered(msgspec.Struct, frozen=True):
    """A peer of ours has `offset` bytes with that SHA-256; answer with `start_file`."""

    source: Any
    offset: int
    sha256: str


class ErrorReceived(msgspec.Struct, frozen=True):
    """A peer of ours could not do what it was told; `about` has what it says of the message."""

    kind: str
    reason: str
    about: dict[str, Any]


class PeerAnnounced(msgspec.Struct, frozen=True):
    """The peer is one of ours."""


class Ignored(msgspec.Struct, frozen=True):
    """A message that means nothing here: of an unknown type, or an answer nobody waits for."""

    reason: str
    subject: str


class MessageReceived(msgspec.Struct, frozen=True):
    """A complete message with JSON content, not looked into; `receive_message` does that."""

    header: Header
    content: bytes


class Failed(msgspec.Struct, frozen=True):
    """The peer broke the protocol: drop this connection. Nothing follows."""

    error: ProtocolError


Event = (
    ActionReceived
    | RequestReceived
    | FileRequested
    | ResponseReceived
    | RequestRefused
    | RequestTimedOut
    | RequestLost
    | FilePushed
    | FileAnswered
    | FileData
    | FileEnded
    | FileInterrupted
    | FileConfirmed
    | FileUnsent
    | MessagesUnsent
    | OffsetAsked
    | OffsetOffered
    | ErrorReceived
    | PeerAnnounced
    | Ignored
    | MessageReceived
    | Failed
)
