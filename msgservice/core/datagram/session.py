"""One session between two addresses: packets in both directions, and their timers.

Called by `core.datagram.endpoint`, which owns the handshake and knows the addresses. Datagrams go
in through `receive_packet`, come out of `take_datagrams`; `next_deadline` says when to call
`receive_time`. A session puts together what keeps its state apart: the messages it sends
(`core.datagram.sender`), those that came (`core.datagram.receiver`), its packets under way
(`core.datagram.flight`), and the packing of them (`core.datagram.packing`). Here packets are opened
up, and each block goes to whom it concerns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Answer, SendQueue
from msgservice.core.datagram.cookie import Address, PeerKey
from msgservice.core.datagram.flight import Flight
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.packing import Packing
from msgservice.core.datagram.receiver import NotTaken, ReceivingHalf
from msgservice.core.datagram.sender import SendingHalf


class Session:
    """One session of acknowledged UDP: who it is with, and its parts."""

    __slots__ = (
        "_keepalive",
        "_tried_at",
        "address",
        "closed_by_peer",
        "flight",
        "heard_at",
        "identifier",
        "key_id",
        "malformed",
        "message_bytes",
        "own_random",
        "packing",
        "peer",
        "proven",
        "receiving",
        "refused",
        "role",
        "seal",
        "sending",
    )  # fmt: skip

    def __init__(
        self,
        *,
        peer: PeerKey,
        identifier: int,
        role: int,
        key_id: int,
        seal: wire.Seal,
        own_random: bytes,
        terms: wire.Terms,
        limits: DatagramLimits,
        limits_at_first: DatagramLimits,
        queue: SendQueue,
        settled: list[object],
        answered: list[Answer],
        late_flights: list[Flight],
        tried_at: deque[float],
        jitter: Callable[[], float],
        ordered: bool,
        now: float,
    ) -> None:
        self.peer = peer
        self.address: Address = peer[:2]
        self.identifier = identifier
        self.role = role
        self.key_id = key_id
        self.seal = seal
        self.own_random = own_random
        self.heard_at = now
        self.proven = role == wire.INITIATOR
        self.closed_by_peer = False
        self.message_bytes = min(limits.message_bytes, terms.message_bytes_max)  # sent at most
        self.malformed = 0  # packets
        self.refused = 0
        self._keepalive = limits.keepalive
        self._tried_at = tried_at  # when retransmissions and asks went out
        datagram_bytes = min(limits.datagram_bytes, terms.datagram_bytes_max)
        self.sending = SendingHalf(
            queue,
            settled,
            answered,
            limits,
            credit_messages=terms.messages,
            credit_bytes=terms.bytes,
        )
        self.receiving = ReceivingHalf(limits_at_first, ordered=ordered)
        self.flight = Flight(
            self.receiving,
            late_flights,
            identifier=identifier,
            role=role,
            key_id=key_id,
            seal=seal,
            datagram_bytes=datagram_bytes,
            congestion_bytes=limits.congestion_bytes,
            jitter=jitter,
        )
        room = datagram_bytes - wire.HEADER_BYTES - seal.overhead
        self.packing = Packing(self.sending, self.receiving, self.flight, room, tried_at)

    # --- from the world: packets

    def receive_packet(
        self, number: int, letter: int, data: bytes, at: int, end: int, now: float
    ) -> None:
        """Take the opened body data[at:end] of packet `number`; never raises for what a peer
        sent."""
        receiving = self.receiving
        if not receiving.is_new(number):
            return
        self.heard_at = now
        self.proven = True
        eliciting = urgent = False
        try:
            while at < end:
                block = data[at]
                if block == wire.RUN:
                    eliciting = urgent = True
                    first, bodies, behind = wire.decode_run(data, at, end)
                    size = behind - at - wire.RUN_HEAD.size - 2 * len(bodies)
                    receiving.receive_run(first, bodies, size)
                    at = behind
                elif block == wire.RECEIVED:
                    received, at = wire.decode_received(data, at, end)
                    self.flight.receive_received(received, now)
                elif block == wire.HANDLED:
                    eliciting = True
                    ranges, at = wire.decode_handled(data, at, end)
                    for first, last in ranges:
                        self.sending.receive_handled(first, last)
                elif block == wire.REPLY:
                    eliciting = urgent = True
                    at = self._receive_reply(data, at, end)
                elif block == wire.FRAGMENT:
                    eliciting = urgent = True
                    at = self._receive_fragment(data, at, end)
                elif block == wire.CREDIT:
                    eliciting = True
                    _, messages, size = wire.CREDIT_BLOCK.unpack_from(data, at)
                    at += wire.CREDIT_BLOCK.size
                    self.sending.receive_credit(messages, size)
                elif block == wire.ASK:
                    eliciting = True
                    _, floor = wire.ASK_BLOCK.unpack_from(data, at)
                    at += wire.ASK_BLOCK.size
                    receiving.receive_ask(floor)
                elif block == wire.CLOSE:
                    at += 1
                    self.closed_by_peer = True
                else:
                    raise ValueError("unknown block")
            if at != end:
                raise ValueError("block beyond its datagram")
        except wire.DecodeErrors:
            self.malformed += 1
            return
        except NotTaken:
            self.refused += 1
            return
        receiving.receive_number(number, now, eliciting=eliciting, urgent=urgent)

    def _receive_reply(self, data: bytes, at: int, end: int) -> int:
        _, status, nonce, length = wire.REPLY_HEAD.unpack_from(data, at)
        at += wire.REPLY_HEAD.size
        behind: int = at + length
        if behind > end or status not in (wire.REPLY_OK, wire.REPLY_FAILED):
            raise ValueError("REPLY block")
        self.sending.receive_reply(nonce, status, data[at:behind])
        return behind

    def _receive_fragment(self, data: bytes, at: int, end: int) -> int:
        _, status, nonce, total, offset, length = wire.FRAGMENT_HEAD.unpack_from(data, at)
        at += wire.FRAGMENT_HEAD.size
        behind: int = at + length
        if behind > end:
            raise ValueError("FRAGMENT block")
        piece = data[at:behind]
        if status == wire.PART_OF_MESSAGE:
            self.receiving.receive_fragment(nonce, total, offset, piece)
        elif status in (wire.REPLY_OK, wire.REPLY_FAILED):
            self.sending.receive_reply_piece(nonce, status, total, offset, piece)
        else:
            raise ValueError("FRAGMENT block")
        return behind

    # --- from the world: time

    def receive_time(self, now: float) -> None:
        """Do what is due: declare losses, probe, ask."""
        flight, asks = self.flight, self.sending.asks
        if flight.receive_time(now):
            self._tried_at.append(now)
        asks.receive_time(now)
        keepalive = self._keepalive
        if keepalive and now >= self.heard_at + keepalive and not flight.recovery.in_flight:
            asks.want()

    # --- from the application

    def close(self) -> None:
        """Tell the peer that this session ends, with the next datagrams taken."""
        self.packing.close()

    def take_end(self, now: float) -> list[bytes]:
        """Return the datagrams that tell what was handled, and in the last of them that the session
        ends."""
        return self.packing.take_end(now)

    # --- to the world

    def take_datagrams(self, now: float) -> list[bytes]:
        """Return all datagrams that may leave now, in order."""
        return self.packing.take_datagrams(now)

    @property
    def urgent_deadline(self) -> bool:
        """Whether something may be due earlier than an acknowledgement's delay from now."""
        flight = self.flight
        return flight.blocked_until is not None or flight.recovery.loss_at is not None

    def next_deadline(self, now: float) -> float | None:
        """Return when `receive_time` and `take_datagrams` are to be called next."""
        flight, sending = self.flight, self.sending
        flight.catch_up()
        recovery = flight.recovery
        deadlines = [
            recovery.loss_at,
            recovery.timeout_at(),
            self.receiving.ack_due,
            flight.blocked_until,
        ]
        if sending.open and not recovery.in_flight:
            deadlines.append(sending.asks.next_deadline(now))
        else:
            sending.asks.rest()
        if self._keepalive and not recovery.in_flight:
            deadlines.append(self.heard_at + self._keepalive)
        return min((at for at in deadlines if at is not None), default=None)
