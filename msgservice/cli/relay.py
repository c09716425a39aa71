"""`msgservice relay`: hand the rows of an outbox table over, for programs that have no reactor."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from twisted.internet.defer import CancelledError
from twisted.logger import LogLevel

from msgservice.cli.output import out
from msgservice.cli.session import SECONDS_MAX, Seconds, Session, Whole, node_options
from msgservice.clock import Reactor
from msgservice.core.subjects import check_name
from msgservice.outbox.relay import BATCH_ROWS, KEEP, KEEP_FAILED, POLL, Relay, sqlite_at
from msgservice.outbox.sql import DIALECTS
from msgservice.outbox.table import TABLE, OutboxTable
from msgservice.transport.registry import Transports

SENDER = "outbox-relay"
KEPT = click.FloatRange(min=0, max=SECONDS_MAX)


@click.command("relay", short_help="Hand over the rows of an outbox table, until Ctrl-C.")
@click.option("--database", metavar="URL", help="A file of SQLite: sqlite:///FILE.")
@click.option(
    "--connect",
    metavar="MODULE:FUNCTION",
    help="What returns a new connection of DB-API, for another database. MODULE is looked for here"
    " too.",
)
@click.option(
    "--outbox",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The relay's own file, for this table alone. Needed.",
)
@click.option("--name", default=SENDER, show_default=True, help="The name of the sender.")
@click.option("--table", default=TABLE, show_default=True, metavar="[SCHEMA.]NAME")
@click.option("--create", is_flag=True, help="Make the tables where they are missing.")
@click.option(
    "--take-over",
    is_flag=True,
    help="Take the table from an outbox file that is lost: what was not settled may come twice.",
)
@click.option(
    "--poll",
    type=Seconds(),
    default=POLL,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks at a table in which nothing waits.",
)
@click.option(
    "--batch", type=Whole(min=1), default=BATCH_ROWS, show_default=True, help="Rows taken at once."
)
@click.option(
    "--keep",
    type=KEPT,
    default=KEEP,
    show_default=True,
    metavar="SECONDS",
    help="For which rows stay that were acknowledged.",
)
@click.option(
    "--keep-failed",
    type=KEPT,
    default=KEEP_FAILED,
    show_default=True,
    metavar="SECONDS",
    help="For which the other ones stay that are finished.",
)
@click.option(
    "--sql",
    type=click.Choice(DIALECTS),
    help="Print the SQL that makes the tables, for a migration, and do nothing else.",
)
@node_options
def relay(
    session: Session,
    database: str | None,
    connect: str | None,
    outbox: Path | None,
    name: str,
    table: str,
    create: bool,
    take_over: bool,
    poll: float,
    batch: int,
    keep: float,
    keep_failed: float,
    sql: str | None,
) -> None:
    """Hand the rows of an outbox table over to the node, and write into them what became of them.

    It says on standard error what it does, goes on where the node or the database is away, and ends
    with SIGTERM or Ctrl-C, or where it must: the table is another relay's, say.
    """
    if sql is not None:
        said: list[str] = []
        session.check(lambda: said.append(OutboxTable(table).sql(sql)))
        out(said[0].encode(), nl=False)
        return
    if outbox is None:
        raise click.UsageError("--outbox FILE is needed: the relay's own file")
    if (database is None) is (connect is None):
        raise click.UsageError("--database or --connect is needed, one of both")
    options: dict[str, Any] = {
        "connect": None if connect is None else function_at(connect),
        "database": database,
        "table": table,
        "creates": create,
        "take_over": take_over,
        "poll": poll,
        "batch": batch,
        "keep": keep,
        "keep_failed": keep_failed,
    }
    if session.login is not None:
        login = session.login
        options |= {"user": login.user or None, "password": login.password, "token": login.token}

    def checked() -> None:
        check_name(name)
        Transports().find(session.node).check_dial(session.node)
        OutboxTable(table)
        if database is not None:
            sqlite_at(database)

    session.check(checked)

    async def work(reactor: Reactor) -> None:
        relay = Relay(reactor, session.node, name=name, outbox=outbox, **options)
        try:
            await relay.start()
            click.echo(f"msgservice: {outbox} relays {table} to {session.node}", err=True)
            await relay.when_stopped()
        except CancelledError:
            pass  # by a signal
        finally:
            await relay.stop()

    session.run(work, level=LogLevel.info)


def function_at(place: str) -> Callable[[], Any]:
    """Return the function at MODULE:FUNCTION; `UsageError` where there is none."""
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise click.UsageError(f"--connect takes MODULE:FUNCTION, not {place!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--connect {place}: {error}") from None
    if not callable(found):
        raise click.UsageError(f"--connect {place} is no function")
    function: Callable[[], Any] = found
    return function
