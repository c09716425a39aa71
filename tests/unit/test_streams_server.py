"""Streams over lines: the decisions 1 to 24 without a node, what must hold, and the bounds of 5.5.

Over transports in memory, on a `Clock`. A test that holds a decision carries its number.
"""

from __future__ import annotations

import json
import random
import threading
from abc import ABC, abstractmethod
from typing import Any

import pytest
from twisted.internet.defer import DeferredQueue

from msgservice.errors import BadAddress, BadValue, CannotListen, InsecureListener, LimitReached
from msgservice.faces.streams import (
    JsonCodec,
    MonitorMessage,
    Progress,
    StreamLimits,
    StreamServer,
    content,
    register,
)
from msgservice.faces.streams.server import PAGE_STREAMS
from msgservice.faces.streams.stream import MessageStream
from msgservice.faces.streams.wire import LineSplitter, decode, line_of
from tests.kit.streams_world import FULL, Endpoint, Peer, Reactor, World, puts

VECTORS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "7b22616374696f6e223a226c697374656e222c2273747265616d223a226a6f6231227d0a": (
        "listen",
        "job1",
        {},
    ),
    "7b22616374696f6e223a22686561646572222c2273747265616d223a226a6f6231222c226d657373616765223a7b22"
    "6b223a332c226e223a31307d7d0a": ("header", "job1", {"message": {"k": 3, "n": 10}}),
    "7b22616374696f6e223a22707574222c2273747265616d223a226a6f6231222c226d657373616765223a5b312c322e"
    "352c2278225d7d0a": ("put", "job1", {"message": [1, 2.5, "x"]}),
    "7b22616374696f6e223a2268616e677570222c2273747265616d223a226a6f6231227d0a": (
        "hangup",
        "job1",
        {},
    ),
    "7b22616374696f6e223a2268616e677570222c2273747265616d223a6e756c6c7d0a": ("hangup", None, {}),
    "7b22616374696f6e223a2264656c657465222c2273747265616d223a226a6f6231227d0a": (
        "delete",
        "job1",
        {},
    ),
    "7b22616374696f6e223a22636c6f7365222c2273747265616d223a226a6f6231227d0a": ("close", "job1", {}),
    "7b22616374696f6e223a22707574222c2273747265616d223a226a6f6231222c226d657373616765223a7b222e636c"
    "617373223a227061726b2e6d6f6e69746f722e50726f6772657373222c222e76657273696f6e223a22302e30222c22"
    "2e7374617465223a7b22636f6d706c657465223a332c22746f74616c223a31302c22756e697473223a6e756c6c7d7d"
    "7d0a": ("put", "job1", {"message": Progress(3, 10)}),
}


@pytest.mark.parametrize("text", VECTORS)
def test_must_hold_a_vector_is_written_and_read_as_it_stands(text: str) -> None:
    action, stream, more = VECTORS[text]
    line = bytes.fromhex(text)
    assert line_of(JsonCodec, action, stream, **more) == line
    assert decode(JsonCodec, line[:-1]) == {"action": action, "stream": stream, **more}


# --- 1 to 6: lines and headers


def test_decision_01_lines_end_with_lf_or_crlf_and_blank_ones_are_nothing(
    logged: list[Any],
) -> None:
    world = World()
    listener, publisher = world.listener("k"), world.peer()
    publisher.send(b'\r\n\n  \n{"action":"put","stream":"k","message":1}\r\n')
    publisher.send(b'{"action":"put","stream":"k","message":2}\n')
    listener.read()
    assert listener.received == (
        b'{"action":"put","stream":"k","message":1}\n{"action":"put","stream":"k","message":2}\n'
    )
    assert not [event for event in logged if "ignored" in event["log_format"]]


def test_decision_02_and_must_hold_a_newline_in_a_string_is_escaped() -> None:
    world = World()
    listener = world.listener("k\n\r\t é", "k")
    for text in ("a\nb\r\n", "é", "\u2028", "𝄞"):
        world.peer().say("put", "k\n\r\t é", message=text)
        world.peer().send(  # and without ASCII alone
            json.dumps(
                {"action": "put", "stream": "k", "message": text}, ensure_ascii=False
            ).encode()
            + b"\n"
        )
        listener.read()
        assert listener.received.count(b"\n") == 2
        assert b"\r" not in listener.received
        assert puts(listener.lines()) == [("k\n\r\t é", text), ("k", text)]


def test_decision_03_and_must_hold_a_header_comes_first_as_a_put_then_all_in_order() -> None:
    world = World()
    publisher = world.peer()
    publisher.say("header", "k", message={"h": 1})
    listener = world.listener("k")
    for number in range(5):
        publisher.say("put", "k", message=number)
    lines = listener.lines()
    assert lines[0] == {"action": "put", "stream": "k", "message": {"h": 1}}
    assert puts(lines) == [("k", {"h": 1}), *(("k", number) for number in range(5))]


def test_decision_04_and_must_hold_another_header_is_for_later_ones_alone() -> None:
    world = World()
    publisher, before = world.peer(), world.listener("k")
    publisher.say("header", "k", message=1)
    between = world.listener("k")
    publisher.say("header", "k", message=2)
    after = world.listener("k")
    assert [peer.messages() for peer in (before, between, after)] == [[], [1], [2]]


@pytest.mark.parametrize("line", [b'"message":null,', b""])
def test_decision_05_a_header_of_null_or_without_a_message_clears_it(line: bytes) -> None:
    world = World()
    publisher = world.peer()
    publisher.say("header", "k", message=1)
    publisher.send(b'{"action":"header",' + line + b'"stream":"k"}\n')
    assert world.listener("k").messages() == []
    assert world.stream["k"] is None


def test_decision_06_a_put_of_null_is_delivered_and_one_without_a_message_ignored(
    logged: list[Any],
) -> None:
    world = World()
    listener, publisher = world.listener("k"), world.peer()
    publisher.say("put", "k", message=None)
    publisher.say("put", "k")
    publisher.say("put", "k", message=1)
    assert listener.messages() == [None, 1]
    assert [e["reason"] for e in logged if "is ignored" in e["log_format"]] == [
        "message is missing"
    ]


# --- 7 to 13: ends


@pytest.mark.parametrize("action", ["delete", "close"])
def test_decisions_07_08_and_must_hold_an_end_is_told_behind_all_that_was_put(action: str) -> None:
    world = World()
    publisher, one, other = world.peer(), world.listener("k", "l"), world.listener("k")
    publisher.say("header", "k", message="h")
    publisher.send(
        b"".join(line_of(JsonCodec, "put", "k", message=number) for number in range(3))
        + line_of(JsonCodec, action, "k")
        + line_of(JsonCodec, "put", "k", message="lost")
        + line_of(JsonCodec, "put", "l", message="kept")
    )
    expected = [("k", 0), ("k", 1), ("k", 2), ("k", "close")]
    assert puts(one.lines()) == [*expected, ("l", "kept")]
    assert puts(other.lines()) == expected
    late = world.listener("k")
    publisher.say("put", "k", message="again")
    assert late.messages() == (["h", "again"] if action == "close" else ["again"])
    assert (one.lines(), other.lines()) == ([], [])


def test_decision_07_deleting_in_this_process_tells_those_at_the_server() -> None:
    world = World()
    listener = world.listener("k")
    world.stream.put("k", 1)
    del world.stream["k"]
    world.stream.put("k", 2)
    assert puts(listener.lines()) == [("k", 1), ("k", "close")]


def test_decision_08_a_late_one_gets_the_header_of_a_closed_stream_and_puts_work_again() -> None:
    world = World()
    world.stream["k"] = "h"
    world.peer().say("close", "k")
    late = world.listener("k")
    assert late.messages() == ["h"]
    world.peer().say("put", "k", message=1)
    assert late.messages() == [1]


@pytest.mark.parametrize("line", [b'{"action":"close"}\n', b'{"action":"close","stream":null}\n'])
def test_decision_09_a_close_without_a_stream_closes_the_connection_in_an_orderly_way(
    line: bytes,
) -> None:
    world = World()
    listener, other = world.listener("k", "l"), world.listener("k")
    listener.is_reading = False
    world.stream.put("k", 1)
    listener.send(line)
    world.stream.put("k", 2)
    world.turn()
    assert puts(listener.lines()) == [("k", 1)]
    assert listener.is_lost
    assert other.messages() == [1, 2]


def test_decision_10_and_must_hold_hanging_up_one_stream_or_all() -> None:
    world = World()
    listener, publisher = world.listener("a", "b", "c"), world.peer()
    for key in "abc":
        publisher.say("put", key, message=1)
    listener.say("hangup", "a")
    listener.say("hangup", "unknown")
    for key in "abc":
        publisher.say("put", key, message=2)
    listener.say("hangup", None)
    for key in "abc":
        publisher.say("put", key, message=3)
    told = [("a", 1), ("b", 1), ("c", 1), ("b", 2), ("c", 2)]
    assert puts(listener.lines()) == told  # and nothing confirms it
    listener.say("listen", "a")
    publisher.say("put", "a", message=4)
    assert listener.messages() == [4]


def test_decision_10_what_was_put_before_a_hangup_still_goes_out() -> None:
    world = World()
    listener = world.listener("k")
    world.stream.put("k", 1)  # gathered, not written yet
    listener.say("hangup", "k")
    world.stream.put("k", 2)
    world.turn()
    assert listener.messages() == [1]


def test_decision_11_listening_twice_is_once_and_sends_no_header_again() -> None:
    world = World()
    world.stream["k"] = "h"
    listener = world.listener("k", "k")
    world.stream.put("k", 1)
    world.turn()
    assert listener.messages() == ["h", 1]


def test_decision_12_and_must_hold_an_unknown_stream_is_waited_for_without_history() -> None:
    world = World()
    publisher = world.peer()
    publisher.say("put", "k", message="before")
    listener = world.listener("k")
    assert listener.lines() == []
    publisher.say("put", "k", message="after")
    assert listener.messages() == ["after"]


def test_decision_13_and_must_hold_a_lost_connection_has_hung_up() -> None:
    world = World()
    listener, other = world.listener("k", "l"), world.listener("k")
    listener.leave()
    world.peer().say("put", "k", message=1)
    assert other.messages() == [1]
    assert world.live._subscribers.keys() == {"k"}
    other.leave()
    assert not world.live._subscribers
    assert world.server._subscription_bytes == 0


# --- 14 and 5.5: who does not read


def slow_world(**limits: int) -> World:
    return World(StreamLimits(**limits))


def test_decision_14_and_must_hold_a_slow_listener_blocks_nobody_and_is_closed(
    logged: list[Any],
) -> None:
    world = slow_world(listener_bytes=200_000)
    slow, fast, publisher = world.listener("k", "l"), world.listener("k"), world.peer()
    slow.is_reading = False
    text = "x" * 1_000
    for number in range(1_000):
        publisher.say("put", "k", message=[number, text])
    assert [number for number, _ in fast.messages()] == list(range(1_000))
    lines = puts(slow.lines())
    assert slow.is_lost
    had, ends = lines[:-2], lines[-2:]
    assert [message[0] for _, message in had] == list(range(len(had)))  # up to there whole
    assert len(had) < 1_000
    assert ends == [("k", "close"), ("l", "close")]
    (told,) = [event for event in logged if "does not read" in event["log_format"]]
    assert (told["limit"], told["value"]) == ("listener_bytes", 200_000)


def test_decision_14_the_close_of_a_slow_listener_says_so() -> None:
    world = slow_world(listener_bytes=100_000)
    slow = world.listener("k")
    slow.is_reading = False
    for _ in range(300):
        world.peer().say("put", "k", message="x" * 1_000)
    assert slow.lines()[-1] == {"action": "close", "stream": "k", "reason": "slow"}


def test_rule_5_5_what_waits_for_many_is_kept_once() -> None:
    world = slow_world()
    slow = [world.listener("k") for _ in range(50)]
    for peer in slow:
        peer.is_reading = False
    for _ in range(1_000):
        world.peer().say("put", "k", message="x" * 1_000)
    assert 900_000 < world.server.held_bytes < 1_100_000
    assert all(900_000 < peer.protocol.waiting_bytes < 1_100_000 for peer in slow)
    assert all(peer.buffered < 2 * FULL for peer in slow)
    for peer in slow[:-1]:
        assert len(peer.messages()) == 1_000
    assert world.server.held_bytes > 900_000
    assert len(slow[-1].messages()) == 1_000
    assert world.server.held_bytes == 0


def test_rule_5_5_beyond_the_bytes_of_all_the_one_farthest_behind_is_closed_first() -> None:
    world = slow_world(streams_bytes=500_000)
    far, near = world.listener("k"), world.listener("l")
    far.is_reading = near.is_reading = False
    for number in range(1_000):
        world.peer().say("put", "l" if number % 4 == 0 else "k", message="x" * 1_000)
    assert far.protocol.is_over
    assert not near.protocol.is_over
    assert world.server.held_bytes <= 500_000
    assert len(near.messages()) == 250


def test_rule_5_5_a_listener_that_never_reads_its_end_is_cut_off() -> None:
    world = slow_world(listener_bytes=100_000, write_seconds=60)
    slow = world.listener("k")
    slow.is_reading = False
    for _ in range(300):
        world.peer().say("put", "k", message="x" * 1_000)
    world.reactor.advance(59)
    assert not slow.is_lost
    world.reactor.advance(2)
    assert slow.is_lost
    assert world.server.held_bytes == 0


def test_rule_5_5_a_line_is_encoded_once_for_all() -> None:
    encoded = []

    class Counting(JsonCodec):
        @staticmethod
        def encode(value: Any) -> bytes:
            encoded.append(value)
            return JsonCodec.encode(value)

    world = World(codec=Counting)
    listeners = [world.listener("k") for _ in range(100)]
    world.peer().say("put", "k", message=1)
    assert len(encoded) == 1
    assert all(peer.messages() == [1] for peer in listeners)


# --- 15 to 17: order


@pytest.mark.parametrize("seed", range(20))
def test_decision_15_and_must_hold_no_gap_and_no_duplicate_while_many_join_and_leave(
    seed: int,
) -> None:
    rng = random.Random(seed)
    world = World()
    publisher = world.peer()
    put = dict.fromkeys("abc", 0)
    active: list[tuple[Peer, dict[str, int]]] = []
    seen = 0

    def check(peer: Peer, expected: dict[str, int]) -> int:
        lines = peer.lines()
        for line in lines:
            key, number = line["stream"], line["message"]
            if expected[key] < 0:  # the header stands for all before it
                expected[key] = number + 1
                assert number <= put[key]
            else:
                assert number == expected[key]
                expected[key] += 1
        return len(lines)

    for _ in range(400):
        match rng.randrange(6):
            case 0:
                peer, keys = world.peer(), rng.sample("abc", rng.randint(1, 3))
                peer.is_reading = rng.random() < 0.5
                for key in keys:
                    peer.say("listen", key)
                active.append((peer, {key: -1 if put[key] else 0 for key in keys}))
            case 1 if active:
                peer, expected = active.pop(rng.randrange(len(active)))
                seen += check(peer, expected)
                peer.leave()
            case 2 if active:
                seen += check(*rng.choice(active))
            case 3:
                world.turn()
            case _:
                key, lines = rng.choice("abc"), b""
                for _ in range(rng.randint(1, 5)):
                    number = put[key]
                    put[key] += 1
                    lines += line_of(JsonCodec, "header", key, message=number)
                    lines += line_of(JsonCodec, "put", key, message=number)
                if rng.random() < 0.3:
                    publisher.send_each(lines)
                else:
                    publisher.send(lines)
    world.turn()
    for peer, expected in active:
        seen += check(peer, expected)
        assert all(expected[key] in (put[key], -1) for key in expected)
    assert seen > 100


def test_must_hold_several_listeners_of_several_streams_have_one_order() -> None:
    world = World()
    rng = random.Random(1)
    peers = [world.listener(*rng.sample("abcd", 3)) for _ in range(10)]
    publishers = world.peers(3)
    put: dict[str, list[int]] = {key: [] for key in "abcd"}
    for number in range(300):
        key = rng.choice("abcd")
        put[key].append(number)
        rng.choice(publishers).say("put", key, message=number)
    for peer in peers:
        lines = puts(peer.lines())
        for key in {key for key, _ in lines}:
            assert [message for one, message in lines if one == key] == put[key]


def test_decision_16_a_publisher_that_listens_gets_its_own() -> None:
    world = World()
    peer = world.listener("k")
    peer.say("put", "k", message=1)
    assert peer.messages() == [1]


def test_decision_17_a_key_is_a_string_on_the_wire_and_others_stay_in_process() -> None:
    world = World()
    listener = world.listener("1")
    world.stream.put(1, object())  # nobody at the server could name it
    world.stream[1] = object()
    world.stream.put("1", "text")
    world.turn()
    assert listener.messages() == ["text"]


KEYS = [
    "a.b",
    "a b",
    " ",
    "*",
    ">",
    "a.*.>",
    "new\nline",
    "carriage\rreturn",
    "",
    "\0",
    "é𝄞",
    "%41",
    "k" * 10_000,
]


@pytest.mark.parametrize("key", KEYS, ids=[ascii(key)[:12] for key in KEYS])
def test_decision_17_a_key_is_any_string_and_no_pattern(key: str) -> None:
    world = World()
    listener, other = world.listener(key), world.listener("other")
    world.peer().say("put", key, message=1)
    assert puts(listener.lines()) == [(key, 1)]
    assert other.lines() == []


def test_a_key_that_is_too_long_is_refused_to_who_listens(logged: list[Any]) -> None:
    world = World(StreamLimits(key_bytes=10))
    peer = world.listener("k" * 11, "k" * 10)
    assert peer.lines() == [{"action": "close", "stream": "k" * 11, "reason": "refused"}]
    world.peer().say("put", "k" * 10, message=1)
    assert peer.messages() == [1]
    assert any("key_bytes = 10" in event.get("reason", "") for event in logged)


# --- 18, 19: hostile and broken input

BROKEN = {
    "not json": b"hello",
    "single quotes": b"{'action': 'listen', 'stream': 'k'}",
    "not an object": b'["put","k",1]',
    "a string": b'"put"',
    "null": b"null",
    "no action": b'{"stream":"k","message":1}',
    "unknown action": b'{"action":"Put","stream":"k","message":1}',
    "action is a number": b'{"action":1,"stream":"k","message":1}',
    "action is a list": b'{"action":["put"],"stream":"k","message":1}',
    "no stream": b'{"action":"put","message":1}',
    "hangup without a stream": b'{"action":"hangup"}',
    "delete of null": b'{"action":"delete","stream":null}',
    "listen to null": b'{"action":"listen","stream":null}',
    "stream is a number": b'{"action":"put","stream":1,"message":1}',
    "stream is an object": b'{"action":"listen","stream":{}}',
    "no message": b'{"action":"put","stream":"k"}',
    "from is a number": b'{"action":"listen","stream":"k","from":1}',
    "invalid UTF-8": b'{"action":"put","stream":"k","message":"\xff\xfe"}',
    "invalid UTF-8 in the key": b'{"action":"put","stream":"\xc3","message":1}',
    "half a character": b'{"action":"put","stream":"k","message":"\\ud800"}',
    "NaN": b'{"action":"put","stream":"k","message":NaN}',
    "Infinity": b'{"action":"put","stream":"k","message":[-Infinity]}',
    "a number beyond all": b'{"action":"put","stream":"k","message":1e999}',
    "a thousand deep": b'{"action":"put","stream":"k","message":'
    + b"[" * 1_000
    + b"]" * 1_000
    + b"}",
    "a thousand objects deep": b'{"action":"put","stream":"k","message":'
    + b'{"a":' * 1_000
    + b"1"
    + b"}" * 1_000
    + b"}",
    "unbalanced": b'{"action":"put","stream":"k","message":' + b"[" * 300_000 + b"}",
    "a huge integer": b'{"action":"put","stream":"k","message":' + b"9" * 100_000 + b"}",
    "a control character": b'{"action":"put","stream":"k","message":"a\x01b"}',
    "a byte order mark": b'\xef\xbb\xbf{"action":"put","stream":"k","message":1}',
    "two values": b'{"action":"put","stream":"k","message":1}{}',
    "a zero": b"\0",
}


@pytest.mark.parametrize("name", BROKEN)
def test_decision_18_and_must_hold_a_malformed_line_is_ignored_and_logged(
    name: str, logged: list[Any]
) -> None:
    world = World()
    peer, other = world.listener("k"), world.listener("k")
    peer.send(BROKEN[name] + b"\n")
    peer.say("put", "k", message="after")
    assert peer.messages() == other.messages() == ["after"]
    assert len([event for event in logged if "is ignored" in event["log_format"]]) == 1
    assert not peer.is_lost


LARGE = {
    "open": b"[" * 16_000_000,
    "as deep as may be": (b"[" * 199 + b"]" * 199) * 40_000,
    # Each quote in a string that does not end might be the beginning of one.
    "a string without an end": b"[" * 201 + b'"' + b'\\"' * 1_000_000,
    "a string without an end, and half an escape": b"[" * 201 + b'"\\',
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", LARGE)
def test_decision_18_a_large_line_takes_time_that_grows_with_its_bytes(name: str) -> None:
    with pytest.raises(BadValue):
        decode(JsonCodec, b'{"action":"put","stream":"k","message":' + LARGE[name] + b"}")


def nested(rng: random.Random, depth: int) -> Any:
    """Return data of exactly this depth, with shallower parts beside, and brackets in its texts."""
    made: Any = rng.choice(["[", "]{", '"[', "\\", 1, None])
    for level in range(depth):
        beside: list[Any] = [rng.choice([[], {}, "[[", [[{"]": {}}]]]) for _ in range(3)]
        parts = [made, *beside[: rng.choice([0, 0, 1, 3])]] if level > 4 else [made]
        rng.shuffle(parts)
        is_object = rng.random() < 0.3
        made = {f"{n}{{": part for n, part in enumerate(parts)} if is_object else parts
    return made


@pytest.mark.parametrize("seed", range(50))
def test_decision_18_what_is_nested_is_counted_exactly(seed: int) -> None:
    rng = random.Random(seed)
    fits = JsonCodec.encode(nested(rng, content.NESTING_MAX))
    assert JsonCodec.encode(JsonCodec.decode(fits)) == fits
    with pytest.raises(BadValue, match="more than 200 arrays and objects"):
        JsonCodec.encode(nested(rng, content.NESTING_MAX + 1))


@pytest.mark.parametrize("name", BROKEN)
def test_decision_18_a_strict_server_ends_that_connection(name: str) -> None:
    world = World(is_strict=True)
    peer, other = world.listener("k"), world.listener("k")
    peer.send(BROKEN[name] + b"\n" + line_of(JsonCodec, "put", "k", message="never"))
    assert peer.is_lost
    assert other.lines() == []
    assert not other.is_lost


def test_decision_18_many_malformed_lines_fill_no_log(logged: list[Any]) -> None:
    world = World()
    peer = world.peer()
    peer.send(b"x\n" * 10_000)
    peer.leave()
    told = [event for event in logged if "ignored" in event["log_format"]]
    assert [event.get("count") for event in told] == [None, 10_000]


def test_big_integers_and_much_that_is_flat_pass() -> None:
    world = World()
    listener = world.listener("k")
    big = 9**400
    flat: Any = [[{}] * 3] * 2_000
    deep: Any = []
    for _ in range(190):
        deep = [deep]
    for message in (big, -big, flat, deep, "[" * 10_000, 1.5e300):
        world.peer().say("put", "k", message=message)
        assert listener.messages() == [message]


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_decision_19_a_line_over_the_limit_ends_that_connection(size: int) -> None:
    world = World(StreamLimits(line_bytes=1_000))
    peer, other = world.peer(), world.listener("k")
    fitting = line_of(JsonCodec, "put", "k", message="x" * 958)
    assert len(fitting) == 1_001
    for line in (fitting, fitting[:-1] + b"\r\n"):
        for at in range(0, len(line), size):
            peer.send(line[at : at + size])
        assert len(other.messages()) == 1
    long = line_of(JsonCodec, "put", "k", message="x" * 959)
    for at in range(0, len(long), size):
        peer.send(long[at : at + size])
    assert peer.is_lost
    assert other.lines() == []
    assert not other.is_lost


def test_decision_19_what_came_whole_before_a_long_line_counts() -> None:
    world = World(StreamLimits(line_bytes=1_000))
    peer, other = world.peer(), world.listener("k")
    peer.send(line_of(JsonCodec, "put", "k", message=1) + b"x" * 1_001)
    assert (other.messages(), peer.is_lost) == ([1], True)


def test_decision_19_nothing_longer_is_sent_though_it_grew_when_it_was_encoded(
    logged: list[Any],
) -> None:
    world = World(StreamLimits(line_bytes=1_000))
    publisher, listener = world.peer(), world.listener("k")
    grows = b"[" + b",".join([b"1e9"] * 200) + b"]"
    for action in (b"put", b"header"):
        publisher.send(b'{"action":"%b","stream":"k","message":%b}\n' % (action, grows))
    publisher.say("put", "k", message="after")
    assert listener.messages() == ["after"]
    assert world.listener("k").messages() == []
    (told,) = [event["reason"] for event in logged if "is ignored" in event["log_format"]]
    assert "line_bytes = 1000" in told


def test_decision_19_what_is_put_in_this_process_has_the_limit_of_a_line() -> None:
    world = World(StreamLimits(line_bytes=1_000))
    listener, got = world.listener("k"), DeferredQueue[Any]()
    world.stream.listen("k", got)
    for long in ("x" * 959, ["x"] * 500):
        with pytest.raises(LimitReached, match="line_bytes = 1000"):
            world.stream.put("k", long)
        with pytest.raises(LimitReached, match="line_bytes = 1000"):
            world.stream["k"] = long
    world.stream.put("k", "x" * 958)
    world.turn()
    assert listener.messages() == ["x" * 958]
    assert got.pending == ["x" * 958]
    assert world.stream["k"] is None


def test_half_a_line_for_thirty_seconds_ends_that_connection_and_silence_does_not() -> None:
    world = World()
    idle, peer, talking = world.listener("k"), world.peer(), world.peer()
    peer.send(b'{"action":')
    for _ in range(29):
        world.reactor.advance(1)
        talking.send(b'{"action":"put","stream":"k","message":1}\n{"action":')
        talking.send(b'"put","stream":"k","message":1}\n')
        talking.send(b"{")
        talking.send(b"}\n")
    assert not peer.is_lost
    peer.send(b'"put"')  # that it grows makes it no younger
    world.reactor.advance(2)
    assert peer.is_lost
    world.reactor.advance(1_000)
    assert (idle.is_lost, talking.is_lost) == (False, False)


def test_a_large_line_may_take_its_time() -> None:
    world = World(StreamLimits(line_bytes=8_000_000))
    peer, listener = world.peer(), world.listener("k")
    line = line_of(JsonCodec, "put", "k", message="x" * 6_000_000)
    for at in range(0, len(line), 100_000):
        peer.send(line[at : at + 100_000])
        world.reactor.advance(1.4)
    assert len(listener.messages()) == 1


def test_lines_that_are_not_whole_have_a_bound_over_all() -> None:
    world = World(StreamLimits(partial_bytes=1_000_000))
    small, large = world.peer(), world.peer()
    small.send(b"x" * 300_000)
    large.send(b"x" * 600_000)
    small.send(b"x" * 200_000)
    assert (small.is_lost, large.is_lost) == (False, True)
    small.send(b"\n")
    assert world.server._partial == 0


def test_headers_from_the_wire_have_a_bound(logged: list[Any]) -> None:
    world = World(StreamLimits(header_bytes=1_000, headers_max=5))
    peer = world.peer()
    for number in range(7):
        peer.say("header", f"k{number}", message=number)
    assert [world.stream[f"k{number}"] for number in range(7)] == [0, 1, 2, 3, 4, None, None]
    peer.say("header", "k0", message="x" * 1_000)
    assert world.stream["k0"] == 0
    peer.say("delete", "k0")
    peer.say("header", "k1")
    peer.say("header", "k5", message="x" * 500)
    assert world.stream["k5"] == "x" * 500
    del world.stream["k5"]
    peer.say("header", "k6", message="y" * 700)
    assert world.stream["k6"] == "y" * 700
    assert [event["reason"] for event in logged if "is ignored" in event["log_format"]] == [
        "limit headers_max = 5 reached"
    ]


def test_streams_of_one_connection_and_connections_have_a_bound() -> None:
    world = World(StreamLimits(subscriptions_max=2, connections_max=2, subscription_bytes=800))
    peer = world.listener("a", "b", "c")
    assert peer.lines() == [{"action": "close", "stream": "c", "reason": "refused"}]
    peer.say("hangup", "a")
    peer.say("listen", "c")
    other = world.listener("a", "b")
    assert other.lines() == [{"action": "close", "stream": "b", "reason": "refused"}]
    assert world.peer().is_lost
    other.leave()
    assert not world.peer().is_lost


def test_lines_that_make_much_work_are_taken_a_part_at_a_time() -> None:
    world = World()
    listeners = [world.listener(*"abcd") for _ in range(200)]
    peer = world.peer()
    peer.send(
        b"".join(
            line_of(JsonCodec, action, key, message=number)
            for number in range(50)
            for key in "abcd"
            for action in ("put", "listen", "hangup")
        )
    )
    assert peer.is_paused
    assert len(listeners[0].lines()) < 100
    world.turn()
    for _ in range(100):
        world.turn()
    assert not peer.is_paused
    for one in listeners[1:]:
        lines = puts(one.lines())
        assert [number for key, number in lines if key == "c"] == list(range(50))


# --- 20, 21: port and who may come


def test_decision_20_a_port_has_to_be_said() -> None:
    with pytest.raises(TypeError):
        StreamServer(Reactor(), MessageStream())  # type: ignore[call-arg]  # what is tested
    with pytest.raises(TypeError, match="listen = None"):
        StreamServer(Reactor(), MessageStream(), listen=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("listen", ["tcp:0", "tcp:0:interface=0.0.0.0", r"tcp:0:interface=\:\:"])
def test_decision_21_a_port_beyond_this_machine_needs_insecure_or_certificates(listen: str) -> None:
    server = StreamServer(Reactor(), MessageStream(), listen=listen)
    with pytest.raises(InsecureListener, match="certificates of clients"):
        server.privilegedStartService()


def test_a_bad_address_and_a_port_that_is_taken_are_said() -> None:
    with pytest.raises(BadAddress):
        StreamServer(Reactor(), MessageStream(), listen="nothing").privilegedStartService()
    assert issubclass(InsecureListener, CannotListen)


# --- 22, 23: objects and numbers


class Point:
    def __init__(self, x: int, y: int) -> None:
        raise AssertionError("restoring calls nothing")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


def point(**state: Any) -> Point:
    made = object.__new__(Point)
    vars(made).update(state)
    return made


register(Point, "tests.Point")


def test_decision_22_and_must_hold_objects_come_back_as_they_were() -> None:
    message = {"a": [point(x=1, y=[point(x=2)])], "b": Progress(1, 2, "s")}
    line = line_of(JsonCodec, "put", "k", message=message)
    assert decode(JsonCodec, line[:-1])["message"] == message


def test_decision_22_an_object_reaches_queues_of_this_process_and_lines() -> None:
    world = World()
    got: list[Any] = []

    class Queue:
        def put(self, message: Any) -> None:
            got.append(message)

    world.stream.listen("k", Queue())
    listener = world.listener("k")
    plain = {
        ".class": "park.monitor.Progress",
        ".version": "0.0",
        ".state": {"complete": 1, "total": 2, "units": None},
    }
    world.peer().say("put", "k", message=plain)
    assert got == [Progress(1, 2)]
    assert listener.messages() == [plain]


UNKNOWN: list[dict[str, Any]] = [
    {".class": "os.system", ".version": "0.0", ".state": {"command": "true"}},
    {".class": "tests.Point", ".version": "0.0", ".state": [1]},
    {".class": "tests.Point", ".version": "0.0"},
    {".class": "tests.Point", ".version": "0.0", ".state": {"__class__": 1}},
    {".class": "tests.Point", ".version": "0.0", ".state": {"no name": 1}},
    {".class": "tests.Point", ".version": "0.0", ".state": {}, "more": 1},
    {".class": ["tests.Point"], ".state": {}},
    {".class": "msgservice.faces.streams.monitor.Progress", ".state": {}},
]


@pytest.mark.parametrize("plain", UNKNOWN, ids=range(len(UNKNOWN)))
def test_decision_22_what_is_unknown_stays_plain_and_nothing_is_imported(
    plain: dict[str, Any],
) -> None:
    assert JsonCodec.decode(json.dumps([plain]).encode()) == [plain]


def test_decision_22_a_name_belongs_to_one_class() -> None:
    with pytest.raises(BadValue, match=r"tests\.Point"):
        register(MonitorMessage, "tests.Point")
    assert register(Point, "tests.Point") is Point
    assert content.register(Point, "tests.Point") is Point


class Slotted:
    __slots__ = ("a",)


class Abstract(ABC):
    @abstractmethod
    def a(self) -> None: ...


@pytest.mark.parametrize(
    "cls",
    [
        *(type("My", (one,), {}) for one in (dict, list, tuple, str, int, float, ValueError)),
        *(Slotted, Abstract, bool, complex, type),
    ],
)
def test_decision_22_a_class_whose_objects_cannot_be_restored_is_refused(cls: type) -> None:
    with pytest.raises(BadValue, match="class"):
        register(cls, "tests.Never")
    assert JsonCodec.decode(b'{".class":"tests.Never",".state":{}}') == {
        ".class": "tests.Never",
        ".state": {},
    }


def test_decision_22_a_hostile_state_shadows_no_method_of_the_class_itself() -> None:
    line = b'{".class":"park.monitor.Progress",".state":{"complete":"x","__eq__":1,"put":2}}'
    assert isinstance(JsonCodec.decode(line), dict)  # a name with two underscores is nobody's state
    line = b'{".class":"park.monitor.Progress",".state":{"more":[1]}}'
    made = JsonCodec.decode(line)
    assert (type(made), vars(made)) == (Progress, {"more": [1]})
    assert repr(made) == "Progress(more=[1])"


@pytest.mark.parametrize(
    "message",
    [float("nan"), float("inf"), [float("-inf")], object(), {1, 2}, "\ud800", 10**5_000],
    ids=["nan", "inf", "-inf", "object", "set", "half", "huge"],
)
def test_decision_23_what_cannot_be_encoded_is_refused_to_who_puts_it(message: Any) -> None:
    world = World()
    got: list[Any] = []

    class Queue:
        def put(self, message: Any) -> None:
            got.append(message)

    world.stream.listen("k", Queue())
    listener = world.listener("k")
    with pytest.raises(BadValue):
        world.stream.put("k", message)
    with pytest.raises(BadValue):
        world.stream["k"] = message
    assert (got, world.stream["k"]) == ([], None)
    world.stream.put("k", 1)
    world.turn()
    assert (got, listener.messages()) == ([1], [1])


def test_decision_23_circles_and_depth_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    deep: Any = 1
    for _ in range(201):
        deep = [deep]
    for message in (circle, deep):
        with pytest.raises(BadValue):
            JsonCodec.encode(message)


def test_a_header_that_cannot_be_encoded_any_more_is_refused_to_who_listens() -> None:
    world = World()
    header: list[Any] = [1]
    world.stream["k"] = header
    header.append(object())
    listener = world.listener("k")
    assert listener.lines() == [{"action": "close", "stream": "k", "reason": "refused"}]
    assert not world.live._subscribers


# --- 24, tokens, codec, threads


def test_decision_24_nothing_is_acknowledged() -> None:
    world = World()
    publisher = world.peer()
    for action in ("put", "header", "delete", "close", "hangup"):
        publisher.say(action, "k", message=1)
    assert publisher.lines() == []


@pytest.mark.parametrize("token", ["", "x", "0123:17", "🎉"])
def test_rule_5_4_without_a_node_every_token_is_foreign(token: str) -> None:
    world = World()
    peer = world.peer()
    peer.send(json.dumps({"action": "listen", "stream": "k", "from": token}).encode() + b"\n")
    world.stream.put("k", 1)
    world.turn()
    assert peer.lines() == [{"action": "close", "stream": "k", "reason": "gap"}]


def test_must_hold_a_codec_can_be_replaced() -> None:
    class Backwards:
        @staticmethod
        def encode(value: Any) -> str:
            return JsonCodec.encode(value).decode()[::-1]

        @staticmethod
        def decode(data: bytes) -> Any:
            return JsonCodec.decode(data.decode()[::-1].encode())

    world = World(codec=Backwards)
    peer = world.peer()
    peer.send(line_of(Backwards, "listen", "k"))
    peer.send(line_of(Backwards, "put", "k", message="é"))
    peer.say("put", "k", message="not backwards")
    assert peer.received == line_of(Backwards, "put", "k", message="é")


@pytest.mark.parametrize("text", ["a\nb", "a\r", "a\n"])
def test_a_codec_that_makes_more_than_one_line_is_refused(text: str) -> None:
    class Broken(JsonCodec):
        @staticmethod
        def encode(value: Any) -> Any:
            return text

    with pytest.raises(BadValue, match="more than one line"):
        line_of(Broken, "put", "k")


@pytest.mark.parametrize("made", [None, 5, "\ud800", "", " ", bytearray(b"{}")], ids=repr)
def test_a_codec_that_makes_no_line_is_refused(made: Any) -> None:
    class Broken(JsonCodec):
        @staticmethod
        def encode(value: Any) -> Any:
            return made

    with pytest.raises(BadValue, match="encoded"):
        line_of(Broken, "put", "k")


class NoEnds(JsonCodec):
    """A codec that has no word for an end."""

    @staticmethod
    def encode(value: Any) -> bytes:
        if value["action"] == "close":
            raise KeyError("mine")
        return JsonCodec.encode(value)


def test_a_codec_that_raises_for_the_end_of_a_slow_one_hurts_nobody_else(
    logged_failures: list[Any],
) -> None:
    world = World(StreamLimits(listener_bytes=100_000), codec=NoEnds)
    slow, other = world.listener("k"), world.listener("k")
    slow.is_reading = False
    for _ in range(500):
        world.stream.put("k", "x" * 1_000)
    world.turn()
    assert len(other.messages()) == 500
    slow.read()
    assert slow.is_lost
    assert logged_failures
    logged_failures.clear()


def test_a_codec_that_raises_for_an_end_ends_the_connections_of_who_listens(
    logged_failures: list[Any],
) -> None:
    world = World(codec=NoEnds)
    listener, other = world.listener("k"), world.listener("l")
    world.stream.put("k", 1)
    assert in_thread(lambda: world.stream.close("k")) == []
    in_thread(lambda: world.stream.put("l", 2))
    world.turn()
    assert listener.is_lost
    assert (listener.messages(), other.messages()) == ([1], [2])
    assert logged_failures
    logged_failures.clear()


def test_a_codec_that_raises_anything_is_said_as_a_bad_value() -> None:
    class Broken:
        @staticmethod
        def encode(value: Any) -> str:
            raise KeyError("mine")

        @staticmethod
        def decode(data: bytes) -> Any:
            raise KeyError("mine")

    with pytest.raises(BadValue, match="mine"):
        line_of(Broken, "put", "k")
    with pytest.raises(BadValue, match="mine"):
        decode(Broken, b"{}")


def in_thread(function: Any) -> list[BaseException]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    worker = threading.Thread(target=run)
    worker.start()
    worker.join()
    return errors


def put_all(world: World, messages: Any) -> None:
    for message in messages:
        world.stream.put("k", message)


def test_rule_5_8_a_put_of_another_thread_goes_through_the_reactor_in_its_order() -> None:
    world = World()
    listener = world.listener("k")
    assert in_thread(lambda: put_all(world, range(3))) == []
    assert listener.lines() == []
    world.stream.put("k", 3)  # of the reactor's thread, behind those
    late = world.listener("k")
    in_thread(lambda: world.stream.put("k", 4))
    in_thread(lambda: world.stream.close("k"))
    in_thread(lambda: world.stream.put("k", 5))
    world.turn()
    assert puts(listener.lines()) == [*(("k", number) for number in range(5)), ("k", "close")]
    assert puts(late.lines()) == [("k", 4), ("k", "close")]


def test_rule_5_8_what_other_threads_put_is_bounded() -> None:
    world = World(StreamLimits(streams_bytes=10_000))
    listener = world.listener("k")
    (error,) = in_thread(lambda: put_all(world, ["x" * 100] * 1_000))
    assert isinstance(error, LimitReached)
    assert error.limit == "streams_bytes"
    world.turn()
    assert 50 < len(listener.messages()) < 100
    assert in_thread(lambda: world.stream.put("k", 1)) == []


# --- bytes however they arrive


@pytest.mark.parametrize("seed", range(10))
def test_bytes_one_at_a_time_and_all_at_once_give_the_same_events(seed: int) -> None:
    rng = random.Random(seed)
    lines = list(BROKEN.values())[:12]
    for number in range(200):
        action = rng.choice(["put", "put", "put", "header", "listen", "hangup", "close", "delete"])
        lines.append(line_of(JsonCodec, action, rng.choice("abc"), message=number)[:-1])
    rng.shuffle(lines)
    data = b"".join(line + rng.choice([b"\n", b"\r\n", b"\n\n"]) for line in lines)

    def play(pieces: list[bytes]) -> list[Any]:
        world = World()
        peer, others = world.peer(), [world.listener("a"), world.listener("b", "c")]
        for piece in pieces:
            peer.send(piece)
        world.turn()
        return [per_stream(one) for one in (peer, *others)]

    cuts = sorted(rng.sample(range(len(data)), 50))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    at_once = play([data])
    assert play([data[n : n + 1] for n in range(len(data))]) == at_once
    assert play(pieces) == at_once
    assert any(at_once[1].values())


def per_stream(peer: Peer) -> dict[str, list[Any]]:
    lines = puts(peer.lines())
    return {key: [message for one, message in lines if one == key] for key in "abc"}


def test_a_splitter_takes_time_that_grows_with_the_bytes() -> None:
    splitter = LineSplitter(10_000_000)
    for _ in range(1_000_000):
        splitter.feed(b"x")
    assert splitter.feed(b"\n") == [b"x" * 1_000_000]
    assert splitter.partial == 0


def test_rule_5_9_streams_are_listed_with_listeners_and_how_many_are_behind() -> None:
    world = World()
    slow, _, left = world.listener("k"), world.listener("k", "l"), world.listener("m")
    left.leave()
    slow.is_reading = False
    for _ in range(200):
        world.peer().say("put", "k", message="x" * 1_000)
    assert sorted(one[:3] for one in world.server.streams()) == [("k", 2, 1), ("l", 1, 0)]
    slow.is_reading = True
    slow.read()
    assert sorted(one[:3] for one in world.server.streams()) == [("k", 2, 0), ("l", 1, 0)]


def test_rule_5_9_who_listens_is_listed_with_what_waits_and_since_when() -> None:
    world = World()
    slow, fast, asking = world.listener("k"), world.listener("k", "l"), world.peer()
    slow.is_reading = False
    for _ in range(100):
        world.peer().say("put", "k", message="x" * 1_000)
    world.reactor.advance(7)
    world.peer().say("put", "k", message="x" * 1_000)
    asking.send(b'{"action":"list","stream":"k"}\n{"action":"list","stream":"m"}\n')
    world.turn()
    found, nobody = asking.lines()
    assert (found["action"], found["stream"], found["count"]) == ("list", "k", 2)
    first, second = found["listeners"]
    assert first["peer"] == slow.protocol.peer
    assert first["waiting"] == slow.protocol.waiting_bytes > 20_000
    assert first["lag"] == 7.0
    assert second == {"peer": fast.protocol.peer, "waiting": 0, "lag": 0.0}
    assert (nobody["stream"], nobody["listeners"], nobody["count"]) == ("m", [], 0)
    (state,) = [one for one in world.server.streams() if one.key == "k"]
    assert state == ("k", 2, 1, 7.0)
    slow.messages()
    assert [one.lag for one in world.server.listeners("k")] == [0.0, 0.0]


def test_rule_5_9_a_list_of_listeners_has_those_farthest_behind() -> None:
    world = World()
    many = [world.listener("k") for _ in range(PAGE_STREAMS + 5)]
    many[-1].is_reading = False
    for _ in range(100):
        world.stream.put("k", "x" * 1_000)
    world.reactor.advance(3)
    asking = world.peer()
    asking.send(b'{"action":"list","stream":"k"}\n')
    world.turn()
    (found,) = asking.lines()
    assert (len(found["listeners"]), found["count"]) == (PAGE_STREAMS, PAGE_STREAMS + 5)
    assert found["listeners"][0]["peer"] == many[-1].protocol.peer


# --- 5.9: headers with a ttl


def test_rule_5_9_a_header_with_a_ttl_is_none_when_that_is_over() -> None:
    world = World()
    peer, listener = world.peer(), world.listener("k")
    peer.say("header", "k", message="done", ttl=60)
    world.reactor.advance(59)
    assert world.listener("k").messages() == ["done"]
    world.reactor.advance(2)
    assert world.stream["k"] is None
    assert world.live._header_bytes == 0
    assert listener.lines() == []  # who listens is told nothing of headers
    assert not world.reactor.getDelayedCalls()


@pytest.mark.parametrize("how", ["line", "line with more", "here"])
def test_rule_5_9_a_header_that_was_set_anew_has_the_time_of_that(how: str) -> None:
    world = World()
    peer = world.peer()
    peer.say("header", "k", message="old", ttl=60)
    world.reactor.advance(50)
    if how == "here":
        world.stream["k"] = "new"
    else:
        peer.say("header", "k", message="new", **({} if how == "line" else {"ttl": 60}))
    world.reactor.advance(20)
    assert world.stream["k"] == "new"
    world.reactor.advance(1_000)
    assert world.stream["k"] == (None if how == "line with more" else "new")
    for number in range(1_000):
        peer.say("header", "k", message=number, ttl=60)
    assert len(world.reactor.getDelayedCalls()) == 1


def test_rule_5_9_a_server_that_stops_leaves_no_timer_and_goes_on_with_ttls_later() -> None:
    world = World()
    peer = world.peer()
    peer.say("header", "k", message="h", ttl=60)
    peer.leave()
    world.server.stopService()
    assert not world.reactor.getDelayedCalls()
    world.reactor.advance(61)
    world.server.startService()
    world.turn()
    assert world.stream["k"] is None


@pytest.mark.parametrize("ttl", [0, -1, True, "60", [], {}, 1e12])
def test_a_ttl_that_is_none_makes_its_line_malformed(ttl: Any, logged: list[Any]) -> None:
    world = World()
    world.peer().say("header", "k", message="h", ttl=ttl)
    assert world.stream["k"] is None
    assert any("ttl must be" in event.get("reason", "") for event in logged)


# --- the end of a server


def test_a_server_that_stops_sends_what_was_put_and_closes_all() -> None:
    world = World()
    listener, slow = world.listener("k"), world.listener("k")
    slow.is_reading = False
    world.stream.put("k", 1)
    stopped = world.server.stopService()
    assert listener.is_lost
    assert listener.messages() == [1]
    assert not stopped.called
    world.stream.put("k", 2)
    world.reactor.advance(60)
    assert slow.is_lost
    assert stopped.called
    assert not world.reactor.getDelayedCalls()


def test_a_server_that_stops_sends_what_other_threads_had_put() -> None:
    world = World()
    listener = world.listener("k")
    in_thread(lambda: put_all(world, range(3)))
    world.server.stopService()
    assert listener.is_lost
    assert listener.messages() == [0, 1, 2]


def test_a_connection_that_ends_leaves_no_timer() -> None:
    world = World()
    peer = world.peer()
    peer.send(b"half")
    peer.leave()
    assert not world.reactor.getDelayedCalls()


def test_rule_5_9_a_line_lists_the_streams_in_pages_by_their_keys() -> None:
    world = World()
    listener, asking = world.peer(), world.peer()
    keys = [f"{number:03}" for number in range(PAGE_STREAMS + 1)]
    for key in reversed(keys):
        listener.say("listen", key)
    world.turn()
    asking.send(b'{"action":"list"}\n')
    world.turn()
    (first,) = asking.lines()
    assert [one["stream"] for one in first["streams"]] == keys[:-1]
    assert first["streams"][0] == {"stream": "000", "listeners": 1, "behind": 0, "lag": 0.0}
    assert first["next"] == keys[-2]
    assert first["ignored"] == 0
    asking.send(json.dumps({"action": "list", "after": first["next"]}).encode() + b"\n")
    world.turn()
    (last,) = asking.lines()
    assert [one["stream"] for one in last["streams"]] == keys[-1:]
    assert last["next"] is None


def test_rule_5_9_a_list_says_how_many_lines_were_ignored_and_one_of_a_wrong_type_is() -> None:
    world = World()
    asking = world.peer()
    asking.send(b'{"action":"list","after":1}\nno line\n{"action":"list"}\n')
    world.turn()
    (line,) = asking.lines()
    assert line == {"action": "list", "streams": [], "next": None, "ignored": 2}


# --- headers that end


def test_rule_5_9_a_header_that_has_gone_keeps_nothing_until_its_ttl_is_over() -> None:
    world = World()
    peer = world.peer()
    for number in range(100):
        peer.say("header", f"deleted {number}", message=1, ttl=1e6)
        peer.say("delete", f"deleted {number}")
        peer.say("header", f"cleared {number}", message=1, ttl=1e6)
        peer.say("header", f"cleared {number}")
        peer.say("header", f"stays {number}", message=1, ttl=1e6)
        peer.say("header", f"stays {number}", message=1)
    assert [] == world.reactor.getDelayedCalls()


def test_rule_5_9_a_header_that_a_thread_deletes_keeps_nothing_either() -> None:
    world = World()
    world.peer().say("header", "k", message=1, ttl=1e6)
    thread = threading.Thread(target=world.stream.__delitem__, args=("k",))
    thread.start()
    thread.join()
    world.turn()
    assert [] == world.reactor.getDelayedCalls()


def test_rule_5_9_a_header_that_is_set_while_nobody_serves_does_not_end_with_the_one_before() -> (
    None
):
    world = World()
    world.peer().say("header", "k", message=["ends"], ttl=60)
    world.server.stopService()
    world.stream["k"] = ["stays"]
    world.server.startService()
    world.turn()
    world.reactor.advance(61)
    assert ["stays"] == world.stream["k"]


def test_what_is_put_by_who_made_the_server_in_another_thread_is_written_by_the_reactor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a program makes it, and the reactor runs in another thread."""
    reactor, stream, endpoint = Reactor(), MessageStream(), Endpoint()
    calls: list[Any] = []
    monkeypatch.setattr(reactor, "callFromThread", lambda call: calls.append(call))
    made: list[StreamServer] = []
    again = threading.Event()

    def program() -> None:
        made.append(StreamServer(reactor, stream, listen=endpoint))
        again.wait(60)
        stream.put("k", 1)

    thread = threading.Thread(target=program)
    thread.start()
    while not made:
        thread.join(0.001)
    made[0].startService()
    listener = Peer(endpoint.factory)
    listener.say("listen", "k")
    again.set()
    thread.join()
    assert [] == reactor.getDelayedCalls()
    (call,) = calls
    call()
    assert [1] == listener.messages()
