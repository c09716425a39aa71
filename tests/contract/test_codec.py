"""What every `ICodec` keeps: the four of ours, and one that a program registers."""

from __future__ import annotations

from typing import Any

import pytest
from zope.interface import implementer
from zope.interface.verify import verifyObject

from msgservice.codecs import BytesCodec, Codecs, JsonCodec, MsgpackCodec, TextCodec
from msgservice.interfaces import ICodec
from msgservice.transport.pb.codec import JellyCodec


@implementer(ICodec)
class HexCodec:
    """One of a program's own: a whole number as hexadecimal digits."""

    content_type = "text/x-hex"

    def encode(self, content: Any) -> bytes:
        """See `ICodec`."""
        if not isinstance(content, int):
            raise TypeError("no number")
        return f"{content:x}".encode()

    def decode(self, body: bytes) -> int:
        """See `ICodec`."""
        return int(body.decode("ascii"), 16)


TREE = {"id": 17, "lines": [{"sku": "a-1", "n": 2.5}, None, True], "note": "Grüße"}
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
# Each with content that comes back equal, with what it has no form for, and with bodies that are
# not its own.
CODECS = [
    (BytesCodec(), [b"", b"\x00\xff", b"x" * 70_000], ["text", 1, None], []),
    (TextCodec(), ["", "Grüße", "\x00"], [b"bytes", 1, "\ud800"], [b"\xff", b"\xc3"]),
    (
        JsonCodec(),
        [TREE, [], "", 0, None, 2**63],
        [float("nan"), object(), DEEP],
        [b"", b"{", b"1 2", b"\xff", b"[" * 200 + b"]" * 200],
    ),
    (
        MsgpackCodec(),
        [TREE, b"\x00\xff", [], 0, None],
        [object(), 2**65, DEEP],
        [b"", b"\xc1", b"\x91", b"\x01\x01", b"\x91" * 200 + b"\x01"],
    ),
    (
        JellyCodec(),
        [{"id": 17, "lines": ["a", b"b", 2.5, None, True, (1, 2)]}, [], "Grüße", b"", 0, 2**70],
        [float, object(), len, DEEP],
        [b"", b"\xff", b"\x01", b"\x05\x82ab", b"\x01\x80" * 200],
    ),
    (HexCodec(), [0, 255, 2**70], ["text", b"ff", None], [b"", b"xyz", b"\xff"]),
]


@pytest.fixture(params=CODECS, ids=lambda case: type(case[0]).__name__)
def case(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_it_is_a_codec_of_one_content_type(case: Any) -> None:
    codec, *_ = case
    assert verifyObject(ICodec, codec)
    kind, _, rest = codec.content_type.partition("/")
    assert kind
    assert rest


def test_what_goes_in_comes_out(case: Any) -> None:
    codec, contents, *_ = case
    for content in contents:
        body = codec.encode(content)
        assert type(body) is bytes
        assert codec.decode(body) == content


def test_content_without_a_form_is_a_type_error(case: Any) -> None:
    codec, _, strange, _ = case
    for content in strange:
        with pytest.raises(TypeError):
            codec.encode(content)


def test_a_body_that_is_none_of_its_own_is_a_value_error(case: Any) -> None:
    codec, *_, damaged = case
    for body in damaged:
        with pytest.raises(ValueError):  # whatever it says
            codec.decode(body)


def test_it_is_found_by_its_content_type_at_both_ends(case: Any) -> None:
    codec, contents, *_ = case
    codecs = Codecs([codec], choose=lambda content: codec.content_type)
    for content in contents:
        body, headers = codecs.encode_content(content)
        assert headers is None or headers["content-type"] == codec.content_type
        assert codecs.decode_content(body, headers) == content
