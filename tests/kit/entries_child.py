"""A process that applies entries to a log until it kills itself at a named point of the store.

    python -m tests.kit.entries_child FOLDER ENTRIES LIMITS POINT COUNT

It begins with the first entry each time, whatever the log has already. With COUNT 0 it goes on to
the last, and closes the log.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

from tests.kit.entries import Replica


def main(folder: str, entries: str, limits: str, point: str, count: str) -> None:
    left = int(count)

    def faults(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    found = pickle.loads(Path(limits).read_bytes())
    log = Replica("sqlite", Path(folder), found, faults=faults).open()
    for entry in pickle.loads(Path(entries).read_bytes()):
        log.apply(entry)
        log.wait(log.log._write(log.log._store.maintain))
    log.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
