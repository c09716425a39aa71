"""How long one message takes to three receivers and back, against what disk and sockets take.

    python -m bench.latency

The floor is two 4 KiB appends with fdatasync in the node's folder plus two round trips of a bare
Twisted TCP echo, medians, measured in the same run. *Closed*: one message in flight, durable,
from `send` until all three acknowledgements are back, median. *Open*: 1,000 messages a second
whatever comes back, 99th percentile, from when each was due.
"""

from __future__ import annotations

from typing import Any

from bench.processes import finish, stage


def measure(closed: int = 1000, seconds: float = 10.0) -> dict[str, Any]:
    with stage() as made:
        _, address = made.node()
        for i in range(3):
            made.start("receiver", address=address, name=f"r{i}").line()
        port = made.start("echo")
        echo_port = port.line()["port"]
        probe = made.start("latency", address=address)
        probe.line()
        probe.ask("closed 200")  # warm
        floor = probe.ask(f"floor {made.folder} {echo_port}")
        p50 = probe.ask(f"closed {closed}")["p50_ms"]
        p99 = probe.ask(f"open 1000 {seconds}")["p99_ms"]
        again = probe.ask(f"floor {made.folder} {echo_port}")
        floor_ms = round((floor["floor_ms"] + again["floor_ms"]) / 2, 3)
        return {
            "closed_p50_ms": p50,
            "floor_ms": floor_ms,
            "closed_ratio": round(p50 / floor_ms, 2),
            "open_p99_ms": p99,
            "open_ratio": round(p99 / floor_ms, 2),
            "sync_ms": floor["sync_ms"],
            "round_trip_ms": floor["round_trip_ms"],
        }


if __name__ == "__main__":
    finish(measure())
