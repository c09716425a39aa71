"""Sessions, measured: `python -m bench.sessions [heartbeats] [silence] [records] [durable]`.

Heartbeats: what 1,000 remotes with one a second cost the process of their central, as a part of a
core. Silence: how long after its central was killed a remote ends (timeout 2 s, a heartbeat a
second). Records: log records a second from 4 clients that write as `SocketHandler` does, one call
for each; until a handler that counts has had the last, at a `Central` with `RecordsCodec`, and at
the threaded receiver of the logging cookbook (which unpickles anything), in turns in the same run.
`records`: of 100 bytes (three attributes); `full_records`: as `SocketHandler` makes them, with all
attributes and a text of its own for each, some 500 bytes. Either server has one core to itself, its
clients have the others: the threads of the cookbook's else get more of a busy machine than one
thread does, and wait for each other on an idle one. `_us` is the time of the server's process for
each record, and `_us_ratio` how often ours has that of the cookbook's: how much of the rates is the
clients', whose every call is one of the kernel's, the cores of the machine decide. Durable: a
`central.send` until it is on the disk of its node, against a plain `client.send` to the same node,
64 under way, in turns. The last line is JSON.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import signal
import socket
import socketserver
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

REMOTES = 1_000
RECORDS = 40_000
CLIENTS = 4
SENDS = 3_000
PENDING = 64
ROUNDS = 3

_context = multiprocessing.get_context("spawn")


def run(main: Callable[[Any], Awaitable[Any]]) -> None:
    """Run a coroutine function in this process's reactor."""
    from twisted.internet import task
    from twisted.internet.defer import ensureDeferred

    task.react(lambda reactor: ensureDeferred(main(reactor)))  # type: ignore[arg-type]  # a coroutine


def begin(function: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """Begin a process that has one end of a pipe; return it, and the other end."""
    near, far = _context.Pipe()
    process = _context.Process(target=function, args=(far, *arguments))
    process.start()
    return process, near


def asked(pipe: Connection) -> Any:
    """Return a Deferred of what comes next over a pipe."""
    from twisted.internet.threads import deferToThread

    return deferToThread(pipe.recv)


# --- heartbeats and silence -----------------------------------------------------------------------


def central(pipe: Connection, heartbeat: float) -> None:
    async def main(reactor: Any) -> None:
        from msgservice.faces.sessions import Central

        made = Central(reactor, heartbeat=heartbeat)
        pipe.send((await made.listen())[1])
        while (word := await asked(pipe)) != "end":
            assert word == "look"
            pipe.send((len([m for m in made.remotes.values() if m.is_joined]), time.process_time()))

    run(main)


def remotes(pipe: Connection, port: int, count: int, timeout: float) -> None:
    async def main(reactor: Any) -> None:
        from twisted.internet.defer import gatherResults

        from msgservice.faces.sessions import Remote

        made = []
        for number in range(count):
            remote = Remote(
                reactor, ("127.0.0.1", port), id=f"r{number}", heartbeat_timeout=timeout
            )
            await remote.start()
            made.append(remote)
            if number % 50 == 49:
                await remote.when_joined()
        await gatherResults([remote.when_joined() for remote in made])
        pipe.send("joined")
        ends = gatherResults([remote.when_shut_down() for remote in made])
        await ends
        pipe.send(time.monotonic())

    run(main)


def heartbeats() -> dict[str, float]:
    there, to_central = begin(central, 1.0)
    port = to_central.recv()
    others, to_remotes = begin(remotes, port, REMOTES, 60.0)
    assert to_remotes.recv() == "joined"
    joined = 0
    while joined < REMOTES:  # the last of them may not be heard yet
        to_central.send("look")
        joined, before = to_central.recv()
    began = time.monotonic()
    time.sleep(10.0)
    to_central.send("look")
    still, after = to_central.recv()
    seconds = time.monotonic() - began
    if not joined == still == REMOTES:
        raise RuntimeError(f"{joined}, then {still} of {REMOTES} were joined")
    for process in (others, there):
        process.kill()
        process.join()
    return {"heartbeats_core": round((after - before) / seconds, 4)}


def silence() -> dict[str, float]:
    there, to_central = begin(central, 1.0)
    others, to_remotes = begin(remotes, to_central.recv(), 20, 2.0)
    assert to_remotes.recv() == "joined"
    time.sleep(1.5)
    os.kill(there.pid, signal.SIGKILL)
    killed = time.monotonic()
    last = to_remotes.recv() - killed
    others.join()
    there.join()
    return {"silence_s": round(last, 3), "silence_limit_s": 3.0}


# --- records --------------------------------------------------------------------------------------


def keep_to(*, is_server: bool) -> None:
    """Let this process have the core of the server, or those of its clients, if there are two."""
    if not hasattr(os, "sched_setaffinity"):
        return
    first, *others = sorted(os.sched_getaffinity(0))
    if others:
        os.sched_setaffinity(0, {first} if is_server else others)


def a_record() -> bytes:
    """A record of 100 bytes with its prefix, as `SocketHandler` frames it."""
    fields = {"name": "shop", "levelno": 20, "msg": ""}
    rest = 100 - 4 - len(pickle.dumps(fields, 1))
    payload = pickle.dumps({**fields, "msg": "x" * rest}, 1)
    return struct.pack(">L", len(payload)) + payload


def full_records(count: int) -> list[bytes]:
    """Records as `SocketHandler` makes them, framed."""
    handler = logging.handlers.SocketHandler("127.0.0.1", port=0)
    return [
        handler.makePickle(
            logging.LogRecord(
                "shop", 20, "/opt/shop/till.py", 42, "item %d was sold", (n,), None, func="sell"
            )
        )
        for n in range(count)
    ]


def client(pipe: Connection, port: int, count: int, is_full: bool) -> None:
    keep_to(is_server=False)
    record = a_record()
    assert len(record) == 100
    written = full_records(count) if is_full else [record] * count
    with socket.create_connection(("127.0.0.1", port)) as sock:
        pipe.send("ready")
        pipe.recv()
        for record in written:
            sock.sendall(record)  # as the handler does: one call for each
        pipe.recv()


def ours(pipe: Connection, count: int) -> None:
    keep_to(is_server=True)

    async def main(reactor: Any) -> None:
        from twisted.internet.defer import Deferred

        from msgservice.faces.sessions import Central, RecordsCodec, SessionMessage

        all_came: Deferred[None] = Deferred()
        handled = 0

        def handle(message: SessionMessage) -> None:
            nonlocal handled
            handled += 1
            if handled == count:
                all_came.callback(None)

        made = Central(reactor, codec=RecordsCodec(), on_message=handle)
        pipe.send((await made.listen())[1])
        began = time.process_time()
        await all_came
        pipe.send((time.monotonic(), time.process_time() - began))

    run(main)


def cookbook(pipe: Connection, count: int) -> None:
    keep_to(is_server=True)
    all_came = threading.Event()

    class Counting(logging.Handler):
        handled = 0

        def emit(self, record: logging.LogRecord) -> None:  # it has a lock of its own
            self.handled += 1
            if self.handled == count:
                all_came.set()

    logging.getLogger("shop").addHandler(Counting())

    class Handler(socketserver.StreamRequestHandler):
        """As the logging cookbook has it, but that it waits for a whole prefix.

        Else one that arrives in pieces ends the connection, and the run never.
        """

        def handle(self) -> None:
            while True:
                chunk = self.connection.recv(4, socket.MSG_WAITALL)
                if len(chunk) < 4:
                    break
                (length,) = struct.unpack(">L", chunk)
                chunk = self.connection.recv(length)
                while len(chunk) < length:
                    chunk = chunk + self.connection.recv(length - len(chunk))
                record = logging.makeLogRecord(pickle.loads(chunk))
                logging.getLogger(record.name).handle(record)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_address[1])
    began = time.process_time()
    all_came.wait()
    pipe.send((time.monotonic(), time.process_time() - began))


def rate(server: Callable[..., None], is_full: bool) -> tuple[float, float]:
    """Return records a second, and microseconds of the server's process for each."""
    process, to_server = begin(server, RECORDS)
    port = to_server.recv()
    clients = [begin(client, port, RECORDS // CLIENTS, is_full) for _ in range(CLIENTS)]
    for _, pipe in clients:
        pipe.recv()
    began = time.monotonic()
    for _, pipe in clients:
        pipe.send("go")
    ended, busy = to_server.recv()
    for one, pipe in clients:
        pipe.send("end")
        one.join()
    process.join()
    return RECORDS / (ended - began), busy / RECORDS * 1e6


def records() -> dict[str, float]:
    found = {}
    for name, is_full in (("records", False), ("full_records", True)):
        pairs = [(rate(ours, is_full), rate(cookbook, is_full)) for _ in range(ROUNDS)]
        ratios = sorted(ours[0] / theirs[0] for ours, theirs in pairs)
        us_ratios = sorted(theirs[1] / ours[1] for ours, theirs in pairs)
        found |= {
            f"{name}_s": round(statistics.median(ours[0] for ours, _ in pairs)),
            f"cookbook_{name}_s": round(statistics.median(theirs[0] for _, theirs in pairs)),
            f"{name}_ratio": round(statistics.median(ratios), 2),
            f"{name}_ratio_least": round(ratios[0], 2),
            f"{name}_us_ratio": round(statistics.median(us_ratios), 2),
            f"{name}_us_ratio_least": round(us_ratios[0], 2),
            f"{name}_us": round(statistics.median(ours[1] for ours, _ in pairs), 1),
            f"cookbook_{name}_us": round(statistics.median(theirs[1] for _, theirs in pairs), 1),
        }
    return found


# --- durable --------------------------------------------------------------------------------------


def durable() -> dict[str, float]:
    process, pipe = begin(durably)
    found: dict[str, float] = pipe.recv()
    process.join()
    return found


def durably(pipe: Connection) -> None:
    async def main(reactor: Any) -> None:
        from twisted.internet.defer import DeferredList, DeferredSemaphore

        from msgservice.faces.sessions import Central, DurableRemotes, Remote
        from msgservice.node.node import Node

        with tempfile.TemporaryDirectory() as folder:
            node = Node(reactor, folder, failed=lambda error: None)
            node.startService()
            await node.when_ready()
            client = node.client("central")

            def attach(receiver: Any) -> None:
                receiver.attach_through(
                    lambda make_user: node.connector(make_user, receiver.name), address="within"
                )

            made = Central(reactor, node=DurableRemotes(reactor, client, attach))
            address = await made.listen()
            remote = Remote(reactor, address, id="shop")
            await remote.start()
            await made.when_joined("shop")
            await made.send("shop", "first")
            # Nobody takes what is measured: it is about the way to the disk.
            left = made.when_left("shop")
            await made.shutdown("shop")
            await left
            content = "x" * 100

            async def timed(send: Callable[[], Any]) -> float:
                slots = DeferredSemaphore(PENDING)
                began = time.perf_counter()
                await DeferredList([slots.run(send) for _ in range(SENDS)])
                return SENDS / (time.perf_counter() - began)

            pairs = [
                (
                    await timed(lambda: made.send("shop", content)),
                    await timed(lambda: client.send("plain", content, to=["session.shop"])),
                )
                for _ in range(ROUNDS)
            ]
            pipe.send(
                {
                    "durable_sends_s": round(statistics.median(a for a, _ in pairs)),
                    "plain_sends_s": round(statistics.median(b for _, b in pairs)),
                    "durable_ratio": round(statistics.median(a / b for a, b in pairs), 2),
                }
            )
            await made.stopService()
            await client.close()
            await node.stopService()

    run(main)


MEASUREMENTS = {
    "heartbeats": heartbeats,
    "silence": silence,
    "records": records,
    "durable": durable,
}


def measure(names: list[str] | None = None) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in names or list(MEASUREMENTS):
        found |= MEASUREMENTS[name]()
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])))
