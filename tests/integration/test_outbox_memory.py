"""The memory of a producer to which an earlier one left a million messages (SEMANTICS 26)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zlib import crc32

from msgservice.client import outbox_file
from msgservice.disk.database import connect
from msgservice.disk.mark import Mark, MarkFile
from msgservice.disk.migrations import migrate
from msgservice.message import encode_bodies

LEFT = 1_000_000
TAKEN = 10_000
# What a page and the window take, measured: 40 MiB. All of it in memory took 950 MiB.
MIB_MAX = 256


def leave(path: Path) -> None:
    """Write what a producer leaves that sent one message in each turn, with no node to take it."""
    messages = encode_bodies([b"ten bytes!"])
    row = (1, "left.new", None, 0, crc32(messages), messages)
    db = connect(str(path))
    schema = outbox_file.SCHEMA
    migrate(db, replace(schema, steps=schema.steps[:1]), None)
    db.execute("begin")
    db.execute("insert into head values (1, 'left-behind', ?)", (LEFT,))
    db.executemany(
        "insert into run values (?, ?, ?, ?, ?, ?, ?)", ((n, *row) for n in range(1, LEFT + 1))
    )
    db.execute("commit")
    db.close()
    MarkFile(path.with_name(path.name + ".mark")).write(Mark(outbox_file._MARKED, LEFT, 0, 0))


def test_26_a_million_messages_that_wait_at_start_are_not_all_in_memory(
    node: str, tmp_path: Path
) -> None:
    path = tmp_path / "outbox.db"
    leave(path)
    child = Path(__file__).with_name("outbox_child.py")
    done = subprocess.run(
        [sys.executable, str(child), node, str(path), str(TAKEN)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    opened, taken = (line.split() for line in done.stdout.splitlines())
    assert opened[:2] == ["opened", str(LEFT)]
    assert taken[0] == "taken"
    assert int(taken[1]) <= LEFT - TAKEN
    assert int(opened[2]) < MIB_MAX, done.stdout
    assert int(taken[2]) < MIB_MAX, done.stdout
