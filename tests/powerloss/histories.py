"""Histories of the log, the outbox file and the inbox file on a disk whose power fails.

Each history has `run`, which goes on until the power fails, and `recover`, which opens what is left
(the power may fail in that too) and compares it with what had been told. Everything told before the
cut must be there; of what was under way, all or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from msgservice.client import receipt_rows
from msgservice.client.outbox_file import OutboxFile
from msgservice.core.runs import Run, producer_run
from msgservice.log.sqlite import SqliteLog
from msgservice.message import BareMessage, encode_messages
from msgservice.receiver.inbox.file import InboxFile
from msgservice.receiver.inbox.transaction import Transaction
from tests.kit.inline import by_seed
from tests.kit.limits import Limits
from tests.kit.simdisk import SimDisk, SimThreads
from tests.powerloss.log_model import LogHistory, check

T = TypeVar("T")
# A checkpoint every 16 KiB; nothing is kept that may go.
LIMITS = Limits(reserve_bytes=64 * 1024, keep_seconds=0, keep_bytes=0)
TURN = 0.002


class Stopped(Exception):
    """The power failed: nothing is told any more."""


class History(Protocol):
    """One file or folder, and what was told of it."""

    def begin(self, disk: SimDisk) -> None:
        """Open it, for the first time or again; compare it with what had been told."""

    def step(self) -> None:
        """Do one more thing."""


class Driver:
    """A clock that drives Deferreds until the power fails."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.disk: SimDisk

    def wait(self, waiter: Deferred[T]) -> T:
        """Return the result. Raises `Stopped`, or what it failed with."""
        results: list[Any] = []
        waiter.addBoth(results.append)
        for _ in range(100_000):
            if results or self.disk.is_dead:
                break
            self.clock.advance(TURN)
        if self.disk.is_dead:
            # What it says now, it says to nobody.
            waiter.addErrback(lambda _: None)
            raise Stopped
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        return result  # type: ignore[no-any-return]  # whatever it fired with


class LogLife:
    """A `SqliteLog` on a disk, against the model."""

    def __init__(self, random: Random, limits: Limits = LIMITS) -> None:
        self.driver = Driver()
        self.random = random
        self.limits = limits
        self.inline = by_seed(random.getstate())
        self.history = LogHistory(random, self.driver.wait)
        self.notices: Sequence[str] = ()  # said at the last opening
        self.log: SqliteLog

    def begin(self, disk: SimDisk) -> None:
        """See `History`."""
        self.driver.disk = disk
        clock: Any = self.driver.clock
        self.log = SqliteLog(
            disk.folder / "data",
            reactor=clock,
            limits=self.limits,
            entropy=self.random.randbytes,
            vfs=disk.vfs,
            files=disk.files,
            threads=SimThreads(clock, lambda: 0.001),
            inline=self.inline,
        )
        snapshot = self.driver.wait(self.log.open())
        self.notices = snapshot.notices
        self.history.resolve(snapshot)
        check(self.log, snapshot, self.history.model, self.driver.wait)

    def step(self) -> None:
        """See `History`."""
        if self.random.random() < 0.03:
            self.driver.wait(self.log.close())
            self.begin(self.driver.disk)
            return
        self.history.step(self.log)


class OutboxLife:
    """An `OutboxFile` on a disk: runs that were told to be kept, less those that were settled."""

    def __init__(self, random: Random) -> None:
        self.driver = Driver()
        self.random = random
        self.kept: dict[int, bytes] = {}  # first -> messages, told to be on disk
        self.settled: set[int] = set()
        self.offered: dict[int, bytes] = {}  # handed in, not told
        self.rows: dict[int, int] = {}  # of receipts, told to be on disk: first -> last
        self.dropped: set[int] = set()  # of these: whose deletion was asked for
        self._lasts: dict[int, int] = {}
        self.told_to = 0
        self.incarnation: str | None = None
        self.renewing = False
        self.file: OutboxFile

    def begin(self, disk: SimDisk) -> None:
        """See `History`."""
        self.driver.disk = disk
        clock: Any = self.driver.clock
        self.file = OutboxFile(
            disk.folder / "outbox.db",
            reactor=clock,
            entropy=self.random.randbytes,
            vfs=disk.vfs,
            files=disk.files,
            threads=SimThreads(clock, lambda: 0.001),
        )
        snapshot = self.driver.wait(self.file.open())
        found: list[Run] = [*snapshot.runs]
        while self.file.has_more:
            page: list[Run] = self.driver.wait(self.file.read())
            found += page
        have = {run.first: bytes(run.messages) for run in found}
        for first, messages in self.kept.items():
            if first not in self.settled:
                assert have.get(first) == messages, f"run {first} is lost"
        for first, messages in have.items():
            known = self.kept.get(first, self.offered.get(first))
            assert known == messages, f"run {first} is another"
        assert snapshot.sequence >= self.told_to, "sequences are given anew"
        assert self.incarnation in (None, snapshot.incarnation) or self.renewing
        self.incarnation, self.renewing = snapshot.incarnation, False
        rows: dict[int, int] = {
            row.first: row.last
            for row in self.driver.wait(self.file.receipts_page(0, 1 << 40))
            if row.subject == "lane" and row.promise is None and not row.errors
        }
        for first, last in self.rows.items():
            assert first in self.dropped or rows.get(first) == last, f"row {first} is lost"
        for first in rows:
            assert first in self.rows or first in self.offered, f"row {first} is another"
        self.rows = rows
        self.dropped &= set(rows)
        self.kept = have
        self.offered.clear()
        self.settled &= set(have)
        self.told_to = snapshot.sequence

    def step(self) -> None:
        """See `History`."""
        random = self.random
        what = random.random()
        if what < 0.03:
            self.driver.wait(self.file.close())
            self.begin(self.driver.disk)
        elif what < 0.06:
            self.renewing = True
            self.incarnation = self.driver.wait(self.file.renew())
            self.renewing = False
        elif what < 0.4 and self.kept:
            for first in random.sample(sorted(self.kept), min(5, len(self.kept))):
                self.settled.add(first)
                self.file.settle([(first, self._lasts[first])])
                if first % 2:
                    self.dropped.add(first)
                    self.file.change_receipts([receipt_rows.delete(first, self._lasts[first])])
        else:
            runs = []
            sequence = self.file.sequence
            for _ in range(random.choice([1, 1, 3])):
                count = random.choice([1, 2, 9])
                size = random.choice([3, 300, 30_000])
                messages = encode_messages([BareMessage(random.randbytes(size))] * count)
                runs.append(
                    producer_run(
                        first=sequence + 1,
                        count=count,
                        subject="lane",
                        messages=messages,
                    )
                )
                sequence += count
            self.offered = {run.first: bytes(run.messages) for run in runs}
            self._lasts.update({run.first: run.last for run in runs})
            self.driver.wait(self.file.append(runs))
            self.kept.update(self.offered)
            self.rows.update({run.first: run.last for run in runs})
            self.offered = {}
            self.told_to = sequence


class InboxLife:
    """An `InboxFile` on a disk: what a handler wrote is there exactly with the mark."""

    def __init__(self, random: Random) -> None:
        self.driver = Driver()
        self.random = random
        self.told: set[int] = set()
        self.offered: set[int] = set()
        self.next = 1
        self.inbox: str | None = None
        self.file: InboxFile

    def begin(self, disk: SimDisk) -> None:
        """See `History`."""
        self.driver.disk = disk
        clock: Any = self.driver.clock
        self.file = InboxFile(
            disk.folder / "inbox.db",
            reactor=clock,
            entropy=self.random.randbytes,
            vfs=disk.vfs,
            files=disk.files,
            threads=SimThreads(clock, lambda: 0.001),
        )
        inbox = self.driver.wait(self.file.open())
        written = set(self.driver.wait(self.file.transaction(written_by_handlers)))
        resume = self.file.resume("node", "i1")
        marked = set(range(1, resume.floor)) | {
            n for low, high in resume.ranges for n in range(low, high + 1)
        }
        assert written == marked, f"marks and effects differ: {sorted(written ^ marked)[:5]}"
        assert self.told <= written, f"lost: {sorted(self.told - written)[:5]}"
        assert written <= self.told | self.offered
        assert self.inbox in (None, inbox), "it forgot which inbox it is"
        self.inbox = inbox
        self.told, self.offered = written, set()
        self.next = max(written, default=0) + 1

    def step(self) -> None:
        """See `History`."""
        random = self.random
        if random.random() < 0.03:
            self.driver.wait(self.file.close())
            self.begin(self.driver.disk)
            return
        waits: list[tuple[list[int], Deferred[Any]]] = []
        for _ in range(random.choice([1, 1, 3])):
            numbers = list(range(self.next, self.next + random.choice([1, 2, 9])))
            self.next = numbers[-1] + 1
            self.offered.update(numbers)
            waits.append(
                (
                    numbers,
                    self.file.run(
                        "node",
                        "i1",
                        [(number, number) for number in numbers],
                        _write,
                        after=numbers[0] - 1,
                    ),
                )
            )
        for _, waiter in waits:
            waiter.addErrback(self._failed)
        for numbers, waiter in waits:
            handled = self.driver.wait(waiter)
            assert handled.count == len(numbers)
            self.told.update(numbers)

    def _failed(self, failure: Failure) -> Failure | None:
        return None if self.driver.disk.is_dead else failure


def _write(number: int, transaction: Transaction) -> None:
    transaction.execute("create table if not exists effect (number integer, body blob)")
    transaction.execute("insert into effect values (?, zeroblob(?))", (number, number % 7 * 200))


def written_by_handlers(transaction: Transaction) -> list[int]:
    """Return the numbers of the messages whose effects are there."""
    transaction.execute("create table if not exists effect (number integer, body blob)")
    return [int(row[0]) for row in transaction.execute("select number from effect order by number")]


KINDS: dict[str, Callable[[Random], History]] = {
    "log": LogLife,
    "outbox": OutboxLife,
    "inbox": InboxLife,
}
