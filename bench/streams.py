"""Streams, measured: `python -m bench.streams [fanout] [crowd] [crowd_node] [idle]`.

Fanout: one publisher, 100 listeners, 200-byte messages: lines a second until every listener has all
of them, at a server of streams, at one of a node's (on disk first), and at two bare Twisted
servers, in turns in the same run: `bare` splits what comes into lines and writes each to 100
connections, `relay` writes what it has read, as it came. Crowd: 1,000
listeners that join and leave at random meanwhile; each counts on from the header, so that gaps and
duplicates show; `crowd_node` at a node's. Idle: memory of the server for each connection that
listens and gets nothing.
Servers, publisher and listeners are processes of their own. The last line is JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import selectors
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
LISTENERS = 100
MESSAGES = 20_000
SIZE = 200  # bytes of a message, as JSON
ROUNDS = 5
CROWD = 1_000
CROWD_MESSAGES = 3_000
IDLE = 2_000

_context = multiprocessing.get_context("spawn")


def line(number: int) -> bytes:
    """Return the line of one message, which says its number."""
    text = f"{number:08d}".ljust(SIZE - 2, "x")
    return b'{"action":"put","stream":"k","message":"%s"}\n' % text.encode()


# --- servers, each in a process of its own


def serve_streams(pipe: Connection) -> None:
    from twisted.internet import reactor

    from msgservice.faces.streams import MessageStream, serve

    pipe.send(serve(0, reactor, MessageStream()).port)
    reactor.run()  # type: ignore[attr-defined]  # the module stands for what is installed


def serve_node(pipe: Connection) -> None:
    import tempfile

    from twisted.internet import reactor

    from msgservice import Node
    from msgservice.faces.streams import NodeStreams, serve
    from msgservice.node.service import SWITCH_INTERVAL

    sys.setswitchinterval(SWITCH_INTERVAL)
    folder = tempfile.mkdtemp(prefix="bench-streams-")
    pipe.send(folder)
    node = Node(reactor, folder)
    node.startService()
    ready = node.when_ready()
    ready.addCallback(lambda _: pipe.send(serve(0, reactor, NodeStreams(reactor, node)).port))
    ready.addErrback(lambda failure: pipe.send(failure.getErrorMessage()))
    reactor.run()


def serve_bare(pipe: Connection, is_relay: bool) -> None:
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, Protocol

    connections: list[Any] = []

    class Bare(Protocol):
        rest = b""

        def connectionMade(self) -> None:
            connections.append(self.transport)

        def connectionLost(self, reason: Any = None) -> None:
            connections.remove(self.transport)

        def dataReceived(self, data: bytes) -> None:
            if data.startswith(b'{"action":"listen"'):
                return
            if is_relay:
                lines = [data]
            else:
                *lines, self.rest = (self.rest + data).split(b"\n")
                lines = [one + b"\n" for one in lines]
            for one in lines:
                for transport in connections:
                    if transport is not self.transport:
                        transport.write(one)

    port: Any = reactor.listenTCP(  # type: ignore[attr-defined]  # as above
        0, Factory.forProtocol(Bare), interface=HOST
    )
    pipe.send(port.getHost().port)
    reactor.run()  # type: ignore[attr-defined]  # as above


class Server:
    """A server in a process, until the end of the block."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        near, far = _context.Pipe()
        self._process = _context.Process(target=function, args=(far, *arguments), daemon=True)
        self._process.start()
        told = near.recv()
        self._folder = told if isinstance(told, str) else None
        self.port: int = near.recv() if self._folder is not None else told

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def memory(self) -> int:
        """Return its memory in bytes."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


# --- the publisher


def publish(pipe: Connection, port: int, messages: int, with_header: bool) -> None:
    lines = []
    for number in range(messages):
        one = line(number)
        lines.append(one.replace(b"put", b"header", 1) + one if with_header else one)
    with socket.create_connection((HOST, port)) as out:
        pipe.send("ready")
        pipe.recv()
        each = 10 if with_header else 100
        for at in range(0, messages, each):
            out.sendall(b"".join(lines[at : at + each]))
            if with_header:
                time.sleep(0.05)  # so that there is time to join
        pipe.send("sent")
        pipe.recv()


def publisher(port: int, messages: int, with_header: bool = False) -> tuple[Any, Connection]:
    near, far = _context.Pipe()
    process = _context.Process(target=publish, args=(far, port, messages, with_header), daemon=True)
    process.start()
    near.recv()
    return process, near


def connect(port: int) -> socket.socket:
    one = socket.create_connection((HOST, port))
    one.sendall(b'{"action":"listen","stream":"k"}\n')
    return one


# --- measurements


def rate(server: Server) -> float:
    """Return messages a second, until all listeners have all of them."""
    process, pipe = publisher(server.port, MESSAGES)
    selector = selectors.DefaultSelector()
    listeners = [connect(server.port) for _ in range(LISTENERS)]
    for one in listeners:
        selector.register(one, selectors.EVENT_READ)
    time.sleep(0.3)  # all listen
    size = MESSAGES * len(line(0))
    left = dict.fromkeys(listeners, size)
    begun = time.perf_counter()
    pipe.send("go")
    while left:
        for key, _ in selector.select():
            one: Any = key.fileobj
            left[one] -= len(one.recv(1 << 18))
            if left[one] == 0:
                del left[one]
                selector.unregister(one)
    seconds = time.perf_counter() - begun
    pipe.send("end")
    process.join()
    for one in listeners:
        one.close()
    return MESSAGES / seconds


def fanout() -> dict[str, float]:
    rates: dict[str, list[float]] = {"streams": [], "node": [], "bare": [], "relay": []}
    for _ in range(ROUNDS):  # in turns, so that what else the machine does concerns all
        for name, arguments in (
            ("streams", (serve_streams,)),
            ("node", (serve_node,)),
            ("bare", (serve_bare, False)),
            ("relay", (serve_bare, True)),
        ):
            with Server(*arguments) as server:
                rates[name].append(rate(server))

    def ratio(ours: str, other: str) -> float:
        pairs = zip(rates[ours], rates[other], strict=True)
        return round(statistics.median(one / another for one, another in pairs), 2)

    return {
        **{f"{name}_s": round(statistics.median(some)) for name, some in rates.items()},
        "streams_bare_ratio": ratio("streams", "bare"),
        "streams_relay_ratio": ratio("streams", "relay"),
        "node_bare_ratio": ratio("node", "bare"),
        "node_relay_ratio": ratio("node", "relay"),
    }


class Listener:
    """One of the crowd: it counts on from the first that it got, the header.

    A header and the `put` of the same number are two lines: who joins between them gets both.
    """

    def __init__(self, port: int) -> None:
        self.socket = connect(port)
        self.expected = -1
        self._rest = b""
        self.seen = self.wrong = 0

    def read(self) -> None:
        *lines, self._rest = (self._rest + self.socket.recv(1 << 18)).split(b"\n")
        for one in lines:
            number = int(one[40:48])
            is_first = self.seen == 1 and number == self.expected - 1
            if self.expected >= 0 and number != self.expected and not is_first:
                self.wrong += 1
            self.expected = number + 1
            self.seen += 1


def crowd(serve: Callable[[Connection], None] = serve_streams) -> dict[str, float]:
    rng = random.Random(1)
    seen = wrong = joins = 0
    with Server(serve) as server:
        process, pipe = publisher(server.port, CROWD_MESSAGES, with_header=True)
        selector = selectors.DefaultSelector()
        there: list[Listener] = []
        pipe.send("go")
        while not pipe.poll():
            while len(there) < CROWD and rng.random() < 0.97:
                listener = Listener(server.port)
                selector.register(listener.socket, selectors.EVENT_READ, listener)
                there.append(listener)
                joins += 1
            for key, _ in selector.select(0.01):
                key.data.read()
            for _ in range(rng.randrange(60)):
                if len(there) > CROWD // 2:
                    listener = there.pop(rng.randrange(len(there)))
                    selector.unregister(listener.socket)
                    listener.socket.close()
                    seen, wrong = seen + listener.seen, wrong + listener.wrong
        until = time.monotonic() + 120
        while any(0 <= one.expected < CROWD_MESSAGES for one in there):
            if time.monotonic() > until:
                wrong += sum(0 <= one.expected < CROWD_MESSAGES for one in there)
                break
            for key, _ in selector.select(1):
                key.data.read()
        for one in there:
            seen, wrong = seen + one.seen, wrong + one.wrong
            one.socket.close()
        pipe.send("end")
        process.join()
    return {"joins": joins, "lines": seen, "gaps_and_duplicates": wrong}


def crowd_node() -> dict[str, float]:
    return crowd(serve_node)


def idle() -> dict[str, float]:
    with Server(serve_streams) as server:
        warm = [connect(server.port) for _ in range(100)]
        time.sleep(0.5)
        before = server.memory()
        listeners = [connect(server.port) for _ in range(IDLE)]
        time.sleep(2)
        after = server.memory()
        for one in (*warm, *listeners):
            one.close()
    return {"bytes_per_idle_listener": round((after - before) / IDLE)}


PARTS = {"fanout": fanout, "crowd": crowd, "crowd_node": crowd_node, "idle": idle}


def measure(*wanted: str) -> dict[str, float]:
    """Return the figures of these parts, or of all."""
    return {
        f"{name} {figure}": value
        for name in wanted or PARTS
        for figure, value in PARTS[name]().items()
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
