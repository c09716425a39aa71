"""How many messages a second one node brings from a producer to several receivers.

    python -m bench.fanout 300000 --receivers 3
    python -m bench.fanout 600000 --receivers 3 --many

Producer, node and receivers are processes of their own; the log is on disk, synchronous; every
message of `send` has its own Deferred, and statuses are on. Time runs from the first `send` to
the last receiver's last message.
"""

from __future__ import annotations

import argparse
from typing import Any

from bench.processes import finish, stage


def measure(
    count: int,
    *,
    receivers: int = 3,
    many: bool = False,
    subjects: int = 1,
    producers: int = 1,
    window: int = 20_000,
    promise: float = 0.0,
) -> dict[str, Any]:
    count -= count % (producers * (200 if many else 1))
    with stage() as made:
        node, address = made.node()
        takers = [
            made.start("receiver", address=address, name=f"r{i}", count=count)
            for i in range(receivers)
        ]
        for taker in takers:
            taker.line()
        producer = made.start(
            "producer",
            address=address,
            count=count,
            many=many,
            subjects_count=subjects,
            producers=producers,
            window=window,
            promise=promise or None,
        )
        producer.line()
        producer.say("go")
        made_of = producer.line()
        ends = [taker.line() for taker in takers]
        node_end = node.ask("rss")
        seconds = max([end["end"] for end in ends] + [made_of["end"]]) - made_of["start"]
        return {
            "messages": count,
            "messages_s": round(count / seconds),
            "deliveries_s": round(count * receivers / seconds),
            "producer_cpu_s": made_of["cpu_s"],
            "receivers_cpu_s": [end["cpu_s"] for end in ends],
            "node_cpu_s": node_end["cpu_s"],
            "node_rss_mib": node_end["rss_mib"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--receivers", type=int, default=3)
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--subjects", type=int, default=1)
    parser.add_argument("--producers", type=int, default=1)
    parser.add_argument("--window", type=int, default=20_000)
    parser.add_argument("--promise", type=float, default=0.0, help="seconds, of each message")
    args = vars(parser.parse_args())
    finish(measure(args.pop("count"), **args))


if __name__ == "__main__":
    main()
