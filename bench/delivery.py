"""What may be said of a message before it is delivered, and what that costs.

    python -m bench.delivery send [COUNT]
    python -m bench.delivery expire [COUNT] [--receivers N] [--run N]

`send`: the rate of `send` with a ttl against that without, over TCP to a node in this process, in
pairs that take turns. `expire`: so many messages for receivers that are all away expire at once;
`gap_ms` is the longest time in which the node's reactor did nothing else, from then until all of
them are settled on disk, and every cursor has passed them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater, react

from msgservice import Limits, Node, Receiver, connect
from msgservice.core.runs import EXPIRED_REASON
from msgservice.message import Status
from tests.kit.ports import free_port

PAIRS = 7
BODY = b"x" * 200
TICK = 0.002  # seconds between two looks at the clock


class Gaps:
    """The longest time between two turns of a reactor, beyond what was asked for."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.longest = 0.0
        self._last = time.monotonic()
        self._call = reactor.callLater(TICK, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last - TICK)
        self._last = now
        self._call = self._reactor.callLater(TICK, self._tick)

    def stop(self) -> float:
        self._call.cancel()
        return round(self.longest * 1000, 1)


async def _send(reactor: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    node = Node(reactor, folder, listen=[f"tcp:{port}:interface=127.0.0.1"])
    node.startService()
    await node.when_ready()
    client = await connect(reactor, f"tcp:127.0.0.1:{port}", name="shop")
    receiver = Receiver(reactor, name="billing", handler=lambda message: None)
    receiver.attach(f"tcp:127.0.0.1:{port}", subjects=["orders.>"])
    while node.parts.directory.get("billing") is None:
        await deferLater(reactor, 0.01)

    async def rate(**more: Any) -> float:
        begin = time.monotonic()
        last: Deferred[Any] | None = None
        for number in range(options.count):
            last = client.send("orders.new", BODY, **more)
            if number % 5000 == 4999:
                await last
        assert last is not None
        await (await last).settled()
        return options.count / (time.monotonic() - begin)

    await rate()
    rates: dict[str, list[float]] = {"plain": [], "ttl": []}
    for _ in range(PAIRS):
        rates["plain"].append(await rate())
        rates["ttl"].append(await rate(ttl=3600))
    ratios = [ttl / plain for plain, ttl in zip(rates["plain"], rates["ttl"], strict=True)]
    await receiver.stopService()
    await client.close()
    await node.stopService()
    return {
        "plain_s": round(statistics.median(rates["plain"])),
        "ttl_s": round(statistics.median(rates["ttl"])),
        "ratio": round(statistics.median(ratios), 3),
    }


async def _expire(reactor: Any, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    node = Node(reactor, folder, limits=Limits(link_delay_min=0.1, link_delay_max=0.1))
    node.startService()
    await node.when_ready()
    names = [f"r{number}" for number in range(options.receivers)]
    for name in names:
        await node.add_receiver(name, ["orders.>"])
    client = node.client("shop")
    await client.when_connected()
    begin = time.monotonic()
    ttl = 5 + options.count / 20_000
    for _ in range(options.count // options.run):
        left = max(0.0, begin + ttl - time.monotonic())
        await client.send_many("orders.new", [BODY] * options.run, ttl=left)
    stored = time.monotonic() - begin
    await client.close()
    idle = Gaps(reactor)
    await deferLater(reactor, max(1.0, begin + ttl - 0.2 - time.monotonic()))
    idle_gap = idle.stop()
    gaps = Gaps(reactor)
    due = time.monotonic()
    while True:
        rows = [node.parts.directory.named(name) for name in names]
        if all(row.cursor >> 16 >= options.count // options.run for row in rows):
            break
        await deferLater(reactor, 0.02)
    seconds = time.monotonic() - due
    gap = gaps.stop()
    accounts = await node.log.accounts()
    assert all(one.settled == {int(Status.EXPIRED): options.count} for one in accounts), (
        EXPIRED_REASON,
        accounts[0],
    )
    assert await node.log.audit() == []
    await node.stopService()
    return {
        "messages": options.count,
        "receivers": options.receivers,
        "stored_s": round(options.count / stored),
        "expired_seconds": round(seconds, 2),
        "gap_ms": gap,
        "idle_gap_ms": idle_gap,  # of this machine, beside whatever else it does
    }


PLAYS: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]] = {
    "send": _send,
    "expire": _expire,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.delivery")
    parser.add_argument("what", choices=PLAYS)
    parser.add_argument("count", type=int, nargs="?", default=0)
    parser.add_argument("--receivers", type=int, default=100)
    parser.add_argument("--run", type=int, default=200)
    options = parser.parse_args(arguments)
    options.count = options.count or {"send": 50_000, "expire": 1_000_000}[options.what]

    async def play(reactor: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            found = await PLAYS[options.what](reactor, Path(folder), options)
        print(json.dumps(found))

    react(lambda reactor: ensureDeferred(play(reactor)))


if __name__ == "__main__":
    main(sys.argv[1:])
