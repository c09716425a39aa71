"""Whoever closes a connection hears the other end do so: nobody waits for `close_timeout`.

It is never over here, so what ends at all has ended because the other end did.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import maybeDeferred

from msgservice.limits import Limits
from msgservice.transport.registry import Transports
from tests.integration.daemon import running
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)
NEVER = 3000.0
LIMITS = Limits(close_timeout=NEVER, bye_timeout=NEVER, stop_timeout=NEVER)
CHILD = Path(__file__).with_name("closing_child.py")


@pytest.mark.parametrize("who", ["who dialled", "who listens"])
@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest_twisted.ensureDeferred
async def test_who_closes_while_it_reads_nothing_hears_the_end(
    scheme: str, who: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    dialling, listening = Recorder(), Recorder()
    transport = Transports().tcp
    address = authority.listener() if scheme == "tls" else "tcp:0"
    port: Any = await transport.listen(reactor, address, lambda: listening, LIMITS)
    to = f"{scheme}:localhost:{port.getHost().port}"
    to += f":trustRoots={authority.ca_file}" if scheme == "tls" else ""
    connector = transport.connector(reactor, to, lambda: dialling, LIMITS)
    connector.startService()
    await dialling.until_opened()
    await listening.until_opened()
    closing, other = (dialling, listening) if who == "who dialled" else (listening, dialling)
    assert closing.channel is not None
    gone = closing.until_lost()
    closing.channel.pause()
    closing.send(b"the last words")
    closing.channel.close()
    await other.until_lost()
    await gone
    assert other.values("frames") == [[b"the last words"]]
    assert "cleanly" in closing.values("lost")[0]
    await maybeDeferred(connector.stopService)
    await maybeDeferred(port.stopListening)


@pytest.mark.parametrize("first", ["receiver", "producer", "node"])
def test_a_process_that_is_told_to_end_does_not_wait_for_its_peers_patience(
    first: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    authority.issue("localhost")
    (tmp_path / "node.toml").write_text(
        "[listen]\n"
        'tcp = "tls:0:privateKey=localhost.key:certificate=localhost.crt"\n'
        f"[limits]\nclose_timeout = {NEVER}\nbye_timeout = {NEVER}\nstop_timeout = {NEVER}\n"
    )
    command = ("twist", "--log-format=text", "msgservice", "--config", "node.toml")
    with running(*command, cwd=tmp_path) as node:
        port = node.wait_for(r"listening on tls:127\.0\.0\.1:(\d+)")[1]
        address = f"tls:localhost:{port}:trustRoots={authority.ca_file}"
        role = "receiver" if first == "node" else first
        with running(sys.executable, CHILD, role, address, cwd=tmp_path) as child:
            child.wait_for("connected")
            order = [node, child] if first == "node" else [child, node]
            for each in order:
                each.send(signal.SIGTERM)
                assert each.ended() in (0, -signal.SIGTERM)
            assert "stopping" in child.said
            assert "Traceback" not in node.said + child.said
