"""`make demo`, as it is told to a stranger, with a shorter file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from tests.integration.daemon import running
from tests.kit.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(240)
def test_the_demo_kills_three_processes_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "some lines.txt"
    file.write_text("".join(f"line {n} of this file\n" for n in range(3000)))
    played = subprocess.run(
        [sys.executable, "-m", "examples.demo", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert 0 == played.returncode, played.stdout + played.stderr
    told = json.loads(played.stdout.splitlines()[-1])
    assert (3000, 0, 0) == (told["sent"], told["lost"], told["duplicated"])
    assert {"archive", "node", "producer"} == {kill["who"] for kill in told["kills"]}
    assert all(0.2 <= kill["at"] <= 0.8 for kill in told["kills"])


def test_a_file_with_lines_that_are_the_same_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "same.txt"
    file.write_text("again\nagain\n")
    command = [sys.executable, "-m", "examples.demo", str(file)]
    played = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 2 == played.returncode
    assert "the same" in played.stderr


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo", str(tmp_path / "lines.txt")]
    played = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 2 == played.returncode
    assert "cannot be read: No such file or directory" in " ".join(played.stderr.split())
    assert "Traceback" not in played.stderr


def test_the_producer_says_accepted_only_when_the_node_has_every_line(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"line {n}\n" for n in range(300)))
    address = f"tcp:127.0.0.1:{free_port()}"
    producer = (sys.executable, "-m", "examples.demo_roles", "producer", "--address", address)
    files = ("--outbox", str(tmp_path / "outbox.db"), "--file", str(lines))
    listen = f"tcp:{address.rsplit(':', 1)[1]}:interface=127.0.0.1"
    node = ("twist", "--log-format=text", "msgservice", "--listen", listen)
    with running(*producer, *files, cwd=ROOT) as shop:
        shop.wait_for('"handed_over": 300')
        with running(*node, cwd=tmp_path):
            shop.wait_for('"accepted": 300')
    outbox = apsw.Connection(str(tmp_path / "outbox.db"), flags=apsw.SQLITE_OPEN_READONLY)
    assert outbox.execute("select count(*) from run").get == 0
