"""`msgservice listen`: be a receiver, and print what comes."""

from __future__ import annotations

import click

from msgservice.cli.session import Session, node_options


@click.command()
@click.argument("name")
@click.argument("subjects", nargs=-1, metavar="[SUBJECT]...")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("--forget", is_flag=True, help="Remove the receiver at the end.")
@node_options
def listen(
    session: Session, name: str, subjects: tuple[str, ...], count: int | None, forget: bool
) -> None:
    """Attach to the node as the receiver NAME, and print what it gets for these SUBJECTs.

    A message is acknowledged when it is printed. On a terminal its subject stands before it; in a
    pipe each message is a line, nothing added; with --json, each is an object on a line.

    The receiver stays when this ends, and its messages wait for it: `receivers remove NAME`, or
    --forget, ends that.
    """
