"""The values that travel: message, status, receipt-independent facts; and their msgpack form.

`messages` everywhere in msgservice means the bytes of one msgpack array of messages, each
`[body, headers, id, key]` with absent tails left out (PROTOCOL: frames). A run is decoded to be
checked, once at ingress, and then stored and sent on as the same bytes.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Annotated, Any, Final
from zlib import crc32

import msgspec

from msgservice.errors import MalformedFrame
from msgservice.limits import FRAME_OVERHEAD, INTEGER_MAX, NAME_BYTES_MAX

Integer = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
Name = Annotated[str, msgspec.Meta(max_length=NAME_BYTES_MAX)]
Headers = dict[str, str]

ARRAY_HEADER_MAX = 5  # bytes of a msgpack array's header, at most
# Bytes of `to` beside which subject, integers and headers still find the room that a frame has.
TO_BYTES_FREE = FRAME_OVERHEAD - 1024

FLAG_RETAIN = 1
FLAG_REPLAY = 2
FLAG_REQUIRE = 4
FLAG_RETAIN_ONLY = 8  # with FLAG_RETAIN: it is kept for who joins, and delivered to nobody now
FLAG_RETAINED = 16  # of nodes: the copy of a retained message, for who has joined
FLAGS_KNOWN = FLAG_RETAIN | FLAG_REPLAY | FLAG_REQUIRE | FLAG_RETAIN_ONLY | FLAG_RETAINED
# Set where a TRANSFER is decoded that has elements which this version does not know; like an
# unknown flag, it is refused by who would have to keep what they ask.
FLAG_UNKNOWN_ELEMENT = 1 << 52


class PromiseOption(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The promise of a run: so many receivers acknowledge each of its messages in time."""

    need: Integer  # receivers; 0: all of the audience
    within: Integer  # ms
    cancels: bool = False  # where it is broken, what is surely not sent yet is cancelled


class RunOptions(msgspec.Struct, frozen=True, gc=False):
    """The options of a run: what it carries for all of its messages alike, from `send` on.

    Their names, order and defaults are those of the elements of TRANSFER. Runs share them: one
    value serves all that `send` hands over without asking for anything else.
    """

    to: tuple[str, ...] | None = None  # names instead of patterns; a node keeps the audience
    ttl: int | None = None  # ms
    delay: int | None = None  # ms
    flags: int = 0
    promise: PromiseOption | None = None

    @property
    def excess_bytes(self) -> int:
        """The bytes of a long `to` that are taken from what a frame has for messages."""
        if self.to is None:
            return 0
        # One that is no text has no form in a frame, and fails where that is made.
        size = sum(len(str(name).encode("utf-8", "replace")) + 2 for name in self.to)
        return max(0, size - TO_BYTES_FREE)


PLAIN = RunOptions()


@lru_cache(maxsize=64)
def options_of(flags: int) -> RunOptions:
    """Return the options that are nothing but flags: the same value each time, for many runs."""
    return RunOptions(flags=flags) if flags else PLAIN


def passed_on(options: RunOptions) -> RunOptions:
    """Return what a run asks of the next node of a chain: less than of the first.

    Whom it is for, and whether there is anybody, was decided there.
    """
    flags = options.flags & ~FLAG_REQUIRE
    if (
        options.to is None
        and options.delay is None
        and options.promise is None
        and flags == options.flags
    ):
        return options
    return msgspec.structs.replace(options, to=None, delay=None, flags=flags, promise=None)


class Status(enum.IntEnum):
    """The status of one message at one receiver (SEMANTICS 10); the numbers are the wire's."""

    QUEUED = 1
    SENT = 2
    ACKNOWLEDGED = 3
    EXPIRED = 4
    DEAD = 5
    CANCELLED = 6
    REMOVED = 7

    @property
    def final(self) -> bool:
        """Whether it never changes again."""
        return self >= Status.ACKNOWLEDGED


# What `Status(number)` says, which is slower.
STATUSES = {int(status): status for status in Status}


# What is asked for each message: a member of an enum costs four calls of a function to look up.
ACKNOWLEDGED: Final = Status.ACKNOWLEDGED
DEAD: Final = Status.DEAD


class Action(enum.IntEnum):
    """The action that a NACK asks of the sender (PROTOCOL: NACK)."""

    RETRY = 1  # again, and it counts as an attempt
    DEAD = 2  # the receiver will never take it
    REFUSED = 3  # never accepted
    LATER = 4  # again, not counted: no room, not now


class WireMessage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message as it travels. `id`: the sender's own name for it; `key`: idempotency key."""

    body: bytes
    headers: Headers | None = None
    id: Name | None = None
    key: Name | None = None


class KnownMessage(WireMessage, forbid_unknown_fields=True, frozen=True, gc=False):
    """A message without elements that this version does not know: what a node takes in."""


class BareMessage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message with nothing but a body: `[body]`."""

    body: bytes


# What msgspec raises for bytes that are no value of a type: text that is no UTF-8, and arrays in
# arrays beyond the interpreter's depth, are not errors of its own.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# What msgspec raises for values that have no form in a frame.
UNENCODABLE = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)

_PLAIN: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (bytes, bytes.__bytes__),
    (int, int.__int__),
    (float, float.__float__),
)


def plain(value: Any) -> Any:
    """The value of a class derived from one that msgpack has, as what it is on the wire.

    The encoders ask it about what they have no form for: other values cost nothing.
    """
    for kind, convert in _PLAIN:
        if isinstance(value, kind):
            return convert(value)
    raise TypeError(f"{type(value).__name__} has no form in a frame")


_encode = msgspec.msgpack.Encoder(enc_hook=plain).encode
_decode_messages = msgspec.msgpack.Decoder(list[WireMessage]).decode
_decode_known = msgspec.msgpack.Decoder(list[KnownMessage]).decode
_decode_message = msgspec.msgpack.Decoder(WireMessage).decode
_decode_parts = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def encode_messages(
    messages: list[WireMessage]
    | list[BareMessage]
    | list[msgspec.Raw]
    | list[tuple[bytes, dict[str, str], str | None]],
) -> bytes:
    """Return the msgpack array of a run; a tuple is a message without a key."""
    return _encode(messages)


def encode_bodies(bodies: Iterable[bytes]) -> bytes:
    """Return the msgpack array of a run of messages that are nothing but bodies."""
    return _encode(list(zip(bodies, strict=False)))  # makes `[body]` of each, without a loop here


def encode_mixed(items: Sequence[bytes | msgspec.Raw]) -> bytes:
    """Return the msgpack array of a run of bodies and of encoded messages."""
    return _encode([item if type(item) is msgspec.Raw else (item,) for item in items])


def decode_messages(messages: bytes | memoryview | msgspec.Raw) -> list[WireMessage]:
    """Return the messages of a run; `MalformedFrame` where the bytes are no run."""
    try:
        return _decode_messages(messages)
    except UNDECODABLE as error:
        raise MalformedFrame(f"messages: {error}") from None


def decode_known_messages(
    messages: bytes | memoryview | msgspec.Raw,
) -> tuple[Sequence[WireMessage], bool]:
    """Return the messages of a run, and whether nothing is in them that is not known here."""
    try:
        return _decode_known(messages), True
    except UNDECODABLE:
        return decode_messages(messages), False


def decode_message(message: bytes | memoryview | msgspec.Raw) -> WireMessage:
    """Return one message, as replies carry it; `MalformedFrame` where the bytes are none."""
    try:
        return _decode_message(message)
    except UNDECODABLE as error:
        raise MalformedFrame(f"message: {error}") from None


def count_of(messages: bytes | memoryview | msgspec.Raw) -> int:
    """The number of elements that a msgpack array at the beginning says to have; 0 without one."""
    view = memoryview(messages)
    kind = view[0] if view else 0
    if 0x90 <= kind <= 0x9F:
        return kind & 0x0F
    head = bytes(view[:5])
    if kind == 0xDC:
        return int.from_bytes(head[1:3], "big")
    if kind == 0xDD:
        return int.from_bytes(head[1:5], "big")
    return 0


def cut_messages(messages: bytes | memoryview | msgspec.Raw, start: int, stop: int) -> bytes:
    """Return the run of messages `start` to `stop` (exclusive) of a run. Copies; slow path only."""
    return _encode(_decode_parts(messages)[start:stop])


def join_messages(runs: Iterable[bytes | memoryview | msgspec.Raw]) -> bytes:
    """Return the run of all messages of these runs, in order. Copies; slow path only."""
    return _encode([part for messages in runs for part in _decode_parts(messages)])


class MessageParts:
    """The offsets of a run's messages, found once: a cut then costs no more than its bounds."""

    __slots__ = ("_begins", "_view")

    def __init__(self, messages: bytes | memoryview | msgspec.Raw) -> None:
        sizes = message_sizes(messages)
        self._view = memoryview(messages)
        self._begins = list(accumulate(sizes, initial=header_size(messages)))

    def size(self, start: int, stop: int) -> int:
        """Return the size of the run of messages `start` to `stop` (exclusive), in bytes."""
        begins = self._begins
        return len(array_header(stop - start)) + begins[stop] - begins[start]

    def size_alone(self, start: int, stop: int) -> int:
        """Return the bytes of messages `start` to `stop` (exclusive), each as a run of its own."""
        begins = self._begins
        return (stop - start) * len(array_header(1)) + begins[stop] - begins[start]

    def crc(self, stop: int) -> int:
        """Return the CRC-32 of the run of its first `stop` messages."""
        begins = self._begins
        return crc32(self._view[begins[0] : begins[stop]], crc32(array_header(stop)))

    def crcs(self, start: int, stop: int) -> set[int]:
        """Return the CRC-32s that the run of messages `start` to `stop` (exclusive) may have.

        One for each header that says their number: as it arrived it need not be the shortest.
        """
        begins = self._begins
        body = self._view[begins[start] : begins[stop]]
        return {crc32(body, crc32(header)) for header in array_headers(stop - start)}

    def fitting(self, start: int, stop: int, size_max: int) -> int:
        """The number of messages from `start` on that fit into a run of so many bytes."""
        begins = self._begins
        room = begins[start] + size_max - ARRAY_HEADER_MAX
        return max(0, bisect_right(begins, room, start, stop + 1) - 1 - start)

    def alone(self, start: int, stop: int) -> list[bytes]:
        """Return messages `start` to `stop` (exclusive), each as a run of its own. Copies them."""
        view, header = self._view, array_header(1)
        return [header + view[a:b] for a, b in pairwise(self._begins[start : stop + 1])]

    def run(self, start: int, stop: int) -> bytes:
        """Return the run of messages `start` to `stop` (exclusive). Copies them."""
        begins = self._begins
        return array_header(stop - start) + self._view[begins[start] : begins[stop]]


def array_headers(count: int) -> list[bytes]:
    """Return the headers that a msgpack array of so many elements may have, the longest first."""
    headers = [b"\xdd" + count.to_bytes(4, "big")]
    if count < 1 << 16:
        headers.append(b"\xdc" + count.to_bytes(2, "big"))
    if count < 16:
        headers.append(bytes((0x90 | count,)))
    return headers


def array_header(count: int) -> bytes:
    """Return the header of a msgpack array of so many elements, as short as it can be."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def header_size(messages: bytes | memoryview | msgspec.Raw) -> int:
    """Return the size of a run's own array header, in bytes: what its messages do not take."""
    kind = memoryview(messages)[0]
    return 5 if kind == 0xDD else 3 if kind == 0xDC else 1


def message_sizes(messages: bytes | memoryview | msgspec.Raw) -> list[int]:
    """Return the encoded size of each message of a run, in bytes. Slow path only."""
    return list(map(len, _decode_parts(messages)))
