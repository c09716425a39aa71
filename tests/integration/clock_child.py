"""A node in a process whose wall clock is set otherwise than the machine's.

    python -m tests.integration.clock_child FOLDER PORT SECONDS [HELD_SECONDS]

SECONDS: how far it is ahead of the machine's. HELD_SECONDS: for how long nothing falls due where
that is found to be far ahead of what the log has seen, other than a minute.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from msgservice.limits import Limits
from msgservice.node import due
from msgservice.node.node import Node

reactor: Any = installed_reactor


def set_clock(seconds: int) -> None:
    """Have all that asks this process for the time of day be told another."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + seconds * 1_000_000_000
    reactor.seconds = time.time  # Twisted has the function of before


def main(folder: str, port: str, seconds: str, held: str = "") -> None:
    set_clock(int(seconds))
    if held:
        due.HELD_FOR = float(held)  # so that a test lasts no minute
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    limits = Limits(link_delay_min=0.05, link_delay_max=0.2, hello_timeout=1.0)
    listen = [f"tcp:{port}:interface=127.0.0.1"]
    node = Node(reactor, Path(folder), listen=listen, limits=limits)
    node.startService()
    node.when_ready().addCallback(lambda _: print("ready", flush=True))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
