"""`msgservice request`: asks whoever answers a subject, and prints the answer."""

from __future__ import annotations

from typing import BinaryIO

import click
import msgspec

from msgservice.cli.output import body_told, out
from msgservice.cli.send import content_of, headers_of
from msgservice.cli.session import Session, node_options
from msgservice.client.gathering import check_message
from msgservice.clock import Reactor
from msgservice.core.subjects import check_subject
from msgservice.limits import Limits


@click.command(short_help="Ask whoever answers SUBJECT, and print the answer.")
@click.argument("subject")
@click.argument("body", required=False)
@click.option("--file", type=click.File("rb"), metavar="FILE", help="The body is this file.")
@click.option("--header", multiple=True, metavar="NAME=VALUE", help="A header. Repeatable.")
@node_options
def request(
    session: Session,
    subject: str,
    body: str | None,
    file: BinaryIO | None,
    header: tuple[str, ...],
) -> None:
    """Ask who answers requests on SUBJECT, within --timeout, and print the answer.

    Text and JSON are printed as such, other bytes as they are. Nothing is stored, and nothing is
    asked twice. The node itself answers on subjects of its own.
    """
    if body is not None and file is not None:
        raise click.UsageError("give one of BODY and --file")
    headers = headers_of(header) or None
    content = content_of(body, file, headers)
    asked: str | bytes = b"" if content is None else content
    session.check(check_subject, subject)
    session.check(check_message, "a", asked, to=None, headers=headers, own_id=None, limits=Limits())

    async def work(reactor: Reactor) -> None:
        async with session.client(reactor) as client:
            answer = await client.request(subject, asked, session.timeout, headers=headers)
        if session.as_json:
            told = body_told(answer) if isinstance(answer, bytes) else {"answer": answer}
            out(msgspec.json.encode({"subject": subject, **told}))
        elif isinstance(answer, bytes):
            out(answer, nl=False)
        elif isinstance(answer, str):
            out(answer.encode())
        else:
            out(msgspec.json.format(msgspec.json.encode(answer)))

    session.run(work)
