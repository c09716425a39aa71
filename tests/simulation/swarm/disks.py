"""The node's log on a disk: in memory, or the real `SqliteLog` on a simulated disk.

Both say the same to the world: they begin a life, are saved and put back, fill up and have room
again. `SimulatedDisk` can do more: its power fails in the middle of any of its operations, what was
not synced is lost in any part then, and syncs fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import apsw
from twisted.internet.defer import Deferred

from msgservice.log.copying import copy_log
from msgservice.log.memory import MemoryLog
from msgservice.log.sqlite import SqliteLog
from msgservice.log.store import Store
from msgservice.records import Appended, Group
from tests.kit.inline import forced
from tests.kit.simdisk import SimDisk, SimThreads, SimWorker
from tests.simulation.swarm.meter import Meter

if TYPE_CHECKING:
    from tests.simulation.swarm.world import World

FOLDER = "data"
DATA = ("log.db", "log.db-wal")  # whose syncs fail by order
RESERVE_BYTES = 64 * 1024


class MeteredMemoryLog(MemoryLog):
    """The log in memory, whose jobs are metered, and whose reader is slow when its disk is."""

    meter: Meter
    reader: SimWorker

    def _later(self, job: Callable[[], Any]) -> Deferred[Any]:
        return super()._later(lambda: self.meter.job(self._store.db, job))

    def append_now(self, group: Group) -> Appended | None:
        """See `ILog.append_now`."""
        append_now = super().append_now
        found: Appended | None = self.meter.job(self._store.db, lambda: append_now(group))
        return found

    def _read(self, job: Callable[[apsw.Connection], Any]) -> Deferred[Any]:
        self._check_open()
        db = self._store.db
        return self.reader.submit(lambda: self.meter.job(db, lambda: job(db)))


def inline_of(world: World) -> Literal["on", "off"]:
    """Return whether groups are written in the turn that asks.

    The switch says so of plans that draw it. Others are older, and were found by their timing.
    """
    drawn = world.plan.world.get("inline")
    return "off" if drawn is None else forced(drawn)


class DiskThreads(SimThreads):
    """The threads of a log: the reader's answers may be later than what is committed meanwhile."""

    def __init__(self, clock: Any, world: World) -> None:
        super().__init__(clock, lambda: world.plan.world.get("disk_delay", 0.003))
        self._world = world

    def worker(self, name: str) -> SimWorker:
        """See `SimThreads`."""
        if "reader" in name:
            return SimWorker(self._clock, self._world.read_delay)
        return super().worker(name)


class MeteredSqliteLog(SqliteLog):
    """The log on a disk, whose jobs are metered."""

    meter: Meter

    def _write(self, job: Callable[[], Any]) -> Deferred[Any]:
        return super()._write(lambda: self.meter.job(self._store.db, job))

    def append_now(self, group: Group) -> Appended | None:
        """See `ILog.append_now`."""
        append_now = super().append_now
        found: Appended | None = self.meter.job(self._store.db, lambda: append_now(group))
        return found

    def _read(self, job: Callable[[apsw.Connection], Any]) -> Deferred[Any]:
        return super()._read(lambda db: self.meter.job(db, lambda: job(db)))


class MemoryDisk:
    """Where a log in memory is, as a reserve (`log.folder.Reserve`) sees it."""

    def __init__(self, world: World) -> None:
        self.is_full = False
        self.whole = True
        self.watermark = 1000
        self._world = world
        self._store: Any = None
        self._saved: list[apsw.Connection] = []

    def begin(self, clock: Any) -> MeteredMemoryLog:
        """Return the log of a new process."""
        world = self._world
        log = MeteredMemoryLog(
            reactor=clock,
            limits=world.limits,
            delay=world.plan.world.get("disk_delay", 0.003),
            entropy=world.random.randbytes,
            faults=self._write,
            inline=inline_of(world),
        )
        log.meter = world.meter
        log.reader = DiskThreads(clock, world).worker("reader")
        if self._store is not None:
            # What the process before had not begun to write is never written.
            log._store.db, log._made = self._store.db, True
        self._store = log._store
        log._store.reserve = self  # type: ignore[assignment]  # it is one, without files
        return log

    def died(self) -> None:
        """A process was killed."""

    def calm(self) -> None:
        """No more faults."""

    def save(self) -> bool:
        """Copy what is there; return whether there is anything."""
        if self._store is None or self._store.db is None:
            return False
        copy = apsw.Connection(":memory:")
        with copy.backup("main", self._store.db, "main") as backup:
            backup.step()
        self._saved.append(copy)
        return True

    def restore(self, *, as_copy: bool) -> None:
        """Put the last copy back, as a snapshot of the machine or with a log id of its own."""
        db = self._saved.pop()
        if as_copy:
            log_id = self._world.random.randbytes(16).hex()
            db.execute("update meta set value = ? where key = 'log_id'", (log_id,))
        self._store = Store(":memory:", limits=self._world.limits, audiences={})
        self._store.db = db

    def close(self) -> None:
        """Let go of all."""
        for db in [*self._saved, self._store.db if self._store else None]:
            if db is not None:
                db.close(True)

    # --- as a reserve

    def free(self) -> int:
        """See `Reserve`."""
        return 0 if self.is_full else 10**9

    def make(self) -> bool:
        """See `Reserve`."""
        self.whole = self.whole or not self.is_full
        return self.whole

    def give_up(self, *, at_once: bool = False) -> bool:
        """See `Reserve`."""
        was, self.whole = self.whole, False
        return was

    def _write(self, point: str) -> None:
        """What the store tells before it commits: fails where there is no room."""
        if point == "before commit" and self.is_full and self.whole:
            raise apsw.FullError("database or disk is full")


class SimulatedDisk:
    """Where a log on disk is. `power_failed()` is called in the midst of the operation."""

    def __init__(self, world: World, folder: Path, power_failed: Callable[[], None]) -> None:
        self._world = world
        self._power_failed = power_failed
        self._folder = folder
        self._disk = SimDisk(folder, world.random)
        self._disks = [self._disk]
        self._loses_power = False
        self._saved: list[dict[str, bytes]] = []
        self._copies = 0
        self._log: MeteredSqliteLog | None = None
        self.sync_failed = False  # since the process began

    @property
    def is_full(self) -> bool:
        """Whether nothing can grow."""
        return self._disk.capacity is not None

    @is_full.setter
    def is_full(self, full: bool) -> None:
        self._disk.capacity = self._disk.used if full else None

    def begin(self, clock: Any) -> MeteredSqliteLog:
        """Return the log of a new process."""
        world = self._world
        old = self._disk
        if self._log is not None:
            if not old.is_dead:
                old.crash()
            self._disk = old.restart() if self._loses_power else old.killed()
            self._disk.capacity = None if old.capacity is None else self._disk.used
            self._disks.append(self._disk)
        self._loses_power = self.sync_failed = False
        log = self._log = MeteredSqliteLog(
            self._disk.folder / FOLDER,
            reactor=clock,
            limits=world.limits,
            entropy=world.random.randbytes,
            vfs=self._disk.vfs,
            files=self._disk.files,
            threads=DiskThreads(clock, world),
            inline=inline_of(world),
        )
        log.meter = world.meter
        return log

    def died(self) -> None:
        """A process was killed: nothing of it writes any more, what it had open is closed."""
        self._disk.crash()
        log = self._log
        if log is not None:
            # Not now: this may be in the midst of an operation of SQLite.
            self._world.net.clock.callLater(0, _close, log)

    def lose_power(self) -> None:
        """What was not synced is lost in any part, when the next process begins."""
        self._loses_power = True

    def lose_power_in(self, operations: int) -> None:
        """The power fails in the midst of so many operations from now."""

        def failed() -> None:
            self._loses_power = True
            self._power_failed()

        self._disk.cut_at = self._disk.operations + operations
        self._disk.when_cut = failed

    def fail_sync(self) -> None:
        """The next sync of the data fails, and has lost what it was to sync."""

        def fails(name: str) -> bool:
            if not name.endswith(DATA):
                return False
            self._disk.fail_sync = lambda name: False
            self.sync_failed = True
            return True

        self._disk.fail_sync = fails

    def calm(self) -> None:
        """No more faults."""
        self._disk.cut_at = None
        self._disk.fail_sync = lambda name: False

    def save(self) -> bool:
        """Copy what is there; return whether there is anything."""
        if self._log is None:
            return False
        self._saved.append(self._disk.copy())
        return True

    def restore(self, *, as_copy: bool) -> None:
        """Put the last copy back, as a snapshot of the machine or by the product's own copying."""
        left = self._saved.pop()
        if as_copy and f"{FOLDER}/log.db" in left:
            left = self._copied(left)
        full = self._disk.capacity is not None
        self._disk.crash()
        self._disk = SimDisk(self._folder, self._world.random, left)
        self._disk.capacity = self._disk.used if full else None
        self._disks.append(self._disk)
        self._loses_power = False

    def _copied(self, left: dict[str, bytes]) -> dict[str, bytes]:
        self._copies += 1
        place = self._folder / f"copy-{self._copies}"
        for name, content in left.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        target = place / "target"
        copy_log(place / FOLDER, target, entropy=self._world.random.randbytes)
        found = {
            f"{FOLDER}/{path.name}": path.read_bytes()
            for path in target.iterdir()
            if path.name != "lock"
        }
        shutil.rmtree(place)
        return found

    def close(self) -> None:
        """Let go of all."""
        for disk in self._disks:
            disk.crash()
        if self._log is not None:
            _close(self._log)


def _close(log: SqliteLog) -> None:
    """Close what the kernel closes when a process is killed; nothing is written any more."""
    if log._lock._descriptor is None:
        return  # it was closed in order, or never opened
    for db in (log._reading, log._store.db):
        if db is not None:
            db.close(True)
    marks: Any = log._store.marks
    if marks is not None:
        marks._file.close()
    log._lock.release()
