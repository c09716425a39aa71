"""Records of TLS: what is written in one turn leaves in one piece, and one read is one delivery.

Twisted's TLS copies, reads out and writes each record of 16 KiB by itself, waits for one round more
to gather what is small, and delivers each record that a read of the socket had. Here it goes around
by `getHandle()`, wherever nothing waits inside that must go before; everything else, handshakes,
errors and the end of TLS, is Twisted's own. Plain sockets are the business of `tcp.sockets`.
"""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.tcp import Connection as TCPConnection
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

RECORD_BYTES = 16 * 1024  # that TLS encrypts as one
RECORD_ROOM = 256  # what a record may take beyond them
TLS_ROOM = 16 * 1024  # for what else TLS says: tickets, new keys

MUCH_BYTES = 32 * 1024  # of one read: then there is more to come
# Read from the socket at once while much comes, instead of Twisted's 64 KiB: each read costs TLS
# several calls, and a run of messages is larger than that.
READ_BYTES = 256 * 1024


def takes(transport: TLSMemoryBIOProtocol) -> bool:
    """Whether TLS stands, and holds nothing that must leave before what is written now."""
    # What Twisted calls its own is asked for with what says no: with another Twisted it goes the
    # ordinary way.
    return (
        bool(transport.connected)
        and not transport.disconnecting
        and getattr(transport, "_handshakeDone", False)
        and not getattr(transport, "_lostTLSConnection", True)
        and not getattr(transport, "_appSendBuffer", True)
        and not getattr(getattr(transport, "_aggregator", None), "_buffer", True)
    )


def encrypted(transport: TLSMemoryBIOProtocol, data: bytes) -> tuple[bytes, bytes]:
    """Encrypt as much as TLS takes now; return what is to be written, and the rest of `data`.

    Only where it `takes`. The rest is for the ordinary way, which meets what was met here.
    """
    connection, left = transport.getHandle(), memoryview(data)
    try:
        while left:
            left = left[connection.send(left) :]
    except SSL.Error:
        pass  # it must read first, or has failed
    room = len(data) + (len(data) // RECORD_BYTES + 1) * RECORD_ROOM + TLS_ROOM
    pieces: list[bytes] = []
    try:
        while not pieces or len(pieces[-1]) == room:
            pieces.append(connection.bio_read(room))
    except SSL.WantReadError:
        pass  # that was all
    return b"".join(pieces), bytes(left)


def decrypted(transport: TLSMemoryBIOProtocol, first: bytes) -> tuple[bytes, Failure | None]:
    """Return all that a read of the socket brought, of which `first` is a record's, and its error.

    To be called where TLS delivers `first`. What ends TLS is met again by Twisted, which then knows
    less of why. It is at most what one read of the socket takes, and the rest of a record.
    """
    connection, pieces = transport.getHandle(), [first]
    try:
        while True:
            pieces.append(connection.recv(RECORD_BYTES))
    except (SSL.WantReadError, SSL.ZeroReturnError, SSL.SysCallError):
        error = None
    except SSL.Error:
        error = Failure()
    return b"".join(pieces) if len(pieces) > 1 else first, error


def read_ahead(transport: TLSMemoryBIOProtocol, size: int) -> None:
    """Let the next read of the socket be as large as is right behind one that brought `size`."""
    socket_transport = transport.transport
    if isinstance(socket_transport, TCPConnection):
        much = size >= MUCH_BYTES
        socket_transport.bufferSize = READ_BYTES if much else TCPConnection.bufferSize
