"""How sessions of acknowledged UDP begin and are reset: cookies, hellos, what strangers may cost.

Called by `core.datagram.endpoint` with datagrams of the handshake and packets of no session; what
is to be answered is returned. Nothing is kept for an address that has not shown, by a cookie, that
it receives what is sent to it, and what is answered before that is never longer than what came.
`docs/udp.md` describes the exchange.
"""

from __future__ import annotations

from collections.abc import Callable

from msgservice.core.datagram import wire
from msgservice.core.datagram.cookie import CookieJar, PeerKey
from msgservice.core.datagram.keys import Keys, NoKeys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.peers import Budget, Opening, Peer
from msgservice.core.datagram.recovery import RTO_INITIAL
from msgservice.core.datagram.session import Session
from msgservice.core.datagram.table import SessionTable
from msgservice.core.datagram.unopened import UnopenedHellos
from msgservice.errors import LimitReached

# With a cookie that was not answered so often, the other side may have a new secret, or have ended
# a session of this name that we never heard of: ask for another, under another name.
HELLOS_PER_COOKIE = 3
# Handshakes that go unanswered are repeated at least so often, in seconds: one small datagram.
HANDSHAKE_MAX = 10.0
# So many are repeated after the same time, as losses want it; what lasts longer is no loss, and the
# time doubles.
HELLOS_LINEAR = 4
# Before one is repeated to who has answered before: three of its round trips, as RFC 6298 has it
# after a first sample, and so much more.
HELLO_MARGIN = 0.1


class Handshakes:
    """The handshakes of an endpoint: open and reset sessions of `table`.

    `counters`: those of the endpoint. `entropy`, `jitter`, `keys`: see `Endpoint`.
    """

    def __init__(
        self,
        table: SessionTable,
        counters: dict[str, int],
        *,
        limits: DatagramLimits,
        keys: Keys | NoKeys,
        entropy: Callable[[int], bytes],
        jitter: Callable[[], float],
    ) -> None:
        self.unopened = UnopenedHellos()
        self._table = table
        self._counters = counters
        self._limits = limits
        self._limits_at_first = limits.at_first
        self._keys = keys
        self._entropy = entropy
        self._jitter = jitter
        self._jar = CookieJar(entropy(32), limits.cookie_seconds)
        # Looked into: apart, so that a flood of the one keeps out none of the other.
        self._hellos = Budget(limits.strangers_per_second)
        self._packets = Budget(limits.strangers_per_second)
        # Answered: a flood of those who have shown nothing costs no cookie of who has one.
        self._cookies = Budget(limits.handshakes_per_second)
        self._proven = Budget(limits.handshakes_per_second)
        self._resets = Budget(limits.resets_per_second)
        # What an address without state may send, and what limits it.
        self._strangers = {
            wire.HELLO: (self._hellos, self._hellos),
            wire.MESSAGES: (self._packets, self._resets),
            wire.ACKNOWLEDGEMENT: (self._packets, self._resets),
        }

    def ignores(self, letter: int, now: float) -> bool:
        """Whether a datagram that begins with this byte is ignored if its address is not in
        `peers`.

        For the driver, so that a flood costs no more than being read: `receive_datagrams` would
        come to the same.
        """
        budgets = self._strangers.get(letter)
        if budgets is not None and now >= budgets[0].next_at and now >= budgets[1].next_at:
            return False
        self._counters["ignored"] += 1
        return True

    def change_keys(self, keys: Keys) -> None:
        """Use these keys from now on, and no others."""
        self._keys = keys

    def open(self, peer: Peer, now: float) -> None:
        """Begin a handshake: a hello is due at once."""
        identifier = int.from_bytes(self._entropy(8), "big")
        peer.opening = Opening(identifier, self._entropy(wire.RANDOM_BYTES), now)

    def _sealed(self, letter: int, role: int, key_id: int, identifier: int, body: bytes) -> bytes:
        salt = int.from_bytes(self._entropy(8), "big")
        header = wire.HEADER.pack(letter, wire.VERSION, key_id, role, identifier, salt)
        seal = self._keys.handshake_seal(key_id, letter)
        assert seal is not None
        return seal.close(header, body)

    def _terms(self, random: bytes) -> bytes:
        limits, at_first = self._limits, self._limits_at_first
        return wire.TERMS.pack(
            random,
            at_first.window_messages,
            at_first.window_bytes,
            limits.message_bytes,
            limits.datagram_bytes,
        )

    def give_up(self, peer: Peer) -> None:
        """End a handshake that this side began, if there is one."""
        peer.opening = None

    def hello(self, peer: Peer, opening: Opening, now: float) -> bytes:
        """Return the next hello of a handshake, and set when it is repeated."""
        if opening.tries:
            peer.tried_at.append(now)
        opening.tries += 1
        opening.tries_cookie += 1
        if opening.cookie and opening.tries_cookie > HELLOS_PER_COOKIE:
            opening.identifier = int.from_bytes(self._entropy(8), "big")
            opening.random = self._entropy(wire.RANDOM_BYTES)
            opening.cookie = b""
            opening.tries_cookie = 1
            opening.wait = RTO_INITIAL
        if opening.tries == 1 and not opening.cookie:
            opening.began_at = now
        first = opening.wait * (1 + self._jitter() / 2)
        wait = first * 2 ** min(max(opening.tries - HELLOS_LINEAR, 0), 8)
        opening.at = now + min(wait, HANDSHAKE_MAX)
        body = self._terms(opening.random) + (opening.cookie or wire.NO_COOKIE)
        return self._sealed(
            wire.HELLO, wire.INITIATOR, self._keys.current, opening.identifier, body
        )

    def receive(
        self,
        letter: int,
        data: bytes,
        start: int,
        end: int,
        key_id: int,
        role: int,
        identifier: int,
        source: PeerKey,
        now: float,
    ) -> bytes | None:
        """Take a datagram of the handshake, and return the answer to it, if any."""
        known = False
        if letter == wire.HELLO:
            peer = self._table.peers.get(source)
            known = peer is not None and peer.opening is not None
            if not known and not self._hellos.spend(now):
                self._counters["ignored"] += 1
                return None
        elif letter not in (wire.COOKIE, wire.OPENED, wire.RESET):
            self._counters["ignored"] += 1
            return None
        seal = self._keys.handshake_seal(key_id, letter)
        opened = seal.open(data, start, end) if seal is not None else None
        if opened is None:
            self._counters["forged"] += 1
            if letter == wire.HELLO:
                self.unopened.add(source[:2], key_id, is_known=seal is not None, now=now)
            return None
        buffer, at, behind = opened
        size = behind - at
        if letter == wire.HELLO and role == wire.INITIATOR and size == wire.HELLO_BODY_BYTES:
            body = buffer[at:behind]
            return self._receive_hello(body, key_id, identifier, source, now, known=known)
        if letter == wire.COOKIE and role == wire.RESPONDER and size == wire.COOKIE_BYTES:
            self._receive_cookie(buffer[at:behind], key_id, identifier, source, now)
        elif letter == wire.OPENED and role == wire.RESPONDER and size == wire.TERMS.size:
            self._receive_opened(buffer, at, key_id, identifier, source, now)
        elif letter == wire.RESET and size == wire.RESET_BODY.size:
            (echo,) = wire.RESET_BODY.unpack_from(buffer, at)
            self._receive_reset(echo, role, key_id, identifier, source)
        else:
            self._counters["ignored"] += 1
        return None

    def _receive_hello(
        self,
        body: bytes,
        key_id: int,
        identifier: int,
        source: PeerKey,
        now: float,
        *,
        known: bool,
    ) -> bytes | None:
        """Answer a hello that was sealed with a key; `known`: to its address this side began."""
        try:
            terms = wire.decode_terms(body, 0)
        except wire.DecodeErrors:
            self._counters["ignored"] += 1
            return None
        cookie = body[wire.TERMS.size :]
        is_proven = self._jar.check(cookie, source, identifier, terms.random, now)
        if not known and not (self._proven if is_proven else self._cookies).spend(now):
            self._counters["ignored"] += 1
            return None
        self._counters["handshakes"] += 1
        if not is_proven:
            cookie = self._jar.make(source, identifier, terms.random, now)
            return self._sealed(wire.COOKIE, wire.RESPONDER, key_id, identifier, cookie)
        table = self._table
        session = table.sessions.get((source, identifier))
        if session is not None:  # the answer was lost: the same again
            return self._opened(session) if session.role == wire.RESPONDER else None
        if table.was_ended(source, identifier):
            # An H that the net or somebody repeated. A session made of it would have the name of
            # one that the sender may still take for alive, and another key: each would hold what
            # the other says for forged. A sender that had no answer comes under another name.
            self._counters["ignored"] += 1
            return None
        try:
            peer = table.peer(source, now)
        except LimitReached:
            self._counters["refused_peers"] += 1
            return None
        opening = peer.opening
        if opening is not None:
            if opening.identifier < identifier:
                return None  # both began: the lower session id wins, and ours is on its way
            peer.opening = None
        random = self._entropy(wire.RANDOM_BYTES)
        seal = self._keys.session_seal(key_id, wire.RESPONDER, terms.random, random)
        session = table.begin(peer, identifier, wire.RESPONDER, key_id, seal, random, terms, now)
        return self._opened(session)

    def _opened(self, session: Session) -> bytes:
        return self._sealed(
            wire.OPENED,
            wire.RESPONDER,
            session.key_id,
            session.identifier,
            self._terms(session.own_random),
        )

    def _opening(self, source: PeerKey, identifier: int, key_id: int) -> Opening | None:
        peer = self._table.peers.get(source)
        opening = peer.opening if peer is not None else None
        if opening is None or opening.identifier != identifier or key_id != self._keys.current:
            self._counters["ignored"] += 1
            return None
        return opening

    def _receive_cookie(
        self, cookie: bytes, key_id: int, identifier: int, source: PeerKey, now: float
    ) -> None:
        opening = self._opening(source, identifier, key_id)
        if opening is None:
            return
        if not opening.cookie:
            if opening.tries == 1:  # it is known which one was answered
                trip = now - opening.began_at
                opening.wait = min(3 * trip + HELLO_MARGIN, RTO_INITIAL)
            opening.cookie = cookie
            opening.tries_cookie = 0
            opening.tries = 0
            opening.at = now

    def _receive_opened(
        self, buffer: bytes, at: int, key_id: int, identifier: int, source: PeerKey, now: float
    ) -> None:
        opening = self._opening(source, identifier, key_id)
        if opening is None:
            return
        try:
            terms = wire.decode_terms(buffer, at)
        except wire.DecodeErrors:
            self._counters["ignored"] += 1
            return
        peer = self._table.peers[source]
        seal = self._keys.session_seal(key_id, wire.INITIATOR, opening.random, terms.random)
        peer.opening = None
        self._table.begin(
            peer, identifier, wire.INITIATOR, key_id, seal, opening.random, terms, now
        )
        peer.heard_at = now
        peer.failed = False

    # --- resets

    def reset(
        self,
        data: bytes,
        start: int,
        end: int,
        key_id: int,
        identifier: int,
        number: int,
        source: PeerKey,
        now: float,
    ) -> bytes | None:
        """Return the answer to a packet of an unknown session: shorter than it, not too often.

        A session that is known at another address has moved, if the packet is a new one of its.
        An old one was repeated by somebody who wants the answer: sent on to the real address, it
        would end the session there.
        """
        if not self._packets.spend(now):
            self._counters["ignored"] += 1
            return None
        seal = self._keys.handshake_seal(key_id, wire.RESET)
        known = self._table.identifiers.get((key_id, identifier))
        peer = self._table.peers.get(source)
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
            self._counters["ignored"] += 1
            return None
        size = wire.HEADER_BYTES + wire.RESET_BODY.size + seal.overhead
        if isinstance(seal, wire.ChecksumSeal) and seal.open(data, start, end) is None:
            self._counters["forged"] += 1
            return None
        if end - start < size or not self._resets.spend(now):
            self._counters["ignored"] += 1
            return None
        self._counters["resets"] += 1
        role = 1 - (data[start + 3] & 1)
        body = wire.RESET_BODY.pack(number)
        return self._sealed(wire.RESET, role, key_id, identifier, body)

    def _receive_reset(
        self, echo: int, role: int, key_id: int, identifier: int, source: PeerKey
    ) -> None:
        session = self._table.sessions.get((source, identifier))
        if session is not None:
            session.flight.catch_up()
        if (
            session is None
            or role == session.role
            # Whoever has another key of ours, an old one say, has no say in this session.
            or key_id != session.key_id
            or echo not in session.flight.recovery.in_flight
        ):
            self._counters["ignored"] += 1
            return
        peer = self._table.peers.get(source)
        if peer is not None:
            self._table.lose(peer, session)
