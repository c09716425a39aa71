"""A producer of one message with a promise, or a receiver that never acknowledges what it has.

    python promise_child.py send ADDRESS OUTBOX ID
    python promise_child.py hold ADDRESS NAME

With an empty outbox the producer hands the message over, and prints `kept` when the outbox has it;
else it sends what is there. It prints `taken` when the node has it, and lives on. The receiver
prints `has` and the body.
"""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

from msgservice import Promise, Receiver, connect
from msgservice.client.client import Client


async def send(reactor: Any, address: str, outbox: str, own_id: str) -> None:
    client: Client = await connect(reactor, address, name="desk", outbox=outbox)
    if not client.sequence:
        promise = Promise(need=2, within=600, otherwise="cancel")
        await client.send("trips.book", b"7", id=own_id, promise=promise)
        print("kept", flush=True)
    while client.unanswered:
        await deferLater(reactor, 0.01)
    print("taken", flush=True)
    await Deferred[None]()


async def hold(reactor: Any, address: str, name: str) -> None:
    def handle(message: Any) -> Deferred[None]:
        print("has", message.body.decode(), flush=True)
        return Deferred()

    receiver = Receiver(reactor, name=name, handler=handle)
    receiver.attach(address, subjects=["trips.>"])
    await Deferred[None]()


async def main(reactor: Any, what: str, *words: str) -> None:
    kinds: dict[str, Any] = {"send": send, "hold": hold}
    await kinds[what](reactor, *words)


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
