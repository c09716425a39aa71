"""`python -m bench.http`: posts over HTTP against what they could cost at best, as ratios.

*posts*: single durable posts over 64 connections, each with one under way, to a node whose log is
on disk, against a handler of the same web library that stores nothing, in turns; and the processor
time of each. *lines*: messages as JSON lines to a node against `send_many` over TCP to the same
node, in turns. Each figure is the median of ROUNDS; servers and callers are processes of their own.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 5
CONNECTIONS = 64
POSTS = 6000
LINES = 20_000  # of one round
LINES_OF_A_POST = 2000
POSTS_AT_ONCE = 4
BODY = "x" * 100
FIRST = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
HEAD = FIRST + "Content-Type: {}\r\nContent-Length: {}\r\n\r\n"


def _run(role: str, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.http", "--role", role, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    said: dict[str, Any] = json.loads(process.stdout.readline())
    return said


def _ask(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    return _line(process)


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _react(main: Any, *arguments: Any) -> None:
    from twisted.internet.defer import ensureDeferred
    from twisted.internet.task import react

    react(lambda reactor: ensureDeferred(main(reactor, *arguments)))


async def _asked(reactor: Any) -> str:
    from twisted.internet.threads import deferToThread

    line: str = await deferToThread(sys.stdin.readline)
    return line.strip()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the servers


async def _node(reactor: Any, folder: str) -> None:
    from msgservice.node.node import Node
    from msgservice.node.service import SWITCH_INTERVAL

    sys.setswitchinterval(SWITCH_INTERVAL)
    local = "tcp:0:interface=127.0.0.1"
    node = Node(reactor, Path(folder) / "log", listen=[local], web=[local])
    node.startService()
    await node.when_ready()
    _say(tcp=node.ports[0].getHost().port, http=node.ports[1].getHost().port)
    while await _asked(reactor):
        _say(cpu=_cpu())
    await node.stopService()


async def _bare(reactor: Any) -> None:
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    class Handler(Resource):
        isLeaf = True

        def render_POST(self, request: Any) -> bytes:
            json.loads(request.content.read())
            request.setResponseCode(201)
            request.setHeader(b"Content-Type", b"application/json")
            return b'{"id":"log:4294967296","position":4294967296}'

    port = reactor.listenTCP(0, Site(Handler()), interface="127.0.0.1")
    _say(http=port.getHost().port)
    while await _asked(reactor):
        _say(cpu=_cpu())


# --- the callers


async def _caller(reactor: Any, tcp: int) -> None:
    from twisted.internet.defer import Deferred, gatherResults
    from twisted.internet.endpoints import TCP4ClientEndpoint
    from twisted.internet.protocol import Factory, Protocol

    from msgservice import connect

    class Poster(Protocol):
        def __init__(self) -> None:
            self.data = b""
            self.todo: list[bytes] = []
            self.waiter: Deferred[None] | None = None

        def post(self, todo: list[bytes]) -> Deferred[None]:
            self.todo = todo
            self.waiter = Deferred()
            self.transport.write(self.todo.pop())
            return self.waiter

        def dataReceived(self, data: bytes) -> None:
            self.data += data
            head, end, rest = self.data.partition(b"\r\n\r\n")
            if not end:
                return
            at = head.index(b"ength: ") + 7
            size = int(head[at:].split(b"\r\n", 1)[0])
            if len(rest) < size:
                return
            assert head.startswith(b"HTTP/1.1 201"), self.data
            self.data = rest[size:]
            if self.todo:
                self.transport.write(self.todo.pop())
                return
            waiter, self.waiter = self.waiter, None
            assert waiter is not None
            waiter.callback(None)

    async def posters(port: int, count: int) -> list[Poster]:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        factory = Factory.forProtocol(Poster)
        return [await endpoint.connect(factory) for _ in range(count)]

    def request(kind: str, body: str) -> bytes:
        return HEAD.format(kind, len(body)).encode() + body.encode()

    single = request("application/json", json.dumps({"subject": "orders.new", "text": BODY}))
    line = json.dumps({"subject": "orders.new", "text": BODY}) + "\n"
    many = request("application/x-ndjson", line * LINES_OF_A_POST)
    numbers = itertools.count()
    client = await connect(reactor, f"tcp:127.0.0.1:{tcp}", name="bench")
    bodies = [BODY] * LINES_OF_A_POST

    async def posts(port: int) -> float:
        all_of = await posters(port, CONNECTIONS)
        each = POSTS // CONNECTIONS
        begin = time.perf_counter()
        await gatherResults([one.post([single] * each) for one in all_of])
        seconds = time.perf_counter() - begin
        for one in all_of:
            one.transport.loseConnection()
        return each * CONNECTIONS / seconds

    async def lines(port: int) -> float:
        all_of = await posters(port, POSTS_AT_ONCE)
        each = LINES // LINES_OF_A_POST // POSTS_AT_ONCE or 1
        begin = time.perf_counter()
        await gatherResults([one.post([many] * each) for one in all_of])
        seconds = time.perf_counter() - begin
        for one in all_of:
            one.transport.loseConnection()
        return each * POSTS_AT_ONCE * LINES_OF_A_POST / seconds

    async def send_many() -> float:
        runs = max(1, LINES // LINES_OF_A_POST)
        subject = f"orders.{next(numbers)}"
        begin = time.perf_counter()
        await gatherResults([client.send_many(subject, bodies) for _ in range(runs)])
        return runs * LINES_OF_A_POST / (time.perf_counter() - begin)

    _say(ready=True)
    while said := await _asked(reactor):
        what, _, port = said.partition(" ")
        if what == "posts":
            _say(rate=await posts(int(port)))
        elif what == "lines":
            _say(rate=await lines(int(port)))
        else:
            _say(rate=await send_many())
    await client.close()


# --- measuring


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        node, bare = _run("node", folder), _run("bare")
        ports, handler = _line(node), _line(bare)
        caller = _run("caller", ports["tcp"])
        _line(caller)
        rates: dict[str, list[float]] = {"node": [], "bare": [], "lines": [], "send_many": []}
        pairs: dict[str, list[float]] = {"posts": [], "cpu": [], "lines": []}
        for number in range(ROUNDS + 1):
            before = _ask(node, "cpu")["cpu"], _ask(bare, "cpu")["cpu"]
            of_node = _ask(caller, f"posts {ports['http']}")["rate"]
            of_bare = _ask(caller, f"posts {handler['http']}")["rate"]
            after = _ask(node, "cpu")["cpu"], _ask(bare, "cpu")["cpu"]
            of_lines = _ask(caller, f"lines {ports['http']}")["rate"]
            of_many = _ask(caller, "send_many")["rate"]
            if number:  # the first warms up
                rates["node"].append(of_node)
                rates["bare"].append(of_bare)
                rates["lines"].append(of_lines)
                rates["send_many"].append(of_many)
                pairs["posts"].append(of_node / of_bare)
                pairs["cpu"].append((after[0] - before[0]) / (after[1] - before[1]))
                pairs["lines"].append(of_lines / of_many)
        for process in (caller, node, bare):
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    return {
        "posts of node / bare handler": round(statistics.median(pairs["posts"]), 2),
        "processor time of a post, node / bare handler": round(statistics.median(pairs["cpu"]), 2),
        "posts of node, 1/s": round(statistics.median(rates["node"])),
        "posts of bare handler, 1/s": round(statistics.median(rates["bare"])),
        "lines / send_many": round(statistics.median(pairs["lines"]), 2),
        "lines, messages/s": round(statistics.median(rates["lines"])),
        "send_many, messages/s": round(statistics.median(rates["send_many"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", default="measure")
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.role == "node":
        _react(_node, *args.arguments)
    elif args.role == "bare":
        _react(_bare)
    elif args.role == "caller":
        _react(_caller, *map(int, args.arguments))
    else:
        print(json.dumps(measure()))


if __name__ == "__main__":
    main()
