"""`DatagramPeer`: messages over UDP that are acknowledged, answered and never handled twice.

The public face of `core.datagram.endpoint`: it adds Deferreds, a socket, a clock and a timer.
Usable alone:

    from msgservice import DatagramPeer

    class Doubler(DatagramPeer):
        def handle_message(self, data, address):
            return data * 2

    server = Doubler(reactor)
    server.listen(7430)                      # 127.0.0.1 unless an interface is named
    client = DatagramPeer(reactor)
    client.listen()
    reply = await client.send_message(b"21", ("127.0.0.1", 7430))        # b"2121"

`docs/udp.md` describes what it promises, its limits, and the bytes it sends.
"""

from __future__ import annotations

import ipaddress
import random
import secrets
import socket
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import monotonic_of, timed
from msgservice.core.datagram.chunks import Answer
from msgservice.core.datagram.cookie import Address
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.keys import Keys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.peers import Waiting
from msgservice.core.datagram.session import Session
from msgservice.core.datagram.wire import REPLY_OK
from msgservice.errors import (
    CannotListen,
    HandlerFailed,
    InsecureListener,
    LimitReached,
    MessageTooLarge,
    NodeFailure,
    PeerClosed,
    Refused,
)
from msgservice.transport.udp.handler import DatagramHandler
from msgservice.transport.udp.socket import DatagramSocket
from msgservice.transport.udp.spinning import Spin
from msgservice.transport.udp.waiting import Run, SendQueue

# Linux doubles it; an ordinary user gets at most net.core.rmem_max, which the log shows.
BUFFER_BYTES = 4 * 1024 * 1024
GRAIN = 1e-6
# Seconds that the next datagram of a conversation is waited for awake (`spinning`).
SPIN = 100e-6
SPIN_MAX = 0.001


class DatagramPeer(DatagramHandler, DatagramProtocol):
    """A peer of acknowledged UDP: sends messages and gets their replies, handles and answers
    others'.

    `reactor`: the reactor, or a Clock in tests. A message has failed when at least `retries`
    retransmissions or asks went out and `send_timeout * retries` seconds passed (None: never).
    `key`: 32 bytes shared by both sides, or `{key id: bytes}`, the first of which is used for what
    this side begins. Without a key only loopback addresses are allowed, unless `insecure`.
    `limits`: see `DatagramLimits`. `spin`: in a conversation of single requests the socket is
    watched for so many seconds before the reactor sleeps; 0: never. Override `handle_message`,
    `node_failure`, `mangle`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        send_timeout: float | None = 30.0,
        retries: int = 3,
        key: bytes | Mapping[int, bytes] | None = None,
        insecure: bool = False,
        *,
        limits: DatagramLimits | None = None,
        seconds: Callable[[], float] | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        jitter: Callable[[], float] = random.random,
        ordered: bool = False,
        carry_over: bool = True,
        spin: float = SPIN,
    ) -> None:
        if retries < 0 or (send_timeout is not None and send_timeout <= 0):
            raise ValueError("send_timeout must be above 0, retries at least 0")
        if not 0 <= spin <= SPIN_MAX:
            raise ValueError(f"spin must be from 0 to {SPIN_MAX} seconds")
        self._reactor = timed(reactor)
        self._seconds: Callable[[], float] = seconds or monotonic_of(reactor)
        self._open = key is None and not insecure
        keys = None
        if key is not None:
            keys = Keys(key if isinstance(key, Mapping) else {1: key}, ChaCha20Poly1305)
        self._patience = None if send_timeout is None else send_timeout * max(retries, 1)
        self._endpoint = Endpoint(
            limits=limits or DatagramLimits(),
            entropy=entropy,
            jitter=jitter,
            keys=keys,
            patience=self._patience,
            retries=retries,
            ordered=ordered,
            carry_over=carry_over,
            now=self._seconds(),
        )
        self._peers = self._endpoint.peers
        self._spin = Spin(spin, self._seconds) if spin else None
        self._socket: DatagramSocket | None = None
        self._timer: Any = None
        self._timer_at = 0.0
        self._turn_call: Any = None
        self._in_turn = False
        self._closed = False
        self.send_queue: Mapping[Hashable, Waiting] = SendQueue(self.mangle, self._endpoint.waiting)

    # --- to be overridden

    def node_failure(self, address: Address) -> None:
        """Take note that an address does not answer; called once, until it is heard from again."""

    def mangle(self, address: Address, nonce: int) -> Hashable:
        """Return the key of a message in `send_queue`."""
        return (address, nonce)

    # --- the socket

    @property
    def address(self) -> Address:
        """The address that this peer listens at: (host, port)."""
        if self._socket is not None:
            return self._socket.address
        if self.transport is None:
            raise PeerClosed("not listening")
        host = self.transport.getHost()
        return host.host, host.port

    def listen(
        self, port: int = 0, interface: str = "127.0.0.1", *, offload: bool = True
    ) -> Address:
        """Open the socket and return its (host, port); port 0: the kernel chooses.

        Raises `InsecureListener` beyond loopback without a key, `CannotListen` where the port is
        taken. `offload`: use UDP_SEGMENT and UDP_GRO where the kernel has them.
        """
        self._check_interface(interface, port)
        if IReactorFDSet.providedBy(self._reactor):
            self._socket = DatagramSocket(
                self._reactor,
                receive=self._receive,
                turn=self._turn,
                known=self._peers,
                ignores=self._ignores,
                interface=interface,
                port=port,
                buffer_bytes=BUFFER_BYTES,
                offload=offload,
                spin=self._spin,
            )
        else:
            try:
                self._reactor.listenUDP(port, self, interface=interface, maxPacketSize=65_535)
            except CannotListenError as reason:
                raise CannotListen(f"udp:{port}:interface={interface}", str(reason)) from reason
        return self.address

    def _check_interface(self, interface: str, port: int) -> None:
        if self._open and not is_loopback(interface):
            raise InsecureListener(
                f"udp:{port}:interface={interface}",
                "beyond loopback a key is needed (or insecure = true)",
            )

    def startProtocol(self) -> None:
        """Begin on a port of Twisted's own: `reactor.listenUDP(port, peer)` works as well."""
        assert self.transport is not None
        host = self.transport.getHost()
        self._check_interface(host.host, host.port)
        # Twisted cuts longer datagrams in silence at 8,192 bytes unless told otherwise.
        self.transport.maxPacketSize = 65_535  # type: ignore[attr-defined]  # of its Port

    def stopProtocol(self) -> None:
        """End with the port: tell all peers, and fail what is under way."""
        self.close()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Take a datagram from a port of Twisted's own."""
        address = addr[:2]
        if address in self._peers or not (datagram and self._ignores(datagram[0])):
            self._receive(datagram, 0, address)
            self._turn()

    def close(self) -> None:
        """Tell all peers, close the socket, and fail what is under way with `PeerClosed`."""
        if self._closed:
            return
        self._closed = True
        for address in list(self._peers):
            self._fail(self._endpoint.close(address, self._seconds()), PeerClosed("peer closed"))
        self._write()
        for call in (self._timer, self._turn_call):
            if call is not None and call.active():
                call.cancel()
        if self._socket is not None:
            self._socket.close()
        elif self.transport is not None:
            self.transport.stopListening()

    # --- sending

    def send_message(self, data: bytes, address: Address) -> Deferred[bytes]:
        """Send one message, and fire with the reply (b"" if the handler returned none).

        Fails with `MessageTooLarge` or `LimitReached` (it was not sent), `HandlerFailed` (it was
        handled, and failed), `NodeFailure` or `PeerClosed` (not known). Cancelling ends the wait,
        not the message.
        """
        peer = self._peers.get(address)
        d: Deferred[bytes] = Deferred()
        try:
            if peer is None or type(data) is not bytes or self._closed:
                data, address = self._check(data, address)
                peer = self._endpoint.peer(address, self._seconds())
            self._endpoint.send_to(peer, data, d)
        except (Refused, PeerClosed, MessageTooLarge, LimitReached) as error:
            return fail(error)
        if not self._in_turn and self._turn_call is None:
            self._begin_turn(address)
        return d

    def send_messages(self, messages: Sequence[bytes], address: Address) -> Deferred[list[bytes]]:
        """Send a run of messages, and fire once with the list of their replies.

        Fails as `send_message` does; with `HandlerFailed` only after all were answered, and then
        its `replies` has every answer. Where one proves too large for the other side only when a
        session begins, the others are sent all the same.
        """
        run = Run(len(messages))
        if not messages:
            run.deferred.callback([])
            return run.deferred
        try:
            for message in messages:
                if type(message) is not bytes:
                    raise TypeError(f"messages must be bytes, not {type(message).__name__}")
            if address not in self._peers or self._closed:
                _, address = self._check(b"", address)
            run.first = self._endpoint.send_run(
                address, messages, [run] * len(messages), self._seconds()
            )
        except (Refused, LimitReached, PeerClosed) as error:
            return fail(error)
        if not self._in_turn and self._turn_call is None:
            self._begin_turn(address)
        return run.deferred

    def _check(self, data: bytes, address: Address) -> tuple[bytes, Address]:
        if self._closed:
            raise PeerClosed("peer closed")
        if type(data) is not bytes:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"a message must be bytes, not {type(data).__name__}")
            data = bytes(data)
        host, port = address
        try:
            parsed = ipaddress.ip_address(host)
        except ValueError:
            raise Refused(f"{host!r} is no IP address: names are not looked up here") from None
        if not 0 < port < 65_536:
            raise Refused(f"port {port} must be from 1 to 65535")
        if self._open and not parsed.is_loopback:
            raise Refused(f"{host} is beyond loopback: a key is needed (or insecure = true)")
        return data, (as_written(parsed), port)

    def _begin_turn(self, address: Address) -> None:
        """Send at once where nothing is open; else with what else this turn of the reactor
        brings."""
        peer = self._peers[address]
        session = peer.session
        if session is None or session.sending.open:
            self._turn_call = self._reactor.callLater(0, self._turn_later)
        else:
            self._turn()

    def _answered_later(self) -> None:
        if not self._in_turn and not self._closed and self._turn_call is None:
            self._turn_call = self._reactor.callLater(0, self._turn_later)

    def _turn_later(self) -> None:
        self._turn_call = None
        self._turn()

    # --- one turn

    def _receive(self, data: bytes, segment: int, address: Address) -> None:
        self._endpoint.receive_datagrams(data, segment, address, self._seconds())

    def _ignores(self, letter: int) -> bool:
        return self._endpoint.ignores(letter, self._seconds())

    def _turn(self) -> None:
        """Hand on what came, then send all that is to be said, once."""
        if self._in_turn or self._closed:
            return
        endpoint = self._endpoint
        if endpoint.has_effects:
            self._in_turn = True
            try:
                self._take_effects()
            finally:
                self._in_turn = False
        if self._turn_call is not None:
            self._turn_call.cancel()
            self._turn_call = None
        if not self._closed:
            self._write()
            endpoint.catch_up()
            if endpoint.rescheduled:
                self._arm()

    def _take_effects(self) -> None:
        deliveries, settled, answers, failures, too_large, events = self._endpoint.take_effects()
        for session, parts in deliveries:
            self._deliver(session, parts)
        for token in settled:
            if type(token) is Deferred:
                token.callback(b"")
            else:
                cast("Run", token).settle()
        for answer in answers:
            self._answer(answer)
        for address, tokens, first_failure in failures:
            self._receive_failure(address, tokens, first_failure)
        for token, size, size_max in too_large:
            self._fail([token], MessageTooLarge(size, size_max))
        for event, session in events:
            self._session_event(event, session)

    def _session_event(self, event: str, session: Session) -> None:
        """Take note of a session that was opened or lost; the node's bearer overrides it."""

    def _write(self) -> None:
        own = self._socket
        if own is not None:
            if own.writable:
                for address, datagrams in self._endpoint.take_datagrams(self._seconds()):
                    own.send(address, datagrams)
        elif self.transport is not None:
            write = self.transport.write
            for address, datagrams in self._endpoint.take_datagrams(self._seconds()):
                for datagram in datagrams:
                    try:
                        write(datagram, address)
                    except OSError as error:
                        self._log.debug("udp to {address}: {error}", address=address, error=error)

    def _arm(self) -> None:
        due = self._endpoint.next_deadline()
        if due is None:
            return
        timer = self._timer
        if timer is not None and timer.active():
            if self._timer_at <= due:
                return  # it fires early, finds nothing, and is armed again
            timer.cancel()
        self._timer_at = due
        # A little late rather than a rounding error early, which would find nothing due.
        self._timer = self._reactor.callLater(max(0.0, due - self._seconds()) + GRAIN, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._endpoint.receive_time(self._seconds())
        self._endpoint.rescheduled = True
        self._turn()

    # --- settling

    def _answer(self, answer: Answer) -> None:
        token, ordinal, status, body = answer
        result: bytes | HandlerFailed = body
        if status != REPLY_OK:
            result = HandlerFailed(body.decode(errors="replace"))
        if isinstance(token, Deferred):
            if isinstance(result, bytes):
                token.callback(result)
            else:
                token.errback(result)
            return
        run = cast("Run", token)
        run.replies[ordinal - run.first] = result
        if not isinstance(result, bytes) and run.failed is None:
            run.failed = result
        run.settle()

    def _receive_failure(self, address: Address, tokens: list[object], first: bool) -> None:
        if first:
            self._log.warn("udp: {address} does not answer", address=address)
            try:
                self.node_failure(address)
            except Exception:  # the application's own hook: its fault ends nothing here
                self._log.failure("node_failure of {address}", address=address)
        self._fail(tokens, NodeFailure(address, self._patience or 0.0))

    def _fail(self, tokens: list[object], error: Exception) -> None:
        for token in tokens:
            if isinstance(token, Deferred):
                token.errback(error)
            else:
                cast("Run", token).errback(Failure(error))


def as_written(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return an IP address as a socket writes it: answers come from there, whatever zeros the
    caller's way of writing has."""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    host = socket.inet_ntop(socket.AF_INET6, address.packed)
    return f"{host}%{address.scope_id}" if address.scope_id else host


def is_loopback(interface: str) -> bool:
    """Whether an interface (an IP address) is reached from this machine only."""
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False
