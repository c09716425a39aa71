"""What waits in a log that no node opens any more can be read, and sent to a new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from msgservice.errors import LogDamaged
from msgservice.message import Status
from msgservice.records import DeadLetter
from tests.integration.command import Command
from tests.integration.daemon import PATIENCE
from tests.kit.logs import Driver, exception, make_batch

CHECKOUT = Path(__file__).resolve().parents[2]


def salvage(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.salvage", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A log whose mark is gone: receiver 1 has a dead letter and a hole, 2 has had nothing."""
    log = Driver("sqlite", tmp_path / "log").open()
    log.receivers(1, 2)
    both, one = log.log.audience([1, 2]), log.log.audience([1])
    first = make_batch(both, 1, [b"a", b"b", b"c"])
    second = make_batch(one, 4, [b"d", b"\xff\x00"])
    log.append(first, second)
    letter = DeadLetter(
        1, first.first, "shop", "i", 1, first.subject, bytes(make_batch(one, 1, [b"a"]).messages),
        "no customer", 0, 0,
    )  # fmt: skip
    log.progress(
        1,
        first.first,
        exceptions=[
            exception(1, first.first, first.first, Status.DEAD),
            exception(1, first.last, first.last, Status.ACKNOWLEDGED),
        ],
        settled={Status.DEAD: 1, Status.ACKNOWLEDGED: 1},
        dead=[letter],
    )
    log.close()
    (log.folder / "log.mark").unlink()
    with pytest.raises(LogDamaged, match=r"log\.mark, is missing"):
        Driver("sqlite", log.folder).open()
    return log.folder


def test_what_waits_in_a_log_without_its_mark_is_printed(damaged: Path) -> None:
    done = salvage(str(damaged))
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["receivers"], one.get("text"), one["dead"]) for one in found] == [
        (["r2"], "a", None),
        (["r1", "r2"], "b", None),
        (["r2"], "c", None),
        (["r1"], "d", None),
        (["r1"], None, None),
        (["r1"], "a", "no customer"),
    ]
    assert found[4]["base64"] == "/wA="


def test_what_waits_is_sent_to_a_new_node_for_those_who_wait_for_it(
    damaged: Path, msgservice: Command
) -> None:
    for name in ("r1", "r2"):
        assert msgservice("receivers", "add", name).code == 0
    done = salvage(str(damaged), msgservice.node)
    assert (done.returncode, done.stdout) == (0, f"5 messages sent to {msgservice.node}\n")
    assert (msgservice.receiver("r1")["queued"], msgservice.receiver("r2")["queued"]) == (3, 3)


def test_a_batch_that_is_damaged_is_said_and_the_others_are_found(damaged: Path) -> None:
    file = damaged / "log.db"
    data = file.read_bytes()
    at = data.index(b"\xff\x00", 4096)
    file.write_bytes(data[:at] + b"\xfe" + data[at + 1 :])
    done = salvage(str(damaged))
    assert done.stderr == "salvage: batch 2 is damaged\n"
    assert len(done.stdout.splitlines()) == 4


def test_a_folder_without_a_log_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = salvage(str(tmp_path))
    assert (done.returncode, done.stderr) == (1, f"salvage: no log.db in {tmp_path}\n")
