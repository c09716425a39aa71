"""The rate of a configured receiver, over a real socket (A11)."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred

from msgservice import Receiver, connect
from msgservice.config.config import load_config
from msgservice.node.service import build_service

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)

FILE = """\
[listen]
{key} = "{address}"
[[receiver]]
name = "billing"
subjects = ["orders.>"]
rate = {rate}
[rate]
{total}
"""


@pytest.mark.parametrize("key", ["tcp", "unix"])
@pytest.mark.parametrize(
    ("rate", "total"),
    [
        ("{ messages = 40, burst_seconds = 0.5 }", "messages = 1000"),
        ("{ messages = 1000 }", "messages = 40\nburst_seconds = 0.5"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_A11_the_rate_of_the_file_holds(
    tmp_path: Path, key: str, rate: str, total: str
) -> None:
    file = tmp_path / "node.toml"
    address = f"unix:{tmp_path}/s" if key == "unix" else "tcp:0:interface=127.0.0.1"
    file.write_text(FILE.format(key=key, address=address, rate=rate, total=total))
    node = build_service(load_config(file), reactor=reactor)
    node.startService()
    await node.when_ready()
    if key == "tcp":
        host: Any = node.ports[0].getHost()
        address = f"tcp:127.0.0.1:{host.port}"
    came: list[tuple[float, bytes]] = []
    done: Deferred[None] = Deferred()

    def handle(message: Any) -> None:
        came.append((monotonic(), message.body))
        if len(came) == 60:
            done.callback(None)

    receiver = Receiver(reactor, name="billing", handler=handle)
    receiver.attach(address)
    client = await connect(reactor, address, name="shop")
    began = monotonic()
    await client.send_many("orders.new", [b"%d" % n for n in range(60)])
    await done
    # 20 at once, 40 more at 40 a second.
    assert came[-1][0] - began >= 1.0
    assert [b"%d" % n for n in range(60)] == [body for _, body in came]
    await client.close()
    await receiver.stop()
    await node.stopService()
