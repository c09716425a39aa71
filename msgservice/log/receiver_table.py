"""The table of receivers: a row of the node as a row of SQLite, and back.

Each option of a receiver has a column of its own, named by `OPTIONS`; what else a row has is named
here. Progress is in a table of its own (`staging`, `loading`), the table itself in `schema`.
"""

from __future__ import annotations

import json
from typing import Any

from msgservice.receiver_options import OPTIONS, ReceiverOptions
from msgservice.records import ReceiverRow

_PLAIN = (
    "number",
    "name",
    "address",
    "created_at",
    "left_first",
    "left_last",
    "epoch",
    "owner",
    "away_since",
)
_FLAGS = ("configured", "suspended")
COLUMNS = (*_PLAIN, *_FLAGS, "patterns", *(option.column for option in OPTIONS))

WRITE = (
    f"insert or replace into receiver ({', '.join(COLUMNS)})"  # noqa: S608 - our own names
    f" values ({', '.join('?' * len(COLUMNS))})"
)


def values_of(row: ReceiverRow) -> tuple[Any, ...]:
    """Return the values of a receiver's row, in the order of `COLUMNS`."""
    return (
        *(getattr(row, name) for name in _PLAIN + _FLAGS),
        json.dumps(row.patterns),
        *(getattr(row.options, option.name) for option in OPTIONS),
    )


def row_of(values: tuple[Any, ...]) -> ReceiverRow:
    """Return the receiver with these values, in the order of `COLUMNS`; without its progress."""
    found = dict(zip(COLUMNS, values, strict=True))
    own: dict[str, Any] = {name: found[name] for name in _PLAIN}
    own.update((name, bool(found[name])) for name in _FLAGS)
    said: dict[str, Any] = {}
    for option in OPTIONS:
        value = found[option.column]
        said[option.name] = bool(value) if option.kind is bool else value
    patterns = tuple(json.loads(found["patterns"]))
    return ReceiverRow(**own, patterns=patterns, options=ReceiverOptions(**said))
