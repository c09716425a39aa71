"""The whole service in virtual time: producers, a node, receivers, and links of both kinds.

Client, node and receiver are the real ones, and so is all of acknowledged UDP; only the network
is a `FaultyWorld`, the log is in memory, and time is a `Clock`. One seed is one history: which
link is TCP-like and which is UDP, with a key or without, who is killed when, what fails.

    shop, web ─► node ─► attached (all), picky (some subjects), dialled (all; the node dials it)

Everybody is a `Process` of its own that may be killed between any two events, also while it stops:
its memory, its sockets and its sessions are gone, and it comes back at the same address. Disks
outlive it: the node's log, and a receiver's stored inbox where it has one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.errors import ClientClosed, Reject, Retry
from msgservice.log.memory import MemoryLog
from msgservice.message import Status
from msgservice.node.node import Node
from msgservice.receiver.inbox.file import InboxFile
from msgservice.receiver.receiver import Receiver
from msgservice.receiver_options import ReceiverOptions
from msgservice.records import Account, ReceiverRow
from msgservice.recount import recount
from msgservice.testing.datagrams import datagram_net
from msgservice.testing.network import Faults, FaultyWorld
from msgservice.testing.transport import FaultyTransport, Process
from msgservice.transport.registry import Transports
from msgservice.transport.udp.transport import UdpPort, UdpTransport
from tests.kit.inline import by_seed
from tests.kit.limits import Limits
from tests.kit.simdisk import SimThreads, close_as_killed
from tests.simulation.udp_watch import UdpWatch, WatchedTransport

# Crashes count as attempts of what is probed, and are not what is meant here; the node pauses its
# producers now and then.
LIMITS = Limits(
    link_delay_max=3.0, retry_delay_max=3.0, max_attempts=1000, uncommitted_bytes=16 * 1024
)
SUBJECTS = ("lane.1", "lane.2", "lane.3")
PRODUCERS = ("shop", "web")
PATTERNS = {"attached": (">",), "picky": ("lane.1", "lane.2"), "dialled": (">",)}
LINKS = (*PRODUCERS, *PATTERNS)
KINDS = ("tcp", "udp")
DISK_DELAY = 0.003
DRAIN_SECONDS = 1800
# Until a node has missed everybody who was killed, and forgotten them: 2.5 heartbeats and a close.
FORGOTTEN_SECONDS = LIMITS.heartbeat * LIMITS.silence + 2 * LIMITS.close_timeout
TABLE = "create table if not exists done(n integer primary key, body blob)"


class HandlerFault(Exception):
    """What a handler raises by the way; it is logged."""


def weather_of(random: Random) -> Faults:
    """Draw what fails, and how often: some kinds never, so that others are seen alone."""
    pick = random.choice
    return Faults(
        delay=(0.001, pick([0.002, 0.05, 0.2])),
        split=pick([0.0, 0.5]),
        hold=pick([0.0, 0.02, 0.05]),
        cut=pick([0.0, 0.02, 0.12]),
        half_open=pick([0.0, 5.0, 20.0]),
        loss=pick([0.0, 0.05, 0.2, 0.4]),
        duplicate=pick([0.0, 0.05, 0.2]),
        reorder=pick([0.0, 0.3, 0.8]),
        damage=pick([0.0, 0.01, 0.05]),
        busy=pick([0.0, 0.1, 0.5]),
        partition=pick([0.0, 0.001, 0.004]),
    )


class System:
    """Everybody. `kinds`: of links, drawn for each; `faults`: None: drawn too.

    `mortal`: who is killed now and then, and `stops`: the chance of stopping in order before that;
    `inbox`: receivers have one on disk; `handlers_fail`: the chance that a message makes them
    raise; `early`: a planted bug, handlers end before their work does.
    """

    def __init__(
        self,
        seed: int,
        folder: Path,
        *,
        faults: Faults | None = None,
        kinds: Sequence[str] = KINDS,
        order: str = "strict",
        mortal: Sequence[str] = (),
        inbox: bool = False,
        handlers_fail: float = 0.0,
        stops: float = 0.3,
        early: bool = False,
    ) -> None:
        self.world = FaultyWorld(seed, faults=faults, limits=LIMITS)
        if faults is None:
            self.world.faults = weather_of(self.world.random)
        self.net = datagram_net(self.world)
        self.watch = UdpWatch()
        self.failures: list[Exception] = []
        self.order = order
        self.handlers_fail = handlers_fail
        self.stops = stops
        self.early = early
        self.is_healed = False
        self.mortal = tuple(mortal)
        self.kills: dict[str, int] = {}
        self.kinds = {name: self.world.random.choice(kinds) for name in LINKS}
        self.world.tell(f"{self.kinds}, {self.world.faults}")
        self._key = self._make_key(folder) if self.world.happens(0.3) else ""
        self.node = self.make_node()
        self.receivers = {
            name: ReceiverParty(self, name, folder / f"{name}.db" if inbox else None)
            for name in PATTERNS
        }
        self.producers = {name: ProducerParty(self, name) for name in PRODUCERS}
        self.parties: dict[str, Party] = {
            "node": self.node,
            **self.receivers,
            **self.producers,
        }
        for party in self.parties.values():
            party.start()

    def make_node(self) -> NodeParty:
        """Make the node; a test may want another."""
        return NodeParty(self, "node")

    def _make_key(self, folder: Path) -> str:
        path = folder / "key"
        path.write_text(self.world.random.randbytes(32).hex())
        return f":key={path}"

    # --- addresses

    def node_addresses(self) -> list[str]:
        """Where the node listens."""
        return ["faulty:node", f"udp:7410{self._key}"]

    def address_of_node(self, name: str) -> str:
        """What `name` dials."""
        return "faulty:node" if self.kinds[name] == "tcp" else f"udp:127.0.0.1:7410{self._key}"

    def listening(self, name: str, *, dialled: bool) -> str:
        """Where the receiver `name` listens; how that is dialled."""
        if self.kinds[name] == "tcp":
            return f"faulty:{name}"
        host = "127.0.0.1:" if dialled else ""
        return f"udp:{host}7420{self._key}"

    def transports(self, process: Process) -> Transports:
        """Return those of one process."""
        random = self.world.random
        udp = UdpTransport(rng=random.random, entropy=random.randbytes)
        return Transports([FaultyTransport(self.world, process), WatchedTransport(self.watch, udp)])

    # --- what a test does

    @property
    def knows_all(self) -> bool:
        """Whether the audience of what is sent now is complete."""
        node = self.node.service
        return node.is_running and all(node.parts.directory.get(name) for name in PATTERNS)

    def settle_in(self) -> None:
        """Let everybody find each other."""
        self.world.run_until(lambda: self.knows_all, seconds_max=600)
        self.world.run(1)  # what the node knows is on its disk, too

    def begin_killing(self) -> None:
        """Kill somebody mortal every now and then, until `heal`."""
        self.world.clock.callLater(self.world.between((0.5, 8.0)), self._kill_one)

    def _kill_one(self) -> None:
        if self.is_healed:
            return
        world = self.world
        party = self.parties[world.random.choice(self.mortal)]
        if party.is_up:
            self.kills[party.name] = self.kills.get(party.name, 0) + 1
            if world.happens(self.stops):
                party.leave()
                world.clock.callLater(world.between((0.1, 8.0)), self._kill, party)
            else:
                self._kill(party)
        self.begin_killing()

    def _kill(self, party: Party) -> None:
        party.kill()
        self.world.clock.callLater(self.world.between((0.01, 4.0)), party.start)

    def send_all(self, count: int) -> None:
        """Send in bursts, while time passes."""
        random = self.world.random
        for number in range(count):
            party = self.producers[random.choice(PRODUCERS)]
            if party.is_up:
                party.send(number)
            if random.random() < 0.3:
                self.world.run(random.uniform(0, 1.0))

    def heal(self) -> None:
        """No more faults, of nobody; then everything must come to its end."""
        self.is_healed = True
        self.world.heal()
        self.world.run(15)  # those that leave, or were just killed, come back
        assert all(party.is_up for party in self.parties.values())

    def drain(self) -> None:
        """Wait until all that was sent is final, also what its dead senders were not told of."""
        end = self.world.clock.seconds() + DRAIN_SECONDS
        while any(account.queued for account in self.accounts()) or not all(
            party.is_done for party in self.producers.values()
        ):
            self.check_sessions()
            assert self.world.clock.seconds() < end, "not drained:\n" + "\n".join(
                self.world.story[-20:]
            )

    def accounts(self) -> list[Account]:
        """Return what the node's log says of each receiver, a second later."""
        accounts: list[Account] = []
        self.node.log.accounts().addCallback(accounts.extend)
        self.world.run(1)
        assert len(PATTERNS) == len(accounts)
        return accounts

    def play(self, count: int) -> None:
        """Send under faults, heal, wait."""
        self.settle_in()
        if self.mortal:
            self.begin_killing()
        self.send_all(count)
        self.world.run(30)
        self.heal()
        self.drain()
        self.check()

    # --- what must be so at the end

    def expected(self, name: str) -> set[bytes]:
        """The bodies that were accepted for this receiver, as their senders were told."""
        return {
            body
            for party in self.producers.values()
            for body, receipt in party.accepted.items()
            if name in receipt.statuses
        }

    def check(self) -> None:
        """Raise `AssertionError` where a rule was broken."""
        assert self.failures == []
        self.check_sessions()
        sent = {body for party in self.producers.values() for body in party.sent}
        for name, party in self.receivers.items():
            assert self.expected(name) <= party.ended, f"{name} has lost some"
            assert party.ended <= sent
            for number, handled in enumerate(party.histories()):
                self._check_history(f"{name} in life {number}", party, handled)
        for producer in self.producers.values():
            producer.check()
        for account in self.accounts():
            assert (0, 0) == (account.unaccounted, account.queued), account
        assert recount(self.node.log._store.db.execute).discrepancies == []
        for row in self.node.service.parts.directory:
            assert row.epoch == "", f"{row.name} was taken for one that remembers another log"
        self.check_nothing_is_left()

    def check_nothing_is_left(self) -> None:
        """Raise `AssertionError` where sockets or sessions outlive their connections."""
        self.world.run(FORGOTTEN_SECONDS)
        dialling = sum(self.kinds[name] == "udp" for name in LINKS if name != "dialled")
        dialled = self.kinds["dialled"] == "udp"
        (bearer,) = [p._bearer for p in self.node.service.ports if isinstance(p, UdpPort)]
        endpoint = bearer.turns.endpoint
        # What is known of an address alone goes after `idle_timeout`.
        busy = [peer for peer in endpoint.peers.values() if peer.session or not peer.idle]
        assert [dialling] * 3 == [
            len(busy),
            len(endpoint.table.sessions),
            len(bearer.channels),
        ], "sessions are left"
        assert 1 + dialling + 2 * dialled == len(self.net.ports), "sockets are left"

    def check_sessions(self) -> None:
        """Raise `AssertionError` where a UDP session did not carry what was put into it."""
        assert not self.watch.found, "\n".join(self.watch.found[:10])

    def _check_history(self, who: str, party: ReceiverParty, handled: list[bytes]) -> None:
        assert len(set(handled)) == len(handled), f"{who} handled some twice"
        lanes: dict[tuple[bytes, bytes], list[int]] = {}
        for body in handled:
            sender, subject, number, _ = body.split(b" ")
            if party.name == "picky":
                assert subject in (b"lane.1", b"lane.2")
            # What was rejected is dead, unless that was not heard: then it comes once more, late.
            if body not in party.rejected:
                lanes.setdefault((sender, subject), []).append(int(number))
        if self.order == "strict":
            for lane, numbers in lanes.items():
                assert sorted(numbers) == numbers, f"{who} got {lane} out of order"


class Party(ABC):
    """Somebody who lives, is killed, and lives again."""

    def __init__(self, system: System, name: str) -> None:
        self.system = system
        self.world = system.world
        self.name = name
        self.lives = 0
        self.is_leaving = False
        self.process: Process

    @property
    def is_up(self) -> bool:
        """Whether it runs, and means to go on."""
        return self.process.clock.alive and not self.is_leaving

    def start(self) -> None:
        """Begin a life with what is on disk."""
        self.lives += 1
        self.is_leaving = False
        self.process = Process(self.world, self.name)
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Make what runs in the new process."""

    def leave(self) -> None:
        """Stop in order. Whoever has not ended soon is killed after all."""
        self.world.tell(f"{self.name} stops")
        self.is_leaving = True
        self.stop()

    @abstractmethod
    def stop(self) -> None:
        """Begin to end what runs."""

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.process.kill()


class NodeParty(Party):
    """The node, and its log's disk."""

    def __init__(self, system: System, name: str) -> None:
        super().__init__(system, name)
        self.log: MemoryLog
        self._store: Any = None

    def begin(self) -> None:
        """See `Party`."""
        clock, world = self.process.clock, self.world
        log = self.log = MemoryLog(
            reactor=clock,
            limits=LIMITS,
            delay=DISK_DELAY,
            entropy=world.random.randbytes,
            inline=by_seed(world.seed),
        )
        if self._store is not None:
            # What the process before had not begun to write is never written.
            log._store.db, log._made = self._store.db, True
        self._store = log._store
        system = self.system
        service = self.service = Node(
            clock,
            log,
            listen=system.node_addresses(),
            receivers=[
                ReceiverRow(
                    number=0,
                    name="dialled",
                    address=system.listening("dialled", dialled=True),
                    patterns=PATTERNS["dialled"],
                    options=ReceiverOptions(order=system.order),
                )
            ],
            limits=LIMITS,
            rng=world.random.random,
            failed=system.failures.append,
        )
        service.transports = system.transports(self.process)
        service.startService()

    def stop(self) -> None:
        """See `Party`."""
        self.service.stopService()


class ClockInbox(InboxFile):
    """A stored inbox, its real file and its real SQLite, in a simulated process."""

    def __init__(self, path: Path, system: System, process: Process) -> None:
        reactor: Any = process.clock
        super().__init__(
            path,
            reactor=reactor,
            entropy=system.world.random.randbytes,
            threads=SimThreads(reactor, lambda: DISK_DELAY),
        )

    def _open_file(self) -> str:
        inbox = super()._open_file()
        assert self._file._db is not None
        # Processes are killed here, not machines: what was written is there.
        self._file._db.execute("pragma synchronous = off")
        return inbox

    def die(self) -> None:
        """Close what the kernel closes when a process is killed; its transaction is undone."""
        close_as_killed(self._file)

    def bodies(self) -> list[bytes]:
        """Return what is in the handlers' table."""
        assert self._file._db is not None
        self._file._db.execute(TABLE)
        return [body for (body,) in self._file._db.execute("select body from done order by n")]


class ReceiverParty(Party):
    """A receiver, and its stored inbox where it has one."""

    def __init__(self, system: System, name: str, path: Path | None) -> None:
        super().__init__(system, name)
        self.handled: list[list[bytes]] = []  # in each life
        self.rejected: set[bytes] = set()
        self._path = path
        self._inbox: ClockInbox | None = None

    def begin(self) -> None:
        """See `Party`."""
        system, name, clock = self.system, self.name, self.process.clock
        handled: list[bytes] = []
        self.handled.append(handled)
        if self._path is not None:
            self._inbox = ClockInbox(self._path, system, self.process)

        async def handle(message: Any) -> Any:
            body = bytes(message.body)
            if system.early:
                clock.callLater(0.1, handled.append, body)
                return None
            pause: Deferred[None] = Deferred()
            clock.callLater(self.world.between((0.0, 0.2)), pause.callback, None)
            await pause
            if not system.is_healed and self.world.happens(system.handlers_fail):
                self._fail(body)
            if self._inbox is not None:
                return [TABLE, ("insert into done(body) values (?)", (body,))]
            handled.append(body)
            return None

        receiver = self._receiver = Receiver(
            clock,
            name=name,
            handler=handle,
            order=system.order,
            inbox=self._inbox,
            limits=LIMITS,
            transports=system.transports(self.process),
            incarnation=f"{name}-{self.lives}",
        )
        if name == "dialled":
            receiver.listen(system.listening(name, dialled=False), insecure=True)
        else:
            receiver.attach(system.address_of_node(name), subjects=PATTERNS[name])

    def stop(self) -> None:
        """See `Party`."""
        self._receiver.stop()

    def kill(self) -> None:
        """See `Party`."""
        super().kill()
        if self._inbox is not None:
            self._inbox.die()

    def _fail(self, body: bytes) -> None:
        kind = self.world.random.randrange(4)
        if kind == 0:
            self.rejected.add(body)
            raise Reject("not this one")
        if kind == 1:
            raise HandlerFault
        raise Retry(self.world.random.choice([None, 0.0, 1.0]))

    def histories(self) -> list[list[bytes]]:
        """What was handled, in order: in each life, or in all of them where a disk remembers."""
        return self.handled if self._inbox is None else [self._inbox.bodies()]

    @property
    def ended(self) -> set[bytes]:
        """What was handled or rejected."""
        return self.rejected.union(*self.histories())


class ProducerParty(Party):
    """A producer: when it is killed, what it had not been told is in doubt (SEMANTICS 5)."""

    def __init__(self, system: System, name: str) -> None:
        super().__init__(system, name)
        self.sent: set[bytes] = set()
        self.accepted: dict[bytes, Receipt] = {}
        self._living: dict[bytes, Receipt | None] = {}  # sent in this life
        self._settled = 0

    def begin(self) -> None:
        """See `Party`."""
        system = self.system
        address, clock = system.address_of_node(self.name), self.process.clock
        transports = system.transports(self.process)
        self._living = {}
        self._settled = 0
        self.client = Client(
            reactor=clock,
            name=self.name,
            connector_factory=lambda make_user: transports.find(address).connector(
                clock, address, make_user, LIMITS
            ),
            limits=LIMITS,
            new_incarnation=lambda: self.world.random.randbytes(8).hex(),
        )
        self.client.start()

    def send(self, number: int) -> None:
        """Send message `number`, some of them large."""
        random = self.world.random
        subject = random.choice(SUBJECTS)
        size = random.choice([0, 0, 0, 10, 300, 3000, 20_000 * (random.random() < 0.1)])
        # An incarnation is a sender of its own (SEMANTICS 5): no order among them.
        body = f"{self.name}-{self.lives} {subject} {number} ".encode() + b"." * int(size)
        self.sent.add(body)
        living = self._living
        living[body] = None

        def accept(receipt: Receipt) -> None:
            self.accepted[body] = living[body] = receipt
            receipt.settled().addCallback(settle)

        def settle(statuses: dict[str, Status]) -> None:
            self._settled += 1

        self.client.send(subject, body).addCallbacks(accept, self._refused)

    def _refused(self, failure: Failure) -> None:
        assert isinstance(failure.value, Exception)
        if not (self.is_leaving and failure.check(ClientClosed)):
            self.system.failures.append(failure.value)

    def stop(self) -> None:
        """See `Party`."""
        self.client.close()

    @property
    def is_done(self) -> bool:
        """Whether all that was sent in this life is final."""
        return self._settled == len(self._living)

    def check(self) -> None:
        """What this life was told must be true."""
        for body, receipt in self._living.items():
            assert receipt is not None
            for name, status in receipt.statuses.items():
                party = self.system.receivers[name]
                if status is Status.ACKNOWLEDGED:
                    assert any(body in handled for handled in party.histories())
                else:
                    assert (Status.DEAD, True) == (status, body in party.rejected)
