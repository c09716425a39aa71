"""Entries into transactions: the writing half of a log, over one SQLite connection.

`decide` turns a group into an entry, and is where clocks, disk and limits are looked at; `apply` is
the one door: every change of what the log says is an entry that goes through it (`entries.py`, also
on what is none).

Called on one thread only (the writer's), calls nothing back, knows no Deferred. In the usual case a
group is one to four steps of SQLite, whatever the number of its batches: rows of batches go in by
the hundred, and what they imply for senders and audiences is not written with every group but at
the next `save` (the rows since then are replayed at start). Fewer steps matter beyond SQLite's own
work: apsw gives up the GIL at each, and must win it back from a busy reactor.

Invariant: `state` is what the last entry left; see `state.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import apsw
import msgspec

from msgservice.core.marks import Key
from msgservice.disk.database import FULL_ERRNOS, connect, is_full, one, waiting_shortly
from msgservice.disk.files import OS, Files
from msgservice.disk.folder import FileWatch, Reserve
from msgservice.disk.machine import Marks
from msgservice.disk.mark import Mark
from msgservice.disk.pages import PageSums
from msgservice.errors import LogDamaged, LogFailed, LogFull, LogReplaced, LogUnavailable
from msgservice.limits import Limits
from msgservice.log.dedupe import forget_numbers
from msgservice.log.entries import Age, Append, ClearRetained, DropBatches, Entry, GrowOlder
from msgservice.log.loading import load, snapshot
from msgservice.log.removal import stage_removal
from msgservice.log.schema import BROUGHT_UP
from msgservice.log.staging import FULL_DELAY, Operation, save_operations, stage_age, stage_append
from msgservice.log.state import Staged, State
from msgservice.records import (
    Appended,
    Audience,
    Group,
    Outcome,
    PageOutcome,
    ReceiverRow,
    RefusedBatch,
    Room,
    Snapshot,
)

REPLAY_BYTES = 4 * 1024 * 1024  # of one page of a replay, about

T = TypeVar("T")
E = TypeVar("E", bound=Entry)

# The WAL is folded into the file when about so much was written: large enough that hot pages are
# folded once and not a hundred times, small enough that folding it does not hold up a group for
# more than some 20 ms, and that replay at start stays below a second.
CHECKPOINT_BYTES = 16 * 1024 * 1024
# What a page of a replay counts for at least, towards the next fold. Small ones are made where
# others wait for the log, and nearly all that they write is pages of the file that nothing else has
# written. To fold 16 MiB of these takes 26 ms, which the slowest messages of others would wait for.
REPLAY_PAGE_LEAST = 1024 * 1024
# Beyond this the WAL is begun anew even if that means waiting for the reader's page.
WAL_BYTES = 4 * CHECKPOINT_BYTES
AGES_KEPT = 256  # of the time that history is kept, how finely its age is known
AGE_STEP = 1000  # ms that the log grows older before an entry says so


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
        self._faults = faults  # None: none are made
        # How old the log is by now, and what comes next at which age: `state` has what the last
        # entry said of that.
        self.age = 0
        self._ages: list[tuple[int, int]] = []
        self._wall, self._wall_age = 0, 0  # the wall clock that was seen last, and the age then
        self.watch_files: Callable[[], FileWatch] | None = None
        self._watch: FileWatch | None = None
        self._elapsed: int | None = None
        self._brought_up: list[int] | None = None  # what `is_as_brought_up` is about
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
                ("insert into meta values('log_id', ?), ('audiences_used', 0)", (log_id,)),
                (
                    "insert into head(id, saved, chain, used, oldest, oldest_chain)"
                    " values(1, 0, 0, 0, 1, 0)",
                    (),
                ),
            ]
        )

    def load(self) -> None:
        """Read the committed state; raises `LogDamaged` where it does not hold together."""
        self._elapsed = None
        self.state = load(self.db, self._audiences)
        found = one(self.db, "select value from meta where key = ?", (BROUGHT_UP,))
        self._brought_up = None if found is None else msgspec.json.decode(found)
        if self.state.age >= self.age:  # else it is opened again, after a failure
            self.age, self._ages = self.state.age, self.state.ages

    def snapshot(self, notices: Sequence[str]) -> Snapshot:
        """Return the snapshot that the node begins with."""
        return snapshot(self.db, self.state, notices)

    def close(self, *, clean: bool) -> None:
        """Save, fold the WAL in and close."""
        try:
            if clean and self.failed is None:
                self.guard(self.save)
                self.grow_older()
                with waiting_shortly(self.db):
                    self.checkpoint(truncate=True)
        except (apsw.FullError, LogUnavailable):
            pass  # ages go on from the last entry
        finally:
            self.db.close()
            if self.pages is not None:
                self.pages.close()

    @property
    def is_as_brought_up(self) -> bool:
        """Whether nothing was stored since the log was brought up from an older version.

        The copy of before can take its place so long (`disk.migrations`), for the mark that counts
        what it lacks is not written: so nothing goes, and no age is noted, before something comes,
        or is refused for want of room.
        """
        return self._brought_up == [self.state.commits, self.state.next_number - 1]

    def grow_older(self) -> None:
        """Write the age of the log, as far as no entry has said it: nothing else comes now."""
        if self.is_as_brought_up:
            return
        age = self.grown(at_least=1)
        if age is not None:
            self.apply(self.entry(GrowOlder, age))

    def pass_time(self, elapsed: int) -> None:
        """Let the log grow older. `elapsed`: a monotonic clock, ms; where it begins is nothing."""
        if self._elapsed is not None:
            self.age += max(0, elapsed - self._elapsed)
        self._elapsed = elapsed
        keep, following = int(self.limits.keep_seconds * 1000), self.state.next_number
        ages = self._ages
        if not ages or (ages[-1][1] != following and self.age - ages[-1][0] >= keep // AGES_KEPT):
            ages = [*ages, (self.age, following)]
        while len(ages) > 1 and ages[1][0] <= self.age - keep:
            ages = ages[1:]
        self._ages = ages

    def grown(self, at_least: int = AGE_STEP) -> Age | None:
        """Return the age, where the last entry's is less by so much; at most once a second."""
        if self.age - self.state.age < at_least:
            return None
        # No wall clock is looked at here: it goes on from the last one that a group brought.
        wall = self._wall + self.age - self._wall_age if self._wall else 0
        return Age(self.age, self._ages, wall)

    @property
    def kept_long_enough(self) -> int:
        """Batches with numbers below this one are older than `keep_seconds`."""
        if not self.limits.keep_seconds:
            return self.state.next_number
        oldest = self.age - int(self.limits.keep_seconds * 1000)
        return max((number for age, number in self._ages if age <= oldest), default=0)

    @property
    def audiences_known(self) -> int:
        """The number of audiences, those included that no batch was stored for yet."""
        return len(self._audiences)

    def is_short_for(self, size: int) -> bool:
        """Whether batches of so many bytes have room only if something goes."""
        state = self.state
        return size > 0 and (
            self._full is not None
            or state.taken + size > self.limits.max_bytes
            or state.batches_kept >= self.limits.kept_batches
        )

    @property
    def is_disk_full(self) -> bool:
        """Whether batches are refused for the disk's sake."""
        return self._full is not None

    # --- deciding ------------------------------------------------------------------------------

    def decide(self, group: Group) -> Append:
        """Return the entry that a group becomes: all that is to be known of the world for it."""
        state, limits = self.state, self.limits
        self._wall, self._wall_age = group.now, self.age
        free = limits.max_bytes - state.taken + state.used
        is_more = group.is_more
        full = None
        if group.batches or (is_more and (group.own or group.pages or group.letters)):
            full = self.fullness() or self._too_many()
        entry = Append(
            number=state.next_number,
            commits=state.commits,
            age=self.grown(),
            now=max(group.now, state.stored_at),
            due_now=group.due_now or group.now,
            batches=group.batches,
            progress=group.progress,
            full=full,  # whether they may be stored at all
            # Dead letters take room as batches do (DELIVERY 46).
            used_max=free,
            ranges_max=limits.sender_ranges,
            keys_max=limits.idempotency_keys,
            is_more=is_more,
        )
        if not is_more:
            return entry
        return msgspec.structs.replace(
            entry,
            receivers=self._rows_of(group.receivers) if group.receivers else [],
            own=group.own,
            statuses_from=group.statuses_from,
            removed=group.removed,
            joins=group.joins,
            replays=group.replays,
            pages=group.pages,
            due=group.due,
            cancel=group.cancel,
            verdicts=group.verdicts,
            pages_full=self._full if group.pages else None,
            pages_used_max=free + REPLAY_BYTES,
            letters=group.letters,
        )

    def _rows_of(self, receivers: list[ReceiverRow]) -> list[ReceiverRow]:
        """Return the rows as they are now: whoever has them may change them while they are written.

        Without those that were forgotten since they were changed, or they would be there again:
        the highest number is never forgotten, so those that are new are above it.
        """
        known = self.state.receivers
        highest = max(known, default=0)
        return [replace(row) for row in receivers if row.number > highest or row.number in known]

    def entry(self, kind: type[E], age: Age | None = None, **what: Any) -> E:
        """Return the next entry, of this kind."""
        state = self.state
        age = age or self.grown()
        return kind(number=state.next_number, commits=state.commits, age=age, **what)

    def wake(self, key: Key) -> bool:
        """Have a sender's marks in memory; return whether the log knows it."""
        if self.failed is not None:
            raise self.failed
        return self.guard(lambda: self.state.wake(key))

    def append(self, group: Group) -> Appended:
        """Decide about a group and apply that; see `ILog.append`."""
        if self.failed is not None:
            raise self.failed
        try:
            entry = self.decide(group)
            appended = self.apply(entry)
        except apsw.FullError:
            return self._append_on_full_disk(group)
        except apsw.Error as error:
            # Reading what the group needs to know failed: the file is damaged.
            self.failed = LogFailed(f"the log cannot be read: {error}")
            raise self.failed from error
        if group.receivers:
            self._place(group)
        return appended

    def _append_on_full_disk(self, group: Group) -> Appended:
        """Store all but the batches; on the reserve's blocks if there is no other way."""
        self._full = "the disk is full"
        dropped = [taken for taken in group.letters if not taken.copies]
        # Without a page that makes a member, nothing that was decided to be for that one too.
        due = [] if any(page.is_membership for page in group.pages) else group.due
        rest = msgspec.structs.replace(
            group, own=[], batches=[], pages=[], letters=dropped, due=due
        )
        try:
            appended = self.make_room(lambda: self.apply(self.decide(rest)))
        except LogUnavailable:
            if not rest.due:
                raise
            rest.due = []  # they wait on: that of progress needs less
            appended = self.make_room(lambda: self.apply(self.decide(rest)))
        went = iter(appended.letters)
        self._place(group)
        error = LogFull(self._full, delay=FULL_DELAY)
        refused = RefusedBatch(error)
        return Appended(
            [refused for _ in group.batches],
            appended.stored,
            [refused for _ in group.own],
            [error for _ in group.pages],
            [error if taken.copies else next(went) for taken in group.letters],
            appended.cancelled,
            decided=appended.decided,
        )

    def clear_retained(self, subjects: list[str], expired: int = 0) -> None:
        """See `ILog.clear_retained`."""
        if self.failed is not None:
            raise self.failed

        def clear() -> None:
            self.apply(self.entry(ClearRetained, subjects=subjects, expired=expired))

        try:
            clear()
        except apsw.FullError:
            self.make_room(clear)

    def _place(self, group: Group) -> None:
        """New receivers of a group are told where they begin, if that was left to the log."""
        for row in group.receivers:
            if row.cursor < 0:
                row.cursor = self.state.receivers[row.number].cursor

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

    # --- applying ------------------------------------------------------------------------------

    def apply(self, entry: Entry) -> Appended:
        """Apply an entry in one synced transaction; return what became of its batches.

        One that the log has already changes nothing, and tells of none.
        """
        state = self.state
        if entry.number != state.next_number or entry.commits != state.commits:
            missing = entry.number > state.next_number or entry.commits > state.commits
            assert not missing, "an entry before this one was not applied"
            return Appended([], [])
        if type(entry) is DropBatches:
            self._save_before(entry)
        staged = Staged(state)
        operations: list[Operation] = []
        outcomes: list[Outcome] = []
        pages: list[PageOutcome] = []
        letters: list[PageOutcome] = []
        try:
            if entry.age is not None:
                stage_age(staged, entry.age, operations)
            if type(entry) is Append:
                outcomes, pages, letters = stage_append(self.db, staged, entry, operations)
            else:
                stage_removal(self.db, staged, entry, operations)
            self._write(staged, operations)
        except BaseException:
            forget_numbers(staged)
            raise
        if self._faults is not None:
            self._faults("after commit")
        self._written += staged.written
        if pages:
            assert type(entry) is Append
            for page in entry.pages:
                size = sum([batch.size for batch in page.copies])
                self._written += max(0, REPLAY_PAGE_LEAST - size)
        self._write_mark()
        if type(entry) is Append and (entry.own or pages or letters):
            count = len(outcomes) - len(entry.batches)
            own = len(entry.own)
            return Appended(
                outcomes[count:],
                staged.fresh,
                outcomes[:own],
                pages,
                letters,
                staged.cancelled,
                staged.retained_sizes,
                staged.decided,
            )
        return Appended(
            outcomes,
            staged.fresh,
            cancelled=staged.cancelled,
            retained=staged.retained_sizes,
            decided=staged.decided,
        )

    def _save_before(self, entry: DropBatches) -> None:
        """Batches that lose their frames are not replayed any more: they are saved before."""
        state = self.state
        if entry.frames and entry.frames[-1][0] > state.saved:
            self.save()
            if entry.frames[-1][0] > state.saved:
                raise apsw.FullError("save")

    def _write(self, staged: Staged, operations: list[Operation]) -> None:
        """Commit what an entry staged, or raise and leave all as it was."""
        try:
            if self._faults is not None:
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
            if len(operations) > 1:
                self._transact(operations)
            else:
                for sql, parameters in operations:
                    self.db.execute(sql, parameters)
        except (apsw.IOError, apsw.CantOpenError) as error:
            if is_full(self.db, error):
                raise apsw.FullError(f"no room: {error}") from error
            raise

    def _transact(self, operations: list[Operation]) -> None:
        db = self.db
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
        """Reopen after a failed write or sync; return whether the entry is in the log after all.

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
        state, marks = self.state, self.marks
        mark = Mark(state.log_id, state.next_number - 1, state.commits, state.chain)
        marks.submit(mark)
        if marks.is_full and self.reserve is not None:
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
            if self._faults is not None:
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
        with waiting_shortly(self.db):
            self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)

    # --- room ----------------------------------------------------------------------------------

    def fullness(self) -> str | None:
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
        return self._full

    def _too_many(self) -> str | None:
        """Return that the rows of batches are at their limit (`kept_batches`), or None."""
        kept, most = self.state.batches_kept, self.limits.kept_batches
        if kept < most:
            return None
        return f"{kept} batches are kept from the oldest open one on, at most {most} (kept_batches)"

    def room(self) -> Room:
        """Return how full the log is."""
        used, maximum = self.state.taken, self.limits.max_bytes
        full = self._full
        if full is None and used >= maximum:
            full = f"{used} bytes are used, at most {maximum} allowed"
        full = full or self._too_many()
        return Room(used=used, maximum=maximum, free=self._free, full=full)
