"""What every `ISessionCodec` keeps, whatever content is in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from msgservice.faces.sessions.content.codec import HEAD_BYTES, ISessionCodec
from msgservice.faces.sessions.content.objects import ObjectsCodec
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.envelope import (
    NUMBER_MAX,
    SESSION_MAX,
    Ack,
    Control,
    Heartbeat,
    Hello,
    Joined,
    Message,
    Shutdown,
    Welcome,
    check_numbering,
    fields_of,
)
from msgservice.faces.sessions.errors import BadPayload
from msgservice.faces.sessions.outgoing import ENVELOPE_BYTES

SECRET = "hunter2secret"
MAKERS: list[Callable[[], ISessionCodec]] = [
    SafeCodec,
    ObjectsCodec,
    RecordsCodec,
    lambda: RecordsCodec(objects=True),
]
CONTENTS = [
    None,
    True,
    0,
    -(2**63),
    1.5,
    "",
    "text \u20ac\U0001f600",
    b"\x00\xff",
    [],
    [1, [2, {"three": None}]],
    {},
    {"type": "else", "port": 5},
    {"msg": "hi"},
    "x" * 100_000,
]
CONTROLS: list[Control] = [
    Hello(45_001),
    Hello(65_535, "10.0.0.2", "name", True, ("s" * SESSION_MAX, NUMBER_MAX), "nonce", 4_096),
    Welcome("s"),
    Welcome("s", ("before", 5), "nonce", 64 * 1024 * 1024),
    Joined("s"),
    Heartbeat(7, 1.7e9),
    Ack("s", 0),
    Ack("s", 5, ((4, "ValueError: no"), (5, "\u20ac")), 12),
    Shutdown(),
    Shutdown("s", 9, "the end"),
]


@pytest.fixture(params=MAKERS, ids=["safe", "objects", "records", "records-objects"])
def codec(request: pytest.FixtureRequest) -> ISessionCodec:
    """Return each codec."""
    made: ISessionCodec = request.param()
    return made


def decoded(codec: ISessionCodec, payload: bytes) -> Message:
    """Return the message of a payload."""
    item = codec.decode(payload)
    assert isinstance(item, Message)
    return item


def test_it_provides_the_interface(codec: ISessionCodec) -> None:
    assert verifyObject(ISessionCodec, codec)
    assert type(codec.name) is str
    assert type(codec.trusts) is bool


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: repr(content)[:20])
def test_content_comes_out_as_it_went_in(codec: ISessionCodec, content: object) -> None:
    prepared = codec.prepare(content)
    assert type(prepared) is bytes
    for session, number in (("s", 1), ("s" * SESSION_MAX, NUMBER_MAX)):
        item = decoded(codec, codec.message(prepared, session, number))
        assert (item.content, item.session, item.number) == (content, session, number)
        assert type(item.content) is type(content)


def test_a_message_without_a_session_has_no_number(codec: ISessionCodec) -> None:
    item = decoded(codec, codec.message(codec.prepare({"a": 1}), None, None))
    assert (item.content, item.session, item.number) == ({"a": 1}, None, None)


def test_the_same_bytes_are_numbered_again(codec: ISessionCodec) -> None:
    """Sent again in another session, a message is not encoded again."""
    prepared = codec.prepare(["again"])
    before = bytes(prepared)
    numbered = [("first", 1), ("second", 70_000), (None, None), ("third", 2**40), ("first", 1)]
    payloads = [codec.message(prepared, session, number) for session, number in numbered]
    assert prepared == before
    assert payloads[0] == payloads[-1]
    for payload, (session, number) in zip(payloads, numbered, strict=True):
        item = decoded(codec, payload)
        assert (item.content, item.session, item.number) == (["again"], session, number)


def test_an_envelope_is_as_large_as_the_limits_reckon(codec: ISessionCodec) -> None:
    prepared = codec.prepare("content")
    payload = codec.message(prepared, "s" * SESSION_MAX, NUMBER_MAX)
    assert len(payload) - len(prepared) <= ENVELOPE_BYTES


@pytest.mark.parametrize("item", CONTROLS, ids=repr)
def test_control_messages_come_out_as_they_went_in(codec: ISessionCodec, item: Control) -> None:
    assert codec.decode(codec.control(item)) == item


@pytest.mark.parametrize("item", CONTROLS, ids=repr)
def test_a_numbered_message_is_none_though_it_reads_as_a_control_message(
    codec: ISessionCodec, item: Control
) -> None:
    for content in (fields_of(item), str(fields_of(item))):
        found = decoded(codec, codec.message(codec.prepare(content), "s", 3))
        assert found.number == 3
        assert type(found.content) is type(content)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x00", b".", b"N", b"\xff" * 50, b"\x91" * 5_000, b"]" * 300_000, SECRET.encode()],
    ids=lambda payload: repr(payload)[:20],
)
def test_bytes_without_an_item_are_bad_and_not_repeated(
    codec: ISessionCodec, payload: bytes
) -> None:
    with pytest.raises(BadPayload) as caught:
        codec.decode(payload)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 150


def test_a_payload_that_was_cut_is_bad_or_has_failed_under_its_number(
    codec: ISessionCodec,
) -> None:
    payload = codec.message(codec.prepare({"a": [SECRET]}), "session", 5)
    for end in range(len(payload)):
        try:
            item = decoded(codec, payload[:end])
        except BadPayload as bad:
            why = str(bad)
        else:
            assert (item.content, item.session, item.number) == (None, "session", 5)
            why = item.failure or ""
        assert why
        assert SECRET not in why


NUMBERINGS = [("s", 1), ("", 0), ("\u20ac" * SESSION_MAX, 255), ("s", 65_535), ("s" * 31, 2**31)]
NUMBERINGS += [("s" * 32, 2**32), ("q\0" * 32, NUMBER_MAX)]


@pytest.mark.parametrize(("session", "number"), NUMBERINGS)
@pytest.mark.parametrize("content", [None, "x" * 100_000, [1]], ids=["None", "large", "list"])
def test_a_number_is_read_from_the_beginning_of_its_message(
    codec: ISessionCodec, session: str, number: int, content: object
) -> None:
    payload = codec.message(codec.prepare(content), session, number)
    expected = (session, number) if number else None  # where it is none that can be
    assert codec.numbering(payload[:HEAD_BYTES]) == expected
    whole = [codec.numbering(payload[:end]) for end in range(min(len(payload), HEAD_BYTES))]
    first = whole.index(expected) if expected in whole else len(whole)
    assert set(whole[:first]) <= {None}
    assert set(whole[first:]) <= {expected}


def test_what_has_no_number_has_none_at_its_beginning(codec: ISessionCodec) -> None:
    numbered = codec.message(codec.prepare(1), "session", 5)
    for content in (1, numbered, numbered.decode("latin-1"), {"msgservice_session": "session"}):
        assert codec.numbering(codec.message(codec.prepare(content), None, None)) is None
    for item in CONTROLS:
        assert codec.numbering(codec.control(item)) is None


@given(st.binary(max_size=80), st.integers(0, 80), st.binary(max_size=4))
def test_of_any_bytes_a_number_is_one_or_there_is_none(
    tail: bytes, at: int, between: bytes
) -> None:
    for codec in (SafeCodec(), RecordsCodec()):
        payload = codec.message(codec.prepare(1), "session", 70_000)
        for head in (tail, payload[:at] + tail, payload[:at] + between + payload[at:]):
            numbering = codec.numbering(head)
            assert numbering is None or check_numbering(*numbering) == numbering


@pytest.mark.parametrize(("session", "number"), [("s", 1), ("s" * SESSION_MAX, NUMBER_MAX)])
def test_of_content_that_cannot_be_read_the_number_is_and_why(
    codec: ISessionCodec, session: str, number: int
) -> None:
    broken = b"\xff" + codec.prepare(SECRET)
    item = decoded(codec, codec.message(broken, session, number))
    assert (item.content, item.session, item.number) == (None, session, number)
    assert item.failure
    assert SECRET not in item.failure
    with pytest.raises(BadPayload):
        codec.decode(codec.message(broken, None, None))


def test_what_cannot_be_encoded_is_a_type_error(codec: ISessionCodec) -> None:
    with pytest.raises(TypeError, match="generator"):
        codec.prepare(item for item in [1])
