"""The commands of docs/security.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.docs.test_reference_pages import DOCS
from tests.integration.command import Command
from tests.integration.daemon import PATIENCE, running

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="the page's commands are openssl's"),
]

NODE = """
[listen]
tcp = "tls:0"

[tls]
certificate = "node.crt"
private_key = "node.key"
client_roots = "ca.pem"
"""


def test_certificates_made_as_the_page_says_serve_a_node_and_who_speaks_to_it(
    tmp_path: Path,
) -> None:
    (commands,) = re.findall(
        r"```sh\n(openssl.*?)```", (DOCS / "security.md").read_text(), re.DOTALL
    )
    subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    (tmp_path / "node.toml").write_text(NODE)
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as node:
        port = node.wait_for(r"listening on tls:127\.0\.0\.1:(\d+)")[1]
        address = f"tls:localhost:{port}:trustRoots=ca.pem"
        own = ":certificate=node.crt:privateKey=node.key"
        assert 0 == Command(address + own, tmp_path)("info").code
        refused = Command(address, tmp_path)("info", "--timeout", "3")
        assert 3 == refused.code
        asks = "TLS: the other side broke off: it asks for a certificate, and we show none"
        assert asks in refused.err
        node.wait_for("was turned away: TLS: the other side shows no certificate")
        assert node.stop() in (0, -signal.SIGTERM)
