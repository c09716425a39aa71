"""`python -m bench.udp`: acknowledged UDP against bare datagrams, as ratios in one run.

*bare* is a windowed loop of two Python processes: each datagram is answered by one, 2,000 in
flight, SO_RCVBUF of 4 MiB on both sides, what is unanswered after 50 ms is sent again and not
counted.
*acked* is `DatagramPeer`, also two processes and as many in flight, each message with its Deferred;
*many* is `send_messages`; *rpc* is one request in flight against a bare Twisted UDP ping-pong. Each
figure is the median of ROUNDS, bare and ours taking turns. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from typing import Any

SECONDS = 2.0
ROUNDS = 3
BARE_IN_FLIGHT = 2000
IN_FLIGHT = 2000
RUN = 1000
RUNS_IN_FLIGHT = 8
RESEND_AFTER = 0.05


def bare_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    made.bind(("127.0.0.1", 0))
    return made


def bare_server() -> None:
    sock = bare_socket()
    print(sock.getsockname()[1], flush=True)
    receive, send = sock.recvfrom, sock.sendto
    while True:
        data, address = receive(65535)
        send(data[:8], address)


def bare_client(port: int, size: int) -> dict[str, float]:
    sock = bare_socket()
    sock.connect(("127.0.0.1", port))
    # A timeout of the kernel's: Python's own would cost a second system call.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    padding = bytes(size - 8)
    open_: dict[bytes, float] = {}
    number = answered = 0
    clock = time.perf_counter
    send, receive, pop = sock.send, sock.recv, open_.pop
    pack = struct.Struct("!Q").pack
    now = start = clock()
    end = start + SECONDS
    for number in range(BARE_IN_FLIGHT):
        name = pack(number)
        open_[name] = clock()
        send(name + padding)
    while now < end:
        try:
            for _ in range(500):
                if pop(receive(64), None) is not None:
                    answered += 1
                    number += 1
                    name = pack(number)
                    open_[name] = now
                    send(name + padding)
            now = clock()
        except BlockingIOError:
            now = clock()
        for name, at in list(open_.items()) if min(open_.values()) < now - RESEND_AFTER else ():
            if at < now - RESEND_AFTER:
                open_[name] = now
                send(name + padding)
    return {"rate": answered / (now - start)}


def make_key(keyed: bool) -> bytes | None:
    return bytes(range(32)) if keyed else None


def acked_server(keyed: bool) -> None:
    from twisted.internet import reactor

    from msgservice.transport.udp.peer import DatagramPeer

    peer = DatagramPeer(reactor, key=make_key(keyed))
    print(peer.listen()[1], flush=True)
    reactor.run()  # type: ignore[attr-defined]


def acked_client(port: int, size: int, many: bool, keyed: bool) -> dict[str, float]:
    from twisted.internet import reactor

    from msgservice.transport.udp.peer import DatagramPeer

    peer = DatagramPeer(reactor, key=make_key(keyed))
    peer.listen()
    to = ("127.0.0.1", port)
    body = bytes(size)
    bodies = [body] * RUN
    state = {"done": 0, "start": 0.0, "counted": 0}

    def one_more(result: bytes) -> None:
        state["done"] += 1
        peer.send_message(body, to).addCallback(one_more)

    def run_more(result: list[bytes]) -> None:
        state["done"] += RUN
        peer.send_messages(bodies, to).addCallback(run_more)

    def begin() -> None:
        state["start"], state["counted"] = time.perf_counter(), state["done"]
        reactor.callLater(SECONDS, stop)  # type: ignore[attr-defined]

    def stop() -> None:
        state["seconds"] = time.perf_counter() - state["start"]
        state["counted"] = state["done"] - state["counted"]
        reactor.stop()  # type: ignore[attr-defined]

    if many:
        for _ in range(RUNS_IN_FLIGHT):
            peer.send_messages(bodies, to).addCallback(run_more)
    else:
        for _ in range(IN_FLIGHT):
            peer.send_message(body, to).addCallback(one_more)
    reactor.callLater(0.3, begin)  # type: ignore[attr-defined]
    profile = os.environ.get("BENCH_PROFILE")
    if profile:
        import cProfile
        import pstats

        profiler = cProfile.Profile()
        profiler.runcall(reactor.run)  # type: ignore[attr-defined]
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    else:
        reactor.run()  # type: ignore[attr-defined]
    return {"rate": state["counted"] / state["seconds"]}


def rpc_server(ours: bool) -> None:
    from twisted.internet import protocol, reactor

    from msgservice.transport.udp.peer import DatagramPeer

    if ours:

        class Echo(DatagramPeer):
            def handle_message(self, data: bytes, address: tuple[str, int]) -> bytes:
                return data

        print(Echo(reactor).listen()[1], flush=True)
    else:

        class Pong(protocol.DatagramProtocol):
            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                self.transport.write(datagram, addr)  # type: ignore[union-attr]

        port = reactor.listenUDP(0, Pong(), interface="127.0.0.1")  # type: ignore[attr-defined]
        print(port.getHost().port, flush=True)
    reactor.run()  # type: ignore[attr-defined]


def rpc_client(port: int, ours: bool) -> dict[str, float]:
    from twisted.internet import protocol, reactor

    from msgservice.transport.udp.peer import DatagramPeer

    to = ("127.0.0.1", port)
    body = bytes(100)
    samples: list[float] = []
    clock = time.perf_counter
    end = clock() + SECONDS
    began = 0.0

    def finish() -> None:
        reactor.stop()  # type: ignore[attr-defined]

    if ours:
        peer = DatagramPeer(reactor)
        peer.listen()

        def ask(reply: bytes | None) -> None:
            nonlocal began
            now = clock()
            if reply is not None:
                samples.append(now - began)
            if now > end:
                finish()
                return
            began = clock()
            peer.send_message(body, to).addCallback(ask)

        reactor.callWhenRunning(ask, None)  # type: ignore[attr-defined]
    else:

        class Ping(protocol.DatagramProtocol):
            def startProtocol(self) -> None:
                self.ask()

            def ask(self) -> None:
                nonlocal began
                began = clock()
                self.transport.write(body, to)  # type: ignore[union-attr]

            def datagramReceived(self, datagram: bytes, addr: Any) -> None:
                now = clock()
                samples.append(now - began)
                if now > end:
                    finish()
                else:
                    self.ask()

        reactor.listenUDP(0, Ping(), interface="127.0.0.1")  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
    return {"p50_ms": statistics.median(samples[100:]) * 1000}


def measure(server: list[str], client: list[str]) -> dict[str, float]:
    """Run one server and one client, each a process of its own."""
    base = [sys.executable, "-m", "bench.udp"]
    with subprocess.Popen([*base, *server], stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        port = serving.stdout.readline().strip()
        done = subprocess.run(
            [*base, *client, "--port", port],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        )
        serving.kill()
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", default="all")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--keyed", action="store_true")
    arguments = parser.parse_args()
    roles: dict[str, Any] = {
        "bare-server": bare_server,
        "bare-client": lambda: bare_client(arguments.port, arguments.size),
        "acked-server": lambda: acked_server(arguments.keyed),
        "acked-client": lambda: acked_client(
            arguments.port, arguments.size, False, arguments.keyed
        ),
        "many-client": lambda: acked_client(arguments.port, arguments.size, True, arguments.keyed),
        "rpc-server": lambda: rpc_server(True),
        "rpc-client": lambda: rpc_client(arguments.port, True),
        "pong-server": lambda: rpc_server(False),
        "ping-client": lambda: rpc_client(arguments.port, False),
    }
    if arguments.role != "all":
        print(json.dumps(roles[arguments.role]()))
        return
    print(json.dumps(table()))


def ratio(ours: list[float], bare: list[float]) -> dict[str, float]:
    acked_s, bare_s = statistics.median(ours), statistics.median(bare)
    found = {
        "acked_s": round(acked_s),
        "bare_s": round(bare_s),
        "ratio": round(acked_s / bare_s, 2),
    }
    print(found, flush=True)
    return found


def table() -> dict[str, dict[str, float]]:
    """Measure all, in turns, and return the figures."""
    results: dict[str, dict[str, float]] = {}
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, server, client in (
            ("bare 256", ["bare-server"], ["bare-client", "--size", "256"]),
            ("256", ["acked-server"], ["acked-client", "--size", "256"]),
            ("many_256", ["acked-server"], ["many-client", "--size", "256"]),
            ("bare 1100", ["bare-server"], ["bare-client", "--size", "1100"]),
            ("1100", ["acked-server"], ["acked-client", "--size", "1100"]),
            ("256 with a key", ["acked-server", "--keyed"], ["acked-client", "--keyed"]),
        ):
            rates.setdefault(name, []).append(measure(server, client)["rate"])
    for name, bare in (("256", "bare 256"), ("1100", "bare 1100"), ("many_256", "bare 256")):
        results[name] = ratio(rates[name], rates[bare])
    results["keyed_256"] = ratio(rates["256 with a key"], rates["bare 256"])
    ours, pings = [], []
    for _ in range(ROUNDS):
        pings.append(measure(["pong-server"], ["ping-client"])["p50_ms"])
        ours.append(measure(["rpc-server"], ["rpc-client"])["p50_ms"])
    p50, bare_p50 = statistics.median(ours), statistics.median(pings)
    results["rpc"] = {
        "p50_ms": round(p50, 4),
        "bare_p50_ms": round(bare_p50, 4),
        "ratio": round(p50 / bare_p50, 2),
    }
    return results


if __name__ == "__main__":
    main()
