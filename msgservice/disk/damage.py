"""Damage: what reading garbage raises, from SQLite or from decoders, as one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw
import msgspec

from msgservice.errors import LogDamaged

# What reading garbage can raise, from SQLite or from the decoders of what it gave.
GARBAGE = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.SQLError,
    apsw.MismatchError,
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    LookupError,
)


@contextmanager
def told_as_damage(last: int) -> Iterator[None]:
    """Turn what a damaged file makes of our code into `LogDamaged`."""
    try:
        yield
    except GARBAGE as error:
        reason = f"unreadable: {type(error).__name__}: {error}"
        raise LogDamaged(reason, 0, last) from error
