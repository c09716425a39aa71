"""The time from nothing to a delivered message, by the commands that the README begins with.

    python -m bench.first_hour

*clone*: `git clone` of this checkout, then these commands there. *wheel*: the same in a bare
environment, where a wheel that was built before is installed instead; what is said of it is from
`pip install` on. pip's cache is left out: a stranger has none. Most of it is the network's and the
disk's, so the processor's time stands beside it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STRANGER = {"PIP_NO_CACHE_DIR": "1"}


def typed() -> list[str]:
    """Return the commands with which the README brings a first message, in their order."""
    section = (ROOT / "README.md").read_text().partition("\n## Five minutes\n")[2]
    blocks = re.findall(r"^```\n(.*?)^```", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    first, second = blocks[:2]
    return [*first.splitlines(), *second.splitlines()]


@contextmanager
def node_of(command: str, folder: Path) -> Iterator[str]:
    """Run the command that starts a node, and give its address once it says it."""
    with subprocess.Popen(command.split(), cwd=folder, stdout=subprocess.PIPE, text=True) as node:
        try:
            assert node.stdout is not None
            for line in node.stdout:
                if said := re.match(r"  node +(\S+)$", line):
                    yield said[1]
                    return
            raise RuntimeError(f"{command!r} has not said where its node is")
        finally:
            node.terminate()


def played(commands: Sequence[str], folder: Path, more: Mapping[str, str]) -> None:
    """Run them: what installs, what starts a node, and what sends a message and sees it arrive.

    `more`: of the environment of what installs.
    """
    install, start, send = commands
    environment = os.environ | dict(more)
    subprocess.run(
        ["sh", "-c", install], cwd=folder, env=environment, check=True, stdout=sys.stderr
    )
    with node_of(start, folder) as address:
        done = subprocess.run(
            ["sh", "-c", send],
            cwd=folder,
            env=os.environ | {"MSGSERVICE_NODE": address},
            capture_output=True,
            text=True,
            check=True,
        )
    assert "acknowledged" in done.stdout, done


class Watch:
    """The wall clock, and the processor's time of all programs that were run and have ended."""

    def __init__(self) -> None:
        self._began = time.monotonic(), self._worked()

    @staticmethod
    def _worked() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def told(self, name: str) -> dict[str, float]:
        wall, worked = self._began
        return {
            f"{name}_s": round(time.monotonic() - wall, 1),
            f"{name}_cpu_s": round(self._worked() - worked, 1),
        }


def measure() -> dict[str, Any]:
    commands = typed()
    told: dict[str, Any] = {"commands": len(commands)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        watch = Watch()
        clone = folder / "clone"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        played(commands, clone, STRANGER)
        told |= watch.told("clone")
        wheels = folder / "wheels"
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels]
        subprocess.run([*build, clone], check=True, stdout=sys.stderr)
        (wheel,) = wheels.glob("*.whl")
        venv.create(folder / "bare" / ".venv", with_pip=True)
        watch = Watch()
        played([f".venv/bin/pip install {wheel}", *commands[1:]], folder / "bare", STRANGER)
        told |= watch.told("wheel")
    return told


if __name__ == "__main__":
    print(json.dumps(measure()))
