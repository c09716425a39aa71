"""The receiving half of a session: what arrived, what was taken, what was handled.

Called by `core.datagram.session` with what comes, and by `core.datagram.packing` for what is to be
said of it. Three sets, each of which only grows during a session: packet
numbers that arrived (for acknowledgements and against replays), nonces taken (so a repeat is not
handed on again), nonces handled (so a repeat is answered again). Replies are remembered until they
arrived. What is asked after is noted, and looked up once before the next datagrams leave, however
many blocks ask. Memory: taken and not handled is bounded by the credit granted; packet ranges by
NUMBER_RANGES_MAX.

Fields without an underscore are read by others, and changed here only.
"""

from __future__ import annotations

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Control, Reply
from msgservice.core.datagram.limits import REPLY_COST, DatagramLimits
from msgservice.core.datagram.reassembly import Reassembly
from msgservice.core.datagram.recovery import ACK_DELAY_MAX
from msgservice.core.ranges import RangeSet

# Ranges of packet numbers kept; a packet below the lowest kept one counts as a replay.
NUMBER_RANGES_MAX = 256
# A sender numbers its packets one by one: further ahead is none of its own, and a gap as long
# could not be told in a RECEIVED block.
NUMBER_JUMP_MAX = 2**31
# Packets with messages that are acknowledged together at most, where time allows it (RFC 9000
# §13.2.2).
ACK_EVERY = 2
HANDLED_RANGES_MAX = 48
DELAY_MAX = 0xFFFFFFFF  # microseconds, of a RECEIVED block


class NotTaken(Exception):  # internal to the core: an outcome, no error of a peer
    """More than was granted; the packet stays unacknowledged and will be sent again."""


# Consecutive messages, new in this session: the first nonce, the bodies, and their bytes in all.
Delivery = tuple[int, list[bytes], int]


class ReceivingHalf:
    """Marks of one session about what its peer sent."""

    __slots__ = (
        "_again",
        "_floor",
        "_held",
        "_limits",
        "_next_delivery",
        "ack_base",
        "ack_due",
        "ack_now",
        "asked",
        "credit_at",
        "credit_bytes",
        "credit_bytes_at",
        "credit_lost",
        "credit_messages",
        "deliveries",
        "duplicates",
        "forgotten",
        "handled",
        "handled_bytes",
        "handled_messages",
        "handled_pending",
        "largest",
        "largest_at",
        "next_nonce",
        "older",
        "ordered",
        "reassembly",
        "replies",
        "replies_waiting",
        "reply_bytes",
        "reply_bytes_max",
        "run_first",
        "taken",
        "taken_bytes",
        "unacknowledged",
    )  # fmt: skip

    def __init__(self, limits: DatagramLimits, *, ordered: bool) -> None:
        self._limits = limits
        self.ordered = ordered
        # Packets that arrived: run_first to largest, and older; up to `forgotten` all count as
        # such.
        self.largest = 0
        self.run_first = 1
        self.older = RangeSet()
        self.forgotten = 0
        self.largest_at = 0.0
        self.unacknowledged = 0  # packets with messages or replies since the last acknowledgement
        self.ack_due: float | None = None
        self.ack_now = False
        self.ack_base = 0  # the peer knows what became of all packets up to here
        self.next_nonce = 1  # all below were taken
        self.taken = RangeSet()  # above next_nonce
        self.taken_bytes = 0
        self.handled = RangeSet()  # but those whose reply is remembered
        self.handled_pending = RangeSet()
        self.handled_messages = 0
        self.handled_bytes = 0
        self.credit_messages = self.credit_bytes = 0
        self.credit_at = self.credit_bytes_at = 0
        self.credit_lost = False  # what was granted last is not known there: it is said again
        self.grant()
        # What is to be answered again, and below what the peer has settled all.
        self.asked = False
        self._again = RangeSet()
        self._floor = 1
        self.replies: dict[int, Reply] = {}
        self.replies_waiting: list[Reply] = []
        self.reply_bytes = 0  # with what they cost besides
        self.reply_bytes_max = limits.reply_bytes
        self.deliveries: list[Delivery] = []
        self.duplicates = 0
        self.reassembly = Reassembly(limits.window_bytes + limits.message_bytes)
        # Ordered sessions hold back what came before its turn.
        self._held: dict[int, Delivery] = {}
        self._next_delivery = 1

    # --- packets

    def is_new(self, number: int) -> bool:
        """Whether the packet may be processed: not seen before, not too old to know, and not of a
        far future."""
        if number > self.largest:
            return number - self.largest <= NUMBER_JUMP_MAX
        return number < self.run_first and number > self.forgotten and number not in self.older

    def receive_number(self, number: int, now: float, *, eliciting: bool, urgent: bool) -> None:
        """Mark a packet as arrived.

        `eliciting`: asks for an acknowledgement; `urgent`: carries messages or replies.
        """
        if number == self.largest + 1:
            self.largest = number
            self.largest_at = now
        else:
            self._receive_out_of_order(number, now)
            if eliciting:
                self.ack_now = True  # a gap, or its end: tell at once, so that loss is found early
        if eliciting:
            if urgent:
                self.unacknowledged += 1
            if self.ack_due is None:
                self.ack_due = now + ACK_DELAY_MAX

    def _receive_out_of_order(self, number: int, now: float) -> None:
        older = self.older
        if number > self.largest:
            if self.largest >= self.run_first:
                older.add(self.run_first, self.largest)
            self.run_first = self.largest = number
            self.largest_at = now
        else:
            older.add(number, number)
            if older.last == self.run_first - 1:
                first, last = list(older)[-1]
                self.run_first = first
                older.remove(first, last)
        if len(older) > NUMBER_RANGES_MAX:
            lowest = next(iter(older))
            older.remove(*lowest)
            self.forgotten = lowest[1]

    @property
    def owes(self) -> bool:
        """Whether a message that was taken is not handled yet."""
        return self.next_nonce - 1 + self.taken.count > self.handled_messages

    @property
    def received_bytes(self) -> int:
        """The size of a RECEIVED block of what arrived, at most."""
        return wire.RECEIVED_HEAD.size + wire.GAP.size * min(len(self.older), wire.RANGES_MAX)

    def take_received(self, now: float) -> bytes:
        """Return a RECEIVED block of what arrived, newest first, and count it as told."""
        self.unacknowledged = 0
        self.ack_due = None
        self.ack_now = False
        largest = self.largest
        older = self.older
        if not older:
            return wire.RECEIVED_HEAD.pack(
                wire.RECEIVED,
                0,
                min(int((now - self.largest_at) * 1e6), DELAY_MAX),
                largest,
                largest - self.run_first + 1,
            )
        base = self.ack_base
        told = [pair for pair in older if pair[1] >= base][1 - wire.RANGES_MAX :]
        ranges = [(self.run_first, largest), *reversed(told)]
        return wire.encode_received(max(0.0, now - self.largest_at), ranges)

    def receive_told(self, acknowledged: int) -> None:
        """Take note that the other side knows what became of all packets up to this one."""
        if acknowledged > self.ack_base:
            self.ack_base = acknowledged

    def receive_untold(self, control: Control) -> None:
        """Take note that control blocks were lost: they are to be sent anew."""
        for first, last in control.handled:
            self.handled_pending.add(first, last)
        self.credit_lost = self.credit_lost or control.credit

    def acknowledgement_wanted(self, now: float) -> bool:
        """Whether an acknowledgement is to leave now rather than wait for company."""
        return self.ack_due is not None and (
            self.ack_now or self.unacknowledged >= ACK_EVERY or now >= self.ack_due
        )

    # --- messages

    def receive_run(self, first: int, bodies: list[bytes], size: int) -> None:
        """Take the messages of a run that are new; answer the others again."""
        last = first + len(bodies) - 1
        if last > self.credit_messages:
            self._check_credit(last)
        if first == self.next_nonce and not self.taken:
            if self.taken_bytes + size > self.credit_bytes:
                self._check_bytes(size)
            self.next_nonce = last + 1
            self.taken_bytes += size
            if self.ordered:
                self._hold((first, bodies, size))
            else:
                self.deliveries.append((first, bodies, size))
            return
        self._receive_parts(first, last, bodies)

    def _check_credit(self, last: int) -> None:
        # One message may always come when nothing is open, whatever the credit.
        if last > self.handled_messages + max(1, self._limits.window_messages):
            raise NotTaken

    def _check_bytes(self, size: int) -> None:
        if self.taken_bytes > self.handled_bytes and (
            self.taken_bytes + size > self.credit_bytes + self._limits.message_bytes
        ):
            raise NotTaken

    def _receive_parts(self, first: int, last: int, bodies: list[bytes]) -> None:
        news = [
            (low, high)
            for low, high in self.taken.missing(max(first, self.next_nonce), last)
            if low <= high
        ]
        new = sum(high - low + 1 for low, high in news)
        if new < len(bodies):
            self._answer_again(first, last, len(bodies) - new)
        for low, high in news:
            part = bodies[low - first : high - first + 1]
            self._take(low, high, part, sum(map(len, part)))

    def _take(self, first: int, last: int, bodies: list[bytes], size: int) -> None:
        self._check_bytes(size)
        self.taken_bytes += size
        self.taken.add(first, last)
        if self.taken.first == self.next_nonce:
            self.next_nonce = next(iter(self.taken))[1] + 1
            self.taken.remove_below(self.next_nonce)
        delivery: Delivery = (first, bodies, size)
        if self.ordered:
            self._hold(delivery)
        else:
            self.deliveries.append(delivery)

    def _hold(self, delivery: Delivery) -> None:
        held = self._held
        held[delivery[0]] = delivery
        self._release()

    def _release(self) -> None:
        held = self._held
        while (found := held.pop(self._next_delivery, None)) is not None:
            self.deliveries.append(found)
            self._next_delivery = found[0] + len(found[1])

    def _answer_again(self, first: int, last: int, count: int) -> None:
        self.duplicates += count
        self.ack_now = True
        self.asked = True
        self._again.add(first, last)

    def answer_asked(self) -> None:
        """Let the handled nonces that were asked after be answered again: the first reply, while
        remembered. Forget the replies that the peer has settled."""
        self.asked = False
        again, self._again = self._again, RangeSet()
        self.forget_settled()
        self.handled_pending.remove_below(self._floor)
        for first, last in again:
            for low, high in self.handled.within(first, last):
                self.handled_pending.add(low, high)
        for nonce, reply in self.replies.items():
            if nonce in again:
                self.send_again(reply)

    def forget_settled(self) -> None:
        """Forget the replies that the peer says it has settled."""
        floor = self._floor
        for nonce in [nonce for nonce in self.replies if nonce < floor]:
            self.receive_reply_arrival(self.replies[nonce])

    def send_again(self, reply: Reply) -> None:
        """Let a reply leave once more, unless it is about to, or has arrived."""
        if not reply.sending and not reply.received:
            reply.sending = True
            self.replies_waiting.append(reply)

    def receive_fragment(self, nonce: int, total: int, offset: int, data: bytes) -> None:
        """Take a piece of a large message; ValueError where it contradicts the others."""
        if not total:
            raise ValueError("total of a fragment")
        if total > self._limits.message_bytes:
            raise NotTaken  # before it is known who speaks; for good, or until then
        if nonce < self.next_nonce or nonce in self.taken:
            self._answer_again(nonce, nonce, 1)
            return
        if nonce > self.credit_messages:
            self._check_credit(nonce)
        if nonce not in self.reassembly:
            waiting = self.taken_bytes - self.handled_bytes + self.reassembly.promised
            if waiting and waiting + total > self._limits.window_bytes + self._limits.message_bytes:
                raise NotTaken
        whole = self.reassembly.receive(nonce, total, offset, data)
        if whole is not None:
            self._take(nonce, nonce, [whole], len(whole))

    # --- answers

    def handle(self, first: int, last: int, size: int) -> None:
        """Mark nonces as handled with an empty reply; `size` bytes of bodies become free."""
        self.handled.add(first, last)
        self.handled_pending.add(first, last)
        self.handled_messages += last - first + 1
        self.handled_bytes += size

    def reply(self, nonce: int, status: int, body: bytes, size: int) -> None:
        """Mark one nonce as handled with this reply, remembered until it arrived."""
        self.handled_messages += 1
        self.handled_bytes += size
        reply = Reply(nonce, status, body)
        reply.sending = True
        self.replies[nonce] = reply
        self.replies_waiting.append(reply)
        self.reply_bytes += len(body) + REPLY_COST

    def receive_reply_arrival(self, reply: Reply) -> None:
        """Forget a reply: the peer has it."""
        if not reply.received:
            reply.received = True
            if self.replies.pop(reply.first, None) is not None:
                self.reply_bytes -= len(reply.data) + REPLY_COST
                self.handled.add(reply.first, reply.first)

    def receive_ask(self, floor: int) -> None:
        """Acknowledge again what is handled from `floor` on; the peer has settled all below."""
        self._floor = max(self._floor, floor)
        self._again.add(floor, self.next_nonce)
        self.asked = True
        self.ack_now = True

    def take_deliveries(self) -> list[Delivery]:
        """Return the messages that came and were not taken yet."""
        deliveries, self.deliveries = self.deliveries, []
        return deliveries

    def hold(self, deliveries: list[Delivery]) -> None:
        """Take back messages that are not to be handled yet: the replies to others are unread."""
        self.deliveries = sorted(deliveries + self.deliveries)

    def take_handled(self, room: int) -> list[tuple[int, int]]:
        """Return ranges of handled nonces for a HANDLED block that fits `room` bytes."""
        fits = min((room - wire.HANDLED_HEAD.size) // wire.RANGE.size, HANDLED_RANGES_MAX)
        if fits <= 0:
            return []
        handled = self.handled_pending.lowest(fits)
        self.handled_pending.remove_below(handled[-1][1] + 1)
        return handled

    def take_only_reply(self, room: int) -> Reply | None:
        """Return the only reply that waits, or None where that needs more thought: it has arrived,
        or its body has no `room`."""
        reply = self.replies_waiting[0]
        if reply.received or len(reply.data) > room:
            return None
        self.replies_waiting.clear()
        reply.sending = False
        return reply

    def take_large_reply(self, room: int) -> Reply | None:
        """Return the first reply that waits, if it fits no packet of `room` bytes."""
        if wire.REPLY_HEAD.size + len(self.replies_waiting[0].data) <= room:
            return None
        return self.replies_waiting.pop(0)

    def take_replies(self, room: int) -> tuple[list[bytes], list[Reply], int]:
        """Return REPLY blocks that fit `room` bytes together, whose they are, and the room left;
        those that have arrived are left out."""
        waiting = self.replies_waiting
        head = wire.REPLY_HEAD.size
        parts: list[bytes] = []
        replies: list[Reply] = []
        count = 0
        for reply in waiting:
            data = reply.data
            left = room - head - len(data)
            if left < 0:
                break
            room = left
            count += 1
            reply.sending = False
            if not reply.received:
                replies.append(reply)
                parts.append(wire.REPLY_HEAD.pack(wire.REPLY, reply.status, reply.first, len(data)))
                parts.append(data)
        del waiting[:count]
        return parts, replies, room

    def take_credit(self) -> bytes:
        """Return a CREDIT block: of more, where there is room for it."""
        if self.credit_wanted:
            self.grant()
        self.credit_lost = False
        return wire.CREDIT_BLOCK.pack(wire.CREDIT, self.credit_messages, self.credit_bytes)

    @property
    def credit_wanted(self) -> bool:
        """Whether a quarter of the window more could be granted than was."""
        return (
            self.handled_messages >= self.credit_at or self.handled_bytes >= self.credit_bytes_at
        ) and self.reply_bytes <= self.reply_bytes_max  # replies pile up unread: grant no more

    def establish(self, limits: DatagramLimits) -> None:
        """Take as much from now on as these limits have, and say so."""
        if limits is not self._limits:
            self._limits = limits
            self.reassembly.raise_to(limits.window_bytes + limits.message_bytes)
            self.grant()
            self.credit_lost = True

    def grant(self) -> None:
        """Grant the credit that there is room for."""
        limits = self._limits
        self.credit_messages = self.handled_messages + limits.window_messages
        self.credit_bytes = self.handled_bytes + limits.window_bytes
        self.credit_at = self.handled_messages + max(1, limits.window_messages // 4)
        self.credit_bytes_at = self.handled_bytes + max(1, limits.window_bytes // 4)
