"""`msgservice why`: why a message is where it is, or a receiver as it is, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from msgservice.administration import RECEIVERS_WHY, WHY
from msgservice.cli.output import moment, out
from msgservice.cli.pages import JsonOfPages
from msgservice.cli.promised import promise_line
from msgservice.cli.session import Session, is_utf8, node_options
from msgservice.clock import Reactor
from msgservice.core.reasons import shown
from msgservice.core.subjects import check_name


@click.command(short_help="Say why a message is where it is, and what would help.")
@click.argument("message_id", metavar="ID", required=False)
@click.option("--receiver", metavar="NAME", help="How a receiver is, whatever the message.")
@node_options
def why(session: Session, message_id: str | None, receiver: str | None) -> None:
    """Say why a message is where it is, at each receiver, and what would help.

    ID is the sender's own id of it, SENDER/INCARNATION/SEQUENCE as the node shows it, or
    log:POSITION. Or say why a receiver is as it is.
    """
    if bool(message_id) == (receiver is not None):
        raise click.UsageError("say the ID of a message, or --receiver NAME")
    if receiver is not None:
        session.check(check_name, receiver)
        _receiver(session, receiver)
    assert message_id is not None
    if not is_utf8(message_id):
        raise click.UsageError("ID is no UTF-8: no message has such an id")
    _message(session, message_id)


def _receiver(session: Session, name: str) -> None:
    async def work(reactor: Reactor) -> None:
        found = await session.ask(reactor, RECEIVERS_WHY, name=name)
        since = found.get("health_since") or found["since"]
        lines = [f"{name} is {found['health']}, since {moment(since)}"]
        for one in found["troubles"]:
            lines += _help(shown(one["sentence"]), one)
        if not found["troubles"]:
            lines.append(shown(found["sentence"]))
        session.show(found, "\n".join(lines))

    session.run(work)


def _message(session: Session, identity: str) -> None:
    async def work(reactor: Reactor) -> None:
        json, asked = JsonOfPages("causes"), identity
        after: int | None = 0
        begun = False
        async with session.client(reactor) as client:
            while after is not None:
                page = await session.request(reactor, client, WHY, id=asked, after=after)
                after = page["next"]
                if page["position"]:
                    asked = f"log:{page['position']}"
                if session.as_json:
                    json.print(page)
                    continue
                if not begun:
                    begun = True
                    where = f"log:{page['position']}" if page["position"] else "delayed"
                    if page.get("removed"):
                        where = "removed from the log"
                    subject = f", {shown(page['subject'])}" if page["subject"] else ""
                    out(f"{page['sender']}, {where}{subject}")
                    if page.get("promise"):
                        verb = "is" if page["promise"]["outcome"] == "open" else "was"
                        out(f"Its promise {verb} {promise_line(page['promise'])}")
                for one in page["causes"]:
                    out("\n".join(_cause(one)))
        if session.as_json:
            json.end()

    session.run(work)


def _cause(one: Mapping[str, Any]) -> list[str]:
    status = f" ({one['status']})" if one["status"] else ""
    name = one["receiver"] or "nobody"
    name = f"{one['node']}: {name}" if one.get("node") else name
    told = [shown(one["sentence"])]
    if one["since"] is not None:
        told.append(f"Since {moment(one['since'])}.")
    if one["next_try_at"] is not None:
        told.append(f"Next at {moment(one['next_try_at'])}.")
    return _help(f"{name}{status}: {' '.join(told)}", one)


def _help(sentence: str, one: Mapping[str, Any]) -> list[str]:
    lines = [sentence]
    if one["help"]:
        lines.append(f"  {shown(one['help'])}")
    if one["command"]:
        lines.append(f"  $ {shown(one['command'])}")
    return lines
