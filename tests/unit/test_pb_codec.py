"""Instances as bodies: only of the classes that a codec was made with."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.spread import pb

from msgservice.codecs import Codecs
from msgservice.transport.pb.codec import JellyCodec
from msgservice.transport.pb.expressions import encode


class Order(pb.Copyable):
    def __init__(self, number: int, lines: Any) -> None:
        self.number, self.lines = number, lines


class Registered(pb.Copyable):
    """One that this process has registered, for something else."""


class Plain:
    """No Copyable."""


class RegisteredCopy(pb.RemoteCopy):
    """What it becomes."""


pb.setUnjellyableForClass(Registered, RegisteredCopy)
CODEC = JellyCodec(Order)


def test_an_instance_is_one_again_and_what_is_between_sees_a_content_type() -> None:
    codecs = Codecs()
    codecs.register(CODEC)
    made = {"orders": [Order(17, ["a", b"b", 2.5, None, True, (1,)])]}
    body, headers = codecs.encode_content(made, {"content-type": CODEC.content_type})
    found = codecs.decode_content(body, headers)["orders"][0]
    assert (Order, 17, ["a", b"b", 2.5, None, True, (1,)]) == (
        type(found), found.number, found.lines,
    )  # fmt: skip
    assert body == Codecs().decode_content(body, headers)


def test_what_a_process_has_registered_for_the_class_is_what_it_becomes() -> None:
    codec = JellyCodec(Registered)
    assert isinstance(codec.decode(codec.encode(Registered())), RegisteredCopy)


@pytest.mark.parametrize(
    "content", [Registered(), [Registered()], Order(1, Registered()), Plain(), object, len, 2**600]
)
def test_other_classes_are_refused_where_they_are_handed_over(content: Any) -> None:
    with pytest.raises(TypeError):
        CODEC.encode(content)


def test_what_contains_itself_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    for content in (cycle, deep):
        with pytest.raises(TypeError):
            CODEC.encode(content)


@pytest.mark.parametrize(
    "jellied",
    [
        [f"{__name__}.Registered".encode(), [b"dictionary"]],
        [f"{__name__}.Plain".encode(), [b"dictionary"]],
        [b"class", b"os.system"],
        [b"function", b"os.system"],
        [b"module", b"os"],
        [b"remote", 1],
        [b"persistent", b"x"],
        [b"twisted.spread.pb.CopyableFailure", [b"dictionary"]],
        [f"{__name__}.Order".encode()],
        [f"{__name__}.Order".encode(), [b"list"]],
    ],
)
def test_other_classes_are_refused_where_they_come(jellied: Any) -> None:
    with pytest.raises(ValueError, match="no jelly"):
        CODEC.decode(encode(jellied))


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"\x05\x82ab", encode(1) + encode(2), b"\x7f\x7f\x80"]
)
def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="no jelly"):
        CODEC.decode(body)


def test_a_body_of_lists_takes_no_more_memory_than_allowed() -> None:
    body = encode([b"list", *[[b"list"]] * 10_000])
    assert len(JellyCodec().decode(body)) == 10_000
    with pytest.raises(ValueError, match="no jelly"):
        JellyCodec(memory_bytes=100_000).decode(body)
