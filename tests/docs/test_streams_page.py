"""docs/streams.md: its programs print what it says, its lines work as shown, limits are real."""

import ast
import inspect
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from socket import create_connection

import pytest

from examples.streams_progress import JOB, Terminal, compute
from msgservice import stream_limits
from msgservice.faces.streams import StreamLimits
from msgservice.faces.streams.remote import RemoteStream
from msgservice.faces.streams.stream import MessageStream
from msgservice.faces.streams.wire import ACTIONS
from tests.kit.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = (CHECKOUT / "docs" / "streams.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", TEXT, re.DOTALL)
SECONDS = 60
RESULT = "the longest: 156159 with 382 steps\n"


def run(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_program_says_what_it_prints() -> None:
    assert TEXT.count("```python") == len(PROGRAMS) == 3


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=["in_process", "network", "node"])
def test_a_program_prints_what_the_page_says(program: str, output: str, tmp_path: Path) -> None:
    assert run(program, tmp_path) == output


SERVER = """
import sys
from twisted.internet import reactor
from msgservice.faces.streams import serve
serve(int(sys.argv[1]), reactor)
print("listens", flush=True)
reactor.run()
"""


@contextmanager
def program(*words: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, *words], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def test_a_client_like_nc_that_types_what_the_page_shows_gets_what_it_shows() -> None:
    (shown,) = re.findall(r"\$ nc 127\.0\.0\.1 7412\n(.*?)```", TEXT, re.DOTALL)
    port = free_port()
    with program("-c", SERVER, str(port)) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listens\n"
        with create_connection(("127.0.0.1", port), timeout=SECONDS) as plain:
            lines = plain.makefile("rwb")
            typed = 0
            for line in shown.splitlines():
                if '": ' in line:  # as a person types it
                    lines.write(line.encode() + b"\n")
                    lines.flush()
                    typed += 1
                else:
                    assert lines.readline().decode() == line + "\n"
            assert lines.read() == b""
    assert typed == 5


def test_the_actions_and_the_reasons_are_those_of_the_page() -> None:
    part = TEXT.partition("\n## Lines\n")[2]
    assert set(re.findall(r"^\| `(\w+)` \| (?:a string|null)", part, re.MULTILINE)) == ACTIONS


def test_every_method_of_the_page_exists_and_the_other_way_round() -> None:
    for cls, start, end in (
        (MessageStream, "## In one process", "### Progress"),
        (RemoteStream, "`RemoteStream(host, port)` has", "| `reason` |"),
    ):
        part = TEXT.partition(start)[2].partition(end)[0]
        named = set(re.findall(r"`(?:stream\.)?(put|listen|hangup|header|delete|close)\(", part))
        assert named == {name for name in named if hasattr(cls, name)}
        assert named >= {"put", "listen", "hangup", "close"}


def test_the_example_tells_its_result_to_who_watches_and_to_who_comes_late() -> None:
    port = str(free_port())
    example = ("-m", "examples.streams_progress")
    with program(*example, "serve", port) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline() == f"computing, at port {port}\n"
        with program(*example, "watch", port) as watching:
            shown, _ = watching.communicate(timeout=SECONDS)
        assert serving.stdout.readline().startswith("done")
        with program(*example, "watch", port) as late:
            shown_late, _ = late.communicate(timeout=SECONDS)
    assert shown.endswith("\n" + RESULT)
    assert shown_late == "\n" + RESULT


def test_the_example_shows_its_progress_to_who_comes_in_the_middle_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream, terminal = MessageStream(), Terminal()
    computing = compute(stream)
    for _ in range(10):
        next(computing)
    stream.listen(JOB, terminal)
    assert capsys.readouterr().out == "\r[####" + "." * 36 + "] 20000 numbers"
    next(computing)
    assert capsys.readouterr().out.endswith("\r[####" + "." * 36 + "] 22000 numbers")
    for _ in computing:
        pass
    assert capsys.readouterr().out.endswith("] 200000 numbers\n" + RESULT)
    assert terminal.over.called


def limits_as_told() -> dict[str, tuple[str, str]]:
    """Each limit's default and what the class says of it: the string behind its name."""
    (cls,) = (
        node
        for node in ast.parse(inspect.getsource(stream_limits)).body
        if isinstance(node, ast.ClassDef) and node.name == "StreamLimits"
    )
    told = {
        before.target.id: " ".join(inspect.cleandoc(str(text.value.value)).split())
        for before, text in pairwise(cls.body)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    return {field.name: (str(field.default), told[field.name]) for field in fields(StreamLimits)}


def test_limits_are_documented_with_their_defaults_and_as_the_class_says() -> None:
    part = TEXT.partition("\n## Limits\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.*) \|$", part, re.MULTILINE)
    assert {name: (default, text) for name, default, text in found} == limits_as_told()


def test_the_configuration_has_those_of_a_server_with_the_same_words() -> None:
    page = (CHECKOUT / "docs" / "configuration.md").read_text()
    part = page.partition("\n## `[streams]`\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.*) \|$", part, re.MULTILINE)
    told = limits_as_told()
    assert told.pop("unsent_bytes")
    assert {name: (default, text) for name, default, text in found} == told


def test_a_limit_that_cannot_be_is_refused() -> None:
    for value in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="line_seconds"):
            StreamLimits(line_seconds=value)


def test_the_lines_of_the_page_are_json() -> None:
    part = TEXT.partition("\n## Lines\n")[2]
    assert all(json.loads(line) for line in re.findall(r"^\{.*\}$", part, re.MULTILINE))
