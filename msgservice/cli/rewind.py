"""`msgservice rewind`: have a receiver sent again what it has had, or what it was left out of.

What it would touch is counted and told before anything is done. The node does it, however long that
takes: this command only looks on, and may be ended.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from msgservice.administration import (
    RECEIVERS_REPLAY,
    RECEIVERS_REWIND,
    RECEIVERS_REWIND_CANCEL,
    RECEIVERS_REWIND_COUNT,
)
from msgservice.cli.acts import Act, Done, Touched, act_options
from msgservice.cli.output import console, counted
from msgservice.cli.session import Interrupted, Session, node_options
from msgservice.client.client import Client
from msgservice.clock import Reactor
from msgservice.core.subjects import check_name
from msgservice.errors import BadValue, RequestFailed
from msgservice.limits import INTEGER_MAX

FIRST = 1 << 16  # the first position of all
FIELDS = "first is --from, end is --to"  # as the node calls them
LOOK_SECONDS = 0.2  # between two looks at how far it is


class Where(click.ParamType[Any]):
    """A place in the log: a position, a time, or the id of a message; of times the zone of here."""

    name = "where"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | int:
        """Return what the node is asked with: a number, or text; a time with its zone."""
        text = str(value)
        number = text.removeprefix("log:")
        if number.isascii() and number.isdigit():
            if int(number) > INTEGER_MAX:
                self.fail(f"{text!r} is no position: at most {INTEGER_MAX}", param, ctx)
            return int(number)
        said = text.removeprefix("@")
        try:
            at = datetime.fromisoformat(said)
        except ValueError:
            if said != text:
                self.fail(f"{said!r} is no time of ISO 8601", param, ctx)
            return text
        return f"@{at.astimezone().isoformat() if at.tzinfo is None else at.isoformat()}"


@click.command(short_help="Send a receiver again what it has acknowledged.")
@click.argument("receiver")
@click.option("--from", "first", type=Where(), help="Where it begins. Default: with the oldest.")
@click.option("--to", "end", type=Where(), help="Where it ends. Default: with the newest.")
@click.option("--suspended", is_flag=True, help="What it was left out of while suspended.")
@click.option("--cancel", is_flag=True, help="End the one that runs; what was copied stays.")
@click.option("--no-wait", is_flag=True, help="End as soon as it has begun.")
@node_options
@act_options
def rewind(
    session: Session,
    act: Act,
    receiver: str,
    first: str | int | None,
    end: str | int | None,
    suspended: bool,
    cancel: bool,
    no_wait: bool,
) -> None:
    """Send RECEIVER again what it has acknowledged, as copies that say so.

    --from and --to take a position, the id of a message, or a time (2026-11-29T07:00, of here where
    it names no zone); --to a message takes that too, --to a time what was stored before it.

    Says first how many messages that is, and asks. It goes on when this command is interrupted:
    --cancel ends it.
    """
    if (suspended or cancel) and (first is not None or end is not None):
        raise click.UsageError("--suspended and --cancel take neither --from nor --to")
    if cancel and (suspended or act.dry_run):
        raise click.UsageError("--cancel ends the one that runs: give nothing else")
    session.check(check_name, receiver)
    asked: dict[str, Any] = {"name": receiver, "first": first, "end": end}
    if suspended:
        asked["suspended"] = True

    async def call_off(reactor: Reactor) -> None:
        told = await session.ask(reactor, RECEIVERS_REWIND_CANCEL, name=receiver)
        session.show(told, _sentence(told, "called off"))

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            try:
                found = await _count(session, reactor, client, asked)
            except RequestFailed as error:
                if error.code != BadValue.refusal_code or suspended:
                    raise
                raise RequestFailed(f"{error} ({FIELDS})", error.code) from None

            async def do() -> Done:
                if not suspended:  # as it was counted
                    asked.update({"first": found["first"], "end": found["end"]})
                try:
                    told = await session.request(reactor, client, RECEIVERS_REWIND, **asked)
                except CancelledError:
                    raise _goes_on(receiver, "it may have begun") from None
                if not no_wait:
                    told = await _watch(session, reactor, client, told)
                return Done(
                    sentence=_sentence(told, "begun" if no_wait else "sent again"), fields=told
                )

            touched = Touched(
                count=found["copied"],
                sentence=_touched(receiver, found, suspended),
                fields={"replay": found},
            )
            await act.carry_out(session, reactor, touched, do)

    session.run(call_off if cancel else work)


async def _count(
    session: Session, reactor: Reactor, client: Client, asked: dict[str, Any]
) -> dict[str, Any]:
    """Return what a rewind would copy: counted by the node in as many answers as it takes."""
    question, told = dict(asked), None
    while True:
        found = await session.request(reactor, client, RECEIVERS_REWIND_COUNT, **question)
        page: dict[str, Any] = found["replay"]
        if told is None or question.get("suspended"):  # of that all is told each time
            told = page
        else:
            for name in ("copied", "skipped"):
                told[name] += page[name]
        if page["over"]:
            return told
        if not question.get("suspended"):
            question.update(first=page["next"], end=page["end"])


async def _watch(
    session: Session, reactor: Reactor, client: Client, told: dict[str, Any]
) -> dict[str, Any]:
    """Show how far it is until it is over, on a terminal; return how far it came."""
    name, replay = told["name"], told["replay"]
    bar = Progress(
        TextColumn("{task.fields[copied]:,} messages copied{task.fields[waits]}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=session.as_json or not sys.stderr.isatty(),
        auto_refresh=False,  # its thread would print into ours
    )
    total = replay["end"] - replay["first"] + 1
    task = bar.add_task("", total=total, copied=0, waits="")
    try:
        with bar:
            while not replay["over"]:
                await deferLater(reactor, LOOK_SECONDS)
                told = await session.request(reactor, client, RECEIVERS_REPLAY, name=name)
                replay = told["replay"]
                bar.update(
                    task,
                    completed=replay["next"] - replay["first"],
                    copied=replay["copied"],
                    waits=f" ({replay['waits']})" if replay["waits"] else "",
                    refresh=True,
                )
    except CancelledError:
        raise _goes_on(name, f"{counted(replay['copied'], 'message')} copied") from None
    return told


def _goes_on(name: str, known: str) -> Interrupted:
    return Interrupted(
        f"{known}, and the node goes on: msgservice rewind {name} --cancel ends that"
    )


def _sentence(told: dict[str, Any], what: str) -> str:
    name, replay = told["name"], told["replay"]
    if replay is None:
        return f"{name}: no replay runs"
    skipped = f", {replay['skipped']:,} were not kept any more" if replay["skipped"] else ""
    return f"{name}: {what}, {counted(replay['copied'], 'message')} copied{skipped}"


def _touched(name: str, found: dict[str, Any], suspended: bool) -> str:
    which = f"{name} was left out of" if suspended else f"{name} has acknowledged"
    gone = f", {found['skipped']:,} more are not kept any more" if found["skipped"] else ""
    kept = ""
    if found["first"] == found["kept_from"] > FIRST:  # else nothing has gone
        kept = f" (nothing of before position {found['first']} is kept)"
    count = found["copied"]
    begin, end = found["first"], found["end"]
    where = f"at position {begin}" if begin == end else f"from position {begin} to {end}"
    verb = "is" if count == 1 else "are"
    what = f"{counted(count, 'message')} that {which}, {where}{kept}"
    return f"{what}, {verb} to be sent to it again{gone}"
