"""docs/sessions.md: its programs run and print what it says; limits and errors are real."""

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

from msgservice.faces.sessions import SessionLimits, errors, limits
from tests.kit.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = (CHECKOUT / "docs" / "sessions.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", TEXT, re.DOTALL)
SECONDS = 60


def begin(program: str, port: int, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program.replace("1602", str(port))],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_every_program_says_what_it_prints() -> None:
    assert TEXT.count("```python") == len(PROGRAMS) == 3


def test_the_central_and_the_remote_of_the_page_speak_as_it_says(tmp_path: Path) -> None:
    port = free_port()
    processes = [begin(program, port, tmp_path) for program, _ in PROGRAMS[:2]]
    try:
        for process, (_, output) in zip(processes, PROGRAMS, strict=False):
            out, _ = process.communicate(timeout=SECONDS)
            assert (out, process.returncode) == (output, 0)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_the_program_with_a_node_prints_what_the_page_says(tmp_path: Path) -> None:
    program, output = PROGRAMS[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.stdout, done.returncode) == (output, 0), done.stderr


def limits_as_told() -> dict[str, tuple[str, str]]:
    """Each limit's default and what the class says of it: the string behind its name."""
    (cls,) = (
        node
        for node in ast.parse(inspect.getsource(limits)).body
        if isinstance(node, ast.ClassDef) and node.name == "SessionLimits"
    )
    told = {
        before.target.id: " ".join(inspect.cleandoc(str(text.value.value)).split())
        for before, text in pairwise(cls.body)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    return {field.name: (str(field.default), told[field.name]) for field in fields(SessionLimits)}


def test_limits_are_documented_with_their_defaults_and_as_the_class_says() -> None:
    part = TEXT.partition("\n## Limits\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.*) \|$", part, re.MULTILINE)
    assert {name: (default, text) for name, default, text in found} == limits_as_told()


def test_every_error_is_documented() -> None:
    part = TEXT.partition("\n## Errors\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE))
    assert documented == {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
