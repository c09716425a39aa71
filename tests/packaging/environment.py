"""A virtual environment of its own, for programs that must work without ours."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment of its own, and nothing of the one that runs the tests."""

    folder: Path

    def run(self, *command: str) -> str:
        """Return what a program of this environment prints; fail where it fails."""
        return self._run(str(self.folder / "bin" / command[0]), *command[1:])

    def pip(self, *command: str) -> None:
        """Let our pip work on this environment: to put one into it would take longer."""
        python = str(self.folder / "bin" / "python")
        self._run(sys.executable, "-m", "pip", "--python", python, *command, "--quiet")

    def _run(self, *command: str) -> str:
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
        done = subprocess.run(
            command,
            cwd=self.folder,  # never the checkout: there, everything would be found
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
