"""kill -9 of the real daemon under load, again and again: guarantee 1 and its receipts.

The node runs as `twist msgservice` in a process of its own; producer and receiver live here and
reconnect by themselves. After twenty kills every send that was acknowledged was handled exactly
once and in order, and every receipt has told so.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from msgservice import Limits, Receiver, Status, connect
from tests.kit.nest import Forked
from tests.kit.ports import free_port

KILLS = 20
LIMITS = Limits(link_delay_min=0.05, link_delay_max=0.2)
ROOT = Path(__file__).resolve().parents[2]


class Daemon:
    """`twist msgservice` on one data folder and one port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"tcp:127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "node.out").open("ab") as output:
            self.process = Forked(
                [
                    *(sys.executable, "-m", "twisted", "msgservice"),
                    *("--data", str(self.folder / "node")),
                    *("--listen", f"tcp:{self.port}:interface=127.0.0.1"),
                ],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class Load:
    """Sends without end, keeps every receipt, and looks at what the receiver was given."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.sent = 0
        self.accepted: list[tuple[int, Any]] = []
        self.failed: list[Any] = []
        self.handled: list[int] = []
        self.open: list[Deferred[Any]] = []
        self.going = True

    def handle(self, message: Any) -> None:
        self.handled.append(int(message.body))

    def send(self, count: int) -> None:
        for _ in range(count):
            self.sent += 1
            number = self.sent
            sending = self.client.send("load.new", str(number).encode())
            sending.addCallbacks(
                lambda receipt, number=number: self.accepted.append((number, receipt)),
                self.failed.append,
            )
            self.open.append(sending)

    async def run(self, reactor: Any) -> None:
        while self.going:
            if self.sent - len(self.accepted) < 2000:
                self.send(50)
            await deferLater(reactor, 0.002, lambda: None)


@pytest_twisted.ensureDeferred
async def test_twenty_kills_lose_no_acknowledged_message_and_no_receipt(tmp_path: Path) -> None:
    from twisted.internet import reactor

    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    daemon = Daemon(tmp_path)
    daemon.start()
    client = await connect(reactor, daemon.address, name="producer", limits=LIMITS)
    load = Load(client)
    receiver = Receiver(reactor, name="taker", handler=load.handle, limits=LIMITS)
    receiver.attach(daemon.address, subjects=["load.>"])
    while not receiver.connected:
        await deferLater(reactor, 0.01, lambda: None)
    running = Deferred.fromCoroutine(load.run(reactor))
    try:
        for _ in range(KILLS):
            before = len(load.accepted)
            while len(load.accepted) < before + 200:
                await deferLater(reactor, 0.005, lambda: None)
            await deferLater(reactor, chance.uniform(0.0, 0.15), lambda: None)
            daemon.kill()
            daemon.start()
        load.going = False
        await running
        await gatherResults(load.open)
        receipts = [receipt for _, receipt in load.accepted]
        for receipt in receipts:
            await receipt.acknowledged("taker")
    except BaseException:
        print(f"seed {seed}", (tmp_path / "node.out").read_text()[-3000:])
        raise
    finally:
        load.going = False
        await client.close()
        await receiver.stop()
        daemon.kill()
    assert [] == load.failed
    assert load.sent == len(load.accepted)
    # Acknowledged means handled; in order and once, since the receiver lived all the time.
    assert list(range(1, load.sent + 1)) == load.handled
    assert all({"taker": Status.ACKNOWLEDGED} == receipt.statuses for receipt in receipts)
