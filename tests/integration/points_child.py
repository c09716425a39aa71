"""A node that kills itself at a named point of a group that does something named.

    python -m tests.integration.points_child FOLDER PORT POINT KIND

POINT: "before commit", "after commit", "told", which is when all who are told of the group were;
or "never". KIND: what the group does, as of `KINDS`. Or POINT is one of the soak's for a node
(`tests.soak.points`), and KIND at which visit of it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor

from msgservice.limits import Limits
from msgservice.log.sqlite import SqliteLog
from msgservice.message import FLAG_RETAIN, Status
from msgservice.node.commits import Commits
from msgservice.node.node import Node
from msgservice.records import Group
from tests.soak.points import NODE, arm

reactor: Any = installed_reactor


def settles(status: Status) -> Callable[[Group], bool]:
    return lambda group: any(status in step.settled for step in group.progress)


KINDS: dict[str, Callable[[Group], bool]] = {
    "accept delayed": lambda group: any(batch.due_at for batch in group.batches),
    "move due": lambda group: bool(group.due),
    "key": lambda group: any(batch.key for batch in group.batches),
    "remove": lambda group: bool(group.removed),
    "cancel": lambda group: bool(group.cancel),
    "expire": settles(Status.EXPIRED),
    "purge": settles(Status.CANCELLED),
    "acknowledge": settles(Status.ACKNOWLEDGED),
    "dead letter": lambda group: any(step.dead for step in group.progress),
    "requeue": lambda group: any(taken.copies for taken in group.letters),
    "page": lambda group: any(not page.replay.is_over for page in group.pages),
    "last page": lambda group: any(page.replay.is_over for page in group.pages),
    "retain": lambda group: any(
        batch.options.flags & FLAG_RETAIN for batch in (*group.batches, *group.due)
    ),
    "retain due": lambda group: any(batch.options.flags & FLAG_RETAIN for batch in group.due),
    "promise": lambda group: any(batch.promise for batch in group.batches),
    "decide": lambda group: bool(group.verdicts),
    "join": lambda group: bool(group.joins),
}


def main(folder: str, port: str, point: str, kind: str) -> None:
    if point in NODE:
        arm(NODE[point], int(kind))
        point, kind = "never", "purge"
    does = KINDS[kind]
    is_meant = False

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def faults(name: str) -> None:
        if is_meant and name == point:
            die()

    # Small, so that a replay has pages, and short, so that what waits for time does not take long.
    limits = Limits(
        backlog_bytes=1 << 20 if kind not in ("page", "last page") else 65_536,
        link_delay_min=0.05,
        link_delay_max=0.2,
        hello_timeout=1.0,
    )
    log = SqliteLog(Path(folder), reactor=reactor, limits=limits, faults=faults)
    append = log._store.append

    def noting(group: Group) -> Any:
        nonlocal is_meant
        is_meant = does(group)
        try:
            return append(group)
        finally:
            is_meant = False

    log._store.append = noting  # type: ignore[method-assign]  # to know what is written
    node = Node(reactor, log, listen=[f"tcp:{port}:interface=127.0.0.1"], limits=limits)
    node.startService()

    stored = Commits._stored

    def telling(commits: Commits, appended: Any, under_way: Any, **how: Any) -> None:
        stored(commits, appended, under_way, **how)
        if point == "told" and does(under_way.group):
            die()

    Commits._stored = telling  # type: ignore[assignment]  # to end when all were told
    node.when_ready().addCallback(lambda _: print("ready", flush=True))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
