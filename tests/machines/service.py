"""A node's real parts on a virtual clock, real clients, and receivers that are plain models.

What is stored is seen at the door of the log; what is delivered, where the receiver answers; what
became of a message, where the program holds its receipt. The node's own accounts are only asked
whether they agree with that in the end.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.client.client import Client
from msgservice.client.disk import DiskOutbox, open_outbox
from msgservice.client.handed import HandedRun
from msgservice.client.receipt import Receipt
from msgservice.connection import Connection
from msgservice.core.frames import Ack, Frame, Nack, StatusFrame, Transfer
from msgservice.core.ranges import RangeSet
from msgservice.disk import machine as log_machine
from msgservice.errors import LogUnavailable
from msgservice.interfaces import IChannelUser, IConnector
from msgservice.log.memory import MemoryLog
from msgservice.message import Action, Status, decode_messages
from msgservice.node.node import Node
from msgservice.records import Appended, Batch, Group, Progress, Resume
from tests.kit.limits import Limits
from tests.kit.node_double import Pipe
from tests.kit.nodes import NodeWorld, ScriptedPeer
from tests.machines.machine import Machine, Violation, require

WEEK = 7 * 24 * 3600
SUBJECTS = ("orders.eu", "orders.us", "news")
PATTERNS = (("orders.>",), ("orders.eu",), ("news",), (">",), ("orders.us", "news"))
RECEIVERS = ("billing", "mail", "audit")
DISK_BYTES = 1 << 22


class TurnWorker:
    """`threads.Worker` without a thread: each job runs in a later turn of the clock."""

    def __init__(self, reactor: Any, name: str) -> None:
        self._clock = reactor
        self.is_dead = False

    def submit(self, job: Callable[[], Any]) -> Deferred[Any]:
        waiter: Deferred[Any] = Deferred()

        def run() -> None:
            if self.is_dead:
                return
            try:
                result = job()
            except BaseException:
                waiter.errback(Failure())
            else:
                waiter.callback(result)

        self._clock.callLater(0, run)
        return waiter

    def stop(self) -> None:
        pass


class TurnMarks:
    """`disk.mark.MarkWriter` without a thread: a mark is written when it is submitted."""

    error = None
    is_full = False

    def __init__(self, file: Any, interval: float = 0.0) -> None:
        self._file = file

    def submit(self, mark: Any) -> None:
        self._file.write(mark)

    def wait(self, mark: Any) -> None:
        pass

    def stop(self) -> None:
        self._file.close()


@contextmanager
def no_threads() -> Iterator[None]:
    """The outbox file runs on the clock."""
    file: Any = log_machine
    kept = file.Worker, file.MarkWriter
    file.Worker, file.MarkWriter = TurnWorker, TurnMarks
    try:
        yield
    finally:
        file.Worker, file.MarkWriter = kept


class WatchedLog:
    """The door of the log: what one life of a node stores is written down, or fails, or waits."""

    def __init__(self, log: MemoryLog, ledger: Ledger, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._ledger = ledger
        self.is_dead = False  # the node behind it was killed
        self.fail_next = False
        self.holds = False
        self.reads_late = False
        self._held: list[tuple[Group, Deferred[Any]]] = []
        self._asked: list[tuple[tuple[Any, ...], Deferred[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, *arguments: Any) -> Deferred[Any]:
        waiter: Deferred[Any] = Deferred()
        if self.reads_late:
            self._asked.append((arguments, waiter))
        else:
            self._read(arguments, waiter)
        return waiter

    def _read(self, arguments: tuple[Any, ...], waiter: Deferred[Any]) -> None:
        def told(result: Any) -> None:
            if not self.is_dead:
                waiter.callback(result)

        if not self.is_dead:
            self._log.read(*arguments).addBoth(told)

    def read_on(self) -> None:
        """Read what was asked meanwhile, from what is stored by now."""
        self.reads_late = False
        asked, self._asked = self._asked, []
        for arguments, waiter in asked:
            self._read(arguments, waiter)

    def append_now(self, group: Group) -> None:
        """What becomes of a group is decided in `append`."""

    def append(self, group: Group) -> Deferred[Any]:
        if self.is_dead:
            return Deferred()
        self._ledger.group_begins()
        waiter: Deferred[Any] = Deferred()
        if self.fail_next:
            self.fail_next = False
            self._clock.callLater(0, self._fail, waiter)
            return waiter
        if self.holds:
            self._held.append((group, waiter))
        else:
            self._append(group, waiter)
        return waiter

    def _fail(self, waiter: Deferred[Any]) -> None:
        if not self.is_dead:
            waiter.errback(LogUnavailable("the disk says no"))

    def _append(self, group: Group, waiter: Deferred[Any]) -> None:
        def stored(appended: Appended) -> None:
            try:
                note(appended)
            except Violation as violation:
                self._ledger.violations.append(violation)
            if not self.is_dead:
                waiter.callback(appended)

        def note(appended: Appended) -> None:
            for row in group.receivers:
                self._ledger.names[row.number] = row.name
            for batch in appended.stored:
                self._ledger.stored(batch)
            for number in group.removed:
                self._ledger.removed.add(number)
            for progress in group.progress:
                self._ledger.progressed(progress)

        def failed(failure: Failure) -> None:
            if not self.is_dead:
                waiter.errback(failure)

        self._log.append(group).addCallbacks(stored, failed)

    def release(self) -> None:
        self.holds = False
        held, self._held = self._held, []
        for group, waiter in held:
            self._append(group, waiter)


class Ledger:
    """What the log has taken, seen at its door."""

    def __init__(self) -> None:
        self.audience: dict[bytes, list[tuple[int, ...]]] = {}  # body -> members, each time
        self.sequences: dict[tuple[str, str, int], bytes] = {}
        self.positions: dict[bytes, int] = {}
        self.cursors: dict[int, int] = {}  # by receiver number
        self.final: dict[int, RangeSet] = {}
        self.expected: Callable[[Batch], None] = lambda batch: None  # compares its audience
        self.group_begins: Callable[[], None] = lambda: None  # audiences are decided now
        self.names: dict[int, str] = {}  # by receiver number, also of those that were removed
        self.removed: set[int] = set()
        self.violations: list[Violation] = []  # seen inside the product's own calls

    def progressed(self, progress: Progress) -> None:
        self.cursors[progress.receiver] = progress.cursor
        final = self.final.setdefault(progress.receiver, RangeSet())
        for row in progress.exceptions:
            if row.status.final:
                final.add(row.first, row.last)

    def is_settled(self, number: int, position: int) -> bool:
        """Whether the disk knows that this receiver is done with it."""
        if number in self.removed or position <= self.cursors.get(number, -1):
            return True
        return number in self.final and position in self.final[number]

    def stored(self, batch: Batch) -> None:
        self.expected(batch)
        for index, message in enumerate(decode_messages(batch.messages)):
            key = (batch.sender, batch.incarnation, batch.sequence + index)
            require(key not in self.sequences, "stored twice", key, message.body[:30])
            self.sequences[key] = message.body
            self.positions[message.body] = batch.first + index
            self.audience.setdefault(message.body, []).append(batch.audience.members)


class ModelReceiver:
    """A receiver that obeys the protocol, keeps its marks, and answers as its mood is."""

    def __init__(self, service: ServiceMachine, name: str) -> None:
        self.service = service
        self.name = name
        self.peer: _ReceiverPeer | None = None
        self.mood = "answer"
        self.taken: dict[str, RangeSet] = {}  # by the node's incarnation: positions
        self.floors: dict[str, int] = {}
        self.rejected: dict[str, set[int]] = {}
        self.handled: Counter[bytes] = Counter()
        self.refused: set[bytes] = set()
        self.tried: Counter[bytes] = Counter()
        self.last: dict[tuple[str, str], int] = {}
        self.order = "strict"

    @property
    def connected(self) -> bool:
        return self.peer is not None and not self.peer.connection.is_gone

    def marks(self, incarnation: str) -> RangeSet:
        return self.taken.setdefault(incarnation, RangeSet())


class _ReceiverPeer(ScriptedPeer):
    """One connection of a `ModelReceiver`."""

    model: ModelReceiver

    def begin(self, model: ModelReceiver) -> None:
        self.model = model
        self.pending: list[Transfer] = []
        self.discarding: dict[tuple[str, str], int] = {}
        self.nacks = 0
        self.sends: list[Frame] = []

    def greeted(self, connection: Connection, hello: Any) -> None:
        self.node_hello = hello
        receive = hello.options.receive  # what is in force, whatever was asked for
        self.model.order = (receive and receive.order) or "strict"
        floor = self.model.floors.get(hello.incarnation, 1)
        connection.resume(Resume(floor, tuple(self.model.marks(hello.incarnation))))

    def received(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Transfer):
            assert self.node_hello is not None
            asked, said = (hello.options.receive for hello in (self.hello, self.node_hello))
            if asked is None or said is None or asked.order != said.order:  # another came between
                found = Violation("fed in an order that it did not ask for", asked, said)
                self.model.service.ledger.violations.append(found)
            self.pending.append(frame)
        else:
            self.frames.append(frame)

    def turn_ended(self, connection: Connection) -> None:
        if self.model.mood != "hold":
            self.work()

    def lost(self, connection: Connection, reason: str) -> None:
        super().lost(connection, reason)
        for transfer in self.pending:  # given to it, and not answered
            for message in decode_messages(transfer.messages):
                self.model.tried[message.body] += 1

    def work(self) -> None:
        try:
            self._work()
        except Violation as violation:
            self.model.service.ledger.violations.append(violation)

    def _work(self) -> None:
        pending, self.pending = self.pending, []
        for transfer in pending:
            if self.connection.is_gone:
                return
            self._one(transfer)

    def _one(self, transfer: Transfer) -> None:
        model = self.model
        assert self.node_hello is not None
        incarnation = self.node_hello.incarnation
        taken = model.marks(incarnation)
        rejected = model.rejected.setdefault(incarnation, set())
        sender = transfer.origin.sender if transfer.origin is not None else ""
        lane = (sender, transfer.subject)
        strict = model.order == "strict"
        model.floors[incarnation] = max(model.floors.get(incarnation, 1), transfer.floor)
        taken.remove_below(transfer.floor)
        if strict and lane in self.discarding:
            if transfer.nacks < self.discarding[lane]:
                return
            del self.discarding[lane]
        messages = decode_messages(transfer.messages)
        require(messages, "an empty transfer", transfer.sequence)
        after = transfer.sequence - 1 if transfer.after is None else transfer.after
        rng = model.service.rng
        first = after + 1
        for index, message in enumerate(messages):
            at = transfer.sequence + index
            if at in taken or at < model.floors[incarnation]:
                continue
            what = "reject" if at in rejected else self._choose(rng)
            if what == "take":
                model.service.handled(model, transfer, lane, message.body, strict)
                taken.add(after + 1 if index == 0 else at, at)
                continue
            if at - 1 >= max(first, transfer.sequence):
                self._send(Ack([(first, at - 1)]))
            first = at + 1
            if what == "reject":
                rejected.add(at)
                model.refused.add(message.body)
                self._send(Nack(at, at, int(Action.DEAD), 0, "rejected"))
                continue
            self.nacks += 1
            action = Action.RETRY if what == "retry" else Action.LATER
            if action is Action.RETRY:
                model.tried[message.body] += 1
            self._send(Nack(at, at, int(action), rng.choice([0, 0, 50]), what))
            if strict:
                self.discarding[lane] = self.nacks
                return
        end = transfer.sequence + len(messages) - 1
        if first <= end:
            self._send(Ack([(first, end)]))

    def _choose(self, rng: random.Random) -> str:
        if self.model.mood == "mixed":
            return rng.choice(["take", "take", "take", "retry", "later", "reject"])
        if self.model.mood == "reject":
            return "reject"
        return "take"

    def _send(self, frame: Frame) -> None:
        self.connection.send(frame)


class HeldPipe(Pipe):
    """A pipe whose frames wait while it is held; a cut loses them."""

    is_held = False

    def _deliver(self) -> None:
        self._due = None
        if not self.is_held:
            super()._deliver()

    def let_go(self) -> None:
        self.is_held = False
        if self._queue and self._due is None and not self.is_down:
            self._due = self._clock.callLater(0, self._deliver)


@implementer(ILogObserver)
class _Observer:
    """Keeps the failures that are logged."""

    def __init__(self, failures: list[LogEvent]) -> None:
        self._failures = failures

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self._failures.append(event)


@implementer(IConnector)
class HeldConnector(Service):
    """Dials the node of a `ServiceMachine`, again half a second after each failure."""

    address = "machine"
    channel = None

    def __init__(self, service: ServiceMachine, make_user: Callable[[], IChannelUser]) -> None:
        self.near: HeldPipe | None = None
        self.attempts = self.failures = 0
        self.last_error: str | None = None
        self.next_attempt_in = None
        self._service = service
        self._make_user = make_user
        self._wait: IDelayedCall | None = None
        self._stopping: Deferred[None] | None = None
        self.is_dead = False

    def startService(self) -> None:
        super().startService()
        self._wait = self._service.clock.callLater(0, self._dial)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._wait is not None and self._wait.active():
            self._wait.cancel()
        if self.near is None or self.near.is_down:
            return succeed(None)
        self._stopping = Deferred()
        self.near.close()
        return self._stopping

    def poke(self) -> None:
        pass

    def _dial(self) -> None:
        self.attempts += 1
        service = self._service
        if not service.node_is_up:
            self._failed("refused")
            return
        limits = service.limits
        near = HeldPipe(service.clock, "node", limits.frame_bytes)
        far = HeldPipe(service.clock, "client", limits.frame_bytes)
        near.other, far.other = far, near
        far.user = Connection(
            service.node.parts.connections.make_peer(None),
            clock=service.clock,
            now=service.clock.seconds,
            limits=limits,
        )
        self.near = near
        near.user = _Ear(self._make_user(), self)
        service.pipes.append(near)
        far.user.channel_opened(far)
        near.user.channel_opened(near)

    def _failed(self, reason: str) -> None:
        self.near = None
        self.failures += 1
        self.last_error = reason
        if self._stopping is not None:
            self._stopping.callback(None)
        elif self.running and not self.is_dead:
            self._wait = self._service.clock.callLater(0.5, self._dial)


@implementer(IChannelUser)
class _Ear:
    """Passes all on, and tells the connector of the end."""

    def __init__(self, user: IChannelUser, connector: HeldConnector) -> None:
        self._connector = connector
        self.channel_opened = user.channel_opened
        self.frames_received = user.frames_received
        self.channel_failed = user.channel_failed
        self.channel_writable = user.channel_writable
        self._lost = user.channel_lost

    def channel_lost(self, reason: str) -> None:
        if not self._connector.is_dead:
            self._lost(reason)
        self._connector._failed(reason)


@dataclass
class Message:
    """One message that a producer handed over, and what it was told."""

    body: bytes
    subject: str
    to: tuple[str, ...] | None
    life: int  # of its producer's process
    fired: list[Receipt | Failure] = field(default_factory=list)
    is_lost: bool = False  # its process died before it was told, or its disk went back


class Producer:
    """A program with a client; its outbox is in memory, or a file."""

    def __init__(self, service: ServiceMachine, name: str, *, on_disk: bool) -> None:
        self.service = service
        self.name = name
        self.on_disk = on_disk
        self.folder = service.folder / name
        self.copy: Path | None = None
        self.copied = 0  # how many messages were on the disk that was copied
        self.client: Client | None = None
        self.disk: DiskOutbox | None = None
        self.connector: HeldConnector | None = None
        self.life = 0
        self.messages: list[Message] = []
        self.incarnations: set[str] = set()
        self.went_back = False
        self.told: dict[tuple[int, str], Status] = {}  # final states, when its process heard them
        self.over: set[int] = set()  # sequences of which a process has heard all
        self.receipts: dict[int, Receipt] = {}  # that this life has listed
        self.start()

    def start(self) -> None:
        service = self.service
        self.life += 1
        self.receipts = {}
        self.disk = None
        if self.on_disk:
            results: list[Any] = []
            with no_threads():
                clock: Any = service.clock  # whose calls of threads nobody makes
                opening = open_outbox(clock, self.folder / "outbox.db", bytes_max=DISK_BYTES)
                opening.addBoth(results.append)
                service.settle()
            if isinstance(results[0], Failure):
                results[0].raiseException()
            self.disk = results[0]

        def make(make_user: Callable[[], IChannelUser]) -> HeldConnector:
            self.connector = HeldConnector(service, make_user)
            return self.connector

        self.client = Client(
            reactor=service.clock,
            name=self.name,
            connector_factory=make,
            limits=service.limits,
            new_incarnation=lambda: next(service.incarnations),
            window=service.client_window,
            outbox=self.disk,
        )
        self.client.start()
        if self.on_disk and self.life % 2 == 0:  # others leave it to the next
            self.list_receipts()

    def list_receipts(self) -> None:
        """Ask for the receipts that are open, page by page, and keep them."""
        client, after = self.client, 0
        assert client is not None
        while True:
            page: list[Any] = []
            client.receipts(after, 7).addBoth(page.append)
            for _ in range(50):
                self.service.clock.advance(0)
            if not page or isinstance(page[0], Failure) or not page[0]:
                return  # it was closed meanwhile, or that is all
            after = page[0][-1].sequence
            self.receipts |= {receipt.sequence: receipt for receipt in page[0]}

    def note_told(self) -> None:
        """Write down what the program knows by now; a state that was final stays as it was."""
        held = [
            message.fired[0]
            for message in self.messages
            if message.life == self.life and message.fired
        ]
        for receipt in [*held, *self.receipts.values()]:
            if not isinstance(receipt, Receipt):
                continue
            for name, status in receipt.statuses.items():
                if status.final:
                    before = self.told.setdefault((receipt.sequence, name), status)
                    if before is not status and self.on_disk and not self.went_back:
                        told = (self.name, receipt.sequence, name, before.name, status.name)
                        changed = Violation("a final state changed", *told)
                        self.service.ledger.violations.append(changed)
            if run_of(receipt).known_of(receipt.sequence).is_over:
                self.over.add(receipt.sequence)

    def send(self, subject: str, body: bytes, to: tuple[str, ...] | None) -> None:
        assert self.client is not None
        message = Message(body, subject, to, self.life)
        self.messages.append(message)
        sent = self.client.send(subject, body, to=to)
        sent.addBoth(message.fired.append)

    def kill(self) -> None:
        """The process goes, with all that is in memory; the files stay as they are."""
        client, disk = self.client, self.disk
        assert client is not None
        assert self.connector is not None
        self.note_told()
        self.connector.is_dead = True
        near = self.connector.near
        if near is not None and not near.is_down:
            near.cut("killed")
        if self.connector._wait is not None and self.connector._wait.active():
            self.connector._wait.cancel()
        client._flow.stop()
        client._hop.stop()
        if disk is not None:
            file = disk.file
            worker: Any = file._file._worker
            worker.is_dead = True
            assert file._file._db is not None
            file._file._db.close(True)
            file._file._lock.release()
            # What the kernel closes, and nothing that `close` would do besides.
            marks, pages = cast("TurnMarks", file._file._marks), file._file.pages
            marks._file.close()
            for descriptor in (pages._mark, pages._database, *(pages._held or ())):
                if descriptor is not None:
                    os.close(descriptor)
            pages._mark = pages._database = pages._held = None
        for message in self.messages:
            if not message.fired:
                message.is_lost = True
        self.client = None


class ServiceMachine(Machine):
    """See the module; `machines.client` and `machines.directory` say what happens in it."""

    STEPS = 70

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.folder = Path(tempfile.mkdtemp(prefix="machine-", dir=_memory_folder()))
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.wall_offset = 0
        self.limits = Limits(
            keep_seconds=rng.choice([0.0, 2.0, 3600.0]),
            keep_bytes=rng.choice([0, 20_000, 1 << 28]),
            max_bytes=rng.choice([60_000, 1 << 30, 1 << 30]),
            backlog_bytes=rng.choice([0, 0, 8_000]),
            exceptions=rng.choice([3, 50, 10_000]),
            audiences=rng.choice([8, 12, 10_000]),
            max_attempts=rng.choice([2, 20]),
            window_messages=rng.choice([2, 20, 65_536]),
            batch_messages=rng.choice([3, 4096]),
            uncommitted_bytes=rng.choice([2_000, 1 << 25]),
            retry_delay_max=5.0,
            link_delay_max=2.0,
            replacement_hold=rng.choice([2.0, 30.0]),
        )
        if self.limits.exceptions == 3:  # not drawn: what a seed plays stays as it was
            self.limits = replace(self.limits, sender_ranges=4)
        if self.limits.window_messages == 2:  # not drawn either: who lags is fed by the log
            self.limits = replace(self.limits, tail_bytes=1_000)
        self.client_window = (rng.choice([2, 30, 65_536]), 1 << 24)
        self.padding = rng.choice([10, 10, 3_000])
        self.failures_logged: list[LogEvent] = []
        self._observer = _Observer(self.failures_logged)
        globalLogPublisher.addObserver(self._observer)
        self.ledger = Ledger()
        self.ledger.expected = self._check_audience
        # Of the directory, as it was at each step and when each group began.
        self.versions: list[dict[int, tuple[str, tuple[str, ...], str]]] = [{}]
        self.ledger.group_begins = self._note_version
        self.named: dict[bytes, tuple[str, ...]] = {}  # body -> `to`
        self.began: dict[bytes, int] = {}  # body -> the version when it was handed over
        self.memory = MemoryLog(
            reactor=self.clock, limits=self.limits, delay=rng.choice([0.0, 0.0, 0.05])
        )
        self.watched = WatchedLog(self.memory, self.ledger, self.clock)
        self.node_is_up = False
        self.pipes: list[HeldPipe] = []
        self.incarnations = (f"incarnation-{n}" for n in itertools.count(1))
        self.numbers = itertools.count(1)
        self.receivers: dict[str, ModelReceiver] = {}  # by name: those that the model knows
        self.gone: list[ModelReceiver] = []
        self.world = _World(self)
        self.producers = [
            Producer(self, "shop", on_disk=rng.random() < 0.4),
            Producer(self, "till", on_disk=False),
        ][: rng.choice([1, 2])]
        self.settle()

    # --- the world

    @property
    def node(self) -> Node:
        return self.world.node

    def settle(self, seconds: float = 0.0) -> None:
        for _ in range(12):
            self.clock.advance(0)
        self.clock.advance(0.002)
        for _ in range(12):
            self.clock.advance(0)
        steps = int(min(20, max(1, seconds / 0.05))) if seconds else 0
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            for _ in range(6):
                self.clock.advance(0)

    def close(self) -> None:
        globalLogPublisher.removeObserver(self._observer)
        for producer in self.producers:
            if producer.client is not None:
                producer.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self, after: str) -> None:
        self.settle()
        for violation in self.ledger.violations:
            raise violation
        require(not self.world.failures, "the node ended", self.world.failures)
        self._note_version()
        self._check_told()
        for event in self.failures_logged:
            failure = event["log_failure"]
            raise Violation(f"logged: {failure.type.__name__}", failure.getTraceback()[-1500:])

    def _note_version(self) -> None:
        if self.node_is_up and self.node._parts is not None:
            rows = {
                row.number: (row.name, row.patterns, row.options.on_full)
                for row in self.node.parts.directory
                if not self.node.parts.directory.is_retired(row)
            }
            if rows != self.versions[-1]:
                self.versions.append(rows)

    def _check_audience(self, batch: Batch) -> None:
        """The audience is who matched at some moment since the message was handed over."""
        body = decode_messages(batch.messages)[0].body
        began = self.began.get(body)
        if began is None:
            return
        parts = self.node._parts  # one that has just been started has none
        rows = {}
        if parts is not None:
            rows = {
                row.number: (row.name, row.patterns, row.options.on_full)
                for row in parts.directory
                if not parts.directory.is_retired(row)
            }
        members = set(batch.audience.members)
        for version in [*self.versions[began:], rows]:
            if body in self.named:
                wanted = {n for n, row in version.items() if row[0] in self.named[body]}
            else:
                wanted = {
                    n
                    for n, row in version.items()
                    if any(_matches(p, batch.subject) for p in row[1])
                }
            missing = wanted - members
            suspended = all(version[n][2] == "suspend" for n in missing)
            if members <= wanted and (not missing or suspended):
                return
        raise Violation("another audience than who matches", body[:30], members)

    def _check_told(self) -> None:
        """What a program was told is on the node's disk."""
        for producer in self.producers:
            if producer.went_back:
                continue
            for message in producer.messages[-60:]:
                receipt = message.fired[0] if message.fired else None
                if not isinstance(receipt, Receipt) or message.body not in self.ledger.positions:
                    continue
                position = self.ledger.positions[message.body]
                members = self.ledger.audience[message.body][0]
                for name, status in receipt.statuses.items():
                    if not status.final:
                        continue
                    numbers = [n for n in members if self._name_of(n) == name]
                    settled = [self.ledger.is_settled(n, position) for n in numbers]
                    require(all(settled), "told before it was stored", name, message.body[:30])

    def _name_of(self, number: int) -> str | None:
        for version in reversed(self.versions):
            if number in version:
                return version[number][0]
        return None

    def handled(
        self,
        model: ModelReceiver,
        transfer: Transfer,
        lane: tuple[str, str],
        body: bytes,
        strict: bool,
    ) -> None:
        """A receiver took a message: it was stored for it, and comes once and in its order."""
        name = body.split(b"|")[0].decode()
        require(body in self.ledger.audience, "delivered and not stored", body[:30])
        producer = next(one for one in self.producers if one.name == name)
        if producer.went_back:
            model.handled[body] += 1
            return
        require(not model.handled[body], "delivered twice", model.name, body[:30])
        model.handled[body] += 1
        number = int(body.split(b"|")[2])
        if strict:
            require(model.last.get(lane, 0) < number, "delivered out of order", lane, number)
            model.last[lane] = number

    # --- operations that both machines have

    def do_send(self, rng: random.Random) -> None:
        producer = rng.choice(self.producers)
        if producer.client is None:
            return
        subject = rng.choice(SUBJECTS)
        for _ in range(rng.choice([1, 1, 3, 8])):
            self._send(producer, subject, rng, None)
        if rng.random() < 0.3:
            self._send(producer, rng.choice(SUBJECTS), rng, None)

    def _send(
        self, producer: Producer, subject: str, rng: random.Random, to: tuple[str, ...] | None
    ) -> None:
        number = next(self.numbers)
        body = f"{producer.name}|{subject}|{number}|".encode() + b"x" * rng.choice(
            [1, 10, self.padding]
        )
        self.began[body] = len(self.versions) - 1
        if to is not None:
            self.named[body] = to
        producer.send(subject, body, to)

    def do_pass_time(self, rng: random.Random) -> None:
        self.settle(rng.choice([0.1, 1.0, 5.0, 40.0]))

    def do_mood(self, rng: random.Random) -> None:
        if self.receivers:
            model = self.receivers[rng.choice(sorted(self.receivers))]
            model.mood = rng.choice(["answer", "answer", "hold", "mixed", "mixed", "reject"])
            if model.mood != "hold" and model.connected:
                assert model.peer is not None
                model.peer.work()

    def do_attach(self, rng: random.Random) -> None:
        """A receiver comes, whether it was there before or not."""
        name = rng.choice(RECEIVERS)
        model = self.receivers.get(name)
        patterns: tuple[str, ...] = rng.choice(PATTERNS)
        order = rng.choice(["strict", "strict", "none"])
        if model is not None and rng.random() < 0.6:
            row = self.node.parts.directory.get(name)
            if row is not None:
                patterns, order = row.patterns, row.options.order
        self.attach(name, patterns, order)

    def attach(self, name: str, patterns: tuple[str, ...], order: str) -> bool:
        """Say HELLO as this receiver; a refusal changes nothing."""
        if not self.node_is_up:
            return False
        row = self.node.parts.directory.get(name)
        before = None if row is None else (row.number, row.patterns, row.options.order)
        was_paused = row is not None and row.options.paused
        model = self.receivers.get(name) or ModelReceiver(self, name)
        older = model.peer
        peer = self.world.receiver(model, patterns, order)
        row = self.node.parts.directory.get(name)
        refused = peer.connection.is_gone or peer.bye is not None
        if peer.node_hello is not None and row is not None and row.options.paused > was_paused:
            return False  # its HELLO was taken; then its dead letters reached `dead_bytes`
        if refused:
            after = None if row is None else (row.number, row.patterns, row.options.order)
            if row is not None and before is None and row.options.paused is False:
                self.receivers.setdefault(name, model)  # it was made, and lost its place again
            else:
                require(before == after, "a refused HELLO changed a receiver", before, after)
            return False
        self.receivers[name] = model
        model.peer = peer
        waits = self.watched.holds or self.watched.reads_late
        if older is not None and not older.connection.is_gone and not waits:
            self.settle(5.0)
            require(older.connection.is_gone, "two connections of one receiver")
        return True

    def do_leave(self, rng: random.Random) -> None:
        there = [one for one in self.receivers.values() if one.connected]
        if there:
            model = rng.choice(there)
            assert model.peer is not None
            model.peer.connection.abort()

    def do_fail_group(self, rng: random.Random) -> None:
        self.watched.fail_next = True

    def do_hold_group(self, rng: random.Random) -> None:
        """A group takes long; meanwhile others wait."""
        self.watched.holds = True

    def do_release_group(self, rng: random.Random) -> None:
        self.watched.release()

    def do_read_late(self, rng: random.Random) -> None:
        """Pages of the log take long; meanwhile more is stored."""
        self.watched.reads_late = True

    def do_read_on(self, rng: random.Random) -> None:
        self.watched.read_on()

    def do_restart(self, rng: random.Random) -> None:
        self.world.restart(killed=rng.random() < 0.6)
        for model in list(self.receivers.values()):
            row = self.node.parts.directory.get(model.name)
            if row is not None and not row.options.paused and rng.random() < 0.7:
                self.attach(model.name, row.patterns, row.options.order)

    def do_look_at_backlogs(self, rng: random.Random) -> None:
        """Nobody is called full for whom little waits."""
        self.settle(2)  # a group that failed is tried again after one, and then it is judged
        if self.watched.holds or not self.node_is_up:
            return
        for number in self.node.parts.dispatch._full:
            outlet = self.node.parts.dispatch.outlets[number]
            model = self.receivers.get(outlet.name)
            waits = 0
            for body, stored in self.ledger.audience.items():
                if number in stored[0]:
                    done = model is not None and (model.handled[body] or body in model.refused)
                    waits += 0 if done else len(body) + 200
            limit = outlet.row.options.backlog_bytes or self.limits.backlog_bytes_max
            if 4 * waits < limit:
                raise Violation("called full, and little waits", outlet.name, waits, limit)

    def do_jump(self, rng: random.Random) -> None:
        """Somebody sets the wall clock."""
        self.wall_offset += rng.choice([-3600, 3600, 2 * WEEK, -WEEK]) * 1000

    # --- the end

    def finish(self) -> None:
        """Everybody is there and answers: each message comes to its end, and all agree on it."""
        self.watched.release()
        self.watched.read_on()
        self.watched.fail_next = False
        if not self.node_is_up:
            self.world.restart(killed=False)
        for producer in self.producers:
            if producer.client is None:
                producer.start()
            near = producer.connector.near if producer.connector is not None else None
            if near is not None:
                _let_go(near)
        self.settle(1)
        self._everybody_answers()
        for _ in range(60):
            self.settle(5)
            self._everybody_answers()
            if self._is_settled():
                break
        self.check("finish")
        if self._lacks_room_for_letters():
            return  # what waits, waits for a larger limit or a removal: an operator's to decide
        self._check_sends()
        self._check_states()
        self._check_accounts()
        self._check_room()
        self._check_receipts()
        self._check_history()

    def _check_receipts(self) -> None:
        """A message that was handed over by an earlier life was told to its end, to one of them."""
        for producer in self.producers:
            if not producer.on_disk or producer.went_back:
                continue
            producer.list_receipts()
            for _ in range(20):
                self.settle(1)
                producer.note_told()
            assert producer.client is not None
            for message in producer.messages:
                receipt = message.fired[0] if message.fired else None
                if not isinstance(receipt, Receipt) or message.is_lost:
                    continue
                sequence = receipt.sequence
                told = (producer.name, sequence, message.body[:30])
                require(sequence in producer.over, "a receipt is lost", *told)
                later = producer.receipts.get(sequence)
                if later is None or run_of(later).error_of(sequence) is not None:
                    continue
                for name, status in later.statuses.items():
                    self._check_state(message, name, status)
            left: list[Any] = []
            producer.client.receipts().addBoth(left.append)
            self.settle(1)
            require(left == [[]], "receipts stay that were told", producer.name, left)

    def _check_history(self) -> None:
        """Who asks later is told what was told at the time."""
        for producer in self.producers:
            client = producer.client
            assert client is not None
            if producer.went_back:
                continue
            incarnation = client._hop.incarnation
            told = {
                (name, receipt.sequence): status
                for message in producer.messages
                if message.life == producer.life and message.fired
                if isinstance(receipt := message.fired[0], Receipt)
                for name, status in receipt.statuses.items()
            }
            producer.kill()
            self.settle(1)
            peer = self.world.peer(producer.name, incarnation=incarnation, status_from=1)
            self.settle(1)
            for frame in peer.frames:
                if not isinstance(frame, StatusFrame) or not Status(frame.state).final:
                    continue
                for first, last in frame.ranges:
                    for sequence in range(first, last + 1):
                        status = told.get((frame.receiver, sequence))
                        require(
                            status is None or status == frame.state,
                            "told one state, kept another",
                            producer.name,
                            sequence,
                            frame.receiver,
                            status,
                            Status(frame.state),
                        )
        self.check("history")

    def _everybody_answers(self) -> None:
        for row in list(self.node.parts.directory):
            model = self.receivers.get(row.name)
            if model is None:
                model = self.receivers[row.name] = ModelReceiver(self, row.name)
            model.mood = "answer"
            if row.options.paused:
                Deferred.fromCoroutine(self.node.pause_receiver(row.name, False))
                self.settle(1)
            if not model.connected:
                self.attach(row.name, row.patterns, row.options.order)
            elif model.peer is not None:
                model.peer.work()
        self.settle(1)

    def _lacks_room_for_letters(self) -> bool:
        """Whether a receiver is paused, since its dead letters are as many as they may be."""
        letters = self.node.parts.dead_letters
        return any(
            row.options.paused and letters.full(row) is not None
            for row in self.node.parts.directory
        )

    def _is_settled(self) -> bool:
        for producer in self.producers:
            for message in producer.messages:
                if message.is_lost or message.life != producer.life:
                    continue
                if not message.fired:
                    return False
                receipt = message.fired[0]
                if isinstance(receipt, Receipt):
                    if not run_of(receipt).is_answered:
                        return False
                    if not all(status.final for status in receipt.statuses.values()):
                        return False
        return True

    def _check_sends(self) -> None:
        for producer in self.producers:
            for message in producer.messages:
                if message.is_lost:
                    continue
                told = message.body[:30]
                if not message.fired:
                    raise Violation("send never fires", producer.name, told, *self._why(producer))
                result = message.fired[0]
                if isinstance(result, Failure):
                    self._check_refused(message, result.value)
                    continue
                error = run_of(result).error_of(result.sequence)
                if error is not None:  # kept on the producer's disk, and refused later
                    self._check_refused(message, error)
                    continue
                if message.life == producer.life and not run_of(result).is_answered:
                    raise Violation("never accepted", producer.name, told, *self._why(producer))
                require(
                    message.body in self.ledger.audience,
                    "lost" if producer.went_back else "accepted and never stored",
                    told,
                )
                if not producer.went_back:
                    times = len(self.ledger.audience[message.body])
                    require(times == 1, "stored more than once", times, told)

    def _check_refused(self, message: Message, error: BaseException | None) -> None:
        name = type(error).__name__
        require(name == "UnknownReceiver" and message.to, f"send failed: {name}", error)

    def _check_states(self) -> None:
        """What the program is told is what the receivers did."""
        for producer in self.producers:
            if producer.went_back:
                continue
            for message in producer.messages:
                if message.is_lost or message.life != producer.life or not message.fired:
                    continue
                receipt = message.fired[0]
                if not isinstance(receipt, Receipt):
                    continue
                if run_of(receipt).error_of(receipt.sequence) is not None:
                    continue
                require(run_of(receipt).is_answered, "never accepted", message.body[:30])
                members = self.ledger.audience[message.body][0]
                names = {self.ledger.names[number] for number in members}
                require(set(receipt.receivers) <= names, "another audience", receipt.receivers)
                for name, status in receipt.statuses.items():
                    self._check_state(message, name, status)

    def _check_state(self, message: Message, name: str, status: Status) -> None:
        told = (message.body[:30], name, status.name)
        require(status.final, "never settled", *told)
        models = [one for one in [*self.receivers.values(), *self.gone] if one.name == name]
        handled = any(one.handled[message.body] for one in models)
        refused = any(message.body in one.refused for one in models)
        tries = max((one.tried[message.body] for one in models), default=0)
        if status is Status.ACKNOWLEDGED:
            require(handled, "acknowledged and never handled", *told)
        elif status is Status.DEAD:
            given_up = tries >= self.limits.max_attempts
            require(refused or given_up, "dead without a reason", *told, tries)
        elif status is Status.REMOVED:
            require(any(one.name == name for one in self.gone), "removed and never removed", *told)
        else:
            raise Violation("a state that cannot be", *told)

    def _check_accounts(self) -> None:
        audit: list[Any] = []
        accounts: list[Any] = []
        self.node.log.audit().addBoth(audit.append)
        self.node.log.accounts().addBoth(accounts.append)
        self.settle(1)
        for _ in range(10):  # a turn for each table, of which logs get more
            if not audit:
                self.settle(1)
        require(audit == [[]], "the audit finds something", audit)
        for account in accounts[0]:
            row = self.node.parts.directory.numbered(account.receiver)
            name = row.name if row is not None else str(account.receiver)
            require(not account.unaccounted, "unaccounted", name, account.unaccounted)
            require(not account.queued, "still queued in the end", name, account.queued)

    def _dead_letters_block(self) -> bool:
        """Whether dead letters, which only an operator may delete, take the room of the others."""
        log = self.node.log
        letters = sum(log.dead_bytes(row.number) for row in self.node.parts.directory)
        return log.room().full is not None and letters * 2 > self.limits.max_bytes

    def _check_room(self) -> None:
        """Nothing waits for anybody: what is sent now is taken at once, and no queue is left."""
        node = self.node
        require(
            len(node.parts.dispatch._audiences) <= self.limits.audiences,
            "more audiences than the limit",
            len(node.parts.dispatch._audiences),
        )
        require(node.parts.commits.uncommitted_bytes == 0, "uncommitted bytes are left")
        for outlet in node.parts.dispatch:
            left = (outlet.backlog.in_flight.messages, outlet.backlog.open_runs)
            require(left == (0, 0), "an outbox is not empty", outlet.name, left)
        for producer in self.producers:
            assert producer.client is not None
            require(producer.client.unanswered == 0, "unanswered is not 0", producer.name)
            number = next(self.numbers)
            body = f"{producer.name}|probe|{number}|".encode()
            producer.send("probe", body, None)
        self.settle(10)
        for producer in self.producers:
            if not producer.messages[-1].fired and not self._dead_letters_block():
                why = self._why(producer)
                raise Violation("everything is settled, and nothing is taken", *why)

    def _why(self, producer: Producer) -> list[object]:
        """What is known of a producer that is not answered, for people."""
        assert producer.client is not None
        room = self.node.log.room()
        return [
            producer.client.why(),
            f"log full: {room.full}",
            f"used {room.used} of {self.limits.max_bytes}",
            f"full: {self.node.parts.dispatch._full_audiences}",
            f"audiences {len(self.node.parts.dispatch._audiences)} of {self.limits.audiences}",
        ]


class _World(NodeWorld):
    """The node of a machine."""

    def __init__(self, machine: ServiceMachine) -> None:
        self.machine = machine
        super().__init__(machine.limits, log=machine.watched, clock=machine.clock)

    def start(self) -> None:
        machine = self.machine
        self.node = Node(
            self.clock,
            self.log,
            limits=self.limits,
            rng=lambda: 1.0,
            failed=self.failures.append,
        )
        wall = self.node.time.wall
        self.node.time.wall = lambda: wall() + machine.wall_offset
        self.node.startService()
        for _ in range(20):
            self.settle(0.2)
            if self.node.is_running:
                break
        require(self.node.is_running, "the node does not start", self.failures)
        machine.node_is_up = True

    def settle(self, seconds: float = 0.0) -> None:
        self.machine.settle(seconds)

    def receiver(
        self, model: ModelReceiver, patterns: tuple[str, ...], order: str
    ) -> _ReceiverPeer:
        made: list[_ReceiverPeer] = []

        class Made(_ReceiverPeer):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.begin(model)
                made.append(self)

        self.peer(
            model.name,
            incarnation="r1",
            receive={"subjects": list(patterns), "order": order},
            kind=Made,
        )
        return made[0]

    def restart(self, *, killed: bool) -> None:
        """Stop the node, or kill it, and start it again on the same log."""
        machine = self.machine
        machine.node_is_up = False
        if not killed or machine.rng.random() < 0.5:
            machine.watched.release()  # else what waits for the disk goes with the process
            machine.watched.read_on()
        if killed:
            machine.watched.is_dead = True
            for pipe in machine.pipes:
                if not pipe.is_down:
                    pipe.cut("killed")
            for peer in list(self.node.parts.connections.peers):
                if peer.connection is not None:
                    peer.connection.abort()
            self.settle()
            self._silence()
            machine.memory._opened = False
        else:
            stopped = self.node.stopService()
            results: list[Any] = []
            if stopped is not None:
                stopped.addBoth(results.append)
            self.settle(30)
            require(stopped is None or results, "the node does not stop")
        machine.pipes = []
        machine.watched = self.log = WatchedLog(machine.memory, machine.ledger, machine.clock)
        self.start()

    def _silence(self) -> None:
        """A killed process has no timers."""
        node = self.node
        node.is_running = False
        node.parts.commits.stop()
        node.parts.dispatch.stop()
        node.parts.upkeep.stop()


def run_of(receipt: Receipt) -> HandedRun:
    """What stands behind a receipt."""
    assert isinstance(receipt.run, HandedRun)
    return receipt.run


def _matches(pattern: str, subject: str) -> bool:
    wanted, tokens = pattern.split("."), subject.split(".")
    for number, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > number
        if number >= len(tokens) or token not in ("*", tokens[number]):
            return False
    return len(wanted) == len(tokens)


def _let_go(near: HeldPipe) -> None:
    near.let_go()
    if isinstance(near.other, HeldPipe):
        near.other.let_go()


def _memory_folder() -> str | None:
    """Where files are quick, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
