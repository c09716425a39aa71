"""The stream of the main protocol: frames cut from any bytes, in any cut, and decoded.

Nothing but the documented errors, the same frames whatever the cut, and what was decoded is
encoded and decoded to itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from msgservice.core.features import ALL, features_of
from msgservice.core.frames import (
    FEATURES_MAX,
    KINDS,
    Ack,
    Cancel,
    Hello,
    HelloOptions,
    Nack,
    Ping,
    ReceiveOptions,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.core.framing import FrameSplitter
from msgservice.errors import FrameTooLarge, MalformedFrame, UnknownKind
from msgservice.message import (
    WireMessage,
    cut_messages,
    decode_message,
    decode_messages,
    encode_messages,
    message_sizes,
)
from msgservice.receiver.received import RunFacts, decode_received
from tests.fuzz.choices import Choices

LIMITS = (0, 1, 7, 40, 300, 65_536)


def run(data: bytes) -> None:
    """One input: a limit, cuts, and the bytes of the stream."""
    choices = Choices(data)
    limit = choices.of(LIMITS)
    cuts = [choices.byte() for _ in range(choices.below(8))]
    stream = choices.rest()
    for frame in check_stream(stream, cuts, limit):
        check_frame(frame)


def check_stream(stream: bytes, cuts: Sequence[int], limit: int) -> list[bytes]:
    """Check a splitter against the format's definition; return the frames.

    `cuts`: sizes of the pieces that are fed, again and again until the end; 0 is an empty read.
    """
    expected, refused, partial = by_definition(stream, limit)
    splitter = FrameSplitter(limit)
    found: list[bytes] = []
    sizes = [*cuts, max(1, len(stream) - sum(cuts))]
    at = turn = 0
    error: FrameTooLarge | None = None
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        turn += 1
        try:
            found += splitter.feed(stream[at : at + size])
        except FrameTooLarge as caught:
            found += splitter.take_complete()
            error = caught
            break
        at += size
    assert expected == found
    assert len(expected) == splitter.completed
    assert refused == (None if error is None else error.size)
    assert splitter.partial == (partial if refused is None else 0)
    return found


def by_definition(stream: bytes, limit: int) -> tuple[list[bytes], int | None, int]:
    """Return the frames, the length that is refused, and how many bytes are left of a frame."""
    frames: list[bytes] = []
    at = 0
    while len(stream) - at >= 4:
        (length,) = struct.unpack_from("!I", stream, at)
        if length > limit:
            return frames, length, 0
        if len(stream) - at - 4 < length:
            break
        frames.append(stream[at + 4 : at + 4 + length])
        at += 4 + length
    return frames, None, len(stream) - at


def check_frame(data: bytes) -> None:
    """Decode one frame and what is in it."""
    try:
        frame = decode_frame(data)
    except (MalformedFrame, UnknownKind):
        return
    again = decode_frame(memoryview(encode_frame(frame)))
    if isinstance(frame, Transfer | Request):
        assert isinstance(again, Transfer | Request)
        assert bytes(memoryview(frame.messages)) == bytes(memoryview(again.messages))
        check_messages(frame.messages)
    elif isinstance(frame, Reply):
        for _, _, message in frame.replies:
            try:
                decode_message(message)
            except MalformedFrame:
                continue
    else:
        assert frame == again
        if isinstance(frame, Hello):
            said = frame.options.features
            assert said is None or len(said) <= FEATURES_MAX
            assert features_of(said) <= ALL


def check_messages(messages: msgspec.Raw) -> None:
    """Decode a run as a node does and as a receiver does: they agree, and parts make the whole."""
    facts = RunFacts.__new__(RunFacts)
    try:
        found = decode_messages(messages)
    except MalformedFrame:
        found = None
    try:
        received = decode_received(messages, facts)
    except MalformedFrame:
        received = None
    if found is None:
        return
    assert len(message_sizes(messages)) == len(found)
    half = len(found) // 2
    parts = (cut_messages(messages, 0, half), cut_messages(messages, half, len(found)))
    assert found == [m for part in parts for m in decode_messages(part)]
    assert found == decode_messages(cut_messages(messages, 0, len(found)))
    if received is not None:  # what a peer puts behind the four elements may be refused there
        assert [m.body for m in found] == [m.body for m in received]
        assert [m.headers or {} for m in found] == [m.headers for m in received]


def seeds() -> Iterator[bytes]:
    """A frame of each kind, and all of them in a row."""
    run = msgspec.Raw(encode_messages([WireMessage(b"a", {"k": "v"}, "id"), WireMessage(b"b")]))
    options = HelloOptions(max_batch=1, window=(5, 6), receive=ReceiveOptions(subjects=["a.>"]))
    named = HelloOptions(features=["to", "require", "codes", "of another"])
    frames = [
        Hello(1, "name", "i", options),
        Hello(1, "name", "i", named),
        Transfer(5, "a.b", run, after=3, floor=2, to=("x",), ttl=9, flags=1),
        Ack([(1, 2), (4, 4)]),
        Nack(1, 2, 1, 10, "no"),
        StatusFrame("i", "r", 3, [(1, 1)]),
        Routed(1, 2, 1, 100),
        Request(1, "ask", run),
        Reply([(1, True, msgspec.Raw(msgspec.msgpack.encode([b"yes"])))]),
        Ping(1),
        ResumeFrame(1, [(2, 3)], (2, 3, 77)),
        Cancel([(0, 2), (4, 4)]),
    ]
    encoded = [encode_frame(frame) for frame in frames]
    encoded += [msgspec.msgpack.encode([kind, 1, "x", b"y"]) for kind in range(len(KINDS) + 2)]
    streams = [struct.pack("!I", len(frame)) + frame for frame in encoded]
    for stream in [*streams, b"".join(streams)]:
        yield bytes([LIMITS.index(300), 2, 3, 200]) + stream
