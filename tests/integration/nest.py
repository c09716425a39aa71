"""Processes of ours that begin at once: forked from one that has imported all that they need.

    with Nest(folder) as nest:
        node = nest.start("twist", "msgservice", "--config", "node.toml", cwd=folder)
        node.kill()                                   # as kill -9 does; returns when it has gone
        outcome = nest.run("msgservice", "info", cwd=folder, environment={...})

Each is a process of its own, with its own reactor, files and sockets, as if it had been executed:
only the seconds are left out that an interpreter takes to import everything, of which a test that
kills nodes again and again would be made otherwise. Run as a program this module is the nest.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.integration.command import Outcome
from tests.integration.daemon import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("twist", "msgservice")


class Process:
    """A process that was forked. What it prints is in `output`."""

    def __init__(self, pid: int, output: Path, code: Path) -> None:
        self.pid = pid
        self.output = output
        self._code = code
        self._handle = os.pidfd_open(pid)

    def kill(self) -> None:
        """End it as kill -9 does, if it still runs; return when it has gone."""
        if self._handle < 0:
            return
        with suppress(ProcessLookupError):  # it has ended by itself
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self._wait()

    def ended(self) -> int:
        """Return the exit code, once it has ended by itself."""
        self._wait()
        return int(self._code.read_text())

    def _wait(self) -> None:
        ready, _, _ = select.select([self._handle], [], [], PATIENCE)
        assert ready, self.output.read_text()
        os.close(self._handle)
        self._handle = -1


class Nest:
    """The process that forks the others. `folder`: what they print is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.nest"],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Nest:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # and its pipes are closed
            self._process.kill()
            self._process.wait(PATIENCE)

    def start(
        self, *words: str, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Begin one of `PROGRAMS` with its arguments."""
        self._count += 1
        output = self._folder / f"{self._count}.out"
        asked = {
            "words": words,
            "cwd": str(cwd),
            "environment": dict(environment or {}),
            "output": str(output),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        return Process(pid, output, output.with_suffix(".code"))

    def run(self, *words: str, cwd: Path, environment: Mapping[str, str] | None = None) -> Outcome:
        """Run one of them to its end."""
        process = self.start(*words, cwd=cwd, environment=environment)
        code = process.ended()
        said = process.output.with_suffix(".err").read_text()
        assert "Traceback" not in said, said
        return Outcome(code, process.output.read_text(), said)


class NestedCommand:
    """`msgservice`, with the address of one node in its environment (`command.Command`)."""

    def __init__(self, nest: Nest, node: str, folder: Path) -> None:
        self._nest, self._node, self._folder = nest, node, folder

    def __call__(self, *words: str) -> Outcome:
        return self._nest.run(
            "msgservice", *words, cwd=self._folder, environment={"MSGSERVICE_NODE": self._node}
        )

    def receiver(self, name: str) -> Any:
        done = self("receivers", "list", "--json")
        assert done.code == 0, done
        return next(row for row in done.data["receivers"] if row["name"] == name)


# --- the nest


def _import_all() -> None:
    from twisted.application.service import IServiceMaker
    from twisted.application.twist import _twist
    from twisted.plugin import getPlugins

    import msgservice.cli.main
    import msgservice.node.service
    import msgservice.tap

    assert _twist
    assert msgservice.cli.main
    list(getPlugins(IServiceMaker))
    # A reactor has files and a process of its own.
    assert "twisted.internet.reactor" not in sys.modules


def _become(asked: Any) -> None:
    """Be the process that was asked for, in a child."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output = Path(asked["output"])
    for suffix, number in ((".out", 1), (".err", 2)):
        written = os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, number)
        os.close(written)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    sys.argv = list(asked["words"])
    code = 0
    try:
        _main_of(sys.argv[0])()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    output.with_suffix(".code").write_text(str(code))
    os._exit(0)


def _main_of(program: str) -> Any:
    if program == "twist":
        from twisted.application.twist._twist import Twist

        return lambda: Twist.main(sys.argv)  # the default is that of the nest
    from msgservice.cli import run

    assert program == "msgservice"
    return run


def _serve() -> None:
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(asked)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
