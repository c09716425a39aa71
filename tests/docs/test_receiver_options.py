"""The pages have each option of a receiver as its field says it: name, default, choices, help."""

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from msgservice.cli.receivers import _option, flag_of, receivers
from msgservice.receiver_options import ADDED, CHANGED, CONFIGURED, OPTIONS, About, Option

DOCS = Path(__file__).resolve().parents[2] / "docs"


def row_of(page: str, first: str, below: str = "") -> str:
    """Return the only line of a table that begins so, in the part below a heading."""
    text = (DOCS / page).read_text()
    if below:
        text = text.partition(f"\n{below}\n")[2].partition("\n## ")[0]
    lines = text.splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {first}")]
    return row


@pytest.mark.parametrize("option", CONFIGURED, ids=lambda option: option.name)
def test_the_configuration_page_has_each_option(option: Option) -> None:
    table, *key = option.key
    row = row_of("configuration.md", f"`{table}` |", "## `[[receiver]]`")
    if key:
        assert f"`{key[0]}`: {option.about.help}" in row
    else:
        assert row.startswith(
            f"| `{table}` | `{json.dumps(option.default)}` | {option.about.help} "
        ), row
    assert all(f"`{json.dumps(choice)}`" in row or choice in row for choice in option.about.choices)


def usage(option: Option) -> str:
    if option.kind is bool:
        return f"[{flag_of(option)}]"
    value = "\\|".join(option.about.choices) or option.about.unit or "TEXT"
    return f"[{flag_of(option)} {value}]"


@pytest.mark.parametrize("command", ["add", "change"])
def test_the_page_of_the_command_line_has_each_option(command: str) -> None:
    row = row_of("cli.md", f"`{command} NAME [SUBJECT]")
    options = [one for one in ADDED if command == "add" or one.name in CHANGED]
    said = re.findall(r"\[--[^]]*\]", row)
    assert ["[--address ADDRESS]", *(usage(one) for one in options)] == said
    told = CliRunner().invoke(receivers, [command, "--help"]).output
    assert all(flag_of(one) in told for one in options)
    assert all(flag_of(one) not in told for one in OPTIONS if one not in options)


def test_the_page_of_the_protocol_has_each_option() -> None:
    of_list, of_add, of_change = (
        {*re.findall(r"`(\w+)`", row_of("protocol.md", f"`$node.receivers.{what}`"))}
        for what in ("list", "add", "change")
    )
    for option in OPTIONS:
        about = option.about
        assert [about.added, about.added, about.changed] == [
            option.name in names for names in (of_list, of_add, of_change)
        ], option.name  # what can be said can be seen


@pytest.mark.parametrize(
    ("arguments", "given"), [([], None), (["--wide"], True), (["--no-wide"], False)]
)
def test_a_choice_that_can_be_changed_can_be_taken_back(
    arguments: list[str], given: bool | None
) -> None:
    about = About(help="Wide.")
    wide = Option(name="wide", kind=bool, default=False, about=about, key=("wide",), column="")
    found: list[bool | None] = []

    @click.command()
    @_option(wide)
    def command(wide: bool | None) -> None:
        found.append(wide)

    assert 0 == CliRunner().invoke(command, arguments).exit_code
    assert [given] == found
