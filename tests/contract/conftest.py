"""Every test of the contract of logs is also one of this: nothing writes beside the one door."""

from __future__ import annotations

import pytest

from tests.kit import door


@pytest.fixture(autouse=True)
def the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch all logs of a test."""
    door.watch(monkeypatch)
