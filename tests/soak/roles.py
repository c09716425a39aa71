"""The processes of the soak: a node, two producers, three receivers; each may die at any moment.

    python -m tests.soak.roles ROLE FOLDER [--point NAME --visits N]

Everyone keeps a ledger, `FOLDER/ROLE.ledger`: a line for each thing that it was told or did, in one
`write` before it goes on, so that the ledger outlives a SIGKILL. What the lines mean together is
judged in `judge`. `FOLDER/over` says that the load is over: producers then bring to its end what
they have, write `done`, and leave.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from msgservice import Limits, Receiver, Reject, Retry, connect
from tests.soak.judge import LANES, is_rejected, is_retried, picks_dialled
from tests.soak.points import POINTS, arm

LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.3)
OPEN_MAX = 400  # messages of a producer, in its outbox too, that the node has not taken
PAD = b"." * 200
TABLE = "create table if not exists output (sender text, number integer, lane integer)"


class Ledger:
    """A file of lines, each in one `write`."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(self, *words: object) -> None:
        """Append a line."""
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def read_ports(folder: Path) -> dict[str, int]:
    """Return who listens where."""
    ports: dict[str, int] = json.loads((folder / "ports.json").read_text())
    return ports


def node(folder: Path) -> None:
    """Run `twist msgservice` in this process."""
    sys.argv = ["twist", "--log-format=text", "msgservice", "--config", str(folder / "node.toml")]
    runpy.run_module("twisted", run_name="__main__")


# --- producers


class Producer:
    """Sends numbers without end; writes `told N` when a send has fired, `final …` when it is."""

    def __init__(self, reactor: Any, folder: Path, name: str, client: Any, at: int) -> None:
        self._reactor = reactor
        self._over = folder / "over"
        self._ledger = Ledger(folder / f"{name}.ledger")
        self._name = name
        self._client = client
        self._number = at
        self._open = 0
        self._unsettled = 0

    async def run(self) -> None:
        """Go on until the load is over and all is told."""
        self._ledger.say("life", self._number)
        while not self._over.exists():
            for _ in range(min(20, OPEN_MAX - max(self._open, self._client.unanswered))):
                self._send()
            await deferLater(self._reactor, 0.005)
        while self._open or self._unsettled or self._client.unanswered:
            await deferLater(self._reactor, 0.02)
        await self._client.close()
        self._ledger.say("done")

    def _send(self) -> None:
        self._number += 1
        number = self._number
        lane = number % LANES
        body = f"{self._name} {number} {lane} ".encode() + PAD * ((number % 50 == 0 and 100) or 1)
        to = ["dialled"] if picks_dialled(number) else None
        self._open += 1
        sending = self._client.send(f"load.{lane}", body, to=to)
        sending.addCallback(self._told, number)
        sending.addErrback(self._failed, number)

    def _told(self, receipt: Any, number: int) -> None:
        self._open -= 1
        self._ledger.say("told", number)
        self._unsettled += 1
        receipt.settled().addCallback(self._settled, number).addErrback(self._failed, number)

    def _settled(self, statuses: Any, number: int) -> None:
        self._unsettled -= 1
        words = " ".join(f"{name}={status.name}" for name, status in sorted(statuses.items()))
        self._ledger.say("final", number, words)

    def _failed(self, failure: Any, number: int) -> None:
        self._ledger.say("failed", number, failure.getErrorMessage().replace("\n", " "))


async def shop(reactor: Any, folder: Path) -> None:
    """Produce with an outbox on disk: a number's message has that number as its sequence."""
    address = f"tcp:127.0.0.1:{read_ports(folder)['tcp']}"
    outbox = folder / "shop.db"
    client = await connect(reactor, address, name="shop", outbox=outbox, limits=LIMITS)
    await Producer(reactor, folder, "shop", client, client.sequence).run()


async def web(reactor: Any, folder: Path) -> None:
    """Produce without one: what was not told is in doubt, and never sent again."""
    address = f"tcp:127.0.0.1:{read_ports(folder)['tcp']}"
    ledger = folder / "web.ledger"
    lives = ledger.read_text().count("life") if ledger.exists() else 0
    client = await connect(reactor, address, name="web", limits=LIMITS)
    # Numbers of its own for each life; far more than one sends.
    await Producer(reactor, folder, "web", client, lives * 10_000_000).run()


# --- receivers


def judged(number: int, lives: dict[int, int]) -> None:
    """Raise what a handler raises by the way: once a `Retry`, or always a `Reject`."""
    if is_rejected(number):
        raise Reject("by order of the test")
    if is_retried(number) and lives.setdefault(number, 0) == 0:
        lives[number] = 1
        raise Retry(0.05)


def parts(body: bytes) -> tuple[str, int, int]:
    """Return sender, number, and lane of a message."""
    sender, number, lane, _ = body.split(b" ", 3)
    return sender.decode(), int(number), int(lane)


def once(reactor: Any, folder: Path) -> Receiver:
    """Receive with an inbox on disk: each message once, whoever was killed."""
    seen: dict[int, int] = {}

    def handle(message: Any, transaction: Any) -> None:
        sender, number, lane = parts(message.body)
        judged(number, seen)
        transaction.execute(TABLE)
        transaction.execute("insert into output values (?, ?, ?)", (sender, number, lane))

    receiver = Receiver(
        reactor, name="once", handler=handle, inbox=folder / "once.db", limits=LIMITS
    )
    receiver.attach(f"tcp:127.0.0.1:{read_ports(folder)['tcp']}", subjects=["load.>"])
    return receiver


def udp(reactor: Any, folder: Path) -> Receiver:
    """Receive over acknowledged UDP, and remember nothing."""
    receiver = Receiver(
        reactor, name="udp", handler=_writes(folder, "udp", retries=True), limits=LIMITS
    )
    receiver.attach(f"udp:127.0.0.1:{read_ports(folder)['udp']}", subjects=["load.>"])
    return receiver


def dialled(reactor: Any, folder: Path) -> Receiver:
    """Receive where the node dials."""
    receiver = Receiver(
        reactor, name="dialled", handler=_writes(folder, "dialled", retries=False), limits=LIMITS
    )
    receiver.listen(f"tcp:{read_ports(folder)['dialled']}:interface=127.0.0.1")
    return receiver


def _writes(folder: Path, name: str, *, retries: bool) -> Callable[[Any], None]:
    ledger = Ledger(folder / f"{name}.ledger")
    ledger.say("life")
    seen: dict[int, int] = {}

    def handle(message: Any) -> None:
        sender, number, lane = parts(message.body)
        if retries:
            judged(number, seen)
        ledger.say("handled", sender, number, lane)

    return handle


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=list(POINTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--point", default="")
    parser.add_argument("--visits", type=int, default=1)
    args = parser.parse_args()
    if args.point:
        arm(POINTS[args.role][args.point], args.visits)
    if args.role == "node":
        node(args.folder)
    elif args.role in ("shop", "web"):
        produce = {"shop": shop, "web": web}[args.role]
        react(lambda reactor: Deferred.fromCoroutine(produce(reactor, args.folder)))
    else:
        receive = {"once": once, "udp": udp, "dialled": dialled}[args.role]

        def forever(reactor: Any) -> Deferred[None]:
            receive(reactor, args.folder)
            return Deferred()

        react(forever)


if __name__ == "__main__":
    main()
