"""`msgservice` as a program or a person calls it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.daemon import PATIENCE
from tests.kit.nest import run


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Command:
    """`msgservice`, with the address of one node in its environment."""

    node: str
    folder: Path

    def __call__(self, *words: str, stdin: bytes = b"") -> Outcome:
        done = run(
            ["msgservice", *words],
            cwd=self.folder,
            env=os.environ | {"MSGSERVICE_NODE": self.node, "XDG_CONFIG_HOME": str(self.folder)},
            stdin=stdin,
            timeout=PATIENCE,
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    def data(self, *words: str, stdin: bytes = b"") -> Any:
        done = self(*words, "--json", stdin=stdin)
        assert done.code == 0, done
        return done.data

    def receiver(self, name: str) -> Any:
        rows = self.data("receivers", "list")["receivers"]
        return next(row for row in rows if row["name"] == name)
