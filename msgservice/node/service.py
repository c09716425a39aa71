"""A node as a program has it: on a data folder, from a configuration, and the end of its process.

`build_service` makes the service of `twistd msgservice` from a checked `Config`; `Node` is for
programs that embed one. How its parts are put together is in `assembly`.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from msgservice.errors import LogReplaced
from msgservice.limits import Limits, Rate
from msgservice.log.sqlite import SqliteLog
from msgservice.node.node import NodeService
from msgservice.records import ReceiverRow

SWITCH_INTERVAL = 0.0005  # seconds; the writer thread must win the interpreter back quickly
EXIT_FAILED = 1

_logger = Logger(namespace="msgservice.node")


class Node(NodeService):
    """A node on a data folder, an `IService`: `setServiceParent` or `startService` it.

    `data`: its folder, made if missing. `listen`: endpoint strings, none by default (an embedded
    node needs none: `node.client`). `failed`: called when it cannot start or go on; by default
    that is logged and the process ends with status 1. `rate`, `rates`: see `NodeService`.
    """

    def __init__(
        self,
        reactor: Any,
        data: str | os.PathLike[str],
        *,
        name: str = "",
        listen: Sequence[str] = (),
        receivers: Sequence[ReceiverRow] = (),
        limits: Limits | None = None,
        insecure: bool = False,
        rate: Rate | None = None,
        rates: Mapping[str, Rate] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        limits = Limits() if limits is None else limits
        super().__init__(
            reactor,
            log=SqliteLog(Path(data).absolute(), reactor=reactor, limits=limits),
            name=name,
            listen=listen,
            receivers=receivers,
            limits=limits,
            insecure=insecure,
            rate=rate,
            rates=rates,
            rng=random.SystemRandom().random,
            failed=failed or (lambda error: end_process(reactor, error)),
        )


def build_service(config: Any, *, reactor: Any) -> Node:
    """Return the service for a `config.Config`."""
    # A commit must win the interpreter back from a busy reactor for each of its steps; with the
    # default of 5 ms a group takes up to five times longer (bench/fanout.py).
    sys.setswitchinterval(SWITCH_INTERVAL)
    return Node(
        reactor,
        config.data,
        name=config.name or "",
        listen=[one.address for one in config.listen],
        receivers=[
            ReceiverRow(
                number=0,
                name=one.name,
                address=one.address,
                patterns=tuple(one.subjects),
                configured=True,
                options=one.options,
            )
            for one in config.receivers
        ],
        limits=config.limits,
        insecure=config.insecure,
        rate=config.rate,
        rates={one.name: one.rate for one in config.receivers if one.rate is not None},
    )


HOLD_SAYS = 60.0  # seconds between two lines of a node that only holds its files


def end_process(reactor: Any, error: Exception) -> None:
    """Say why, stop the reactor, and let the process end with a status other than 0.

    One whose files were replaced does not end: they go with it, and what it acknowledged is in no
    others. It takes and delivers nothing, and keeps the folder, until somebody stops it.
    """
    if isinstance(error, LogReplaced):
        _hold(reactor, error)
        return
    _logger.critical("the node cannot go on: {error}", error=str(error))
    # twist and twistd end with 0 after `reactor.stop`, whatever was the reason.
    reactor.addSystemEventTrigger("after", "shutdown", _exit_failed)
    if reactor.running:
        reactor.stop()
    else:
        reactor.callWhenRunning(reactor.stop)


def _hold(reactor: IReactorTime, error: LogReplaced) -> None:
    _logger.critical(
        "the node takes and delivers nothing any more, and waits to be stopped: {error}. Copy them"
        " first if you need them: /proc/{pid}/fd",
        error=str(error),
        pid=os.getpid(),
    )
    reactor.callLater(HOLD_SAYS, _hold, reactor, error)


def _exit_failed() -> None:
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(EXIT_FAILED)
