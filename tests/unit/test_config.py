"""One `Config`, checked whole: every mistake at once, each with its line and what is allowed."""

import os
from dataclasses import Field, fields
from pathlib import Path

import pytest
import trustme

from msgservice.config.config import (
    LISTEN_DEFAULT,
    Config,
    Flags,
    ListenConfig,
    ReceiverConfig,
    load_config,
)
from msgservice.errors import BadValue, ConfigError
from msgservice.limits import (
    LOWEST,
    ORDERED,
    PARTS,
    RESUME_RANGES_TOTAL_MAX,
    WINDOW_BYTES_MAX,
    WINDOW_MESSAGES_MAX,
    ZERO_ALLOWED,
    Limits,
    Rate,
    wrong_with,
)
from msgservice.receiver_options import ReceiverOptions
from msgservice.stream_limits import StreamLimits
from msgservice.webhooks.options import WebhooksOptions
from tests.kit.limits import for_operators

pytestmark = pytest.mark.usefixtures("operators_limits")

WHOLE = """\
[node]
name = "central"
data = "var/data"
insecure = true

[listen]
tcp = ["tcp:7410:interface=127.0.0.1", "tcp:7411:interface=0.0.0.0"]
unix = "unix:node.sock:mode=660"

[[receiver]]
name = "billing"
address = "tcp:billing.internal:7420"
subjects = ["orders.>", "refunds.*"]
order = "none"
paused = true
window = { messages = 100, bytes = 65536 }
on_full = "suspend"
backlog_bytes = 1_000_000
rate = { messages = 50, burst_seconds = 2 }

[[receiver]]
name = "archive"
address = "unix:archive.sock"
subjects = []

[rate]
messages = 1000
bytes = 2.5e6

[limits]
heartbeat = 5
max_batch = 8192
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def load(file: Path, text: str, **flags: object) -> Config:
    file.write_text(text)
    return load_config(file, Flags(**flags))  # type: ignore[arg-type]  # each test says its own


def problems(file: Path, text: str, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file, text, **flags)
    return [p.removeprefix(f"{file}:") for p in caught.value.problems]


def test_everything_that_is_said_is_kept(file: Path) -> None:
    folder = file.parent
    assert load(file, WHOLE) == Config(
        name="central",
        data=folder / "var/data",
        insecure=True,
        listen=(
            ListenConfig(transport="tcp", address="tcp:7410:interface=127.0.0.1"),
            ListenConfig(transport="tcp", address="tcp:7411:interface=0.0.0.0"),
            ListenConfig(transport="unix", address=f"unix:{folder}/node.sock:mode=660"),
        ),
        receivers=(
            ReceiverConfig(
                name="billing",
                address="tcp:billing.internal:7420",
                subjects=("orders.>", "refunds.*"),
                options=ReceiverOptions(
                    order="none",
                    paused=True,
                    window_messages=100,
                    window_bytes=65536,
                    on_full="suspend",
                    backlog_bytes=1_000_000,
                ),
                rate=Rate(messages=50.0, burst_seconds=2.0),
            ),
            ReceiverConfig(name="archive", address=f"unix:{folder}/archive.sock"),
        ),
        webhooks=WebhooksOptions(plain=True),  # it is insecure
        rate=Rate(messages=1000.0, bytes=2.5e6),
        limits=Limits(heartbeat=5.0, max_batch=8192),
        file=file,
    )


def test_nothing_said_means_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config()
    assert Config(data=tmp_path / "var/msgservice", listen=LISTEN_DEFAULT) == config
    assert "tcp:7410:interface=127.0.0.1" == config.listen[0].address


def test_an_empty_file_is_the_defaults_beside_it(file: Path) -> None:
    assert Config(data=file.parent / "var/msgservice", file=file) == load(file, "")


def test_a_listen_section_replaces_the_default_listener(file: Path) -> None:
    config = load(file, '[listen]\nunix = "unix:/run/m.sock"\n')
    assert (ListenConfig(transport="unix", address="unix:/run/m.sock"),) == config.listen


def test_every_limit_can_be_set(file: Path) -> None:
    doubled = {
        f.name: f.default * 2 if f.name != "batch_messages" else 17
        for f in fields(Limits)
        if isinstance(f.default, int | float)
    }
    assert len(fields(Limits)) == len(doubled)
    text = "[limits]\n" + "".join(f"{name} = {value}\n" for name, value in doubled.items())
    assert Limits(**doubled) == load(file, text).limits  # type: ignore[arg-type]  # ints and floats as declared


@pytest.mark.parametrize("name", ["exceptions", "sender_ranges"])
def test_20_no_more_ranges_may_be_held_than_a_resume_says(file: Path, name: str) -> None:
    highest = RESUME_RANGES_TOTAL_MAX
    loaded = load(file, f"[limits]\n{name} = {highest}\n")
    assert getattr(loaded.limits, name) == highest
    told = f"2: limits.{name}: must be at most {highest}, not {highest + 1}"
    assert [told] == problems(file, f"[limits]\n{name} = {highest + 1}\n")
    with pytest.raises(ValueError, match=name):
        Limits(**{name: highest + 1})


with for_operators():
    NAMES_LOWEST = sorted(LOWEST)
    PAIRS = [*((*pair, "at most") for pair in ORDERED), *((*pair, "less than") for pair in PARTS)]


@pytest.mark.parametrize("name", NAMES_LOWEST)
def test_a_limit_below_what_works_is_refused_with_its_bound(file: Path, name: str) -> None:
    lowest = LOWEST[name]
    below = lowest - 1 if isinstance(lowest, int) else lowest / 2
    zero = ", or 0" if name in ZERO_ALLOWED else ""
    told = f"limits.{name}: must be at least {lowest}{zero}, not {below}"
    assert problems(file, f"[limits]\n{name} = {below}\n") == [f"2: {told}"]
    assert [p.endswith(told) for p in problems(file, "", limits={name: str(below)})] == [True]
    with pytest.raises(BadValue, match=name):
        Limits(**{name: below})  # type: ignore[arg-type]  # ints and floats as declared
    # Those that bound others are at their lowest where those are.
    text = f"[limits]\n{name} = {lowest}\n" + "".join(
        f"{other} = {LOWEST[other]}\n" for other, bound in ORDERED if bound == name
    )
    assert getattr(load(file, text).limits, name) == lowest
    if zero:
        assert getattr(load(file, f"[limits]\n{name} = 0\n").limits, name) == 0


def test_every_limit_has_a_lowest_value(file: Path) -> None:
    counts = {f.name for f in fields(Limits)} - LOWEST.keys() - ZERO_ALLOWED
    assert all(isinstance(getattr(Limits(), name), int) for name in counts)
    for name in counts:
        assert getattr(load(file, f"[limits]\n{name} = 1\n").limits, name) == 1
        assert len(problems(file, f"[limits]\n{name} = 0\n")) == 1
    for name in ZERO_ALLOWED:
        assert len(problems(file, f"[limits]\n{name} = -1\n")) == 1


@pytest.mark.parametrize("limit", fields(Limits), ids=lambda limit: limit.name)
def test_no_limit_is_larger_than_what_can_be_counted(file: Path, limit: Field[object]) -> None:
    # Not what SQLite or a timer cannot have, nor what has no number.
    beyond = [2**63] if isinstance(limit.default, int) else [1e300, "inf", "nan"]
    for value in beyond:
        (told,) = problems(file, f"[limits]\n{limit.name} = {value}\n")
        assert told.startswith(f"2: limits.{limit.name}: must be a")
        with pytest.raises(BadValue, match=limit.name):
            Limits(**{limit.name: float(value)})  # type: ignore[arg-type]  # as declared


@pytest.mark.parametrize(("name", "bound", "rule"), PAIRS)
def test_limits_that_contradict_each_other_are_refused(
    file: Path, name: str, bound: str, rule: str
) -> None:
    high = max(LOWEST[bound] * 2, LOWEST.get(name, 1) * 2)
    low = high if rule == "less than" else high * 2
    told = f"limits.{name}: must be {rule} {bound}, which is {high}, not {low}"
    assert told in [p.partition(": ")[2] for p in problems(file, _limits({name: low, bound: high}))]
    with pytest.raises(BadValue):
        Limits(**{name: low, bound: high})  # type: ignore[arg-type]  # as declared
    # Where one alone is said, that one is wrong.
    default = getattr(Limits(), bound)
    above = default if rule == "less than" else default * 2
    if wrong_with(name, above) is None:
        assert f"which is {default}" in problems(file, _limits({name: above}))[0]


def _limits(values: dict[str, float]) -> str:
    return "[limits]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


def test_the_other_of_two_is_named_where_it_alone_was_said(file: Path) -> None:
    assert [
        "2: limits.max_bytes: must be at least max_batch, which is 1048576, not 300000"
    ] == problems(file, "[limits]\nmax_bytes = 300000\n")


def test_the_rest_is_still_judged_where_two_contradict_each_other(file: Path) -> None:
    text = """\
[limits]
dead_bytes = 2_000_000_000_000
max_bytes = 1_000_000_000_000
backlog_bytes = 500_000_000_000
receivers = 1
[[receiver]]
name = "a"
subjects = []
[[receiver]]
name = "b"
subjects = []
"""
    assert ["2", "6"] == [told.partition(":")[0] for told in problems(file, text)]


@pytest.mark.usefixtures("operators_limits")
def test_a_backlog_of_a_receiver_that_is_more_than_the_log_is_refused(file: Path) -> None:
    text = "[[receiver]]\nname = 'a'\nsubjects = []\nbacklog_bytes = 3_000_000\n"
    assert [
        "4: receiver.backlog_bytes: must be at most max_bytes, which is 2000000, not 3000000"
    ] == problems(file, text + "[limits]\nmax_bytes = 2_000_000\n")


@pytest.mark.usefixtures("operators_limits")
def test_a_backlog_of_a_receiver_is_no_less_than_the_nodes_may_be(file: Path) -> None:
    text = "[[receiver]]\nname = 'a'\nsubjects = []\nbacklog_bytes = 10\n"
    assert ["4: receiver.backlog_bytes: must be at least 65536, or 0, not 10"] == problems(
        file, text
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("/proc/nothere", "proc is a filesystem of the kernel's"),
        ("a-file", "a-file is not a folder"),
        ("a-file/below", "a-file is not a folder"),
        ("a\\u0000b", "a path has no zero byte"),
        ("n" * 300, "File name too long"),
    ],
)
def test_a_data_folder_that_cannot_be_is_refused(file: Path, data: str, told: str) -> None:
    (file.parent / "a-file").touch()
    (problem,) = problems(file, f'[node]\ndata = "{data}"\n')
    assert problem.startswith("2: node.data: ")
    assert problem.endswith(told)
    flag = data.replace("\\u0000", "\0")
    (problem,) = problems(file, "", data=str(file.parent / flag))
    assert problem.startswith("--data: node.data: ")


def test_a_data_folder_where_nothing_may_be_written_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere, so the question is answered for it.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != file.parent)
    (problem,) = problems(file, '[node]\ndata = "new/folder"\n')
    assert problem.endswith(f"{file.parent} is not writable")


def test_a_data_folder_is_not_made_by_looking(file: Path) -> None:
    load(file, '[node]\ndata = "new/folder"\n')
    assert [file] == list(file.parent.iterdir())


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("missing/s", "missing is not a folder"),
        ("a-file", "a-file is there and is no socket"),
        ("a\\u0000b", "no address has a zero byte"),
    ],
)
def test_a_unix_socket_that_cannot_be_made_is_refused(file: Path, path: str, told: str) -> None:
    (file.parent / "a-file").touch()
    (problem,) = problems(file, f'[listen]\nunix = "unix:{path}"\n')
    assert problem.startswith("2: listen.unix: ")
    assert problem.endswith(told)


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31, "\udcff"])
def test_a_key_file_that_holds_no_key_is_told_in_words(file: Path, text: str) -> None:
    (file.parent / "udp.key").write_text(text, errors="surrogateescape")
    (problem,) = problems(file, '[listen]\nudp = "udp:7410:key=udp.key"\n')
    assert problem.endswith("udp.key holds no key: 64 hexadecimal digits are needed")


def test_flags_win_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load(
        file,
        WHOLE,
        name="edge",
        data="data",
        listen=("tcp:0:interface=127.0.0.1", "unix:m.sock"),
        insecure=False,
        limits={"heartbeat": "7", "silence": "3.5"},
    )
    assert "edge" == config.name
    assert elsewhere / "data" == config.data
    assert not config.insecure
    assert [
        ("tcp", "tcp:0:interface=127.0.0.1"),
        ("unix", f"unix:{elsewhere}/m.sock"),
    ] == [(one.transport, one.address) for one in config.listen]
    assert (7.0, 3.5, 8192) == (
        config.limits.heartbeat,
        config.limits.silence,
        config.limits.max_batch,
    )


def test_flags_are_named_where_they_are_wrong(file: Path) -> None:
    assert [
        "--name: node.name: bad name '': it is empty",
        "--limit: limits.hartbeat: unknown key, did you mean 'heartbeat'?",
        '--limit: limits.heartbeat: must be a number, not "soon"',
        "--listen: listen.web: bad address 'web:7411:interface=127.0.0.1': HTTP is served at tcp:,"
        " tls:, ssl:, unix:",
    ] == problems(
        file,
        WHOLE,
        name="",
        limits={"heartbeat": "soon", "hartbeat": "1"},
        listen=("web:7411:interface=127.0.0.1",),
    )


def test_all_mistakes_are_told_at_once_each_with_its_line(file: Path) -> None:
    text = """\
[node]
nmae = "central"
data = 5
insecure = "yes"
[listen]
web = "udp:7411"
[[receiver]]
name = "billing"
address = "http://billing:1"
subjects = ["a..b"]
order = "some"
window = { messages = 0, byte = 1 }
[[receiver]]
name = "billing"
subjects = "orders"
[[receiver]]
address = "mail:someone"
subjects = ["a", "a"]
[limits]
max_batch = 1
connections = "many"
heartbeat = -1
[www]
"""
    assert [
        "2: node.nmae: unknown key, did you mean 'name'? (allowed: name, data, users, insecure,"
        " networks)",
        "3: node.data: must be a string, not 5",
        '4: node.insecure: must be true or false, not "yes"',
        "6: listen.web: bad address 'udp:7411': HTTP is served at tcp:, tls:, ssl:, unix:",
        "9: receiver.address: bad address 'http://billing:1': plain http: beyond this machine"
        " needs insecure = true in [node]; or use https:",
        "10: receiver.subjects: bad subject 'a..b': empty token",
        '11: receiver.order: must be "strict" or "none", not "some"',
        "12: receiver.window.byte: unknown key, did you mean 'bytes'? (allowed: messages, bytes)",
        "12: receiver.window.messages: must be from 1 to 1048576, not 0",
        f"14: receiver.name: 'billing' is another receiver's, at {file}:8",
        '15: receiver.subjects: must be a list of strings, not "orders"',
        "16: receiver.name: is missing; it must be a string",
        "17: receiver.address: bad address 'mail:someone': unknown scheme 'mail' (known: "
        "pb, pbs, ssl, tcp, tls, udp, unix)",
        "18: receiver.subjects: 'a' is there twice",
        "20: limits.max_batch: must be at least 4096, not 1",
        '21: limits.connections: must be an integer, not "many"',
        "22: limits.heartbeat: must be at least 0.1, not -1.0",
        "23: www: unknown key (allowed: node, listen, web, streams, tls, login, webhook, receiver,"
        " user, rate, limits)",
    ] == problems(file, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[listen]\ntls = 'tls:7411'\n", "2: listen.tls: tls: addresses stand under 'tcp'"),
        ("[listen]\nssl = 'ssl:7411'\n", "2: listen.ssl: ssl: addresses stand under 'tcp'"),
        ("tcp = 'tcp:7411'\n", "1: tcp: unknown key here; it belongs in [listen]"),
        ("max_bytes = 5\n", "1: max_bytes: unknown key here; it belongs in [limits]"),
        (
            "[node]\nmax_byte = 5\n",
            "2: node.max_byte: unknown key, is 'max_bytes' of [limits] meant?",
        ),
        (
            "[limits]\ninsecure = true\n",
            "2: limits.insecure: unknown key here; it belongs in [node]",
        ),
        (
            "[node]\nburst_seconds = 1\n",
            "2: node.burst_seconds: unknown key here;"
            " it belongs in [rate] or a [[receiver]]'s rate",
        ),
        (
            "[listen]\nname = 'a'\n",
            "2: listen.name: unknown key here;"
            " it belongs in [node] or a [[receiver]] or a [[user]]",
        ),
        (
            "[listen]\ncertKey = 'a.pem'\n",
            "2: listen.certKey: unknown key here; it belongs in an address, tls:…:certKey=FILE",
        ),
        (
            "[[receiver]]\nname = 'a'\nsubjects = []\nkeep_seconds = 5\n",
            "4: receiver.keep_seconds: unknown key here; it belongs in [limits]",
        ),
    ],
)
def test_a_key_that_is_known_elsewhere_is_told_where(file: Path, text: str, told: str) -> None:
    assert [told] == problems(file, text)


def test_a_key_that_is_known_nowhere_is_told_what_is_allowed(file: Path) -> None:
    (told,) = problems(file, "[node]\nqqqqqq = 1\n")
    assert told == "2: node.qqqqqq: unknown key (allowed: name, data, users, insecure, networks)"


def test_grammar_and_meaning_are_told_together(file: Path) -> None:
    text = '[node]\nname = "a\ndata = 5\n[[receiver]]\nname = tru\nsubjects = []\n'
    told = problems(file, text)
    assert [2, 3, 5] == [int(p.partition(":")[0]) for p in told]
    assert "missing" not in "".join(told)  # the name of line 5 is unreadable, not absent


@pytest.mark.parametrize(
    "address",
    [
        "tcp:7410:interface=",
        "tcp:7410:interface=0.0.0.0",
        r"tcp:7410:interface=\:\:",
        "tcp:1:interface=10.1.1.1",
    ],
)
def test_32_a_listener_beyond_this_machine_is_refused_unless_insecure(
    file: Path, address: str
) -> None:
    text = f"[listen]\ntcp = '{address}'\n"
    (told,) = problems(file, text)
    assert told.startswith("2: listen.tcp: cannot listen on ")
    assert "insecure = true" in told
    assert address == load(file, "[node]\ninsecure = true\n" + text).listen[0].address


@pytest.mark.parametrize(
    "address",
    ["tcp:0", "tcp:0:interface=127.0.0.1", "tcp:1:interface=localhost", r"tcp:1:interface=\:\:1"],
)
def test_a_listener_on_this_machine_needs_no_leave(file: Path, address: str) -> None:
    assert address == load(file, f"[listen]\ntcp = '{address}'\n").listen[0].address


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("tcp", "tcp:70000:interface=127.0.0.1"),
        ("tcp", "tcp:http:interface=127.0.0.1"),
        ("tcp", "tcp"),
        ("tcp", "unix:/run/m.sock"),
        ("unix", "unix:"),
        ("unix", "tcp:7410"),
    ],
)
def test_a_listener_that_cannot_work_is_refused(file: Path, key: str, address: str) -> None:
    (told,) = problems(file, f'[listen]\n{key} = "{address}"\n')
    assert told.startswith(f"2: listen.{key}: ")
    assert repr(address) in told


@pytest.mark.parametrize(
    "address", ["tcp:host", "tcp:host:0", "tls::7420", "unix:", "billing:7420"]
)
def test_an_address_that_cannot_work_is_refused(file: Path, address: str) -> None:
    (told,) = problems(file, f'[[receiver]]\nname = "a"\naddress = "{address}"\nsubjects = []\n')
    assert told.startswith("3: receiver.address: ")
    assert repr(address) in told


def test_a_listener_twice_is_refused(file: Path) -> None:
    (told,) = problems(file, '[listen]\nunix = ["unix:/m.sock", "unix:/m.sock"]\n')
    assert "2: listen.unix: 'unix:/m.sock' is there twice" == told


def test_18_a_receiver_says_what_happens_at_the_limit_of_its_backlog(file: Path) -> None:
    text = '[[receiver]]\nname = "a"\nsubjects = []\non_full = "drop"\nbacklog_bytes = -1\n'
    assert [
        '4: receiver.on_full: must be "refuse" or "suspend", not "drop"',
        "5: receiver.backlog_bytes: must be from 0 to 9007199254740991, not -1",
    ] == problems(file, text)


def test_more_receivers_than_allowed_are_refused(file: Path) -> None:
    text = "[limits]\nreceivers = 1\n" + '[[receiver]]\nname = "a"\nsubjects = []\n'
    (told,) = problems(file, text + '[[receiver]]\nname = "b"\nsubjects = []\n')
    assert "3: receiver: 2 receivers, at most 1 allowed" == told


@pytest.mark.parametrize(
    ("key", "highest"), [("messages", WINDOW_MESSAGES_MAX), ("bytes", WINDOW_BYTES_MAX)]
)
def test_a_window_has_an_upper_bound(file: Path, key: str, highest: int) -> None:
    receiver = '[[receiver]]\nname = "a"\nsubjects = []\nwindow = { %s = %d }\n'
    file.write_text(receiver % (key, highest))
    (kept,) = load_config(file).receivers
    assert highest == (getattr(kept.options, f"window_{key}"))
    for wrong in (highest + 1, 0, -1):
        expected = f"4: receiver.window.{key}: must be from 1 to {highest}, not {wrong}"
        assert [expected] == problems(file, receiver % (key, wrong))
    expected = f"2: limits.window_{key}: must be at most {highest}, not {highest + 1}"
    assert [expected] == problems(file, f"[limits]\nwindow_{key} = {highest + 1}\n")


def test_more_patterns_than_allowed_are_refused(file: Path) -> None:
    text = '[limits]\npatterns = 1\n[[receiver]]\nname = "a"\nsubjects = ["a", "b"]\n'
    (told,) = problems(file, text)
    assert "5: receiver.subjects: 2 patterns, at most 1 allowed" == told


def test_a_rate_that_limits_nothing_or_lets_nothing_through_is_refused(file: Path) -> None:
    text = """\
[[receiver]]
name = "billing"
subjects = []
rate = { messages = 0, burst_seconds = inf }
[[receiver]]
name = "archive"
subjects = []
rate = { burst_seconds = 2, byte = 5 }
[rate]
bytes = "many"
"""
    assert [
        "4: receiver.rate.messages: must be above 0 and finite, not 0.0",
        "4: receiver.rate.burst_seconds: must be above 0 and finite, not inf",
        "8: receiver.rate.byte: unknown key, did you mean 'bytes'?"
        " (allowed: messages, bytes, burst_seconds)",
        "8: receiver.rate: must say messages, bytes or both",
        '10: rate.bytes: must be a number, not "many"',
    ] == problems(file, text)


def test_retention_points_to_where_it_is_set(file: Path) -> None:
    (told,) = problems(file, "[retention]\nage = 3\n")
    assert "keep_seconds" in told


def test_a_file_that_is_not_there_is_one_sentence(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert (f"{file}: cannot be read: No such file or directory",) == caught.value.problems


def test_a_file_that_is_no_text_names_the_line(file: Path) -> None:
    file.write_bytes(b"[node]\nname = '\xff'\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert (f"{file}:2: not UTF-8",) == caught.value.problems


def test_a_relative_data_folder_of_code_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "here" == Config(data=Path("here")).data


@pytest.mark.parametrize("address", ["tcp:7412", "tcp:7412:interface=127.0.0.1", "unix:/run/s"])
def test_streams_are_a_key_of_listen(file: Path, address: str) -> None:
    config = load(file, f"[listen]\ntcp = 'tcp:7410'\nstreams = '{address}'\n")
    assert [(one.transport, one.address, one.user) for one in config.listen] == [
        ("tcp", "tcp:7410", None),
        ("streams", address, None),
    ]


USER = "[[user]]\nname = 'board'\nreceive = ['streams.>']\n"
FACE = "[[listen]]\naddress = 'tcp:7412'\nface = 'streams'\n"
AS_BOARD = FACE + "login = 'none'\nuser = 'board'\n"


def test_streams_are_a_face_of_a_listen_with_a_user(file: Path) -> None:
    text = AS_BOARD + USER
    (listener,) = load(file, text).listen
    assert (listener.transport, listener.user) == ("streams", "board")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[listen]\nstreams = 'tcp:7412:interface='\n", "insecure = true"),
        ("[listen]\nstreams = 'tls:7412:interface='\n[tls]\ncertificate = '{pem}'\n", "trustRoots"),
        ("[listen]\nstreams = 'tls:7412'\n", "certificate"),
        ("[listen]\nstreams = 'udp:7412'\n", "must begin with tcp: or tls: or unix:"),
        ("[listen]\nstreams = 'unix:/run/s:mode=rw'\n", "mode must be three octal digits"),
        ("[listen]\nstreams = ['tcp:7412', 'tcp:7413']\n", "at one address only"),
        ("[listen]\nstreams = 'tcp:7412'\n" + USER, "no line of a stream can log in"),
        (FACE + USER, "no line of a stream can log in"),
        (FACE.replace("'streams'", "'callbacks'"), "face: must be "),
        (AS_BOARD + USER + "names = ['other']\n", 'has not the name "board.streams"'),
        (AS_BOARD + "[[user]]\nname = 'board'\n", 'may not receive "streams.>"'),
        (AS_BOARD + USER.replace("streams.>", "streams.a"), 'may not receive "streams.>"'),
    ],
)
def test_streams_that_cannot_be_or_may_not_are_refused(
    file: Path, text: str, told: str, tmp_path: Path
) -> None:
    (problem,) = problems(file, text.replace("{pem}", str(pem(tmp_path))))
    assert told in problem


def test_http_is_a_key_of_listen_and_a_face(file: Path) -> None:
    text = "[listen]\nweb = ['tcp:7480', 'unix:/run/w']\n[web]\nhosts = ['Node.Internal', '::1']\n"
    config = load(file, text)
    assert [("web", "tcp:7480"), ("web", "unix:/run/w")] == [
        (one.transport, one.address) for one in config.listen
    ]
    assert ("node.internal", "::1") == config.web_hosts
    face = FACE.replace("'streams'", "'web'")
    assert ["web"] == [one.transport for one in load(file, face + USER).listen]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[listen]\nweb = 'tcp:7480:interface='\n", "insecure = true"),
        ("[listen]\nweb = 'tcp:7480:interface='\n" + USER, "use tls:"),
        ("[listen]\nweb = 'pb:7480'\n", "HTTP is served at"),
        ("[web]\nhosts = ['http://node.internal']\n", "is no name of a host"),
        ("[web]\nhosts = ['node.internal:7480']\n", "is no name of a host"),
        ("[web]\nhost = 'x'\n", "did you mean 'hosts'"),
    ],
)
def test_http_that_cannot_be_or_may_not_is_refused(file: Path, text: str, told: str) -> None:
    (problem,) = problems(file, text)
    assert told in problem


def pem(folder: Path) -> Path:
    """Return a file with a certificate and its key, which is an authority's file as well."""
    path = folder / "one.pem"
    made = trustme.CA().issue_cert("localhost")
    path.write_bytes(made.private_key_pem.bytes() + made.cert_chain_pems[0].bytes())
    return path


def test_streams_with_certificates_of_clients_may_be_open_to_others(
    file: Path, tmp_path: Path
) -> None:
    one = pem(tmp_path)
    for listen, tls in (
        (f"tls:7412:interface=:trustRoots={one}", ""),
        ("tls:7412:interface=", f"client_roots = '{one}'\n"),
    ):
        text = f"[listen]\nstreams = '{listen}'\n[tls]\ncertificate = '{one}'\n{tls}"
        assert [each.transport for each in load(file, text).listen] == ["streams"]


def test_streams_may_be_open_to_others_where_that_is_said(file: Path) -> None:
    text = "[node]\ninsecure = true\n[listen]\nstreams = 'tcp:7412:interface='\n"
    assert [one.transport for one in load(file, text).listen] == ["streams"]


def test_limits_of_streams_are_their_own_section(file: Path) -> None:
    assert load(file, "").streams == StreamLimits()
    text = "[streams]\nline_bytes = 1_048_576\nline_seconds = 5\n"
    assert load(file, text).streams == StreamLimits(line_bytes=1_048_576, line_seconds=5.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("line_bytes = 0", "2: streams.line_bytes: a finite number above 0 is needed"),
        ("line_bytes = 1.5", "2: streams.line_bytes: must be an integer"),
        ("line_seconds = inf", "2: streams.line_seconds: a finite number above 0 is needed"),
        ("key_byte = 5", "did you mean 'key_bytes'"),
        ("unsent_bytes = 5", "unknown key"),  # of who dials
        ("max_bytes = 5", "it belongs in [limits]"),
    ],
)
def test_a_limit_of_streams_that_cannot_be_is_told_with_its_line(
    file: Path, text: str, told: str
) -> None:
    (problem,) = problems(file, f"[streams]\n{text}\n")
    assert told in problem


def test_logins_at_other_nodes_are_files_by_their_names(file: Path, tmp_path: Path) -> None:
    login = tmp_path / "centre.login"
    login.write_text('user = "edge"\npassword = "secret"\n')
    login.chmod(0o600)
    assert load(file, "[login]\ncentre = 'centre.login'\n").logins == {"centre": login}
    assert load(file, "").logins == {}


@pytest.mark.parametrize(
    ("said", "mode", "told"),
    [
        ('user = "edge"\npassword = "secret"', 0o640, "others can use it"),
        ('password = "secret"', 0o600, "user is missing"),
        ('user = "edge"', 0o600, "needs a password or a token"),
        ('user = "edge"\npasswort = "secret"', 0o600, "there are user, password and token"),
        ('token = "secret"', 0o600, "token is none"),
        ("secret", 0o600, "is not TOML"),
        ("\udcff", 0o600, "is not UTF-8"),
    ],
)
def test_a_file_that_has_no_login_is_told_without_what_it_says(
    file: Path, tmp_path: Path, said: str, mode: int, told: str
) -> None:
    login = tmp_path / "centre.login"
    login.write_bytes(said.encode(errors="surrogateescape"))
    login.chmod(mode)
    (problem,) = problems(file, "[login]\ncentre = 'centre.login'\n")
    assert problem.startswith("2: login.centre: ")
    assert told in problem
    assert "secret" not in problem


def test_a_login_that_is_for_no_node_is_refused(file: Path, tmp_path: Path) -> None:
    login = tmp_path / "centre.login"
    login.write_text('user = "edge"\npassword = "secret"\n')
    login.chmod(0o600)
    text = "[login]\ncentre = 'centre.login'\n[[receiver]]\nname = 'centre'\n"
    for address in ("", "address = 'tcp:127.0.0.1:7411'\n"):
        assert any("is no node that is dialled" in one for one in problems(file, text + address))
    node = "address = 'node:tcp:127.0.0.1:7411'\nsubjects = ['>']\n"
    assert load(file, text + node).logins
    (problem,) = problems(file, "[login]\ncentre = 5\n")
    assert "must be a string" in problem
