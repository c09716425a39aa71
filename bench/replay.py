"""A rewind of a million messages against a drain of as many, in one run.

    python -m bench.replay [COUNT]

Both for a receiver that was away and comes back: first what was sent meanwhile, then all of it
again. `rewind_ratio`: the rate at which the copies reach it, against that of the drain.
`others_ratio`: the 99th percentile of two other receivers (1,000 messages a second) during
the rewind, against during the drain. `start_ratio`: the rate for a new receiver with
`start="first"`, for which history is matched by subject.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.processes import Role, Stage, finish, stage


def taken(made: Stage, probe: Role, address: str, count: int) -> tuple[float, float]:
    """Return the rate at which a receiver that comes has so many, and the others' p99 meanwhile."""
    begin = time.monotonic()
    back = made.start("receiver", address=address, count=count, name="again")
    back.line()
    probe.say("open 1000 4")
    seconds = back.line()["end"] - begin
    p99: float = probe.line()["p99_ms"]
    back.stop()
    return count / seconds, p99


def rewind(address: str) -> None:
    words = ("rewind", "again", "--yes", "--no-wait", "--timeout", "60", "--node", address)
    subprocess.run([Path(sys.executable).with_name("msgservice"), *words], check=True)


def begun_with_history(made: Stage, address: str) -> float:
    """Return the rate at which a new receiver has what the node still keeps."""
    begin = time.monotonic()
    late = made.start("receiver", address=address, name="late", subjects="orders.>", start="first")
    late.line()
    while True:
        time.sleep(0.2)
        told = subprocess.run(
            [Path(sys.executable).with_name("msgservice"), "receivers", "list", "--json",
             "--node", address], check=True, capture_output=True,
        )  # fmt: skip
        rows = {row["name"]: row for row in json.loads(told.stdout)["receivers"]}
        replay, queued = rows["late"]["replay"], rows["late"]["queued"]
        if replay is not None and replay["over"] and not queued:
            copied: int = replay["copied"]
            return copied / (time.monotonic() - begin)


def measure(count: int = 1_000_000) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        away = made.start("receiver", address=address, name="again", subjects="orders.>")
        away.line()
        away.stop()
        producer = made.start("producer", address=address, count=count, many=True)
        producer.line()
        producer.say("go")
        producer.line()
        for i in range(2):
            made.start("receiver", address=address, name=f"o{i}", subjects="others.>").line()
        probe = made.start("latency", address=address, subject="others.new")
        probe.line()
        probe.ask("closed 200")
        drained, during_drain = taken(made, probe, address, count)
        time.sleep(1)  # its last answers are stored
        rewind(address)
        rewound, during_rewind = taken(made, probe, address, count)
        started = begun_with_history(made, address)
        return {
            "messages": count,
            "drain_s": round(drained),
            "rewind_s": round(rewound),
            "start_s": round(started),
            "rewind_ratio": round(rewound / drained, 2),
            "start_ratio": round(started / drained, 2),
            "others_drain_p99_ms": during_drain,
            "others_rewind_p99_ms": during_rewind,
            "others_ratio": round(during_rewind / during_drain, 2),
            "rss_mib": node.ask("rss")["rss_mib"],
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    finish(measure(parser.parse_args().count))
