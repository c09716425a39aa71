"""Acts on many messages at a terminal: asked there, with the outcome on standard output alone."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

from tests.integration.command import Command
from tests.integration.daemon import BIN, PATIENCE


def at_a_terminal(
    msgservice: Command, *words: str, answer: bytes | None, out: Path
) -> tuple[int, str, str]:
    """Run a command whose input and errors are a terminal; return its code, output and errors.

    `answer`: typed once it asks, which it must; None: it must not ask.
    """
    person, terminal = pty.openpty()
    try:
        with out.open("wb") as file:
            process = subprocess.Popen(
                [BIN / "msgservice", *words],
                cwd=msgservice.folder,
                env=os.environ | {"MSGSERVICE_NODE": msgservice.node},
                stdin=terminal,
                stdout=file,
                stderr=terminal,
            )
        os.close(terminal)
        said, is_asked = b"", False
        while True:
            try:
                read = os.read(person, 4096)
            except OSError:  # EIO: nobody has the other end any more
                break
            if not read:
                break
            said += read
            if answer is not None and not is_asked and b"[y/N]" in said:
                is_asked = True
                os.write(person, answer)
        code = process.wait(PATIENCE)
    finally:
        os.close(person)
    assert is_asked is (answer is not None), said
    return code, out.read_text(), said.decode().replace("\r\n", "\n")


def fill(msgservice: Command, name: str) -> None:
    assert msgservice("receivers", "add", name, f"{name}.>", "--paused").code == 0
    for _ in range(3):
        assert msgservice("send", f"{name}.a", "text").code == 0


def test_at_a_terminal_it_is_asked_and_done_when_somebody_says_so(
    msgservice: Command, tmp_path: Path
) -> None:
    full = msgservice
    fill(full, "full")
    out = tmp_path / "out"
    for answer in (b"n\n", b"\n", b"\x04"):  # no, the default, and the end of the input
        code, told, said = at_a_terminal(full, "purge", "full", answer=answer, out=out)
        assert (code, told) == (1, ""), answer
        assert "3 messages for full" in said
        assert "Do it? [y/N]" in said
        assert "nothing was done" in said
        assert full.receiver("full")["queued"] == 3
    code, told, said = at_a_terminal(full, "purge", "full", answer=b"y\n", out=out)
    assert (code, told) == (0, "cancelled: 3 messages for full\n")
    assert "3 messages for full" in said
    assert full.receiver("full")["queued"] == 0


def test_at_a_terminal_nobody_is_asked_for_a_dry_run_json_or_yes(
    msgservice: Command, tmp_path: Path
) -> None:
    full = msgservice
    fill(full, "brim")
    out = tmp_path / "out"
    code, told, said = at_a_terminal(full, "purge", "brim", "--dry-run", answer=None, out=out)
    assert (code, said) == (0, "")
    assert told.startswith("3 messages for brim, ")
    code, told, said = at_a_terminal(
        full, "purge", "brim", "--dry-run", "--json", answer=None, out=out
    )
    assert (code, said) == (0, "")
    assert json.loads(told)["would"]["count"] == 3
    code, told, said = at_a_terminal(full, "purge", "brim", "--json", answer=None, out=out)
    assert (code, told) == (1, ""), "no program reads a question"
    assert "--yes says so" in said
    assert full.receiver("brim")["queued"] == 3
    code, told, said = at_a_terminal(full, "purge", "brim", "--yes", answer=None, out=out)
    assert (code, told) == (0, "cancelled: 3 messages for brim\n")
    assert full.receiver("brim")["queued"] == 0
