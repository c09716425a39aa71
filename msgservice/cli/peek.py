"""`msgservice peek`: the messages that are next for a receiver, without taking them."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group
from rich.text import Text

from msgservice.administration import PEEK, PEEK_GET
from msgservice.cli.output import body_told, cut, moment, out, plain_table
from msgservice.cli.pages import JsonOfPages, TableOfPages, whole_message
from msgservice.cli.session import Session, Whole, node_options
from msgservice.clock import Reactor
from msgservice.core.reasons import first_line, shown
from msgservice.core.subjects import check_name
from msgservice.limits import INTEGER_MAX
from msgservice.message import WireMessage

COUNT = 10


@click.command(short_help="Look at the next messages of a receiver.")
@click.argument("receiver")
@click.option(
    "-n",
    "--count",
    type=Whole(1, INTEGER_MAX),
    default=COUNT,
    show_default=True,
    metavar="N",
    help="How many at most.",
)
@click.option("--body", "bodies", is_flag=True, help="With their headers and bodies.")
@node_options
def peek(session: Session, receiver: str, count: int, bodies: bool) -> None:
    """Look at the next messages that wait for RECEIVER; it gets them all the same."""
    session.check(check_name, receiver)

    async def work(reactor: Reactor) -> None:
        table = TableOfPages(
            "position", "sender", "subject", "id", "bytes", "status", "stored", "attempts", "reason"
        )
        json, printed = JsonOfPages("messages"), 0
        after: int | None = 0
        async with session.client(reactor) as client:
            while after is not None and printed < count:
                question = {"receiver": receiver, "after": after, "limit": count - printed}
                page = await session.request(reactor, client, PEEK, **question)
                after, rows = page["next"], page["messages"]
                printed += len(rows)
                if not bodies:
                    if session.as_json:
                        json.print(page)
                    else:
                        table.print([_row(one) for one in rows])
                    continue
                for one in rows:
                    asked = {"receiver": receiver, "position": one["position"]}
                    _, message = await whole_message(session, reactor, client, PEEK_GET, **asked)
                    if session.as_json:
                        told = {"headers": message.headers or {}} | body_told(message.body)
                        json.print(page | {"messages": [one | told]})
                    else:
                        out(_page(one, message))
                if session.as_json and not rows:
                    json.print(page)
        if session.as_json:
            json.end()
        elif not printed:
            out("no messages wait")

    session.run(work)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["position"]),
        one["sender"],
        one["subject"],
        one["id"] or "",
        f"{one['size']:,}",
        one["status"],
        moment(one["stored_at"]),
        str(one["attempts"]),
        cut(first_line(one["reason"])),
    )


def _page(one: dict[str, Any], message: WireMessage) -> Group:
    facts = plain_table()
    for name in ("position", "sender", "subject", "id", "status"):
        if one[name] is not None:
            facts.add_row(name, str(one[name]))
    facts.add_row("stored", moment(one["stored_at"]))
    for name, value in (message.headers or {}).items():
        facts.add_row("header", Text(shown(f"{name}={value}")))
    facts.add_row("body", f"{len(message.body):,} bytes")
    return Group(facts, "", Text(shown(message.body.decode(errors="backslashreplace"))), "")
