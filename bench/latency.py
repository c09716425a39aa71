"""How long one message takes to three receivers and back, against what disk and sockets take.

    python -m bench.latency
    python -m bench.latency --before CHECKOUT [--rounds N] [--closed N] [--seconds N]
    python -m bench.latency --functions N [--before CHECKOUT]

The floor is two 4 KiB appends with fdatasync in the node's folder plus two round trips of a bare
Twisted TCP echo, medians, measured in the same run. *Closed*: one message in flight, durable,
from `send` until all three acknowledgements are back. *Open*: 1,000 messages a second whatever
comes back, from when each was due. `handler`: from `send`, or from when it was due, until a
receiver's handler is called. CPU is that of each process for one closed message, of the receivers
all three, and the node's for one of the open loop. System calls of the node for one closed message
are counted where there is `strace`, in a run of its own that is part of no time. So are calls of
functions, on the reactor's thread: those written in Python, and those that are built in. They do
not depend on what else the machine does; `--functions` measures nothing else, and says on standard
error which are called most in each process, with the calls of built-in ones that they make.

`--before`: the processes of another checkout stand beside ours, and both are measured in rounds
that take turns, so that a machine with other work troubles both alike. A ratio is ours to theirs of
one round, the median of all rounds; below 1 is better.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.processes import Role, Stage, finish, stage

RECEIVERS = 3
RATE = 1000  # messages a second of the open loop
WARM = 300
TRACED = 300  # messages
CALLS = ("futex", "fcntl", "epoll_wait", "fdatasync", "sendto", "recvfrom")
ROUNDS = 5


def percentile(taken: list[float], share: float) -> float:
    taken = sorted(taken)
    return round(taken[min(len(taken) - 1, int(len(taken) * share))], 3)


class Side:
    """A node, three receivers and a producer, of one checkout."""

    def __init__(
        self, made: Stage, checkout: Path | None = None, env: dict[str, str] | None = None
    ) -> None:
        self.folder = made.folder
        self.node, address = made.node(checkout=checkout, env=env)
        self.receivers = [
            made.start("receiver", checkout=checkout, address=address, name=f"r{i}", stamped=True)
            for i in range(RECEIVERS)
        ]
        for receiver in self.receivers:
            receiver.line()
        self.probe = made.start("latency", checkout=checkout, address=address)
        self.probe.line()
        self.closed(WARM)

    def _cpu(self) -> list[float]:
        """Return the seconds of node, producer and receivers."""
        node, probe, *receivers = (
            role.ask("cpu")["cpu_s"] for role in (self.node, self.probe, *self.receivers)
        )
        return [node, probe, sum(receivers)]

    def _taken(self, what: str) -> dict[str, float]:
        """Let the producer send; return what was taken, in milliseconds."""
        said = self.probe.ask(what)
        handled: list[float] = []
        for receiver in self.receivers:
            handled += receiver.ask("handled")["handled_ms"]
        kind = what.split()[0]
        return {
            f"{kind}_p50_ms": said["p50_ms"],
            f"{kind}_p99_ms": said["p99_ms"],
            f"{kind}_handler_p50_ms": percentile(handled, 0.5),
            f"{kind}_handler_p99_ms": percentile(handled, 0.99),
        }

    def closed(self, count: int) -> dict[str, float]:
        before = self._cpu()
        figures = self._taken(f"closed {count}")
        for name, was, now in zip(
            ("node", "producer", "receivers"), before, self._cpu(), strict=True
        ):
            figures[f"{name}_cpu_us"] = round((now - was) * 1e6 / count, 1)
        return figures

    def opened(self, seconds: float) -> dict[str, float]:
        before = self._cpu()
        figures = self._taken(f"open {RATE} {seconds}")
        used = self._cpu()[0] - before[0]
        return figures | {"open_node_cpu_us": round(used * 1e6 / (RATE * seconds), 1)}

    def calls(self) -> dict[str, float]:
        """Return the node's system calls for one closed message; empty where none are counted."""
        trace = Trace.of(self.node, self.folder / "calls")
        if trace is None:
            return {}
        self.probe.ask(f"closed {TRACED}")
        found = trace.end()
        for receiver in self.receivers:
            receiver.ask("handled")
        figures = {name: found.get(name, 0) for name in CALLS} | {"all": sum(found.values())}
        return {f"{name}_calls": round(count / TRACED, 1) for name, count in figures.items()}

    def functions(self, most: int = 0) -> dict[str, float]:
        """Return the calls of functions for one closed message; of receivers, those of one.

        The `most` called of each process are listed on standard error, with the calls that they
        make of what is built in.
        """
        figures: dict[str, float] = {}
        roles = {"node": self.node, "producer": self.probe, "receiver": self.receivers[0]}
        for name, role in roles.items():
            role.ask("profile")
            self.probe.ask(f"closed {TRACED}")
            calls: dict[str, list[int]] = role.ask("profiled")["calls"]
            by_cost = sorted(calls.items(), key=lambda one: -sum(one[1]))
            for function, (count, inner) in by_cost[:most]:
                line = f"{name} {count / TRACED:7.2f} {inner / TRACED:7.2f} {function}"
                print(line, file=sys.stderr)
            for what, place in (("functions", 0), ("built_in", 1)):
                total = sum(counts[place] for counts in calls.values())
                figures[f"{name}_{what}"] = round(total / TRACED, 1)
        for receiver in self.receivers:
            receiver.ask("handled")
        return figures


class Trace:
    """A running count of the system calls of a process, by `strace`."""

    def __init__(self, strace: subprocess.Popen[bytes], output: Path) -> None:
        self._strace = strace
        self._output = output

    @classmethod
    def of(cls, role: Role, output: Path) -> Trace | None:
        """Begin to count; None where that is not possible."""
        if shutil.which("strace") is None:
            return None
        pid = role.process.pid
        strace = subprocess.Popen(
            ["strace", "-c", "-f", "-p", str(pid), "-o", str(output)], stderr=subprocess.DEVNULL
        )
        status = Path(f"/proc/{pid}/status")
        while strace.poll() is None:
            if "TracerPid:\t0\n" not in status.read_text():
                return cls(strace, output)
            time.sleep(0.05)
        return None  # it may not

    def end(self) -> dict[str, int]:
        """Return how often each was called."""
        self._strace.send_signal(signal.SIGINT)
        self._strace.wait()
        found = {}
        for line in self._output.read_text().splitlines():
            words = line.split()  # % time, seconds, µs of a call, calls, errors if any, name
            if len(words) >= 5 and words[3].isdigit() and words[-1] != "total":
                found[words[-1]] = int(words[3])
        return found


def floor_of(side: Side, echo_port: int) -> dict[str, float]:
    found: dict[str, float] = side.probe.ask(f"floor {side.folder} {echo_port}")
    return found


def measure(closed: int = 1000, seconds: float = 10.0) -> dict[str, Any]:
    with stage() as made:
        side = Side(made)
        echo_port = made.start("echo").line()["port"]
        floors = [floor_of(side, echo_port)]
        figures: dict[str, Any] = side.closed(closed) | side.opened(seconds)
        floors.append(floor_of(side, echo_port))
        floor_ms = round(statistics.mean([one["floor_ms"] for one in floors]), 3)
        return {
            **figures,
            "floor_ms": floor_ms,
            "closed_ratio": round(figures["closed_p50_ms"] / floor_ms, 2),
            "open_ratio": round(figures["open_p99_ms"] / floor_ms, 2),
            "sync_ms": floors[0]["sync_ms"],
            "round_trip_ms": floors[0]["round_trip_ms"],
            **side.calls(),
            **side.functions(),
        }


def compare(before: Path, rounds: int, closed: int, seconds: float) -> dict[str, Any]:
    """Return our figures, those of another checkout, and the ratios, as medians of all rounds."""
    with ExitStack() as stack:
        sides = {
            name: Side(stack.enter_context(stage()), checkout)
            for name, checkout in (("ours", None), ("before", before))
        }
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for number in range(rounds):
            order = list(sides.items())
            for name, side in order if number % 2 else reversed(order):
                taken[name].append(side.closed(closed) | side.opened(seconds))
        figures: dict[str, Any] = {"rounds": rounds}
        for figure in taken["ours"][0]:
            both = [[one[figure] for one in taken[name]] for name in ("before", "ours")]
            for name, found in zip(("before", "ours"), both, strict=True):
                figures[f"{name} {figure}"] = round(statistics.median(found), 3)
            ratios = [ours / theirs for theirs, ours in zip(*both, strict=True) if theirs]
            if ratios:
                figures[f"{figure} ratio"] = round(statistics.median(ratios), 3)
        for name, side in sides.items():
            counted = side.calls() | side.functions()
            figures |= {f"{name} {what}": count for what, count in counted.items()}
        return figures


def functions(checkout: Path | None, most: int) -> dict[str, Any]:
    # Which thread writes is not to hang on the disk.
    env = {"MSGSERVICE_INLINE_COMMITS": os.environ.get("MSGSERVICE_INLINE_COMMITS", "on")}
    with stage() as made:
        return Side(made, checkout, env).functions(most)


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="bench.latency", description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--closed", type=int, default=1000, help="messages")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the open loop")
    parser.add_argument("--functions", type=int, metavar="N", help="count calls alone, list N")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.closed) < 1 or options.seconds <= 0:
        parser.error("--rounds, --closed and --seconds are above 0")
    if options.before is not None and not (options.before / "msgservice").is_dir():
        parser.error(f"--before {options.before}: no checkout, there is no folder msgservice in it")
    if options.functions is not None:
        return functions(options.before, options.functions)
    if options.before is None:
        return measure(options.closed, options.seconds)
    return compare(options.before.resolve(), options.rounds, options.closed, options.seconds)


if __name__ == "__main__":
    finish(main(sys.argv[1:]))
