"""`msgservice receipts`: what became of the messages that an outbox's file has handed over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults

from msgservice.administration import WHOAMI
from msgservice.cli.output import counted, cut, moment, out
from msgservice.cli.pages import JsonOfPages, TableOfPages
from msgservice.cli.session import (
    SAY_AFTER,
    SENDER,
    Interrupted,
    NoAnswer,
    Session,
    node_options,
    outbox_option,
)
from msgservice.client.client import Client
from msgservice.client.receipt import Receipt
from msgservice.clock import Reactor
from msgservice.core.reasons import first_line, shown
from msgservice.message import Status
from msgservice.records import PROMISE

ALL, FINAL = "all", "final"


@click.command(short_help="Show what became of what an outbox has sent, or wait for it.")
@outbox_option("The outbox: what `send --outbox` or a program has written.", required=True)
@click.option("--wait", is_flag=True, help="Wait until all of it is final at every receiver.")
@click.option(
    "--forget",
    multiple=True,
    metavar="WHICH",
    help="Then list these no more: final, all, a number, or an id. Repeatable.",
)
@click.option("--name", help=f"Name of the sender.  [default: {SENDER}, or USER.cli]")
@node_options
def receipts(
    session: Session, outbox: Path, wait: bool, forget: tuple[str, ...], name: str | None
) -> None:
    """Show the open receipts of an outbox, and send what it has not sent.

    They stay, whatever became of their messages, until they are told to --forget, or nobody has
    listed them for a week. The NAME is the one that it was sent with.
    """
    session.run(lambda reactor: _work(session, reactor, outbox, name, wait, frozenset(forget)))


async def _work(
    session: Session,
    reactor: Reactor,
    outbox: Path,
    name: str | None,
    wait: bool,
    forget: Collection[str],
) -> None:
    table = TableOfPages("number", "subject", "id", "position", "became")
    json, printed, forgotten = JsonOfPages("receipts"), 0, 0
    absent: NoAnswer | None = None
    async with session.client(reactor, name, outbox) as client:
        try:
            await session.let_in(reactor, client)
        except NoAnswer as error:
            absent = error  # what is in the file is told all the same
        after = 0
        while page := await client.receipts(after, keep=True):
            after = page[-1].sequence
            if absent is None:
                await _told(session, reactor, client, page, wait=wait)
            rows = [_row(receipt) for receipt in page]
            printed += len(rows)
            if session.as_json:
                json.print({"receipts": rows})
            else:
                table.print([_cells(row) for row in rows])
            # By what was printed: more may have come since.
            pairs = zip(page, rows, strict=True)
            forgetting = [one.forget() for one, row in pairs if _is_named(row, forget)]
            forgotten += len(forgetting)
            await gatherResults(forgetting)
        if session.as_json:
            if not printed:
                json.print({"receipts": []})
            json.end()
        elif not printed:
            out("no receipt is open")
        elif forget:
            out(f"{counted(forgotten, 'receipt')} forgotten")
    if absent is not None:
        raise absent


async def _told(
    session: Session, reactor: Reactor, client: Client, page: list[Receipt], *, wait: bool
) -> None:
    """Wait until the node has said what it knows of these, or until all of it is final."""
    ends: Callable[[Receipt], Deferred[Any]] = _settled if wait else _accepted
    waiting: Deferred[Any] = DeferredList([ends(one) for one in page], consumeErrors=True)
    if wait:

        def left() -> str:
            open_ = sum(not receipt.run.known_of(receipt.sequence).is_over for receipt in page)
            return f"{counted(open_, 'message')} not final everywhere yet"

        def say() -> None:
            click.echo(f"msgservice: waiting: {left()}", err=True)

        saying = None if session.as_json else reactor.callLater(SAY_AFTER, say)
        try:
            await waiting
        except CancelledError:
            raise Interrupted(left()) from None
        finally:
            if saying is not None and saying.active():
                saying.cancel()
        return
    await session.in_time(reactor, waiting, lambda: session.unanswered(client))
    # What it knows is on its way by now, and before an answer.
    await session.request(reactor, client, WHOAMI)


def _accepted(receipt: Receipt) -> Deferred[Any]:
    return receipt.accepted


def _settled(receipt: Receipt) -> Deferred[Any]:
    if receipt.run.is_promised:
        return receipt.promised().addBoth(lambda _: receipt.settled())
    return receipt.settled()


def _row(receipt: Receipt) -> dict[str, Any]:
    known = receipt.run.known_of(receipt.sequence)
    reasons = {change.receiver: change.reason for change in known.changes if change.reason}
    row: dict[str, Any] = {
        "sequence": receipt.sequence,
        "subject": receipt.run.subject,
        "id": receipt.id,
        "position": receipt.position,
        "final": known.is_over,
        "receivers": {
            receiver: {"status": status.name.lower(), "reason": reasons.get(receiver, "")}
            for receiver, status in receipt.statuses.items()
        },
        "error": None,
    }
    verdict = receipt.run.verdict_of(receipt.sequence)
    if verdict is not None:
        outcome = "kept" if verdict[0] is Status.ACKNOWLEDGED else "broken"
        row["promise"] = {"outcome": outcome, "reason": reasons.get(PROMISE, "")}
    if receipt.due is not None:
        row["due"] = round(receipt.due * 1000)
    if known.error is not None:
        row["error"] = {"error": type(known.error).__name__, "message": str(known.error)}
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    became = [
        f"{receiver}: {state['status']}{_because(state['reason'])}"
        for receiver, state in sorted(row["receivers"].items())
    ]
    if "promise" in row:
        promise = row["promise"]
        became.append(f"its promise was {promise['outcome']}{_because(promise['reason'])}")
    if row["error"] is not None:
        became.append(first_line(row["error"]["message"]))
    elif "due" in row:
        became.append(f"waits until it is due, at {moment(row['due'])}")
    elif not row["receivers"]:
        became.append("for nobody" if row["final"] else "not known yet")
    position = "-" if row["position"] is None else f"log:{row['position']}"
    return [
        str(row["sequence"]),
        shown(row["subject"]),
        shown(row["id"] or "-"),
        position,
        cut(", ".join(became)),
    ]


def _because(reason: str) -> str:
    return f" ({first_line(reason)})" if reason else ""


def _is_named(row: dict[str, Any], forget: Collection[str]) -> bool:
    return (
        ALL in forget
        or (FINAL in forget and row["final"])
        or str(row["sequence"]) in forget
        or (row["id"] is not None and row["id"] in forget)
    )
