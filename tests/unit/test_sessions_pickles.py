"""The restricted unpickler: what it takes, every hostile pickle by name, and any bytes at all."""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import datetime as dt
import decimal
import io
import logging
import logging.handlers
import pickle
import pickletools
import random
import re
import struct
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.faces.sessions.content import restricted
from msgservice.faces.sessions.content.restricted import (
    DEPTH_MAX,
    TUPLES_MAX,
    loads,
    registered,
)
from msgservice.faces.sessions.content.safe import SafeCodec
from msgservice.faces.sessions.envelope import Message
from msgservice.faces.sessions.errors import BadPayload

SECRET = "hunter2secret"  # never in an error's text

# As the wire has them: a length prefix of four bytes, then the pickle.
QB_MINIMAL = "000000187d710058030000006d73677101580200000068697102732e"
QB_HELLO = (
    "000000a47d71002858040000006e616d657101580700000073657373696f6e710258070000006c6576656c6e6f"
    "71034b1458090000006c6576656c6e616d6571045804000000494e464f710558030000006d736771067d710728"
    "5804000000747970657108580500000068656c6c6f71095804000000686f7374710a580800000031302e302e30"
    "2e32710b5804000000706f7274710c4dc9af75580400000061726773710d4e752e"
)
QB_RECORD = (
    "000001c57d71002858040000006e616d657101580a00000068656c6c6f576f726c64710258030000006d736771"
    "0358060000006c6f6f70203171045804000000617267737105"
    "4e58090000006c6576656c6e616d6571065804000000494e464f710758070000006c6576656c6e6f71084b1458"
    "08000000706174686e616d6571095809000000636c69656e742e7079710a580800000066696c656e616d65710b"
    "680a58060000006d6f64756c65710c5806000000636c69656e74710d58080000006578635f696e666f710e4e58"
    "080000006578635f74657874710f4e580a000000737461636b5f696e666f71104e58060000006c696e656e6f71"
    "114b0a580800000066756e634e616d65711258040000006d61696e711358070000006372656174656471144741"
    "d954fc4000000058050000006d73656373711547000000000000000058"
    "0f00000072656c6174697665437265617465647116470000000000000000580600000074687265616471174b01"
    "580a0000007468726561644e616d657118580a0000004d61696e5468726561647119580b00000070726f636573"
    "734e616d65711a580b0000004d61696e50726f63657373711b580700000070726f63657373711c4b01752e"
)

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    255,
    65_535,
    2**31,
    -(2**63),
    2**64,
    1.5,
    float("inf"),
    "",
    "text",
    "\u00e9\u20ac\U0001f600\n",
    b"",
    b"bytes \x00\xff",
    bytearray(),
    bytearray(b"\x00\xffarray"),
    [],
    [1, [2, [3]]],
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, (4, "five")),
    {},
    {"a": {"b": [1, (2, 3)]}, 4: None, (5, 6): 7},
    set(),
    {1, 2, "three"},
    frozenset(),
    frozenset({1, frozenset({2}), (3, 4)}),
    dt.datetime(2026, 11, 28, 12, 13, 14, 151_617),  # noqa: DTZ001  # a kind of its own
    dt.datetime(2026, 11, 28, 12, 13, tzinfo=dt.UTC),
    dt.datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001
    dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2), "two")),
    dt.date(1999, 12, 31),
    dt.time(23, 59, 58),
    dt.time(1, 2, tzinfo=dt.UTC),
    dt.timedelta(days=-3, seconds=4, microseconds=5),
    dt.UTC,
    decimal.Decimal("-12.340"),
    decimal.Decimal("1E+400"),
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
    uuid.UUID(int=2**128 - 1),
]


@dataclasses.dataclass
class Point:
    """A class that a program registers."""

    x: int
    y: object


@dataclasses.dataclass(frozen=True)
class Key:
    """One that can be a key."""

    x: object


class Bag:
    """One with methods by the names of a list's, and state of its own."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def __setstate__(self, state: Any) -> None:
        raise LookupError(SECRET)


def refused(payload: bytes, classes: Any = None) -> str:
    """Return why a payload is refused; nothing of what was in it is told."""
    with pytest.raises(BadPayload) as caught:
        loads(payload, classes)
    reason = str(caught.value)
    assert SECRET not in reason
    assert len(reason) < 120
    return reason


# --- what is taken


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_every_kind_comes_through_by_every_protocol(value: object, protocol: int) -> None:
    if isinstance(value, uuid.UUID) and protocol >= 2:
        refused(pickle.dumps(value, protocol))  # NEWOBJ; our own ends write protocol 1
        return
    for payload in (pickle.dumps(value, protocol), pickle._dumps(value, protocol)):  # type: ignore[attr-defined]  # in C, and in Python
        found = loads(payload)
        assert found == value
        assert type(found) is type(value)
        assert found == loads(pickletools.optimize(payload))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_all_kinds_in_one_value_come_through(protocol: int) -> None:
    values = [value for value in VALUES if not isinstance(value, uuid.UUID)]
    both = {"first": values, "again": values, "text": ["text"] * 300}
    assert loads(pickle.dumps(both, protocol)) == both


def test_the_vectors_of_the_wire() -> None:
    minimal, hello, record = (bytes.fromhex(text) for text in (QB_MINIMAL, QB_HELLO, QB_RECORD))
    for frame in (minimal, hello, record):
        assert struct.unpack(">L", frame[:4])[0] == len(frame) - 4
    assert loads(minimal[4:]) == {"msg": "hi"}
    message = {"type": "hello", "host": "10.0.0.2", "port": 45001}
    assert loads(hello[4:])["msg"] == message
    assert loads(record[4:])["msg"] == "loop 1"
    assert loads(record[4:])["process"] == 1


def test_what_python_2_wrote() -> None:
    """By hand: text of bytes (STRING, SHORT_BINSTRING, BINSTRING), LONG, INT for booleans."""
    assert loads(b"(dp1\nS'msg'\np2\nS'it\\'s \\xc3\\xa9'\np3\nsS'n'\nI01\ns.") == {
        "msg": "it's \u00e9",
        "n": True,
    }
    assert loads(b"}q\x01(U\x03msgq\x02T\x02\x00\x00\x00hiq\x03U\x01nI00\nu.") == {
        "msg": "hi",
        "n": False,
    }
    assert loads(b"\x80\x02}q\x01(U\x01aq\x02X\x02\x00\x00\x00hiq\x03U\x01b\x8a\x02\xff\x00u.") == {
        "a": "hi",
        "b": 255,
    }
    assert loads(b"(lp1\nL123456789012L\naVu\\u20ac\np2\naF1.5\na(I1\nI2\ntp3\na.") == [
        123_456_789_012,
        "u\u20ac",
        1.5,
        (1, 2),
    ]
    assert loads(b"c__builtin__\nset\nq\x01(]q\x02(K\x01K\x02etq\x03Rq\x04.") == {1, 2}


def test_dates_of_python_2_have_their_bytes_in_text() -> None:
    moment = dt.datetime(2026, 11, 28, 12, 13, 14, 151_617)  # noqa: DTZ001
    state = moment.__reduce__()[1][0]
    assert isinstance(state, bytes)
    payload = b"cdatetime\ndatetime\nq\x01(U\x0a" + state + b"q\x02tq\x03Rq\x04."
    assert loads(payload) == moment
    day = b"cdatetime\ndate\n(U\x04\x07\xea\x0b\x1ctR."
    assert loads(day) == dt.date(2026, 11, 28)


def test_text_of_python_2_that_is_no_utf_8_can_be_had_back() -> None:
    text = loads(b"U\x03a\xff\xfe.")
    assert text.encode("utf-8", "surrogateescape") == b"a\xff\xfe"


def test_what_socket_handler_writes() -> None:
    handler = logging.handlers.SocketHandler("127.0.0.1", 1)
    record = logging.makeLogRecord(
        {"name": "a.b", "msg": "loop %d", "args": (1,), "levelno": 20, "taskName": "Task-1"}
    )
    found = loads(handler.makePickle(record)[4:])
    assert (found["msg"], found["args"], found["taskName"]) == ("loop 1", None, "Task-1")


@pytest.mark.parametrize("protocol", [0, 1])
def test_instances_of_registered_classes(protocol: int) -> None:
    classes = {**registered(Point), **registered(Key)}
    value = {"points": [Point(1, [2]), Point(3, Point(4, None))], Key("k"): 5}
    # A key is hashed before its state is there: a dataclass cannot, as for `pickle` itself.
    points = {"points": value["points"]}
    assert loads(pickle.dumps(points, protocol), classes) == points
    keys = {Key("k"): 5}
    assert loads(pickle.dumps(keys, protocol), classes) == keys


def test_shared_values_stay_shared() -> None:
    shared = [1]
    found = loads(pickle.dumps([shared, shared], 1))
    assert found[0] is found[1]


def test_many_pairs_with_shared_values_come_through() -> None:
    pair = ("a", "b")
    value = {"pairs": [pair] * 5_000, "keys": {(n, pair): pair for n in range(5_000)}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert loads(pickle.dumps(value, protocol)) == value


# --- what is refused, by name


def _opcodes_by_hand() -> dict[str, tuple[bytes, str]]:
    call = b"cos\nsystem\n(S'" + SECRET.encode() + b"'\ntR."
    return {
        "reduce": (call, "not registered"),
        "reduce-of-eval": (b"c__builtin__\neval\n(S'1'\ntR.", "not registered"),
        "reduce-of-text": (b"U\x01a)R.", "TypeError"),
        "global": (b"cos\nsystem\n.", "not registered"),
        "global-of-a-known-module": (b"cdecimal\ngetcontext\n.", "not registered"),
        "global-with-dots": (b"cbuiltins\nset.__class__\n.", "not registered"),
        "global-with-no-text": (b"c\xff\xff\n\xfe\n.", "UnicodeDecodeError"),
        "global-left-over": (b"cbuiltins\nset\n.", "class or function"),
        "global-inside": (b"](cbuiltins\nset\nK\x01te0.", ""),
        "object-left-over": (b"cbuiltins\nobject\n\x85.", "class or function"),
        "build": (b"cbuiltins\nset\n}b.", "BUILD"),
        "build-of-slots": (b"cbuiltins\nset\n(N}U\x09_functionK\x01stb.", "BUILD"),
        "build-of-object": (b"cbuiltins\nobject\n(N}U\x09_functionK\x01stb.", "BUILD"),
        "build-of-a-list": (b"]}U\x01aK\x01sb.", "AttributeError"),
        "build-of-a-date": (b"cdatetime\ndate\n(K\x01K\x01K\x01tR}U\x01aK\x01sb.", ""),
        "inst": (b"(ios\nsystem\n.", "INST"),
        "obj": (b"(cos\nsystem\no.", "OBJ"),
        "obj-of-known": (b"(cbuiltins\nset\no.", "OBJ"),
        "newobj": (b"\x80\x02cbuiltins\nset\n)\x81.", "NEWOBJ"),
        "newobj-ex": (b"\x80\x04cbuiltins\nset\n)}\x92.", "NEWOBJ"),
        "ext1": (b"\x80\x02\x82\xf0.", "EXT1"),
        "ext2": (b"\x80\x02\x83\xf0\x00.", "EXT1"),
        "ext4": (b"\x80\x02\x84\xf0\x00\x00\x00.", "EXT1"),
        "persistent-id": (b"Psecret\n.", "persistent id"),
        "persistent-id-of-the-stack": (b"U\x01aQ.", "persistent id"),
        "memo-bomb": (b"Nr\xff\xff\xff\x7f.", "memo"),
        "memo-bomb-unsigned": (b"Nr\xff\xff\xff\xff.", "memo"),
        "memo-bomb-as-text": (b"Np2147483647\n.", "memo"),
        "memo-bomb-of-many-digits": (b"Np" + b"9" * 5_000 + b"\n.", "memo"),
        "memo-index-below-zero": (b"Np-5\n.", "memo"),
        "memo-without-a-value": (b"q\x00.", ""),
        "memo-never-put": (b"h\x05.", ""),
        "memo-never-put-as-text": (b"gabc\n.", ""),
        "long-string": (b"X\xff\xff\xff\xffabc.", "too early"),
        "long-string-8": (b"\x80\x04\x8d" + b"\xff" * 8 + b"abc.", "longer than the pickle"),
        "long-bytes": (b"\x80\x03B\xff\xff\xff\x7fabc.", "too early"),
        "long-bytes-8": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.", "longer than the pickle"),
        "long-bytearray": (b"\x80\x05\x96" + b"\x00" * 5 + b"\x7f\x00\x00.", "longer than"),
        "long-string-below-zero": (b"T\xff\xff\xff\xffabc.", "too early"),
        "stack-global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "not registered"),
        "stack-global-of-numbers": (b"\x80\x04K\x01K\x02\x93.", "UnpicklingError"),
        "stack-global-of-nothing": (b"\x80\x04\x93.", ""),
        "huge-integer": (b"\x8a\xff" + b"\x7f" * 255 + b".", "128 bits"),
        "huge-integer-4": (b"\x8b\xff\xff\xff\x7f.", "128 bits"),
        "huge-integer-below-zero": (b"\x8b\xff\xff\xff\xff.", "128 bits"),
        "huge-integer-as-text": (b"L" + b"9" * 100_000 + b"L\n.", "128 bits"),
        "huge-integer-as-short-text": (b"I" + b"9" * 100_000 + b"\n.", "128 bits"),
        "buffer": (b"\x80\x05\x97.", "out of band"),
        "buffer-read-only": (b"\x80\x05N\x98.", "out of band"),
        "protocol-6": (b"\x80\x06N.", "ValueError"),
        "frame-too-long": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.", "UnpicklingError"),
        "unknown-opcode": (b"\xff.", "opcode 0xff"),
        "nothing": (b"", "too early"),
        "no-end": (b"N", "too early"),
        "no-value": (b".", "UnpicklingError"),
        "more-behind": (b"N.N.", "behind"),
        "mark-left": (b"(.", "UnpicklingError"),
        "reconstructor-of-nothing": (b"ccopy_reg\n_reconstructor\n)R.", "TypeError"),
        "reconstructor-of-a-callable": (
            b"ccopy_reg\n_reconstructor\n(cbuiltins\nset\ncbuiltins\nobject\nNtR.",
            "not registered",
        ),
        "reconstructor-of-object": (
            b"ccopy_reg\n_reconstructor\n(cbuiltins\nobject\ncbuiltins\nobject\nNtR.",
            "not registered",
        ),
        "uuid-called": (b"cuuid\nUUID\n(U\x01atR.", "REDUCE"),
        "uuid-without-state": (
            b"ccopy_reg\n_reconstructor\n(cuuid\nUUID\nc__builtin__\nobject\nNtR.",
            "AttributeError",
        ),
        "uuid-of-text": (
            b"ccopy_reg\n_reconstructor\n(cuuid\nUUID\nc__builtin__\nobject\nNtR}U\x03intU\x01asb.",
            "UUID of something else",
        ),
        "bytearray-of-a-size": (b"cbuiltins\nbytearray\n(L10000000000L\ntR.", "bytes of"),
        "bytes-of-a-size": (b"cbuiltins\nbytes\n(L10000000000L\ntR.", "bytes of"),
        "bytes-of-an-encoding": (b"c_codecs\nencode\n(U\x01aU\x03zlbtR.", "bytes of"),
        "bytes-of-a-range": (b"cbuiltins\nbytes\n(](M\xff\xffetR.", "ValueError"),
        "set-of-text": (b"cbuiltins\nset\n(U\x03abctR.", "a set of something else"),
        "set-of-lists": (b"cbuiltins\nset\n(](]etR.", "TypeError"),
        "decimal-of-much": (b"cdecimal\nDecimal\n(X\xe8\x03\x00\x00" + b"9" * 1000 + b"tR.", "dec"),
        "decimal-of-a-tuple": (b"cdecimal\nDecimal\n((K\x00)K\x01ttR.", "decimal"),
        "decimal-of-words": (b"cdecimal\nDecimal\n(U\x05wordstR.", "InvalidOperation"),
        "datetime-of-bytes": (
            b"cdatetime\ndatetime\n(C\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfftR.",
            "",
        ),
        "datetime-of-nothing": (b"cdatetime\ndatetime\n)R.", "TypeError"),
        "datetime-of-a-list": (b"cdatetime\ndatetime\n(]K\x01K\x01tR.", "TypeError"),
        "datetime-of-a-zone": (
            b"cdatetime\ndatetime\n(C\x0a\x07\xe0\x01\x01\0\0\0\0\0\0K\x05tR.",
            "",
        ),
        "datetime-out-of-range": (b"cdatetime\ndatetime\n(J\xff\xff\xff\x7fK\x01K\x01tR.", ""),
        "timedelta-huge": (b"cdatetime\ntimedelta\n(L9999999999999999999L\ntR.", "OverflowError"),
        "timedelta-nan": (b"cdatetime\ntimedelta\n(Fnan\ntR.", "ValueError"),
        "timezone-huge": (b"cdatetime\ntimezone\n(cdatetime\ntimedelta\n(K\x63tRtR.", "ValueError"),
        "contains-itself": (b"]q\x00h\x00a.", "contains itself"),
    }


@pytest.mark.parametrize("name", _opcodes_by_hand())
def test_hostile_pickle_is_refused(name: str) -> None:
    payload, part = _opcodes_by_hand()[name]
    assert part in refused(payload)
    classes = {**registered(Point), **registered(Bag)}
    assert part in refused(payload, classes)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_an_extension_is_refused_though_it_was_looked_up_before(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """The C unpickler takes what is in the cache of `copyreg` without asking `find_class`."""
    monkeypatch.setitem(copyreg._extension_cache, 240, print)  # type: ignore[attr-defined]  # private
    opcode = {1: b"\x82", 2: b"\x83", 4: b"\x84"}[width]
    payload = b"\x80\x02" + opcode + (240).to_bytes(width, "little") + b"."
    found = io.BytesIO(payload)
    assert pickle.Unpickler(found).load() is print
    assert "extension" in refused(payload)


def test_what_a_pickle_may_name_cannot_be_changed_by_one() -> None:
    for module, name in (("builtins", "set"), ("decimal", "Decimal"), ("uuid", "UUID")):
        for slot in ("_function", "cls"):
            named = f"c{module}\n{name}\n".encode()
            refused(named + b"(N}U" + bytes([len(slot)]) + slot.encode() + b"K\x01stb.")
    assert loads(pickle.dumps({1}, 1)) == {1}
    assert loads(pickle.dumps(VALUES, 1)) == VALUES


def test_instances_are_made_in_no_other_way() -> None:
    point = f"c{__name__}\nPoint\n".encode()
    classes = registered(Point)
    base = b"c__builtin__\nobject\n"
    make = b"ccopy_reg\n_reconstructor\n("
    assert "REDUCE" in refused(point + b"(K\x01K\x02tR.", classes)
    assert "NEWOBJ" in refused(b"\x80\x02" + point + b")\x81.", classes)
    assert "INST" in refused(b"(i" + point[1:] + b".", classes)
    assert "class or function" in refused(point + b".", classes)
    assert "class or function" in refused(point + b"\x85\x85.", classes)
    assert "not registered" in refused(make + point + b"c__builtin__\nset\nNtR.", classes)
    assert "not registered" in refused(make + point + base + b"K\x01tR.", classes)
    assert "not registered" in refused(make + point + point + b"NtR.", classes)
    assert "TypeError" in refused(make + point + base + b"NNtR.", classes)
    assert "BUILD" in refused(point + b"}U\x03clsK\x01sb.", classes)
    made = make + point + base + b"NtR"
    assert "TypeError" in refused(made + b"(N}U\x09__class__K\x01stb.", classes)
    assert "class or function" in refused(made + b"}U\x01x" + point + b"sb.", classes)
    assert type(loads(made + b".", classes)) is Point


def test_a_class_that_fails_to_take_its_state_tells_only_how() -> None:
    payload = pickle.dumps([Point(1, 2)], 1).replace(b"Point", b"Bag")
    assert "LookupError" in refused(payload, registered(Bag))


def _nested(open_: bytes, close: bytes, depth: int) -> bytes:
    return open_ * depth + b"N" + close * depth + b"."


NESTINGS: dict[str, Callable[[int], bytes]] = {
    "lists": lambda depth: b"]" * depth + b"a" * (depth - 1) + b".",
    "dicts": lambda depth: b"}U\x01k" * (depth - 1) + b"}" + b"s" * (depth - 1) + b".",
    "tuples": lambda depth: b")" + b"\x85" * (depth - 1) + b".",
    "tuples-of-a-mark": lambda depth: b"(" * depth + b"t" * depth + b".",
    "lists-of-a-mark": lambda depth: b"(" * depth + b"l" * depth + b".",
    "frozensets": lambda depth: b"(" * depth + b"\x91" * depth + b".",
    "tuples-and-lists": lambda depth: (
        b"(" * depth + b"tl" * (depth // 2) + b"t" * (depth % 2) + b"."
    ),
}


@pytest.mark.parametrize("name", NESTINGS)
@pytest.mark.parametrize("depth", [DEPTH_MAX + 2, 1_000, 200_000])
def test_deep_nesting_is_refused(name: str, depth: int) -> None:
    reason = refused(NESTINGS[name](depth))
    assert "nested more than" in reason or (name == "frozensets" and "too often" in reason)


@pytest.mark.parametrize("name", NESTINGS)
def test_nesting_as_deep_as_the_limit_is_taken(name: str) -> None:
    loads(NESTINGS[name](DEPTH_MAX))


def test_nesting_is_told_though_all_is_near_the_top_too() -> None:
    """A list of all the lists, each of which contains the one before."""
    steps = b"".join(b"]q\x01h\x00aq\x00" for _ in range(DEPTH_MAX + 2))
    assert "nested more than" in refused(b"(]q\x00" + steps + b"l.")


def test_nesting_through_instances_is_told() -> None:
    value: object = None
    for _ in range(DEPTH_MAX + 2):
        value = Point(1, value)
    assert "nested more than" in refused(pickle.dumps(value, 1), registered(Point))


@pytest.mark.parametrize("depth", [TUPLES_MAX + 1, 300_000])
@pytest.mark.parametrize("use", [b"}", b"\x8f", b"["])
def test_deep_tuples_as_keys_and_members_are_refused_before_they_are_hashed(
    depth: int, use: bytes
) -> None:
    tuples = b")" + b"\x85" * depth
    payload = {
        b"}": b"}" + tuples + b"Ns.",
        b"\x8f": b"\x8f(" + tuples + b"\x90.",
        b"[": b"cbuiltins\nset\n(](" + tuples + b"etR.",
    }[use]
    assert "nested more than" in refused(payload)


def test_deep_tuples_are_told_through_the_memo_and_past_marks_that_are_dropped() -> None:
    count = TUPLES_MAX + 10
    by_memo = b")q\x00" + b"0h\x00\x85q\x00" * count
    assert "nested more than" in refused(b"}" + by_memo + b"Ns.")
    by_long_memo = b")p0\n" + b"0g0\n\x85p0\n" * count
    assert "nested more than" in refused(b"}" + by_long_memo + b"Ns.")
    past_marks = b")" + b"(0\x85" * count
    assert "nested more than" in refused(b"}" + past_marks + b"Ns.")
    past_lists = b")" + b"(N1\x85" * count
    assert "nested more than" in refused(b"}" + past_lists + b"Ns.")
    by_dup = b")" + b"2\x86" * count
    assert "nested more than" in refused(b"}" + by_dup + b"Ns.")


def test_opcodes_without_values_are_refused_where_tuples_are_followed() -> None:
    tuples = b")\x85" * (TUPLES_MAX + 1)
    for rest in (b"a" * 5_000, b"s" * 5_000, b"t", b"e", b"\x91", b"0" * 5_000 + b"q\x00", b"1"):
        refused(tuples + rest + b".")
    refused(b"gabc\n" + tuples + b".")


SHARING: dict[str, bytes] = {
    "a key": b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "a key by DUP": b"}" + b")" + b"2\x86" * 60 + b"Ns.",
    "keys": b"}(" + b")" + b"q\x00h\x00\x86" * 60 + b"Nu.",
    "a few wide ones": b"}" + b"N" + (b"q\x000(" + b"h\x00" * 2_000 + b"t") * 5 + b"Ns.",
    "a key of a dict of a mark": b"(" + b")" + b"q\x00h\x00\x86" * 60 + b"Nd.",
    "a member": b"\x8f(" + b")" + b"q\x00h\x00\x86" * 60 + b"\x90.",
    "a frozenset": b"(" + b")" + b"q\x00h\x00\x86" * 60 + b"\x91.",
    "a set of a list": b"cbuiltins\nset\n(](" + b")" + b"q\x00h\x00\x86" * 60 + b"etR.",
    "one key many times": (
        b")" + b"q\x00h\x00\x86" * 15 + b"q\x010" + b"}(" + b"h\x01N" * 2_000 + b"u."
    ),
}


@pytest.mark.parametrize("name", SHARING)
def test_keys_that_share_exponentially_are_refused_before_they_are_hashed(name: str) -> None:
    """Sixty tuples, each of the one before twice: a tuple does not remember its hash."""
    assert "share their values too often" in refused(SHARING[name])


RECONSTRUCT = b"ccopyreg\n_reconstructor\n(c%b\ncbuiltins\nobject\nNtR"
DOUBLED = b"N\x85" + b"2\x86" * 12  # a tuple of one value, 4,096 times
GROWS_LATER = {
    "a list in the arguments of a set": b"\x80\x02cbuiltins\nset\n]q\x01\x85h\x01%ba0R.",
    "a list in a list in those": b"\x80\x02cbuiltins\nset\n]q\x01]h\x01a\x85h\x01%ba0R.",
    "a UUID in a tuple": b"\x80\x02}"
    + RECONSTRUCT % b"uuid\nUUID"
    + b"q\x01\x85h\x01}U\x03int%bsb0Ns.",
    "a list met again by DUP": b"\x80\x02cbuiltins\nset\n]2\x85q\x010%bah\x01R.",
}


@pytest.mark.parametrize("name", GROWS_LATER)
def test_what_grows_in_something_else_already_is_refused_before_it_is_hashed(name: str) -> None:
    with pytest.raises(BadPayload, match="in something else already"):
        loads(GROWS_LATER[name] % (b"N\x85" + b"2\x86" * 24))


def numbers_in(number: int) -> bytes:
    """Return an integer of 128 bits whose hash is 0."""
    return b"\x8a\x10" + (number * (2**61 - 1)).to_bytes(16, "little", signed=True)


@pytest.mark.parametrize("kind", ["mapping", "set", "frozenset", "set by class", "one by one"])
def test_numbers_that_collide_are_refused_before_they_are_compared(kind: str) -> None:
    count = restricted.NUMBERS_MAX + 1
    numbers = [numbers_in(number) for number in range(1, count + 1)]
    pieces = {
        "mapping": [b"\x80\x02}(", *[number + b"N" for number in numbers], b"u."],
        "set": [b"\x80\x04\x8f(", *numbers, b"\x90."],
        "frozenset": [b"\x80\x04(", *numbers, b"\x91."],
        "set by class": [b"\x80\x02cbuiltins\nset\n](", *numbers, b"e\x85R."],
        "one by one": [b"\x80\x02}", *[number + b"Ns" for number in numbers], b"."],
    }
    with pytest.raises(BadPayload, match="numbers as keys or members"):
        loads(b"".join(pieces[kind]))


def test_numbers_in_many_mappings_and_in_tuples_as_keys_are_counted_too() -> None:
    pair = b"".join([b"K\x01", numbers_in(1), b"\x86N"])
    with pytest.raises(BadPayload, match="numbers as keys or members"):
        loads(b"\x80\x02}(" + pair * 3_000 + b"u.")
    mapping = b"}(" + b"K\x01N" * 1_000 + b"u"
    assert loads(b"\x80\x02](" + mapping * 20 + b"e.") == [{1: None}] * 20
    with pytest.raises(BadPayload, match="numbers as keys or members"):
        loads(b"\x80\x02](" + mapping * 30 + b"e.")


@pytest.mark.parametrize("within", [b"%s%s\x86", b"(%s%s\x86\x91", b"(%s\x85%s\x86t"])
def test_long_texts_beside_numbers_in_keys_count_as_more_of_them(within: bytes) -> None:
    """Keys that collide are compared up to where they differ."""
    text = b"X" + (2_000).to_bytes(4, "little") + b"x" * 2_000
    keys = [within % (text, numbers_in(number)) for number in range(1, restricted.TUPLES_MAX + 2)]
    with pytest.raises(BadPayload, match="numbers as keys or members"):
        loads(b"\x80\x04}(" + b"N".join([*keys, b""]) + b"u.")
    few = loads(b"\x80\x04}(" + b"N".join([*keys[:10], b""]) + b"u.")
    assert len(few) == 10


@pytest.mark.parametrize("protocol", range(6))
def test_many_numbers_that_are_no_keys_and_many_texts_that_are_come_through(protocol: int) -> None:
    value = {
        "list": list(range(20_000)),
        "rows": [{"id": n, "pair": (n, 1.5)} for n in range(3_000)],
        "texts": {f"{n}": n for n in range(20_000)},
        "pairs": {("a", f"{n}", "x" * 100): n for n in range(8_000)},
        "set": {f"{n}" for n in range(6_000)},
        "numbers": {n: n for n in range(4_000)},
    }
    assert loads(pickle.dumps(value, protocol)) == value


def test_two_families_of_frozensets_are_not_compared() -> None:
    """Each remembers its hash, but to compare two that are equal takes exponential time."""

    def family(index: int) -> bytes:
        put, get = b"q" + bytes([index]), b"h" + bytes([index])
        step = b"0((" + get + b"K\x01t(" + get + b"K\x02t\x91" + put
        return b"(\x91" + put + step * 60

    assert re.search("share|numbers", refused(b"}" + family(0) + b"N" + b"s" + family(1) + b"Ns."))


@pytest.mark.parametrize("opcode", [b"T", b"X", b"B"])
def test_text_that_is_shared_is_refused_or_who_prints_it_would_never_end(opcode: bytes) -> None:
    """Each reference takes two bytes, and may be to all the text that a payload has room for."""
    text = opcode + (200_000).to_bytes(4, "little") + b"x" * 200_000 + b"q\x00"
    keys = b"".join(pickle.dumps(n, 1)[:-1] + b"h\x00" for n in range(3_000))
    for pickled in (
        b"](" + text + b"h\x00" * 3_000 + b"e.",
        b"(" + text + b"h\x00" * 3_000 + b"t.",
        b"](" + text + b"2" * 3_000 + b"e.",
        b"}(N" + text + keys + b"u.",  # and nothing is in something else
        b"](" + b"](" + text + b"h\x00" * 60 + b"eq\x01" + b"h\x01" * 60 + b"e.",
    ):
        assert "shares its values too often" in refused(pickled)


def test_text_that_is_shared_as_programs_do_is_taken() -> None:
    text, host = "x" * 1_000_000, "a" * 100
    for value in (
        {"name": text, "msg": text, "again": [text, text, {text: text}]},
        [{"host": host, "state": "down", "n": n} for n in range(20_000)],
        dict.fromkeys(map(str, range(20_000)), host),
        [text] + ["x" * 1_000 + str(n) for n in range(1_000)],
    ):
        assert loads(pickle.dumps(value, 1)) == value


def test_values_that_share_exponentially_are_refused_or_who_prints_them_would_never_end() -> None:
    for pickled in (
        b")" + b"q\x00h\x00\x86" * 60 + b".",
        b"]" + b"q\x00](h\x00h\x00e" * 60 + b".",
        b"("
        + b"N" * 1_000
        + b"l"
        + b"q\x00]("
        + b"h\x00" * 1_000
        + b"eq\x01]("
        + b"h\x01" * 1_000
        + b"e.",
    ):
        assert "shares its values too often" in refused(pickled)
    found = loads(b")" + b"q\x00h\x00\x86" * 15 + b".")
    for _ in range(15):
        assert found[0] is found[1]
        found = found[0]
    rows = [{"a": [1] * 10}] * 100_000
    assert loads(pickle.dumps(rows, 1)) == rows


class Slots:
    __slots__ = ("a", "b")


class Row(list):  # type: ignore[type-arg]  # of whatever comes
    pass


class Table(dict):  # type: ignore[type-arg]  # the same
    pass


class Callback:
    def __call__(self, *arguments: object) -> None:
        raise AssertionError("a pickle has called it")


class Later(Callback):
    pass


def instance(cls: type) -> bytes:
    """Return an instance as pickles of protocols 0 and 1 have it, before its state."""
    name = f"c{cls.__module__}\n{cls.__qualname__}\n".encode()
    return b"ccopy_reg\n_reconstructor\n(" + name + b"c__builtin__\nobject\nNtR"


INSIDE = {
    "a slot": instance(Slots) + b"(N}X\x01\0\0\0a%sstb.",
    "a list": instance(Row) + b"(%se.",
    "a mapping": instance(Table) + b"(X\x01\0\0\0a%su.",
}


@pytest.mark.parametrize("where", INSIDE)
def test_instances_of_registered_classes_are_looked_into_whatever_they_are(where: str) -> None:
    classes = {**registered(Slots), **registered(Row), **registered(Table)}
    deep = b"(" * 101 + b"t" * 101
    assert "nested more than" in refused(INSIDE[where] % deep, classes)
    assert "class or function" in refused(INSIDE[where] % b"c__builtin__\nset\n", classes)
    found = loads(INSIDE[where] % b"(K\x05t", classes)
    assert {"a slot": lambda: found.a, "a list": lambda: found[0], "a mapping": lambda: found["a"]}[
        where
    ]() == (5,)


def test_what_contains_itself_is_refused_within_a_registered_list_too() -> None:
    assert "contains itself" in refused(instance(Row) + b"q\0(h\0e.", registered(Row))


@pytest.mark.parametrize("cls", [Callback, Later])
def test_a_class_whose_instances_can_be_called_is_not_registered(cls: type) -> None:
    with pytest.raises(TypeError, match="can be called"):
        registered(cls)


class Leaves:
    def __setstate__(self, state: object) -> None:
        raise SystemExit

    def __hash__(self) -> int:
        raise SystemExit


def test_a_registered_class_that_wants_to_end_the_process_makes_its_message_unreadable() -> None:
    assert "SystemExit" in refused(instance(Leaves) + b"}b.", registered(Leaves))
    assert "SystemExit" in refused(b"}" + instance(Leaves) + b"Ns.", registered(Leaves))
    codec = SafeCodec()
    codec.register(Leaves, "leaves", lambda _: None, lambda _: Leaves())
    pack = msgspec.msgpack.encode
    body = b"\x81" + pack(msgspec.msgpack.Ext(1, pack(("leaves", b"\xc0")))) + b"\xc0"
    item = codec.decode(codec.message(body, "s", 3))
    assert isinstance(item, Message)
    assert item.number == 3
    assert item.failure == "no msgpack: SystemExit"


def test_a_hostile_pickle_sets_aside_no_memory() -> None:
    bombs = [_opcodes_by_hand()[name][0] for name in _opcodes_by_hand() if "bomb" in name]
    bombs += [_opcodes_by_hand()[name][0] for name in _opcodes_by_hand() if "long" in name]
    bombs += [_opcodes_by_hand()[name][0] for name in _opcodes_by_hand() if "size" in name]
    filler = b"N0" * 10_000  # and an index that as many bytes might seem to allow
    bombs.append(filler + b"Nr" + struct.pack("<I", len(filler)) + b".")
    tracemalloc.start()
    try:
        for bomb in bombs:
            refused(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# --- any bytes

_SEEDS = [
    *(pickle.dumps(VALUES[:-2], protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
    *(pickle.dumps({"points": [Point(1, (2, Key(3)))]}, protocol) for protocol in (0, 1)),
    *(payload for payload, _ in _opcodes_by_hand().values() if 0 < len(payload) < 200),
    bytes.fromhex(QB_RECORD)[4:],
]
_CLASSES = {**registered(Point), **registered(Key), **registered(Bag)}
_OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def takes_or_refuses(payload: bytes) -> None:
    """A value, or `BadPayload`; hypothesis and pytest see any other exception."""
    with contextlib.suppress(BadPayload):
        loads(payload, _CLASSES)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_bad_payload(payload: bytes) -> None:
    takes_or_refuses(payload)
    takes_or_refuses(payload + b".")


@given(st.lists(st.sampled_from([*_OPCODES, b"\x00", b"\x01", b"\n", b"1\n", b"N", b"("])))
def test_any_opcodes_give_a_value_or_bad_payload(opcodes: list[bytes]) -> None:
    takes_or_refuses(b"".join(opcodes) + b".")


@pytest.mark.parametrize("seed", range(len(_SEEDS)))
def test_a_changed_pickle_gives_a_value_or_bad_payload(seed: int) -> None:
    draw = random.Random(seed)
    tracemalloc.start()
    try:
        for _ in range(150):
            payload = bytearray(_SEEDS[seed])
            for _ in range(draw.randint(1, 5)):
                at = draw.randrange(len(payload) + 1)
                match draw.randrange(4):
                    case 0:
                        payload[at : at + 1] = bytes([draw.randrange(256)])
                    case 1:
                        payload[at:at] = draw.choice(_OPCODES)
                    case 2:
                        del payload[at : at + draw.randint(1, 8)]
                    case _:
                        part = draw.choice(_SEEDS)
                        begin = draw.randrange(len(part))
                        payload[at:at] = part[begin : begin + 20]
            takes_or_refuses(bytes(payload))
            if not payload:
                break
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def _tuples_of(value: Any) -> int:
    """Return how deep tuples are in a value; containers between begin anew."""
    inside = [_tuples_of(item) for item in _items_of(value)]
    return _depth_of(value) if not inside else max(_depth_of(value), *inside)


def _depth_of(value: Any) -> int:
    return 1 + max(map(_depth_of, value), default=0) if type(value) is tuple else 0


def _items_of(value: Any) -> list[Any]:
    if type(value) is dict:
        return [*value, *value.values()]
    return list(value) if type(value) in (list, tuple, set, frozenset) else []


def test_the_stack_is_followed_as_the_unpickler_works_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For programs at random: what loads is not refused, unless tuples are too deep in it."""
    monkeypatch.setattr(restricted, "DEPTH_MAX", 1)
    opcodes = [b"(", b"t", b"l", b"d", b"e", b"u", b"a", b"s", b"0", b"1", b"2", b"]", b"}", b")"]
    opcodes += [b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"\x94", b"N", b"K\x01"]
    opcodes += [b"q\x00", b"h\x00", b"p0\n", b"g0\n", b"r\x01\0\0\0", b"j\x01\0\0\0", b"U\x01a"]
    opcodes += [b"\x85", b"\x85", b"(", b"t", b")", b"N", b"0", b"X\x01\0\0\0aq\x01"]
    draw = random.Random(5)
    taken = deep = 0
    while taken < 2_000 or deep < 50:
        program = b"".join(draw.choice(opcodes) for _ in range(draw.randint(2, 18)))
        payload = b"]" * draw.randrange(3) + b"))q\x00" + program + b"."
        try:
            value = pickle.loads(payload)
            depth = _tuples_of(value)
        except Exception:  # it does not load, or contains itself
            continue
        taken += 1
        try:
            restricted._check_keys(payload)
        except BadPayload as error:
            # It is refused for that, or since it grows when it is in something else already.
            assert re.search("nested more than|already", str(error))  # noqa: PT017
        else:
            assert depth <= 1 + 1  # the empty tuple is none to follow
        deep += depth > 2
