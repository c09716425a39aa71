"""TOML read with the line of every key, and with every syntax error instead of the first.

`tomllib` does all of the parsing; it tells no lines. A statement that parses when it stands alone
is one statement of the whole, so this module cuts the text into statements and notes where each
begins. What the keys mean is `config`'s business.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

KeyPath = tuple[str | int, ...]
"""The path of a value: `("receiver", 0, "name")`."""

SYNTAX_ERRORS_MAX = 20  # more are hardly separate mistakes
# Ends tried for a statement that is broken and so has none: a look at the whole file for each.
ENDS_TRIED_MAX = 100

_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
# A statement of several lines ends on a line that ends so.
_CLOSER = re.compile(r"""(]|}|\"{3}|'{3})\s*(#.*)?$""")
_TWICE = re.compile(r"Cannot declare \((.*)\) twice")
_OPENER = re.compile(r"""\s*(\[|[\w."'-]+\s*=)""")


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """One mistake of grammar. `line` counts from 1."""

    line: int
    reason: str


@dataclass(slots=True)
class Document:
    """A TOML text: its values, the lines where they stand, and what could not be read."""

    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[SyntaxProblem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """Return the line where the value at `path`, or what would hold it, was written."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse_document(text: str) -> Document:
    """Return what can be read of `text`. Never raises; see `Document.problems`."""
    lines = text.replace("\r\n", "\n").split("\n")
    problems: list[SyntaxProblem] = []
    while True:
        try:
            values = tomllib.loads("\n".join(lines))
            return Document(values, _lines_of(lines), problems)
        except tomllib.TOMLDecodeError as error:
            # What is wrong is noted and blanked, so that the rest is still read and checked.
            problems.append(_blank_mistake(lines, str(error)))
            if len(problems) == SYNTAX_ERRORS_MAX:
                return Document({}, {}, problems)
            continue
        except (ValueError, RecursionError) as error:
            problems.append(_beyond_the_parser(lines, error))
            return Document({}, {}, problems)


def _blank_mistake(lines: list[str], message: str) -> SyntaxProblem:
    """Empty the lines of the statement that `message` is about; return it as a problem."""
    place = _PLACE.search(message)
    reason = message[: place.start()] if place else message
    last = max((i for i, line in enumerate(lines) if line.strip()), default=0)
    at = min(int(place[1]) - 1, last) if place and place[1] else last
    statements = _statements(lines, ends_max=ENDS_TRIED_MAX)
    # A file of nothing but control characters has no statement, and is wrong where they stand.
    start, stop, alone = next((s for s in statements if s[1] > at), (at, at + 1, None))
    if lines[start].lstrip().startswith("["):
        # A heading that is wrong takes what stands under it along: it belongs nowhere else.
        stop = start + 1
        while stop < len(lines) and not lines[stop].lstrip().startswith("["):
            stop += 1
    elif alone is None:
        # Unfinished: it was noticed at the first thing that cannot continue it.
        stop = max(start + 1, at if place and place[1] else len(lines))
        while stop < len(lines) and not _OPENER.match(lines[stop]):
            stop += 1
    lines[start:stop] = [""] * (stop - start)
    noticed = f" (noticed at line {at + 1})" if at > start else ""
    return SyntaxProblem(start + 1, _plain(reason) + noticed)


def _beyond_the_parser(lines: list[str], error: Exception) -> SyntaxProblem:
    """Return as a problem what is grammar, and more than the parser takes."""
    deep = isinstance(error, RecursionError)
    reason = "values nested too deep" if deep else "a number of too many digits"
    statements = _statements(lines, ends_max=ENDS_TRIED_MAX)
    return SyntaxProblem(next((s + 1 for s, _, alone in statements if alone is None), 1), reason)


def _plain(reason: str) -> str:
    """Return the parser's reason as it reads after a file name and a line."""
    if reason == "Cannot overwrite a value":
        return "this key was given before"
    if twice := _TWICE.match(reason):
        return f"[{twice[1].replace(chr(39), '').replace(', ', '.').strip(',')}] was opened before"
    return reason[:1].lower() + reason[1:]


def _statements(
    lines: list[str], *, ends_max: int | None = None
) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """Yield first line, line after, and the value of each statement; None where it has none."""
    start = 0
    while start < len(lines):
        line = lines[start].lstrip()
        if not line or line.startswith("#"):
            start += 1
            continue
        stop = start + 1
        alone = _parsed(lines[start:stop])
        tried = 0
        while alone is None and stop < len(lines) and tried != ends_max:
            stop += 1
            if _CLOSER.search(lines[stop - 1]):
                alone = _parsed(lines[start:stop])
                tried += 1
        if alone is None:
            stop = len(lines)
        yield start, stop, alone
        start = stop


def _parsed(lines: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return None


def _lines_of(lines: list[str]) -> dict[KeyPath, int]:
    found: dict[KeyPath, int] = {}
    tables: dict[KeyPath, int] = {}  # arrays of tables -> how many of theirs were read
    heading: KeyPath = ()
    for start, _, alone in _statements(lines):
        assert alone is not None, start  # the whole parses, so each of its statements does
        if lines[start].lstrip().startswith("["):
            heading = _open_heading(alone, tables)
            for depth in range(1, len(heading) + 1):
                found.setdefault(heading[:depth], start + 1)
        else:
            _note_keys(alone, heading, start + 1, found)
    return found


def _open_heading(alone: Mapping[str, Any], tables: dict[KeyPath, int]) -> KeyPath:
    """Return the path that a heading opens; `alone` is what it says by itself."""
    path: KeyPath = ()
    value: Any = alone
    while value:
        (key, value), *_ = value.items()
        path = (*path, key)
        if isinstance(value, list):  # [[key]]: the next one of them
            tables[path] = tables.get(path, 0) + 1
            value = None
        if path in tables:
            path = (*path, tables[path] - 1)
    return path


def _note_keys(
    value: Mapping[str, Any], path: KeyPath, line: int, found: dict[KeyPath, int]
) -> None:
    for key, inner in value.items():
        found.setdefault((*path, key), line)
        if isinstance(inner, dict):
            _note_keys(inner, (*path, key), line, found)
