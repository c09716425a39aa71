"""`msgservice.testing` as users have it: its page and its example, by a pytest without plugins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_code_blocks import CHECKOUT, blocks
from tests.integration.daemon import PATIENCE

# What users may well not have; the example is in our checkout, whose settings are not theirs.
PLAIN = [*(f"-pno:{name}" for name in ("twisted", "xdist", "timeout", "hypothesispytest", "anyio"))]
TESTS = [
    text for page, text in blocks("python") if page == "docs/testing.md" and "def test" in text
]
CONFTEST = 'pytest_plugins = ["msgservice.testing"]\n'


def pytest_in(folder: Path, *words: str, conftest: str = CONFTEST) -> str:
    """Run pytest as a project of its own does; return what it prints."""
    (folder / "conftest.py").write_text(conftest)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = subprocess.run(
        [sys.executable, "-bb", "-m", "pytest", "-q", *PLAIN, f"--rootdir={folder}", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_page_names_the_plugin() -> None:
    (named,) = [
        text
        for page, text in blocks("python")
        if page == "docs/testing.md" and "pytest_plugins" in text
    ]
    assert named == CONFTEST


@pytest.mark.parametrize("number", range(len(TESTS)))
def test_the_tests_of_the_page_pass(tmp_path: Path, number: int) -> None:
    (tmp_path / "test_page.py").write_text(TESTS[number])
    told = pytest_in(tmp_path)
    assert " passed" in told, told
    assert not re.search(r"\d (failed|error)", told), told


def test_the_example_passes(tmp_path: Path) -> None:
    examples = CHECKOUT / "examples"
    (tmp_path / "test_orders.py").write_text((examples / "test_orders.py").read_text())
    told = pytest_in(tmp_path, conftest=(examples / "conftest.py").read_text())
    assert "7 passed" in told, told


def test_a_test_leaves_neither_a_log_nor_a_connection(tmp_path: Path) -> None:
    (tmp_path / "test_left.py").write_text("""
import os
from pathlib import Path
import pytest
from msgservice import blocking

FILES = []

@pytest.mark.parametrize("number", range(3))
def test_once(msgservice_node, tmp_path, number):
    client = msgservice_node.connect()  # and is not closed
    msgservice_node.collect("left.>").messages
    client.send("left.new", b"x")
    FILES.append((len(os.listdir("/proc/self/fd")), msgservice_node._folder))

def test_nothing_is_left():
    assert not any(folder.exists() for _, folder in FILES)
    assert len({count for count, _ in FILES}) == 1, FILES
""")
    assert "4 passed" in (told := pytest_in(tmp_path)), told


def test_without_the_plugin_there_are_no_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text("def test_it(msgservice_node): pass\n")
    assert "fixture 'msgservice_node' not found" in pytest_in(tmp_path, conftest="")


def test_without_pytest_both_nodes_are_there(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["pytest"] = None  # cannot be imported
from msgservice.testing import LocalNode, World
with LocalNode("data") as node:
    with node.connect() as client:
        print(client.send("plain.new", b"x").sequence)
world = World()
print(world.wait(world.client("shop").send("plain.new", b"x")).sequence)
world.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1\n1\n", "")


def test_what_does_not_come_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "test_late.py").write_text("""
import pytest

def test_it(msgservice_node):
    collected = msgservice_node.collect("late.>")
    msgservice_node.connect().send_many("late.new", [b"x"] * 1000)
    collected.wait(1000)
    with pytest.raises(TimeoutError) as told:
        collected.wait(1001, timeout=0.01)
    assert str(told.value).startswith("1000 messages within 0.01 s, not 1001; the last were on")
    assert str(told.value).count("late.new") == 10
""")
    assert "1 passed" in (told := pytest_in(tmp_path)), told
