"""The client's outbox on disk: what is handed over is kept there before `send` fires.

A turn's runs are one append, so what a crash leaves is whole turns (SEMANTICS 26). What this
process hands over is also in memory, in the hop's outbox; what an earlier one left is read in
pages, as the node takes it.

What the file is, and how it is written, lives in `client.outbox_file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from msgservice.client.handed import HandedRun
from msgservice.client.outbox_file import OutboxFile, OutboxSnapshot
from msgservice.core.runs import Run


class DiskOutbox:
    """An open file, and what it held then. Make one with `open_outbox`.

    What is asked of the `file` itself (settlements, another incarnation, its close) goes to it.
    """

    def __init__(self, file: OutboxFile, snapshot: OutboxSnapshot) -> None:
        self.file = file
        self.incarnation = snapshot.incarnation
        self.log_id = snapshot.log_id  # of the node that it was given to, as far as is known
        self.given = snapshot.sequence  # the last sequence that was ever given
        self.sequence = snapshot.sequence  # the last that is on disk
        self.writing = 0  # appends whose sync has not ended
        # What an earlier process left open.
        self.left_messages, self.left_bytes = snapshot.messages, snapshot.messages_bytes
        self.left_ranges = snapshot.open_ranges
        self._loaded = snapshot.runs

    def take_loaded(self) -> list[Run]:
        """The first of what an earlier process left, rising. Each run has no receipts."""
        loaded, self._loaded = self._loaded, ()
        return _handed_over(loaded)

    def read(self) -> Deferred[list[Run]]:
        """Read the next page of it; fails as `OutboxFile.read` does."""
        return self.file.read().addCallback(_handed_over)

    def keep(self, runs: Sequence[Run]) -> Deferred[None]:
        """Write runs in one transaction; fires when they are synced, and are not sent before.

        Fails with `OutboxFull` or `LogUnavailable`: then none of them is kept, and their sequences
        stay unused. After `LogFailed` that is not known until the outbox is opened again.
        """
        self.writing += 1
        return self.file.append(runs).addBoth(self._written, runs[-1].last)

    def _written(self, result: Failure | None, last: int) -> Failure | None:
        self.writing -= 1
        if not isinstance(result, Failure):
            self.sequence = last
        return result

    def note_log(self, log_id: str) -> None:
        """Keep the log id of the connected node, before acknowledgements of it are settled."""
        if log_id != self.log_id:
            self.log_id = log_id
            self.file.note_log(log_id)


def _handed_over(runs: Sequence[Run]) -> list[Run]:
    """Return runs of the file as if they were handed over again; nobody has a receipt."""
    for run in runs:
        run.source = HandedRun(run.subject, run.count, None, cost=run.size)
        run.source.first = run.first
    return list(runs)


def open_outbox(
    reactor: IReactorFromThreads, path: str | Path, *, bytes_max: int, vfs: str | None = None
) -> Deferred[DiskOutbox]:
    """Open the outbox at `path`, made if needed; at most `bytes_max` bytes of open messages.

    Fails with `LogLocked` (another process has it), `LogTooNew`, `LogDamaged`,
    `DataFolderUnusable`. Cancelling ends the wait; what was opened then is closed again.
    """
    file = OutboxFile(path, reactor=reactor, size_max=bytes_max, vfs=vfs)
    opened: Deferred[DiskOutbox] = Deferred()

    def done(snapshot: OutboxSnapshot) -> Deferred[None] | None:
        if opened.called:  # it was cancelled
            return file.close()
        opened.callback(DiskOutbox(file, snapshot))
        return None

    # Where `opened` was cancelled, `Deferred` swallows this one late result.
    file.open().addCallbacks(done, opened.errback)
    return opened
