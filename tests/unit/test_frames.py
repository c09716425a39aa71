"""`decode_frame` and what decodes messages: bytes that are none are an error of the peer."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import msgspec
import pytest

from msgservice.core.frames import Transfer, decode_frame
from msgservice.errors import MalformedFrame
from msgservice.limits import BATCH_OVERHEAD
from msgservice.message import BareMessage, decode_message, decode_messages, encode_messages
from msgservice.receiver.received import RunFacts, decode_received

NO_UTF8 = b"\xa2\xff\xff"
DEEP = b"\x91" * 100_000 + b"\x01"


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"\x94\x01\x01" + NO_UTF8 + b"\xa1i", id="a name that is no UTF-8"),
        pytest.param(b"\x94\x02\x01\xa1s" + DEEP, id="messages in 100,000 arrays"),
        pytest.param(b"\x93\x09\x01" + DEEP, id="an element too many, in 100,000 arrays"),
    ],
)
def test_a_frame_that_is_none_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_frame(frame)


def received(messages: bytes) -> object:
    return decode_received(messages, RunFacts.__new__(RunFacts))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x92\xc4\x01x\x81\xa1k" + NO_UTF8, id="a header that is no UTF-8"),
        pytest.param(b"\x97\xc4\x01x\xc0\xc0\xc0\xc0\xc0" + DEEP, id="100,000 arrays behind it"),
    ],
)
@pytest.mark.parametrize("decode", [decode_messages, decode_message, received])
def test_a_message_that_is_none_is_malformed(
    decode: Callable[[bytes], object], message: bytes
) -> None:
    with pytest.raises(MalformedFrame):
        decode(message if decode is decode_message else b"\x91" + message)


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param([0, 0, ["r" * 200] * 1000], id="long names in to"),
        pytest.param([0, 0, None, None, None, 0, None, b"x" * 200_000], id="an unknown element"),
    ],
)
def test_messages_do_not_keep_what_a_frame_has_beside_them(beside: list[object]) -> None:
    """They are what counts where batches are held: in the tail, for a group, in a window."""
    raw = msgspec.Raw(encode_messages([BareMessage(b"x" * 100)]))
    data = msgspec.msgpack.encode([2, 1, "a.b", raw, None, *beside])
    held = []
    tracemalloc.start()
    try:
        for _ in range(20):
            frame = decode_frame(bytes(bytearray(data)))
            assert type(frame) is Transfer
            held.append(frame.messages)
            del frame
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(decode_messages(held[-1])) == 1
    assert taken < len(held) * (len(memoryview(raw)) + BATCH_OVERHEAD)
