"""The recount of a whole log from its batches, a page at a time (SEMANTICS 23).

It shares no counter with what it checks: it follows the chain from the oldest row, adds up what
each audience had, and compares with what the rows and the tables say. Of the tables beside the
batches it has SQLite look whether their pages hang together.
"""

from __future__ import annotations

import apsw

from msgservice.disk.database import one
from msgservice.errors import LogDamaged
from msgservice.log import delayed
from msgservice.log.queries import saved_sender, sender_of
from msgservice.log.state import State
from msgservice.log.wholeness import chained_rows
from msgservice.records import Account

PAGE_BYTES = 4 * 1024 * 1024
PAGE_ROWS = 2048
# Those that have neither a chain nor a recount. Each is looked at in one go.
TABLES = (
    "audience",
    "receiver",
    "progress",
    "exception",
    "sender",
    "finished",
    "run",
    "dead",
    "message_id",
    "idempotency",
    "alias",
    "delayed",
    "delayed_id",
    "finished_id",
    "former",
    "retained",
    "promise",
)
DISCREPANCIES_MAX = 100  # told; more of the same helps nobody


class Audit:
    """One recount. `step` until it says False, then `discrepancies`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._last = state.next_number - 1
        self._next: int | None = None
        self._chain = 0
        self._counted: dict[int, tuple[int, int]] = {}  # audience -> (messages, bytes) so far
        self._tables = [*TABLES]
        self._followed = False  # the chain, to its end
        self._delayed: int | None = 0  # up to which row what waits was looked at; None: all of it
        self.discrepancies: list[str] = []

    def step(self, db: apsw.Connection) -> bool:
        """Check one page, or then one table; return whether there is more."""
        db.execute("begin")
        try:
            if not self._followed:
                self._followed = not self._page(db)
                return True
            if self._delayed is not None:
                self._delayed = delayed.check_page(db, self._delayed, self._say)
                return True
            self._look_at(db, self._tables.pop(0))
            return bool(self._tables)
        finally:
            db.execute("commit")

    def _look_at(self, db: apsw.Connection, table: str) -> None:
        """Have SQLite follow the pages of a table, which must hang together and be its own."""
        for (found,) in db.execute(f"pragma quick_check({table})"):
            if found != "ok":
                self._say(f"table {table}: {found}")

    def _page(self, db: apsw.Connection) -> bool:
        oldest, chain = one(db, "select oldest, oldest_chain from head")
        if self._next is None or self._next < oldest:
            self._next, self._chain = oldest, chain
            self._counted.clear()
        if self._next > self._last or len(self.discrepancies) >= DISCREPANCIES_MAX:
            return False
        end = one(
            db,
            "select max(number) from (select number, sum(coalesce(length(frame), 0)) over"
            " (order by number) as bytes from batch where number >= ? and number <= ?"
            " order by number limit ?) where bytes <= ? or number = ?",
            (self._next, self._last, PAGE_ROWS, PAGE_BYTES, self._next),
        )
        end = min(self._last, self._next + PAGE_ROWS - 1) if end is None else end
        try:
            for row in chained_rows(db, self._next, end, self._chain):
                self._chain = row.chain
                before = (row.before_messages, row.before_bytes)
                counted = self._counted.get(row.audience, before)
                if counted != before:
                    self._say(
                        f"batch {row.number}: its audience {row.audience} had {counted[0]}"
                        f" messages and {counted[1]} bytes before it, the row says {before[0]}"
                        f" and {before[1]}"
                    )
                self._counted[row.audience] = (before[0] + row.messages, before[1] + row.size)
                self._check_sender(db, row.number, row.sender, row.sequence, row.messages)
        except LogDamaged as damage:
            self._say(str(damage))
            skipped = one(db, "select chain from batch where number = ?", (damage.last,))
            if skipped is None:
                return False
            # Go on behind it: there may be more to tell.
            self._chain = skipped
            end = max(damage.last, self._next)
        self._next = end + 1
        return self._next <= self._last

    def _check_sender(
        self, db: apsw.Connection, number: int, sender: int, sequence: int, count: int
    ) -> None:
        known = self._state.senders_by_id.get(sender)
        if known is None:
            # Asleep: what is looked at was saved before the audit began.
            key = sender_of(db, self._state, sender)
            known = None if key is None else saved_sender(db, key)
        if known is None:
            self._say(f"batch {number}: its sender {sender} is not known")
        elif known.missing(sequence, sequence + count - 1):
            self._say(
                f"batch {number}: sequences {sequence} to {sequence + count - 1} are stored,"
                " but not marked as taken"
            )

    def check_account(self, account: Account) -> None:
        """Add what does not add up for one receiver."""
        if account.unaccounted:
            self._say(
                f"receiver {account.receiver}: {account.routed} routed, {account.queued} queued,"
                f" {sum(account.settled.values())} settled: {account.unaccounted} unaccounted for"
            )

    def _say(self, sentence: str) -> None:
        if len(self.discrepancies) < DISCREPANCIES_MAX:
            self.discrepancies.append(sentence)
