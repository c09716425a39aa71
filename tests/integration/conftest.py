"""One node in a process of its own, for the tests that need no other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a node that these tests share; each has receivers of its own."""
    folder = tmp_path_factory.mktemp("node")
    command = ("twist", "--log-format=text", "msgservice", "--listen", "tcp:0")
    with running(*command, cwd=folder) as daemon:
        yield f"tcp:127.0.0.1:{daemon.ports()[0]}"


@pytest.fixture
def msgservice(node: str, tmp_path: Path) -> Command:
    return Command(node, tmp_path)
