"""Private files: read only where nobody else can have written or read them, and written whole.

For what is secret and small: the users file, and the secret of a data folder. Of a file that is
written anew, either the old or the new one is there after a power failure.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from msgservice.errors import ConfigError

FILE_BYTES_MAX = 16 * 1024 * 1024  # 100,000 passwords
SECRET_NAME = "login.secret"  # noqa: S105 - of the file
_SECRET_BYTES = 32


def read_private(path: Path) -> bytes:
    """Return what a file holds. `ConfigError` where others may read it, or it cannot be read."""
    try:
        # Not a pipe that nobody writes to, which would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            check_private(path, os.fstat(file.fileno()))
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise ConfigError([f"{path}: cannot be read: a path has no zero byte"]) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError([f"{path}: larger than {FILE_BYTES_MAX} bytes"])
    return data


def check_private(path: Path, found: os.stat_result) -> None:
    """`ConfigError` unless the file is one, and its owner's alone; who is this process, or root."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError([f"{path}: is no file"])
    if (mode := stat.S_IMODE(found.st_mode)) & 0o077:
        raise ConfigError([f"{path}: has mode {mode:04o}, others can use it: chmod 600"])
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError([f"{path}: belongs to user {found.st_uid}, who can change it: chown"])


def write_private(path: Path, data: bytes) -> None:
    """Put a new file with mode 0600 in a file's place, synced; `OSError`. It keeps its owner."""
    path = path.resolve()  # the file that a link leads to, not the link
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(FileNotFoundError):
                # Root that edits the file of a service leaves it readable for that.
                if (owner := path.stat()).st_uid != os.geteuid():
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fchmod(descriptor, 0o600)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def secret_of(folder: Path) -> bytes:
    """Return the secret of a data folder, made when it is first asked for; waits for the disk.

    Random bytes that logins of unknown users are answered by (`Users`). `ConfigError` where the
    file cannot be used; `OSError` where it cannot be made.
    """
    path = folder / SECRET_NAME
    if not path.exists():
        write_private(path, secrets.token_bytes(_SECRET_BYTES))
    data = read_private(path)
    if len(data) != _SECRET_BYTES:
        raise ConfigError([f"{path}: has {len(data)} bytes, not {_SECRET_BYTES}: remove it"])
    return data
