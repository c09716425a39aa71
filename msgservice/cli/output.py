"""How commands print."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import IO

from rich.console import Console
from rich.table import Table

# Wide enough that a table in a pipe is never cut; on a terminal, the terminal says.
WIDTH_IN_PIPE = 240


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
