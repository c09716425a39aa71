"""The end of a process whose node cannot go on, and what it does where an end would lose something.

When a node cannot go on is not decided here.
"""

from __future__ import annotations

import os
import sys

from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from msgservice.errors import LogReplaced

EXIT_FAILED = 1
HOLD_SAYS = 60.0  # seconds between two lines of a node that only holds its files

_logger = Logger(namespace="msgservice.node")


def end_process(reactor: IReactorTime, error: Exception) -> LoopingCall | None:
    """Say why, stop the reactor, and let the process end with a status other than 0.

    One whose files were replaced does not end: they go with it, and what it acknowledged is in no
    others. It takes and delivers nothing, and keeps the folder, until somebody stops it: what is
    returned says so again and again, and is to be stopped with the node.
    """
    if isinstance(error, LogReplaced):
        holding = LoopingCall(_holds, error)
        holding.clock = reactor
        holding.start(HOLD_SAYS)
        return holding
    _logger.critical("the node cannot go on: {error}", line="node-ends", error=str(error))
    # twist and twistd end with 0 after `reactor.stop`, whatever was the reason.
    core = IReactorCore(reactor)
    core.addSystemEventTrigger("after", "shutdown", _exit_failed)
    if core.running:
        core.stop()
    else:
        core.callWhenRunning(core.stop)
    return None


def _holds(error: LogReplaced) -> None:
    _logger.critical(
        "the node takes and delivers nothing any more, and waits to be stopped: {error}. Copy them"
        " first if you need them: /proc/{pid}/fd",
        line="node-stands",
        error=str(error),
        pid=os.getpid(),
    )


def _exit_failed() -> None:
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(EXIT_FAILED)
