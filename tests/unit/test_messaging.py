"""The documentation's surface: names, signatures, and two managers on a plain selectors loop."""

import inspect
import logging
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from msgservice.faces import messaging
from msgservice.faces.callbacks.files import FileRoot, IncomingFile
from msgservice.faces.callbacks.protocol.wire import Encoder
from msgservice.faces.callbacks.registry import DEFAULT
from msgservice.faces.messaging.manager import logger
from tests.kit.callbacks_vectors import CUT_OFF, VECTORS

EMPTY = inspect.Parameter.empty

SIGNATURES: list[tuple[str, list[tuple[str, Any]]]] = [
    ("get_ip_address", []),
    ("message_callback", [("action_string", EMPTY)]),
    ("request_callback", [("string_command", EMPTY)]),
    ("set_keepalive", [("sock", EMPTY), ("after_idle_sec", 1), ("interval_sec", 3),
                       ("max_fails", 5)]),
    ("ConnectionManager", [("whoami", "computer")]),
    ("ConnectionManager.close", []),
    ("ConnectionManager.connect", [("client_selector", EMPTY), ("client_socket", EMPTY),
                                   ("client_addr", EMPTY)]),
    ("ConnectionManager.process_events", [("mask", EMPTY)]),
    ("ConnectionManager.process_received", [("message", EMPTY)]),
    ("ConnectionManager.read", []),
    ("ConnectionManager.write", []),
    ("ConnectionManager.send_message", [("action", EMPTY), ("args", ()), ("kwargs", None)]),
    ("ConnectionManager.send_file", [("filepath", EMPTY), ("dest_filepath", EMPTY)]),
    ("ConnectionManager.get_response", [
        ("requested_value", EMPTY), ("callback", EMPTY), ("request_args", ()),
        ("request_kwargs", None), ("callback_args", ()), ("callback_kwargs", None)]),
    ("ConnectionManager.get_file", [
        ("client_filepath", EMPTY), ("filepath", None), ("callback", None),
        ("callback_args", ()), ("callback_kwargs", None)]),
    ("MessageManager", []),
    ("MessageManager.process_message", []),
    ("NotifierSock.init", [("selector", EMPTY), ("port", 26000)]),
    ("NotifierSock.get_sock", []),
    ("NotifierSock.notify", []),
    ("NotifierSock.process_events", [("mask", EMPTY)]),
    ("NotifierSock.close", []),
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registry is the process's: give every test an empty one, and a folder of its own."""
    kept = dict(DEFAULT.messages), dict(DEFAULT.requests)
    DEFAULT.messages.clear()
    DEFAULT.requests.clear()
    monkeypatch.chdir(tmp_path)
    yield
    DEFAULT.messages.clear()
    DEFAULT.requests.clear()
    DEFAULT.messages.update(kept[0])
    DEFAULT.requests.update(kept[1])


@pytest.mark.parametrize(("name", "expected"), SIGNATURES, ids=[name for name, _ in SIGNATURES])
def test_signature_is_the_documented_one(name: str, expected: list[tuple[str, Any]]) -> None:
    found: Any = messaging
    for part in name.split("."):
        found = getattr(found, part)
    parameters = [
        (parameter.name, parameter.default)
        for parameter in inspect.signature(found).parameters.values()
        if parameter.name != "self"
    ]
    assert expected == parameters
    assert all(
        parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        for parameter in inspect.signature(found).parameters.values()
    )


@pytest.mark.parametrize("name", ["Namespace", "PendingRequest"])
def test_records_take_keywords_only(name: str) -> None:
    (parameter,) = inspect.signature(getattr(messaging, name)).parameters.values()
    assert parameter.kind is inspect.Parameter.VAR_KEYWORD


def test_attributes_of_a_new_manager_are_the_documented_ones() -> None:
    manager = messaging.ConnectionManager()
    assert (manager.selector, manager.socket, manager.addr) == (None, None, None)
    settings = (manager.buffer_size, manager.resume_queue, manager.resend_requests)
    assert settings == (1024, False, True)
    assert manager.whoami == "computer"
    assert messaging.ConnectionManager("pi").whoami == "pi"


def test_attributes_of_a_new_message_are_the_documented_ones() -> None:
    message = messaging.MessageManager()
    assert (message.income_raw, message.jsonheader, message.content) == (b"", None, None)


def test_no_twisted_is_imported() -> None:
    code = (
        "import sys, msgservice.faces.messaging.manager;"
        "print([name for name in sys.modules if name.split('.')[0] in ('twisted', 'zope')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- small classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [messaging.Namespace, messaging.PendingRequest])
def test_records_are_read_and_written_by_attribute_and_by_item(kind: Any) -> None:
    record = kind(a=1)
    record.b = 2
    record["c"] = 3
    assert (record["a"], record["b"], record.c) == (1, 2, 3)
    assert "c" in record
    assert kind(a=1, b=2, c=3) == record
    with pytest.raises(KeyError):
        record["d"]
    with pytest.raises(AttributeError):
        record.d  # noqa: B018 - the access is the test


def test_singleton_makes_one_instance_per_class() -> None:
    class One(metaclass=messaging.Singleton):
        pass

    class Other(metaclass=messaging.Singleton):
        pass

    assert len({id(one) for one in (One(), One(), Other(), Other())}) == 2


def test_encoders_give_the_captured_messages() -> None:
    encode = messaging.MessageManager
    assert VECTORS["message_empty"] == encode.create_message("stop")
    assert VECTORS["request"] == encode.create_request("time", "5305", [1], {"k": "v"})
    assert VECTORS["response_json"] == encode.create_response("time", "5305", 1234.5)
    content = b"\x00\x01\xffhello\n"
    assert VECTORS["send_file"] == encode.create_file_message("dst.bin", content)
    assert VECTORS["get_file_request"] == encode.create_file_request("src.bin", "2471")
    assert VECTORS["get_file_reply"] == encode.create_file_response("2471", content)


def test_message_is_parsed_one_byte_at_a_time_and_leaves_what_follows() -> None:
    message = messaging.MessageManager()
    for number in range(len(VECTORS["request"])):
        assert message.content is None
        message.income_raw += VECTORS["request"][number : number + 1]
        message.process_message()
    assert message.jsonheader is not None
    assert message.jsonheader["message-type"] == "request"
    assert message.content["args"] == [1]
    message.income_raw += VECTORS["message_empty"]
    message.process_message()
    assert VECTORS["message_empty"] == message.income_raw
    assert message.content["args"] == [1]


def test_header_is_there_before_the_content() -> None:
    message = messaging.MessageManager()
    message.income_raw = VECTORS["send_file"][:-1]
    message.process_message()
    assert message.jsonheader is not None
    assert message.content is None
    message.income_raw += b"\n"
    message.process_message()
    assert message.content == b"\x00\x01\xffhello\n"


def test_null_content_is_complete() -> None:
    message = messaging.MessageManager()
    message.income_raw = VECTORS["message_empty"].replace(b"26,", b"04,").replace(b"04,", b" 4,")
    message.income_raw = message.income_raw[: -len('{"args": [], "kwargs": {}}')] + b"null"
    message.process_message()
    assert message.is_complete
    assert message.content is None


def test_missing_header_key_is_a_value_error() -> None:
    message = messaging.MessageManager()
    message.income_raw = b"\0\x02{}"
    with pytest.raises(ValueError, match="missing required field"):
        message.process_message()


# --- two managers ---------------------------------------------------------------------------------

Manager = messaging.ConnectionManager


class Loop:
    """A selectors loop as programs write it: `key.data.process_events(mask)`, errors close."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.errors: list[tuple[Any, Exception]] = []
        self._sockets: list[socket.socket] = []

    def connect(self, manager: Manager) -> socket.socket:
        """Connect a manager; the other end is returned."""
        own, other = tcp_pair()
        self._sockets += [own, other]
        self.selector.register(own, selectors.EVENT_READ, data=None)
        manager.connect(self.selector, own, ("peer", 1))
        return other

    def join(self, a: Manager, b: Manager) -> None:
        own, other = tcp_pair()
        self._sockets += [own, other]
        for manager, sock in ((a, own), (b, other)):
            self.selector.register(sock, selectors.EVENT_READ, data=None)
            manager.connect(self.selector, sock, ("peer", 1))

    def turn(self, seconds: float = 0.0) -> bool:
        events = self.selector.select(seconds)
        for key, mask in events:
            try:
                key.data.process_events(mask)
            except Exception as error:
                self.errors.append((key.data, error))
                key.data.close()
        return bool(events)

    def until(self, done: Callable[[], object]) -> None:
        for _ in range(100_000):
            if done():
                return
            self.turn(5.0)
        raise AssertionError("did not happen")

    def settle(self) -> None:
        while self.turn(0.02):
            pass

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.selector.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair(loop: Loop) -> tuple[Manager, Manager]:
    a, b = Manager(), Manager()
    loop.join(a, b)
    return a, b


def received_by(sock: socket.socket, count: int) -> bytes:
    sock.settimeout(60)
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def test_what_goes_over_the_socket_is_byte_for_byte_the_original(loop: Loop) -> None:
    manager = Manager()
    other = loop.connect(manager)
    manager.send_message("test_command", (1, "two"), {"a": 3, "b": [True, None]})
    manager.send_message("stop")
    expected = VECTORS["message_args_kwargs"] + VECTORS["message_empty"]
    loop.settle()
    assert expected == received_by(other, len(expected))


def test_nothing_is_sent_that_the_program_did_not_send(loop: Loop) -> None:
    manager = Manager()
    other = loop.connect(manager)
    other.sendall(VECTORS["message_empty"] + VECTORS["request"] + VECTORS["get_file_request"])
    loop.settle()
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(1)
    assert not loop.errors


def test_action_runs_its_callback_with_its_arguments(
    loop: Loop, pair: tuple[Manager, Manager]
) -> None:
    got: list[Any] = []

    @messaging.message_callback("do")
    def do(connection: Any, *args: Any, **kwargs: Any) -> None:
        got.append((connection, args, kwargs))

    a, b = pair
    a.send_message("do", (1, "zwölf", None), {"k": {"nested": [1.5]}})
    loop.until(lambda: got)
    assert [(b, (1, "zwölf", None), {"k": {"nested": [1.5]}})] == got


def test_request_is_answered_and_the_callback_gets_its_own_arguments(
    loop: Loop, pair: tuple[Manager, Manager]
) -> None:
    got: list[Any] = []

    @messaging.request_callback("join")
    def join(connection: Any, *args: str, sep: str) -> str:
        return sep.join(args)

    a, _ = pair
    a.get_response(
        "join",
        lambda *args, **kwargs: got.append((args, kwargs)),
        request_args=("ä", "b"),
        request_kwargs={"sep": "€"},
        callback_args=(1, 2),
        callback_kwargs={"k": 3},
    )
    loop.until(lambda: got)
    assert [((a, "ä€b", 1, 2), {"k": 3})] == got


def test_null_is_a_value_like_others(loop: Loop, pair: tuple[Manager, Manager]) -> None:
    got: list[Any] = []
    messaging.request_callback("nothing")(lambda connection: None)
    pair[0].get_response("nothing", lambda connection, value: got.append(value))
    loop.until(lambda: got)
    assert got == [None]


def test_both_sides_ask(loop: Loop, pair: tuple[Manager, Manager]) -> None:
    got: list[Any] = []
    messaging.request_callback("who")(lambda connection: connection.whoami)
    pair[0].whoami, pair[1].whoami = "left", "right"
    for manager in pair:
        manager.get_response("who", lambda connection, value: got.append(value))
    loop.until(lambda: len(got) == 2)
    assert {"left", "right"} == set(got)


def test_decorated_name_still_calls_the_function() -> None:
    @messaging.request_callback("double")
    def double(connection: Any, n: int) -> int:
        """Twice."""
        return 2 * n

    assert double(None, 4) == 8
    assert (double.__name__, double.__doc__) == ("double", "Twice.")


def test_later_registration_replaces_the_earlier(loop: Loop, pair: tuple[Manager, Manager]) -> None:
    got: list[Any] = []
    messaging.request_callback("v")(lambda connection: 1)
    messaging.request_callback("v")(lambda connection: 2)
    pair[0].get_response("v", lambda connection, value: got.append(value))
    loop.until(lambda: got)
    assert got == [2]


@pytest.mark.parametrize("name", ["raises", "unknown", "misfit", "unwritable"])
def test_failure_of_a_request_is_silence_and_the_connection_lives(
    loop: Loop, pair: tuple[Manager, Manager], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    messaging.request_callback("raises")(lambda connection: 1 / 0)
    messaging.request_callback("misfit")(lambda connection, needed: needed)
    messaging.request_callback("unwritable")(lambda connection: {1, 2})
    messaging.request_callback("fine")(lambda connection: "fine")
    got: list[Any] = []
    pair[0].get_response(name, lambda connection, value: got.append(value))
    pair[0].get_response("fine", lambda connection, value: got.append(value))
    loop.until(lambda: got)
    loop.settle()
    assert got == ["fine"]
    assert name in caplog.text
    assert not loop.errors


@pytest.mark.parametrize("action", ["raises", "unknown"])
def test_failure_of_an_action_is_silence_and_the_connection_lives(
    loop: Loop, pair: tuple[Manager, Manager], action: str, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Any] = []
    messaging.message_callback("raises")(lambda connection: 1 / 0)
    messaging.message_callback("fine")(lambda connection: got.append("fine"))
    pair[0].send_message(action)
    pair[0].send_message("fine")
    loop.until(lambda: got)
    assert action in caplog.text
    assert not loop.errors


def test_callback_of_an_answer_may_raise(loop: Loop, pair: tuple[Manager, Manager]) -> None:
    got: list[Any] = []
    messaging.request_callback("x")(lambda connection: 0)
    pair[0].get_response("x", lambda connection, value: 1 / value)
    pair[0].get_response("x", None)
    pair[0].get_response("x", lambda connection, value: got.append(value))
    loop.until(lambda: got)
    assert not loop.errors


def test_nan_passes_as_in_the_original(loop: Loop, pair: tuple[Manager, Manager]) -> None:
    got: list[Any] = []
    messaging.message_callback("gps")(lambda connection, x: got.append(x))
    pair[0].send_message("gps", (float("nan"),))
    loop.until(lambda: got)
    assert got[0] != got[0]


@pytest.mark.parametrize("sent", CUT_OFF.values(), ids=CUT_OFF.keys())
def test_what_is_no_message_ends_that_connection_only(loop: Loop, sent: bytes) -> None:
    bad, good = Manager(), Manager()
    attacker, other = loop.connect(bad), loop.connect(good)
    attacker.sendall(sent)
    loop.until(lambda: bad.socket is None)
    ((culprit, error),) = loop.errors
    assert culprit is bad
    assert isinstance(error, ValueError)
    good.send_message("stop")
    loop.settle()
    assert VECTORS["message_empty"] == received_by(other, 171)


def test_peer_that_trickles_is_dropped(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    manager = Manager()
    other = loop.connect(manager)
    for number in range(30):
        other.sendall(VECTORS["request"][number : number + 1])
        loop.settle()
        now += 3.0
        if manager.socket is None:
            break
    assert manager.socket is None
    ((_, error),) = loop.errors
    assert str(error) == "message not within 60 s"


def test_two_requests_with_one_id_are_both_answered(loop: Loop) -> None:
    messaging.request_callback("v")(lambda connection, n: n)
    other = loop.connect(Manager())
    encode = messaging.MessageManager
    other.sendall(encode.create_request("v", "0001", [1]) + encode.create_request("v", "0001", [2]))
    loop.settle()
    expected = encode.create_response("v", "0001", 1) + encode.create_response("v", "0001", 2)
    assert expected == received_by(other, len(expected))


def test_answer_nobody_asked_for_is_ignored(
    loop: Loop, pair: tuple[Manager, Manager], caplog: pytest.LogCaptureFixture
) -> None:
    other = loop.connect(Manager())
    other.sendall(VECTORS["response_json"])
    loop.settle()
    assert "response nobody asked for" in caplog.text
    assert not loop.errors


def test_failure_is_not_told_even_to_a_peer_that_says_hello(loop: Loop) -> None:
    messaging.request_callback("raises")(lambda connection: 1 / 0)
    other = loop.connect(Manager())
    other.sendall(Encoder("little").extension("hello", {}))
    other.sendall(messaging.MessageManager.create_request("raises", "0001"))
    loop.settle()
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(1)


def test_end_of_the_peer_raises_runtime_error(loop: Loop) -> None:
    manager = Manager()
    loop.connect(manager).close()
    loop.until(lambda: loop.errors)
    assert isinstance(loop.errors[0][1], RuntimeError)


def test_program_may_take_messages_itself(loop: Loop) -> None:
    seen: list[Any] = []

    class Taking(messaging.ConnectionManager):
        def process_received(self, message: messaging.MessageManager) -> None:
            seen.append((message.jsonheader, message.content))
            super().process_received(message)

    got: list[Any] = []
    messaging.message_callback("stop")(lambda connection: got.append(connection))
    manager = Taking()
    loop.connect(manager).sendall(VECTORS["message_empty"])
    loop.until(lambda: got)
    ((header, content),) = seen
    assert header["action"] == "stop"
    assert content == {"args": [], "kwargs": {}}


def test_message_made_by_hand_is_handled() -> None:
    got: list[Any] = []
    messaging.message_callback("stop")(lambda connection, *args: got.append(args))
    message = messaging.MessageManager()
    message.income_raw = VECTORS["message_empty"]
    message.process_message()
    manager = Manager()
    manager.process_received(message)
    other = messaging.MessageManager()
    other.jsonheader, other.content = message.jsonheader, {"args": [1], "kwargs": {}}
    manager.process_received(other)
    assert got == [(), (1,)]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1024, 300_000])
def test_pushed_file_arrives_as_it_is(
    loop: Loop, pair: tuple[Manager, Manager], tmp_path: Path, size: int
) -> None:
    content = os.urandom(size)
    Path("source").write_bytes(content)
    pair[0].buffer_size = pair[1].buffer_size = 4096
    pair[0].send_file("source", "copy")
    loop.until(lambda: Path("copy").exists())
    assert content == Path("copy").read_bytes()
    assert {"source", "copy"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_file_that_is_asked_for_arrives_and_the_callback_is_told(
    loop: Loop, pair: tuple[Manager, Manager], size: int
) -> None:
    content = os.urandom(size)
    Path("source").write_bytes(content)
    got: list[Any] = []
    pair[0].buffer_size = pair[1].buffer_size = 4096
    pair[0].get_file(
        "source",
        "copy",
        callback=lambda *args, **kwargs: got.append((args, kwargs)),
        callback_args=(1,),
        callback_kwargs={"k": 2},
    )
    loop.until(lambda: got)
    assert [((pair[0], True, 1), {"filepath": "copy", "k": 2})] == got
    assert content == Path("copy").read_bytes()


def test_file_without_a_local_path_goes_to_its_base_name_under_the_root(
    loop: Loop, pair: tuple[Manager, Manager], tmp_path: Path
) -> None:
    Path("far", "away").mkdir(parents=True)
    Path("far", "away", "name.bin").write_bytes(b"content")
    Path("mine").mkdir()
    got: list[Any] = []
    pair[0].files = FileRoot("mine", sync=False)
    pair[0].get_file("far/away/name.bin", callback=lambda *args, **kwargs: got.append(kwargs))
    loop.until(lambda: got)
    assert got == [{"filepath": None}]
    assert Path("mine", "name.bin").read_bytes() == b"content"


def test_missing_file_is_silence_and_a_line_in_the_log(
    loop: Loop, pair: tuple[Manager, Manager], caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Any] = []
    pair[0].get_file("missing", "copy", callback=lambda *args, **kwargs: got.append(args))
    pair[0].send_file("missing", "copy")
    loop.settle()
    assert not got
    assert not Path("copy").exists()
    assert len(caplog.records) == 2
    assert not loop.errors


def test_file_that_cannot_be_written_is_told_with_false(
    loop: Loop, pair: tuple[Manager, Manager]
) -> None:
    Path("source").write_bytes(b"content")
    got: list[Any] = []
    pair[0].get_file("source", "no/such/folder", callback=lambda c, ok, filepath: got.append(ok))
    loop.until(lambda: got)
    assert got == [False]


def test_full_disk_is_told_with_false_and_the_connection_lives(
    loop: Loop, pair: tuple[Manager, Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(self: IncomingFile, data: Any) -> None:
        raise OSError(28, "No space left on device")

    Path("source").write_bytes(bytes(5000))
    monkeypatch.setattr(IncomingFile, "write", write)
    got: list[Any] = []
    pair[0].get_file("source", "copy", callback=lambda c, ok, filepath: got.append(ok))
    pair[0].send_file("source", "pushed")
    loop.until(lambda: got)
    loop.settle()
    assert [False] == got
    assert ["source"] == [path.name for path in Path().iterdir()]
    assert not loop.errors


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "link", "link/x", ""])
def test_paths_out_of_the_root_are_refused_both_ways(
    loop: Loop,
    pair: tuple[Manager, Manager],
    tmp_path: Path,
    path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path)
    Path("source").write_bytes(b"overwritten")
    pair[1].files = FileRoot(root, sync=False)
    pair[0].send_file("source", path)
    pair[0].get_file(path, "stolen")
    loop.settle()
    assert not Path("stolen").exists()
    assert (tmp_path / "outside").read_bytes() == b"secret"
    assert [entry.name for entry in root.iterdir()] == ["link"]
    assert caplog.text.count("refused") == 2
    assert not loop.errors


def test_file_that_breaks_off_leaves_nothing(loop: Loop, tmp_path: Path) -> None:
    manager = Manager()
    Path("old").write_bytes(b"old")
    other = loop.connect(manager)
    other.sendall(messaging.MessageManager.create_file_message("old", b"new content")[:-1])
    loop.settle()
    other.close()
    loop.until(lambda: manager.socket is None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    assert Path("old").read_bytes() == b"old"


# --- closing and connecting again -----------------------------------------------------------------


def test_close_sends_what_is_queued_first(loop: Loop) -> None:
    manager = Manager()
    other = loop.connect(manager)
    for _ in range(20):
        manager.send_message("stop")
    manager.close()
    loop.until(lambda: manager.socket is None)
    assert VECTORS["message_empty"] * 20 == received_by(other, 171 * 20)
    assert other.recv(1) == b""


def test_close_of_a_connection_that_is_gone_is_harmless(loop: Loop) -> None:
    manager = Manager()
    manager.close()
    loop.connect(manager)
    manager.close()
    manager.close()
    loop.until(lambda: manager.socket is None)
    manager.process_events(selectors.EVENT_READ | selectors.EVENT_WRITE)


def break_off(loop: Loop, manager: Manager, other: socket.socket) -> None:
    other.close()
    loop.until(lambda: manager.socket is None)
    loop.errors.clear()


def test_by_default_nothing_queued_survives_a_new_connection(loop: Loop) -> None:
    manager = Manager()
    manager.send_message("stop")
    other = loop.connect(manager)
    manager.send_message("go")
    loop.settle()
    assert messaging.MessageManager.create_message("go") == received_by(other, 169)


def test_with_resume_what_is_queued_is_sent_right_after_connecting(loop: Loop) -> None:
    manager = Manager()
    manager.resume_queue = True
    manager.send_message("stop")
    other = loop.connect(manager)
    loop.settle()
    assert VECTORS["message_empty"] == received_by(other, 171)


def test_with_resume_an_interrupted_message_starts_again(loop: Loop) -> None:
    manager = Manager()
    manager.resume_queue = True
    manager.buffer_size = 100
    other = loop.connect(manager)
    manager.send_message("stop")
    manager.process_events(selectors.EVENT_WRITE)
    assert VECTORS["message_empty"][:100] == received_by(other, 100)
    break_off(loop, manager, other)
    again = loop.connect(manager)
    loop.settle()
    assert VECTORS["message_empty"] == received_by(again, 171)


def test_requests_are_sent_again_with_their_arguments_until_answered(loop: Loop) -> None:
    manager = Manager()
    got: list[Any] = []
    other = loop.connect(manager)
    manager.get_response("time", lambda c, value: got.append(value), (1,), {"k": "v"})
    loop.settle()
    first = received_by(other, 211)
    for _ in range(2):
        break_off(loop, manager, other)
        other = loop.connect(manager)
        loop.settle()
        assert first == received_by(other, 211)
    request = messaging.MessageManager()
    request.income_raw = first
    request.process_message()
    other.sendall(
        messaging.MessageManager.create_response("time", request.content["request_id"], 5)
    )
    loop.until(lambda: got)
    assert got == [5]


def test_without_resend_a_request_is_not_sent_again(loop: Loop) -> None:
    manager = Manager()
    manager.resend_requests = False
    other = loop.connect(manager)
    manager.get_response("time", None)
    loop.settle()
    break_off(loop, manager, other)
    again = loop.connect(manager)
    loop.settle()
    again.setblocking(False)
    with pytest.raises(BlockingIOError):
        again.recv(1)


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [selectors.DefaultSelector, selectors.SelectSelector])
def test_messages_from_many_threads_all_arrive_without_another_event(kind: Any) -> None:
    loop = Loop()
    loop.selector.close()
    loop.selector = kind()
    notifier = messaging.NotifierSock()
    notifier.init(loop.selector, port=0)
    sender, receiver = Manager(), Manager()
    got: list[tuple[int, int]] = []
    messaging.message_callback("n")(lambda connection, thread, n: got.append((thread, n)))
    loop.join(sender, receiver)

    def send(thread: int) -> None:
        for n in range(200):
            sender.send_message("n", (thread, n))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    # A wake-up that is lost is 5 s of waiting, and then no event: `until` would find out.
    while len(got) < 800:
        assert loop.turn(5.0), f"{len(got)} of 800 messages, and nothing to wake up for"
    for thread in threads:
        thread.join(10)
    assert {(t, n) for t in range(4) for n in range(200)} == set(got)
    for number in range(4):
        assert list(range(200)) == [n for thread, n in got if thread == number]
    notifier.close()
    loop.close()


def test_notifier_does_nothing_before_it_is_initialised() -> None:
    notifier = messaging.NotifierSock()
    notifier.close()
    notifier.notify()
    assert notifier.get_sock() is None


def test_notifier_wakes_the_selector_and_is_on_loopback() -> None:
    notifier = messaging.NotifierSock()
    with selectors.DefaultSelector() as selector:
        notifier.init(selector)
        sock = notifier.get_sock()
        assert sock is not None
        assert sock.getsockname()[0] == "127.0.0.1"
        assert not selector.select(0)
        notifier.notify()
        ((key, mask),) = selector.select(5)
        assert key.data is notifier
        notifier.process_events(mask)
        assert not selector.select(0)
        notifier.close()


# --- the system -----------------------------------------------------------------------------------


def test_keepalive_options_are_set_on_linux() -> None:
    with socket.socket() as sock:
        messaging.set_keepalive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert tuple(
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        ) == (1, 3, 5)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def setsockopt(self, *args: Any) -> None:
        self.calls.append(args)

    def ioctl(self, *args: Any) -> None:
        self.calls.append(args)


def test_keepalive_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    sock = Recorder()
    messaging.set_keepalive(sock, 7, 8, 9)
    assert (sock.calls) == [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, 0x10, 8),
    ]


def test_keepalive_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    sock = Recorder()
    messaging.set_keepalive(sock, 7, 8, 9)
    ((_, values),) = sock.calls
    assert values == (1, 7000, 8000)


@pytest.mark.parametrize("platform", ["", "plan9"])
def test_keepalive_elsewhere_is_not_implemented(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(NotImplementedError):
        messaging.set_keepalive(Recorder())


def test_ip_address_is_an_address() -> None:
    assert messaging.get_ip_address() == "localhost" or socket.inet_aton(messaging.get_ip_address())


def test_without_a_network_the_address_is_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert messaging.get_ip_address() == "localhost"


def test_log_is_the_standard_librarys() -> None:
    assert isinstance(logger, logging.Logger)
