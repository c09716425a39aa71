"""A program that ends itself, as kill -9 does, at a named point, while promises and undos go on.

    python -m tests.integration.acts_child ROLE ADDRESS FOLDER POINT VISIT

ROLE: "shop" sends with an outbox on disk, with promises, and takes back; in each life it hears what
became of the promises that are open. "billing" handles with an inbox on disk. POINT: one of the
soak's for a producer or a receiver (`tests.soak.points`), one of `SAID`, or "never"; VISIT: at
which one.

The shop prints `sent N` when its outbox has it, `undone N ACCOUNT`, `decided N WORD`, and `done`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import react

from msgservice import Limits, Promise, Receiver, connect
from msgservice.errors import UnknownMessage
from tests.soak.points import PRODUCER, RECEIVER, arm

COUNT = 9
LIMITS = Limits(link_delay_min=0.02, link_delay_max=0.1)
PROMISES = (
    Promise(need="any", within=600),
    Promise(need=2, within=0.3),
    Promise(need=2, within=0.3, otherwise="cancel"),
)
# Of the program itself: it is about to ask, or was told and has done nothing about it yet.
SAID = ("an undo is asked", "an undo is told", "a promise is told")


class Points:
    """The point that this life ends at."""

    def __init__(self, point: str, visit: int) -> None:
        self._point, self._left = point, visit
        place = (PRODUCER | RECEIVER).get(point)
        if place is not None:
            arm(place, visit)

    def at(self, name: str) -> None:
        if name == self._point:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def say(*words: object) -> None:
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


async def shop(reactor: Any, address: str, folder: Path, points: Points) -> None:
    outbox = folder / "shop.outbox"
    client = await connect(reactor, address, name="shop", outbox=outbox, limits=LIMITS)
    await client.when_connected()
    heard: list[Deferred[None]] = []

    def hear(receipt: Any) -> None:
        def decided(outcome: Any) -> None:
            points.at("a promise is told")
            say("decided", receipt.id, "kept" if outcome.kept else "broken")

        heard.append(receipt.promised().addCallback(decided))

    async def undo(number: int) -> None:
        points.at("an undo is asked")
        told = await client.undo(f"m-{number}", reason="wrong")
        points.at("an undo is told")
        say("undone", f"m-{number}", json.dumps(told.receivers))

    for receipt in await client.receipts(limit=10 * COUNT):
        hear(receipt)
    for number in range(client.sequence + 1, COUNT + 1):
        receipt = await client.send(
            "s.a", b"%d" % number, id=f"m-{number}", promise=PROMISES[number % 3]
        )
        say("sent", f"m-{number}")
        hear(receipt)
        await receipt.accepted
        if number % 2:
            await undo(number)
    await DeferredList(heard, fireOnOneErrback=True)
    while client.unanswered:
        await client.when_connected()
    for number in range(1, COUNT + 1, 2):  # what a life before had asked for, or was about to
        try:
            await undo(number)
        except UnknownMessage:
            say("unknown", f"m-{number}")
    say("done")
    await client.close()


async def billing(reactor: Any, address: str, folder: Path, points: Points) -> None:
    def handle(message: Any, transaction: Any) -> None:
        transaction.execute("create table if not exists done(body)")
        transaction.execute("insert into done values (?)", (message.body,))

    receiver = Receiver(
        reactor, name="billing", handler=handle, inbox=str(folder / "billing.db"), limits=LIMITS
    )
    receiver.attach(address, subjects=["s.>"])
    await receiver.when_connected()
    say("here")
    await Deferred[None]()


async def main(reactor: Any, role: str, address: str, folder: str, point: str, visit: str) -> None:
    roles: dict[str, Any] = {"shop": shop, "billing": billing}
    await roles[role](reactor, address, Path(folder), Points(point, int(visit)))


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
