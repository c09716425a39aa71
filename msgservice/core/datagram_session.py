"""One session between two addresses: both halves, packets in both directions, and their timers.

Called by `core.datagram`, which owns the handshake and knows the addresses. Datagrams go in
through `receive_packet`, come out of `take_datagrams`; `next_deadline` says when to call
`receive_time`. Everything that asks for an acknowledgement is kept in `Recovery` until it arrived or is lost;
what was in it is then sent again in a new packet, if it is still needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from msgservice.core import datagram_wire as wire
from msgservice.core.congestion import NewReno, Pacer
from msgservice.core.datagram_limits import DatagramLimits
from msgservice.core.datagram_reassembly import Reassembly
from msgservice.core.datagram_receiver import NotTaken, ReceivingHalf
from msgservice.core.datagram_sender import Answer, Chunk, Piece, Reply, SendingHalf, SendQueue
from msgservice.core.recovery import TIMEOUTS_PERSISTENT, Recovery, Sent

# Asking after messages that arrived and are not handled: 2 s, doubling to 60 s (PROTOCOL §UDP).
ASK_MIN = 2.0
ASK_MAX = 60.0
HANDLED_RANGES_MAX = 48


class Control(NamedTuple):
    """What a packet carried besides messages, so that it can be told again if the packet is lost."""

    handled: list[tuple[int, int]]
    replies: list[Reply]
    acknowledged: int  # the newest packet that it acknowledged
    credit: bool


class Counters:
    """Figures of one session, for people."""

    __slots__ = ("asks", "malformed", "messages_again", "messages_sent", "packets_received",
                 "packets_sent", "refused", "timeouts")  # fmt: skip

    def __init__(self) -> None:
        self.asks = 0
        self.malformed = 0
        self.messages_again = 0
        self.messages_sent = 0
        self.packets_received = 0
        self.packets_sent = 0
        self.refused = 0
        self.timeouts = 0


class Session:
    """State of one session; see the module."""

    __slots__ = (
        "_ask_at",
        "_ask_pending",
        "_asks",
        "_blocked_until",
        "_close_pending",
        "_credit_lost",
        "_headers",
        "_limits",
        "_probes",
        "_replies_partial",
        "_room",
        "_window_limited",
        "address",
        "closed_by_peer",
        "congestion",
        "counters",
        "heard_at",
        "identifier",
        "key_id",
        "own_random",
        "pacer",
        "proven",
        "receiving",
        "recovery",
        "role",
        "seal",
        "sending",
        "spent",
        "tries",
    )  # fmt: skip

    def __init__(
        self,
        *,
        address: tuple[str, int],
        identifier: int,
        role: int,
        key_id: int,
        seal: wire.Seal,
        own_random: bytes,
        terms: wire.Terms,
        limits: DatagramLimits,
        queue: SendQueue,
        settled: list[object],
        answered: list[Answer],
        jitter: Callable[[], float],
        ordered: bool,
        now: float,
    ) -> None:
        self.address = address
        self.identifier = identifier
        self.role = role
        self.key_id = key_id
        self.seal = seal
        self.own_random = own_random
        self.heard_at = now
        self.proven = role == wire.INITIATOR
        self.closed_by_peer = False
        self.spent = False  # messages were given up: nonces are missing for ever
        self.tries = 0  # retransmissions and asks that went out
        datagram_bytes = min(limits.datagram_bytes, terms.datagram_bytes_max)
        self._room = datagram_bytes - wire.HEADER_BYTES - seal.overhead
        self._limits = limits
        self.congestion = NewReno(datagram_bytes, limits.congestion_bytes)
        self.pacer = Pacer(datagram_bytes)
        self.recovery = Recovery(jitter, limits.rto_min)
        self.sending = SendingHalf(
            queue,
            settled,
            answered,
            credit_messages=terms.messages,
            credit_bytes=terms.bytes,
        )
        self.receiving = ReceivingHalf(limits, ordered=ordered)
        self.counters = Counters()
        self._replies_partial: Reassembly | None = None
        self._headers = (
            wire.HEADER.pack(wire.MESSAGES, wire.VERSION, key_id, role, identifier, 0)[:12],
            wire.HEADER.pack(wire.ACKNOWLEDGEMENT, wire.VERSION, key_id, role, identifier, 0)[:12],
        )
        self._probes = 0
        self._ask_at: float | None = None
        self._asks = 0
        self._ask_pending = False
        self._close_pending = False
        self._credit_lost = False
        self._blocked_until: float | None = None
        self._window_limited = False

    # --- from the world

    def receive_packet(
        self, number: int, letter: int, data: bytes, at: int, end: int, now: float
    ) -> None:
        """Take the opened body data[at:end] of packet `number`; never raises for what a peer sent."""
        receiving = self.receiving
        if not receiving.is_new(number):
            return
        self.heard_at = now
        self.proven = True
        self.counters.packets_received += 1
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
        receiving.receive_number(number, now, eliciting=eliciting, urgent=urgent)

    def _receive_reply(self, data: bytes, at: int, end: int) -> int:
        _, status, nonce, length = wire.REPLY_HEAD.unpack_from(data, at)
        at += wire.REPLY_HEAD.size
        behind = at + length
        if behind > end or status not in (wire.REPLY_OK, wire.REPLY_FAILED):
            raise ValueError("REPLY block")
        if self.sending.receive_reply(nonce, status, data[at:behind]):
            self._progress()
        return behind

    def _receive_fragment(self, data: bytes, at: int, end: int) -> int:
        _, status, nonce, total, offset, length = wire.FRAGMENT_HEAD.unpack_from(data, at)
        at += wire.FRAGMENT_HEAD.size
        behind = at + length
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

    def _receive_received(self, received: wire.Received, now: float) -> None:
        recovery, congestion = self.recovery, self.congestion
        limited = self._window_limited or (
            congestion.slow_start and 2 * congestion.in_flight >= congestion.window
        )
        arrived, lost, spurious = recovery.receive_ranges(received.ranges, received.delay, now)
        if arrived:
            size = 0
            newest = 0.0
            for sent in arrived:
                size += sent.size
                newest = max(newest, sent.at)
                for item in sent.content:
                    if type(item) is Chunk:
                        item.received = True
                    elif type(item) is Piece:
                        if item.receive_arrival() and type(item.owner) is Reply:
                            self.receiving.receive_reply_arrival(item.owner)
                    else:
                        self._receive_control_arrival(item)
            if congestion.slow_start:
                congestion.on_rtt(
                    recovery.round_trip.latest, recovery.largest, recovery.next_number
                )
            congestion.on_acknowledged(size, newest, limited=limited)
            self._probes = 0
        if lost:
            self._receive_lost(lost, now)
        if spurious:
            congestion.on_spurious(spurious)

    def _receive_control_arrival(self, control: Control) -> None:
        receiving = self.receiving
        receiving.ack_base = max(receiving.ack_base, control.acknowledged)
        for reply in control.replies:
            receiving.receive_reply_arrival(reply)

    def _receive_lost(self, lost: list[Sent], now: float) -> None:
        size = count = 0
        newest = -math.inf
        for sent in lost:
            size += sent.size
            newest = sent.at
            count += 1
            self._send_again(sent)
        self.congestion.on_lost(size, count, newest, now)

    def _send_again(self, sent: Sent) -> None:
        receiving = self.receiving
        for item in sent.content:
            if type(item) is Control:
                for first, last in item.handled:
                    receiving.handled_pending.add(first, last)
                for reply in item.replies:
                    receiving.send_again(reply)
                self._credit_lost = self._credit_lost or item.credit
            elif type(item) is Chunk:
                if not item.received and item.remaining:
                    self.sending.retransmit.append(item)
            elif not item.needless:
                self.sending.retransmit.append(item)

    def _progress(self) -> None:
        self._asks = 0
        self._ask_at = None

    def receive_time(self, now: float) -> None:
        """Do what is due: declare losses, probe, ask."""
        recovery = self.recovery
        if recovery.loss_at is not None and now >= recovery.loss_at:
            lost = recovery.detect(now)
            if lost:
                self._receive_lost(lost, now)
        due = recovery.timeout_at()
        if due is not None and now >= due:
            recovery.receive_timeout()
            self.counters.timeouts += 1
            if recovery.timeouts >= TIMEOUTS_PERSISTENT:
                self.congestion.on_timeouts(now)
            self._probes = 1 if recovery.timeouts == 1 else 2
            self.tries += 1
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_pending = True
            self._ask_at = None
        keepalive = self._limits.keepalive
        if keepalive and now >= self.heard_at + keepalive and not recovery.in_flight:
            self._ask_pending = True

    # --- from the application

    def close(self) -> None:
        """Tell the peer that this session ends, with the next datagrams taken."""
        self._close_pending = True

    # --- to the world

    def next_deadline(self, now: float) -> float | None:
        """Return when `receive_time` and `take_datagrams` are to be called next."""
        recovery = self.recovery
        deadlines = [
            recovery.loss_at,
            recovery.timeout_at(),
            self.receiving.ack_due,
            self._blocked_until,
        ]
        if self.sending.open and not recovery.in_flight:
            if self._ask_at is None:
                self._ask_at = now + min(ASK_MIN * 2 ** min(self._asks, 8), ASK_MAX)
            deadlines.append(self._ask_at)
        else:
            self._ask_at = None
        if self._limits.keepalive and not recovery.in_flight:
            deadlines.append(self.heard_at + self._limits.keepalive)
        return min((at for at in deadlines if at is not None), default=None)

    def take_datagrams(self, now: float) -> list[bytes]:
        """Return all datagrams that may leave now, in order."""
        out: list[bytes] = []
        self._blocked_until = None
        if self._probes:
            self._take_probes(out, now)
        sending, receiving = self.sending, self.receiving
        if sending.retransmit or receiving.replies_waiting or sending.has_more:
            self._take_messages(out, now)
        else:
            self._window_limited = False
        if (
            self._ask_pending
            or self._close_pending
            or self._credit_lost
            or receiving.handled_pending
            or receiving.acknowledgement_wanted(now)
        ):
            self._take_control(out, now)
        return out

    def _take_probes(self, out: list[bytes], now: float) -> None:
        """Send again the oldest in flight, whatever the window: the answer tells what was lost."""
        before = len(self.sending.retransmit)
        for sent in self.recovery.oldest(self._probes):
            self._send_again(sent)
        items = self.sending.retransmit[before:]
        del self.sending.retransmit[before:]
        for item in items:
            self._send_item(item, out, now, again=True)
        if not items and not self.receiving.handled_pending and not self.receiving.replies_waiting:
            self._ask_pending = True
        self._probes = 0

    def _take_messages(self, out: list[bytes], now: float) -> None:
        congestion, pacer, sending = self.congestion, self.pacer, self.sending
        rtt = self.recovery.round_trip.smoothed or 0.1
        slow = congestion.slow_start
        budget = pacer.budget(now, congestion.window, rtt, slow_start=slow)
        spent = 0
        room = self._room
        self._window_limited = False
        while True:
            if congestion.in_flight >= congestion.window:
                self._window_limited = True
                break
            if spent >= budget:
                self._window_limited = True
                pacer.spend(spent)
                self._blocked_until = pacer.next_at(
                    congestion.window, rtt, congestion.unit, slow_start=slow
                )
                return
            item: Chunk | Piece | None = None
            again = False
            if sending.retransmit:
                item = sending.take_lost()
                again = item is not None
            if item is None and self.receiving.replies_waiting:
                spent += self._take_replies(out, now)
                continue
            if item is None:
                item = sending.take_new(room)
                if item is None:
                    break
            spent += self._send_item(item, out, now, again=again)
        pacer.spend(spent)

    def _send_item(self, item: Chunk | Piece, out: list[bytes], now: float, *, again: bool) -> int:
        """Send one chunk or piece; with it, what else there is to say, where it fits."""
        if type(item) is Chunk:
            if not item.payload:  # a large message is sent in pieces only
                return 0
            body = item.payload
            count = item.count
            item.transmissions += 1
        else:
            body = item.encode()  # type: ignore[union-attr]  # the other arm of the union
            count = 1 if item.offset == 0 else 0  # type: ignore[union-attr]
            item.owner.transmissions += 1 if item.offset == 0 else 0  # type: ignore[union-attr]
        content: tuple[object, ...] = (item,)
        receiving = self.receiving
        if receiving.ack_due is not None or receiving.handled_pending:
            # Only where no further message follows: trains of equal datagrams leave in one call.
            if not self.sending.has_more and not self._probes:
                extra, control = self._control_blocks(self._room - len(body), now)
                if extra:
                    body += extra
                    content = (item, control)
        counters = self.counters
        counters.messages_sent += count
        if again:
            counters.messages_again += count
            self.tries += 1
        return self._send(0, body, content, out, now)

    def _send(
        self,
        letter: int,
        body: bytes,
        content: tuple[object, ...] | None,
        out: list[bytes],
        now: float,
    ) -> int:
        recovery = self.recovery
        number = recovery.next_number
        datagram = self.seal.close(self._headers[letter] + number.to_bytes(8, "big"), body)
        size = len(datagram)
        if content is not None:
            recovery.on_sent(Sent(now, size, content))
            self.congestion.in_flight += size
        else:
            recovery.next_number = number + 1
        self.counters.packets_sent += 1
        out.append(datagram)
        return size

    def _take_replies(self, out: list[bytes], now: float) -> int:
        """Send one datagram of replies, or the pieces of one large reply."""
        receiving = self.receiving
        waiting = receiving.replies_waiting
        first = waiting[0]
        head = wire.REPLY_HEAD.size
        if head + len(first.data) > self._room:
            return self._cut_reply(out, now)
        parts: list[bytes] = []
        replies: list[Reply] = []
        extra, control = self._control_blocks(self._room - head - len(first.data), now)
        room = self._room - len(extra)
        for reply in waiting:
            room -= head + len(reply.data)
            if room < 0:
                break
            replies.append(reply)
            reply.sending = False
            if not reply.received:
                parts.append(
                    wire.REPLY_HEAD.pack(wire.REPLY, reply.status, reply.first, len(reply.data))
                )
                parts.append(reply.data)
        del waiting[: len(replies)]
        content = Control(control.handled, replies, control.acknowledged, control.credit)
        return self._send(1, b"".join((extra, *parts)), (content,), out, now)

    def _cut_reply(self, out: list[bytes], now: float) -> int:
        reply = self.receiving.replies_waiting.pop(0)
        # `sending` stays set: its pieces are sent again one by one, never the whole.
        step = self._room - wire.FRAGMENT_HEAD.size
        pieces: list[Chunk | Piece] = [
            Piece(reply, offset, min(step, len(reply.data) - offset))
            for offset in range(0, len(reply.data), step)
        ]
        self.sending.retransmit += pieces
        return 0

    def _control_blocks(self, room: int, now: float) -> tuple[bytes, Control]:
        """Return what fits of: what arrived, credit, what is handled, an ask; and its memory."""
        receiving = self.receiving
        parts: list[bytes] = []
        acknowledged = 0
        handled: list[tuple[int, int]] = []
        credit = False
        if receiving.ack_due is not None and room >= wire.RECEIVED_HEAD.size + wire.GAP.size * (
            min(len(receiving.numbers), wire.RANGES_MAX)
        ):
            delay, ranges = receiving.take_received(now)
            if ranges:
                block = wire.encode_received(delay, ranges)
                acknowledged = ranges[0][1]
                room -= len(block)
                parts.append(block)
        if receiving.handled_pending:
            fits = min((room - wire.HANDLED_HEAD.size) // wire.RANGE.size, HANDLED_RANGES_MAX)
            if fits > 0:
                handled = list(receiving.handled_pending)[:fits]
                block = wire.encode_handled(handled)
                if fits >= len(receiving.handled_pending):
                    receiving.handled_pending.remove_below(handled[-1][1] + 1)
                else:
                    receiving.handled_pending.remove(handled[0][0], handled[-1][1])
                room -= len(block)
                parts.append(block)
        if room >= wire.CREDIT_BLOCK.size:
            granted = receiving.next_credit()
            if granted is not None:
                receiving.grant(*granted)
            if granted is not None or self._credit_lost:
                credit = True
                self._credit_lost = False
                grant = (receiving.credit_messages, receiving.credit_bytes)
                parts.append(wire.CREDIT_BLOCK.pack(wire.CREDIT, *grant))
                room -= wire.CREDIT_BLOCK.size
        if self._ask_pending and room >= wire.ASK_BLOCK.size:
            self._ask_pending = False
            self._asks += 1
            self.tries += 1
            self.counters.asks += 1
            parts.append(wire.ASK_BLOCK.pack(wire.ASK, self.sending.floor))
        if self._close_pending and room > wire.ASK_BLOCK.size:
            self._close_pending = False
            parts.append(bytes([wire.CLOSE]))
        return b"".join(parts), Control(handled, [], acknowledged, credit)

    def _take_control(self, out: list[bytes], now: float) -> None:
        """Send acknowledgements of their own: no message was there to carry them."""
        while True:
            asking = self._ask_pending
            body, control = self._control_blocks(self._room, now)
            if not body:
                return
            eliciting = asking or control.handled or control.credit
            self._send(1, body, (control,) if eliciting else None, out, now)
            if not self.receiving.handled_pending and not self._close_pending:
                return
