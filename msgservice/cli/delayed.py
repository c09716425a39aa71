"""`msgservice delayed`: the messages that wait until they are due."""

from __future__ import annotations

from typing import Any

import click

from msgservice.administration import DELAYED_CANCEL, DELAYED_LIST
from msgservice.cli.output import counted, cut, moment, out
from msgservice.cli.pages import JsonOfPages, TableOfPages
from msgservice.cli.session import Session, Whole, is_utf8, node_options
from msgservice.clock import Reactor
from msgservice.core.reasons import shown
from msgservice.limits import BATCH_MESSAGES_MAX

SECONDS = len("2026-11-28 09:34:29")  # of a moment: a table has no room for more


@click.group(short_help="Show messages that wait until they are due, or cancel them.")
def delayed() -> None:
    """Show the messages that were sent with a delay and wait for its end."""


@delayed.command("list")
@node_options
def list_delayed(session: Session) -> None:
    """List what waits, in the order in which it is due.

    Each row is a run of messages of one sender: SENDER names the first of them.
    """

    async def work(reactor: Reactor) -> None:
        table = TableOfPages("due", "sender", "messages", "subject", "id", "to")
        json, printed = JsonOfPages("delayed"), 0
        after: list[int] | None = [0, 0]
        async with session.client(reactor) as client:
            while after is not None:
                page = await session.request(reactor, client, DELAYED_LIST, after=after)
                after = page["next"]
                printed += len(page["delayed"])
                if session.as_json:
                    json.print(page)
                else:
                    table.print([_row(one) for one in page["delayed"]])
        if session.as_json:
            json.end()
        elif not printed:
            out("nothing waits")

    session.run(work)


@delayed.command()
@click.argument("message_id", metavar="ID")
@click.option(
    "--count",
    type=Whole(1, BATCH_MESSAGES_MAX),
    default=1,
    help="How many messages: ID, and those that its sender sent next.",
)
@click.option("--reason", default="", help="Why, for its sender.")
@node_options
def cancel(session: Session, message_id: str, count: int, reason: str) -> None:
    """Cancel the message ID: it is delivered to nobody.

    ID is the sender's own id of it, or SENDER/INCARNATION/SEQUENCE as `delayed list` shows it.
    """
    if not is_utf8(message_id) or not is_utf8(reason):
        raise click.UsageError("ID and --reason are UTF-8")

    async def work(reactor: Reactor) -> None:
        asked = {"id": message_id, "count": count, "reason": reason}
        found = await session.ask(reactor, DELAYED_CANCEL, **asked)
        cancelled = found["cancelled"]
        verb = "is" if cancelled == 1 else "are"
        said = f"{counted(cancelled, 'message')} of {found['subject']} {verb} cancelled"
        session.show(found, said)

    session.run(work)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        moment(one["due"])[:SECONDS],
        one["sender"],
        str(one["messages"]),
        one["subject"],
        cut(shown(one["message_id"] or "")),
        "those who match then" if one["to"] is None else cut(" ".join(one["to"])),
    )
