"""Answers of the node that come in pages, printed as they come: one table, or one JSON object."""

from __future__ import annotations

import base64
import sys
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len

from msgservice.administration import Operation
from msgservice.cli.output import console, out, plain_table
from msgservice.cli.session import Session
from msgservice.client.client import Client
from msgservice.clock import Reactor
from msgservice.message import WireMessage, decode_messages


class TableOfPages:
    """Prints rows under one row of headings; a column only ever becomes wider."""

    def __init__(self, *headings: str) -> None:
        self._headings = headings
        self._widths = [cell_len(heading) for heading in headings]
        self._begun = False

    def print(self, rows: Collection[Sequence[str]]) -> None:
        """Print these rows."""
        if not rows:
            return
        table = plain_table(*self._headings)
        table.show_header = not self._begun
        self._begun = True
        for row in rows:
            self._widths = [max(w, cell_len(c)) for w, c in zip(self._widths, row, strict=True)]
            table.add_row(*row)
        if sum(self._widths) + len(self._widths) <= console(sys.stdout).width:
            for column, width in zip(table.columns, self._widths, strict=True):
                column.min_width = width
        out(table)


class JsonOfPages:
    """Prints one object: what all pages say of the whole, and their rows in one list or map."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._end = b""
        self._any = False

    def print(self, page: dict[str, Any]) -> None:
        """Print the rows of this page."""
        rows = msgspec.json.encode(page[self._field])
        if not self._end:
            whole = {k: v for k, v in page.items() if k not in (self._field, "next")}
            begin = msgspec.json.encode(whole)[:-1] + (b"," if whole else b"")
            out(begin + msgspec.json.encode(self._field) + b":" + rows[:1], nl=False)
            self._end = rows[-1:]
        if page[self._field]:
            out((b"," if self._any else b"") + rows[1:-1], nl=False)
            self._any = True

    def end(self) -> None:
        """The last page was shown: there are no more."""
        out(self._end + b"}")


async def whole_message(
    session: Session,
    reactor: Reactor,
    client: Client,
    operation: Operation[Any, Any],
    **asked: object,
) -> tuple[dict[str, Any], WireMessage]:
    """Return what an answer says of a message, and the message, which comes in parts."""
    encoded = b""
    offset: int | None = 0
    while offset is not None:
        said = await session.request(reactor, client, operation, **asked, offset=offset)
        encoded += base64.b64decode(said.pop("message"))
        offset = said.pop("next")
    (message,) = decode_messages(encoded)
    return said, message
