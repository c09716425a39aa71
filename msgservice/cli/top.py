"""`msgservice top`: how the node and its receivers are, trouble first, again and again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text
from twisted.internet.task import deferLater

from msgservice.administration import OBSERVE
from msgservice.cli.output import console, counted, cut, lasting, out, plain_table
from msgservice.cli.session import Seconds, Session, Whole, node_options
from msgservice.client.client import Client
from msgservice.clock import Reactor

# Of a terminal: the screen beside the one that is there, and back; cursor to its first place, and
# what is behind it taken away.
BESIDE, BACK, AFRESH = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[H\x1b[J"
HEAD_LINES = 8  # of the screen, that are not receivers


@click.command(short_help="Watch the node and its receivers, trouble first.")
@click.option(
    "--every",
    type=Seconds(),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long until the next look.",
)
@click.option("--count", type=Whole(1), metavar="N", help="End after N looks; in a pipe: 1.")
@node_options
def top(session: Session, every: float, count: int | None) -> None:
    """Show how the node and its receivers are, trouble first, until Ctrl-C.

    Where standard output is no terminal it shows that once, all of it; with --json each look is one
    object on a line.
    """
    shown_to = sys.stdout.isatty() and not session.as_json
    looks = count if count is not None or shown_to else 1

    async def work(reactor: Reactor) -> None:
        done = 0
        async with session.client(reactor) as client:
            if shown_to:
                out(BESIDE, nl=False)
            try:
                while True:
                    node, receivers = await _look(session, reactor, client)
                    if session.as_json:
                        session.show({"node": node, "receivers": receivers}, "")
                    elif shown_to:
                        out(AFRESH, nl=False)
                        screen = console(sys.stdout)
                        lines = max(1, screen.height - HEAD_LINES)
                        out(_screen(node, receivers, lines))
                    else:
                        out(_screen(node, receivers, None))
                    done += 1
                    if done == looks:
                        return
                    await deferLater(reactor, every)
            finally:
                if shown_to:
                    out(BACK, nl=False)

    session.run(work)


async def _look(
    session: Session, reactor: Reactor, client: Client
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the node and all receivers, those in trouble first, then by what waits for them."""
    receivers: list[dict[str, Any]] = []
    after: str | None = ""
    node: dict[str, Any] = {}
    while after is not None:
        page = await session.request(reactor, client, OBSERVE, after=after)
        node, after = page["node"], page["next"]
        receivers += page["receivers"]
    receivers.sort(key=_worst_first)
    return node, receivers


def _worst_first(row: dict[str, Any]) -> tuple[bool, bool, int, str]:
    troubles = row["troubles"]
    severe = any(trouble["is_severe"] for trouble in troubles)
    return not severe, not troubles, -row["queued"], row["name"]


def _screen(
    node: dict[str, Any], receivers: Sequence[dict[str, Any]], lines: int | None
) -> RenderableType:
    parts: list[RenderableType] = [_head(node)]
    said = [(trouble, node) for trouble in node["troubles"]]
    said += [(trouble, row) for row in receivers for trouble in row["troubles"]]
    severe = [(trouble, whose) for trouble, whose in said if trouble["is_severe"]]
    room = len(severe) if lines is None else min(len(severe), max(1, lines // 4))
    for trouble, whose in severe[:room]:
        parts.append(Text(cut(trouble["sentence"]), style="bold"))
        command = f"  {trouble['command']}" if trouble["command"] else ""
        parts.append(Text(f"  {cut(trouble['help'])}{_times(trouble, whose)}{command}"))
    if len(severe) > room:
        parts.append(Text(f"  and {len(severe) - room:,} more in trouble"))
    parts.append(Text())
    rows = len(receivers) if lines is None else max(1, lines - 2 * room)
    table = plain_table("receiver", "health", "queued", "bytes", "oldest", "a second", "dead")
    for row in receivers[:rows]:
        table.add_row(*_row(row))
    parts.append(table if receivers else Text("no receivers"))
    if len(receivers) > rows:
        parts.append(Text(f"and {len(receivers) - rows:,} more, which less waits for"))
    return Group(*parts)


def _times(trouble: dict[str, Any], whose: dict[str, Any]) -> str:
    """Return how long a trouble has lasted, and when it is tried again, as far as that is known."""
    told = ""
    if trouble["since"] is not None:
        told = f" For {lasting((whose['at'] - trouble['since']) / 1000)}."
    again = whose.get("next_try_at")
    if again is not None and trouble["kind"] == whose["health"]:
        told += f" Again in {lasting(max(0, again - whose['at']) / 1000)}."
    return told


def _head(node: dict[str, Any]) -> RenderableType:
    room = node["room"]
    first = Text(f"{node['name']}  {node['version']}", style="bold")
    first.append(
        f"  up {lasting((node['at'] - node['started_at']) / 1000)},"
        f" {counted(node['connections'], 'connection')}, {counted(node['receivers'], 'receiver')}",
        style="not bold",
    )
    return Group(
        first,
        Text(
            f"{node['stored_rate']:,.1f} messages a second in, {node['settled_rate']:,.1f} settled;"
            f" log {room['used']:,} of {room['maximum']:,} bytes; {node['loaded_bytes']:,} loaded"
        ),
    )


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    oldest, health = row["oldest"], row["health"]
    if row.get("shared") and row["connected"]:
        health = f"{health}, {row['workers']} workers"
    since = row.get("health_since")
    if since is None and health == "away":
        since = row["since"]  # of an older node
    if since is not None and health != "up":
        health = f"{health} {lasting((row['at'] - since) / 1000)}"
    return (
        row["name"],
        health,
        f"{row['queued']:,}",
        f"{row['queued_bytes']:,}",
        "" if oldest is None else lasting((row["at"] - oldest["at"]) / 1000),
        f"{row['rate']:,.1f}",
        f"{row['dead']:,}",
    )
