"""Simulated paths between endpoints of acknowledged UDP: virtual time, one seed, no sockets.

A `Path` is one direction: loss, a fixed delay, jitter for some datagrams, duplication, damage, and
a bottleneck with a rate and a queue. A `Host` drives one `Endpoint` as the real driver does.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from msgservice.core.datagram.endpoint import Endpoint
from msgservice.core.datagram.keys import Keys
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.session import Session
from msgservice.core.datagram.wire import REPLY_FAILED, REPLY_OK

Address = tuple[str, int]
# Timers of one moment, far above what all hosts of a world need.
TURNS_MAX = 20_000


@dataclass
class Bottleneck:
    """A rate in bytes/s and a queue in datagrams, shared by all paths that go through it."""

    rate: float
    queue_max: int
    free_at: float = 0.0
    departures: list[float] = field(default_factory=list)
    carried: int = 0
    offered_count: int = 0
    dropped_count: int = 0

    def enter(self, size: int, now: float) -> float | None:
        """Return when the datagram has left the bottleneck, None if its queue is full."""
        self.departures = [at for at in self.departures if at > now]
        self.offered_count += 1
        if len(self.departures) >= self.queue_max:
            self.dropped_count += 1
            return None
        self.free_at = max(self.free_at, now) + size / self.rate
        self.departures.append(self.free_at)
        self.carried += size
        return self.free_at


@dataclass(kw_only=True)
class Path:
    """One direction between two hosts. Seconds and probabilities."""

    delay: float = 0.01
    loss: float = 0.0
    duplicate: float = 0.0
    damage: float = 0.0
    jitter: float = 0.0
    jitter_share: float = 0.0
    bottleneck: Bottleneck | None = None
    down: bool = False


class Host:
    """An endpoint at an address; `handler(body)` answers bytes, None, or raises."""

    def __init__(
        self,
        world: World,
        address: Address,
        *,
        limits: DatagramLimits | None = None,
        keys: Keys | None = None,
        patience: float | None = None,
        retries: int = 3,
        ordered: bool = False,
        by_key: bool = False,
    ) -> None:
        self.world = world
        self.address = address
        self.keys = keys  # that it begins with
        self._options = (limits or DatagramLimits(), patience, retries, ordered, by_key)
        self.handled: list[bytes] = []
        self.sources: list[Address] = []  # of what was handled, in the same order
        self.sessions: list[tuple[Address, int]] = []  # likewise: in which session
        self.key_ids: list[int] = []  # likewise: under which key
        self.lost: list[Session] = []  # sessions that have ended
        self.handler: Callable[[bytes], bytes | None] = lambda body: None
        self.settled: list[object] = []
        self.replies: dict[object, tuple[int, bytes]] = {}
        self.failed: list[tuple[Address, list[object], bool]] = []
        self.too_large: list[tuple[object, int, int]] = []
        self.ordinals: dict[object, list[int]] = {}
        self.sent_bytes = 0
        self.delay_handling = 0.0
        self.stands = False
        self._buffer: list[tuple[bytes, Address]] = []
        self.restart()

    def restart(self, limits: DatagramLimits | None = None) -> None:
        """Begin with nothing, as a new process would; with other limits if some are given."""
        usual, patience, retries, ordered, by_key = self._options
        self.endpoint = Endpoint(
            limits=limits or usual,
            entropy=self.world.random.randbytes,
            jitter=self.world.random.random,
            keys=self.keys,
            patience=patience,
            retries=retries,
            ordered=ordered,
            by_key=by_key,
            now=self.world.now,
        )

    def send(self, to: Address, body: bytes, token: object | None = None) -> None:
        """Send one message; its token is the body itself if none is given."""
        token = body if token is None else token
        peer = self.endpoint.peers.get(to)
        self.ordinals.setdefault(token, []).append(peer.queue.enqueued if peer is not None else 0)
        self.endpoint.send(to, body, token, self.world.now)

    def stand_still(self, seconds: float) -> None:
        """Stop as a process that is sent SIGSTOP: the socket buffers, and no timer fires."""
        self.stands = True
        self.world.later(seconds, self._go_on)

    def _go_on(self) -> None:
        # As a reactor does: what is due first, then what can be read.
        self.stands = False
        self.endpoint.receive_time(self.world.now)
        self.turn()
        buffer, self._buffer = self._buffer, []
        for data, source in buffer:
            self.receive(data, source)

    def receive(self, data: bytes, source: Address) -> None:
        """Take a datagram, and do all that follows from it."""
        if self.stands:
            self._buffer.append((data, source))
            return
        self.endpoint.receive_datagrams(data, 0, source, self.world.now)
        self.turn()

    def _act(self, act: Callable[[], None]) -> None:
        act()
        self.turn()

    def turn(self) -> None:
        """One turn of the driver."""
        endpoint, world = self.endpoint, self.world
        effects = endpoint.take_effects()
        for session, deliveries in effects.deliveries:
            for first, bodies, _ in deliveries:
                for nonce, body in enumerate(bodies, first):
                    self.handled.append(body)
                    self.sources.append(session.address)
                    self.sessions.append((session.address, session.identifier))
                    self.key_ids.append(session.key_id)
                    size = len(body)
                    try:
                        answer = self.handler(body)
                        status = REPLY_OK
                    except ValueError as error:
                        answer, status = str(error).encode(), REPLY_FAILED
                    if answer is None:
                        act = partial(endpoint.handle, session, nonce, nonce, size)
                    else:
                        act = partial(endpoint.reply, session, nonce, status, answer, size)
                    if self.delay_handling:
                        world.later(self.delay_handling, partial(self._act, act))
                    else:
                        act()
        self.lost += [session for event, session in effects.events if event == "lost"]
        self.settled += effects.settled
        for token, ordinal, status, body in effects.answers:
            assert ordinal in self.ordinals[token], "the answer to another message"
            self.replies[token] = (status, body)
        self.failed += effects.failures
        self.too_large += effects.too_large
        for address, datagrams in endpoint.take_datagrams(world.now):
            for datagram in datagrams:
                self.sent_bytes += len(datagram)
                world.transmit(self.address, address, datagram)
        endpoint.catch_up()


class World:
    """Hosts, paths and virtual time, all from one seed."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.hosts: dict[Address, Host] = {}
        self.paths: dict[tuple[Address, Address], Path] = {}
        self.default = Path()
        self.letters: Counter[str] = Counter()
        self.taps: list[Callable[[Address, Address, bytes], bytes | None]] = []
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def host(self, number: int, **options: object) -> Host:
        """Make host number `number`, at 127.0.0.1 with that port."""
        address = ("127.0.0.1", number)
        made = self.hosts[address] = Host(self, address, **options)  # type: ignore[arg-type]  # passed on
        return made

    def path(self, source: Host, to: Host) -> Path:
        """Return the direction's path; the default one until it is replaced."""
        return self.paths.get((source.address, to.address), self.default)

    def later(self, delay: float, act: Callable[[], object]) -> None:
        """Do something after `delay` seconds."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, act))

    def transmit(self, source: Address, to: Address, datagram: bytes) -> None:
        """Carry a datagram over its path."""
        self.letters[chr(datagram[0])] += 1
        for tap in self.taps:
            changed = tap(source, to, datagram)
            if changed is None:
                return
            datagram = changed
        path = self.paths.get((source, to), self.default)
        rng = self.random
        if path.down or rng.random() < path.loss:
            return
        delay = path.delay
        if path.bottleneck is not None:
            out_at = path.bottleneck.enter(len(datagram) + 28, self.now)
            if out_at is None:
                return
            delay += out_at - self.now
        if rng.random() < path.jitter_share:
            delay += rng.uniform(0, path.jitter)
        if rng.random() < path.damage:
            place = rng.randrange(len(datagram))
            changed_byte = datagram[place] ^ (1 << rng.randrange(8))
            datagram = datagram[:place] + bytes([changed_byte]) + datagram[place + 1 :]
        for _ in range(2 if rng.random() < path.duplicate else 1):
            self.later(delay, lambda: self._arrive(to, datagram, source))

    def _arrive(self, to: Address, datagram: bytes, source: Address) -> None:
        host = self.hosts.get(to)
        if host is not None:
            host.receive(datagram, source)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let virtual time pass, at most `seconds`; return whether `until` came true."""
        end = self.now + seconds
        standing = 0
        for host in self.hosts.values():
            host.turn()
        while True:
            if until is not None and until():
                return True
            at = self._queue[0][0] if self._queue else end
            timer: Host | None = None
            for host in self.hosts.values():
                due = None if host.stands else host.endpoint.next_deadline()
                if due is not None and due < at:
                    at, timer = due, host
            if at >= end:
                self.now = end
                return until is not None and until()
            standing = standing + 1 if at <= self.now and timer is not None else 0
            assert standing < TURNS_MAX, "a timer fires again and again, and time stands still"
            self.now = max(self.now, at)
            if timer is not None:
                timer.endpoint.receive_time(self.now)
                timer.turn()
            else:
                _, _, act = heapq.heappop(self._queue)
                act()
