"""How long it takes to say why any of a million messages is where it is.

    python -m bench.why [MESSAGES]

The messages are of a thousand subjects, in runs of ten. One receiver is away, and all of them wait
for it; another is there and fails with the first of each subject, so that its lanes are stuck. Then
nothing happens any more, and a client asks about messages drawn at random (`$node.why`), one after
the other. `id_`: by an id that the sender gave; the others by SENDER/INCARNATION/SEQUENCE.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from typing import Any

from bench.playing import react, say
from bench.processes import Role, finish, stage

SUBJECTS = 1000
RUN = 10
ASKED = 1000
BODY = b"x" * 100


async def asker(reactor: Any, address: str, count: int) -> None:
    """Send the messages, let them come to rest, and ask."""
    from twisted.internet.defer import gatherResults
    from twisted.internet.task import deferLater

    from msgservice import Receiver, Retry, connect

    def fails(message: Any) -> None:
        raise Retry(3600)

    stuck = Receiver(reactor, name="stuck", handler=fails)
    stuck.attach(address, subjects=["orders.>"])
    away = Receiver(reactor, name="away", handler=fails)
    away.attach(address, subjects=["orders.>"])
    await gatherResults([stuck.when_connected(), away.when_connected()])
    await away.stop()
    client = await connect(reactor, address, name="shop")
    for begin in range(0, count, RUN * SUBJECTS):
        runs = [
            client.send_many(f"orders.{number % SUBJECTS}", [BODY] * RUN)
            for number in range(begin // RUN, min(count, begin + RUN * SUBJECTS) // RUN)
        ]
        await gatherResults(runs)
    await client.send("orders.last", BODY, id="o-17")
    last = await client.request("$node.status", {"id": "o-17"})
    of = last["sender"].rsplit("/", 1)[0]
    await deferLater(reactor, 5, lambda: None)
    gc.collect()
    gc.freeze()  # what a million messages have left here is not to be looked through meanwhile
    draw = random.Random(56)
    told = {}
    for kind in ("", "id_"):
        taken = []
        causes: set[str] = set()
        for _ in range(ASKED):
            identity = "o-17" if kind else f"{of}/{draw.randint(1, count)}"
            begin_at = time.perf_counter()
            page = await client.request("$node.why", {"id": identity})
            taken.append((time.perf_counter() - begin_at) * 1000)
            causes |= {one["kind"] for one in page["causes"]}
        taken.sort()
        told[f"{kind}p50_ms"] = round(taken[len(taken) // 2], 2)
        told[f"{kind}p99_ms"] = round(taken[len(taken) * 99 // 100], 2)
        told[f"{kind}max_ms"] = round(taken[-1], 2)
        if not kind:
            told["kinds"] = ", ".join(sorted(causes))
    say(**told)
    await client.close()
    await stuck.stop()


def measure(count: int = 1_000_000) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        asking = Role("asker", "bench.why", address=address, count=count)
        told = asking.line()
        asking.stop()
        return {"messages": count, **told, "rss_mib": node.ask("rss")["rss_mib"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="1000000")
    parser.add_argument("--address")
    parser.add_argument("--count", type=int)
    args = parser.parse_args()
    if args.what == "asker":
        react(asker, args.address, args.count)
    else:
        finish(measure(int(args.what)))
