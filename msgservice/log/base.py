"""The reactor's side of every log over a `Store`: interning, checks, and handing over.

`SqliteLog` runs jobs on its two threads, `MemoryLog` in a later turn of the reactor; both inherit
everything else from here, so the memory log cannot drift away from the real one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import apsw
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from msgservice.errors import LimitReached, LogDamaged, LogError, LogUnavailable
from msgservice.interfaces import ILog
from msgservice.limits import Limits
from msgservice.log import accounts, audit, delayed, finished, history, queries, replaying
from msgservice.log.copied import with_copies
from msgservice.log.inline import Inline
from msgservice.log.retention import Retention
from msgservice.log.state import NO_LETTERS
from msgservice.log.store import Store
from msgservice.records import (
    Account,
    Appended,
    Audience,
    Batch,
    Copies,
    DeadLetter,
    Delayed,
    Expiring,
    Found,
    Group,
    History,
    Replay,
    Resume,
    Retained,
    Room,
    Snapshot,
    StreamHeader,
    StreamPage,
    position_of,
)

T = TypeVar("T")

PASSED_ON_PAGES = 100  # of the newest rows, looked through for a message that was passed on


@contextmanager
def read_transaction(db: apsw.Connection) -> Iterator[apsw.Connection]:
    """A read transaction: all that is read within it, one page, is of one state of the log."""
    db.execute("begin")
    try:
        yield db
    finally:
        db.execute("commit")


def size_of(group: Group) -> int:
    """Return the bytes of the batches that a group stores."""
    coming = 0
    for batch in group.batches:
        coming += batch.size
    if group.own:
        coming += sum(batch.size for batch in group.own)
    for page in group.pages:
        coming += sum(batch.size for batch in page.copies)
    for taken in group.letters:
        coming += sum(batch.size for batch in taken.copies)
    return coming


@implementer(ILog)
class StoreLog:
    """An `ILog` over a `Store`: the half of it that runs on the reactor's thread."""

    _logger = Logger()

    durable = False

    def __init__(self, *, limits: Limits, inline: Inline, now: Callable[[], float]) -> None:
        self._limits = limits
        self._inline = inline
        self._now = now  # a monotonic clock
        self._audiences: dict[tuple[int, ...], Audience] = {}
        self._next_audience = 1
        self._looked_in_vain = False  # for audiences to forget, since the last group
        self._opened = False
        self._appending = False

    def _write_with(self, store: Store) -> None:
        """Take the store that this log is over, and what retention notes about it."""
        self._store = store
        self._retention = Retention(store)

    # --- what the two kinds of log do differently ----------------------------------------------

    @abstractmethod
    def open(self) -> Deferred[Snapshot]:
        """See `ILog.open`."""

    @abstractmethod
    def close(self) -> Deferred[None]:
        """See `ILog.close`."""

    @property
    @abstractmethod
    def _may_write_now(self) -> bool:
        """Whether nothing writes, or is to, on another thread or in another turn."""

    @abstractmethod
    def _write(self, job: Callable[[], T]) -> Deferred[T]:
        """Run a job that may write."""

    @abstractmethod
    def _read(self, job: Callable[[apsw.Connection], T]) -> Deferred[T]:
        """Run a job that only reads, on the reading connection."""

    # --- ILog ----------------------------------------------------------------------------------

    @property
    def log_id(self) -> str:
        """Name of this log; empty until it is open."""
        return self._store.state.log_id

    def _remember(self, snapshot: Snapshot) -> Snapshot:
        self._opened = True
        numbers = [audience.number for audience in self._audiences.values()]
        self._next_audience = max(self._store.state.audiences_used, *numbers, 0) + 1
        return snapshot

    def append(self, group: Group) -> Deferred[Appended]:
        """See `ILog.append`. Cancelling stops the wait, not the write."""
        self._check_open()
        assert not self._appending, "one append runs at a time"
        self._appending = True
        size = size_of(group)
        return self._write(lambda: self._store_group(group, size)).addBoth(self._appended)

    def append_now(self, group: Group) -> Appended | None:
        """See `ILog.append_now`: on this thread, while nothing else writes."""
        self._check_open()
        assert not self._appending, "one append runs at a time"
        store, size, begin = self._store, size_of(group), self._now()
        if (
            not self._inline.takes(group, size, begin)
            or not self._may_write_now
            or store.is_disk_full
            or (size and store.is_short_for(size))
        ):
            return None
        try:
            return self._store_with_room(group)
        finally:
            now = self._now()
            self._inline.took(now - begin, now)
            self._appended(None)

    def _store_group(self, group: Group, size: int) -> Appended:
        store, retention = self._store, self._retention
        if store.is_short_for(size):
            store.guard(lambda: retention.give_way(size))
        return self._store_with_room(group)

    def _store_with_room(self, group: Group) -> Appended:
        """Store a group on this thread."""
        appended = self._store.append(group)
        if not (group.batches or group.own):
            return appended
        if len(appended.stored) < len(group.batches) + len(group.own):
            self._retention.senders.hear(group)
        return appended

    def _appended(self, result: T) -> T:
        self._appending = False
        self._looked_in_vain = False
        if self._store.wants_checkpoint and self._opened:
            # Behind this group's answer, before the next group.
            self._write(self._store.maintain).addErrback(self._not_maintained)
        return result

    def _not_maintained(self, failure: Failure) -> None:
        """The write-ahead log was not folded in: the next group finds out why, or tries again."""
        if not isinstance(failure.value, LogError):
            self._logger.failure("folding the write-ahead log in", failure)

    def audience(self, members: Collection[int]) -> Audience:
        """See `ILog.audience`."""
        key = tuple(sorted(set(members)))
        found = self._audiences.get(key)
        if found is None:
            if len(self._audiences) >= self._limits.audiences:
                self._forget_unused()
            found = self._audiences[key] = Audience(self._next_audience, key)
            self._next_audience += 1
        return found

    def want_room(self, limit: str, sender: str = "") -> None:
        """See `ILog.want_room`."""
        self._retention.places.want(limit, sender)

    def _forget_unused(self) -> None:
        """Forget unused audiences: of no stored batch, and of none that waits to be stored.

        Where there is none, the look at all of them is repeated when something may have changed.
        """
        if not self._looked_in_vain:
            unused = [
                key
                for key, found in self._audiences.items()
                if not found.stored and not found.waiting
            ]
            for key in unused:
                self._audiences.pop(key).is_gone = True
            self._looked_in_vain = len(self._audiences) >= self._limits.audiences
        if len(self._audiences) >= self._limits.audiences:
            raise LimitReached("audiences", self._limits.audiences)

    def resume(self, sender: str, incarnation: str) -> Deferred[Resume]:
        """See `ILog.resume`."""
        key, store = (sender, incarnation), self._store
        # Asked first: whom it lets through is not forgotten after this.
        if not self._retention.senders.resumed.tell(key):
            return succeed(Resume())
        known = store.state.senders.get(key)
        if known is None and key in store.state.asleep:
            # It may have fallen asleep again by then, or be told later than a pass began.
            return self._write(lambda: store.wake(key)).addCallback(
                lambda found: self.resume(sender, incarnation) if found else Resume()
            )
        known = known or store.state.senders.get(key)  # that woke up just now
        if known is None:
            return succeed(Resume())
        return succeed(
            Resume(
                floor=known.floor,
                ranges=tuple(known.ranges) if known.ranges is not None else (),
                last=known.last,
            )
        )

    def read(
        self, audiences: Collection[int], after: int, to: int, bytes_max: int, messages_max: int
    ) -> Deferred[list[Batch]]:
        """See `ILog.read`."""
        wanted, store = tuple(audiences), self._store
        return self._read(
            lambda db: queries.read(db, store.state, wanted, after, to, bytes_max, messages_max)
        )

    def expiring(self, after: tuple[int, int], now: int, count_max: int) -> Deferred[Expiring]:
        """See `ILog.expiring`."""
        state = self._store.state

        def job(db: apsw.Connection) -> Expiring:
            with read_transaction(db):
                return queries.expiring(db, state, after, now, count_max)

        return self._read(job)

    def history(
        self,
        sender: str,
        incarnation: str,
        first: int,
        pieces_max: int,
        receivers: Collection[int] | None = None,
    ) -> Deferred[History]:
        """See `ILog.history`."""
        state = self._store.state

        def job(db: apsw.Connection) -> History:
            with read_transaction(db):
                if receivers is None:
                    return history.history(db, state, sender, incarnation, first, pieces_max)
                key = (sender, incarnation)
                return history.history_of_removed(db, state, key, first, pieces_max, receivers)

        return self._read(job)

    def find(
        self,
        identity: str,
        after: int = 0,
        count_max: int | None = None,
        senders: Collection[str] | None = None,
    ) -> Deferred[Found | None]:
        """See `ILog.find`."""
        return Deferred.fromCoroutine(self._find(identity, after, count_max, senders))

    async def _find(
        self,
        identity: str,
        after: int,
        count_max: int | None,
        senders: Collection[str] | None,
    ) -> Found | None:
        state = self._store.state

        def job(db: apsw.Connection) -> Found | history.PassedOn | None:
            with read_transaction(db):
                found = history.find(db, state, identity, after, count_max, senders)
                return (
                    with_copies(db, state, found) if found else history.is_passed_on(db, identity)
                )

        found = await self._read(job)
        if not isinstance(found, history.PassedOn):
            return found
        # Behind the first node of a chain nobody knows who has sent it but the messages themselves.
        pages = PASSED_ON_PAGES
        while pages and await self._read(found.step):
            pages -= 1
        if found.position is None:
            return None
        return await self._find(f"log:{found.position}", after, count_max, senders)

    def incarnation(self, sender: str, hash_: str) -> Deferred[str | None]:
        """See `ILog.incarnation`."""
        return self._read(lambda db: history.incarnation(db, sender, hash_))

    def heads(self, numbers: Collection[int]) -> Deferred[dict[int, tuple[int, int]]]:
        """See `ILog.heads`."""
        wanted = list(numbers)
        return self._read(lambda db: history.heads(db, wanted))

    def of_key(self, digest: bytes) -> Deferred[str | None]:
        """See `ILog.of_key`."""
        return self._read(lambda db: history.of_key(db, digest))

    def replay(
        self,
        replay: Replay,
        patterns: Sequence[str] | None,
        bytes_max: int,
        size_max: int,
        count_only: bool = False,
    ) -> Deferred[Copies]:
        """See `ILog.replay`."""
        state, wanted = self._store.state, None if patterns is None else tuple(patterns)

        def job(db: apsw.Connection) -> Copies:
            with read_transaction(db):
                return replaying.copies(db, state, replay, wanted, bytes_max, size_max, count_only)

        return self._read(job)

    def of_stream(self, subject: str, after: int | None, bytes_max: int) -> Deferred[StreamPage]:
        """See `ILog.of_stream`."""

        def job(db: apsw.Connection) -> StreamPage:
            with read_transaction(db):
                return queries.of_stream(db, self._store.state, subject, after, bytes_max)

        return self._read(job)

    def stream_header(self, subject: str) -> Deferred[StreamHeader]:
        """See `ILog.stream_header`."""

        def job(db: apsw.Connection) -> StreamHeader:
            with read_transaction(db):
                return queries.stream_header(db, self._store.state, subject)

        return self._read(job)

    def next_due(self) -> int | None:
        """See `ILog.next_due`."""
        return self._store.state.waiting.next_due

    def due(self, to: int, after: tuple[int, int], count_max: int) -> Deferred[list[Batch]]:
        """See `ILog.due`."""

        def job(db: apsw.Connection) -> list[Batch]:
            with read_transaction(db):
                return delayed.due(db, self._store.state, to, after, count_max)

        return self._read(job)

    def delayed(self, after: tuple[int, int], count_max: int) -> Deferred[list[Delayed]]:
        """See `ILog.delayed`."""

        def job(db: apsw.Connection) -> list[Delayed]:
            with read_transaction(db):
                return delayed.page(db, self._store.state, after, count_max)

        return self._read(job)

    def find_delayed(
        self, identity: str, senders: Collection[str] | None = None
    ) -> Deferred[Found | None]:
        """See `ILog.find_delayed`."""

        def job(db: apsw.Connection) -> Found | None:
            with read_transaction(db):
                return delayed.find(db, self._store.state, identity, senders)

        return self._read(job)

    def find_finished(
        self,
        identity: str,
        after: int = 0,
        count_max: int | None = None,
        senders: Collection[str] | None = None,
    ) -> Deferred[Found | None]:
        """See `ILog.find_finished`."""

        def job(db: apsw.Connection) -> Found | None:
            with read_transaction(db):
                state = self._store.state
                found = finished.find(db, state, identity, after, count_max, senders)
                return found and with_copies(db, state, found)

        return self._read(job)

    def position_at(self, stored_at: int) -> Deferred[int]:
        """See `ILog.position_at`."""

        def job(db: apsw.Connection) -> int:
            with read_transaction(db):
                return replaying.position_at(db, self._store.state, stored_at)

        return self._read(job)

    def kept_from(self) -> int:
        """See `ILog.kept_from`."""
        return position_of(self._store.state.oldest)

    def dead_letters(self, receiver: int, after: int, count_max: int) -> Deferred[list[DeadLetter]]:
        """See `ILog.dead_letters`."""
        return self._read(lambda db: history.dead_letters(db, receiver, after, count_max))

    def retained(self, after: str, count_max: int) -> Deferred[list[Retained]]:
        """See `ILog.retained`."""
        return self._read(lambda db: queries.retained(db, after, count_max))

    def clear_retained(self, subjects: Sequence[str], expired: int = 0) -> Deferred[None]:
        """See `ILog.clear_retained`."""
        self._check_open()
        return self._write(lambda: self._store.clear_retained([*subjects], expired))

    async def _accounts(self, receivers: Sequence[int] | None = None) -> list[Account]:
        taken = accounts.Accounts(self._store.state, receivers)

        def job(db: apsw.Connection) -> bool:
            with read_transaction(db):
                return taken.step(db)

        while await self._read(job):
            pass
        return taken.found

    def accounts(self, receivers: Sequence[int] | None = None) -> Deferred[list[Account]]:
        """See `ILog.accounts`."""
        return Deferred.fromCoroutine(self._accounts(receivers))

    async def _look_at_pages(self) -> None:
        """Compare what of the file was not compared when it was opened; raises `LogDamaged`.

        There is none of a log in memory.
        """

    async def _audit(self) -> list[str]:
        try:
            await self._look_at_pages()
        except LogDamaged as damage:
            return [str(damage)]
        await self._write(self._store.save)
        running = audit.Audit(self._store.state)
        while await self._read(running.step):
            pass
        for account in await self._accounts():
            running.check_account(account)
        return running.discrepancies

    def audit(self) -> Deferred[list[str]]:
        """See `ILog.audit`. Runs in pages, beside everything else."""
        return Deferred.fromCoroutine(self._audit())

    def retain(
        self,
        elapsed: int,
        here: Collection[tuple[str, str]] = (),
        left: Collection[tuple[str, str]] = (),
    ) -> Deferred[bool]:
        """See `ILog.retain`."""
        self._check_open()
        store, retention = self._store, self._retention
        resumed = retention.senders.resumed
        resumed.begin()

        def job() -> bool:
            try:
                store.check_files()
                more = store.guard(lambda: retention.retain(elapsed, here, left))
            finally:
                resumed.end()
            store.maintain()
            return more

        return self._write(job).addBoth(self._retained)

    def _retained(self, result: T) -> T:
        self._looked_in_vain = False
        return result

    def take_forgotten(self) -> list[int]:
        """See `ILog.take_forgotten`."""
        forgotten = self._retention.forgotten
        return [forgotten.popleft() for _ in range(len(forgotten))]

    def age(self) -> int:
        """See `ILog.age`."""
        return self._store.age

    def dead_bytes(self, receiver: int) -> int:
        """See `ILog.dead_bytes`."""
        return self._store.state.letters.get(receiver, NO_LETTERS).size

    def dead_count(self, receiver: int) -> int:
        """See `ILog.dead_count`."""
        return self._store.state.letters.get(receiver, NO_LETTERS).count

    def room(self) -> Room:
        """See `ILog.room`."""
        return self._store.room()

    def _check_open(self) -> None:
        if not self._opened:
            raise LogUnavailable("the log is not open")
