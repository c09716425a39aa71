"""`msgservice dead`: the messages that a receiver will not get any more, and why."""

from __future__ import annotations

import base64
from typing import Any

import click
from rich.console import Group
from rich.text import Text

from msgservice.administration import DEAD_GET, DEAD_LIST
from msgservice.cli.output import body_told, cut, moment, out, plain_table
from msgservice.cli.pages import JsonOfPages, TableOfPages
from msgservice.cli.session import Session, Whole, node_options
from msgservice.client.client import Client
from msgservice.clock import Reactor
from msgservice.core.reasons import shown
from msgservice.core.subjects import check_name
from msgservice.limits import INTEGER_MAX
from msgservice.message import WireMessage, decode_messages

SECONDS = len("2026-11-28 09:34:29")  # of a moment: a table has no room for more

RECEIVER = click.argument("receiver")


@click.group(short_help="Show dead letters: what was rejected, or failed too often.")
def dead() -> None:
    """Show the dead letters of a receiver.

    They are the messages that it rejected, or that failed as often as max_attempts allows.
    """


@dead.command("list")
@RECEIVER
@node_options
def list_dead(session: Session, receiver: str) -> None:
    """List the dead letters of RECEIVER, oldest first."""
    session.check(check_name, receiver)

    async def work(reactor: Reactor) -> None:
        table = TableOfPages("position", "sender", "subject", "attempts", "dead since", "reason")
        json, printed = JsonOfPages("dead"), 0
        after: int | None = 0
        async with session.client(reactor) as client:
            while after is not None:
                question = {"receiver": receiver, "after": after}
                page = await session.request(reactor, client, DEAD_LIST, **question)
                after = page["next"]
                printed += len(page["dead"])
                if session.as_json:
                    json.print(page)
                else:
                    table.print([_row(one) for one in page["dead"]])
        if session.as_json:
            json.end()
        elif not printed:
            out("no dead letters")

    session.run(work)


@dead.command()
@RECEIVER
@click.argument("position", type=Whole(0, INTEGER_MAX))
@click.option("--body", "only_body", is_flag=True, help="Print the body alone, as it is.")
@node_options
def show(session: Session, receiver: str, position: int, only_body: bool) -> None:
    """Show one dead letter of RECEIVER, with its headers and its body.

    POSITION is what `dead list` shows.
    """
    session.check(check_name, receiver)

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            letter, message = await _letter(session, reactor, client, receiver, position)
        if only_body:
            out(message.body, nl=False)
            return
        told = letter | {"headers": message.headers or {}} | body_told(message.body)
        session.show(told, lambda: _page(letter, message))

    session.run(work)


async def _letter(
    session: Session, reactor: Reactor, client: Client, receiver: str, position: int
) -> tuple[dict[str, Any], WireMessage]:
    """Return what is said of a dead letter, and its message, which comes in parts."""
    encoded = b""
    offset: int | None = 0
    while offset is not None:
        question = {"receiver": receiver, "position": position, "offset": offset}
        letter = await session.request(reactor, client, DEAD_GET, **question)
        encoded += base64.b64decode(letter.pop("message"))
        offset = letter.pop("next")
    (message,) = decode_messages(encoded)
    return letter, message


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["position"]),
        one["sender"],
        one["subject"],
        str(one["attempts"]),
        moment(one["at"])[:SECONDS],
        cut(shown(one["reason"])),
    )


def _page(letter: dict[str, Any], message: WireMessage) -> Group:
    facts = plain_table()
    for name in ("position", "sender", "subject", "id", "attempts"):
        if letter[name] is not None:
            facts.add_row(name, str(letter[name]))
    facts.add_row("dead since", moment(letter["at"]))
    facts.add_row("reason", Text(shown(letter["reason"])))
    for name, value in (message.headers or {}).items():
        facts.add_row("header", Text(shown(f"{name}={value}")))
    facts.add_row("body", f"{len(message.body):,} bytes")
    return Group(facts, "", Text(shown(message.body.decode(errors="backslashreplace"))))
