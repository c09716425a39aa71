"""Processes of a measurement that play a role each: they are asked by lines, and answer in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def run(module: str, role: str, *arguments: Any) -> subprocess.Popen[str]:
    """Start a role of a module of this folder."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "--role", role, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a process says next."""
    assert process.stdout is not None
    said: dict[str, Any] = json.loads(process.stdout.readline())
    return said


def ask(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    """Say a line to a process, and return its answer."""
    assert process.stdin is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    return line(process)


def end(*processes: subprocess.Popen[str]) -> None:
    """End processes in this order."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def say(**what: Any) -> None:
    """Answer who has asked this process."""
    print(json.dumps(what), flush=True)


def react(main: Callable[..., Any], *arguments: Any) -> None:
    """Run a coroutine in this process, with the reactor as its first argument."""
    from twisted.internet.defer import ensureDeferred
    from twisted.internet.task import react

    react(lambda reactor: ensureDeferred(main(reactor, *arguments)))


async def asked(reactor: Any) -> str:
    """Return the next line that this process is asked; empty: nothing more."""
    from twisted.internet.threads import deferToThread

    text: str = await deferToThread(sys.stdin.readline)
    return text.strip()
