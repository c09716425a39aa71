"""A stage for attacks on acknowledged UDP: one endpoint under attack, two honest peers, a wire.

Whatever the hosts say is held on the wire, where it is passed on, lost, seen and repeated as the
play goes. `datagram_target` writes the plays from bytes; `finish` says what must be so after any.

Who attacks: an *outsider* sees every datagram and sends any bytes from any address, but has no
key. An *insider* is the friend itself, gone mad: it seals whatever it likes. Without a key
everybody could, so there an outsider is one who does not make checksums.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from msgservice.core.datagram import wire
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.keys import Keys, NoKeys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.receiver import NUMBER_RANGES_MAX
from msgservice.core.datagram.recovery import LOST_MAX
from msgservice.core.datagram.session import Session
from msgservice.errors import LimitReached
from tests.simulation.datagram_paths import Address, Host, World

# Small, so that a short play reaches every limit.
LIMITS = DatagramLimits(
    message_bytes=6000,
    window_messages=24,
    window_bytes=16_384,
    queue_messages=200,
    queue_bytes=100_000,
    datagram_bytes=700,
)
TARGET, FRIEND, HEALTHY = (("127.0.0.1", number) for number in (1, 2, 3))
KEYS = Keys({1: bytes(range(32)), 2: bytes(range(1, 33))}, ChaCha20Poly1305)
HANDSHAKE = (wire.HELLO, wire.COOKIE, wire.OPENED, wire.RESET)
# The longest that honest peers may need once the attack is over. A datagram that was held back for
# minutes is a round trip of minutes to them, and every timeout after it is one of a minute.
PATIENCE = 7200.0
# Shorter than any session is kept without a sign of life.
FORGOTTEN = DatagramLimits().idle_timeout - 10


class Held(NamedTuple):
    """A datagram on the wire."""

    source: Address
    to: Address
    datagram: bytes


def answer_to(body: bytes) -> bytes | None:
    """What every honest handler answers; a ValueError is an answer too."""
    kind = len(body) % 5
    if kind < 2:
        return None
    if kind == 2:
        raise ValueError("no")
    return body[:20] if kind == 3 else body[:4] * 600


class Stage:
    """See the module."""

    def __init__(
        self,
        *,
        keyed: bool,
        insider: bool,
        ordered: bool = False,
        patience: float | None = None,
        seed: int = 1,
    ) -> None:
        self.keyed = keyed
        self.insider = insider
        self.ordered = ordered
        self.world = World(seed)
        self.keys: Keys | NoKeys = KEYS if keyed else NoKeys()
        keys = KEYS if keyed else None
        self.target = self.world.host(
            1, keys=keys, limits=LIMITS, ordered=ordered, patience=patience
        )
        self.friend = self.world.host(2, keys=keys, limits=LIMITS, ordered=ordered)
        self.healthy = self.world.host(3, keys=keys, limits=LIMITS, ordered=ordered)
        for host in self.hosts:
            host.handler = answer_to
        self.wire: list[Held] = []  # not passed on yet
        self.seen: list[Held] = []  # all that honest hosts said to each other
        self.arrived: list[Held] = []  # of those, what has arrived
        self.echoes: list[Held] = []  # what they answered to strangers
        self.sent: dict[tuple[Address, Address], list[bytes]] = {}
        self.strange_in: Counter[Address] = Counter()
        self.strange_out: Counter[Address] = Counter()
        self.friend_restarted = False
        self.target_restarted = False
        self.reset_by_outsider: set[Address] = set()
        self._count = 0
        self.world.taps.append(self._hold)

    @property
    def hosts(self) -> tuple[Host, Host, Host]:
        """All who are honest, or were."""
        return self.target, self.friend, self.healthy

    # --- what honest hosts do

    def send(self, source: Host, to: Host, size: int) -> None:
        """Send a message of about this size, unlike every other."""
        self._count += 1
        body = b"%d:" % self._count + bytes([self._count % 251]) * size
        try:
            source.send(to.address, body)
        except LimitReached:
            return
        self.sent.setdefault((source.address, to.address), []).append(body)
        source.turn()

    def pass_on(self, index: int = 0) -> None:
        """Let one datagram arrive."""
        held = self.wire.pop(index)
        self.arrived.append(held)
        self.world.now += 0.0005
        self.world.hosts[held.to].receive(held.datagram, held.source)

    def pass_all(self, rounds: int = 60) -> None:
        """Let datagrams arrive in order, answers too, until the wire is empty."""
        while self.wire and rounds:
            self.pass_on()
            rounds -= 1

    def wait(self, seconds: float) -> None:
        """Let time pass; timers fire, nothing arrives."""
        self.world.run(seconds)

    def restart_friend(self) -> None:
        """Let the friend begin with nothing, as after a crash."""
        self.friend_restarted = True
        self.friend.restart()

    def restart_target(self) -> None:
        """Let the endpoint under attack begin with nothing."""
        self.target_restarted = True
        self.target.restart()

    def _hold(self, source: Address, to: Address, datagram: bytes) -> None:
        held = Held(source, to, datagram)
        if to in self.world.hosts:
            self.wire.append(held)
            self.seen.append(held)
        else:
            self.echoes.append(held)
            self.strange_out[to] += len(datagram)

    # --- what attackers do

    def inject(self, datagram: bytes, source: Address, to: Host, segment: int = 0) -> None:
        """Let any bytes arrive, from any address."""
        before = len(self.echoes)
        if any(datagram == h.datagram and datagram[0] == wire.RESET for h in self.echoes):
            # Of a packet that was let arrive from elsewhere, and so seemed to have moved.
            self.reset_by_outsider.add(to.address)
        if source not in self.world.hosts:
            self.strange_in[source] += len(datagram)
        to.endpoint.receive_datagrams(datagram, segment, source, self.world.now)
        to.turn()
        if len(self.echoes) > before and self._is_first(datagram):
            # Whose packets arrive from elsewhere first has moved, as far as anybody can know.
            del self.echoes[before:]
        for stranger, size in self.strange_out.items():
            assert size <= self.strange_in[stranger], "an answer longer than what was asked"

    def _is_first(self, data: bytes) -> bool:
        arrived = {held.datagram for held in self.arrived}
        return any(h.datagram in data for h in self.seen if h.datagram not in arrived)

    def session_of_friend(self) -> Session | None:
        """Return the session in which the friend speaks to the target."""
        peer = self.friend.endpoint.peers.get(TARGET)
        return None if peer is None else peer.session

    def opened(self, datagram: bytes) -> bytes | None:
        """Return the body of a datagram between target and friend, None where it has none."""
        if len(datagram) < wire.HEADER_BYTES + 4:
            return None
        letter, _, key_id, _, identifier, _ = wire.HEADER.unpack_from(datagram)
        seals: list[wire.Seal | None] = []
        if letter in HANDSHAKE:
            seals.append(self.keys.handshake_seal(key_id, letter))
        for host, other in ((self.target, FRIEND), (self.friend, TARGET)):
            session = host.endpoint.table.sessions.get((other, identifier))
            if session is not None:
                seals.append(session.seal)
        for seal in seals:
            found = None if seal is None else seal.open(datagram, 0, len(datagram))
            if found is not None:
                buffer, start, end = found
                return buffer[start:end]
        return None

    def sealed(self, header: bytes, body: bytes) -> bytes:
        """Return a datagram as the friend seals it; only an insider may ask."""
        assert self.insider
        seal: wire.Seal | None = None
        if header[0] in HANDSHAKE:
            seal = self.keys.handshake_seal(header[2], header[0])
        elif (session := self.session_of_friend()) is not None:
            seal = session.seal
        return (seal or wire.ChecksumSeal()).close(header, body)

    # --- what must be so

    def finish(self) -> None:
        """Check what was, then end the attack and check that honest peers are served."""
        self._check_bounds()
        self.world.taps.clear()
        self.wire.clear()
        self.send(self.healthy, self.target, 3)
        self.send(self.target, self.healthy, 8)
        if not self.insider:
            self.send(self.friend, self.target, 1)
            self.send(self.target, self.friend, 2)
        served = self.world.run(PATIENCE, until=self._served)
        self._check_bounds()
        self._check_deliveries()
        assert served, f"not served in {PATIENCE:g} s"

    def _pairs(self) -> list[tuple[Host, Host]]:
        """Who may expect to be served: every honest host that did not forget what it sent."""
        pairs = [(self.healthy, self.target)]
        if not self.target_restarted:
            pairs.append((self.target, self.healthy))
        if not self.insider:
            if not self.friend_restarted:
                pairs.append((self.friend, self.target))
            if not self.target_restarted:
                pairs.append((self.target, self.friend))
        return pairs

    def _served(self) -> bool:
        for source, to in self._pairs():
            sent = self.sent.get((source.address, to.address), ())
            if not {*source.settled, *source.replies, *self._given_up(source)}.issuperset(sent):
                return False
        return True

    def _given_up(self, host: Host) -> list[object]:
        return [token for _, tokens, _ in host.failed for token in tokens]

    def _check_bounds(self) -> None:
        for host in self.hosts:
            endpoint = host.endpoint
            assert set(endpoint.peers) <= set(self.world.hosts), "state for a stranger"
            check_endpoint(endpoint)

    def _check_deliveries(self) -> None:
        """Nothing that was not sent, nothing twice, every answer the right one."""
        for host in self.hosts:
            tokens = [*host.settled, *host.replies, *self._given_up(host)]
            assert len(tokens) == len(set(tokens)), "settled twice"
        for source, to in (
            (self.healthy, self.target),
            (self.target, self.healthy),
            (self.friend, self.target),
            (self.target, self.friend),
        ):
            friend = self.friend in (source, to)
            if friend and (self.insider or not self.keyed):
                continue
            sent = self.sent.get((source.address, to.address), [])
            handled = [
                body
                for body, address in zip(to.handled, to.sources, strict=True)
                if address == source.address
            ]
            assert set(handled) <= set(sent), "a delivery that was not sent"
            for body, (status, answer) in source.replies.items():
                if body in sent:
                    check_answer(body, status, answer)
            forgot = self.world.now > FORGOTTEN or self.target_restarted or to.failed
            reset = source.address in self.reset_by_outsider
            if forgot or reset or (friend and self.friend_restarted and to is self.friend):
                continue  # who forgets may handle again what it had not answered
            assert len(handled) == len(set(handled)), "handled twice"
            if self.ordered:
                assert handled == [body for body in sent if body in set(handled)], "out of order"


def check_answer(body: object, status: int, answer: bytes) -> None:
    """Check that an answer is the one to this message."""
    assert isinstance(body, bytes)
    try:
        expected = (wire.REPLY_OK, answer_to(body))
    except ValueError as error:
        expected = (wire.REPLY_FAILED, str(error).encode())
    assert expected == (status, answer)


def check_endpoint(endpoint: Endpoint) -> None:
    """Check that what an endpoint holds is within its limits."""
    limits = endpoint.limits
    sessions = endpoint.table.sessions
    for peer in endpoint.peers.values():
        known = [s for s in (peer.session, peer.candidate) if s is not None]
        assert all(sessions[peer.key, s.identifier] is s for s in known)
    addresses = Counter(address for address, _ in sessions)
    assert set(addresses) <= set(endpoint.peers), "a session without its peer"
    assert max(addresses.values(), default=0) <= 2, "sessions that nobody knows"
    for session in sessions.values():
        receiving, sending = session.receiving, session.sending
        held = receiving.reassembly.size
        assert 0 <= held <= limits.window_bytes + limits.message_bytes
        partial = sending._replies_partial
        assert (
            partial is None or 0 <= partial.size <= limits.congestion_bytes + limits.message_bytes
        )
        taken = receiving.taken_bytes - receiving.handled_bytes
        assert 0 <= taken <= limits.window_bytes + 2 * limits.message_bytes, taken
        assert len(receiving.older) <= NUMBER_RANGES_MAX
        assert len(receiving.taken) <= limits.window_messages + 1
        assert len(session.flight.recovery._lost) <= LOST_MAX
        assert session.flight.congestion.in_flight == sum(
            size for _, size, _ in session.flight.recovery.in_flight.values()
        )
        open_messages = sum(1 for _ in sending.open_messages())
        assert sending.open == open_messages, (sending.open, open_messages)
