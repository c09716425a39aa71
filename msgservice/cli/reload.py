"""`msgservice reload`: let a node read its certificates and keys anew."""

from __future__ import annotations

from typing import Any

import click

from msgservice.administration import RELOAD
from msgservice.cli.output import out, plain_table
from msgservice.cli.session import Session, node_options
from msgservice.clock import Reactor
from msgservice.errors import Refused


@click.command(short_help="Let the node read certificates, keys and users anew.")
@node_options
def reload(session: Session) -> None:
    """Let the node read the certificates and keys of its addresses anew, and its users, as SIGHUP.

    Connections stand, but for those whose key is gone, or whose user is gone or another now. What
    cannot be used is said, what was before goes on, and the exit code is 1.
    """

    async def work(reactor: Reactor) -> None:
        files = (await session.ask(reactor, RELOAD))["files"]
        if session.as_json or files:
            table = plain_table("address", "files")
            for one in files:
                table.add_row(one["address"], _told(one))
            session.show({"files": files}, table)
        else:
            out("no address in use names a file")
        wrong = [one["problem"] for one in files if one["problem"] is not None]
        if wrong:
            raise Refused(f"what cannot be used was left as it was: {'; '.join(wrong)}")

    session.run(work)


def _told(one: dict[str, Any]) -> str:
    if one["problem"] is not None:
        return "cannot be used"
    return "read anew" if one["changed"] else "unchanged"
