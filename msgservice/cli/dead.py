"""`msgservice dead`: what a receiver will not get any more, and why; sent again, or dropped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click
from rich.console import Group
from rich.text import Text

from msgservice.administration import DEAD_DROP, DEAD_GET, DEAD_LIST, DEAD_REQUEUE, Operation
from msgservice.cli.acts import Act, Done, Touched, act_options
from msgservice.cli.output import body_told, counted, cut, moment, out, plain_table
from msgservice.cli.pages import JsonOfPages, TableOfPages, whole_message
from msgservice.cli.session import Session, is_utf8, node_options
from msgservice.client.client import Client
from msgservice.clock import Reactor
from msgservice.core.reasons import first_line, shown
from msgservice.core.subjects import check_name, check_pattern
from msgservice.errors import MsgServiceError, UnknownDeadLetter, refusal_codes
from msgservice.limits import INTEGER_MAX
from msgservice.message import WireMessage

SECONDS = len("2026-11-28 09:34:29")  # of a moment: a table has no room for more

Command = TypeVar("Command", bound=Callable[..., Any])

RECEIVER = click.argument("receiver")


class Moment(click.ParamType[int]):
    """A moment of the wall clock in milliseconds, said as ISO 8601; local where it says no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it; `BadParameter` for what is none."""
        try:
            said = datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            said = -1.0
        if said < 0:
            self.fail(f"{value!r} is no time since 1970, as 2026-11-28T09:30 is", param, ctx)
        return int(said * 1000)


class Code(click.ParamType[int]):
    """A code of an error that is why a message is dead: its number, or the name of the error."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it; `BadParameter` for what is none."""
        text = str(value)
        if text.isascii() and text.isdigit() and int(text) <= INTEGER_MAX:
            return int(text)
        codes = refusal_codes()
        if text not in codes:
            known = ", ".join(sorted(codes))
            self.fail(f"{text!r} is no code, and none of the errors that have one: {known}")
        return codes[text]


def _which(command: Command) -> Command:
    """Add the options that say which dead letters are meant."""
    for option in reversed(
        (
            click.option("--subject", metavar="PATTERN", help="Of this subject, or pattern."),
            click.option("--reason", metavar="TEXT", help="With this text in the reason."),
            click.option(
                "--code",
                type=Code(),
                metavar="NAME",
                help="Of an error of this name, or with this code.",
            ),
            click.option("--since", type=Moment(), help="That became one then, or later."),
            click.option("--until", type=Moment(), help="That became one then, or before."),
        )
    ):
        command = option(command)
    return command


@click.group(short_help="Show dead letters, send them again, drop them.")
def dead() -> None:
    """Show the dead letters of a receiver, send them again, or drop them.

    They are the messages that it rejected, or that failed as often as max_attempts allows.
    """


@dead.command("list")
@RECEIVER
@_which
@node_options
def list_dead(session: Session, /, receiver: str, **which: Any) -> None:
    """List the dead letters of RECEIVER, oldest first.

    All of them, or those that fit what is given.
    """
    session.check(_check, receiver, which)

    async def work(reactor: Reactor) -> None:
        table = TableOfPages("position", "sender", "subject", "attempts", "dead since", "reason")
        json, printed = JsonOfPages("dead"), 0
        after: int | None = 0
        async with session.client(reactor) as client:
            while after is not None:
                question = {"receiver": receiver, "after": after, **which}
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


ONE = click.argument("of", metavar="[MESSAGE]", required=False)
ALL = click.option("--all", "all_", is_flag=True, help="All that RECEIVER has.")


@dead.command(short_help="Send dead letters again.")
@RECEIVER
@ONE
@_which
@ALL
@click.option("--to", metavar="OTHER", help="To this receiver instead.")
@node_options
@act_options
def requeue(
    session: Session,
    act: Act,
    /,
    receiver: str,
    of: str | None,
    all_: bool,
    to: str | None,
    **which: Any,
) -> None:
    """Send dead letters of RECEIVER again, as new messages for it alone.

    MESSAGE is one: its position, as `dead list` shows it, its id, or SENDER/HASH/SEQUENCE. Without
    it say which, or --all. What is sent again is a dead letter no more.
    """
    if to is not None:
        session.check(check_name, to)
    _act(session, act, DEAD_REQUEUE, receiver, of, all_, which, to=to)


@dead.command(short_help="Drop dead letters.")
@RECEIVER
@ONE
@_which
@ALL
@node_options
@act_options
def drop(
    session: Session, act: Act, /, receiver: str, of: str | None, all_: bool, **which: Any
) -> None:
    """Drop dead letters of RECEIVER: nothing is left of them but their status.

    MESSAGE is one: its position, as `dead list` shows it, its id, or SENDER/HASH/SEQUENCE. Without
    it say which, or --all.
    """
    _act(session, act, DEAD_DROP, receiver, of, all_, which)


def _act(
    session: Session,
    act: Act,
    operation: Operation[Any, Any],
    receiver: str,
    of: str | None,
    all_: bool,
    which: dict[str, Any],
    to: str | None = None,
) -> None:
    given = of is not None or any(value is not None for value in which.values())
    if given is all_:
        said = "which, or --all" if not all_ else "either --all, or which"
        raise click.UsageError(
            f"say {said}: MESSAGE, --subject, --reason, --code, --since, --until"
        )
    if of is not None and not is_utf8(of):
        raise click.UsageError("MESSAGE is no UTF-8")
    session.check(_check, receiver, which)
    asked = {"receiver": receiver, "of": of, **which, "to": to}
    again = operation is DEAD_REQUEUE
    verb = f"sent again{f' to {to}' if to else ''}" if again else "dropped"

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:

            async def touch(**more: Any) -> tuple[dict[str, int], MsgServiceError | None]:
                """Have letters looked at or touched in pages; return what ended that early too."""
                found = {"count": 0, "size": 0, "newest": 0}
                after: int | None = 0
                while after is not None:
                    try:
                        page = await session.request(
                            reactor, client, operation, **(asked | more | {"after": after})
                        )
                    except MsgServiceError as error:
                        if not found["count"]:
                            raise
                        return found, error
                    after = page["next"]
                    found["count"] += page["count"]
                    found["size"] += page["size"]
                    found["newest"] = max(found["newest"], page["newest"])
                return found, None

            found, failed = await touch(dry_run=True)
            if failed is not None:
                raise failed
            count, size = found["count"], found["size"]
            if of is not None and not count:
                raise UnknownDeadLetter(receiver, of)
            what = f"{counted(count, 'dead letter')} of {receiver}"

            async def do() -> Done:
                # What has become one since it was asked is not among what somebody has said yes to.
                done, failed = await touch(until=found["newest"])
                told = f"{verb}: {counted(done['count'], 'dead letter')} of {receiver}"
                return Done(
                    sentence=told,
                    fields={"count": done["count"], "bytes": done["size"]},
                    failed=failed,
                )

            touched = Touched(
                count=count,
                sentence=f"{what}, {size:,} bytes, would be {verb}" if count else f"no {what[2:]}",
                fields={"bytes": size, "receiver": receiver}
                | ({"to": to or receiver} if again else {}),
            )
            await act.carry_out(session, reactor, touched, do)

    session.run(work)


def _check(receiver: str, which: dict[str, Any]) -> None:
    check_name(receiver)
    if which["subject"] is not None:
        check_pattern(which["subject"])


@dead.command()
@RECEIVER
@click.argument("of", metavar="MESSAGE")
@click.option("--body", "only_body", is_flag=True, help="Print the body alone, as it is.")
@node_options
def show(session: Session, receiver: str, of: str, only_body: bool) -> None:
    """Show one dead letter of RECEIVER, with its headers and its body.

    MESSAGE is its position, as `dead list` shows it, its id, or SENDER/HASH/SEQUENCE.
    """
    if not is_utf8(of):
        raise click.UsageError("MESSAGE is no UTF-8")
    session.check(check_name, receiver)

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            letter, message = await _letter(session, reactor, client, receiver, of)
        if only_body:
            out(message.body, nl=False)
            return
        told = letter | {"headers": message.headers or {}} | body_told(message.body)
        session.show(told, lambda: _page(letter, message))

    session.run(work)


async def _position(
    session: Session, reactor: Reactor, client: Client, receiver: str, of: str
) -> int:
    """Return the position of the letter that is named so; `UnknownDeadLetter` for none."""
    after: int | None = 0
    while after is not None:
        question = {"receiver": receiver, "after": after, "of": of}
        page = await session.request(reactor, client, DEAD_LIST, **question)
        for one in page["dead"]:
            return int(one["position"])
        after = page["next"]
    raise UnknownDeadLetter(receiver, of)


async def _letter(
    session: Session, reactor: Reactor, client: Client, receiver: str, of: str
) -> tuple[dict[str, Any], WireMessage]:
    """Return what is said of a dead letter, and its message."""
    position = await _position(session, reactor, client, receiver, of)
    asked = {"receiver": receiver, "position": position}
    return await whole_message(session, reactor, client, DEAD_GET, **asked)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["position"]),
        one["sender"],
        one["subject"],
        str(one["attempts"]),
        moment(one["at"])[:SECONDS],
        cut(first_line(one["reason"])),  # `show` has the rest
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
