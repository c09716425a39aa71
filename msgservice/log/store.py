"""Groups into transactions: the writing half of a log, over one SQLite connection.

Called on one thread only (the writer's), calls nothing back, knows no Deferred. In the usual case a
group is one to four steps of SQLite, whatever the number of its batches: rows of batches go in by
the hundred, and what they imply for senders and audiences is not written with every group but at
the next `save` (the rows since then are replayed at start). Fewer steps matter beyond SQLite's own
work: apsw gives up the GIL at each, and must win it back from a busy reactor.

Invariant: `state` is what the last commit left; see `state.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import apsw

from msgservice.core.marks import Key
from msgservice.disk.database import BUSY_WAIT_MS, FULL_ERRNOS, connect, is_full, one
from msgservice.disk.files import OS, Files
from msgservice.disk.folder import FileWatch, Reserve
from msgservice.disk.machine import Marks
from msgservice.disk.mark import Mark
from msgservice.disk.pages import PageSums
from msgservice.errors import LogDamaged, LogFailed, LogFull, LogReplaced, LogUnavailable
from msgservice.limits import Limits
from msgservice.log import queries
from msgservice.log.dedupe import forget_numbers, take_batches
from msgservice.log.loading import load, snapshot
from msgservice.log.staging import (
    Operation,
    age_operations,
    save_operations,
    stage_batches,
    stage_floors,
    stage_progress,
    stage_receivers,
    stage_removals,
)
from msgservice.log.state import Staged, State
from msgservice.records import Audience, Batch, Group, Outcome, RefusedBatch, Room, Snapshot

T = TypeVar("T")

# The WAL is folded into the file when about so much was written: large enough that hot pages are
# folded once and not a hundred times, small enough that folding it does not hold up a group for
# more than some 20 ms, and that replay at start stays below a second.
CHECKPOINT_BYTES = 16 * 1024 * 1024
# Beyond this the WAL is begun anew even if that means waiting for the reader's page.
WAL_BYTES = 4 * CHECKPOINT_BYTES
RESTART_WAIT_MS = 100  # somebody who copies the log may read for longer: then the next time
# Of `max_bytes`, what is kept free of history that nobody waits for.
HEADROOM_DIVISOR = 8
AGES_KEPT = 256  # of the time that history is kept, how finely its age is known
# How long a sender is asked to wait when there is no room, seconds.
FULL_DELAY = 1.0


class Store:
    """The writer of one log, over one SQLite connection. `path` may be `:memory:`.

    `used_max` and the reserve decide when a log is full; `faults` is called with the name of each
    point where a crash is interesting (tests and the simulator).
    """

    def __init__(
        self,
        path: str,
        *,
        limits: Limits,
        audiences: dict[tuple[int, ...], Audience],
        reserve: Reserve | None = None,
        pages: PageSums | None = None,
        mark: Literal["behind", "strict"] = "behind",
        vfs: str | None = None,
        files: Files = OS,
        faults: Callable[[str], None] | None = None,
    ) -> None:
        self.limits = limits
        self.state = State()
        self.marks: Marks | None = None
        self.failed: LogFailed | None = None
        self.db: apsw.Connection = None  # type: ignore[assignment]  # set by `open`
        self._path = path
        self._audiences = audiences
        self.reserve = reserve
        self.pages = pages
        self._strict = mark == "strict"
        self._vfs = vfs
        self._files = files
        self._faults = faults or (lambda point: None)
        # By the age of the log, ms: when retention last forgot what nobody needs; never, at first.
        self.tidied_at: int | None = None
        # Receiver number -> age when retention first saw that it was removed and has dead letters.
        self.removed_seen_at: dict[int, int] = {}
        self.gave_way_at: int | None = None  # … and last found nothing that could give way
        self.looked_at: int | None = None  # … and last found nobody to forget before the time
        # Set anew by the reactor's thread: a new audience or receiver was refused for want of a
        # place. The limit, and of `sender_audiences` whose.
        self.places_wanted: frozenset[tuple[str, str]] = frozenset()
        self.gives_way_below: int | None = None  # number: settled history does, for such places
        self.left: set[Key] = set()  # senders that said goodbye with all answered, since the start
        self.watch_files: Callable[[], FileWatch] | None = None
        self._watch: FileWatch | None = None
        self.coming = 0  # bytes of the group that history is to give way to now
        self._elapsed: int | None = None
        # Numbers of receivers; filled by the writer, emptied by the reactor's thread.
        self.forgotten: deque[int] = deque()
        # Never more in the WAL than what the low watermark keeps free for it.
        self._checkpoint_bytes = min(
            CHECKPOINT_BYTES, reserve.watermark if reserve is not None else CHECKPOINT_BYTES
        )
        self._written = 0  # bytes since the last checkpoint, about
        self._free = 0
        self._full: str | None = None

    # --- opening and closing -------------------------------------------------------------------

    def connect(self) -> None:
        """Open the connection; nothing is read yet."""
        self.db = connect(self._path, vfs=self._vfs, files=self._files)

    def create(self, log_id: str) -> None:
        """Write the first rows of a log, if the file is new."""
        if one(self.db, "select count(*) from head"):
            return
        self.transact(
            [
                ("insert into meta values('log_id', ?)", (log_id,)),
                ("insert into head values(1, 0, 0, 0, 1, 0)", ()),
            ]
        )

    def load(self) -> None:
        """Read the committed state; raises `LogDamaged` where it does not hold together."""
        self._elapsed = None
        age, ages = self.state.age, self.state.ages
        self.state = load(self.db, self._audiences)
        if age > self.state.age:  # opened again after a failure
            self.state.age, self.state.ages = age, ages

    def snapshot(self, notices: Sequence[str]) -> Snapshot:
        """Return the snapshot that the node begins with."""
        return snapshot(self.db, self.state, notices)

    def close(self, *, clean: bool) -> None:
        """Save, fold the WAL in and close."""
        try:
            if clean and self.failed is None:
                self.save()
                self.transact(age_operations(self.state))
                self.checkpoint(truncate=True)
        except apsw.FullError:
            pass  # ages go on from the last save
        finally:
            self.db.close()
            if self.pages is not None:
                self.pages.close()

    def pass_time(self, elapsed: int) -> None:
        """Let the log grow older. `elapsed`: a monotonic clock, ms; where it begins is nothing."""
        state = self.state
        if self._elapsed is not None:
            state.age += max(0, elapsed - self._elapsed)
        self._elapsed = elapsed
        keep = int(self.limits.keep_seconds * 1000)
        ages = state.ages
        if not ages or (
            ages[-1][1] != state.next_number and state.age - ages[-1][0] >= keep // AGES_KEPT
        ):
            ages = [*ages, (state.age, state.next_number)]
        while len(ages) > 1 and ages[1][0] <= state.age - keep:
            ages = ages[1:]
        state.ages = ages

    @property
    def kept_long_enough(self) -> int:
        """Batches with numbers below this one are older than `keep_seconds`."""
        state = self.state
        if not self.limits.keep_seconds:
            return state.next_number
        oldest = state.age - int(self.limits.keep_seconds * 1000)
        return max((number for age, number in state.ages if age <= oldest), default=0)

    @property
    def audiences_known(self) -> int:
        """The number of audiences, those included that no batch was stored for yet."""
        return len(self._audiences)

    @property
    def to_give_way(self) -> int:
        """Bytes of history that must make room for what is to come (SEMANTICS 19)."""
        maximum = self.limits.max_bytes
        if self.is_disk_full:
            return self.state.used
        return max(0, self.state.taken - maximum + max(maximum // HEADROOM_DIVISOR, self.coming))

    def is_short_for(self, size: int) -> bool:
        """Whether batches of so many bytes have room only if something goes."""
        return size > 0 and (self.is_disk_full or self.state.taken + size > self.limits.max_bytes)

    @property
    def is_disk_full(self) -> bool:
        """Whether batches are refused for the disk's sake."""
        return self._full is not None

    # --- groups --------------------------------------------------------------------------------

    def apply(self, group: Group) -> list[Outcome]:
        """Store a group in one synced transaction; see `ILog.append`."""
        if self.failed is not None:
            raise self.failed
        full = self.fullness() if group.batches else None
        try:
            return self._commit(group, group.batches, full)
        except apsw.FullError:
            return self._commit_on_full_disk(group)
        except apsw.Error as error:
            # Reading what the group needs to know failed: the file is damaged.
            self.failed = LogFailed(f"the log cannot be read: {error}")
            raise self.failed from error

    def _commit_on_full_disk(self, group: Group) -> list[Outcome]:
        """Store all but the batches; on the reserve's blocks if there is no other way."""
        self._full = "the disk is full"
        self.make_room(lambda: self._commit(group, [], None))
        return [RefusedBatch(LogFull(self._full, delay=FULL_DELAY)) for _ in group.batches]

    def make_room(self, job: Callable[[], T]) -> T:
        """Run a job that met a full disk again: with an empty WAL, then without the reserve."""
        reserve = self.reserve
        if reserve is not None and reserve.free() >= reserve.watermark:
            # A quota, or a limit on files: a filesystem that copies on write has no room then even
            # to change a page of the shared memory, and the kernel ends the process for that.
            reserve.give_up(at_once=True)
        # Folding needs next to no room, and the WAL's own blocks are used again.
        self.checkpoint(truncate=True)
        try:
            return job()
        except apsw.FullError:
            if self.reserve is None or not self.reserve.give_up():
                raise LogUnavailable("the disk is full") from None
        self.checkpoint(truncate=True)
        try:
            return job()
        except apsw.FullError:
            raise LogUnavailable("the disk is full") from None

    def _commit(self, group: Group, batches: list[Batch], full: LogFull | None) -> list[Outcome]:
        staged = Staged(self.state)
        operations: list[Operation] = []
        placed = stage_receivers(staged, group, operations)
        outcomes, flat = take_batches(
            staged,
            batches,
            group.now,
            # Dead letters take room as batches do (DELIVERY 46).
            used_max=self.limits.max_bytes - self.state.taken + self.state.used,
            full=full,
            ranges_max=self.limits.sender_ranges,
            lookup=lambda sender, first, last: queries.runs_of(
                self.db, self.state, sender, first, last
            ),
        )
        stage_batches(staged, flat, operations)
        stage_floors(staged, group, operations)
        stage_progress(staged, group, operations)
        stage_removals(self.db, staged, group, operations)
        try:
            self._write(staged, operations)
        except BaseException:
            forget_numbers(staged)
            raise
        for row, cursor in placed:
            row.cursor = cursor
        self._faults("after commit")
        self._written += sum(batch.size + 320 for batch in staged.fresh) + 4096 * 6
        self._write_mark()
        return outcomes

    def _write(self, staged: Staged, operations: list[Operation]) -> None:
        """Commit what a group staged, or raise and leave all as it was."""
        try:
            self._faults("before commit")
            self.transact(operations)
        except (apsw.IOError, apsw.BusyError, apsw.CantOpenError) as error:
            if not self._recover(staged, error):
                raise LogUnavailable(str(error)) from error
        except apsw.FullError:
            raise
        except apsw.Error as error:
            self.failed = LogFailed(f"the log cannot be written: {error}")
            raise self.failed from error
        else:
            self.state.adopt(staged)

    def transact(self, operations: list[Operation]) -> None:
        """Run the operations in one transaction; a single one is its own.

        Raises `apsw.FullError` where there is no room, whatever the system calls that.
        """
        try:
            self._transact(operations)
        except (apsw.IOError, apsw.CantOpenError) as error:
            if is_full(self.db, error):
                raise apsw.FullError(f"no room: {error}") from error
            raise

    def _transact(self, operations: list[Operation]) -> None:
        db = self.db
        if not operations:
            return
        if len(operations) == 1:
            db.execute(*operations[0])
            return
        db.execute("begin immediate")
        try:
            for sql, parameters in operations:
                db.execute(sql, parameters)
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise

    def guard(self, job: Callable[[], T]) -> T:
        """Run a job that writes beside the groups; a failed write or sync is recovered from."""
        try:
            return job()
        except (apsw.IOError, apsw.BusyError, apsw.CantOpenError) as error:
            self._recover(Staged(self.state), error)
            raise LogUnavailable(str(error)) from error
        except apsw.FullError as error:
            raise LogUnavailable(str(error)) from error
        except apsw.Error as error:
            self.failed = LogFailed(f"the log cannot be written: {error}")
            raise self.failed from error

    def begin_watch(self) -> None:
        """Remember which files are open, now that all of them are."""
        self._watch = None if self.watch_files is None else self.watch_files()

    def check_files(self) -> None:
        """Raise `LogFailed`, from now on, where what is open is no longer what the folder has."""
        watch = self._watch
        if watch is None or self.failed is not None:
            return
        if (name := watch.replaced) is not None:
            self.failed = LogReplaced(
                f"{name} was replaced while the log was in use: what was acknowledged since is in"
                " the files that this process has open, and nowhere else"
            )
        elif (name := watch.gone) is not None:
            self.failed = LogFailed(f"{name} was removed or moved away while the log was in use")
        if self.failed is not None:
            raise self.failed

    def _recover(self, staged: Staged, error: Exception) -> bool:
        """Reopen after a failed write or sync; return whether the group is in the log after all.

        The kernel calls pages clean that it could not write, so nothing written before may be
        trusted to a later sync: every page of the WAL is written anew into the file, and that
        synced, before anything is answered (SEMANTICS 19).
        """
        self.check_files()  # it is opened by its name
        try:
            self.db.close(True)
            self.connect()
            self.load()
            self.fold()
            self.begin_watch()
        except (apsw.Error, LogDamaged) as second:
            self.failed = LogFailed(f"{error}; then reopening failed: {second}")
            raise self.failed from second
        return (self.state.next_number, self.state.chain, self.state.commits) == (
            staged.number,
            staged.chain,
            staged.commits,
        )

    def _write_mark(self) -> None:
        if self.marks is None:
            return
        state = self.state
        mark = Mark(state.log_id, state.next_number - 1, state.commits, state.chain)
        self.marks.submit(mark)
        if self.marks.is_full and self.reserve is not None:
            self.reserve.give_up()  # for the mark; accepting stops until it can be made again
        try:
            if self._strict:
                self._wait_for(mark)
            elif self.marks.error is not None:
                raise self.marks.error
        except OSError as error:
            self.failed = LogFailed(f"the high-water mark cannot be written: {error}")
            raise self.failed from error

    def _wait_for(self, mark: Mark) -> None:
        assert self.marks is not None
        try:
            self.marks.wait(mark)
        except OSError as error:
            if error.errno not in FULL_ERRNOS or self.reserve is None:
                raise
            if not self.reserve.give_up():
                raise
            self.marks.wait(mark)

    # --- saving and folding --------------------------------------------------------------------

    @property
    def wants_checkpoint(self) -> bool:
        """Whether `maintain` should run before long."""
        return self._written >= self._checkpoint_bytes

    def wrote(self, size: int) -> None:
        """Count what another part has written towards the next checkpoint."""
        self._written += size

    def maintain(self) -> None:
        """Save and fold the WAL in, if it is time."""
        if self.failed is None and self.wants_checkpoint:
            self.guard(self.save)
            self.checkpoint()

    def save(self) -> None:
        """Save the state of senders and audiences after the batches since the last save."""
        state = self.state
        last = state.next_number - 1
        if last == state.saved and not state.dirty_senders and not state.dirty_totals:
            return
        try:
            self.transact(save_operations(self.state))
        except apsw.FullError:
            return  # replayed instead; accepting stops by the watermark
        self.saved()

    def saved(self) -> None:
        """Note that `save_operations` were committed."""
        state = self.state
        state.saved = state.next_number - 1
        state.dirty_senders.clear()
        state.dirty_totals.clear()

    def checkpoint(self, *, truncate: bool = False, raising: bool = False) -> None:
        """Fold the WAL into the file and sync that."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            self._faults("before checkpoint")
            self._note_pages()
            pages, _folded = self.db.wal_checkpoint(mode=mode)
            self._written = 0
            if pages * 4096 > WAL_BYTES:
                self._begin_wal_anew()
        except (apsw.FullError, apsw.BusyError):
            if raising:
                raise
        except apsw.Error as error:
            if is_full(self.db, error):
                if raising:
                    raise apsw.FullError(f"no room: {error}") from error
                return
            if raising:
                raise
            self._recover(Staged(self.state), error)

    def _note_pages(self) -> None:
        if self.pages is None:
            return
        try:
            self.pages.take(self.db)
        except (OSError, LogDamaged) as error:
            self.failed = LogFailed(f"the log cannot be folded in: {error}")
            raise self.failed from error

    def fold(self) -> None:
        """Fold the WAL into the file and sync it, on the reserve's blocks if need be, or raise."""
        try:
            self.checkpoint(truncate=True, raising=True)
        except apsw.FullError:
            if self.reserve is None or not self.reserve.give_up():
                raise
            self.checkpoint(truncate=True, raising=True)

    def _begin_wal_anew(self) -> None:
        """Wait for readers, who were always somewhere in the WAL; a page of theirs is short."""
        self.db.set_busy_timeout(RESTART_WAIT_MS)
        try:
            self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        finally:
            self.db.set_busy_timeout(BUSY_WAIT_MS)

    # --- room ----------------------------------------------------------------------------------

    def fullness(self) -> LogFull | None:
        """Look at the disk; return why no batch may be accepted now, or None (SEMANTICS 19)."""
        reserve = self.reserve
        if reserve is None:
            self._full = None
        else:
            self._free = reserve.free()
            # Once full, twice the watermark must be free: no flapping at the edge.
            wanted = reserve.watermark * (2 if self._full else 1)
            if self._free < wanted or not reserve.make():
                self._full = f"{self._free} bytes are free on the disk"
            else:
                self._full = None
        return None if self._full is None else LogFull(self._full, delay=FULL_DELAY)

    def room(self) -> Room:
        """Return how full the log is."""
        used, maximum = self.state.taken, self.limits.max_bytes
        full = self._full
        if full is None and used >= maximum:
            full = f"{used} bytes are used, at most {maximum} allowed"
        return Room(used=used, maximum=maximum, free=self._free, full=full)
