"""The two echo servers of the Kamaelia documentation; only their imports are ours.

python -m examples.chassis_echo            echoes, on port 12345
python -m examples.chassis_echo greeter    says first who is connected to what
"""

import sys

from msgservice.faces import axon as Axon
from msgservice.faces.chassis import ServerCore, SimpleServer


class Echo(Axon.Component.component):
    def main(self):
        while not self.shutdown():
            yield 1
            if self.dataReady("inbox"):
                self.send(self.recv("inbox"), "outbox")

    def shutdown(self):
        return self.dataReady("control") and isinstance(
            self.recv("control"), Axon.Ipc.producerFinished
        )


class Greeter(Echo):
    def main(self):
        text = "Welcome! You have connected to %s on port %d from %s on port %d"
        self.send(
            (text % (self.localip, self.localport, self.peer, self.peerport)).encode(), "outbox"
        )
        yield from super().main()


if __name__ == "__main__":
    if sys.argv[1:] == ["greeter"]:
        ServerCore(protocol=Greeter, port=12345).run()
    else:
        SimpleServer(protocol=Echo, port=12345).run()
