"""`MemoryLog`: the same log without a file, for tests and small embedded uses.

It runs the code of the real one over SQLite in memory, without threads: a job runs in a later turn
of the reactor, so a `Clock` drives it. Nothing survives the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, TypeVar

import apsw
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from msgservice.disk.migrations import migrate
from msgservice.limits import Limits
from msgservice.log.base import StoreLog
from msgservice.log.inline import VARIABLE, Inline
from msgservice.log.schema import SCHEMA
from msgservice.log.store import Store
from msgservice.records import Snapshot

T = TypeVar("T")


class MemoryLog(StoreLog):
    """A log in memory. `delay`: seconds from the call to its effect, as a disk would take.

    `inline`: `on` writes groups in the turn that asks, where nothing else is to be written; None:
    where the environment says so (`log.inline`). After `close` it can be opened again, with all
    that was in it.
    """

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        limits: Limits,
        delay: float = 0.0,
        entropy: Callable[[int], bytes] = os.urandom,
        inline: Literal["on", "off"] | None = None,
        faults: Callable[[str], None] | None = None,
    ) -> None:
        if inline is None:
            inline = "on" if os.environ.get(VARIABLE) == "on" else "off"
        super().__init__(limits=limits, inline=Inline(inline, limits), now=reactor.seconds)
        self._reactor = reactor
        self._writing = 0  # jobs
        self._delay = delay
        self._entropy = entropy
        self._made = False
        self._write_with(Store(":memory:", limits=limits, audiences=self._audiences, faults=faults))

    def _later(self, job: Callable[[], T]) -> Deferred[T]:
        waiter: Deferred[T] = Deferred()

        def run() -> None:
            try:
                result = job()
            except BaseException:
                waiter.errback(Failure())
            else:
                waiter.callback(result)

        self._reactor.callLater(self._delay, run)
        return waiter

    def _write(self, job: Callable[[], T]) -> Deferred[T]:
        self._check_open()
        self._writing += 1
        return self._later(job).addBoth(self._written)

    def _written(self, result: T) -> T:
        self._writing -= 1
        return result

    @property
    def _may_write_now(self) -> bool:
        return not self._writing

    def _read(self, job: Callable[[apsw.Connection], T]) -> Deferred[T]:
        self._check_open()
        return self._later(lambda: job(self._store.db))

    def open(self) -> Deferred[Snapshot]:
        """See `ILog.open`."""
        return self._later(self._open).addCallback(self._remember)

    def _open(self) -> Snapshot:
        store = self._store
        if not self._made:
            store.connect()
            migrate(store.db, SCHEMA, None)
            store.create(self._entropy(16).hex())
            self._made = True
        store.load()
        return store.snapshot(())

    def left_behind(self, reactor: IReactorTime) -> MemoryLog:
        """Return a log with all that is in this one, whose process was killed: it is not closed."""
        left = MemoryLog(
            reactor=reactor, limits=self._limits, delay=self._delay, entropy=self._entropy
        )
        left._store.db, left._made = self._store.db, self._made
        return left

    def close(self) -> Deferred[None]:
        """See `ILog.close`."""
        if not self._opened:
            return succeed(None)
        self._opened = False
        return self._later(self._store.save)
