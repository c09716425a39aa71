"""`core.audiences`: any number of names, in frames that every side takes, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.core.audiences import AudienceParts, split_audience
from msgservice.core.frames import AudienceFrame, decode_frame, encode_frame
from msgservice.errors import MalformedFrame
from msgservice.limits import FRAME_OVERHEAD, INTEGER_MAX

letters = st.characters(codec="utf-8", exclude_categories=["Z", "C"])
names_of_any_length = st.lists(st.text(letters, min_size=1, max_size=61), max_size=300, unique=True)


@given(st.integers(0, INTEGER_MAX), names_of_any_length, st.integers(0, 40))
def test_8_what_is_split_is_put_together_again(number: int, names: list[str], times: int) -> None:
    names = [f"{name}{n}" for n in range(times) for name in names]
    parts = AudienceParts(len(names))
    frames = split_audience(number, names)
    for frame in frames:
        encoded = encode_frame(frame)
        assert len(encoded) <= FRAME_OVERHEAD
        decoded = decode_frame(encoded)
        assert isinstance(decoded, AudienceFrame)
        whole = parts.receive(decoded)
        assert (whole is None) is (frame is not frames[-1])
    assert whole == (number, names)


def test_names_of_the_greatest_length_fit() -> None:
    frames = split_audience(INTEGER_MAX, [f"{n:x>255}" for n in range(1000)])
    assert max(len(encode_frame(frame)) for frame in frames) <= FRAME_OVERHEAD


def test_few_names_are_one_frame() -> None:
    assert split_audience(7, ["a", "b"]) == [AudienceFrame(7, ["a", "b"])]
    assert split_audience(7, []) == [AudienceFrame(7, [])]


def test_another_audience_amid_the_parts_of_one_is_malformed() -> None:
    parts = AudienceParts(10)
    assert parts.receive(AudienceFrame(1, ["a"], True)) is None
    with pytest.raises(MalformedFrame, match="AUDIENCE 2 amid the parts of 1"):
        parts.receive(AudienceFrame(2, ["b"]))


def test_parts_without_an_end_are_bounded() -> None:
    parts = AudienceParts(10)
    assert parts.receive(AudienceFrame(1, ["a"] * 10, True)) is None
    with pytest.raises(MalformedFrame, match="more than 10 receivers"):
        parts.receive(AudienceFrame(1, ["a"], True))
