"""The command line at a node with five thousand receivers: answers of many pages each.

What the node does with twenty thousand is in `tests/unit/test_node_admin.py`.
"""

from collections.abc import Iterator

import pytest

from tests.integration.command import Command
from tests.integration.daemon import running

# A slow machine is no failure: thousands of rows are made, told, and drawn as tables.
pytestmark = pytest.mark.timeout(600)

MANY = 5_000
NAMES = {f"receiver-{n}" for n in range(MANY)}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = tmp_path_factory.mktemp("many")
    rows = "".join(f'[[receiver]]\nname = "{name}"\nsubjects = ["all"]\n' for name in NAMES)
    (folder / "node.toml").write_text(
        f'[listen]\nunix = "unix:node.sock"\n[limits]\nreceivers = {MANY}\n{rows}'
    )
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=folder) as node:
        node.wait_for("listening on unix")
        yield Command(f"unix:{folder}/node.sock", folder)


def first_words(table: str) -> list[str]:
    return [line.split()[0] for line in table.splitlines() if line]


def test_all_receivers_are_listed(many: Command) -> None:
    rows = many.data("receivers", "list")["receivers"]
    assert [row["name"] for row in rows] == sorted(NAMES)
    table = many("receivers", "list").out
    assert first_words(table) == ["name", *sorted(NAMES)]


def test_the_status_at_all_receivers_is_told(many: Command) -> None:
    sent = many.data("send", "all", "body", "--id", "one")
    status = many.data("status", "one")
    assert (status["position"], status["subject"]) == (sent["position"], "all")
    assert set(status["receivers"]) == NAMES
    words = first_words(many("status", "one").out)
    assert words[:5] == ["subject", "position", "sender", "stored", "receiver"]
    assert len(words) == 5 + MANY
    assert set(words[5:]) == NAMES
