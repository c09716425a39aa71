"""Promises as a program asks for them, and as it is told: `send(..., promise=)` (DELIVERY 55).

What a run carries of one is `message.PromiseOption`; who decides is the node (`node.promises`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Literal, NamedTuple

from msgservice.errors import BadValue
from msgservice.limits import INTEGER_MAX, TIME_DAYS_MAX
from msgservice.message import PromiseOption, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The wish to be told in time whether enough receivers have acknowledged a message.

    `need`: how many: `"all"` of those it is for, `"any"` one, or a number. `within`: seconds from
    `send`, above 0, at most 366 days. `otherwise`: what the node does where it is broken:
    `"notify"` only says so, `"cancel"` first cancels what is surely not sent yet. Raises
    `BadValue`.
    """

    need: Literal["all", "any"] | int = "all"
    within: float
    otherwise: Literal["notify", "cancel"] = "notify"
    option: PromiseOption = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check it, once for all messages that it is used for."""
        need = self.need
        if isinstance(need, str):
            wanted = {"all": 0, "any": 1}.get(need)
        else:
            is_one = isinstance(need, int) and not isinstance(need, bool)
            wanted = need if is_one and 1 <= need <= INTEGER_MAX else None
        if wanted is None:
            raise BadValue("need", f"is 'all', 'any' or a number from 1 on, not {need!r}")
        within = self.within
        if isinstance(within, bool) or not isinstance(within, int | float):
            raise BadValue("within", f"is a number of seconds, not {within!r}")
        if not 0 < within <= TIME_DAYS_MAX * 24 * 3600:  # nor what is no number
            raise BadValue(
                "within", f"is above 0, and at most {TIME_DAYS_MAX} days in seconds, not {within!r}"
            )
        if self.otherwise not in ("notify", "cancel"):
            raise BadValue("otherwise", f"is 'notify' or 'cancel', not {self.otherwise!r}")
        option = PromiseOption(wanted, ceil(within * 1000), self.otherwise == "cancel")
        object.__setattr__(self, "option", option)

    @classmethod
    def of(cls, option: PromiseOption) -> Promise:
        """Return what a run carries of a promise as a program asks for one."""
        return cls(
            need=option.need or "all",
            within=option.within / 1000,
            otherwise="cancel" if option.cancels else "notify",
        )


@dataclass(frozen=True, slots=True)
class PromiseOutcome:
    """The outcome of a promise. `reason`: why it was broken, for people.

    `receivers`: the state of the message at each of those it is for, when this was told. Where it
    was broken and `otherwise="cancel"`, those that are not final were sent, or may have been.
    """

    kept: bool
    reason: str
    receivers: dict[str, Status]


class PromiseCounts(NamedTuple):
    """The messages of one `send_many` whose promise was kept, and those of which it was broken."""

    kept: int
    broken: int
