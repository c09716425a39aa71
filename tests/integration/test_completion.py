"""Completion in shells: what a real one completes with the script that the command prints."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import BIN, PATIENCE

BASH = """
eval "$(msgservice completion bash)"
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_msgservice_completion msgservice
echo "${{COMPREPLY[@]}}"
"""


def shell(*command: str, home: Path) -> list[str]:
    """Return the words that a shell prints, which finds `msgservice` as people do."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("msgservice pee", ["peek"]),
        ("msgservice receivers pa", ["pause"]),
        ("msgservice send --retain", ["--retain", "--retain-only"]),
        ("msgservice completion ''", ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes_commands_options_and_choices(
    words: str, found: list[str], tmp_path: Path
) -> None:
    done = shell("bash", "--norc", "-c", BASH.format(words=words), home=tmp_path)
    assert found == done


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes_commands(tmp_path: Path) -> None:
    code = 'msgservice completion fish | source; complete -C "msgservice pee"'
    assert shell("fish", "-c", code, home=tmp_path)[0] == "peek"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_takes_its_script(tmp_path: Path) -> None:
    code = (
        "autoload -U compinit; compinit -D;"
        ' eval "$(msgservice completion zsh)"; print ${_comps[msgservice]}'
    )
    assert shell("zsh", "-f", "-c", code, home=tmp_path) == ["_msgservice_completion"]


def test_another_shell_is_refused(msgservice: Command) -> None:
    done = msgservice("completion", "tcsh")
    assert done.code == 2
    assert "bash" in done.err
