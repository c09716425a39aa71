"""A network of `DatagramPeer`s on a Clock: each stands on a transport that the test controls."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from msgservice.transport.udp.peer import DatagramPeer

Address = tuple[str, int]


class Transport:
    """What a peer writes to; `getHost` as of Twisted's UDP port."""

    maxPacketSize = 8192

    def __init__(self, net: Net, address: Address) -> None:
        self._net = net
        self._address = address

    def getHost(self) -> IPv4Address:
        return IPv4Address("UDP", *self._address)

    def write(self, datagram: bytes, address: Address) -> None:
        self._net.carry(self._address, address, datagram)

    def stopListening(self) -> None:
        self._net.peers.pop(self._address, None)


class Net:
    """Carries datagrams after `delay`; `drop(source, to, datagram)` says which are lost."""

    def __init__(self, seed: int = 1, delay: float = 0.01) -> None:
        self.clock = Clock()
        self.random = random.Random(seed)
        self.delay = delay
        self.peers: dict[Address, DatagramPeer] = {}
        self.drop: Callable[[Address, Address, bytes], bool] = lambda source, to, datagram: False
        self.log: list[tuple[Address, Address, bytes]] = []

    def add(self, kind: type[DatagramPeer], number: int, **options: Any) -> Any:
        peer = kind(
            self.clock,
            entropy=self.random.randbytes,
            jitter=self.random.random,
            **options,
        )
        address = ("127.0.0.1", number)
        self.peers[address] = peer
        peer.makeConnection(Transport(self, address))
        return peer

    def carry(self, source: Address, to: Address, datagram: bytes) -> None:
        self.log.append((source, to, datagram))
        if not self.drop(source, to, datagram):
            self.clock.callLater(self.delay, self.arrive, source, to, datagram)

    def arrive(self, source: Address, to: Address, datagram: bytes) -> None:
        peer = self.peers.get(to)
        if peer is not None:
            peer.datagramReceived(datagram, source)

    def run(self, seconds: float) -> None:
        """Let virtual time pass, from call to call."""
        end = self.clock.seconds() + seconds
        while True:
            calls = self.clock.getDelayedCalls()
            due = min((call.getTime() for call in calls), default=end + 1)
            if due > end:
                break
            self.clock.advance(max(0.0, due - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def letters(self, letter: str) -> list[tuple[Address, Address, bytes]]:
        return [entry for entry in self.log if entry[2][:1] == letter.encode()]
