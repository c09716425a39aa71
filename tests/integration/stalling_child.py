"""A node whose disk stands still for a while, in the midst of what it writes.

    python -m tests.integration.stalling_child FOLDER SECONDS

What is written with `STALL` in it waits for its sync for so many seconds. Says on which thread.
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


class StallingFile(FaultyFile):
    """A file that notes whether what was written since its last sync has the word."""

    stalls = False
    has_stalled = False  # once: a later commit may write the same page again

    def xWrite(self, data: bytes, offset: int) -> None:
        self.stalls = self.stalls or STALL in bytes(data)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        if self.stalls and not self.has_stalled and self._name.endswith("-wal"):
            self.has_stalled = True
            is_reactors = threading.current_thread() is threading.main_thread()
            print("stalled", "reactor" if is_reactors else "writer", flush=True)
            time.sleep(SECONDS)
        super().xSync(flags)


class StallingVFS(FaultyVFS):
    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> FaultyFile:
        return StallingFile(name, flags, self._faults)


def main(folder: str) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    vfs = StallingVFS("stalling", Faults())
    limits = Limits()
    log = SqliteLog(Path(folder), reactor=reactor, limits=limits, vfs="stalling")
    node = Node(reactor, log, listen=["tcp:0:interface=127.0.0.1"], limits=limits)
    reactor.addSystemEventTrigger("before", "shutdown", node.stopService)
    node.startService()

    def ready(_: None) -> None:
        port: Any = node.ports[0].getHost()
        print(f"listening on tcp:127.0.0.1:{port.port}", flush=True)

    node.when_ready().addCallback(ready)
    reactor.run()
    vfs.unregister()


if __name__ == "__main__":
    SECONDS = float(sys.argv[2])
    main(sys.argv[1])
