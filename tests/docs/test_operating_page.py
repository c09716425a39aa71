"""The operator's page quotes the node's log as it is written, and names what there is."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

import msgservice
from msgservice.administration import ReceiverState
from msgservice.limits import Limits
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
    for line in re.findall(r"`([^`]* [^`]*)`", row)
    if not line.startswith("on_full")
]


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
