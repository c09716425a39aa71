"""The fixtures of `msgservice.testing`, for pytest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from msgservice.testing.local import LocalNode
from msgservice.testing.world import World


@pytest.fixture
def msgservice_node(tmp_path: Path) -> Iterator[LocalNode]:
    """A node of this process, which programs of all kinds dial; stopped after the test."""
    folder = tmp_path / "msgservice"
    with LocalNode(folder) as node:
        yield node
    # A log sets room aside, 64 MiB each: too much to keep for every test, as pytest would.
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def msgservice_world() -> Iterator[World]:
    """A node and its network in virtual time, calm at first; closed after the test."""
    world = World()
    yield world
    world.close()
