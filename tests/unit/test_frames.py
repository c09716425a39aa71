"""`decode_frame` and what decodes messages: bytes that are none are an error of the peer."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest

from msgservice.core.frames import Hello, Transfer, decode_frame
from msgservice.core.session import Session
from msgservice.errors import MalformedFrame
from msgservice.limits import BATCH_OVERHEAD, Limits
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
        pytest.param(
            [0, 0, None, None, None, 0, None, None, b"x" * 200_000], id="an unknown element"
        ),
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


# --- features ---


def hello(features: object) -> bytes:
    return msgspec.msgpack.encode([1, 1, "shop", "i1", {"features": features}])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        pytest.param(["f"] * 257, "`array` of length <= 256", id="too many"),
        pytest.param(["to", "f" * 65], "`str` of length <= 64", id="too long"),
        pytest.param(["to", 5], "Expected `str`, got `int`", id="a number"),
        pytest.param([b"to"], "Expected `str`, got `bytes`", id="bytes"),
        pytest.param("to", "Expected `array | null`, got `str`", id="no array"),
        pytest.param({"to": True}, "Expected `array | null`, got `object`", id="a map"),
    ],
)
def test_40_hostile_features_are_malformed_by_name_and_limit(said: object, told: str) -> None:
    with pytest.raises(MalformedFrame, match=re.escape(told)) as raised:
        decode_frame(hello(said))
    assert str(raised.value).startswith("Hello: ")
    assert ".features" in str(raised.value)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        pytest.param(None, {"require", "to"}, id="from before there were any"),
        pytest.param([], set(), id="none"),
        pytest.param(["to", "of tomorrow", "", "codes", "to"], {"codes", "to"}, id="unknown ones"),
        pytest.param(["f" * 64] * 256, set(), id="as many as may be"),
    ],
)
def test_40_features_that_nobody_knows_say_nothing(said: list[str] | None, known: set[str]) -> None:
    frame = decode_frame(hello(said))
    assert isinstance(frame, Hello)
    session = Session(Limits(), 0.0)
    assert frozenset() == session.peer_features
    session.receive(frame, 0.0)
    assert known == session.peer_features
