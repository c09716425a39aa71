"""Pages for who begins, or comes from another system: their programs run and say what they say."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.programs import NODE, blocks, typed, write
from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, running
from tests.kit.ports import free_port


def test_the_quickstart_works_as_it_is_written(msgservice: Command) -> None:
    lines = [line for line in typed("quickstart.md") if line.startswith(".venv/bin/msgservice ")]
    (*_, add, send, listen, why) = [shlex.split(line)[1:] for line in lines]
    assert msgservice(*add).code == 0
    stored, arrived = blocks("quickstart.md", "text")
    told = msgservice(*send).out
    position = re.match(r"stored at (log:\d+)\n", told)
    assert position
    like = re.sub(r"log:\d+", position[1], stored)
    assert [line.split() for line in like.splitlines()] == [
        line.split() for line in told.splitlines()
    ]
    with running("msgservice", *listen, "--node", msgservice.node, cwd=msgservice.folder) as shown:
        # In a pipe the subject is left out: the page shows a terminal.
        shown.wait_for(arrived.split("  ")[1].strip())
        shown.send(signal.SIGINT)
        shown.ended()
    asked = [position[1] if "log:" in word else word for word in why]
    # Who listens has sent its answer when it ends; the node counts it when that is on disk.
    while "acknowledged" not in (told := msgservice(*asked).out):
        assert "billing" in told


def test_the_trouble_of_the_quickstart_adds_up(tmp_path: Path) -> None:
    commands = [shlex.split(line)[1:] for line in typed("quickstart.md") if ".venv/bin/ms" in line]
    quiet, send, chaos = commands[:3]
    ours = ("--listen", "tcp:0", "--page", "tcp:0:interface=127.0.0.1")
    with running("msgservice", *quiet, *ours, cwd=tmp_path) as dev:
        done = Command(dev.wait_for(r"^  node +(\S+)$")[1], tmp_path)(*send)
        assert done.code == 0
        assert [line.split() for line in done.out.splitlines()[1:]] == [
            ["billing", "acknowledged"],
            ["shipping", "acknowledged"],
        ]
    with running("msgservice", *chaos, "--count", "2", *ours, cwd=tmp_path) as dev:
        assert dev.ended() == 0
    assert dev.output[-2].strip().endswith(": it adds up")


def test_the_programs_of_the_quickstart_speak_with_each_other(msgservice: Command) -> None:
    shop, billing = (
        block.replace(NODE, msgservice.node) for block in blocks("quickstart.md", "python")
    )
    (msgservice.folder / "shop.py").write_text(shop)
    (msgservice.folder / "billing.py").write_text(billing)
    with running("python", "billing.py", cwd=msgservice.folder) as receiving:
        while not msgservice_connected(msgservice, "billing"):
            pass
        with running("python", "shop.py", cwd=msgservice.folder) as sending:
            sending.wait_for("^billing has it$")
            assert sending.ended() == 0
        receiving.wait_for(r"orders\.new \{'id': 17\}")
        receiving.stop()


def msgservice_connected(msgservice: Command, name: str) -> bool:
    rows = msgservice.data("receivers", "list")["receivers"]
    return any(row["name"] == name and row["connected"] for row in rows)


@pytest.mark.parametrize(
    "page", ["from-rabbitmq.md", "from-nats.md", "from-celery.md", "from-redis.md"]
)
def test_our_program_beside_that_of_another_system_runs(page: str, msgservice: Command) -> None:
    program = write(page, msgservice.folder, msgservice.node)["orders.py"]
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout == "charging {'id': 17}\ncharged\n"


def test_the_program_of_nats_runs_beside_ours(tmp_path: Path) -> None:
    port = free_port()
    theirs, _ = blocks("from-nats.md", "python")
    command = ("nats-server", "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(tmp_path))
    with running(*command, cwd=tmp_path) as server:
        server.wait_for("Server is ready")
        code = theirs.replace("nats.connect()", f'nats.connect("nats://127.0.0.1:{port}")')
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert done.stdout == "charging {'id': 17}\ncharged\n"


def test_workers_of_the_page_share_what_is_sent(msgservice: Command) -> None:
    write("workers.md", msgservice.folder, msgservice.node)
    with (
        running("python", "worker.py", cwd=msgservice.folder) as one,
        running("python", "worker.py", cwd=msgservice.folder) as two,
    ):
        while not any(
            row.get("workers") == 2 for row in msgservice.data("receivers", "list")["receivers"]
        ):
            pass
        numbers = "".join(f"{number}\n" for number in range(1, 101)).encode()
        assert msgservice("send", "pictures.new", stdin=numbers).code == 0
        one.wait_for(r"^\d+ ")
        two.wait_for(r"^\d+ ")
        while msgservice.receiver("resize")["queued"]:
            pass
        one.stop()
        two.stop()
    done = re.findall(r"^\d+ (?:b')?(\d+)", one.said + two.said, re.MULTILINE)
    assert sorted(map(int, done)) == list(range(1, 101))


def test_a_program_with_its_own_node_does_what_an_earlier_run_left(tmp_path: Path) -> None:
    write("embedding.md", tmp_path, NODE)
    with running("python", "jobs.py", "wash", "dry", "fold", cwd=tmp_path) as first:
        first.wait_for("^done wash$")
        first.send(signal.SIGKILL)
        first.ended()
    with running("python", "jobs.py", cwd=tmp_path) as second:
        left = {"dry", "fold"} - set(re.findall(r"^done (\w+)$", first.said, re.MULTILINE))
        for job in sorted(left):
            second.wait_for(rf"^done {job}$")
        second.stop()
