"""The whole story with real processes: nothing is lost, nothing comes twice, whoever is killed.

    python -m examples.demo [FILE]

A node, one receiver that the node dials, two that attach, and a producer with an outbox on disk
bring every line of FILE to each receiver. While between 20 % and 80 % is delivered, a receiver,
the node and the producer are each killed once with SIGKILL and started again. At the end each
receiver's output is compared with FILE byte for byte. The last line is JSON; the exit status is
0 only if all of it is true.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DIALLED, ATTACHED = "billing", ("archive", "audit")
RECEIVERS = (DIALLED, *ATTACHED)
LOW, HIGH = 0.2, 0.8
# One receiver has so much when somebody is killed, and each has LOW: one that was killed itself may
# take long to come back, and the others go on. The node is the last: while it is away
# the producer hands on, and what waited then comes at once, however slow the machine is.
KILLS = (("archive", 0.25), ("producer", 0.42), ("node", 0.60))
SECONDS_MIN = 6.0  # a run takes at least so long, for kills to fall into it
SECONDS_MAX = 300.0
POLL = 0.01

console = Console(stderr=True)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, and that the kernel gives nobody who asks for any one.

    While a program is killed, another of this machine could be given its port otherwise.
    """
    ports = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.append(port)
        if len(ports) == count:
            break
    return ports


class Cast:
    """The processes of the story, by name; each can be killed and started again."""

    def __init__(self, folder: Path, file: Path, lines: int) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        node_port, receiver_port = free_ports(2)
        address = f"tcp:127.0.0.1:{node_port}"
        config = folder / "node.toml"
        config.write_text(
            f'[node]\ndata = "{folder / "node"}"\n\n'
            f'[listen]\ntcp = "tcp:{node_port}:interface=127.0.0.1"\n\n'
            f'[[receiver]]\nname = "{DIALLED}"\naddress = "tcp:127.0.0.1:{receiver_port}"\n'
            f'subjects = ["lines.>"]\n'
        )
        pace = max(1, int(lines / SECONDS_MIN * 0.02))
        roles = [sys.executable, "-m", "examples.demo_roles"]
        self.commands: dict[str, list[str]] = {
            "node": [
                *(sys.executable, "-m", "twisted", "--log-format=text"),
                *("msgservice", "--config", str(config)),
            ],
            "producer": [
                *roles,
                "producer",
                *("--address", address, "--outbox", str(folder / "outbox.db")),
                *("--file", str(file), "--pace", str(pace)),
            ],
        }
        for name in RECEIVERS:
            where = (
                ("--listen", f"tcp:{receiver_port}:interface=127.0.0.1")
                if name == DIALLED
                else ("--attach", address)
            )
            self.commands[name] = [
                *roles,
                "receiver",
                *("--name", name, "--inbox", str(self.inbox(name)), *where),
            ]

    def inbox(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                self.commands[name],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def wait_until_heard(self, name: str, text: str, times: int = 1) -> None:
        output = self.folder / f"{name}.out"
        until(
            lambda: output.exists() and output.read_text(errors="replace").count(text) >= times,
            f"{name} to say {text!r}",
        )

    def delivered(self, name: str) -> int:
        """How many lines a receiver has on disk."""
        try:
            database = apsw.Connection(str(self.inbox(name)), flags=apsw.SQLITE_OPEN_READONLY)
        except apsw.CantOpenError:
            return 0
        try:
            database.set_busy_timeout(1000)
            count: Any = database.execute("select count(*) from output").get
            return int(count)
        except apsw.SQLError:
            return 0  # it has not made its table yet
        finally:
            database.close()

    def output(self, name: str) -> list[bytes]:
        database = apsw.Connection(str(self.inbox(name)), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            rows = database.execute("select line from output order by number")
            return [bytes(row[0]) for row in rows]
        finally:
            database.close()

    def end(self) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(POLL)


def play(cast: Cast, lines: list[bytes]) -> list[dict[str, Any]]:
    """Deliver everything, killing on the way; return who was killed, and when."""
    total = len(lines)
    kills: list[dict[str, Any]] = []
    cast.start("node")
    cast.wait_until_heard("node", "listening on")
    for name in RECEIVERS:
        cast.start(name)
        cast.wait_until_heard(name, "started")
    until(lambda: all(cast.inbox(name).exists() for name in RECEIVERS), "the inboxes")
    wait_until_attached(cast)
    cast.start("producer")
    deadline = time.monotonic() + SECONDS_MAX
    columns = (TextColumn("{task.description:8}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console) as progress:
        tasks = {name: progress.add_task(name, total=total) for name in RECEIVERS}
        pending = list(KILLS)
        while True:
            counts = {name: cast.delivered(name) for name in RECEIVERS}
            for name, count in counts.items():
                progress.update(tasks[name], completed=count)
            slowest, fastest = min(counts.values()), max(counts.values())
            if pending and fastest >= pending[0][1] * total and slowest >= LOW * total:
                who, _ = pending.pop(0)
                if fastest > HIGH * total:
                    raise RuntimeError(f"{who} was to be killed before {HIGH:.0%} was delivered")
                cast.kill(who)
                kills.append({"who": who, "at": round(slowest / total, 3)})
                progress.console.print(f"killed {who} at {slowest / total:.0%}")
                cast.start(who)
            if slowest >= total and not pending:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"not delivered within {SECONDS_MAX:.0f} s: {counts}")
            time.sleep(POLL)
    cast.wait_until_heard("producer", "accepted")
    return kills


def wait_until_attached(cast: Cast) -> None:
    """Receivers that attach are known to the node before the first line is sent."""
    command = [str(Path(sys.executable).with_name("msgservice")), "receivers", "list", "--json"]
    address = cast.commands["producer"][cast.commands["producer"].index("--address") + 1]

    def known() -> bool:
        asked = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"MSGSERVICE_NODE": address},
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.returncode == 0 and connected(asked.stdout) == set(RECEIVERS)

    until(known, "the receivers to be attached")


def connected(listing: str) -> set[str]:
    """The receivers that `msgservice receivers list --json` says are connected."""
    rows = json.loads(listing)["receivers"]
    return {row["name"] for row in rows if row["connected"]}


def compare(name: str, found: list[bytes], lines: list[bytes]) -> dict[str, Any]:
    """What one receiver has against what was sent."""
    distinct = set(found)
    return {
        "received": len(found),
        "lost": sum(1 for line in lines if line not in distinct),
        "duplicated": len(found) - len(distinct),
        "same_bytes": b"".join(found) == b"".join(lines),
    }


def main() -> int:
    file = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "examples" / "lines.txt").resolve()
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        console.print(f"{file} cannot be read: {error.strerror}")
        return 2
    if len(set(lines)) != len(lines):
        console.print(f"{file} has lines that are the same: duplicates could not be told apart")
        return 2
    with tempfile.TemporaryDirectory(prefix="msgservice-demo-") as folder:
        cast = Cast(Path(folder), file, len(lines))
        started = time.monotonic()
        try:
            kills = play(cast, lines)
            seconds = round(time.monotonic() - started, 2)
            results = {name: compare(name, cast.output(name), lines) for name in RECEIVERS}
        except (TimeoutError, RuntimeError) as error:
            for name in cast.commands:
                output = cast.folder / f"{name}.out"
                if output.exists():
                    console.print(f"--- {name}", output.read_text(errors="replace")[-2000:])
            console.print(f"[red]{error}[/red]")
            return 1
        finally:
            cast.end()
    table = Table(title=f"{len(lines)} lines of {file.name}, to {len(RECEIVERS)} receivers")
    for column in ("receiver", "received", "lost", "duplicated", "same bytes as the input"):
        table.add_column(column, justify="left" if column == "receiver" else "right")
    for name, result in results.items():
        same = "yes" if result["same_bytes"] else "NO"
        counts = (str(result[key]) for key in ("received", "lost", "duplicated"))
        table.add_row(name, *counts, same)
    Console().print(table)
    summary = {
        "sent": len(lines),
        "receivers": results,
        "kills": kills,
        "lost": sum(result["lost"] for result in results.values()),
        "duplicated": sum(result["duplicated"] for result in results.values()),
        "seconds": seconds,
    }
    print(json.dumps(summary), flush=True)
    whole = all(r["same_bytes"] and not r["lost"] and not r["duplicated"] for r in results.values())
    in_time = len(kills) == len(KILLS) and all(LOW <= kill["at"] <= HIGH for kill in kills)
    return 0 if whole and in_time else 1


if __name__ == "__main__":
    sys.exit(main())
