"""`python -m tests.conformance.ours client|receiver|listener PORT`: our own, for the kit."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredSemaphore

from msgservice import Limits, Receiver, connect
from msgservice.receiver.received import ReceivedMessage
from tests.conformance.kit import SLOW

# As a command has them: then it logs in.
LOGIN: dict[str, Any] = (
    {"user": os.environ["MSGSERVICE_USER"], "password": os.environ["MSGSERVICE_PASSWORD"]}
    if "MSGSERVICE_USER" in os.environ
    else {}
)
LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.1, bye_timeout=5.0)


async def send(address: str) -> None:
    """Send for ever, whatever becomes of it."""
    client = await connect(reactor, address, name="shop", limits=LIMITS, **LOGIN)
    pace = DeferredSemaphore(10)
    number = 0
    while True:
        number += 1
        await pace.acquire()
        sent = client.send("orders.new", b"%d" % number)
        sent.addErrback(lambda failure: None).addCallback(lambda _: pace.release())


lasting: list[Deferred[None]] = []  # the first message that lasts, until something else comes


async def handle(message: ReceivedMessage) -> None:
    """Take it."""
    if message.subject == SLOW:
        if not lasting:
            lasting.append(Deferred())
            await lasting[0]
    elif lasting and not lasting[0].called:
        lasting[0].callback(None)


def main(role: str, port: str) -> None:
    """Run one."""
    if role == "client":
        Deferred.fromCoroutine(send(f"tcp:127.0.0.1:{port}"))
    else:
        receiver = Receiver(reactor, name="billing", handler=handle, limits=LIMITS)
        if role == "receiver":
            receiver.attach(f"tcp:127.0.0.1:{port}", subjects=["conformance.>"], **LOGIN)
        else:
            receiver.listen(f"tcp:{port}:interface=127.0.0.1")
        receiver.startService()
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:3])
