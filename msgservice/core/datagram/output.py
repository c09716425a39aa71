"""What leaves a session: messages, replies, acknowledgements, as many as may leave now.

Called by `core.datagram.endpoint` whenever something may be said. How much may leave is decided
here, by the congestion window, the pacer and the peer's credit; what is lost, in
`core.datagram.recovery`.
"""

from __future__ import annotations

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Chunk, Piece, Reply
from msgservice.core.datagram.input import SessionInput
from msgservice.core.datagram.state import Control

HANDLED_RANGES_MAX = 48
# Asks that are remembered, to count those for each message: more `retries` than that are not told
# apart.
ASKED_MAX = 256
# Datagrams that may leave without pacing when little is in flight.
UNPACED = 4
# The heads of one message or reply, and of a RECEIVED block behind it.
ONE_BYTES_MAX = wire.RUN_OF_ONE.size + wire.RECEIVED_HEAD.size


class SessionOutput(SessionInput):
    """The outgoing direction of a session: packets, retransmissions, acknowledgements."""

    __slots__ = ()

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
        """Send one chunk or piece, and control blocks with it where they fit."""
        counters = self.counters
        if type(item) is Chunk:
            body = item.payload
            count = item.count
            item.transmissions += 1
        else:
            assert type(item) is Piece
            body = item.encode()
            count = int(item.offset == 0)
            if count or again:
                item.owner.transmissions += 1
        counters.messages_sent += count
        if again:
            counters.messages_again += count
            self.tried_at.append(now)
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

    def _control_blocks(self, room: int, now: float) -> tuple[bytes, Control]:
        """Return the control blocks that fit (RECEIVED, credit, HANDLED, an ask), and a note."""
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
            self.tried_at.append(now)
            floor = self.sending.floor
            self.asked = [end for end in self.asked[1 - ASKED_MAX :] if end > floor]
            self.asked.append(self.sending.next_nonce)
            self.counters.asks += 1
            parts.append(wire.ASK_BLOCK.pack(wire.ASK, floor))
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
