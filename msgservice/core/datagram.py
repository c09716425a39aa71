"""An endpoint of acknowledged UDP: sessions by address, the handshake, resets, who gives up when.

The driver (`transport.datagram_peer`, or a simulation) calls it; it calls `core.datagram_session`.
Sans-IO:

* `receive_datagrams` (from the socket), `receive_time` (from the timer);
* `send`, `send_run`, `handle`, `reply`, `close` (from the application);
* `take_effects`, `take_datagrams` (to the world);
* `next_deadline` says when `receive_time` is wanted.

Nothing is kept for an address that has not shown, by a cookie, that it receives what is sent to it,
and what is answered before that is never longer than what came.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence

from msgservice.core import datagram_wire as wire
from msgservice.core.datagram_cookie import Address, CookieJar
from msgservice.core.datagram_keys import Keys, NoKeys
from msgservice.core.datagram_limits import DatagramLimits
from msgservice.core.datagram_peers import Budget, Effects, Mark, Opening, Peer, Waiting
from msgservice.core.datagram_receiver import Delivery
from msgservice.core.datagram_sender import Answer, SendQueue
from msgservice.core.datagram_session import Session
from msgservice.core.recovery import ACK_DELAY_MAX, RTO_INITIAL
from msgservice.errors import LimitReached, MessageTooLarge

# How finely the age of messages is known: as a part of the patience with them.
MARKS_PER_PATIENCE = 64
# With a cookie that was not answered so often, the other side may have a new secret: ask for
# another.
HELLOS_PER_COOKIE = 3
# Sessions that ended, whose H may come again while its cookie is good: random ids, 100 bytes each.
ENDED_MAX = 4096
# Handshakes that go unanswered are repeated at least so often, in seconds: one small datagram.
HANDSHAKE_MAX = 10.0


class Endpoint:
    """All sessions of one socket; see the module.

    `entropy(n)` returns n random bytes, `jitter()` a float in [0, 1). `patience` and `retries`: a
    message has failed when so many seconds passed and at least so many tries went out; None: never.
    `ordered`: deliver in the order of nonces. `carry_over`: what is open when a session is lost
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
        now: float = 0.0,
    ) -> None:
        self.limits = limits
        self.peers: dict[Address, Peer] = {}
        self.counters = {
            "ignored": 0,
            "forged": 0,
            "handshakes": 0,
            "resets": 0,
            "refused_peers": 0,
        }
        self._entropy = entropy
        self._jitter = jitter
        self._keys = keys or NoKeys()
        self._patience = patience
        self._retries = retries
        self._ordered = ordered
        self._carry_over = carry_over
        self._jar = CookieJar(entropy(32), limits.cookie_seconds)
        self._sessions: dict[tuple[Address, int], Session] = {}
        self._identifiers: dict[int, Session] = {}
        self._ended: dict[tuple[Address, int], None] = {}
        self._ready: dict[Address, Peer] = {}
        self._heap: list[tuple[float, int, Peer]] = []
        self._heap_count = 0
        self._handshakes = Budget(limits.handshakes_per_second)
        self._resets = Budget(limits.resets_per_second)
        # What an address without state may send, and what limits the answers to it.
        self._strangers = {
            wire.HELLO: self._handshakes,
            wire.MESSAGES: self._resets,
            wire.ACKNOWLEDGEMENT: self._resets,
        }
        self._swept_at = now
        self.rescheduled = False  # next_deadline() may be earlier than it was
        self._out: list[tuple[Address, list[bytes]]] = []
        self._deliveries: list[tuple[Session, list[Delivery]]] = []
        self._settled: list[object] = []
        self._answers: list[Answer] = []
        self._late_sessions: list[Session] = []
        self._failures: list[tuple[Address, list[object], bool]] = []
        self._events: list[tuple[str, Session]] = []

    # --- from the application

    def peer(self, address: Address, now: float) -> Peer:
        """Return what is known of an address, made new if nothing is."""
        peer = self.peers.get(address)
        if peer is None:
            if len(self.peers) >= self.limits.peers and not self._sweep(now, urgent=True):
                raise LimitReached("peers", self.limits.peers)
            peer = self.peers[address] = Peer(address, self._retries, now)
        return peer

    def send(self, address: Address, body: bytes, token: object, now: float) -> None:
        """Queue one message; `token` comes back when it is settled.

        Raises MessageTooLarge or LimitReached, and then nothing was queued.
        """
        peer = self.peers.get(address)
        if peer is None:
            peer = self.peer(address, now)
        queue, limits = peer.queue, self.limits
        size = len(body)
        if size > limits.message_bytes:
            raise MessageTooLarge(size, limits.message_bytes)
        if len(queue.bodies) - queue.head >= limits.queue_messages:
            raise LimitReached("queue_messages", limits.queue_messages)
        queue.waiting_bytes += size
        if queue.waiting_bytes > limits.queue_bytes:
            queue.waiting_bytes -= size
            raise LimitReached("queue_bytes", limits.queue_bytes)
        queue.bodies.append(body)
        queue.tokens.append(token)
        queue.enqueued += 1
        self._ready[address] = peer

    def send_run(
        self, address: Address, bodies: Sequence[bytes], tokens: Sequence[object], now: float
    ) -> int:
        """Queue messages for one address, and return the ordinal of the first."""
        peer = self.peer(address, now)
        queue, limits = peer.queue, self.limits
        largest = max(map(len, bodies), default=0)
        if largest > limits.message_bytes:
            raise MessageTooLarge(largest, limits.message_bytes)
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
            self._open(peer, now)
            self._ready[address] = peer

    def _open(self, peer: Peer, now: float) -> None:
        identifier = int.from_bytes(self._entropy(8), "big")
        peer.opening = Opening(identifier, self._entropy(wire.RANDOM_BYTES), now)

    def handle(self, session: Session, first: int, last: int, size: int) -> None:
        """Say that these nonces were handled, with empty replies."""
        session.receiving.handle(first, last, size)
        self._wake(session)

    def reply(self, session: Session, nonce: int, status: int, body: bytes, size: int) -> None:
        """Say that a nonce was handled, with this reply; MessageTooLarge where nobody would take
        it."""
        if len(body) > self.limits.message_bytes:
            raise MessageTooLarge(len(body), self.limits.message_bytes)
        session.receiving.reply(nonce, status, body, size)
        self._wake(session)

    def close(self, address: Address, now: float) -> list[object]:
        """End the session with an address: tell it, and forget it.

        Returns the tokens of what was open or waiting; it is not sent again.
        """
        peer = self.peers.pop(address, None)
        if peer is None:
            return []
        tokens = peer.queue.take_below(peer.queue.enqueued)
        for session in (peer.session, peer.candidate):
            if session is not None:
                session.close()
                out = session.take_datagrams(now)
                self._out.append((address, out[-1:]))
                tokens += session.sending.give_up(peer.queue.enqueued, 0, [])
                self._drop_session(session)
        self._ready.pop(address, None)
        return tokens

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
        return bool(
            self._settled or self._answers or self._deliveries or self._failures or self._events
        )

    def take_effects(self) -> Effects:
        """Return what happened since the last call, each thing exactly once."""
        effects = Effects(
            self._deliveries, self._settled[:], self._answers[:], self._failures, self._events
        )
        # Sessions hold on to these two.
        self._settled.clear()
        self._answers.clear()
        self._deliveries, self._failures, self._events = [], [], []
        return effects

    def take_datagrams(self, now: float) -> list[tuple[Address, list[bytes]]]:
        """Return what is to be sent now, per address in order."""
        out, self._out = self._out, []
        while self._ready:
            ready, self._ready = self._ready, {}
            for peer in ready.values():
                self._pump(peer, out, now)
        return out

    def catch_up(self) -> None:
        """Do what was put off until the datagrams had left: call it after each
        `take_datagrams`."""
        late = self._late_sessions
        if late:
            for session in late:
                session.catch_up()
            late.clear()

    # --- pumping

    def _wake(self, session: Session) -> None:
        peer = self.peers.get(session.address)
        if peer is not None:
            self._ready[session.address] = peer

    def _pump(self, peer: Peer, out: list[tuple[Address, list[bytes]]], now: float) -> None:
        if self.peers.get(peer.address) is not peer:
            return
        queue = peer.queue
        session = peer.session
        if session is not None and session.spent and not session.sending.open:
            self._end_spent(peer, session, out, now)
            session = peer.session
        if session is not None:
            datagrams = session.take_datagrams(now)
            if datagrams:
                out.append((peer.address, datagrams))
        elif queue.head < len(queue.bodies) and peer.opening is None:
            self._open(peer, now)
        # A candidate says nothing before it has proven itself, and is the session then: what it
        # took of the queue would be lost with it.
        opening = peer.opening
        if opening is not None and now >= opening.at:
            out.append((peer.address, [self._hello(peer, opening, now)]))
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
        self._lose(peer, session)

    def _mark(self, peer: Peer, now: float) -> None:
        """Remember when the newest messages were handed in, as finely as MARKS_PER_PATIENCE
        says."""
        marks = peer.marks
        enqueued = peer.queue.enqueued
        if peer.idle:
            marks.clear()
            return
        if marks and marks[-1].ordinal >= enqueued:
            return
        assert self._patience is not None
        if len(marks) > 1 and now - marks[-2].at < self._patience / MARKS_PER_PATIENCE:
            marks[-1] = Mark(enqueued, now)
        else:
            marks.append(Mark(enqueued, now))

    def _schedule(self, peer: Peer, now: float) -> None:
        if self._patience is not None:
            self._mark(peer, now)
        deadlines = []
        if peer.session is not None:
            deadlines.append(peer.session.next_deadline(now))
        if peer.candidate is not None:
            deadlines.append(peer.candidate.next_deadline(now))
        if peer.opening is not None:
            deadlines.append(peer.opening.at)
        if peer.marks and self._patience is not None:
            # Where only tries are missing, each of them has a time of its own.
            if self._gives_up(peer, now):
                deadlines.append(now)
            else:
                begins = (peer.marks[0].at, peer.heard_at)
                deadlines += [at + self._patience for at in begins if at + self._patience > now]
        due = min((at for at in deadlines if at is not None), default=math.inf)
        if due < peer.due:
            peer.due = due
            if due < math.inf:
                self.rescheduled = True
                self._heap_count += 1
                heapq.heappush(self._heap, (due, self._heap_count, peer))

    # --- from the world: time

    def receive_time(self, now: float) -> None:
        """Do what is due by now."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, peer = heapq.heappop(heap)
            if due != peer.due or self.peers.get(peer.address) is not peer:
                continue
            peer.due = math.inf
            for session in (peer.session, peer.candidate):
                if session is not None:
                    session.receive_time(now)
            self._give_up(peer, now)
            self._ready[peer.address] = peer
        if now - self._swept_at >= self.limits.idle_timeout / 4:
            self._sweep(now, urgent=False)

    def _due_marks(self, peer: Peer, now: float) -> int:
        """Return how many marks are as old as the patience."""
        assert self._patience is not None
        return sum(1 for mark in peer.marks if now >= mark.at + self._patience)

    def _is_silent(self, peer: Peer, mark: Mark, now: float) -> bool:
        """Whether what waits below a mark has failed: it has had no try of its own, so it fails
        only with a node that was asked and not heard."""
        assert self._patience is not None
        tried_at, retries = peer.tried_at, self._retries
        return now >= peer.heard_at + self._patience and (
            not retries or (len(tried_at) == retries and tried_at[0] >= max(peer.heard_at, mark.at))
        )

    def _gives_up(self, peer: Peer, now: float) -> bool:
        """Whether `_give_up` would find anything."""
        due = self._due_marks(peer, now)
        if not due:
            return False
        mark = peer.marks[due - 1]
        session = peer.session
        return (len(peer.queue) > 0 and self._is_silent(peer, mark, now)) or (
            session is not None
            and session.sending.exhausted(mark.ordinal, self._retries, session.asked)
        )

    def _give_up(self, peer: Peer, now: float) -> None:
        if self._patience is None:
            return
        due = self._due_marks(peer, now)
        if not due:
            return
        ordinal = peer.marks[due - 1].ordinal
        tokens: list[object] = []
        session = peer.session
        if session is not None:
            tokens += session.sending.give_up(ordinal, self._retries, session.asked)
        if self._is_silent(peer, peer.marks[due - 1], now):
            tokens += peer.queue.take_below(ordinal)
        if session is not None:
            session.spent = session.spent or bool(tokens)
        # The newest mark stays while anything below it is open or waits.
        del peer.marks[: due if peer.first_unsettled >= ordinal else due - 1]
        if not len(peer.queue) and peer.opening is not None:
            peer.opening = None
        if tokens:
            self._failures.append((peer.address, tokens, not peer.failed))
            peer.failed = True

    def _sweep(self, now: float, *, urgent: bool) -> bool:
        """Forget idle addresses; urgently those that were silent for a tenth of the time as
        well."""
        if urgent and now - self._swept_at < 1.0:
            return False
        self._swept_at = now
        limit = now - self.limits.idle_timeout / (10 if urgent else 1)
        idle = [
            peer
            for peer in self.peers.values()
            if peer.heard_at < limit
            and peer.idle
            and (peer.session is None or peer.session.heard_at < limit)
        ]
        for peer in idle:
            del self.peers[peer.address]
            self._ready.pop(peer.address, None)
            for session in (peer.session, peer.candidate):
                if session is not None:
                    self._drop_session(session)
        return len(self.peers) < self.limits.peers

    # --- from the world: datagrams

    def ignores(self, letter: int, now: float) -> bool:
        """Whether a datagram that begins with this byte is ignored if its address is not in
        `peers`.

        For the driver, so that a flood costs no more than being read: `receive_datagrams` would
        come to the same.
        """
        budget = self._strangers.get(letter)
        if budget is not None and now >= budget.next_at:
            return False
        self.counters["ignored"] += 1
        return True

    def receive_datagrams(self, data: bytes, segment: int, address: Address, now: float) -> None:
        """Take datagrams of one source, `segment` bytes each but the last (0: there is one).

        Never raises for what a peer sent; what cannot be understood is counted and ignored.
        """
        whole = len(data)
        if not segment:
            segment = whole
        unpack = wire.HEADER.unpack_from
        session: Session | None = None
        peer = self.peers.get(address)
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
                    session = self._sessions.get((address, identifier))
                if session is None:
                    self._reset(data, start, end, key_id, identifier, number, address, now)
                elif role == session.role or key_id != session.key_id or role > 1:
                    self.counters["ignored"] += 1
                else:
                    opened = session.seal.open(data, start, end)
                    if opened is None:
                        self.counters["forged"] += 1
                    else:
                        session.receive_packet(number, letter, *opened, now)
            else:
                self._receive_handshake(
                    letter, data, start, end, key_id, role, identifier, number, address, now
                )
            start = end
        if session is not None and session.heard_at == now:
            self._after_packets(session, now)

    def _after_packets(self, session: Session, now: float) -> None:
        peer = self.peers.get(session.address)
        if peer is None:
            return
        if session is peer.candidate and session.proven:
            self._promote(peer)
        peer.heard_at = now
        peer.failed = False
        deliveries = session.receiving.deliveries
        if deliveries:
            session.receiving.deliveries = []
            self._deliveries.append((session, deliveries))
        if session.closed_by_peer:
            self._lose(peer, session)
        self._ready[session.address] = peer

    def _promote(self, peer: Peer) -> None:
        """Let the candidate take the place of the session that the peer has lost."""
        assert peer.candidate is not None
        if peer.session is not None:
            self._lose(peer, peer.session)  # and the candidate takes its place
        else:
            candidate, peer.candidate = peer.candidate, None
            self._install(peer, candidate)

    def _lose(self, peer: Peer, session: Session) -> None:
        """End a session; what is open in it goes to the next one."""
        if (session.address, session.identifier) not in self._sessions:
            return  # ended by an earlier datagram of the same read
        self._drop_session(session)
        if peer.candidate is session:
            peer.candidate = None
        if peer.session is session:
            peer.session = None
            if self._carry_over:
                peer.queue.put_back(*session.sending.take_open())
            else:
                peer.queue.take_below(peer.queue.enqueued)
            if peer.candidate is not None:
                candidate, peer.candidate = peer.candidate, None
                self._install(peer, candidate)
        self._ready[peer.address] = peer

    def _install(self, peer: Peer, session: Session) -> None:
        peer.session = session
        session.sending.begin(peer.queue)
        self._events.append(("opened", session))

    def _drop_session(self, session: Session) -> None:
        key = (session.address, session.identifier)
        if self._sessions.pop(key, None) is None:
            return
        if session.proven and session.role == wire.RESPONDER:
            self._ended[key] = None
            if len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]
        if self._identifiers.get(session.identifier) is session:
            del self._identifiers[session.identifier]
        peer = self.peers.get(session.address)
        if peer is None or peer.session is session:
            self._events.append(("lost", session))

    # --- the handshake

    def _sealed(self, letter: int, role: int, key_id: int, identifier: int, body: bytes) -> bytes:
        salt = int.from_bytes(self._entropy(8), "big")
        header = wire.HEADER.pack(letter, wire.VERSION, key_id, role, identifier, salt)
        seal = self._keys.handshake_seal(key_id, letter)
        assert seal is not None
        return seal.close(header, body)

    def _terms(self, random: bytes) -> bytes:
        limits = self.limits
        return wire.TERMS.pack(
            random,
            limits.window_messages,
            limits.window_bytes,
            limits.message_bytes,
            limits.datagram_bytes,
        )

    def _hello(self, peer: Peer, opening: Opening, now: float) -> bytes:
        opening.sent_once = not opening.tries_cookie
        if opening.tries:
            peer.tried_at.append(now)
        opening.tries += 1
        opening.tries_cookie += 1
        if opening.cookie and opening.tries_cookie > HELLOS_PER_COOKIE:
            opening.cookie = b""
            opening.tries_cookie = 1
        wait = RTO_INITIAL * 2 ** min(opening.tries - 1, 8) * (1 + self._jitter() / 2)
        opening.at = now + min(wait, HANDSHAKE_MAX)
        body = self._terms(opening.random) + (opening.cookie or wire.NO_COOKIE)
        return self._sealed(
            wire.HELLO, wire.INITIATOR, self._keys.current, opening.identifier, body
        )

    def _receive_handshake(
        self,
        letter: int,
        data: bytes,
        start: int,
        end: int,
        key_id: int,
        role: int,
        identifier: int,
        number: int,
        address: Address,
        now: float,
    ) -> None:
        if letter == wire.HELLO:
            peer = self.peers.get(address)
            known = peer is not None and peer.opening is not None
            if not known and not self._handshakes.spend(now):
                self.counters["ignored"] += 1
                return
        elif letter not in (wire.COOKIE, wire.OPENED, wire.RESET):
            self.counters["ignored"] += 1
            return
        seal = self._keys.handshake_seal(key_id, letter)
        opened = seal.open(data, start, end) if seal is not None else None
        if opened is None:
            self.counters["forged"] += 1
            return
        buffer, at, behind = opened
        size = behind - at
        if letter == wire.HELLO and role == wire.INITIATOR and size == wire.HELLO_BODY_BYTES:
            body = buffer[at:behind]
            self._receive_hello(body, key_id, identifier, address, now)
        elif letter == wire.COOKIE and role == wire.RESPONDER and size == wire.COOKIE_BYTES:
            self._receive_cookie(buffer[at:behind], key_id, identifier, address, now)
        elif letter == wire.OPENED and role == wire.RESPONDER and size == wire.TERMS.size:
            self._receive_opened(buffer, at, key_id, identifier, address, now)
        elif letter == wire.RESET and size == wire.RESET_BODY.size:
            (echo,) = wire.RESET_BODY.unpack_from(buffer, at)
            self._receive_reset(echo, role, identifier, address)
        else:
            self.counters["ignored"] += 1

    def _receive_hello(
        self, body: bytes, key_id: int, identifier: int, address: Address, now: float
    ) -> None:
        self.counters["handshakes"] += 1
        try:
            terms = wire.decode_terms(body, 0)
        except wire.DecodeErrors:
            self.counters["ignored"] += 1
            return
        cookie = body[wire.TERMS.size :]
        if not self._jar.check(cookie, address, identifier, terms.random, now):
            cookie = self._jar.make(address, identifier, terms.random, now)
            answer = self._sealed(wire.COOKIE, wire.RESPONDER, key_id, identifier, cookie)
            self._out.append((address, [answer]))
            return
        known = self._sessions.get((address, identifier))
        if known is not None:  # the answer was lost: the same again
            if known.role == wire.RESPONDER:
                self._send_opened(known, known.own_random)
            return
        if (address, identifier) in self._ended:
            # An H that the net or somebody repeated: its sender had the answer long ago. A session
            # made of it would have the name of one that the sender may still take for alive.
            self.counters["ignored"] += 1
            return
        try:
            peer = self.peer(address, now)
        except LimitReached:
            self.counters["refused_peers"] += 1
            return
        opening = peer.opening
        if opening is not None:
            if opening.identifier < identifier:
                return  # both began: the lower session id wins, and ours is on its way
            peer.opening = None
        random = self._entropy(wire.RANDOM_BYTES)
        seal = self._keys.session_seal(key_id, wire.RESPONDER, terms.random, random)
        session = self._make_session(
            peer, identifier, wire.RESPONDER, key_id, seal, random, terms, now
        )
        if peer.candidate is not None:
            self._drop_session(peer.candidate)
            peer.candidate = None
        if peer.session is None:
            self._install(peer, session)
        else:
            peer.candidate = session
        self._send_opened(session, random)
        self._ready[address] = peer

    def _send_opened(self, session: Session, random: bytes) -> None:
        answer = self._sealed(
            wire.OPENED, wire.RESPONDER, session.key_id, session.identifier, self._terms(random)
        )
        self._out.append((session.address, [answer]))

    def _make_session(
        self,
        peer: Peer,
        identifier: int,
        role: int,
        key_id: int,
        seal: wire.Seal,
        random: bytes,
        terms: wire.Terms,
        now: float,
    ) -> Session:
        session = Session(
            address=peer.address,
            identifier=identifier,
            role=role,
            key_id=key_id,
            seal=seal,
            own_random=random,
            terms=terms,
            limits=self.limits,
            queue=SendQueue(),  # that of the peer once it is installed: until then nothing is sent
            settled=self._settled,
            answered=self._answers,
            late_sessions=self._late_sessions,
            tried_at=peer.tried_at,
            jitter=self._jitter,
            ordered=self._ordered,
            now=now,
        )
        self._sessions[(peer.address, identifier)] = session
        self._identifiers[identifier] = session
        return session

    def _opening(self, address: Address, identifier: int, key_id: int) -> Opening | None:
        peer = self.peers.get(address)
        opening = peer.opening if peer is not None else None
        if opening is None or opening.identifier != identifier or key_id != self._keys.current:
            self.counters["ignored"] += 1
            return None
        return opening

    def _receive_cookie(
        self, cookie: bytes, key_id: int, identifier: int, address: Address, now: float
    ) -> None:
        opening = self._opening(address, identifier, key_id)
        if opening is None:
            return
        if not opening.cookie:
            opening.cookie = cookie
            opening.tries_cookie = 0
            opening.tries = 0
            opening.at = now
            self._ready[address] = self.peers[address]

    def _receive_opened(
        self, buffer: bytes, at: int, key_id: int, identifier: int, address: Address, now: float
    ) -> None:
        opening = self._opening(address, identifier, key_id)
        if opening is None:
            return
        try:
            terms = wire.decode_terms(buffer, at)
        except wire.DecodeErrors:
            self.counters["ignored"] += 1
            return
        peer = self.peers[address]
        seal = self._keys.session_seal(key_id, wire.INITIATOR, opening.random, terms.random)
        session = self._make_session(
            peer, identifier, wire.INITIATOR, key_id, seal, opening.random, terms, now
        )
        peer.opening = None
        self._install(peer, session)
        peer.heard_at = now
        peer.failed = False
        self._ready[address] = peer

    # --- resets

    def _reset(
        self,
        data: bytes,
        start: int,
        end: int,
        key_id: int,
        identifier: int,
        number: int,
        address: Address,
        now: float,
    ) -> None:
        """Answer a packet of an unknown session: shorter than it, and not too often.

        A session that is known at another address has moved, if the packet is a new one of its.
        An old one was repeated by somebody who wants the answer: sent on to the real address, it
        would end the session there.
        """
        seal = self._keys.handshake_seal(key_id, wire.RESET)
        known = self._identifiers.get(identifier)
        peer = self.peers.get(address)
        opening = peer.opening if peer is not None else None
        if (
            seal is None
            # What the responder says first has overtaken its O, and will come again.
            or (opening is not None and opening.identifier == identifier)
            or (
                known is not None
                and not (known.receiving.is_new(number) and known.seal.open(data, start, end))
            )
        ):
            self.counters["ignored"] += 1
            return
        size = wire.HEADER_BYTES + wire.RESET_BODY.size + seal.overhead
        if end - start < size or not self._resets.spend(now):
            self.counters["ignored"] += 1
            return
        if isinstance(seal, wire.ChecksumSeal) and seal.open(data, start, end) is None:
            self.counters["forged"] += 1
            return
        self.counters["resets"] += 1
        role = 1 - (data[start + 3] & 1)
        body = wire.RESET_BODY.pack(number)
        self._out.append((address, [self._sealed(wire.RESET, role, key_id, identifier, body)]))

    def _receive_reset(self, echo: int, role: int, identifier: int, address: Address) -> None:
        session = self._sessions.get((address, identifier))
        if session is not None:
            session.catch_up()
        if session is None or role == session.role or echo not in session.recovery.in_flight:
            self.counters["ignored"] += 1
            return
        peer = self.peers.get(address)
        if peer is not None:
            self._lose(peer, session)
