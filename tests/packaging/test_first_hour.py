"""The first commands of the README, word by word, where nothing is installed."""

import shutil
from pathlib import Path

import pytest

from bench.first_hour import played, typed
from tests.packaging.conftest import CHECKOUT, LEFT_BEHIND

pytestmark = pytest.mark.timeout(600)


def test_three_commands_bring_a_first_message(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(CHECKOUT, clone, ignore=LEFT_BEHIND)
    commands = typed()
    assert len(commands) == 3, commands
    played(commands, clone, {"PIP_QUIET": "1"})
    assert not (clone / "var").exists()
