"""What pages show can be typed: programs compile, and names, commands, targets and files exist.

Whether the programs do what the pages say is shown by the tests of each page.
"""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest

from msgservice.cli.main import main

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = {
    str(file.relative_to(CHECKOUT)): file.read_text()
    for file in (
        CHECKOUT / "README.md",
        CHECKOUT / "CONTRIBUTING.md",
        *sorted((CHECKOUT / "docs").glob("*.md")),
    )
}
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """Give page and text of each block of code in one of these languages."""
    for page, text in PAGES.items():
        for _, language, block in BLOCK.findall(text):
            if language in languages:
                yield page, textwrap.dedent(block)


PROGRAMS = list(blocks("python"))
# Of other systems, whose programs the pages show beside ours: they are compiled, and no more.
OTHERS = {"celery", "pika", "redis"}


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize(
    ("page", "program"), PROGRAMS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(PROGRAMS)]
)
def test_a_program_compiles_and_what_it_imports_exists(page: str, program: str) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    tree = compile(program, page, "exec", flags=flags)
    for module, name in imports(tree):
        if (module, name) == ("twisted.internet", "reactor"):
            continue  # importing it here would choose one
        if module in OTHERS:
            continue
        found = importlib.import_module(module)
        if name is not None and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Give each `msgservice …` of the blocks, with its page."""
    for page, block in blocks("", "console", "sh"):
        for line in block.splitlines():
            if found := re.search(r"(?:^|\| )(?:\.venv/bin/)?msgservice (.*)", line):
                words = shlex.split(found[1])
                # What a shell does with its input and output is none of its words.
                yield page, list(takewhile(lambda word: word not in ("<", ">", "|"), words))


COMMANDS = list(commands())


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(w) for _, w in COMMANDS])
def test_a_command_can_be_typed_as_it_is_shown(page: str, words: list[str]) -> None:
    assert page
    command: click.Command = main
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        found = command.get_command(click.Context(command), name)
        assert found is not None, (page, name)
        command = found
    with command.make_context(name, list(words)):
        pass  # parsed, and not run


def test_every_command_that_is_named_exists() -> None:
    named = {
        (page, *words)
        for page, text in PAGES.items()
        for words in re.findall(r"`msgservice (?!udp 1 )([a-z][a-z-]*)(?: ([a-z][a-z-]*)\b)?", text)
    }
    assert len(named) > 10
    for page, first, second in named:
        command = main.get_command(click.Context(main), first)
        assert command is not None, (page, first)
        if isinstance(command, click.Group) and second:
            assert second in command.commands, (page, first, second)


def test_every_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([\w.]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (page, target)
        for page, text in PAGES.items()
        for target in re.findall(r"(?:`|^)make ([a-z]+)\b", text, re.MULTILINE)
    }
    assert len(named) > 5
    assert {(page, target) for page, target in named if target not in targets} == set()


def test_every_module_that_is_run_exists() -> None:
    named = {
        (page, module)
        for page, text in PAGES.items()
        for module in re.findall(r"python -m ((?:examples|bench|tests)[\w.]*\w)", text)
    }
    assert len(named) > 3
    missing = {(page, m) for page, m in named if importlib.util.find_spec(m) is None}
    assert missing == set()


def test_every_example_is_named_on_a_page() -> None:
    programs = [
        file.stem
        for file in (CHECKOUT / "examples").glob("*.py")
        if "__main__" in file.read_text() and not file.stem.startswith("demo")  # `make demo`
    ]
    assert programs
    text = "".join(PAGES.values())
    assert [
        name
        for name in programs
        if f"examples/{name}.py" not in text and f"examples.{name}" not in text
    ] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_place_that_is_linked_exists(page: str) -> None:
    folder = (CHECKOUT / page).parent
    for target, anchor in re.findall(r"\]\(([\w./-]+\.md)?(?:#([\w-]+))?\)", PAGES[page]):
        other = folder / target if target else CHECKOUT / page
        assert other.exists(), target
        headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, (target, anchor)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "usage: python -m examples.chassis_bridge tcp:127.0.0.1:7410\n"),
        (
            ["nonsense"],
            "chassis_bridge: bad address 'nonsense': expected SCHEME:..., as in"
            " tcp:127.0.0.1:7410\n",
        ),
    ],
)
def test_the_bridge_without_a_node_says_how_it_is_called(words: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.chassis_bridge", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == told


def test_the_conversation_on_the_page_of_datagrams_is_as_it_says() -> None:
    (first, *_) = [program for page, program in PROGRAMS if page == "docs/udp.md"]
    assert first.count("7430") == 2
    # The port is the page's; here the kernel chooses one.
    first = first.replace("server.listen(7430)", "to = server.listen()")
    first = first.replace('("127.0.0.1", 7430)', "to")
    done = subprocess.run(
        [sys.executable, "-c", first],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("b'2121'\n", 0), done.stderr
