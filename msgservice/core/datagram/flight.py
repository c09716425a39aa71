"""Packets of one side of a session: numbered and sealed, in flight until they arrive or are lost.

Called by `core.datagram.packing` with what is to leave, and by `core.datagram.session` with what
the other side acknowledges and when time has come. How much may leave is decided here, by the
congestion window and the pacer; what is lost, in `core.datagram.recovery`. What was in a lost
packet goes back to where it is sent from: chunks and pieces wait here, the rest is the receiving
half's. Not here: what a packet carries.

Fields without an underscore are read by others, and changed here only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Chunk, Control, Piece, Reply
from msgservice.core.datagram.congestion import NewReno, Pacer
from msgservice.core.datagram.receiver import ReceivingHalf
from msgservice.core.datagram.recovery import TIMEOUTS_PERSISTENT, Recovery, Sent

# Datagrams that may leave without pacing when little is in flight.
UNPACED = 4


class Flight:
    """The packets of one side: what is in flight, what is to be sent again, how much may leave."""

    __slots__ = (
        "_again",
        "_close",
        "_headers",
        "_late",
        "_late_flights",
        "_paced",
        "_pacer",
        "_probes",
        "_receiving",
        "_unpaced",
        "_window_limited",
        "blocked_until",
        "congestion",
        "packets_sent",
        "recovery",
    )  # fmt: skip

    def __init__(
        self,
        receiving: ReceivingHalf,
        late_flights: list[Flight],
        *,
        identifier: int,
        role: int,
        key_id: int,
        seal: wire.Seal,
        datagram_bytes: int,
        congestion_bytes: int,
        jitter: Callable[[], float],
    ) -> None:
        self.recovery = Recovery(jitter)
        self.congestion = NewReno(datagram_bytes, congestion_bytes)
        self.blocked_until: float | None = None  # by the pacer
        self.packets_sent = 0
        self._receiving = receiving
        self._pacer = Pacer(datagram_bytes)
        self._unpaced = UNPACED * datagram_bytes
        self._paced = False
        self._window_limited = False
        self._probes = 0
        self._again: list[Chunk | Piece] = []
        # An acknowledgement that is looked at after what is to be said was sent: see `catch_up`.
        self._late: tuple[wire.Received, float] | None = None
        self._late_flights = late_flights
        self._close = seal.close
        self._headers = (
            wire.HEADER.pack(wire.MESSAGES, wire.VERSION, key_id, role, identifier, 0)[:12],
            wire.HEADER.pack(wire.ACKNOWLEDGEMENT, wire.VERSION, key_id, role, identifier, 0)[:12],
        )

    # --- to the world

    def begin(self) -> bool:
        """Begin to take datagrams; return whether one may leave without any thought: little is in
        flight, and nothing is to be sent again."""
        self.blocked_until = None
        self._window_limited = False
        congestion = self.congestion
        in_flight = congestion.in_flight
        return (
            in_flight < self._unpaced
            and in_flight < congestion.window
            and not (self._probes or self._again)
        )

    def allowance(self, now: float) -> float:
        """Return how many bytes may leave now, the last datagram beyond them; 0 where the window
        or the pacer holds back, which is remembered."""
        congestion = self.congestion
        in_flight = congestion.in_flight
        room = congestion.window - in_flight
        if room > 0:
            # A few datagrams into an empty path are no burst: they need no pacing, and no
            # arithmetic.
            unpaced = self._unpaced - in_flight
            self._paced = unpaced <= 0
            if unpaced > 0:
                return min(room, unpaced)
            budget = self._pacer.budget(
                now,
                congestion.window,
                self.recovery.round_trip.smoothed,
                slow_start=congestion.slow_start,
            )
            if budget > 0:
                return min(room, budget)
            self.blocked_until = self._pacer.next_at(congestion.unit)
        self._window_limited = True
        return 0

    def spend(self, size: int) -> None:
        """Take note that so much of the last `allowance` was used."""
        if self._paced:
            self._pacer.spend(size)

    def send(
        self,
        letter: int,
        body: bytes,
        content: tuple[object, ...] | None,
        out: list[bytes],
        now: float,
    ) -> int:
        """Send one packet, and return its size; `content`: what it carries that may be lost, None
        where it asks for no acknowledgement. `letter`: 0 with messages, 1 without."""
        recovery = self.recovery
        number = recovery.next_number
        datagram = self._close(self._headers[letter] + number.to_bytes(8, "big"), body)
        size = len(datagram)
        if content is not None:
            recovery.on_sent(now, size, content)
            self.congestion.in_flight += size
        else:
            recovery.next_number = number + 1
        self.packets_sent += 1
        out.append(datagram)
        return size

    def send_run(self, chunks: Sequence[Chunk], out: list[bytes], now: float) -> int:
        """Send one packet for each new chunk, and return their bytes.

        The same as `send` for each, in one loop with everything at hand, which takes half the time
        (bench/udp.py, many_256).
        """
        recovery = self.recovery
        number, in_flight = recovery.next_number, recovery.in_flight
        close, prefix = self._close, self._headers[0]
        spent = 0
        for chunk in chunks:
            datagram = close(prefix + number.to_bytes(8, "big"), chunk.payload)
            size = len(datagram)
            in_flight[number] = (now, size, (chunk,))
            out.append(datagram)
            spent += size
            number += 1
        recovery.next_number = number
        recovery.last_sent_at = now
        self.congestion.in_flight += spent
        self.packets_sent += len(chunks)
        return spent

    @property
    def has_lost(self) -> bool:
        """Whether anything waits to be sent again, needless or not."""
        return bool(self._again)

    def put(self, items: Iterable[Chunk | Piece]) -> None:
        """Let chunks and pieces leave before anything new."""
        self._again += items

    def take_lost(self) -> Chunk | Piece | None:
        """Return the next chunk or piece that is to be sent again, and is still needed; or
        None."""
        again = self._again
        while again:
            item = again.pop(0)
            if isinstance(item, Chunk):
                if not item.received and item.remaining:
                    return item
            elif not item.needless:
                return item
        return None

    def take_probes(self) -> tuple[int, list[Chunk | Piece]]:
        """Return how many probes are due, and what they carry: the oldest that is in flight and
        still needed, as far as it is chunks and pieces."""
        count, self._probes = self._probes, 0
        items: list[Chunk | Piece] = []
        left = count
        for sent in self.recovery.in_flight.values():
            if not left:
                break
            if any(map(_is_needed, sent[2])):
                self._give_back(sent, items)
                left -= 1
        return count, items

    # --- from the world

    def receive_received(self, received: wire.Received, now: float) -> None:
        """Take an acknowledgement; ValueError where it names what was never sent."""
        if self._late is not None:
            self.catch_up()
        in_flight = self.recovery.in_flight
        ranges = received[1]
        if (
            len(in_flight) == 1
            and len(ranges) == 1
            and ranges[0][1] in in_flight
            and not self._window_limited
        ):
            self._late = (received, now)
            self._late_flights.append(self)
        else:
            self._receive_received(received, now)

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
            receiving = self._receiving
            size = 0
            for _, sent_size, content in arrived:
                size += sent_size
                for item in content:
                    kind = type(item)
                    if kind is Chunk:
                        item.received = True
                    elif kind is Reply:
                        receiving.receive_reply_arrival(item)
                    elif kind is Control:
                        receiving.receive_told(item.acknowledged)
                    elif item.receive_arrival() and type(item.owner) is Reply:
                        receiving.receive_reply_arrival(item.owner)
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
            self._give_back(sent, self._again)
        congestion = self.congestion
        if congestion.watches:
            congestion.on_outcome(0, len(lost), lost[0][0])
        congestion.on_lost(size, len(lost), lost[-1][0], now, self.recovery.round_trip)

    def _give_back(self, sent: Sent, again: list[Chunk | Piece]) -> None:
        receiving = self._receiving
        for item in sent[2]:
            kind = type(item)
            if kind is Control:
                receiving.receive_untold(item)
            elif kind is Reply:
                receiving.send_again(item)
            elif kind is Chunk:
                if not item.received and item.remaining:
                    again.append(item)
            elif not item.needless:
                again.append(item)

    # --- time

    def receive_time(self, now: float) -> bool:
        """Declare what is lost by now; return whether probes are due."""
        if self._late is not None:
            self.catch_up()
        recovery = self.recovery
        if recovery.loss_at is not None and now >= recovery.loss_at:
            lost = recovery.detect(now)
            if lost:
                self._receive_lost(lost, now)
        due = recovery.timeout_at()
        if due is None or now < due:
            return False
        recovery.receive_timeout(now)
        if recovery.timeouts >= TIMEOUTS_PERSISTENT:
            self.congestion.on_timeouts(now)
        # Two probes at a repeated timeout (RFC 9002 §6.2.4): with one, and half of all exchanges
        # lost, the doubling waits have no finite mean.
        self._probes = 1 if recovery.timeouts == 1 else 2
        return True


def _is_needed(item: object) -> bool:
    """Return whether the other side may still wait for what a packet in flight carries."""
    if type(item) is Chunk:
        return bool(not item.received and item.remaining)
    return not (type(item) is Piece and item.needless)
