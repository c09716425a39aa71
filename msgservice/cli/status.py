"""`msgservice status`, `info` and `whoami`: what became of a message, how the node is, who asks."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group
from rich.table import Table

from msgservice.administration import INFO, STATUS, WHOAMI
from msgservice.cli.output import cut, moment, out, plain_table
from msgservice.cli.pages import JsonOfPages, TableOfPages
from msgservice.cli.promised import promise_line
from msgservice.cli.session import Session, is_utf8, node_options
from msgservice.clock import Reactor
from msgservice.core.reasons import first_line
from msgservice.errors import RequestFailed, UnknownMessage


@click.command(short_help="Say what became of a message at each receiver.")
@click.argument("message_id", metavar="ID", required=False)
@node_options
def status(session: Session, message_id: str | None) -> None:
    """Say where a message is: its status at each receiver, and why.

    ID is the sender's own id of it, SENDER/INCARNATION/SEQUENCE as the node shows it, or
    log:POSITION.
    """
    if not message_id:
        raise click.UsageError(
            "Missing argument 'ID' of a message; msgservice info says how the node is,"
            " msgservice receivers list what waits for whom"
        )
    if not is_utf8(message_id):
        raise click.UsageError("ID is no UTF-8: no message has such an id")

    async def work(reactor: Reactor) -> None:
        table = TableOfPages("receiver", "status", "attempts", "reason")
        json, identity = JsonOfPages("receivers"), message_id
        begun, shown = False, 0
        after: int | None = 0
        async with session.client(reactor) as client:
            while after is not None:
                question = {"id": identity, "after": after}
                try:
                    page = await session.request(reactor, client, STATUS, **question)
                except RequestFailed as error:
                    if error.code != UnknownMessage.refusal_code or not identity.isdecimal():
                        raise
                    raise _hinted(error, identity) from None
                after = page["next"]
                if page["position"]:
                    identity = f"log:{page['position']}"
                shown += len(page["receivers"])
                if session.as_json:
                    json.print(page)
                    continue
                if not begun:
                    session.show(page, Group(_facts(page), ""))
                    begun = True
                table.print([_row(name, at) for name, at in page["receivers"].items()])
        if session.as_json:
            json.end()
        elif not shown:
            out("nobody has it yet" if page.get("due") else "no receivers")

    session.run(work)


@click.command(short_help="Say who the node is, and how full its log is.")
@node_options
def info(session: Session) -> None:
    """Say who the node is, where it listens, and how full its log is."""

    async def work(reactor: Reactor) -> None:
        found = await session.ask(reactor, INFO)
        session.show(found, lambda: _info_table(found))

    session.run(work)


@click.command(short_help="Say who the node takes you for, and what you may do.")
@node_options
def whoami(session: Session) -> None:
    """Say which user the node takes you for, by what, and what that user may do."""

    async def work(reactor: Reactor) -> None:
        found = await session.ask(reactor, WHOAMI)
        session.show(found, lambda: _whoami_table(found))

    session.run(work)


def _whoami_table(found: dict[str, Any]) -> Table:
    table = plain_table()
    table.add_row("user", found["user"] or "no one asks")
    table.add_row("known by", found["how"])
    for key in ("names", "send", "to", "receive", "request"):
        table.add_row(key, " ".join(found[key]) or "-")
    return table


def _hinted(error: RequestFailed, said: str) -> RequestFailed:
    """Return the error about what may have been meant as a position."""
    return RequestFailed(f"{error}; the position {said} is said as log:{said}", error.code)


def _facts(found: dict[str, Any]) -> Table:
    facts = plain_table()
    if found["subject"]:  # else it was cancelled before it was due, or has left the log
        facts.add_row("subject", found["subject"])
    if due := found.get("due"):
        facts.add_row("delayed until", moment(due))
    elif found["position"]:
        facts.add_row("position", str(found["position"]))
    elif found.get("removed"):
        facts.add_row("removed", "from the log: all of it was settled")
    facts.add_row("sender", found["sender"])
    if found["stored_at"]:
        facts.add_row("stored", moment(found["stored_at"]))
    if found.get("promise"):
        facts.add_row("promise", promise_line(found["promise"]))
    return facts


def _row(name: str, at: dict[str, Any]) -> tuple[str, ...]:
    copy, to = at.get("copy"), at.get("copy_to")
    again = "sent again" if to is None else f"sent again to {to}"
    said = [cut(first_line(at["reason"] or "")), "" if copy is None else f"{again} as log:{copy}"]
    return name, at["status"], str(at["attempts"]), "; ".join(filter(None, said))


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
    if found.get("looped"):
        table.add_row("looped", f"{found['looped']:,} messages came back over other nodes")
    if "loaded_bytes" in found:  # a node of before does not say
        table.add_row("loaded", f"{found['loaded_bytes']:,} bytes, for receivers")
    dead = found.get("dead_letters")
    if dead and dead["new"]:
        told = f"{dead['new']:,} since its start, {dead['requeued']:,} sent again"
        table.add_row("dead letters", f"{told}, {dead['dropped']:,} dropped")
    promises = found.get("promises")
    if promises and any(promises.values()):
        told = f"{promises['open']:,} open; since its start {promises['kept']:,} kept"
        table.add_row("promises", f"{told}, {promises['broken']:,} broken")
    asked = found.get("requests")
    if asked and (asked["responders"] or asked["pending"]):
        told = f"{asked['pending']:,} wait for an answer"
        table.add_row("responders", f"{asked['responders']:,}; {told}")
    if room["full"]:
        table.add_row("refuses", room["full"])
    return table
