"""One session between two addresses: both halves, packets in both directions, and their timers.

Called by `core.datagram`, which owns the handshake and knows the addresses. Datagrams go in
through `receive_packet`, come out of `take_datagrams`; `next_deadline` says when to call
`receive_time`. Everything that asks for an acknowledgement is kept in `Recovery` until it arrived
or is lost; what was in it is then sent again in a new packet, if it is still needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgservice.core import datagram_wire as wire
from msgservice.core.congestion import NewReno, Pacer
from msgservice.core.datagram_limits import DatagramLimits
from msgservice.core.datagram_reassembly import Reassembly
from msgservice.core.datagram_receiver import NotTaken, ReceivingHalf
from msgservice.core.datagram_sender import Answer, Chunk, Piece, Reply, SendingHalf, SendQueue
from msgservice.core.recovery import ACK_DELAY_MAX, TIMEOUTS_PERSISTENT, Recovery, Sent

# Asking after messages that arrived and are not handled: 2 s, doubling to 60 s (PROTOCOL §UDP).
ASK_MIN = 2.0
ASK_MAX = 60.0
HANDLED_RANGES_MAX = 48
# Datagrams that may leave without pacing when little is in flight.
UNPACED = 4
# The heads of one message or reply, and of a RECEIVED block behind it.
ONE_BYTES_MAX = wire.RUN_OF_ONE.size + wire.RECEIVED_HEAD.size
DELAY_MAX = 0xFFFFFFFF  # microseconds, of a RECEIVED block


class Control(NamedTuple):
    """What a packet carried besides messages and replies, to be told again if it is lost."""

    handled: list[tuple[int, int]]
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
        "_late",
        "_late_sessions",
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
        late_sessions: list[Session],
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
        # An acknowledgement that is looked at after what is to be said was sent: see `catch_up`.
        self._late: tuple[wire.Received, float] | None = None
        self._late_sessions = late_sessions
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
        """Take the opened body data[at:end] of packet `number`; never raises for what a peer
        sent."""
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
        self.congestion.on_lost(size, len(lost), lost[-1][0], now)

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

    def _progress(self) -> None:
        self._asks = 0
        self._ask_at = None

    def receive_time(self, now: float) -> None:
        """Do what is due: declare losses, probe, ask."""
        self.catch_up()
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

    @property
    def urgent_deadline(self) -> bool:
        """Whether something may be due earlier than an acknowledgement's delay from now."""
        return self._blocked_until is not None or self.recovery.loss_at is not None

    def next_deadline(self, now: float) -> float | None:
        """Return when `receive_time` and `take_datagrams` are to be called next."""
        self.catch_up()
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
        sending, receiving = self.sending, self.receiving
        queue = sending.queue
        self._blocked_until = None
        waiting = len(queue.bodies) - queue.head + len(receiving.replies_waiting)
        busy = self._probes or sending.retransmit or sending.cutting
        if waiting != 1 or busy or not self._take_one(out, now):
            if self._late is not None:
                self.catch_up()
            if self._probes:
                self._take_probes(out, now)
            if waiting or sending.retransmit or sending.cutting:
                self._take_messages(out, now)
            else:
                self._window_limited = False
        if (
            receiving.handled_pending
            or self._ask_pending
            or self._close_pending
            or self._credit_lost
            or (receiving.ack_due is not None and receiving.acknowledgement_wanted(now))
        ):
            self._take_control(out, now)
        return out

    def _take_one(self, out: list[bytes], now: float) -> bool:
        """Send the only message or reply that waits; False where that needs more thought.

        A conversation of single requests spends most of its time here (bench/udp.py, rpc).
        """
        congestion, sending, receiving = self.congestion, self.sending, self.receiving
        if congestion.in_flight >= UNPACED * congestion.unit or (
            congestion.in_flight >= congestion.window
        ):
            return False
        content: Chunk | Reply
        if receiving.replies_waiting:
            content = reply = receiving.replies_waiting[0]
            data = reply.data
            if reply.received or len(data) + ONE_BYTES_MAX > self._room:
                return False
            receiving.replies_waiting.clear()
            reply.sending = False
            letter = 1
            body = wire.REPLY_HEAD.pack(wire.REPLY, reply.status, reply.first, len(data)) + data
        else:
            queue, nonce = sending.queue, sending.next_nonce
            data = queue.bodies[queue.head]
            size = len(data)
            if (
                size + ONE_BYTES_MAX > self._room
                or nonce > sending.credit_messages
                or sending.packed_bytes + size > sending.credit_bytes
            ):
                return False
            letter = 0
            body = wire.RUN_OF_ONE.pack(wire.RUN, 1, nonce, size) + data
            content = chunk = Chunk(nonce, queue.tokens[queue.head :], body, None)
            chunk.transmissions = 1
            sending.firsts.append(nonce)
            sending.chunks.append(chunk)
            sending.next_nonce = nonce + 1
            sending.open += 1
            sending.packed_bytes += size
            queue.waiting_bytes -= size
            queue.bodies.clear()
            queue.tokens.clear()
            queue.head = 0
            self.counters.messages_sent += 1
        self._window_limited = False
        if receiving.ack_due is not None and self._only_received:
            body += self._received_block(now)
        self._send(letter, body, (content,), out, now)
        return True

    def _take_probes(self, out: list[bytes], now: float) -> None:
        """Send again the oldest in flight, whatever the window: the answer tells what was lost."""
        before = len(self.sending.retransmit)
        for sent in self.recovery.oldest(self._probes):
            self._send_again(sent)
        items = self.sending.retransmit[before:]
        del self.sending.retransmit[before:]
        for item in items:
            self._send_item(item, out, now, again=True)
        # Two probes at a repeated timeout (RFC 9002 §6.2.4): with one, and half of all exchanges
        # lost, the doubling waits have no finite mean. An ASK is enough: its answer shows what is
        # missing.
        receiving = self.receiving
        if len(items) < self._probes and (
            self._probes > 1 or not (receiving.handled_pending or receiving.replies_waiting)
        ):
            self._ask_pending = True
        self._probes = 0

    def _take_messages(self, out: list[bytes], now: float) -> None:
        congestion, sending, receiving = self.congestion, self.sending, self.receiving
        self._window_limited = False
        # A few datagrams into an empty path are no burst: they need no pacing, and no arithmetic.
        budget: float = UNPACED * congestion.unit - congestion.in_flight
        paced = False
        spent = 0
        room = self._room
        while True:
            if congestion.in_flight >= congestion.window:
                self._window_limited = True
                break
            if spent >= budget:
                if paced:
                    self._window_limited = True
                    self._blocked_until = self.pacer.next_at(congestion.unit)
                    break
                paced = True
                budget = spent + self.pacer.budget(
                    now,
                    congestion.window,
                    self.recovery.round_trip.smoothed,
                    slow_start=congestion.slow_start,
                )
                continue
            if sending.retransmit and (lost := sending.take_lost()) is not None:
                size = self._send_item(lost, out, now, again=True)
            elif receiving.replies_waiting:
                size = self._take_replies(out, now)
            elif (item := sending.take_new(room)) is not None:
                size = self._send_item(item, out, now, again=False)
            else:
                break
            spent += size
            if paced:
                self.pacer.spend(size)
            queue = sending.queue
            if queue.head < len(queue.bodies):
                if not (sending.retransmit or receiving.replies_waiting or sending.cutting):
                    size = self._take_run(out, now, budget - spent)
                    spent += size
                    if paced:
                        self.pacer.spend(size)
            elif not (sending.retransmit or receiving.replies_waiting or sending.cutting):
                break

    def _take_run(self, out: list[bytes], now: float, budget: float) -> int:
        """Send whole datagrams of new messages while there is room; return their bytes.

        The same as `take_new` and `_send_item` for each, in one loop with everything at hand, which
        takes half the time (bench/udp.py, many_256). What needs care is left to them: large
        messages, the end of the queue, and where credit or `budget` ends.
        """
        sending, recovery, congestion = self.sending, self.recovery, self.congestion
        queue = sending.queue
        bodies, tokens, head = queue.bodies, queue.tokens, queue.head
        # The last datagram may have room for an acknowledgement.
        total = len(bodies) - 1
        nonce, number = sending.next_nonce, recovery.next_number
        credit, window = sending.credit_messages, congestion.window
        packed, packed_max = sending.packed_bytes, sending.credit_bytes
        flying, in_flight = congestion.in_flight, recovery.in_flight
        close, prefix = self.seal.close, self._headers[0]
        room, head_bytes = self._room, wire.RUN_HEAD.size
        pack_head, lengths_struct = wire.RUN_HEAD.pack, wire.lengths_struct
        join = b"".join
        started, spent, counted = number, 0, 0
        while head < total and flying < window and spent < budget:
            stop = min(total, head + wire.RUN_COUNT_MAX, head + credit - nonce + 1)
            end = head
            left = room - head_bytes
            lengths: list[int] = []
            while end < stop:
                size = len(bodies[end])
                left -= size + 2
                if left < 0:
                    break
                lengths.append(size)
                end += 1
            if left >= 0 or end == head:
                break
            packed += sum(lengths)
            if packed > packed_max:
                packed -= sum(lengths)
                break
            count = end - head
            payload = join(
                (
                    pack_head(wire.RUN, count, nonce),
                    lengths_struct(count).pack(*lengths),
                    *bodies[head:end],
                )
            )
            datagram = close(prefix + number.to_bytes(8, "big"), payload)
            chunk = Chunk(nonce, tokens[head:end], payload, None)
            chunk.transmissions = 1
            sending.firsts.append(nonce)
            sending.chunks.append(chunk)
            size = len(datagram)
            in_flight[number] = (now, size, (chunk,))
            out.append(datagram)
            flying += size
            spent += size
            counted += count
            nonce += count
            number += 1
            head = end
        if counted:
            queue.waiting_bytes -= packed - sending.packed_bytes
            queue.head = head
            queue.drop_taken()
            sending.packed_bytes = packed
            sending.next_nonce = nonce
            sending.open += counted
            recovery.next_number = number
            recovery.last_sent_at = now
            congestion.in_flight = flying
            self.counters.messages_sent += counted
            self.counters.packets_sent += number - started
        return spent

    def _send_item(self, item: Chunk | Piece, out: list[bytes], now: float, *, again: bool) -> int:
        """Send one chunk or piece; with it, what else there is to say, where it fits."""
        counters = self.counters
        if type(item) is Chunk:
            body = item.payload
            count = item.count
            item.transmissions += 1
        else:
            assert type(item) is Piece
            body = item.encode()
            count = 0
            if item.offset == 0:
                count = 1
                item.owner.transmissions += 1
        counters.messages_sent += count
        if again:
            counters.messages_again += count
            self.tries += 1
        receiving = self.receiving
        content: tuple[object, ...] = (item,)
        if receiving.ack_due is not None or receiving.handled_pending:
            queue = self.sending.queue
            # Only where no further message follows: trains of equal datagrams leave in one call.
            if queue.head == len(queue.bodies) and not self._probes:
                if self._only_received and len(body) + wire.RECEIVED_HEAD.size <= self._room:
                    body += self._received_block(now)
                else:
                    extra, control = self._control_blocks(self._room - len(body), now)
                    if extra:
                        body += extra
                        content = (item, control)
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
            recovery.in_flight[number] = (now, size, content)
            recovery.last_sent_at = now
            self.congestion.in_flight += size
        recovery.next_number = number + 1
        self.counters.packets_sent += 1
        out.append(datagram)
        return size

    def _take_replies(self, out: list[bytes], now: float) -> int:
        """Send one datagram of replies, or cut a large reply into pieces."""
        receiving = self.receiving
        waiting = receiving.replies_waiting
        head = wire.REPLY_HEAD.size
        if head + len(waiting[0].data) > self._room:
            self._cut_reply(waiting.pop(0))
            return 0
        parts: list[bytes] = []
        content: list[object] = []
        room = self._room
        count = 0
        for reply in waiting:
            data = reply.data
            room -= head + len(data)
            if room < 0:
                break
            count += 1
            reply.sending = False
            if not reply.received:
                content.append(reply)
                parts.append(wire.REPLY_HEAD.pack(wire.REPLY, reply.status, reply.first, len(data)))
                parts.append(data)
        if count == len(waiting):
            waiting.clear()
            if receiving.ack_due is not None and self._only_received:
                if room >= wire.RECEIVED_HEAD.size:
                    parts.append(self._received_block(now))
            elif room > 0:
                extra, control = self._control_blocks(room, now)
                if extra:
                    parts.append(extra)
                    content.append(control)
        else:
            del waiting[:count]
        if not content:
            return 0
        return self._send(1, b"".join(parts), tuple(content), out, now)

    def _cut_reply(self, reply: Reply) -> None:
        # `sending` stays set: its pieces are sent again one by one, never the whole.
        step = self._room - wire.FRAGMENT_HEAD.size
        self.sending.retransmit += [
            Piece(reply, offset, min(step, len(reply.data) - offset))
            for offset in range(0, len(reply.data), step)
        ]

    @property
    def _only_received(self) -> bool:
        """Whether all there is to say besides messages is one range of packets that arrived."""
        receiving = self.receiving
        return not (
            receiving.older
            or receiving.handled_pending
            or self._ask_pending
            or self._credit_lost
            or self._close_pending
            or receiving.credit_wanted
        )

    def _received_block(self, now: float) -> bytes:
        receiving = self.receiving
        receiving.unacknowledged = 0
        receiving.ack_due = None
        receiving.ack_now = False
        largest = receiving.largest
        return wire.RECEIVED_HEAD.pack(
            wire.RECEIVED,
            0,
            min(int((now - receiving.largest_at) * 1e6), DELAY_MAX),
            largest,
            largest - receiving.run_first + 1,
        )

    def _control_blocks(self, room: int, now: float) -> tuple[bytes, Control]:
        """Return what fits of: what arrived, credit, what is handled, an ask; and its memory."""
        receiving = self.receiving
        parts: list[bytes] = []
        acknowledged = 0
        handled: list[tuple[int, int]] = []
        credit = False
        if receiving.ack_due is not None and room >= wire.RECEIVED_HEAD.size + wire.GAP.size * min(
            len(receiving.older), wire.RANGES_MAX
        ):
            acknowledged = receiving.largest
            if not receiving.older:
                block = self._received_block(now)
            else:
                delay = max(0.0, now - receiving.largest_at)
                block = wire.encode_received(delay, receiving.take_ranges())
            room -= len(block)
            parts.append(block)
        if receiving.handled_pending:
            fits = min((room - wire.HANDLED_HEAD.size) // wire.RANGE.size, HANDLED_RANGES_MAX)
            if fits > 0:
                handled = list(receiving.handled_pending)[:fits]
                block = wire.encode_handled(handled)
                receiving.handled_pending.remove_below(handled[-1][1] + 1)
                room -= len(block)
                parts.append(block)
        if room >= wire.CREDIT_BLOCK.size and (self._credit_lost or receiving.credit_wanted):
            if receiving.credit_wanted:
                receiving.grant()
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
            room -= wire.ASK_BLOCK.size
        if self._close_pending and room > 0:
            self._close_pending = False
            parts.append(bytes([wire.CLOSE]))
        return b"".join(parts), Control(handled, acknowledged, credit)

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
