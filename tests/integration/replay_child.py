"""A node that kills itself at a named point of its log, in the midst of a replay.

    python -m tests.integration.replay_child FOLDER PORT POINT COUNT

At the COUNT-th time that the log comes to POINT while a replay runs; with COUNT 0 never.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor

from msgservice.limits import Limits
from msgservice.log.sqlite import SqliteLog
from msgservice.node.node import Node

reactor: Any = installed_reactor


def main(folder: str, port: str, point: str, count: str) -> None:
    left = int(count)

    def faults(name: str) -> None:
        nonlocal left
        replays = log._store.state.replays.values()
        if name == point and any(not replay.is_over for replay in replays):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    limits = Limits(backlog_bytes=65_536)  # so that a page is small
    log = SqliteLog(Path(folder), reactor=reactor, limits=limits, faults=faults)
    node = Node(reactor, log, listen=[f"tcp:{port}:interface=127.0.0.1"], limits=limits)
    node.startService()
    node.when_ready().addCallback(lambda _: print("ready", flush=True))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
