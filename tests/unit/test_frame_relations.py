"""No frame that decodes contradicts itself: whatever kind, whatever the numbers in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msgservice.core.audiences import AudienceParts
from msgservice.core.frames import (
    KINDS,
    Ack,
    AudienceFrame,
    Cancel,
    Frame,
    Hello,
    Nack,
    Note,
    Reply,
    Request,
    ResumeFrame,
    Routed,
    StatusFrame,
    Transfer,
    decode_frame,
    encode_frame,
)
from msgservice.core.session import Session, State
from msgservice.errors import MalformedFrame, UnknownKind
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.message import decode_messages

# Small numbers meet each other; large ones the ends of what there is.
integers = st.one_of(
    st.integers(0, 6), st.integers(65_530, 65_542), st.integers(INTEGER_MAX - 3, INTEGER_MAX)
)
optional = st.one_of(st.none(), integers)
pairs = st.lists(st.tuples(integers, integers).map(list), max_size=4)
names = st.sampled_from(["a", "b", "c"])
runs = st.lists(st.just([b"x"]), max_size=4)
last = st.one_of(st.none(), st.tuples(integers, integers, st.integers(0, 2**33)).map(list))
replies = st.lists(st.tuples(integers, st.booleans(), st.just([b"x"])).map(list), max_size=3)
ELEMENTS: dict[type, tuple[st.SearchStrategy[Any], ...]] = {
    Transfer: (integers, names, runs, optional, integers, integers),
    Ack: (pairs,),
    Nack: (integers, integers, st.integers(1, 4)),
    StatusFrame: (names, names, st.integers(1, 7), pairs),
    Routed: (integers, integers, integers, integers),
    Request: (integers, names, runs),
    Reply: (replies,),
    AudienceFrame: (integers, st.lists(names, max_size=3)),
    Note: (integers, integers),
    ResumeFrame: (integers, pairs, last),
    Cancel: (pairs,),
}


@st.composite
def arrays(draw: st.DrawFn) -> list[Any]:
    kind = draw(st.sampled_from(list(ELEMENTS)))
    return [KINDS.index(kind) + 1, *(draw(element) for element in ELEMENTS[kind])]


def assert_rising(ranges: Sequence[tuple[int, int]]) -> None:
    assert all(1 <= first <= end for first, end in ranges)
    assert all(one[1] < other[0] for one, other in pairwise(ranges))


def assert_holds_together(frame: Frame) -> None:
    match frame:
        case Transfer():
            count = len(decode_messages(frame.messages))
            assert count > 0
            assert 1 <= frame.sequence <= frame.sequence + count - 1 <= INTEGER_MAX
            assert frame.after is None or frame.after < frame.sequence
            assert frame.floor <= frame.sequence
        case Ack() | StatusFrame():
            assert_rising(frame.ranges)
        case Nack():
            assert_rising([(frame.first, frame.last)])
        case Routed():
            assert_rising([(frame.first, frame.last)])
            end = frame.position + frame.last - frame.first
            assert frame.position == 0 or end >> 16 == frame.position >> 16
        case Request():
            count = len(decode_messages(frame.messages))
            assert 0 < count <= INTEGER_MAX + 1 - frame.id
        case Reply():
            ids = [each[0] for each in frame.replies]
            assert sorted(ids) == sorted(set(ids))
        case AudienceFrame():
            assert sorted(frame.receivers) == sorted(set(frame.receivers))
        case Note():
            assert frame.sequence > 0
        case ResumeFrame():
            assert_rising(frame.ranges)
            if frame.last is not None:
                assert_rising([frame.last[:2]])
                assert frame.last[2] < 2**32
        case Cancel():
            assert_rising([(first + 1, end + 1) for first, end in frame.ranges])  # ids from 0 on
        case _:
            raise AssertionError(frame)


@given(arrays())
@settings(max_examples=1500)
def test_what_decodes_holds_together(array: list[Any]) -> None:
    try:
        frame = decode_frame(msgspec.msgpack.encode(array))
    except MalformedFrame:
        return
    assert_holds_together(frame)
    assert decode_frame(encode_frame(frame)) == frame


@given(st.binary(max_size=40), st.integers(1, len(KINDS)))
@settings(max_examples=300)
def test_no_bytes_raise_anything_else(data: bytes, kind: int) -> None:
    for tried in (data, bytes([0x94, kind]) + data):
        try:
            decode_frame(tried)
        except (MalformedFrame, UnknownKind):
            continue


def test_every_kind_with_fields_that_may_contradict_each_other_is_played() -> None:
    alone = {"Hello", "Ping", "Pong", "Auth", "Bye", "ErrorFrame"}
    assert {kind.__name__ for kind in KINDS} - alone == {kind.__name__ for kind in ELEMENTS}


@pytest.mark.parametrize(
    "array",
    [
        pytest.param([3, [[2, 1]]], id="ACK of a range that ends before it begins"),
        pytest.param([3, [[4, 5], [1, 2]]], id="ACK of ranges that fall"),
        pytest.param([3, [[1, 3], [3, 5]]], id="ACK of ranges that overlap"),
        pytest.param([3, [[0, 3]]], id="ACK of sequence 0"),
        pytest.param([4, 5, 3, 3], id="NACK of a range that ends before it begins"),
        pytest.param([5, "i", "r", 3, [[2, 1]]], id="STATUS of such a range"),
        pytest.param([6, 3, 1, 1, 65536], id="ROUTED of such a range"),
        pytest.param([6, 1, 2, 1, 65536 + 65535], id="ROUTED into two batches"),
        pytest.param([16, 1, [[2, 1]]], id="RESUME of such a range"),
        pytest.param([16, 1, [], [2, 1, 0]], id="RESUME whose last run is none"),
        pytest.param([16, 1, [], [1, 2, 2**32]], id="RESUME whose CRC is none"),
        pytest.param([16, 1, [[n, n] for n in range(1, 4000, 2)]], id="RESUME of 2,000 ranges"),
        pytest.param([2, 0, "s", [[b"x"]]], id="TRANSFER of sequence 0"),
        pytest.param([2, 1, "s", []], id="TRANSFER of nothing"),
        pytest.param([2, INTEGER_MAX, "s", [[b"x"]] * 2], id="TRANSFER beyond every sequence"),
        pytest.param([2, 3, "s", [[b"x"]], 3], id="TRANSFER behind itself"),
        pytest.param([2, 3, "s", [[b"x"]], 2, 4], id="TRANSFER of what is settled"),
        pytest.param([7, 1, "s", []], id="REQUEST of nothing"),
        pytest.param([8, [[1, True, [b"x"]]] * 2], id="REPLY to one call twice"),
        pytest.param([14, 1, ["r", "r"]], id="AUDIENCE that names one twice"),
        pytest.param([17, [[2, 1]]], id="CANCEL of a range that ends before it begins"),
        pytest.param([17, [[0, 3], [3, 5]]], id="CANCEL of one call twice"),
        pytest.param([17, [[n, n] for n in range(0, 2002, 2)]], id="CANCEL of 1,001 ranges"),
    ],
)
def test_a_frame_that_contradicts_itself_is_malformed(array: list[Any]) -> None:
    with pytest.raises(MalformedFrame):
        decode_frame(msgspec.msgpack.encode(array))


def test_the_ranges_of_a_resume_rise_over_all_of_its_frames() -> None:
    session = Session(Limits(), 0.0)
    session.hello(Hello(1, "node", "log"))
    session.receive(Hello(1, "shop", "i1"), 0.0)
    session.receive(ResumeFrame(1, [(5, 9)], None, True), 0.0)
    session.receive(ResumeFrame(1, [(8, 12)]), 0.0)
    assert isinstance(session.failed, MalformedFrame)
    assert session.state is State.CLOSED


def test_an_audience_that_names_one_twice_in_two_parts_is_malformed() -> None:
    parts = AudienceParts(10)
    parts.receive(AudienceFrame(1, ["a", "b"], True))
    with pytest.raises(MalformedFrame):
        parts.receive(AudienceFrame(1, ["b"]))
