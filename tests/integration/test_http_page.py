"""docs/http.md: what it says to type, typed; and a post whose answer a kill took away."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemon import PATIENCE, running
from tests.kit.ports import free_port

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text()
TOUR = PAGE.partition("\n## With curl\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TOUR, flags=re.MULTILINE | re.DOTALL)
(CONFIG,) = re.findall(
    r"^```toml\n(.*?)^```$", PAGE.partition("\n## With curl\n")[0], flags=re.MULTILINE | re.DOTALL
)
XMLRPC = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


class Node:
    """The node of the page, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tcp, self.web = free_port(), free_port()
        (folder / "node.toml").write_text(self.here(CONFIG))

    def here(self, text: str) -> str:
        return text.replace("7410", str(self.tcp)).replace("7480", str(self.web))

    def start(self) -> Any:
        command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
        return running(*command, cwd=self.folder)

    def run(self, script: str) -> str:
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", self.here(script)],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    with made.start() as daemon:
        daemon.wait_for(rf"listening on http://127\.0\.0\.1:{made.web}/")
        yield made
        assert daemon.stop() in (0, -signal.SIGTERM)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands are curl's")
def test_the_lines_with_curl_do_what_the_page_says(node: Node) -> None:
    made, many, waited, asked = [node.run(block) for block in BLOCKS]
    ready, receiver, stored, following = values(made)
    assert ({"status": "ready"}, {"name": "billing"}) == (ready, receiver)
    assert "log:" in stored["id"]
    assert ["orders.new"] == [one["subject"] for one in following["messages"]]
    first, again = values(many)
    assert 2 == first["accepted"] == again["accepted"]
    assert first["runs"][0]["id"] == again["runs"][0]["id"]
    answer, events = waited.split("event: state", 1)
    (settled,) = values(answer)
    assert (False, "queued") == (settled["final"], settled["receivers"]["billing"]["status"])
    assert '"subject":"orders.paid"' in events
    paused, purged, unknown = values(asked)
    assert (True, 4) == (paused["paused"], purged["count"])
    assert (404, "UnknownReceiver") == (unknown["status"], unknown["error"])


def test_the_program_of_xml_rpc_does_too(node: Node) -> None:
    (program,) = XMLRPC
    said = subprocess.run(
        [sys.executable, "-c", node.here(program)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout
    assert said.startswith("log:")


def values(text: str) -> list[Any]:
    """Return the values of JSON that stand behind each other."""
    found, decoder = [], json.JSONDecoder()
    text = text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


# --- kill -9

BODY = b"".join(b'{"subject": "orders.paid", "body": %d}\n' % number for number in range(50))


@pytest.mark.parametrize("point", ["before the group", "before the answer"])
def test_a_post_whose_answer_a_kill_took_away_is_stored_once(tmp_path: Path, point: str) -> None:
    lives = []
    for life, killed_at in enumerate((point, "never", "never")):
        with child(tmp_path, killed_at) as daemon:
            port = int(daemon.wait_for(r"web (\d+)")[1])
            if life == 2:
                lives.append(get(port, "/v1/receivers/billing/next?limit=100"))
                continue
            try:
                lives.append(post(port))
            except OSError:  # which it is: the connection broke off, without an answer
                lives.append(None)
                assert -signal.SIGKILL == daemon.ended()
    killed, answered, waiting = lives
    assert killed is None
    assert 50 == answered["accepted"]
    assert (point == "before the answer") == answered["runs"][0]["by_key"]
    assert 50 == len(waiting["messages"])


def child(folder: Path, killed_at: str) -> Any:
    command = (sys.executable, "-m", "tests.integration.http_child", str(folder), killed_at)
    return running(*command, cwd=ROOT)


def post(port: int) -> Any:
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "paid-1"}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/messages", BODY, headers, method="POST"
    )
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        return json.load(answer)


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        return json.load(answer)
