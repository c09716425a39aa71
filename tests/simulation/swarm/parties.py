"""Who takes part: the node, producers and receivers of the library, each in a process of its own.

A party lives, is killed between any two events, and lives again with what its disk holds; disks can
be copied and put back (`save`, `restore`). What it does and what it was told is noted in `Sent` and
`handled`, for the checkers.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.client.client import Client
from msgservice.client.disk import DiskOutbox
from msgservice.client.outbox_file import OutboxFile
from msgservice.client.receipt import Receipt
from msgservice.clock import TICK, MonotonicTimers, Ticks, TimedReactor
from msgservice.errors import ClientClosed, DataFolderUnusable, Reject, Retry
from msgservice.node.node import Node
from msgservice.receiver.receiver import Receiver
from msgservice.testing.transport import FaultyTransport, Process
from msgservice.transport.registry import Transports
from msgservice.transport.udp.transport import UdpTransport
from tests.kit.logins import QuickProver
from tests.kit.simdisk import SimThreads, close_as_killed
from tests.simulation import system
from tests.simulation.swarm.disks import MemoryDisk, SimulatedDisk
from tests.simulation.swarm.meter import Meter
from tests.simulation.swarm.plan import Part
from tests.simulation.swarm.witness import Party as Tapped
from tests.simulation.swarm.witness import TapTransport, TapUser
from tests.simulation.udp_watch import WatchedTransport

if TYPE_CHECKING:
    from tests.simulation.swarm.world import World


class WallReactor:
    """What a reactor's time is: the wall clock, and timers that are set by it.

    A jump of the wall clock (`jump`) delays or hastens what is due.
    """

    def __init__(self, process: Process, skew: Callable[[], float]) -> None:
        self._clock = process.clock
        self._skew = skew
        self._calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def seconds(self) -> float:
        """See `IReactorTime`."""
        return self._clock.seconds() + self._skew()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> Any:  # noqa: A002
        """See `IReactorTime`."""
        call = self._clock.callLater(delay, callable, *args, **kw)
        self._calls.append(call)
        if len(self._calls) > 200:
            self._calls = [one for one in self._calls if one.active()]
        return call

    def jump(self, seconds: float) -> None:
        """The wall clock jumps."""
        now = self._clock.seconds()
        for call in self._calls:
            if call.active():
                call.reset(max(0.0, call.getTime() - now - seconds))


class SwarmTicks(Ticks):
    """The kernel's timer: by a monotonic clock, whatever the wall clock does."""

    def __init__(self, process: Process, tick: Callable[[], None]) -> None:
        self._process = process
        self._tick = tick
        self._call: Any = None

    def start(self) -> None:
        """See `Ticks`."""
        if self._call is None:
            self._call = self._process.clock.callLater(TICK, self._ticks)

    def _ticks(self) -> None:
        self._call = self._process.clock.callLater(TICK, self._ticks)
        self._tick()

    def stop(self) -> None:
        """See `Ticks`."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()


class PartyClock:
    """A process's clock, whose calls are metered."""

    def __init__(self, clock: Any, meter: Meter | None = None) -> None:
        self._clock = clock
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any, **kw: Any) -> Any:  # noqa: A002
        """See `IReactorTime`."""
        if self._meter is not None:
            return self._clock.callLater(delay, self._meter.run, callable, *args, **kw)
        return self._clock.callLater(delay, callable, *args, **kw)


class Party(Tapped):
    """Somebody who lives, is killed, and lives again."""

    def __init__(self, world: World, name: str, role: str) -> None:
        self.world = world
        self.name = name
        self.role = role
        self.taps: list[TapUser] = []
        self.lives = 0
        self.is_leaving = False
        self.process: Process
        self.clock: Any

    @property
    def is_up(self) -> bool:
        """Whether it runs, and means to go on."""
        return self.lives > 0 and self.process.clock.alive and not self.is_leaving

    def start(self) -> None:
        """Begin a life with what is on disk."""
        if self.lives and self.process.clock.alive:
            return
        self.lives += 1
        self.is_leaving = False
        self.taps = []
        self.process = Process(self.world.net, self.name)
        clock: Any = self.process.clock
        self.reactor: WallReactor | None = None
        if self.world.plan.world.get("timers") == "wall":
            # As beside a real reactor: the product's own timers, on a clock that jumps.
            wall: Any = WallReactor(self.process, lambda: self.world.skew)
            self.reactor = wall
            timers = MonotonicTimers(
                wall,
                monotonic=clock.seconds,
                make_ticks=lambda _, tick: SwarmTicks(self.process, tick),
            )
            clock = TimedReactor(wall, timers)
        self.clock = PartyClock(clock, self.meter)
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Make what runs in the new process."""

    def transports(self) -> Transports:
        """Return the tapped transports of the process."""
        world = self.world
        udp = UdpTransport(rng=world.random.random, entropy=world.random.randbytes)
        inner = [FaultyTransport(world.net, self.process), WatchedTransport(world.udp_watch, udp)]
        return Transports([TapTransport(world.witness, self, one) for one in inner])

    def connector(self, make_user: Any) -> Any:
        """Return what dials the node."""
        world = self.world
        address = world.address_of_node(self.name)
        return (
            self.transports().find(address).connector(self.clock, address, make_user, world.limits)
        )

    def prover(self) -> Any:
        """Return its login at the node, where there are users."""
        if self.world.accounts is None:
            return None
        return QuickProver(self.name, password=password_of(self.name))

    def leave(self) -> None:
        """Stop in order."""
        if self.is_up:
            self.is_leaving = True
            self.stop()

    @abstractmethod
    def stop(self) -> None:
        """Begin to end what runs."""

    def kill(self) -> None:
        """End it as kill -9 does."""
        if self.lives and self.process.clock.alive:
            self.world.witness.losses[self.name] += len(self.taps)
            self.process.kill()
            self.died()

    def died(self) -> None:
        """Close what the kernel closes."""

    def save(self) -> None:
        """Copy what is on its disk."""

    def restore(self) -> None:
        """Put an older copy back; the process must not run."""

    def cut(self) -> None:
        """Break its connections."""
        for tap in list(self.taps):
            link = getattr(tap.channel and tap.channel.inner, "_link", None)
            if link is not None:
                link.cut()
            elif tap.channel is not None and self.world.is_healed:
                tap.channel.inner.abort()  # nothing is kept apart any more
        world = self.world
        until = world.now + world.random.choice((0.5, 10.0, 80.0))
        for name in world.over_udp if self.name == "node" else {self.name} & world.over_udp:
            world.datagrams.part("node", name, until)
            world.datagrams.part(name, "node", until)

    def hold(self, held: bool, way: str) -> None:
        """Let it hear nothing, or not be heard."""
        for tap in list(self.taps):
            channel = tap.channel
            if channel is None:
                continue
            if way in ("in", "both"):
                channel.hold(held)
            if not hasattr(channel.inner, "other"):  # over UDP
                until = self.world.now + 1e6 if held else 0.0
                if way in ("out", "both"):
                    self.world.datagrams.part(self.name, "node", until)
                continue
            other = channel.inner.other.user
            other = getattr(other, "_user", other) if not isinstance(other, TapUser) else other
            if way in ("out", "both") and isinstance(other, TapUser) and other.channel is not None:
                other.channel.hold(held)


# --- the node -----------------------------------------------------------------------------------


class NodeParty(Party):
    """The node, and its log's disk."""

    def __init__(self, world: World, folder: Path) -> None:
        super().__init__(world, "node", "node")
        self.failures: list[Exception] = []
        self.log: Any  # MeteredMemoryLog | MeteredSqliteLog
        self.service: Node
        self.meter = world.meter
        self.saved_at: list[float] = []
        self.began_at: list[float] = []
        self.died_at: list[float] = []
        self.is_stored = world.plan.world.get("log") == "sqlite"
        self.disk: Any = (
            SimulatedDisk(world, folder / "disk", self.kill)
            if self.is_stored
            else MemoryDisk(world)
        )

    def _failed(self, error: Exception) -> None:
        """The node ends: with what it may end with, after which it is started again, or not."""
        if isinstance(error, DataFolderUnusable) and self.disk.is_full:
            # A folder that was put back has no reserve yet, and its files need room.
            self.world.net.clock.callLater(1.0, self._again, self.process)
        else:
            self.failures.append(error)

    def _again(self, process: Process) -> None:
        if self.process is process and process.clock.alive:
            self.kill()
            self.start()

    def begin(self) -> None:
        """See `Party`."""
        world = self.world
        self.began_at.append(world.now)
        self.log = self.disk.begin(self.clock)
        self.failures = []
        service = self.service = Node(
            self.clock,
            self.log,
            listen=world.node_addresses,
            receivers=world.configured,
            users=world.accounts.begin() if world.accounts is not None else None,
            limits=world.limits,
            rng=world.random.random,
            failed=self._failed,
        )
        service.time.wall = world.wall
        service.transports = self.transports()
        service.startService()

    def stop(self) -> None:
        """See `Party`."""
        self.service.stopService()

    def died(self) -> None:
        """See `Party`."""
        self.died_at.append(self.world.now)
        self.disk.died()

    def save(self) -> None:
        """See `Party`."""
        if self.disk.save():
            self.saved_at.append(self.world.now)

    def restore(self) -> None:
        """See `Party`. Half of them as a snapshot of the machine, the others by `restore`."""
        if self.saved_at:
            self.world.log_went_back(self.saved_at.pop())
            self.disk.restore(as_copy=self.world.random.random() < 0.5)


# --- producers ----------------------------------------------------------------------------------


@dataclass
class Sent:
    """A message that a program handed over, and what it was told."""

    body: bytes
    producer: str
    life: int
    subject: str
    to: tuple[str, ...] | None
    at: float
    number: int
    require: bool = False
    kept_at: float | None = None  # `send` fired
    accepted_at: float | None = None  # the node has it
    receipt: Receipt | None = None
    error: Exception | None = None
    settled: dict[str, Any] | None = None
    tags: set[str] = field(default_factory=set)
    ttl: float | None = None
    delay: float | None = None
    key: str | None = None
    retain: str = ""  # keep, only, clear
    handed_at: float = 0.0  # of one with a key, of which `at` is that of the first
    calls: list[Any] = field(default_factory=list)  # to have it cancelled
    promised: Any = None  # `promises.Promised`

    @property
    def audience(self) -> tuple[str, ...]:
        """Whom it is for, as the sender was told."""
        return self.receipt.receivers if self.receipt is not None and self.accepted_at else ()


class ClockOutbox(OutboxFile):
    """A stored outbox, its real file and its real SQLite, in a simulated process."""

    def __init__(self, path: Path, world: World, clock: Any) -> None:
        super().__init__(
            path,
            reactor=clock,
            entropy=world.random.randbytes,
            threads=SimThreads(clock, lambda: system.DISK_DELAY),
        )

    def _load(self, db: Any, mark: Any) -> Any:
        loaded = super()._load(db, mark)
        # Processes are killed here, not machines: what was written is there.
        db.execute("pragma synchronous = off")
        return loaded

    def die(self) -> None:
        """Close what the kernel closes when a process is killed."""
        close_as_killed(self._file)


def copy_files(source: Path, target: Path) -> bool:
    """Copy a database with all that belongs to it; return whether there was one."""
    if not source.exists():
        return False
    for suffix in ("", "-wal", "-shm", ".mark"):
        one, other = Path(f"{source}{suffix}"), Path(f"{target}{suffix}")
        other.unlink(missing_ok=True)
        if one.exists():
            shutil.copyfile(one, other)
    return True


class ProducerParty(Party):
    """A producer of the library: with an outbox on disk, or in memory."""

    def __init__(self, world: World, part: Part, folder: Path) -> None:
        super().__init__(world, part.name, "producer")
        self.sent: list[Sent] = []  # of all lives
        self.client: Client | None = None
        self.is_stored = bool(part.options.get("outbox"))
        self.restored_at = -1.0
        self._path = folder / f"{part.name}.outbox"
        self._outbox: ClockOutbox | None = None

    def begin(self) -> None:
        """See `Party`."""
        self.client = None
        if not self.is_stored:
            self._connect(None)
            return
        self._outbox = ClockOutbox(self._path, self.world, self.clock)
        self._outbox.open().addCallbacks(self._opened, self._not_opened)

    def _opened(self, snapshot: Any) -> None:
        assert self._outbox is not None
        if not self.is_leaving:
            self._connect(DiskOutbox(self._outbox, snapshot))

    def _not_opened(self, failure: Failure) -> None:
        self.world.witness.note("outbox does not open", failure.getErrorMessage())

    def _connect(self, disk: DiskOutbox | None) -> None:
        world = self.world
        self.client = Client(
            reactor=self.clock,
            name=self.name,
            connector_factory=self.connector,
            limits=world.limits,
            new_incarnation=lambda: world.random.randbytes(8).hex(),
            outbox=disk,
            prover=self.prover(),
        )
        self.client.start()

    def send(
        self,
        subject: str,
        count: int,
        size: int,
        to: tuple[str, ...] | None,
        require: bool,
        **times: Any,
    ) -> None:
        """Hand over some messages in one turn. `times`: their `ttl`, or their `delay`."""
        client = self.client
        if client is None or not self.is_up:
            return
        some = [self._make(subject, size, to, require=require, **times) for _ in range(count)]
        if count >= 5:
            many = client.send_many(
                subject, [one.body for one in some], to=to, require=require, **times
            )
            many.addCallbacks(
                self._all_kept, self._all_refused, callbackArgs=(some,), errbackArgs=(some,)
            )
            return
        for one in some:
            client.send(subject, one.body, to=to, require=require, **times).addCallbacks(
                self._kept, self._refused, callbackArgs=(one,), errbackArgs=(one,)
            )

    def hand_over(self, sent: Sent, **options: Any) -> bool:
        """Hand over one message with options; return whether this can hand over anything."""
        client = self.client
        if client is None or not self.is_up:
            return False
        client.send(sent.subject, sent.body, to=sent.to, **options).addCallbacks(
            self._kept, self._refused, callbackArgs=(sent,), errbackArgs=(sent,)
        )
        return True

    def _make(
        self,
        subject: str,
        size: int,
        to: tuple[str, ...] | None,
        *,
        require: bool = False,
        **times: Any,
    ) -> Sent:
        number = self.world.next_number()
        body = f"{self.name}-{self.lives} {subject} {number} ".encode() + b"." * size
        sent = Sent(body, self.name, self.lives, subject, to, self.world.now, number, require)
        sent.ttl, sent.delay = times.get("ttl"), times.get("delay")
        self.sent.append(sent)
        self.world.sent[body] = sent
        return sent

    def poison(self, subject: str, victim: str) -> None:
        """Hand over a message that kills the process of a receiver whenever it is handled."""
        if self.client is not None and self.is_up:
            one = self._make(subject, 0, None)
            self.world.poison[one.body] = victim
            self.client.send(subject, one.body).addCallbacks(
                self._kept, self._refused, callbackArgs=(one,), errbackArgs=(one,)
            )

    def _all_kept(self, receipts: Any, some: list[Sent]) -> None:
        for receipt, sent in zip(receipts, some, strict=True):
            self._kept(receipt, sent)

    def _all_refused(self, failure: Failure, some: list[Sent]) -> None:
        for sent in some:
            self._refused(failure, sent)

    def _kept(self, receipt: Receipt, sent: Sent) -> None:
        sent.kept_at = self.world.now
        sent.receipt = receipt
        if not self.is_stored:
            self._accepted(receipt, sent)
        else:
            receipt.accepted.addCallbacks(
                self._accepted, self._refused, callbackArgs=(sent,), errbackArgs=(sent,)
            )

    def _accepted(self, receipt: Receipt, sent: Sent) -> None:
        sent.accepted_at = self.world.now
        receipt.settled().addCallback(self._settled, sent)
        if sent.promised is not None:
            self.world.promises.accepted(sent)

    def _settled(self, statuses: dict[str, Any], sent: Sent) -> None:
        sent.settled = statuses
        self.world.surviving.over(sent)

    def _refused(self, failure: Failure, sent: Sent) -> None:
        assert isinstance(failure.value, Exception)
        closing = self.is_leaving and failure.check(ClientClosed)
        if not (closing and self.is_stored and sent.kept_at is not None):
            sent.error = failure.value  # else the next process hands it to the node
        self.world.surviving.over(sent)
        if not closing:
            self.world.refused(sent, failure.value)

    def stop(self) -> None:
        """See `Party`."""
        if self.client is not None:
            self.client.close()

    def died(self) -> None:
        """See `Party`."""
        if self._outbox is not None:
            self._outbox.die()

    def save(self) -> None:
        """See `Party`."""
        copy_files(self._path, self._path.with_suffix(".saved"))

    def restore(self) -> None:
        """See `Party`."""
        if copy_files(self._path.with_suffix(".saved"), self._path):
            self.restored_at = self.world.now


# --- receivers ----------------------------------------------------------------------------------


@dataclass
class Handling:
    """What was handled in one life, in order, and under which incarnation of its sender."""

    bodies: list[bytes] = field(default_factory=list)
    lanes: list[str] = field(default_factory=list)


class ReceiverParty(Party):
    """What all receivers have in common: `patterns`, `lives_of`."""

    def __init__(self, world: World, part: Part) -> None:
        super().__init__(world, part.name, "receiver")
        self.part = part
        self.patterns: tuple[str, ...] = part.options["patterns"]
        self.order: str = part.options.get("order", "strict")
        self.histories: list[Handling] = []
        self.ever: set[bytes] = set()  # handled, whatever was forgotten since
        # The node dials it; "configured": and is told so by its configuration.
        self.is_dialled = bool(part.options.get("dialled"))
        self.order_changed = False  # another program has said another order
        self.restored_at = -1.0

    def comes_back(self) -> None:
        """Attach again after the node has said not to."""

    def poisoned(self, body: bytes) -> bool:
        """Die, if this message is one that kills."""
        if self.world.poison.get(body) != self.name:
            return False
        self.clock.callLater(0, self.world.die_of_poison, self, body)
        return True


class LibraryParty(ReceiverParty):
    """A receiver of the library."""

    def __init__(self, world: World, part: Part, folder: Path) -> None:
        super().__init__(world, part)
        self._path = folder / f"{part.name}.inbox" if part.options.get("inbox") else None
        self._inbox: system.ClockInbox | None = None
        self._attachment: Any = None

    def begin(self) -> None:
        """See `Party`."""
        world, options, clock = self.world, self.part.options, self.clock
        history = Handling()
        self.histories.append(history)
        if self._path is not None:
            shim: Any = world
            self._inbox = system.ClockInbox(self._path, shim, self.process)
        seconds, fails = options.get("pause", 0.0), options.get("fails", 0.0)
        batch = bool(options.get("batch"))

        async def handle(messages: Any) -> Any:
            some = messages if batch else [messages]
            if seconds:
                pause: Deferred[None] = Deferred()
                clock.callLater(world.random.uniform(0, seconds), pause.callback, None)
                await pause
            if any(self.poisoned(bytes(one.body)) for one in some):
                await Deferred()
            if not world.is_healed and world.random.random() < fails:
                self._fail()
            writes: list[Any] = []
            for one in some:
                body = bytes(one.body)
                lane = one.origin.incarnation if one.origin is not None else ""
                if self._inbox is None:
                    self.ever.add(body)
                    history.bodies.append(body)
                    history.lanes.append(lane)
                else:
                    writes.append(("insert into done(body, lane) values (?, ?)", (body, lane)))
            return [TABLE, *writes] if self._inbox is not None else None

        receiver = self._receiver = Receiver(
            clock,
            name=self.name,
            handler=handle,
            order=self.order,
            batch=batch,
            inbox=self._inbox,
            window=options.get("window"),
            concurrency=options.get("concurrency", 100),
            limits=world.limits,
            transports=self.transports(),
            incarnation=f"{self.name}-{self.lives}",
        )
        if self.is_dialled:
            receiver.listen(world.address_of_receiver(self.name, dialled=False), insecure=True)
        else:
            address = world.address_of_node(self.name)
            self._attachment = receiver.attach_through(
                self.connector, address=address, subjects=self.patterns, prover=self.prover()
            )

    def _fail(self) -> None:
        random = self.world.random
        kind = random.randrange(4)
        if kind == 0:
            raise Reject("not this one")
        if kind == 1:
            raise system.HandlerFault
        raise Retry(random.choice([None, 0.0, 1.0]))

    def comes_back(self) -> None:
        """See `ReceiverParty`."""
        if self.is_dialled:
            self.world.add_dialled(self)
        elif self.is_up and self._attachment is not None and self._attachment.is_over:
            self._attachment.start()

    def stop(self) -> None:
        """See `Party`."""
        self._receiver.stop()

    def died(self) -> None:
        """See `Party`."""
        if self._inbox is not None:
            self.look()
            self._inbox.die()
            self._inbox = None

    def look(self) -> None:
        """Read what the stored inbox has, into the only history there is."""
        if self._inbox is None or self._inbox._file._db is None or self._path is None:
            return
        history = Handling()
        try:
            db = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)
        except apsw.CantOpenError:
            return
        try:
            for body, lane in db.execute("select body, lane from done order by n"):
                history.bodies.append(body)
                history.lanes.append(lane)
        except apsw.SQLError:
            pass  # nothing was handled yet
        finally:
            db.close(True)
        self.ever.update(history.bodies)
        self.histories = [history]

    def save(self) -> None:
        """See `Party`."""
        if self._path is not None:
            copy_files(self._path, self._path.with_suffix(".saved"))

    def restore(self) -> None:
        """See `Party`."""
        if self._path is not None and copy_files(self._path.with_suffix(".saved"), self._path):
            self.restored_at = self.world.now


def password_of(name: str) -> str:
    """The password of a user that takes part."""
    return f"the password of {name}"


TABLE = "create table if not exists done(n integer primary key, body blob, lane text)"
