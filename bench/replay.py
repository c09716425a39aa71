"""A rewind of a million messages against a drain of as many, in one run, in turns.

    python -m bench.replay [COUNT] [--turns N]

Both for a receiver that was away and comes back: first what was sent meanwhile, then that again,
and so on. `rewind_ratio`: the rate at which the copies reach it, against that of the drain.
`others_ratio`: the 99th percentile of two other receivers (1,000 messages a second) during
the rewind, against during the drain. `start_ratio`: the rate for a new receiver with
`start="first"`, for which history is matched by subject. Of each the median of all turns; `…_cpu_s`
is what the node had meanwhile, all its threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.processes import Role, Stage, finish, stage

SECONDS = 4  # for which others are measured, at most: no longer than what they are measured beside


class Taken(NamedTuple):
    """A receiver that came back has all: the rate, the others' p99 meanwhile, the node's CPU."""

    rate: float
    p99: float
    cpu: float


def taken(made: Stage, node: Role, probe: Role, address: str, count: int) -> Taken:
    cpu: float = node.ask("rss")["cpu_s"]
    begin = time.monotonic()
    back = made.start("receiver", address=address, count=count, name="again")
    lines = [back.line()]  # that it is attached; it may have all of few before it says so
    probe.say(f"open 1000 {min(SECONDS, max(0.2, count / 250_000))}")
    lines.append(back.line())
    seconds = max(line.get("end", 0.0) for line in lines) - begin
    used = node.ask("rss")["cpu_s"] - cpu
    p99: float = probe.line()["p99_ms"]
    back.stop()
    return Taken(count / seconds, p99, used)


def command(address: str, *words: str) -> bytes:
    ran = subprocess.run(
        [Path(sys.executable).with_name("msgservice"), *words, "--node", address],
        check=True,
        capture_output=True,
    )
    return ran.stdout


def rows(address: str) -> dict[str, dict[str, Any]]:
    told = json.loads(command(address, "receivers", "list", "--json"))
    return {row["name"]: row for row in told["receivers"]}


def begun_with_history(made: Stage, address: str) -> float:
    """Return the rate at which a new receiver has what the node still keeps."""
    begin = time.monotonic()
    late = made.start("receiver", address=address, name="late", subjects="orders.>", start="first")
    late.line()
    while True:
        time.sleep(0.2)
        row = rows(address)["late"]
        if row["replay"] is not None and row["replay"]["over"] and not row["queued"]:
            copied: int = row["replay"]["copied"]
            return copied / (time.monotonic() - begin)


def measure(count: int = 1_000_000, turns: int = 3) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        away = made.start("receiver", address=address, name="again", subjects="orders.>")
        away.line()
        away.stop()
        shop = made.start("sender", address=address)
        shop.line()
        for i in range(2):
            made.start("receiver", address=address, name=f"o{i}", subjects="others.>").line()
        probe = made.start("latency", address=address, subject="others.new")
        probe.line()
        probe.ask("closed 200")
        drains, rewinds = [], []
        for _ in range(turns):
            first = rows(address)["again"]["cursor"] + 1
            shop.ask(json.dumps({"count": count, "run": 200}))
            drains.append(taken(made, node, probe, address, count))
            time.sleep(1)  # its last answers are stored
            words = ("rewind", "again", "--from", f"log:{first}", "--yes", "--no-wait")
            command(address, *words, "--timeout", "60")
            rewinds.append(taken(made, node, probe, address, count))
            time.sleep(1)
        started = begun_with_history(made, address)

        def ratio(of: str) -> float:
            pairs = zip(rewinds, drains, strict=True)
            return round(statistics.median([getattr(a, of) / getattr(b, of) for a, b in pairs]), 2)

        def median(of: str, among: list[Taken]) -> float:
            return round(statistics.median([getattr(one, of) for one in among]), 2)

        return {
            "messages": count,
            "turns": turns,
            "drain_s": median("rate", drains),
            "rewind_s": median("rate", rewinds),
            "start_s": round(started),
            "rewind_ratio": ratio("rate"),
            "start_ratio": round(started / median("rate", drains), 2),
            "others_drain_p99_ms": median("p99", drains),
            "others_rewind_p99_ms": median("p99", rewinds),
            "others_ratio": ratio("p99"),
            "drain_cpu_s": median("cpu", drains),
            "rewind_cpu_s": median("cpu", rewinds),
            "rss_mib": node.ask("rss")["rss_mib"],
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    finish(measure(options.count, options.turns))
