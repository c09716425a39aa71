"""A stage for a listener with a key for each user: two honest users, and one who has a key too.

Mallory is on the path: it sees each datagram, may send any from any address, and has a key of its
own, besides every key that was taken out of the listener's file. It plays the protocol as well as
anybody (`Ghost`), from addresses that are not its own. What it cannot do is open what was sealed
with the key of another, or keep a datagram for later that has not arrived: whoever cuts the path
can do more, with any keys.

`keys_target` writes the plays from bytes; `check` and `finish` say what must be so.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from msgservice.core.datagram import wire
from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.keys import Keys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.errors import LimitReached
from tests.fuzz.datagram_stage import check_endpoint
from tests.simulation.datagram_paths import Address, World

LIMITS = DatagramLimits(
    message_bytes=6000,
    window_messages=24,
    window_bytes=16_384,
    queue_messages=200,
    queue_bytes=100_000,
    datagram_bytes=700,
)
NODE, SHOP, BILLING, MALLORY = (("127.0.0.1", number) for number in (1, 2, 3, 4))
USERS = {1: SHOP, 2: BILLING, 3: MALLORY}  # who holds the key of this number
NAMES = {SHOP: b"shop", BILLING: b"billing", MALLORY: b"mallory"}
PATIENCE = 7200.0
FORGOTTEN = DatagramLimits().idle_timeout - 10


class Held(NamedTuple):
    """A datagram on its way."""

    source: Address
    to: Address
    datagram: bytes


class Ghost:
    """An endpoint of Mallory's, which seems to be at the address of somebody else.

    It has a key, Mallory's own or one that was taken out, and does all that the protocol wants.
    """

    def __init__(self, stage: Stage, at: Address, number: int, key: bytes) -> None:
        self.at = at
        self.number = number
        self._stage = stage
        self.endpoint = Endpoint(
            limits=LIMITS,
            entropy=stage.world.random.randbytes,
            jitter=stage.world.random.random,
            keys=Keys({number: key}, ChaCha20Poly1305),
            now=stage.world.now,
        )

    def say(self, size: int) -> None:
        """Send a message to the node, or the hello before it."""
        body = self._stage.body(MALLORY, size)
        try:
            self.endpoint.send(NODE, body, body, self._stage.world.now)
        except LimitReached:
            return
        self.turn()

    def hear(self, datagram: bytes) -> None:
        """Take what the node said to the address."""
        self.endpoint.receive_datagrams(datagram, 0, NODE, self._stage.world.now)
        self.turn()

    def turn(self) -> None:
        """Let what it has to say arrive at the node, as from its address."""
        endpoint, world = self.endpoint, self._stage.world
        endpoint.receive_time(world.now)
        for session, deliveries in endpoint.take_effects().deliveries:
            for first, bodies, _ in deliveries:
                size = sum(map(len, bodies))
                endpoint.handle(session, first, first + len(bodies) - 1, size)
        for _, datagrams in endpoint.take_datagrams(world.now):
            for datagram in datagrams:
                self._stage.inject(datagram, self.at)
        endpoint.catch_up()


class Stage:
    """See the module."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.keys = {number: bytes([number]) * 32 for number in USERS}
        self.node = self.world.host(
            1, keys=Keys(self.keys, ChaCha20Poly1305), limits=LIMITS, by_key=True
        )
        self.users = {
            address: self.world.host(
                address[1], keys=Keys({number: self.keys[number]}, ChaCha20Poly1305), limits=LIMITS
            )
            for number, address in USERS.items()
            if address != MALLORY
        }
        # What Mallory can seal with: its own key, and those that are not in use any more.
        self.stolen: list[tuple[int, bytes]] = [(3, self.keys[3])]
        self.ghosts: list[Ghost] = []
        self.wire: list[Held] = []
        self.arrived: list[Held] = []
        self.sent: dict[Address, list[bytes]] = {address: [] for address in self.users}
        self.changed: set[Address] = set()  # whose key was another for a while
        self.is_over = False
        self._count = 0
        self._fresh = 100
        self.world.taps.append(self._hold)

    def body(self, author: Address, size: int) -> bytes:
        """Return a message of this author, unlike every other."""
        self._count += 1
        return b"%s:%d:" % (NAMES[author], self._count) + bytes(size)

    # --- what honest users do

    def say(self, user: Address, size: int) -> None:
        """Let a user send a message to the node."""
        body = self.body(user, size)
        try:
            self.users[user].send(NODE, body)
        except LimitReached:
            return
        self.sent[user].append(body)
        self.users[user].turn()

    def pass_on(self, index: int = 0) -> None:
        """Let a datagram arrive; what the node says is heard at that address by ghosts too."""
        held = self.wire.pop(index)
        self.arrived.append(held)
        self.world.now += 0.0005
        host = self.world.hosts.get(held.to)
        if host is not None:
            host.receive(held.datagram, held.source)
        for ghost in list(self.ghosts):
            if ghost.at == held.to:
                ghost.hear(held.datagram)

    def pass_all(self, rounds: int = 80) -> None:
        """Let datagrams arrive in order, answers too."""
        while self.wire and rounds:
            self.pass_on()
            rounds -= 1

    def _hold(self, source: Address, to: Address, datagram: bytes) -> bytes | None:
        if self.is_over:
            return datagram
        self.wire.append(Held(source, to, datagram))
        return None

    # --- keys

    def change(self, number: int) -> None:
        """Give a user another key; the old one is Mallory's from now on."""
        self._steal(number)
        self._fresh += 1
        self._take({**self.keys, number: bytes([self._fresh]) * 32}, {number})

    def take_out(self, number: int) -> None:
        """Take a key out of the listener's file."""
        rest = {one: key for one, key in self.keys.items() if one != number}
        if number in self.keys and rest:
            self._steal(number)
            self._take(rest, {number})

    def put_back(self) -> None:
        """Give each user a key again that has none."""
        for number in set(USERS) - set(self.keys):
            self._fresh += 1
            self._take({**self.keys, number: bytes([self._fresh]) * 32}, set())

    def _steal(self, number: int) -> None:
        if number in self.keys:
            self.stolen.append((number, self.keys[number]))

    def _take(self, keys: dict[int, bytes], ended: Collection[int]) -> None:
        self.keys = keys
        now = self.world.now
        self.node.keys = Keys(keys, ChaCha20Poly1305)
        self.node.endpoint.change_keys(self.node.keys, ended, now)
        assert not [s for s in self.node.endpoint.table.sessions.values() if s.key_id in ended]
        self.node.turn()
        for number, address in USERS.items():
            key = keys.get(number)
            if number in ended:
                self.changed.add(address)
            if key is None or address == MALLORY:
                if key is not None:
                    self.stolen.append((number, key))
                continue
            host = self.users[address]
            own = Keys({number: key}, ChaCha20Poly1305)
            if address in self.changed:
                host.endpoint.change_keys(own, {number}, now)
                host.turn()

    # --- what Mallory does

    def inject(
        self, datagram: bytes, source: Address, to: Address = NODE, segment: int = 0
    ) -> None:
        """Let any bytes arrive, from any address."""
        host = self.world.hosts[to]
        host.endpoint.receive_datagrams(datagram, segment, source, self.world.now)
        host.turn()

    def ghost(self, at: Address, which: int) -> Ghost:
        """Let Mallory begin at an address, with one of the keys that it has."""
        number, key = self.stolen[which % len(self.stolen)]
        made = Ghost(self, at, number, key)
        self.ghosts = [*self.ghosts[-3:], made]
        return made

    def sealed(self, header: bytes, body: bytes, which: int) -> bytes:
        """Return a datagram sealed with one of Mallory's keys, whatever its header says."""
        number, key = self.stolen[which % len(self.stolen)]
        letter = header[0]
        seal: wire.Seal | None = None
        if letter in (wire.MESSAGES, wire.ACKNOWLEDGEMENT):
            for ghost in self.ghosts:
                peer = ghost.endpoint.peers.get(NODE)
                if peer is not None and peer.session is not None:
                    seal = peer.session.seal
        else:
            seal = Keys({number: key}, ChaCha20Poly1305).handshake_seal(number, letter)
        return (seal or wire.ChecksumSeal()).close(header, body)

    # --- what must be so

    def check(self) -> None:
        """Check what must be so at any time."""
        check_endpoint(self.node.endpoint)
        table = self.node.endpoint.table
        sessions = table.sessions.values()
        assert {session.key_id for session in sessions} <= set(self.keys), "a key that is gone"
        assert set(table._addresses) == {peer.address for peer in self.node.endpoint.peers.values()}
        for body, number in zip(self.node.handled, self.node.key_ids, strict=True):
            author = body.partition(b":")[0]
            assert author == NAMES[USERS[number]], "a message under the key of another"
        for address, host in self.users.items():
            assert host.handled == [], "the node said nothing of its own"
            told = {*map(bytes, host.settled), *host.replies}  # type: ignore[arg-type]  # bodies
            assert told <= {*self.node.handled}, "taken by somebody else than the node"
            assert not [b for b in self.node.handled if b.startswith(NAMES[address] + b":")
                        and b not in self.sent[address]], "never sent"  # fmt: skip
            if address not in self.changed and self.world.now < FORGOTTEN:
                assert host.lost == [], "a session that somebody else has ended"
                own = [b for b in self.node.handled if b.startswith(NAMES[address] + b":")]
                assert len(own) == len(set(own)), "handled twice"

    def finish(self) -> None:
        """End the attack, and check that honest users are served."""
        self.check()
        self.put_back()
        self.is_over = True
        self.ghosts.clear()
        self.wire.clear()
        for user in self.users:
            self.say(user, 5)
        served = self.world.run(PATIENCE, until=self._served)
        self.check()
        assert served, f"not served in {PATIENCE:g} s"

    def _served(self) -> bool:
        return all(
            set(self.sent[address]) <= {*host.settled, *host.replies}
            for address, host in self.users.items()
        )
