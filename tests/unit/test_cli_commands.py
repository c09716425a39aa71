"""Commands that there are not: the one that was meant is named."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from msgservice.cli.main import main


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sned", "no such command 'sned', did you mean 'send'?"),
        ("reciever", "no such command 'reciever', did you mean 'receivers'?"),
        ("frobnicate", "no such command 'frobnicate'"),
    ],
)
def test_a_command_that_there_is_not_is_told_with_the_one_that_was_meant(
    said: str, told: str
) -> None:
    ended = CliRunner().invoke(main, [said, "orders.new"])
    assert (2, f"Error: {told}") == (ended.exit_code, ended.output.splitlines()[-1])


def test_what_is_no_command_and_begins_with_a_dash_is_an_option() -> None:
    ended = CliRunner().invoke(main, ["--nothing"])
    assert (2, "Error: No such option '--nothing'.") == (
        ended.exit_code,
        ended.output.splitlines()[-1],
    )
