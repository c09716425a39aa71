"""The transaction that a handler of a stored inbox writes through, and what it may do to it.

One message's `Transaction` is a view of a transaction that it shares with the other messages of its
commit. SQLite lets a statement roll back all of it (`insert or rollback`, `raise(rollback)` in a
trigger): from then on what is written would be committed at once, statement by statement. So the
view of a message that did that is shut at once.

How transactions begin, commit and are tried again is the business of `receiver.inbox.file`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apsw


class RolledBack(Exception):
    """A statement of a message has rolled the transaction back, and nothing else is wrong.

    `error` is what the message fails with.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Transaction:
    """The transaction that a handler writes through. Valid only while the handler runs.

    The tables are the handler's own; those that begin with `msgservice_` are not. Beginning,
    committing, attaching and pragmas are refused. `lost`: the error with which SQLite rolled all of
    it back; then each call raises `RuntimeError`.
    """

    __slots__ = ("_db", "lost")

    def __init__(self, db: apsw.Connection) -> None:
        self._db: apsw.Connection | None = db
        self.lost: BaseException | None = None

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run a statement; return its rows."""
        db = self._connection()
        try:
            return db.execute(sql, parameters).fetchall()
        except BaseException as error:
            self._look(db, error)
            raise

    def executemany(self, sql: str, parameters: Iterable[Any]) -> None:
        """Run a statement for each of `parameters`."""
        db = self._connection()
        try:
            db.executemany(sql, self._each(parameters))
        except BaseException as error:
            self._look(db, error)
            raise

    def _each(self, parameters: Iterable[Any]) -> Iterator[Any]:
        """Pass parameters on; making the next may have lost the transaction."""
        for each in parameters:
            self._connection()
            yield each

    def _look(self, db: apsw.Connection, error: BaseException) -> None:
        if self.lost is None and not db.in_transaction:
            self.lost = error

    def _connection(self) -> apsw.Connection:
        if self._db is None:
            raise RuntimeError("this transaction is over: write in the handler, before it returns")
        if self.lost is not None:
            raise self.rolled_back() from self.lost
        return self._db

    def rolled_back(self) -> RuntimeError:
        """Return the error that says that nothing more can be written."""
        return RuntimeError(
            f"a statement of this message has rolled the transaction back ({self.lost}): nothing"
            " more can be written, and what was is undone"
        )

    def end(self) -> None:
        """Shut the view: its handler has returned."""
        self._db = None
