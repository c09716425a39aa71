"""What comes in a session: packets are opened up, acknowledged ones and lost ones settled.

Called by `core.datagram.endpoint` with every packet of the session; never raises for what a peer
sent. What is then to be said leaves through `core.datagram.output`.
"""

from __future__ import annotations

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Chunk, Reply
from msgservice.core.datagram.reassembly import Reassembly
from msgservice.core.datagram.receiver import NotTaken
from msgservice.core.datagram.recovery import ACK_DELAY_MAX, Sent
from msgservice.core.datagram.state import Control, SessionState


class SessionInput(SessionState):
    """The incoming direction of a session: packets, acknowledgements, losses."""

    __slots__ = ()

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
                    if self._late is not None:
                        self.catch_up()
                    in_flight = self.recovery.in_flight
                    ranges = received[1]
                    if len(in_flight) == 1 and len(ranges) == 1 and ranges[0][1] in in_flight:
                        self._late = (received, now)
                        self._late_sessions.append(self)
                    else:
                        self._receive_received(received, now)
                elif block == wire.HANDLED:
                    eliciting = True
                    ranges, at = wire.decode_handled(data, at, end)
                    for first, last in ranges:
                        if self.sending.receive_handled(first, last):
                            self._progress()
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
                    sending = self.sending
                    sending.credit_messages = max(sending.credit_messages, messages)
                    sending.credit_bytes = max(sending.credit_bytes, size)
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
            self.counters.malformed += 1
            return
        except NotTaken:
            self.counters.refused += 1
            return
        if number == receiving.largest + 1:
            receiving.largest = number
            receiving.largest_at = now
            if eliciting:
                if urgent:
                    receiving.unacknowledged += 1
                if receiving.ack_due is None:
                    receiving.ack_due = now + ACK_DELAY_MAX
        else:
            receiving.receive_number(number, now, eliciting=eliciting, urgent=urgent)

    def _receive_reply(self, data: bytes, at: int, end: int) -> int:
        _, status, nonce, length = wire.REPLY_HEAD.unpack_from(data, at)
        at += wire.REPLY_HEAD.size
        behind: int = at + length
        if behind > end or status not in (wire.REPLY_OK, wire.REPLY_FAILED):
            raise ValueError("REPLY block")
        if self.sending.receive_reply(nonce, status, data[at:behind]):
            self._progress()
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
            return behind
        if status not in (wire.REPLY_OK, wire.REPLY_FAILED) or total > self._limits.message_bytes:
            raise ValueError("FRAGMENT block")
        if not self.sending.is_open(nonce):
            return behind  # settled or given up: whatever comes of it is needed no more
        partial = self._replies_partial
        if partial is None:
            limits = self._limits
            partial = Reassembly(limits.congestion_bytes + limits.message_bytes)
            self._replies_partial = partial
        whole = partial.receive(nonce, total, offset, piece)
        if whole is not None and self.sending.receive_reply(nonce, status, whole):
            self._progress()
        return behind

    def catch_up(self) -> None:
        """Take the acknowledgement that was put off.

        Where one packet was in flight and has arrived, nothing that leaves now depends on it: the
        next request or reply is sent first (bench/udp.py, rpc).
        """
        late, self._late = self._late, None
        if late is not None:
            self._receive_received(*late)

    def _receive_received(self, received: wire.Received, now: float) -> None:
        recovery, congestion = self.recovery, self.congestion
        delay, ranges = received
        arrived, lost, spurious = recovery.receive_ranges(ranges, delay, now)
        if arrived:
            size = 0
            for _, sent_size, content in arrived:
                size += sent_size
                for item in content:
                    kind = type(item)
                    if kind is Chunk:
                        item.received = True
                    elif kind is Reply:
                        self.receiving.receive_reply_arrival(item)
                    elif kind is Control:
                        if item.acknowledged > self.receiving.ack_base:
                            self.receiving.ack_base = item.acknowledged
                    elif item.receive_arrival() and type(item.owner) is Reply:
                        self.receiving.receive_reply_arrival(item.owner)
            if self._window_limited or (
                2 * congestion.in_flight >= congestion.window and congestion.slow_start
            ):
                congestion.on_rtt(
                    recovery.round_trip.latest, recovery.largest, recovery.next_number
                )
                congestion.on_acknowledged(size, arrived[0][0])
            congestion.in_flight -= size
            if congestion.watches:
                congestion.on_outcome(len(arrived), 0, arrived[0][0])
            self._probes = 0
        if lost:
            self._receive_lost(lost, now)
        if spurious:
            congestion.on_spurious(spurious)

    def _receive_lost(self, lost: list[Sent], now: float) -> None:
        size = 0
        for sent in lost:
            size += sent[1]
            self._send_again(sent)
        congestion = self.congestion
        if congestion.watches:
            congestion.on_outcome(0, len(lost), lost[0][0])
        congestion.on_lost(size, len(lost), lost[-1][0], now, self.recovery.round_trip)

    def _send_again(self, sent: Sent) -> None:
        receiving, sending = self.receiving, self.sending
        for item in sent[2]:
            kind = type(item)
            if kind is Control:
                for first, last in item.handled:
                    receiving.handled_pending.add(first, last)
                self._credit_lost = self._credit_lost or item.credit
            elif kind is Reply:
                receiving.send_again(item)
            elif kind is Chunk:
                if not item.received and item.remaining:
                    sending.retransmit.append(item)
            elif not item.needless:
                sending.retransmit.append(item)
