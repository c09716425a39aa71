"""Two processes, one on `selectors` and one on Twisted, do everything to each other, both ways."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.nest import Forked

REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED = {
    "request": [[[1, "a"], {"k": {"n": None}}], ["own"], {"also": 1}],
    "unicode": [[["€😀"], {}], [], {}],
    "nothing": [[[[n, "zwölf"], {"k": [None, 1.5]}] for n in range(3)], [], {}],
    "order": True,
    "pushed": [True, [], {}],
    "empty": [True, [], {}],
    "fetched": [True, True, "own", 1],
    "counted": [144, [], {}],
}


def start(kind: str, role: str, port: int, folder: Path) -> "subprocess.Popen[str]":
    folder.mkdir()
    return Forked(
        [
            *(sys.executable, "-m", "tests.integration.callbacks_worker"),
            *(kind, role, str(port), str(folder)),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("server_kind", "client_kind"), [("selectors", "twisted"), ("twisted", "selectors")]
)
def test_both_kinds_exchange_everything_in_both_roles(
    server_kind: str, client_kind: str, tmp_path: Path
) -> None:
    server = start(server_kind, "server", 0, tmp_path / "server")
    processes = [server]
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline() or "0")
        client = start(client_kind, "client", port, tmp_path / "client")
        processes.append(client)
        assert client.stdout is not None
        results: list[dict[str, Any]] = [
            json.loads(process.stdout.readline() or "{}")
            for process in processes
            if process.stdout is not None
        ]
    finally:
        for process in processes:
            process.terminate()
        errors = [process.communicate(timeout=60)[1] for process in processes]
    # What fails is silence, in both directions: no result under any other name.
    assert results == [EXPECTED, EXPECTED], errors
    for side in ("server", "client"):
        names = {path.name for path in (tmp_path / side).iterdir()}
        assert names == {"source", "empty", "pushed", "pushed-empty", "fetched"}
