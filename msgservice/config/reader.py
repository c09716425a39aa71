"""Takes values out of a TOML document by their path, and notes all that is wrong with them.

The first problem stops nothing: a value that cannot be used is noted and its default taken, so
that the rest is judged too. `config` decides what is right; this module says where it stands.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from msgservice.config.toml import Document, KeyPath
from msgservice.errors import ConfigError, MsgServiceError

FILE_BYTES_MAX = 16 * 1024 * 1024  # 10,000 receivers with long lists of patterns fit in a third
SHOWN_MAX = 60  # characters of a wrong value in a sentence

REFERENCE = "docs/configuration.md"
ALLOWED_SHOWN_MAX = 11  # keys in a sentence that also says which one was meant

Table = dict[str, Any]

_KINDS: dict[Any, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    Table: "a table",
    list[str]: "a list of strings",
    list[Table]: "a list of tables",
    str | list[str]: "a string or a list of strings",
    Table | list[Table]: "a table or a list of tables",
    int | list[int]: "an integer or a list of integers",
}


def read_text(path: Path, name: str) -> str:
    """Return the text of a configuration file; `ConfigError` where it cannot be read."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError([f"{name}: larger than {FILE_BYTES_MAX} bytes"])
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read: {error.strerror}"]) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: not UTF-8"]) from None


def shown(value: object) -> str:
    """Return a value as people wrote it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"


class Reader:
    """One document being read."""

    def __init__(self, name: str, document: Document, places: Mapping[str, str]) -> None:
        """`places`: where each key that is known anywhere belongs, for people."""
        self._name, self._document, self._places = name, document, places
        self._flags: dict[KeyPath, str] = {}  # what a flag said instead of the file
        self._problems: list[tuple[int, str]] = []
        for problem in document.problems:
            self._problems.append((problem.line, f"{name}:{problem.line}: {problem.reason}"))

    @property
    def problems(self) -> list[str]:
        """The problems that were found, by line; flags first."""
        return [sentence for _, sentence in sorted(self._problems, key=lambda p: p[0])]

    def put(self, path: KeyPath, value: object, flag: str) -> None:
        """Put what `flag` says over what the file says."""
        table: Any = self._document.values
        for part in path[:-1]:
            inner = table.get(part)
            table[part] = table = dict(inner) if isinstance(inner, dict) else {}
        table[path[-1]] = value
        self._flags[path] = flag

    def place(self, path: KeyPath) -> str:
        """Return where the value at `path` was written: file and line, or the flag."""
        flag = self._flag(path)
        return flag or f"{self._name}:{self._document.line(path)}"

    def problem(self, path: KeyPath, reason: str) -> None:
        """Note what is wrong with the value at `path`."""
        key = ".".join(part for part in path if isinstance(part, str))
        line = 0 if self._flag(path) else self._document.line(path)
        self._problems.append((line, f"{self.place(path)}: {key}: {reason}"))

    def value(self, path: KeyPath, kind: Any, default: Any) -> Any:
        """Return the value at `path`; `default` where there is none, or where it is no `kind`."""
        value: Any = self._document.values
        for part in path:
            try:
                value = value[part]
            except (KeyError, TypeError):  # TypeError: what holds it is no table, noted already
                return default
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            self.problem(path, f"must be {_KINDS[kind]}, not {shown(value)}")
            return default

    def required(self, path: KeyPath, kind: Any) -> Any:
        """Return the value at `path`; None, and noted, where there is none of this `kind`."""
        missing = object()
        before = len(self._problems)
        value = self.value(path, kind, missing)
        if value is not missing:
            return value
        # Where lines could not be read, it may well be on one of them.
        if len(self._problems) == before and not self._document.problems:
            self.problem(path, f"is missing; it must be {_KINDS[kind]}")
        return None

    def table(
        self, path: KeyPath, allowed: Sequence[str], hints: Mapping[str, str] | None = None
    ) -> bool:
        """Return whether a table is at `path`; note the keys of it that are not `allowed`.

        `hints`: what to say of keys that are expected to be tried.
        """
        table = self.value(path, Table, None)
        if table is None:
            return False
        for key in table:
            if key in allowed:
                continue
            if hints and key in hints:
                self.problem((*path, key), hints[key])
                continue
            self.problem((*path, key), self._unknown(key, allowed))
        return True

    def check(self, path: KeyPath, check: Callable[[str], object], text: str) -> bool:
        """Return whether `check` takes `text`; what it raises is noted."""
        try:
            check(text)
        except MsgServiceError as error:
            self.problem(path, str(error))
            return False
        return True

    def _unknown(self, key: str, allowed: Sequence[str]) -> str:
        """Return what is wrong with a key that is not `allowed`, and what may have been meant."""
        if key in self._places:
            return f"unknown key here; it belongs in {self._places[key]}"
        near = difflib.get_close_matches(key, allowed, n=1)
        if not near and (far := difflib.get_close_matches(key, self._places, n=1)):
            return f"unknown key, is {far[0]!r} of {self._places[far[0]]} meant?"
        meant = f", did you mean {near[0]!r}?" if near else ""
        if len(allowed) > ALLOWED_SHOWN_MAX:
            return f"unknown key{meant or f' (all are in {REFERENCE})'}"
        return f"unknown key{meant} (allowed: {', '.join(allowed)})"

    def _flag(self, path: KeyPath) -> str | None:
        while path:
            if path in self._flags:
                return self._flags[path]
            path = path[:-1]
        return None
