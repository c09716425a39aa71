"""The frames of PROTOCOL version 1: typed structs, one encoder, one decoder.

A frame is one msgpack array whose first element is its kind. A frame that does not decode is an
error here and never reaches the code behind: `decode_frame` says what was wrong with it. So is one
whose fields contradict each other (`_RELATIONS`): every transport's bytes come through here, so
what is behind may take for granted that a range has its ends in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec.structs import force_setattr

from msgservice.core.ranges import RangeSet
from msgservice.core.reasons import REASON_CHARS_MAX, one_line, shown
from msgservice.errors import MalformedFrame, UnknownKind
from msgservice.limits import BATCH_INDEX_BITS, BATCH_OVERHEAD, INTEGER_MAX, NAME_BYTES_MAX
from msgservice.message import (
    FLAG_UNKNOWN_ELEMENT,
    UNDECODABLE,
    Integer,
    Name,
    PromiseOption,
    count_of,
    plain,
)
from msgservice.records import INCARNATION_HASH_CHARS, Origin

VERSION = 1

# Of SENDER/HASH/SEQUENCE.
IDENTITY_CHARS_MAX = NAME_BYTES_MAX + 1 + INCARNATION_HASH_CHARS + 1 + len(str(INTEGER_MAX))
FEATURES_MAX = 256  # names in one HELLO, far more than there are
FEATURE_CHARS_MAX = 64  # of one of them

Pair = tuple[Integer, Integer]
Features = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=FEATURE_CHARS_MAX)]],
    msgspec.Meta(max_length=FEATURES_MAX),
]
Reason = Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)]


def _fit(frame: Nack | StatusFrame | Bye | ErrorFrame | Note, fit: Callable[[str], str]) -> None:
    """The reason of a frame that is made or was decoded can be shown to people as it is."""
    if not frame.reason.isprintable():
        force_setattr(frame, "reason", fit(frame.reason)[:REASON_CHARS_MAX])


class ReceiveOptions(msgspec.Struct, omit_defaults=True):
    """HELLO option `receive`: I am the receiver of that name; or the node's answer to it."""

    subjects: list[Name] | None = None
    start: str | Integer | None = None  # "new", "first", a position; times are "@" + ISO 8601
    order: str | None = None  # "strict" or "none"
    shared: bool = False
    paused: bool = False  # of a node: you get nothing for now, and may stay
    retained: bool = True  # a new receiver has what is retained of its subjects first
    known: Name | None = None  # your incarnation as I was greeted before: I do not ask to be made


class HelloOptions(msgspec.Struct, omit_defaults=True):
    """The options of a HELLO: what a side says of itself; each may be left out."""

    max_batch: Integer | None = None  # bytes
    heartbeat: Integer | None = None  # ms
    window: Pair | None = None  # messages, bytes that I take unanswered
    requests: Integer | None = None  # calls that I take unanswered
    auth: list[str] | None = None
    node: Name | None = None
    lease: Integer | None = None
    status_from: Integer | None = None
    inbox: Name | None = None
    receive: ReceiveOptions | None = None
    features: Features | None = None  # see `core.features`
    respond: list[Name] | None = None  # patterns of the requests that I answer


class Hello(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """1: who I am."""

    version: Integer
    name: Name
    incarnation: Name
    options: HelloOptions = msgspec.field(default_factory=HelloOptions)


class Transfer(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """2: a run; message *i* has sequence `sequence + i`."""

    sequence: Integer
    subject: Name
    messages: msgspec.Raw
    after: Integer | None = None
    floor: Integer = 0
    nacks: Integer = 0
    # The elements of `message.RunOptions`:
    to: tuple[Name, ...] | None = None
    ttl: Integer | None = None  # ms
    delay: Integer | None = None  # ms
    flags: Integer = 0
    origin: Origin | None = None


class Promised(Transfer, frozen=True, gc=False):
    """2, to a node that names the feature `promises`: with that of its messages."""

    promise: PromiseOption | None = None


class Delivery(Transfer, frozen=True, gc=False):
    """2, to a receiver that names the feature `facts`: with what its node knows of the run."""

    promise: None = None  # a receiver is promised nothing
    attempts: Integer = 0  # at these messages, that have failed so far
    stored_at: Integer = 0  # ms, by the wall clock of the node


class Ack(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """3: responsibility taken for these sequences."""

    ranges: list[Pair]


class Nack(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """4: not taken; `action` (message.Action) says what the sender shall do."""

    first: Integer
    last: Integer
    action: Annotated[int, msgspec.Meta(ge=1, le=4)]
    delay: Integer = 0  # ms
    reason: Reason = ""
    code: Integer = 0  # `MsgServiceError.refusal_code`
    about: Name | None = None  # … and whom or what it names

    def __post_init__(self) -> None:
        """A NACK's reason is often a traceback, which keeps its lines."""
        _fit(self, shown)


class StatusFrame(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """5: the status of the sender's own sequences at that receiver."""

    incarnation: Name
    receiver: Name
    state: Annotated[int, msgspec.Meta(ge=1, le=7)]
    ranges: list[Pair]
    reason: Reason = ""

    def __post_init__(self) -> None:
        """The reason is that of the NACK; most have none."""
        if self.reason:
            _fit(self, shown)


class Routed(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """6: the audience of these messages, and the position of the first.

    `due`: they wait until then (wall clock, ms), and have neither: both come with another ROUTED.
    `of`: of those the message as which it was taken by its key, SENDER/HASH/SEQUENCE.
    """

    first: Integer
    last: Integer
    audience: Integer
    position: Integer
    due: Integer = 0
    of: Annotated[str, msgspec.Meta(max_length=IDENTITY_CHARS_MAX)] = ""


class Request(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """7: calls; call *i* has id `id + i`."""

    id: Integer
    subject: Name
    messages: msgspec.Raw
    timeout: Integer = 30_000  # ms


class Reply(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """8: answers, `[id, ok, message]` each."""

    replies: list[tuple[Integer, bool, msgspec.Raw]]


class Ping(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """9: are you there?"""

    token: Integer = 0


class Pong(msgspec.Struct, array_like=True, tag=10, frozen=True):
    """10: I am."""

    token: Integer = 0


class Auth(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """11: a step of a login, ours or the other side's."""

    data: bytes

    def __repr__(self) -> str:
        """Return it without its bytes: they may be a secret."""
        return f"Auth({len(self.data)} bytes)"


class Bye(msgspec.Struct, array_like=True, tag=12, frozen=True):
    """12: I send no more transfers."""

    code: Integer = 0
    reason: Reason = ""

    def __post_init__(self) -> None:
        """The reason is a sentence."""
        _fit(self, one_line)


class ErrorFrame(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """13: what was wrong; the connection is closed after it."""

    code: Integer
    reason: Reason = ""

    def __post_init__(self) -> None:
        """The reason is a sentence."""
        _fit(self, one_line)


class AudienceFrame(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """14: the names behind an audience number, once per connection; `more`: in several frames."""

    audience: Integer
    receivers: list[Name]
    more: bool = False


class Note(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """15: for people: tries that a receiver makes by itself."""

    sequence: Integer
    attempts: Integer
    reason: Reason = ""

    def __post_init__(self) -> None:
        """The reason is as that of a NACK."""
        _fit(self, shown)


class ResumeFrame(msgspec.Struct, array_like=True, tag=16, frozen=True):
    """16: what I have taken of your incarnation; `last`: first, last, crc of the newest run."""

    floor: Integer
    ranges: list[Pair]
    last: tuple[Integer, Integer, Integer] | None = None
    more: bool = False


class Cancel(msgspec.Struct, array_like=True, tag=17, frozen=True):
    """17: nobody waits for the answers to these calls any more; by the ids of their REQUESTs."""

    ranges: list[Pair]


_ByTag = (
    Hello
    | Transfer
    | Ack
    | Nack
    | StatusFrame
    | Routed
    | Request
    | Reply
    | Ping
    | Pong
    | Auth
    | Bye
    | ErrorFrame
    | AudienceFrame
    | Note
    | ResumeFrame
    | Cancel
)

# Of one tag with Transfer: the number of elements tells which of both it is.
Frame = _ByTag | Promised | Delivery

# By their numbers: a delivery is a TRANSFER.
KINDS: tuple[type[Frame], ...] = tuple(
    k for k in Frame.__args__ if k is not Delivery and k is not Promised
)
CALLS_MAX = 4096  # of one REQUEST
ANSWER_BYTES = 16  # of one answer in a REPLY, besides its message, at most
REFUSALS_MAX = 64  # calls that one REPLY refuses: any `max_batch` has room for it
RESUME_RANGES_MAX = 1000  # ranges of one RESUME frame; the rest follows with `more`
# As many as are said in one: they fit in 8 KiB, so in any frame that the other side takes.
RESUME_RANGES_SAID = 400
CANCEL_RANGES_MAX, CANCEL_RANGES_SAID = RESUME_RANGES_MAX, RESUME_RANGES_SAID  # of a CANCEL alike

BYE_CLOSING = 0  # the service stops
BYE_REPLACED = 1  # a newer connection has this name
BYE_REMOVED = 2  # the receiver was removed; like a replaced one it does not come back by itself
BYE_PAUSED = 3  # the receiver is paused; it may come back
BYE_SETTLED = 4  # a sender that has heard all its answers, and ends its incarnation with this

CRC_MAX = 2**32 - 1
_TRANSFER_HEAD = 0x90 + 1 + len(Transfer.__struct_fields__)  # of the array with every element

# Messages are a view of their frame, which lives as long as they do: in the tail, in a window, and
# only they are counted there. Of a frame with more than this beside them (names in `to`, elements
# that are not known) they are copied. An ordinary one has a tenth of it.
REST_HELD_MAX = BATCH_OVERHEAD // 2


class NotEncodable(TypeError):
    """A frame with a value that has no form on the wire."""


encode_frame = msgspec.msgpack.Encoder(enc_hook=plain).encode
_decode = msgspec.msgpack.Decoder(_ByTag).decode
_decode_promised = msgspec.msgpack.Decoder(Promised).decode
_PROMISED_HEAD = 0x90 + 1 + len(Promised.__struct_fields__)
_decode_delivery = msgspec.msgpack.Decoder(Delivery).decode
_DELIVERY_HEAD = 0x90 + 1 + len(Delivery.__struct_fields__)


def decode_frame(data: bytes | memoryview) -> Frame:
    """Return the frame; `UnknownKind` or `MalformedFrame` where it is none."""
    size = len(data)
    try:
        if size < 2 or data[1] != 2:  # the tag
            frame: Frame = _decode(data)
        elif data[0] == _DELIVERY_HEAD:
            frame = _decode_delivery(data)
        elif data[0] == _PROMISED_HEAD:
            frame = _decode_promised(data)
        else:
            frame = _decode(data)
    except UNDECODABLE as error:
        raise _diagnosis(data, error) from None
    kind = type(frame)
    if kind is Transfer or kind is Delivery or kind is Promised:
        assert isinstance(frame, Transfer)
        if data[0] > _TRANSFER_HEAD and type(frame) is Transfer:
            frame = msgspec.structs.replace(frame, flags=frame.flags | FLAG_UNKNOWN_ELEMENT)
        if size - len(memoryview(frame.messages)) > REST_HELD_MAX:
            frame = msgspec.structs.replace(frame, messages=frame.messages.copy())
    if isinstance(frame, _OF_RANGES):
        ranges = frame.ranges
        if len(ranges) == 1 and 0 < ranges[0][0] <= ranges[0][1]:  # as of most
            return frame
        wrong = wrong_ranges(ranges)
    elif (check := _RELATIONS.get(kind)) is not None:
        wrong = check(frame)
    else:
        return frame
    if wrong is not None:
        raise MalformedFrame(f"{kind.__name__}: {wrong}")
    return frame


# --- relations between the fields of a frame: each returns what is wrong, or None ----------------


def refusals(calls: Iterable[int], message: msgspec.Raw) -> list[Reply]:
    """Return the frames that say the same `message`, not ok, to each of these calls.

    Of one that is shorter than 100 bytes, frames that any limit allows.
    """
    numbers = list(calls)
    return [
        Reply([(number, False, message) for number in numbers[at : at + REFUSALS_MAX]])
        for at in range(0, len(numbers), REFUSALS_MAX)
    ]


Answer = tuple[int, bool, msgspec.Raw]  # the number of the call, whether it is one, the message


def replies_of(answers: list[Answer], size_max: int) -> list[Reply]:
    """Return answers in frames with so many bytes of messages at most; one has one at least."""
    sizes = [len(raw) + ANSWER_BYTES for _, _, raw in answers]
    if sum(sizes) <= size_max:
        return [Reply(answers)] if answers else []
    frames: list[Reply] = []
    begin, room = 0, size_max
    for at, size in enumerate(sizes):
        if size > room and at > begin:
            frames.append(Reply(answers[begin:at]))
            begin, room = at, size_max
        room -= size
    frames.append(Reply(answers[begin:]))
    return frames


def cancels_of(numbers: Iterable[int]) -> list[Cancel]:
    """Return the frames that give up these calls, fit for any side that takes them."""
    ranges = [*RangeSet((number, number) for number in numbers)]
    return [
        Cancel(ranges[at : at + CANCEL_RANGES_SAID])
        for at in range(0, len(ranges), CANCEL_RANGES_SAID)
    ]


def wrong_ranges(ranges: Sequence[Pair], above: int = 0) -> str | None:
    """The fault of ranges that must rise from behind `above`, without overlaps, or None."""
    for first, last in ranges:
        if not above < first <= last:
            return _wrong_range(first, last, above)
        above = last
    return None


def _wrong_range(first: int, last: int, above: int) -> str:
    if first > last:
        return f"the range [{first}, {last}] ends before it begins"
    if first == above == 0:
        return "sequences begin at 1"
    return f"the range [{first}, {last}] does not lie above {above}"


def _wrong_run(what: str, first: int, messages: msgspec.Raw) -> str | None:
    count = count_of(messages)
    if not count:
        return f"{what} without messages"
    if count > 1 << BATCH_INDEX_BITS:
        return f"{count} messages, at most {1 << BATCH_INDEX_BITS} allowed"
    if first + count - 1 > INTEGER_MAX:
        return f"{what} {first} and {count} messages pass 2^53 - 1"
    return None


def _wrong_transfer(frame: Transfer) -> str | None:
    first = frame.sequence
    if first == 0:
        return "sequences begin at 1"
    if frame.after is not None and frame.after >= first:
        return f"after {frame.after} is not below sequence {first}"
    if frame.floor > first:
        return f"floor {frame.floor} is above sequence {first}"
    if first < INTEGER_MAX and count_of(frame.messages) == 1:
        return None
    return _wrong_run("sequence", first, frame.messages)


def _wrong_nack(frame: Nack) -> str | None:
    return wrong_ranges(((frame.first, frame.last),))


def _wrong_routed(frame: Routed) -> str | None:
    wrong = wrong_ranges(((frame.first, frame.last),))
    if wrong is not None or not frame.position:
        return wrong
    index = frame.position & (1 << BATCH_INDEX_BITS) - 1
    if index + frame.last - frame.first >= 1 << BATCH_INDEX_BITS:
        return f"[{frame.first}, {frame.last}] from {frame.position} on pass the end of a batch"
    return None


def _wrong_request(frame: Request) -> str | None:
    return _wrong_run("id", frame.id, frame.messages)


def _wrong_reply(frame: Reply) -> str | None:
    if len({reply[0] for reply in frame.replies}) != len(frame.replies):
        return "one call is answered twice"
    return None


def _wrong_audience(frame: AudienceFrame) -> str | None:
    if len(set(frame.receivers)) != len(frame.receivers):
        return "a receiver is named twice"
    return None


def _wrong_note(frame: Note) -> str | None:
    return None if frame.sequence else "sequences begin at 1"


def _wrong_resume(frame: ResumeFrame) -> str | None:
    if len(frame.ranges) > RESUME_RANGES_MAX:
        return f"{len(frame.ranges)} ranges, at most {RESUME_RANGES_MAX} allowed in one frame"
    if frame.last is not None:
        first, last, crc = frame.last
        if not 0 < first <= last:
            return _wrong_range(first, last, 0)
        if crc > CRC_MAX:
            return f"{crc} is no CRC-32"
    return wrong_ranges(frame.ranges)


def _wrong_cancel(frame: Cancel) -> str | None:
    if len(frame.ranges) > CANCEL_RANGES_MAX:
        return f"{len(frame.ranges)} ranges, at most {CANCEL_RANGES_MAX} allowed in one frame"
    return wrong_ranges(frame.ranges, -1)  # ids may begin at 0


_OF_RANGES = (StatusFrame, Ack)  # of which nothing but their ranges is to be looked at
_RELATIONS: Final[dict[type, Callable[[Any], str | None]]] = {
    Transfer: _wrong_transfer,
    Promised: _wrong_transfer,
    Delivery: _wrong_transfer,
    Nack: _wrong_nack,
    Routed: _wrong_routed,
    Request: _wrong_request,
    Reply: _wrong_reply,
    AudienceFrame: _wrong_audience,
    Note: _wrong_note,
    ResumeFrame: _wrong_resume,
    Cancel: _wrong_cancel,
}


def _diagnosis(data: bytes | memoryview, error: Exception) -> MalformedFrame | UnknownKind:
    try:
        loose: Any = msgspec.msgpack.decode(data)
    except (*UNDECODABLE, ValueError) as broken:
        return MalformedFrame(f"no msgpack: {broken}")
    if not isinstance(loose, list) or not loose:
        return MalformedFrame("a frame is a non-empty array")
    kind = loose[0]
    if not isinstance(kind, int) or isinstance(kind, bool) or not 1 <= kind <= len(KINDS):
        return UnknownKind(kind if isinstance(kind, int | str | float | None) else "…")
    if any(isinstance(n, int) and n > INTEGER_MAX for n in loose):
        return MalformedFrame(f"{KINDS[kind - 1].__name__}: integer beyond 2^53 - 1")
    return MalformedFrame(f"{KINDS[kind - 1].__name__}: {error}")
