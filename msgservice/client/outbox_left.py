"""The runs in an outbox's file when it was opened, read in pages: they need not fit into memory.

Part of `client.outbox_file`. At start all of it is looked at once and checked, and the first page
kept; the next ones are read when the node has taken those before. What is appended meanwhile has
higher sequences, and is in memory anyhow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from zlib import crc32

import apsw
import msgspec

from msgservice.core.ranges import RangeSet
from msgservice.core.runs import Run, producer_run
from msgservice.disk.database import one
from msgservice.errors import LogDamaged
from msgservice.message import PromiseOption, RunOptions, options_of

# Of one page. A run of one message takes about 1 KiB in memory besides what it says.
PAGE_RUNS = 4096
PAGE_BYTES = 4 * 1024 * 1024

ROW_BYTES = 64  # what a run costs on disk beside its messages


def row_size(run: Run) -> int:
    """The size of a run as the outbox's limit counts it, in bytes."""
    return run.size + ROW_BYTES


class LeftRuns:
    """The runs that an earlier process left, and how far they were read; sizes in bytes.

    `open`: all sequences that were open at start.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self.open = RangeSet()
        self.messages = 0
        self.messages_bytes = 0
        self.size = 0  # as `row_size` counts
        self.read_to = 0  # everything up to here was read
        self._last = 0
        first: list[Run] = []
        page_bytes = 0
        for run in _runs(db, 0):
            self.open.add(run.first, run.last)
            self.messages += run.count
            self.messages_bytes += run.size
            self.size += row_size(run)
            self._last = run.last
            if len(first) < PAGE_RUNS and page_bytes < PAGE_BYTES:
                first.append(run)
                page_bytes += run.size
                self.read_to = run.last
        self.first_page = tuple(first)  # until it is taken

    @property
    def has_more(self) -> bool:
        """Whether there are runs that were not read."""
        return self.read_to < self._last

    def is_unread(self, last: int) -> bool:
        """Whether sequences up to `last` may be in the file alone."""
        return self.read_to < min(last, self._last)

    def between(self, db: apsw.Connection, first: int, last: int) -> list[Run]:
        """Read the runs that overlap `first` to `last`, rising; they do not count as read."""
        before = one(db, "select max(first) from run where first <= ?", (first,))
        found = []
        for run in _runs(db, first - 1 if before is None else before - 1):
            if run.first > last:
                break
            if run.last >= first:
                found.append(run)
        return found

    def page(self, db: apsw.Connection) -> list[Run]:
        """Read the next page; `was_read` makes it count."""
        page: list[Run] = []
        size = 0
        for run in _runs(db, self.read_to):
            if run.first > self._last or len(page) >= PAGE_RUNS or size >= PAGE_BYTES:
                break
            page.append(run)
            size += run.size
        return page

    def was_read(self, page: Iterable[Run]) -> None:
        """Runs were read: they are in memory now."""
        self.read_to = max((run.last for run in page), default=self._last)


def _runs(db: apsw.Connection, after: int) -> Iterator[Run]:
    """Yield the open runs above a sequence, rising, each checked."""
    for first, count, subject, to, flags, crc, messages, ttl, handed_at, *more in db.execute(
        "select first, count, subject, audience, flags, crc, messages, ttl, handed_at, delay,"
        " promise"
        " from run where first > ? order by first",
        (after,),
    ):
        if crc32(messages) != crc:
            raise LogDamaged("a run's messages were changed", first, first + count - 1)
        options = options_of(flags)
        if to is not None:
            options = RunOptions(msgspec.json.decode(to, type=tuple[str, ...]), flags=flags)
        if ttl is not None:
            options = RunOptions(options.to, ttl, flags=flags)
        run = producer_run(first, count, subject, messages, options)
        if ttl is not None:
            run.expires_at = handed_at + ttl
        delay, promise = more
        if promise is not None:
            asked = msgspec.json.decode(promise, type=PromiseOption)
            run.options = msgspec.structs.replace(run.options, promise=asked)
            run.promised_until = handed_at + asked.within
        if delay is not None:
            run.options = msgspec.structs.replace(run.options, delay=delay)
            run.due_at = handed_at + delay
        yield run
