"""The log alone: batches through `append`, groups of natural size, on a real reactor.

    python -m bench.log [SECONDS [FOLDER [SWITCH_INTERVAL]]]

Prints, for batches of one and of 200 messages of 256 bytes: batches/s and messages/s with an idle
reactor and with one that is kept busy, and what a page costs the reader. One JSON line at the end.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from typing import Any
from zlib import crc32

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall

from msgservice.limits import INTEGER_MAX, Limits
from msgservice.log.sqlite import SqliteLog
from msgservice.message import BareMessage, encode_messages
from msgservice.records import Batch, Group, Progress, ReceiverRow


async def feed(log: Any, per_batch: int, seconds: float, waiting_max: int) -> dict[str, float]:
    """Append what a producer would hand in while the last group commits."""
    audience = log.audience([1, 2, 3])
    messages = encode_messages([BareMessage(b"x" * 256)] * per_batch)
    crc, size = crc32(messages), len(messages)
    sequence = log.resume("bench", str(per_batch)).floor
    waiting: list[Batch] = []
    stored = groups = 0
    start = time.perf_counter()
    cpu = time.process_time()
    running: Deferred[Any] | None = None

    def fill() -> None:
        nonlocal sequence
        while len(waiting) < waiting_max:
            waiting.append(
                Batch("bench", str(per_batch), sequence, per_batch, "orders.new", audience,
                      messages, size, crc, sequence - 1)
            )  # fmt: skip
            sequence += per_batch

    last = 0
    while time.perf_counter() - start < seconds:
        fill()
        group = Group(now=1, batches=waiting[:])
        if last:
            group.progress = [Progress(receiver=r, cursor=last, settled={3: 1}) for r in (1, 2, 3)]
        waiting.clear()
        running = log.append(group)
        fill()  # beside the commit
        appended = await running
        stored += len(appended.stored)
        last = appended.stored[-1].last
        groups += 1
    took = time.perf_counter() - start
    return {
        "batches_s": round(stored / took),
        "messages_s": round(stored * per_batch / took),
        "group": round(stored / groups),
        "cpu_us_per_batch": round((time.process_time() - cpu) / stored * 1e6, 1),
    }


async def drain(log: Any, audience: int, seconds: float) -> dict[str, float]:
    """Page through everything."""
    after, count, pages = -1, 0, 0
    longest = 0.0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        at = time.perf_counter()
        page = await log.read([audience], after, INTEGER_MAX, 1 << 20, 4096)
        longest = max(longest, time.perf_counter() - at)
        if not page:
            break
        after = page[-1].last
        count += sum(batch.count for batch in page)
        pages += 1
    took = time.perf_counter() - start
    return {
        "messages_s": round(count / took),
        "pages": pages,
        "longest_ms": round(longest * 1000, 1),
    }


def spin() -> None:
    """Keep the interpreter busy, as a node under load does."""
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until:
        pass


async def main(seconds: float, folder: str) -> None:
    result: dict[str, Any] = {}
    for busy in (False, True):
        for per_batch, waiting in ((1, 1000), (200, 40)):
            path = tempfile.mkdtemp(prefix="log", dir=folder)
            log = SqliteLog(path, reactor=reactor, limits=Limits())
            await log.open()
            rows = [ReceiverRow(number=n, name=f"r{n}", cursor=-1) for n in (1, 2, 3)]
            await log.append(Group(now=1, receivers=rows))
            spinning = LoopingCall(spin)
            if busy:
                spinning.start(0)
            name = f"{'busy' if busy else 'idle'}_{per_batch}"
            result[name] = await feed(log, per_batch, seconds, waiting)
            print(name, result[name], flush=True)
            result[name + "_read"] = await drain(log, log.audience([1, 2, 3]).number, seconds)
            print(name + "_read", result[name + "_read"], flush=True)
            if busy:
                spinning.stop()
            await log.close()
            shutil.rmtree(path)
    print(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        sys.setswitchinterval(float(sys.argv[3]))
    arguments = [*sys.argv[1:], *("3", ".")[len(sys.argv) - 1 :]]
    done = ensureDeferred(main(float(arguments[0]), arguments[1]))
    done.addErrback(lambda failure: failure.printTraceback())
    done.addBoth(lambda _: reactor.stop())  # type: ignore[attr-defined]  # the module
    reactor.run()  # type: ignore[attr-defined]  # the module
