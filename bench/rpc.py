"""Requests through a node, against `twisted.protocols.amp` straight between two processes and NATS.

    python -m bench.rpc
    python -m bench.rpc --seconds 5 --rounds 5

64 calls are pending all the time, each of 256 bytes that come back. *node*: asker, node and who
answers, a process each, over TCP. *amp*: asker and who answers, with nobody between them. *nats*:
nats-py through nats-server, which stores nothing either. Each is measured in every round, one after
the other; ratios are of one round, and their medians are told. `cpu_us`: processor time of a call,
in all processes that it passes; it says more than calls a second where others are at work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.processes import Stage, cpu_s, finish, stage

SUBJECT = "prices.get"
BODY = b"x" * 256
PENDING = 64


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


class Counter:
    """The calls that were answered between `start` and `end`, monotonic seconds."""

    def __init__(self, seconds: float) -> None:
        self.start = time.monotonic() + seconds / 5  # warm by then
        self.end = self.start + seconds
        self.count = 0
        self.all = 0  # whenever they were made

    def goes_on(self) -> bool:
        """Count an answer, if it counts; return whether another call is made."""
        now = time.monotonic()
        self.all += 1
        if self.start <= now < self.end:
            self.count += 1
        return now < self.end

    def rate(self) -> float:
        return round(self.count / (self.end - self.start), 1)


# --- ours


def node_server(args: argparse.Namespace) -> None:
    from twisted.internet import reactor
    from twisted.internet.task import react

    from msgservice import connect

    async def main(_: Any) -> None:
        client = await connect(reactor, args.address, name="prices")
        responder = client.respond(SUBJECT, lambda asked: asked.body)
        await responder.when_ready()
        say(ready=True)
        await forever()

    react(lambda reactor: _deferred(main(reactor)))


def node_asker(args: argparse.Namespace) -> None:
    from twisted.internet import reactor
    from twisted.internet.task import react

    from msgservice import connect

    async def main(_: Any) -> None:
        client = await connect(reactor, args.address, name="shop")
        await pend(lambda: client.request(SUBJECT, BODY), args.seconds)
        await client.close()

    react(lambda reactor: _deferred(main(reactor)))


def _deferred(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)


def forever() -> Any:
    from twisted.internet.defer import Deferred

    return Deferred()


async def pend(call: Callable[[], Any], seconds: float) -> None:
    """Keep `PENDING` calls waiting, by callbacks alone: what is measured is no coroutine."""
    from twisted.internet.defer import Deferred

    counter = Counter(seconds)
    open_calls = PENDING
    done: Deferred[None] = Deferred()

    def answered(_: Any) -> None:
        nonlocal open_calls
        if counter.goes_on():
            call().addCallbacks(answered, done.errback)
            return
        open_calls -= 1
        if not open_calls:
            done.callback(None)

    for _ in range(PENDING):
        call().addCallbacks(answered, done.errback)
    await done
    say(rate=counter.rate(), calls=counter.all)


# --- twisted.protocols.amp


def _amp() -> Any:
    from twisted.protocols import amp

    class Echo(amp.Command):
        arguments = ((b"body", amp.String()),)
        response = ((b"body", amp.String()),)

    class Protocol(amp.AMP):
        @Echo.responder
        def echo(self, body: bytes) -> dict[str, bytes]:
            return {"body": body}

    return Echo, Protocol


def amp_server(args: argparse.Namespace) -> None:
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory

    _, protocol = _amp()
    loop: Any = reactor
    port = loop.listenTCP(0, Factory.forProtocol(protocol), interface="127.0.0.1")
    say(port=port.getHost().port)
    loop.run()


def amp_asker(args: argparse.Namespace) -> None:
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
    from twisted.internet.task import react

    command, protocol = _amp()

    async def main(_: Any) -> None:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", args.port)
        peer: Any = await connectProtocol(endpoint, protocol())
        peer.transport.setTcpNoDelay(True)
        await pend(lambda: peer.callRemote(command, body=BODY), args.seconds)

    react(lambda reactor: _deferred(main(reactor)))


# --- NATS


def nats_server(args: argparse.Namespace) -> None:
    import nats

    async def main() -> None:
        connection = await nats.connect(f"nats://127.0.0.1:{args.port}")

        async def answer(message: Any) -> None:
            await message.respond(message.data)

        await connection.subscribe(SUBJECT, cb=answer)
        await connection.flush()
        say(ready=True)
        await asyncio.Event().wait()

    asyncio.run(main())


def nats_asker(args: argparse.Namespace) -> None:
    import nats

    async def main() -> None:
        connection = await nats.connect(f"nats://127.0.0.1:{args.port}")
        counter = Counter(args.seconds)

        async def one() -> None:
            await connection.request(SUBJECT, BODY, timeout=30)
            while counter.goes_on():
                await connection.request(SUBJECT, BODY, timeout=30)

        await asyncio.gather(*(one() for _ in range(PENDING)))
        say(rate=counter.rate(), calls=counter.all)
        await connection.close()

    asyncio.run(main())


def nats_broker(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start nats-server, and return it with its port when it takes connections."""
    beside = Path(sysconfig.get_path("scripts"), "nats-server")
    program = str(beside) if beside.exists() else shutil.which("nats-server")
    if program is None:
        raise SystemExit("nats-server is not installed: see docs/dependencies.md")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = folder / "nats.log"
    broker = subprocess.Popen([program, "-a", "127.0.0.1", "-p", str(port), "-l", str(log)])
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return broker, port
    broker.kill()
    raise SystemExit("nats-server does not listen")


# --- the measurement


def calls(
    made: Stage, part: str, seconds: float, pids: Sequence[int], **where: Any
) -> tuple[float, float]:
    """Return the calls a second of one asker, and the processor time of one, s.

    That of the asker is counted from when it was started on, of the others (`pids`) meanwhile.
    """
    before = sum(map(cpu_s, pids))
    asker = made.start(part, module="bench.rpc", seconds=seconds, **where)
    said = asker.line()
    worked = asker.cpu_s() + sum(map(cpu_s, pids)) - before
    asker.stop()
    return float(said["rate"]), worked / said["calls"]


def measure(seconds: float = 4.0, rounds: int = 5) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = {"node": [], "amp": [], "nats": []}
    with stage() as made:
        broker, nats_port = nats_broker(made.folder)
        try:
            node, address = made.node()
            ours = made.start("node_server", module="bench.rpc", address=address)
            ours.line()
            amp = made.start("amp_server", module="bench.rpc")
            amp_port = amp.line()["port"]
            theirs = made.start("nats_server", module="bench.rpc", port=nats_port)
            theirs.line()
            plays: list[tuple[str, list[int], dict[str, Any]]] = [
                ("node", [node.process.pid, ours.process.pid], {"address": address}),
                ("amp", [amp.process.pid], {"port": amp_port}),
                ("nats", [broker.pid, theirs.process.pid], {"port": nats_port}),
            ]
            for _ in range(rounds):
                for name, pids, where in plays:
                    found[name].append(calls(made, f"{name}_asker", seconds, pids, **where))
        finally:
            broker.terminate()
            broker.wait(30)
    figures: dict[str, Any] = {}
    for name, each in found.items():
        figures[f"{name}_calls_s"] = round(median([rate for rate, _ in each]))
        figures[f"{name}_cpu_us"] = round(median([worked for _, worked in each]) * 1e6, 1)
    for other in ("amp", "nats"):
        both = list(zip(found["node"], found[other], strict=True))
        figures[f"{other}_ratio"] = round(median([one[0] / two[0] for one, two in both]), 2)
        figures[f"{other}_cpu_ratio"] = round(median([two[1] / one[1] for one, two in both]), 2)
    return figures


PARTS = (node_server, node_asker, amp_server, amp_asker, nats_server, nats_asker)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?")
    parser.add_argument("--address")
    parser.add_argument("--port", type=int)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for part in PARTS:
        if part.__name__ == args.part:
            part(args)
            return
    finish(measure(args.seconds, args.rounds))


if __name__ == "__main__":
    sys.exit(main())
