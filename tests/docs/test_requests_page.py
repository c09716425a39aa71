"""docs/requests.md: its program with three responders runs, as it stands, against a real daemon."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.daemon import running

PAGE = Path(__file__).resolve().parents[2] / "docs" / "requests.md"


@pytest.mark.timeout(120)
def test_57_the_program_with_three_responders_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (program,) = [block for block in blocks if "react(" in block]
    promised = re.findall(r"print\(.*\)  # (.*)", program)
    command = ("twist", "--log-format=text", "msgservice", "--listen", "tcp:0")
    with running(*command, cwd=tmp_path) as daemon:
        here = program.replace("127.0.0.1:7410", f"127.0.0.1:{daemon.ports()[0]}")
        assert here != program
        done = subprocess.run(
            [sys.executable, "-c", here],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (0, "") == (done.returncode, done.stderr)
    assert promised == done.stdout.splitlines()
