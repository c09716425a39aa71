"""`msgservice top`, in a pipe, for programs, and on a terminal until Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator

import pytest

from tests.integration.command import Command
from tests.integration.daemon import BIN, PATIENCE

LINES = 30


@pytest.fixture
def in_trouble(msgservice: Command) -> Iterator[str]:
    assert msgservice("receivers", "add", "behind", "behind.>").code == 0
    assert msgservice("receivers", "add", "well", "other.>").code == 0
    assert msgservice("send", "behind.new", "one").code == 0
    yield "behind is away. 1 message waits for it."
    for name in ("behind", "well"):
        assert msgservice("receivers", "remove", name, "--yes").code == 0


def test_a_pipe_is_shown_all_once_and_trouble_first(msgservice: Command, in_trouble: str) -> None:
    while in_trouble not in (shown := msgservice("top")).out:
        assert shown.code == 0  # what was looked at may be two seconds old
    assert "\x1b" not in shown.out
    assert in_trouble in shown.out
    told = r"It attaches by itself: start it\. For \d+ s\.  msgservice peek behind"
    assert re.search(told, shown.out)
    assert "1 connections" not in shown.out
    rows = [line.split()[0] for line in shown.out.splitlines() if line.strip()]
    assert rows.index("behind") < rows.index("well")


def test_programs_get_an_object_for_each_look(msgservice: Command, in_trouble: str) -> None:
    shown = msgservice("top", "--json", "--count", "2", "--every", "2.5")
    first, second = (json.loads(line) for line in shown.out.splitlines())
    assert first["node"]["name"] == second["node"]["name"]
    # What was looked at may be two seconds old: of before that was sent.
    (row,) = [row for row in second["receivers"] if row["name"] == "behind"]
    assert (row["health"], row["queued"]) == ("away", 1)
    assert [in_trouble] == [trouble["sentence"] for trouble in row["troubles"]]


def test_a_terminal_is_drawn_again_until_a_signal_and_left_as_it_was(
    msgservice: Command, in_trouble: str
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, 80, 0, 0))
    process = subprocess.Popen(
        [BIN / "msgservice", "top", "--every", "0.1"],
        cwd=msgservice.folder,
        env=os.environ | {"MSGSERVICE_NODE": msgservice.node, "TERM": "xterm"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    interrupted = False
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # Linux says so when the other side has closed a terminal
            break
        # What is shown first may be two seconds old: of before that was sent.
        is_seen = shown.count(b"\x1b[H\x1b[J") >= 3 and in_trouble.encode() in shown
        if is_seen and not interrupted:
            interrupted = True
            process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(PATIENCE) == 130
    assert shown.startswith(b"\x1b[?1049h")
    assert shown.rstrip().endswith(b"\x1b[?1049l")
    assert in_trouble.encode() in shown
    for screen in shown.split(b"\x1b[H\x1b[J")[1:-1]:
        assert screen.count(b"\n") < LINES
