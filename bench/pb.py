"""`python -m bench.pb`: Perspective Broker against TCP and against bare Twisted, as ratios.

*hop*: batches of `send_many` from one producer to a node whose log is on disk, over `pb:` and over
`tcp:` in turns. *calls*: one call of `PbPeer` at a time against the same with `twisted.spread.pb`
alone, in turns. *view*: what a node with 1,000 receivers costs, in parts of a core, while messages
keep coming, with 20 who watch and without. Each figure is the median of ROUNDS; node and callers
are processes of their own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import playing

ROUNDS = 5
RUNS = 60
RUN_MESSAGES = 5000
BODY = bytes(100)
CALLS = 2000
RECEIVERS = 1000
WATCHERS = 20
VIEW_SECONDS = 5.0
VIEW_ROUNDS = 3
LOAD_BATCHES = 400  # a second


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _run(role: str, *arguments: Any) -> subprocess.Popen[str]:
    return playing.run("bench.pb", role, *arguments)


# --- processes


async def node(reactor: Any) -> None:
    from msgservice import Node

    with tempfile.TemporaryDirectory() as folder:
        node = Node(
            reactor,
            Path(folder) / "data",
            listen=["tcp:0", "pb:0"],
        )
        node.startService()
        await node.when_ready()
        ports = [int(one.split(":")[2]) for one in node.listeners]
        playing.say(tcp=ports[0], pb=ports[1])
        while await playing.asked(reactor):
            playing.say(cpu=_cpu(), at=time.monotonic())
        await node.stopService()


async def producer(reactor: Any, address: str) -> None:
    """Say how many messages a second were acknowledged, each time that it is asked."""
    from msgservice import connect

    client = await connect(reactor, address, name=f"bench-{os.getpid()}")
    bodies = [BODY] * RUN_MESSAGES
    playing.say(ready=True)
    while await playing.asked(reactor):
        began = time.monotonic()
        open_ = [client.send_many("bench.a", bodies) for _ in range(RUNS)]
        for one in open_:
            await one
        playing.say(rate=RUNS * RUN_MESSAGES / (time.monotonic() - began))
    await client.close()


async def load(reactor: Any, address: str) -> None:
    """Send to all receivers in turn, so many batches a second whoever watches."""
    from msgservice import connect

    client = await connect(reactor, address, name="load")
    playing.say(ready=True)
    numbers = itertools.count()

    def send() -> None:
        for _ in range(LOAD_BATCHES // 20):
            sent = client.send_many(f"r.{next(numbers) % RECEIVERS}", [BODY] * 5)
            sent.addErrback(lambda failure: failure.printTraceback())

    from twisted.internet.task import LoopingCall

    LoopingCall(send).start(1 / 20)
    await playing.asked(reactor)  # until who has started this one is gone


async def receivers(reactor: Any, port: str) -> None:
    """Take what comes for each of the receivers."""
    from msgservice import Receiver

    for number in range(RECEIVERS):
        receiver = Receiver(reactor, name=f"r{number}", handler=lambda message: None)
        receiver.attach(f"tcp:127.0.0.1:{port}", subjects=[f"r.{number}"])
        await receiver.when_connected()
    playing.say(ready=True)
    await playing.asked(reactor)  # until who has started this one is gone


async def watchers(reactor: Any, port: str) -> None:
    """Watch, each by a connection of its own; rows are counted and not made.

    To make them for all of these takes more of a core than the node, which is what is measured.
    """
    from msgservice import PbPeer
    from msgservice.pb import ReceiversView

    def count(self: Any, broker: Any, message: str, args: Any, kw: Any) -> Any:
        _, rows, _, (_, is_complete) = args
        self.told = getattr(self, "told", 0) + len(rows) - 1
        self.is_complete = is_complete == b"true"
        return broker.serialize(None)

    ReceiversView.remoteMessageReceived = count  # type: ignore[method-assign]
    views: list[Any] = []
    peers = [PbPeer(reactor, name=f"w{number}") for number in range(WATCHERS)]
    for peer in peers:
        peer.dial(f"pb:127.0.0.1:{port}")
    for peer in peers:
        await peer.when_connected()
        views.append(await peer.watch())
    playing.say(ready=True)
    while await playing.asked(reactor):
        told = [getattr(view, "told", 0) for view in views]
        playing.say(told=min(told), complete=sum(bool(view.is_complete) for view in views))


async def called(reactor: Any, kind: str) -> None:
    from twisted.spread import pb

    if kind == "peer":
        from msgservice import PbPeer

        peer = PbPeer(reactor, name="called")
        peer.expose("echo", lambda value: value)
        port = (await peer.listen("pb:0")).getHost().port
    else:

        class Root(pb.Root):
            def remote_echo(self, value: Any) -> Any:
                return value

        port = (
            reactor.listenTCP(0, pb.PBServerFactory(Root()), interface="127.0.0.1").getHost().port
        )
    playing.say(port=port)
    await playing.asked(reactor)  # until who has started this one is gone


async def caller(reactor: Any, kind: str, port: str) -> None:
    from twisted.spread import pb

    call: Any
    if kind == "peer":
        from msgservice import PbPeer

        peer = PbPeer(reactor, name="caller")
        peer.dial(f"pb:127.0.0.1:{port}")
        await peer.when_connected()
        call = lambda value: peer.call("echo", value)  # noqa: E731
    else:
        factory = pb.PBClientFactory()
        reactor.connectTCP("127.0.0.1", int(port), factory)
        root = await factory.getRootObject()
        call = lambda value: root.callRemote("echo", value)  # noqa: E731
    playing.say(ready=True)
    while await playing.asked(reactor):
        began = time.monotonic()
        for number in range(CALLS):
            await call(number)
        playing.say(rate=CALLS / (time.monotonic() - began))


PLAYED = (node, producer, load, receivers, watchers, called, caller)
ROLES = {one.__name__: one for one in PLAYED}


# --- measurements


def hop() -> dict[str, float]:
    house = _run("node")
    ports = playing.line(house)
    ours = {kind: _run("producer", f"{kind}:127.0.0.1:{ports[kind]}") for kind in ("tcp", "pb")}
    return _in_turns("hop", ours, [house], "pb", "tcp", "messages")


def calls() -> dict[str, float]:
    servers = {kind: _run("called", kind) for kind in ("bare", "peer")}
    ours = {kind: _run("caller", kind, playing.line(one)["port"]) for kind, one in servers.items()}
    return _in_turns("calls", ours, list(servers.values()), "peer", "bare", "calls")


def _in_turns(
    name: str,
    ours: dict[str, subprocess.Popen[str]],
    others: list[subprocess.Popen[str]],
    measured: str,
    against: str,
    unit: str,
) -> dict[str, float]:
    try:
        for one in ours.values():
            playing.line(one)
        rates: dict[str, list[float]] = {kind: [] for kind in ours}
        for one in ours.values():
            playing.ask(one, "warm")
        for _ in range(ROUNDS):
            for kind, one in ours.items():
                rates[kind].append(playing.ask(one, "go")["rate"])
        ratios = [a / b for a, b in zip(rates[measured], rates[against], strict=True)]
        return {
            f"{name}_{against}_{unit}_s": round(statistics.median(rates[against])),
            f"{name}_{measured}_{unit}_s": round(statistics.median(rates[measured])),
            f"{name}_ratio": round(statistics.median(ratios), 3),
        }
    finally:
        for one in [*ours.values(), *others]:
            one.kill()
            one.wait()


def view() -> dict[str, float]:
    house = _run("node")
    ports = playing.line(house)
    others = [
        _run("receivers", ports["tcp"]),
        _run("load", f"tcp:127.0.0.1:{ports['tcp']}"),
    ]
    alone, watched = [], []
    told: dict[str, Any] = {}
    try:
        for one in others:
            playing.line(one)
        for _ in range(VIEW_ROUNDS):
            alone.append(_part(house))
            watching = _run("watchers", ports["pb"])
            others.append(watching)
            playing.line(watching)
            time.sleep(2)  # the first pages
            watched.append(_part(house))
            told = playing.ask(watching, "state")
            watching.kill()
            watching.wait()
        costs = [b - a for a, b in zip(alone, watched, strict=True)]
        return {
            "view_rows_told": told["told"],  # to the one that was told least
            "view_complete": told["complete"],
            "view_watchers": WATCHERS,
            "view_core_without": round(statistics.median(alone), 3),
            "view_core_with": round(statistics.median(watched), 3),
            "view_core_cost": round(statistics.median(costs), 3),
        }
    finally:
        for one in [*others, house]:
            one.kill()
            one.wait()


def _part(house: subprocess.Popen[str]) -> float:
    before = playing.ask(house, "cpu")
    time.sleep(VIEW_SECONDS)
    after = playing.ask(house, "cpu")
    return float((after["cpu"] - before["cpu"]) / (after["at"] - before["at"]))


def measure() -> dict[str, Any]:
    return hop() | calls() | view()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["hop", "calls", "view"])
    arguments = parser.parse_args()
    if arguments.role:
        playing.react(ROLES[arguments.role[0]], *arguments.role[1:])
        return
    found = {"hop": hop, "calls": calls, "view": view, None: measure}[arguments.only]()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
