"""What may be said of a message before it is delivered, and what that costs.

    python -m bench.delivery ttl [COUNT]
    python -m bench.delivery delay [COUNT]
    python -m bench.delivery expire [COUNT] [--receivers N] [--run N]
    python -m bench.delivery rewind [COUNT] [--rounds N]
    python -m bench.delivery purge [COUNT]
    python -m bench.delivery keys [COUNT]
    python -m bench.delivery promise [COUNT] [--before CHECKOUT] [--rounds N]
    python -m bench.delivery finished [COUNT]

Node, producer and receivers are processes of their own; the log is on disk. `gap_ms` is the longest
time in which the node's reactor did nothing else, `idle_gap_ms` the same while nothing was to be
done: this machine's own. `turn_cpu_ms`: what of such a time it has worked itself, at most;
`node_cpu_s`: what all threads of the node have.

`ttl`: the rate of `send` with a ttl against that without, in pairs that take turns. `delay`: so
many runs that are due in the same second: from then until the receiver has the last of them.
`expire`: so many messages for receivers that are all away are over at once: from then until no
receiver has anything left. `rewind`: `bench.replay`. `purge`: so many messages that wait for a
receiver are cancelled while another gets what a producer sends. `keys`: `send` with a key each
against without, each waited for and many at a time, when there are few keys and when there are so
many; and what these take in memory. `promise`: the rate of `bench.fanout` with a promise of each
message against that without, and with `--before` without against that of another checkout, in
rounds that take turns. `finished`: so many states of messages that have left the log are forgotten,
while another producer is answered.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw

from bench import replay
from bench.processes import ROOT, Role, Stage, finish, stage

PAIRS = 7
FINISHED_LEFT = 1000  # rows


def told(role: Role, **wanted: Any) -> dict[str, Any]:
    return role.ask(json.dumps(wanted))


def command(address: str, *words: str) -> dict[str, Any]:
    """Run a command of `msgservice`; return what it says as JSON."""
    ran = subprocess.run(
        [Path(sys.executable).with_name("msgservice"), *words, "--json", "--node", address],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def sender(made: Stage, address: str, **options: Any) -> Role:
    role = made.start("sender", address=address, **options)
    role.line()
    return role


def idle(node: Role, seconds: float = 1.0) -> float:
    """Return the longest gap while nothing is to be done."""
    node.ask("gap")
    time.sleep(seconds)
    gap: float = node.ask("gap")["gap_ms"]
    return gap


def gaps(found: dict[str, Any], idle_gap: float, before: dict[str, Any]) -> dict[str, float]:
    return {
        "gap_ms": found["gap_ms"],
        "idle_gap_ms": idle_gap,
        "turn_cpu_ms": found["turn_cpu_ms"],
        "node_cpu_s": round(found["cpu_s"] - before["cpu_s"], 2),
    }


def ttl(options: argparse.Namespace) -> dict[str, Any]:
    with stage() as made:
        _, address = made.node()
        made.start("receiver", address=address, name="billing").line()
        shop = sender(made, address)
        rates: dict[str, list[float]] = {"plain": [], "ttl": []}
        for number in range(PAIRS + 1):
            for kind, more in (("plain", {}), ("ttl", {"ttl": 3600})):
                took = told(shop, count=options.count, settled=True, subjects=5000, **more)
                if number:  # the first is to get warm
                    rates[kind].append(options.count / took["seconds"])
        ratios = [one / other for one, other in zip(rates["ttl"], rates["plain"], strict=True)]
        return {
            "plain_s": round(statistics.median(rates["plain"])),
            "ttl_s": round(statistics.median(rates["ttl"])),
            "ratio": round(statistics.median(ratios), 3),
        }


def delay(options: argparse.Namespace) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        billing = made.start("receiver", address=address, name="billing", count=options.count)
        billing.line()
        shop = sender(made, address)
        after = 4 + options.count / 1000
        took = told(shop, count=options.count, delay=after)
        due = took["begin"] + after
        if took["seconds"] > after - 2:
            raise RuntimeError("this machine was too slow to have all of them accepted before")
        idle_gap = idle(node)
        time.sleep(max(0.0, due - time.monotonic() - 0.1))
        before = node.ask("gap")
        end = billing.line()["end"]
        return {
            "runs": options.count,
            "accepted_s": round(options.count / took["seconds"]),
            "seconds": round(end - due, 2),
            **gaps(node.ask("gap"), idle_gap, before),
        }


def expire(options: argparse.Namespace) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        made.start("admin", address=address, receivers=options.receivers).line()
        shop = sender(made, address)
        after = 5 + options.count / 20_000
        took = told(shop, count=options.count, run=options.run, ttl=after)
        shop.stop()
        idle_gap = idle(node)
        due = took["begin"] + after
        time.sleep(max(0.0, due - time.monotonic() - 0.1))
        before = node.ask("gap")
        longest = {"gap_ms": 0.0, "turn_cpu_ms": 0.0, "cpu_s": 0.0}
        is_over = False
        while not is_over:
            time.sleep(0.5)
            rows = command(address, "receivers", "list")["receivers"]
            is_over = not any(row["queued"] for row in rows)
            found = node.ask("gap")
            longest = {name: max(value, found[name]) for name, value in longest.items()}
        return {
            "messages": options.count,
            "receivers": options.receivers,
            "stored_s": round(options.count / took["seconds"]),
            "seconds": round(time.monotonic() - due, 2),
            **gaps(longest, idle_gap, before),
        }


def rewind(options: argparse.Namespace) -> dict[str, Any]:
    return replay.measure(options.count, min(3, options.rounds))


def purge(options: argparse.Namespace) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        away = made.start("receiver", address=address, name="away", subjects="orders.>")
        away.line()
        away.stop()
        shop = sender(made, address)
        told(shop, count=options.count, run=200)
        for i in range(2):
            made.start("receiver", address=address, name=f"o{i}", subjects="others.>").line()
        probe = made.start("latency", address=address, subject="others.new")
        probe.line()
        probe.ask("closed 200")
        before = probe.ask("open 1000 4")["p99_ms"]
        idle_gap = idle(node)
        begun = node.ask("gap")
        probe.say("open 1000 4")
        begin = time.monotonic()
        purged = command(address, "purge", "away", "--yes", "--timeout", "60")
        seconds = time.monotonic() - begin
        during = probe.line()["p99_ms"]
        return {
            "messages": options.count,
            "purged": purged["done"]["count"],
            "seconds": round(seconds, 2),
            **gaps(node.ask("gap"), idle_gap, begun),
            "others_before_p99_ms": before,
            "others_during_p99_ms": during,
        }


def keys(options: argparse.Namespace) -> dict[str, Any]:
    with stage() as made:
        node, address = made.node()
        shop = sender(made, address)
        for keyed in (False, True):
            told(shop, count=min(2000, options.count), keyed=keyed)
        alone = {"alone": True, "count": min(1000, options.count)}
        many = {"count": min(5000, options.count)}
        # All together no more than a node remembers by default: the next would be refused.
        pairs = min(2000, options.count) + 2 * PAIRS * (alone["count"] + many["count"])
        rest = max(1, options.count - pairs)
        figures: dict[str, Any] = {"keys": pairs + rest}
        for place in ("first", "last"):
            for name, more in (("alone", alone), ("many", many)):
                ratios = []
                for _ in range(PAIRS):
                    plain = told(shop, **more)["seconds"]
                    ratios.append(plain / told(shop, keyed=True, **more)["seconds"])
                figures[f"{place}_{name}_ratio"] = round(statistics.median(ratios), 2)
            if place == "first":
                before = node.ask("rss")["rss_mib"]
                took = told(shop, count=rest, keyed=True, subjects=2000)
                figures["keyed_s"] = round(rest / took["seconds"])
                figures["rss_growth_mib"] = round(node.ask("rss")["rss_mib"] - before, 1)
        return figures


def fanned(count: int, checkout: Path, *words: str) -> tuple[float, float]:
    """Return the messages a second, and for a second of CPU, of a checkout's `bench.fanout`.

    The CPU is that of node and producer: it says something on a machine that has others to serve.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "bench.fanout", str(count), *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )
    found = json.loads(ran.stdout.splitlines()[-1])
    return found["messages_s"], count / (found["node_cpu_s"] + found["producer_cpu_s"])


def promise(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    ways: list[tuple[str, tuple[str, ...], int]] = [
        ("send", (), options.count),
        ("send_many", ("--many",), 2 * options.count),
        # Each message is a run: no more are under way than there are subjects, so none grows.
        ("subjects", ("--subjects", "1000", "--window", "1000"), options.count // 5),
    ]
    for way, words, count in ways:
        plays = {"plain": (ROOT, ()), "promise": (ROOT, ("--promise", "3600"))}
        if options.before:
            plays = {"before": (Path(options.before).resolve(), ()), **plays}
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in plays}
        for number in range(options.rounds):
            order = list(plays.items())
            for name, (checkout, more) in order if number % 2 else reversed(order):
                rates[name].append(fanned(count, checkout, *words, *more))
        for name, found in rates.items():
            figures[f"{way}_{name}_s"] = round(statistics.median([rate for rate, _ in found]))
        pairs = [("promise", "plain")] + [("plain", "before")] * bool(options.before)
        for name, other in pairs:
            both = list(zip(rates[name], rates[other], strict=True))
            for at, figure in enumerate(("ratio", "cpu_ratio")):
                median = statistics.median([one[at] / two[at] for one, two in both])
                figures[f"{way}_{name}_{other}_{figure}"] = round(median, 3)
    return figures


def finished(options: argparse.Namespace) -> dict[str, Any]:
    with stage() as made:
        brief = {"keep_seconds": 0.0, "keep_bytes": 0}
        node, address = made.node(limits=json.dumps(brief))
        billing = made.start("receiver", address=address, name="billing", count=options.count)
        billing.line()
        shop = sender(made, address)
        took = told(shop, count=options.count, named=True, settled=True)
        billing.line()
        log = made.folder / "node" / "log.db"
        wait_for(lambda: rows_of(log, "finished_id") >= options.count)
        for role in (shop, billing, node):
            role.stop()
        node, address = made.node(limits=json.dumps(brief | {"finished_rows": FINISHED_LEFT}))
        before, begin = node.ask("gap"), time.monotonic()
        made.start("receiver", address=address, name="other", subjects="others.>").line()
        probe = made.start("latency", address=address, subject="others.new")
        probe.line()
        probe.say("open 1000 4")
        wait_for(lambda: rows_of(log, "finished_id") <= FINISHED_LEFT)
        seconds = time.monotonic() - begin
        found = node.ask("gap")
        others = probe.line()["p99_ms"]
        return {
            "named_s": round(options.count / took["seconds"]),
            "forgotten": options.count - FINISHED_LEFT,
            "seconds": round(seconds, 2),
            **gaps(found, idle(node), before),
            "others_during_p99_ms": others,
        }


def rows_of(log: Path, table: str) -> int:
    """Return how many rows a table of a log has that is in use."""
    db = apsw.Connection(str(log), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        count: int = db.execute(f"select count(*) from {table}").get
        return count
    finally:
        db.close()


def wait_for(done: Callable[[], bool], seconds: float = 600.0) -> None:
    """Wait until this is so."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"it has lasted more than {seconds:g} s")
        time.sleep(0.2)


PLAYS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], int]] = {
    "ttl": (ttl, 50_000),
    "delay": (delay, 100_000),
    "expire": (expire, 1_000_000),
    "rewind": (rewind, 1_000_000),
    "purge": (purge, 1_000_000),
    "keys": (keys, 1_000_000),
    "promise": (promise, 300_000),
    "finished": (finished, 1_000_000),
}


def measure(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="bench.delivery", description=__doc__)
    parser.add_argument("what", choices=PLAYS)
    parser.add_argument("count", type=int, nargs="?", default=0)
    parser.add_argument("--receivers", type=int, default=100)
    parser.add_argument("--run", type=int, default=200)
    parser.add_argument("--before", help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=PAIRS)
    options = parser.parse_args(arguments)
    play, count = PLAYS[options.what]
    options.count = options.count or count
    return play(options)


if __name__ == "__main__":
    finish(measure(sys.argv[1:]))
