"""How commands print."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.table import Table

# Wide enough that a table in a pipe is never cut; on a terminal, the terminal says.
WIDTH_IN_PIPE = 240


def console(file: IO[str]) -> Console:
    """Return a console that cuts nothing where nobody looks."""
    return Console(
        file=file, highlight=False, width=None if file.isatty() else WIDTH_IN_PIPE, soft_wrap=False
    )


def plain_table(*headings: str) -> Table:
    """Return a table without rules around it: it is read by people and by `awk`."""
    table = Table(box=None, pad_edge=False, show_header=bool(headings), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
