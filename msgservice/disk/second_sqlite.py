"""A second SQLite in the same process: what keeps it from taking a file of ours from us.

Python's `sqlite3` is another SQLite than apsw's, and their locks, those of POSIX, hold against
other processes only. Whoever read a file of ours with it, in the process that has it open, was the
last user to itself: at its close it folded the write-ahead log in and removed it, and what was
acknowledged from then on went into a file without a name. Locks of an open file description hold
against the own process as well, and no close of somebody else's ends them. They are Linux's:
elsewhere nothing keeps it away.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_F_OFD_SETLK: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_flock = struct.Struct("@hhqqi4x")  # type, whence, start, length, pid

# Byte ranges that SQLite locks (os_unix.c): which every connection of a database reads, so that one
# that would be alone cannot write-lock it; and of a shared index the byte of those who use it, so
# that one that opens it does not begin it anew.
_SHARED = (0x4000_0000 + 2, 510)
_INDEX_IN_USE = (128, 1)


def hold_against_own_process(database: Path) -> list[int]:
    """Return descriptors of a database that is open, and of its index, which hold these locks.

    To be closed behind the connections: to close a descriptor of a file ends the process's other
    locks on it. What cannot be locked so is not: nothing else needs it.
    """
    if _F_OFD_SETLK is None:
        return []
    held = []
    index = database.with_name(database.name + "-shm")
    for path, (first, count) in ((database, _SHARED), (index, _INDEX_IN_USE)):
        with suppress(OSError):  # there is none, in memory of the process alone, or it is locked
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            held.append(descriptor)
            lock = _flock.pack(fcntl.F_RDLCK, os.SEEK_SET, first, count, 0)
            fcntl.fcntl(descriptor, _F_OFD_SETLK, lock)
    return held
