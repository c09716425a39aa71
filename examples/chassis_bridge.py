"""A bridge between a protocol of lines and a node, made of components.

python -m examples.chassis_bridge tcp:127.0.0.1:7410

Port 12346 takes lines: each becomes a message on the subject `lines`, and is answered with `OK` and
its position when the node has it on disk, or with `REFUSED` and why. Port 12347 gives lines: the
first line of the peer is the name of a receiver; then it gets one line for each message, and
answers each with `ACK` (done) or anything else (send it again). What it has not answered when it
goes away stays with the node, and comes again when that name comes again.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from msgservice import Receiver, Reject, Retry, connect
from msgservice.errors import MsgServiceError
from msgservice.faces import axon as Axon
from msgservice.faces.axon.AxonExceptions import Closed
from msgservice.faces.chassis import SimpleServer

LINE_BYTES_MAX = 65536


class Lines(Axon.Component.component):
    """Stands between a socket and a component that knows lines only: the `other`.

    Lines go to the other's `inbox`, and what it sends is written as lines. When the connection
    ends, the other is told so, and what it still sends is written before the close.
    """

    Inboxes = ("inbox", "control", "answers", "ended")
    Outboxes = ("outbox", "signal", "lines", "end")

    def __init__(self, other: Axon.Component.component) -> None:
        super().__init__()
        self.link((self, "lines"), (other, "inbox"))
        self.link((self, "end"), (other, "control"))
        self.link((other, "outbox"), (self, "answers"))
        self.link((other, "signal"), (self, "ended"))
        self.addChildren(other)

    async def main(self) -> None:
        for other in self.childComponents():
            other.activate()
        rest = b""
        told = False
        while not self.dataReady("ended") or self.dataReady("answers"):
            if self.dataReady("answers"):
                await self.send(await self.recv("answers") + b"\r\n", "outbox")
            elif self.dataReady("inbox"):
                *lines, rest = (rest + await self.recv("inbox")).split(b"\n")
                if len(rest) > LINE_BYTES_MAX:
                    self.send(b"REFUSED line of more than %d bytes\r\n" % LINE_BYTES_MAX, "outbox")
                    break
                for line in lines:
                    await self.send(line.rstrip(b"\r"), "lines")
            elif self.dataReady("control") and not told:
                # Not taken yet: the connection is open for answers until this returns.
                told = True
                self.send(Axon.Ipc.producerFinished(self), "end")
            else:
                await self.pause()
        if not told:
            self.send(Axon.Ipc.producerFinished(self), "end")


class ToNode(Axon.Component.component):
    """Lines in `inbox` become messages; `outbox` gets an answer for each, in their order."""

    def __init__(self, client: Any, subject: str) -> None:
        super().__init__()
        self.client, self.subject = client, subject

    async def main(self) -> None:
        try:
            async for first in self.Inbox("inbox"):
                # All that is there goes at once: the node commits it together.
                lines = [first]
                while self.dataReady("inbox"):
                    lines.append(await self.recv("inbox"))
                for receipt in [self.client.send(self.subject, line) for line in lines]:
                    self.send(await self.answer(receipt), "outbox")
        finally:
            self.send(Axon.Ipc.producerFinished(self), "signal")

    async def answer(self, receipt: Deferred[Any]) -> bytes:
        try:
            return b"OK %d" % (await receipt).position
        except MsgServiceError as error:
            return b"REFUSED " + str(error).encode()


class FromNode(Axon.Component.component):
    """Messages become lines in `outbox`; `inbox` takes a name, then an answer for each line."""

    def __init__(self, receiver: Callable[[str, Callable[[Any], Any]], Any]) -> None:
        super().__init__()
        self.receiver = receiver
        self.unanswered: deque[Deferred[None]] = deque()

    async def main(self) -> None:
        stopped = None
        try:
            name = await self.recv("inbox")
            receiver = self.receiver(name.decode(), self.message)
            try:
                async for answer in self.Inbox("inbox"):
                    if not self.unanswered:
                        continue
                    if answer == b"ACK":
                        self.unanswered.popleft().callback(None)
                    else:
                        self.unanswered.popleft().errback(Retry(reason="the peer says so"))
            finally:
                for waiting in self.unanswered:
                    waiting.errback(Retry(reason="the peer has gone away"))
                stopped = receiver.stop()
            await stopped
        except (Closed, UnicodeDecodeError, MsgServiceError) as error:
            if not isinstance(error, Closed):
                self.send(b"REFUSED " + str(error).encode(), "outbox")
        finally:
            self.send(Axon.Ipc.producerFinished(self), "signal")

    def message(self, message: Any) -> Deferred[None]:
        """The receiver's handler: the message is done when the peer has answered its line."""
        if b"\n" in message.body:
            raise Reject("a body with a line end is no line")
        answered: Deferred[None] = Deferred()
        self.unanswered.append(answered)
        self.send(message.body, "outbox")
        return answered


def to_node(client: Any, subject: str, **where: Any) -> SimpleServer:
    """Return a server whose peers' lines become messages on `subject`."""
    return SimpleServer(protocol=lambda: Lines(ToNode(client, subject)), **where)


def from_node(
    reactor: Any, address: str, subject: str, *, login: dict[str, Any] | None = None, **where: Any
) -> SimpleServer:
    """Return a server whose peers, each a receiver by name, get the messages of `subject`."""

    def receiver(name: str, handler: Callable[[Any], Any]) -> Receiver:
        made = Receiver(reactor, name=name, handler=handler)
        made.attach(address, subjects=[subject], **(login or {}))
        return made

    return SimpleServer(protocol=lambda: Lines(FromNode(receiver)), **where)


class Bridge(Axon.Component.component):
    """Both servers and the client that the first one sends with."""

    def __init__(self, reactor: Any, address: str, ports: tuple[int, int] = (12346, 12347)) -> None:
        super().__init__()
        self.reactor, self.address, self.ports = reactor, address, ports

    async def main(self) -> None:
        # The user that all of its peers act for, at a node that asks who comes.
        said = {key: os.environ.get(f"MSGSERVICE_{key.upper()}") for key in ("user", "password")}
        login = {key: value for key, value in said.items() if value is not None}
        name = said["user"] or "chassis-bridge"
        print(f"asking {self.address} who it is", flush=True)
        client = await connect(self.reactor, self.address, name=name, **login)
        takes, gives = ({"port": port, "interface": "127.0.0.1"} for port in self.ports)
        taking = to_node(client, "lines", **takes).activate()
        giving = from_node(self.reactor, self.address, "lines", login=login, **gives).activate()
        for server, does in ((taking, "takes"), (giving, "gives")):
            address = await server.when_listening()
            print(f"port {address.port} {does} lines", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m examples.chassis_bridge tcp:127.0.0.1:7410")
    from twisted.internet import reactor

    try:
        Bridge(reactor, sys.argv[1]).run()
    except MsgServiceError as error:  # a node that is away is waited for; this does not pass
        raise SystemExit(f"chassis_bridge: {error}") from None
