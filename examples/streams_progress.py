"""A long computation with its progress in the terminal, in another process.

    python -m examples.streams_progress serve 7412
    python -m examples.streams_progress watch 7412

It looks for the number below 200,000 whose Collatz sequence is the longest. Who watches may come at
any time: the header of the stream says how far it is.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import cooperate, react

from msgservice.faces.streams import (
    Closed,
    Complete,
    Improvement,
    Join,
    MessageStream,
    Monitor,
    Progress,
    RemoteStream,
    Start,
    serve,
)

JOB = "collatz"
NUMBERS = 200_000
STEP = 2_000  # numbers between two messages, and the reactor's turns


def length(number: int) -> int:
    """Return how many steps a Collatz sequence takes to 1."""
    steps = 0
    while number != 1:
        number = 3 * number + 1 if number % 2 else number // 2
        steps += 1
    return steps


def compute(stream: MessageStream) -> Any:
    """Compute, a part in each turn of the reactor, and tell the stream how far it is."""
    best = (0, 1)
    stream.put(JOB, Start())
    for first in range(1, NUMBERS, STEP):
        found = max((length(number), number) for number in range(first, first + STEP))
        done = first + STEP - 1
        stream[JOB] = Join(done, NUMBERS, max(best, found))  # for who comes from now on
        if found > best:
            best = found
            stream.put(JOB, Improvement(best))
        stream.put(JOB, Progress(done, NUMBERS, "numbers"))
        yield
    stream[JOB] = Complete(best)
    stream.put(JOB, Complete(best))
    stream.close(JOB)  # its header stays: who comes later sees the result


class Terminal(Monitor):
    """Prints what happens, until it is over."""

    WIDTH = 40

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred()

    def onMonitorJoin(self, message: Join) -> None:
        """Print where it is for who comes late."""
        self.onMonitorProgress(Progress(message.complete, message.total, "numbers"))

    def onMonitorProgress(self, message: Progress) -> None:
        """Print a bar over the one before."""
        filled = int(self.WIDTH * message.complete / message.total)
        bar = "#" * filled + "." * (self.WIDTH - filled)
        print(f"\r[{bar}] {message.complete:.0f} {message.units}", end="", flush=True)

    def onMonitorImprovement(self, message: Improvement) -> None:
        """Print the best so far."""
        steps, number = message.result
        print(f"\rbest so far: {number} with {steps} steps" + " " * self.WIDTH)

    def onMonitorComplete(self, message: Complete) -> None:
        """Print the result, and end."""
        steps, number = message.result
        if not self.over.called:
            print(f"\nthe longest: {number} with {steps} steps")
            self.over.callback(None)

    def onMonitorClosed(self, message: Closed) -> None:
        """Say that the connection was lost; it is dialled again."""
        if not self.over.called:
            print("\nnot there, waiting")


async def main(reactor: Any, what: str, port: str) -> None:
    """Compute and serve until somebody ends it, or watch until it is done."""
    if what == "serve":
        stream = MessageStream()
        server = serve(int(port), reactor, stream)
        print(f"computing, at port {server.port}", flush=True)
        await cooperate(compute(stream)).whenDone()
        print("done; the result stays until you end me", flush=True)
        await Deferred()
    terminal = Terminal()
    remote = RemoteStream("127.0.0.1", int(port), reactor)
    remote.listen(JOB, terminal)
    await terminal.over
    await remote.close()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("serve", "watch"):
        raise SystemExit("usage: python -m examples.streams_progress serve|watch PORT")
    react(lambda *args: Deferred.fromCoroutine(main(*args)), sys.argv[1:])
