"""Files of the callback protocol on disk: what a peer may touch, and how.

Both faces use it; it imports no Twisted and blocks, so that a face decides what runs in a thread.
A path that a peer names is confined to a `FileRoot`; a path that the own program names is taken as
it is, relative ones under the root. A received file is written beside its place, and is renamed
into it when it is whole: whoever looks there sees the old one or the new one, never a half.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgservice.errors import PathRefused, TransferFailed

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

HASH_CHUNK_BYTES: Final = 1024 * 1024
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class FileRoot:
    """The folder that a peer's files are confined to.

    Args:
        path: the folder; None is the working directory of the moment.
        allow_absolute: let a peer name a file below the root by its absolute path.
        sync: have a received file on the disk itself before it takes its place, so that a loss
            of power leaves the old file or the new one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        allow_absolute: bool = False,
        sync: bool = True,
    ) -> None:
        self._path = None if path is None else Path(path).absolute()
        self._allow_absolute = allow_absolute
        self.sync = sync

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return Path.cwd() if self._path is None else self._path

    # --- paths that a peer names

    def open_to_send(self, filepath: str | None) -> "OutgoingFile":
        """Open a file that a peer asked for.

        Raises:
            PathRefused: it lies outside of the root, or is no regular file.
            OSError: it cannot be read.
        """
        folder, name = self._open_folder(filepath)
        try:
            return OutgoingFile(_open_regular(name, folder, str(filepath)), str(filepath))
        finally:
            os.close(folder)

    def open_to_receive(
        self, filepath: str, size: int, *, transfer: str | None = None, checked: bool = False
    ) -> "IncomingFile":
        """Open the place for a pushed file; the same `transfer` finds what came of it before.

        Raises:
            PathRefused: it lies outside of the root, or is a folder or a link.
            OSError: it cannot be written.
        """
        folder, name = self._open_folder(filepath)
        return IncomingFile(
            folder,
            name,
            size,
            path=filepath,
            transfer=transfer,
            checked=checked,
            sync=self.sync,
        )

    def _open_folder(self, filepath: str | None) -> tuple[int, str]:
        """Open the folder of `filepath`, one component after the other; no link is followed."""
        *folders, name = self._components(filepath)
        folder = os.open(self.path, _FOLDER)
        try:
            for component in folders:
                deeper = _open_component(component, folder, str(filepath))
                os.close(folder)
                folder = deeper
        except BaseException:
            os.close(folder)
            raise
        return folder, name

    def _components(self, filepath: str | None) -> list[str]:
        if not filepath or "\0" in filepath:
            raise PathRefused(filepath or "", "names no file")
        path = Path(filepath)
        if path.is_absolute():
            if not self._allow_absolute:
                raise PathRefused(filepath, "absolute")
            if not path.is_relative_to(self.path):
                raise PathRefused(filepath, "outside of the root")
            path = path.relative_to(self.path)
        if ".." in path.parts:
            raise PathRefused(filepath, "leads upwards")
        if not path.parts or filepath.endswith("/"):
            raise PathRefused(filepath, "names a folder")
        if _is_part(path.name):
            raise PathRefused(filepath, "is a transfer that is not complete")
        return list(path.parts)

    def remove_stale_parts(self, *, before: float) -> int:
        """Remove what is left of transfers untouched since `before` (seconds since the epoch).

        Returns how many. One that is being received is never removed.
        """
        removed = 0
        for folder, _, names in os.walk(self.path):
            for path in (Path(folder, name) for name in names if _is_part(name)):
                with contextlib.suppress(OSError), path.open("rb") as part:
                    fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.stat().st_mtime < before:
                        path.unlink()
                        removed += 1
        return removed

    # --- paths that the own program names

    def open_local_to_send(self, filepath: str | os.PathLike[str]) -> "OutgoingFile":
        """Open a file of one's own. Raises OSError; PathRefused if it is no regular file."""
        path = self.path / filepath
        return OutgoingFile(_open_regular(path, None, str(filepath)), str(filepath))

    def local_path(self, filepath: str | os.PathLike[str] | None, remote: str) -> Path:
        """Return where an asked-for file goes: by default to the base name of the remote path."""
        if filepath is not None:
            return self.path / filepath
        name = os.path.basename(remote)  # noqa: PTH119 - Path would overlook a slash at the end
        if name in ("", ".", "..") or "\0" in name:
            raise PathRefused(remote, "has no base name")
        return self.path / name

    def open_local_to_receive(self, path: Path, size: int, *, checked: bool) -> "IncomingFile":
        """Open the place for a file that was asked for; errors as `open_to_receive`."""
        folder = os.open(path.parent, _FOLDER)
        return IncomingFile(
            folder, path.name, size, path=str(path), checked=checked, sync=self.sync
        )


class OutgoingFile:
    """A file that is being sent: read by position, so that it can start again anywhere."""

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self._fd = fd
        status = os.fstat(fd)
        self.size = status.st_size
        self._identity = (status.st_dev, status.st_ino, status.st_mtime_ns, self.size)
        self._hash = hashlib.sha256()
        self._hashed = 0

    def transfer(self, destination: str) -> str:
        """Return a name for sending this very content there; the same in every process."""
        text = f"{self._identity}\0{destination}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def read(self, offset: int, length: int, *, hashed: bool) -> bytes:
        """Return exactly these bytes.

        Raises:
            TransferFailed: the file has become shorter.
            OSError: it cannot be read.
        """
        data = os.pread(self._fd, length, offset)
        if len(data) < length:
            raise TransferFailed(self.path, f"shrank below {self.size} bytes while being sent")
        if hashed:
            if offset == 0:
                self._hash, self._hashed = hashlib.sha256(), 0
            assert offset == self._hashed, (offset, self._hashed)
            self._hash.update(data)
            self._hashed += length
        return data

    def hash_of(self, length: int) -> "Hash | None":
        """Return the hash of the first `length` bytes, None if there are fewer.

        Blocks while it reads them; changes nothing, so it may run in a thread.
        """
        hashed, done = hashlib.sha256(), 0
        while done < length:
            data = os.pread(self._fd, min(HASH_CHUNK_BYTES, length - done), done)
            if not data:
                return None
            hashed.update(data)
            done += len(data)
        return hashed

    def go_on(self, offset: int, hashed: "Hash") -> None:
        """Have the next `read` begin at `offset`, which `hashed` covers."""
        self._hash, self._hashed = hashed.copy(), offset

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of what was read with `hashed`."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close it; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class IncomingFile:
    """A file that is being received, beside its place until `finish`.

    It takes over `folder`, a descriptor. After an error only `abandon` may be called.
    """

    def __init__(
        self,
        folder: int,
        name: str,
        size: int,
        *,
        path: str,
        sync: bool,
        checked: bool = False,
        transfer: str | None = None,
    ) -> None:
        self.path, self.size, self.transfer = path, size, transfer
        self._folder, self._name, self._sync, self.is_checked = folder, name, sync, checked
        self._hash = hashlib.sha256()
        self.position = 0
        self._fd = -1
        try:
            self._mode = self._check_target()
            self._fd = self._open_part()
        except BaseException:
            self._close()
            raise

    def _check_target(self) -> int | None:
        """Return the permissions of the file that will be replaced."""
        try:
            status = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(status.st_mode):
            raise PathRefused(self.path, "is a symbolic link")
        if not stat.S_ISREG(status.st_mode):
            raise PathRefused(self.path, "is no regular file")
        return stat.S_IMODE(status.st_mode) & 0o777

    def _open_part(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        if self.transfer is not None:
            token = hashlib.sha256(f"{self.transfer}\0{self._name}".encode()).hexdigest()[:32]
            self._part = f".{token}.part"
            fd = os.open(self._part, flags, 0o666, dir_fd=self._folder)
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            os.close(fd)  # the same file is being pushed by another connection
            self.transfer = None
        self._part = f".{secrets.token_hex(16)}.part"
        fd = os.open(self._part, flags | os.O_EXCL, 0o666, dir_fd=self._folder)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of what is here."""
        return self._hash.hexdigest()

    def recall(self) -> None:
        """Count what an earlier connection left; blocks while it reads that."""
        self.restart_at(0, truncate=False)
        while data := os.pread(self._fd, HASH_CHUNK_BYTES, self.position):
            self._hash.update(data)
            self.position += len(data)

    def restart_at(self, offset: int, *, truncate: bool = True) -> bool:
        """Go on at `offset`: at the start, or where it is. Returns whether that is possible."""
        if offset == 0:
            self._hash, self.position = hashlib.sha256(), 0
        if truncate:
            os.ftruncate(self._fd, self.position)
        return offset == self.position

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises OSError, when the disk is full for one."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], self.position + written)
        self.position += written
        if self.is_checked:
            self._hash.update(data)

    def finish(self, sha256: str | None) -> None:
        """Put the file in its place; blocks until it is on the disk, if the root says `sync`.

        Raises:
            TransferFailed: its size or its checksum differs.
            OSError: it could not be written out.
        """
        if self.position != self.size:
            raise TransferFailed(self.path, f"{self.position} of {self.size} bytes came")
        if sha256 is not None and sha256 != self.sha256:
            raise TransferFailed(self.path, f"checksum {self.sha256} came out, {sha256} was sent")
        if self._mode is not None:
            os.fchmod(self._fd, self._mode)
        if self._sync:
            os.fsync(self._fd)
        os.rename(
            self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder
        )  # fmt: skip
        if self._sync:
            os.fsync(self._folder)
        self._close()

    def abandon(self, *, keep: bool = False) -> None:
        """Close it, and remove what came unless a later connection may go on with it."""
        if self._folder < 0:
            return
        if not (keep and self.transfer is not None):
            with contextlib.suppress(OSError):
                os.unlink(self._part, dir_fd=self._folder)
        self._close()

    def _close(self) -> None:
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part") and len(name) == 38


def _open_component(component: str, folder: int, filepath: str) -> int:
    try:
        return os.open(component, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(component, folder):
            raise PathRefused(filepath, f"{component!r} is a symbolic link") from None
        raise


def _is_link(name: str, folder: int) -> bool:
    with contextlib.suppress(OSError):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return stat.S_ISLNK(status.st_mode)
    return False


def _open_regular(name: str | Path, folder: int | None, filepath: str) -> int:
    """Open a regular file to read; links are followed only without `folder`."""
    # O_NONBLOCK: opening a named pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(name, flags | (os.O_NOFOLLOW if folder is not None else 0), dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PathRefused(filepath, "is a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise PathRefused(filepath, "is no regular file")
    return fd
