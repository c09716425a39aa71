"""What workers that share a receiver's messages are worth.

    python -m bench.shared

Each worker is a process whose handler waits for a millisecond. `ratio`: the rate of four of them
against that of one, alternately, in one run.
"""

from __future__ import annotations

import time
from typing import Any

from bench.processes import finish, stage

COUNT = 4000
SLEEP_MS = 1.0
ROUNDS = 3


def pool(workers: int, count: int = COUNT) -> float:
    """Messages a second that so many workers handle together."""
    with stage() as made:
        _, address = made.node()
        takers = [
            made.start("receiver", address=address, name="pool", shared=True, sleep=SLEEP_MS)
            for _ in range(workers)
        ]
        for taker in takers:
            taker.line()
        producer = made.start("producer", address=address, count=count, many=True)
        producer.line()
        producer.say("go")
        start = producer.line()["start"]
        while True:
            time.sleep(0.2)
            told = [taker.ask("seen") for taker in takers]
            if sum([one["seen"] for one in told]) >= count:
                rate: float = count / (max([one["last"] for one in told]) - start)
                return rate


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    pairs = [(pool(1), pool(4)) for _ in range(rounds)]
    ones, fours = zip(*pairs, strict=True)
    ratios = sorted([four / one for one, four in pairs])
    return {
        "one_s": round(max(ones)),
        "four_s": round(max(fours)),
        "ratio": round(ratios[len(ratios) // 2], 2),
    }


if __name__ == "__main__":
    finish(measure())
