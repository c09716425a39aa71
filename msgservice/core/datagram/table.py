"""The table of an endpoint: its peers, and the sessions with each.

Used by `core.datagram.handshake`, which begins sessions, and `core.datagram.endpoint`. Nothing here
looks into a datagram or decides when something is due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from typing import cast

from msgservice.core.datagram import wire
from msgservice.core.datagram.chunks import SendQueue
from msgservice.core.datagram.cookie import Address, PeerKey
from msgservice.core.datagram.flight import Flight
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.peers import Gathered, Peer
from msgservice.core.datagram.session import Session
from msgservice.errors import LimitReached

# Sessions that ended, whose H may come again while its cookie is good: random ids, 100 bytes each.
ENDED_MAX = 4096


class SessionTable:
    """The table of all sessions of one socket, by peer and by identifier.

    A peer is an address, or a key at an address (`Endpoint`, `by_key`). `jitter()` returns a float
    in [0, 1). `retries`: tries with a peer that are remembered. `ordered`, `carry_over`: see
    `Endpoint`. `late_flights`: see `Flight.catch_up`.
    """

    def __init__(
        self,
        gathered: Gathered,
        late_flights: list[Flight],
        *,
        limits: DatagramLimits,
        jitter: Callable[[], float],
        retries: int,
        ordered: bool,
        carry_over: bool,
        by_key: bool,
        now: float,
    ) -> None:
        self.peers: dict[PeerKey, Peer] = {}
        self._by_key = by_key
        self._addresses: Counter[Address] = Counter()  # with several keys each, where that counts
        # The addresses that are no strangers.
        self.known = cast("Container[Address]", self._addresses if by_key else self.peers)
        self.sessions: dict[tuple[PeerKey, int], Session] = {}
        # The newest session of each key id and identifier.
        self.identifiers: dict[tuple[int, int], Session] = {}
        self._ended: dict[tuple[PeerKey, int], None] = {}
        self._gathered = gathered
        self._late_flights = late_flights
        self._limits = limits
        self._limits_at_first = limits.at_first
        self._jitter = jitter
        self._retries = retries
        self._ordered = ordered
        self._carry_over = carry_over
        self._swept_at = now

    # --- addresses

    def peer(self, key: PeerKey, now: float) -> Peer:
        """Return the state of a peer, made new if nothing is known of it."""
        peer = self.peers.get(key)
        if peer is None:
            if len(self.peers) >= self._limits.peers and not self._sweep(now, urgent=True):
                raise LimitReached("peers", self._limits.peers)
            peer = Peer(key, self._limits.message_bytes, self._retries, now)
            self.peers[key] = peer
            if self._by_key:
                self._addresses[peer.address] += 1
        return peer

    def _sweep(self, now: float, *, urgent: bool) -> bool:
        """Forget idle addresses; urgently those that were silent for a tenth of the time as
        well, but for those whose messages are still handled."""
        if urgent and now - self._swept_at < 1.0:
            return False
        self._swept_at = now
        silent = now - self._limits.idle_timeout
        limit = now - self._limits.idle_timeout / 10 if urgent else silent
        idle = [
            peer
            for peer in self.peers.values()
            if peer.heard_at < limit
            and peer.idle
            and (
                peer.session is None
                # Who waits for an answer asks ever more seldom.
                or peer.session.heard_at < (silent if peer.session.receiving.owes else limit)
            )
        ]
        for peer in idle:
            self.forget(peer)
        return len(self.peers) < self._limits.peers

    def sweep(self, now: float) -> None:
        """Forget idle addresses, from time to time."""
        if now - self._swept_at >= self._limits.idle_timeout / 4:
            self._sweep(now, urgent=False)

    def forget(self, peer: Peer) -> None:
        """Forget a peer, and end its sessions."""
        self._remove(peer)
        for session in (peer.session, peer.candidate):
            if session is not None:
                self._drop(session)

    def _remove(self, peer: Peer) -> None:
        if self.peers.pop(peer.key, None) is None or not self._by_key:
            return
        self._addresses[peer.address] -= 1
        if not self._addresses[peer.address]:
            del self._addresses[peer.address]

    # --- sessions

    def begin(
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
        """Begin a session with a peer; where there is one, the new one is its candidate."""
        session = Session(
            peer=peer.key,
            identifier=identifier,
            role=role,
            key_id=key_id,
            seal=seal,
            own_random=random,
            terms=terms,
            limits=self._limits,
            limits_at_first=self._limits_at_first,
            queue=SendQueue(),  # that of the peer once it is installed: until then nothing is sent
            settled=self._gathered.settled,
            answered=self._gathered.answers,
            late_flights=self._late_flights,
            tried_at=peer.tried_at,
            jitter=self._jitter,
            ordered=self._ordered,
            now=now,
        )
        self.sessions[(peer.key, identifier)] = session
        self.identifiers[(key_id, identifier)] = session
        if peer.candidate is not None:
            self._drop(peer.candidate)
            peer.candidate = None
        if peer.session is None:
            self._install(peer, session)
        else:
            peer.candidate = session
        return session

    def promote(self, peer: Peer) -> None:
        """Let the candidate take the place of the session that the peer has lost."""
        assert peer.candidate is not None
        if peer.session is not None:
            self.lose(peer, peer.session)  # and the candidate takes its place
        else:
            candidate, peer.candidate = peer.candidate, None
            self._install(peer, candidate)

    def lose(self, peer: Peer, session: Session) -> None:
        """End a session; what is open in it goes to the next one."""
        if (session.peer, session.identifier) not in self.sessions:
            return  # ended by an earlier datagram of the same read
        self._drop(session)
        if peer.candidate is session:
            peer.candidate = None
        if peer.session is session:
            peer.session = None
            # Whoever comes next may take more.
            peer.message_bytes = self._limits.message_bytes
            if self._carry_over:
                peer.queue.put_back(*session.sending.take_open())
            else:
                peer.queue.take_below(peer.queue.enqueued)
            if peer.candidate is not None:
                candidate, peer.candidate = peer.candidate, None
                self._install(peer, candidate)
        if peer.session is None and peer.idle and not peer.failed:
            # Nothing is left to remember: ten thousand short connections must not shut out others.
            self._remove(peer)

    def was_ended(self, peer: PeerKey, identifier: int) -> bool:
        """Whether a session of this name, that the peer began, has ended not long ago."""
        return (peer, identifier) in self._ended

    def _install(self, peer: Peer, session: Session) -> None:
        peer.session = session
        peer.message_bytes = session.message_bytes
        if session.message_bytes < self._limits.message_bytes:
            self._gathered.too_large += peer.queue.take_larger(session.message_bytes)
        session.sending.begin(peer.queue)
        self._gathered.events.append(("opened", session))

    def _drop(self, session: Session) -> None:
        key = (session.peer, session.identifier)
        if self.sessions.pop(key, None) is None:
            return
        if session.role == wire.RESPONDER:
            self._ended[key] = None
            if len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]
        name = (session.key_id, session.identifier)
        if self.identifiers.get(name) is session:
            del self.identifiers[name]
        peer = self.peers.get(session.peer)
        if peer is None or peer.session is session:
            self._gathered.events.append(("lost", session))
