"""Control messages: every field, in every form, and values that no field can have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.faces.sessions.envelope import (
    FAILED_MAX,
    HOST_MAX,
    ID_MAX,
    NUMBER_MAX,
    REASON_MAX,
    SESSION_MAX,
    TEXT_MAX,
    Ack,
    Control,
    Heartbeat,
    Hello,
    Joined,
    Shutdown,
    Welcome,
    check_numbering,
    control_of,
    fields_of,
)
from msgservice.faces.sessions.errors import BadControl, BadPayload

SECRET = "hunter2secret"

CONTROLS: list[Control] = [
    Hello(45_001),
    Hello(1, "10.0.0.2"),
    Hello(65_535, "h" * HOST_MAX, "i" * ID_MAX, True, ("s" * SESSION_MAX, NUMBER_MAX), "n" * 64),
    Welcome("s"),
    Welcome("s", ("before", 0), "nonce"),
    Joined("s"),
    Heartbeat(0, 0.0),
    Heartbeat(NUMBER_MAX, 1.7e9),
    Ack("s", 0),
    Ack("s", 5, ((4, "ValueError: no"), (5, "r" * REASON_MAX))),
    Shutdown(),
    Shutdown("s", 1, "the end \u20ac\nof it"),
]


@pytest.mark.parametrize("item", CONTROLS, ids=repr)
def test_a_control_message_is_the_same_in_each_form(item: Control) -> None:
    fields = fields_of(item)
    assert control_of(fields) == item
    if len(str(fields)) < TEXT_MAX:
        assert control_of(json.dumps(fields)) == item
        assert control_of(str(fields)) == item
    assert control_of({**fields, "more": SECRET, "than": [1]}) == item


def test_what_is_none_is_left_out() -> None:
    assert fields_of(Hello(5)) == {"type": "hello", "port": 5}
    assert fields_of(Shutdown()) == {"type": "shutdown"}


@pytest.mark.parametrize(
    "content",
    [
        None,
        5,
        b"{'type': 'hello', 'port': 5}",
        "",
        "text",
        "{",
        "{}",
        "{} type",
        '{"type": "else"}',
        '{"type": ["hello"]}',
        '{"type"',
        "{" * 3_000 + '"type"',
        '{"type": ' + "[" * 2_000 + "]" * 2_000 + "}",
        "{'type': " + "-" * 4_000 + "1}",
        "{'type': " + "(" * 1_000 + "1" + ")" * 1_000 + "}",
        "{'type': __import__('os')}",
        "{'type': 'hello', []: 1}",
        "{\x00'type'}",
        "{'type': 'hello', 'port': 5, '\ud800': 1}",
        "{'type': 'hello', 'port': 5" + " " * TEXT_MAX + "}",
        " {'type': 'hello', 'port': 5}",
        "('type', 'hello')",
        [("type", "hello")],
        {"kind": "hello"},
        {"type": None},
        {"type": b"hello"},
        {"type": {"hello": 1}},
        {"type": "HELLO"},
        {1: 2},
    ],
    ids=lambda content: repr(content)[:30],
)
def test_anything_else_is_no_control_message(content: object) -> None:
    assert control_of(content) is None


HELLO = {"type": "hello", "port": 5_000}
ACK = {"type": "ack", "session": "s", "upto": 1}


def each(field: str, fields: dict[str, Any], *values: object) -> list[tuple[str, dict[str, Any]]]:
    """Return what lists hostile values of a field."""
    return [(field, {**fields, field: value}) for value in values]


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    *each("port", HELLO, 0, -1, 65_536, 2**70, 10**400, 1.5, "5000"),
    *each("port", HELLO, True, None, [5_000], float("nan"), b"1"),
    ("port", {"type": "hello"}),
    *each("host", HELLO, "h" * 256, 5, b"h", ["h"], {}, False),
    *each("host", HELLO, "a\nb", "a\x00", "a b", "\u2028", "\udc80"),
    *each("id", HELLO, "i" * 201, 5, 0, False, b"i", [], "a\ud800"),
    *each("id", HELLO, "a/b", "a\nb", "a b", "$a"),
    *each("acks", HELLO, 1, "true", None, b"", []),
    *each("nonce", HELLO, "n" * 65, 5, b"nonce", [SECRET], "\udc80"),
    *each(
        "previous",
        HELLO,
        "ab",
        5,
        {},
        {0: "s", 1: 2},
        [],
        ["s"],
        ["s", 1, 2],
        ["s", -1],
        ["s", NUMBER_MAX + 1],
        ["s", 10**400],
        ["s", True],
        ["s", 1.0],
        ["s", None],
        ["", 1],
        ["s" * 65, 1],
        [b"s", 1],
        [None, 1],
        [["s"], 1],
    ),
    ("session", {"type": "welcome"}),
    *each("session", {"type": "welcome"}, "", "s" * 65, 5, None, b"s"),
    ("previous", {"type": "welcome", "session": "s", "previous": [SECRET]}),
    ("nonce", {"type": "welcome", "session": "s", "nonce": 5}),
    ("session", {"type": "joined"}),
    ("session", {"type": "joined", "session": [SECRET]}),
    *each("seq", {"type": "heartbeat"}, -1, 2**60, 10**400, True, "1", None),
    *each(
        "time",
        {"type": "heartbeat", "seq": 1},
        float("nan"),
        float("inf"),
        -float("inf"),
        10**400,
        "1",
        None,
        True,
        [1.0],
    ),
    ("session", {"type": "ack", "upto": 1}),
    *each("upto", ACK, -1, 2**60, 10**400, 1.0, True, None, "1"),
    *each(
        "failed",
        ACK,
        5,
        None,
        "ab",
        {1: "r"},
        [1],
        ["ab"],
        [[1]],
        [[1, "r", 2]],
        [["1", "r"]],
        [[True, "r"]],
        [[0, "r"]],
        [[10**400, "r"]],
        [[1, ""]],
        [[1, "r" * 1_001]],
        [[1, b"r"]],
        [[1, "\udc80"]],
        [[1, [SECRET]]],
        [[1, "r"]] * (FAILED_MAX + 1),
    ),
    *each("session", {"type": "shutdown"}, "s" * 65, 5, False, [], b"s"),
    *each("number", {"type": "shutdown"}, 0, -1, 2**60, True, "1", 1.0, []),
    *each("reason", {"type": "shutdown"}, "r" * 1_001, 5, 0, b"r", {}, "\ud800"),
]


@pytest.mark.parametrize(("field", "fields"), HOSTILE)
def test_a_field_that_cannot_be_is_named_without_its_content(
    field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(BadControl) as caught:
        control_of({**fields, "other": SECRET})
    assert caught.value.field == field
    assert isinstance(caught.value, BadPayload | ValueError)
    told = str(caught.value)
    assert told.startswith(f"{field}: ")
    assert len(told) < 120
    assert SECRET not in told


def test_a_field_that_cannot_be_is_told_in_text_forms_too() -> None:
    for text in ('{"type": "heartbeat", "time": NaN}', '{"type": "hello", "port": 99999999999999}'):
        with pytest.raises(BadControl):
            control_of(text)
    with pytest.raises(BadControl):
        control_of("{'type': 'hello', 'port': '" + SECRET + "'}")


def test_empty_text_stands_for_nothing_where_nothing_may_be() -> None:
    assert control_of({**HELLO, "host": "", "id": "", "nonce": ""}) == Hello(5_000)
    assert control_of({"type": "shutdown", "session": "", "reason": ""}) == Shutdown()


def test_a_time_of_whole_seconds_is_a_float() -> None:
    found = control_of({"type": "heartbeat", "seq": 1, "time": 2})
    assert isinstance(found, Heartbeat)
    assert type(found.time) is float


@pytest.mark.parametrize(
    ("session", "number"),
    [
        (None, 1),
        ("s", None),
        ("", 1),
        ("s" * 65, 1),
        (b"s", 1),
        ("s", 0),
        ("s", -1),
        ("s", True),
        ("s", 1.0),
        ("s", 2**60),
        (SECRET, SECRET),
    ],
)
def test_a_message_has_a_session_and_a_number_that_can_be(session: object, number: object) -> None:
    with pytest.raises(BadControl) as caught:
        check_numbering(session, number)
    assert SECRET not in str(caught.value)
    assert check_numbering("s", NUMBER_MAX) == ("s", NUMBER_MAX)


_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
_values = st.recursive(_leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
_names = ["port", "host", "id", "acks", "previous", "nonce", "session", "seq", "time", "upto"]


@given(
    st.sampled_from(["hello", "welcome", "joined", "heartbeat", "ack", "shutdown"]),
    st.dictionaries(st.sampled_from([*_names, "failed", "number", "reason"]), _values, max_size=4),
)
def test_any_fields_are_a_control_message_or_bad_control(kind: str, fields: dict[str, Any]) -> None:
    for content in ({"type": kind, **fields}, str({"type": kind, **fields})):
        try:
            found = control_of(content)
        except BadControl:
            continue
        if found is not None:
            assert control_of(fields_of(found)) == found


@given(st.text())
def test_any_text_is_a_control_message_or_none(text: str) -> None:
    assert control_of("{" + text) is None
    assert control_of("{'type'" + text + "}") is None
