"""Programs of the pages: by the name that their first line says, in a folder where they are run."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
NODE = "tcp:127.0.0.1:7410"


def blocks(page: str, language: str = "") -> list[str]:
    """Return the blocks of a page in one language, in order."""
    found = re.findall(
        r"^```(\w*)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL
    )
    return [text for said, text in found if said == language]


def typed(page: str) -> list[str]:
    """Return the lines that a page has people type, in order."""
    return [line for block in blocks(page) for line in block.splitlines()]


def write(page: str, folder: Path, node: str) -> dict[str, Path]:
    """Write the named programs of a page, for this node; return where they are, by name.

    A program is named by its docstring, `name.py: ...`.
    """
    written = {}
    for block in blocks(page, "python"):
        if found := re.match(r'"""(\w+\.py):', block):
            written[found[1]] = folder / found[1]
            (folder / found[1]).write_text(block.replace(NODE, node))
    return written
