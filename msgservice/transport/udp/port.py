"""A UDP port of Twisted's own as the socket of an endpoint, where `udp.socket` cannot be.

For reactors that watch no descriptors, and for programs that call `reactor.listenUDP` themselves.
Datagrams are one call each here.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Protocol

from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from msgservice.core.datagram.cookie import Address
from msgservice.errors import PeerClosed


class Served(Protocol):
    """The turns of an endpoint, as a port uses them."""

    def check_interface(self, interface: str, port: int) -> None:
        """Raise where an interface may not be listened at."""

    def attach(self, opened: PortAdapter) -> None:
        """Let the port be the socket."""

    def detach(self) -> None:
        """Take note that the port was closed."""

    def receive(self, data: bytes, segment: int, address: Address) -> None:
        """Take a datagram."""

    def ignores(self, letter: int) -> bool:
        """Whether what begins so is ignored, if a stranger sent it."""

    def turn(self) -> None:
        """Process what came."""

    def knows(self) -> Container[Address]:
        """Return the addresses that are no strangers."""


class PortAdapter(DatagramProtocol):
    """The protocol of a port, and a socket to the turns of an endpoint."""

    _log = Logger()
    writable = True  # Twisted's port writes at once, or fails

    def __init__(self, turns: Served) -> None:
        self._turns = turns
        self._known = turns.knows()

    # --- from the port

    def startProtocol(self) -> None:
        """Begin on a port that is open: it is the socket now."""
        assert self.transport is not None
        self._turns.check_interface(*self.address)
        # Twisted cuts longer datagrams in silence at 8,192 bytes unless told otherwise.
        self.transport.maxPacketSize = 65_535  # type: ignore[attr-defined]  # of its Port
        self._turns.attach(self)

    def stopProtocol(self) -> None:
        """End with the port."""
        self._turns.detach()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Take a datagram, in a turn of its own."""
        self.datagrams_received([(datagram, addr[:2])])

    def datagrams_received(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        """Take datagrams that came together, in one turn."""
        for datagram, address in datagrams:
            if address in self._known or not (datagram and self._turns.ignores(datagram[0])):
                self._turns.receive(datagram, 0, address)
        self._turns.turn()

    # --- as a socket

    @property
    def address(self) -> Address:
        """The (host, port) that the port is bound to."""
        if self.transport is None:
            raise PeerClosed("not listening")
        host = self.transport.getHost()
        return host.host, host.port

    def send(self, address: Address, datagrams: Sequence[bytes]) -> None:
        """Send datagrams to one address; what cannot leave is a loss."""
        if self.transport is None:
            return
        write = self.transport.write
        for datagram in datagrams:
            try:
                write(datagram, address)
            except OSError as error:
                self._log.debug("udp to {address}: {error}", address=address, error=error)

    def close(self) -> None:
        """Close the port."""
        if self.transport is not None:
            self.transport.stopListening()
