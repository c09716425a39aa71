"""The packing of datagrams: messages, replies, acknowledgements, as many as may leave now.

Called by `core.datagram.session` whenever something may be said. What there is to say is asked of
both halves, and how much may leave of `core.datagram.flight`; here it is decided what goes into a
packet, and with what.
"""

from __future__ import annotations

from collections import deque

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Chunk, Control, Piece, Reply
from msgservice.core.datagram.flight import Flight
from msgservice.core.datagram.receiver import ReceivingHalf
from msgservice.core.datagram.sender import SendingHalf

# The heads of one message or reply, and of a RECEIVED block behind it.
ONE_BYTES_MAX = wire.RUN_OF_ONE.size + wire.RECEIVED_HEAD.size


class Packing:
    """The outgoing direction of a session: new messages, retransmissions, acknowledgements.

    `room`: bytes of a packet's body at most. `tried_at`: is told when retransmissions and asks go
    out.
    """

    __slots__ = (
        "_asks", "_close_pending", "_flight", "_head_bytes", "_receiving", "_room", "_sending",
        "_tried_at", "messages_again", "messages_sent",
    )  # fmt: skip

    def __init__(
        self,
        sending: SendingHalf,
        receiving: ReceivingHalf,
        flight: Flight,
        room: int,
        tried_at: deque[float],
    ) -> None:
        self.messages_again = 0
        self.messages_sent = 0
        self._sending = sending
        self._asks = sending.asks
        self._receiving = receiving
        self._flight = flight
        self._room = room
        self._head_bytes = flight.congestion.unit - room
        self._tried_at = tried_at
        self._close_pending = False

    def close(self) -> None:
        """Say with the next datagrams that the session ends."""
        self._close_pending = True

    def take_end(self, now: float) -> list[bytes]:
        """Return what is said last of all: everything that was handled, then that the session
        ends."""
        self._close_pending = True
        out: list[bytes] = []
        if self._receiving.asked:
            self._receiving.answer_asked()
        self._flight.catch_up()
        self._take_control(out, now)
        return out

    def take_datagrams(self, now: float) -> list[bytes]:
        """Return all datagrams that may leave now, in order."""
        out: list[bytes] = []
        sending, receiving, flight = self._sending, self._receiving, self._flight
        queue = sending.queue
        if receiving.asked:
            receiving.answer_asked()
        quiet = flight.begin()
        waiting = len(queue.bodies) - queue.head + len(receiving.replies_waiting)
        if waiting != 1 or not quiet or sending.cutting or not self._take_one(out, now):
            flight.catch_up()
            self._take_probes(out, now)
            if waiting or flight.has_lost or sending.cutting:
                self._take_messages(out, now)
        if (
            receiving.handled_pending
            or self._asks.wanted
            or self._close_pending
            or receiving.credit_lost
            or (receiving.ack_due is not None and receiving.acknowledgement_wanted(now))
        ):
            self._take_control(out, now)
        return out

    def _take_one(self, out: list[bytes], now: float) -> bool:
        """Send the only message or reply that waits; False where that needs more thought.

        A conversation of single requests spends most of its time here (bench/udp.py, rpc).
        """
        receiving = self._receiving
        content: Chunk | Reply
        if receiving.replies_waiting:
            reply = receiving.take_only_reply(self._room - ONE_BYTES_MAX)
            if reply is None:
                return False
            content = reply
            data = reply.data
            letter = 1
            body = wire.REPLY_HEAD.pack(wire.REPLY, reply.status, reply.first, len(data)) + data
        else:
            chunk = self._sending.take_only(self._room - ONE_BYTES_MAX)
            if chunk is None:
                return False
            content = chunk
            letter = 0
            body = chunk.payload
            self.messages_sent += 1
        if receiving.ack_due is not None and self._only_received:
            body += receiving.take_received(now)
        self._flight.send(letter, body, (content,), out, now)
        return True

    def _take_probes(self, out: list[bytes], now: float) -> None:
        """Send again the oldest in flight, whatever the window: the answer tells what was lost."""
        count, items = self._flight.take_probes()
        for item in items:
            self._send_item(item, out, now, again=True, alone=True)
        # An ASK is enough: its answer shows what is missing.
        receiving = self._receiving
        if count > 1 and receiving.largest:
            # Our acknowledgements may be what was lost: until one arrives, the other side waits
            # twice as long each time as well.
            receiving.ack_due = now
        if len(items) < count and (
            count > 1 or not (receiving.handled_pending or receiving.replies_waiting)
        ):
            self._asks.want()

    def _take_messages(self, out: list[bytes], now: float) -> None:
        flight, sending, receiving = self._flight, self._sending, self._receiving
        room = self._room
        while True:
            allowed = flight.allowance(now)
            if not allowed:
                break
            if flight.has_lost and (lost := flight.take_lost()) is not None:
                size = self._send_item(lost, out, now, again=True)
            elif receiving.replies_waiting:
                size = self._take_replies(out, now)
            elif (item := sending.take_new(room)) is not None:
                size = self._send_item(item, out, now, again=False)
            else:
                break
            first = flight.has_lost or receiving.replies_waiting or sending.cutting
            queue = sending.queue
            if queue.head < len(queue.bodies):
                if not first and allowed > size:
                    chunks = sending.take_run(room, allowed - size, self._head_bytes)
                    if chunks:
                        self.messages_sent += sending.next_nonce - chunks[0].first
                        size += flight.send_run(chunks, out, now)
            elif not first:
                flight.spend(size)
                break
            flight.spend(size)

    def _send_item(
        self,
        item: Chunk | Piece,
        out: list[bytes],
        now: float,
        *,
        again: bool,
        alone: bool = False,
    ) -> int:
        """Send one chunk or piece, and control blocks with it where they fit, unless `alone`."""
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
        self.messages_sent += count
        if again:
            self.messages_again += count
            self._tried_at.append(now)
        receiving = self._receiving
        content: tuple[object, ...] = (item,)
        if receiving.ack_due is not None or receiving.handled_pending:
            queue = self._sending.queue
            # Only where no further message follows: trains of equal datagrams leave in one call.
            if queue.head == len(queue.bodies) and not alone:
                if self._only_received and len(body) + wire.RECEIVED_HEAD.size <= self._room:
                    body += receiving.take_received(now)
                else:
                    extra, control = self._control_blocks(self._room - len(body), now)
                    if extra:
                        body += extra
                        content = (item, control)
        return self._flight.send(0, body, content, out, now)

    def _take_replies(self, out: list[bytes], now: float) -> int:
        """Send one datagram of replies, or cut a large reply into pieces."""
        receiving = self._receiving
        large = receiving.take_large_reply(self._room)
        if large is not None:
            self._flight.put(large.cut(self._room))
            return 0
        parts, replies, room = receiving.take_replies(self._room)
        if not replies:
            return 0  # all of them have arrived meanwhile
        content: list[object] = [*replies]
        if not receiving.replies_waiting:
            if receiving.ack_due is not None and self._only_received:
                if room >= wire.RECEIVED_HEAD.size:
                    parts.append(receiving.take_received(now))
            elif room > 0:
                extra, control = self._control_blocks(room, now)
                if extra:
                    parts.append(extra)
                    content.append(control)
        return self._flight.send(1, b"".join(parts), tuple(content), out, now)

    @property
    def _only_received(self) -> bool:
        """Whether all there is to say besides messages is one range of packets that arrived."""
        receiving = self._receiving
        return not (
            receiving.older
            or receiving.handled_pending
            or self._asks.wanted
            or receiving.credit_lost
            or self._close_pending
            or receiving.credit_wanted
        )

    def _control_blocks(self, room: int, now: float) -> tuple[bytes, Control]:
        """Return the control blocks that fit (RECEIVED, HANDLED, credit, an ask), and a note."""
        receiving = self._receiving
        parts: list[bytes] = []
        acknowledged = 0
        handled: list[tuple[int, int]] = []
        credit = False
        if receiving.ack_due is not None and room >= receiving.received_bytes:
            acknowledged = receiving.largest
            parts.append(receiving.take_received(now))
            room -= len(parts[-1])
        if receiving.handled_pending:
            handled = receiving.take_handled(room)
            if handled:
                parts.append(wire.encode_handled(handled))
                room -= len(parts[-1])
        if room >= wire.CREDIT_BLOCK.size and (receiving.credit_lost or receiving.credit_wanted):
            credit = True
            parts.append(receiving.take_credit())
            room -= wire.CREDIT_BLOCK.size
        if self._asks.wanted and room >= wire.ASK_BLOCK.size:
            self._tried_at.append(now)
            parts.append(self._sending.take_ask())
            room -= wire.ASK_BLOCK.size
        return b"".join(parts), Control(handled, acknowledged, credit)

    def _take_control(self, out: list[bytes], now: float) -> None:
        """Send acknowledgements of their own: no message was there to carry them."""
        receiving = self._receiving
        while True:
            asking = self._asks.wanted
            body, control = self._control_blocks(self._room, now)
            # Behind all else: whoever hears it hears nothing of this session any more.
            if self._close_pending and not receiving.handled_pending and len(body) < self._room:
                self._close_pending = False
                body += bytes([wire.CLOSE])
            if not body:
                return
            eliciting = asking or control.handled or control.credit
            self._flight.send(1, body, (control,) if eliciting else None, out, now)
            if not receiving.handled_pending and not self._close_pending:
                return
