"""The client's outbox on disk: what is handed over is kept there before `send` fires.

A turn's runs are one append, so what a crash leaves is whole turns (SEMANTICS 26). What this
process hands over is also in memory, in the hop's outbox; what an earlier one left is read in
pages, as the node takes it. What becomes of the receipts that are open is followed here, whoever
holds them: theirs are the rows that the file has of them.

What the file is, and how it is written, lives in `client.outbox_file`; which receipts are open, in
`client.open_receipts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.client import receipt_rows
from msgservice.client.acked import Untaken
from msgservice.client.handed import HandedRun
from msgservice.client.open_receipts import OpenReceipts
from msgservice.client.outbox_file import OutboxFile, OutboxSnapshot
from msgservice.client.receipt import OPEN_RECEIPTS
from msgservice.core.ranges import RangeSet
from msgservice.core.refusal import Refusal
from msgservice.core.runs import Run
from msgservice.errors import MsgServiceError

# So much may have been said of receipts, in so many ms, before it is looked at which rows may go:
# those of many messages are one range, and go in one step. After a kill they are told once more.
SAID_WAITING = 64
LOOKED_EVERY = 1000
AGED_EVERY = 60_000  # ms between two looks for receipts that nobody has asked for in days …
AGED_RANGES = 4096  # … at so many ranges of them: there may be very many


class DiskOutbox:
    """An open file, and what it held then. Make one with `open_outbox`.

    What is asked of the `file` itself (settlements, another incarnation, its close) goes to it.
    `receipts`: those that are open. `keeps_receipts`: each is kept until it is forgotten, whatever
    the process that sent it was told.
    """

    _logger = Logger()

    def __init__(
        self, file: OutboxFile, snapshot: OutboxSnapshot, *, keeps_receipts: bool = False
    ) -> None:
        self.file = file
        self.identity = snapshot.identity  # of the file: no renewal changes it
        self.relayed = snapshot.relayed  # the outbox table that it is of; empty: of none, as yet
        self.kept = snapshot.kept  # the last sequence of a run that is on disk
        self._keeps_receipts = keeps_receipts
        self.receipts = OpenReceipts(
            snapshot.sequence,
            snapshot.receipts.rows,
            promised=snapshot.receipts.promised,
            unanswered=snapshot.open_ranges,
            over=snapshot.receipts.over,
            forgotten=snapshot.receipts.forgotten,
        )
        self._keeps_ms = 0  # for which receipts are kept that have ended; 0: for ever
        self._aged_at = self._looked_at = 0
        self._aged_to = 0  # the last sequence that was looked at for that
        self._has_warned = False  # that the oldest receipts go
        self.incarnation = snapshot.incarnation
        self.log_id = snapshot.log_id  # of the node that it was given to, as far as is known
        self.untaken = list(snapshot.untaken)  # by it, as far as is known
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

        With them go the rows of their receipts. Fails with `OutboxFull` or `LogUnavailable`: then
        none of them is kept, and their sequences stay unused. After `LogFailed` that is not known
        until the outbox is opened again.
        """
        self.writing += 1
        return self.file.append(runs).addBoth(self._written, runs)

    def _written(self, result: Failure | None, runs: Sequence[Run]) -> Failure | None:
        self.writing -= 1
        receipts, is_kept = self.receipts, not isinstance(result, Failure)
        for first, last, promised in _ranges_of(runs):
            if is_kept and self.file.receipts_max:
                receipts.add(first, last, promised=promised)
                if self._keeps_receipts:
                    receipts.give_out([(first, last)], keep=True)
            else:
                receipts.skip(first, last)
        if is_kept:
            self.sequence = self.kept = runs[-1].last
            self._drop_oldest()
        return result

    def _drop_oldest(self) -> None:
        """Rows may have gone since they were too many: their receipts outlive nothing."""
        lowest, receipts = self.file.receipts_from, self.receipts
        if not self.file.has_dropped:
            return
        self.file.has_dropped = False
        receipts.drop_below(self.sequence + 1 if lowest is None else lowest)
        receipts.take_gone()
        if not self._has_warned:
            self._has_warned = True
            self._logger.warn(
                "{path}: more than {most} runs have open receipts: the oldest are kept no more",
                path=str(self.file.path),
                most=self.file.receipts_max,
            )

    def close(self) -> Deferred[None]:
        """Write what is waiting, and close the file."""
        self.flush()
        return self.file.close()

    def note_log(self, log_id: str) -> None:
        """Keep the log id of the connected node, before acknowledgements of it are settled."""
        if log_id != self.log_id:
            self.log_id = log_id
            self.file.note_log(log_id)

    def note_untaken(self, untaken: list[Untaken]) -> None:
        """Keep which of the newest the node has not taken, before these are settled in the file."""
        if untaken != self.untaken:
            self.untaken = untaken
            self.file.note_untaken(untaken)

    def note_relayed(self, table: str) -> None:
        """Keep the name of the outbox table whose rows are handed over by this file."""
        if table != self.relayed:
            self.relayed = table
            self.file.note_relayed(table)

    # --- receipts

    def keep_time(self, now: Callable[[], int], kept_ms: int) -> None:
        """Take the time, in ms since the epoch, by this clock.

        `kept_ms`: for how long receipts are kept that have ended, and nobody has asked for.
        """
        self.file.now, self._keeps_ms = now, kept_ms

    @property
    def receipts_from(self) -> int | None:
        """The first sequence of all rows of receipts, or None."""
        return self.file.receipts_from

    def taken_up(self, row: receipt_rows.Row) -> HandedRun:
        """Return the run of a row as if it was handed over again: the node says its states anew."""
        count = row.last - row.first + 1
        run = HandedRun(row.subject, count, None, row.ids, promise=row.promise)
        run.first = row.first
        if not self.receipts.is_unanswered(row.first, row.last):
            run.accepted(row.first, row.last)
            for first, last, error in row.errors:
                run.forgotten(first, last, error)
        return run

    def has_read(self, row: receipt_rows.Row) -> bool:
        """Whether it says of all its messages of which no more can be heard why that is so."""
        said = RangeSet((first, last) for first, last, _ in row.errors)
        lost = self.receipts.lost.within(row.first, row.last)
        return all(said.covers(first, last) for first, last in lost)

    def answered(self, first: int, last: int) -> None:
        """The node has acknowledged these."""
        self.receipts.answered(first, last)

    def refused(
        self, first: int, last: int, error: MsgServiceError, refusal: Refusal | None
    ) -> None:
        """These were not accepted; to be called before they are settled in the file."""
        if self.file.receipts:
            self.file.change_receipts([receipt_rows.note(first, last, error, refusal)])
        self.receipts.end(first, last)

    def lose(self, first: int, last: int, error: MsgServiceError) -> None:
        """No more will be heard of what the node had taken of these."""
        for low, high in self.receipts.answered_within(first, last):
            self.file.change_receipts([receipt_rows.note(low, high, error, None)])
            self.receipts.end(low, high)

    def forget(self, first: int, last: int) -> Deferred[None]:
        """Keep no receipt of these beyond this process; fires when that is on disk."""
        if not self.file.receipts:
            return succeed(None)
        self.let_go(first, last)
        return self.file.write_receipts()

    def let_go(self, first: int, last: int) -> None:
        """Keep no receipt of these beyond this process; that is written with what comes next."""
        if self.file.receipts:
            self.receipts.forget(first, last)
            self.file.change_receipts([receipt_rows.note_forgotten(first, last)])
            self.flush()

    def flush_soon(self) -> None:
        """Have those rows deleted once there are many, or for long, or room for few more.

        At once where an earlier process left some: the time counts from then that these are kept.
        """
        file, said = self.file, self.receipts.said
        if self.receipts.left and not self._keeps_receipts:
            self.flush()
            return
        if not said:
            return
        now = file.now()
        is_long = now >= self._looked_at + LOOKED_EVERY or now < self._looked_at
        if said >= SAID_WAITING or is_long or 2 * file.receipts >= file.receipts_max:
            self._looked_at = now
            self.flush()

    def flush(self) -> None:
        """Have the rows of receipts deleted that came to their end; whoever waits was told."""
        gone = self.receipts.take_gone()
        if gone:
            self.file.change_receipts([receipt_rows.delete(*one) for one in gone])
        aging = self.receipts.take_aging()
        if self._keeps_receipts or not self._keeps_ms:
            return
        now = self.file.now()
        if aging:
            self.file.change_receipts(
                [receipt_rows.note_aging(*one[:2], now, again=one[2]) for one in aging]
            )
        if self.receipts.ended and now >= self._aged_at + AGED_EVERY:
            self._aged_at = now
            self._delete_aged(now - self._keeps_ms)

    def _delete_aged(self, before: int) -> None:
        ended = self.receipts.ended.from_(self._aged_to + 1, AGED_RANGES)
        self._aged_to = ended[-1][1] if len(ended) == AGED_RANGES else 0
        kept = self.receipts.kept
        self.file.change_receipts(
            [receipt_rows.delete(*part, before) for one in ended for part in kept.missing(*one)]
        )


def _ranges_of(runs: Sequence[Run]) -> Iterator[tuple[int, int, bool]]:
    """Yield the sequences of runs, those in a row together, and whether they have a promise."""
    first = last = 0
    promised = False
    for run in runs:
        has_promise = run.options.promise is not None
        if first and run.first == last + 1 and has_promise is promised:
            last = run.last
            continue
        if first:
            yield first, last, promised
        first, last, promised = run.first, run.last, has_promise
    if first:
        yield first, last, promised


def _handed_over(runs: Sequence[Run]) -> list[Run]:
    """Return runs of the file as if they were handed over again; nobody has a receipt."""
    for run in runs:
        promise = run.options.promise
        run.source = HandedRun(run.subject, run.count, None, cost=run.size, promise=promise)
        run.source.first = run.first
    return list(runs)


def open_outbox(
    reactor: IReactorFromThreads,
    path: str | Path,
    *,
    bytes_max: int,
    sender: str = "",
    receipts_max: int = OPEN_RECEIPTS,
    keeps_receipts: bool = False,
    vfs: str | None = None,
) -> Deferred[DiskOutbox]:
    """Open the outbox at `path`, made if needed; at most `bytes_max` bytes of open messages.

    `sender`: the name of the client, whose outbox it is from then on. `receipts_max`: runs whose
    receipts are kept; `keeps_receipts`: until they are forgotten. Fails with `LogLocked` (another
    process has it), `OutboxOfAnother` (another client's), `LogTooNew`, `LogDamaged`,
    `DataFolderUnusable`. Cancelling ends the wait; what was opened then is closed again.
    """
    file = OutboxFile(
        path,
        reactor=reactor,
        size_max=bytes_max,
        receipts_max=receipts_max,
        sender=sender,
        vfs=vfs,
    )
    opened: Deferred[DiskOutbox] = Deferred()

    def done(snapshot: OutboxSnapshot) -> Deferred[None] | None:
        if opened.called:  # it was cancelled
            return file.close()
        opened.callback(DiskOutbox(file, snapshot, keeps_receipts=keeps_receipts))
        return None

    # Where `opened` was cancelled, `Deferred` swallows this one late result.
    file.open().addCallbacks(done, opened.errback)
    return opened
