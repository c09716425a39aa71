"""A node whose disk stands still for a while, in the midst of what it writes or reads.

    python -m tests.integration.stalling_child FOLDER PLACE HEARTBEAT

`PLACE`: `commit`, the sync of the write that has `STALL` in it, for `SECONDS`; `commits`, each of
these, for `AGAIN_SECONDS`; behind such a write, `checkpoint` is the next sync of the database's own
file, for `SECONDS`, and `reader` the next read of the thread that reads pages, until the file
`go on` is in the working directory. Says on which thread that was, and when.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import apsw
from twisted.internet import reactor as installed_reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from msgservice import Node
from msgservice.log.sqlite import SqliteLog
from tests.kit.faulty_vfs import Faults, FaultyFile, FaultyVFS
from tests.kit.limits import Limits

reactor: Any = installed_reactor
STALL = b"<the disk stands still>"
SECONDS = 2.0
AGAIN_SECONDS = 0.3
GO_ON = Path("go on")
MESSAGES_MAX = 4096  # bytes of what is kept in memory: who comes late is read for
CHECKPOINTED = {"reserve_bytes": 64 * 1024}  # each 16 KiB; where none is waited for none comes


class Disk(Faults):
    """Where the disk stands still next."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.is_due = False  # the word was written, and it has not stood still for it

    def stall(self) -> None:
        self.is_due = False
        thread = threading.current_thread()
        where = "reactor" if thread is threading.main_thread() else thread.name.rpartition(" ")[2]
        print(f"stalled {where} {time.monotonic():.3f}", flush=True)
        if self.place == "reader":
            while not GO_ON.exists():
                time.sleep(0.01)
        else:
            time.sleep(AGAIN_SECONDS if self.place == "commits" else SECONDS)


class StallingFile(FaultyFile):
    """A file that notes whether the word is in what is written."""

    _faults: Disk
    _knows = False  # a later commit may write the same page again

    def xWrite(self, data: bytes, offset: int) -> None:
        if STALL in bytes(data) and self._name.endswith("-wal"):
            self._faults.is_due = self._faults.is_due or not self._knows
            self._knows = self._faults.place != "commits"
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        disk = self._faults
        of = {"commit": "log.db-wal", "commits": "log.db-wal", "checkpoint": "log.db"}
        if disk.is_due and self._name == of.get(disk.place):
            disk.stall()
        super().xSync(flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        disk = self._faults
        if disk.is_due and disk.place == "reader" and "reader" in threading.current_thread().name:
            disk.stall()
        return super().xRead(amount, offset)


class StallingVFS(FaultyVFS):
    _faults: Disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> FaultyFile:
        return StallingFile(name, flags, self._faults)


def main(folder: str, place: str, heartbeat: float) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    vfs = StallingVFS("stalling", Disk(place))
    often = CHECKPOINTED if place == "checkpoint" else {}
    limits = Limits(heartbeat=heartbeat, tail_bytes=MESSAGES_MAX, **often)
    log = SqliteLog(Path(folder), reactor=reactor, limits=limits, vfs="stalling")
    listen = ["tcp:0:interface=127.0.0.1", "udp:0:interface=127.0.0.1"]
    node = Node(reactor, log, listen=listen, limits=limits)
    reactor.addSystemEventTrigger("before", "shutdown", node.stopService)
    node.startService()

    def ready(_: None) -> None:
        hosts: list[Any] = [port.getHost() for port in node.ports]
        print(f"listening on tcp:127.0.0.1:{hosts[0].port}", flush=True)
        print(f"and on udp:127.0.0.1:{hosts[1].port}", flush=True)

    node.when_ready().addCallback(ready)
    reactor.run()
    vfs.unregister()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
