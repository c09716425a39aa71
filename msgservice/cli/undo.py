"""`msgservice undo`: messages are taken back where they are not sent yet, and the account of it."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from msgservice.administration import UNDO, UndoTold, undone_too
from msgservice.cli.output import out, plain_table
from msgservice.cli.session import Session, Whole, is_utf8, node_options
from msgservice.clock import Reactor
from msgservice.limits import INTEGER_MAX


@click.command(short_help="Take a message back, where it is not sent yet.")
@click.argument("message_id", metavar="[ID]", required=False)
@click.option("--key", help="The idempotency key that it was sent with, instead of ID.")
@click.option("--sender", metavar="NAME", help="Whose key: a sender, or a user.")
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
def undo(
    session: Session,
    message_id: str | None,
    key: str | None,
    sender: str | None,
    count: int,
    reason: str,
) -> None:
    """Cancel the message ID wherever it is surely not sent yet, and say what it is elsewhere.

    ID is the sender's own id of it, SENDER/INCARNATION/SEQUENCE as the node shows it, or
    log:POSITION; or it is said by --key, with --sender unless that is of the user who asks. What is
    in flight is left to its answer, and what is handled stays handled.
    """
    if bool(message_id) == bool(key):
        raise click.UsageError("say the ID of a message, or --key")
    if sender is not None and not key:
        raise click.UsageError("--sender says whose --key it is")
    if not all(is_utf8(text or "") for text in (message_id, key, sender, reason)):
        raise click.UsageError("ID, --key, --sender and --reason are UTF-8")

    async def work(reactor: Reactor) -> None:
        asked: dict[str, Any] = {"count": count, "reason": reason}
        asked |= {"id": message_id} if message_id else {"key": key, "sender": sender or ""}
        async with session.client(reactor) as client:
            page = msgspec.convert(await session.request(reactor, client, UNDO, **asked), UndoTold)
            told = page
            while page.next is not None:
                asked |= {"id": page.next, "count": page.left, "key": ""}
                answer = await session.request(reactor, client, UNDO, **asked)
                page = msgspec.convert(answer, UndoTold)
                told = undone_too(told, page)
        table = plain_table("receiver", "outcome")
        for name, outcomes in told.receivers.items():
            said = [f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in outcomes.items()]
            table.add_row(name, ", ".join(said))
        nothing = "it was for nobody" if told.messages else "no message is left of it"
        session.show(told, table if told.receivers else nothing)
        if not session.as_json and told.messages > 1:
            out(f"{told.messages:,} messages, from {told.sender} on")

    session.run(work)
