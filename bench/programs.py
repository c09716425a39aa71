"""The three kinds of program side by side: Twisted's, `msgservice.aio`, `msgservice.blocking`.

    python -m bench.programs
    python -m bench.programs --seconds 5 --rounds 5

A node, one receiver and one program, a process each; messages of 256 bytes. The program text is the
same for all that it is compared with, but for how it calls:

* *send*: one coroutine hands over 200 messages at a time, each with its Deferred or future, and
  waits for the last of them when 20,000 are under way. *awaited*: 200 coroutines, each of which
  awaits every message that it sends.
* *callers*: 8 coroutines, or threads, each with one `send_many` of 200 messages after the other;
  *run*: one with `send_many` of 10,000. *alone*: one that waits for one message after the other.

All are measured in every round, one after the other; ratios are of one round, and their medians are
told, with the lowest and the highest: those of the messages a second, and those of the processor's
time that a message takes of the program, which depends less on what else a machine does. Above 1 is
better than Twisted's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from bench.processes import Stage, finish, stage

SUBJECT = "orders.new"
BODY = b"x" * 256
PACE = 200  # messages handed over between two looks
WINDOW = 20_000
COROUTINES = 200
CALLERS = 8
RUN, LARGE_RUN = 200, 10_000
WARM = 0.2  # of the time, before it counts
PLAYS = {"aio": ("send", "awaited"), "blocking": ("callers", "run", "alone")}


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


class Counter:
    """The messages that were stored between its start, a little from now, and its end."""

    def __init__(self, seconds: float) -> None:
        self.start = time.monotonic() + seconds * WARM
        self.end = self.start + seconds
        self.count = 0
        self._worked = 0.0
        self._lock = threading.Lock()

    def goes_on(self, stored: int) -> bool:
        """Count messages, if they count; return whether there shall be more."""
        now = time.monotonic()
        if self.start <= now < self.end:
            with self._lock:
                if not self.count:
                    self._worked = time.process_time()
                self.count += stored
        return now < self.end

    def tell(self) -> None:
        """Say how many a second, and how much of its processor's time each of them took."""
        worked = time.process_time() - self._worked
        say(rate=self.count / (self.end - self.start), cpu_us=worked / self.count * 1e6)


# --- what is played by coroutines, of Twisted or of asyncio


async def send(client: Any, counter: Counter) -> None:
    under_way: deque[Awaitable[Any]] = deque()
    while True:
        for _ in range(PACE):
            last = client.send(SUBJECT, BODY)
        under_way.append(last)
        if len(under_way) * PACE >= WINDOW:
            await under_way.popleft()
            if not counter.goes_on(PACE):
                break
    for each in under_way:
        await each


async def awaited(client: Any, counter: Counter) -> None:
    while True:
        await client.send(SUBJECT, BODY)
        if not counter.goes_on(1):
            break


async def callers(client: Any, counter: Counter) -> None:
    bodies = [BODY] * RUN
    while True:
        await client.send_many(SUBJECT, bodies)
        if not counter.goes_on(RUN):
            break


async def run(client: Any, counter: Counter) -> None:
    bodies = [BODY] * LARGE_RUN
    while True:
        await client.send_many(SUBJECT, bodies)
        if not counter.goes_on(LARGE_RUN):
            break


PLAYED = {"send": send, "awaited": awaited, "callers": callers, "run": run, "alone": awaited}
AT_ONCE = {"awaited": COROUTINES, "callers": CALLERS}


def twisted(args: argparse.Namespace) -> None:
    from twisted.internet.defer import Deferred, gatherResults
    from twisted.internet.task import react

    from msgservice import connect

    async def main(reactor: Any) -> None:
        client = await connect(reactor, args.address, name="shop")
        counter = Counter(args.seconds)
        play = PLAYED[args.play]
        await gatherResults(
            [
                Deferred.fromCoroutine(play(client, counter))
                for _ in range(AT_ONCE.get(args.play, 1))
            ]
        )
        counter.tell()
        await client.close()

    react(lambda reactor: Deferred.fromCoroutine(main(reactor)))


def aio(args: argparse.Namespace) -> None:
    from msgservice.aio import connect

    async def main() -> None:
        async with connect(args.address, name="shop") as client:
            counter = Counter(args.seconds)
            play = PLAYED[args.play]
            await asyncio.gather(*[play(client, counter) for _ in range(AT_ONCE.get(args.play, 1))])
            counter.tell()

    asyncio.run(main())


# --- what is played by threads


def blocking(args: argparse.Namespace) -> None:
    from msgservice.blocking import connect

    def play() -> None:
        bodies = [BODY] * {"callers": RUN, "run": LARGE_RUN, "alone": 1}[args.play]
        while True:
            if args.play == "alone":
                client.send(SUBJECT, BODY)
            else:
                client.send_many(SUBJECT, bodies)
            if not counter.goes_on(len(bodies)):
                break

    with connect(args.address, name="shop") as client:
        counter = Counter(args.seconds)
        threads = [threading.Thread(target=play) for _ in range(AT_ONCE.get(args.play, 1))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        counter.tell()


# --- the measurement


def played(made: Stage, part: str, play: str, seconds: float, address: str) -> dict[str, float]:
    """Return the messages a second of one program, and its processor's time for each."""
    options: dict[str, Any] = {"play": play, "seconds": seconds, "address": address}
    program = made.start(part, module="bench.programs", **options)
    found: dict[str, float] = program.line()
    program.process.wait(60)
    return found


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Return the median of the ratios of each round, with the lowest and the highest."""
    found = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def measure(seconds: float = 3.0, rounds: int = 5) -> dict[str, Any]:
    found: dict[tuple[str, str, str], list[float]] = {}
    with stage() as made:
        _, address = made.node()
        made.start("receiver", address=address, name="r0", count=1 << 60).line()
        for _ in range(rounds):
            for part, plays in PLAYS.items():
                for play in plays:
                    for one in ("twisted", part):
                        for figure, value in played(made, one, play, seconds, address).items():
                            found.setdefault((one, play, figure), []).append(value)
    figures: dict[str, Any] = {}
    for part, plays in PLAYS.items():
        for play in plays:
            for one in ("twisted", part):
                figures[f"{one}_{play}_s"] = round(median(found[one, play, "rate"]))
                figures[f"{one}_{play}_cpu_us"] = round(median(found[one, play, "cpu_us"]), 2)
            rates = [found[one, play, "rate"] for one in (part, "twisted")]
            figures[f"{part}_{play}_ratio"] = ratios(*rates)
            worked = [found[one, play, "cpu_us"] for one in ("twisted", part)]
            figures[f"{part}_{play}_cpu_ratio"] = ratios(*worked)
    return figures


PARTS: tuple[Callable[[argparse.Namespace], None], ...] = (twisted, aio, blocking)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?")
    parser.add_argument("--play", default="send")
    parser.add_argument("--address")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for part in PARTS:
        if part.__name__ == args.part:
            part(args)
            return
    finish(measure(args.seconds, args.rounds))


if __name__ == "__main__":
    main()
