"""How commands print, and how they end."""

from __future__ import annotations

import enum
from typing import IO

from rich.console import Console
from rich.table import Table

# Wide enough that a table in a pipe is never cut; on a terminal, the terminal says.
WIDTH_IN_PIPE = 240


class ExitCode(enum.IntEnum):
    """Exit statuses: how a command ended, for programs."""

    DONE = 0
    REFUSED = 1  # the node said no, or the message was not delivered
    USAGE = 2  # a wrong option, name, subject, address or configuration; nothing was done
    NO_ANSWER = 3  # no node, or no answer in time: what was asked may have been done
    INTERRUPTED = 130  # by a signal


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
