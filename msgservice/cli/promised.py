"""Promises on the command line: the options that ask for one, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from msgservice.cli.output import counted, moment
from msgservice.cli.session import Session
from msgservice.cli.times import seconds_of
from msgservice.client.promise import Promise
from msgservice.core.reasons import first_line


def promise_of(
    session: Session, need: str | None, within: str | None, otherwise: str | None
) -> Promise | None:
    """Return the promise that `--need`, `--within` and `--otherwise` say, or None.

    Ends the command where that is none: `UsageError` where a part is missing.
    """
    if within is None:
        if need is not None or otherwise is not None:
            said = "--need" if need is not None else "--otherwise"
            raise click.UsageError(f"{said} is about a promise, which begins with --within TIME")
        return None
    asked: dict[str, Any] = {"within": seconds_of(within, "--within")}
    if need is not None:
        asked["need"] = _number_of(need)
    if otherwise is not None:
        asked["otherwise"] = otherwise
    session.check(Promise, **asked)
    return Promise(**asked)


def _number_of(need: str) -> str | int:
    try:
        return int(need)
    except ValueError:  # a word, or with too many digits for any number
        return need


def promise_line(promise: Mapping[str, Any]) -> str:
    """Return the sentence about a promise as a node tells it (`PromiseTold`)."""
    wanted = f"{counted(promise['need'], 'receiver')} until {moment(promise['until'])}"
    has = f"{promise['acknowledged']:,} by now"
    if promise["outcome"] == "open":
        return f"open: {wanted}; {has}"
    decided = f" at {moment(promise['decided_at'])}" if promise["decided_at"] else ""
    why = f", {first_line(promise['reason'])}" if promise["reason"] else ""
    cancels = promise["outcome"] == "broken" and promise["otherwise"] == "cancel"
    rest = "; what was surely not sent yet was cancelled" if cancels else ""
    return f"{promise['outcome']}{decided}{why}: {wanted}; {has}{rest}"
