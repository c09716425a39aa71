"""The callback protocol against what else could carry it: `python -m bench.callbacks`.

Pairs: requests and their answers, 64 pending, between two processes on loopback, ours against
`twisted.protocols.amp`, in turns in the same run. File: one file pushed from process to process
(checksum, confirmation, sync to disk and all), against a bare `sendall`/`recv_into` copy to disk
with a sync, in turns; and how much the memory of both processes grew. The last line is JSON.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.protocols import amp

from msgservice.faces.callbacks.connection import Connection
from msgservice.faces.callbacks.files import FileRoot
from msgservice.faces.callbacks.registry import CallbackRegistry
from msgservice.faces.callbacks.service import CallbackClient, CallbackServer

PENDING = 64
COPY_BYTES = 256 * 1024


class Sum(amp.Command):
    arguments = [(b"a", amp.Integer()), (b"b", amp.Integer())]
    response = [(b"total", amp.Integer())]


class Adder(amp.AMP):
    @Sum.responder
    def add(self, a: int, b: int) -> dict[str, int]:
        return {"total": a + b}


def memory() -> dict[str, int]:
    """Bytes now and at the most, of this process."""
    text = Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if "kB" in line}
    return {"now": int(found["VmRSS"]) * 1024, "most": int(found["VmHWM"]) * 1024}


def forget_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


# --- the other process ----------------------------------------------------------------------------


def serve(folder: str, *, sync: bool) -> None:
    from twisted.internet import reactor

    registry = CallbackRegistry()

    @registry.request_callback("add")
    def add(connection: Connection, a: int, b: int) -> int:
        return a + b

    @registry.request_callback("memory")
    def report(connection: Connection, start: bool) -> dict[str, int]:
        if start:
            forget_most()
        return memory()

    server = CallbackServer(
        reactor, "tcp:0:interface=127.0.0.1", registry=registry, files=FileRoot(folder, sync=sync)
    )
    amp_factory = Factory.forProtocol(Adder)
    amp_factory.noisy = False
    amp_port = reactor.listenTCP(0, amp_factory, interface="127.0.0.1")

    def tell(address: Any) -> None:
        print(json.dumps({"ours": address.port, "amp": amp_port.getHost().port}), flush=True)

    server.listen().addCallback(tell)
    reactor.run()


def copy_to_disk(path: str, *, sync: bool) -> None:
    """The bare receiver: one connection into one file."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
    buffer = memoryview(bytearray(COPY_BYTES))
    with connection, Path(path).open("wb", buffering=0) as file:
        while count := connection.recv_into(buffer):
            file.write(buffer[:count])
        if sync:
            os.fsync(file.fileno())
        connection.sendall(b"done")


# --- this process ---------------------------------------------------------------------------------


async def pairs(ask: Callable[[int], "Deferred[Any]"], count: int) -> float:
    """Pairs a second with `PENDING` at any time."""
    finished: Deferred[None] = Deferred()
    asked = answered = 0

    def next_one(_: object = None) -> None:
        nonlocal asked
        if asked < count:
            asked += 1
            d = ask(asked)
            d.addCallback(check, asked)
            d.addErrback(lambda f: finished.called or finished.errback(f))

    def check(total: int, n: int) -> None:
        nonlocal answered
        assert total == n + 1, (total, n)
        answered += 1
        if answered == count:
            finished.callback(None)
        else:
            next_one()

    start = time.perf_counter()
    for _ in range(PENDING):
        next_one()
    await finished
    return count / (time.perf_counter() - start)


def other_process(options: argparse.Namespace, *arguments: str) -> "subprocess.Popen[str]":
    flags = ["--no-sync"] if options.no_sync else []
    return subprocess.Popen(
        [sys.executable, "-m", "bench.callbacks", *arguments, *flags],
        stdout=subprocess.PIPE,
        text=True,
    )


def bare_copy(options: argparse.Namespace, source: Path, folder: str) -> float:
    """Seconds for the bare copy."""
    child = other_process(options, "--copy-to", f"{folder}/bare")
    assert child.stdout is not None
    port = int(child.stdout.readline())
    buffer = memoryview(bytearray(COPY_BYTES))
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as out, source.open("rb", 0) as file:
        while count := file.readinto(buffer):
            out.sendall(buffer[:count])
        out.shutdown(socket.SHUT_WR)
        assert out.recv(4) == b"done"
    seconds = time.perf_counter() - start
    child.wait(30)
    child.stdout.close()
    return seconds


async def measure(reactor: Any, options: argparse.Namespace, ports: dict[str, int], folder: str,
                  source: Path) -> dict[str, Any]:  # fmt: skip
    client = CallbackClient(reactor, port=ports["ours"], files=FileRoot(folder))
    client.startService()
    connection = client.connection
    assert await connection.request("add", [1, 2]) == 3
    other = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", ports["amp"]), amp.AMP())

    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(options.rounds):
        theirs.append(
            await pairs(
                lambda n: other.callRemote(Sum, a=n, b=1).addCallback(lambda r: r["total"]),
                options.requests,
            )
        )
        ours.append(await pairs(lambda n: connection.request("add", [n, 1]), options.requests))

    bare: list[float] = []
    pushed: list[float] = []
    growth = {"here": 0, "there": 0}
    for number in range(options.rounds):
        bare.append(bare_copy(options, source, folder))
        Path(folder, "bare").unlink()
        before = {"there": await connection.request("memory", [True])}
        forget_most()
        before["here"] = memory()
        start = time.perf_counter()
        sent = await connection.push_file(source, f"pushed{number}")
        pushed.append(time.perf_counter() - start)
        after = {"here": memory(), "there": await connection.request("memory", [False])}
        assert sent.confirmed
        Path(folder, f"pushed{number}").unlink()
        for side in growth:
            growth[side] = max(growth[side], after[side]["most"] - before[side]["now"])
    await client.stopService()
    other.transport.loseConnection()
    return {
        "pairs_per_s": round(statistics.median(ours)),
        "amp_pairs_per_s": round(statistics.median(theirs)),
        "pairs_ratio": round(statistics.median(ours) / statistics.median(theirs), 2),
        "file_mib": options.mib,
        "sync": not options.no_sync,
        "file_s": round(statistics.median(pushed), 2),
        "bare_copy_s": round(statistics.median(bare), 2),
        "file_ratio": round(statistics.median(pushed) / statistics.median(bare), 2),
        "sender_growth_mib": round(growth["here"] / 2**20, 1),
        "receiver_growth_mib": round(growth["there"] / 2**20, 1),
    }


def run(options: argparse.Namespace) -> None:
    from twisted.internet import reactor

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder, "source")
        block = os.urandom(2**20)
        with source.open("wb") as file:
            for _ in range(options.mib):
                file.write(block)
            os.fsync(file.fileno())
        child = other_process(options, "--serve", folder)
        assert child.stdout is not None
        ports = json.loads(child.stdout.readline())
        result: dict[str, Any] = {}

        def begin() -> None:
            d = Deferred.fromCoroutine(measure(reactor, options, ports, folder, source))
            d.addCallback(result.update)
            d.addErrback(lambda failure: failure.printTraceback())
            d.addBoth(lambda _: reactor.stop())

        reactor.callWhenRunning(begin)
        reactor.run()
        child.terminate()
        child.wait(30)
        child.stdout.close()
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files go; by default the folder for such")
    parser.add_argument("--no-sync", action="store_true", help="no fsync, on neither side")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--copy-to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, sync=not options.no_sync)
    elif options.copy_to:
        copy_to_disk(options.copy_to, sync=not options.no_sync)
    else:
        run(options)


if __name__ == "__main__":
    main()
