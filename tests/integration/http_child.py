"""A node with a web listener, in a process that kills itself at a named point: FOLDER POINT."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import react

from msgservice import Node
from msgservice.transport.http.channel import HttpRequest
from tests.kit.inline import by_append


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(reactor: Any, folder: str, point: str) -> None:
    node = Node(reactor, Path(folder) / "node", web=["tcp:0:interface=127.0.0.1"])
    node.startService()
    await node.when_ready()
    if "billing" not in [row.name for row in node.parts.directory]:
        await node.add_receiver("billing", ["orders.>"])
    log: Any = node.log
    if point == "before the group":
        append = log.append
        log.append = lambda group: kill() if group.batches else append(group)
        by_append(log)
    elif point == "before the answer":
        HttpRequest.answer = kill  # type: ignore[method-assign]  # what was stored is not said
    port: Any = node.ports[-1].getHost()
    print(f"web {port.port}", flush=True)
    await Deferred()  # until it is killed


if __name__ == "__main__":
    react(lambda reactor: ensureDeferred(main(reactor, *sys.argv[1:])))
