"""docs/tutorial.md: its programs run, are killed as it says, and lose nothing."""

from __future__ import annotations

import shlex
import signal
import sqlite3
from pathlib import Path

from tests.docs.programs import blocks, typed, write
from tests.integration.command import Command
from tests.integration.daemon import Daemon, running
from tests.kit.ports import free_port

PAGE = "tutorial.md"


def begin(program: str, folder: Path) -> Daemon:
    return Daemon("python", program, cwd=folder)


def test_all_are_killed_and_each_order_is_billed_once(tmp_path: Path) -> None:
    port = free_port()
    node = f"tcp:127.0.0.1:{port}"
    assert sorted(write(PAGE, tmp_path, node)) == ["billing.py", "shop.py"]
    listen = ("msgservice", "node", "--listen", f"tcp:{port}")
    going: dict[str, Daemon] = {}

    def kill(name: str) -> None:
        going[name].send(signal.SIGKILL)
        going[name].close()

    try:
        going["node"] = Daemon(*listen, cwd=tmp_path)
        going["node"].wait_for("listen")
        going["billing"] = begin("billing.py", tmp_path)
        while "billing" not in Command(node, tmp_path)("receivers", "list").out:
            pass
        going["shop"] = begin("shop.py", tmp_path)
        going["billing"].wait_for("^billed 10$")
        kill("billing")
        going["shop"].wait_for("^sold 40$")
        kill("node")
        going["shop"].wait_for("^sold 60$")  # with nobody to send it to
        kill("shop")
        going["node"] = Daemon(*listen, cwd=tmp_path)
        going["billing"] = begin("billing.py", tmp_path)
        going["shop"] = begin("shop.py", tmp_path)
        going["billing"].wait_for("^billed 100$")
        kill("node")
        going["node"] = Daemon(*listen, cwd=tmp_path)
        going["shop"].wait_for("^sold 200$")
        going["billing"].wait_for("^billed 200$")
        # What is printed is committed a moment later, and then the node is told.
        while Command(node, tmp_path).receiver("billing")["queued"]:
            pass
    finally:
        for one in going.values():
            one.close()
    books = sqlite3.connect(tmp_path / "billing.db")
    found = books.execute("select count(*), sum(euros) from books").fetchone()
    books.close()
    assert str(found) in [block.strip() for block in blocks(PAGE, "text")]


def test_an_order_is_looked_for_and_one_that_is_none_becomes_a_dead_letter(
    msgservice: Command,
) -> None:
    write(PAGE, msgservice.folder, msgservice.node)
    billing = msgservice.folder / "billing.py"
    *_, rejects = blocks(PAGE, "python")
    head, _, body = rejects.partition("\n\n\n")
    whole = billing.read_text()
    start, end = whole.index("def handle"), whole.index("\n\n\nreceiver = ")
    by_hand = [line for line in typed(PAGE) if line.startswith("msgservice send")]
    with running("python", "billing.py", cwd=msgservice.folder) as once:
        while "billing" not in msgservice("receivers", "list").out:
            pass
        once.stop()
    assert msgservice(*shell_words(by_hand[0])).code == 0
    assert "billing" in msgservice("why", "o-4711").out
    billing.write_text(f"{head}\n{whole[:start]}{body}{whole[end:]}")
    with running("python", "billing.py", cwd=msgservice.folder) as mended:
        assert msgservice(*shell_words(by_hand[1])).code == 0
        while "this is no order" not in msgservice("dead", "list", "billing").out:
            pass
        assert "two of the usual" in msgservice("dead", "show", "billing", "o-4712").out
        assert msgservice("dead", "requeue", "billing", "o-4712", "--yes").code == 0
        while "this is no order" not in msgservice("dead", "list", "billing").out:
            pass  # nor is it the second time
        assert msgservice("dead", "drop", "billing", "--all", "--yes").code == 0
        mended.stop()
    # It has sent its answer when it ends; the node counts it when that is on disk.
    while "acknowledged" not in (told := msgservice("why", "o-4711").out):
        assert "billing" in told


def shell_words(line: str) -> list[str]:
    return shlex.split(line)[1:]
