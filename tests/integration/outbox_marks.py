"""A producer whose node is not there: hands marked messages to its outbox, and says what it has.

python outbox_marks.py OUTBOX

Prints `told:N` in one write when the send of the message N has fired.
"""

import os
import sys
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from msgservice import connect

BURST, BURSTS = 10, 100


def told(_: object, number: int) -> None:
    os.write(1, b"told:%d " % number)


async def main(reactor: Any, outbox: str) -> None:
    # Nobody listens on port 1; an outbox needs no node to take over.
    client = await connect(reactor, "tcp:127.0.0.1:1", name="marker", outbox=outbox)
    number = 0
    for _ in range(BURSTS):
        sends = []
        for _ in range(BURST):
            number += 1
            sends.append(client.send("marked", b"<marked %06d>" % number).addCallback(told, number))
        await gatherResults(sends)
    await client.close()


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
