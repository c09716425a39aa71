"""The codecs of sessions: what content each takes, and what it makes of hostile payloads."""

from __future__ import annotations

import builtins
import dataclasses
import datetime as dt
import decimal
import logging
import logging.handlers
import marshal
import pickle
import random
import struct
import threading
import traceback
import tracemalloc
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.faces.sessions.content import safe
from msgservice.faces.sessions.content.objects import ObjectsCodec
from msgservice.faces.sessions.content.records import FORMATTED_MAX, RecordsCodec
from msgservice.faces.sessions.content.safe import RemoteError, SafeCodec
from msgservice.faces.sessions.envelope import Ack, Hello, Item, Message
from msgservice.faces.sessions.errors import BadControl, BadPayload
from tests.unit.test_sessions_pickles import QB_HELLO, QB_MINIMAL, QB_RECORD

SECRET = "hunter2secret"
pack = msgspec.msgpack.encode


@dataclasses.dataclass
class Point:
    """A class of a program."""

    x: int
    y: object


class Deg:
    """A class that is registered with the safe codec."""

    def __init__(self, value: float) -> None:
        self.value = value


class Kelvin(Deg):
    """One below it."""


def message(item: Item) -> Message:
    """Return an item that is a message."""
    assert isinstance(item, Message)
    return item


def through(codec: Any, content: object) -> Any:
    """Return content as the other side has it."""
    return message(codec.decode(codec.message(codec.prepare(content), "s", 1))).content


def refused(codec: Any, payload: bytes) -> str:
    """Return why a payload, or its content, is refused; nothing of what was in it is told."""
    try:
        item = message(codec.decode(payload))
    except BadPayload as error:
        reason = str(error)
    else:
        assert item.content is None
        assert item.failure is not None
        reason = item.failure
    assert SECRET not in reason
    assert len(reason) < 150
    return reason


def raised(error: Exception) -> Exception:
    """Return an exception with a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


def iter_nothing() -> Iterator[int]:
    """Yield nothing."""
    yield from ()


# --- safe


UTC = dt.datetime(2026, 11, 28, 12, 13, 14, 151_617, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (2**64 - 1, 2**64 - 1),
        (float("inf"), float("inf")),
        (bytearray(b"a"), b"a"),
        ((1, (2,)), [1, [2]]),
        ({1}, [1]),
        (frozenset({1}), [1]),
        ({1: {2.5: None}, "a": b"b"}, {1: {2.5: None}, "a": b"b"}),
        (Point(1, [2]), {"x": 1, "y": [2]}),
        (UTC, UTC),
        (uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (decimal.Decimal("1.50"), "1.50"),
        ([[]] * 50, [[]] * 50),
    ],
    ids=repr,
)
def test_every_kind_of_the_safe_codec(content: object, found: object) -> None:
    assert through(SafeCodec(), content) == found


def test_an_exception_is_its_class_its_text_and_its_traceback() -> None:
    error = through(SafeCodec(), raised(ValueError("no \u20ac")))
    assert isinstance(error, RemoteError)
    assert (error.kind, error.text) == ("ValueError", "no \u20ac")
    assert "in raised" in error.traceback
    assert through(SafeCodec(), {"in": [KeyError("k")]})["in"][0].text == "'k'"


def test_an_exception_whose_text_cannot_be_had_or_sent_is_sent_all_the_same() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert through(SafeCodec(), Silent()).kind == "Silent"
    assert through(SafeCodec(), ValueError("a\udc80")).text == "a\\udc80"


def test_a_registered_class_and_those_below_it() -> None:
    codec = SafeCodec()
    codec.register(Deg, "deg", lambda deg: {"value": deg.value}, lambda plain: Deg(plain["value"]))
    assert through(codec, Deg(1.5)).value == 1.5
    below = through(codec, [Kelvin(2.5)])[0]
    assert type(below) is Deg
    assert below.value == 2.5
    with pytest.raises(TypeError, match="Deg"):
        SafeCodec().prepare(Deg(1.0))
    reason = refused(SafeCodec(), codec.message(codec.prepare(Deg(1.0)), "s", 1))
    assert "not registered" in reason


def test_a_registered_class_inside_another() -> None:
    codec = SafeCodec()
    codec.register(Deg, "deg", lambda deg: [deg.value], lambda plain: Deg(*plain))
    inner = through(codec, Deg(Deg(5)))  # type: ignore[arg-type]  # a value of any kind
    assert inner.value.value == 5


@pytest.mark.parametrize(
    "content",
    [2**64, -(2**63) - 1, "\ud800", object(), print, {"a": {"b": lambda: 0}}, 1 + 2j],
    ids=lambda content: type(content).__name__,
)
def test_what_the_safe_codec_has_no_form_for(content: object) -> None:
    with pytest.raises(TypeError):
        SafeCodec().prepare(content)


def test_content_that_contains_itself_or_is_nested_too_deep() -> None:
    around: list[object] = []
    around.append(around)
    deep: list[object] = []
    for _ in range(101):
        deep = [deep]
    codec = SafeCodec()
    codec.register(Deg, "deg", lambda deg: deg, Deg)
    for content in (around, deep, Deg(1)):
        with pytest.raises(TypeError):
            codec.prepare(content)


def extension(code: int, data: bytes) -> bytes:
    """Return an extension of msgpack."""
    return b"\xc9" + struct.pack(">Ib", len(data), code) + data


def nested_extensions(depth: int) -> bytes:
    """Return an exception of an exception of one …"""
    body = pack(["a", "b", "c"])
    for _ in range(depth):
        body = extension(1, pack(["error", body]))
    return body


BODIES: dict[str, bytes] = {
    "array of four billion": b"\xdd\xff\xff\xff\xff",
    "arrays of a billion": b"\xdd\x3f\xff\xff\xff" * 50,
    "map of four billion": b"\xdf\xff\xff\xff\xff",
    "text of four billion": b"\xdb\xff\xff\xff\xff",
    "bytes of four billion": b"\xc6\xff\xff\xff\xffab",
    "extension of four billion": b"\xc9\xff\xff\xff\xff\x01ab",
    "map as a key": b"\x81\x80\x01",
    "map in a key": b"\x81\x91\x80\x01",
    "text that is no UTF-8": b"\xa2\xff\xfe",
    "key that is no UTF-8": b"\x81\xa2\xff\xfe\x01",
    "time out of range": b"\xd7\xff" + b"\xff" * 8,
    "time out of range 96": b"\xc7\x0c\xff" + b"\xff" * 12,
    "year out of range": b"\xc7\x0c\xff\0\0\0\0\x7f" + b"\xff" * 7,
    "time of three bytes": b"\xc7\x03\xffabc",
    "unknown extension": extension(5, SECRET.encode()),
    "no msgpack in an extension": extension(1, SECRET.encode()),
    "unknown name": extension(1, pack([SECRET, b"\x01"])),
    "name that is none": extension(1, pack([5, b"\x01"])),
    "name alone": extension(1, pack(["error"])),
    "body that is none": extension(1, pack(["error", SECRET])),
    "error of text": extension(1, pack(["error", pack(SECRET)])),
    "error of two": extension(1, pack(["error", pack(["a", SECRET])])),
    "error of four": extension(1, pack(["error", pack(["a", "b", "c", SECRET])])),
    "error of numbers": extension(1, pack(["error", pack(["a", SECRET, 1])])),
    "error of errors": nested_extensions(2),
    "error of a thousand": nested_extensions(1_000),
    "arrays nested deep": b"\x91" * 101 + b"\x90",
    "arrays nested very deep": b"\x91" * 200_000 + b"\x90",
    "maps nested deep": b"\x81\xa1k" * 101 + b"\x80",
    "keys nested deep": b"\x81" + b"\x91" * 200 + b"\x90\x01",
    "more behind": b"\x01\x01",
    "never used": b"\xc1",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_msgpack_is_bad_content(name: str) -> None:
    body = BODIES[name]
    payload = b"\x94\x00\xa1s\x01\xc6" + struct.pack(">I", len(body)) + body
    tracemalloc.start()
    try:
        refused(SafeCodec(), payload)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000 or "billion" in name
    finally:
        tracemalloc.stop()
    refused(SafeCodec(), body)  # nor is it a payload


@pytest.mark.parametrize(
    "payload",
    [
        5,
        [],
        {},
        "text",
        [0],
        [0, "s", 1],
        [0, "s", 1, b"\x01", 2],
        [0, "s", 1, "text"],
        [0, "s", None, b"\x01"],
        [0, None, 1, b"\x01"],
        [0, 1, "s", b"\x01"],
        [0, "s" * 65, 1, b"\x01"],
        [0, "", 1, b"\x01"],
        [0, "s", 0, b"\x01"],
        [0, "s", -1, b"\x01"],
        [0, "s", True, b"\x01"],
        [0, "s", 2**63, b"\x01"],
        [0, "s", 1.0, b"\x01"],
        [False, "s", 1],
        [1],
        [1, [1]],
        [1, {}],
        [1, {"type": "else"}],
        [1, {"type": "hello"}],
        [1, "{'type': 'hello', 'port': 5}"],
        [1, {"type": "hello", "port": 5}, 2],
        [2, {"type": "hello", "port": 5}],
        ["1", {"type": "hello", "port": 5}],
        [1, {"type": "joined", "session": [SECRET]}],
    ],
    ids=repr,
)
@pytest.mark.parametrize("codec", [SafeCodec(), ObjectsCodec()], ids=["safe", "objects"])
def test_payloads_of_the_wrong_shape(codec: Any, payload: object) -> None:
    refused(codec, pack(payload))


def test_a_registered_class_whose_maker_fails_tells_only_its_name() -> None:
    codec = SafeCodec()
    codec.register(Deg, "deg", lambda deg: SECRET, lambda plain: {}[plain])
    assert "deg: KeyError" in refused(codec, codec.message(codec.prepare(Deg(1)), "s", 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_item_of_the_safe_codec_or_bad(body: bytes) -> None:
    codec = SafeCodec()
    for payload in (body, b"\x94\x00\xa1s\x01\xc4" + bytes([len(body)]) + body, b"\x92\x01" + body):
        try:
            codec.decode(payload)
        except BadPayload:
            continue


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_payload_is_an_item_or_bad(seed: int) -> None:
    draw = random.Random(seed)
    codec, records = SafeCodec(), RecordsCodec(classes=(Point,))
    content = [None, {"a": [1, b"b", 1.5]}, UTC, KeyError("k"), ("t", 5)]
    payloads = [codec.message(codec.prepare(content), "s", 5), codec.control(Hello(5, "h", "i"))]
    other = [records.message(records.prepare([Point(1, 2), UTC]), "s", 5)]
    other += [records.control(Ack("s", 5, ((1, "r"),))), records.prepare("text %s") + b"."]
    for _ in range(1_000):
        for user, of in ((codec, payloads), (records, other)):
            payload = bytearray(draw.choice(of))
            for _ in range(draw.randint(1, 4)):
                payload[draw.randrange(len(payload))] = draw.randrange(256)
            try:
                user.decode(bytes(payload))
            except BadPayload:
                continue


class Told:
    """A class of a program that tells what is done with it."""

    done: ClassVar[list[str]] = []

    def __init__(self, value: object) -> None:
        self.value = value

    def __setstate__(self, state: dict[str, object]) -> None:
        Told.done.append("made")
        if self.done[0] == "refuses":
            raise ValueError(SECRET)
        self.__dict__.update(state)

    @classmethod
    def of(cls, plain: object) -> Told:
        made = cls.__new__(cls)
        made.__setstate__({"value": plain})
        return made


def told(name: str) -> Any:
    if name == "records":
        return RecordsCodec(classes=(Told,))
    codec = SafeCodec()
    codec.register(Told, "told", lambda told: told.value, Told.of)
    return codec


@pytest.mark.parametrize("name", ["safe", "records"])
@pytest.mark.parametrize("word", ["takes", "refuses"])
def test_nothing_of_a_registered_class_is_made_where_it_is_sent(name: str, word: str) -> None:
    codec = told(name)
    Told.done[:] = [word]
    content = [[Told(1)], b"\x81" * 300]  # such bytes as begin something: it might be deep
    prepared = codec.prepare(content)
    assert Told.done == [word]
    item = codec.decode(codec.message(prepared, "s", 1))
    assert Told.done == [word, "made"]
    assert (item.failure is None) is (word == "takes")


@pytest.mark.parametrize("name", ["safe", "records"])
def test_what_is_nested_too_deep_with_or_in_a_registered_class_is_not_sent(name: str) -> None:
    codec = told(name)
    deep: Any = Told("x" * 200)
    for _ in range(101):
        deep = [deep]
    for content in (deep, Told(deep)):
        with pytest.raises(TypeError, match="more than 100 deep"):
            codec.prepare(content)


# --- objects


def test_objects_of_any_class_round_trip() -> None:
    """Dict, list, bytes, class instance, exception with its traceback, code."""
    codec = ObjectsCodec()

    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

        def twice(self) -> int:
            return 2 * self.x

    assert through(codec, Local(5)).twice() == 10
    assert through(codec, Local)(6).x == 6
    assert through(codec, Point(1, {"a": [b"b", (1, {2})]})) == Point(1, {"a": [b"b", (1, {2})]})
    add = 5
    assert through(codec, lambda x: x + add)(1) == 6
    code = through(codec, compile("answer = 6 * 7", "told", "exec"))
    names: dict[str, object] = {}
    exec(code, names)
    assert names["answer"] == 42
    assert marshal.dumps(code)


def test_an_exception_of_another_side_can_be_raised_with_its_frames() -> None:
    error = through(ObjectsCodec(), raised(LookupError("gone")))
    assert type(error) is LookupError
    with pytest.raises(LookupError, match="gone") as caught:
        raise error
    assert "raised" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


def test_an_exception_keeps_its_cause() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as second:
        error = through(ObjectsCodec(), second)
    assert type(error.__cause__) is KeyError
    assert error.__cause__.__traceback__ is not None


@pytest.mark.parametrize("codec", [ObjectsCodec(), RecordsCodec(objects=True)], ids=["o", "r"])
def test_what_cannot_be_pickled_is_a_type_error(codec: Any) -> None:
    class Unwilling:
        def __reduce__(self) -> str:
            raise RuntimeError(SECRET)

    for content in (iter_nothing(), threading.Lock(), Unwilling()):
        with pytest.raises(TypeError, match=type(content).__name__):
            codec.prepare(content)


def test_an_object_that_does_not_come_out_again_is_bad_content() -> None:
    codec = ObjectsCodec()
    body = b"cbuiltins\nint\n(U\x0d" + SECRET.encode() + b"tR."
    assert "ValueError" in refused(codec, codec.message(body, "s", 1))
    assert "pickle" in refused(codec, codec.message(b"", "s", 1))
    assert "pickle" in refused(RecordsCodec(objects=True), body)


@pytest.mark.parametrize("missing", ["cloudpickle", "tblib"])
def test_an_extra_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"{missing}.*msgservice\[objects\]"):
        ObjectsCodec()


def test_nothing_is_unpickled_for_a_control_message() -> None:
    codec = ObjectsCodec()
    assert codec.decode(codec.control(Hello(5))) == Hello(5)
    assert pickle.PROTO not in codec.control(Hello(5))
    refused(codec, pickle.dumps({"type": "hello", "port": 5}))


# --- records


def record(**fields: object) -> bytes:
    """Return a log record as a standard-library sender pickles it, with attributes changed."""
    return pickle.dumps({**logging.makeLogRecord({"name": "n", "msg": "m"}).__dict__, **fields}, 1)


def test_the_vectors_of_the_wire_as_items() -> None:
    codec = RecordsCodec()
    minimal, hello, text = (bytes.fromhex(of)[4:] for of in (QB_MINIMAL, QB_HELLO, QB_RECORD))
    assert message(codec.decode(minimal)).content == {"msg": "hi"}
    found = codec.decode(hello)
    assert isinstance(found, Hello)
    assert found.host == "10.0.0.2"
    found = message(codec.decode(text))
    assert found.content == "loop 1"
    assert found.record is not None
    assert found.record["name"] == "helloWorld"


def test_what_is_no_record_is_the_message_itself() -> None:
    codec = RecordsCodec()
    for content in (None, "text", [1], {"msg": "hi"}, {"name": "n"}, b"bytes", {"levelno": 5}):
        assert codec.decode(pickle.dumps(content, 1)) == Message(content)
    assert message(codec.decode(pickle.dumps({"msg": "hi", "levelno": 5}, 1))).content == "hi"
    assert message(codec.decode(pickle.dumps({"msg": [1], "name": None}, 1))).content == [1]


@pytest.mark.parametrize(
    "msg",
    [
        {"type": "hello", "host": "10.0.0.2", "port": 45_001},
        '{"type": "hello", "host": "10.0.0.2", "port": 45001}',
        "{'type': 'hello', 'host': '10.0.0.2', 'port': 45001}",
        "{u'type': u'hello', u'host': u'10.0.0.2', u'port': 45001}",
    ],
    ids=["dict", "json", "literal", "literal-of-python-2"],
)
def test_a_control_message_comes_as_a_dict_and_as_text_it_is_a_message_that_says_so(
    msg: object,
) -> None:
    for payload in (record(msg=msg), pickle.dumps(msg, 1)):
        found = RecordsCodec().decode(payload)
        if isinstance(msg, str):
            assert message(found).content == msg
            found = message(found).logged  # type: ignore[assignment]  # one at least
        assert found == Hello(45_001, "10.0.0.2")


def test_what_a_logger_of_an_older_python_left_to_be_formatted_says_it_once_it_is() -> None:
    payload = record(msg="{'type': 'hello', 'port': %d}", args=(45_001,))
    assert message(RecordsCodec().decode(payload)).logged == Hello(45_001)


def test_a_control_message_that_cannot_be_is_bad() -> None:
    with pytest.raises(BadControl):
        RecordsCodec().decode(record(msg={"type": "hello", "port": SECRET}))


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "hello"}',
        '{"type": "hello", "port": "high"}',
        '{"type": "ack", "session": "a", "upto": -1}',
        "{'type': 'heartbeat', 'seq': 'first'}",
    ],
)
def test_text_that_only_looks_like_a_control_message_is_what_somebody_logged(text: str) -> None:
    found = RecordsCodec().decode(record(msg=text))
    assert isinstance(found, Message)
    assert found.content == text


@pytest.mark.parametrize(
    ("msg", "args", "content"),
    [
        ("loop %d of %s", (1, "two"), "loop 1 of two"),
        ("%(a)s and %(b)05.1f", {"a": "x", "b": 1.25}, "x and 001.2"),
        ("100%", (), "100%"),
        ("100%", None, "100%"),
        ("%d", ("x",), "%d"),
        ("%s %s", ("one",), "%s %s"),
        ("%(missing)s", {"a": 1}, "%(missing)s"),
        ("%", (1,), "%"),
        ("%s", ([1],), "%s"),
        ("%s", [1], "%s"),
        ("%s", "ab", "%s"),
        ("%999999999d", (1,), "%999999999d"),
        ("%*d", (999_999_999, 1), "%*d"),
        ("%.999999999f", (1.5,), "%.999999999f"),
        ("%c", (2**40,), "%c"),
        ({"not": "text"}, (1,), {"not": "text"}),
    ],
)
def test_the_arguments_that_older_pythons_leave_to_the_receiver(
    msg: object, args: object, content: object
) -> None:
    assert message(RecordsCodec().decode(record(msg=msg, args=args))).content == content


def test_a_long_text_with_arguments_takes_no_memory_beside_its_own() -> None:
    text = "x" * 1_000_000
    payload = record(msg=text + "%s", args=("end",))
    tracemalloc.start()
    try:
        found = message(RecordsCodec().decode(payload)).content
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == text + "end"
    assert peak < 10 * len(text)  # a hundred times that it was
    text = "%s" * 10_001
    found = message(RecordsCodec().decode(record(msg=text, args=("x",) * 10_001))).content
    assert found == text


def test_text_is_not_made_large_by_its_arguments() -> None:
    text, value = "%(a)s" * 20_000, "x" * 20_000
    assert len(text) // 5 * len(value) > FORMATTED_MAX
    found = message(RecordsCodec().decode(record(msg=text, args={"a": value}))).content
    assert found == text


def test_arguments_of_a_class_without_a_truth_value() -> None:
    class Undecided:
        def __bool__(self) -> bool:
            raise RuntimeError

    import cloudpickle

    payload = cloudpickle.dumps({"name": "n", "msg": "text", "args": Undecided()}, 1)
    assert message(RecordsCodec(objects=True).decode(payload)).content == "text"


@pytest.mark.parametrize(
    "fields",
    [
        {"msg": "plain"},
        {"msg": "loop %d", "args": (1,)},
        {"msg": "%(a)s", "args": ({"a": 1},)},
        {"msg": ["no", "text"]},
        {"msg": "failed", "exc_info": True},
        {"msg": "failed", "exc_info": True, "exc_text": "told before"},
        {"msg": "more", "taskName": "Task-1", "session": "of a program", "number": 7},
        {"msg": "said before", "message": "said before"},
        {"msg": "stack", "stack_info": "Stack (most recent call last):"},
    ],
    ids=repr,
)
def test_a_log_record_is_pickled_as_socket_handler_does(fields: dict[str, Any]) -> None:
    made = logging.makeLogRecord({"name": "a.b", "levelno": 30, "levelname": "WARNING"})
    args = fields.get("args", ())
    made.__dict__.update(
        logging.LogRecord("a.b", 30, "p.py", 5, fields["msg"], args, None).__dict__
    )
    made.__dict__.update({k: v for k, v in fields.items() if k not in ("args", "exc_info")})
    if fields.get("exc_info"):
        error = raised(ValueError("no"))
        made.exc_info = (ValueError, error, error.__traceback__)
    prepared = RecordsCodec().prepare_record(made)
    expected = logging.handlers.SocketHandler("127.0.0.1", 1).makePickle(made)[4:]
    assert pickle.loads(prepared + b".") == pickle.loads(expected)
    item = message(RecordsCodec().decode(RecordsCodec().message(prepared, "s", 5)))
    assert (item.session, item.number) == ("s", 5)
    assert item.content == made.getMessage()


def test_the_number_of_a_message_does_not_harm_a_standard_receiver() -> None:
    codec = RecordsCodec(logger="a.b", level=logging.WARNING)
    plain = logging.makeLogRecord(pickle.loads(codec.message(codec.prepare("hi"), None, None)))
    payload = codec.message(codec.prepare("hi"), "session", 5)
    found = logging.makeLogRecord(pickle.loads(payload))
    assert (found.name, found.levelno, found.getMessage()) == ("a.b", 30, "hi")
    assert found.levelname == "WARNING"
    assert set(found.__dict__) - set(plain.__dict__) == {"msgservice_session", "msgservice_number"}
    assert logging.Formatter("%(name)s %(asctime)s %(message)s").format(found).endswith(" hi")


def test_attributes_of_programs_are_no_number_of_ours() -> None:
    for fields in ({"session": "abc", "number": 5}, {"session": 5}, {"number": "x"}):
        found = message(RecordsCodec().decode(record(**fields)))
        assert (found.session, found.number) == (None, None)
        assert found.record is not None
        assert fields.items() <= found.record.items()


@pytest.mark.parametrize(
    ("session", "number"), [(None, 1), ("s", None), ("s", 0), ("s", "1"), ([SECRET], 1), ("", 1)]
)
def test_half_a_number_is_bad(session: object, number: object) -> None:
    payload = record(msgservice_session=session, msgservice_number=number)
    refused(RecordsCodec(), payload)


@pytest.mark.parametrize(
    "content",
    [
        ("tuple", 1),
        {1, 2},
        b"\x00\xff",
        UTC,
        decimal.Decimal("1.5"),
        uuid.UUID(int=5),
        {"nested": [{"deep": (None, True)}]},
        2**64,
    ],
    ids=repr,
)
def test_objects_that_a_record_carries(content: object) -> None:
    found = through(RecordsCodec(), content)
    assert found == content
    assert type(found) is type(content)


def test_instances_of_classes_that_both_sides_name() -> None:
    assert through(RecordsCodec(classes=(Point,)), [Point(1, Point(2, "y"))]) == [
        Point(1, Point(2, "y"))
    ]
    assert through(RecordsCodec(objects=True), Point(1, 2)) == Point(1, 2)
    payload = record(msg=Point(1, 2))
    assert message(RecordsCodec(classes=(Point,)).decode(payload)).content == Point(1, 2)
    assert "not registered" in refused(RecordsCodec(), payload)


def test_what_the_other_side_would_refuse_is_refused_to_the_sender() -> None:
    """Else its connection ends for this message, again and again."""
    around: list[object] = []
    around.append(around)
    deep: list[object] = []
    for _ in range(102):
        deep = [deep]
    for content in (Point(1, 2), [Point(1, 2)], 2**200, around, deep, ValueError("no"), print):
        with pytest.raises(TypeError, match=type(content).__name__):
            RecordsCodec().prepare(content)


def test_hostile_payloads_of_records_are_refused() -> None:
    codec = RecordsCodec()
    assert "not registered" in refused(codec, b"cos\nsystem\n(S'" + SECRET.encode() + b"'\ntR.")
    assert "memo" in refused(codec, b"Nr\xff\xff\xff\x7f.")


def pairs_that_collide(count: int) -> list[tuple[int, int]]:
    """Return pairs of integers of 64 bits that have one hash, as CPython hashes tuples."""
    first, second, begin, modulus = (
        11400714785074694791,
        14029467366897019727,
        2870177450012600261,
        2**64,
    )
    inverse = pow(second, -1, modulus)
    found: list[tuple[int, int]] = []
    a = 0
    while len(found) < count:
        a += 1
        lane = (begin + a * second) % modulus
        lane = (lane << 31 | lane >> 33) % modulus * first % modulus
        b = (12345678912345 - lane) * inverse % modulus
        if b < 2**61 - 1:
            found.append((a, b))
        elif 2 < modulus - b < 2**61 - 1:
            found.append((a, b - modulus))
    return found


def registered(body: bytes, name: str = "error") -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(1, pack((name, body)))


class Anything:
    """A registered class that is made of whatever comes."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside


def codec_of_anything() -> SafeCodec:
    codec = SafeCodec()
    codec.register(Anything, "any", lambda one: one.inside, Anything)
    return codec


def test_keys_that_collide_are_counted_over_all_that_registered_types_are_made_of() -> None:
    codec = codec_of_anything()
    keys = dict.fromkeys(pairs_that_collide(1_000))
    body = pack(keys)
    assert len(body) < 32 * 1024  # where one alone is not looked at
    side_by_side = pack([registered(body, "any")] * 3)
    in_each_other = body
    for _ in range(3):
        in_each_other = pack([keys, registered(in_each_other)])
    for content in (side_by_side, in_each_other):
        with pytest.raises(BadPayload, match="5000 numbers as keys"):
            codec.decode(codec.message(content, None, None))
    with pytest.raises(TypeError, match="5000 numbers as keys"):
        codec.prepare([Anything(keys)] * 3)
    one = codec.decode(codec.message(codec.prepare([Anything(keys)]), None, None))
    assert isinstance(one, Message)
    assert one.content[0].inside == keys


def test_what_is_within_registered_types_is_not_copied_for_ever() -> None:
    codec = codec_of_anything()
    size = 1_000_000
    body = pack(["kind", "text", "x" * size])
    for _ in range(200):
        body = pack(registered(body))
    payload = codec.message(body, "s", 7)
    tracemalloc.start()
    try:
        item = codec.decode(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(item, Message)
    assert item.number == 7
    assert item.failure == "registered types are nested too deep for its size"
    assert peak < 40 * size  # 200 times that it was
    large: Any = "x" * size
    for _ in range(30):
        large = Anything(large)
    with pytest.raises(TypeError, match="nested too deep for its size"):
        codec.prepare(large)


def test_registered_types_may_be_nested() -> None:
    codec = codec_of_anything()
    tree: Any = "x" * 100
    for _ in range(80):
        tree = Anything([tree, "beside"])
    large = Anything(Anything(["x" * 1_000_000] * 3))
    item = codec.decode(codec.message(codec.prepare([tree, large]), None, None))
    assert isinstance(item, Message)
    found, other = item.content
    for _ in range(80):
        found = found.inside[0]
    assert found == "x" * 100
    assert len(other.inside.inside) == 3


def test_keys_that_collide_are_refused_before_they_are_compared() -> None:
    codec = SafeCodec()
    pairs = pairs_that_collide(5_001)
    assert len({hash(pair) for pair in pairs}) == 1
    body = b"\xdf" + struct.pack(">I", len(pairs))
    body += b"".join(msgspec.msgpack.encode(pair) + b"\xc0" for pair in pairs)
    inside = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode(("error", body))))
    for payload in (
        codec.message(body, None, None),
        codec.message(inside, None, None),
        b"\x92\x01" + body,
    ):
        with pytest.raises(BadPayload, match="5000 numbers as keys"):
            codec.decode(payload)
    with pytest.raises(TypeError, match="5000 numbers as keys"):
        codec.prepare({"all": dict.fromkeys(range(2**40, 2**40 + 5_001))})
    for content in (
        dict.fromkeys(range(5_000)),
        {f"{n}": [n, 1.5] for n in range(20_000)},
        {f"{n}".encode(): n for n in range(20_000)},
        [{n: n for n in range(60)} for _ in range(2_000)],
        list(range(100_000)),
    ):
        assert codec.decode(codec.message(codec.prepare(content), "s", 1)) == Message(
            content, "s", 1
        )


def test_long_arrays_as_keys_count_as_more_numbers() -> None:
    """Keys that collide are compared up to where they differ."""
    codec = SafeCodec()
    keys = [([0] * 2_000, pair) for pair in pairs_that_collide(400)]
    body = b"\xde" + struct.pack(">H", len(keys)) + b"".join(pack(key) + b"\xc0" for key in keys)
    with pytest.raises(BadPayload, match="5000 numbers as keys"):
        codec.decode(codec.message(body, None, None))
    few = {(("shop", "x" * 40), n): None for n in range(1_000)}
    assert codec.decode(codec.message(codec.prepare(few), None, None)) == Message(few)


@pytest.mark.parametrize("seed", range(4))
def test_keys_are_counted_in_whatever_is_around_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For content at random: it is refused where the sum of the squares is above the limit."""
    monkeypatch.setattr(safe, "_SMALL_BYTES", 0)
    monkeypatch.setattr(safe, "_SMALL_MAP", 2)
    monkeypatch.setattr(safe, "_large_map", lambda body: True)
    monkeypatch.setattr(safe, "NUMBERS_MAX", 12)
    draw = random.Random(seed)
    sums: list[int] = []

    def scalar() -> Any:
        size = draw.choice([0, 1, 31, 32, 255, 256, 70_000])
        second = draw.randrange(60)
        simple: list[Any] = [
            None,
            True,
            1,
            -1,
            200,
            -200,
            70_000,
            -70_000,
            2**40,
            -(2**40),
            2**63,
            1.5,
        ]
        simple.append(dt.datetime(1970 + draw.randrange(600), 1, 2, 3, 4, second, second, dt.UTC))
        simple.append(msgspec.msgpack.Ext(5, b"\xdf" * draw.randrange(20)))
        return draw.choice([*simple, "x" * size, b"\xdf" * size])

    def value(depth: int) -> Any:
        count = draw.choice([0, 1, 3, 8, 17]) if depth else 0
        match draw.randrange(4) if depth else 3:
            case 0:
                return [value(depth - 1) for _ in range(count)]
            case 1:
                keys = dict.fromkeys(
                    draw.choice([1.5 + n, f"{n}", 10**n, (n, "x"), (n, ("x" * 62,)), ()])
                    for n in range(count)
                )
                weights: dict[object, int] = {str: 0, tuple: 3}
                numbers = sum(
                    weights.get(type(key), 1) + isinstance(key, tuple) * (len(pack(key)) // 64)
                    for key in keys
                )
                if numbers > 2:
                    sums.append(numbers**2)
                return {key: value(depth - 1) for key in keys}
            case _:
                return scalar()

    refused = 0
    for _ in range(300):
        sums.clear()
        body = msgspec.msgpack.encode(value(4))
        try:
            safe._check_keys(body)
        except BadPayload:
            refused += 1
            assert sum(sums) > 144
        else:
            assert sum(sums) <= 144
    assert 20 < refused < 280


def test_one_name_is_of_one_class() -> None:
    codec = SafeCodec()
    codec.register(range, "range", list, tuple)
    codec.register(range, "range", list, tuple)
    for name in ("range", "error"):
        with pytest.raises(ValueError, match="another class"):
            codec.register(slice, name, str, str)


def test_text_is_not_formatted_with_one_argument_again_and_again() -> None:
    """As with a mapping: it would be as many times as long."""
    codec = RecordsCodec()
    for size, is_formatted in ((100_000, True), (1_000_000, False)):
        argument = "x" * size
        record = {"name": "a", "levelno": 20, "msg": "%s" * 10, "args": (argument,) * 10}
        found = codec.decode(pickle.dumps(record, 1))
        assert isinstance(found, Message)
        assert (found.content == argument * 10) is is_formatted
        assert is_formatted or found.content == "%s" * 10
    different = tuple("x" * 400_000 + str(n) for n in range(10))
    found = codec.decode(pickle.dumps({**record, "args": different}, 1))
    assert isinstance(found, Message)
    assert found.content == "".join(different)
