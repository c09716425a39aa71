"""What twistd is told becomes one Config, and nothing heavy happens before it is."""

import gc
import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.usage import UsageError
from zope.interface import implementer

from msgservice.config.config import Config
from msgservice.errors import ConfigError
from msgservice.tap import (
    Options,
    bridge_logging,
    keep_from,
    make_application,
    makeService,
    tell_page,
)


def parsed(*words: str) -> Options:
    options = Options()
    options.parseOptions(list(words))
    return options


def test_no_option_means_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config(data=tmp_path / "var/msgservice") == parsed().config()


def test_every_option_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('[node]\nname = "from-file"\n[limits]\nheartbeat = 3\n')
    config = parsed(
        "--config", str(file),
        "--name", "from-flag",
        "--data", str(tmp_path / "data"),
        "--listen", "tcp:0:interface=",
        "--listen", "unix:/run/m.sock",
        "--insecure",
        "--limit", "silence=4",
    ).config()  # fmt: skip
    assert ("from-flag", tmp_path / "data", True) == (config.name, config.data, config.insecure)
    assert ["tcp:0:interface=", "unix:/run/m.sock"] == [one.address for one in config.listen]
    assert (3.0, 4.0) == (config.limits.heartbeat, config.limits.silence)
    assert file == config.file


def test_a_limit_without_a_value_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parsed("--limit", "heartbeat")


@pytest.mark.usefixtures("operators_limits")
def test_a_wrong_configuration_ends_the_start_with_all_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[node]\nnmae = 1\n[limits]\nheartbeat = 0\n")
    with pytest.raises(SystemExit) as ended:
        makeService(parsed("--config", str(file)))
    assert f"{file}:2: node.nmae: unknown key" in str(ended.value)
    assert f"{file}:4: limits.heartbeat: must be at least 0.1, not" in str(ended.value)


def test_a_word_in_the_environment_that_is_none_ends_the_start_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSGSERVICE_INLINE_COMMITS", "OFF")
    with pytest.raises(SystemExit, match="MSGSERVICE_INLINE_COMMITS is auto, on or off, not 'OFF'"):
        makeService(parsed())
    assert [] == list(tmp_path.iterdir())


def test_an_application_file_with_a_wrong_configuration_fails(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        make_application(tmp_path / "absent.toml")


def test_a_node_is_refused_where_it_is_not_tested(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SystemExit, match="runs on Linux, not on darwin"):
        makeService(parsed())


def test_listing_the_options_installs_no_reactor_and_opens_no_database() -> None:
    heavy = "import sys, msgservice.tap; msgservice.tap.Options();"
    heavy += "print([m for m in ('twisted.internet.reactor', 'apsw', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout


def test_libraries_that_use_logging_are_heard_once() -> None:
    heard: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        heard.append(event)

    root = logging.getLogger()
    before = list(root.handlers)
    bridge_logging()
    bridge_logging()
    globalLogPublisher.addObserver(observe)
    try:
        logging.getLogger("some.library").warning("{no} format %d", 7)
        logging.getLogger("some.library").info("not this")
    finally:
        globalLogPublisher.removeObserver(observe)
        root.handlers[:] = before
    assert [("some.library", "warn", "{no} format 7")] == [
        (event["log_namespace"], event["log_level"].name, event["text"]) for event in heard
    ]


@pytest.mark.parametrize("started", [True, False])
def test_a_full_collection_looks_at_nothing_that_a_node_began_with(started: bool) -> None:
    ready: Deferred[None] = Deferred()
    keep_from(ready)
    begun_with = [[number] for number in range(20_000)]  # conftest has frozen all else
    looked_at = len(gc.get_objects())
    assert looked_at > len(begun_with)
    try:
        if started:
            ready.callback(None)
        else:
            ready.errback(OSError("it says that by itself"))
        assert (len(gc.get_objects()) < looked_at / 10) is started
    finally:
        gc.freeze()


class Shown(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("listeners", "terminal", "told"),
    [
        (
            ["tcp:127.0.0.1:7410", "http://127.0.0.1:7480/"],
            True,
            "\nThe page of this node is at http://127.0.0.1:7480/\n\n",
        ),
        (["tcp:127.0.0.1:7410", "http://127.0.0.1:7480/"], False, ""),
        (["tcp:127.0.0.1:7410", "http+unix:/run/web"], True, ""),
    ],
)
def test_who_starts_a_node_at_a_terminal_is_told_where_its_page_is(
    listeners: list[str], terminal: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Shown(terminal)
    monkeypatch.setattr(sys, "__stdout__", shown)
    ready: Deferred[None] = Deferred()
    there: list[str] = []
    tell_page(ready, lambda: there)
    there += listeners  # they are known when it is ready
    before = shown.getvalue()
    ready.callback(None)
    assert ("", told) == (before, shown.getvalue())


def test_a_node_that_did_not_start_tells_no_page() -> None:
    ready: Deferred[None] = Deferred()
    tell_page(ready, lambda: ["http://127.0.0.1:1/"])
    ready.errback(ValueError())
    assert ready.result is None
