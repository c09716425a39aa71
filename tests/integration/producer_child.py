"""A producer that hands over the numbers 1 to COUNT through an outbox on disk, and may be killed.

python producer_child.py ADDRESS OUTBOX COUNT

It goes on from `client.sequence`, so each number's message has that number as its sequence.
Prints `at N` now and then, and `done` when the node has them all.
"""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from msgservice import connect
from msgservice.client.client import Client


async def produce(reactor: Any, address: str, outbox: str, count: int) -> None:
    client: Client = await connect(reactor, address, name="lines", outbox=outbox)
    number = client.sequence
    print("begins at", number, flush=True)
    kept: list[Deferred[object]] = []
    while number < count:
        number += 1
        kept.append(client.send("lines", b"%d" % number).addCallback(lambda _: None))
        if number % 100 == 0:
            for one in kept:
                await one
            kept.clear()
            print("at", client.sequence, flush=True)
    for one in kept:
        await one
    while client.unanswered:
        await deferLater(reactor, 0.01)
    await client.close()
    print("done", flush=True)


async def main(reactor: Any, address: str, outbox: str, count: str) -> None:
    await produce(reactor, address, outbox, int(count))


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
