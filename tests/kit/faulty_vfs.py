"""A SQLite VFS that fails when told to: syncs, writes, and a disk of limited size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw


class Faults:
    """What shall go wrong; each takes the name of the file (`log.db`, `log.db-wal`)."""

    def __init__(self) -> None:
        self.sync: Callable[[str], bool] = lambda name: False
        self.write: Callable[[str], bool] = lambda name: False
        self.full: Callable[[str], bool] = lambda name: False
        self.syncs: list[str] = []


class FaultyFile(apsw.VFSFile):
    def __init__(
        self, name: str | apsw.URIFilename | None, flags: list[int], faults: Faults
    ) -> None:
        super().__init__("", name, flags)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path or "").name
        self._faults = faults

    def xSync(self, flags: int) -> None:
        self._faults.syncs.append(self._name)
        if self._faults.sync(self._name):
            raise apsw.IOError("injected: sync failed")
        super().xSync(flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._faults.full(self._name):
            raise apsw.FullError("injected: disk full")
        if self._faults.write(self._name):
            raise apsw.IOError("injected: write failed")
        super().xWrite(data, offset)


class FaultyVFS(apsw.VFS):
    def __init__(self, name: str, faults: Faults) -> None:
        super().__init__(name, "")
        self._faults = faults

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> FaultyFile:
        return FaultyFile(name, flags, self._faults)


@contextmanager
def faulty_vfs(name: str = "faulty") -> Iterator[Faults]:
    faults = Faults()
    vfs = FaultyVFS(name, faults)
    try:
        yield faults
    finally:
        vfs.unregister()
