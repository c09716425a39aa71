"""Shapes of log records: what they let through unread, the walk lets through too."""

from __future__ import annotations

import logging
import logging.handlers
import pickle
import pickletools
import random
import sys
import tracemalloc
from typing import Any

import pytest

from msgservice.faces.sessions.content import restricted, shapes
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.content.restricted import loads
from msgservice.faces.sessions.content.shapes import PIECE_BYTES, PIECES_MAX, RECORDS_MAX, Shapes
from msgservice.faces.sessions.envelope import Message
from msgservice.faces.sessions.errors import BadPayload

HANDLER = logging.handlers.SocketHandler("127.0.0.1", 9)  # it dials only where it sends


def a_record(
    name: str = "shop",
    text: str = "item %s was sold",
    arguments: tuple[object, ...] = ("q-12",),
    *,
    level: int = logging.INFO,
    line: int = 42,
    failed: bool = False,
    **extra: object,
) -> bytes:
    """Return a payload as `SocketHandler` writes it."""
    information = None
    if failed:
        try:
            raise LookupError(name)
        except LookupError:
            information = sys.exc_info()
    record = logging.LogRecord(
        name, level, "/opt/shop/query.py", line, text, arguments, information, "sell"
    )
    record.__dict__.update(extra)
    return HANDLER.makePickle(record)[4:]


REAL = [
    a_record(),
    a_record("shop.till", level=logging.ERROR, line=70_000),
    a_record("query", "%s", ("x" * 5_000,)),
    a_record(text="", arguments=()),
    a_record(failed=True),
    a_record(request="q" * 40, ok=True, cost=1.5),
    a_record(items=[1, (2, 3)]),
    a_record(name="sell"),
    pickle.dumps({"name": "shop", "levelno": 20, "msg": "hello"}, 1),
]


def outcome(load: Any, payload: bytes) -> tuple[str, Any]:
    try:
        return "value", load(payload)
    except BadPayload as error:
        return "refused", str(error)


def test_what_a_logger_sends_again_is_known_whatever_its_text_and_times_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = Shapes()
    assert known.has(a_record(arguments=("first",)))
    monkeypatch.setattr(shapes, "_learn", None)  # from here on nothing is read
    again = a_record(arguments=("another, and longer",))
    assert known.has(again)
    assert pickle.loads(again)["msg"] == "item another, and longer was sold"


@pytest.mark.parametrize("payload", REAL[:6])
def test_records_of_scalars_have_a_shape(payload: bytes) -> None:
    assert Shapes().has(payload)
    assert pickle.loads(payload) == loads(payload)


def test_what_holds_more_than_scalars_has_none() -> None:
    for content in ({"a": 1}, [1], (1,), {1}, b"bytes", 2**130, range(3)):
        assert not Shapes().has(pickle.dumps({"name": "shop", "msg": content}, 1))
        assert not Shapes().has(pickle.dumps({"name": "shop", "msg": "x", "more": content}, 1))


# What does harm, or makes of the mapping something else, wherever it stands between opcodes.
PLANTED = [
    b"cos\nsystem\n",
    b"c__builtin__\neval\nX\x01\0\0\x001\x85R",
    b"(cos\nsystem\no",
    b"(ios\nsystem\n",
    b"\x82\x01",
    b"r\xff\xff\xff\x7f",
    b"p2000000000\n",
    b"Pid\n",
    b"Q",
    b"h\0",
    b"g0\n",
    b"j\0\0\0\0",
    b"q\0",
    b"p0\n",
    b"}",
    b"]",
    b"(",
    b")",
    b"(t",
    b"2",
    b"0",
    b"1",
    b".",
    b"u.",
    b"u",
    b"s",
    b"R",
    b"b",
    b"\x81",
    b"\x93",
    b"\x94",
    b"\x95\x01\0\0\0\0\0\0\0",
    b"\x8e\xff\xff\xff\xff\xff\0\0\0",
    b"X\xff\xff\xff\x7f",
    b"X\x01\0\0\0q",
    b"L" + b"1" * 60 + b"L\n",
    b"L1L\n",
    b"I01\n",
    b"N",
    b"K\x01",
    b"X\x03\0\0\0msgq",
    b"X\x03\0\0\0msgq\x03X\x01\0\0\0x",
    b"X\x07\0\0\0createdq\x09G" + b"\0" * 8,
]


def boundaries(payload: bytes) -> list[int]:
    return [at for _, _, at in pickletools.genops(payload) if at is not None]


BOUNDARIES = {payload: boundaries(payload) for payload in REAL}


def changed(rng: random.Random) -> bytes:
    """Return a real record with a few changes, most of them at the beginning of an opcode."""
    base = rng.choice(REAL)
    at = rng.choice(BOUNDARIES[base])
    match rng.randrange(6):
        case 0:
            return base[:at] + rng.choice(PLANTED) + base[at:]
        case 1:
            end = rng.choice(BOUNDARIES[base])
            return base[:at] + rng.choice([b"", *PLANTED]) + base[max(at, end) :]
        case 2:  # the beginning of one, the end of another
            other = rng.choice(REAL)
            return base[:at] + other[rng.choice(BOUNDARIES[other]) :]
        case 3:
            data = bytearray(base)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.choice(b"\0\1q.XhucRGNK\xff")
            return bytes(data)
        case 4:
            where = rng.randrange(len(base))
            return base[:where] + rng.choice(PLANTED) + base[where:]
        case _:
            planted = rng.choice(PLANTED)
            text = b"X" + len(planted).to_bytes(4, "little") + planted
            return base[:at] + text + rng.choice([b"", b"q\x01"]) + base[at:]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_has_a_shape_is_taken_by_the_walk_too_and_gives_the_same(seed: int) -> None:
    rng = random.Random(seed)
    known = Shapes()
    let_through = 0
    for _ in range(2_000):
        payload = changed(rng)
        if not known.has(payload):
            continue
        let_through += 1
        has_classes, tuples, _, _ = restricted._walk(payload)  # it raises for what is not allowed
        assert not has_classes
        assert not tuples
        try:
            value = pickle.loads(payload)
        except Exception:
            with pytest.raises(BadPayload):
                loads(payload)
        else:
            assert repr(value) == repr(loads(payload))
            kinds = {type(item) for pair in value.items() for item in pair}
            assert kinds <= {str, int, float, bool, type(None)}
    assert let_through > 200


@pytest.mark.parametrize("seed", range(4))
def test_a_codec_that_has_seen_much_says_the_same_of_a_record_as_a_new_one(seed: int) -> None:
    rng = random.Random(1_000 + seed)
    old = RecordsCodec()
    for _ in range(1_000):
        payload = changed(rng)
        assert repr(outcome(old.decode, payload)) == repr(outcome(RecordsCodec().decode, payload))


@pytest.mark.parametrize("seed", range(4))
def test_the_like_of_a_record_that_is_kept_is_read_as_it_would_be_unread(seed: int) -> None:
    """Whatever stands around the text and the times, others there are no other record."""
    rng = random.Random(2_000 + seed)
    codec, kept = RecordsCodec(), 0
    texts = [
        "",
        "x",
        "msg",
        "name",
        "shop",
        "created",
        "é\U0001f600\ud800",
        "q\x04h\x04",
        "y" * 300,
    ]
    for _ in range(1_000):
        payload = changed(rng)
        for _ in range(2):
            outcome(codec.decode, payload)
        around = around_of(payload)
        if around is None:
            continue
        text = rng.choice(texts).encode("utf-8", "surrogatepass").decode("latin-1")
        times = [rng.choice([0.0, -1.5, 1e300, float("inf"), rng.random()]) for _ in range(3)]
        like = shapes._with(around, text, times)
        assert repr(outcome(codec.decode, like)) == repr(outcome(RecordsCodec().decode, like))
        kept += codec._shapes._records.get(around) is not None
    assert kept > 50


def around_of(payload: bytes) -> tuple[bytes, ...] | None:
    cut = shapes._cut(payload)
    if cut is None:
        return None
    at, end, begin, _ = cut
    after = shapes._after(payload, end, begin) if begin >= 0 else (payload[end:],)
    return (payload[: at + 1], *after)


@pytest.mark.parametrize("is_full", [True, False])
def test_records_that_differ_by_text_and_times_are_unpickled_twice(
    is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(text: str) -> bytes:
        if is_full:
            return a_record(text=text, arguments=())
        return pickle.dumps({"name": "shop", "levelno": 20, "msg": text}, 1)

    codec = RecordsCodec()
    payloads = [
        make(text) for text in ("first", "", "a longer one \u20ac", '{"type": "heartbeat"}')
    ]
    first = codec.decode(payloads[0])
    codec.decode(payloads[1])
    values = [pickle.loads(payload) for payload in payloads]
    monkeypatch.setattr(codec, "_load", None)
    found: Any = [codec.decode(payload) for payload in payloads]
    for item, value in zip(found, values, strict=True):
        assert repr(item.record) == repr(value)
        assert item.content == value["msg"]
        assert (item.session, item.number, item.failure) == (None, None, None)
    assert found[3].logged is not None
    found[1].record["name"] = "changed by its handler"
    assert codec.decode(payloads[1]).record["name"] == "shop"  # type: ignore[union-attr,index]  # a message of a record
    assert first == found[0]


def test_records_of_places_in_turn_are_unpickled_twice_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some differ by nothing that has another length: each is that of its own place."""
    codec = RecordsCodec()
    payloads = [
        a_record(name, text, arguments, line=line, extra=extra)
        for name in ("shop", "till", "a.longer.one")
        for line in (1, 2, 70_000)
        for text, arguments in (("first", ()), ("%d sold", (7,)))
        for extra in (1, 2, "a")
    ]
    payloads += [
        pickle.dumps({"name": name, "levelno": 20, "msg": "x", "more": more}, 1)
        for name in ("shop", "till")
        for more in (1, 2, 300)
    ]
    for payload in payloads * 2:
        codec.decode(payload)
    monkeypatch.setattr(codec, "_load", None)
    for payload in payloads * 2:
        item: Any = codec.decode(payload)
        assert repr(item.record) == repr(pickle.loads(payload))


def test_a_record_whose_like_comes_but_once_is_unpickled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has the name of a task in it, say: to try it out would cost more than it is read for."""
    codec, unpickled = RecordsCodec(), 0
    real = pickle.loads

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal unpickled
        unpickled += 1
        return real(*arguments, **options)

    payloads = [a_record(task=f"Task-{number}") for number in range(50)]
    monkeypatch.setattr(pickle, "loads", counted)
    for payload in payloads:
        codec.decode(payload)
    assert unpickled == 50
    assert not codec._shapes._records


HEAD = b"}q\0(X\x04\0\0\0nameq\1X\1\0\0\0aq\2X\x03\0\0\0msgq\3"
TIMES = (
    b"X\x07\0\0\0createdq\x10G\0\0\0\0\0\0\0\0X\x05\0\0\0msecsq\x11G\0\0\0\0\0\0\0\0"
    b"X\x0f\0\0\0relativeCreatedq\x12G\0\0\0\0\0\0\0\0"
)
NOT_KEPT = {
    "the text again": (HEAD, b"q\4X\1\0\0\0cq\5h\4u."),
    "the text as a key": (HEAD[:15] + HEAD[23:], b"q\4K\1u."),
    "the text as a key, by the memo": (HEAD, b"q\4h\4K\1u."),
    "msg again": (HEAD, b"q\4X\x03\0\0\0msgq\5X\1\0\0\0zq\6u."),
    "msg again, by the memo": (HEAD, b"q\4h\3X\1\0\0\0zq\6u."),
    "created again, by the memo": (HEAD, b"q\4" + TIMES + b"h\x10K\1u."),
    "created again": (HEAD, b"q\4" + TIMES + b"X\x07\0\0\0createdq\x13K\1u."),
    "what is no number": (HEAD, b"q\4X\1\0\0\0nG\x7f\xf8\0\0\0\0\0\0u."),
    "too many": (HEAD, b"q\4" + b"".join(b"K%cN" % n for n in range(80)) + b"u."),
    "a number": (HEAD, b"q\4X\x11\0\0\0msgservice_numberq\5K\1u."),
    "arguments": (HEAD, b"q\4X\4\0\0\0argsq\5K\1u."),
}


def test_what_stands_between_the_times_is_part_of_a_shape() -> None:
    """By its number in the memo what is taken from there behind them is the one or another."""
    codec = RecordsCodec()
    rest = b"q\4" + TIMES + b"h\x11u."
    payload = HEAD + b"X\1\0\0\0x" + rest.replace(b"h\x11", b"X\1\0\0\0kq\x13h\x11")
    for _ in range(2):
        found = codec.decode(payload)
        assert isinstance(found, Message)
        assert found.record is not None
        assert found.record["k"] == "msecs"
    other = payload.replace(b"msecsq\x11", b"msecsq\x14").replace(b"Createdq\x12", b"Createdq\x11")
    found = codec.decode(other)
    assert isinstance(found, Message)
    assert found.record is not None
    assert found.record["k"] == "relativeCreated"


@pytest.mark.parametrize("name", NOT_KEPT)
def test_a_record_whose_text_or_times_say_more_than_that_is_read_each_time(name: str) -> None:
    head, rest = NOT_KEPT[name]
    codec = RecordsCodec()
    for text in (b"first", b"second", b"name", b"msg", b""):
        payload = head + b"X" + len(text).to_bytes(4, "little") + text + rest
        assert Shapes().has(payload)
        assert repr(outcome(codec.decode, payload)) == repr(outcome(RecordsCodec().decode, payload))
    assert not any(codec._shapes._records.values())


def test_text_that_is_no_utf_8_is_bad_though_its_shape_is_known() -> None:
    codec = RecordsCodec()
    for text, is_bad in ((b"good", False), (b"\xff", True), (b"\xed\xa0\x80", False)):
        payload = HEAD + b"X" + len(text).to_bytes(4, "little") + text + b"q\4u."
        assert (outcome(codec.decode, payload)[0] == "refused") is is_bad
        assert outcome(codec.decode, payload) == outcome(RecordsCodec().decode, payload)


@pytest.mark.parametrize("begin", [b"\xff", b"", b"X", b"}q\0(X\x03\0\0\0msgq\1X"])
def test_text_alone_is_no_record_to_a_codec_that_has_seen_none(begin: bytes) -> None:
    for text in (b"", b"hello", b'{"a": 1}', b"u."):
        payload = begin + len(text).to_bytes(4, "little") + text
        assert Shapes().record(payload) is None
        with pytest.raises(BadPayload):
            RecordsCodec().decode(payload)


def test_a_mapping_in_itself_is_refused_though_its_pieces_look_like_numbers_and_texts() -> None:
    codec = RecordsCodec()
    head = b"}q\0(X\x04\0\0\0nameq\1X\1\0\0\0aq\2X\x03\0\0\0msgq\3X\1\0\0\0bq\4"
    assert codec.decode(head + b"X\1\0\0\0cq\5h\1u.").record == {  # type: ignore[union-attr]  # a message
        "name": "a",
        "msg": "b",
        "c": "name",
    }
    for payload in (
        head + b"X\1\0\0\0cq\5h\0u.",
        head.replace(b"}q\0(", b"}q\0(q\7") + b"X\1\0\0\0cq\5h\7u.",
        head.replace(b"}q\0(", b"}(q\7") + b"X\1\0\0\0cq\5h\7u.",
    ):
        with pytest.raises(BadPayload, match=r"itself|UnpicklingError"):
            codec.decode(payload)


def test_a_piece_that_is_known_is_not_known_in_another_place() -> None:
    """A last piece has an end in it, a head its beginning: neither may stand in the middle."""
    known = Shapes()
    record = a_record()
    assert known.has(record)
    (head,), (middle,), (last,) = known._heads, known._middles, known._lasts
    text = b"X\1\0\0\0x"
    times = record[len(head) : -len(last)].partition(middle)[2]
    assert known.has(head + text + middle + times + last)
    for pieces in (
        (head, last, last),
        (head, head, last),
        (middle, middle, last),
        (last, middle, last),
        (head, middle, middle),
        (head, middle, head),
    ):
        assert not known.has(pieces[0] + text + pieces[1] + times + pieces[2])


def test_strangers_cannot_let_more_be_kept_than_its_limit() -> None:
    known = Shapes()
    for n in range(2 * RECORDS_MAX + 10):
        payload = a_record(f"{n}" * 20, line=n, more=n)
        known.has(payload)
        for _ in range(2):
            known.keep(payload, pickle.loads(payload))
        assert known.record(payload) == pickle.loads(payload)
    assert 0 < len(known._recent) <= len(known._records) < RECORDS_MAX
    assert len(known._seen) <= RECORDS_MAX
    for kept in (known._heads, known._middles, known._lasts):
        assert 0 < len(kept) <= PIECES_MAX
        assert max(map(len, kept)) <= PIECE_BYTES + 2
    assert not known.has(a_record(more="x" * PIECE_BYTES))


def test_of_the_text_of_a_record_nothing_is_kept() -> None:
    """Strangers choose how long it is, and there may be thousands of shapes."""
    codec = RecordsCodec()
    size = 1_000_000
    tracemalloc.start()
    try:
        for n in range(10):
            payload = a_record(f"shop-{n}", "%s", ("x" * size,))
            for _ in range(3):
                found = codec.decode(payload)
                assert isinstance(found, Message)
                assert found.content == "x" * size
        del payload, found
        assert len(codec._shapes._records) == 10
        assert tracemalloc.get_traced_memory()[0] < size
    finally:
        tracemalloc.stop()
