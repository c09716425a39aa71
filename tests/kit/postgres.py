"""A server of PostgreSQL for tests: a real one, of its own data folder, on a socket of its own.

Debian's programs are found where its package puts them, which is not on the PATH. The server wants
no root, so where tests run as root it runs as the package's user, or as nobody.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DEBIANS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: float(one.parent.name))


def programs() -> Path | None:
    """Return the folder of `initdb` and `pg_ctl`, or None."""
    on_path = shutil.which("pg_ctl")
    if on_path and (Path(on_path).parent / "initdb").exists():
        return Path(on_path).parent
    return _DEBIANS[-1] if _DEBIANS else None


needs_server = pytest.mark.skipif(
    programs() is None, reason="no PostgreSQL here: apt-get install postgresql"
)


class Server:
    """A server that can be stopped and started again. `dsn`: for `psycopg.connect`."""

    def __init__(self, folder: Path) -> None:
        found = programs()
        assert found is not None
        self._programs, self._folder = found, folder
        self._user: str | None = None
        if os.getuid() == 0:
            users = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in users else "nobody"
            shutil.chown(folder, self._user)
        self.dsn = f"host={folder} dbname=postgres user=tester connect_timeout=5"
        data = str(folder / "data")
        self._run("initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8")

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._programs / program, *words],
            user=self._user,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        # No port of the machine: its socket is in its folder. What is tested is not its disk.
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c fsync=off"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", self._data, "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is without asking anybody, as a crash."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    @property
    def _data(self) -> str:
        return str(self._folder / "data")


@contextmanager
def server() -> Iterator[Server]:
    """Run a server; it is stopped and removed behind."""
    # Not in a folder of pytest's, which is its user's alone; and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="msgservice-pg-") as folder:
        made = Server(Path(folder))
        made.start()
        try:
            yield made
        finally:
            made.stop()
