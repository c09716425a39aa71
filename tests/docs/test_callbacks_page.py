"""docs/callbacks.md: its programs run and print what it says, its limits are the real ones."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from msgservice.faces.callbacks.protocol.events import CallbackLimits

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = (CHECKOUT / "docs" / "callbacks.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", TEXT, re.DOTALL)


def test_every_program_says_what_it_prints() -> None:
    assert TEXT.count("```python") == len(PROGRAMS) == 4


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_program_prints_what_the_page_says(program: str, output: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


def test_limits_are_documented_with_their_defaults() -> None:
    documented = dict(re.findall(r"^\| `(\w+_max)` \| ([\d.]+) \|", TEXT, re.MULTILINE))
    assert documented == {field.name: str(field.default) for field in fields(CallbackLimits)}


@pytest.mark.parametrize("example", ["callbacks_fleet", "callbacks_selectors"])
def test_example_runs(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{example}", str(tmp_path)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
