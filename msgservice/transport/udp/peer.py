"""`DatagramPeer`: messages over UDP that are acknowledged, answered and never handled twice.

The public face of `core.datagram.endpoint`: it adds Deferreds, and a handler (`udp.handler`);
socket, clock and timer are `udp.turns`'s.
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

import random
import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.core.datagram.chunks import Answer
from msgservice.core.datagram.cookie import Address
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.peers import Effects, Waiting
from msgservice.core.datagram.wire import REPLY_OK
from msgservice.errors import (
    HandlerFailed,
    LimitReached,
    MessageTooLarge,
    NodeFailure,
    PeerClosed,
    Refused,
)
from msgservice.transport.udp.handler import Handling, Result
from msgservice.transport.udp.port import PortAdapter
from msgservice.transport.udp.spinning import Spin, SpinningSocket
from msgservice.transport.udp.turns import Turns
from msgservice.transport.udp.waiting import SendQueue, WaitingRun
from msgservice.unlogged import speak

# Seconds that the next datagram of a conversation is waited for awake (`spinning`).
SPIN = 100e-6
SPIN_MAX = 0.001


class DatagramPeer:
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
        reactor: IReactorTime,
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
        speak()
        if retries < 0 or (send_timeout is not None and send_timeout <= 0):
            raise ValueError("send_timeout must be above 0, retries at least 0")
        if not 0 <= spin <= SPIN_MAX:
            raise ValueError(f"spin must be from 0 to {SPIN_MAX} seconds")
        self._patience = None if send_timeout is None else send_timeout * max(retries, 1)
        self._turns = turns = Turns(
            reactor,
            self._take_effects,
            self.close,
            key=key,
            insecure=insecure,
            limits=limits or DatagramLimits(),
            entropy=entropy,
            jitter=jitter,
            ordered=ordered,
            carry_over=carry_over,
            patience=self._patience,
            retries=retries,
            seconds=seconds,
        )
        self._spin = spin
        self._seconds = turns.seconds
        self._endpoint = turns.endpoint
        self._peers = turns.endpoint.peers
        self._handling = Handling(turns.endpoint, self, turns.soon)
        self._port: PortAdapter | None = None
        self.send_queue: Mapping[Hashable, Waiting] = SendQueue(self.mangle, self._endpoint.waiting)

    # --- to be overridden

    def handle_message(self, data: bytes, address: Address) -> Result:
        """Handle a message, and return its reply: bytes, None for an empty one, or a Deferred of
        either.

        It is called once for each message of a session. What it raises is told to the sender, whose
        Deferred fails with `HandlerFailed`; the message counts as handled.
        """
        return None

    def node_failure(self, address: Address) -> None:
        """Take note that an address does not answer; called once, until it is heard from again."""

    def mangle(self, address: Address, nonce: int) -> Hashable:
        """Return the key of a message in `send_queue`."""
        return (address, nonce)

    # --- the socket

    @property
    def address(self) -> Address:
        """The address that this peer listens at: (host, port)."""
        return self._turns.address

    def listen(
        self, port: int = 0, interface: str = "127.0.0.1", *, offload: bool = True
    ) -> Address:
        """Open the socket and return its (host, port); port 0: the kernel chooses.

        Raises `InsecureListener` beyond loopback without a key, `CannotListen` where the port is
        taken. `offload`: use UDP_SEGMENT and UDP_GRO where the kernel has them.
        """
        if not self._spin:
            return self._turns.listen(port, interface, offload=offload)
        spinning = partial(SpinningSocket, spin=Spin(self._spin, self._seconds))
        return self._turns.listen(port, interface, offload=offload, make=spinning)

    def close(self) -> None:
        """Tell all peers, close the socket, and fail what is under way with `PeerClosed`."""
        self._fail(self._turns.close(), PeerClosed("peer closed"))

    # --- as a protocol of Twisted's: `reactor.listenUDP(port, peer)` works as well

    def makeConnection(self, transport: Any) -> None:
        """Begin on a port of Twisted's own."""
        self._port = self._turns.adapter()
        self._port.makeConnection(transport)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Take a datagram from a port of Twisted's own."""
        assert self._port is not None
        self._port.datagramReceived(datagram, addr)

    def doStop(self) -> None:
        """End with the port: tell all peers, and fail what is under way."""
        assert self._port is not None
        self._port.doStop()

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
            if peer is None or type(data) is not bytes or self._turns.closed:
                data, address = self._check(data, address)
                peer = self._endpoint.peer(address, self._seconds())
            self._endpoint.send_to(peer, data, d)
        except (Refused, PeerClosed, MessageTooLarge, LimitReached) as error:
            return fail(error)
        if not self._turns.awaited:
            self._begin_turn(address)
        return d

    def send_messages(self, messages: Sequence[bytes], address: Address) -> Deferred[list[bytes]]:
        """Send a run of messages, and fire once with the list of their replies.

        Fails as `send_message` does; with `HandlerFailed` only after all were answered, and then
        its `replies` has every answer. Where one proves too large for the other side only when a
        session begins, the others are sent all the same.
        """
        run = WaitingRun(len(messages))
        if not messages:
            run.deferred.callback([])
            return run.deferred
        try:
            for message in messages:
                if type(message) is not bytes:
                    raise TypeError(f"messages must be bytes, not {type(message).__name__}")
            if address not in self._peers or self._turns.closed:
                _, address = self._check(b"", address)
            run.first = self._endpoint.send_run(
                address, messages, [run] * len(messages), self._seconds()
            )
        except (Refused, LimitReached, PeerClosed) as error:
            return fail(error)
        if not self._turns.awaited:
            self._begin_turn(address)
        return run.deferred

    def _check(self, data: bytes, address: Address) -> tuple[bytes, Address]:
        if type(data) is not bytes and not self._turns.closed:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"a message must be bytes, not {type(data).__name__}")
            data = bytes(data)
        return data, self._turns.check(address)

    def _begin_turn(self, address: Address) -> None:
        """Send at once where nothing is open; else with what else this turn of the reactor
        brings."""
        session = self._peers[address].session
        if session is None or session.sending.open:
            self._turns.soon()
        else:
            self._turns.turn()

    # --- one turn

    def _take_effects(self, effects: Effects) -> None:
        deliveries, settled, answers, failures, too_large, _ = effects
        for session, parts in deliveries:
            self._handling.deliver(session, parts)
        for token in settled:
            if type(token) is Deferred:
                token.callback(b"")
            else:
                cast("WaitingRun", token).settle()
        for answer in answers:
            self._answer(answer)
        for address, tokens, first_failure in failures:
            self._receive_failure(address, tokens, first_failure)
        for token, size, size_max in too_large:
            self._fail([token], MessageTooLarge(size, size_max))

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
        run = cast("WaitingRun", token)
        run.replies[ordinal - run.first] = result
        if not isinstance(result, bytes) and run.failed is None:
            run.failed = result
        run.settle()

    def _receive_failure(self, address: Address, tokens: list[object], first: bool) -> None:
        if first:
            self._log.warn("udp: {address} does not answer", address=address)
            try:
                self.node_failure(address)
            except BaseException:  # the application's own hook: its fault ends nothing here
                self._log.failure("node_failure of {address}", address=address)
        self._fail(tokens, NodeFailure(address, self._patience or 0.0))

    def _fail(self, tokens: list[object], error: Exception) -> None:
        for token in tokens:
            if isinstance(token, Deferred):
                token.errback(error)
            else:
                cast("WaitingRun", token).errback(Failure(error))
