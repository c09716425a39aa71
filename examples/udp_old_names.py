"""A `DatagramPeer` with the names of the mail of November 2004, for programs written after it.

    class MyPeer(OldNames):
        def handleMessage(self, data, host_port): ...
        def nodeFailure(self, host_port): ...

    peer = MyPeer(reactor)
    reactor.listenUDP(7430, peer)
    peer.sendMessage(b"hello", ("127.0.0.1", 7431))

`python -m examples.udp_old_names` shows it at work.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from msgservice import DatagramPeer

Address = tuple[str, int]


class OldNames(DatagramPeer):
    """Override `handleMessage`, `nodeFailure`, `mangle`; set `sendTimeout` on the class."""

    sendTimeout = 30.0
    sendRetries = 3

    def __init__(self, reactor: Any, **options: Any) -> None:
        super().__init__(reactor, self.sendTimeout, self.sendRetries, **options)

    def sendMessage(self, data: bytes, address: Address) -> Deferred[bytes]:
        return self.send_message(data, address)

    def handleMessage(self, data: bytes, address: Address) -> Any:
        """Return the value that travels back in the acknowledgement."""

    def nodeFailure(self, address: Address) -> None:
        """The node at this address does not answer."""

    def mangle(self, address: Address, nonce: int) -> Hashable:
        return f"{address[0]}:{address[1]}:{nonce}"

    # --- what the peer calls

    def handle_message(self, data: bytes, address: Address) -> Any:
        return self.handleMessage(data, address)

    def node_failure(self, address: Address) -> None:
        self.nodeFailure(address)


class Greeter(OldNames):
    """Greets back."""

    sendTimeout = 0.5

    def handleMessage(self, data: bytes, address: Address) -> bytes:
        return b"hello, " + data

    def nodeFailure(self, address: Address) -> None:
        print("no answer from port", address[1])


async def main(reactor: Any) -> None:
    peers = [Greeter(reactor) for _ in range(2)]
    ports = [reactor.listenUDP(0, peer, interface="127.0.0.1") for peer in peers]
    to = ("127.0.0.1", ports[1].getHost().port)
    print((await peers[0].sendMessage(b"world", to)).decode())
    for port in ports:
        await port.stopListening()


if __name__ == "__main__":
    react(main)
