"""The messages themselves: the captured ones byte for byte, and everything that is none."""

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.errors import FrameTooLarge, MalformedFrame
from msgservice.faces.callbacks.protocol.events import (
    ActionReceived,
    CallbackLimits,
    Event,
    Failed,
    FileAnswered,
    FileData,
    FileEnded,
    FilePushed,
    FileRequested,
    Ignored,
    RequestReceived,
    ResponseReceived,
)
from msgservice.faces.callbacks.protocol.peer import CallbackPeer
from msgservice.faces.callbacks.protocol.reader import MessageReader, Whole
from msgservice.faces.callbacks.protocol.wire import Encoder, decode_json, parse_header
from tests.kit.callbacks_vectors import VECTORS

LITTLE = Encoder("little")
DISCOVERY = {"host": "192.168.1.101", "port": "25000", "id": "0042", "start_time": "1700000000.5"}
FILE = b"\x00\x01\xff\x68ello\n"


def header(content: bytes = b"", /, **changes: object) -> bytes:
    """A header that is right but for the changes; a key that is changed to `...` is left out."""
    keys: dict[str, object] = {
        "byteorder": "little",
        "content-type": "json",
        "content-encoding": "utf-8",
        "content-length": len(content),
        "message-type": "message",
        "action": "stop",
    } | {key.replace("_", "-") if "content" in key or "message" in key else key: value
         for key, value in changes.items()}  # fmt: skip
    text = json.dumps({k: v for k, v in keys.items() if v is not ...}, ensure_ascii=False).encode()
    return len(text).to_bytes(2, "big") + text


def message(content: bytes = b'{"args": [], "kwargs": {}}', /, **changes: object) -> bytes:
    return header(content, **changes) + content


def make_peer(**options: object) -> CallbackPeer:
    peer = CallbackPeer(byteorder="little", **options)  # type: ignore[arg-type]  # one of any kind
    peer.connected()
    return peer


def failure(events: list[Event]) -> str:
    assert isinstance(events[-1], Failed), events
    return str(events[-1].error)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        (
            "message_args_kwargs",
            LITTLE.action("test_command", (1, "two"), {"a": 3, "b": [True, None]}),
        ),
        ("message_empty", LITTLE.action("stop")),
        ("request", LITTLE.request("time", "5305", [1], {"k": "v"})),
        ("response_json", LITTLE.response("time", "5305", 1234.5)),
        ("send_file", LITTLE.file_push("dst.bin", len(FILE)) + FILE),
        ("get_file_request", LITTLE.request("filetransfer", "2471", (), {"filepath": "src.bin"})),
        ("get_file_reply", LITTLE.file_response("2471", len(FILE)) + FILE),
        ("udp_server_ip", LITTLE.action("server_ip", (), DISCOVERY)),
    ],
)
def test_what_is_sent_is_byte_for_byte_what_the_original_sends(name: str, sent: bytes) -> None:
    assert VECTORS[name] == sent


def test_every_vector_is_compared() -> None:
    assert len(VECTORS) == 8


def test_captured_action_is_understood() -> None:
    expected = ActionReceived("test_command", [1, "two"], {"a": 3, "b": [True, None]})
    assert [expected] == make_peer().receive_data(VECTORS["message_args_kwargs"])


def test_captured_empty_action_is_understood() -> None:
    assert [ActionReceived("stop", [], {})] == make_peer().receive_data(VECTORS["message_empty"])


def test_captured_request_is_understood() -> None:
    expected = RequestReceived("time", "5305", [1], {"k": "v"})
    assert [expected] == make_peer().receive_data(VECTORS["request"])


def test_captured_answer_is_understood() -> None:
    peer = make_peer(first_id=5305)
    request = peer.request("time", [1], {"k": "v"})
    assert [ResponseReceived(request, 1234.5)] == peer.receive_data(VECTORS["response_json"])


def test_captured_file_is_understood() -> None:
    assert [
        FilePushed("dst.bin", 9, 0, None, False),
        FileData(memoryview(FILE)),
        FileEnded(None),
    ] == make_peer().receive_data(VECTORS["send_file"])


def test_captured_request_for_a_file_is_understood() -> None:
    expected = FileRequested("2471", "src.bin", 0, "")
    assert [expected] == make_peer().receive_data(VECTORS["get_file_request"])


def test_captured_file_answer_is_understood() -> None:
    peer = make_peer(first_id=2471)
    request = peer.request_file("src.bin")
    assert [
        FileAnswered(request, 9, 0, False),
        FileData(memoryview(FILE)),
        FileEnded(None),
    ] == peer.receive_data(VECTORS["get_file_reply"])


def joined(events: list[Event]) -> list[object]:
    """The events, with the data of a file in one piece: where it is cut is nobody's business."""
    out: list[object] = []
    for event in events:
        if isinstance(event, FileData):
            if out and isinstance(out[-1], bytes):
                out[-1] += bytes(event.data)
            else:
                out.append(bytes(event.data))
        elif isinstance(event, ResponseReceived | FileAnswered):
            out.append((type(event), event.request.request_id))
        elif isinstance(event, Failed):
            out.append(str(event.error))
        else:
            out.append(event)
    return out


EVERYTHING = b"".join(
    [
        VECTORS["message_args_kwargs"],
        VECTORS["send_file"],
        VECTORS["response_json"],
        VECTORS["get_file_reply"],
        LITTLE.file_push("empty", 0),
        message(b'{"x": 1}', message_type="nobody knows"),
        VECTORS["get_file_request"],
        VECTORS["request"],
        message('{"args": ["ä€😀"]}'.encode("utf-16-le"), content_encoding="utf-16-le"),
        message(b"[", action="broken at the end"),
    ]
)


def events_of(pieces: list[bytes]) -> list[object]:
    peer = make_peer(first_id=5305)
    peer.request("time")
    peer.forget(peer.request("5306"))
    while peer.request_file("src.bin").request_id != "2471":
        pass
    return joined([event for piece in pieces for event in peer.receive_data(piece)])


def test_bytes_one_at_a_time_and_all_at_once_give_the_same_events() -> None:
    whole = events_of([EVERYTHING])
    assert len(whole) == 15
    assert whole == events_of([EVERYTHING[i : i + 1] for i in range(len(EVERYTHING))])


@given(cuts=st.lists(st.integers(0, len(EVERYTHING))))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    reader, expected = MessageReader(), MessageReader()
    places = [0, *sorted(cuts), len(EVERYTHING)]
    pieces = [EVERYTHING[a:b] for a, b in itertools.pairwise(places)]
    parts = [part for piece in pieces for part in reader.feed(piece)]
    whole = [part for part in parts if isinstance(part, Whole)]
    assert whole == [part for part in expected.feed(EVERYTHING) if isinstance(part, Whole)]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(args=st.lists(JSON_VALUES), kwargs=st.dictionaries(st.text(), JSON_VALUES))
def test_any_arguments_are_written_as_python_writes_them_and_read_back(
    args: list[object], kwargs: dict[str, object]
) -> None:
    sent = LITTLE.action("a", args, kwargs)
    text = json.dumps({"args": args, "kwargs": kwargs}, ensure_ascii=False).encode()
    assert text == sent[-len(text) :]
    assert [ActionReceived("a", args, kwargs)] == make_peer().receive_data(sent)


@given(data=st.binary(max_size=300))
def test_any_bytes_at_all_are_survived(data: bytes) -> None:
    events = make_peer().receive_data(data)
    assert all(not isinstance(event, Failed) for event in events[:-1])


@given(
    content=st.binary(max_size=50),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "content_length": st.integers(-(2**70), 2**70) | JSON_VALUES,
            "message_type": st.sampled_from(["message", "request", "response", "error", "hello"])
            | JSON_VALUES,
            "content_type": st.just("binary") | JSON_VALUES,
            "content_encoding": st.sampled_from(["utf-8", "hex", "utf-16"]) | JSON_VALUES,
            "action": JSON_VALUES,
            "filepath": JSON_VALUES,
            "request_id": JSON_VALUES,
            "requested_value": JSON_VALUES,
            "x-msgservice": JSON_VALUES,
            "x-offset": JSON_VALUES,
        },
    ),
)
def test_any_header_at_all_is_survived(content: bytes, changes: dict[str, object]) -> None:
    peer = make_peer(announce=True)
    peer.request("time")
    peer.receive_data(message(content, **changes))


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["byteorder", "content-type", "content-encoding", "content-length", "message-type"]
)
def test_missing_header_key_ends_the_connection_and_is_named(key: str) -> None:
    changes: dict[str, object] = {key.replace("-", "_"): ...}
    assert f"`{key}`" in failure(make_peer().receive_data(message(**changes)))


@pytest.mark.parametrize("byteorder", ["big", "middle", 7, None])
def test_byteorder_is_never_used(byteorder: object) -> None:
    events = make_peer().receive_data(message(byteorder=byteorder))
    assert [ActionReceived("stop", [], {})] == events


@pytest.mark.parametrize(
    "encoding", ["utf-8", "UTF8", "utf-16-le", "utf-16", "utf-32-be", "cp1251"]
)
def test_json_in_a_foreign_encoding_is_understood(encoding: str) -> None:
    content = '{"args": ["привет"], "kwargs": {}}'.encode(encoding)
    events = make_peer().receive_data(message(content, content_encoding=encoding))
    assert [ActionReceived("stop", ["привет"], {})] == events


@pytest.mark.parametrize("encoding", ["klingon", "hex", "zlib", "punycode", "", "\0", 8, None, []])
def test_unknown_encoding_ends_the_connection_and_is_named(encoding: object) -> None:
    text = failure(make_peer().receive_data(message(content_encoding=encoding)))
    assert f"unknown content-encoding {str(encoding)!r}" == text


def test_encoding_of_raw_content_does_not_matter() -> None:
    sent = message(b"x", content_type="binary", content_encoding=5, action="filetransfer",
                   filepath="f")  # fmt: skip
    assert FileEnded(None) == make_peer().receive_data(sent)[-1]


def test_header_longer_than_it_says_ends_the_connection() -> None:
    sent = bytearray(VECTORS["message_empty"])
    sent[:2] = (int.from_bytes(sent[:2], "big") - 1).to_bytes(2, "big")
    assert "header of 142 bytes is not JSON" in failure(make_peer().receive_data(bytes(sent)))


def test_header_shorter_than_it_says_ends_the_connection() -> None:
    sent = bytearray(VECTORS["message_empty"])
    sent[:2] = (int.from_bytes(sent[:2], "big") + 1).to_bytes(2, "big")
    assert "header of 144 bytes is not JSON" in failure(make_peer().receive_data(bytes(sent)))


def test_header_of_nothing_but_spaces_ends_the_connection() -> None:
    text = failure(make_peer().receive_data(b"\xff\xff" + b" " * 65_535))
    assert "header of 65535 bytes is not JSON" in text


def test_header_of_no_bytes_ends_the_connection() -> None:
    assert "header of 0 bytes" in failure(make_peer().receive_data(b"\0\0"))


def test_largest_header_is_understood() -> None:
    padding = 65_535 - len(header(b"{}", action="stop", padding="")) + 2
    events = make_peer().receive_data(message(b"{}", padding="p" * padding))
    assert [ActionReceived("stop", [], {})] == events


def test_header_limit_is_named() -> None:
    peer = make_peer(limits=CallbackLimits(header_bytes_max=100))
    assert "frame of 143 bytes, at most 100" in failure(peer.receive_data(VECTORS["message_empty"]))


def test_header_that_cannot_be_sent_is_refused_at_the_call() -> None:
    with pytest.raises(FrameTooLarge, match="at most 65535"):
        make_peer().send_message("a" * 65_535)


@pytest.mark.parametrize(
    "text", [b"[]", b"7", b"null", b'"x"', b"\xff\xfe", b"{", b"[" * 50_000], ids=repr
)
def test_header_that_is_no_object_ends_the_connection(text: bytes) -> None:
    with pytest.raises(MalformedFrame, match="header"):
        parse_header(text)


def test_header_with_what_only_python_calls_json_is_understood() -> None:
    sent = message(b"{}", unused=math.nan)
    assert [ActionReceived("stop", [], {})] == make_peer().receive_data(sent)


# --- content-length -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["26", None, [26], True, 26.5, 1e300])
def test_content_length_that_is_no_number_ends_the_connection(length: object) -> None:
    text = failure(make_peer().receive_data(message(content_length=length)))
    assert "content-length" in text


def test_negative_content_length_ends_the_connection() -> None:
    assert "content-length is -1" in failure(make_peer().receive_data(message(content_length=-1)))


@pytest.mark.parametrize("length", [16 * 2**20 + 1, 10**18, 10**30])
def test_huge_content_length_ends_the_connection_before_any_content(length: int) -> None:
    text = failure(make_peer().receive_data(header(content_length=length)))
    assert f"frame of {length} bytes, at most 16777216" in text


def test_huge_file_ends_the_connection_before_any_content() -> None:
    peer = make_peer(limits=CallbackLimits(file_bytes_max=1000))
    sent = header(content_length=1001, content_type="binary", action="filetransfer", filepath="f")
    assert "frame of 1001 bytes, at most 1000" in failure(peer.receive_data(sent))


def test_short_content_length_ends_the_connection() -> None:
    text = failure(make_peer().receive_data(message(content_length=25)))
    assert "content of 25 bytes is not JSON in utf-8" in text


def test_content_length_beyond_the_content_takes_the_next_message_for_content() -> None:
    sent = message(b"{}", content_length=4)
    assert "not JSON" in failure(make_peer().receive_data(sent + sent))


# --- contents -------------------------------------------------------------------------------------


def test_null_content_is_a_complete_message() -> None:
    events = make_peer().receive_data(message(b"null") + VECTORS["message_empty"])
    assert [ActionReceived("stop", [], {})] * 2 == events


def test_null_request_is_ignored() -> None:
    events = make_peer().receive_data(
        message(b"null", message_type="request") + VECTORS["message_empty"]
    )
    assert [Ignored, ActionReceived] == [type(event) for event in events]


def test_null_answer_is_null() -> None:
    peer = make_peer()
    request = peer.request("time")
    sent = message(b"null", message_type="response", requested_value="time", request_id="0000")
    assert [ResponseReceived(request, None)] == peer.receive_data(sent)


@pytest.mark.parametrize("content", [b'{"args": null, "kwargs": null}', b'{"args": null}', b"{}"])
def test_null_and_missing_arguments_are_empty(content: bytes) -> None:
    assert [ActionReceived("stop", [], {})] == make_peer().receive_data(message(content))


def test_resent_request_of_the_original_without_its_arguments_is_understood() -> None:
    content = b'{"requested_value": "time", "request_id": "0007", "args": null, "kwargs": {}}'
    events = make_peer().receive_data(message(content, message_type="request"))
    assert [RequestReceived("time", "0007", [], {})] == events


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_nan_ends_the_connection_unless_allowed(number: bytes) -> None:
    sent = message(b'{"args": [%s], "kwargs": {}}' % number)
    assert f"{number.decode()} is not JSON" in failure(make_peer().receive_data(sent))
    events = make_peer(allow_nan=True).receive_data(sent)
    assert isinstance(events[0], ActionReceived)
    assert repr(float(number)) == repr(events[0].args[0])


def test_nan_is_not_sent_unless_allowed() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_peer().send_message("a", [math.nan])
    make_peer(allow_nan=True).send_message("a", [math.nan])


def test_invalid_utf8_ends_the_connection() -> None:
    text = failure(make_peer().receive_data(message(b'{"args": ["\xff"]}')))
    assert "not JSON in utf-8" in text


@pytest.mark.parametrize("content", [b"", b"{", b"{}x", b"[" * 100_000, b"9" * 5000 + b"x"])
def test_content_that_is_no_json_ends_the_connection(content: bytes) -> None:
    assert "is not JSON" in failure(make_peer().receive_data(message(content)))


@pytest.mark.parametrize(
    ("content", "offender"),
    [
        (b"[]", "Expected `object`"),
        (b"5", "Expected `object`"),
        (b'{"args": "ab"}', "args is not a list"),
        (b'{"args": {}}', "args is not a list"),
        (b'{"args": 5}', "args is not a list"),
        (b'{"kwargs": []}', "kwargs is not an object"),
        (b'{"kwargs": "x"}', "kwargs is not an object"),
    ],
)
def test_content_of_the_wrong_type_ends_the_connection_and_is_named(
    content: bytes, offender: str
) -> None:
    assert offender in failure(make_peer().receive_data(message(content)))


@pytest.mark.parametrize(
    ("content", "offender"),
    [
        (b"{}", "requested_value"),
        (b'{"requested_value": "x"}', "request_id"),
        (b'{"request_id": "x"}', "requested_value"),
        (b'{"requested_value": 5, "request_id": "x"}', "requested_value is not a string"),
    ],
)
def test_request_without_name_or_id_ends_the_connection(content: bytes, offender: str) -> None:
    assert offender in failure(make_peer().receive_data(message(content, message_type="request")))


def test_answer_without_value_ends_the_connection() -> None:
    sent = message(b"{}", message_type="response", requested_value="x", request_id="0000")
    assert "`value`" in failure(make_peer().receive_data(sent))


def test_request_with_raw_content_ends_the_connection() -> None:
    sent = message(b"x", message_type="request", content_type="binary")
    assert "raw content" in failure(make_peer().receive_data(sent))


@pytest.mark.parametrize("action", [..., None, 5, []])
def test_message_without_action_ends_the_connection(action: object) -> None:
    assert "name of an action" in failure(make_peer().receive_data(message(action=action)))


@pytest.mark.parametrize("filepath", [..., None, 5])
def test_file_without_path_ends_the_connection(filepath: object) -> None:
    sent = message(b"x", content_type="binary", action="filetransfer", filepath=filepath)
    assert "file without a filepath" in failure(make_peer().receive_data(sent))


@pytest.mark.parametrize("kind", ["gossip", "error", "resume", "received", 5, None, [], {"a": 1}])
@pytest.mark.parametrize("content_type", ["json", "binary"])
def test_unknown_type_is_ignored_and_the_next_message_understood(
    kind: object, content_type: str
) -> None:
    sent = message(b"{}", message_type=kind, content_type=content_type)
    events = make_peer().receive_data(sent + VECTORS["message_empty"])
    assert [Ignored, ActionReceived] == [type(event) for event in events]


def test_raw_content_of_another_action_is_ignored() -> None:
    sent = message(b"x" * 1000, content_type="image/png", action="photo")
    events = make_peer().receive_data(sent + VECTORS["message_empty"])
    assert [Ignored("raw content", "photo"), ActionReceived("stop", [], {})] == events


def test_nothing_is_read_after_a_failure() -> None:
    peer = make_peer()
    failure(peer.receive_data(b"\0\0" + VECTORS["message_empty"]))
    assert peer.receive_data(VECTORS["message_empty"]) == []


def test_what_came_before_a_failure_is_not_lost() -> None:
    events = make_peer().receive_data(VECTORS["message_empty"] + b"\0\0")
    assert [ActionReceived, Failed] == [type(event) for event in events]


@given(value=JSON_VALUES)
def test_fast_and_slow_decoder_agree(value: object) -> None:
    text = json.dumps({"value": value}).encode()
    peer = make_peer()
    peer.request("x")
    sent = message(text, message_type="response", requested_value="x", request_id="0000")
    (event,) = peer.receive_data(sent)
    assert isinstance(event, ResponseReceived)
    assert decode_json(text, "utf-8") == {"value": event.value}


@pytest.mark.parametrize("name", [5, None, b"land", ["land"]])
def test_a_name_that_is_no_text_is_not_written(name: Any) -> None:
    with pytest.raises(TypeError, match="an action is named by text, not by "):
        LITTLE.action(name)
    with pytest.raises(TypeError, match="a requested value is named by text, not by "):
        LITTLE.request(name, "0001")
