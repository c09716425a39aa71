"""A terminal with a person at it: a program that has it as its own, what it shows, what is typed.

`Screen` knows the few controls that our commands print; whatever else they would print is an error.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.daemon import BIN, PATIENCE

COLUMNS, LINES = 100, 24
_CONTROL = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")
# It begins a session whose terminal this is, so that Ctrl-C is a signal to it.
_TAKE_IT = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"


class Screen:
    """The lines that a terminal shows."""

    def __init__(self) -> None:
        self.lines = [""]
        self.has_cursor = True
        self._at, self._column = 0, 0
        self._rest = ""

    def take(self, text: str) -> None:
        """A program has printed this."""
        text = self._rest + text
        self._rest = ""
        while text:
            if text[0] == "\x1b":
                match = _CONTROL.match(text)
                if match is None:
                    assert len(text) < 16, f"no control that is known: {text[:16]!r}"
                    self._rest = text
                    return
                self._control(*match.groups())
                text = text[match.end() :]
            else:
                self._put(text[0])
                text = text[1:]

    def _put(self, character: str) -> None:
        if character == "\n":
            self._at += 1
            if self._at == len(self.lines):
                self.lines.append("")
        elif character == "\r":
            self._column = 0
        else:
            line = self.lines[self._at].ljust(self._column)
            self.lines[self._at] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def _control(self, private: str, number: str, what: str) -> None:
        if what == "m":
            return  # colours
        if private and number == "25":
            self.has_cursor = what == "h"
        elif what == "K" and number == "2":
            self.lines[self._at] = ""
        elif what == "A":
            self._at = max(0, self._at - int(number or 1))
        else:
            raise AssertionError(f"no control that is known: {private}{number}{what}")

    @property
    def text(self) -> str:
        """All of it; no line ends with blanks."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")


class Terminal:
    """A program of ours that runs at a terminal of its own."""

    def __init__(self, *words: str, cwd: Path, environment: dict[str, str]) -> None:
        self.screen = Screen()
        self._person, terminal = pty.openpty()
        program = str(BIN / words[0])
        size = {"COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm-256color"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_IT, program, *words[1:]],
            cwd=cwd,
            env=os.environ | size | environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)

    def type(self, keys: str) -> None:
        """Type; `\\x03` is Ctrl-C."""
        os.write(self._person, keys.encode())

    def until(self, shows: Callable[[str], bool]) -> str:
        """Read until the screen shows something; return all that it shows then."""
        end = time.monotonic() + PATIENCE
        while not shows(self.screen.text):
            assert time.monotonic() < end, self.screen.text
            assert self._read(), f"ended without it: {self.screen.text}"
        return self.screen.text

    def ended(self) -> tuple[int, str]:
        """Return the exit code, and what the screen shows in the end."""
        while self._read():
            pass
        return self._process.wait(PATIENCE), self.screen.text

    def _read(self) -> bool:
        """Read what has come; whether more may."""
        ready, _, _ = select.select([self._person], [], [], PATIENCE)
        assert ready, f"nothing more comes: {self.screen.text}"
        try:
            read = os.read(self._person, 4096)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.screen.take(read.decode())
        return bool(read)

    def close(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE)
        os.close(self._person)
