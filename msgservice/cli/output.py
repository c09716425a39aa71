"""How commands print, and how they end where that cannot be."""

from __future__ import annotations

import base64
import os
import sys
from datetime import datetime
from typing import IO

import click
from rich.console import Console, RenderableType
from rich.table import Table

from msgservice.cli.exit_codes import ExitCode
from msgservice.errors import MsgServiceError

# Wide enough that a table in a pipe is never cut; on a terminal, the terminal says.
WIDTH_IN_PIPE = 240


class CannotPrint(MsgServiceError):
    """Standard output takes nothing: that is the command's trouble, not the node's."""

    def __init__(self, error: OSError, rest: str = "") -> None:
        super().__init__(f"cannot print: {error.strerror}{rest}")


def out(said: RenderableType | bytes, *, nl: bool = True) -> None:
    """Print on standard output. Where its reader has gone the command ends, quietly.

    Raises `CannotPrint` where it takes nothing.
    """
    try:
        if not isinstance(said, bytes):
            # Not printed by rich: that has an end of its own for a reader that has gone.
            to = console(sys.stdout)
            with to.capture() as captured:
                to.print(said)
            said, nl = captured.get(), False
        click.echo(said, nl=nl)
    except OSError as error:
        drop_output()
        if isinstance(error, BrokenPipeError):
            raise SystemExit(ExitCode.UNREAD) from None
        raise CannotPrint(error) from None


def drop_output() -> None:
    """Let standard output go nowhere: what is still buffered must not fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(file: IO[str]) -> Console:
    """Return a console that cuts nothing where nobody looks."""
    return Console(
        file=file,
        highlight=False,
        markup=False,  # what others wrote is no markup, be it in brackets
        emoji=False,
        width=None if file.isatty() else WIDTH_IN_PIPE,
        soft_wrap=False,
    )


def counted(count: int, what: str) -> str:
    """Return so many of something, in words: one of it alone, and what has an s otherwise."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def cut(text: str) -> str:
    """Return a text that is told beside others: cut where a terminal would show a column of it."""
    most = console(sys.stdout).width * 3 // 4
    return text if len(text) <= most or not sys.stdout.isatty() else text[: most - 1] + "…"


def plain_table(*headings: str) -> Table:
    """Return a table without rules around it: it is read by people and by `awk`."""
    table = Table(box=None, pad_edge=False, show_header=bool(headings), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def moment(milliseconds: int) -> str:
    """Return a moment of the wall clock as people read it here."""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(" ", "milliseconds")


def lasting(seconds: float) -> str:
    """Return how long something lasts, in its largest unit that is full: `3 h`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def body_told(body: bytes) -> dict[str, str]:
    """Return a body as a field of JSON: `text`, or `base64` where it is none."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}
