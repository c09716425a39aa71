"""Codecs: what goes in comes out, and what cannot is refused with the reason."""

import dataclasses
import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface import implementer
from zope.interface.verify import verifyObject

from msgservice.codecs import (
    DEPTH_MAX,
    BytesCodec,
    Codecs,
    JsonCodec,
    MsgpackCodec,
    TextCodec,
    decode_content,
    encode_content,
)
from msgservice.interfaces import ICodec

ALL = [BytesCodec(), TextCodec(), JsonCodec(), MsgpackCodec()]
STRUCTURED = [JsonCodec(), MsgpackCodec()]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
FINITE = VALUES.filter(lambda value: "inf" not in repr(value))


def name(codec: Any) -> str:
    return type(codec).__name__


@pytest.mark.parametrize("codec", ALL, ids=name)
def test_every_codec_is_an_icodec(codec: ICodec) -> None:
    assert verifyObject(ICodec, codec)


@given(FINITE)
def test_json_gives_back_what_it_got(value: Any) -> None:
    assert value == JsonCodec().decode(JsonCodec().encode(value))


@given(VALUES | st.binary(max_size=20))
def test_msgpack_gives_back_what_it_got(value: Any) -> None:
    assert value == MsgpackCodec().decode(MsgpackCodec().encode(value))


@given(FINITE | st.binary(max_size=20), st.none() | st.dictionaries(TEXT, TEXT, max_size=3))
def test_content_comes_back_as_it_was(value: Any, headers: dict[str, str] | None) -> None:
    body, sent = encode_content(value, headers)
    assert value == decode_content(body, sent)
    assert (headers or {}).items() <= (sent or {}).items()


ANY_BYTES = st.lists(st.integers(0, 255), max_size=40).map(bytes)


def decodes_or_refuses(codec: ICodec, data: bytes) -> bool:
    try:
        codec.decode(data)
    except ValueError as error:
        return "body" in str(error)
    return True


@given(ANY_BYTES)
def test_any_bytes_are_json_or_a_value_error(data: bytes) -> None:
    assert decodes_or_refuses(JsonCodec(), data)


@given(ANY_BYTES)
def test_any_bytes_are_msgpack_or_a_value_error(data: bytes) -> None:
    assert decodes_or_refuses(MsgpackCodec(), data)


def test_bytes_get_no_content_type() -> None:
    assert encode_content(b"abc") == (b"abc", None)
    assert encode_content(memoryview(b"abc"), {"a": "b"}) == (b"abc", {"a": "b"})


def test_text_is_utf8() -> None:
    body, headers = encode_content("Köln")
    assert body == "Köln".encode()
    assert headers == {"content-type": "text/plain; charset=utf-8"}


def test_everything_else_is_json() -> None:
    assert encode_content({"id": 17}) == (b'{"id":17}', {"content-type": "application/json"})


def test_the_senders_own_headers_are_not_changed() -> None:
    headers = {"a": "b"}
    encode_content({}, headers)
    assert headers == {"a": "b"}


def test_a_content_type_that_the_sender_named_decides() -> None:
    named = {"content-type": "application/msgpack"}
    assert encode_content([1], named) == (b"\x91\x01", named)


def test_bytes_under_a_named_content_type_are_a_body_already() -> None:
    named = {"Content-Type": "Application/JSON; charset=UTF-8"}
    assert encode_content(b"[1]", named) == (b"[1]", named)
    assert decode_content(b"[1]", named) == [1]


def test_a_content_type_that_nobody_knows_is_bytes_at_the_receiver() -> None:
    assert decode_content(b"\x89PNG", {"content-type": "image/png"}) == b"\x89PNG"


def test_a_content_type_that_nobody_knows_is_refused_at_the_sender() -> None:
    with pytest.raises(TypeError, match="no codec for content type 'image/png'"):
        encode_content([1], {"content-type": "image/png"})


def test_another_charset_is_refused() -> None:
    with pytest.raises(ValueError, match="latin-1"):
        decode_content(b"a", {"content-type": 'text/plain; charset="latin-1"'})


def test_the_choice_is_replaceable() -> None:
    codecs = Codecs(choose=lambda content: MsgpackCodec.content_type)
    body, headers = codecs.encode_content("a")
    assert (body, headers) == (b"\xa1a", {"content-type": "application/msgpack"})


def test_a_codec_of_ones_own_is_used_both_ways() -> None:
    @implementer(ICodec)
    class Reversed:
        content_type = "text/x-reversed"

        def encode(self, content: Any) -> bytes:
            return str(content)[::-1].encode()

        def decode(self, body: bytes) -> Any:
            return body.decode()[::-1]

    codecs = Codecs()
    codecs.register(Reversed())
    body, headers = codecs.encode_content("abc", {"content-type": "text/x-reversed"})
    assert body == b"cba"
    assert codecs.decode_content(body, headers) == "abc"


@dataclasses.dataclass
class Order:
    number: int
    at: dt.datetime


def test_json_knows_dataclasses_and_times() -> None:
    order = Order(17, dt.datetime(2026, 1, 2, tzinfo=dt.UTC))
    assert encode_content(order)[0] == b'{"number":17,"at":"2026-01-02T00:00:00Z"}'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [None, {"a": (x,)}]])
def test_json_refuses_what_is_no_number(number: float, wrap: Any) -> None:
    with pytest.raises(TypeError, match="NaN or infinity"):
        JsonCodec().encode(wrap(number))


def test_json_sends_null_where_none_was_meant() -> None:
    assert JsonCodec().encode([None, "null", 1.5]) == b'[null,"null",1.5]'


def nested(depth: int) -> Any:
    content: Any = []
    for _ in range(depth - 1):
        content = [content]
    return content


@pytest.mark.parametrize("codec", STRUCTURED, ids=name)
def test_content_may_be_nested_up_to_the_limit(codec: ICodec) -> None:
    assert nested(DEPTH_MAX) == codec.decode(codec.encode(nested(DEPTH_MAX)))


@pytest.mark.parametrize("codec", STRUCTURED, ids=name)
@pytest.mark.parametrize("depth", [DEPTH_MAX + 1, 5000])
def test_content_nested_deeper_is_not_sent(codec: ICodec, depth: int) -> None:
    with pytest.raises(TypeError, match=f"more than {DEPTH_MAX} deep"):
        codec.encode(nested(depth))


@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (JsonCodec(), b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1)),
        (JsonCodec(), b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1)),
        (JsonCodec(), b"[" * 500_000),
        (MsgpackCodec(), b"\x91" * (DEPTH_MAX + 1) + b"\x01"),
        (MsgpackCodec(), b"\x81\x01" * (DEPTH_MAX + 1) + b"\x01"),
        (MsgpackCodec(), b"\xdc\x00\x01" * (DEPTH_MAX + 1) + b"\x01"),
        (MsgpackCodec(), b"\x91" * 500_000),
    ],
    ids=lambda value: name(value) if not isinstance(value, bytes) else str(len(value)),
)
def test_a_body_nested_deeper_is_not_read(codec: ICodec, body: bytes) -> None:
    with pytest.raises(ValueError, match=f"more than {DEPTH_MAX} deep"):
        codec.decode(body)


def test_many_shallow_lists_are_not_deep() -> None:
    content = [[n, {"a": "[[[["}] for n in range(1000)]
    for codec in STRUCTURED:
        assert content == codec.decode(codec.encode(content))


@pytest.mark.parametrize("codec", STRUCTURED, ids=name)
def test_content_that_contains_itself_is_refused(codec: ICodec) -> None:
    content: list[Any] = []
    content.append(content)
    with pytest.raises(TypeError, match="contains itself"):
        codec.encode(content)


@pytest.mark.parametrize(
    ("codec", "content", "reason"),
    [
        (BytesCodec(), "text", "str is not bytes"),
        (TextCodec(), b"bytes", "bytes is not text"),
        (TextCodec(), "\ud800", "surrogates not allowed at 0"),
        (JsonCodec(), {"a": object()}, "dict cannot be sent as JSON: .*object"),
        (JsonCodec(), "\ud800", "str cannot be sent as JSON"),
        (JsonCodec(), {(1, 2): 3}, "keys"),
        (MsgpackCodec(), 2**64, "int cannot be sent as msgpack"),
        (MsgpackCodec(), object(), "object cannot be sent as msgpack"),
    ],
)
def test_what_cannot_be_encoded_is_a_type_error(codec: ICodec, content: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        codec.encode(content)


@pytest.mark.parametrize(
    ("codec", "body", "reason"),
    [
        (TextCodec(), b"a\xff", "no UTF-8: invalid start byte at 1"),
        (JsonCodec(), b"", "no JSON"),
        (JsonCodec(), b"{", "no JSON"),
        (JsonCodec(), b"[1] 2", "no JSON"),
        (JsonCodec(), b"NaN", "no JSON"),
        (JsonCodec(), b"1e999", "no JSON"),
        (JsonCodec(), b'"\xff"', "no JSON"),
        (MsgpackCodec(), b"\xc1", "no msgpack"),
        (MsgpackCodec(), b"\x01\x02", "no msgpack"),
        (MsgpackCodec(), b"\xdd\xff\xff\xff\xff", "no msgpack"),
    ],
)
def test_what_cannot_be_decoded_is_a_value_error(codec: ICodec, body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        codec.decode(body)
