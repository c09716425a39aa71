"""Processes of a measurement: a real node, real producers and receivers, each its own process.

Roles are in `bench.roles`; what they print is JSON, a line for each thing that happened.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINE_TIMEOUT = 600.0


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has had, seconds, in hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Role:
    """A process of `bench.roles`, or of another module that has roles.

    `checkout`: where the product is, if not here; what is measured with is ours all the same.
    `env`: what its environment has besides.
    """

    def __init__(
        self,
        role: str,
        module: str = "bench.roles",
        checkout: Path | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        command = [sys.executable, "-m", module, role]
        if checkout is not None:
            file = Path(*module.split(".")).with_suffix(".py")
            command = [sys.executable, "-P", str(ROOT / file), role]
        for name, value in options.items():
            if value is not None and value is not False:
                command.append("--" + name.replace("_", "-"))
                if value is not True:
                    command.append(str(value))
        self.role = role
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(checkout or ROOT)} | (env or {}),
        )

    def line(self) -> dict[str, Any]:
        """The next thing it says."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise RuntimeError(f"{self.role} ended with {self.process.wait()}")
        found: dict[str, Any] = json.loads(text)
        return found

    def say(self, text: str) -> None:
        """Tell it to go on."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def ask(self, text: str) -> dict[str, Any]:
        """Tell it something and return its answer."""
        self.say(text)
        return self.line()

    def cpu_s(self) -> float:
        """The processor time of all its threads so far, seconds."""
        return cpu_s(self.process.pid)

    def stop(self) -> None:
        """End it, and wait."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def stage() -> Iterator[Stage]:
    """A folder for the data, and an end for every process that was started."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    made = Stage(folder)
    try:
        yield made
    finally:
        for role in reversed(made.roles):
            role.stop()
        shutil.rmtree(folder)


class Stage:
    """What a measurement plays on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.roles: list[Role] = []

    def start(self, role: str, **options: Any) -> Role:
        """Start a process."""
        made = Role(role, **options)
        self.roles.append(made)
        return made

    def node(self, **options: Any) -> tuple[Role, str]:
        """Start a node; return it and its address."""
        options.setdefault("data", self.folder / "node")
        node = self.start("node", **options)
        return node, node.line()["address"]


def finish(result: dict[str, Any]) -> None:
    """Print the result as the last line."""
    print(json.dumps(result), flush=True)
