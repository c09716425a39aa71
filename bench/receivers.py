"""What receivers cost that are known and away.

    python -m bench.receivers

`away_ratio`: the rate to 10 live receivers with 990 others known, matching and away, against the
rate with the 10 alone. `audience_ratio`: the node's CPU time for taking in messages for an
audience of 1,000 that is away, against an audience of 1.
"""

from __future__ import annotations

from typing import Any

from bench.processes import finish, stage

COUNT = 60_000


def live(others: int, count: int = COUNT, receivers: int = 10) -> float:
    """Messages a second to live receivers, with others that are away."""
    with stage() as made:
        _, address = made.node()
        if others:
            made.start("admin", address=address, receivers=others).line()
        takers = [
            made.start("receiver", address=address, name=f"r{i}", count=count)
            for i in range(receivers)
        ]
        for taker in takers:
            taker.line()
        producer = made.start("producer", address=address, count=count, many=True)
        producer.line()
        producer.say("go")
        start = producer.line()["start"]
        rate: float = count / (max(taker.line()["end"] for taker in takers) - start)
        return rate


def ingress(audience: int, count: int = 10 * COUNT) -> float:
    """Seconds of the node's CPU for taking in messages for so many that are away."""
    with stage() as made:
        node, address = made.node()
        made.start("admin", address=address, receivers=audience).line()
        producer = made.start("producer", address=address, count=count, many=True)
        producer.line()
        before = node.ask("cpu")["cpu_s"]
        producer.say("go")
        producer.line()
        used: float = node.ask("cpu")["cpu_s"] - before
        return used


def measure() -> dict[str, Any]:
    alone, crowded = live(0), live(990)
    one, thousand = ingress(1), ingress(1000)
    return {
        "alone_s": round(alone),
        "crowded_s": round(crowded),
        "away_ratio": round(crowded / alone, 2),
        "audience_1_cpu_s": round(one, 3),
        "audience_1000_cpu_s": round(thousand, 3),
        "audience_ratio": round(thousand / one, 2),
    }


if __name__ == "__main__":
    finish(measure())
