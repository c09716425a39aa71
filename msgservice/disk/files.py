"""`Files`: plain files, as the log's folder, marks, reserve, locks and copies use them.

Those functions of the module `os` that change something or ask for room, and no others: what only
reads needs no stand-in. The default everywhere is `os` itself; a simulated disk gives its own,
which knows what a power failure would leave.
"""

from __future__ import annotations

import os
from typing import Protocol


class Files(Protocol):
    """See the functions of these names in the module `os`."""

    def open(self, path: str | os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        """See `os.open`."""

    def close(self, fd: int) -> None:
        """See `os.close`."""

    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int:
        """See `os.pwrite`."""

    def ftruncate(self, fd: int, length: int, /) -> None:
        """See `os.ftruncate`."""

    def posix_fallocate(self, fd: int, offset: int, length: int, /) -> None:
        """See `os.posix_fallocate`."""

    def fsync(self, fd: int) -> None:
        """See `os.fsync`."""

    def fdatasync(self, fd: int) -> None:
        """See `os.fdatasync`."""

    def unlink(self, path: str | os.PathLike[str]) -> None:
        """See `os.unlink`."""

    def replace(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """See `os.replace`."""

    def sync(self) -> None:
        """See `os.sync`."""

    def statvfs(self, path: str | os.PathLike[str]) -> os.statvfs_result:
        """See `os.statvfs`."""


OS: Files = os
