"""`msgservice audit`: does all that a log holds add up? Of a node, or of a data folder by itself.

The folder is read by `msgservice.recount`, which knows nothing of the node's own account.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from msgservice.administration import AUDIT
from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.output import CannotPrint, out, plain_table
from msgservice.cli.session import Session, node_options
from msgservice.clock import Reactor
from msgservice.core.reasons import shown
from msgservice.errors import DataFolderUnusable, MsgServiceError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from msgservice.recount import Recount


@click.command(short_help="Count a log anew: does it add up?")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A data folder, read here and now, instead of asking the node.",
)
@node_options
def audit(session: Session, data: Path | None) -> None:
    """Count a log anew and say what does not add up; then the exit code is 1.

    The node recounts its own batches. With --data the folder is read from outside, by a program
    that shares none of the node's counting: messages that are there twice, missing, damaged, or in
    no account. It may be in use meanwhile.
    """
    if data is not None:
        _audit_folder(session, data)
    else:
        _audit_node(session)


def _audit_node(session: Session) -> None:
    found: list[str] = []

    async def work(reactor: Reactor) -> None:
        answer = await session.ask(reactor, AUDIT)
        found.extend(answer["discrepancies"])
        session.show(answer, lambda: "\n".join(map(shown, found)) or "it adds up")
        if found:
            raise SystemExit(ExitCode.REFUSED)

    session.run(work)


def _audit_folder(session: Session, folder: Path) -> None:
    try:
        counted = _recount(folder)
        if session.as_json:
            told = asdict(counted)
            for receiver, one in zip(told["receivers"], counted.receivers, strict=True):
                receiver["unaccounted"] = one.unaccounted
            out(msgspec.json.encode(told | {"unaccounted": counted.unaccounted}))
        else:
            for part in _page(counted):
                out(part)
    except MsgServiceError as error:
        session.complain(error)
        raise SystemExit(ExitCode.REFUSED) from None
    except CannotPrint as error:
        click.echo(f"msgservice: {error}", err=True)
        raise SystemExit(ExitCode.REFUSED) from None
    raise SystemExit(ExitCode.REFUSED if counted.discrepancies else ExitCode.DONE)


def _recount(folder: Path) -> Recount:
    """Return the recount of a folder's log, of the moment when it begins."""
    import apsw  # only here: a node is asked without it

    from msgservice.disk.database import connect
    from msgservice.disk.mark import MARK_NAME
    from msgservice.errors import LogDamaged, LogTooNew
    from msgservice.log.schema import SCHEMA
    from msgservice.log.sqlite import LOG_NAME
    from msgservice.recount import recount

    path = folder / LOG_NAME
    if not path.is_file():
        raise DataFolderUnusable(str(folder), f"there is no {LOG_NAME} in it")
    try:
        # Before the log is looked at: what is stored meanwhile is ahead of it.
        mark = (folder / MARK_NAME).read_bytes() if (folder / MARK_NAME).exists() else b""
        db = connect(str(path), readonly=True)
        try:
            db.execute("begin")
            version = SCHEMA.version_of(db)
            if version > SCHEMA.newest:
                raise LogTooNew(version, SCHEMA.newest, LOG_NAME)
            if version < SCHEMA.newest:
                raise DataFolderUnusable(
                    str(folder), f"its version is {version}: a node of this one brings it up first"
                )
            return recount(db.execute, mark)
        finally:
            db.close()
    except apsw.CorruptError as error:
        raise LogDamaged(f"it cannot be read: {error}", 0, 0) from error
    except (OSError, apsw.Error) as error:
        raise DataFolderUnusable(str(folder), str(error)) from error


def _page(counted: Recount) -> list[RenderableType]:
    table = plain_table("receiver", "routed", "waiting", "settled", "unaccounted")
    for one in counted.receivers:
        told = ", ".join(f"{count:,} {word}" for word, count in one.settled.items())
        table.add_row(
            one.name, f"{one.routed:,}", f"{one.open:,}", told or "0", f"{one.unaccounted:,}"
        )
    parts: list[RenderableType] = [table] if counted.receivers else []
    parts += [shown(sentence) for sentence in counted.discrepancies]
    end = "it adds up" if not counted.discrepancies else "it does not add up"
    kept = f"{counted.messages:,} messages in {counted.batches:,} batches have their rows"
    waiting = f", {counted.waiting:,} wait until they are due" if counted.waiting else ""
    return [*parts, f"{kept}{waiting}: {end}"]
