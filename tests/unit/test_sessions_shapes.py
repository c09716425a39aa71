"""Shapes of log records: what they let through unread, the walk lets through too."""

from __future__ import annotations

import logging
import logging.handlers
import pickle
import pickletools
import random
import sys
from typing import Any

import pytest

from msgservice.faces.sessions.content import restricted, shapes
from msgservice.faces.sessions.content.records import RecordsCodec
from msgservice.faces.sessions.content.restricted import loads
from msgservice.faces.sessions.content.shapes import PIECE_BYTES, PIECES_MAX, Shapes
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
    for n in range(2 * PIECES_MAX):
        known.has(a_record(f"{n}" * 20, line=n, more=n))
    for kept in (known._heads, known._middles, known._lasts):
        assert 0 < len(kept) <= PIECES_MAX
        assert max(map(len, kept)) <= PIECE_BYTES + 2
    assert not known.has(a_record(more="x" * PIECE_BYTES))
