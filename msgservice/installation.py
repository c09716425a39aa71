"""The installation that runs: its version."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def installed_version() -> str:
    """The version of this installation. Looked up once: it is read from a file, and parsed."""
    try:
        return version("msgservice")
    except PackageNotFoundError:
        return "unknown"
