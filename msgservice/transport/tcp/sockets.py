"""Socket options, and what a socket says when it fails."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from twisted.internet.tcp import Connection as TCPConnection
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from msgservice.limits import Limits
from msgservice.transport.tcp.records import encrypted, takes
from msgservice.transport.tcp.refusals import is_by_certificate, refusal_of, told


def tune(transport: Any, limits: Limits) -> None:
    """Set what a socket under this transport can be told; nothing for other transports."""
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport = transport.transport
    if not isinstance(transport, TCPConnection):
        return
    handle = transport.getHandle()
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return
    transport.setTcpNoDelay(True)
    transport.setTcpKeepAlive(True)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Behind our own deadline, for bytes that only the kernel still holds (RFC 5482).
        milliseconds = int(2 * limits.write_timeout * 1000)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


# What Twisted's dialling puts between a transport and a protocol, and where each has the next: with
# what was read they do nothing but pass it on.
_RELAYS = {"_WrappingProtocol": "_wrappedProtocol", "_ReconnectingProtocolProxy": "_protocol"}


def shorten(transport: Any, protocol: Any) -> None:
    """Let what this transport reads come to its protocol at once, without relays of Twisted's."""
    is_tls = isinstance(transport, TLSMemoryBIOProtocol)
    first: Any = getattr(transport, "wrappedProtocol" if is_tls else "protocol", protocol)
    outer = first
    while outer is not protocol:
        following = _RELAYS.get(type(outer).__name__)
        if following is None:
            return  # a program's own: it may do more
        outer = vars(outer).get(following)
    if first is not protocol:
        first.dataReceived = protocol.dataReceived


def unwritten(transport: Any) -> int:
    """Return how many bytes a socket's transport holds that the kernel has not taken.

    On a slow link it takes a part now and then, long before all is gone.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport = transport.transport
    return len(getattr(transport, "dataBuffer", b"")) - int(getattr(transport, "offset", 0))


def reason_of(failure: Failure, transport: object = None) -> str:
    """Return in a few words why a connection failed or ended, on `transport` if there was one."""
    error = failure.value
    if isinstance(transport, TLSMemoryBIOProtocol):
        refusal = refusal_of(transport.getHandle())
        if refusal is not None:
            return f"TLS: {refusal}"
    of_tls = told(error)
    if of_tls is not None:
        return f"TLS: {of_tls}"
    return failure.getErrorMessage().rstrip(".")


def ended_by_certificate(failure: Failure, transport: object) -> bool:
    """Whether TLS came to nothing for a certificate that will be no other by trying again."""
    connection = transport.getHandle() if isinstance(transport, TLSMemoryBIOProtocol) else None
    return is_by_certificate(failure.value, connection)


def write_now(transport: Any, pieces: Iterable[bytes]) -> None:
    """Write what the socket takes at once, and leave the rest to the reactor.

    `transport.write` waits for the next round of the reactor and registers with its poll for one
    write: three system calls and a round where one would do (bench/latency.py: a fifth of a round
    trip). Where something waits already, or it is no plain socket, it is the only way. TLS waits
    for one round more before, to gather what is written: here it is gathered already.
    """
    writer_of(transport)(pieces)


def writer_of(transport: Any) -> Callable[[Iterable[bytes]], None]:
    """Return `write_now` for this transport."""
    if isinstance(transport, TLSMemoryBIOProtocol):
        return partial(_write_encrypted, transport)
    if isinstance(transport, TCPConnection):
        return partial(_write_plain, transport)
    write: Callable[[Iterable[bytes]], None] = transport.writeSequence
    return write


def _write_encrypted(transport: TLSMemoryBIOProtocol, pieces: Iterable[bytes]) -> None:
    data = b"".join(pieces)
    if takes(transport):
        records, data = encrypted(transport, data)
        _write_below(transport.transport, records)
    if data:
        transport.write(data)


def _write_below(below: Any, records: bytes) -> None:
    # Twisted has one size for what is read at once, which may be large now (`records.read_ahead`),
    # and for what may wait to be written before its producer is paused.
    read_size = getattr(below, "bufferSize", None)
    if read_size is not None:
        below.bufferSize = TCPConnection.bufferSize
    try:
        if isinstance(below, TCPConnection):
            _write_plain(below, (records,))
        else:
            below.write(records)
    finally:
        if read_size is not None:
            below.bufferSize = read_size


def _write_plain(transport: TCPConnection, pieces: Iterable[bytes]) -> None:
    data = b"".join(pieces)
    # A plain socket that is open, and nothing waits to be written to it before this.
    if (
        transport.connected
        and not transport.disconnecting
        and not transport.dataBuffer
        and not transport._tempDataBuffer  # noqa: SLF001  # no getter
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:  # full, or broken: the ordinary way meets the same and reports it
            sent = 0
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)
