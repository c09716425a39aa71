"""An endpoint of acknowledged UDP: all that one socket says and hears.

The driver (`transport.udp.peer`, or a simulation) calls it; it calls `core.datagram.session`.
Sans-IO:

* `receive_datagrams` (from the socket), `receive_time` (from the timer);
* `send`, `send_run`, `handle`, `reply`, `establish`, `change_keys`, `close` (from the
  application);
* `take_effects`, `take_datagrams` (to the world);
* `next_deadline` says when `receive_time` is wanted.

Here: the way in and out, and the timer. How sessions begin is `core.datagram.handshake`, when
messages have failed `core.datagram.patience`, which sessions there are `core.datagram.table`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Container, Iterator, Sequence

from msgservice.core.datagram import wire
from msgservice.core.datagram.cookie import Address, PeerKey
from msgservice.core.datagram.flight import Flight
from msgservice.core.datagram.handshake import Handshakes
from msgservice.core.datagram.keys import Keys, NoKeys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.patience import Patience
from msgservice.core.datagram.peers import Effects, Gathered, Peer, Waiting
from msgservice.core.datagram.receiver import Delivery
from msgservice.core.datagram.recovery import ACK_DELAY_MAX
from msgservice.core.datagram.session import Session
from msgservice.core.datagram.table import SessionTable
from msgservice.errors import LimitReached, MessageTooLarge

KEY_ID_AT = 2  # in a header


class Endpoint:
    """The endpoint of one socket: all its sessions.

    `entropy(n)` returns n random bytes, `jitter()` a float in [0, 1). `patience` and `retries`: a
    message has failed when so many seconds passed and at least so many tries went out; None: never.
    `ordered`: deliver in the order of nonces. `by_key`: several keys at one address are several
    peers, none of which can touch the sessions of another; for an endpoint that begins none itself.
    `carry_over`: what is open when a session is lost
    goes to the next one (else it is dropped: whoever sent it learns of the loss, and knows what to
    do).
    """

    def __init__(
        self,
        *,
        limits: DatagramLimits,
        entropy: Callable[[int], bytes],
        jitter: Callable[[], float],
        keys: Keys | NoKeys | None = None,
        patience: float | None = None,
        retries: int = 3,
        ordered: bool = False,
        carry_over: bool = True,
        by_key: bool = False,
        now: float = 0.0,
    ) -> None:
        self.limits = limits
        self.counters = {
            "ignored": 0,
            "forged": 0,
            "handshakes": 0,
            "resets": 0,
            "refused_peers": 0,
        }
        self._gathered = Gathered()
        self._late_flights: list[Flight] = []
        self.table = SessionTable(
            self._gathered,
            self._late_flights,
            limits=limits,
            jitter=jitter,
            retries=retries,
            ordered=ordered,
            carry_over=carry_over,
            by_key=by_key,
            now=now,
        )
        self._handshakes = Handshakes(
            self.table,
            self.counters,
            limits=limits,
            keys=keys or NoKeys(),
            entropy=entropy,
            jitter=jitter,
        )
        self._patience = None if patience is None else Patience(patience, retries)
        # Looked at with every datagram: bound once.
        self.peers = self.table.peers
        self._by_key = by_key
        self.peer = self.table.peer
        self.ignores = self._handshakes.ignores
        self.unopened = self._handshakes.unopened
        self._ready: dict[PeerKey, Peer] = {}
        self._heap: list[tuple[float, int, Peer]] = []
        self._heap_count = 0
        self._out: list[tuple[Address, list[bytes]]] = []
        self.rescheduled = False  # next_deadline() may be earlier than it was

    # --- from the application

    def send(self, address: PeerKey, body: bytes, token: object, now: float) -> None:
        """Queue one message; `token` comes back when it is settled.

        Raises MessageTooLarge or LimitReached, and then nothing was queued. What turns out to be
        too large for the other side when a session begins comes back in `too_large`.
        """
        self.send_to(self.peer(address, now), body, token)

    def send_to(self, peer: Peer, body: bytes, token: object) -> None:
        """Do as `send` does, for one of `peers`."""
        queue, limits = peer.queue, self.limits
        size = len(body)
        if size > peer.message_bytes:
            raise MessageTooLarge(size, peer.message_bytes)
        if len(queue.bodies) - queue.head >= limits.queue_messages:
            raise LimitReached("queue_messages", limits.queue_messages)
        queue.waiting_bytes += size
        if queue.waiting_bytes > limits.queue_bytes:
            queue.waiting_bytes -= size
            raise LimitReached("queue_bytes", limits.queue_bytes)
        queue.bodies.append(body)
        queue.tokens.append(token)
        queue.enqueued += 1
        self._ready[peer.key] = peer

    def send_run(
        self, address: Address, bodies: Sequence[bytes], tokens: Sequence[object], now: float
    ) -> int:
        """Queue messages for one address, and return the ordinal of the first."""
        peer = self.peer(address, now)
        queue, limits = peer.queue, self.limits
        largest = max(map(len, bodies), default=0)
        if largest > peer.message_bytes:
            raise MessageTooLarge(largest, peer.message_bytes)
        if len(queue) + len(bodies) > limits.queue_messages:
            raise LimitReached("queue_messages", limits.queue_messages)
        size = sum(map(len, bodies))
        if queue.waiting_bytes + size > limits.queue_bytes:
            raise LimitReached("queue_bytes", limits.queue_bytes)
        queue.waiting_bytes += size
        queue.bodies += bodies
        queue.tokens += tokens
        first = queue.enqueued
        queue.enqueued += len(bodies)
        self._ready[address] = peer
        return first

    def connect(self, address: Address, now: float) -> None:
        """Begin a session with an address though nothing waits for it, unless there is one."""
        peer = self.peer(address, now)
        if peer.session is None and peer.opening is None:
            self._handshakes.open(peer, now)
            self._ready[address] = peer

    def handle(self, session: Session, first: int, last: int, size: int) -> None:
        """Say that these nonces were handled, with empty replies."""
        session.receiving.handle(first, last, size)
        self._wake(session)

    def reply(self, session: Session, nonce: int, status: int, body: bytes, size: int) -> None:
        """Say that a nonce was handled, with this reply; MessageTooLarge where one of both sides
        does not take it."""
        if len(body) > session.message_bytes:
            raise MessageTooLarge(len(body), session.message_bytes)
        session.receiving.reply(nonce, status, body, size)
        self._wake(session)

    def hold(self, session: Session, deliveries: list[Delivery]) -> None:
        """Take back deliveries unhandled, as too many replies are unread; they come again when some
        have arrived."""
        session.receiving.hold(deliveries)

    def establish(self, session: Session) -> None:
        """Take as much of this session as of every other from now on: it is known who speaks."""
        session.receiving.establish(self.limits)
        self._wake(session)

    def change_keys(self, keys: Keys, ended: Container[int], now: float) -> None:
        """Use these keys from now on; end the sessions whose key ids are `ended`.

        `ended`: those that are gone or are other keys now, and whose more shall end. What stands
        with another key is not touched: the keys of a session are its own.
        """
        self._handshakes.change_keys(keys)
        for peer in list(self.peers.values()):
            for session in (peer.candidate, peer.session):
                if session is not None and session.key_id in ended:
                    self._out.append((peer.address, session.take_end(now)))
                    self.table.lose(peer, session)
                    self._ready[peer.key] = peer

    def close(self, key: PeerKey, now: float) -> list[object]:
        """End the session with a peer: tell it, and forget it.

        Returns the tokens of what was open or waiting; it is not sent again.
        """
        peer = self.peers.get(key)
        if peer is None:
            return []
        tokens = peer.queue.take_below(peer.queue.enqueued)
        for session in (peer.session, peer.candidate):
            if session is not None:
                self._out.append((peer.address, session.take_end(now)))
                tokens += session.sending.give_up(peer.queue.enqueued, 0)
        self.table.forget(peer)
        return tokens

    def _wake(self, session: Session) -> None:
        peer = self.peers.get(session.peer)
        if peer is not None:
            self._ready[session.peer] = peer

    # --- getters

    def next_deadline(self) -> float | None:
        """Return when `receive_time` is wanted next."""
        heap = self._heap
        self.rescheduled = False
        while heap and heap[0][0] != heap[0][2].due:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def waiting(self) -> Iterator[Waiting]:
        """Yield every message that is not settled, per address in order."""
        for peer in self.peers.values():
            session, opening = peer.session, peer.opening
            due = None if peer.due == math.inf else peer.due
            if session is not None:
                for nonce, transmissions in session.sending.open_messages():
                    yield Waiting(peer.address, nonce, transmissions, due)
            tries = opening.tries if opening is not None else 0
            nonce = session.sending.next_nonce if session is not None else 1
            for index in range(len(peer.queue)):
                yield Waiting(peer.address, nonce + index, tries, due)

    # --- to the world

    @property
    def has_effects(self) -> bool:
        """Whether `take_effects` would return anything."""
        gathered = self._gathered
        return bool(
            gathered.settled
            or gathered.answers
            or gathered.deliveries
            or gathered.failures
            or gathered.too_large
            or gathered.events
        )

    def take_effects(self) -> Effects:
        """Return the effects since the last call, each exactly once."""
        return self._gathered.take()

    def take_datagrams(self, now: float) -> list[tuple[Address, list[bytes]]]:
        """Return the datagrams to send now, per address in order."""
        out, self._out = self._out, []
        while self._ready:
            ready, self._ready = self._ready, {}
            for peer in ready.values():
                self._pump(peer, out, now)
        return out

    def catch_up(self) -> None:
        """Do what was put off until the datagrams had left: call it after each
        `take_datagrams`."""
        late = self._late_flights
        if late:
            for flight in late:
                flight.catch_up()
            late.clear()

    # --- pumping

    def _pump(self, peer: Peer, out: list[tuple[Address, list[bytes]]], now: float) -> None:
        if self.peers.get(peer.key) is not peer:
            return
        queue = peer.queue
        session = peer.session
        if session is not None and session.sending.spent and not session.sending.open:
            self._end_spent(peer, session, out, now)
            session = peer.session
        if session is not None:
            datagrams = session.take_datagrams(now)
            if datagrams:
                out.append((peer.address, datagrams))
        elif queue.head < len(queue.bodies) and peer.opening is None:
            self._handshakes.open(peer, now)
        # A candidate says nothing before it has proven itself, and is the session then: what it
        # took of the queue would be lost with it.
        opening = peer.opening
        if opening is not None and now >= opening.at:
            out.append((peer.address, [self._handshakes.hello(peer, opening, now)]))
        # Where the peer's timer fires soon anyway, no deadline of its can be earlier: the
        # arithmetic is done when it fires, not with every datagram.
        if (
            peer.due > now + ACK_DELAY_MAX
            or opening is not None
            or (session is not None and session.urgent_deadline)
        ):
            self._schedule(peer, now)

    def _end_spent(
        self, peer: Peer, session: Session, out: list[tuple[Address, list[bytes]]], now: float
    ) -> None:
        """End a session in which messages were given up: their nonces are missing for ever."""
        session.close()
        datagrams = session.take_datagrams(now)
        if datagrams:
            out.append((peer.address, datagrams))
        self.table.lose(peer, session)
        self._ready[peer.key] = peer

    def _schedule(self, peer: Peer, now: float) -> None:
        deadlines: list[float | None] = []
        if self._patience is not None:
            self._patience.mark(peer, now)
            deadlines += self._patience.deadlines(peer, now)
        if peer.session is not None:
            deadlines.append(peer.session.next_deadline(now))
        if peer.candidate is not None:
            deadlines.append(peer.candidate.next_deadline(now))
        if peer.opening is not None:
            deadlines.append(peer.opening.at)
        due = min((at for at in deadlines if at is not None), default=math.inf)
        if due < peer.due:
            peer.due = due
            if due < math.inf:
                self.rescheduled = True
                self._heap_count += 1
                heapq.heappush(self._heap, (due, self._heap_count, peer))

    # --- from the world: time

    def receive_time(self, now: float) -> None:
        """Time has come to `now`: retransmissions, probes and timeouts that are due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, peer = heapq.heappop(heap)
            if due != peer.due or self.peers.get(peer.key) is not peer:
                continue
            peer.due = math.inf
            for session in (peer.session, peer.candidate):
                if session is not None:
                    session.receive_time(now)
            self._give_up(peer, now)
            self._ready[peer.key] = peer
        self.table.sweep(now)

    def _give_up(self, peer: Peer, now: float) -> None:
        tokens = self._patience.give_up(peer, now) if self._patience is not None else None
        if tokens is None:
            return
        if not len(peer.queue):
            self._handshakes.give_up(peer)
        if tokens:
            self._gathered.failures.append((peer.address, tokens, not peer.failed))
            peer.failed = True

    # --- from the world: datagrams

    def receive_datagrams(self, data: bytes, segment: int, address: Address, now: float) -> None:
        """Take datagrams of one source, `segment` bytes each but the last (0: there is one).

        Never raises for what a peer sent; what cannot be understood is counted and ignored.
        """
        whole = len(data)
        if not segment:
            segment = whole
        if not self._by_key:
            self._receive(data, segment, address, now)
            return
        start = 0
        while start < whole:  # as far as one key goes, which is all of it unless somebody forges
            key_id = data[start + KEY_ID_AT : start + KEY_ID_AT + 1]
            end = start + segment
            while end < whole and data[end + KEY_ID_AT : end + KEY_ID_AT + 1] == key_id:
                end += segment
            self._receive(data[start:end], segment, (*address, *key_id), now)
            start = end

    def _receive(self, data: bytes, segment: int, source: PeerKey, now: float) -> None:
        whole = len(data)
        unpack = wire.HEADER.unpack_from
        session: Session | None = None
        peer = self.peers.get(source)
        if peer is not None:
            session = peer.session
        start = 0
        while start < whole:
            end = start + segment
            if end > whole:
                end = whole
            if end - start < wire.HEADER_BYTES + 4 or data[start + 1] != wire.VERSION:
                self.counters["ignored"] += 1
                start = end
                continue
            letter, _, key_id, role, identifier, number = unpack(data, start)
            if letter == wire.MESSAGES or letter == wire.ACKNOWLEDGEMENT:
                if session is None or session.identifier != identifier:
                    if session is not None and session.heard_at == now:
                        self._after_packets(session, now)  # what this read brought it so far
                    session = self.table.sessions.get((source, identifier))
                if session is None:
                    self._answer(
                        self._handshakes.reset(
                            data, start, end, key_id, identifier, number, source, now
                        ),
                        source,
                    )
                elif role == session.role or key_id != session.key_id or role > 1:
                    self.counters["ignored"] += 1
                else:
                    opened = session.seal.open(data, start, end)
                    if opened is None:
                        self.counters["forged"] += 1
                    else:
                        session.receive_packet(number, letter, *opened, now)
            else:
                self._answer(
                    self._handshakes.receive(
                        letter, data, start, end, key_id, role, identifier, source, now
                    ),
                    source,
                )
            start = end
        if session is not None and session.heard_at == now:
            self._after_packets(session, now)

    def _has_read(self, session: Session) -> bool:
        """Whether, with all that came taken, few enough replies are unread to handle more."""
        receiving = session.receiving
        session.flight.catch_up()
        if receiving.asked:
            receiving.forget_settled()
        return receiving.reply_bytes <= receiving.reply_bytes_max

    def _answer(self, datagram: bytes | None, source: PeerKey) -> None:
        """Take what the handshakes answer to a peer, which may have a session now."""
        if datagram is not None:
            self._out.append((source[:2], [datagram]))
        peer = self.peers.get(source)
        if peer is not None:
            self._ready[source] = peer

    def _after_packets(self, session: Session, now: float) -> None:
        peer = self.peers.get(session.peer)
        if peer is None:
            return
        if session is peer.candidate and session.proven:
            self.table.promote(peer)
        peer.heard_at = now
        peer.failed = False
        receiving = session.receiving
        if receiving.deliveries and (
            receiving.reply_bytes <= receiving.reply_bytes_max or self._has_read(session)
        ):
            self._gathered.deliveries.append((session, receiving.take_deliveries()))
        if session.closed_by_peer:
            self.table.lose(peer, session)
        self._ready[session.peer] = peer
