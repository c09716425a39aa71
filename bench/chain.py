"""What a chain costs: messages through three nodes against one, and what a further hop adds.

    python -m bench.chain
    python -m bench.chain 400000 --rounds 5

*Rate*: `send_many` at the first node, until the last message was handled at the last; the same
through one node. *Closed*: one message in flight, from `send` until the handler at the last node
has it, median; of one node, and of two: the difference is what a hop adds. Rounds are interleaved,
and ratios are of one round: their medians are told. All processes of their own, logs on disk.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from bench.processes import Stage, finish, stage


def nodes(made: Stage, count: int) -> list[str]:
    """Start nodes that pass on one to the next; return their addresses, the first one first."""
    addresses: list[str] = []
    for number in reversed(range(count)):
        name = f"node{number}"
        onward = f"node{number + 1}=node:{addresses[0]}" if addresses else None
        _, address = made.node(data=made.folder / name, name=name, onward=onward)
        addresses.insert(0, address)
    return addresses


def rate(length: int, count: int) -> float:
    """Return the messages a second through so many nodes."""
    with stage() as made:
        addresses = nodes(made, length)
        taker = made.start("receiver", address=addresses[-1], name="r0", count=count)
        taker.line()
        producer = made.start("producer", address=addresses[0], count=count, many=True)
        producer.line()
        producer.say("go")
        begun, ended = producer.line(), taker.line()
        seconds = max(begun["end"], ended["end"]) - begun["start"]
        return float(count / seconds)


def closed(length: int, count: int) -> float:
    """Return the median of one message in flight through so many nodes, in ms."""
    with stage() as made:
        addresses = nodes(made, length)
        probe = made.start("through", address=addresses[0], far=addresses[-1])
        probe.line()
        probe.ask("200")
        return float(probe.ask(str(count))["p50_ms"])


def measure(count: int = 400_000, closed_count: int = 1000, rounds: int = 5) -> dict[str, Any]:
    count -= count % 200
    one, three, ratios = [], [], []
    alone, two, hops = [], [], []
    for _ in range(rounds):
        one.append(rate(1, count))
        three.append(rate(3, count))
        ratios.append(three[-1] / one[-1])
        alone.append(closed(1, closed_count))
        two.append(closed(2, closed_count))
        hops.append((two[-1] - alone[-1]) / alone[-1])
    return {
        "one_node_s": round(median(one)),
        "three_nodes_s": round(median(three)),
        "rate_ratio": round(median(ratios), 3),
        "one_node_p50_ms": round(median(alone), 2),
        "two_nodes_p50_ms": round(median(two), 2),
        "hop_ratio": round(median(hops), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=400_000)
    parser.add_argument("--closed", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    finish(measure(asked.count, asked.closed, asked.rounds))
