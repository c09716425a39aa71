"""Rows of an outbox table: how fast they are enqueued, and relayed to their end.

    python -m bench.relay
    python -m bench.relay 100000 --rounds 5

A node, one receiver and the relay, a process each, on a table of SQLite in which so many rows of
256 bytes wait, of 10 subjects in turn. *relayed*: from the start of the relay until the last row
says that its message is acknowledged; so each row is read, given its sequence, written to the
outbox's file, stored by the node, handled, and its fate written. `cpu_us`: of the relay's
processor, for each row. *enqueued*: a row at a time with `enqueue`, a thousand to a transaction,
and with `enqueue_many`. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from bench.processes import Stage, finish, stage

BODY = b"x" * 256
SUBJECTS = 10
TRANSACTION = 1000


def fill(database: Path, rows: int) -> dict[str, float]:
    """Enqueue rows; return how many a second."""
    from msgservice.outbox.table import OutboxTable

    table = OutboxTable()
    with closing(sqlite3.connect(database)) as db:
        db.execute("pragma journal_mode = wal")
        table.create(db)
        begun = time.monotonic()
        for first in range(0, rows // 2, TRANSACTION):
            for number in range(first, first + TRANSACTION):
                table.enqueue(db, f"orders.{number % SUBJECTS}", BODY)
            db.commit()
        one = time.monotonic()
        for number in range(0, rows - rows // 2, TRANSACTION):
            table.enqueue_many(db, f"orders.{number % SUBJECTS}", [BODY] * TRANSACTION)
            db.commit()
        many = time.monotonic()
    half = rows / 2
    return {"enqueued_s": half / (one - begun), "enqueued_many_s": half / (many - one)}


def relay(args: argparse.Namespace) -> None:
    from twisted.internet.defer import Deferred
    from twisted.internet.task import deferLater, react

    from msgservice.outbox.relay import Relay

    async def main(reactor: Any) -> None:
        folder = Path(args.folder)
        relay = Relay(
            reactor,
            args.address,
            name="shop",
            outbox=folder / "relay.db",
            database=f"sqlite:///{folder / 'shop.db'}",
        )
        begun, worked = time.monotonic(), time.process_time()
        await relay.start()
        while relay.settled < args.rows:
            await deferLater(reactor, 0.02)
        seconds, cpu = time.monotonic() - begun, time.process_time() - worked
        told = {"relayed_s": args.rows / seconds, "cpu_us": cpu / args.rows * 1e6}
        print(json.dumps(told), flush=True)
        await relay.stop()

    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))


def played(made: Stage, rows: int, address: str, number: int) -> dict[str, float]:
    folder = made.folder / f"round-{number}"
    folder.mkdir()
    found = fill(folder / "shop.db", rows)
    program = made.start("relay", module="bench.relay", rows=rows, folder=folder, address=address)
    found |= program.line()
    program.process.wait(60)
    with closing(sqlite3.connect(folder / "shop.db")) as db:
        states = db.execute("select state, count(*) from msgservice_outbox group by 1").fetchall()
    assert states == [("acknowledged", rows)], states
    return found


def measure(rows: int = 50_000, rounds: int = 3) -> dict[str, Any]:
    with stage() as made:
        _, address = made.node()
        made.start("receiver", address=address, name="r0", count=1 << 60).line()
        found = [played(made, rows, address, number) for number in range(rounds)]
    return {figure: round(median(one[figure] for one in found), 1) for figure in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", default="50000")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder")
    parser.add_argument("--address")
    args = parser.parse_args()
    if args.part == "relay":
        relay(args)
    else:
        finish(measure(int(args.part), args.rounds))


if __name__ == "__main__":
    main()
