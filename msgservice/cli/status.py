"""`msgservice status` and `msgservice info`: what became of a message, and how the node is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from rich.console import Group
from rich.table import Table

from msgservice.cli.session import Session, node_options


@click.command(short_help="Say what became of a message at each receiver.")
@click.argument("message_id", metavar="ID")
@node_options
def status(session: Session, message_id: str) -> None:
    """Say where a message is: its status at each receiver, and why.

    ID is the sender's own id of it, SENDER/INCARNATION/SEQUENCE as the node shows it, or
    log:POSITION.
    """

    async def work(reactor: Any) -> None:
        found = await session.ask(reactor, "$node.status", id=message_id)
        session.show(found, lambda: _status_table(found))

    session.run(work)


@click.command(short_help="Say who the node is, and how full its log is.")
@node_options
def info(session: Session) -> None:
    """Say who the node is, where it listens, and how full its log is."""

    async def work(reactor: Any) -> None:
        found = await session.ask(reactor, "$node.info")
        session.show(found, lambda: _info_table(found))

    session.run(work)


def plain_table(*headings: str) -> Table:
    """Return a table without rules around it: it is read by people and by `awk`."""
    table = Table(box=None, pad_edge=False, show_header=bool(headings), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _status_table(found: dict[str, Any]) -> Group:
    facts = plain_table()
    facts.add_row("subject", found["subject"])
    facts.add_row("position", str(found["position"]))
    facts.add_row("sender", found["sender"])
    facts.add_row("stored", _moment(found["stored_at"]))
    table = plain_table("receiver", "status", "attempts", "reason")
    for name, at in sorted(found["receivers"].items()):
        table.add_row(name, at["status"], str(at["attempts"]), at["reason"] or "")
    return Group(facts, "", table if found["receivers"] else "no receivers")


def _info_table(found: dict[str, Any]) -> Table:
    room = found["room"]
    table = plain_table()
    table.add_row("name", found["name"])
    table.add_row("version", found["version"])
    table.add_row("log", found["log_id"])
    for listener in found["listeners"]:
        table.add_row("listens on", listener)
    table.add_row("used", f"{room['used']:,} of {room['maximum']:,} bytes")
    table.add_row("free on disk", f"{room['free']:,} bytes")
    if room["full"]:
        table.add_row("refuses", room["full"])
    return table


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(" ", "milliseconds")
