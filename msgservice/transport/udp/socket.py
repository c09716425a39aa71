"""A UDP socket in the reactor, with Linux' segmentation offload where it is there.

UDP_SEGMENT sends a train of equally long datagrams in one call, UDP_GRO receives one so
(`man 7 udp`). Whether they work is found at run time; without them each datagram is a call.
Called by `udp.turns`; knows nothing of what is in a datagram. ENOBUFS and a full socket are
backpressure: what did not leave waits here, and `writable` is False until it has.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any

from twisted.internet.interfaces import (
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
    IWriteDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.core.datagram.cookie import Address
from msgservice.errors import CannotListen

Receive = Callable[[bytes, int, Address], None]

# From linux/udp.h; the socket module has no names for them yet.
UDP_SEGMENT = 103
UDP_GRO = 104
TRAIN_DATAGRAMS_MAX = 64  # UDP_MAX_SEGMENTS of every kernel that has it
TRAIN_BYTES_MAX = 65_507
# Reads of one turn: other descriptors want their turn as well.
READS_MAX = 32
# Reads of one turn that were ignored: they cost little, and what counts waits behind them.
IGNORED_MAX = 512
# So much is processed before it is answered: else the sender stands still meanwhile.
TURN_BYTES = 64 * 1024
CONTROL_BYTES = socket.CMSG_SPACE(4)
# The kernel's queue of a device is full: it drains in about this time.
NOBUFS_WAIT = 0.001
# Errors of a train that mean "not with this device", not "not now".
NO_OFFLOAD = (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT)


@implementer(IReadDescriptor, IWriteDescriptor)
class DatagramSocket:
    """A bound, non-blocking UDP socket; `receive(data, segment, address)` per read, then
    `turn()`.

    What comes from an address outside `known` is dropped unread where `ignores(first byte)` says
    so.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        receive: Receive,
        turn: Callable[[], None],
        known: Container[Address],
        ignores: Callable[[int], bool],
        interface: str,
        port: int,
        buffer_bytes: int,
        offload: bool = True,
    ) -> None:
        self._reactor = IReactorFDSet(reactor)
        self._clock = reactor
        self._receive = receive
        self._turn = turn
        self._known = known
        self._ignores = ignores
        self._pending: deque[tuple[Address, bytes, int]] = deque()
        self._wait: Any = None
        self._closed = False
        # Read into once and copied at its true length: 64 KiB are not allocated for each datagram.
        self._view = memoryview(bytearray(65_535))
        self._buffer = (self._view,)
        self._busy = False
        self._was_blocked = False
        self._single = 0
        self.unsent = 0
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((interface, port))
        except OSError as error:
            self._socket.close()
            raise CannotListen(f"udp:{port}:interface={interface}", str(error)) from error
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
        self.segments = offload and self._try_option(UDP_SEGMENT, 0)
        self.merges = offload and self._try_option(UDP_GRO, 1)
        self.address: Address = self._socket.getsockname()[:2]
        self._log.info(
            "udp {host}:{port}: receive buffer {buffer} bytes,"
            " UDP_SEGMENT {segments}, UDP_GRO {merges}",
            line="udp-socket",
            host=self.address[0],
            port=self.address[1],
            buffer=self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
            segments="on" if self.segments else "off",
            merges="on" if self.merges else "off",
        )
        self._reactor.addReader(self)

    def _try_option(self, option: int, value: int) -> bool:
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, option, value)
        except OSError:
            return False
        return True

    # --- Twisted's descriptor

    def fileno(self) -> int:
        """Return the socket's number, -1 once it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return what log lines of this descriptor begin with."""
        return "udp"

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket: the reactor gave it up."""
        self.close()

    def doRead(self) -> None:
        """Read what has come, and let it be processed as one turn."""
        self.read_turn()

    def read_turn(self) -> int:
        """Read what has come, and let it be processed as one turn; return how many reads brought
        something."""
        reads = self._read()
        if reads:
            self._turn()
        return reads

    def _read(self) -> int:
        """Take what has come, up to a turn's worth; return how many reads that took."""
        read, buffer, view = self._socket.recvmsg_into, self._buffer, self._view
        known = self._known
        reads = ignored = unanswered = 0
        while reads < READS_MAX and ignored < IGNORED_MAX:
            try:
                size, control, _flags, address = read(buffer, CONTROL_BYTES)
            except BlockingIOError:
                self._busy = reads + ignored > 1
                break
            except OSError as error:
                # An ICMP error about an earlier datagram: that was a loss, and is found as one.
                self._log.debug("udp read: {error}", error=error)
                reads += 1
                continue
            address = address[:2]
            if address not in known and size and self._ignores(view[0]):
                ignored += 1
                continue
            reads += 1
            segment = 0
            if control:
                segment = int.from_bytes(control[0][2], sys.byteorder)
            self._receive(bytes(view[:size]), segment, address)
            if self._closed:
                return reads
            unanswered += size
            if unanswered >= TURN_BYTES:
                unanswered = 0
                self._turn()
                if self._closed:
                    return reads
            # Where single datagrams come far between, the read that finds nothing is left out.
            if not (segment or self._busy):
                self._single += 1
                if self._single & 3:
                    break
        else:
            self._busy = True
        return reads

    def doWrite(self) -> None:
        """Go on with what waits."""
        self._reactor.removeWriter(self)
        self._flush()

    # --- sending

    @property
    def closed(self) -> bool:
        """Whether the socket was closed."""
        return self._closed

    @property
    def writable(self) -> bool:
        """Whether nothing waits for the kernel."""
        return not self._pending

    def send(self, address: Address, datagrams: Sequence[bytes]) -> None:
        """Send datagrams to one address, in trains where they are equally long."""
        pending = self._pending
        count = len(datagrams)
        if count == 1 or not self.segments:
            for datagram in datagrams:
                pending.append((address, datagram, 0))
        else:
            start = 0
            while start < count:
                size = len(datagrams[start])
                stop = min(
                    count, start + TRAIN_DATAGRAMS_MAX, start + max(1, TRAIN_BYTES_MAX // size)
                )
                end = start + 1
                while end < stop and len(datagrams[end]) == size:
                    end += 1
                if end < stop and len(datagrams[end]) < size:
                    end += 1  # the last of a train may be shorter
                if end - start == 1:
                    pending.append((address, datagrams[start], 0))
                else:
                    pending.append((address, b"".join(datagrams[start:end]), size))
                start = end
        if self._wait is None:
            self._flush()

    def _flush(self) -> None:
        self._wait = None
        pending = self._pending
        blocked = False
        while pending:
            address, data, segment = pending[0]
            try:
                if segment:
                    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", segment))]
                    self._socket.sendmsg((data,), control, 0, address)
                else:
                    self._socket.sendto(data, address)
            except BlockingIOError:
                self._reactor.addWriter(self)
                self._wait = self
                blocked = True
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self._wait = self._clock.callLater(NOBUFS_WAIT, self._flush)
                    blocked = True
                    break
                if segment and error.errno in NO_OFFLOAD:
                    self._stop_offload(error)
                    continue
                # Unreachable, refused, forbidden: a loss, found and judged as every other.
                self.unsent += 1
                self._log.debug("udp to {address}: {error}", address=address, error=error)
            pending.popleft()
        if not blocked and self._was_blocked:
            self._was_blocked = False
            self._turn()
        self._was_blocked = blocked

    def _stop_offload(self, error: OSError) -> None:
        """Go on without trains, and cut those that wait."""
        self._log.info("udp: UDP_SEGMENT off: {error}", line="udp-segment-off", error=error)
        self.segments = False
        waiting = list(self._pending)
        self._pending.clear()
        for address, data, segment in waiting:
            step = segment or len(data)
            for start in range(0, len(data), step):
                self._pending.append((address, data[start : start + step], 0))

    def close(self) -> None:
        """Close the socket; what waits is gone."""
        if self._closed:
            return
        self._closed = True
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        if self._wait is not None and self._wait is not self:
            self._wait.cancel()
        self._pending.clear()
        self._socket.close()
