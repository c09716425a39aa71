"""docs/security.md: its ten minutes, typed as they are written, and what nobody may do then."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import Command
from tests.integration.daemon import BIN, PATIENCE, Daemon, running
from tests.kit.ports import free_port

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the page's commands are openssl's"),
]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
SECTION = (
    PAGE.read_text().partition("\n## A secured node in ten minutes\n")[2].partition("\n## ")[0]
)
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```(\w+)\n(.*?)^```$", SECTION, flags=re.MULTILINE | re.DOTALL
)


def typed(number: int) -> str:
    """Return a block of commands of the section."""
    return [text for language, text in BLOCKS if language == "sh"][number]


CERTIFICATES, SECRETS, START, USE, DENIED = (typed(number) for number in range(5))
(CONFIG,) = (text for language, text in BLOCKS if language == "toml")


class Folder:
    """The folder of the page, in which its commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = str(free_port())
        self.said: list[str] = []

    def here(self, text: str) -> str:
        """What is typed on this machine: another port, and who this is."""
        return text.replace("7411", self.port).replace("uid = 1000", f"uid = {os.getuid()}")

    def run(self, script: str, cwd: str = "node", *, fails: bool = False) -> str:
        done = subprocess.run(
            ["bash", "-c", f"set -e{'' if fails else 'o pipefail'}\n{self.here(script)}"],
            cwd=self.folder / cwd,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.said.append(done.stdout)
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def secret(self, name: str) -> str:
        return (self.folder / "node" / name).read_text().strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder, with all that is typed before the node is started."""
    folder = Folder(tmp_path_factory.mktemp("page"))
    folder.run(CERTIFICATES, cwd=".")
    (folder.folder / "node" / "node.toml").write_text(folder.here(CONFIG))
    folder.run(SECRETS)
    return folder


@pytest.fixture(scope="module")
def node(made: Folder) -> Iterator[Daemon]:
    with running(*START.split(), cwd=made.folder / "node") as daemon:
        daemon.wait_for("listening on tls:")
        daemon.wait_for("listening on unix:")
        yield daemon
        daemon.stop()
        # Neither the node nor a command has said a secret.
        lines = [*made.said, daemon.said]
        for secret in (made.secret("shop.password"), made.secret("billing.token")):
            assert not [line for line in lines if secret in line]


def test_the_files_are_nobody_else_s(made: Folder, node: Daemon) -> None:
    for name in ("users", "shop.password", "billing.token", "data"):
        mode = stat.S_IMODE((made.folder / "node" / name).stat().st_mode)
        assert 0 == mode & 0o077, name


def test_a_message_goes_all_the_way(made: Folder, node: Daemon) -> None:
    said = made.run(USE)
    assert '{"id": 17}' in said
    assert "stored at log:" in said
    assert re.search(r"billing +orders\.> +away .* 0 ", said.splitlines()[-1]), said


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (0, "no: no rule of shop allows send bills.new"),
        (1, "wrong user or password"),
        (2, "not allowed: send 'bills.new'"),
        (3, "this node asks for a login"),
    ],
)
def test_what_nobody_may_is_refused_in_words(
    made: Folder, node: Daemon, number: int, sentence: str
) -> None:
    first, *_ = USE.splitlines()  # which node
    command = DENIED.splitlines()[number]
    assert sentence in made.run(f"{first}\n{command}; exit $?", fails=True)


ASKING = """
[listen]
tcp = "tls:0"

[tls]
certificate = "node.crt"
private_key = "node.key"
client_roots = "ca.pem"
"""


def test_the_same_certificates_serve_a_node_that_asks_its_clients_for_theirs(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path)
    folder.run(CERTIFICATES, cwd=".")
    there = tmp_path / "node"
    (there / "node.toml").write_text(ASKING)
    with running(*START.split(), cwd=there) as node:
        port = node.wait_for(r"listening on tls:127\.0\.0\.1:(\d+)")[1]
        address = f"tls:localhost:{port}:trustRoots=ca.pem"
        own = ":certificate=node.crt:privateKey=node.key"
        assert 0 == Command(address + own, there)("info").code
        refused = Command(address, there)("info", "--timeout", "600")  # at once, not then
        assert 1 == refused.code
        asks = "TLS: the other side broke off: it asks for a certificate, and we show none"
        assert asks in refused.err
        node.wait_for("was turned away: TLS: the other side shows no certificate")
        assert node.stop() in (0, -signal.SIGTERM)


def test_all_commands_of_the_section_are_typed() -> None:
    assert ["sh", "toml", "sh", "sh", "sh", "sh"] == [language for language, _ in BLOCKS]
    assert 4 == len(DENIED.splitlines())
