"""Who writes the groups of a log in a test, the reactor's thread or another: one switch for all.

    MSGSERVICE_INLINE_COMMITS=on|off|auto make test

Without it, logs that a test makes by `SqliteLog` alone are `auto`; what is played from a seed has
one or the other, as its seed says.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any, Literal

from msgservice.log.inline import VARIABLE

ON_OFF: tuple[Literal["on"], Literal["off"]] = ("on", "off")


def forced(otherwise: str) -> Literal["on", "off"]:
    """Return what the switch says; where that is `auto` or nothing, `otherwise`."""
    said = os.environ.get(VARIABLE)
    return "on" if (said if said in ON_OFF else otherwise) == "on" else "off"


def by_seed(seed: object) -> Literal["on", "off"]:
    """Return what the switch says, else what a seed has."""
    return forced(Random(f"inline {seed}").choice(ON_OFF))


def by_append(log: Any) -> None:
    """Have all groups of a log go through its `append`, which a test looks at."""
    log.append_now = lambda group: None
