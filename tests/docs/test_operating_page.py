"""The operator's page quotes the node's log as it is written, and names what there is."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

import msgservice
from msgservice.administration import ReceiverState
from msgservice.limits import Limits
from msgservice.log_lines import FAILURE
from tests.docs.test_reference_pages import DOCS, rows

PAGE = DOCS / "operating.md"
STRINGS = {
    node.value
    for path in Path(msgservice.__file__).parent.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}
TABLE = PAGE.read_text().partition("\n### What the log says\n")[2].partition("\n## ")[0]
LINES = [
    line
    for row in TABLE.splitlines()
    if row.startswith("| `")
    for line in re.findall(r"`([^`]* [^`]*)`", row.split(" | ")[1])
    if not line.startswith("on_full")
]
IDS = [
    one
    for row in TABLE.splitlines()
    if row.startswith("| `")
    for one in re.findall(r"`([^`]+)`", row.split(" | ")[0])
]
# What runs in a node, or in `msgservice relay`; programs of others have lines of their own.
OPERATED = (
    "node/",
    "log/",
    "disk/",
    "transport/",
    "webhooks/",
    "outbox/",
    "connection.py",
    "tap.py",
)


def format_of(line: str) -> re.Pattern[str]:
    """The log format that makes this line: its words in capitals are fields."""
    parts = re.split(r"\b([A-Z]{3,})\b", line)
    return re.compile(
        "".join(r"\{\w+(?:![rs])?\}" if n % 2 else re.escape(part) for n, part in enumerate(parts))
    )


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_log_is_written_so(line: str) -> None:
    assert any(format_of(line).match(text) for text in STRINGS), line


def test_the_page_quotes_the_lines_that_matter() -> None:
    assert len(LINES) >= 20


@pytest.mark.parametrize("words", ["is not answered", "was turned away"])
def test_a_peer_with_a_wrong_key_or_certificate_is_among_them(words: str) -> None:
    assert any(words in line for line in LINES)


def test_the_limits_that_are_named_exist() -> None:
    named = {
        name
        for row in rows("operating.md", "## Limits to look at first")
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert len(named) > 5
    assert named <= {field.name for field in fields(Limits)}


def test_the_fields_that_are_worth_an_alarm_exist() -> None:
    told = {field.name for field in msgspec.structs.fields(ReceiverState)}
    table = PAGE.read_text().partition("| field of a receiver |")[2].partition("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name for cell in first for name in re.findall(r"`([\w.]+)`", cell)]
    named = {name.partition(".")[0] for name in names}
    assert len(named) == 7
    assert named <= told


def calls_of_loggers() -> Iterator[tuple[str, ast.Call]]:
    """Give each call that writes a line of a node's log, which is not about a failure."""
    package = Path(msgservice.__file__).parent
    for path in sorted(package.rglob("*.py")):
        part = str(path.relative_to(package))
        if not part.startswith(OPERATED) or part == "transport/udp/peer.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            of = ast.unparse(node.func.value).rpartition(".")[2]
            if of in {"_logger", "logger", "_log"} and node.func.attr in LEVELS:
                yield f"{part}:{node.lineno}", node


OF_VISITS = {"peer-came", "peer-gone", "peer-refused", "connection-unknown"}
VISITS = ast.parse((Path(msgservice.__file__).parent / "node" / "visits.py").read_text())
LEVELS = {"info", "warn", "error", "critical", "emit"}


def test_each_line_of_a_nodes_log_has_an_id_that_the_page_explains() -> None:
    without: list[str] = []
    found: set[object] = set()
    for where, call in calls_of_loggers():
        said = [one.value for one in call.keywords if one.arg == "line"]
        if not said:
            without.append(where)
        for one in ast.walk(said[0]) if said else ():
            if isinstance(one, ast.Constant):
                found.add(one.value)
    assert without == []
    # Of visits the ids stand beside their words.
    assert {node.value for node in ast.walk(VISITS) if isinstance(node, ast.Constant)} >= OF_VISITS
    assert found | {FAILURE} | OF_VISITS == set(IDS)
    assert len(IDS) == len(set(IDS))
