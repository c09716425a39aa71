"""What an endpoint of acknowledged UDP keeps: addresses, their sessions, and what is to be told.

The base of `core.datagram.handshake`, `core.datagram.patience` and `core.datagram.endpoint`, which
change it; nothing here looks into a datagram or decides when something is due.
"""

from __future__ import annotations

from collections.abc import Callable

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import Answer, SendQueue, TooLarge
from msgservice.core.datagram.cookie import Address, CookieJar
from msgservice.core.datagram.flight import Flight
from msgservice.core.datagram.keys import Keys, NoKeys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.peers import Budget, Peer
from msgservice.core.datagram.receiver import Delivery
from msgservice.core.datagram.session import Session
from msgservice.errors import LimitReached

# Sessions that ended, whose H may come again while its cookie is good: random ids, 100 bytes each.
ENDED_MAX = 4096


class SessionTable:
    """The table of all sessions of one socket, by address and by identifier.

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
        self._late_flights: list[Flight] = []
        self._failures: list[tuple[Address, list[object], bool]] = []
        self._too_large: list[TooLarge] = []
        self._events: list[tuple[str, Session]] = []

    # --- addresses

    def peer(self, address: Address, now: float) -> Peer:
        """Return the state of an address, made new if nothing is known of it."""
        peer = self.peers.get(address)
        if peer is None:
            if len(self.peers) >= self.limits.peers and not self._sweep(now, urgent=True):
                raise LimitReached("peers", self.limits.peers)
            peer = Peer(address, self.limits.message_bytes, self._retries, now)
            self.peers[address] = peer
        return peer

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

    def _wake(self, session: Session) -> None:
        peer = self.peers.get(session.address)
        if peer is not None:
            self._ready[session.address] = peer

    # --- sessions

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
            late_flights=self._late_flights,
            tried_at=peer.tried_at,
            jitter=self._jitter,
            ordered=self._ordered,
            now=now,
        )
        self._sessions[(peer.address, identifier)] = session
        self._identifiers[identifier] = session
        return session

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
            # Whoever comes next may take more.
            peer.message_bytes = self.limits.message_bytes
            if self._carry_over:
                peer.queue.put_back(*session.sending.take_open())
            else:
                peer.queue.take_below(peer.queue.enqueued)
            if peer.candidate is not None:
                candidate, peer.candidate = peer.candidate, None
                self._install(peer, candidate)
        if peer.session is None and peer.idle and not peer.failed:
            # Nothing is left to remember: ten thousand short connections must not shut out others.
            self.peers.pop(peer.address, None)
            self._ready.pop(peer.address, None)
        else:
            self._ready[peer.address] = peer

    def _install(self, peer: Peer, session: Session) -> None:
        peer.session = session
        peer.message_bytes = session.message_bytes
        if session.message_bytes < self.limits.message_bytes:
            self._too_large += peer.queue.take_larger(session.message_bytes)
        session.sending.begin(peer.queue)
        self._events.append(("opened", session))

    def _drop_session(self, session: Session) -> None:
        key = (session.address, session.identifier)
        if self._sessions.pop(key, None) is None:
            return
        if session.role == wire.RESPONDER:
            self._ended[key] = None
            if len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]
        if self._identifiers.get(session.identifier) is session:
            del self._identifiers[session.identifier]
        peer = self.peers.get(session.address)
        if peer is None or peer.session is session:
            self._events.append(("lost", session))
