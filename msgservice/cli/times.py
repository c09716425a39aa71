"""Lengths of time as people write them on a command line: `30s`, `5m`, `2h`, `7d`, or seconds."""

from __future__ import annotations

import re
from typing import Final

import click

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TIME = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)?")


def seconds_of(text: str, option: str) -> float:
    """Return the seconds of a length of time; `UsageError` for what is none."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise click.UsageError(f"{option} takes a time as 30s, 5m, 2h or 7d, not {text!r}")
    return float(found[1]) * UNITS[found[2] or "s"]
