"""A virtual environment of its own, for programs that must work without ours."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment of its own, and nothing of the one that runs the tests."""

    folder: Path

    def run(self, *command: str) -> str:
        """Return what a program of this environment prints; fail where it fails."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
        done = subprocess.run(
            [self.folder / "bin" / command[0], *command[1:]],
            cwd=self.folder,  # never the checkout: there, everything would be found
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *what: str) -> None:
        """Install with pip."""
        self.run("python", "-m", "pip", "install", "--quiet", *what)
