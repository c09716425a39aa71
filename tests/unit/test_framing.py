"""`FrameSplitter` against the format's definition: any cut of the bytes gives the same frames."""

import itertools
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.core.framing import LENGTH_MAX, FrameSplitter, encode_prefix
from msgservice.errors import FrameTooLarge

FRAMES = st.lists(st.binary(max_size=40), max_size=12)
CUTS = st.lists(st.integers(0, 600), max_size=30)


def joined(frames: list[bytes]) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_the_prefix_is_that_of_int32_strings() -> None:
    assert struct.pack("!I", 66051) == encode_prefix(66051)


def test_a_length_beyond_four_bytes_has_no_prefix() -> None:
    with pytest.raises(FrameTooLarge) as caught:
        encode_prefix(LENGTH_MAX + 1)
    assert (caught.value.size, caught.value.size_max) == (LENGTH_MAX + 1, LENGTH_MAX)


@given(FRAMES, CUTS)
def test_any_cut_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    splitter = FrameSplitter(40)
    got = [frame for chunk in chunks(joined(frames), cuts) for frame in splitter.feed(chunk)]
    assert frames == got
    assert splitter.partial == 0
    assert len(frames) == splitter.completed


@given(FRAMES, st.integers(1, 40), CUTS)
def test_partial_is_what_is_held_of_the_unfinished_frame(
    frames: list[bytes], size: int, cuts: list[int]
) -> None:
    splitter = FrameSplitter(40)
    unfinished = joined([bytes(size)])[:-1]
    for chunk in chunks(joined(frames) + unfinished, cuts):
        splitter.feed(chunk)
    assert len(unfinished) == splitter.partial


@given(FRAMES, st.integers(41, LENGTH_MAX), CUTS, st.binary(max_size=10))
def test_a_frame_too_large_is_refused_and_those_before_it_are_given(
    frames: list[bytes], size: int, cuts: list[int], after: bytes
) -> None:
    splitter = FrameSplitter(40)
    got: list[bytes] = []

    def feed_all() -> None:
        for chunk in chunks(joined(frames) + struct.pack("!I", size) + after, cuts):
            got.extend(splitter.feed(chunk))

    with pytest.raises(FrameTooLarge) as caught:
        feed_all()
    got += splitter.take_complete()
    assert frames == got
    assert after.startswith(splitter.refused)
    assert cuts or splitter.refused == after
    assert (size, 40) == (caught.value.size, caught.value.size_max)
    assert splitter.partial == 0
    assert splitter.take_complete() == []


def test_the_refusal_comes_with_the_last_byte_of_the_prefix() -> None:
    splitter = FrameSplitter(5)
    for byte in (b"\0", b"\0", b"\0"):
        assert splitter.feed(byte) == []
    with pytest.raises(FrameTooLarge):
        splitter.feed(b"\x06")


def test_nothing_is_taken_after_a_refusal() -> None:
    splitter = FrameSplitter(5)
    with pytest.raises(FrameTooLarge):
        splitter.feed(encode_prefix(6) + b"abc")
    assert splitter.refused == b"abc"
    for data in (b"", encode_prefix(1) + b"a"):
        with pytest.raises(FrameTooLarge):
            splitter.feed(data)
        assert splitter.take_complete() == []
    assert splitter.partial == 0


def test_the_limit_may_be_raised_between_frames() -> None:
    splitter = FrameSplitter(4)
    assert splitter.feed(joined([b"abcd"])) == [b"abcd"]
    splitter.limit = 8
    assert splitter.feed(joined([b"abcdefgh"])) == [b"abcdefgh"]


def test_a_frame_whose_prefix_was_let_in_survives_a_lower_limit() -> None:
    splitter = FrameSplitter(8)
    splitter.feed(encode_prefix(8) + b"abcd")
    splitter.limit = 4
    assert splitter.feed(b"efgh") == [b"abcdefgh"]
    with pytest.raises(FrameTooLarge):
        splitter.feed(encode_prefix(5))


def test_frames_of_no_bytes_are_frames() -> None:
    splitter = FrameSplitter(0)
    assert splitter.feed(bytes(8)) == [b"", b""]
    assert splitter.feed(bytes(3)) == []
    assert splitter.feed(bytes(1)) == [b""]


def test_single_bytes_cost_no_more_memory_than_the_frame() -> None:
    splitter = FrameSplitter(100_000)
    splitter.feed(encode_prefix(100_000))
    pieces = [bytes([n % 256, 1]) for n in range(49_999)]
    tracemalloc.start()
    try:
        for piece in pieces:
            splitter.feed(piece)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 100_000


def test_an_announced_length_is_not_allocated() -> None:
    splitter = FrameSplitter(LENGTH_MAX)
    tracemalloc.start()
    try:
        splitter.feed(encode_prefix(LENGTH_MAX) + b"a")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4096


@given(FRAMES, st.integers(41, 60), CUTS, FRAMES)
def test_a_limit_raised_by_what_came_before_lets_the_refused_frame_in(
    before: list[bytes], size: int, cuts: list[int], after: list[bytes]
) -> None:
    splitter = FrameSplitter(40)
    frames = [*before, bytes(size), *after]
    got: list[bytes] = []
    for chunk in chunks(joined(frames), cuts):
        try:
            got += splitter.feed(chunk)
        except FrameTooLarge:
            got += splitter.take_complete()
            assert before == got
            splitter.limit = size
            got += splitter.go_on()
    assert frames == got
    assert len(frames) == splitter.completed
    assert splitter.go_on() == []


def test_going_on_under_the_same_limit_refuses_again() -> None:
    splitter = FrameSplitter(5)
    for attempt in (lambda: splitter.feed(encode_prefix(6)), splitter.go_on, splitter.go_on):
        with pytest.raises(FrameTooLarge):
            attempt()


def test_a_refusal_is_final_once_more_was_fed() -> None:
    splitter = FrameSplitter(5)
    for attempt in (lambda: splitter.feed(encode_prefix(6)), lambda: splitter.feed(b"abc")):
        with pytest.raises(FrameTooLarge):
            attempt()
    splitter.limit = 6
    with pytest.raises(FrameTooLarge):
        splitter.go_on()
