"""`python -m bench.http`: posts over HTTP against what they could cost at best, as ratios.

*posts*: single durable posts over 64 connections, each with one under way, to a node whose log is
on disk, against a handler of the same web library that stores nothing, in turns; and the processor
time of each. *lines*: messages as JSON lines to a node against `send_many` over TCP to the same
node, in turns. *page*, *metrics*: a node with RECEIVERS receivers, whose backlogs grow: how much
more of a core it takes while a page listens (`/v1/events`, read as a browser does), in turns with
none; and how long `GET /metrics` holds its reactor in all, of a round that is begun for it.

Each figure is the median of its rounds; servers and callers are processes of their own. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench import playing

ROUNDS = 5
CONNECTIONS = 64
POSTS = 6000
LINES = 20_000  # of one round
LINES_OF_A_POST = 2000
POSTS_AT_ONCE = 4
RECEIVERS = 1000
PAGE_ROUNDS = 3
PAGE_SECONDS = 8.0  # of each, with a page and without
SCRAPES = 3
SCRAPE_SECONDS = 17.0  # between two: the node has ended to look by itself then
GROWING = 20  # messages every 0.1 s, each for another receiver
BODY = "x" * 100
FIRST = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n"
HEAD = FIRST + "Content-Type: {}\r\nContent-Length: {}\r\n\r\n"


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the servers


async def _node(reactor: Any, folder: str) -> None:
    from msgservice.node.node import Node
    from msgservice.node.service import SWITCH_INTERVAL
    from msgservice.receiver_options import ReceiverOptions

    sys.setswitchinterval(SWITCH_INTERVAL)
    local = "tcp:0:interface=127.0.0.1"
    node = Node(reactor, Path(folder) / "log", listen=[local], web=[local])
    node.startService()
    await node.when_ready()
    playing.say(tcp=node.ports[0].getHost().port, http=node.ports[1].getHost().port)
    while said := await playing.asked(reactor):
        if said == "receivers":
            operations = node.parts.operations
            for number in range(RECEIVERS):
                await operations.add(f"r{number}", [f"grow.{number}"], ReceiverOptions())
        # Its reactor has this thread.
        playing.say(cpu=_cpu(), reactor=time.thread_time())
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
    playing.say(http=port.getHost().port)
    while await playing.asked(reactor):
        playing.say(cpu=_cpu())


# --- the callers


async def _caller(reactor: Any, tcp: int) -> None:
    from twisted.internet.defer import Deferred, gatherResults
    from twisted.internet.endpoints import TCP4ClientEndpoint
    from twisted.internet.protocol import Factory, Protocol
    from twisted.internet.task import deferLater

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

    playing.say(ready=True)
    while said := await playing.asked(reactor):
        what, _, port = said.partition(" ")
        if what == "posts":
            playing.say(rate=await posts(int(port)))
        elif what == "lines":
            playing.say(rate=await lines(int(port)))
        elif what == "grow":
            begin, sent = time.monotonic(), 0
            while time.monotonic() - begin < float(port):
                for _ in range(GROWING):
                    await client.send(f"grow.{next(numbers) % RECEIVERS}", BODY)
                    sent += 1
                await deferLater(reactor, 0.1)
            playing.say(sent=sent)
        else:
            playing.say(rate=await send_many())
    await client.close()


# --- measuring


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        node, bare = playing.run("bench.http", "node", folder), playing.run("bench.http", "bare")
        ports, handler = playing.line(node), playing.line(bare)
        caller = playing.run("bench.http", "caller", ports["tcp"])
        playing.line(caller)
        rates: dict[str, list[float]] = {"node": [], "bare": [], "lines": [], "send_many": []}
        pairs: dict[str, list[float]] = {"posts": [], "cpu": [], "lines": []}
        for number in range(ROUNDS + 1):
            before = playing.ask(node, "cpu")["cpu"], playing.ask(bare, "cpu")["cpu"]
            of_node = playing.ask(caller, f"posts {ports['http']}")["rate"]
            of_bare = playing.ask(caller, f"posts {handler['http']}")["rate"]
            after = playing.ask(node, "cpu")["cpu"], playing.ask(bare, "cpu")["cpu"]
            of_lines = playing.ask(caller, f"lines {ports['http']}")["rate"]
            of_many = playing.ask(caller, "send_many")["rate"]
            if number:  # the first warms up
                rates["node"].append(of_node)
                rates["bare"].append(of_bare)
                rates["lines"].append(of_lines)
                rates["send_many"].append(of_many)
                pairs["posts"].append(of_node / of_bare)
                pairs["cpu"].append((after[0] - before[0]) / (after[1] - before[1]))
                pairs["lines"].append(of_lines / of_many)
        playing.end(caller, node, bare)
    return {
        "posts of node / bare handler": round(statistics.median(pairs["posts"]), 2),
        "processor time of a post, node / bare handler": round(statistics.median(pairs["cpu"]), 2),
        "posts of node, 1/s": round(statistics.median(rates["node"])),
        "posts of bare handler, 1/s": round(statistics.median(rates["bare"])),
        "lines / send_many": round(statistics.median(pairs["lines"]), 2),
        "lines, messages/s": round(statistics.median(rates["lines"])),
        "send_many, messages/s": round(statistics.median(rates["send_many"])),
    }


def measure_looking() -> dict[str, float]:
    """What it costs a node with many receivers to be looked at."""
    with tempfile.TemporaryDirectory() as folder:
        node = playing.run("bench.http", "node", folder)
        ports = playing.line(node)
        playing.ask(node, "receivers")
        caller = playing.run("bench.http", "caller", ports["tcp"])
        playing.line(caller)
        shares: dict[bool, list[float]] = {True: [], False: []}
        bytes_read = 0
        for number in range(2 * PAGE_ROUNDS + 2):
            is_open = bool(number % 2)
            time.sleep(0 if is_open else SCRAPE_SECONDS)  # until nobody is told any more
            page = _Page(ports["http"]) if is_open else None
            if page is not None:
                page.until_it_shows()
            before, begin = playing.ask(node, "cpu")["cpu"], time.monotonic()
            playing.ask(caller, f"grow {PAGE_SECONDS}")
            used = playing.ask(node, "cpu")["cpu"] - before
            if number > 1:  # the first two warm up
                shares[is_open].append(used / (time.monotonic() - begin))
            if page is not None:
                bytes_read = page.close()
        scrapes, waits = [], []
        for _ in range(SCRAPES):
            time.sleep(SCRAPE_SECONDS)
            before, begin = playing.ask(node, "reactor")["reactor"], time.monotonic()
            size = _scrape(ports["http"])
            waits.append(time.monotonic() - begin)
            scrapes.append(playing.ask(node, "reactor")["reactor"] - before)
        playing.end(caller, node)
    more = [open_ - closed for open_, closed in zip(shares[True], shares[False], strict=True)]
    return {
        "page open, % of a core more": round(100 * statistics.median(more), 1),
        "no page open, % of a core": round(100 * statistics.median(shares[False]), 1),
        "page open, KiB/s": round(bytes_read / PAGE_SECONDS / 1024, 1),
        "a scrape, ms of the reactor": round(1000 * statistics.median(scrapes), 1),
        "a scrape, ms until it is answered": round(1000 * statistics.median(waits), 1),
        "a scrape, KiB": round(size / 1024, 1),
    }


class _Page:
    """A page that is open: it reads events in a thread, as a browser does beside the node."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._shows = threading.Event()
        self._read = 0
        self._thread = threading.Thread(target=self._reads)
        self._thread.start()

    def _reads(self) -> None:
        seen = b""
        while data := self._socket.recv(1 << 20):
            self._read += len(data)
            seen = seen[-100:] + data  # a piece may end within the words
            if b'"more":false}' in seen:
                self._shows.set()

    def until_it_shows(self) -> None:
        """Return when all of the state is here; what was read until then is not counted."""
        assert self._shows.wait(30)
        self._read = 0

    def close(self) -> int:
        """Close it; return the bytes that were read since it showed everything."""
        read = self._read
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        return read


def _scrape(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text: bytes = answer.read()
    assert text.count(b"msgservice_receiver_queued_messages{") == RECEIVERS, text[-500:]
    return len(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", default="measure")
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.role == "node":
        playing.react(_node, *args.arguments)
    elif args.role == "bare":
        playing.react(_bare)
    elif args.role == "caller":
        playing.react(_caller, *map(int, args.arguments))
    else:
        print(json.dumps(measure() | measure_looking()))


if __name__ == "__main__":
    main()
