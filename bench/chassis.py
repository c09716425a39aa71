"""The chassis against a plain Twisted echo, and against Kamaelia's own echo server.

    python -m bench.chassis [--idle 5000] [--echoing 50] [--seconds 3] [--rounds 3]

Every server is a process of its own; this process is the client. Throughput: `--echoing`
connections, each with one write of 64 KiB under way; ratios are of alternating rounds of this run,
by wall clock (both share the machine with the client) and by the server's own processor time. Idle:
`--idle` connections on which nothing happens, their servers' memory and processor time; the handler
is the documentation's echo, which yields for ever. Kamaelia selects, so it gets the echoing only.

It waits more than it works: 60 s of waits at its usual size, and 101 s in all on two processors
that had more to do; 43 s with `--idle 200 --seconds 1 --rounds 1`, which compares two versions.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.processes import cpu_s

WRITE = b"x" * 65536
# A read of 64 KiB is a fresh block each time. Where it lies at the end of the heap, glibc gives it
# back to the kernel and faults it in again for every read, five times as slow; whether it lies
# there is a matter of luck, for any of the servers. So none of them gives memory back.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_TOP_PAD_": str(1 << 24)}
PAGE = os.sysconf("SC_PAGE_SIZE")
ROOT = Path(__file__).resolve().parents[1]
# Pauses of idle generators grow to their longest within 2.1 s.
SETTLE_S = 4.0
IDLE_S = 10.0


# --- The servers ----------------------------------------------------------------------------------


def serve_twisted() -> None:
    from twisted.internet import reactor as installed
    from twisted.internet.protocol import Factory, Protocol

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            assert self.transport is not None
            self.transport.write(data)

    reactor: Any = installed
    port = reactor.listenTCP(0, Factory.forProtocol(Echo), 128, "127.0.0.1")
    print(port.getHost().port, flush=True)
    reactor.run()


def serve_ours(protocol: Any) -> None:
    from msgservice.faces.chassis.server import SimpleServer

    def say(address: Any) -> None:
        print(address.port, flush=True)

    server = SimpleServer(protocol=protocol, port=0, interface="127.0.0.1")
    server.when_listening().addCallback(say)
    server.run()


def serve_generator() -> None:
    from examples.chassis_echo import Echo

    serve_ours(Echo)


def serve_coroutine() -> None:
    from msgservice.faces import axon as Axon

    class Echo(Axon.Component.component):
        async def main(self) -> None:
            async for data in self.Inbox("inbox"):
                await self.send(data, "outbox")

    serve_ours(Echo)


def serve_kamaelia() -> None:
    from Kamaelia.Chassis.ConnectedServer import SimpleServer

    from tests.interop.kamaelia_programs import Echo

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print(port, flush=True)
    SimpleServer(protocol=Echo, port=port).run()


SERVERS: dict[str, Callable[[], None]] = {
    "twisted": serve_twisted,
    "generator": serve_generator,
    "coroutine": serve_coroutine,
    "kamaelia": serve_kamaelia,
}


class Server:
    """A server's process, and what the kernel says about it."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "bench.chassis", "--serve", kind]
        environment = {**os.environ, **ALLOCATOR}
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def cpu_s(self) -> float:
        return cpu_s(self.process.pid)

    def rss(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE


@contextmanager
def running(kind: str) -> Iterator[Server]:
    server = Server(kind)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


# --- The client -----------------------------------------------------------------------------------


def connect(port: int) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        if client.getsockname() != client.getpeername():
            return client
        client.close()


def echo(port: int, connections: int, seconds: float) -> float:
    """Return the bytes echoed a second, over `connections` with one write each under way."""
    with ExitStack() as opened, selectors.DefaultSelector() as selector:
        left: dict[int, list[int]] = {}  # by descriptor: bytes to send, bytes to get
        buffer = bytearray(1 << 20)
        for _ in range(connections):
            client = opened.enter_context(connect(port))
            client.setblocking(False)
            left[client.fileno()] = [len(WRITE), len(WRITE)]
            selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE)
        view = memoryview(WRITE)
        echoed = 0
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            for key, events in selector.select(0.1):
                client = key.fileobj  # type: ignore[assignment]
                state = left[key.fd]
                if events & selectors.EVENT_READ:
                    got = client.recv_into(buffer)
                    assert got, "the server has closed the connection"
                    echoed += got
                    state[1] -= got
                    if state[1] == 0:
                        state[:] = [len(WRITE), len(WRITE)]
                if state[0]:
                    with suppress(BlockingIOError):
                        state[0] -= client.send(view[len(WRITE) - state[0] :])
                    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if state[0] else 0)
                    if wanted != key.events:
                        selector.modify(client, wanted)
        return echoed / (now - begin)


def throughput(kinds: list[str], connections: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Return MiB/s, and GiB for a second of the server's processor, of each kind."""
    wall: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as opened:
        servers = {
            kind: opened.enter_context(running(kind)) for kind in kinds if kind != "kamaelia"
        }
        for server in servers.values():
            echo(server.port, connections, 0.5)  # warm
        for _ in range(rounds):
            for kind, server in servers.items():
                before = server.cpu_s()
                speed = echo(server.port, connections, seconds)
                wall[kind].append(speed)
                cpu[kind].append(speed * seconds / (server.cpu_s() - before))
    if "kamaelia" in kinds:
        # Apart: it uses a whole processor even when nothing happens.
        for _ in range(rounds):
            with running("kamaelia") as server:
                before = server.cpu_s()
                speed = echo(server.port, connections, seconds)
                wall["kamaelia"].append(speed)
                cpu["kamaelia"].append(speed * seconds / (server.cpu_s() - before))
    return {
        kind: {
            "mib_s": round(statistics.median(wall[kind]) / 2**20, 1),
            "gib_per_cpu_s": round(statistics.median(cpu[kind]) / 2**30, 3),
        }
        for kind in kinds
    }


def idle(kinds: list[str], connections: int, echoing: int, seconds: float) -> dict[str, Any]:
    """Return what `connections` cost each kind while nothing happens, and the echo beside them.

    All kinds at the same time, since nothing happens: settled once, and watched once.
    """
    with ExitStack() as opened:
        servers = {kind: opened.enter_context(running(kind)) for kind in kinds}
        # The first fifth fills what the imports have left free; the rest is measured.
        first = connections // 5
        for server in servers.values():
            for _ in range(first):
                opened.enter_context(connect(server.port))
        time.sleep(0.5)
        before = {kind: server.rss() for kind, server in servers.items()}
        for server in servers.values():
            for _ in range(connections - first):
                opened.enter_context(connect(server.port))
        time.sleep(SETTLE_S)
        rss = {kind: server.rss() - before[kind] for kind, server in servers.items()}
        cpu = {kind: server.cpu_s() for kind, server in servers.items()}
        time.sleep(IDLE_S)
        cpu = {kind: server.cpu_s() - cpu[kind] for kind, server in servers.items()}
        return {
            kind: {
                "rss_kib_per_connection": round(rss[kind] / (connections - first) / 1024, 2),
                "idle_cpu_percent": round(cpu[kind] / IDLE_S * 100, 2),
                "echo_beside_mib_s": round(echo(server.port, echoing, seconds) / 2**20, 1),
            }
            for kind, server in servers.items()
        }


def measure(connections: int, echoing: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Return all figures."""
    echoes = throughput(["twisted", "generator", "coroutine", "kamaelia"], echoing, seconds, rounds)
    plain = echoes["twisted"]
    return {
        "echo": echoes,
        "ratio_to_twisted": {
            kind: {name: round(echoes[kind][name] / plain[name], 3) for name in plain}
            for kind in ("generator", "coroutine")
        },
        "ratio_to_kamaelia": round(echoes["generator"]["mib_s"] / echoes["kamaelia"]["mib_s"], 1),
        "idle": idle(["twisted", "generator", "coroutine"], connections, echoing, seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.chassis")
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--echoing", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.serve:
        SERVERS[options.serve]()
        return
    figures = measure(options.idle, options.echoing, options.seconds, options.rounds)
    for kind, echoed in figures["echo"].items():
        print(f"echo {kind:10} {echoed['mib_s']:9} MiB/s {echoed['gib_per_cpu_s']:8} GiB per CPU s")
    for kind, cost in figures["idle"].items():
        print(f"idle {kind:10} {cost}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
