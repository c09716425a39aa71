"""`python -m bench.udp_flood`: a healthy peer's rate while 100,000 datagrams come from elsewhere.

The flood is a process of its own that sends from 400 sockets on other addresses of the loopback
net, as fast as it can or FLOOD_RATE a second; the healthy peer sends runs of 100 messages of 256
bytes, 5 ms after the last was answered, and is measured from the flood's first datagram to its
last. Both its ends share one process. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.simulation.test_datagram_hostile import flood_of

COUNT = 100_000
SOCKETS = 400
RATE = int(os.environ.get("FLOOD_RATE", "0"))  # datagrams a second; 0: as fast as it can


def flood(port: int) -> dict[str, int]:
    sockets = []
    for number in range(SOCKETS):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((f"127.0.{1 + number // 200}.{1 + number % 200}", 0))
        made.setblocking(False)
        sockets.append(made)
    datagrams = [datagram for _, datagram in flood_of(1, 2000)]
    sent = received = 0
    to = ("127.0.0.1", port)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for number in range(COUNT):
        if RATE and number % 100 == 0:
            time.sleep(max(0.0, start + number / RATE - time.perf_counter()))
        sent += sockets[number % SOCKETS].sendto(datagrams[number % 2000], to)
    seconds = time.perf_counter() - start
    print("sent", flush=True)
    time.sleep(0.5)
    for made in sockets:
        try:
            while True:
                received += len(made.recv(2048))
        except BlockingIOError:
            pass
    return {"bytes_in": sent, "bytes_out": received, "flood_s": round(COUNT / seconds)}


def healthy() -> dict[str, Any]:
    from twisted.internet import reactor

    from msgservice.transport.udp.peer import DatagramPeer

    server, client = DatagramPeer(reactor), DatagramPeer(reactor)
    to = server.listen()
    client.listen()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.udp_flood", "flood", str(to[1])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    state: dict[str, Any] = {"done": 0, "alone": 0.0, "under": 0.0}

    def more(_: Any) -> None:
        state["done"] += 100
        reactor.callLater(0.005, send)  # type: ignore[attr-defined]  # the real one

    def send() -> None:
        client.send_messages([bytes(256)] * 100, to).addCallback(more)

    def phase(name: str, is_over: Callable[[float], bool], then: Callable[[], None]) -> None:
        before, start = state["done"], time.perf_counter()

        def look() -> None:
            seconds = time.perf_counter() - start
            if not is_over(seconds):
                reactor.callLater(0.01, look)  # type: ignore[attr-defined]  # the real one
                return
            state[name] = (state["done"] - before) / seconds
            then()

        look()

    def all_sent(seconds: float) -> bool:
        return bool(select.select([process.stdout], [], [], 0)[0])

    def begin_flood() -> None:
        state["rss_before"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        process.stdin.write("\n")  # type: ignore[union-attr]  # asserted above
        process.stdin.flush()  # type: ignore[union-attr]  # as above
        phase("under", all_sent, reactor.stop)  # type: ignore[attr-defined]  # the real one

    send()
    reactor.callLater(0.5, phase, "alone", lambda seconds: seconds > 1.0, begin_flood)  # type: ignore[attr-defined]  # as above
    reactor.run()  # type: ignore[attr-defined]  # as above
    state["rss_after"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = json.loads(process.stdout.read().splitlines()[-1])
    return {
        "alone_s": round(state["alone"]),
        "under_flood_s": round(state["under"]),
        "ratio": round(state["under"] / state["alone"], 2),
        "rss_growth_kib": state["rss_after"] - state["rss_before"],
        **told,
    }


def measure() -> dict[str, Any]:
    """Run it in a process of its own, since it needs a reactor that has not run."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.udp_flood"], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["flood"]:
        print(json.dumps(flood(int(sys.argv[2]))))
    else:
        print(json.dumps(healthy()))
