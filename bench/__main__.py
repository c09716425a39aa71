"""All measurements: a table on the terminal, and `bench/RESULTS.md` with the machine's facts.

python -m bench             # all, half an hour
python -m bench programs    # one, whose rows alone are written anew
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from itertools import dropwhile
from pathlib import Path
from typing import Any

import apsw
from rich.console import Console
from rich.table import Table

from bench import (
    backlog,
    chain,
    fanout,
    first_hour,
    http,
    latency,
    pb,
    programs,
    receivers,
    relay,
    replay,
    rpc,
    security,
    shared,
    udp,
    udp_flood,
    why,
)

RESULTS = Path(__file__).parent / "RESULTS.md"

MEASUREMENTS: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    ("fanout 300000 --receivers 3", lambda: fanout.measure(300_000)),
    ("fanout 600000 --receivers 3 --many", lambda: fanout.measure(600_000, many=True)),
    ("fanout 300000 --subjects 1000", lambda: fanout.measure(300_000, subjects=1000)),
    (
        "fanout 2000 --producers 1 --window 1 --receivers 1",
        lambda: fanout.measure(2000, window=1, receivers=1),
    ),
    (
        "fanout 50000 --producers 50 --window 1 --receivers 1",
        lambda: fanout.measure(50_000, producers=50, window=1, receivers=1),
    ),
    ("latency", latency.measure),
    ("backlog", backlog.measure),
    ("replay", replay.measure),
    ("receivers", receivers.measure),
    ("udp", lambda: flat(udp.table())),
    ("udp_flood", udp_flood.measure),
    ("security", security.measure),
    ("pb", pb.measure),
    ("chain", chain.measure),
    ("shared", shared.measure),
    ("http", http.measure),
    ("rpc", rpc.measure),
    ("why", why.measure),
    ("programs", programs.measure),
    ("relay", relay.measure),
    ("first_hour", first_hour.measure),
]


def flat(table: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        f"{row} {figure}": value for row, rest in table.items() for figure, value in rest.items()
    }


def python() -> str:
    """Return which Python this is, and how it was built: that alone is a tenth or a fifth."""
    built = str(sysconfig.get_config_var("CONFIG_ARGS"))
    how = [
        word
        for option, word in (("--enable-optimizations", "profile"), ("--with-lto", "link time"))
        if option in built
    ]
    optimised = f"optimised by {' and '.join(how)}" if how else "built without optimisations"
    return f"Python {platform.python_version()} ({platform.python_compiler()}, {optimised})"


def machine() -> list[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{os.cpu_count()} processors ({platform.machine()}), {memory:.0f} GiB of memory,"
        f" {platform.system()} {platform.release()}",
        f"{python()}, Twisted {version('Twisted')},"
        f" SQLite {apsw.sqlite_lib_version()} through apsw, msgspec {version('msgspec')}",
        f"{date.today().isoformat()}",  # noqa: DTZ011 - the day where it was measured
    ]


HEAD = ["| measurement | figure | value |", "|---|---|---|"]


def after_first_table(text: str) -> list[str]:
    """Return what stands behind the table of all measurements: those that were made alone."""
    lines = dropwhile(lambda line: not line.startswith("|"), text.splitlines())
    return list(dropwhile(lambda line: line.startswith("|"), lines))


def with_section(text: str, name: str, table: list[str], load: float) -> str:
    """Return the results with a section of one measurement, in the place of an earlier one."""
    begins = f"`python -m bench {name}`,"
    lines = text.splitlines()
    at = next((at for at, line in enumerate(lines) if line.startswith(begins)), len(lines))
    behind = list(dropwhile(lambda line: not line.startswith("|"), lines[at:]))
    behind = list(dropwhile(lambda line: line.startswith("|"), behind))
    day = date.today().isoformat()  # noqa: DTZ011 - the day where it was measured
    section = [f"{begins} {day}, at a load of {load:.0f} before it.", "", *HEAD, *table]
    if at == len(lines):
        section.insert(0, "")
    return "\n".join([*lines[:at], *section, *behind]) + "\n"


def main(names: Sequence[str]) -> None:
    """Measure all, or those whose first word is named: they have sections of their own."""
    console = Console()
    table = Table("measurement", "figure", "value")
    results: list[str] = []
    for name, measure in MEASUREMENTS:
        if names and name.split()[0] not in names:
            continue
        console.print(f"… {name}")
        load = os.getloadavg()[0]
        rows = [f"| `{name}` | {figure} | {value} |" for figure, value in measure().items()]
        for row in rows:
            table.add_row(*row.strip("| ").replace("`", "").split(" | "))
        if names:
            RESULTS.write_text(with_section(RESULTS.read_text(), name, rows, load))
        results += rows
    if not names:
        lines = [
            "# Results",
            "",
            "Written by `make bench`. Single runs: compare ratios, not machines.",
            "",
            *(f"* {fact}" for fact in machine()),
            "",
            *HEAD,
            *results,
            *after_first_table(RESULTS.read_text()),
        ]
        RESULTS.write_text("\n".join(lines) + "\n")
    console.print(table)
    console.print(f"written to {RESULTS.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main(sys.argv[1:])
