"""A real node, or any other program of ours, in a process of its own."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.kit.nest import Forked, is_of_the_nest

PATIENCE = 120.0  # seconds; far more than anything here takes, so that a slow machine is no failure
BIN = Path(sys.executable).parent


class Daemon:
    """A program that prints what it does. Waits for lines of it, never for time to pass."""

    def __init__(
        self, *command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        program = BIN / command[0] if (BIN / command[0]).exists() else command[0]
        begin = Forked if is_of_the_nest(command) else subprocess.Popen
        self._process = begin(
            command if begin is Forked else [program, *command[1:]],
            cwd=cwd,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match in the next line that has one; fail if the program ends before."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            if line is None:
                raise AssertionError(f"ended without {pattern!r}:\n" + "".join(self.output))
            self.output.append(line)
            if match := re.search(pattern, line):
                return match

    def ports(self, count: int = 1) -> list[int]:
        """Return the TCP ports of so many listeners, as they are told."""
        return [int(self.wait_for(r"listening on tcp:127\.0\.0\.1:(\d+)")[1]) for _ in range(count)]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        """Return the exit code, once the program has ended by itself."""
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            self.output.append(line)
        return self._process.wait(PATIENCE)

    def stop(self) -> int:
        """End it as an operator does; return the exit code."""
        self.send(signal.SIGTERM)
        return self.ended()

    @property
    def said(self) -> str:
        return "".join(self.output)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)
        self._reading.join(PATIENCE)  # it reads what is closed next, up to its end
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def running(
    *command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """Run a program; kill it at the end if it still runs."""
    daemon = Daemon(*command, cwd=cwd, environment=environment)
    try:
        yield daemon
    finally:
        daemon.close()
