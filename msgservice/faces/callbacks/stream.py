"""The Twisted protocol under a `Connection`: bytes in, bytes out, and knowing which are out.

It is a producer to its own transport. On plain sockets a pull producer: the transport asks for
more when its buffer is empty, so that what was handed over before is known to be with the system,
and an interrupted message with it. TLS has a buffer of its own that tells no such thing: there a
push producer, and what was handed over counts as sent.
"""

import socket
from typing import Any, cast
from typing import Protocol as Shape

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHandshakeListener,
    IPullProducer,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.faces.callbacks.net import set_keepalive

# Twice what Twisted hands to the system in one call, so that its buffer is never the bottleneck.
WRITE_BYTES_MAX = 256 * 1024
BULK_READ_BYTES = 256 * 1024
READ_BYTES = FileDescriptor.bufferSize


class IWireOwner(Shape):
    """The owner of a wire: what the protocol needs of its connection."""

    def wire_opened(self, wire: "CallbackProtocol") -> None:
        """The connection is up, the TLS handshake done."""

    def wire_received(self, data: bytes) -> None:
        """Bytes came."""

    def wire_lost(self, reason: Failure) -> None:
        """The connection ended; only after `wire_opened`."""

    def wire_failed(self, reason: Failure) -> None:
        """The connection ended before it was up."""

    def wire_output(self) -> bytes:
        """Return what to send next, nothing: nothing for now."""

    def wire_sent(self, count: int) -> None:
        """Bytes were written: so many are out of our hands."""


@implementer(IHandshakeListener, IPullProducer, IPushProducer)
class CallbackProtocol(Protocol):
    """One TCP (TLS, Unix) connection of a `Connection`."""

    def __init__(self, owner: IWireOwner) -> None:
        self._owner = owner
        self._is_open = False
        self._is_producing = False
        self._is_paused = False
        self._handed = 0  # bytes given to the transport since it was last empty
        self._is_tls = False
        self._is_detached = False
        self.was_open = False
        self.lost: Deferred[None] = Deferred()  # fires when the connection has ended

    # --- Twisted's hooks

    def connectionMade(self) -> None:
        """Wait for the handshake, if there is one."""
        self._is_tls = ISSLTransport.providedBy(self.transport)
        self._set_options()
        if not self._is_tls:
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        """Begin."""
        if not self.was_open:
            self._is_open = self.was_open = True
            self._owner.wire_opened(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass on."""
        if not self._is_detached:
            self._owner.wire_received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass on."""
        self._is_open = self._is_producing = False
        if not self._is_detached:
            (self._owner.wire_lost if self.was_open else self._owner.wire_failed)(reason)
        self.lost.callback(None)

    def _set_options(self) -> None:
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        # A TLS transport wraps the one that has the socket.
        for candidate in (transport, getattr(transport, "transport", None)):
            get_handle = getattr(candidate, "getHandle", None)
            handle = get_handle() if get_handle is not None else None
            if isinstance(handle, socket.socket) and handle.family != socket.AF_UNIX:
                set_keepalive(handle)
                return

    # --- for the connection

    def flush(self) -> None:
        """Send what there is, as soon as the transport takes it."""
        if self._is_producing or not self._is_open:
            return
        self._is_producing = True
        self._is_paused = False
        self._transport().registerProducer(self, self._is_tls)  # a pull producer is asked at once
        if self._is_tls:
            self.resumeProducing()

    def abort(self) -> None:
        """End the connection now."""
        self._transport().abortConnection()

    def detach(self) -> None:
        """End the connection now, and say no more of it to its owner."""
        self._is_detached = True
        self._is_open = False
        self.abort()

    def finish(self) -> None:
        """End the connection when the transport has sent what it holds."""
        self._transport().loseConnection()

    def read_in_bulk(self, bulk: bool) -> None:
        """Read more at a time while a large file comes, so that each read's cost is paid less.

        Half the time of a 1 GiB file (bench/callbacks.py). A TLS transport does not have the
        attribute, and reads as ever.
        """
        transport: Any = self.transport
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = BULK_READ_BYTES if bulk else READ_BYTES

    def pause_reading(self) -> None:
        """Read no more for now."""
        if self._is_open:
            self._transport().pauseProducing()

    def resume_reading(self) -> None:
        """Read on."""
        if self._is_open:
            self._transport().resumeProducing()

    def _transport(self) -> "_Transport":
        return cast("_Transport", self.transport)

    # --- the producer

    def resumeProducing(self) -> None:
        """The transport's buffer is empty (plain), or has room (TLS)."""
        self._is_paused = False
        while self._is_producing and not self._is_paused:
            handed, self._handed = self._handed, 0
            if handed:
                self._owner.wire_sent(handed)
            data = self._owner.wire_output() if self._is_open else b""
            if not data:
                self._is_producing = False
                self._transport().unregisterProducer()
                return
            self._handed = len(data)
            self._transport().write(data)
            if not self._is_tls:
                return

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self._is_paused = True

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` follows."""
        self._is_producing = False


class _Transport(Shape):
    """A transport as it is used here: ITransport, IConsumer and IPushProducer in one."""

    def write(self, data: bytes) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
