"""The door into a log: what writes a log's tables anywhere but in `Store.apply` is an error.

`watch` arms it for every log that is opened from then on. A save may write too: what it says is
what the entries before it said (`test_a_save_changes_nothing_that_the_log_says`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import pytest

from msgservice.log.store import Store

WRITES = ("insert", "update", "delete", "replace", "create", "drop", "alter", "vacuum")


class BesideTheDoor(AssertionError):
    """Something wrote that is no entry."""


def watch(patch: pytest.MonkeyPatch) -> None:
    """Watch every log that is opened until the patch is undone."""
    inside: set[int] = set()

    def tracer(store: Store) -> Callable[..., bool]:
        def trace(cursor: Any, sql: str, bindings: Any) -> bool:
            if sql.split(None, 1)[0].lower() in WRITES and id(store) not in inside:
                raise BesideTheDoor(sql)
            return True

        return trace

    def passing(name: str) -> None:
        method = getattr(Store, name)

        @functools.wraps(method)
        def through(self: Store, *args: Any) -> Any:
            was_inside = id(self) in inside
            inside.add(id(self))
            try:
                return method(self, *args)
            finally:
                if not was_inside:
                    inside.discard(id(self))

        patch.setattr(Store, name, through)

    whole_load = Store.load

    def load(self: Store) -> None:
        whole_load(self)
        self.db.exec_trace = tracer(self)

    passing("apply")
    passing("save")
    passing("create")  # a log in memory is opened again over its own connection
    patch.setattr(Store, "load", load)


@contextmanager
def by_hand(db: apsw.Connection) -> Iterator[apsw.Connection]:
    """Let a test change the tables as nothing in the product does."""
    was, db.exec_trace = db.exec_trace, None
    try:
        yield db
    finally:
        db.exec_trace = was
