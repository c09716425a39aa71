"""A relay that ends itself, as kill -9 does, at a named point.

    python relay_child.py NODE DATABASE OUTBOX POINT VISITS

DATABASE is `sqlite:///FILE`, or what psycopg connects to. It ends at the visit of that number of
POINT, or by itself, when no row of the table waits or is under way any more. Places are counted in
steps that have to do with it: one that writes fates has some.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react
from twisted.logger import globalLogBeginner, textFileLogObserver

from msgservice import Limits
from msgservice.client.disk import DiskOutbox
from msgservice.client.outbox_file import OutboxFile
from msgservice.outbox.relay import Relay
from msgservice.outbox.rows import RelayRows, Step

# Owner, method, on which side of it, and whether a call counts.
Place = tuple[Any, str, str, Callable[..., bool]]
LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2, stop_timeout=5)
BATCH = 20


def always(*_: Any) -> bool:
    return True


def takes(_: RelayRows, step: Step, *more: Any) -> bool:
    return step.rows > 0


def has_fates(rows: Any, *given: Any) -> bool:
    return any(isinstance(one, Step) and one.fates for one in given)


def has_runs(file: OutboxFile, runs: Any, *more: Any) -> bool:
    return bool(runs)


POINTS: dict[str, Place] = {
    "before the assignment": (RelayRows, "_assign", "before", always),
    "before the assignment is committed": (RelayRows, "_assign", "after", always),
    "after the assignment": (RelayRows, "step", "after", takes),
    "before the hand-over": (Relay, "_hand_over", "before", always),
    "before the file is written": (OutboxFile, "_write", "before", has_runs),
    "after the file is written": (OutboxFile, "_write", "after", has_runs),
    "after the hand-over": (Relay, "_handed_over", "before", always),
    "before the fate is written": (RelayRows, "_write_fates", "before", has_fates),
    "before the fate is committed": (RelayRows, "_write_fates", "after", has_fates),
    "after the fate is written": (RelayRows, "step", "after", has_fates),
    "before the receipts are forgotten": (DiskOutbox, "let_go", "before", always),
    "after the receipts are forgotten": (DiskOutbox, "let_go", "after", always),
}


def plant(place: Place, visits: int) -> None:
    owner, name, side, counts = place
    method = getattr(owner, name)
    left = visits

    def visited(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= counts(*args)
        if side == "before" and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*args, **options)
        if side == "after" and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, visited)


def one_fate_a_step() -> None:
    """Have the fates written in many steps, whatever came together."""
    step_of = Relay._next_step

    def next_step(self: Relay, *, takes: bool) -> Step:
        step = step_of(self, takes=takes)
        return replace(step, fates=step.fates[:1])

    Relay._next_step = next_step  # type: ignore[method-assign]  # that is what it is for


async def main(reactor: Any, node: str, database: str, outbox: str, point: str, n: str) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    if point in POINTS:
        one_fate_a_step()
        plant(POINTS[point], int(n))
    options: dict[str, Any] = {"database": database}
    if not database.startswith("sqlite:"):
        driver = import_module("psycopg")
        options = {"connect": lambda: driver.connect(database)}
    relay = Relay(
        reactor, node, name="shop", outbox=outbox, batch=BATCH, poll=0.02, limits=LIMITS, **options
    )
    await relay.start()
    connection = relay._connect()
    print("begun", flush=True)
    open_rows = "select count(*) from msgservice_outbox where state in ('waiting', 'handed')"
    while True:
        cursor = connection.cursor()
        cursor.execute(open_rows)
        (left,) = cursor.fetchone()
        connection.rollback()
        if not left:
            break
        await deferLater(reactor, 0.02)
    await relay.stop()
    print("done", flush=True)


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
