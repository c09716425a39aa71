"""The process that forks those of the tests: what becomes of it where a test is interrupted."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.kit import nest


def test_after_an_interrupted_start_no_process_is_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file: socket.socket, count: int) -> bytes:
        raise KeyboardInterrupt

    command = (sys.executable, "-c", "print('here'); raise SystemExit(7)")
    with monkeypatch.context() as patch:
        patch.setattr(nest, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            nest.run(command, timeout=60, cwd=tmp_path)
    done = nest.run(command, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, b"here\n")
