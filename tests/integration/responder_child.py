"""A program that answers requests on `work`, and dies where it is told to.

python responder_child.py ADDRESS NAME [PHASE]

A call's body says what is done with it: `echo` is answered with its name, `bytes` with itself,
`fail` with an error, `wait` never; `die` ends the process, as kill -9 does, before anything is
answered. PHASE `greeted` has it die when the node says HELLO, before that knows what it answers.
Prints `ready` when the node passes requests on to it, and `got BODY` for each call.
"""

import os
import signal
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from msgservice import connect
from msgservice.errors import RequestFailed


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(reactor: Any, address: str, name: str, phase: str = "") -> None:
    def handle(asked: Any) -> Any:
        body = asked.body.decode()
        print("got", body, flush=True)
        if body == "die":
            die()
        if body == "fail":
            raise RequestFailed("no such thing")
        if body == "bytes":
            return asked.body
        return Deferred() if body == "wait" else name

    client = await connect(reactor, address, name=name)
    responder = client.respond("work", handle)
    if phase == "greeted":
        responder.greeted = lambda connection, hello: die()  # type: ignore[method-assign]  # there
    await responder.when_ready()
    print("ready", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(lambda reactor, *argv: Deferred.fromCoroutine(main(reactor, *argv)), sys.argv[1:])
