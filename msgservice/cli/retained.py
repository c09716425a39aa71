"""`msgservice retained`: the messages that are kept for receivers that are made later."""

from __future__ import annotations

import base64
from typing import Any

import click
from rich.console import Group
from rich.text import Text

from msgservice.administration import RETAINED_CLEAR, RETAINED_GET, RETAINED_LIST
from msgservice.cli.acts import Act, Done, Touched, act_options
from msgservice.cli.output import body_told, counted, moment, out, plain_table
from msgservice.cli.pages import JsonOfPages, TableOfPages
from msgservice.cli.session import Session, node_options
from msgservice.client.client import Client
from msgservice.clock import Reactor
from msgservice.core.reasons import shown
from msgservice.core.subjects import check_pattern, check_subject, matches
from msgservice.errors import MsgServiceError
from msgservice.message import WireMessage, decode_messages

SECONDS = len("2026-11-28 09:34:29")  # of a moment: a table has no room for more
CLEAR_MAX = 500  # subjects of one request


@click.group(short_help="Show what is retained: the last message of a subject.")
def retained() -> None:
    """Show the messages that are kept for receivers that are made later.

    They are the last of each subject that was sent with --retain.
    """


@retained.command("list")
@node_options
def list_retained(session: Session) -> None:
    """List what is retained, by subject."""

    async def work(reactor: Reactor) -> None:
        table = TableOfPages("subject", "position", "sender", "bytes", "stored at")
        json, printed = JsonOfPages("retained"), 0
        after: str | None = ""
        async with session.client(reactor) as client:
            while after is not None:
                page = await session.request(reactor, client, RETAINED_LIST, after=after)
                after = page["next"]
                printed += len(page["retained"])
                if session.as_json:
                    json.print(page)
                else:
                    table.print([_row(one) for one in page["retained"]])
        if session.as_json:
            json.end()
        elif not printed:
            out("nothing is retained")

    session.run(work)


@retained.command()
@click.argument("subject")
@click.option("--body", "only_body", is_flag=True, help="Print the body alone, as it is.")
@node_options
def show(session: Session, subject: str, only_body: bool) -> None:
    """Show the retained message of SUBJECT, with its headers and its body."""
    session.check(check_subject, subject)

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            facts, message = await _message(session, reactor, client, subject)
        if only_body:
            out(message.body, nl=False)
            return
        told = facts | {"headers": message.headers or {}} | body_told(message.body)
        session.show(told, lambda: _page(facts, message))

    session.run(work)


@retained.command()
@click.argument("subjects", nargs=-1, required=True)
@node_options
@act_options
def clear(session: Session, act: Act, subjects: tuple[str, ...]) -> None:
    """Retain no message of SUBJECTS any more.

    They may be patterns: "prices.>" is all that begins with prices. What was delivered stays so.
    """
    for pattern in subjects:
        session.check(check_pattern, pattern)

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            found = await _matching(session, reactor, client, subjects)
            touched = Touched(
                count=len(found),
                sentence=f"{counted(len(found), 'retained message')} would go",
                fields={"subjects": list(subjects)},
            )

            async def do() -> Done:
                cleared = 0
                failed: MsgServiceError | None = None
                try:
                    for at in range(0, len(found), CLEAR_MAX):
                        question = {"subjects": found[at : at + CLEAR_MAX]}
                        told = await session.request(reactor, client, RETAINED_CLEAR, **question)
                        cleared += told["cleared"]
                except MsgServiceError as error:
                    failed = error
                verb = "is" if cleared == 1 else "are"
                sentence = f"{counted(cleared, 'message')} {verb} retained no longer"
                return Done(sentence=sentence, fields={"cleared": cleared}, failed=failed)

            await act.carry_out(session, reactor, touched, do)

    session.run(work)


async def _matching(
    session: Session, reactor: Reactor, client: Client, patterns: tuple[str, ...]
) -> list[str]:
    """Return the subjects that match and have something retained."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await session.request(reactor, client, RETAINED_LIST, after=after, limit=1000)
        after = page["next"]
        there = [one["subject"] for one in page["retained"]]
        found += [name for name in there if any(matches(pattern, name) for pattern in patterns)]
    return found


async def _message(
    session: Session, reactor: Reactor, client: Client, subject: str
) -> tuple[dict[str, Any], WireMessage]:
    """Return what is said of a retained message, and itself, which comes in parts."""
    encoded = b""
    offset: int | None = 0
    while offset is not None:
        question = {"subject": subject, "offset": offset}
        facts = await session.request(reactor, client, RETAINED_GET, **question)
        encoded += base64.b64decode(facts.pop("message"))
        offset = facts.pop("next")
    (message,) = decode_messages(encoded)
    return facts, message


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        one["subject"],
        str(one["position"]),
        one["sender"],
        str(one["size"]),
        moment(one["stored_at"])[:SECONDS],
    )


def _page(facts: dict[str, Any], message: WireMessage) -> Group:
    table = plain_table()
    for name in ("subject", "position", "sender"):
        table.add_row(name, str(facts[name]))
    table.add_row("stored at", moment(facts["stored_at"]))
    for name, value in (message.headers or {}).items():
        table.add_row("header", Text(shown(f"{name}={value}")))
    table.add_row("body", f"{len(message.body):,} bytes")
    return Group(table, "", Text(shown(message.body.decode(errors="backslashreplace"))))
