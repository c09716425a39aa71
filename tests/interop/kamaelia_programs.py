"""Programs on the real Kamaelia, each run in a process of its own.

With `python -m tests.interop.kamaelia_programs` before them:

exchange PORT     sends its stdin, and prints as much as comes back
receive PORT      prints what comes until the server closes
pipeline PORT     the same through a pipeline of theirs
serve PORT        the documentation's echo, on their server
"""

import sys
from collections.abc import Iterator
from typing import Any

from Axon.Component import component
from Axon.Ipc import producerFinished
from Kamaelia.Chassis.ConnectedServer import SimpleServer
from Kamaelia.Chassis.Graphline import Graphline
from Kamaelia.Chassis.Pipeline import Pipeline
from Kamaelia.Internet.TCPClient import TCPClient
from Kamaelia.Util.PureTransformer import PureTransformer


class Exchange(component):
    """Sends all of `data` in pieces, and prints as many bytes as it has sent."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data

    def main(self) -> Iterator[Any]:
        size = 65536
        for start in range(0, len(self.data), size):
            self.send(self.data[start : start + size], "outbox")
            yield 1
        got = bytearray()
        while len(got) < len(self.data) and not self.dataReady("control"):
            while self.dataReady("inbox"):
                got += self.recv("inbox")
            yield 1
        self.send(producerFinished(self), "signal")
        sys.stdout.buffer.write(got)
        sys.stdout.buffer.flush()


class Printer(component):
    """Prints what comes until its producer has finished."""

    def main(self) -> Iterator[Any]:
        while not self.dataReady("control") or self.dataReady("inbox"):
            while self.dataReady("inbox"):
                sys.stdout.buffer.write(self.recv("inbox"))
            yield 1
        sys.stdout.buffer.flush()


class Echo(component):
    """As in the documentation."""

    def main(self) -> Iterator[Any]:
        while not self.shutdown():
            yield 1
            if self.dataReady("inbox"):
                self.send(self.recv("inbox"), "outbox")

    def shutdown(self) -> bool:
        return self.dataReady("control") and isinstance(self.recv("control"), producerFinished)


def main(what: str, port: int) -> None:
    client = TCPClient("127.0.0.1", port) if what != "serve" else None
    if what == "exchange":
        Graphline(
            CLIENT=client,
            DATA=Exchange(sys.stdin.buffer.read()),
            linkages={
                ("DATA", "outbox"): ("CLIENT", "inbox"),
                ("DATA", "signal"): ("CLIENT", "control"),
                ("CLIENT", "outbox"): ("DATA", "inbox"),
                ("CLIENT", "signal"): ("DATA", "control"),
            },
        ).run()
    elif what == "receive":
        Pipeline(client, Printer()).run()
    elif what == "pipeline":
        Pipeline(client, PureTransformer(bytes.upper), Printer()).run()
    else:
        SimpleServer(protocol=Echo, port=port).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
