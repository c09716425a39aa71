"""What is said from outside stands in one line of the log, and moves no cursor."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import (
    FileLogObserver,
    Logger,
    LogPublisher,
    formatEvent,
    textFileLogObserver,
)

from msgservice.log_lines import escape_lines

EVIL = "\x1b[2Jgone\r\n2026-01-01T00:00:00+0000 [msgservice.access#info] root at home is root\x07"


class Written:
    """A log of text that is written behind the observer that escapes."""

    def __init__(self) -> None:
        self.file = StringIO()
        publisher = LogPublisher()
        escape_lines(publisher)
        escape_lines(publisher)
        observer: FileLogObserver = textFileLogObserver(self.file)
        publisher.addObserver(observer)
        self.events: list[Any] = []
        publisher.addObserver(self.events.append)  # type: ignore[arg-type] # takes any event
        self.logger = Logger(namespace="msgservice.access", observer=publisher)
        self.other = Logger(namespace="of.others", observer=publisher)

    @property
    def text(self) -> str:
        return self.file.getvalue()


def fits(text: str) -> bool:
    return all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.parametrize("value", [EVIL, ValueError(EVIL)], ids=["text", "error"])
def test_what_is_said_from_outside_is_one_line_without_anything_that_a_terminal_obeys(
    value: object,
) -> None:
    written = Written()
    written.logger.warn("login of {user} failed", user=value)
    (line,) = written.text.splitlines()
    assert fits(line)
    assert r"\x1b[2Jgone" in line
    assert r"root\x07 failed" in line


def test_a_traceback_has_its_lines_and_nothing_that_a_terminal_obeys() -> None:
    written = Written()
    try:
        raise ValueError(EVIL)
    except ValueError:
        written.logger.failure("a handler")
    assert fits(written.text)
    assert r"ValueError: \x1b[2Jgone" in written.text
    assert "raise ValueError(EVIL)" in written.text
    (event,) = written.events
    assert event["log_failure"].check(ValueError)
    assert EVIL == str(event["log_failure"].value)


def test_what_is_fit_and_what_is_of_others_stays_as_it_is() -> None:
    written = Written()
    written.logger.info("{name} has {count}", name="größer \\x1b", count=3)
    written.other.info("{text}", text="a\tb")
    assert ["größer \\x1b has 3", "a\tb"] == list(map(formatEvent, written.events))


def test_the_service_adds_it_before_twist_begins_to_write(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("[listen]\ntcp = 'tcp:0'\n")
    program = (
        "import sys\n"
        "from twisted.logger import Logger, globalLogBeginner, textFileLogObserver\n"
        "from msgservice.tap import make_application\n"
        "logger = Logger(namespace='msgservice.before')\n"
        "make_application(sys.argv[1])\n"
        "logger.warn('{said}', said=sys.argv[2])\n"
        "globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])\n"
        "logger.warn('{said}', said=sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(config), EVIL],
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in done.stdout.splitlines() if "msgservice.before" in line]
    assert 2 == len(told)
    assert all(fits(line) and "root is root" not in line.partition("[")[0] for line in told)
    assert fits(done.stdout)


def test_a_line_shows_its_id_and_a_failure_that_has_none_is_one() -> None:
    written = Written()
    written.logger.info("receiver {name} is paused", line="receiver-paused", name="a")
    try:
        raise ValueError("odd")
    except ValueError:
        written.logger.failure("looking")
    written.logger.info("told")
    assert [formatEvent(event) for event in written.events] == [
        "receiver a is paused  [receiver-paused]",
        "looking  [failure]",
        "told",
    ]
    assert [event.get("line") for event in written.events] == ["receiver-paused", "failure", None]
