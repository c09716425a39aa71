"""The program of docs/receiver.md that shares work: it does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "receiver.md"


@pytest_twisted.ensureDeferred
async def test_52_four_workers_share_a_thousand_jobs(tmp_path: Path) -> None:
    (program,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "async def pool(" in block
    ]
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    handled = await names["pool"](reactor, tmp_path / "node")
    assert 1000 == sum(handled.values())
    assert all(count > 100 for count in handled.values()), handled
