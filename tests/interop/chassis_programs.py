"""Our servers, each run in a process of its own; the first line printed is the port.

python -m tests.interop.chassis_programs echo       the documentation's echo
python -m tests.interop.chassis_programs greeter    and its greeter
python -m tests.interop.chassis_programs lines      sends 1,000 lines, then closes
"""

import sys
from collections.abc import Iterator
from typing import Any

from examples.chassis_echo import Echo, Greeter
from msgservice.faces import axon as Axon
from msgservice.faces.chassis.server import ServerCore, SimpleServer


class Lines(Axon.Component.component):
    """A producer, as components are: sends, then says that it has finished."""

    def main(self) -> Iterator[Any]:
        for number in range(1000):
            self.send(b"line %d\r\n" % number, "outbox")
            yield 1
        self.send(Axon.Ipc.producerFinished(self), "signal")
        while not self.dataReady("control"):
            self.pause()
            yield 1


SERVERS = {
    "echo": (SimpleServer, Echo),
    "greeter": (ServerCore, Greeter),
    "lines": (SimpleServer, Lines),
}


def main(what: str) -> None:
    made, protocol = SERVERS[what]
    server = made(protocol=protocol, port=0, interface="127.0.0.1")

    def say(address: Any) -> None:
        print(address.port, flush=True)

    server.when_listening().addCallback(say)
    server.run()


if __name__ == "__main__":
    main(sys.argv[1])
