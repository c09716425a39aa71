"""What tests of logs share: batches, groups, and a log that is waited for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar
from zlib import crc32

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from msgservice.disk.database import connect
from msgservice.disk.mark import MARK_NAME
from msgservice.interfaces import ILog
from msgservice.limits import INTEGER_MAX, Limits
from msgservice.log.memory import MemoryLog
from msgservice.log.sqlite import LOG_NAME, SqliteLog
from msgservice.message import BareMessage, Status, encode_messages
from msgservice.records import (
    Appended,
    Audience,
    Batch,
    ExceptionRow,
    Group,
    Outcome,
    Progress,
    ReceiverRow,
    Resume,
    Snapshot,
)
from msgservice.recount import recount
from tests.kit.dict_log import DictLog
from tests.kit.threads import ThreadCalls

T = TypeVar("T")

NOW = 1_800_000_000_000
SMALL = Limits(reserve_bytes=8 * 1024 * 1024, keep_seconds=0)


def make_batch(
    audience: Audience,
    sequence: int = 1,
    bodies: Iterable[bytes] = (b"a",),
    *,
    sender: str = "shop",
    incarnation: str = "i1",
    subject: str = "orders.new",
    after: int | None = None,
    **more: Any,
) -> Batch:
    messages = encode_messages([BareMessage(body) for body in bodies])
    return Batch(
        sender=sender,
        incarnation=incarnation,
        sequence=sequence,
        count=len(list(bodies)),
        subject=subject,
        audience=audience,
        messages=messages,
        size=len(messages),
        crc=crc32(messages),
        after=sequence - 1 if after is None else after,
        **more,
    )


def append(log: ILog, group: Group) -> Deferred[Appended]:
    """Store a group as a node does that has told of the one before: now, where that is quick."""
    try:
        appended = log.append_now(group)
    except Exception:
        return fail()
    return log.append(group) if appended is None else succeed(appended)


class ContractDriver:
    """A log of any kind, whose Deferreds are waited for; nothing is known of it but `ILog`."""

    def __init__(self, kind: str, folder: Path, limits: Limits = SMALL, **more: Any) -> None:
        self.kind = kind
        self.folder = folder
        self.limits = limits
        self.more = more
        self.threads = ThreadCalls()
        self.clock = Clock()
        self.log: ILog
        self._dicts: DictLog | None = None
        self.snapshot: Snapshot
        self._make()

    def _make(self) -> None:
        if self.kind == "sqlite":
            self.log = SqliteLog(self.folder, reactor=self.threads, limits=self.limits, **self.more)
        elif self.kind == "dicts":
            self._dicts = DictLog(
                reactor=self.clock,
                limits=self.limits,
                content=None if self._dicts is None else self._dicts.content,
            )
            self.log = self._dicts
        else:
            self.log = MemoryLog(reactor=self.clock, limits=self.limits, **self.more)

    def wait(self, waiter: Deferred[T]) -> T:
        if self.kind == "sqlite":
            return self.threads.wait(waiter)
        results: list[Any] = []
        waiter.addBoth(results.append)
        for _ in range(10_000):
            if results:
                break
            self.clock.advance(0)
        (result,) = results
        if hasattr(result, "raiseException"):
            result.raiseException()
        return result  # type: ignore[no-any-return]  # whatever it fired with

    def open(self) -> Self:
        self.snapshot = self.wait(self.log.open())
        return self

    def close(self) -> None:
        self.wait(self.log.close())

    def reopen(self) -> Self:
        """Close, and open the same content again."""
        self.close()
        if self.kind != "memory":
            self._make()
        return self.open()

    def append(self, *batches: Batch, now: int = NOW, **parts: Any) -> list[Outcome]:
        return self.appended(*batches, now=now, **parts).outcomes

    def appended(self, *batches: Batch, now: int = NOW, **parts: Any) -> Appended:
        return self.wait(append(self.log, Group(now=now, batches=list(batches), **parts)))

    def receivers(self, *numbers: int) -> None:
        rows = [
            ReceiverRow(number=number, name=f"r{number}", patterns=(">",), cursor=-1)
            for number in numbers
        ]
        self.append(receivers=rows)

    def progress(self, receiver: int, cursor: int, **parts: Any) -> None:
        self.append(progress=[Progress(receiver=receiver, cursor=cursor, **parts)])

    def resume(self, sender: str, incarnation: str) -> Resume:
        return self.wait(self.log.resume(sender, incarnation))

    def read(
        self,
        audiences: Collection[Audience],
        after: int = -1,
        bytes_max: int = 1 << 20,
        messages_max: int = 1000,
        to: int = INTEGER_MAX,
    ) -> list[Batch]:
        numbers = [audience.number for audience in audiences]
        return self.wait(self.log.read(numbers, after, to, bytes_max, messages_max))

    def unaccounted(self) -> list[int]:
        return [account.unaccounted for account in self.wait(self.log.accounts())]


class Driver(ContractDriver):
    """A log over a `Store`, for tests that look at that."""

    log: SqliteLog | MemoryLog


def recounted(folder: Path) -> list[str]:
    """Return what does not add up in a data folder, in use or not, by the offline audit."""
    mark = (folder / MARK_NAME).read_bytes()
    db = connect(str(folder / LOG_NAME), readonly=True)
    try:
        db.execute("begin")
        return recount(db.execute, mark).discrepancies
    finally:
        db.close()


def exception(
    receiver: int, first: int, last: int, status: Status = Status.DEAD, **more: Any
) -> ExceptionRow:
    return ExceptionRow(receiver, first, last, status, **more)


def numbers(batches: Sequence[Outcome]) -> list[int]:
    return [batch.number for batch in batches if isinstance(batch, Batch)]
