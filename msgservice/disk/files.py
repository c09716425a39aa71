"""`Files`: plain files, as the log's folder, marks, reserve, locks and copies use them.

Those functions of the module `os` that change something or ask for room, and no others: what only
reads needs no stand-in. The default everywhere is `os` itself; a simulated disk gives its own,
which knows what a power failure would leave.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol


class Files(Protocol):
    """File operations that change something or ask for room: those of the module `os`."""

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        """A descriptor of a file, made where `flags` say so: `os.open`."""

    def close(self, fd: int) -> None:
        """The descriptor is closed: `os.close`."""

    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int:
        """Bytes are written at an offset, and counted: `os.pwrite`."""

    def ftruncate(self, fd: int, length: int, /) -> None:
        """The file is cut or extended to this length: `os.ftruncate`."""

    def posix_fallocate(self, fd: int, offset: int, length: int, /) -> None:
        """Room is set aside for a range of the file: `os.posix_fallocate`."""

    def fsync(self, fd: int) -> None:
        """The contents of the file, and its metadata, are on disk: `os.fsync`."""

    def fdatasync(self, fd: int) -> None:
        """The contents of the file are on disk: `os.fdatasync`."""

    def unlink(self, path: str | os.PathLike[str]) -> None:
        """The name of a file is removed from its folder: `os.unlink`."""

    def replace(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """The file `src` takes the name `dst`, at once and wholly: `os.replace`."""

    def sync(self) -> None:
        """Data that was written to any file is on disk: `os.sync`."""

    def statvfs(self, path: str | os.PathLike[str]) -> os.statvfs_result:
        """The room of the file system that holds `path`: `os.statvfs`."""


OS: Files = os


def write_whole(files: Files, fd: int, data: bytes, offset: int) -> None:
    """All of `data` is written at an offset, in as many writes as that takes; or `OSError`.

    A disk that fills up, and a file system that copies on write, may write less than they were
    given and say so by the count alone.
    """
    written = files.pwrite(fd, data, offset)
    while written < len(data):
        more = files.pwrite(fd, data[written:], offset + written)
        if not more:
            raise OSError(errno.EIO, f"{written} of {len(data)} bytes were written")
        written += more
