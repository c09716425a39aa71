"""The rate of a configured receiver, over acknowledged UDP: attached to the node, or dialled by it.

What is asserted is only what no machine can be too slow for: that it was never faster than the
rate allows. A message arrives after it was let through, so of the first `n` seconds no more can
have arrived than a bucketful and `n` seconds' worth. Both ends read the same clock, the node's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from msgservice import Receiver, connect
from msgservice.config.config import load_config
from msgservice.node.node import Node
from msgservice.node.service import build_service

reactor: Any = installed_reactor
pytestmark = pytest.mark.timeout(60)

FILE = """\
[listen]
udp = "udp:0"
[[receiver]]
name = "billing"
subjects = ["orders.>"]
{address}
rate = {rate}
[rate]
{total}
"""
BODY = 200  # bytes


class Setup:
    """A node from a file, and a receiver that notes when what came."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._closing: list[Callable[[], Any]] = []
        self.came: list[tuple[float, bytes]] = []
        self._waiting: tuple[int, Deferred[None]] | None = None
        self.node: Node
        self.address = ""

    async def start(self, *, dialled: bool, rate: str, total: str) -> None:
        """Start node and receiver."""
        receiver = Receiver(reactor, name="billing", handler=self._handle)
        self._closing.append(receiver.stop)
        address = ""
        if dialled:
            port = await receiver.listen("udp:0")
            address = f'address = "udp:127.0.0.1:{port.getHost().port}"'
        file = self._folder / "node.toml"
        file.write_text(FILE.format(address=address, rate=rate, total=total))
        self.node = build_service(load_config(file), reactor=reactor)
        self.node.startService()
        self._closing.append(self.node.stopService)
        await self.node.when_ready()
        host: Any = self.node.ports[0].getHost()
        self.address = f"udp:127.0.0.1:{host.port}"
        if not dialled:
            receiver.attach(self.address)

    def _handle(self, message: Any) -> None:
        self.came.append((monotonic(), message.body))
        if self._waiting is not None and len(self.came) == self._waiting[0]:
            self._waiting[1].callback(None)

    def until(self, count: int) -> Deferred[None]:
        """Fire when so many have come."""
        done: Deferred[None] = Deferred()
        self._waiting = (count, done)
        if len(self.came) >= count:
            done.callback(None)
        return done

    async def send(self, bodies: list[bytes]) -> float:
        """Hand messages in; return when it began."""
        client = await connect(reactor, self.address, name="shop")
        self._closing.append(client.close)
        began = monotonic()
        await client.send_many("orders.new", bodies)
        return began

    async def stop(self) -> None:
        """Close all, the last first."""
        for close in reversed(self._closing):
            done = close()
            if done is not None:
                await done


@pytest_twisted.async_yield_fixture
async def made(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    await setup.stop()


@pytest.mark.parametrize("dialled", [False, True], ids=["attached", "dialled"])
@pytest.mark.parametrize(
    ("rate", "total", "messages", "burst"),
    [
        ("{ messages = 40, burst_seconds = 0.5 }", "messages = 1000", 40.0, 20.0),
        ("{ messages = 1000 }", "messages = 40\nburst_seconds = 0.5", 40.0, 20.0),
        # Bytes count with what is around a body, so that fewer pass than these.
        ("{ bytes = 8000, burst_seconds = 0.5 }", "messages = 1000", 40.0, 20.0),
        ("{ messages = 1000 }", "bytes = 8000\nburst_seconds = 0.5", 40.0, 20.0),
    ],
    ids=["messages", "messages of all", "bytes", "bytes of all"],
)
@pytest_twisted.ensureDeferred
async def test_A11_no_more_than_the_rate_arrives_in_any_time_since_the_first(
    made: Setup, dialled: bool, rate: str, total: str, messages: float, burst: float
) -> None:
    await made.start(dialled=dialled, rate=rate, total=total)
    bodies = [b"%d" % n + bytes(BODY) for n in range(100)]
    began = await made.send(bodies)
    await made.until(len(bodies))

    assert bodies == [body for _, body in made.came]
    for count, (at, _) in enumerate(made.came, 1):
        assert count <= burst + messages * (at - began), count


@pytest.mark.parametrize("dialled", [False, True], ids=["attached", "dialled"])
@pytest_twisted.ensureDeferred
async def test_A11_a_bucketful_passes_at_once_and_no_more(made: Setup, dialled: bool) -> None:
    # At this rate the second message would take until the test is given up, were there no burst.
    rate = "{ messages = 0.002, burst_seconds = 10_000 }"
    await made.start(dialled=dialled, rate=rate, total="messages = 1000")
    await made.send([b"%d" % n for n in range(30)])
    await made.until(20)
    await deferLater(reactor, 0.5)

    assert [b"%d" % n for n in range(20)] == [body for _, body in made.came]
