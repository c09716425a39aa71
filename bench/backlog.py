"""A million messages that wait for a receiver that is away: memory, start, and how they drain.

    python -m bench.backlog [COUNT]

`drain_ratio`: the rate at which they reach the receiver when it is back, against the live
`send_many` rate to one receiver. `others_ratio`: the 99th percentile of two other receivers
(1,000 messages a second, open loop) during the drain, against before it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from bench.processes import Stage, finish, stage

LIVE = 300_000


def live_rate(made: Stage, address: str) -> float:
    taker = made.start("receiver", address=address, name="live", count=LIVE, subjects="orders.>")
    taker.line()
    producer = made.start("producer", address=address, count=LIVE, many=True)
    producer.line()
    producer.say("go")
    start = producer.line()["start"]
    rate: float = LIVE / (taker.line()["end"] - start)
    taker.stop()
    return rate


def measure(count: int = 1_000_000) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        rate = live_rate(made, address)
        node.stop()

        data = made.folder / "backlog"
        node, address = made.node(data=data)
        away = made.start("receiver", address=address, name="away", subjects="orders.>")
        away.line()
        away.stop()
        producer = made.start("producer", address=address, count=count, many=True)
        producer.line()
        producer.say("go")
        producer.line()
        waiting = node.ask("rss")["rss_mib"]
        node.stop()

        begin = time.monotonic()
        node = made.start("node", data=data)
        listening = node.line()
        start_s = time.monotonic() - begin
        address = listening["address"]
        for i in range(2):
            made.start("receiver", address=address, name=f"o{i}", subjects="others.>").line()
        probe = made.start("latency", address=address, subject="others.new")
        probe.line()
        probe.ask("closed 200")
        before = probe.ask("open 1000 5")["p99_ms"]

        begin = time.monotonic()
        back = made.start("receiver", address=address, name="away", count=count)
        back.line()
        begin = time.monotonic()
        probe.say("open 1000 4")
        drained = back.line()["end"] - begin
        during = probe.line()["p99_ms"]
        after = node.ask("rss")["rss_mib"]
        return {
            "messages": count,
            "rss_mib": max(waiting, after, listening["rss_mib"]),
            "rss_waiting_mib": waiting,
            "rss_started_mib": listening["rss_mib"],
            "rss_drained_mib": after,
            "start_s": round(start_s, 2),
            "drain_s": round(count / drained),
            "live_s": round(rate),
            "drain_ratio": round(count / drained / rate, 2),
            "others_before_p99_ms": before,
            "others_during_p99_ms": during,
            "others_ratio": round(during / before, 2),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    finish(measure(parser.parse_args().count))
