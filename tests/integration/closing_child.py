"""A receiver, or a producer, over TLS: no limit of time ends its connection, only its closing does.

python closing_child.py receiver|producer ADDRESS

Prints `connected`, and, told to end by a signal, `stopping`.
"""

import sys
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from msgservice import Limits, Receiver, connect

reactor: Any = installed_reactor
NEVER = Limits(close_timeout=3000.0, bye_timeout=3000.0, stop_timeout=3000.0)


async def connected(role: str, address: str) -> None:
    if role == "producer":
        await connect(reactor, address, name="producer", limits=NEVER)
    else:
        receiver = Receiver(reactor, name="receiver", handler=lambda message: None, limits=NEVER)
        attachment = receiver.attach(address, subjects=["any"])
        while not attachment.connected:
            await deferLater(reactor, 0.01)
    print("connected", flush=True)


if __name__ == "__main__":
    _, role, address = sys.argv
    reactor.addSystemEventTrigger("before", "shutdown", print, "stopping")
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(connected(role, address)))
    reactor.run()
