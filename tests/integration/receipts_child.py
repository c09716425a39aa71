"""A producer with an outbox that ends itself, as kill -9 does, at a named point of its receipts.

    python receipts_child.py ADDRESS OUTBOX SUBJECT POINT COUNT

It sends the numbers 1 to COUNT, each in a turn of its own, and prints `sent N` when `send` fired,
and `final N` when its message is final everywhere, before POINT is reached the second time:

* `before commit`, `after commit`: of the row of a receipt, in the file
* `kept`: when that is known, and nothing of it was sent
* `accepted`: when the node has acknowledged it
* `told`: when it is final, and its row is to be deleted
* `deleted`: when that is on disk
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from msgservice import connect
from msgservice.client import disk
from msgservice.client.disk import DiskOutbox
from msgservice.client.outbox_file import OutboxFile

reached = 0


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def at_point() -> None:
    global reached
    reached += 1
    if reached == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def plant(point: str) -> None:
    write, written = OutboxFile._write, DiskOutbox._written
    change, answered = OutboxFile.change_receipts, DiskOutbox.answered
    made: Any

    if point in ("before commit", "after commit", "deleted"):

        def made(file: Any, runs: Any, *others: Any) -> Any:
            steps = others[3]  # of receipts
            is_meant = any(step.deletes for step in steps) if point == "deleted" else bool(runs)
            if is_meant and point == "before commit":
                at_point()
            found = write(file, runs, *others)
            if is_meant and point != "before commit":
                at_point()
            return found

        OutboxFile._write = made  # type: ignore[method-assign]  # all of these: to end there
    elif point == "kept":

        def made(disk: Any, result: Any, runs: Any) -> Any:
            at_point()
            return written(disk, result, runs)

        DiskOutbox._written = made  # type: ignore[method-assign]  # see above
    elif point == "accepted":

        def made(disk: Any, first: int, last: int) -> None:
            answered(disk, first, last)
            at_point()

        DiskOutbox.answered = made  # type: ignore[method-assign]  # see above
    elif point == "told":

        def made(file: Any, steps: Any) -> None:
            steps = list(steps)
            if any(step.deletes for step in steps):
                at_point()
            change(file, steps)

        OutboxFile.change_receipts = made  # type: ignore[method-assign]  # see above


async def main(reactor: Any, address: str, outbox: str, subject: str, point: str, n: str) -> None:
    plant(point)
    disk.SAID_WAITING = 1  # each row goes by itself, so that there is a second one
    client = await connect(reactor, address, name="survivor", outbox=outbox)
    await client.when_connected()
    for number in range(1, int(n) + 1):
        receipt = await client.send(subject, b"%d" % number, id=f"m-{number}")
        say(f"sent {number}")
        if point in ("accepted", "told", "deleted"):
            await receipt.accepted
        if point in ("told", "deleted"):
            await receipt.settled()
            say(f"final {number}")
    say("done")
    await client.close()


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
