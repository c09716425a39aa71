"""Where a log can be kept: asked of a folder before anything in it is opened or made.

Without SQLite, since `check-config` and the plugin of `twistd` ask it too. What holds the folder,
and what is in it, is in `disk.folder`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from msgservice.errors import DataFolderUnusable

# Locks and shared memory do not do there what SQLite needs.
NETWORK_FILESYSTEMS = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.glusterfs",
        "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
        "ocfs2", "orangefs", "smb2", "smb3", "smbfs",
    }
)  # fmt: skip
# Nobody makes a file there, and `access` does not say so to root.
KERNEL_FILESYSTEMS = frozenset(
    {
        "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
        "efivarfs", "fusectl", "mqueue", "proc", "pstore", "securityfs", "selinuxfs", "sysfs",
        "tracefs",
    }
)  # fmt: skip

# A page of a file that exists needs room there to be written again, and who writes it as mapped
# memory where there is none, at a quota say, is ended by the kernel with SIGBUS.
REWRITING_FILESYSTEMS = frozenset({"bcachefs", "btrfs", "nilfs2", "ubifs"})
MOUNTS = Path("/proc/self/mounts")


def filesystem_of(folder: Path, mounts: Path = MOUNTS) -> str:
    """Return the type of the filesystem that holds `folder`; `unknown` where no table says it.

    `mounts`: a table as of proc(5); the longest mount point that is a beginning of the path counts,
    and of equal ones the last.
    """
    try:
        table = mounts.read_bytes()
    except OSError:
        return "unknown"  # no such table on this system: docs/platforms.md
    path = os.fsencode(os.path.realpath(folder))
    best, kind = b"", b"unknown"
    for line in table.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) < 3:
            continue
        # Spaces and the like are written as octal escapes.
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), fields[1])
        inside = path == point or path.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return os.fsdecode(kind)


def check_filesystem(folder: Path, mounts: Path = MOUNTS, *, told: Path | None = None) -> None:
    """Refuse a folder where no log can be kept: raises `DataFolderUnusable`, about `told`."""
    kind = filesystem_of(folder, mounts)
    if kind in NETWORK_FILESYSTEMS:
        raise DataFolderUnusable(str(told or folder), f"{kind} is a network filesystem")
    if kind in KERNEL_FILESYSTEMS:
        raise DataFolderUnusable(str(told or folder), f"{kind} is a filesystem of the kernel's")


def check_folder(folder: Path) -> None:
    """Refuse a data folder that could not be used or made; nothing is made here.

    Raises `DataFolderUnusable`. What only trying shows, a full disk say, is seen at start.
    """
    if "\0" in str(folder):
        raise DataFolderUnusable(str(folder), "a path has no zero byte")
    there = folder
    try:
        while not there.exists():
            there = there.parent
        is_folder = there.is_dir()
    except OSError as error:
        raise DataFolderUnusable(str(folder), error.strerror or str(error)) from None
    if not is_folder:
        raise DataFolderUnusable(str(folder), f"{there} is not a folder")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise DataFolderUnusable(str(folder), f"{there} is not writable")
    check_filesystem(there, told=folder)
