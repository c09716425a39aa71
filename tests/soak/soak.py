"""The soak: real processes under a mixed load, killed with SIGKILL again and again.

    shop (outbox on disk), web (none) ─► node ─► once (stored inbox), udp (over UDP), dialled

Half of the kills fall at random moments; for the other half the next life is armed with a named
point of `points`, each in its turn, and ends itself there. At the end everybody lives, the load is
over, and what the ledgers say is judged by `judge`.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import apsw

from tests.kit.logs import recounted
from tests.kit.ports import free_port
from tests.soak.judge import Evidence, lost, wrong
from tests.soak.points import ONCE_A_LIFE, POINTS, every_point

ROOT = Path(__file__).resolve().parents[2]
RECEIVERS = ("once", "udp", "dialled")
PRODUCERS = ("shop", "web")
# Who is killed how often, in proportion.
WEIGHTS = {"node": 10, "shop": 4, "web": 2, "once": 4, "udp": 2, "dialled": 2}
POINT_SECONDS = 20.0  # for an armed process to come to its point; then it is killed where it is
STEP_SECONDS = 60.0  # for some messages to get through: nothing else is a measure of being alive
DRAIN_SECONDS = 1200.0  # for all that is left, as long as some get through
ENOUGH = 250  # messages promised per kill, before the producers may end
POLL = 0.02
CONFIG = """\
[node]
data = "{folder}/node"

[listen]
tcp = "tcp:{tcp}:interface=127.0.0.1"
udp = "udp:{udp}:interface=127.0.0.1"

[[receiver]]
name = "dialled"
address = "tcp:127.0.0.1:{dialled}"
subjects = ["load.>"]
order = "strict"

[[receiver]]
name = "once"
subjects = ["load.>"]

[[receiver]]
name = "udp"
subjects = ["load.>"]

[limits]
link_delay_min = 0.05
link_delay_max = 0.3
keep_seconds = 0
backlog_bytes = 2_000_000
reserve_bytes = 8_388_608
"""


class Soak:
    """All processes, in a folder. `tell`: gets a line for each thing that happens."""

    def __init__(self, folder: Path, seed: int, tell: Callable[[str], None]) -> None:
        self.folder = folder
        self.random = Random(seed)
        self.kills: Counter[str] = Counter()
        self.reached: Counter[tuple[str, str]] = Counter()
        self._points: list[tuple[str, str, int]] = []  # role, point and visit of the kills to come
        self._tell = tell
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clock = Event()  # never set: waiting for it is a pause
        ports = {
            "tcp": free_port(socket.SOCK_STREAM),
            "udp": free_port(socket.SOCK_DGRAM),
            "dialled": free_port(socket.SOCK_STREAM),
        }
        (folder / "ports.json").write_text(json.dumps(ports))
        (folder / "node.toml").write_text(CONFIG.format(folder=folder, **ports))
        self._address = f"tcp:127.0.0.1:{ports['tcp']}"

    def start(self, role: str, point: str = "", visits: int = 1) -> None:
        """Begin a life."""
        command = [sys.executable, "-m", "tests.soak.roles", role, str(self.folder)]
        if point:
            command += ["--point", point, "--visits", str(visits)]
        with (self.folder / f"{role}.out").open("ab") as output:
            self._processes[role] = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def size(self, role: str) -> int:
        """Return how long a ledger is."""
        path = self.folder / f"{role}.ledger"
        return path.stat().st_size if path.exists() else 0

    def wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for something that must come. `AssertionError` with all output where it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if ready():
                return
            self.check_alive()
            self._clock.wait(POLL)
        raise AssertionError(f"{what}: not within {seconds:g} s\n{self.said()}")

    def check_alive(self) -> None:
        """Nobody ends but by SIGKILL: a process that gives up is a finding."""
        for role, process in self._processes.items():
            code = process.poll()
            if code not in (None, -signal.SIGKILL) and not (code == 0 and role in PRODUCERS):
                raise AssertionError(f"{role} ended by itself with {code}\n{self.said()}")

    def said(self) -> str:
        """Return the end of what everybody printed."""
        return "\n".join(
            f"--- {path.name}\n" + path.read_text(errors="replace")[-2000:]
            for path in sorted(self.folder.glob("*.out"))
        )

    def run(self, kills: int) -> None:
        """Kill so often, then bring all to its end."""
        for role in POINTS:
            self.start(role)
        for number in range(kills):
            told = self.size("shop")
            self.wait("progress", lambda told=told: self.size("shop") > told + 500, STEP_SECONDS)  # type: ignore[misc]  # a lambda's default
            self._kill_one(number)
        self._drain("enough promised", lambda: self._promised() >= kills * ENOUGH)
        (self.folder / "over").touch()
        self._drain("the producers' end", self._producers_done)
        self._drain("nothing queued", self._is_drained)
        discrepancies = self.ask("$node.audit")["discrepancies"]
        assert [] == discrepancies, discrepancies
        discrepancies = recounted(self.folder / "node")
        assert [] == discrepancies, discrepancies

    def _promised(self) -> int:
        """Return how many messages the producers were told to be stored."""
        ledgers = [self.folder / f"{role}.ledger" for role in PRODUCERS]
        return sum(path.read_bytes().count(b"told ") for path in ledgers if path.exists())

    def _drain(self, what: str, ready: Callable[[], bool]) -> None:
        """Wait while messages get through: a step in which none does is a stall."""
        end = time.monotonic() + DRAIN_SECONDS
        while not ready():
            before = self._progress()

            def moved(before: list[int] = before) -> bool:
                return self._progress() != before or ready()

            self.wait(f"{what}, or any message", moved, STEP_SECONDS)
            assert time.monotonic() < end, f"{what}: not within {DRAIN_SECONDS:g} s\n{self.said()}"

    def _progress(self) -> list[int]:
        """Return what changes when a message gets through to anybody."""
        inbox = self.folder / "once.db-wal"
        changed = inbox.stat().st_mtime_ns if inbox.exists() else 0
        return [changed, *map(self.size, POINTS)]

    def _kill_one(self, number: int) -> None:
        random = self.random
        point, visits = "", 1
        role = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if number % 2:
            role, point, visits = self._next_point()
        self._clock.wait(random.uniform(0.0, 0.1))
        self._end(role)
        how = point or "at random"
        if point:
            self.start(role, point, visits)
            try:
                self._processes[role].wait(POINT_SECONDS)
                self.reached[role, point] += 1
            except subprocess.TimeoutExpired:
                how += f" (visit {visits} not reached)"
                self._points.insert(0, (role, point, 1))
            self._end(role)
        self.kills[role] += 1
        self._tell(f"{number + 1}: {role} {how}")
        self.start(role)

    def _next_point(self) -> tuple[str, str, int]:
        """Return whom to kill where, at which visit: all points in turn, each time mixed anew."""
        if not self._points:
            for role, point in every_point():
                visits = 1 if point in ONCE_A_LIFE else self.random.choice([1, 1, 2, 5])
                self._points.append((role, point, visits))
            self.random.shuffle(self._points)
        return self._points.pop()

    def _end(self, role: str) -> None:
        process = self._processes[role]
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL, (role, process.returncode, self.said())

    def _producers_done(self) -> bool:
        return all(self._processes[role].poll() == 0 for role in PRODUCERS)

    def ask(self, subject: str) -> dict[str, Any]:
        """Ask the node something, with the command line's own client."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.soak.asking", self._address, subject],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _is_drained(self) -> bool:
        rows = self.ask("$node.receivers.list")["receivers"]
        return len(rows) == len(RECEIVERS) and all(row["queued"] == 0 for row in rows)

    def stop(self) -> None:
        """End everybody."""
        for process in self._processes.values():
            process.kill()
            process.wait()

    def evidence(self) -> Evidence:
        """Return what all ledgers say, and the inbox's table."""
        evidence = Evidence()
        for name in PRODUCERS:
            evidence.read_producer(name, (self.folder / f"{name}.ledger").read_text().splitlines())
        for name in POINTS:
            evidence.read_output(name, (self.folder / f"{name}.out").read_text(errors="replace"))
        for name in ("udp", "dialled"):
            evidence.read_receiver(name, (self.folder / f"{name}.ledger").read_text().splitlines())
        db = apsw.Connection(str(self.folder / "once.db"))
        try:
            rows = db.execute("select sender, number, lane from output order by rowid")
            evidence.table = [(str(sender), int(n), int(lane)) for sender, n, lane in rows]
        finally:
            db.close()
        return evidence


@dataclass(frozen=True)
class Verdict:
    """What a soak has shown. `found`: all that is not as it should be, a line each."""

    promised: int
    found: list[str]
    not_reached: list[str]  # named points that no process ended itself at


def soak(folder: Path, kills: int, seed: int, tell: Callable[[str], None]) -> Verdict:
    """Run a soak, and judge it."""
    one = Soak(folder, seed, tell)
    try:
        one.run(kills)
    finally:
        one.stop()
    evidence = one.evidence()
    tell(", ".join(f"{name}: {count}" for name, count in sorted(one.kills.items())))
    promised = sum(map(len, evidence.told.values()))
    not_reached = [f"{role} {point}" for role, point in every_point().keys() - one.reached.keys()]
    return Verdict(promised, lost(evidence) + wrong(evidence), sorted(not_reached))
