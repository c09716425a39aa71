"""`msgservice receivers`: who gets what, and how far each of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from msgservice.administration import (
    RECEIVERS_ADD,
    RECEIVERS_CHANGE,
    RECEIVERS_LIST,
    RECEIVERS_OWN,
    RECEIVERS_PAUSE,
    RECEIVERS_REMOVE,
    RECEIVERS_RESUME,
    RECEIVERS_TEST,
    Operation,
)
from msgservice.cli.acts import confirmed, is_attended
from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.output import counted, cut, lasting, out
from msgservice.cli.pages import JsonOfPages, TableOfPages
from msgservice.cli.session import TIMEOUT, Session, Whole, node_options
from msgservice.clock import Reactor
from msgservice.config.addresses import check_receiver_address
from msgservice.core.subjects import check_name, check_pattern
from msgservice.errors import Refused
from msgservice.limits import INTEGER_MAX
from msgservice.receiver_options import ADDED, OPTIONS, Option
from msgservice.records import LEFT_OUT
from msgservice.threads import in_daemon_thread
from msgservice.transport.addresses import checked_way_to, parse_address
from msgservice.webhooks.options import HOOK_SECONDS_MAX

Command = TypeVar("Command", bound=Callable[..., Any])

SCHEMES_CHECKED_HERE = ("tcp", "unix", "udp", "pb")

SUBJECTS = click.argument("subjects", nargs=-1, metavar="[SUBJECT]...")
NAME = click.argument("name")
ADDRESS = click.option("--address", metavar="ADDRESS", help="The node dials it there.")
CHANGED = tuple(option for option in OPTIONS if option.about.changed)


def flag_of(option: Option) -> str:
    """The name of an option of a receiver on the command line."""
    return f"--{option.name.replace('_', '-')}"


def _option(option: Option) -> Callable[[Command], Command]:
    about, flag = option.about, flag_of(option)
    if option.kind is bool:
        # One that can be changed can be taken back. None where it is not given.
        both = f"{flag}/--no-{flag[2:]}" if about.changed else flag
        return click.option(both, is_flag=True, default=None, help=about.help)
    kind: click.ParamType[Any] = click.STRING
    if about.choices:
        kind = click.Choice(about.choices)
    elif option.kind is int:
        kind = Whole(about.lowest, None if about.highest == INTEGER_MAX else about.highest)
    usual = "" if option.default is None else f" Default: {option.default}."
    return click.option(flag, type=kind, metavar=about.unit, help=f"{about.help}{usual}")


def _options(options: Sequence[Option]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = _option(option)(command)
        return command

    return decorate


@click.group()
def receivers() -> None:
    """List, add, change, pause, resume, remove and give receivers."""


@receivers.command("list")
@node_options
def list_receivers(session: Session) -> None:
    """List all receivers with what waits for them."""

    async def work(reactor: Reactor) -> None:
        table = TableOfPages(
            "name", "subjects", "state", "queued", "oldest", "dead", "address", "last error"
        )
        json, shown = JsonOfPages("receivers"), 0
        after: str | None = ""
        async with session.client(reactor) as client:
            while after is not None:
                page = await session.request(reactor, client, RECEIVERS_LIST, after=after)
                after = page["next"]
                shown += len(page["receivers"])
                if session.as_json:
                    json.print(page)
                else:
                    table.print([_row(row) for row in page["receivers"]])
        if session.as_json:
            json.end()
        elif not shown:
            out("no receivers")

    session.run(work)


@receivers.command(short_help="Add the receiver NAME for these SUBJECTs.")
@NAME
@SUBJECTS
@ADDRESS
@_options(ADDED)
@node_options
def add(
    session: Session,
    /,
    name: str,
    subjects: tuple[str, ...],
    address: str | None,
    **options: Any,
) -> None:
    """Add the receiver NAME for these SUBJECTs; it gets what is sent from now on.

    A SUBJECT may be a pattern: * is one token, > the rest. Without any, it gets only messages
    that name it. Without --address it attaches by itself.
    """
    _change_of(
        session,
        RECEIVERS_ADD,
        f"added {name}",
        name=name,
        subjects=list(subjects),
        address=address,
        **options,
    )


@receivers.command()
@NAME
@SUBJECTS
@ADDRESS
@_options(CHANGED)
@node_options
def change(
    session: Session,
    /,
    name: str,
    subjects: tuple[str, ...],
    address: str | None,
    **options: Any,
) -> None:
    """Change what is given of the receiver NAME, and nothing else.

    Other SUBJECTs touch what is sent from now on; what waits for it already still does.
    """
    if not subjects and all(value is None for value in (address, *options.values())):
        known = ("SUBJECTs", "--address", *(flag_of(option) for option in CHANGED))
        raise click.UsageError(f"nothing to change: give {', '.join(known[:-1])} or {known[-1]}")
    _change_of(
        session,
        RECEIVERS_CHANGE,
        f"changed {name}",
        name=name,
        subjects=list(subjects) or None,
        address=address,
        **options,
    )


@receivers.command()
@NAME
@node_options
def pause(session: Session, name: str) -> None:
    """Send nothing to NAME until it is resumed; its messages are kept."""
    _change_of(session, RECEIVERS_PAUSE, f"paused {name}", name=name)


@receivers.command()
@NAME
@node_options
def resume(session: Session, name: str) -> None:
    """Send to NAME again."""

    session.check(check_name, name)

    async def work(reactor: Reactor) -> None:
        told = await session.ask(reactor, RECEIVERS_RESUME, name=name)
        full = told.get("full")
        advice = (
            f", but {full}: the next message that would be one pauses it again"
            " (raise that limit, or remove a receiver whose letters may go)"
        )
        session.show(told, f"resumed {name}{advice if full else ''}")

    session.run(work)


@receivers.command(short_help="Give the receiver NAME to USER.")
@NAME
@click.argument("owner", metavar="[USER]", required=False)
@click.option("--nobody", is_flag=True, help="To no user: then nobody can attach as it.")
@node_options
def own(session: Session, name: str, owner: str | None, nobody: bool) -> None:
    """Give the receiver NAME to USER, who alone can attach as it then.

    Whose it is outlives that it is removed, and then --nobody frees its name. Who is attached as
    another user is sent away.
    """
    if (owner is None) is not nobody:
        raise click.UsageError("give a USER, or --nobody")
    session.check(check_name, name)
    if owner is not None:
        session.check(check_name, owner)
    told = f"{name} is {'nobody' if owner is None else owner}'s now"

    async def work(reactor: Reactor) -> None:
        session.show(await session.ask(reactor, RECEIVERS_OWN, name=name, user=owner or ""), told)

    session.run(work)


@receivers.command(short_help="Post a test to the webhook NAME.")
@NAME
@node_options
def test(session: Session, name: str) -> None:
    """Post a test to the web address of the receiver NAME, and say what came back.

    It is no message: nothing is stored or counted. Exits with 1 where it was not taken. An answer
    is waited for as long as the node waits for it, unless --timeout is given.
    """
    session.check(check_name, name)
    # The node ends each call by itself, when that is configured; this only ends with a dead node.
    patient = replace(session, timeout=HOOK_SECONDS_MAX + TIMEOUT)
    source = click.get_current_context().get_parameter_source("timeout")
    asking = patient if source is ParameterSource.DEFAULT else session

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            asked = client.request(RECEIVERS_TEST.right, {"name": name}, timeout=asking.timeout)
            told = await asking.in_time(reactor, asked, lambda: f"{name} has not answered yet")
        code = "" if told["code"] is None else f" {told['code']}"
        done = f"{name} has taken a test:{code} after {told['seconds']:g} s"
        session.show(told, done if told["taken"] else f"not taken: {told['reason']}")
        if not told["taken"]:
            raise SystemExit(ExitCode.REFUSED)

    session.run(work)


@receivers.command()
@NAME
@click.option("--yes", is_flag=True, help="Do not ask, whatever goes with it.")
@node_options
def remove(session: Session, name: str, yes: bool) -> None:
    """Remove the receiver NAME; what waits for it will not be delivered.

    Asks first if messages wait, or if there are dead letters, which go with it; with --json it
    refuses then, unless there is --yes. Who sent what waits is told: removed.
    """

    session.check(check_name, name)

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            there = await session.request(reactor, client, RECEIVERS_REMOVE, name=name)
            waiting, dead = there["queued"], there.get("dead", 0)
            question = _question(name, waiting, dead)
            if (waiting or dead) and session.as_json and not yes:  # no program reads a question
                raise Refused(f"not removed: {question} --yes says so")
            if (waiting or dead) and not (
                yes or await in_daemon_thread(reactor, lambda: confirmed(question))
            ):
                raise Refused(
                    "not removed" if is_attended() else "not removed; --yes says so unasked"
                )
            removed = await session.request(
                reactor, client, RECEIVERS_REMOVE, name=name, confirm=waiting
            )
        lost = removed.get("dead", 0)
        letters = f", {counted(lost, 'dead letter')} gone" if lost else ""
        left = counted(removed["removed"], "message")
        text = f"removed {name}; {left} not delivered{letters}"
        if removed.get("configured"):
            text += "; the node's configuration has it: the next start makes it anew"
        session.show(removed, text)

    session.run(work)


def _question(name: str, waiting: int, dead: int) -> str:
    verb = "waits" if waiting == 1 else "wait"
    wait = f"{counted(waiting, 'message')} {verb} for {name} and will not be delivered"
    wait = wait if waiting else ""
    letters = f"{counted(dead, 'dead letter')} of {name} will be gone" if dead else ""
    return f"{'; '.join(part for part in (wait, letters) if part)}. Remove it?"


def _change_of(
    session: Session, operation: Operation[Any, Any], done: str, **question: object
) -> None:
    session.check(_check, question)

    async def work(reactor: Reactor) -> None:
        session.show(await session.ask(reactor, operation, **question), done)

    session.run(work)


def _check(question: dict[str, Any]) -> None:
    """Raise what can be known to be wrong without the node; it checks all of it again."""
    check_name(question["name"])
    for pattern in question.get("subjects") or ():
        check_pattern(pattern)
    text = question.get("address")
    if text is None:
        return
    address = parse_address(checked_way_to(text))
    # Files in an address are on the node's machine, and other schemes are the node's to know.
    if address.scheme in SCHEMES_CHECKED_HERE and not address.options:
        check_receiver_address(text)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        " ".join(row["subjects"]) or "-",
        _state(row),
        f"{row['queued']:,}",
        "" if row["oldest_s"] is None else lasting(row["oldest_s"]),
        f"{row['dead']:,}",
        row["address"] or "attaches",
        _trouble(row),
    )


def _state(row: dict[str, Any]) -> str:
    state = "connected" if row["connected"] else _away(row)
    if row.get("health") == "failing" and row.get("health_s") is not None:
        state = f"failing {lasting(row['health_s'])}, {state}"
    if row.get("shared"):
        state = f"{row['workers']} workers, {state}" if row["connected"] else f"shared, {state}"
    if row.get("health") == "probing":
        state = f"probing, {state}"
    marks = [mark for mark in ("paused", "suspended", "refuses") if row[mark]]
    if marks and row.get("health_s") is not None:  # that of the first
        marks[0] = f"{marks[0]} {lasting(row['health_s'])}"
    return ", ".join([*marks, *_replaying(row), state])


def _away(row: dict[str, Any]) -> str:
    """Return for how long a receiver is away; and of which time, where it is removed after that."""
    counted = row.get("away_s")
    if counted is None:
        return f"away {lasting(row['since_s'])}"
    stays = f", stays: {row['stays']}" if row["stays"] else ""
    return f"away {lasting(counted)} of {lasting(row['away_max'])}{stays}"


def _replaying(row: dict[str, Any]) -> list[str]:
    """The marks of what is sent again, and of what it was left out of, if its node says so."""
    replay, left_out, said = row.get("replay"), row.get("left_out"), []
    if replay and not replay["over"]:
        waits = f" (waits: {replay['waits']})" if replay["waits"] else ""
        kind = "what it was left out of" if replay["kind"] == LEFT_OUT else replay["kind"]
        said.append(f"{kind} at {replay['next']}, {replay['copied']:,} copied{waits}")
    if left_out:
        more = "" if left_out["counted"] else " or more"
        said.append(f"left out of {left_out['messages']:,}{more}")
    return said


def _trouble(row: dict[str, Any]) -> str:
    if not row["last_error"]:
        return ""
    tries = f", attempt {row['attempts']}" if row["attempts"] else ""
    again = f", again in {row['next_try_s']:.0f} s" if row["next_try_s"] else ""
    where = f" ({row['waits']['subject']}, {row['waits']['position']})" if row["waits"] else ""
    return f"{cut(row['last_error'])}{where}{tries}{again}"
