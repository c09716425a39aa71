"""`msgservice undo`: messages are taken back where they are not sent yet, and the account of it."""

from __future__ import annotations

import click
import msgspec

from msgservice.administration import UNDO, UndoTold, undone_too
from msgservice.cli.output import out, plain_table
from msgservice.cli.session import Session, Whole, is_utf8, node_options
from msgservice.clock import Reactor
from msgservice.limits import INTEGER_MAX


@click.command(short_help="Take a message back, where it is not sent yet.")
@click.argument("message_id", metavar="ID")
@click.option(
    "-n",
    "--count",
    type=Whole(1, INTEGER_MAX),
    default=1,
    show_default=True,
    help="How many messages: ID, and those that its sender sent next.",
)
@click.option("--reason", default="", help="Why, for its sender.")
@node_options
def undo(session: Session, message_id: str, count: int, reason: str) -> None:
    """Cancel the message ID wherever it is surely not sent yet, and say what it is elsewhere.

    ID is the sender's own id of it, SENDER/INCARNATION/SEQUENCE as the node shows it, or
    log:POSITION. What is in flight is left to its answer, and what is handled stays handled.
    """
    if not is_utf8(message_id) or not is_utf8(reason):
        raise click.UsageError("ID and --reason are UTF-8")

    async def work(reactor: Reactor) -> None:
        asked = {"id": message_id, "count": count, "reason": reason}
        async with session.client(reactor) as client:
            page = msgspec.convert(await session.request(reactor, client, UNDO, **asked), UndoTold)
            told = page
            while page.next is not None:
                asked |= {"id": page.next, "count": page.left}
                answer = await session.request(reactor, client, UNDO, **asked)
                page = msgspec.convert(answer, UndoTold)
                told = undone_too(told, page)
        table = plain_table("receiver", "outcome")
        for name, outcomes in told.receivers.items():
            said = [f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in outcomes.items()]
            table.add_row(name, ", ".join(said))
        session.show(told, table if told.receivers else "it was for nobody")
        if not session.as_json and told.messages > 1:
            out(f"{told.messages:,} messages, from {told.sender} on")

    session.run(work)
